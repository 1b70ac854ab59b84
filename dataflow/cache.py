"""Shards of an object store on this machine's disk: bounded, named by content, shared by all processes that read them.

<folder>/<sha256>           a part, hashed when it arrived; read through an open file, so that whoever removes it
                            takes nothing away from a reader
<folder>/.<sha256>.<size>   one on its way: whoever brings it holds a lock on it, who wants it too waits for that
<folder>/.room              locked while room is made: what was used longest ago goes first
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dataflow import folders, shards
from dataflow.stores import StoreError

LIMIT = 100 << 30  # bytes that are kept unless told otherwise
_DIGEST = re.compile("[0-9a-f]{64}")
_CURE = "remove that folder and build it again"


def home() -> Path:
    """Where parts are kept unless told otherwise: $XDG_CACHE_HOME, or ~/.cache, /interlace/shards."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "interlace" / "shards"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A file in a store. size: bytes, None where nobody noted it. sha256: of its bytes."""

    path: Path
    sha256: str
    size: int | None = None

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.sha256):  # it names a file, and comes from a manifest
            raise StoreError(f"{self.path}: {self.sha256!r} is no sha256: its manifest is damaged, build it again")


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Parts on this machine. Threads and processes may use one folder at the same time.

    limit: bytes of all that is kept; what a reader still has open or mapped is not counted once it is removed.
    """

    folder: Path = field(default_factory=home)
    limit: int = LIMIT

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit={self.limit}: bytes that a cache of shards may hold, from 1 on")

    def bring(self, part: Part) -> None:
        """Bring a part here ahead of its use; one that is here is only marked as used.

        Raises: as `opened`.
        """
        self.opened(part).close()

    def opened(self, part: Part) -> BinaryIO:
        """A part to read and seek in, brought here first where it is not.

        Raises:
            StoreError: the store does not have it, or other bytes.
            OSError: the store fails or lets us not in, the cache's disk is full or fails, or it is larger than all that
                the cache may hold.
        """
        final = self.folder / part.sha256
        while True:
            try:
                stream = final.open("rb")
            except (FileNotFoundError, NotADirectoryError):
                self._fetch(part, final)
                continue  # somebody may have made room meanwhile
            if part.size is not None and os.fstat(stream.fileno()).st_size != part.size:
                stream.close()  # cut by what happened to the machine: it was whole when it was named
                final.unlink(missing_ok=True)
                continue
            os.utime(stream.fileno())  # used now
            return stream

    def _fetch(self, part: Part, final: Path) -> None:
        size = _size(part) if part.size is None else part.size
        if size > self.limit:
            told = f"{part.path} is {size} bytes, this cache of shards holds {self.limit}: give it a larger limit"
            raise OSError(errno.EFBIG, told, str(self.folder))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._put(part, size, final)
        except OSError as error:
            if error.errno == errno.EREMOTE:
                raise
            told = f"{error.strerror} (shards of a store are kept here; XDG_CACHE_HOME places them elsewhere)"
            raise OSError(error.errno, told, error.filename or str(self.folder)) from None

    def _put(self, part: Part, size: int, final: Path) -> None:
        draft = self.folder / f".{part.sha256}.{size}"
        with self._locked(draft):
            if final.is_file():  # whoever held the lock before us brought it
                draft.unlink()
                return
            try:
                with shards.of_file(draft):
                    self._make_room(size, draft)
                    folders.get(part.path, draft)
                found = shards.sha256(draft)
                if found != part.sha256 or draft.stat().st_size != size:
                    raise StoreError(
                        f"{part.path} is not the bytes that were built (sha256 {found[:12]} for {part.sha256[:12]}): "
                        f"run interlace verify {part.path.parent}, {_CURE}"
                    )
                draft.rename(final)
            except BaseException as error:
                draft.unlink(missing_ok=True)
                if isinstance(error, FileNotFoundError):
                    raise _gone(part) from None
                raise

    @contextmanager
    def _locked(self, draft: Path) -> Iterator[None]:
        """Hold a draft that is still at its name: the one who held it before us renamed or removed it."""
        while True:
            with shards.of_file(draft), draft.open("ab") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                try:
                    same = os.path.samestat(os.fstat(stream.fileno()), draft.stat())
                except FileNotFoundError:
                    continue
                if same:
                    yield
                    return

    def _make_room(self, size: int, mine: Path) -> None:
        """Remove what was used longest ago until `size` more bytes fit under the limit."""
        with (self.folder / ".room").open("ab") as room:
            fcntl.flock(room, fcntl.LOCK_EX)
            kept: list[tuple[int, str, int]] = []  # last use, path, bytes
            coming = size
            for entry in os.scandir(self.folder):
                if entry.name in (".room", mine.name):
                    continue
                try:
                    if not entry.name.startswith("."):
                        status = entry.stat()
                        kept.append((status.st_mtime_ns, entry.path, status.st_size))
                    elif not _abandoned(Path(entry.path)):
                        coming += int(entry.name.rpartition(".")[2])
                except FileNotFoundError:
                    continue
            held = coming + sum(each for _, _, each in kept)
            for _, path, each in sorted(kept):
                if held <= self.limit:
                    break
                Path(path).unlink(missing_ok=True)
                held -= each


def _size(part: Part) -> int:
    try:
        return folders.size(part.path)
    except FileNotFoundError:
        raise _gone(part) from None


def _gone(part: Part) -> StoreError:
    return StoreError(f"{part.path} is gone from its corpus: run interlace verify {part.path.parent}, {_CURE}")


def _abandoned(draft: Path) -> bool:
    """Whether nobody brings this any more; then it is removed. The kernel lets go of the locks of those who died."""
    with draft.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        draft.unlink(missing_ok=True)
        return True
