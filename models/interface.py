"""What a trainer and an architecture say to each other: a `Batch` goes in, `Losses` come out.

# B rows, N tokens of a row, P pictures of one view in the whole batch, K tiles of them all, h = w pixels of a tile

An architecture is a config (`models/configs.py`) with
    tasks          what it learns from
    drawing        those of them whose documents may have drawn pictures; where this is not said, all
    layout()       record -> Document, torch-free (`models/layout.py`)
    seen, drawn    how pictures are cut for it (`models/views.py`); None where it has no such view
    whole_pictures whether a drawn picture sees all of itself (`models/sequence.py`)
    version        raised when its documents or its features change
    build()        -> Architecture, below
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from models.layout import Answer as Kind
from models.layout import Turns, ViewName

if TYPE_CHECKING:
    from models.vision import Leaf

Draw = Callable[[str, int], torch.Generator]
"""(purpose, drawn picture 0..P-1) -> the generator of that draw: keyed by seed, position and slot, never by rank."""


Features = Mapping[str, Tensor]
"""What networks that do not learn make of one picture, by name."""

Parts = Mapping[ViewName, Sequence[Features]]
"""Features of every picture of a batch on its own, by view; a view that is not there has none to keep."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of one view, row after row and in a row from left to right.

    pixels   float32[K, 3, h, w]  RGB in 0..1, the tiles of the first picture, then those of the second ...
    tiles    int64[P]     how many of the K are each picture's; 0 where its features are kept and nobody reads pixels
    grid     int64[P, 2]  rows and columns of its tiles
    size     int64[P, 2]  width and height in pixels before it was cut
    row      int64[P]     the row it stands in
    start    int64[P]     the place of its first token there
    tokens   int64[P]     how many places it takes
    answer   bool[P]      said by the assistant, so learned
    followed bool[P]      text comes after it in its document
    """

    pixels: Tensor
    tiles: Tensor
    grid: Tensor
    size: Tensor
    row: Tensor
    start: Tensor
    tokens: Tensor
    answer: Tensor
    followed: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def to(self, device: torch.device | str) -> Pictures:
        """The same pictures on another device."""
        return Pictures(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch of laid-out documents. Rows may hold several documents, one after the other.

    ids        int64[B, N]  token ids; 0 at picture tokens and padding
    document   int64[B, N]  1, 2, ... in order of the row's documents; 0 is padding
    position   int64[B, N]  0, 1, ... inside each document
    target     bool[B, N]   this id is learned: the hidden state before it predicts it
    condition  bool[B, N]   what a drawn answer depends on and condition dropout may hide
    seen       the pictures that are read;  drawn  those that are noised, painted or copied
    draws      whether any rank may have a drawn picture in this step; where none has, what draws is left out on all
    """

    ids: Tensor
    document: Tensor
    position: Tensor
    target: Tensor
    condition: Tensor
    seen: Pictures
    drawn: Pictures
    draws: bool = True

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in held.items() if name != "draws"})


Places = tuple[Tensor, Tensor]
"""Rows and places in them: two int64[M]."""


@dataclass(frozen=True, kw_only=True)
class Each:
    """What every target of a modality lost, without a gradient, and whose it is. Not one tensor for a trainer's hooks.

    loss     float32[M]
    row      int64[M]  the row it stands in
    document int64[M]  and its document there: 1, 2, ...
    """

    loss: Tensor
    row: Tensor
    document: Tensor


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Sums over this micro-batch, one per modality; the trainer divides by counts over the whole optimizer step.

    sums: modality -> float32[] with a gradient, 0.0 (still attached to every parameter that is not left out, see
    `Batch.draws`) when it has no targets.
    each: modality -> what its sum is the sum of, as many as are counted; what is missing is not told by source or task.
    """

    sums: Mapping[str, Tensor]
    each: Mapping[str, Each] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch, **lost: tuple[Tensor, Places]) -> Losses:
        """By modality: what each of its targets lost, float32[M] with a gradient, and where it stands."""
        return cls(
            sums={name: losses.sum() for name, (losses, _) in lost.items()},
            each={
                name: Each(loss=losses.detach().float(), row=row, document=batch.document[row, place])
                for name, (losses, (row, place)) in lost.items()
            },
        )


@dataclass(frozen=True, kw_only=True)
class Care:
    """How a parameter is trained: its learning rate as a multiple of the recipe's, and whether weights decay."""

    rate: float = 1.0
    decay: bool = True


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How to answer. guidance, image_guidance: classifier-free, 1 is none; steps: of denoising; max_tokens: of text.

    answer: "picture" is one picture, "text" has none, "free" is what the model decides.
    """

    answer: Kind = "free"
    seed: int = 0
    guidance: float = 2.0
    image_guidance: float = 1.5
    steps: int = 50
    max_tokens: int = 128

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"steps={self.steps}: of denoising there are 1 to 1000")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: of an answer, from 1")
        if not (isfinite(self.guidance) and isfinite(self.image_guidance)):
            raise ValueError(f"guidance={self.guidance}, image_guidance={self.image_guidance}: finite numbers")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the assistant said, in order: text, and pictures as float32[3, H, W] in 0..1 on the CPU.

    Of an architecture that predicts vision tokens, a picture is their float32[T, C]: another run paints it.
    """

    parts: tuple[str | Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How pictures are encoded beforehand, once for many trainings.

    network   what encodes them and never learns; its weights name what it makes
    settings  what else decides that, besides the pictures, their views and the version: values as a recipe has
    views     whose pictures have features to keep
    pixels    views whose pixels training reads all the same
    """

    network: Leaf
    settings: Mapping[str, Any]
    views: tuple[ViewName, ...]
    pixels: tuple[ViewName, ...] = ()


class Architecture(Protocol):
    """Two modules and a list of what is summed.

    encoder   the leaf encoders: frozen, eval, outside the engine
    module    what the engine wraps: `module(batch, features, draw) -> Losses`; its branches run in one fixed order
    """

    @property
    def encoder(self) -> nn.Module: ...

    @property
    def module(self) -> nn.Module: ...

    def encode(self, batch: Batch) -> Any:
        """What the leaf encoders make of the batch's pictures: tensors, without gradients."""
        ...

    @property
    def measured(self) -> Measured:
        """What `apart` depends on. Ask before anything is trained."""
        ...

    def apart(self, batch: Batch) -> Parts:
        """The features of every picture on its own, of each view of `measured.views`, in the batch's order."""
        ...

    def together(self, parts: Parts, batch: Batch) -> Any:
        """What `encode` gives, from features that were kept, in any float type on the CPU; `pixels` are read."""
        ...

    def counts(self, batch: Batch) -> dict[str, int]:
        """Targets of this micro-batch per modality: the denominators of `Losses.sums`."""
        ...

    def care(self, name: str) -> Care:
        """How the parameter of this name, in `module`, is trained."""
        ...

    @property
    def weights(self) -> Mapping[str, float]:
        """The factor of each modality's mean in the total loss."""
        ...

    def answer(self, turns: Turns, pictures: Sequence[Image], asked: Asked, *, task: str, key: str) -> Answered:
        """The answer to a chat; the same for the same seed.

        Args:  turns: up to what the user said last; their pictures count into `pictures`, RGB of any size.
               task, key: choose the wording around a raw caption, as in training.
        Raises: ValueError where the architecture cannot answer so.
        """
        ...
