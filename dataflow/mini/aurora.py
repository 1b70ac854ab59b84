"""AURORA in miniature: what changes between two frames of a film, on a drawing, and among shapes on a plain ground.

    Material -> aurora -> aurora/data/{ag, kubric, magicbrush}/train.json

    data/ag/train.json            {instruction, input, output}: data/ag/images/{clip}.mp4_{n}_left.png, _right.png
    data/kubric/train.json        the same: data/kubric/images/{attribute, closer, ...}/{n}/image0.jpg, image1.jpg
    data/magicbrush/train.json    with mask and img_id: data/magicbrush/images/{n}-input.png, -mask.png, -output1.png
Of 10 rows two are in ag, four in each of the others. In every eighth row `instruction` is a list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from dataflow.mini.clips import PAIRS
from dataflow.mini.drawings import COLORS, SHAPES, cover, framed, mask
from dataflow.mini.editing import drawing_edit
from dataflow.mini.files import between, choose, document, jpeg, png, put
from dataflow.mini.material import Corpus, Material, dirt

GROUND = 192  # px of the side of a plain ground
FRAME = 192  # px of the width of a film's frame
JITTER = 10  # hundredths of a second that a moment may lie beside the one that was looked at

Row = dict[str, Any]


def _write_aurora(folder: Path, rows: int, material: Material) -> None:
    of_films, of_drawings = rows // 5, rows * 2 // 5
    parts = {
        "ag": (_film, of_films),
        "kubric": (_shapes, rows - of_films - of_drawings),
        "magicbrush": (_drawing, of_drawings),
    }
    row = 0
    for part, (make, count) in parts.items():
        written = []
        for number in range(count):
            made = make(folder, number, material)
            if row % 8 == 7:
                made["instruction"] = [made["instruction"]]
            if dirt("aurora", row, rows) == "picture missing":
                (folder / made["output"]).unlink()
            written.append(made)
            row += 1
        document(folder / f"data/{part}/train.json", written)


def _film(folder: Path, number: int, material: Material) -> Row:
    """Two frames of a film, each a little beside the moment that was looked at."""
    pair, name = PAIRS[number % len(PAIRS)], f"aurora/ag/{number}"
    paths = {}
    for side, moment in (("left", pair.before), ("right", pair.after)):
        frame = material.clips.at(pair.file, moment + between(-JITTER, JITTER, name, side) / 100)
        paths[side] = f"data/ag/images/{pair.file}_{number}_{side}.png"
        small = frame.resize((FRAME, round(frame.height * FRAME / frame.width)), Image.Resampling.LANCZOS)
        put(folder / paths[side], png(small))
    request = pair.requests[choose(name, "request", len(pair.requests))]
    return {"instruction": request, "input": paths["left"], "output": paths["right"]}


def _drawing(folder: Path, number: int, material: Material) -> Row:
    """An edit of a drawing, and where its shape is."""
    picture, shape, color = material.drawings.shapes[-1 - number]
    edit = drawing_edit(f"aurora/magicbrush/{number}", picture, shape, color, material.drawings)
    images = "data/magicbrush/images"
    put(folder / images / f"{number}-input.png", edit.before)
    put(folder / images / f"{number}-mask.png", png(mask(material.drawings.open(picture), color)))
    put(folder / images / f"{number}-output1.png", edit.after)
    return {
        "input": f"{images}/{number}-input.png",
        "mask": f"{number}-mask.png",
        "output": f"{images}/{number}-output1.png",
        "instruction": edit.request,
        "img_id": f"{number}",
    }


# ------------------------------------------------------------------------------------- shapes on a plain ground

Spot = tuple[Image.Image, tuple[int, int]]  # a shape in RGBA, left and top of where it lies


def _closer(spots: list[Spot], names: list[str], _name: str) -> tuple[list[Spot], list[Spot], str]:
    """The first shape begins at the left edge and moves towards the second."""
    (first, (_, top)), second = spots
    nearer = (second[1][0] - first.width - 4, top)
    return spots, [(first, nearer), second], f"move the {names[0]} closer to the {names[1]}"


def _further(spots: list[Spot], names: list[str], name: str) -> tuple[list[Spot], list[Spot], str]:
    before, after, _ = _closer(spots, names, name)
    return after, before, f"move the {names[0]} further away from the {names[1]}"


def _counting(spots: list[Spot], names: list[str], name: str) -> tuple[list[Spot], list[Spot], str]:
    """One shape goes, or one more of the same comes below it."""
    if choose(name, "remove", 2):
        return spots, spots[1:], f"remove the {names[0]}"
    (first, (left, _)), second = spots
    upper, lower = (first, (left, 2)), (first, (left, GROUND - first.height - 2))
    return [upper, second], [upper, lower, second], f"add another {names[0]} below the first"


def _attribute(spots: list[Spot], names: list[str], name: str) -> tuple[list[Spot], list[Spot], str]:
    """The first shape gets a color that no shape has."""
    old, shape = names[0].split()
    others = [color for color in COLORS if color not in names[0] and color not in names[1]]
    new = others[choose(name, "new", len(others))]
    pixels = np.asarray(spots[0][0]).copy()
    pixels[..., :3] = COLORS[new]
    return spots, [(Image.fromarray(pixels), spots[0][1]), spots[1]], f"turn the {old} {shape} {new}"


CHANGES: Mapping[str, Callable[[list[Spot], list[str], str], tuple[list[Spot], list[Spot], str]]] = MappingProxyType(
    {"attribute": _attribute, "closer": _closer, "counting": _counting, "further_location": _further}
)


def _shapes(folder: Path, number: int, material: Material) -> Row:
    """Two shapes of two drawings on the ground of the second."""
    name, kind = f"aurora/kubric/{number}", list(CHANGES)[number % len(CHANGES)]
    shapes = sorted(SHAPES, key=lambda shape: choose(name, shape, 2**64))[:2]
    colors = sorted(COLORS, key=lambda color: choose(name, color, 2**64))[:2]
    spots, tint = [], (0, 0, 0)
    for place, (shape, color) in enumerate(zip(shapes, colors, strict=True)):
        drawing = material.drawings.open(material.drawings.pick(shape, color, name))
        covered, behind = cover(drawing, color)
        sprite = Image.new("RGBA", drawing.size, COLORS[color])
        sprite.putalpha(Image.fromarray((covered * 255).round().astype(np.uint8)))
        sprite, tint = sprite.crop(framed(drawing, color)), tuple(int(value) for value in behind)
        left = 2 if place == 0 else GROUND - sprite.width - 2
        spots.append((sprite, (left, between(2, GROUND - sprite.height - 2, name, f"top {place}"))))
    names = [f"{color} {shape}" for shape, color in zip(shapes, colors, strict=True)]
    before, after, request = CHANGES[kind](spots, names, name)
    images = f"data/kubric/images/{kind}/{number}"
    for state, file in ((before, "image0.jpg"), (after, "image1.jpg")):
        ground = Image.new("RGB", (GROUND, GROUND), tint)
        for sprite, place in state:
            ground.paste(sprite, place, sprite)
        put(folder / images / file, jpeg(ground))
    return {"instruction": request, "input": f"{images}/image0.jpg", "output": f"{images}/image1.jpg"}


AURORA = Corpus(write=_write_aurora, limit=lambda material: 5 * 2 * len(PAIRS) * JITTER)
