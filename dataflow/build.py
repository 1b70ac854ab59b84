"""One shard from one split: a pure function of the split's rows, the source and the filters.

    split -> rows -> candidates -> records -> filters -> shard + index rows
                 `---------------------------------> one ledger row per input row, always

It knows no cluster: whoever runs it, wherever and how often, the bytes are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from dataflow import folders, readers, shards, stores
from dataflow.filters import Filter
from dataflow.media import Corrupt, LeftOut, Missing
from dataflow.readers import Row, Split
from dataflow.record import Candidate, Lineage, Record, Text, key
from dataflow.roots import Roots
from dataflow.sources import Read, Source

# What a source may trip over in a row it did not foresee. The disk's own failures (OSError) stop the build instead.
_ROW_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
)
_RECEIPT = re.compile(r"\.\d{5,}\.receipt\.json")
_REASON = 500  # characters of a ledger's reason, so that no row can blow up the table


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """What became of one input row. candidates = kept + filtered + duplicate + corrupt + missing.

    missing: a file that the row names is not there.
    """

    file: str
    row: int
    shard: int
    outcome: str  # kept when any candidate is, else filtered, else corrupt, else missing
    reason: str
    candidates: int
    kept: int
    filtered: int
    duplicate: int
    corrupt: int
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a finished shard leaves for the commit. `linked` names the earlier folder that its bytes come from.

    input_sha256 is of the split's rows; key names (rows, recipe) and so the shard's bytes.
    entries, ledger: by column a value per record, per input row; of a linked shard they are read in that folder.
    """

    number: int
    split: Split
    key: str
    input_sha256: str
    size: int
    sha256: str
    idx_sha256: str
    entries: dict[str, list[Any]]
    ledger: dict[str, list[Any]]
    linked: str | None = None


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All that a worker needs to build shards of one corpus; picklable.

    recipe_key: of the corpus recipe. earlier: shard key -> folder of a finished corpus that holds the same shard.
    """

    source: Source
    filters: tuple[Filter, ...]
    roots: Roots
    recipe_key: str
    earlier: dict[str, str]

    def build(self, split: Split, number: int, folder: Path) -> None:
        """Put shard, .idx and receipt into `folder`, each by rename, the receipt last.

        Whoever does it again meanwhile, on this machine or another, puts down the same bytes.

        Raises:
            ValueError: a record breaks its contract (a bug of the source), with file and row in its notes; an earlier
                shard is damaged.
            OSError: the disk fails.
        """
        input_sha256, rows = self._read(split)
        shard_key = name_of(self.recipe_key, number, split, input_sha256)
        final = folder / shards.name(number)
        if shard_key in self.earlier:
            receipt = _link(folders.folder(self.earlier[shard_key]), final, number, split, shard_key, input_sha256)
        else:
            ledger: list[LedgerRow] = []
            draft = temporary(final)
            try:
                shard = shards.write(self._records(rows, number, split, ledger), draft, number)
                draft.rename(final)
                Path(f"{draft}.idx").rename(f"{final}.idx")
            except BaseException:
                _drop(draft, Path(f"{draft}.idx"))  # on a full disk above all
                raise
            receipt = Receipt(
                number=number,
                split=split,
                key=shard_key,
                input_sha256=input_sha256,
                size=shard.size,
                sha256=shard.sha256,
                idx_sha256=shard.idx_sha256,
                entries=columns(shards.Entry, shard.entries),
                ledger=columns(LedgerRow, ledger),
            )
        write_receipt(folder, receipt)

    def _read(self, split: Split) -> tuple[str, Iterator[Row]]:
        if split.problem is None and (problem := self.roots.unreadable(self.source.name, split.file)):
            raise ValueError(f"{split.file}: {problem}; it was readable when its splits were planned: build again")
        return readers.rows(self.roots.source(self.source.name), split)

    def preview(self, split: Split, number: int) -> tuple[list[Record], list[LedgerRow]]:
        """The records and ledger rows of a split; nothing is written."""
        _, rows = self._read(split)
        ledger: list[LedgerRow] = []
        return list(self._records(rows, number, split, ledger)), ledger

    def _records(self, rows: Iterator[Row], number: int, split: Split, ledger: list[LedgerRow]) -> Iterator[Record]:
        read = self.roots.files(self.source.name, split.file)
        for row in rows:
            try:
                kept, verdicts = 0, list(self._verdicts(row, number, split, read))
            except Exception as error:
                error.add_note(f"{type(self.source).__name__}, row {row.number} of {split.file}")
                raise
            for verdict in verdicts:
                if isinstance(verdict, Record):
                    kept += 1
                    yield verdict
            ledger.append(_ledger_row(split.file, row.number, number, kept, verdicts))

    def _verdicts(self, row: Row, number: int, split: Split, read: Read) -> Iterator[Record | _Filtered | Corrupt]:
        """A record, or why not, for each candidate of the row; at least one."""
        if row.problem is not None:
            yield Corrupt(row.problem)
            return
        place = row.number - split.first
        first_key = key(self.source.name, number, place)
        try:
            candidates = list(self.source.candidates(row.value, first_key, read))
        except Corrupt as problem:
            candidates = [problem]
        except _ROW_ERRORS as error:
            candidates = [Corrupt(f"{type(self.source).__name__} failed on this row: {type(error).__name__}: {error}")]
        for index, candidate in enumerate(candidates or [Corrupt("the source gave no candidate")]):
            if isinstance(candidate, Corrupt):
                yield _Filtered(candidate) if isinstance(candidate, LeftOut) else candidate
                continue
            problem = _unwritable(candidate)
            if problem is not None:
                yield problem
                continue
            lineage = Lineage(file=split.file, row=row.number)
            record = record_of(candidate, key(self.source.name, number, place, index), self.source.name, lineage)
            reason = self._dropped(record)
            yield record if reason is None else reason

    def _dropped(self, record: Record) -> _Filtered | None:
        for rule in self.filters:
            reason = rule(record)
            if reason is not None:
                return _Filtered(f"{type(rule).__name__}: {reason}")
        return None


def splits(roots: Roots, source: str, file: str, rows_per_split: int) -> Iterator[Split]:
    """The plan of an input file that lies inside the declared folders; of any other one row that says why not.

    Raises: as `readers.splits`.
    """
    if problem := roots.unreadable(source, file):
        return iter([Split(file=file, first=0, rows=1, problem=problem)])
    return readers.splits(roots.source(source), file, rows_per_split)


def record_of(candidate: Candidate, key: str, source: str, lineage: Lineage) -> Record:
    """A candidate that has its key and its origin.

    Raises: ValueError: it breaks the contract of records.
    """
    return Record(
        key=key,
        source=source,
        task=candidate.task,
        messages=candidate.messages,
        media=candidate.media,
        lineage=lineage,
    ).checked()


class _Filtered(str):
    """Why a filter dropped a candidate, or the recipe told its source to leave it out."""


def _unwritable(candidate: Candidate) -> Corrupt | None:
    """Half a surrogate pair in the text, as JSON's \\ud83d smuggles in: UTF-8 cannot hold it."""
    for message in candidate.messages:
        for part in message.parts:
            if isinstance(part, Text):
                try:
                    part.text.encode()
                except UnicodeEncodeError as error:
                    found = part.text[error.start]
                    return Corrupt(f"text holds half a surrogate pair, {found!r}, at character {error.start}")
    return None


def receipt_path(folder: Path, number: int) -> Path:
    """Where a shard's receipt lies while its corpus is being built."""
    return folder / f".{number:05d}.receipt.json"


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Leave a shard's receipt: after this the shard is built."""
    write_atomically(receipt_path(folder, receipt.number), json.dumps(receipt, default=_fields).encode())


def received(folder: Path) -> set[int]:
    """The shards whose receipts lie in a folder: those that need not be built again."""
    names = [path.name for path in stores.inside(folder, ".*.receipt.json")]
    return {int(name[1:].partition(".")[0]) for name in names if _RECEIPT.fullmatch(name)}


def read_receipt(path: Path) -> Receipt:
    """A receipt from its file."""
    held: dict[str, Any] = json.loads(stores.read(path))
    held["split"] = Split(**held["split"])
    return Receipt(**held)


def columns(kind: type, rows: Iterable[Any]) -> dict[str, list[Any]]:
    """Dataclasses of one kind, a column per field: a fraction of the JSON that they would be one by one."""
    held = list(rows)
    return {field.name: [getattr(row, field.name) for row in held] for field in fields(kind)}


def _fields(value: Any) -> dict[str, Any]:
    """A dataclass as JSON wants it; `asdict` would copy every value in it, which took a fifth of a build."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def temporary(path: Path) -> Path:
    """A hidden name beside a file, nobody else's: two nodes may do the same task under the same process id."""
    return path.with_name(f".{secrets.token_hex(6)}-{path.name}")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut; an object of a store always is.

    Raises: OSError: the disk or store fails; nothing is left of it.
    """
    if folders.is_remote(path):
        stores.write(path, data)
        return
    draft = temporary(path)
    try:
        with shards.of_file(path), draft.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        draft.rename(path)
    except BaseException:
        _drop(draft)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file, or the renames in a folder, outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with shards.of_file(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what work left in a folder: receipts, plans, halves of files. All of that is hidden, no other file is."""
    for leftover in folder.glob(".*"):
        if not leftover.is_dir():
            leftover.unlink(missing_ok=True)


def _drop(*drafts: Path) -> None:
    """Remove what was begun; where even that fails, what failed first is the one to hear of."""
    for draft in drafts:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def put(path: Path, link: Callable[[Path], None]) -> None:
    """Let a link appear at `path` in one step, whatever is there: `link` makes it at the path that it is given."""
    draft = temporary(path)
    link(draft)
    draft.rename(path)
    draft.unlink(missing_ok=True)  # a rename over the same file does nothing, and leaves both names


def name_of(recipe_key: str, number: int, split: Split, input_sha256: str) -> str:
    """The key of a shard: what its bytes follow from."""
    parts = [recipe_key, number, split.file, split.first, input_sha256]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _link(earlier: Path, final: Path, number: int, split: Split, shard_key: str, input_sha256: str) -> Receipt:
    """Take the same shard of an earlier corpus by hard link; its index and ledger rows are read there at commit.

    One in a store is left there: `uploads.build` copies it.
    """
    shard = _shards_of(earlier)[number]
    held = earlier / shards.file_of(shard)
    if folders.size(held) != shard["size"]:
        raise ValueError(f"{held} is not the {shard['size']} bytes that were built: remove {earlier}")
    for suffix in () if folders.is_remote(earlier) else ("", ".idx"):
        source = Path(f"{held}{suffix}")
        put(Path(f"{final}{suffix}"), lambda draft, source=source: draft.hardlink_to(source))
    return Receipt(
        number=number,
        split=split,
        key=shard_key,
        input_sha256=input_sha256,
        size=shard["size"],
        sha256=shard["sha256"],
        idx_sha256=shard["idx_sha256"],
        entries={},
        ledger={},
        linked=str(earlier),
    )


@lru_cache(maxsize=4)
def _shards_of(earlier: Path) -> list[dict[str, Any]]:
    """The shards in a finished corpus' manifest. Remembered, for each of them may be linked and it never changes."""
    return json.loads(stores.read(earlier / "manifest.json"))["shards"]


def _ledger_row(
    file: str, row: int, shard: int, kept: int, verdicts: Sequence[Record | _Filtered | Corrupt]
) -> LedgerRow:
    filtered = sum(isinstance(verdict, _Filtered) for verdict in verdicts)
    missing = sum(isinstance(verdict, Missing) for verdict in verdicts)
    corrupt = sum(isinstance(verdict, Corrupt) for verdict in verdicts) - missing
    reasons = [
        f"candidate {index}: {verdict}" if len(verdicts) > 1 else str(verdict)
        for index, verdict in enumerate(verdicts)
        if not isinstance(verdict, Record)
    ]
    return LedgerRow(
        file=file,
        row=row,
        shard=shard,
        outcome="kept" if kept else "filtered" if filtered else "corrupt" if corrupt else "missing",
        reason=_plain("; ".join(reasons)),
        candidates=len(verdicts),
        kept=kept,
        filtered=filtered,
        duplicate=0,
        corrupt=corrupt,
        missing=missing,
    )


def _plain(reason: str) -> str:
    """A reason as one printable line of bounded length, whatever the row put into it."""
    line = " ".join(reason.split())
    if not line.isprintable():  # half a surrogate pair, a mark that turns the writing direction
        line = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)
    return line if len(line) <= _REASON else line[: _REASON - 3] + "..."
