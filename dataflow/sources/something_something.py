"""Something-Something V2: short clips of hands that do something with something.

URL      www.qualcomm.com/developer/software/something-something-v-2-dataset
Licence  Qualcomm's research licence; no redistribution
Layout   labels/train.json, validation.json, test.json (168,913, 24,777 and 27,157 rows; an older prefix of their names
         is something-something-v2-); 20bn-something-something-v2/<id>.webm, 12 frames a second, 2 to 6 s
Row      {"id": "78687", "label": "holding potato next to vicks vaporub bottle",
          "template": "Holding [something] next to [something]", "placeholders": ["potato", "vicks vaporub bottle"]}
Traps    the labels are not asked for here, so that test.json, which holds ids alone, is as good; labels.json is a table
         of classes, not rows; MetaMorph's 220 thousand are all three lists
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow import frame_prediction, video
from dataflow.media import Corrupt
from dataflow.record import Candidate
from dataflow.sources import Read, matching, named, over_zero

_LISTS = ("train", "validation", "test")
_OLDER = "something-something-v2-"


@dataclass(frozen=True, kw_only=True)
class SomethingSomething:
    """Each clip becomes frame_prediction: a question that it asks of itself.

    frames: most of question and answer together. seconds: of a clip that they come from, from its front. side: of a
    frame's longer side, in px.
    """

    name: str = "something_something"
    frames: int = frame_prediction.FRAMES
    seconds: float = 60.0  # ten times the longest clip
    side: int = video.SIDE
    seed: int = 0  # of the choice of questions
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("av",)

    def __post_init__(self) -> None:
        over_zero(self, "frames", "seconds", "side")

    def files(self, folder: Path) -> list[str]:
        """Those lists that are there, each once."""
        found = matching(folder, *(f"labels/{older}{part}.json" for part in _LISTS for older in ("", _OLDER)))
        return [file for file in found if _OLDER not in file or file.replace(_OLDER, "") not in found]

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per clip."""
        name = named(value.get("id"))
        if not name or "/" in name:
            raise Corrupt(f"id {name!r} names no clip")
        with read.open(f"20bn-something-something-v2/{name}.webm") as stream:
            part = video.stretch(stream, seconds=self.seconds, side=self.side)
            yield frame_prediction.ask(part, key, seed=self.seed, most=self.frames)
