"""How long records are when an architecture lays them out: a measure beside a corpus, made by Ray workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from dataflow import measures
from dataflow.index import BuiltCorpus
from dataflow.measures import Ready
from dataflow.record import Record
from dataflow.shortening import shortened
from dataflow.windows import Lengths
from models.layout import Document, Layout
from pipelines import curate
from pipelines.step import Place, cluster

_HERE = 4  # shards laid out in this process: a cluster takes longer to start


@dataclass(frozen=True, kw_only=True)
class LaidOut:
    """tokens: of the document. targets: of them those that are learned. drawn: tokens of pictures that are answers.

    All are 0 for a record whose task the architecture does not learn from.
    architecture: a config with `tasks` and `layout()`; everything in it names the measure.
    """

    architecture: Any
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("tokenizers", "transformers")
    gpus: ClassVar[float] = 0

    @property
    def name(self) -> str:
        return f"lengths_{type(self.architecture).__name__.lower()}"

    @property
    def columns(self) -> pa.Schema:
        return pa.schema([(name, pa.int32()) for name in ("tokens", "targets", "drawn")])

    def ready(self) -> Ready:
        return _measuring(self.architecture, self.columns.names)


@dataclass(frozen=True, kw_only=True)
class Shortened:
    """The same of records of which those that are longer than `most` tokens are shortened where that can be.

    shortened: whether the record was. Where it cannot be, all is told of the whole record.
    """

    architecture: Any
    most: int
    version: ClassVar[int] = 1  # raise it with LaidOut's, and when dataflow/shortening.py keeps other parts
    libraries: ClassVar[tuple[str, ...]] = LaidOut.libraries
    gpus: ClassVar[float] = 0

    @property
    def name(self) -> str:
        return f"{LaidOut(architecture=self.architecture).name}_{self.most}"

    @property
    def columns(self) -> pa.Schema:
        return LaidOut(architecture=self.architecture).columns.append(pa.field("shortened", pa.bool_()))

    def ready(self) -> Ready:
        return _measuring(self.architecture, self.columns.names, self.most)


def _measuring(architecture: Any, columns: Sequence[str], most: int | None = None) -> Ready:
    layout: Layout = architecture.layout()

    def measured(records: Sequence[Record]) -> Mapping[str, Sequence[Any]]:
        found: dict[str, list[Any]] = {name: [] for name in columns}
        for record in records:
            told = dict[str, Any](tokens=0, targets=0, drawn=0, shortened=False)
            if record.task in architecture.tasks:
                part, document = laid_out(record, layout, most)
                told["tokens"], told["targets"] = len(document), sum(document.targets)
                told["drawn"] = sum(slot.tokens for slot in document.slots if slot.answer)
                told["shortened"] = part is not record
            for name, values in found.items():
                values.append(told[name])
        return found

    return measured


def laid_out(record: Record, layout: Layout, most: int | None) -> tuple[Record, Document]:
    """A record and its document; what is trained of the record where it is shortened.

    Args:  most: tokens that a longer record is shortened to where that can be; None: it stays whole.
    """

    def document(part: Record) -> Document:
        return layout.lay_out(part.turns, task=part.task, key=part.key, sizes=part.sizes)

    whole = document(record)
    if most is None or len(whole) <= most:
        return record, whole
    part = shortened(record, most=most, length=lambda part: len(document(part)))
    return (record, whole) if part is None else (part, document(part))


def of(
    architecture: Any, opened: Sequence[BuiltCorpus], place: Place, *, most: int | None = None
) -> tuple[Lengths, ...]:
    """Of each corpus, the lengths of the records that it offers; measured where they are not yet.

    Args:  most: tokens that longer records are shortened to; None: they stay as they are.
    """
    whole = LaidOut(architecture=architecture)
    rule = whole if most is None else Shortened(architecture=architecture, most=most)
    held, found = dict[str, pa.Table](), []
    with ExitStack() as stack:
        lacking = {corpus.name: corpus for corpus in opened if curate.measured(rule, corpus, place) is None}
        if sum(len(corpus.manifest["shards"]) for corpus in lacking.values()) > _HERE:
            stack.enter_context(cluster(place))  # one for all of them
        for corpus in opened:
            if corpus.name not in held:
                held[corpus.name] = measures.read(curate.measure(rule, corpus, place, here=_HERE))
    for corpus in opened:
        table = held[corpus.name]
        tokens, drawn = (table[name].to_numpy()[corpus.rows].astype(np.int32) for name in ("tokens", "drawn"))
        cut = None if most is None else table["shortened"].to_numpy()[corpus.rows]
        found.append(Lengths(tokens=tokens, drawn=drawn, shortened=cut))
    return tuple(found)
