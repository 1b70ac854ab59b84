"""A vision-language model of Qwen's that writes a text about pictures, for curation: one reply at a time, greedily.

    pictures ─ processor ─ patches, grids ┐
    chat in ChatML, a mark per token ─────┴─ Qwen2-VL or Qwen2.5-VL ─ reply

# P pictures, N tokens of the chat
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import GenerationConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from models import pretrained
from models.parts import Pretrained

_PICTURE = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
_END = "<|im_end|>"


class Writer:
    """Its weights in float32, or bfloat16 on a GPU where this process sees one. The same reply every time.

    tokens: most of a reply. pixels: most of a picture, which is shrunk to them.

    Raises:
        ValueError: neither a Qwen2-VL nor a Qwen2.5-VL, or weights that cannot be had.
    """

    def __init__(self, weights: Pretrained, *, tokens: int, pixels: int) -> None:
        seen = torch.cuda.is_available()
        self.device = torch.device("cuda" if seen else "cpu")
        model: Any = pretrained.qwen_writer(weights, dtype="bfloat16" if seen else "float32")
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.tokenizer = _tokenizer(pretrained.folder(weights))
        vision = model.config.vision_config
        self.merged = vision.spatial_merge_size**2  # patches of a token
        least = (
            2 * vision.spatial_merge_size * vision.patch_size
        ) ** 2  # four tokens, as the published processors have
        self.processor: Any = Qwen2VLImageProcessorPil(
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            min_pixels=least,
            max_pixels=max(pixels, least),
        )
        end = self._id(_END)
        self.generation = GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=end, pad_token_id=end, use_cache=True
        )

    @torch.inference_mode()
    def __call__(self, system: str, parts: Sequence[str | Image.Image]) -> str:
        """What is replied to a system text, and to texts and pictures (RGB) in this order."""
        pictures = [part for part in parts if isinstance(part, Image.Image)]
        cut = self.processor(images=pictures, return_tensors="pt")
        counts = iter((cut["image_grid_thw"].prod(-1) // self.merged).tolist())
        said = "".join(_plain(part) if isinstance(part, str) else _marks(next(counts)) for part in parts)
        chat = f"<|im_start|>system\n{_plain(system)}{_END}\n<|im_start|>user\n{said}{_END}\n<|im_start|>assistant\n"
        ids = torch.tensor([self.tokenizer.encode(chat, add_special_tokens=False).ids], device=self.device)
        made = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == self.model.config.image_token_id).int(),  # 1 for pictures: places count by it
            pixel_values=cut["pixel_values"].to(self.device, self.model.dtype),
            image_grid_thw=cut["image_grid_thw"].to(self.device),
            generation_config=self.generation,
        )
        return self.tokenizer.decode(made[0, ids.shape[1] :].tolist(), skip_special_tokens=True).strip()

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"its tokenizer.json has no {token}: it is not that of a Qwen2-VL or Qwen2.5-VL")
        return found


def _marks(tokens: int) -> str:
    start, pad, end = _PICTURE
    return f"{start}{pad * tokens}{end}"


def _plain(text: str) -> str:
    """Text whose words are no marks."""
    return text.replace("<|", "< |")


def _tokenizer(place: Path) -> Tokenizer:
    file = place / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{place} holds no tokenizer.json: download it again")
    return Tokenizer.from_file(str(file))
