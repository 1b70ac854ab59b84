"""A tiny CLIP and a tiny SigLIP of open_clip's, random weights in the hub's layout; they read by its own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

from models.parts import OpenClip

_VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
_TEXT = {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "clip": {"embed_dim": 8, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "siglip": {
        "embed_dim": 8,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": _VISION,
        "text_cfg": {**_TEXT, "no_causal_mask": True, "pool_type": "last"},
    },
}
_SEEN = {"mean": [0.5, 0.25, 0.75], "std": [0.5, 0.4, 0.3], "interpolation": "bicubic", "resize_mode": "squash"}


def save(folder: Path, kind: str) -> OpenClip:
    """The folder, written, as recipes name it."""
    folder.mkdir(exist_ok=True)
    described = {"model_cfg": KINDS[kind], "preprocess_cfg": _SEEN}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return OpenClip(model=f"local-dir:{folder}")
