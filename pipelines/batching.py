"""Records -> tensors: the bridge between the data side and an architecture.

A position's rows are dealt to ranks by how much they hold; every rank runs the same number of micro-batches, short
ones filled with empty rows that count nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dataflow.index import Shards
from dataflow.media import decoded
from dataflow.packing import dealt
from dataflow.reader import Reader, Replaced, Slot
from dataflow.record import Record
from dataflow.schedule import Schedule, Use
from dataflow.sides import Sides
from dataflow.windows import Windows
from models.interface import Batch, Draw, Features, Parts, Pictures
from models.layout import Document, Layout, ViewName
from models.layout import Slot as PictureSlot
from models.sequence import batched, sides
from models.views import Cut
from pipelines.lengths import laid_out
from pipelines.plan import Opened, slot_seed

EXTENSION = "safetensors"  # of a record's features in a side tar
VIEWS: tuple[ViewName, ...] = get_args(ViewName)


@dataclass(frozen=True, kw_only=True)
class Micro:
    """One forward pass of one rank: the batch, the generators of its draws, and what each source gave.

    fed, tokens, drawn: records, their tokens, and of these those of pictures that are answers. kinds: int64[B, D], of
    which of the batches' kinds each document of a row is, -1 after the row's last; None: of none. parts: the features
    of its pictures where they are stored; None where they are to be computed. replaced: what could not be read, told
    once of a position.
    """

    batch: Batch
    draw: Draw
    fed: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    drawn: tuple[int, ...] = ()
    kinds: Tensor | None = None
    parts: Parts | None = None
    replaced: tuple[Replaced, ...] = ()


class Kind(NamedTuple):
    """What records, and what is lost of them, are told apart by."""

    source: str
    group: str
    task: str


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A record, laid out; cuts: of the picture of each of its document's slots, with the size it had before."""

    record: Record
    document: Document
    cuts: tuple[tuple[Cut, tuple[int, int]], ...]


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

    length: tokens of a row. stored: features to be read instead of pictures. known: what the run replaced before.
    threads: that decode pictures, of each rank. shortened_to: tokens, as `Training` has it. shards: as `Execution` has
    it.
    """

    schedule: Schedule | Windows
    opened: tuple[Opened, ...]
    architecture: Any
    length: int
    seed: int
    stored: Stored | None = None
    known: tuple[Replaced, ...] = ()
    threads: int = 0
    shortened_to: int | None = None
    shards: Shards = "trusted"

    @property
    def digest(self) -> str:
        """Of the schedule: a checkpoint made under another one is refused."""
        return self.schedule.digest

    @property
    def sources(self) -> tuple[str, ...]:
        """What `Micro.fed` counts, in its order."""
        return self.schedule.names

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What `Micro.kinds` counts into: every task that is learned, of every member in the mixture's order."""
        groups = [group.name for group in self.schedule.mixture.groups for _ in group.members]
        members = zip(self.sources, groups, strict=True)
        return tuple(Kind(source, group, task) for source, group in members for task in self.architecture.tasks)

    def kind_of(self, slot: Slot[Prepared]) -> int:
        """The place of a record's kind among them."""
        tasks = self.architecture.tasks
        return slot.use.member * len(tasks) + tasks.index(slot.value.record.task)

    @cached_property
    def reader(self) -> Reader[Prepared]:
        """Of the records, over the opened corpora, prepared for the architecture."""
        corpora = [opened.open(shards_are=self.shards) for opened in self.opened]
        known = {each.place: each for each in self.known}
        return Reader(self.schedule, corpora, decode=self._prepared, known=known, threads=self.threads)

    @cached_property
    def _layout(self) -> Layout:
        return self.architecture.layout()

    @cached_property
    def _sides(self) -> list[Sides]:
        assert self.stored is not None
        members = zip(self.stored.folders, self.reader.corpora, strict=True)
        return [Sides(folders, corpus.table.num_rows) for folders, corpus in members]

    def _prepared(self, use: Use, record: Record) -> Prepared:
        pixels = VIEWS if self.stored is None else self.stored.pixels
        made = prepared(record, self.architecture, self._layout, pixels=pixels, most=self.shortened_to)
        promised = self.schedule.tokens_of(use)
        if promised not in (None, len(made.document)):
            raise RuntimeError(
                f"{record.key} takes {len(made.document)} tokens, {promised} were measured: what lays it out changed; "
                "raise the architecture's version and train anew"
            )
        return made

    def deal(self, position: int, rank: int, world: int) -> list[int]:
        """The rows of a position that are this rank's; -1 for an empty one."""
        packs = self.schedule.packs(position)
        return dealt([self.schedule.weight(pack) for pack in packs], world, together=self.schedule.together)[rank]

    @cached_property
    def _drawing(self) -> list[NDArray[np.bool_]]:
        """Of each member, which of its records are of a task with drawn pictures."""
        tasks = pa.array(getattr(self.architecture, "drawing", self.architecture.tasks), pa.string())
        held = (pc.is_in(corpus.task, value_set=tasks) for corpus in self.reader.corpora)  # pyright: ignore[reportAttributeAccessIssue]
        return [drawn.to_numpy(zero_copy_only=False) for drawn in held]

    def draws(self, position: int) -> bool:
        """Whether any record of a position may have a drawn picture: `Batch.draws`, the same on every rank.

        What takes the place of a record that cannot be read is of its task.
        """
        return any(self._drawing[use.member][use.row] for pack in self.schedule.packs(position) for use in pack)

    def __call__(self, position: int, rank: int, world: int, micro_batch: int) -> list[Micro]:
        """This rank's micro-batches of a position; equally many on every rank."""
        self.reader.bring(position, lambda position: self.deal(position, rank, world))
        numbers = self.deal(position, rank, world)
        packs = self.reader.packs(position, numbers)
        replaced = tuple(self.reader.take())
        draws = self.draws(position)
        result = []
        for first in range(0, len(packs), micro_batch):
            part = packs[first : first + micro_batch]
            rows = [[slot.value for slot in pack] for pack in part]
            batch, owners = collate(rows, self.architecture, rows=micro_batch, length=self.length)
            parts = None if self.stored is None else self._parts(part, batch, self.stored.views)
            fed = [0] * len(self.sources)
            tokens, drawn = [0] * len(self.sources), [0] * len(self.sources)
            for slot in (slot for pack in part for slot in pack):
                fed[slot.use.member] += 1
                document = slot.value.document
                tokens[slot.use.member] += len(document)
                drawn[slot.use.member] += sum(each.tokens for each in document.slots if each.answer)
            kinds = [torch.tensor([self.kind_of(slot) for slot in pack], dtype=torch.int64) for pack in part]
            places = [(numbers[first + row], part[row][document].number, picture) for row, document, picture in owners]
            result.append(
                Micro(
                    batch=replace(batch, draws=draws),
                    draw=self._draw(position, places),
                    fed=tuple(fed),
                    tokens=tuple(tokens),
                    drawn=tuple(drawn),
                    kinds=pad_sequence(kinds, batch_first=True, padding_value=-1),
                    parts=parts,
                    replaced=() if first else replaced,
                )
            )
        return result

    def _parts(self, part: Sequence[Sequence[Slot[Prepared]]], batch: Batch, views: Sequence[ViewName]) -> Parts:
        """What is stored of the batch's pictures."""
        found: dict[ViewName, list[Features]] = {view: [] for view in views}
        for slot in (slot for pack in part for slot in pack):
            record = slot.value.record
            if not record.media:
                continue
            place = int(self.reader.corpora[slot.use.member].rows[slot.use.row])
            held = unpacked(self._sides[slot.use.member].files(place, record.key)[EXTENSION])
            for view in views:
                stored, laid = held.get(view, []), sum(each.view == view for each in slot.value.document.slots)
                if len(stored) != laid:
                    raise ValueError(
                        f"{record.key} has {laid} pictures to be {view}, features of {len(stored)} are stored: "
                        "they are of another layout, raise the architecture's version and measure again"
                    )
                found[view] += stored
        return found

    def _draw(self, position: int, owners: Sequence[tuple[int, int, int]]) -> Draw:
        def draw(purpose: str, index: int) -> torch.Generator:
            row, slot, picture = owners[index]
            seed = slot_seed(self.seed, position, f"{row}.{slot}", f"{purpose}/{picture}")
            return torch.Generator().manual_seed(seed)

        return draw


def prepared(
    record: Record,
    architecture: Any,
    layout: Layout,
    *,
    pixels: Collection[ViewName] = VIEWS,
    most: int | None = None,
) -> Prepared:
    """A record laid out, its pictures decoded and cut.

    Args:
        architecture: a config with `seen` and `drawn`, the views its pictures are cut for. layout: of it.
        pixels: the views that are decoded; pictures of others have no tiles.
        most: tokens that a longer record is shortened to; None: it stays whole.
    Raises:
        ValueError: a picture that does not decode; it names the record.
    """
    record, document = laid_out(record, layout, most)
    views = {"seen": architecture.seen, "drawn": architecture.drawn}
    cuts = []
    for slot in document.slots:
        view = views[slot.view]
        if slot.view not in pixels:
            size = record.sizes[slot.picture]
            cuts.append((Cut(np.zeros((0, view.side, view.side, 3), np.uint8), view.grid(size)), size))
            continue
        try:
            image = decoded(record.media[slot.picture])
        except ValueError as error:
            raise ValueError(f"{record.key}: {error}; run interlace verify, or filter its corpus by Decodes") from None
        cuts.append((view.cut(image), image.size))
    return Prepared(record=record, document=document, cuts=tuple(cuts))


def collate(
    rows_of: Sequence[Sequence[Prepared]], architecture: Any, *, rows: int, length: int
) -> tuple[Batch, list[tuple[int, int, int]]]:
    """Records laid end to end in rows.

    Args:
        rows: of the batch; those beyond `rows_of` stay empty. length: the longest row allowed, in tokens.
    Returns: the batch, and for each drawn picture (row, record in the row, index in its record).
    Raises:
        ValueError: a row longer than that; it names its longest record.
    """
    for row in rows_of:
        if (tokens := sum(len(each.document) for each in row)) > length:
            longest = max(row, key=lambda each: len(each.document))
            raise ValueError(
                f"{longest.record.key} takes {len(longest.document)} of {tokens} tokens, a row has {length}: "
                "raise sequence_length or filter its corpus"
            )

    def picture(row: int, number: int, slot: PictureSlot) -> tuple[Cut, tuple[int, int]]:
        held = rows_of[row][number]
        return held.cuts[held.document.slots.index(slot)]

    laid = [[each.document for each in row] for row in rows_of] + [[] for _ in range(rows - len(rows_of))]
    batch, owners = batched(laid, picture, sides=sides(architecture.seen, architecture.drawn))
    return batch, owners["drawn"]


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
