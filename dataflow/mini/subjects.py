"""MetaQuery-Instruct in miniature: one to three pictures, a prompt, and the picture that they lead to.

    drawings, photographs, boards -> metaquery_instruct -> metaquery_instruct/data/train-0000?-of-00002.parquet

Of 4 rows one shows a drawing in another color, one another crop of a photograph, one a drawing laid on a photograph,
one two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflow.mini.boards import cards, lay, view
from dataflow.mini.drawings import COLORS, recolored
from dataflow.mini.files import PICTURE, cell, choose, jpeg, parquet, png
from dataflow.mini.material import Corpus, Material

FILES = 2
_SCHEMA = pa.schema(
    [
        ("source_images", pa.list_(PICTURE)),
        ("source_captions", pa.list_(pa.string())),
        ("prompt", pa.string()),
        ("target_image", PICTURE),
        ("target_caption", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Led:
    """Pictures with their captions, the prompt, and where they lead."""

    sources: list[tuple[bytes, str]]
    prompt: str
    target: tuple[bytes, str]


def _write(folder: Path, rows: int, material: Material) -> None:
    found = [_fields((_recolored, _again, _on, _on)[row % 4](row, material)) for row in range(rows)]
    for number in range(FILES):
        part = found[rows * number // FILES : rows * (number + 1) // FILES]
        parquet(folder / f"data/train-{number:05d}-of-{FILES:05d}.parquet", part, _SCHEMA)


def _fields(led: Led) -> dict[str, Any]:
    return {
        "source_images": [cell(data) for data, _ in led.sources],
        "source_captions": [caption for _, caption in led.sources],
        "prompt": led.prompt,
        "target_image": cell(led.target[0]),
        "target_caption": led.target[1],
    }


def _recolored(row: int, material: Material) -> Led:
    name, drawings = f"metaquery_instruct/{row}", material.drawings
    card = cards(1, name, material)[0]
    others = [color for color in COLORS if color != card.color]
    new = others[choose(name, "new", len(others))]
    caption = drawings.caption(card.picture, card.shape, card.color)
    return Led(
        sources=[(drawings.path(card.picture).read_bytes(), caption)],
        prompt=f"The same {card.shape}, but {new}.",
        target=(
            png(recolored(drawings.open(card.picture), card.color, new)),
            caption.replace(f" {card.color} ", f" {new} "),
        ),
    )


def _again(row: int, material: Material) -> Led:
    shown, name = view(row // 4), f"metaquery_instruct/{row}"
    before, after = (jpeg(material.photographs.crop(shown, f"{name}/{crop}")) for crop in ("source", "target"))
    return Led(
        sources=[(before, shown.caption)],
        prompt=f"Another picture of {shown.caption}.",
        target=(after, shown.caption),
    )


def _on(row: int, material: Material) -> Led:
    """One card, or two, on a photograph."""
    name, shown, drawings = f"metaquery_instruct/{row}", view(row // 2), material.drawings
    found = cards(row % 4 - 1, name, material)
    photograph = material.photographs.crop(shown, name)
    said = [drawings.caption(card.picture, card.shape, card.color) for card in found]
    which = "the first picture" if len(found) == 1 else "the first two pictures"
    target = f"{' and '.join(said)} on {shown.caption}"
    return Led(
        sources=[
            *((drawings.path(card.picture).read_bytes(), caption) for card, caption in zip(found, said, strict=True)),
            (jpeg(photograph), shown.caption),
        ],
        prompt=f"Lay {which} on the photograph.",
        target=(jpeg(lay(found, photograph, name, material).image), target),
    )


METAQUERY_INSTRUCT = Corpus(write=_write, limit=lambda material: len(material.drawings.shapes))
