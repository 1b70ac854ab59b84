"""The code that a job runs, as it is when the job is submitted: a folder of its own, which later edits do not reach.

What runs travels: the four rooms, and what an environment for them is built from. Tests, docs and benchmarks do not run
there, and what else lies in a checkout (notebooks, weights, a .env) is no business of a cluster's.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

TOLD = "code.txt"  # in a snapshot: what `commit` said of the house it was taken from

_ROOMS = ("clusters", "dataflow", "models", "pipelines")
_BESIDE = ("Dockerfile", "constraints.txt", "pyproject.toml")
_LARGEST = 4_000_000  # bytes of one file: code is smaller, and every node gets a copy
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can name


def take(house: Path, into: Path) -> None:
    """Copy the code into a new folder: with edits that are not committed, without what .gitignore names.

    Args:    house: the folder of the four rooms, a git work tree or not.
    Raises:  ValueError: a link that leads out of the house, a file too large to be code; nothing is written.
    """
    names = _files(house)
    for name in names:
        _fit(house / name, house)
    into.mkdir(parents=True)
    for name in names:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(house / name, into / name)
    (into / TOLD).write_text(commit(house))


def commit(house: Path) -> str:
    """The code in words: "commit <sha>" and a diff to it of what travels, new files too; else the version installed.

    Of a snapshot: what it was taken from.
    """
    if (house / TOLD).is_file():
        return (house / TOLD).read_text()
    places = ("--", *_ROOMS, *_BESIDE)
    if not _git(house, "ls-files", *places):  # no git, or a larger house than ours, which ignores it
        try:
            version = importlib.metadata.version("interlace")
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        return f"no git, version {version}\n"
    new = _git(house, "ls-files", "-o", "--exclude-standard", "-z", *places).split("\0")
    diffs = [_git(house, "diff", "--no-index", "--", "/dev/null", name) for name in new if name]
    return f"commit {_git(house, 'rev-parse', 'HEAD').strip()}\n{_git(house, 'diff', 'HEAD', *places)}{''.join(diffs)}"


def archive(folder: Path) -> bytes:
    """A folder as a zip: the same files give the same bytes, whenever and by whom they were written."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as into:
        for name in sorted(_walk(folder, folder)):
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.external_attr = 0o644 << 16
            into.writestr(entry, (folder / name).read_bytes(), zipfile.ZIP_DEFLATED, 9)
    return packed.getvalue()


def _files(house: Path) -> list[str]:
    """What of a house travels: as git knows it; all but caches where it knows nothing of the house."""
    places = (*_ROOMS, *_BESIDE)
    listed = _git(house, "ls-files", "-co", "--exclude-standard", "-z", "--", *places).split("\0")
    found = [name for name in listed if name and not _is_cache(name)]
    if not found:
        return [name for place in places for name in _walk(house / place, house)]
    return [name for name in found if os.path.lexists(house / name)]  # not what was deleted since the commit


def _walk(path: Path, house: Path) -> Iterator[str]:
    for each in path.rglob("*") if path.is_dir() else [path]:
        name = each.relative_to(house).as_posix()
        if (each.is_symlink() or each.is_file()) and not _is_cache(name):
            yield name


def _is_cache(name: str) -> bool:
    return "__pycache__" in PurePosixPath(name).parts


def _fit(path: Path, house: Path) -> None:
    """ValueError for what is no file of code."""
    if path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(house.resolve())):
        raise ValueError(f"{path} is a link to {path.readlink()}, no file of {house}: put the file itself there")
    if not path.is_file():
        raise ValueError(f"{path} is no file but a repository of its own: take it out, or add it to .gitignore")
    if (size := path.stat().st_size) > _LARGEST:
        raise ValueError(
            f"{path} has {size / 1e6:.1f} MB, and code that travels has {_LARGEST / 1e6:.0f} at most per file: "
            "put it under --data or --root, or add it to .gitignore"
        )


def _git(house: Path, *words: str) -> str:
    """What git says; "" where there is no git, or it knows nothing of such a house."""
    try:
        done = subprocess.run(["git", *words], cwd=house, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        return ""
    return done.stdout
