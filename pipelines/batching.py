"""Records -> tensors: the bridge between the data side and an architecture. One document per row.

A position's records go to ranks by turns (record i to rank i mod R); every rank runs the same number of micro-batches,
short ones filled with empty rows that count nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from dataflow.media import decoded
from dataflow.reader import Reader
from dataflow.record import Record
from dataflow.schedule import Schedule, Use
from dataflow.sides import Sides
from models.interface import Batch, Draw, Features, Parts, Pictures
from models.layout import Layout, Slot, ViewName
from models.sequence import batched, sides
from models.views import Cut
from pipelines.plan import Opened, slot_seed

EXTENSION = "safetensors"  # of a record's features in a side tar
VIEWS: tuple[ViewName, ...] = get_args(ViewName)


@dataclass(frozen=True, kw_only=True)
class Micro:
    """One forward pass of one rank: the batch, the generators of its draws, and how many records each source gave.

    parts: the features of its pictures where they are stored; None where they are to be computed.
    """

    batch: Batch
    draw: Draw
    fed: tuple[int, ...]
    parts: Parts | None = None


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Where features lie that were stored beforehand: folders for each member of the mixture.

    views, pixels: as `interface.Measured` has them.
    """

    folders: tuple[tuple[Path, ...], ...]
    views: tuple[ViewName, ...]
    pixels: tuple[ViewName, ...]


@dataclass(frozen=True, kw_only=True)
class RecordBatches:
    """The batches of a training; a value that travels to workers and opens its corpora there.

    length: tokens of a row. stored: features to be read instead of pictures.
    """

    schedule: Schedule
    opened: tuple[Opened, ...]
    architecture: Any
    length: int
    seed: int
    stored: Stored | None = None

    @property
    def digest(self) -> str:
        """Of the schedule: a checkpoint made under another one is refused."""
        return self.schedule.digest

    @property
    def sources(self) -> tuple[str, ...]:
        """What `Micro.fed` counts, in its order."""
        return self.schedule.names

    @cached_property
    def reader(self) -> Reader:
        """Of the records, over the opened corpora."""
        return Reader(self.schedule, [opened.open() for opened in self.opened])

    @cached_property
    def _layout(self) -> Layout:
        return self.architecture.layout()

    @cached_property
    def _sides(self) -> list[Sides]:
        assert self.stored is not None
        members = zip(self.stored.folders, self.reader.corpora, strict=True)
        return [Sides(folders, corpus.table.num_rows) for folders, corpus in members]

    def __call__(self, position: int, rank: int, world: int, micro_batch: int) -> list[Micro]:
        """This rank's micro-batches of a position; equally many on every rank."""
        held = self.reader.position(position, slice(rank, None, world))
        pixels = VIEWS if self.stored is None else self.stored.pixels
        result = []
        for first in range(0, math.ceil(self.schedule.batch / world), micro_batch):
            part = held[first : first + micro_batch]
            records = [record for _, record in part]
            slots = [rank + (first + place) * world for place in range(len(part))]
            batch, owners = collate(
                records, self.architecture, self._layout, rows=micro_batch, length=self.length, pixels=pixels
            )
            parts = None if self.stored is None else self._parts(part, batch, self.stored.views)
            fed = [0] * len(self.sources)
            for use, _ in part:
                fed[use.member] += 1
            draw = self._draw(position, [(slots[row], picture) for row, picture in owners])
            result.append(Micro(batch=batch, draw=draw, fed=tuple(fed), parts=parts))
        return result

    def _parts(self, part: Sequence[tuple[Use, Record]], batch: Batch, views: Sequence[ViewName]) -> Parts:
        """What is stored of the batch's pictures."""
        found: dict[ViewName, list[Features]] = {view: [] for view in views}
        for row, (use, record) in enumerate(part):
            if not record.media:
                continue
            place = int(self.reader.corpora[use.member].rows[use.row])
            held = unpacked(self._sides[use.member].files(place, record.key)[EXTENSION])
            for view in views:
                stored, laid = held.get(view, []), int((of_view(batch, view).row == row).sum())
                if len(stored) != laid:
                    raise ValueError(
                        f"{record.key} has {laid} pictures to be {view}, features of {len(stored)} are stored: "
                        "they are of another layout, raise the architecture's version and measure again"
                    )
                found[view] += stored
        return found

    def _draw(self, position: int, owners: Sequence[tuple[int, int]]) -> Draw:
        def draw(purpose: str, index: int) -> torch.Generator:
            slot, picture = owners[index]
            return torch.Generator().manual_seed(slot_seed(self.seed, position, slot, f"{purpose}/{picture}"))

        return draw


def collate(
    records: Sequence[Record],
    architecture: Any,
    layout: Layout,
    *,
    rows: int,
    length: int,
    pixels: Collection[ViewName] = VIEWS,
) -> tuple[Batch, list[tuple[int, int]]]:
    """Lay out and decode records, one document per row.

    Args:
        architecture: a config with `seen` and `drawn`, the views its pictures are cut for. layout: of it.
        rows: of the batch; those beyond the records stay empty. length: the longest row allowed, in tokens.
        pixels: the views that are decoded; pictures of others have no tiles.
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
        record, view = records[row], views[slot.view]
        if slot.view not in pixels:
            size = record.sizes[slot.picture]
            return Cut(np.zeros((0, view.side, view.side, 3), np.uint8), view.grid(size)), size
        try:
            image = decoded(record.media[slot.picture])
        except ValueError as error:
            raise ValueError(f"{record.key}: {error}; rebuild its corpus with that row mended") from None
        return view.cut(image), image.size

    laid = [[document] for document in documents] + [[] for _ in range(rows - len(documents))]
    batch, owners = batched(laid, picture, sides=sides(architecture.seen, architecture.drawn))
    return batch, [(row, index) for row, _, index in owners["drawn"]]


def of_view(batch: Batch, view: ViewName) -> Pictures:
    """The batch's pictures of a view."""
    return batch.seen if view == "seen" else batch.drawn


def packed(features: Mapping[ViewName, Sequence[Features]]) -> bytes:
    """A record's features as its file in a side tar: tensors named `seen.0.tokens`, in the order of its document."""
    return save(
        {
            f"{view}.{number}.{name}": tensor.contiguous()
            for view, pictures in features.items()
            for number, picture in enumerate(pictures)
            for name, tensor in picture.items()
        }
    )


def unpacked(data: bytes) -> dict[ViewName, list[dict[str, Tensor]]]:
    """The inverse of `packed`; views without pictures are left out."""
    found: dict[ViewName, dict[int, dict[str, Tensor]]] = {}
    for path, tensor in load(data).items():
        view, number, name = path.split(".")
        found.setdefault("seen" if view == "seen" else "drawn", {}).setdefault(int(number), {})[name] = tensor
    return {view: [pictures[number] for number in sorted(pictures)] for view, pictures in found.items()}
