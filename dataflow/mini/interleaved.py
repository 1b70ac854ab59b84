"""mmc4 in miniature: web pages of a few sentences with two to four pictures beside them.

drawings, photographs, prose -> mmc4 -> mmc4/docs_no_face_shard_0_v3.jsonl, docs_no_face_shard_1_v3.jsonl.zip
                                        mmc4/images/{0, 1}/<12 hex digits>.jpg

Of 3 pages one shows a photograph twice beside one sentence and a drawing beside another, one the same shape in three
colors, one a photograph, a crop of the same view, and two drawings of one shape.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataflow.mini.boards import view
from dataflow.mini.drawings import COLORS, SHAPES
from dataflow.mini.files import choose, jpeg, jsonl, put, zipped
from dataflow.mini.material import Corpus, Material, dirt
from dataflow.mini.text import PROSE, sentence

SHARDS = 2
_ALIKE, _UNLIKE = 0.31, 0.12  # of a picture and its sentence, and of other pairs: what CLIP says of such, about
Shown = tuple[bytes, str]  # a picture and the sentence beside it


def _write(folder: Path, rows: int, material: Material) -> None:
    for shard in range(SHARDS):
        numbers = range(rows * shard // SHARDS, rows * (shard + 1) // SHARDS)
        written = [_row(folder / f"images/{shard}", number, rows, material) for number in numbers]
        name = f"docs_no_face_shard_{shard}_v3.jsonl"
        if shard % 2:
            lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in written)
            zipped(folder / f"{name}.zip", {name: lines.encode()})
        else:
            jsonl(folder / name, written)


def _row(images: Path, number: int, rows: int, material: Material) -> dict[str, Any]:
    name = f"mmc4/{number}"
    shown = (_twice, _colors, _both)[number % 3](name, number, material)
    said = list(dict.fromkeys(said for _, said in shown))
    sentences = [PROSE[number % len(PROSE)], *said]
    infos = []
    for place, (data, caption) in enumerate(shown):
        file = f"{hashlib.sha256(f'{name}/{place}'.encode()).hexdigest()[:12]}.jpg"
        if place or dirt("mmc4", number, rows) != "picture missing":
            put(images / file, data)
        infos.append(
            {
                "face_detections": None,
                "image_name": file,
                "raw_url": f"http://example.com/{file}",
                "matched_text_index": sentences.index(caption),
                "matched_sim": _ALIKE,
            }
        )
    return {
        "image_info": infos,
        "similarity_matrix": _matrix(infos, len(sentences)),
        "text_list": sentences,
        "url": f"http://example.com/{number}.html",
        "could_have_url_duplicate": 0,
    }


def _matrix(infos: Sequence[dict[str, Any]], sentences: int) -> list[list[float]]:
    return [
        [_ALIKE if place == info["matched_text_index"] else _UNLIKE for place in range(sentences)] for info in infos
    ]


def _twice(name: str, number: int, material: Material) -> list[Shown]:
    shown = [_photograph(name, number, which, material) for which in ("first", "second")]
    return [*shown, _drawings(name, number, 1, material)[0]]


def _colors(name: str, number: int, material: Material) -> list[Shown]:
    return _drawings(name, number, 3, material)


def _both(name: str, number: int, material: Material) -> list[Shown]:
    data, _ = _photograph(name, number, "second", material)
    again = f"Another picture of {view(number).caption}."
    return [_photograph(name, number, "first", material), (data, again), *_drawings(name, number, 2, material)]


def _photograph(name: str, number: int, which: str, material: Material) -> Shown:
    shown = view(number)
    return jpeg(material.photographs.crop(shown, f"{name}/{which}")), sentence(shown.caption)


def _drawings(name: str, number: int, count: int, material: Material) -> list[Shown]:
    """One shape in several colors."""
    shape = SHAPES[number // 3 % len(SHAPES)]
    found = []
    for color in sorted(COLORS, key=lambda color: choose(name, color, 2**64))[:count]:
        picture = material.drawings.pick(shape, color, name)
        found.append(
            (jpeg(material.drawings.open(picture)), sentence(material.drawings.caption(picture, shape, color)))
        )
    return found


MMC4 = Corpus(write=_write, limit=lambda material: len(material.drawings.shapes))
