"""Where upstream data lies, and which paths a row may name. Every path in a corpus is untrusted.

`--data DIR` declares one folder per source; `--data NAME=DIR` places one source, or a picture root that rows name first
(`coco/train2017/1.jpg`). A row's path is followed, links included, when it ends inside a declared root.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dataflow.media import Corrupt

MAX_BYTES = 1 << 30  # of a file that a row names; over any sound picture, under any corpus' own index
_NO_FILE = (errno.ENOENT, errno.ENOTDIR)
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)  # what a row can bring about; the rest is the disk's


@dataclass(frozen=True, kw_only=True)
class Roots:
    """The declared folders, resolved once.

    base: holds a folder per source. named: sources and shared picture roots that lie elsewhere.
    """

    base: Path | None = None
    named: Mapping[str, Path] = field(default_factory=dict)
    _real: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)  # folders as resolved

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", self.base and self.base.resolve())
        object.__setattr__(self, "named", {name: folder.resolve() for name, folder in self.named.items()})

    @staticmethod
    def parse(values: list[str]) -> Roots:
        """Roots from `--data` values.

        Raises: ValueError: a folder that is not there, a name given twice, or two base folders.
        """
        base, named = None, {}
        for value in values:
            name, equals, place = value.partition("=")
            if "/" in name:  # a folder that has = in its name
                name, equals, place = "", "", value
            if not (place if equals else value) or (equals and not name):
                raise ValueError(f"--data {value!r}: give DIR or NAME=DIR, neither of them empty")
            try:
                folder = Path(place if equals else value).expanduser().resolve()
            except RuntimeError:
                raise ValueError(f"--data {value}: an unknown ~user, or links in a circle; give a full path") from None
            if not folder.is_dir():
                raise ValueError(f"--data {value}: no folder {folder}; give an existing one")
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
        if not (self.base / name).is_dir():
            raise ValueError(f"no folder {self.base / name}: put {name} there or give --data {name}=DIR")
        return self._follow(str(self.base / name))

    def find(self, source: str, path: str) -> Path:
        """The file that a row of `source` names.

        Raises:
            Corrupt: the path leaves the declared roots, or no such file; the message is the ledger's reason, and says
                nothing that changes when the data is moved as a whole.
            OSError: as `read`.
        """
        shown = repr(path if len(path) <= 200 else path[:200] + "...")
        if "\0" in path or not path.strip() or not _spellable(path):
            raise Corrupt(f"picture path {shown} is no path")
        first, _, rest = path.partition("/")
        folder = self.source(source)
        named = self.named.get(first) if rest else None
        inside = [self.base, folder, *self.named.values()]
        try:
            place = self._follow(str(named / rest if named else folder / path))
            if not any(root is not None and place.is_relative_to(root) for root in inside):
                where = PurePosixPath(path[:200]).parent if path.startswith("/") else "the folder it ends in"
                raise Corrupt(f"picture path {shown} leaves the declared folders: admit it by --data NAME={where}")
            status = place.stat()
        except OSError as error:
            if error.errno in _NO_FILE:
                raise Corrupt(f"picture {shown} is not there") from None
            if error.errno in _NO_PATH:
                raise Corrupt(f"picture path {shown} cannot be followed: {os.strerror(error.errno)}") from None
            raise
        if not stat.S_ISREG(status.st_mode):
            raise Corrupt(f"picture {shown} is no file")
        if status.st_size > MAX_BYTES:
            raise Corrupt(f"picture {shown} is {status.st_size} bytes, over {MAX_BYTES}")
        return place

    def read(self, source: str, path: str) -> bytes:
        """The bytes of a file that a row of `source` names.

        Raises: Corrupt: as `find`. OSError: the disk fails; that is never the row's fault, so it stops the build.
        """
        return self.find(source, path).read_bytes()

    def _follow(self, path: str) -> Path:
        """The path with links and `..` resolved; folders are remembered, for rows name many files of few of them."""
        folder, name = os.path.split(path)
        if name in ("", ".", ".."):
            return Path(os.path.realpath(path))
        real = self._real.get(folder)
        if real is None:
            real = self._real[folder] = os.path.realpath(folder)
        place = Path(real, name)
        return Path(os.path.realpath(place)) if place.is_symlink() else place


def _spellable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True
