"""V*, the training data of SEAL: a question, the objects to look at, the answer.

URL      hf.co/datasets/craigwu/seal_vqa_data
Licence  MIT (repository); pictures are COCO's and GQA's
Layout   six lists: GQA_data.json, vaw_attribute_data.json, spatial_relation_data.json, llava_focus_data.json have
         boxes; llava_instruct_data.json, negative_data.json have none. Pictures lie under gqa/images,
         coco2014/train2014, coco2017/train2017: shared roots, given by --data gqa=DIR, coco2014=DIR, coco2017=DIR
Row      {"image": "gqa/images/2368326.jpg", "search": ..., "target_instances": [{"name": "cup", "bbox": [x, y, w, h]}],
          "conversations": [{"from": "human", "value": "<image>\\nAdditional visual information to focus on: <object>.
                                                        \\nWhat color is the cup?"},
                            {"from": "gpt", "value": "The color of the cup is white."}]}
Traps    boxes are x y w h in pixels (Visual CoT has x1 y1 x2 y2), some are floats, some lie beyond the picture; the
         line end after the last <object>. may be missing; an answer that is cut off: row 18,042 of llava_focus_data
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow.draw import draw
from dataflow.media import Box, Corrupt, LeftOut, boxed, coordinates, picture
from dataflow.record import Candidate, Image, Message, Text
from dataflow.sources import Read, matching, named, words
from dataflow.sources.llava import conversation

_FOCUS = re.compile(r"Additional visual information to focus on:\s*(?:<object>\s*[;,.]?\s*)*")
_OBJECT = "<object>"
# What is said before the marked picture; MetaMorph's wording is CC-BY-NC, these are ours. {} holds the names.
_LOOKS = (
    "To answer this I look for {}.",
    "What matters here: {}. I mark it in the picture.",
    "First I find {} in the picture.",
    "The picture shows where to look: {}.",
    "I mark {}.",
)


@dataclass(frozen=True, kw_only=True)
class VStar:
    """Each row with targets becomes visual_thinking: a picture and a question; the targets, marked, and the answer.

    Rows without targets are left out and counted as filtered: MetaMorph's set has those with targets alone.
    listing: the files that hold targets.
    """

    name: str = "vstar"
    listing: tuple[str, ...] = (
        "GQA_data.json",
        "vaw_attribute_data.json",
        "spatial_relation_data.json",
        "llava_focus_data.json",
    )
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        """Those files of the listing that are there."""
        return matching(folder, *self.listing)

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        targets = value.get("target_instances")
        if targets is None or targets == []:
            raise LeftOut("no target_instances: nothing to look at in the picture")
        if not isinstance(targets, list) or not all(isinstance(target, dict) for target in targets):
            raise Corrupt("target_instances is not a list of targets")
        names = [_name(target) for target in targets]
        boxes = [_corners(target) for target in targets]
        messages = conversation(_without_focus(value.get("conversations")), pictures=1)
        path = named(value.get("image"))
        if not path:
            raise Corrupt("no image, but targets in it")
        data = read(path)
        first = next(place for place, turn in enumerate(messages) if turn.role == "assistant")
        answer = messages[first].parts
        look = _LOOKS[draw(key, "vstar/look", len(_LOOKS))].format(_listed(names))
        yield Candidate(
            task="visual_thinking",
            messages=(*messages[:first], Message("assistant", (Text(look), Image(1), *answer)), *messages[first + 1 :]),
            media=(picture(data), boxed(data, boxes, names)),
        )


def _name(target: dict[str, Any]) -> str:
    name = " ".join(words(target.get("name")).split())
    if not name:
        raise Corrupt("a target without a name")
    return name


def _corners(target: dict[str, Any]) -> Box:
    left, top, width, height = coordinates(target.get("bbox"))
    return left, top, left + width, top + height


def _without_focus(turns: Any) -> Any:
    """The turns without the lines that announce the targets; `conversation` judges what else is wrong with them."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return turns
    bare = [{**turn, "value": _FOCUS.sub("", words(turn.get("value")))} for turn in turns]
    if any(_OBJECT in turn["value"] for turn in bare):
        raise Corrupt(f"{_OBJECT} in the text, outside the line that announces the targets")
    return bare


def _listed(names: Sequence[str]) -> str:
    """The names as English lists them, each once."""
    *others, last = dict.fromkeys(names)
    return f"{', '.join(others)} and {last}" if others else last
