"""Features of single pictures <-> those of a batch: what the architectures share whose pictures are encoded beforehand.

# P pictures, [F, h, w] a canvas
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.interface import Features
from models.vision import Gaussian


def stacked(pictures: Sequence[Features], name: str, device: torch.device) -> Tensor:
    """One feature of every picture, one picture at least: float32[P, ...]."""
    return torch.stack([picture[name] for picture in pictures]).to(device).float()


def joined(pictures: Sequence[Features], name: str, device: torch.device) -> Tensor:
    """Tokens of pictures that have more or fewer of them, picture after picture, one at least: float32[S, D]."""
    return torch.cat([picture[name] for picture in pictures]).to(device).float()


def gaussians(canvas: Gaussian) -> list[Features]:
    """What each canvas is drawn from; a deviation that is none is not kept."""
    return [
        {"mean": mean, "std": std} if std.any() else {"mean": mean}
        for mean, std in zip(canvas.mean, canvas.std, strict=True)
    ]


def gaussian(pictures: Sequence[Features], device: torch.device) -> Gaussian:
    """The inverse, one picture at least."""
    complete = [{"std": torch.zeros_like(picture["mean"]), **picture} for picture in pictures]
    return Gaussian(stacked(complete, "mean", device), stacked(complete, "std", device))
