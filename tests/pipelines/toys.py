"""A small architecture with two branches, and batches for it: what the training tests run through real engines.

Names no test framework: the tests' own processes and Ray's workers import it.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from dataflow.mixture import Mixture
from models import lora
from models.interface import Batch, Care, Draw, Losses
from models.layout import Document, Slot
from models.parts import Lora
from models.sequence import batched
from models.views import Cut
from pipelines import zero
from pipelines.batching import Kind, Micro
from pipelines.training import AdamW, Execution, Training

WORDS, LENGTH, PIXELS = 11, 6, 4


class Branches(nn.Module):
    """Text from token to next token through a frozen tower, pictures from a learned start to their features."""

    def __init__(self, width: int, *, askew: bool = False) -> None:
        super().__init__()
        self.askew = askew
        self.words = nn.Embedding(WORDS, width)
        self.tower = nn.Linear(width, width)
        self.text = nn.Linear(width, WORDS)
        self.start = nn.Parameter(torch.zeros(width))  # owned by the outermost module: ZeRO-3 must gather it there
        self.picture = nn.Sequential(nn.Linear(width, 3 * PIXELS))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.tower.requires_grad_(False)

    def forward(self, batch: Batch, features: Tensor, draw: Draw) -> Losses:
        self.calls += 1
        hidden = self.tower(torch.tanh(self.words(batch.ids)))
        if self.askew:
            self.picture(self.start + hidden[:, -1])
        logits = self.text(hidden[:, :-1])
        row, before = batch.target[:, 1:].nonzero(as_tuple=True)
        text = F.cross_entropy(logits[row, before], batch.ids[row, before + 1], reduction="none")
        guess = self.picture(self.start + hidden[batch.drawn.row, -1])
        noise = torch.zeros_like(guess)
        for place in range(len(features)):
            noise[place] = torch.rand(3 * PIXELS, generator=draw("noise", place))
        picture = (guess - features.flatten(1) - 0.1 * noise).square().mean(-1)
        places = batch.drawn.row, batch.drawn.start  # all of them are answers
        return Losses.of(batch, text=(text, (row, before + 1)), picture=(picture, places))


class Encoder(nn.Module):
    """float32[P, 3, PIXELS] from pictures: the mean of every row."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.mean(-1) * self.scale


@dataclass
class Built:
    encoder: nn.Module
    module: nn.Module

    def encode(self, batch: Batch) -> Tensor:
        return self.encoder(batch.drawn.pixels)

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"text": int(batch.target[:, 1:].sum()), "picture": int(batch.drawn.answer.sum())}

    def care(self, name: str) -> Care:
        return Care(rate=0.5 if name.startswith("words.") else 1.0, decay=name != "text.weight")

    @property
    def weights(self) -> Mapping[str, float]:
        return {"text": 1.0, "picture": 0.5}


@dataclass(frozen=True, kw_only=True)
class Toy:
    seed: int = 0
    width: int = 7  # odd, so that no parameter divides evenly among ranks
    extra: bool = False  # one more trained parameter, used by nothing
    lora: bool = False  # in place of the pictures' branch
    broken_rank: int | None = None  # this rank cannot build it
    askew: int | None = None  # this rank runs its branches in another order

    def build(self) -> Built:
        if self.broken_rank is not None and distributed.get_rank() == self.broken_rank:
            raise ValueError("no weights\nat tests/toy")
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            module = Branches(self.width, askew=self.askew is not None and self.askew == distributed.get_rank())
            if self.extra:
                module.register_parameter("extra", nn.Parameter(torch.zeros(3)))
            if self.lora:
                matrices = Lora(part="picture", rank=2, alpha=4.0, targets=("0",))
                lora.inject(module, (matrices,), self.seed)
            return Built(encoder=Encoder(), module=module)


def item(position: int, rows: range) -> Micro:
    """These rows of a position. Only even rows hold a picture, so with two ranks one of them never sees any."""
    documents, pictures = [], {}
    for row in rows:
        generator = torch.Generator().manual_seed(1000 * position + row)
        ids = torch.randint(WORDS, (LENGTH,), generator=generator)
        slots: tuple[Slot, ...] = ()
        if row % 2 == 0:
            pictures[row] = torch.randint(256, (1, PIXELS, PIXELS, 3), generator=generator, dtype=torch.uint8).numpy()
            slots = (Slot(0, row, True, 1, "drawn", False),)
        documents.append(Document(tuple(ids.tolist()), tuple((ids > 2).tolist()), slots, (False,) * LENGTH))

    def picture(row: int, number: int, slot: Slot) -> tuple[Cut, tuple[int, int]]:
        return Cut(pictures[slot.picture], (1, 1)), (PIXELS, PIXELS)

    batch, owners = batched([[document] for document in documents], picture, sides={"seen": 0, "drawn": PIXELS})

    def draw(purpose: str, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(7_000_000 + 1000 * position + owners["drawn"][index][2])

    kinds = torch.tensor([1 - row % 2 for row in rows], dtype=torch.int64)[:, None]
    return Micro(batch=batch, draw=draw, fed=(len(rows),), kinds=kinds)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a position dealt to the ranks in turn, `micro_batch` at a time."""

    batch: int
    digest: str = "rows"
    sources: tuple[str, ...] = ("toys",)
    kinds: tuple[Kind, ...] = (Kind("toys", "all", "words"), Kind("toys", "all", "pictures"))  # odd rows and even ones
    signals: tuple[tuple[int, int], ...] = ()  # (position, signal): rank 0 sends it to the driver's group there, once
    driver: int = 0  # the driver's process group
    marks: str = ""  # a folder that remembers which signals were sent
    poisoned: tuple[int, ...] = ()  # positions whose pictures are no numbers
    bright: tuple[int, ...] = ()  # positions whose pictures are a thousand times as bright
    limited: tuple[int, int] | None = None  # (position, bytes): no file may grow beyond, from there on
    stopped: tuple[int, int] | None = None  # (position, rank): this rank stops itself there, as by a signal

    def __call__(self, position: int, rank: int, world: int, micro_batch: int) -> list[Micro]:
        for place, number in self.signals:
            mark = Path(self.marks) / f"sent-{number}"
            if (place, rank) == (position, 0) and not mark.exists():
                mark.touch()
                os.killpg(self.driver, number)
                threading.Event().wait()  # until whoever ends the ranks does
        if self.stopped == (position, rank):
            os.kill(os.getpid(), signal.SIGSTOP)
        mine = range(rank, self.batch, world)
        items = [item(position, mine[place : place + micro_batch]) for place in range(0, len(mine), micro_batch)]
        for made in items:
            made.batch.drawn.pixels.mul_(1000.0 if position in self.bright else 1.0)
            made.batch.drawn.pixels.mul_(math.nan if position in self.poisoned else 1.0)
        if self.limited and self.limited[0] == position:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limited[1], resource.RLIM_INFINITY))
        return items


def training(*, steps: int, batch: int = 8, clip: float = 1.0, toy: Toy | None = None, **execution: Any) -> Training:
    """A training of the toy."""
    return Training(
        name="toy",
        architecture=toy or Toy(),
        mixture=Mixture(groups=()),
        optimizer=AdamW(learning_rate=0.02, eps=1e-4, weight_decay=0.01, warmup_steps=2, clip=clip, average=0.9),
        batch=batch,
        steps=steps,
        sequence_length=LENGTH,
        execution=Execution(**execution),
    )


def engine(built: Built, training: Training) -> zero.Engine:
    """The toy under ZeRO, on the ranks there are."""
    zero.PERSISTENT = 0  # so that stage 3 parts even a toy's parameters
    micro_batch = training.execution.micro_batch
    items = Rows(batch=training.batch)(0, 0, distributed.get_world_size(), micro_batch)
    return zero.engine(
        built.module,
        training.optimizer,
        training.execution,
        care=built.care,
        rows_per_rank_micro=micro_batch,
        accumulation=len(items),
    )


def advance(
    engine: zero.Engine, built: Built, training: Training, positions: range
) -> tuple[list[list[float]], list[float]]:
    """Train on these positions, by hand. Returns the mean losses (text, picture) and the gradient norm of each step."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    assert training.steps is not None
    losses, norms = [], []
    for position in positions:
        counts = built.counts(item(position, range(training.batch)).batch)
        items = Rows(batch=training.batch)(position, rank, world, training.execution.micro_batch)
        seen = torch.zeros(2, dtype=torch.float64)
        for index, micro in enumerate(items):
            features = built.encode(micro.batch).to(zero.DTYPES[training.execution.dtype])
            sums, _ = engine(micro.batch, features, micro.draw)
            parts = [built.weights[name] * sums[name] * world / counts[name] for name in built.weights]
            zero.backward(engine, parts[0] + parts[1], last=index == len(items) - 1)
            seen += torch.stack([sums[name].detach().double() / counts[name] for name in built.weights])
        norms.append(zero.step(engine, zero.rate(training.optimizer, position, training.steps)))
        distributed.all_reduce(seen)
        losses.append(seen.tolist())
    return losses, norms


def weights(engine: zero.Engine) -> dict[str, Tensor]:
    """The trained parameters, whole, as the model computes with them."""
    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    gathered = zero.library().zero.GatheredParameters
    with gathered(list(trained.values()), enabled=engine.zero_optimization_stage() == 3):
        return {name: p.detach().clone().float() for name, p in trained.items()}
