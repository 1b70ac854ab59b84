"""OmniEdit: edits by specialist models, each with its instruction in several wordings.

URL      hf.co/datasets/TIGER-Lab/OmniEdit-Filtered-1.2M
Licence  MIT (unverified)
Layout   data/train-?????-of-00571.parquet, 1.2 M rows; data/dev-?????-of-00004.parquet, 700 rows, is not read
Row      src_img {bytes, path}, edited_img {bytes, path}, edited_prompt_list ["Remove the bus.", "Take the bus away."]
Traps    the list may be empty; MetaQuery reads its last item, and so does this
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow.media import Corrupt
from dataflow.record import Candidate
from dataflow.sources import Read, cell, matching, words
from dataflow.sources.instruct_pix2pix import edit


@dataclass(frozen=True, kw_only=True)
class OmniEdit:
    """Each row becomes image_editing: picture and instruction ask, the edited picture answers."""

    name: str = "omniedit"
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        """The parquet files of the training split."""
        return matching(folder, "data/train-*.parquet")

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        wordings = value.get("edited_prompt_list") or []
        if not isinstance(wordings, list):
            raise Corrupt("edited_prompt_list is no list of wordings")
        if not wordings:
            raise Corrupt("edited_prompt_list is empty")
        instruction = words(wordings[-1]).strip()
        if not instruction:
            raise Corrupt("the last of edited_prompt_list is empty")
        yield edit(cell(value.get("src_img"), "src_img"), instruction, cell(value.get("edited_img"), "edited_img"))
