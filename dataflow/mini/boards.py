"""Drawings laid as cards on a photograph: larger pictures in which looking at one place gives the answer.

Drawings, Photographs -> board() -> visual_cot, vstar, metaquery_instruct
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from dataflow.mini.drawings import COLORS, SHAPES, framed
from dataflow.mini.files import between, choose
from dataflow.mini.material import Material
from dataflow.mini.photographs import VIEWS, Box, View

CARD = 64  # px of a drawing's side
GROWN = 1.5  # photographs are enlarged this much, so that the smallest still holds two by two cards


@dataclass(frozen=True, kw_only=True)
class Card:
    """A drawing to be laid."""

    picture: int
    shape: str
    color: str


@dataclass(frozen=True, kw_only=True)
class Board:
    """The picture, and where the shapes on its cards are: boxes in the order of the cards."""

    image: Image.Image
    boxes: list[Box]


def cards(count: int, name: str, material: Material) -> list[Card]:
    """Up to three, no shape and no color twice: "the circle" and "the red shape" mean one of them."""
    shapes = sorted(SHAPES, key=lambda shape: choose(name, shape, 2**64))[:count]
    colors = sorted(COLORS, key=lambda color: choose(name, color, 2**64))
    return [
        Card(picture=material.drawings.pick(shape, color, name), shape=shape, color=color)
        for shape, color in zip(shapes, colors, strict=False)
    ]


def view(number: int) -> View:
    """Photographs take turns."""
    return VIEWS[number % len(VIEWS)]


def lay(cards: Sequence[Card], photograph: Image.Image, name: str, material: Material) -> Board:
    """Each card in a cell of its own, somewhere in it."""
    image = photograph.resize(
        (round(photograph.width * GROWN), round(photograph.height * GROWN)), Image.Resampling.LANCZOS
    )
    across, down = image.width // CARD, image.height // CARD
    cells = sorted(range(across * down), key=lambda cell: choose(name, f"cell {cell}", 2**64))
    boxes = []
    for number, (card, cell) in enumerate(zip(cards, cells, strict=False)):
        width, height = image.width // across, image.height // down
        left = cell % across * width + between(0, width - CARD, name, f"left {number}")
        top = cell // across * height + between(0, height - CARD, name, f"top {number}")
        drawing = material.drawings.open(card.picture)
        image.paste(drawing, (left, top))
        box = framed(drawing, card.color)
        boxes.append((left + box[0], top + box[1], left + box[2], top + box[3]))
    return Board(image=image, boxes=boxes)
