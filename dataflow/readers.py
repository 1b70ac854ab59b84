"""Input files as numbered rows: lines, documents, parquet, tars of samples. Nothing is skipped: a bad row is a row.

    *.jsonl        a JSON object per line           *.json      items of a document, see documents.py; or such lines
    *.csv, *.tsv   a line each, under a header      *.parquet   rows
    *.txt          {"text": line}                   *.tar       {"__key__": name, extension: bytes}, a sample each
    *.zip          the lines of the one *.jsonl in it

A split is `rows_per_shard` consecutive rows of one file. `splits` makes the plan (offsets, no parsing), `rows` reads
one split; of an object in a store it reads no more than that, and once. Row numbers count from 0: lines of a file
(blank ones hold no row, a header is line 0), items of a document, rows of a parquet file, samples of a tar (adjacent
members whose names agree up to the first dot of the basename).
Where a file cannot be read on, one row more stands for the rest and says why.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import signal
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dataflow import documents, folders
from dataflow.media import POINTER, Corrupt, summary

_CHUNK = 1 << 20  # bytes read at a time when counting lines and hashing
_BATCH = 64  # parquet rows decoded at a time; they hold pictures
_MAX_MEMBER = 1 << 30  # bytes of a tar member; over any sound picture or caption
_LONGEST_LINE = 1 << 18  # bytes looked at to tell lines from a document
_MOST = 1 << 28  # bytes of a line or item, and of a split of them: it is held in memory
_MAX_FIELD = 1 << 24  # characters of a CSV field
_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"
_SLACK = 100  # bytes after a column chunk that Arrow reads of files whose writer miscounted (PARQUET-816)
# What tarfile raises on headers that lie about themselves, sizes beyond 2**63 included.
_BROKEN_TAR = (tarfile.TarError, ValueError, OverflowError, IndexError, RecursionError, MemoryError)
# What zipfile raises on archives that lie about themselves: a password, a bad checksum.
BROKEN_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, zlib.error, struct.error)
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what zipfile unpacks no further than it is asked to
_OVERRIDES = {"path", "linkpath", "size"}  # what a global header could say of every member after it


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Consecutive rows of one file.

    file: relative to the source's folder. first: number of its first row. rows: how many numbers it spans.
    offset, end: its bytes in the file (all but parquet), of a zip in what it holds. problem: why the file cannot be
    read at this place.
    """

    file: str
    first: int
    rows: int
    offset: int = 0
    end: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One input row: its number in the file and its value, or the problem that makes it unreadable."""

    number: int
    value: Any
    problem: str | None = None


def splits(folder: Path, file: str, rows_per_split: int) -> Iterator[Split]:
    """The plan of one file, split by split. Reads line ends, brackets, metadata or headers, no content.

    Raises:
        ValueError: a file name of no known kind, or splits of no rows.
        OSError: the disk fails.
    """
    if rows_per_split < 1:
        raise ValueError(f"rows_per_split={rows_per_split}: a split holds at least one row")
    path = folder / file
    if path.suffix.lower() not in _SPLITS:
        raise ValueError(f"{file}: cannot read *{path.suffix}; sources list {', '.join(_SPLITS)} files")
    if _is_pointer(path):
        problem = "file is a Git LFS pointer, not the file itself: fetch it, with git lfs pull, say"
        return iter([Split(file=file, first=0, rows=1, problem=problem)])
    return _SPLITS[_kind(path)](path, file, rows_per_split)


def rows(folder: Path, split: Split) -> tuple[str, Iterator[Row]]:
    """The rows of a split and the sha256 of their content, which changes when any of them does.

    Parquet is hashed as the column chunks of the row groups that the split touches, all else as the split's bytes.

    Raises:
        ValueError: the file is shorter than when the split was planned; from the iterator: it holds other samples.
        OSError: the disk fails.
    """
    if split.problem is not None:
        digest = hashlib.sha256(split.problem.encode()).hexdigest()
        return digest, iter([Row(split.first, None, split.problem)])
    path = folder / split.file
    if _size(path) < split.end:
        raise ValueError(f"{path} is shorter than when its splits were planned: build again")
    kind = _kind(path)
    if kind == ".parquet":
        held = _parquet_held(path, split)
        return _parquet_digest(held, split), _parquet_rows(held, split)
    digest = hashlib.sha256()
    if kind == ".tar":
        held = path if not folders.is_remote(path) else folders.near(path, [(split.offset, split.end)])
        with _stream(held) as stream:
            _hash(stream, split.offset, split.end, digest)
        return digest.hexdigest(), _tar_rows(held, split, _size(path))
    with _opened(path) as stream:
        header = stream.readline() if kind in _DELIMITERS else b""
        stream.seek(split.offset)
        data = stream.read(split.end - split.offset)
    digest.update(header)
    digest.update(data)
    return digest.hexdigest(), _ROWS[kind](data, split, header)


@contextmanager
def _stream(held: Path | BinaryIO) -> Iterator[BinaryIO]:
    """A file of this machine; what was fetched of an object stays open, for it has no name to open it by again."""
    if isinstance(held, Path):
        with held.open("rb") as stream:
            yield stream
    else:
        yield held


def _is_pointer(path: Path) -> bool:
    with folders.opened(path) as stream:
        return stream.read(len(POINTER)) == POINTER


def _kind(path: Path) -> str:
    """How a file is read: by its name, but that JSON lines are lines whatever they are called."""
    kind = path.suffix.lower()
    if kind == ".json":
        with folders.opened(path) as stream:
            first = stream.readline(_LONGEST_LINE).removeprefix(_BOM).strip()
            if first.startswith(b"{") and first.endswith(b"}") and stream.readline(_LONGEST_LINE).strip()[:1] == b"{":
                return ".jsonl"
    return kind


def share(folder: Path, split: Split) -> float:
    """Which part of its file lies before the end of this split, 0..1: what is known of the whole from its beginning."""
    path = folder / split.file
    if split.problem is not None:
        return 1.0
    if path.suffix.lower() == ".parquet":
        return (split.first + split.rows) / max(1, _metadata(path).num_rows)
    return split.end / max(1, _size(path))


def _size(path: Path) -> int:
    """Bytes of a file, unpacked."""
    if path.suffix.lower() == ".zip":
        with folders.opened(path) as stream, zipfile.ZipFile(stream) as archive:
            return _lines_in(archive).file_size
    return folders.size(path)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file, or the lines in a zip."""
    with folders.opened(path) as file:
        if path.suffix.lower() != ".zip":
            yield file
            return
        with zipfile.ZipFile(file) as archive, archive.open(_lines_in(archive)) as stream:
            yield stream  # type: ignore[misc] # typed as IO[bytes]


def _lines_in(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The member that holds the rows.

    Raises: BadZipFile: none does, several do, or it cannot be read piece by piece.
    """
    found = [each for each in archive.infolist() if each.filename.endswith(".jsonl") and not _of_a_mac(each.filename)]
    if len(found) != 1:
        raise zipfile.BadZipFile(f"it holds {len(found)} *.jsonl, and rows are those of one")
    if found[0].compress_type not in BOUNDED:
        raise zipfile.BadZipFile("it is packed by other means than deflate: unpack it")
    return found[0]


def _of_a_mac(name: str) -> bool:
    return name.startswith("__MACOSX/")  # which packs a shadow with every file


def _hash(stream: BinaryIO, first: int, end: int, digest: Any) -> None:
    stream.seek(first)
    while first < end and (chunk := stream.read(min(_CHUNK, end - first))):
        digest.update(chunk)
        first += len(chunk)


def _line_splits(path: Path, file: str, size: int) -> Iterator[Split]:
    """Lines, `size` numbers at a time; the header line of a table belongs to no split."""
    header = path.suffix.lower() in _DELIMITERS
    problem = None
    first = line = 0  # numbers: of the split's first line, of lines that have ended
    offset = start = place = 0  # bytes: where the split begins, the line, the chunk

    def ended(end: int) -> Iterator[Split]:
        """A line ends before this byte: what is full by that."""
        nonlocal first, offset, line, start
        if end - start > _MOST:
            if line > first:
                yield Split(file=file, first=first, rows=line - first, offset=offset, end=start)
            problem = f"line is {end - start} bytes, over {_MOST}"
            yield Split(file=file, first=line, rows=1, problem=problem)
            first, offset = line + 1, end
        elif line + 1 - first == size or end - offset > _MOST:
            yield Split(file=file, first=first, rows=line + 1 - first, offset=offset, end=end)
            first, offset = line + 1, end
        line, start = line + 1, end

    try:
        with _opened(path) as stream:
            if header:
                offset = start = place = len(stream.readline(_LONGEST_LINE))
                first = line = 1
            while chunk := stream.read(_CHUNK):
                at = chunk.find(b"\n")
                while at >= 0:
                    yield from ended(place + at + 1)
                    at = chunk.find(b"\n", at + 1)
                place += len(chunk)
    except BROKEN_ZIP as error:
        problem, place = f"archive does not read: {summary(error)}", start  # a line that it cut is part of the rest
    if place > start:  # the last line of a file may lack its line end
        yield from ended(place)
    if line > first:
        yield Split(file=file, first=first, rows=line - first, offset=offset, end=place)
    if problem:
        yield Split(file=file, first=line, rows=1, problem=problem)


def _lines(data: bytes, split: Split) -> Iterator[tuple[int, bytes]]:
    """Line numbers and lines, blank ones left out."""
    for number, line in enumerate(data.split(b"\n"), split.first):
        line = line.removeprefix(_BOM)  # no part of the row; files with one that were joined have it further down
        if line.strip():
            yield number, line


def _jsonl_rows(data: bytes, split: Split, header: bytes) -> Iterator[Row]:
    parse = json.JSONDecoder().raw_decode  # json.loads looks for space before and after, which takes as long again
    for number, line in _lines(data, split):
        try:
            text = line.decode()
            value, end = parse(text)
        except (ValueError, RecursionError):
            text, value, end = "", None, -1
        if end == len(text) and isinstance(value, dict):
            yield Row(number, value)
            continue
        row = _parsed(number, line, _json, "line")
        if row.problem is None and not isinstance(row.value, dict):
            row = Row(number, None, f"line holds {type(row.value).__name__}, a row is an object")
        yield row


def _json(data: bytes) -> Any:
    return json.loads(data.decode())  # json.loads(bytes) would guess UTF-16 and take half surrogate pairs


def _parsed(number: int, data: bytes, parse: Callable[[bytes], Any], what: str) -> Row:
    try:
        return Row(number, parse(data))
    except UnicodeDecodeError as error:
        return Row(number, None, f"{what} is not UTF-8: byte {error.start}")
    except json.JSONDecodeError as error:
        return Row(number, None, f"{what} is not JSON: {error.msg} (character {error.pos})")
    except RecursionError:
        return Row(number, None, f"{what} is not JSON we read: nested too deeply")
    except ValueError:
        return Row(number, None, f"{what} is not JSON we read: a number of over 4,300 digits")


def _text_rows(data: bytes, split: Split, header: bytes) -> Iterator[Row]:
    for number, line in _lines(data, split):
        yield _parsed(number, line, lambda line: {"text": line.decode().rstrip("\r")}, "line")


def _table_rows(data: bytes, split: Split, header: bytes) -> Iterator[Row]:
    """Every value is text: an id may look like a number, begin with - or be NaN."""
    delimiter = _DELIMITERS[Path(split.file).suffix.lower()]
    csv.field_size_limit(_MAX_FIELD)

    def fields(line: bytes) -> list[str]:
        return next(csv.reader([line.decode().rstrip("\r\n")], delimiter=delimiter, strict=True))

    try:
        names = fields(header.removeprefix(_BOM))
    except (UnicodeDecodeError, csv.Error) as error:
        names, problem = [], f"header line does not parse: {summary(error)}"
    else:
        problem = None if len(set(names)) == len(names) else "header line has a column twice"
    for number, line in _lines(data, split):
        try:
            values = fields(line)
        except UnicodeDecodeError as error:
            yield Row(number, None, f"line is not UTF-8: byte {error.start}")
        except csv.Error as error:
            yield Row(number, None, f"line is no row of a table: {summary(error)}")
        else:
            if problem is None and len(values) != len(names):
                yield Row(number, None, f"line has {len(values)} fields under a header of {len(names)}")
            else:
                yield Row(number, dict(zip(names, values, strict=False)), problem)


def _document_splits(path: Path, file: str, size: int) -> Iterator[Split]:
    first = count = offset = end = 0
    last = None  # list that the split is in
    problem = None
    try:
        for start, stop, number in documents.spans(path):
            if count and (count == size or number != last or stop - offset > _MOST):
                yield Split(file=file, first=first, rows=count, offset=offset, end=end)
                first, count = first + count, 0
            if stop - start > _MOST:
                problem_of = f"item is {stop - start} bytes, over {_MOST}"
                yield Split(file=file, first=first, rows=1, problem=problem_of)
                first += 1
                continue
            if not count:
                offset, last = start, number
            count, end = count + 1, stop
    except documents.Broken as error:
        problem = str(error)
    if count:
        yield Split(file=file, first=first, rows=count, offset=offset, end=end)
    if problem:
        yield Split(file=file, first=first + count, rows=1, problem=problem)


def _document_rows(data: bytes, split: Split, header: bytes) -> Iterator[Row]:
    values = documents.together(data, split.rows)
    if values is None:
        for number, item in enumerate(documents.apart(data), split.first):
            yield _parsed(number, item, documents.value, "item")
    else:
        for number, value in enumerate(values, split.first):
            yield Row(number, value)


def _parquet_splits(path: Path, file: str, size: int) -> Iterator[Split]:
    try:
        metadata = _metadata(path)
        _columns(metadata)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        _reraise_of_disk(error)
        yield Split(file=file, first=0, rows=1, problem=f"file is not parquet: {summary(error)}")
        return
    if _kills(metadata) or not _agrees(metadata, folders.size(path)):
        yield Split(file=file, first=0, rows=1, problem="file is not parquet that can be read: its footer is damaged")
        return
    count = metadata.num_rows
    for first in range(0, count, size):
        yield Split(file=file, first=first, rows=min(size, count - first))


def _metadata(path: Path) -> pq.FileMetaData:
    if not folders.is_remote(path):
        return pq.read_metadata(path)  # Arrow's own files are faster than Python's
    with folders.opened(path) as stream:
        return pq.read_metadata(stream)


def _columns(metadata: pq.FileMetaData) -> list[tuple[str, str, str]]:
    return [(column.path, column.physical_type, str(column.logical_type)) for column in metadata.schema]


def _kills(metadata: pq.FileMetaData) -> bool:
    """Whether looking at the column chunks ends the process, asked in a child: over some damaged footers pyarrow's C++
    throws where nothing can catch it.
    """
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C++'s last words
            signal.alarm(10)
            for group in range(metadata.num_row_groups):
                for column in range(metadata.num_columns):
                    metadata.row_group(group).column(column)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(status := os.waitpid(child, 0)[1]) and os.WTERMSIG(status) == signal.SIGABRT


def _agrees(metadata: pq.FileMetaData, size: int) -> bool:
    """Whether the footer's counts add up and its column chunks lie in the file: else rows would be lost unseen."""
    lengths = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if any(length < 0 for length in lengths) or sum(lengths) != metadata.num_rows:
        return False
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            begin, end = _chunk(metadata, group, column)
            if not 0 <= begin <= end <= size:
                return False
    return True


def _chunk(metadata: pq.FileMetaData, group: int, column: int) -> tuple[int, int]:
    """First byte of a column chunk and the byte after it."""
    chunk = metadata.row_group(group).column(column)
    begin = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
    return begin, begin + chunk.total_compressed_size


def _parquet_held(path: Path, split: Split) -> Path | BinaryIO:
    """A file of this machine, or of an object the footer and the row groups that hold the split."""
    if not folders.is_remote(path):
        return path
    total, metadata = folders.size(path), _metadata(path)
    spans = [(0, len(_PARQUET)), (total - metadata.serialized_size - 2 * len(_PARQUET), total)]
    for group, _, _ in _row_groups(metadata, split):
        for column in range(metadata.num_columns):
            begin, end = _chunk(metadata, group, column)
            spans.append((begin, min(end + _SLACK, total)))
    return folders.near(path, spans)


def _parquet_digest(held: Path | BinaryIO, split: Split) -> str:
    """sha256 of what the split's rows are decoded from. Needs no decoding, and no version of pyarrow changes it."""
    metadata = pq.read_metadata(held)
    digest = hashlib.sha256(f"{_columns(metadata)} {split.first} {split.rows}".encode())
    with _stream(held) as stream:
        for group, start, _ in _row_groups(metadata, split):
            digest.update(b" %d" % start)
            for column in range(metadata.num_columns):
                _hash(stream, *_chunk(metadata, group, column), digest)
    return digest.hexdigest()


def _parquet_rows(held: Path | BinaryIO, split: Split) -> Iterator[Row]:
    """The rows of a split, a row group at a time: what is lost when one does not read is the rest of this group."""
    last = split.first + split.rows
    with pq.ParquetFile(held) as opened:
        for group, start, length in _row_groups(opened.metadata, split):
            number, end = start, min(start + length, last)
            problem = "its row group holds fewer rows than the footer says"
            try:
                for batch in opened.iter_batches(_BATCH, row_groups=[group]):
                    first, stop = max(number, split.first), min(number + batch.num_rows, end)
                    if first < stop:
                        yield from _batch_rows(batch.slice(first - number, stop - first), first)
                    number += batch.num_rows
                    if number >= end:
                        break
            except (pa.ArrowException, OSError, MemoryError) as error:
                _reraise_of_disk(error)
                problem = summary(error)
            for lost in range(max(number, split.first), end):
                yield Row(lost, None, f"parquet does not read: {problem}")


def _batch_rows(batch: pa.RecordBatch, first: int) -> Iterator[Row]:
    try:
        values = batch.to_pylist()
    except (
        ValueError,
        OverflowError,
        MemoryError,
    ) as error:  # text that is not UTF-8, a date beyond Python's: of one row only
        if batch.num_rows > 1:
            for place in range(batch.num_rows):
                yield from _batch_rows(batch.slice(place, 1), first + place)
        else:
            yield Row(first, None, f"row does not convert: {type(error).__name__}: {summary(error)}")
    else:
        for place, value in enumerate(values):
            yield Row(first + place, value)


def _row_groups(metadata: pq.FileMetaData, split: Split) -> Iterator[tuple[int, int, int]]:
    """The row groups that hold rows of a split: (number, first row, rows)."""
    start = 0
    for group in range(metadata.num_row_groups):
        length = metadata.row_group(group).num_rows
        if start < split.first + split.rows and start + length > split.first:
            yield group, start, length
        start += length


def _reraise_of_disk(error: BaseException) -> None:
    """pyarrow raises OSError for broken pages too; only the disk's own carry a number."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _tar_splits(path: Path, file: str, size: int) -> Iterator[Split]:
    starts: list[int] = []  # byte of the first header of each sample
    total = folders.size(path)
    with folders.opened(path) as stream:
        last, problem, end = None, None, 0
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                while member := archive.next():
                    if archive.pax_headers.keys() & _OVERRIDES:
                        problem = "archive has a global header that renames its members: rows after it are not read"
                        end = member.offset
                        break
                    key = _sample_key(member.name)
                    if key != last:
                        starts.append(member.offset)
                        last = key
                    if not _fits(member, archive, total):
                        raise tarfile.ReadError("unexpected end of data")
                    archive.members.clear()  # type: ignore[attr-defined] # else it remembers every header
                else:
                    end = archive.offset  # type: ignore[attr-defined]
        except _BROKEN_TAR as error:
            problem = f"archive is cut off or broken: {summary(error)}"
            end = total
        else:
            stream.seek(end)
            if problem is None and stream.read(512) != bytes(512):
                problem = f"archive has no end mark at byte {end}: it is cut off or broken, rows after it are missing"
            elif problem is None and any(chunk.strip(b"\0") for chunk in iter(lambda: stream.read(_CHUNK), b"")):
                problem = "archive goes on after its end mark, as joined archives do: rows after it are not read"
    for first in range(0, len(starts), size):
        count = min(size, len(starts) - first)
        stop = starts[first + count] if first + count < len(starts) else end
        yield Split(file=file, first=first, rows=count, offset=starts[first], end=stop)
    if problem:
        yield Split(file=file, first=len(starts), rows=1, problem=problem)


def _tar_rows(held: Path | BinaryIO, split: Split, total: int) -> Iterator[Row]:
    number = split.first - 1
    with _stream(held) as stream:
        for row in samples(stream, split, total):
            number = row.number
            yield row
    if number + 1 != split.first + split.rows:
        raise ValueError(f"{split.file} is not what it was when its splits were planned: build again")


def samples(stream: BinaryIO, split: Split, total: int) -> Iterator[Row]:
    """The samples of a split as {"__key__": name, extension: bytes}; extensions in lower case, as webdataset has them.

    Args:
        stream: the tar, or the bytes of the split alone when it begins at 0. total: its size in bytes.
    """
    number, key, value, problem = split.first - 1, None, {}, None
    stream.seek(split.offset)
    with tarfile.open(fileobj=stream, mode="r:") as archive:  # from here on, not from the file's first byte
        while (member := _next(archive)) is not None and member.offset < split.end:
            name = _sample_key(member.name)
            if name != key:
                if number >= split.first:
                    yield Row(number, value, problem)
                number, key, value, problem = number + 1, name, {"__key__": name}, None
            problem = _take(member, stream, split.end, value) or problem
            if not _fits(member, archive, total):
                break
    if number >= split.first:
        yield Row(number, value, problem)


def _take(member: tarfile.TarInfo, stream: BinaryIO, end: int, value: dict[str, Any]) -> str | None:
    """Put a member's bytes into its sample, or say why not."""
    named = _sample(member.name)
    if not member.isreg() or member.issparse():
        return f"member {member.name!r} is a link or folder, not a plain file"
    if named is None:
        return f"member {member.name!r} has no extension"
    extension = named[1].lower()
    if extension in value:
        return f"two members {member.name!r} in one sample"
    if not 0 <= member.size <= end - member.offset_data:
        return f"archive ends inside member {member.name!r}"
    if member.size > _MAX_MEMBER:
        return f"member {member.name!r} is {member.size} bytes, over {_MAX_MEMBER}"
    stream.seek(member.offset_data)
    value[extension] = stream.read(member.size)
    return None


def _fits(member: tarfile.TarInfo, archive: tarfile.TarFile, total: int) -> bool:
    """Whether the member ends inside the file; tarfile would seek wherever a damaged header sends it."""
    return member.size >= 0 and member.offset < archive.offset <= total  # type: ignore[attr-defined]


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    archive.members.clear()  # type: ignore[attr-defined]
    try:
        return archive.next()
    except _BROKEN_TAR:
        return None  # the plan has named the break


def _sample_key(name: str) -> str:
    named = _sample(name)
    return named[0] if named else name


def _sample(name: str) -> tuple[str, str] | None:
    """Key and extension of a member, None if it has none: webdataset's `^((?:.*/|)[^.]+)[.]([^/]*)$` in linear time."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not dot:
        return None
    if stem:
        return f"{folder}{slash}{stem}", extension
    # Of `dir/.x` the expression makes the key `dir/`, where the last folder has no dot.
    return (f"{folder}{slash}", extension) if slash and "." not in folder.rpartition("/")[2] else None


def text(value: Any) -> str:
    """A field as text: None, NaN and missing are empty, numbers are spelled.

    Raises: Corrupt: a list, an object or bytes, which are no text however they are printed.
    """
    if isinstance(value, str):  # first, for nearly every field is
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, int | float):
        raise Corrupt(f"a field holds {type(value).__name__} where text belongs")
    return str(value)


_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SPLITS: dict[str, Callable[[Path, str, int], Iterator[Split]]] = {
    ".jsonl": _line_splits,
    ".json": _document_splits,
    ".csv": _line_splits,
    ".tsv": _line_splits,
    ".txt": _line_splits,
    ".parquet": _parquet_splits,
    ".tar": _tar_splits,
    ".zip": _line_splits,
}
_ROWS: dict[str, Callable[[bytes, Split, bytes], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _document_rows,
    ".csv": _table_rows,
    ".tsv": _table_rows,
    ".txt": _text_rows,
    ".zip": _jsonl_rows,
}
