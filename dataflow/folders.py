"""Folders on this machine and in object stores, by one kind of path: pathlib's, or universal_pathlib's over fsspec.

    /data/cambrian, data, ~/data, file:///data      pathlib.Path
    s3://bucket/data, gs://..., memory://...        a UPath: the same methods, no links, no locks, no rename in one step

What is read of a store goes through here: its listings are never remembered, so that an object added a moment ago is
seen, and whatever its client raises becomes an OSError with a cure, but that nothing is there: a FileNotFoundError.
"""

from __future__ import annotations

import errno
import hashlib
import io
import mmap
import os
import posixpath
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from fnmatch import translate
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote, urlsplit

import fsspec.config
from upath import UPath

Answer = TypeVar("Answer")

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_PATTERN = re.compile(r"[*?[]")
_FIRST, _AHEAD = 1 << 16, 1 << 23  # bytes asked of a store after a jump, and at most when reading on
_SKIPPED = 1 << 20  # bytes left out that are no jump: another request takes longer than they do
_ASKED_ONE_BY_ONE = 8  # files of a folder; when more are meant it is listed: 1,000 an answer
PATIENCE = 10  # seconds that a store has for its first answer
# What tells two states of an object apart, the surest first; clocks of stores tick in seconds.
_SURE = ("ETag", "etag", "md5Hash", "md5", "blob_id", "generation")
_MARKS = (*_SURE, "mtime", "LastModified", "last_modified", "modificationTime", "updated", "created")
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)  # the last: of memory://a/b
_KEYS = {
    "s3": " (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)",
    "gs": " (GOOGLE_APPLICATION_CREDENTIALS)",
}


def folder(text: str) -> Path:
    """The folder that a person names, absolute, its links unresolved; nothing is read.

    Raises:
        ValueError: a scheme that fsspec does not know or whose package is not installed, a URL without a bucket, or a
            host in a file://.
    """
    if not _SCHEME.match(text):
        return Path(text).expanduser().absolute()
    scheme, _, rest = text.partition("://")
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"{text}: a file:// names no host; write file:///path")
        return Path(unquote(parts.path)).absolute()
    if "::" in rest or not (rest.strip("/") or scheme == "memory"):
        raise ValueError(f"{text}: names no bucket or folder; write {scheme}://BUCKET/FOLDER")
    try:
        place: Any = UPath(text, **_options(scheme))
        place.fs  # noqa: B018  imports what speaks the protocol
    except ImportError as error:
        raise ValueError(f"{text}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{text}: fsspec knows no such protocol ({error}); s3://, gs://, az:// it does") from None
    return cast(Path, place)


def _options(scheme: str) -> dict[str, Any]:
    """What a client is told beside its own configuration: no stale listings, no minutes of trying a dead address."""
    told: dict[str, Any] = {"use_listings_cache": False}
    held = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    if scheme == "s3" and "AWS_MAX_ATTEMPTS" not in os.environ and "retries" not in held:
        told["config_kwargs"] = {**held, "retries": {"mode": "standard", "max_attempts": 3}}
    return told


def is_remote(path: Path) -> bool:
    """Whether a folder lies in an object store."""
    return not isinstance(path, Path)


@dataclass(frozen=True, slots=True)
class Stored:
    """A place in a store: an object, the prefix that stands for a folder, or nothing.

    Every method raises FileNotFoundError where nothing is there, and OSError when the store does not answer or refuses.
    """

    fs: Any  # fsspec's AbstractFileSystem
    path: str  # as its methods take it: `bucket/folder/file`

    @property
    def url(self) -> str:
        return self.fs.unstrip_protocol(self.path)

    def info(self) -> dict[str, Any]:
        """Its type, `file` or `directory`, its size, and what else the store tells."""
        with answered(self.url):
            return self.fs.info(self.path)

    def is_folder(self) -> bool:
        """Whether it is a folder; False where nothing is there."""
        try:
            return self.info()["type"] == "directory"
        except FileNotFoundError:
            return False

    def is_file(self) -> bool:
        """Whether it is an object; False where nothing is there."""
        try:
            return self.info()["type"] == "file"
        except FileNotFoundError:
            return False

    def span(self, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`, fewer where it ends earlier: one request."""
        if start >= end:
            return b""
        with answered(self.url):
            try:
                return self.fs.cat_file(self.path, start=start, end=end)
            except _NOT_THERE:
                raise
            except Exception as error:  # of 0 bytes no range can be had, and each client says so in its own way
                if "range" in str(error).lower() and self.fs.info(self.path).get("size") == 0:
                    return b""
                raise

    def open(self) -> BinaryIO:
        """The object, to read and seek in."""
        found = self.info()
        if found["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.url)
        return io.BufferedReader(_Object(self, found["size"]), _FIRST)

    def entries(self) -> list[dict[str, Any]]:
        """What lies in this folder, one deep, as `info` tells it, with its `name` alone; in no order."""
        with answered(self.url):
            listed = self.fs.ls(self.path or "/", detail=True)
        home = self.path.strip("/")
        found = []
        for entry in listed:
            parent, _, name = entry["name"].strip("/").rpartition("/")
            if name and parent == home:  # else it is the folder's own mark, or this is an object
                found.append({**entry, "name": name})
        return found

    def __truediv__(self, name: str) -> Stored:
        return Stored(self.fs, f"{self.path.rstrip('/')}/{name}")


@contextmanager
def answered(place: Path | str) -> Iterator[None]:
    """What a store's client raises in the block, as a disk would raise it.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: the store fails or lets us not in; its errno is EREMOTE, its message ends in a cure.
    """
    try:
        yield
    except _NOT_THERE:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place)) from None
    except Exception as error:  # each client has exceptions of its own, botocore's are no OSErrors
        code = getattr(error, "errno", None)
        if code in (errno.EREMOTE, errno.ENOSPC, errno.EDQUOT):  # told already, or of this machine's disk
            raise
        if code == errno.ENAMETOOLONG:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place)) from None
        said = " ".join(str(getattr(error, "strerror", None) or error).split())[:300] or type(error).__name__
        if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
            keys = _KEYS.get(str(place).partition("://")[0], "")
            told = f"the store does not let us in ({said}): give credentials that may list and read it{keys}"
        else:
            kind = "" if type(error) is OSError else f"{type(error).__name__}: "
            told = (
                f"the store fails ({kind}{said}): see that its address is right and answers; "
                "then the same command goes on from what is there"
            )
        raise OSError(errno.EREMOTE, told, str(place)) from None


class _Object(io.RawIOBase):
    """An object as a file: what is read on is asked for in pieces that grow, what follows a jump in a small one."""

    def __init__(self, stored: Stored, size: int) -> None:
        super().__init__()
        self.name = stored.url
        self._stored, self._size = stored, size
        self._at = self._start = 0  # of the next byte read, of the piece that is held
        self._held = b""
        self._ahead = _FIRST

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def readinto(self, into: Any) -> int:
        wanted = min(len(into), self._size - self._at)
        if wanted <= 0:
            return 0
        if not self._start <= self._at < self._start + len(self._held):
            skipped = self._at - self._start - len(self._held)
            goes_on = self._held and 0 <= skipped <= _SKIPPED
            self._ahead = min(2 * self._ahead, _AHEAD) if goes_on else _FIRST
            end = min(self._at + max(wanted, self._ahead), self._size)
            self._held, self._start = self._stored.span(self._at, end), self._at
            if len(self._held) < end - self._at:
                told = "the object has become shorter while it was read: build again"
                raise OSError(errno.EREMOTE, told, self.name)
        first = self._at - self._start
        piece = self._held[first : first + wanted]
        into[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def stored(path: Path) -> Stored:
    """A UPath as the place in its store."""
    place = cast(UPath, path)
    return Stored(place.fs, posixpath.normpath(place.path).rstrip("/"))


def is_folder(path: Path) -> bool:
    """Whether a folder is there; of a store: whether the bucket is, or any object under the prefix.

    Raises: OSError: the store fails.
    """
    return stored(path).is_folder() if is_remote(path) else path.is_dir()


def is_reached(path: Path) -> bool:
    """`is_folder` as the first question to a store: where its client would try for minutes, seconds are enough.

    Raises: OSError: the store fails, or says nothing for `PATIENCE` seconds.
    """
    if not is_remote(path):
        return path.is_dir()
    try:
        return soon(lambda: is_folder(path))
    except TimeoutError as error:
        with answered(path):
            raise error


def soon(ask: Callable[[], Answer]) -> Answer:
    """What a question to a store gives or raises. TimeoutError: nothing for `PATIENCE` seconds, and nobody waits on."""
    told: list[Answer] = []
    failed: list[BaseException] = []

    def asked() -> None:
        try:
            told.append(ask())
        except BaseException as error:  # noqa: BLE001  to be raised where the question was asked
            failed.append(error)

    asking = threading.Thread(target=asked, daemon=True)  # which holds up nobody's end
    asking.start()
    asking.join(PATIENCE)
    if failed:
        raise failed[0]
    if not told:
        raise TimeoutError(f"no answer in {PATIENCE} s")
    return told[0]


def is_file(path: Path) -> bool:
    """Whether a file is there. Raises: OSError: the store fails."""
    return stored(path).is_file() if is_remote(path) else path.is_file()


def size(path: Path) -> int:
    """Bytes of a file. Raises: OSError: it is not there, or the disk or store fails."""
    return stored(path).info()["size"] if is_remote(path) else path.stat().st_size


def opened(path: Path) -> BinaryIO:
    """A file to read and seek in. Raises: OSError: it is not there, or the disk or store fails."""
    return stored(path).open() if is_remote(path) else path.open("rb")


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """A file of at least one byte as memory; an object is copied to this machine's folder for temporary files first.

    Raises: OSError: as `opened`.
    """
    with near(path, [(0, size(path))]) if is_remote(path) else path.open("rb") as stream:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def near(path: Path, spans: Iterable[tuple[int, int]]) -> BinaryIO:
    """Parts of an object, (first byte, byte after the last), in a nameless file on this machine: each at its own place.

    What lies between them is a hole, and takes no room.

    Raises: OSError: as `opened`, or the disk is full.
    """
    source = stored(path)
    held = tempfile.TemporaryFile()  # noqa: SIM115  handed out
    try:
        held.truncate(source.info()["size"])
        for first, end in spans:
            held.seek(first)
            while first < end and (data := source.span(first, min(first + _AHEAD, end))):
                held.write(data)
                first += len(data)
        held.flush()
        held.seek(0)
    except BaseException:
        held.close()
        raise
    return cast(BinaryIO, held)


def get(path: Path, to: Path) -> None:
    """Copy an object to a file on this machine. Raises: OSError: as `opened`, or the disk fails."""
    with answered(path):
        cast(UPath, path).fs.get_file(cast(UPath, path).path, str(to))


def glob(folder: Path, pattern: str) -> Iterator[str]:
    """Files and folders below a folder whose relative paths match, as pathlib has it: `*` in a part, `**` for parts.

    Raises: OSError: the store fails.
    """
    if not is_remote(folder):
        yield from (path.relative_to(folder).as_posix() for path in folder.glob(pattern))
        return
    found = dict.fromkeys(_below(stored(folder), pattern.split("/")))
    yield from found


def _below(place: Stored, parts: Sequence[str]) -> Iterator[str]:
    first, *rest = parts
    if first == "**":
        yield from _below(place, rest)
    elif not _PATTERN.search(first):
        if rest:
            yield from (f"{first}/{name}" for name in _below(place / first, rest))
        elif (place / first).is_file() or (place / first).is_folder():
            yield first
        return
    matches = re.compile(translate(first)).match
    for entry in _entries(place):
        name, is_folder = entry["name"], entry["type"] == "directory"
        if first == "**" and is_folder:
            yield from (f"{name}/{below}" for below in _below(place / name, parts))
        elif first != "**" and matches(name):
            if not rest:
                yield name
            elif is_folder:
                yield from (f"{name}/{below}" for below in _below(place / name, rest))


def _entries(place: Stored) -> list[dict[str, Any]]:
    try:
        return place.entries()
    except FileNotFoundError:
        return []


def files(folder: Path) -> Iterator[str]:
    """The objects under a store's folder, relative to it, however deep. Raises: OSError: the store fails."""
    home = stored(folder)
    with answered(folder):
        found = home.fs.find(home.path or "/")
    start = home.path.strip("/") + "/"
    below = (path.lstrip("/").removeprefix(start.lstrip("/")) for path in found)
    yield from (path for path in below if "//" not in path)


def names(folder: Path) -> list[str]:
    """What lies in a folder, by name, in no order. Raises: OSError: it is not there, or the disk or store fails."""
    if is_remote(folder):
        return [entry["name"] for entry in stored(folder).entries()]
    return [entry.name for entry in folder.iterdir()]


def stamps(folder: Path, files: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Of those of these files that are in a store's folder: bytes, and a number that changes when the object does.

    Raises: OSError: the store fails.
    """
    home = stored(folder)
    by_place: dict[str, list[str]] = {}
    for file in files:
        by_place.setdefault(file.rpartition("/")[0], []).append(file)
    found: dict[str, tuple[int, int]] = {}
    for place, there in by_place.items():
        if len(there) > _ASKED_ONE_BY_ONE:
            listed = {f"{place}/{entry['name']}".lstrip("/"): entry for entry in _entries(home / place)}
        else:
            listed = {file: (home / file).info() for file in there if (home / file).is_file()}
        held = ((file, listed[file]) for file in there if file in listed)
        found |= {file: (entry["size"], _mark(entry)) for file, entry in held if entry["type"] == "file"}
    return found


def _mark(entry: dict[str, Any]) -> int:
    """A number for the state of an object, the same whether it was asked for or listed."""
    told = next((entry[name] for name in _MARKS if entry.get(name) is not None), "")
    if isinstance(told, datetime):
        told = told.timestamp()
    return int.from_bytes(hashlib.sha256(str(told).strip('"').encode()).digest()[:7])
