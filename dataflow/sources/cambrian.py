"""Cambrian-7M / 10M: instruction tuning with pictures, from many public sets in one JSONL; and its alignment set.

URL      hf.co/datasets/nyu-visionx/Cambrian-10M; alignment: hf.co/datasets/nyu-visionx/Cambrian-Alignment
Licence  apache-2.0 on the card; subsets vary
Layout   jsons/*.jsonl, picture folders beside it (coco/, gqa/, ...: one tar.gz each upstream)
         alignment: jsons/alignment_2.5m.jsonl, 2,513,164 rows; allava/, coco/, llava_pretrain/, sam/, sbu558k/
Row      {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
          "conversations": [{"from": "human", "value": "<image>\\nWhat colour is the bus?"},
                            {"from": "gpt", "value": "White and red."}], "source": "..."}
Traps    text-only rows have no `image`, or null, '', 'None', 'none', 'nan'; integer ids; a first turn that is not
         human; several <image> for one picture; paths that differ in case from the disk
         alignment: paths begin with ./; its allava.tar is cut off; all its ALLaVA rows are in Cambrian-10M again
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from dataflow.media import Corrupt, LeftOut, picture
from dataflow.record import Candidate
from dataflow.sources import Read, matching, named
from dataflow.sources.llava import conversation


@dataclass(frozen=True, kw_only=True)
class Cambrian:
    """Rows with a picture become image_qa, rows without become text_qa.

    listing: which files of the layout; the full set ships several overlapping ones.
    without: folders; rows whose picture lies in one of them, however deep, are left out and counted as filtered.
    """

    name: str = "cambrian"
    listing: tuple[str, ...] = ("jsons/*.jsonl",)
    without: tuple[str, ...] = ()
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        """The JSONL files."""
        return matching(folder, *self.listing)

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        image = value.get("image")
        if isinstance(image, list):
            raise Corrupt(f"{len(image)} pictures in a list: Cambrian rows hold one")
        path = named(image)
        if self.without:
            for folder in PurePosixPath(path).parts:
                if folder in self.without:
                    raise LeftOut(f"pictures of {folder} are left out")
        media = (picture(read(path)),) if path else ()
        messages = conversation(value.get("conversations"), pictures=len(media))
        yield Candidate(task="image_qa" if media else "text_qa", messages=messages, media=media)
