"""What a training's parameters are and take, before anything is trained: counted on torch's meta device, offline.

Bytes of one rank, by ZeRO stage, as DeepSpeed 0.19.8 has them (measured: tests/pipelines/test_memory.py):

    weights     4 of each in float32, 2 in bfloat16; frozen ones, too
    gradients   4 of each trained one, summed in float32; in bfloat16 2 at stage 0, and 6 at stage 1, which keeps both
    optimizer   8 of each trained one, AdamW's two moments, and 4 for the weights in float32, of which DeepSpeed makes a
                copy in float32, too, but at stage 0; 4 more where a running mean is kept
    encoders    4 of each: leaf encoders stand outside the engine, whole on every rank, in float32
    buffers     the bucket that gradients are reduced in, from stage 1, and at stage 3 what is gathered of the weights

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
BUCKET = 500_000_000  # gradients that are reduced at once, at most; this and the next as zero.py tells DeepSpeed
LIVE = 1_000_000_000  # weights that are gathered at once, at most
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
    """What one rank keeps of a training's parameters, and needs while it makes their gradients: bucket, gathered."""

    weights: int
    gradients: int
    optimizer: int
    encoders: int
    bucket: int
    gathered: int

    @property
    def buffers(self) -> int:
        """Of communication."""
        return self.bucket + self.gathered

    @property
    def kept(self) -> int:
        """All but the buffers."""
        return self.weights + self.gradients + self.optimizer + self.encoders

    @property
    def total(self) -> int:
        """All."""
        return self.kept + self.buffers


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
    width = 2 if half else 4
    summed = {0: width, 1: 6 if half else 4}.get(stage, 4)
    masters = 0 if not half and stage == 0 else 4
    return Bytes(
        weights=share(module.total, 3) * width,
        gradients=share(module.trained, 2) * summed,
        optimizer=share(module.trained, 1) * (8 + masters + 4 * averaged),
        encoders=encoder.total * 4,
        bucket=min(BUCKET, module.trained) * width if stage > half else 0,
        gathered=min(LIVE, module.total) * width if stage == 3 else 0,
    )


def page(training: Training, architecture: Architecture, *, nodes: int, gpus: int) -> Iterator[str]:
    """The lines of `interlace plan` on parameters: what is trained, and the bytes of a rank at every stage.

    Args:  architecture: of the training, on the meta device.
    """
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
        f"{mean}; encoders: frozen ones; buffers: of communication; parameters only, activations come on top"
    )
    names = ("weights", "gradients", "optimizer", "encoders", "buffers")
    yield f"{'':{width}}{''.join(f'{name:>16}' for name in names)}{'all':>10}"
    chosen = training.execution
    for dtype in ("float32", "bfloat16"):
        for stage in range(4):
            averaged, ranks = optimizer.average is not None, nodes * gpus
            kept = bytes_of_a_rank(learning[0], leaf[0], ranks=ranks, stage=stage, dtype=dtype, averaged=averaged)
            columns = "".join(f"{getattr(kept, name) / 1e9:>16.3f}" for name in names)
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
