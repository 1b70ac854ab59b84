"""AURORA: edits of actions, places and counts, from video frames, simulations and MagicBrush.

URL      github.com/McGill-NLP/AURORA; pictures zenodo.org/records/11552426; hf.co/datasets/McGill-NLP/AURORA (parquet)
Licence  MIT; ag under Charades' terms, something under Something-Something's
Layout   lists: data/{ag, kubric, magicbrush, something}/train.json, paths in them start at the corpus' root
         (data/ag/images/...); parquet: data/train-?????-of-00093.parquet, 169,180 rows, without something
Row      {"instruction": "move the towel to the left", "input": "data/ag/images/1K0SU.mp4_4_left.png",
          "output": "data/ag/images/1K0SU.mp4_4_right.png"}; magicbrush adds mask and img_id
         parquet: input {bytes, path}, output {bytes, path}, instruction, source
Traps    instruction may be a list, of which its own loader takes the first; mask names a file without its folder and is
         not read; PNG with alpha; test rows (AURORA-Bench) have no output; the folders of Zenodo's zips must be renamed
         to images; left and right in the text forbid mirroring a pair
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow import folders
from dataflow.media import Corrupt, LeftOut
from dataflow.record import Candidate, Media
from dataflow.sources import Read, cell, matching, opened, words
from dataflow.sources.instruct_pix2pix import edit

_PARQUET = "data/train-*.parquet"


@dataclass(frozen=True, kw_only=True)
class Aurora:
    """Each row becomes image_editing: picture and instruction ask, the edited picture answers.

    parts: those read. Lists of other parts are no input; rows of other parts in the parquet are left out, and those
    that do not say which part they are of are corrupt.
    """

    name: str = "aurora"
    parts: tuple[str, ...] = ("ag", "kubric", "magicbrush", "something")  # MetaMorph's 169 k rows: all but something
    version: ClassVar[int] = 2

    def files(self, folder: Path) -> list[str]:
        """The lists of the parts that are there, or the parquet files.

        Raises:
            ValueError: none of these parts is there, or there are both forms.
        """
        lists = [f"data/{part}/train.json" for part in self.parts]
        there = [path for path in lists if folders.is_file(folder / path)]
        parquet = next(folders.glob(folder, _PARQUET), None)
        if there and parquet:
            raise ValueError(
                f"{folder} holds {there[0]} and {_PARQUET}, forms of the same rows: keep one of them there"
            )
        return matching(folder, *(there or [_PARQUET] if parquet else lists))

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        part = words(value.get("source"))  # of the parquet alone
        if part and part not in self.parts:
            raise LeftOut(f"part {part!r} is left out")
        if not part and isinstance(value.get("input"), dict):
            raise Corrupt(f"no source: the row may be of another part than {', '.join(self.parts)}")
        asked = value.get("instruction")
        instructions = [words(one).strip() for one in (asked if isinstance(asked, list) else [asked])]
        instruction = next(filter(None, instructions), None)
        if instruction is None:
            raise Corrupt("instruction is empty")
        yield edit(_side(value, "input", read), instruction, _side(value, "output", read))


def _side(value: dict[str, Any], column: str, read: Read) -> Media:
    held = value.get(column)
    if held is None or (isinstance(held, str) and not held.strip()):
        raise Corrupt(f"no {column}: the row names no picture there")
    return opened(read, held) if isinstance(held, str) else cell(held, column)
