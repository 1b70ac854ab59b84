"""The gradient oracle: what two ranks learn under ZeRO equals what one process learns. `make oracle` runs all of it.

Each architecture, tiny, at each stage, goes through every pattern of which rank has which kind of record, with one and
with two micro-batches. Batches, counts, forward, backward and step are the training loop's own; the reference is the
same module in one process, without DeepSpeed, and phantoms have no part in it. Where no rank draws, what draws is left
out, as the loop does. A pair of processes lives through all
(`ranks.py`).

    error   the largest difference of a gradient, of a weight after the step, of the loss or of the gradient's norm,
            each relative: gradients to the largest of their tensor, or to a hundredth of the largest of all (those that
            a norm makes zero are rounding), weights to the learning rate, which is how far AdamW's first step goes
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import remedies
import tiny_parts as parts
import torch
from PIL import Image as Picture
from ranks import Failed, Hung, Ranks
from remedies import STAGES, Stage
from torch import Tensor, distributed, nn

from dataflow.record import Image, Lineage, Media, Message, Record, Text
from models.configs import LLaVAFusion, LMFusion, MetaMorph, MetaQuery, Transfusion, Visualizer
from models.interface import Architecture
from pipelines import checkpoint, learning, zero
from pipelines.batching import Micro, collate, prepared
from pipelines.training import AdamW, Execution

TOLERANCE = 5e-5  # float32 sums in another order are under 1e-5, what is wrong is over 1e-3
RATE = 0.1
OPTIMIZER = AdamW(learning_rate=RATE, eps=1e-2, weight_decay=0.1, clip=0.5)  # eps: a step is smooth where gradients are
LIMIT = 600.0  # seconds of an architecture at a stage; it takes 40 beside other work
ROWS, LENGTH = 2, 256  # of a micro-batch
Recompute = Literal["none", "layers"]

ARCHITECTURES: dict[str, Any] = {
    "transfusion": Transfusion(backbone=parts.LLAMA, canvas=parts.PIXELS, coder=parts.UNET_CODER),
    "lmfusion": LMFusion(backbone=parts.LLAMA, canvas=parts.PIXELS, coder=parts.UNET_CODER, text_rate=0.1),
    "llavafusion": LLaVAFusion(backbone=parts.LLAVA_NEXT, canvas=parts.PIXELS, coder=parts.UNET_CODER, system=""),
    "metamorph": MetaMorph(backbone=parts.LLAMA, vision=parts.SIGLIP, grid=2),
    "metaquery": MetaQuery(
        backbone=parts.QWEN,
        decoder=parts.SANA,
        connector=parts.CONNECTOR,
        queries=5,
        trained="all",
        pixels=(64 * 4, 64 * 12),
        system="",
    ),
    "visualizer": Visualizer(vision=parts.SIGLIP, decoder=parts.STABLE, grid=2, projector_width=16),
}

# kind -> task, what the user says, what the assistant says; 0 and 1 are pictures
KINDS: dict[str, tuple[str, tuple[str | int, ...], tuple[str | int, ...]]] = {
    "text": ("text_qa", ("Who?",), ("Two red cats",)),
    "read": ("image_qa", (0, "What?"), ("A dog",)),
    "drawn": ("text_to_image", ("a cat",), (0,)),
    "both": ("image_editing", (0, "redder"), (1,)),
    "nothing": ("", (), ()),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """The kinds of a rank's micro-batches, for each rank."""

    kinds: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        return " | ".join(", ".join(of_rank) for of_rank in self.kinds)


def kinds(config: Any) -> list[str]:
    """What a rank may be given: what the architecture learns from, or nothing."""
    return [kind for kind, (task, *_) in KINDS.items() if not task or task in config.tasks]


def cases(config: Any) -> list[Case]:
    """Every pair of kinds; alone, and followed by a second micro-batch of the next kind."""
    known = kinds(config)
    following = dict(zip(known, [*known[1:], known[0]], strict=True))
    pairs = list(itertools.product(known, repeat=2))
    once = [Case(kinds=tuple((kind,) for kind in pair)) for pair in pairs]
    return once + [Case(kinds=tuple((kind, following[kind]) for kind in pair)) for pair in pairs]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What one step makes: gradients and weights by name, the mean of each loss, the norm before clipping."""

    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    losses: list[float]
    norm: float

    def error(self, expected: Learned) -> Error:
        """How far this is from what was expected, and where; inf where something is no number."""
        largest = max(float(gradient.abs().max()) for gradient in expected.gradients.values())
        errors = [Error(abs(self.norm - expected.norm) / (expected.norm or 1.0), "norm")]
        for mine, loss in zip(self.losses, expected.losses, strict=True):
            errors.append(Error(abs(mine - loss) / max(abs(loss), 1.0), "loss"))
        for name, gradient in expected.gradients.items():
            scale = max(float(gradient.abs().max()), largest / 100) or 1.0
            errors.append(Error(float((self.gradients[name] - gradient).abs().max()) / scale, f"gradient of {name}"))
            moved = float((self.weights[name] - expected.weights[name]).abs().max()) / RATE
            errors.append(Error(moved, f"weight {name}"))
        return max(error if math.isfinite(error.size) else error._replace(size=math.inf) for error in errors)


class Error(NamedTuple):
    """How large, and of what."""

    size: float
    what: str


# ---- what the ranks do


def checked(name: str, stage: Stage, chosen: Sequence[Case], recompute: Recompute = "none") -> list[Error]:
    """The error of each case of an architecture at a stage, as this rank sees it. Collective.

    Args:   recompute: of the ranks; the reference keeps all its activations.
    """
    config = ARCHITECTURES[name]
    wanted = references(name, tuple(chosen))
    zero.PERSISTENT = 0  # so that stage 3 parts even tiny parameters
    architecture: Architecture = config.build()
    engine = zero.engine(
        architecture.module,
        OPTIMIZER,
        Execution(zero_stage=stage, micro_batch=ROWS, recompute=recompute),
        care=architecture.care,
        rows_per_rank_micro=ROWS,
        accumulation=max(len(case.kinds[0]) for case in chosen),
    )
    start = [(tensor, tensor.clone()) for tensor in held(engine)]
    errors = []
    for case, expected in zip(chosen, wanted, strict=True):
        for tensor, before in start:
            tensor.copy_(before)
        for moments in checkpoint._inner(engine).state.values():
            for moment in moments.values():
                moment.zero_()
        print(f"{name}, ZeRO {stage}: {case}", flush=True)  # to be found where a rank dies or hangs
        errors.append(together(engine, architecture, config, case).error(expected))
    engine.destroy()
    return errors


def held(engine: zero.Engine) -> list[Tensor]:
    """What a step changes on this rank, but for AdamW's moments."""
    parameters: list[Any] = list(engine.module.parameters())
    parted = engine.zero_optimization_stage() == 3
    own = [parameter.ds_tensor if parted else parameter for parameter in parameters]
    return [tensor.data for tensor in (*own, *checkpoint.stepped(engine), *engine.module.buffers())]


def together(engine: zero.Engine, architecture: Architecture, config: Any, case: Case) -> Learned:
    """One step of the training loop on this rank's micro-batches."""
    from deepspeed.utils import safe_get_full_grad

    rank = distributed.get_rank()
    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    items = [micro(config, kind, rank, place) for place, kind in enumerate(case.kinds[rank])]
    draws = any(drawing(config, kind) for of_rank in case.kinds for kind in of_rank)
    items = [replace(item, batch=replace(item.batch, draws=draws)) for item in items]
    everywhere = learning.everywhere(architecture, items, 1, engine.device)
    learned = learning.learn(engine, architecture, items, everywhere.counts).everywhere()
    gradients = {}
    for name, parameter in trained.items():
        gradient = safe_get_full_grad(parameter)
        gradients[name] = torch.zeros(()) if gradient is None else gradient.clone()
    norm = zero.step(engine, RATE)
    gathered = zero.library().zero.GatheredParameters
    with gathered(list(trained.values()), enabled=engine.zero_optimization_stage() == 3):
        weights = {name: parameter.detach().clone() for name, parameter in trained.items()}
    losses = [
        value / max(count, 1) for value, count in zip(learned.sums.tolist(), everywhere.counts.values(), strict=True)
    ]
    return Learned(gradients=gradients, weights=weights, losses=losses, norm=norm)


def drawing(config: Any, kind: str) -> bool:
    """Whether a micro-batch of this kind may have drawn pictures."""
    return KINDS[kind][0] in getattr(config, "drawing", config.tasks)


@cache
def references(name: str, chosen: tuple[Case, ...]) -> list[Learned]:
    """What each case should give. Collective: each rank computes every second one and tells the other."""
    config = ARCHITECTURES[name]
    architecture = config.build()
    start = {key: value.clone() for key, value in architecture.module.state_dict().items()}
    found = []
    for place, case in enumerate(chosen):
        architecture.module.load_state_dict(start)
        mine = place % 2 == distributed.get_rank()
        found.append(told(architecture, alone(architecture, config, case) if mine else None, place % 2))
    return found


def alone(architecture: Architecture, config: Any, case: Case) -> Learned:
    """The step in one process: all micro-batches of both ranks, sums over global counts, torch's AdamW.

    What has no targets is left out, so that no phantom has a part in it.
    """
    given = [(rank, place, kind) for rank in (0, 1) for place, kind in enumerate(case.kinds[rank])]
    items = [micro(config, kind, rank, place) for rank, place, kind in given]
    counted = [architecture.counts(item.batch) for item in items]
    counts = {name: sum(count[name] for count in counted) for name in architecture.weights}
    trained = {name: p for name, p in architecture.module.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p], "lr": RATE * care.rate, "weight_decay": OPTIMIZER.weight_decay if care.decay else 0.0}
        for p, care in ((p, architecture.care(name)) for name, p in trained.items())
    ]
    adamw = torch.optim.AdamW(groups, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps)
    adamw.zero_grad()
    losses = dict.fromkeys(counts, 0.0)
    for item, count in zip(items, counted, strict=True):
        learned = [name for name in count if count[name]]
        if not learned:
            continue
        with torch.no_grad():
            features = architecture.encode(item.batch)
        sums = architecture.module(item.batch, features, item.draw).sums
        means = {name: sums[name] / counts[name] for name in learned}
        torch.stack([architecture.weights[name] * mean for name, mean in means.items()]).sum().backward()
        losses |= {name: losses[name] + float(mean.detach()) for name, mean in means.items()}
    for parameter in trained.values():
        if parameter.grad is None:  # a branch that nothing ran through has the gradient zero, and is stepped
            parameter.grad = torch.zeros_like(parameter)
    gradients = {name: torch.clone(parameter.grad) for name, parameter in trained.items() if parameter.grad is not None}
    norm = float(nn.utils.clip_grad_norm_(trained.values(), OPTIMIZER.clip))
    adamw.step()
    adamw.zero_grad()
    weights = {name: parameter.detach().clone() for name, parameter in trained.items()}
    return Learned(gradients=gradients, weights=weights, losses=list(losses.values()), norm=norm)


def told(architecture: Architecture, learned: Learned | None, rank: int) -> Learned:
    """What this rank has learned, on both. Collective."""
    shapes = {name: p.shape for name, p in architecture.module.named_parameters() if p.requires_grad}
    size = sum(map(torch.Size.numel, shapes.values()))
    flat = torch.zeros(2 * size + len(architecture.weights) + 1)
    if learned is not None:
        tensors = [*learned.gradients.values(), *learned.weights.values()]
        numbers = torch.tensor([*learned.losses, learned.norm])
        flat = torch.cat([*(tensor.flatten() for tensor in tensors), numbers])
    distributed.broadcast(flat, src=rank)
    pieces = iter(flat[: 2 * size].split([shape.numel() for shape in shapes.values()] * 2))
    gradients, weights = ({name: next(pieces).view(shape) for name, shape in shapes.items()} for _ in range(2))
    *losses, norm = flat[2 * size :].tolist()
    return Learned(gradients=gradients, weights=weights, losses=losses, norm=norm)


# ---- what they are given


@cache
def micro(config: Any, kind: str, rank: int, place: int) -> Micro:
    """A micro-batch of one kind. Ranks have unequally much of it, so that no mean over a rank is one over all."""
    task, asked, answered = KINDS[kind]
    count = (rank + 1) * bool(task)
    records = [record(task, asked, answered, rank, place, row) for row in range(count)]
    rows = [[prepared(each, config, config.layout())] for each in records]
    batch, owners = collate(rows, config, rows=ROWS, length=LENGTH)

    def draw(purpose: str, index: int) -> torch.Generator:
        digest = hashlib.sha256(f"{purpose} {kind} {rank} {place} {owners[index]}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    return Micro(batch=batch, draw=draw, fed=(count,))


def record(
    task: str, asked: Sequence[str | int], answered: Sequence[str | int], rank: int, place: int, row: int
) -> Record:
    """A chat, its words and pictures its own."""

    def message(role: Any, said: Sequence[str | int]) -> Message:
        return Message(role, tuple(Text(f"{part} {row}") if isinstance(part, str) else Image(part) for part in said))

    pictures = sum(isinstance(part, int) for part in (*asked, *answered))
    return Record(
        key=f"oracle_{100 * rank + 10 * place + row:09}",
        source="oracle",
        task=task,
        messages=(message("user", asked), message("assistant", answered)),
        media=tuple(picture((rank, place, row, number)) for number in range(pictures)),
        lineage=Lineage(file="", row=row),
    ).checked()


def picture(seed: Sequence[int]) -> Media:
    """A small picture of noise."""
    written = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Picture.fromarray(pixels).save(written, "png")
    return Media(data=written.getvalue(), extension="png", width=32, height=24)


# ---- the command


def main() -> None:
    """Every case; a table, exit 1 where one is wrong."""
    words = argparse.ArgumentParser(description="Compare what two ranks learn under ZeRO with what one process learns.")
    words.add_argument("--only", choices=ARCHITECTURES, help="one architecture, without the comparison of remedies")
    options = words.parse_args()
    names = [options.only] if options.only else list(ARCHITECTURES)
    ranks, wrong, rows = Ranks(), 0, []
    for name in names:
        chosen, cells = cases(ARCHITECTURES[name]), []
        for stage in STAGES:
            began = time.monotonic()
            try:
                both = ranks.ask(checked, name, stage, chosen, seconds=LIMIT)
            except (Failed, Hung) as error:
                print(f"{name}, ZeRO {stage}: {error}", flush=True)
                cells.append(type(error).__name__.lower())
                wrong += 1
                continue
            errors = [max(pair) for pair in zip(*both, strict=True)]
            beyond = [(case, error) for case, error in zip(chosen, errors, strict=True) if error.size >= TOLERANCE]
            size, what = max(errors)
            told = f"{len(chosen)} cases, largest error {size:.1e} ({what}), {len(beyond)} beyond {TOLERANCE:.0e}"
            print(f"{name}, ZeRO {stage}: {told}; {time.monotonic() - began:.0f} s", flush=True)
            for case, error in beyond:
                print(f"    {case}: {error.size:.1e}, {error.what}", flush=True)
            cells.append(f"{len(chosen)}, {size:.1e}")
            wrong += len(beyond)
        rows.append((name, *cells))
    print("\n".join(table(("cases, largest error", *(f"ZeRO {stage}" for stage in STAGES)), rows)), flush=True)
    if not options.only:
        remedies.show(ranks)
    ranks.end()
    sys.exit(1 if wrong else 0)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table in columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


if __name__ == "__main__":
    main()
