"""Records <-> WebDataset shards. A shard is a tar of whole records in key order; its bytes depend on the records alone.

    key.0.jpg key.1.png key.json | next record's members | ... | zeros to a multiple of 10,240 bytes

The bytes equal those of `webdataset.TarWriter(mtime=0)` on the same samples: USTAR, members sorted by extension.
Beside it lies `NAME.tar.idx`, little-endian u64 offsets of each record and of the end mark (megatron-energon's layout).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import tarfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dataflow.folders import opened
from dataflow.record import Record, from_json, to_json

_BLOCK, _RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE  # 512, 10,240 bytes
_ZEROS = bytes(_BLOCK)
_PIECE = 1 << 20  # bytes handed to the writing thread at a time: it asks for the GIL once for each
_AHEAD = 4 << 20  # bytes that wait for that thread at most, one record more
_FLUSH = 8 << 20  # bytes after which the disk is told to begin
_OPEN = 256  # memory maps kept at a time by a reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A record's row in the index.

    offset, size: its bytes in the shard, headers and padding included; sha256 is of these bytes.
    bytes: of its encoded pictures. widths, heights: pixels. text_length: characters.
    """

    key: str
    shard: int
    offset: int
    size: int
    task: str
    pictures: int
    bytes: int
    widths: tuple[int, ...]
    heights: tuple[int, ...]
    text_length: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A written shard: its number, size in bytes, sha256 of the tar and of its .idx, and a row per record."""

    number: int
    size: int
    sha256: str
    idx_sha256: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tar:
    """A written tar: its size in bytes, sha256 of it and of its .idx, where each key's members begin, where all end."""

    size: int
    sha256: str
    idx_sha256: str
    offsets: tuple[int, ...]
    end: int


def name(number: int) -> str:
    """File name of a shard, `00017.tar`."""
    return f"{number:05d}.tar"


def part(number: int, sha256: str) -> str:
    """Its name in a store, `00017-0a1b2c3d4e5f.tar`: whoever puts it there again, however late, puts the same bytes."""
    return f"{number:05d}-{sha256[:12]}.tar"


def file_of(shard: Mapping[str, Any]) -> str:
    """The file of a shard that a manifest tells of."""
    return shard.get("file", shard["name"])


def members(record: Record) -> dict[str, bytes]:
    """A record's files by extension: `json`, `0.jpg`, `1.png`, ..."""
    pictures = {f"{index}.{media.extension}": media.data for index, media in enumerate(record.media)}
    return {**pictures, "json": to_json(record)}


def size(record: Record) -> int:
    """Bytes that a record takes in a shard, headers and padding included."""
    return len(_laid_out(record.key, members(record)))


def write(records: Iterable[Record], path: Path, number: int) -> Shard:
    """Write one shard and its .idx beside it; both are on the disk, fsynced, when this returns.

    Args:
        path: where the tar goes; the caller renames it into place. `path` + `.idx` is written too.
    Raises:
        ValueError: a key that does not fit a USTAR header.
        OSError: the disk fails.
    """
    entries: list[Entry] = []

    def laid_out() -> Iterator[bytes]:
        offset = 0
        for record in records:
            data = _laid_out(record.key, members(record))
            yield data
            entries.append(entry(record, number, offset, data))
            offset += len(data)

    tar = _write(laid_out(), path)
    return Shard(number=number, size=tar.size, sha256=tar.sha256, idx_sha256=tar.idx_sha256, entries=tuple(entries))


def write_files(samples: Iterable[tuple[str, Mapping[str, bytes]]], path: Path) -> Tar:
    """The same of any files: (key, its files by extension), one key after the other."""
    return _write((_laid_out(key, files) for key, files in samples), path)


def _write(samples: Iterable[bytes], path: Path) -> Tar:
    offset = 0
    offsets: list[int] = []
    with _Hashing(path) as tar:
        for data in samples:
            tar.write(data)
            offsets.append(offset)
            offset += len(data)
        end = bytes(2 * _BLOCK + -(offset + 2 * _BLOCK) % _RECORD)
        tar.write(end)
    idx = struct.pack(f"<{len(offsets) + 1}Q", *offsets, offset)
    with of_file(path), Path(f"{path}.idx").open("wb") as stream:
        stream.write(idx)
        stream.flush()
        os.fsync(stream.fileno())
    return Tar(
        size=offset + len(end),
        sha256=tar.sha256,
        idx_sha256=hashlib.sha256(idx).hexdigest(),
        offsets=tuple(offsets),
        end=offset,
    )


def read(data: bytes | memoryview, key: str) -> Record:
    """The record in these bytes of a shard, as the index cuts them.

    Raises:
        ValueError: the bytes are not the record of this key.
    """
    found = files(data, key)
    if "json" not in found:
        raise ValueError("no json member")
    return from_json(key, found["json"], found)


def files(data: bytes | memoryview, key: str) -> dict[str, bytes]:
    """The files in these bytes of a tar of ours, by extension.

    Raises:
        ValueError: the bytes are not those of this key.
    """
    found: dict[str, bytes] = {}
    place = 0
    while place < len(data):
        header = bytes(data[place : place + _BLOCK])
        member = header[:100].rstrip(b"\0").decode("ascii", "replace")
        digits = header[124:135]
        size = int(digits, 8) if digits.isdigit() else 0
        if not header.isascii() or header != _header(member, size):
            raise ValueError(f"no header of ours at byte {place} of the record")
        name, _, extension = member.partition(".")
        if name != key:
            raise ValueError(f"found {member} where the index places {key}")
        body = place + _BLOCK
        if body + size > len(data):
            raise ValueError(f"{member} is cut off")
        found[extension] = bytes(data[body : body + size])
        place = body + size + -size % _BLOCK
    return found


class Maps:
    """Memory maps of files by path, the last ones asked for kept open. Not to be shared by processes or threads.

    Args:  opened: opens what is asked for, where that is no path. most: kept open, fewer than a reader's usual ones.
    """

    def __init__(self, opened: Callable[[Any], BinaryIO] = opened, most: int | None = None) -> None:
        self._held: OrderedDict[Any, mmap.mmap] = OrderedDict()
        self._opened, self._most = opened, _OPEN if most is None else max(1, min(most, _OPEN))

    def __getitem__(self, path: Any) -> mmap.mmap:
        if path in self._held:
            self._held.move_to_end(path)
            return self._held[path]
        if len(self._held) >= self._most:
            self._held.popitem(last=False)
        with self._opened(path) as stream:
            self._held[path] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._held[path]


@contextmanager
def of_file(path: Path) -> Iterator[None]:
    """What the disk refuses in the block it refuses of this file: the system's own errors of a write name none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sha256(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with of_file(path), opened(path) as stream:
        reading: Any = stream
        return hashlib.file_digest(reading, "sha256").hexdigest()


class _Hashing:
    """A new file and the sha256 of what is written to it. A thread writes and hashes while the caller makes more.

    The file is on the disk, fsynced, when the `with` block ends well.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._waiting: list[bytes] = []
        self._held = 0  # bytes of it
        self._under_way: deque[tuple[Future[None], int]] = deque()  # what the thread was given, and its bytes
        self._flushed, self._written = 0, 0  # bytes that the disk was told to begin with, and all; the thread's own

    def __enter__(self) -> _Hashing:
        self._stream = self._path.open("wb", buffering=0)
        self._thread = ThreadPoolExecutor(1)
        return self

    def write(self, data: bytes) -> None:
        self._waiting.append(data)
        self._held += len(data)
        if self._held >= _PIECE:
            self._hand_over()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._hand_over()
                self._settle(0)
                with of_file(self._path):
                    os.fsync(self._stream.fileno())
        finally:
            self._thread.shutdown()
            self._stream.close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def _hand_over(self) -> None:
        self._settle(_AHEAD - self._held)  # so that little waits in memory, and a full disk is noticed here
        self._under_way.append((self._thread.submit(self._work, self._waiting), self._held))
        self._waiting, self._held = [], 0

    def _settle(self, most: int) -> None:
        """Wait until the thread has at most so many bytes to do, or nothing."""
        while self._under_way and sum(held for _, held in self._under_way) > most:
            self._under_way.popleft()[0].result()

    def _work(self, pieces: list[bytes]) -> None:
        data = b"".join(pieces)
        left = memoryview(data)
        with of_file(self._path):
            while left:
                left = left[self._stream.write(left) :]
        self._written += len(data)
        dirty = self._written - self._flushed
        if dirty >= _FLUSH and hasattr(os, "posix_fadvise"):  # Linux: so that the fsync at the end has little left
            os.posix_fadvise(self._stream.fileno(), self._flushed, dirty, os.POSIX_FADV_DONTNEED)
            self._flushed = self._written
        self._digest.update(data)


def _laid_out(key: str, files: Mapping[str, bytes]) -> bytes:
    """A key's members as they lie in a shard: header, body, padding, header, ..."""
    pieces = []
    for extension, body in sorted(files.items()):
        pieces += (_header(f"{key}.{extension}", len(body)), body, _ZEROS[: -len(body) % _BLOCK])
    return b"".join(pieces)


def _header(file: str, size: int) -> bytes:
    """A USTAR header: the fixed fields of our shards around a name, a size and their checksum."""
    encoded = file.encode("ascii")
    if len(encoded) > 100 or size >= 8 << 30:
        raise ValueError(f"{file} with {size} bytes: a shard holds names up to 100 and files under 8 GiB")
    digits = b"%011o" % size
    checksum = b"%06o" % (_FIXED_SUM + sum(encoded) + sum(digits))
    return b"".join((encoded.ljust(100, b"\0"), _BEFORE_SIZE, digits, _AFTER_SIZE, checksum, _AFTER_CHECKSUM))


def _fixed() -> bytes:
    info = tarfile.TarInfo()
    info.mode, info.uname, info.gname = 0o444, "bigdata", "bigdata"  # what webdataset's writer puts there
    return info.tobuf(tarfile.USTAR_FORMAT)


_BEFORE_SIZE, _AFTER_SIZE, _AFTER_CHECKSUM = _fixed()[100:124], _fixed()[135:148], _fixed()[154:]
# A checksum counts its own field as spaces, two of which it shares with what follows: a NUL and a space.
_FIXED_SUM = sum(_BEFORE_SIZE) + sum(_AFTER_SIZE) + sum(_AFTER_CHECKSUM) + 7 * 0x20


def entry(record: Record, number: int, offset: int, data: bytes) -> Entry:
    """The index row of a record whose bytes in shard `number` are `data`, from byte `offset` on."""
    return Entry(
        key=record.key,
        shard=number,
        offset=offset,
        size=len(data),
        task=record.task,
        pictures=len(record.media),
        bytes=sum([len(media.data) for media in record.media]),
        widths=tuple([media.width for media in record.media]),
        heights=tuple([media.height for media in record.media]),
        text_length=record.text_length,
        sha256=hashlib.sha256(data).hexdigest(),
    )
