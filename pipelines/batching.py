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

import numpy as np
import torch
from einops import rearrange
from PIL import Image as Pixels

from dataflow.media import decoded
from dataflow.reader import Reader
from dataflow.record import Media, Record
from dataflow.schedule import Schedule
from models.interface import Batch, Draw
from models.layout import Layout
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

    picture: pixels a side. length: tokens of a row.
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
            batch, owners = collate(
                records, self._layout, self.architecture.picture, rows=micro_batch, length=self.length
            )
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
    records: Sequence[Record], layout: Layout, picture: int, *, rows: int, length: int
) -> tuple[Batch, list[tuple[int, int]]]:
    """Lay out and decode records, one document per row.

    Args:
        picture: pixels a side; pictures are resized to it, aspect not kept (as SigLIP's processor does).
        rows: of the batch; those beyond the records stay empty. length: the longest row allowed, in tokens.
    Returns: the batch, and for each of its pictures (row, index in its record).
    Raises:
        ValueError: a record longer than a row, or a picture that does not decode; it names the record.
    """
    documents = [layout.lay_out(record.turns, task=record.task, key=record.key) for record in records]
    longest = max((len(laid_out) for laid_out in documents), default=0)
    if longest > length:
        record = records[[len(laid_out) for laid_out in documents].index(longest)]
        raise ValueError(
            f"{record.key} takes {longest} tokens, a row has {length}: raise sequence_length or filter its corpus"
        )
    size = (rows, max(1, longest))  # no wider than what it holds: one document per row
    ids, document, position = (torch.zeros(size, dtype=torch.int64) for _ in range(3))
    target = torch.zeros(size, dtype=torch.bool)
    shown, start, answer, owners = [], [], [], []
    for row, (record, laid_out) in enumerate(zip(records, documents, strict=True)):
        end = len(laid_out)
        ids[row, :end] = torch.tensor(laid_out.ids)
        target[row, :end] = torch.tensor(laid_out.targets)
        document[row, :end] = 1
        position[row, :end] = torch.arange(end)
        for slot in laid_out.slots:
            shown.append(_learned_pixels(record, slot.picture, picture))
            start.append(slot.start)
            answer.append(slot.answer)
            owners.append((row, slot.picture))
    pictures = torch.stack(shown) if shown else torch.zeros(0, 3, picture, picture)
    batch = Batch(
        ids=ids,
        document=document,
        position=position,
        target=target,
        pictures=pictures,
        row=torch.tensor([row for row, _ in owners], dtype=torch.int64),
        start=torch.tensor(start, dtype=torch.int64),
        answer=torch.tensor(answer, dtype=torch.bool),
    )
    return batch, owners


def pixels(media: Media, side: int) -> torch.Tensor:
    """A stored picture as float32[3, side, side] in 0..1; resized, aspect not kept.

    Raises:
        Corrupt: it does not decode.
    """
    image = decoded(media)
    if image.size != (side, side):
        image = image.resize((side, side), Pixels.Resampling.BICUBIC)
    return rearrange(torch.from_numpy(np.asarray(image).copy()), "h w c -> c h w").float() / 255


def _learned_pixels(record: Record, index: int, side: int) -> torch.Tensor:
    try:
        return pixels(record.media[index], side)
    except ValueError as error:
        raise ValueError(f"{record.key}: {error}; rebuild its corpus with that row mended") from None
