"""Records -> tensors: the bridge between the data side and an architecture. One document per row.

A position's records go to ranks by turns (record i to rank i mod R); every rank runs the same number of micro-batches,
short ones filled with empty rows that count nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from dataflow.media import decoded
from dataflow.reader import Reader
from dataflow.record import Record
from dataflow.schedule import Schedule
from models.interface import Batch, Draw
from models.layout import Layout, Slot
from models.sequence import batched, sides
from models.views import Cut
from pipelines.plan import Opened, slot_seed


@dataclass(frozen=True, kw_only=True)
class Micro:
    """One forward pass of one rank: the batch, the generators of its draws, and how many records each source gave."""

    batch: Batch
    draw: Draw
    fed: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RecordBatches:
    """The batches of a training; a value that travels to workers and opens its corpora there.

    length: tokens of a row.
    """

    schedule: Schedule
    opened: tuple[Opened, ...]
    architecture: Any
    length: int
    seed: int

    @property
    def digest(self) -> str:
        """Of the schedule: a checkpoint made under another one is refused."""
        return self.schedule.digest

    @property
    def sources(self) -> tuple[str, ...]:
        """What `Micro.fed` counts, in its order."""
        return self.schedule.names

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.schedule, [opened.open() for opened in self.opened])

    @cached_property
    def _layout(self) -> Layout:
        return self.architecture.layout()

    def __call__(self, position: int, rank: int, world: int, micro_batch: int) -> list[Micro]:
        """This rank's micro-batches of a position; equally many on every rank."""
        held = self._reader.position(position, slice(rank, None, world))
        result = []
        for first in range(0, math.ceil(self.schedule.batch / world), micro_batch):
            part = held[first : first + micro_batch]
            records = [record for _, record in part]
            slots = [rank + (first + place) * world for place in range(len(part))]
            batch, owners = collate(records, self.architecture, self._layout, rows=micro_batch, length=self.length)
            fed = [0] * len(self.sources)
            for use, _ in part:
                fed[use.member] += 1
            draw = self._draw(position, [(slots[row], picture) for row, picture in owners])
            result.append(Micro(batch=batch, draw=draw, fed=tuple(fed)))
        return result

    def _draw(self, position: int, owners: Sequence[tuple[int, int]]) -> Draw:
        def draw(purpose: str, index: int) -> torch.Generator:
            slot, picture = owners[index]
            return torch.Generator().manual_seed(slot_seed(self.seed, position, slot, f"{purpose}/{picture}"))

        return draw


def collate(
    records: Sequence[Record], architecture: Any, layout: Layout, *, rows: int, length: int
) -> tuple[Batch, list[tuple[int, int]]]:
    """Lay out and decode records, one document per row.

    Args:
        architecture: a config with `seen` and `drawn`, the views its pictures are cut for. layout: of it.
        rows: of the batch; those beyond the records stay empty. length: the longest row allowed, in tokens.
    Returns: the batch, and for each drawn picture (row, index in its record).
    Raises:
        ValueError: a record longer than a row, or a picture that does not decode; it names the record.
    """
    documents = [
        layout.lay_out(record.turns, task=record.task, key=record.key, sizes=record.sizes) for record in records
    ]
    longest = max((len(laid_out) for laid_out in documents), default=0)
    if longest > length:
        record = records[[len(laid_out) for laid_out in documents].index(longest)]
        raise ValueError(
            f"{record.key} takes {longest} tokens, a row has {length}: raise sequence_length or filter its corpus"
        )
    views = {"seen": architecture.seen, "drawn": architecture.drawn}

    def picture(row: int, number: int, slot: Slot) -> tuple[Cut, tuple[int, int]]:
        record = records[row]
        try:
            image = decoded(record.media[slot.picture])
        except ValueError as error:
            raise ValueError(f"{record.key}: {error}; rebuild its corpus with that row mended") from None
        return views[slot.view].cut(image), image.size

    laid = [[document] for document in documents] + [[] for _ in range(rows - len(documents))]
    batch, owners = batched(laid, picture, sides=sides(architecture.seen, architecture.drawn))
    return batch, [(row, index) for row, _, index in owners["drawn"]]
