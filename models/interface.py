"""What a trainer and an architecture say to each other: a `Batch` goes in, `Losses` come out.

# B rows, N tokens of a row, P pictures of the whole batch, H = W pixels of a picture

An architecture is a config (`models/configs.py`) with
    tasks          what it learns from
    layout()       record -> Document, torch-free (`models/layout.py`)
    build()        -> Architecture, below
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor, nn

Draw = Callable[[str, int], torch.Generator]
"""(purpose, picture 0..P-1) -> the generator of that draw: keyed by run seed, position and slot, never by rank."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch of laid-out documents. Rows may hold several documents, one after the other.

    ids       int64[B, N]        token ids; 0 at picture tokens and padding
    document  int64[B, N]        1, 2, ... in order of the row's documents; 0 is padding
    position  int64[B, N]        0, 1, ... inside each document
    target    bool[B, N]         this id is learned: the hidden state before it predicts it
    pictures  float32[P, 3, H, W]  RGB in 0..1
    row       int64[P]           the row a picture stands in
    start     int64[P]           the place of its first token there
    answer    bool[P]            said by the assistant, so learned
    """

    ids: Tensor
    document: Tensor
    position: Tensor
    target: Tensor
    pictures: Tensor
    row: Tensor
    start: Tensor
    answer: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Sums over this micro-batch, one per modality; the trainer divides by counts over the whole optimizer step.

    sums: modality -> float32[] with a gradient, 0.0 (still attached to every parameter) when it has no targets.
    """

    sums: Mapping[str, Tensor]


class Architecture(Protocol):
    """Two modules and a list of what is summed.

    encoder   the leaf encoder: frozen, eval, outside the engine; `encoder(pictures) -> float32[P, T, C]`
    module    what the engine wraps: `module(batch, features, draw) -> Losses`; its branches run in one fixed order
    """

    @property
    def encoder(self) -> nn.Module: ...

    @property
    def module(self) -> nn.Module: ...

    def counts(self, batch: Batch) -> dict[str, int]:
        """Targets of this micro-batch per modality: the denominators of `Losses.sums`."""
        ...

    @property
    def weights(self) -> Mapping[str, float]:
        """The factor of each modality's mean in the total loss."""
        ...
