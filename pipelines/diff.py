"""Two corpora, or two selections, compared: records by key and bytes, ledgers by input row, shares and sizes.

A record is the same when its key and the sha256 of its bytes are. Keys number input rows by the shard: a row that was
inserted changes all records after it in its file, other rows_per_shard change nearly all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataflow import index, selection
from dataflow.folders import is_file
from dataflow.index import BuiltCorpus
from pipelines import report
from pipelines.explain import differences

_arrow: Any = pc  # made when it is imported, so that type checkers do not know its functions
_SHOWN = 6  # records of a kind on a page, examples in text
_BINS = 30  # of a histogram
_QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two: a corpus, whole or through a selection."""

    folder: Path
    corpus: BuiltCorpus

    @cached_property
    def table(self) -> pa.Table:
        """Its index rows, in order."""
        return self.corpus.table.take(pa.array(self.corpus.rows))

    @cached_property
    def ledger(self) -> pa.Table:
        """Of the whole corpus."""
        return self.corpus.ledger

    def sizes(self) -> dict[str, NDArray[Any]]:
        """By name what is compared of every record, or picture."""
        widths, heights = (_arrow.list_flatten(self.table[name]).to_numpy() for name in ("widths", "heights"))
        return {
            "characters of text": self.table["text_length"].to_numpy(),
            "pictures": self.table["pictures"].to_numpy(),
            "shorter side of a picture, pixels": np.minimum(widths, heights),
            "bytes of pictures": self.table["bytes"].to_numpy(),
        }


@dataclass(frozen=True, kw_only=True)
class Diff:
    """What sets `after` apart from `before`.

    added: places in `after`. removed: places in `before`. changed: places of a key in both, other bytes.
    outcomes: (before, after) of input rows whose outcome differs -> how many, and file, row and reason of one.
    rows: input rows in both, in `before` only, in `after` only.
    """

    before: Side
    after: Side
    added: NDArray[np.int64]
    removed: NDArray[np.int64]
    changed: tuple[NDArray[np.int64], NDArray[np.int64]]
    same: int
    outcomes: dict[tuple[str, str], tuple[int, str]]
    rows: tuple[int, int, int]

    @property
    def equal(self) -> bool:
        """Whether the records are the same."""
        return not (len(self.added) or len(self.removed) or len(self.changed[0]))


def compare(before: Path, after: Path, *, store: Path | None = None) -> Diff:
    """Compare two folders.

    Args:  store: where the corpora of selections lie, if not in <root>/corpora.
    Raises:
        ValueError: one is neither a corpus nor a selection.
    """
    one, other = _side(before, store), _side(after, store)
    there = _places(other.table["key"], one.table["key"])  # of each record of `after` in `before`, -1 where it is new
    kept = np.flatnonzero(there >= 0)
    old = one.table["sha256"].take(pa.array(there[kept]))
    differs = _arrow.not_equal(other.table["sha256"].take(pa.array(kept)), old).to_numpy()
    gone = np.ones(one.table.num_rows, bool)
    gone[there[kept]] = False
    outcomes, rows = _ledgers(one.ledger, other.ledger)
    return Diff(
        before=one,
        after=other,
        added=np.flatnonzero(there < 0),
        removed=np.flatnonzero(gone),
        changed=(there[kept][differs], kept[differs]),
        same=int((~differs).sum()),
        outcomes=outcomes,
        rows=rows,
    )


def lines(diff: Diff) -> Iterator[str]:
    """The comparison as text."""
    before, after = diff.before, diff.after
    yield f"{before.folder.name} -> {after.folder.name}"
    if diff.equal:
        yield f"the same {diff.same} records"
    else:
        yield (
            f"records: {len(diff.added)} added, {len(diff.removed)} removed, {len(diff.changed[0])} changed, "
            f"{diff.same} the same"
        )
    for name, side, places in (
        ("added", after, diff.added),
        ("removed", before, diff.removed),
        ("changed", after, diff.changed[1]),
    ):
        if len(places):
            keys = side.table["key"].take(pa.array(places[:_SHOWN])).to_pylist()
            more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
            yield f"  {name}: {', '.join(keys)}{more}"
    both, gone, new = diff.rows
    if gone or new or diff.outcomes:
        yield f"input rows: {both} in both, {gone} in the first only, {new} in the second only"
    for (old, now), (count, example) in sorted(diff.outcomes.items()):
        yield f"  {count} {old} -> {now}: {example}"
    for told in _recipes(diff):
        yield f"recipe: {told}"
    for told in _inputs(diff):
        yield f"input: {told}"
    for row in tasks(diff):
        yield (
            f"{row['task']}: {row['before']} -> {row['after']} records, "
            f"{row['share_before']:.2%} -> {row['share_after']:.2%} ({row['shift']:+.2f} points)"
        )
    for row in sizes(diff):
        if row["before"] != row["after"]:
            yield f"{row['name']}: " + ", ".join(
                f"{name} {old:g} -> {now:g}"
                for name, old, now in zip(row["columns"], row["before"], row["after"], strict=True)
            )


def page(diff: Diff, out: Path) -> Path:
    """The comparison as one page that opens without a network; returns its path."""
    before, after = diff.before, diff.after
    changed = zip(*(places[:_SHOWN].tolist() for places in diff.changed), strict=True)
    return report.render(
        out,
        "diff.html",
        before=before.folder.name,
        after=after.folder.name,
        diff=diff,
        counts={"added": len(diff.added), "removed": len(diff.removed), "changed": len(diff.changed[0])},
        recipe=list(_recipes(diff)),
        inputs=list(_inputs(diff)),
        tasks=tasks(diff),
        sizes=sizes(diff),
        charts=list(_charts(diff)),
        drops=_drops(diff),
        examples={
            "Added": [report.example(after.corpus.record(place)) for place in diff.added[:_SHOWN].tolist()],
            "Removed": [report.example(before.corpus.record(place)) for place in diff.removed[:_SHOWN].tolist()],
        },
        pairs=[
            (report.example(before.corpus.record(old)), report.example(after.corpus.record(now)))
            for old, now in changed
        ],
    )


def tasks(diff: Diff) -> list[dict[str, Any]]:
    """By task: records and share in both, the shift in percentage points."""
    counts = [Counter(side.table["task"].to_pylist()) for side in (diff.before, diff.after)]
    rows = []
    for task in sorted(counts[0] | counts[1]):
        shares = [count[task] / max(1, count.total()) for count in counts]
        rows.append(
            {
                "task": task,
                "before": counts[0][task],
                "after": counts[1][task],
                "share_before": shares[0],
                "share_after": shares[1],
                "shift": 100 * (shares[1] - shares[0]),
            }
        )
    return rows


def sizes(diff: Diff) -> list[dict[str, Any]]:
    """By what is measured: mean, quantiles and largest in both."""
    columns = ["mean", *(f"{100 * q:.0f} %" for q in _QUANTILES), "largest"]
    before, after = diff.before.sizes(), diff.after.sizes()
    return [
        {"name": name, "columns": columns, "before": _summary(before[name]), "after": _summary(after[name])}
        for name in before
    ]


def _summary(values: NDArray[Any]) -> list[float]:
    if not len(values):
        return [0.0] * (2 + len(_QUANTILES))
    return [
        round(float(each), 1)
        for each in (values.mean(), *np.quantile(values, _QUANTILES, method="lower"), values.max())
    ]


def _charts(diff: Diff) -> Iterator[dict[str, Any]]:
    """Histograms of what varies, in shares of records: bars of both over the same bins."""
    before, after = diff.before.sizes(), diff.after.sizes()
    for name, old in before.items():
        both = np.concatenate([old, after[name]])
        if not len(both) or both.min() == both.max():
            continue
        top = float(np.quantile(both, 0.99, method="higher"))
        bounds = np.linspace(float(both.min()), max(top, float(both.min()) + 1), _BINS + 1)
        shares = [
            np.histogram(np.minimum(each, bounds[-1]), bounds)[0] / max(1, len(each)) for each in (old, after[name])
        ]
        highest = max(float(share.max()) for share in shares)
        yield {
            "name": name,
            "low": bounds[0],
            "high": bounds[-1],
            "highest": highest,
            "bars": [[float(value) / highest for value in share] for share in shares],
        }


def _drops(diff: Diff) -> list[tuple[str, str, int, int]]:
    """Outcome, kind of reason, rows before and after; most frequent ones first."""
    before, after = (
        {(drop.outcome, drop.kind): drop.rows for drop in index.drops(side.corpus.folder)}
        for side in (diff.before, diff.after)
    )
    rows = [(*kind, before.get(kind, 0), after.get(kind, 0)) for kind in {**before, **after}]
    return sorted(rows, key=lambda row: (-row[3], -row[2], row[:2]))


def _side(folder: Path, store: Path | None) -> Side:
    if not is_file(folder / "selection.parquet"):
        return Side(folder=folder, corpus=BuiltCorpus(folder))
    rows, of = selection.read(folder), selection.corpus_of(folder)
    return Side(folder=folder, corpus=BuiltCorpus((store or folder.parent.parent / "corpora") / of, rows))


def _places(wanted: pa.ChunkedArray, held: pa.ChunkedArray) -> NDArray[np.int64]:
    """Where each of the wanted is among the held, -1 where it is not."""
    return _arrow.fill_null(_arrow.index_in(wanted, value_set=held), -1).to_numpy().astype(np.int64)


def _ledgers(before: pa.Table, after: pa.Table) -> tuple[dict[tuple[str, str], tuple[int, str]], tuple[int, int, int]]:
    """Input rows whose outcome differs, by outcomes; how many rows are in both, in the first, in the second only."""
    names = [
        _arrow.binary_join_element_wise(each["file"], each["row"].cast(pa.string()), "\0") for each in (before, after)
    ]
    there = _places(names[1], names[0])
    kept = np.flatnonzero(there >= 0)
    old, now = before["outcome"].take(pa.array(there[kept])), after["outcome"].take(pa.array(kept))
    outcomes: dict[tuple[str, str], tuple[int, str]] = {}
    for place in np.flatnonzero(_arrow.not_equal(old, now).to_numpy()):
        pair = old[place].as_py(), now[place].as_py()
        count, example = outcomes.get(pair, (0, ""))
        if not count:
            row = after.slice(int(kept[place]), 1).to_pylist()[0]
            reason = row["reason"] or before["reason"][int(there[kept[place]])].as_py()
            example = f"{row['file']} row {row['row']}, {reason}"
        outcomes[pair] = count + 1, example
    both = len(kept)
    return outcomes, (both, before.num_rows - both, after.num_rows - both)


def _recipes(diff: Diff) -> Iterator[str]:
    yield from differences(diff.before.corpus.manifest["step"], diff.after.corpus.manifest["step"])
    encoders = [side.corpus.manifest["encoder"] for side in (diff.before, diff.after)]
    if encoders[0] != encoders[1]:
        yield f"encoder is {encoders[1]}, was {encoders[0]}"


def _inputs(diff: Diff) -> Iterator[str]:
    before, after = (
        {each["file"]: each["splits_sha256"] for each in side.corpus.manifest["inputs"]}
        for side in (diff.before, diff.after)
    )
    for file in {**before, **after}:
        if before.get(file) != after.get(file):
            yield f"{file} {'is new' if file not in before else 'is gone' if file not in after else 'changed'}"
