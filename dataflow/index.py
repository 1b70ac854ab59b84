"""A built corpus on disk: index, ledger, manifest. The manifest is written last; a folder with one never changes.

    00000.tar 00000.tar.idx ... index.parquet ledger.parquet manifest.json

The root digest is the sha256 of what `sha256sum *.tar *.tar.idx index.parquet ledger.parquet` prints, sorted by name:
it says that two corpora are the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataflow import adopt, shards
from dataflow.build import LedgerRow, Receipt, sync, write_atomically
from dataflow.media import ENCODER
from dataflow.record import Lineage, Record

SCHEMA = 2  # of the manifest and the two tables
_OPEN_SHARDS = 256  # memory maps kept at a time by a reader
_OUTCOMES = ("kept", "filtered", "duplicate", "corrupt", "missing")
_BESIDE = ("manifest.json", "report.html", ".nv-meta")  # part of a corpus' folder, not of its root digest

INDEX = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("task", pa.string()),
        ("pictures", pa.int32()),
        ("bytes", pa.int64()),
        ("widths", pa.list_(pa.int32())),
        ("heights", pa.list_(pa.int32())),
        ("text_length", pa.int64()),
        ("sha256", pa.string()),
    ]
)
LEDGER = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("shard", pa.int32()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("candidates", pa.int32()),
        ("kept", pa.int32()),
        ("filtered", pa.int32()),
        ("duplicate", pa.int32()),
        ("corrupt", pa.int32()),
        ("missing", pa.int32()),
    ]
)


class TooManyDropped(ValueError):
    """More rows would be lost than the recipe allows; nothing was committed. `limit` names the field that allows."""

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


def commit(
    folder: Path,
    receipts: Sequence[Receipt],
    *,
    step: dict[str, Any],
    recipe_key: str,
    max_dropped: float,
    max_missing: float,
) -> dict[str, Any]:
    """Write index and ledger of a folder that holds all shards, then its manifest. Returns the manifest.

    Args:
        receipts: of every shard, in order.
        max_dropped: share of the input rows that may give no record although their files are there.
        max_missing: share of the input rows that may give no record because a file they name is not there.
    Raises:
        TooManyDropped: more rows than that gave none; the message has the main reasons and the limit's name.
        ValueError: no rows at all, or an earlier corpus that shards were linked from no longer is what it was.
    """
    assert [receipt.number for receipt in receipts] == list(range(len(receipts)))
    earlier = {name: _Earlier(Path(name)) for name in sorted({r.linked for r in receipts if r.linked})}
    entries, ledger = [], []
    for receipt in receipts:
        if receipt.linked:
            entries.append(earlier[receipt.linked].index(receipt.number))
            ledger.append(earlier[receipt.linked].ledger(receipt.number))
        else:
            entries.append(_table(receipt.entries, INDEX))
            ledger.append(_table(receipt.ledger, LEDGER))
    if not any(table.num_rows for table in ledger):
        raise ValueError(f"no input rows for {folder.name}: its files are empty; look at what --data names")
    index_table, ledger_table = pa.concat_tables(entries), pa.concat_tables(ledger)
    counts = _counts(ledger_table)
    assert counts["candidates"] == sum(counts[name] for name in _OUTCOMES)
    assert counts["kept"] == index_table.num_rows
    outcome = pc.field("outcome")
    _bounded(ledger_table.filter(outcome == "missing"), ledger_table.num_rows, "max_missing", max_missing)
    lost = ledger_table.filter(~outcome.isin(["kept", "missing"]))
    _bounded(lost, ledger_table.num_rows, "max_dropped", max_dropped)
    sha256 = {}
    for receipt in receipts:
        sha256[shards.name(receipt.number)] = receipt.sha256
        sha256[shards.name(receipt.number) + ".idx"] = receipt.idx_sha256
    for file, table in (("index.parquet", index_table), ("ledger.parquet", ledger_table)):
        write_table(folder / file, table)
        sha256[file] = shards.sha256(folder / file)
    manifest = {
        "schema": SCHEMA,
        "root_digest": root_digest(sha256),
        "recipe_key": recipe_key,
        "step": step,
        "encoder": ENCODER,
        "inputs": _inputs(receipts),
        "counts": counts,
        "shards": [
            {
                "name": shards.name(receipt.number),
                "size": receipt.size,
                "sha256": receipt.sha256,
                "idx_sha256": receipt.idx_sha256,
                "key": receipt.key,
                "records": table.num_rows,
            }
            for receipt, table in zip(receipts, entries, strict=True)
        ],
        "tables": {file: sha256[file] for file in ("index.parquet", "ledger.parquet")},
    }
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest


def _bounded(lost: pa.Table, rows: int, name: str, limit: float) -> None:
    """Stop the build with the main reasons when more of its rows are lost than may be."""
    if lost.num_rows > limit * rows:
        found = tally([LedgerRow(**row) for row in lost.to_pylist()])
        reasons = "; ".join(f"{drop.rows} x {drop.example.reason}" for drop in found[:3])
        raise TooManyDropped(f"{lost.num_rows} of {rows} rows would be dropped, over {name}={limit}: {reasons}", name)


def root_digest(sha256: dict[str, str]) -> str:
    """sha256 over `<sha256>  <name>` lines, sorted by name."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sha256.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished corpus.

    Raises:
        ValueError: there is none, or it is of another schema.
    """
    manifest = any_manifest(folder)
    if manifest.get("schema") != SCHEMA:
        raise ValueError(f"{folder / 'manifest.json'} is not a corpus manifest of schema {SCHEMA}: build it again")
    return manifest


def any_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished corpus, of whatever schema.

    Raises:
        ValueError: there is none.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        why = "it has no manifest.json" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"{folder} is no built corpus: {why}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} does not parse ({error}): build the corpus again") from None
    return manifest if isinstance(manifest, dict) else {}


def verify(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Re-hash every file of a corpus: (file name, None or what is wrong with it), one by one.

    Raises:
        ValueError: no manifest.
    """
    manifest = read_manifest(folder)
    promised = {**manifest["tables"]}
    for shard in manifest["shards"]:
        promised[shard["name"]] = shard["sha256"]
        promised[shard["name"] + ".idx"] = shard["idx_sha256"]
    for name, digest in sorted(promised.items()):
        if name != Path(name).name:
            yield "manifest.json", f"names a file elsewhere, {name!r}"
            continue
        path = folder / name
        if not path.is_file():
            yield name, "is missing"
        elif shards.sha256(path) != digest:
            yield name, "is not the bytes that were built (sha256 differs)"
        else:
            yield name, None
    strangers = {path.name for path in folder.iterdir()} - set(promised) - set(_BESIDE)
    for name in sorted(strangers):
        yield name, "is not part of this corpus"
    if root_digest(promised) != manifest["root_digest"]:
        yield "manifest.json", "does not agree with its own root digest"


class BuiltCorpus:
    """A finished corpus, read record by record from memory-mapped shards. Not to be shared by processes or threads.

    Args:
        folder: of the corpus.
        rows: int64[n], the index rows to offer, None for all: a selection.
    Raises:
        ValueError: no finished corpus there.
    """

    def __init__(self, folder: Path, rows: NDArray[np.int64] | None = None) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        try:
            self.table = pq.read_table(folder / "index.parquet", schema=INDEX)
        except (pa.ArrowException, FileNotFoundError) as error:
            raise ValueError(
                f"{folder / 'index.parquet'} does not read ({error}): run interlace verify {folder}"
            ) from None
        self.rows = np.arange(self.table.num_rows) if rows is None else rows
        if len(self.rows) and not 0 <= int(self.rows.min()) <= int(self.rows.max()) < self.table.num_rows:
            raise ValueError(f"a selection names rows beyond the {self.table.num_rows} of {folder}: select again")
        self._columns = {name: self.table[name].to_numpy() for name in ("shard", "offset", "size")}
        self._keys = self.table["key"].combine_chunks()
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        step = self.manifest["step"]
        self._adopted = adopt.source(step["source"]) if step.get("shards") == "adopted" else None
        if self._adopted and self.manifest["encoder"] != ENCODER:
            made = self.manifest["encoder"]
            raise ValueError(f"{folder} was adopted with {made}, this is {ENCODER}: build the corpus again")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        """Folder name: source and step key."""
        return self.folder.name

    @cached_property
    def digest(self) -> str:
        """Names the records offered and their order: root digest and selection."""
        content = hashlib.sha256(self.manifest["root_digest"].encode())
        content.update(np.ascontiguousarray(self.rows, "<i8").tobytes())
        return content.hexdigest()

    @cached_property
    def keys(self) -> list[str]:
        """The keys offered."""
        return self.table["key"].take(pa.array(self.rows)).to_pylist()

    @cached_property
    def tasks(self) -> dict[str, int]:
        """Records offered per task."""
        return dict(sorted(Counter(self.table["task"].take(pa.array(self.rows)).to_pylist()).items()))

    def record(self, place: int) -> Record:
        """The record at a place of the selection.

        Raises:
            ValueError: the shard is not what the index says; the note names shard and key.
        """
        row = int(self.rows[place])
        shard, offset, size = (int(self._columns[name][row]) for name in ("shard", "offset", "size"))
        key = self._keys[row].as_py()
        try:
            data = memoryview(self._map(shard))[offset : offset + size]
            if self._adopted is None:
                return shards.read(data, key)
            lineage = Lineage(file=self.manifest["inputs"][shard]["file"], row=int(key[-4:]))
            return adopt.read(data, key, lineage, self._adopted)
        except (ValueError, TypeError, LookupError, AttributeError, OSError, tarfile.TarError) as error:
            raise ValueError(
                f"record {key} cannot be read from {self.folder / shards.name(shard)} ({error}): "
                f"run interlace verify {self.folder}"
            ) from None

    def _map(self, shard: int) -> mmap.mmap:
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        if len(self._maps) >= _OPEN_SHARDS:
            self._maps.popitem(last=False)
        with (self.folder / shards.name(shard)).open("rb") as stream:
            self._maps[shard] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]


@dataclass(frozen=True, kw_only=True)
class Drop:
    """A kind of reason in a ledger: how many rows, and one of them."""

    outcome: str
    kind: str
    rows: int
    example: LedgerRow


def drops(folder: Path) -> list[Drop]:
    """Why rows of a corpus were dropped, most frequent first; reasons that differ in names and numbers are one kind."""
    lost = pq.read_table(folder / "ledger.parquet", schema=LEDGER).filter(pc.field("outcome") != "kept")
    return tally([LedgerRow(**row) for row in lost.to_pylist()])


def tally(rows: Sequence[LedgerRow]) -> list[Drop]:
    """The kinds of reasons among ledger rows, most frequent first."""
    kinds: dict[tuple[str, str], list[LedgerRow]] = {}
    for row in rows:
        if row.outcome != "kept":
            kinds.setdefault((row.outcome, reason_kind(row.reason)), []).append(row)
    ranked = sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    return [Drop(outcome=outcome, kind=kind, rows=len(held), example=held[0]) for (outcome, kind), held in ranked]


def reason_kind(reason: str) -> str:
    """A reason without what differs from row to row: quoted text, paths, numbers."""
    return re.sub(r"b?'[^']*'|b?\"[^\"]*\"|\S*[/\\]\S*|\d+(x\d+)?", "…", reason)


class _Earlier:
    """Index and ledger of the corpus that shards were linked from, cut by shard. Both tables are in shard order."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        for file, digest in manifest["tables"].items():
            if shards.sha256(folder / file) != digest:
                raise ValueError(f"{folder / file} changed since it was built: remove the folder and build again")
        self._index = pq.read_table(folder / "index.parquet", schema=INDEX)
        self._ledger = pq.read_table(folder / "ledger.parquet", schema=LEDGER)
        bounds = np.arange(len(manifest["shards"]) + 1)
        self._index_starts = np.searchsorted(self._index["shard"].to_numpy(), bounds)
        self._ledger_starts = np.searchsorted(self._ledger["shard"].to_numpy(), bounds)

    def index(self, shard: int) -> pa.Table:
        first, end = self._index_starts[shard : shard + 2]
        return self._index.slice(first, end - first)

    def ledger(self, shard: int) -> pa.Table:
        first, end = self._ledger_starts[shard : shard + 2]
        return self._ledger.slice(first, end - first)


def _table(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """Dataclasses as a table, a column at a time."""
    return pa.table({name: [getattr(row, name) for row in rows] for name in schema.names}, schema)


def _counts(ledger: pa.Table) -> dict[str, int]:
    names = ("candidates", *_OUTCOMES)
    sums = {name: int(ledger[name].to_numpy().sum()) for name in names}
    return {"rows": ledger.num_rows, **sums}


def _inputs(receipts: Sequence[Receipt]) -> list[dict[str, Any]]:
    """Input files in order, each with a digest over its splits' digests."""
    files: dict[str, Any] = {}
    for receipt in receipts:
        files.setdefault(receipt.split.file, hashlib.sha256()).update(receipt.input_sha256.encode())
    return [{"file": file, "splits_sha256": digest.hexdigest()} for file, digest in files.items()]


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table in one byte form, whatever chunks it came in; it is on the disk when this returns."""
    with path.open("wb") as stream:
        pq.write_table(table.combine_chunks(), stream, compression="zstd", store_schema=False)
        stream.flush()
        os.fsync(stream.fileno())
    sync(path.parent)
