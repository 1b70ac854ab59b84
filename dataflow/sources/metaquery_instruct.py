"""MetaQuery-Instruct: from pictures that stood on one web page, a prompt that leads to another picture of it.

URL      hf.co/datasets/xcpan/MetaQuery_Instruct_2.4M_512res (or MetaQuery_Instruct_2.4M)
Licence  CC-BY-NC for the code, ODC-BY for the data; the pictures are the web's (mmc4)
Layout   parquet, at the top or one folder deep, 2.4 M rows
Row      source_images [{bytes, path}, ...] (1 to 5), source_captions ["a red bus", ...], prompt "The bus by night.",
         target_image {bytes, path}, target_caption "a bus at night"
Traps    the captions are what the prompt was written from and are not read; pictures are not all RGB; its own
         loader stops at a picture that does not decode
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow.media import Corrupt
from dataflow.record import Candidate, Image, Message, Text
from dataflow.sources import Read, cell, matching, words


@dataclass(frozen=True, kw_only=True)
class MetaQueryInstruct:
    """Each row becomes subject_driven: pictures and prompt ask, the target picture answers."""

    name: str = "metaquery_instruct"
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        """The parquet files."""
        return matching(folder, "*.parquet", "*/*.parquet")

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        shown = value.get("source_images") or []
        if not isinstance(shown, list):
            raise Corrupt("source_images is no list of pictures")
        if not shown:
            raise Corrupt("source_images is empty")
        prompt = words(value.get("prompt")).strip()
        if not prompt:
            raise Corrupt("prompt is empty")
        subjects = tuple(cell(held, f"source_images {place}") for place, held in enumerate(shown))
        target = cell(value.get("target_image"), "target_image")
        asked = (*(Image(index) for index in range(len(subjects))), Text(prompt))
        yield Candidate(
            task="subject_driven",
            messages=(Message("user", asked), Message("assistant", (Image(len(subjects)),))),
            media=(*subjects, target),
        )
