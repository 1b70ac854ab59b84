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
from dataflow.windows import Lengths
from models.layout import Layout
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
        layout: Layout = self.architecture.layout()
        tasks = self.architecture.tasks

        def measured(records: Sequence[Record]) -> Mapping[str, Sequence[Any]]:
            found: dict[str, list[int]] = {"tokens": [], "targets": [], "drawn": []}
            for record in records:
                tokens, targets, drawn = _laid_out(layout, record) if record.task in tasks else (0, 0, 0)
                found["tokens"].append(tokens)
                found["targets"].append(targets)
                found["drawn"].append(drawn)
            return found

        return measured


def _laid_out(layout: Layout, record: Record) -> tuple[int, int, int]:
    document = layout.lay_out(record.turns, task=record.task, key=record.key, sizes=record.sizes)
    drawn = sum(slot.tokens for slot in document.slots if slot.answer)
    return len(document), sum(document.targets), drawn


def of(architecture: Any, opened: Sequence[BuiltCorpus], place: Place) -> tuple[Lengths, ...]:
    """Of each corpus, the lengths of the records that it offers; measured where they are not yet."""
    rule, held, found = LaidOut(architecture=architecture), dict[str, pa.Table](), []
    with ExitStack() as stack:
        lacking = {corpus.name: corpus for corpus in opened if curate.measured(rule, corpus, place) is None}
        if sum(len(corpus.manifest["shards"]) for corpus in lacking.values()) > _HERE:
            stack.enter_context(cluster(place))  # one for all of them
        for corpus in opened:
            if corpus.name not in held:
                held[corpus.name] = measures.read(curate.measure(rule, corpus, place, here=_HERE))
    for corpus in opened:
        tokens, drawn = (held[corpus.name][name].to_numpy()[corpus.rows] for name in ("tokens", "drawn"))
        found.append(Lengths(tokens=tokens.astype(np.int32), drawn=drawn.astype(np.int32)))
    return tuple(found)
