"""How well a run does on records that no training saw: losses per task, and how many answers are the corpus' own.

<run>/evaluation.json    per task: records, loss of each modality, answered of asked
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dataflow.build import write_atomically
from dataflow.media import decoded
from dataflow.record import Record
from models.interface import Asked, Draw
from pipelines import plan, sample
from pipelines.batching import collate, prepared
from pipelines.lengths import laid_out
from pipelines.step import Place
from pipelines.training import Training

_ROWS = 8  # of one forward pass
_TEXT = ("image_qa", "video_qa", "text_qa")  # tasks whose answer is text that can be compared


@dataclass
class Task:
    """What became of the records of one task. sums, counts: per modality. right of asked: first answers."""

    records: int = 0
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    right: int = 0
    asked: int = 0

    def described(self) -> dict[str, Any]:
        """As JSON values; a modality without targets has no loss."""
        losses = {name: self.sums[name] / count if count else None for name, count in self.counts.items()}
        return {"records": self.records, "losses": losses, "right": self.right, "asked": self.asked}

    def line(self, name: str) -> str:
        """For the terminal."""
        told = self.described()
        losses = ", ".join(f"{kind} {loss:.3f}" for kind, loss in told["losses"].items() if loss is not None)
        answers = f"; {self.right} of {self.asked} answered as the corpus does" if self.asked else ""
        return f"{name}: {self.records} records, {losses}{answers}"


def evaluate(folder: Path, place: Place, *, records: int, questions: int) -> dict[str, Task]:
    """Losses and answers on the validation part of every corpus of the run's mixture; kept beside the run.

    Args:
        records: of each source at most. questions: of each task at most.
    Raises:
        ValueError: no run there, no checkpoint yet, or corpora that are not built.
    """
    run = sample.Run(folder)
    training: Training = run.training
    layout = run.config.layout()
    found: dict[str, Task] = {}
    for number, batch in enumerate(_batches(training, place, records)):
        task = found.setdefault(batch[0].task, Task())
        rows = [[prepared(record, run.config, layout)] for record in batch]
        collated, owners = collate(rows, run.config, rows=len(batch), length=training.sequence_length)
        collated = collated.to(run.device)
        with torch.inference_mode():
            losses = run.architecture.module(collated, run.architecture.encode(collated), _draw(number, owners))
        task.records += len(batch)
        for name, count in run.architecture.counts(collated).items():
            task.sums[name] += float(losses.sums[name])
            task.counts[name] += count
        for record in batch if batch[0].task in _TEXT else ():
            if task.asked < questions:
                task.asked += 1
                task.right += _answered(run, record)
    described = {name: task.described() for name, task in sorted(found.items())}
    write_atomically(folder / "evaluation.json", json.dumps({"step": run.step, "tasks": described}, indent=1).encode())
    return found


def _batches(training: Training, place: Place, records: int) -> Iterator[list[Record]]:
    """Validation records of one task each, short enough for a row, or shortened to it as in training."""
    layout = training.architecture.layout()
    for opened in plan.held_out(training.mixture, place):
        corpus = opened.open()
        by_task = defaultdict[str, list[Record]](list)
        for spot in range(min(records, len(corpus))):
            record = corpus.record(spot)
            record, document = laid_out(record, layout, training.shortened_to)
            if record.task in training.architecture.tasks and len(document) <= training.sequence_length:
                by_task[record.task].append(record)
        for held in by_task.values():
            yield from (held[first : first + _ROWS] for first in range(0, len(held), _ROWS))


def _draw(number: int, owners: list[tuple[int, int, int]]) -> Draw:
    def draw(purpose: str, index: int) -> torch.Generator:
        row, _, picture = owners[index]
        return torch.Generator().manual_seed(plan.slot_seed(0, number, row, f"evaluate/{purpose}/{picture}"))

    return draw


def _answered(run: sample.Run, record: Record) -> bool:
    """Whether the first answer is the corpus' own, but for case and spaces around it."""
    turns = record.turns
    first = next(place for place, (role, _) in enumerate(turns) if role == "assistant")
    asked = Asked(answer="text", max_tokens=64)
    images = [decoded(media) for media in record.media]
    said = run.architecture.answer(turns[:first], images, asked, task=record.task, key=record.key)
    wanted = " ".join(part for part in turns[first][1] if isinstance(part, str))
    return " ".join(str(part) for part in said.parts).strip().lower() == wanted.strip().lower()
