"""InstructPix2Pix: pairs of generated pictures and the instruction that leads from one to the other.

URL      hf.co/datasets/timbrooks/instructpix2pix-clip-filtered
Licence  not stated on the card; repository MIT, Stable Diffusion's terms
Layout   data/train-?????-of-00262-<16 hex>.parquet, 313,010 rows
Row      original_prompt, original_image {bytes, path}, edit_prompt, edited_prompt, edited_image {bytes, path}
Traps    up to 4 pairs share one prompt; a picture may be null, or a path without bytes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow.media import Corrupt, picture
from dataflow.readers import text
from dataflow.record import Candidate, Image, Media, Message, Text
from dataflow.sources import Read, matching


@dataclass(frozen=True, kw_only=True)
class InstructPix2Pix:
    """Each row becomes image_editing: picture and instruction ask, the edited picture answers."""

    name: str = "instruct_pix2pix"
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        """The parquet files of the training split."""
        return matching(folder, "data/train-*.parquet")

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        instruction = text(value.get("edit_prompt")).strip()
        if not instruction:
            raise Corrupt("edit_prompt is empty")
        yield Candidate(
            task="image_editing",
            messages=(Message("user", (Image(0), Text(instruction))), Message("assistant", (Image(1),))),
            media=(_media(value, "original_image"), _media(value, "edited_image")),
        )


def _media(value: dict[str, Any], column: str) -> Media:
    cell = value.get(column)
    data = cell.get("bytes") if isinstance(cell, dict) else None
    if not isinstance(data, bytes):
        raise Corrupt(f"{column} holds no bytes")
    try:
        return picture(data)
    except Corrupt as problem:
        raise Corrupt(f"{column}: {problem}") from None
