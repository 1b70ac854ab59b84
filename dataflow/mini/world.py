"""A world small enough to be learned whole on two cores: easy-vqa's drawings cut to the shape, named and asked about.

easy-vqa (PyPI, MIT) -> write() -> folder/{world_pictures, world_questions} -> sources Captions and Llava

world_pictures/world-000?.tar    500 pairs each: {picture:09d}.png, {picture:09d}.txt "a blue triangle"
world_questions/world.json       LLaVA's list, a question each; pictures in world_questions/pictures

Three shapes in eight colors, on light tints: 24 kinds. The pictures of easy-vqa's own test part are
left out: `held_out` gives them, with shape and color, for whoever judges what was learned.
"""

from __future__ import annotations

import itertools
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from dataflow.mini.drawings import COLORS, SHAPES, Drawings, framed, shown
from dataflow.mini.files import add, document, png
from dataflow.mini.material import installed

SIDE = 32  # pixels
TAR = 500  # pairs per tar
MARGIN = 0.15  # of the shape's side, before and behind it
KINDS = tuple(itertools.product(SHAPES, COLORS))


def write(folder: Path) -> dict[str, int]:
    """Write the two corpora, unless they stand there; returns their rows.

    Raises:
        ValueError: easy-vqa is not installed.
    """
    done = folder / "world.json"
    if done.is_file():
        return json.loads(done.read_text())
    drawings = Drawings.load(installed("easy_vqa", "easy-vqa"))
    pictures, questions = folder / "world_pictures", folder / "world_questions"
    (questions / "pictures").mkdir(parents=True, exist_ok=True)
    pictures.mkdir(parents=True, exist_ok=True)
    cuts = {
        picture: (png(cut(drawings.open(picture), color)), f"a {color} {shape}")
        for picture, shape, color in drawings.shapes
    }
    for tar, first in enumerate(range(0, len(cuts), TAR)):
        with tarfile.open(pictures / f"world-{tar:04d}.tar", "w", format=tarfile.USTAR_FORMAT) as out:
            for picture in sorted(cuts)[first : first + TAR]:
                data, caption = cuts[picture]
                add(out, f"{picture:09d}.png", data)
                add(out, f"{picture:09d}.txt", caption.encode())
    rows = [
        {
            "id": f"{name}_{number}",
            "image": f"pictures/{picture}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": answer},
            ],
        }
        for name, picture, chat in drawings.chats
        if picture in cuts
        for number, (question, answer) in enumerate(chat)
    ]
    for picture in {row["image"] for row in rows}:
        (questions / picture).write_bytes(cuts[int(Path(picture).stem)][0])
    document(questions / "world.json", rows)
    counts = {"world_pictures": len(cuts), "world_questions": len(rows)}
    done.write_text(json.dumps(counts))
    return counts


def held_out() -> Iterator[tuple[Image.Image, str, str]]:
    """Cut pictures that no corpus holds, with their shape and color: of easy-vqa's test part."""
    folder = installed("easy_vqa", "easy-vqa") / "data/test"
    asked = defaultdict[int, list[tuple[str, str]]](list)
    for question, answer, picture in json.loads((folder / "questions.json").read_text()):
        asked[picture].append((question, answer))
    for picture, shape, color in sorted(shown(asked)):
        with Image.open(folder / f"images/{picture}.png") as image:
            yield cut(image.convert("RGB"), color), shape, color


def cut(image: Image.Image, color: str) -> Image.Image:
    """The box around the shape, brought to 32 px a side; where it would leave the picture it is moved back in.

    Brought to a square, all of a kind are alike: rectangles of all proportions have a circle for their mean, and the
    mean is what a model that regresses tokens predicts.
    """
    left, top, right, bottom = framed(image, color)
    (left, right), (top, bottom) = _around(left, right, image.width), _around(top, bottom, image.height)
    return image.crop((left, top, right, bottom)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _around(first: int, end: int, size: int) -> tuple[int, int]:
    side = min(round((end - first) * (1 + 2 * MARGIN)), size)
    first = min(max((first + end) // 2 - side // 2, 0), size - side)
    return first, first + side
