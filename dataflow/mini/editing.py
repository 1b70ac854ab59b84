"""Edits of pictures in miniature: InstructPix2Pix and OmniEdit.

Material -> instruct_pix2pix, omniedit -> folders of the same names

instruct_pix2pix/data/train-0000?-of-00002-*.parquet    before, request, after; row groups of 100
omniedit/data/train-0000?-of-00002.parquet              src_img, edited_img, edited_prompt_list
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from dataflow.mini.drawings import COLORS, Drawings, recolored, size_of
from dataflow.mini.files import PICTURE, ceil, cell, choose, jpeg, parquet, png
from dataflow.mini.material import Corpus, Material, dirt, limit
from dataflow.mini.photographs import GRAY, VIEWS, Photographs, View

ROW_GROUP = 100  # edits per row group: several groups per file already at 300 rows
PARQUETS = 2  # files the edits are laid into, in halves


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What may be asked for, what the picture is afterwards, and how it is done."""

    requests: tuple[str, ...]
    after: str  # of the caption
    apply: Callable[[Image.Image], Image.Image]


def _sepia(image: Image.Image) -> Image.Image:
    return ImageOps.colorize(image.convert("L"), black=(30, 18, 8), mid=(150, 108, 72), white=(255, 240, 208))


_GRAYSCALE = Edit(
    requests=("make it black and white", "turn it into a grayscale picture", "remove the colors"),
    after="a black and white picture of {}",
    apply=lambda image: image.convert("L").convert("RGB"),
)
_MIRROR = Edit(
    requests=("mirror it", "flip the picture horizontally", "swap left and right"),
    after="a mirror image of {}",
    apply=ImageOps.mirror,
)
_ROTATE = Edit(
    requests=("rotate it a quarter turn to the left", "turn the picture a quarter turn counterclockwise"),
    after="{}, turned a quarter to the left",
    apply=lambda image: image.transpose(Image.Transpose.ROTATE_90),
)
_BRIGHTEN = Edit(
    requests=("make it brighter", "brighten the picture"),
    after="a very bright picture of {}",
    apply=lambda image: ImageEnhance.Brightness(image).enhance(1.6),
)
_DARKEN = Edit(
    requests=("make it darker", "darken the picture"),
    after="a dark picture of {}",
    apply=lambda image: ImageEnhance.Brightness(image).enhance(0.45),
)
_BLUR = Edit(
    requests=("blur it", "make the picture blurry", "put it out of focus"),
    after="a blurred picture of {}",
    apply=lambda image: image.filter(ImageFilter.GaussianBlur(3)),
)
_SEPIA = Edit(
    requests=("make it sepia", "make it look like an old brown photograph"),
    after="a sepia picture of {}",
    apply=_sepia,
)
_INVERT = Edit(
    requests=("invert the colors", "turn it into a negative"),
    after="a negative of {}",
    apply=ImageOps.invert,
)
OF_PHOTOGRAPHS = (_MIRROR, _ROTATE, _BRIGHTEN, _DARKEN, _BLUR, _SEPIA, _INVERT, _GRAYSCALE)
OF_DRAWINGS = (_DARKEN, _BLUR, _INVERT)  # the others can leave a shape on a light tint as it was


def edit_kind(row: int) -> str:
    """Photographs and drawings take turns."""
    return "drawing" if row % 2 else "photograph"


_SCHEMA = pa.schema(
    [
        ("original_prompt", pa.string()),
        ("original_image", PICTURE),
        ("edit_prompt", pa.string()),
        ("edited_prompt", pa.string()),
        ("edited_image", PICTURE),
    ]
)


def _write_instruct_pix2pix(folder: Path, rows: int, material: Material) -> None:
    """Halves of the rows to two files, each named by what it holds."""
    (folder / "data").mkdir(parents=True)
    edits = (
        {
            "original_prompt": edit.caption,
            "original_image": cell(edit.before),
            "edit_prompt": edit.request,
            "edited_prompt": edit.outcome,
            "edited_image": cell(edit.after),
        }
        for edit in _edits("instruct_pix2pix", rows, iter(material.drawings.shapes), material)
    )
    for number in range(PARQUETS):
        left = rows * (number + 1) // PARQUETS - rows * number // PARQUETS
        part = folder / f"data/{number}.part"
        with pq.ParquetWriter(part, _SCHEMA) as out:
            for group in range(ceil(left, ROW_GROUP)):
                found = list(itertools.islice(edits, min(ROW_GROUP, left - group * ROW_GROUP)))
                out.write_table(pa.Table.from_pylist(found, schema=_SCHEMA), row_group_size=ROW_GROUP)
        with part.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()[:16]
        part.rename(folder / f"data/train-{number:05d}-of-{PARQUETS:05d}-{digest}.parquet")


@dataclass(frozen=True, kw_only=True)
class Edited:
    """An edit that was made: encoded pictures, what they show, and how it may be asked for."""

    caption: str
    before: bytes
    requests: tuple[str, ...]
    request: str
    outcome: str
    after: bytes


def _edits(source: str, rows: int, shapes: Iterator[tuple[int, str, str]], material: Material) -> Iterator[Edited]:
    for row in range(rows):
        name = f"{source}/{row}"
        if edit_kind(row) == "photograph":
            yield _photograph_edit(name, VIEWS[row // 2 % len(VIEWS)], material.photographs)
        else:
            yield drawing_edit(name, *next(shapes), material.drawings)


def _photograph_edit(name: str, view: View, photographs: Photographs) -> Edited:
    edits = tuple(edit for edit in OF_PHOTOGRAPHS if edit is not _GRAYSCALE or view.file not in GRAY)
    edit = edits[choose(name, "edit", len(edits))]
    before = photographs.crop(view, name)
    return Edited(
        caption=view.caption,
        before=jpeg(before),
        requests=edit.requests,
        request=edit.requests[choose(name, "request", len(edit.requests))],
        outcome=edit.after.format(view.caption),
        after=jpeg(edit.apply(before)),
    )


def drawing_edit(name: str, picture: int, shape: str, color: str, drawings: Drawings) -> Edited:
    """Three times in four the shape gets another color."""
    before = drawings.open(picture)
    size = size_of(before, color)
    caption = f"a {size} {color} {shape}"
    if choose(name, "edit", 4):
        others = [other for other in COLORS if other != color]
        new = others[choose(name, "color", len(others))]
        requests = (
            f"make the {shape} {new}",
            f"turn the {color} {shape} {new}",
            f"change the color of the {shape} to {new}",
        )
        outcome, after = f"a {size} {new} {shape}", recolored(before, color, new)
    else:
        edit = OF_DRAWINGS[choose(name, "which", len(OF_DRAWINGS))]
        requests, outcome, after = edit.requests, edit.after.format(caption), edit.apply(before)
    return Edited(
        caption=caption,
        before=drawings.path(picture).read_bytes(),
        requests=requests,
        request=requests[choose(name, "request", len(requests))],
        outcome=outcome,
        after=png(after),
    )


_OMNIEDIT = pa.schema([("src_img", PICTURE), ("edited_img", PICTURE), ("edited_prompt_list", pa.list_(pa.string()))])


def _write_omniedit(folder: Path, rows: int, material: Material) -> None:
    """Every wording of a request, the one that is to be used last."""
    edits = _edits("omniedit", rows, material.drawings.start("omniedit"), material)
    found = [
        {
            "src_img": cell(edit.before),
            "edited_img": cell(edit.after),
            "edited_prompt_list": []
            if dirt("omniedit", row, rows) == "no prompts"
            else [*(request for request in edit.requests if request != edit.request), edit.request],
        }
        for row, edit in enumerate(edits)
    ]
    for number in range(PARQUETS):
        part = found[rows * number // PARQUETS : rows * (number + 1) // PARQUETS]
        parquet(folder / f"data/train-{number:05d}-of-{PARQUETS:05d}.parquet", part, _OMNIEDIT)


INSTRUCT_PIX2PIX = Corpus(
    write=_write_instruct_pix2pix, limit=lambda material: limit(edit_kind, len(material.drawings.shapes))
)
OMNIEDIT = Corpus(write=_write_omniedit, limit=lambda material: limit(edit_kind, len(material.drawings.shapes)))
