"""Tiny Qwen2.5-VL and Qwen2-VL that write, random weights in the hub's layout; a reply is of small letters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from models.multimodal import qwen_config
from models.parts import Llama, Pretrained, QwenVision, QwenVL

MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_end|>", "<|vision_start|>", "<|video_pad|>", "<|image_pad|>")
PATCH, MERGE = 4, 2
SIZES = QwenVL(
    vision=QwenVision(patch=PATCH, merge=MERGE, window=16, width=16, layers=2, heads=2, ffn=24, whole=(1,)),
    text=Llama(
        width=32,
        layers=2,
        heads=2,
        kv_heads=1,
        ffn=48,
        family="qwen2",
        max_positions=4096,
        vocabulary=256 + len(MARKS),
    ),
    sections=(2, 3, 3),
)


def save(folder: Path, kind: str) -> Pretrained:
    """The folder, written, as recipes name it. kind: qwen2_5_vl or qwen2_vl."""
    letters = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(list(MARKS))

    torch.manual_seed(0)
    model = _model(kind)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.7)  # so that pictures and places move the reply
    small = {tokenizer.token_to_id(letter) for letter in "abcdefghijklmnopqrstuvwxyz"}
    with torch.no_grad():
        model.lm_head.weight[[row for row in range(len(model.lm_head.weight)) if row not in small]] = 0
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return Pretrained(path=str(folder))


def _model(kind: str) -> Any:
    config = qwen_config(SIZES)
    if kind == "qwen2_5_vl":
        return Qwen2_5_VLForConditionalGeneration(config)
    same: Any = config.to_dict()
    eyes = {"embed_dim": 16, "hidden_size": 32, "depth": 1, "num_heads": 2, "mlp_ratio": 2, "patch_size": PATCH}
    text = {name: value for name, value in same["text_config"].items() if name != "model_type"}
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    held = {name: same[name] for name in ids}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=eyes, text_config=text, **held))
