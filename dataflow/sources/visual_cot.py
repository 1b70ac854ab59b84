"""Visual CoT: a question, the region of the picture that answers it, the answer.

URL      hf.co/datasets/deepcs233/Visual-CoT
Licence  apache-2.0; pictures are third parties'
Layout   viscot_363k.json, one list; pictures under cot/<set>/ (cot_images_tar_split/: cat the 13 parts, untar)
         or metadata/*.jsonl, a line per question, pictures named without their folder
Row      {"image": ["cot/gqa/2316539.jpg", "cot/gqa/2316539.jpg###[217, 343, 242, 393]"],
          "conversations": [{"from": "human", "value": "<image>\\nWhat are the tree branches in front of? Please provide
                             the bounding box coordinate of the region that can help you answer the question better."},
                            {"from": "gpt", "value": "[0.542, 0.686, 0.592, 0.786]"},
                            {"from": "human", "value": "<image>"}, {"from": "gpt", "value": "window"}]}
         metadata: {"question", "answer", "image", "dataset", "split", "bboxs": [[x1, y1, x2, y2]], "width", "height"}
Traps    the box behind ### is in pixels, x1 y1 x2 y2 (V* has x y w h); the one in the answer is of the picture padded
         to a square and is not used; fractions of the longer side are allowed behind ### too; boxes without area,
         beyond the picture; textcap's pictures lie in cot/textvqa; many pictures of gqa are not in the tars
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow.draw import draw
from dataflow.media import Box, Corrupt, coordinates, picture, region
from dataflow.record import Candidate, Image, Message, Text
from dataflow.sources import Read, matching, named, words

# Upstream's two forms of the request, tools/convert_data_to_llava_format.py; MetaMorph cuts the question there too.
_REQUEST = re.compile(r"Please (?:think step by step and )?provide the bounding box coordinate of")
_TAGS = (1, 0, 1, 0)  # <image> in the four turns
_FOLDERS = {"textcap": "textvqa"}  # sets whose pictures lie in another's folder
_FRACTIONS = 5  # upstream's loader takes a box whose numbers add up to less for fractions of the longer side
# What is said before the region. MetaMorph draws one of sixteen, one of them empty; these are ours.
_LOOKS = (
    "",
    "Let me look closer.",
    "This part of the picture matters:",
    "The answer is to be found here:",
    "I look at this region first.",
    "Here is where to look:",
    "Zooming in:",
    "This is the region in question.",
)


@dataclass(frozen=True, kw_only=True)
class VisualCot:
    """Each row becomes visual_thinking: a picture and a question; a phrase, the region and the answer.

    listing: `viscot_363k.json`, or any list of its form; or `metadata/*.jsonl`.
    """

    name: str = "visual_cot"
    listing: tuple[str, ...] = ("viscot_363k.json",)
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        """The files of the listing."""
        return matching(folder, *self.listing)

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        path, box, question, answer = _chat(value) if "conversations" in value else _metadata(value)
        if not question or not answer:
            raise Corrupt("an empty question" if not question else "an empty answer")
        data = read(path)
        whole = picture(data)
        # Both sides of the picture may be swapped by now, the longer one is the same.
        part = region(data, _pixels(box, max(whole.width, whole.height)))
        look = _LOOKS[draw(key, "visual_cot/look", len(_LOOKS))]
        yield Candidate(
            task="visual_thinking",
            messages=(
                Message("user", (Image(0), Text(question))),
                Message("assistant", (*([Text(look)] if look else []), Image(1), Text(answer))),
            ),
            media=(whole, part),
        )


def _chat(value: dict[str, Any]) -> tuple[str, Box, str, str]:
    """Path, box, question and answer of a row in four turns."""
    images, turns = value.get("image"), value["conversations"]
    if not isinstance(images, list) or len(images) != 2 or not all(isinstance(image, str) for image in images):
        raise Corrupt("image is not a path and a path with its box")
    path, mark, box = images[1].partition("###")
    if not mark:
        raise Corrupt(f"no ###[x1, y1, x2, y2] in {images[1]!r}")
    if path != images[0]:
        raise Corrupt(f"the box is of {path!r}, the question of {images[0]!r}")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Corrupt("conversations is not a list of turns")
    speakers = [words(turn.get("from")) for turn in turns]
    if speakers != ["human", "gpt", "human", "gpt"]:
        raise Corrupt(f"turns are {', '.join(speakers[:9]) or 'none'}: they must be human, gpt, human, gpt")
    said = [words(turn.get("value")) for turn in turns]
    tags = tuple(text.count("<image>") for text in said)
    if tags != _TAGS:
        raise Corrupt(f"<image> stands {tags} times in the turns, must stand {_TAGS}")
    question = _REQUEST.split(said[0].replace("<image>", ""))[0].strip()
    return named(path), _box(box), question, said[3].strip()


def _box(shown: str) -> Box:
    try:
        return coordinates(json.loads(shown))
    except (ValueError, RecursionError) as problem:
        if isinstance(problem, Corrupt):
            raise
        raise Corrupt(f"box {shown[:80]!r} is not [x1, y1, x2, y2]") from None


def _metadata(value: dict[str, Any]) -> tuple[str, Box, str, str]:
    """Path, box, question and answer of a line of metadata; several boxes are united, as upstream's converter does."""
    boxes = value.get("bboxs")
    if not isinstance(boxes, list) or not boxes:
        raise Corrupt("bboxs is not a list of boxes")
    lefts, tops, rights, bottoms = zip(*map(coordinates, boxes), strict=True)
    name, group = named(value.get("image")), named(value.get("dataset"))
    if not name or not group:
        raise Corrupt("no image" if not name else "no dataset, whose folder holds the image")
    path = name if name.startswith("cot/") else f"cot/{_FOLDERS.get(group, group)}/{name}"
    box = min(lefts), min(tops), max(rights), max(bottoms)
    return path, box, words(value.get("question")).strip(), words(value.get("answer")).strip()


def _pixels(box: Box, longer: int) -> Box:
    """The box in pixels. Whole numbers always are: upstream writes pixels so, and 1 is no fraction worth the doubt."""
    if all(isinstance(number, int) for number in box) or math.fsum(box) >= _FRACTIONS:
        return box
    left, top, right, bottom = (number * longer for number in box)
    return left, top, right, bottom
