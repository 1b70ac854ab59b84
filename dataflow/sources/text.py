"""Plain documents: the text half of Transfusion's data, or anybody's.

URL      the user's own; for instance hf.co/datasets/HuggingFaceFW/fineweb-edu (parquet, column text)
Licence  the set's
Layout   *.jsonl, *.parquet, *.txt, however deep, read in the order of their paths
Row      {"text": "The bus was invented ...", "id": "<urn:uuid:...>", "url": "http://..."}
         a .txt file holds a document per line
Traps    the text may stand in another column (`content`, `raw_content`): `column` says which; upstream often packs
         files (.jsonl.gz, .jsonl.zst), which are refused, not skipped; a README.txt in the folder is read as documents
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow import folders
from dataflow.media import Corrupt
from dataflow.record import Candidate, Message, Text
from dataflow.sources import Read, matching, spelled, words

_ENDINGS = (".jsonl", ".parquet", ".txt")
_PACKED = (".gz", ".zst", ".xz", ".bz2", ".zip")


@dataclass(frozen=True, kw_only=True)
class TextDocuments:
    """Each row becomes text_document: the assistant says all of it."""

    name: str = "text"
    column: str = "text"
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        """The files of all three kinds; none in a hidden folder.

        Raises:
            ValueError: there is none, one is packed, or a folder is a link, which may lead anywhere.
        """
        held = sorted(_within(folder))
        if packed := [file for file in held if file.endswith(_PACKED)]:
            raise ValueError(
                f"{folder} holds {len(packed)} packed files, {packed[0]} first: unpack them or move them away"
            )
        found = [file for file in held if file.endswith(_ENDINGS)]
        return spelled(folder, found) if found else matching(folder, *(f"**/*{ending}" for ending in _ENDINGS))

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        if self.column not in value:
            raise Corrupt(f"no {self.column!r} in the row, it has {', '.join(sorted(value))}")
        document = words(value[self.column])
        if not document.strip():
            raise Corrupt(f"{self.column} is empty")
        yield Candidate(task="text_document", messages=(Message("assistant", (Text(document),)),))


def _within(folder: Path) -> Iterator[str]:
    """The files under a folder, relative to it, none hidden."""
    if folders.is_remote(folder):
        yield from (file for file in folders.files(folder) if not file.startswith(".") and "/." not in file)
        return
    yield from (path.relative_to(folder).as_posix() for path in _below(folder))


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif path.is_symlink():
            raise ValueError(f"{path} is a link to a folder: put the files there, or place them by --data text=DIR")
        else:
            yield from _below(path)
