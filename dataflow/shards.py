"""Records <-> WebDataset shards. A shard is a tar of whole records in key order; its bytes depend on the records alone.

    key.0.jpg key.1.png key.json | next record's members | ... | zeros to a multiple of 10,240 bytes

The bytes equal those of `webdataset.TarWriter(mtime=0)` on the same samples: USTAR, members sorted by extension.
Beside it lies `NAME.tar.idx`, little-endian u64 offsets of each record and of the end mark (megatron-energon's layout).
"""

from __future__ import annotations

import hashlib
import os
import struct
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dataflow.record import Record, from_json, to_json

_BLOCK, _RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE  # 512, 10,240 bytes
_PIECE = 1 << 20  # bytes handed to the writing thread at a time


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


def name(number: int) -> str:
    """File name of a shard, `00017.tar`."""
    return f"{number:05d}.tar"


def members(record: Record) -> dict[str, bytes]:
    """A record's files by extension: `json`, `0.jpg`, `1.png`, ..."""
    pictures = {f"{index}.{media.extension}": media.data for index, media in enumerate(record.media)}
    return {**pictures, "json": to_json(record)}


def size(record: Record) -> int:
    """Bytes that a record takes in a shard, headers and padding included."""
    return sum(map(len, _pieces(record)))


def write(records: Iterable[Record], path: Path, number: int) -> Shard:
    """Write one shard and its .idx beside it; both are on the disk, fsynced, when this returns.

    Args:
        path: where the tar goes; the caller renames it into place. `path` + `.idx` is written too.
    Raises:
        ValueError: a key that does not fit a USTAR header.
        OSError: the disk fails.
    """
    offset = 0
    entries: list[Entry] = []
    with _Hashing(path) as tar:
        for record in records:
            pieces = _pieces(record)
            tar.write(pieces)
            entries.append(entry(record, number, offset, pieces))
            offset += entries[-1].size
        end = bytes(2 * _BLOCK + -(offset + 2 * _BLOCK) % _RECORD)
        tar.write([end])
    offsets = struct.pack(f"<{len(entries) + 1}Q", *(entry.offset for entry in entries), offset)
    with Path(f"{path}.idx").open("wb") as stream:
        stream.write(offsets)
        stream.flush()
        os.fsync(stream.fileno())
    return Shard(
        number=number,
        size=offset + len(end),
        sha256=tar.sha256,
        idx_sha256=hashlib.sha256(offsets).hexdigest(),
        entries=tuple(entries),
    )


def read(data: bytes | memoryview, key: str) -> Record:
    """The record in these bytes of a shard, as the index cuts them.

    Raises:
        ValueError: the bytes are not the record of this key.
    """
    files: dict[str, bytes] = {}
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
        files[extension] = bytes(data[body : body + size])
        place = body + size + -size % _BLOCK
    if "json" not in files:
        raise ValueError("no json member")
    return from_json(key, files["json"], files)


def sha256(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Hashing:
    """A new file and the sha256 of what is written to it. A thread writes and hashes while the caller makes more.

    The file is on the disk, fsynced, when the `with` block ends well.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._waiting: list[bytes] = []
        self._held = 0  # bytes of it
        self._last: Future[None] | None = None

    def __enter__(self) -> _Hashing:
        self._stream = self._path.open("wb", buffering=0)
        self._thread = ThreadPoolExecutor(1)
        return self

    def write(self, pieces: list[bytes]) -> None:
        self._waiting += pieces
        self._held += sum(map(len, pieces))
        if self._held >= _PIECE:
            self._hand_over()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._hand_over()
                self._settle()
                os.fsync(self._stream.fileno())
        finally:
            self._thread.shutdown()
            self._stream.close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def _hand_over(self) -> None:
        self._settle()  # so that little waits in memory, and a full disk is noticed here
        self._last = self._thread.submit(self._work, b"".join(self._waiting))  # one large piece: no quarrel for the GIL
        self._waiting, self._held = [], 0

    def _settle(self) -> None:
        if self._last is not None:
            self._last.result()

    def _work(self, data: bytes) -> None:
        place, left = self._stream.tell(), memoryview(data)
        while left:
            left = left[self._stream.write(left) :]
        if hasattr(os, "posix_fadvise"):  # Linux: the disk begins now, so that the fsync at the end has little left
            os.posix_fadvise(self._stream.fileno(), place, len(data), os.POSIX_FADV_DONTNEED)
        self._digest.update(data)


def _pieces(record: Record) -> list[bytes]:
    """A record's members as they lie in a shard: header, body, padding, header, ...; not joined, pictures are big."""
    pieces = []
    for extension, body in sorted(members(record).items()):
        pieces += (_header(f"{record.key}.{extension}", len(body)), body, bytes(-len(body) % _BLOCK))
    return pieces


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


def entry(record: Record, number: int, offset: int, pieces: Sequence[bytes]) -> Entry:
    """The index row of a record whose bytes in shard `number` are `pieces`, from byte `offset` on."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return Entry(
        key=record.key,
        shard=number,
        offset=offset,
        size=sum(map(len, pieces)),
        task=record.task,
        pictures=len(record.media),
        bytes=sum(len(media.data) for media in record.media),
        widths=tuple(media.width for media in record.media),
        heights=tuple(media.height for media in record.media),
        text_length=record.text_length,
        sha256=digest.hexdigest(),
    )
