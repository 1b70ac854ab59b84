"""What a training's parameters are and take, before anything is trained: counted on torch's meta device, offline.

Bytes of one rank, by ZeRO stage: parameters alone, no activations, no buffers of communication.

    weights     4 of each in float32, 2 in bfloat16; frozen ones, too
    gradients   4 of each trained one: DeepSpeed sums them up in float32 in both types (2 at stage 0 in bfloat16)
    optimizer   8 of each trained one, AdamW's two moments in float32, in bfloat16 4 more, the weights in float32, and
                4 more where a running mean is kept
    encoders    4 of each: leaf encoders stand outside the engine, whole on every rank, in float32

Of R ranks, each keeps an R-th of the optimizer from stage 1, of the gradients from stage 2, of the weights at stage 3.
Source: ZeRO, section 3, arXiv:1910.02054; what DeepSpeed is told is in zero.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from models.interface import Architecture, Care
from pipelines.training import Training

DEPTH = 3  # names of a module's path that a row of the table has at most
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of an architecture's parameters, in numbers of them.

    decayed: trained and under weight decay. rates: factors of the recipe's learning rate, of the trained ones.
    """

    name: str
    total: int
    trained: int
    decayed: int
    rates: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """What one rank keeps of a training's parameters."""

    weights: int
    gradients: int
    optimizer: int
    encoders: int

    @property
    def total(self) -> int:
        """Of all four."""
        return self.weights + self.gradients + self.optimizer + self.encoders


def built(training: Training) -> Architecture:
    """The architecture on the meta device: shapes, no weights. ValueError where a recipe does not spell sizes out."""
    with torch.device("meta"):
        return training.architecture.build()


def parts(module: nn.Module, care: Callable[[str], Care], name: str) -> list[Part]:
    """The whole and what it consists of, each before its own parts; shared parameters are counted once."""
    held: dict[str, list[tuple[nn.Parameter, Care | None]]] = {"": []}
    for path, parameter in module.named_parameters():
        pair = parameter, care(path) if parameter.requires_grad else None
        for part in ("", *_around(path)):
            held.setdefault(part, []).append(pair)
    return [
        Part(
            name=part or name,
            total=sum(parameter.numel() for parameter, _ in pairs),
            trained=sum(parameter.numel() for parameter, treated in pairs if treated),
            decayed=sum(parameter.numel() for parameter, treated in pairs if treated and treated.decay),
            rates=tuple(sorted({treated.rate for _, treated in pairs if treated})),
        )
        for part, pairs in held.items()
        if not _only_child(part, held)
    ]


def bytes_of_a_rank(
    module: Part, encoder: Part, *, ranks: int, stage: int, dtype: Dtype, averaged: bool = False
) -> Bytes:
    """What one of `ranks` ranks keeps under a ZeRO stage."""

    def share(count: int, from_stage: int) -> int:
        return -(-count // ranks) if stage >= from_stage else count

    half = dtype == "bfloat16"
    return Bytes(
        weights=share(module.total, 3) * (2 if half else 4),
        gradients=share(module.trained, 2) * (2 if half and stage == 0 else 4),
        optimizer=share(module.trained, 1) * (8 + 4 * half + 4 * averaged),
        encoders=encoder.total * 4,
    )


def page(training: Training, *, nodes: int, gpus: int) -> Iterator[str]:
    """The lines that `interlace plan` prints: what is trained, and the bytes of a rank at every stage."""
    architecture = built(training)
    learning = parts(architecture.module, architecture.care, "module")
    leaf = parts(architecture.encoder, architecture.care, "encoders")
    optimizer = training.optimizer
    yield (
        f"{training.name}: {type(training.architecture).__name__}, learning rate {optimizer.learning_rate:g}, "
        f"weight decay {optimizer.weight_decay:g}"
    )
    width = max(len(part.name) for part in (*learning, *leaf)) + 2
    yield f"{'part':{width}}{'parameters':>16}{'trained':>16}{'frozen':>16}{'decayed':>16}  rate"
    for part in (*learning, *leaf):
        numbers = (part.total, part.trained, part.total - part.trained, part.decayed)
        columns = "".join(f"{number:>16,}" for number in numbers)
        yield f"{part.name:{width}}{columns}  {' '.join(f'{rate:g}' for rate in part.rates) or '-'}"
    mean = "" if optimizer.average is None else " and the running mean"
    yield (
        f"GB of one of {nodes} x {gpus} ranks. gradients: a number for each trained parameter; optimizer: AdamW's two"
        f"{mean}; encoders: frozen ones; parameters only, activations and buffers of communication come on top"
    )
    yield f"{'':{width}}{'weights':>16}{'gradients':>16}{'optimizer':>16}{'encoders':>16}{'all':>10}"
    chosen = training.execution
    for dtype in ("float32", "bfloat16"):
        for stage in range(4):
            averaged, ranks = optimizer.average is not None, nodes * gpus
            kept = bytes_of_a_rank(learning[0], leaf[0], ranks=ranks, stage=stage, dtype=dtype, averaged=averaged)
            sizes = (kept.weights, kept.gradients, kept.optimizer, kept.encoders)
            columns = "".join(f"{size / 1e9:>16.3f}" for size in sizes)
            mark = "  <- the recipe's" if (chosen.zero_stage, chosen.dtype) == (stage, dtype) else ""
            yield f"{f'stage {stage}, {dtype}':{width}}{columns}{kept.total / 1e9:>10.3f}{mark}"


def _around(path: str) -> Iterator[str]:
    """The parts that hold a parameter, outermost first; one of many alike (`layers.0`) is no part of its own."""
    names = path.split(".")
    modules = max(1, len(names) - 1)  # a parameter has a row only where no module holds it
    for depth in range(1, min(DEPTH, modules) + 1):
        if names[depth - 1].isdigit():
            return
        yield ".".join(names[:depth])


def _only_child(part: str, held: dict[str, list[tuple[nn.Parameter, Care | None]]]) -> bool:
    """Whether it is all that the part around it has, so says nothing new."""
    parent = part.rpartition(".")[0]
    return bool(part) and bool(parent) and len(held[part]) == len(held[parent])
