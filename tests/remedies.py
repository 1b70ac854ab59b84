"""What people do about ranks without pictures, under ZeRO: right, wrong, crash or hang. `make oracle` shows the table.

A module of two branches, text and pictures, and a trunk; each rank has text, pictures, or both. Four ways to train it:

    bare    a branch runs where there is something for it
    dummy   after those, a branch without anything runs on zeros: `loss + 0 * dummy.sum()`
    fake    both run in one order, on a picture of zeros where there is none; a rank divides by what it has itself
    ours    both run in one order, on a phantom where there is none; sums over global counts (`pipelines/worker.py`)

In bare and dummy sums are divided by global counts, too, so that their only fault is the order of branches. Engines are
new for every case: what was mixed up stays in them. Persistence at stage 3 is off, as it is of a real model's matrices.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from ranks import Failed, Hung, Ranks
from torch import Tensor, distributed, nn

from models.interface import Batch, Care, Draw, Losses
from models.layout import Document, Slot
from models.sequence import batched
from models.views import Cut
from pipelines import learning, zero
from pipelines.batching import Micro
from pipelines.training import AdamW, Execution

Stage = Literal[0, 1, 2, 3]
WAYS = ("bare", "dummy", "fake", "ours")
STAGES: tuple[Stage, ...] = get_args(Stage)
PATTERNS = list(itertools.product(("text", "pictures", "both"), repeat=2))
SIZES = {"equal": 12, "unequal": 20}  # hidden width of the pictures' branch; of the text's it is 12
TOLERANCE = 1e-4
LIMIT = 8.0  # seconds of a case, which takes 4 beside other work; what hangs does so in 40, too
WIDTH, WORDS, LENGTH, SIDE = 12, 11, 6, 2  # a picture is as wide as a state: 3 x 2 x 2


class TwoBranches(nn.Module):
    """The mean square of what a trunk makes of each branch; the way says which branches run."""

    def __init__(self, way: str, hidden: int) -> None:
        super().__init__()
        self.way = way
        self.words = nn.Embedding(WORDS, WIDTH).requires_grad_(False)  # or ranks without text had less to learn
        self.text = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
        self.pictures = nn.Sequential(nn.Linear(WIDTH, hidden), nn.Tanh(), nn.Linear(hidden, WIDTH))
        self.trunk = nn.Linear(WIDTH, WIDTH)

    def forward(self, batch: Batch, features: Tensor, draw: Draw) -> Losses:
        """Sums over target words and over pictures."""
        words = self.words(batch.ids)
        targets, pictures = words[batch.target], features
        if self.way in ("fake", "ours"):
            read = self.read(self.text, targets if len(targets) else words[0, :1], len(targets))
            return Losses(sums={"text": read, "picture": self.read(self.pictures, one(pictures), len(pictures))})
        sums = {}
        if len(targets):
            sums["text"] = self.read(self.text, targets, len(targets))
        if len(pictures):
            sums["picture"] = self.read(self.pictures, pictures, len(pictures))
        if self.way == "dummy":
            for name, branch in (("text", self.text), ("picture", self.pictures)):
                if name not in sums:
                    sums[name] = 0.0 * branch(features.new_zeros(1, WIDTH)).sum()
        return Losses(sums=sums)

    def read(self, branch: nn.Module, states: Tensor, count: int) -> Tensor:
        """The sum over the first `count` states; float[M, D] -> float[]."""
        return self.trunk(branch(states)).square().mean(-1)[:count].sum()


def one(pictures: Tensor) -> Tensor:
    """At least one, of zeros."""
    return pictures if len(pictures) else pictures.new_zeros(1, WIDTH)


@dataclass
class Built:
    """What the training loop asks of an `Architecture`, of it."""

    module: TwoBranches
    encoder: nn.Module

    def encode(self, batch: Batch) -> Tensor:
        return batch.drawn.pixels.flatten(1)

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"text": int(batch.target.sum()), "picture": len(batch.drawn)}

    def care(self, name: str) -> Care:
        return Care()

    @property
    def weights(self) -> Mapping[str, float]:
        return {"text": 1.0, "picture": 1.0}


def built(way: str, hidden: int) -> Any:
    """The same weights whatever the way."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Built(module=TwoBranches(way, hidden), encoder=nn.Identity())


def item(kind: str, rank: int) -> Micro:
    """A rank's micro-batch: 2 rows of rank 0, 3 of rank 1, each with 4 target words, a picture, or both."""
    generator = torch.Generator().manual_seed(rank)
    documents, pictures = [], []
    for row in range(2 + rank):
        ids = torch.randint(WORDS, (LENGTH,), generator=generator).tolist()
        pictures.append(torch.randint(256, (1, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8).numpy())
        slots = (Slot(0, row, True, 1, "drawn", False),) if kind != "text" else ()
        said = (False, False, *(kind != "pictures",) * (LENGTH - 2))
        documents.append([Document(tuple(ids), said, slots, (False,) * LENGTH)])

    def picture(row: int, number: int, slot: Slot) -> tuple[Cut, tuple[int, int]]:
        return Cut(pictures[slot.picture], (1, 1)), (SIDE, SIDE)

    batch, _ = batched(documents, picture, sides={"seen": 0, "drawn": SIDE})
    return Micro(batch=batch, draw=lambda purpose, index: torch.Generator(), fed=(2 + rank,))


def expected(pattern: Sequence[str], hidden: int) -> dict[str, Tensor]:
    """Gradients of one process without DeepSpeed."""
    architecture = built("ours", hidden)
    items = [item(kind, rank) for rank, kind in enumerate(pattern)]
    counts = [architecture.counts(each.batch) for each in items]
    for each in items:
        sums = architecture.module(each.batch, architecture.encode(each.batch), each.draw).sums
        torch.stack([sums[name] / max(1, sum(count[name] for count in counts)) for name in sums]).sum().backward()
    trained = {name: p for name, p in architecture.module.named_parameters() if p.requires_grad}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()}


def error(way: str, stage: Stage, size: str, pattern: tuple[str, str]) -> float:
    """The largest difference of a gradient, relative to the largest gradient of all. Collective."""
    from deepspeed.utils import safe_get_full_grad

    hidden = SIZES[size]
    wanted = expected(pattern, hidden)
    architecture, mine = built(way, hidden), item(pattern[distributed.get_rank()], distributed.get_rank())
    zero.PERSISTENT = 0
    together = learning.everywhere(architecture, [mine], 1, torch.device("cpu")).counts
    if way == "ours":
        engine = zero.engine(
            architecture.module,
            AdamW(learning_rate=0.1),
            Execution(zero_stage=stage, micro_batch=3),
            care=architecture.care,
            rows_per_rank_micro=3,
            accumulation=1,
        )
        learning.learn(engine, architecture, [mine], together)
    else:
        engine = bare(architecture.module, stage)
        sums = engine(mine.batch, architecture.encode(mine.batch), mine.draw).sums
        counts = architecture.counts(mine.batch)
        shares = {name: counts[name] if way == "fake" else together[name] / 2 for name in sums}
        engine.backward(torch.stack([sums[name] / (shares[name] or 1) for name in sums]).sum())
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    worst = 0.0
    parameters = dict(engine.module.named_parameters())
    for name, gradient in wanted.items():
        found = safe_get_full_grad(parameters[name])
        difference = gradient if found is None else found - gradient
        worst = max(worst, float(difference.abs().max()) / largest)
    engine.destroy()
    return worst


def bare(module: nn.Module, stage: int) -> Any:
    """DeepSpeed's engine by its defaults, on a CPU."""
    settings = {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=0.1, foreach=False)
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = zero.library().initialize(model=module, optimizer=adamw, config=settings)
    return engine


def verdicts(ranks: Ranks, way: str, stage: Stage, size: str) -> str:
    """One cell: how many patterns came out how."""
    found: dict[str, list[float]] = {}
    for pattern in PATTERNS:
        try:
            worst = max(ranks.ask(error, way, stage, size, pattern, seconds=LIMIT))
        except Failed:
            found.setdefault("crash", []).append(0.0)
        except Hung:
            found.setdefault("hang", []).append(0.0)
        else:
            found.setdefault("right" if worst < TOLERANCE else "wrong", []).append(worst)
    if found.keys() == {"right"}:
        return "right"
    told = {name: f"{len(found[name])} {name}" for name in ("right", "wrong", "crash", "hang") if name in found}
    if "wrong" in found:
        told["wrong"] += f" (by {max(found['wrong']):.2f})" if all(map(math.isfinite, found["wrong"])) else " (NaN)"
    return ", ".join(told.values())


def show(ranks: Ranks) -> None:
    """The table, row by row."""
    print(f"\n{'of 9 patterns':17}" + "".join(f"  {f'ZeRO {stage}':34}" for stage in STAGES).rstrip(), flush=True)
    for way, size in itertools.product(WAYS, SIZES):
        print(f"{way + ', ' + size:17}", end="", flush=True)
        for stage in STAGES:
            print(f"  {verdicts(ranks, way, stage, size):34}", end="" if stage < 3 else "\n", flush=True)
