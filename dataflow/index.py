"""A built corpus on disk: index, ledger, manifest. The manifest is written last; a folder with one never changes.

    00000.tar 00000.tar.idx ... index.parquet ledger.parquet manifest.json

The root digest is the sha256 of what `sha256sum *.tar *.tar.idx index.parquet ledger.parquet` prints, sorted by name:
it says that two corpora are the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataflow import adopt, energon, folders, shards, stores
from dataflow.build import LedgerRow, Receipt, sync, write_atomically
from dataflow.cache import Cache, Part
from dataflow.media import ENCODER
from dataflow.record import Lineage, Record
from dataflow.stores import StoreError

SCHEMA = 2  # of the manifest and the two tables
_GROUP = 1 << 20  # rows of a row group: what parquet's writers agree on, and most that a commit holds in memory
_BATCH = 1 << 16  # rows read at a time
_MAPPED = 8  # of a cache one part in so many may be mapped: what it gives up stays on the disk while it is mapped
_OUTCOMES = ("kept", "filtered", "duplicate", "corrupt", "missing")
_BESIDE = ("manifest.json", "report.html", energon.FOLDER)  # part of a corpus' folder, not of its root digest
_SOUND: set[tuple[str, int, int, int, int]] = set()  # files that this process hashed: their sha256, and which they are

Shards = Literal["trusted", "checked"]
"""Those of a folder: read as they are, or hashed before any of their records is read. Those of a store always are."""

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


class NotAsBuilt(OSError):
    """A shard is gone or not what was built: no fault of a record, so no other record takes its place."""


def commit(
    folder: Path,
    receipts: Iterable[Receipt],
    *,
    step: dict[str, Any],
    recipe_key: str,
    max_dropped: float,
    max_missing: float,
    file_of: Callable[[Receipt], str] = lambda receipt: shards.name(receipt.number),
) -> dict[str, Any]:
    """Write index and ledger beside all shards of a corpus, then its manifest. Returns the manifest.

    Receipts are taken one by one and their rows written as they come, so that a corpus may be larger than memory.

    Args:
        receipts: of every shard, in order.
        max_dropped: share of the input rows that may give no record although their files are there.
        max_missing: share of the input rows that may give no record because a file they name is not there.
        file_of: what the file of a shard is called where it lies; the root digest is over the usual names.
    Raises:
        TooManyDropped: more rows than that gave none; the message has the main reasons and the limit's name.
        ValueError: no rows at all, or an earlier corpus that shards were linked from no longer is what it was.
        OSError: the disk fails.
    """
    earlier: dict[str, _Earlier] = {}
    counts = dict.fromkeys(("rows", "candidates", *_OUTCOMES), 0)
    lost = {"max_missing": 0, "max_dropped": 0}  # input rows, by the limit that they count against
    files: dict[str, Any] = {}  # input files in order, a digest over the digests of their splits
    made: list[dict[str, Any]] = []
    sha256: dict[str, str] = {}
    with Rows(folder / "index.parquet", INDEX) as index_rows, Rows(folder / "ledger.parquet", LEDGER) as ledger_rows:
        for number, receipt in enumerate(receipts):
            assert receipt.number == number
            if receipt.linked and receipt.linked not in earlier:
                earlier[receipt.linked] = _Earlier(folders.folder(receipt.linked), folder)
            if receipt.linked:
                entries, ledger = earlier[receipt.linked].index(number), earlier[receipt.linked].ledger(number)
            else:
                entries, ledger = pa.table(receipt.entries, INDEX), pa.table(receipt.ledger, LEDGER)
            index_rows.add(entries)
            ledger_rows.add(ledger)
            counts["rows"] += ledger.num_rows
            for name in ("candidates", *_OUTCOMES):
                counts[name] += int(ledger[name].to_numpy().sum())
            outcomes = Counter(ledger["outcome"].to_pylist())
            lost["max_missing"] += outcomes["missing"]
            lost["max_dropped"] += ledger.num_rows - outcomes["missing"] - outcomes["kept"]
            files.setdefault(receipt.split.file, hashlib.sha256()).update(receipt.input_sha256.encode())
            sha256[shards.name(number)] = receipt.sha256
            sha256[shards.name(number) + ".idx"] = receipt.idx_sha256
            name, file = shards.name(number), file_of(receipt)
            made.append(
                {
                    "name": name,
                    **({} if file == name else {"file": file}),
                    "size": receipt.size,
                    "sha256": receipt.sha256,
                    "idx_sha256": receipt.idx_sha256,
                    "key": receipt.key,
                    "records": entries.num_rows,
                }
            )
    if not counts["rows"]:
        raise ValueError(f"no input rows for {folder.name}: its files are empty; look at what --data names")
    assert counts["candidates"] == sum(counts[name] for name in _OUTCOMES)
    assert counts["kept"] == sum(shard["records"] for shard in made)
    for name, limit in (("max_missing", max_missing), ("max_dropped", max_dropped)):
        if lost[name] > limit * counts["rows"]:
            _too_many(folder, name, limit, lost[name], counts["rows"])
    for file in ("index.parquet", "ledger.parquet"):
        sha256[file] = shards.sha256(folder / file)
    manifest = {
        "schema": SCHEMA,
        "root_digest": root_digest(sha256),
        "recipe_key": recipe_key,
        "step": step,
        "encoder": ENCODER,
        "inputs": [{"file": file, "splits_sha256": digest.hexdigest()} for file, digest in files.items()],
        "counts": counts,
        "shards": made,
        "tables": {file: sha256[file] for file in ("index.parquet", "ledger.parquet")},
    }
    if step.get("shards") != "adopted":  # an adopted tar holds what its source makes records of, not records
        named = [shard["file"] for shard in made if "file" in shard]
        energon.write(folder, [shard["records"] for shard in made], manifest["root_digest"], files=named)
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest


def _too_many(folder: Path, name: str, limit: float, lost: int, rows: int) -> NoReturn:
    """Stop the build with the main reasons of the rows that count against a limit; the tables are not kept."""
    counted = [drop for drop in drops(folder) if (drop.outcome == "missing") == (name == "max_missing")]
    reasons = "; ".join(f"{drop.rows} x {drop.example.reason}" for drop in counted[:3])
    for file in ("index.parquet", "ledger.parquet"):
        (folder / file).unlink()
    raise TooManyDropped(f"{lost} of {rows} rows would be dropped, over {name}={limit}: {reasons}", name)


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
        manifest = json.loads(stores.read(path))
    except (FileNotFoundError, NotADirectoryError):
        why = "it has no manifest.json" if folders.is_folder(folder) else "there is no such folder"
        raise ValueError(f"{folder} is no built corpus: {why}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} does not parse ({error}): build the corpus again") from None
    return manifest if isinstance(manifest, dict) else {}


def verify(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Re-hash every file of a corpus: (file name, None or what is wrong with it), one by one. A store is read through.

    Raises:
        ValueError: no manifest.
    """
    manifest = read_manifest(folder)
    promised = {**manifest["tables"]}
    files = {name: name for name in promised}
    for shard in manifest["shards"]:
        for suffix, digest in (("", shard["sha256"]), (".idx", shard["idx_sha256"])):
            promised[shard["name"] + suffix] = digest
            files[shard["name"] + suffix] = shards.file_of(shard) + suffix
    lies = set(folders.names(folder))
    there = lies if folders.is_remote(folder) else {name for name in lies if (folder / name).is_file()}
    for name, digest in sorted(promised.items()):
        file = files[name]
        if name != Path(name).name or file != Path(file).name:
            yield "manifest.json", f"names a file elsewhere, {file!r}"
        elif file not in there:
            yield file, "is missing"
        elif shards.sha256(folder / file) != digest:
            yield file, "is not the bytes that were built (sha256 differs)"
        else:
            yield file, None
    strangers = lies - set(files.values()) - set(_BESIDE)
    for name in sorted(strangers):
        yield name, "is not part of this corpus"
    if root_digest(promised) != manifest["root_digest"]:
        yield "manifest.json", "does not agree with its own root digest"


class BuiltCorpus:
    """A finished corpus, read record by record from memory-mapped shards. Not to be shared by processes or threads.

    Args:
        folder: of the corpus, of this machine or of a store.
        rows: int64[n], the index rows to offer, None for all: a selection.
        cache: what a store's shards are brought to when they are asked for.
        shards_are: checked ones are hashed when the first of their records is read, once by a process.
    Raises:
        ValueError: no finished corpus there.
    """

    def __init__(
        self,
        folder: Path,
        rows: NDArray[np.int64] | None = None,
        *,
        cache: Cache | None = None,
        shards_are: Shards = "trusted",
    ) -> None:
        self.folder = folder
        self.cache = cache or Cache()
        self.shards_are: Shards = shards_are
        self.manifest = read_manifest(folder)
        records = self.manifest["counts"]["kept"]
        self.rows = np.arange(records) if rows is None else rows
        if len(self.rows) and not 0 <= int(self.rows.min()) <= int(self.rows.max()) < records:
            raise ValueError(f"a selection names rows beyond the {records} of {folder}: select again")
        most = None
        if folders.is_remote(folder):
            largest = max((shard["size"] for shard in self.manifest["shards"]), default=1)
            most = self.cache.limit // _MAPPED // largest
        self._maps = shards.Maps(self._stream, most)
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
    def table(self) -> pa.Table:
        """Its index, read when it is asked for: what is known by the manifest alone costs nothing.

        Raises:
            ValueError: it does not read, or is not the one that the manifest counted.
        """
        path = self.folder / "index.parquet"
        try:
            table = self._table(path.name, INDEX)
        except FileNotFoundError as error:
            raise ValueError(f"{path} does not read ({error}): run interlace verify {self.folder}") from None
        if table.num_rows != self.manifest["counts"]["kept"]:
            raise ValueError(f"{path} has {table.num_rows} rows, not as built: run interlace verify {self.folder}")
        return table

    @property
    def ledger(self) -> pa.Table:
        """What became of every input row, read anew."""
        return self._table("ledger.parquet", LEDGER)

    def _table(self, file: str, schema: pa.Schema) -> pa.Table:
        part = Part(path=self.folder / file, sha256=self.manifest["tables"][file])
        if not folders.is_remote(self.folder):
            if (found := shards.sha256(part.path)) != part.sha256:
                raise ValueError(_told(part, found))
            return _read(part.path, schema)
        with self.cache.opened(part) as stream:
            return _read(stream, schema)

    @property
    def remote(self) -> bool:
        """Whether its shards are brought here from a store."""
        return folders.is_remote(self.folder)

    def shard(self, place: int) -> int:
        """The shard of the record at a place of the selection."""
        return int(self._columns["shard"][self.rows[place]])

    def bring(self, shard: int) -> None:
        """Bring a shard of a store to its cache, ahead of its use; for any thread.

        Raises: as `Cache.bring`.
        """
        self.cache.bring(self.part(shard))

    def part(self, shard: int) -> Part:
        """The file of a shard: where, and what it must hold."""
        told = self.manifest["shards"][shard]
        if shards.file_of(told) != Path(shards.file_of(told)).name:
            raise StoreError(f"{self.folder / 'manifest.json'} names a file elsewhere, {shards.file_of(told)!r}")
        return Part(path=self.folder / shards.file_of(told), sha256=told["sha256"], size=told["size"])

    def _stream(self, shard: int) -> BinaryIO:
        try:
            part = self.part(shard)
            if folders.is_remote(self.folder):
                return self.cache.opened(part)
        except StoreError as error:
            raise NotAsBuilt(str(error)) from None
        stream = part.path.open("rb")
        if self.shards_are == "checked":
            try:
                _check(part, stream)
            except OSError:
                stream.close()
                raise
        return stream

    @cached_property
    def _columns(self) -> dict[str, NDArray[Any]]:
        # By DLPack: Arrow's own to_numpy imports pandas, a quarter of a second before the first record.
        return {name: np.from_dlpack(self.table[name].combine_chunks()) for name in ("shard", "offset", "size")}

    @cached_property
    def _keys(self) -> pa.Array:
        return self.table["key"].combine_chunks()

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
    def task(self) -> pa.Array:
        """The task of every record offered, in their order."""
        return self.table["task"].combine_chunks().take(pa.array(self.rows))

    @cached_property
    def tasks(self) -> dict[str, int]:
        """Records offered per task."""
        return dict(sorted(Counter(self.task.to_pylist()).items()))

    def key(self, place: int) -> str:
        """The key at a place of the selection."""
        return self._keys[int(self.rows[place])].as_py()

    def places(self, key: str) -> list[int]:
        """Where a key stands in the selection; nowhere, if it is not offered."""
        row = pc.index(self._keys, key).as_py()
        return np.flatnonzero(self.rows == row).tolist() if row >= 0 else []

    def record(self, place: int) -> Record:
        """The record at a place of the selection.

        Raises:
            ValueError: its bytes are not what the index says; the message names shard and key.
            OSError: the disk or the store fails, the shard is gone, or all of it is not what was built (NotAsBuilt):
                never the record's fault.
        """
        row, columns = int(self.rows[place]), self._columns
        shard, offset, size = int(columns["shard"][row]), int(columns["offset"][row]), int(columns["size"][row])
        key = self._keys[row].as_py()
        try:
            data = memoryview(self._maps[shard])[offset : offset + size]
            if len(data) != size:
                raise ValueError("the shard ends before it does")
            if self._adopted is None:
                return shards.read(data, key)
            lineage = Lineage(file=self.manifest["inputs"][shard]["file"], row=int(key[-4:]))
            return adopt.read(data, key, lineage, self._adopted)
        except NotAsBuilt:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, OSError, tarfile.TarError) as error:
            part, remote = self.part(shard), folders.is_remote(self.folder)
            if remote and isinstance(error, OSError):
                raise
            kept = f", kept in {self.cache.folder / part.sha256}" if remote else ""
            why = error.strerror if isinstance(error, OSError) else error
            told = f"record {key} cannot be read from {part.path}{kept} ({why}): run interlace verify {self.folder}"
            if isinstance(error, OSError):
                raise OSError(error.errno, told) from None
            raise ValueError(told) from None


def _read(file: Path | BinaryIO, schema: pa.Schema) -> pa.Table:
    """A table of ours. pq.read_table would import pandas first, and take five times as long until the first record."""
    with pq.ParquetFile(file) as opened:
        return opened.read().cast(schema)


def _check(part: Part, stream: BinaryIO) -> None:
    """Hash an opened shard, unless this process has, and it is the same file still."""
    status = os.fstat(stream.fileno())
    file = part.sha256, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    if file not in _SOUND:
        reading: Any = stream
        if (found := hashlib.file_digest(reading, "sha256").hexdigest()) != part.sha256:
            raise NotAsBuilt(_told(part, found))
        _SOUND.add(file)


def _told(part: Part, found: str) -> str:
    return (
        f"{part.path} is not the bytes that were built (sha256 {found[:12]} for {part.sha256[:12]}): "
        f"run interlace verify {part.path.parent}, remove that folder and build it again"
    )


@dataclass(frozen=True, kw_only=True)
class Drop:
    """A kind of reason in a ledger: how many rows, and one of them."""

    outcome: str
    kind: str
    rows: int
    example: LedgerRow


def drops(folder: Path) -> list[Drop]:
    """Why rows of a corpus were dropped, most frequent first; reasons that differ in names and numbers are one kind."""
    return tally(_lost(folder / "ledger.parquet"))


def _lost(ledger: Path) -> Iterator[LedgerRow]:
    """The rows of a ledger that gave no record, some at a time."""
    for batch in pq.ParquetFile(stores.readable(ledger)).iter_batches(batch_size=_BATCH):
        for row in pa.Table.from_batches([batch]).filter(pc.field("outcome") != "kept").to_pylist():
            yield LedgerRow(**row)


def tally(rows: Iterable[LedgerRow]) -> list[Drop]:
    """The kinds of reasons among ledger rows, most frequent first."""
    kinds: dict[tuple[str, str], tuple[int, LedgerRow]] = {}
    for row in rows:
        if row.outcome != "kept":
            kind = row.outcome, reason_kind(row.reason)
            count, example = kinds.get(kind, (0, row))
            kinds[kind] = count + 1, example
    ranked = sorted(kinds.items(), key=lambda item: (-item[1][0], item[0]))
    return [
        Drop(outcome=outcome, kind=kind, rows=count, example=example) for (outcome, kind), (count, example) in ranked
    ]


def reason_kind(reason: str) -> str:
    """A reason without what differs from row to row: quoted text, paths, numbers."""
    return re.sub(r"b?'[^']*'|b?\"[^\"]*\"|\S*[/\\]\S*|\d+(x\d+)?", "…", reason)


class _Earlier:
    """Index and ledger of the corpus that shards are linked from, cut by shard: each is asked for once, in order.

    Those in a store are brought into the folder of the new corpus, hidden: what is hidden there is swept away.
    """

    def __init__(self, folder: Path, new: Path) -> None:
        held = {file: folder / file for file in ("index.parquet", "ledger.parquet")}
        promised = read_manifest(folder)["tables"]
        for file, path in held.items():
            if folders.is_remote(folder):
                held[file] = new / f".{folder.name}-{file}"
                folders.get(path, held[file])
            if shards.sha256(held[file]) != promised[file]:
                raise ValueError(f"{path} changed since it was built: remove the folder and build again")
        self._index = _ByShard(held["index.parquet"], INDEX)
        self._ledger = _ByShard(held["ledger.parquet"], LEDGER)

    def index(self, shard: int) -> pa.Table:
        return self._index.take(shard)

    def ledger(self, shard: int) -> pa.Table:
        return self._ledger.take(shard)


class _ByShard:
    """A table in shard order, read some rows at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._batches = pq.ParquetFile(path).iter_batches(batch_size=_BATCH)
        self._held = schema.empty_table()
        self._schema = schema

    def take(self, shard: int) -> pa.Table:
        """The rows of a shard; those of earlier ones are gone."""
        while not self._held.num_rows or self._held["shard"][-1].as_py() <= shard:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._held = pa.concat_tables([self._span(shard, None), pa.Table.from_batches([batch], self._schema)])
        return self._span(shard, shard + 1)

    def _span(self, first: int, end: int | None) -> pa.Table:
        """Of what is held, the rows of these shards."""
        numbers = self._held["shard"].to_numpy()
        start = int(np.searchsorted(numbers, first))
        return self._held.slice(start, None if end is None else int(np.searchsorted(numbers, end)) - start)


class Rows:
    """A table written as its rows come, in the bytes of `write_table` of the whole. On the disk when the block ends."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._held: list[pa.Table] = []
        self._rows = 0  # of these
        self._groups = 0  # written

    def __enter__(self) -> Rows:
        self._stream = self._path.open("wb")
        self._writer = pq.ParquetWriter(self._stream, self._schema, compression="zstd", store_schema=False)
        return self

    def add(self, table: pa.Table) -> None:
        self._held.append(table)
        self._rows += table.num_rows
        while self._rows >= _GROUP:
            self._write(_GROUP)

    def _write(self, rows: int) -> None:
        whole = pa.concat_tables([self._schema.empty_table(), *self._held])
        with shards.of_file(self._path):
            self._writer.write_table(whole.slice(0, rows).combine_chunks(), row_group_size=_GROUP)
        self._groups += 1
        self._held, self._rows = [whole.slice(rows)], self._rows - rows

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            with contextlib.suppress(OSError, pa.ArrowException), self._stream, self._writer:
                return
        with shards.of_file(self._path), self._stream:
            with self._writer:
                if self._rows or not self._groups:
                    self._write(self._rows)
            self._stream.flush()
            os.fsync(self._stream.fileno())
        sync(self._path.parent)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table in one byte form, whatever chunks it came in; it is on the disk when this returns."""
    with Rows(path, table.schema) as rows:
        rows.add(table)
