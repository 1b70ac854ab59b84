"""Where upstream data lies, and which paths a row may name. Every path in a corpus is untrusted.

`--data DIR` declares one folder per source; `--data NAME=DIR` places one source, or a picture root that rows name first
(`coco/train2017/1.jpg`). A row's path is followed, links included, when it ends inside a declared root. A root may lie
in an object store (`--data s3://bucket/corpora`), where no link is and `..` is a matter of spelling.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from dataflow import folders
from dataflow.folders import Stored
from dataflow.media import Corrupt, Missing, summary
from dataflow.readers import BOUNDED, BROKEN_ZIP

MAX_BYTES = 1 << 30  # of a file that a row names; over any sound picture or caption; clips are opened, not read whole
_ARCHIVES = 16  # kept open at a time
_NO_FILE = (errno.ENOENT, errno.ENOTDIR)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)  # what a row can bring about; the rest is the disk's
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes on a disk; in a store the same is said of longer ones


@dataclass(frozen=True, kw_only=True)
class Roots:
    """The declared folders, resolved once.

    base: holds a folder per source. named: sources and shared picture roots that lie elsewhere.
    """

    base: Path | None = None
    named: Mapping[str, Path] = field(default_factory=dict)
    _real: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)  # folders as resolved
    _folders: dict[str, tuple[str, tuple[str, ...]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # of sources
    _homes: dict[str, Path] = field(default_factory=dict, init=False, repr=False, compare=False)  # in stores, seen
    stores: tuple[Stored, ...] = field(default=(), init=False, repr=False, compare=False)  # the roots that are there

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", self.base and self.base.resolve())
        object.__setattr__(self, "named", {name: folder.resolve() for name, folder in self.named.items()})
        roots = (self.base, *self.named.values())
        stores = tuple(folders.stored(root) for root in roots if root is not None and folders.is_remote(root))
        object.__setattr__(self, "stores", stores)

    @staticmethod
    def parse(values: list[str]) -> Roots:
        """Roots from `--data` values.

        Raises:
            ValueError: a folder that is not there, a name given twice, or two base folders.
            OSError: a store does not answer, or does not let us in.
        """
        base, named = None, {}
        for value in values:
            name, equals, place = value.partition("=")
            if "/" in name:  # a folder that has = in its name
                name, equals, place = "", "", value
            if not (place if equals else value) or (equals and not name):
                raise ValueError(f"--data {value!r}: give DIR or NAME=DIR, neither of them empty")
            try:
                folder = folders.folder(place if equals else value).resolve()
            except RuntimeError:
                raise ValueError(f"--data {value}: an unknown ~user, or links in a circle; give a full path") from None
            except ValueError as error:
                raise ValueError(f"--data {error}") from None
            if not folders.is_reached(folder):
                kind = "bucket, or nothing in it under this name," if folders.is_remote(folder) else "folder"
                raise ValueError(f"--data {value}: no {kind} {folder}; give an existing one")
            if equals and name in named:
                raise ValueError(f"--data {value}: {name} is already {named[name]}; give each name once")
            if not equals and base is not None:
                raise ValueError(f"--data {value}: the folder of all sources is already {base}; use NAME=DIR")
            if equals:
                named[name] = folder
            else:
                base = folder
        return Roots(base=base, named=named)

    def source(self, name: str) -> Path:
        """The folder of a source.

        Raises: ValueError: it was not declared or is not there.
        """
        if name in self.named:
            return self.named[name]
        if self.base is None:
            raise ValueError(f"where is {name}? give --data DIR (with a folder {name}/ in it) or --data {name}=DIR")
        if name in self._homes:
            return self._homes[name]
        if not folders.is_folder(self.base / name):
            raise ValueError(f"no folder {self.base / name}: put {name} there or give --data {name}=DIR")
        if folders.is_remote(self.base):
            return self._homes.setdefault(name, self.base / name)
        return Path(self._follow(str(self.base / name)))

    def files(self, source: str, file: str = "") -> Files:
        """What the rows of a source may read; `file`: the input file they stand in."""
        return Files(roots=self, source=source, file=file)

    def find(self, source: str, path: str) -> Path:
        """The file or folder that a row of `source` names.

        Raises:
            Missing: nothing is there.
            Corrupt: the path leaves the declared roots; the message is the ledger's reason, and says nothing that
                changes when the data is moved as a whole.
            OSError: the disk fails; that is never the row's fault, so it stops the build.
        """
        return Path(self.found(source, path)[0])

    def unreadable(self, source: str, file: str) -> str | None:
        """Why an input file that a source lists may not be read, or None: links are followed as for a row's paths.

        Raises: OSError: the disk or the store fails.
        """
        home = self.source(source)
        if folders.is_remote(home):
            try:
                found = (folders.stored(home) / file).info()
            except FileNotFoundError:
                return f"file cannot be opened: {os.strerror(errno.ENOENT)}"
            return None if found["type"] == "file" else "file is no plain file"
        folder, inside = self._declared(source)
        try:
            place = self._follow(os.path.join(folder, file))
            if not f"{place}/".startswith(inside):
                return "file is a link that leaves the declared folders: admit it by --data NAME=DIR of where it ends"
            if not stat.S_ISREG(os.stat(place).st_mode):
                return "file is no plain file"
        except OSError as error:
            if error.errno in (*_NO_FILE, *_NO_PATH, *_FORBIDDEN):
                return f"file cannot be opened: {os.strerror(error.errno)}"
            raise
        return None if os.access(place, os.R_OK) else "file may not be read by this user"

    def stamps(self, source: str, files: Sequence[str]) -> list[tuple[int, int]]:
        """Of the input files that a source lists: bytes, and mtime in ns or what tells states of an object apart.

        Both are 0 where a file may not be read: the ledger says why.

        Raises: OSError: the disk or the store fails.
        """
        home = self.source(source)
        if folders.is_remote(home):
            found = folders.stamps(home, files)
            return [found.get(file, (0, 0)) for file in files]
        told = []
        for file in files:
            status = os.stat(home / file) if self.unreadable(source, file) is None else None
            told.append((status.st_size, status.st_mtime_ns) if status else (0, 0))
        return told

    def stored(self, source: str, path: str) -> Stored | None:
        """What a row of `source` names, where that is in a store; None where it is on this machine. Nothing is asked.

        Raises: Corrupt: as `find`.
        """
        if not self.stores:
            return None
        if not _is_path(path):
            raise Corrupt(f"path {_shown(path)} is no path")
        first, _, rest = path.removeprefix("./").partition("/")
        named = self.named.get(first) if rest else None
        home, tail = (named, rest) if named is not None else (self.source(source), path)
        of = next((root for root in self.stores if path.startswith(f"{root.url.partition('://')[0]}://")), None)
        if of is not None:
            place = of.fs._strip_protocol(path)
        elif not folders.is_remote(home) or tail.startswith("/"):
            return None
        else:
            of = folders.stored(home)
            place = f"{of.path}/{tail}"
        found = Stored(of.fs, posixpath.normpath(place))
        if not any(root.fs == of.fs and f"{found.path}/".startswith(f"{root.path}/") for root in self.stores):
            raise _leaves(path)
        if len(os.fsencode(path)) > _LONGEST_PATH or any(
            len(os.fsencode(part)) > _LONGEST_NAME for part in path.split("/")
        ):
            raise Corrupt(f"path {_shown(path)} cannot be followed: {os.strerror(errno.ENAMETOOLONG)}")
        if not _is_utf8(path) or "?versionId=" in path:  # of which s3fs makes a version of another object
            raise Missing(f"file {_shown(path)} is not there")
        return found

    def found(self, source: str, path: str) -> tuple[str, os.stat_result]:
        """`find` as text, and the status of what is there: making Paths took longer than reading a picture."""
        if not _is_path(path):
            raise Corrupt(f"path {_shown(path)} is no path")
        first, _, rest = path.removeprefix("./").partition("/")
        named = self.named.get(first) if rest else None
        folder, inside = self._declared(source)
        try:
            place = self._follow(os.path.join(str(named), rest) if named else os.path.join(folder, path))
            if not f"{place}/".startswith(inside):
                raise _leaves(path)
            return place, os.stat(place)
        except OSError as error:
            if error.errno in _NO_FILE:
                raise Missing(f"file {_shown(path)} is not there") from None
            if error.errno in (*_NO_PATH, *_FORBIDDEN):
                raise Corrupt(f"path {_shown(path)} cannot be followed: {os.strerror(error.errno)}") from None
            raise

    def _declared(self, source: str) -> tuple[str, tuple[str, ...]]:
        """A source's folder, and what paths begin with that lie in any declared folder; remembered."""
        if source not in self._folders:
            folder = self.source(source)
            roots = [root for root in (self.base, folder, *self.named.values()) if root is not None]
            self._folders[source] = str(folder), tuple(os.path.join(str(root), "") for root in roots)
        return self._folders[source]

    def _follow(self, path: str) -> str:
        """The path with links and `..` resolved; folders are remembered, for rows name many files of few of them."""
        folder, name = os.path.split(path)
        if name in ("", ".", ".."):
            return os.path.realpath(path)
        real = self._real.get(folder)
        if real is None:
            real = self._real[folder] = os.path.realpath(folder)
        place = os.path.join(real, name)
        return os.path.realpath(place) if os.path.islink(place) else place


@dataclass(frozen=True, eq=False)
class Files:
    """What the rows of one input file of a source may read: `sources.Read` over declared roots."""

    roots: Roots
    source: str
    file: str = ""

    def __call__(self, path: str) -> bytes:
        """The bytes of a file of at most `MAX_BYTES`; of an object in one request."""
        if (stored := self.roots.stored(self.source, path)) is not None:
            with self._present(stored, path):
                data = stored.span(0, MAX_BYTES + 1)
                if len(data) > MAX_BYTES:
                    raise Corrupt(f"file {_shown(path)} is {stored.info()['size']} bytes, over {MAX_BYTES}")
            return data
        place, status = self._file(path)
        if status.st_size > MAX_BYTES:
            raise Corrupt(f"file {_shown(path)} is {status.st_size} bytes, over {MAX_BYTES}")
        with open(place, "rb", buffering=0) as stream:
            return stream.readall()

    def open(self, path: str) -> BinaryIO:
        """A file of any size, to read and seek in."""
        if (stored := self.roots.stored(self.source, path)) is not None:
            with self._present(stored, path):
                return stored.open()
        return open(self._file(path)[0], "rb")

    def names(self, path: str) -> list[str]:
        """The names of the plain files in a folder, sorted; hidden ones are left out."""
        if (stored := self.roots.stored(self.source, path)) is not None:
            return _names(stored, path)
        place = self.roots.find(self.source, path)
        if not place.is_dir():
            raise Corrupt(f"{_shown(path)} is no folder")
        entries = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
        return sorted(entry.name for entry in entries if os.path.isfile(entry.path))

    def member(self, archive: str, path: str) -> bytes:
        """The bytes of a member of a zip archive, by its name there; at most `MAX_BYTES`, whatever its header says."""
        if archive not in self._archives:
            remote = self.roots.stored(self.source, archive) is not None
            place = self.open(archive) if remote else self._file(archive)[0]
            if len(self._archives) >= _ARCHIVES:
                self._archives.popitem(last=False)[1].close()
            try:
                self._archives[archive] = zipfile.ZipFile(place)
            except BROKEN_ZIP as error:
                raise Corrupt(f"archive {_shown(archive)} does not open: {summary(error)}") from None
        opened = self._archives[archive]
        shown = f"member {_shown(path)} of {_shown(archive)}"
        try:
            if opened.getinfo(path).compress_type not in BOUNDED:
                raise Corrupt(f"{shown} is packed by other means than deflate: pack the archive anew")
            with opened.open(path) as stream:
                data = stream.read(MAX_BYTES + 1)
        except KeyError:
            raise Missing(f"{shown} is not there") from None
        except Corrupt:
            raise
        except BROKEN_ZIP as error:
            raise Corrupt(f"{shown} does not read: {summary(error)}") from None
        except OSError as error:
            if error.errno != errno.EINVAL:  # that is the disk's
                raise
            raise Corrupt(f"{shown} does not read: its place in the archive is none") from None
        if len(data) > MAX_BYTES:
            raise Corrupt(f"{shown} is over {MAX_BYTES} bytes when unpacked")
        return data

    def _file(self, path: str) -> tuple[str, os.stat_result]:
        place, status = self.roots.found(self.source, path)
        if not stat.S_ISREG(status.st_mode):
            raise Corrupt(f"{_shown(path)} is no file")
        if not os.access(place, os.R_OK):
            raise Corrupt(f"file {_shown(path)} may not be read by this user")
        return place, status

    @contextmanager
    def _present(self, stored: Stored, path: str) -> Iterator[None]:
        """Tell of a row's path why there is no object, as it is told of a file."""
        try:
            if stored in self.roots.stores:
                raise FileNotFoundError
            yield
        except FileNotFoundError:
            if stored.is_folder():
                raise Corrupt(f"{_shown(path)} is no file") from None
            raise Missing(f"file {_shown(path)} is not there") from None

    @cached_property
    def _archives(self) -> OrderedDict[str, zipfile.ZipFile]:
        return OrderedDict()


def _names(stored: Stored, path: str) -> list[str]:
    try:
        found = stored.entries()
    except FileNotFoundError:
        raise Missing(f"file {_shown(path)} is not there") from None
    if not found and stored.is_file():
        raise Corrupt(f"{_shown(path)} is no folder")
    return sorted(each["name"] for each in found if each["type"] == "file" and not each["name"].startswith("."))


def _leaves(path: str) -> Corrupt:
    where = PurePosixPath(path[:200]).parent if path.startswith("/") else "the folder it ends in"
    return Corrupt(f"path {_shown(path)} leaves the declared folders: admit it by --data NAME={where}")


def _is_path(path: str) -> bool:
    return "\0" not in path and bool(path.strip()) and _spellable(path)


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # a byte of a disk's that is no UTF-8, as Python spells it
        return False
    return True


def _shown(path: str) -> str:
    return repr(path if len(path) <= 200 else path[:200] + "...")


def _spellable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True
