"""One file per upstream corpus: how its real on-disk layout becomes candidates.

A source is a frozen dataclass with a `name`, a `version` and the two methods below; it is a value in a recipe, not a
name in a registry, so it may live anywhere. What it cannot use it reports by raising or yielding `Corrupt`; it drops
nothing. What many rows hold (a picture in a column or under a path, text, JSON) is read by the functions at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

from dataflow import folders, readers  # its text() would be hidden by our module text
from dataflow.media import Corrupt, picture
from dataflow.record import Candidate, Media

_NO_FILE = ("", "none", "nan", "null")  # cambrian/train/train_fsdp.py _has_image, cases folded


class Read(Protocol):
    """The files that a row names, relative to its source's folder or by the name of a declared root first.

    All raise Missing when nothing is there, Corrupt when the path leaves the declared folders or names something else.
    file: the input file that the row stands in, relative to its source's folder.
    """

    @property
    def file(self) -> str: ...

    def __call__(self, path: str) -> bytes:
        """The bytes of a file."""
        ...

    def open(self, path: str) -> BinaryIO:
        """A file to read and seek in, for videos; the caller closes it."""
        ...

    def names(self, path: str) -> list[str]:
        """The names of the plain files in a folder, sorted."""
        ...

    def member(self, archive: str, path: str) -> bytes:
        """The bytes of a member of a zip archive."""
        ...


class Source(Protocol):
    """One upstream corpus and the code that reads it. `version` is raised when its candidates change.

    A source whose pictures depend on a library's version (a video decoder) names it: `libraries: ClassVar = ("av",)`.
    """

    version: ClassVar[int]

    @property
    def name(self) -> str:
        """Folder under `--data`, first part of every key: lower case letters, digits and underscores."""
        ...

    def files(self, folder: Path) -> list[str]:
        """The input files that hold its rows, relative to its folder, in the order that numbers the splits."""
        ...

    def candidates(self, value: Any, key: str, read: Read) -> Iterable[Candidate | Corrupt]:
        """What one row gives: one candidate or several.

        Args:
            value: the row: a JSON object, a parquet row, or a tar sample by extension.
            key: the row's key, for choices that must be the same every time.
            read: opens the files a row names.
        """
        ...


def matching(folder: Path, *patterns: str) -> list[str]:
    """Files of a folder that match any pattern, relative, in one fixed order; none in a hidden folder (.cache, .git).

    Raises:
        ValueError: none does, or a name is not UTF-8, or of a store and with `::`.
    """
    there = {path for pattern in patterns for path in folders.glob(folder, pattern)}
    found = sorted(file for file in there if not file.startswith(".") and "/." not in file)
    if not found:
        wanted = " or ".join(patterns)
        raise ValueError(f"{folder} holds no {wanted}: is this the corpus' own layout? docs/corpora.md has it")
    return spelled(folder, found)


def spelled(folder: Path, files: list[str]) -> list[str]:
    """These files of a folder, once it is sure that a ledger can name them.

    Raises: ValueError: a name is not UTF-8.
    """
    for file in files:
        try:
            file.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{folder} holds {file!r}, a name that is not UTF-8: rename the file") from None
        if "::" in file and folders.is_remote(folder):  # fsspec's mark between two stores, one inside the other
            raise ValueError(f"{folder} holds {file!r}, a name with '::' that no store's client spells: rename it")
    return files


def over_zero(source: Any, *fields: str) -> None:
    """Refuse a source whose numbers make no sense, where it is made.

    Raises: ValueError: one of these fields is not over 0.
    """
    for field in fields:
        if not getattr(source, field) > 0:
            raise ValueError(f"{field}={getattr(source, field)} of {source.name}: it must be over 0")


def either(folder: Path, *layouts: str) -> list[str]:
    """Files of a corpus that is published in several forms, of the one form that is there.

    Raises:
        ValueError: no form is there, or more than one: each row would be read twice.
    """
    there = [layout for layout in layouts if next(folders.glob(folder, layout), None)]
    if len(there) > 1:
        raise ValueError(f"{folder} holds {' and '.join(there)}, forms of the same rows: keep one of them there")
    return matching(folder, *(there or layouts))


def cell(held: Any, name: str) -> Media:
    """The picture in a cell of a parquet row: bytes, or an object that holds them as `bytes`.

    Raises:
        Corrupt: no picture; `name` of the cell begins the message.
    """
    data = held.get("bytes") if isinstance(held, dict) else held
    if not isinstance(data, bytes):
        raise Corrupt(f"{name} holds no bytes")
    try:
        return picture(data)
    except Corrupt as problem:
        raise Corrupt(f"{name}: {problem}") from None


def opened(read: Read, path: str) -> Media:
    """The picture in a file that a row names.

    Raises:
        Missing: nothing is there.
        Corrupt: no picture; the path begins the message.
    """
    return cell(read(path), path)


def words(held: Any) -> str:
    """The text of a field or of a tar's member, as it is there.

    Raises:
        Corrupt: bytes that are not UTF-8, a NUL, or what is no text (a list, an object).
    """
    if isinstance(held, bytes):
        try:
            held = held.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Corrupt(f"text is not UTF-8: byte {error.start}") from None
    found = readers.text(held)
    if (place := found.find("\0")) >= 0:
        raise Corrupt(f"text holds a NUL, at character {place}")
    return found


def named(field: Any) -> str:
    """The path in a row's field; empty for every spelling of no file: None, NaN, '', 'None', 'nan', 'null'.

    Raises:
        Corrupt: a list, an object or bytes.
    """
    path = readers.text(field).strip()
    return "" if path.lower() in _NO_FILE else path


def parsed(data: bytes | str, name: str) -> Any:
    """The JSON in a tar's member, a column or a small file.

    Raises:
        Corrupt: it is none; `name` begins the message.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{name} does not parse: {type(error).__name__}") from None
