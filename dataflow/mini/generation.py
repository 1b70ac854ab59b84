"""Pictures and captions in miniature: MetaCLIP and CC12M.

Material -> metaclip, captions -> folders of the same names

metaclip/{shard % 100}/{shard}.tar    250 pairs each: {uuid}.jpeg, then {uuid}.json; uuid = sha224(url)[:24]
captions/cc12m-train-000?.tar         100 pairs each: {key}.jpg, {key}.txt, from the second tar on {key}.json
"""

from __future__ import annotations

import hashlib
import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path

from dataflow.mini.drawings import Drawings, size_of
from dataflow.mini.files import add, ceil, jpeg, line
from dataflow.mini.material import Corpus, Material, dirt, limit
from dataflow.mini.photographs import VIEWS, Photographs

SHARD = 250  # pairs per tar: several shards already at 600 rows
TAR = 100  # pairs per tar of captions: several already at 200 rows


def metaclip_kind(row: int) -> str:
    """Of 5 rows one shows a photograph."""
    return "photograph" if row % 5 == 2 else "drawing"


def _write_metaclip(folder: Path, rows: int, material: Material) -> None:
    pairs = _pairs(rows, material.drawings, material.photographs)
    for shard in range(ceil(rows, SHARD)):
        path = folder / f"{shard % 100}" / f"{shard}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as out:
            for url, texts, picture in itertools.islice(pairs, SHARD):
                uuid = hashlib.sha224(url.encode()).hexdigest()[:24]
                fields = {"uuid": uuid, "url": url, "texts": [["alt", text] for text in texts]}
                add(out, f"{uuid}.jpeg", picture)
                add(out, f"{uuid}.json", line(fields).encode())


def _pairs(rows: int, drawings: Drawings, photographs: Photographs) -> Iterator[tuple[str, tuple[str, ...], bytes]]:
    """Url, texts and JPEG bytes of every row; one text mostly, two or three in half of the rows."""
    shapes = iter(drawings.shapes)
    for row in range(rows):
        if metaclip_kind(row) == "photograph":
            view = VIEWS[row // 5 % len(VIEWS)]
            url = f"https://pypi.org/project/scikit-image/#skimage/data/{view.file}/{row}"
            data = jpeg(photographs.crop(view, url))
            texts = (view.caption, f"a photograph of {view.caption}")
        else:
            picture, shape, color = next(shapes)
            url = f"https://pypi.org/project/easy-vqa/#data/train/images/{picture}.png"
            image = drawings.open(picture)
            data = jpeg(image)
            caption = f"a {size_of(image, color)} {color} {shape}"
            texts = (caption, f"{caption} on a light background", f"{color} {shape}")
        yield url, texts[: (1, 3, 1, 2)[row % 4]], data


def captions_kind(row: int) -> str:
    """Of 3 rows one shows a photograph."""
    return "photograph" if row % 3 == 1 else "drawing"


def _write_captions(folder: Path, rows: int, material: Material) -> None:
    folder.mkdir()
    shapes = material.drawings.start("captions")
    for tar in range(ceil(rows, TAR)):
        with tarfile.open(folder / f"cc12m-train-{tar:04d}.tar", "w", format=tarfile.USTAR_FORMAT) as out:
            for row in range(tar * TAR, min((tar + 1) * TAR, rows)):
                if captions_kind(row) == "photograph":
                    view = VIEWS[row // 3 % len(VIEWS)]
                    image, caption = material.photographs.crop(view, f"captions/{row}"), view.caption
                else:
                    drawn = next(shapes)
                    image = material.drawings.open(drawn[0])
                    caption = f"{material.drawings.caption(*drawn)} on a light background"
                add(out, f"{row:09d}.jpg", jpeg(image))
                if dirt("captions", row, rows) != "no text":
                    add(out, f"{row:09d}.txt", caption.encode())
                if tar:
                    fields = {"key": f"{row:09d}", "width": image.width, "height": image.height}
                    add(out, f"{row:09d}.json", line(fields).encode())


METACLIP = Corpus(write=_write_metaclip, limit=lambda material: limit(metaclip_kind, len(material.drawings.shapes)))
CAPTIONS = Corpus(write=_write_captions, limit=lambda material: limit(captions_kind, len(material.drawings.shapes)))
