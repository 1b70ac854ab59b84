"""Corpus-wide decisions over all that a mixture holds: duplicates, leakage, balance, thresholds. No shard is touched.

    corpora as Held: index, measures, what is still used   ->   a Curation   ->   Verdicts: used or why not, per record

<root>/selections/<key>/   verdicts.parquet   a row per record of every corpus: corpus, row, key, used, reason, cluster
                           manifest.json      written last: step, counts by corpus, kinds of reasons, a table, sha256
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataflow import shards
from dataflow.build import sweep, write_atomically
from dataflow.index import BuiltCorpus, reason_kind, write_table
from dataflow.measures import Measure, read_table

VERDICTS = pa.schema(
    [
        ("corpus", pa.string()),
        ("row", pa.int64()),
        ("key", pa.string()),
        ("used", pa.bool_()),
        ("reason", pa.string()),
        ("cluster", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Held:
    """One corpus as a curation sees it; all columns have a row per record, in the order of its index.

    name: of its source. index: `dataflow.index.INDEX`. used: bool[n], by the curations before. clusters: the key of
    the record that stands for it, its own where it stands alone. measures: those that the curation named, by name.
    corpus: to read records from; most curations need none.
    """

    name: str
    index: pa.Table
    used: NDArray[np.bool_]
    clusters: pa.Array
    measures: Mapping[str, pa.Table]
    corpus: BuiltCorpus


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What became of the records of one corpus.

    used: bool[n]. reasons: string[n], why a record is out, or what was found of one that stays; "" where there is
    nothing to say, and where it was out before. clusters: string[n], as `Held.clusters`.
    """

    used: NDArray[np.bool_]
    reasons: pa.Array
    clusters: pa.Array


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Verdicts, and a table for people: rows of names and numbers or text, all with the same names."""

    verdicts: Sequence[Verdicts]
    table: tuple[dict[str, Any], ...] = ()


class Curation(Protocol):
    """A frozen dataclass over all corpora of a mixture, in its order. It may only take records out of use.

    measures: what it needs of every corpus. libraries: distributions whose version changes its verdicts.

    A curation may have `against: tuple[Corpus, ...]`: corpora that are no part of the mixture, evaluation sets say.
    They are built and measured like the mixture's, and `__call__(held, against)` gets them as its second argument.

    Returns: verdicts in the order of `held`, or a Judgement, which has a table too.
    Raises:  ValueError when the mixture cannot be used as it is; the message says why and what to do.
    """

    version: ClassVar[int]
    libraries: ClassVar[tuple[str, ...]]

    @property
    def measures(self) -> tuple[Measure, ...]: ...

    def __call__(self, held: Sequence[Held]) -> Sequence[Verdicts] | Judgement: ...


def write(
    folder: Path, held: Sequence[Held], made: Sequence[Verdicts] | Judgement, *, step: dict[str, Any]
) -> dict[str, Any]:
    """Write what became of every record; the folder is finished once it has a manifest, which is returned.

    Raises:
        ValueError: verdicts that are not one for every record, or that bring a record back.
    """
    made = made if isinstance(made, Judgement) else Judgement(verdicts=made)
    rule = step["curation"]["is"]
    if len(made.verdicts) != len(held):
        raise ValueError(f"{rule} gave verdicts on {len(made.verdicts)} corpora of {len(held)}: it answers for each")
    tables, counts = [], {}
    for corpus, verdict in zip(held, made.verdicts, strict=True):
        records = corpus.index.num_rows
        lengths = {len(verdict.used), len(verdict.reasons), len(verdict.clusters)}
        if lengths != {records} or verdict.used.dtype != bool:
            raise ValueError(
                f"{rule} gave {sorted(lengths)} verdicts on {records} records of {corpus.name}: one for each"
            )
        if back := np.flatnonzero(verdict.used & ~corpus.used).tolist():
            key = corpus.index["key"][back[0]].as_py()
            raise ValueError(
                f"{rule} brings {len(back)} records of {corpus.name} back, {key} first: a curation only takes out; "
                "give `held.used & ...`"
            )
        tables.append(
            pa.table(
                [
                    pa.repeat(corpus.corpus.name, records),
                    pa.array(np.arange(records)),
                    corpus.index["key"].combine_chunks(),
                    pa.array(verdict.used),
                    verdict.reasons,
                    verdict.clusters,
                ],
                VERDICTS,
            )
        )
        kept, before = int(verdict.used.sum()), int(corpus.used.sum())
        counts[corpus.corpus.name] = {"records": records, "before": before, "used": kept, "taken_out": before - kept}
    table = pa.concat_tables([VERDICTS.empty_table(), *tables])
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    write_table(folder / "verdicts.parquet", table)
    manifest = {
        "step": step,
        "counts": counts,
        "reasons": [asdict(reason) for reason in _tally(table)],
        "table": list(made.table),
        "sha256": shards.sha256(folder / "verdicts.parquet"),
    }
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest


def read(folder: Path) -> dict[str, Verdicts]:
    """Verdicts by the folder name of each corpus.

    Raises: ValueError: no finished curation there, or its table changed.
    """
    table = read_table(folder, "verdicts.parquet", "curation")
    found, start = {}, 0
    for name, counts in read_manifest(folder)["counts"].items():
        part = table.slice(start, counts["records"])
        found[name] = Verdicts(
            used=part["used"].to_numpy(),
            reasons=part["reason"].combine_chunks(),
            clusters=part["cluster"].combine_chunks(),
        )
        start += counts["records"]
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished curation."""
    return json.loads((folder / "manifest.json").read_bytes())


def lines(manifest: dict[str, Any]) -> Iterator[str]:
    """A finished curation for the terminal: what it took out, why with an example each, and its table."""
    counts = manifest["counts"].values()
    taken, before = sum(each["taken_out"] for each in counts), sum(each["before"] for each in counts)
    yield f"{taken} of {before} records taken out"
    for name, each in manifest["counts"].items():
        if each["taken_out"]:
            none = "" if each["used"] else ": none is left, a mixture that counts on it will not train"
            yield f"  {name}: {each['taken_out']} of {each['before']}{none}"
    for reason in manifest["reasons"]:
        kind = "out" if reason["outcome"] == "out" else "found, in use"
        yield f"  {reason['records']} {kind}: {reason['example']}  ({reason['key']})"
    for row in manifest["table"]:
        yield "  " + ", ".join(f"{name} {value}" for name, value in row.items())


@dataclass(frozen=True, kw_only=True)
class Reason:
    """A kind of reason: how many records, one of these, and what is said of it. outcome: out, or in use."""

    outcome: str
    kind: str
    records: int
    key: str
    example: str


def _tally(table: pa.Table) -> list[Reason]:
    """The kinds of reasons in a ledger, most frequent first; those that differ in names and numbers are one kind."""
    said = table.filter(pc.field("reason") != "")
    found: dict[tuple[str, str], tuple[int, str, str]] = {}
    columns = (said[name].to_pylist() for name in ("used", "reason", "key"))
    for used, reason, key in zip(*columns, strict=True):
        named = ("in use" if used else "out", reason_kind(reason))
        count, first, example = found.get(named, (0, key, reason))
        found[named] = (count + 1, first, example)
    ranked = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))
    return [
        Reason(outcome=outcome, kind=kind, records=count, key=key, example=example)
        for (outcome, kind), (count, key, example) in ranked
    ]


def unmoved(held: Held) -> Verdicts:
    """The verdicts that change nothing."""
    return Verdicts(used=held.used, reasons=pa.repeat("", len(held.used)), clusters=held.clusters)
