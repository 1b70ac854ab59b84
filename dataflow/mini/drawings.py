"""The drawings of easy-vqa in every miniature corpus: one coloured shape on a light tint, 64 px, with its questions.

easy-vqa (PyPI, MIT) -> Drawings -> cambrian, metaclip, visual_cot, ...
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataflow.mini.files import choose

COLORS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {  # RGB of the drawings, measured: the fill of every shape is exactly one of these
        "black": (0, 0, 0),
        "blue": (0, 0, 255),
        "brown": (165, 42, 42),
        "gray": (128, 128, 128),
        "green": (0, 255, 0),
        "red": (255, 0, 0),
        "teal": (0, 128, 128),
        "yellow": (255, 255, 0),
    }
)
SHAPES = ("circle", "rectangle", "triangle")
SMALL, LARGE = 0.05, 0.10  # share of the picture's area that the shape covers; about a third of the drawings each side


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """easy-vqa's training pictures: what is asked about them, and what they show."""

    folder: Path
    chats: list[tuple[str, int, list[tuple[str, str]]]]  # name, picture, its questions and answers; shuffled
    shapes: list[tuple[int, str, str]]  # picture, shape, color; the first 24 show every shape in every color
    of: Mapping[tuple[str, str], list[int]]  # pictures by shape and color

    @classmethod
    def load(cls, package: Path) -> Drawings:
        questions = defaultdict[int, list[tuple[str, str]]](list)
        for question, answer, picture in json.loads((package / "data/train/questions.json").read_text()):
            questions[picture].append((question, answer))
        shapes = _shapes(questions)
        of = defaultdict[tuple[str, str], list[int]](list)
        for picture, shape, color in shapes:
            of[shape, color].append(picture)
        return cls(folder=package / "data/train/images", chats=_chats(questions), shapes=shapes, of=of)

    def path(self, picture: int) -> Path:
        return self.folder / f"{picture}.png"

    def open(self, picture: int) -> Image.Image:
        with Image.open(self.path(picture)) as image:
            return image.convert("RGB")

    def start(self, name: str) -> Iterator[tuple[int, str, str]]:
        """All of `shapes`, beginning where the name decides."""
        kinds = len(SHAPES) * len(COLORS)
        first = kinds * choose(name, "start", len(self.shapes) // kinds)
        return itertools.chain(self.shapes[first:], self.shapes[:first])

    def pick(self, shape: str, color: str, name: str) -> int:
        """A picture of that shape in that color, drawn from the name."""
        found = self.of[shape, color]
        return found[choose(name, f"{color} {shape}", len(found))]

    def caption(self, picture: int, shape: str, color: str) -> str:
        """As in "a small red circle"."""
        return f"a {size_of(self.open(picture), color)} {color} {shape}"


def _chats(questions: Mapping[int, list[tuple[str, str]]]) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """Every question once, one to a chat; one chat in sixteen has two, one in sixteen three about the same picture."""
    chats = []
    for picture in sorted(questions):
        rest = iter(sorted(questions[picture], key=lambda pair: choose(f"easy_vqa_{picture}", pair[0], 2**64)))
        for number in itertools.count():
            turns = (1,) * 14 + (2, 3)
            name = f"easy_vqa_{picture}_{number}"
            chat = list(itertools.islice(rest, turns[choose(name, "turns", len(turns))]))
            if not chat:
                break
            chats.append((name, picture, chat))
    return sorted(chats, key=lambda chat: choose(chat[0], "order", 2**64))


def shown(questions: Mapping[int, list[tuple[str, str]]]) -> Iterator[tuple[int, str, str]]:
    """Picture, shape and color of the pictures whose questions give both away, as 3,578 of the 4,000 do.

    "what is the blue shape?" says blue, its answer the shape; "is there not a red shape?" "no" says red; a picture with
    neither circle nor rectangle holds a triangle. Compared with the pixels: true of all.
    """
    for picture, pairs in questions.items():
        said = dict[bool, set[str]]({True: set(), False: set()})
        for question, answer in pairs:
            words = set(re.findall("[a-z]+", question))
            if answer in ("yes", "no"):
                said[(answer == "yes") != bool(words & {"no", "not"})] |= words
            else:
                said[True] |= words | {answer}
        shapes, colors = (
            [word for word in every if word in said[True]] or [word for word in every if word not in said[False]]
            for every in (SHAPES, tuple(COLORS))
        )
        if len(shapes) == len(colors) == 1:
            yield picture, shapes[0], colors[0]


def _shapes(questions: Mapping[int, list[tuple[str, str]]]) -> list[tuple[int, str, str]]:
    """What is known of the pictures, shuffled; every turn of 24 shows every shape in every color while they last."""
    known = defaultdict[tuple[str, str], list[int]](list)
    for picture, shape, color in shown(questions):
        known[shape, color].append(picture)
    ordered = [
        [
            (picture, shape, color)
            for picture in sorted(known[shape, color], key=lambda p: choose(f"{p}", "order", 2**64))
        ]
        for shape, color in itertools.product(SHAPES, COLORS)
    ]
    turns = ([found for found in turn if found is not None] for turn in itertools.zip_longest(*ordered))
    return [found for turn in turns for found in sorted(turn, key=lambda found: choose(f"{found[0]}", "turn", 2**64))]


def cover(image: Image.Image, color: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much of each pixel is the shape: float[64, 64] in 0..1, soft at the edges; and the tint behind it, RGB."""
    colors = image.getcolors(image.width * image.height) or []
    tint = np.array(max(colors)[1], dtype=np.float64)
    way = np.array(COLORS[color], dtype=np.float64) - tint
    along = ((np.asarray(image, dtype=np.float64) - tint) * way).sum(axis=-1) / (way * way).sum()
    return along.clip(0, 1), tint


def framed(image: Image.Image, color: str) -> tuple[int, int, int, int]:
    """The box around the shape: left, top, right, bottom in pixels, right and bottom behind the last."""
    rows, columns = np.nonzero(cover(image, color)[0] > 0.5)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def mask(image: Image.Image, color: str) -> Image.Image:
    """Where the shape is, white on black."""
    return Image.fromarray((cover(image, color)[0] * 255).round().astype(np.uint8))


def size_of(image: Image.Image, color: str) -> str:
    """small, medium or large: by the share of the picture that the shape covers."""
    share = float(cover(image, color)[0].mean())
    return "small" if share < SMALL else "medium" if share < LARGE else "large"


def recolored(image: Image.Image, old: str, new: str) -> Image.Image:
    """The same shape in another color, its soft edges kept."""
    covered, tint = cover(image, old)
    pixels = tint + covered[..., None] * (np.array(COLORS[new], dtype=np.float64) - tint)
    return Image.fromarray(pixels.round().astype(np.uint8))
