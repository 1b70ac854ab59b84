"""Folders of an object store that are written to, and listed in few requests; `folders.py` has what reads one file.

A store has no rename, no link and no lock. An object appears whole or not at all, so what was built is put there under
names that follow from its bytes, and what names all of it comes last. Paths of this machine are welcome wherever one
asks what is there: a folder of corpora may be either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from dataflow import folders
from dataflow.folders import is_remote, stored

_AT_ONCE = 16  # requests under way

Item = TypeVar("Item")
Result = TypeVar("Result")


class StoreError(ValueError):
    """A store cannot be used, or does not hold what it should."""


def reach(place: Path) -> None:
    """Find out within seconds whether a store can be used; a folder of this machine needs no asking.

    Raises:
        OSError: it does not let us in, or fails.
        StoreError: it does not answer, or there is no such bucket.
    """
    if not is_remote(place):
        return

    def there() -> bool:
        home = stored(place)
        bucket = home.path.strip("/").partition("/")[0]
        with folders.answered(place):
            return bool(_listed(place)) or not bucket or "memory" in home.fs.protocol or home.fs.exists(bucket)

    try:
        found = folders.soon(there)
    except TimeoutError:
        raise StoreError(
            f"{place}: the store does not answer within {folders.PATIENCE} s: look at the network and its address"
        ) from None
    if not found:
        raise _no_bucket(place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Something in a folder. size: bytes, of a folder 0."""

    path: Path
    is_folder: bool
    size: int


def entries(place: Path) -> list[Entry]:
    """What lies in a folder, by name; nothing where there is no folder. A store is asked once per thousand names."""
    if is_remote(place):
        return sorted(_listed(place), key=lambda each: each.path.name)
    if not place.is_dir():
        return []
    found = [(path, path.is_dir()) for path in sorted(place.iterdir(), key=lambda path: path.name)]
    return [Entry(path=path, is_folder=held, size=0 if held else path.lstat().st_size) for path, held in found]


def inside(place: Path, pattern: str) -> list[Path]:
    """The paths in a folder whose names match, by name."""
    if not is_remote(place):
        return sorted(place.glob(pattern))
    return [each.path for each in entries(place) if fnmatch(each.path.name, pattern)]


def _listed(place: Path) -> list[Entry]:
    try:
        told = stored(place).entries()
    except FileNotFoundError:
        return []
    return [
        Entry(path=place / each["name"], is_folder=each["type"] == "directory", size=int(each["size"] or 0))
        for each in told
    ]


def under(place: Path) -> list[Entry]:
    """Every object below a folder of a store, however deep, by path."""
    home = stored(place)
    with folders.answered(place):
        try:
            told = home.fs.find(home.path, detail=True)
        except FileNotFoundError:
            return []
    start = len(home.path.strip("/")) + 1
    return [
        Entry(path=place / name.strip("/")[start:], is_folder=False, size=int(each["size"] or 0))
        for name, each in sorted(told.items())
    ]


def at_once(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`work(item)` of every item, in their order, some at a time: what waits for a store waits together."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(_AT_ONCE) as waiting:
        return list(waiting.map(work, items))


def read(path: Path) -> bytes:
    """The bytes of a file. Raises: OSError: it is not there, or the disk or store fails."""
    if not is_remote(path):
        return path.read_bytes()
    home = stored(path)
    with folders.answered(path):
        return home.fs.cat_file(home.path)


def changed(path: Path) -> int | None:
    """When a file was written, ns since 1970, None where there is none. S3 tells whole seconds."""
    if not is_remote(path):
        return path.stat().st_mtime_ns if path.is_file() else None
    home = stored(path)
    with suppress(FileNotFoundError), folders.answered(path):
        return int(home.fs.modified(home.path).timestamp() * 1e9)
    return None


def readable(path: Path) -> Any:
    """What pyarrow reads a table from: the file itself, or what reads parts of an object."""
    return folders.opened(path) if is_remote(path) else path


def write(path: Path, data: bytes) -> None:
    """Put an object into a store, whole or not at all."""
    with _into(path) as fs:
        fs.pipe_file(stored(path).path, data)


def put(file: Path, path: Path) -> None:
    """Put a file of this machine into a store, whole or not at all."""
    with _into(path) as fs:
        fs.put_file(str(file), stored(path).path)


def copy(old: Path, new: Path) -> None:
    """Copy an object inside a store; its bytes do not pass through here. FileNotFoundError where there is none."""
    with folders.answered(old):
        stored(new).fs.cp_file(stored(old).path, stored(new).path)


def remove(paths: Sequence[Path]) -> None:
    """Remove files; those that are gone are no matter. Many objects of a store go by one request."""
    if paths and not is_remote(paths[0]):
        for path in paths:
            path.unlink(missing_ok=True)
    elif paths:
        with suppress(FileNotFoundError), folders.answered(paths[0]):
            stored(paths[0]).fs.rm([stored(path).path for path in paths])


@contextmanager
def _into(path: Path) -> Iterator[Any]:
    try:
        with folders.answered(path):
            yield stored(path).fs
    except FileNotFoundError:
        raise _no_bucket(path) from None


def _no_bucket(place: Path) -> StoreError:
    bucket = stored(place).path.strip("/").partition("/")[0]
    return StoreError(f"{place}: there is no bucket {bucket}: create it, or mend the name")
