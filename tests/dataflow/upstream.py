"""Rows, pictures and folders as upstream publishes them, copied by hand from its documentation; our code made none.

Rows are from: Cambrian, cambrian-mllm/cambrian#69; MetaCLIP, metaclip1/pipeline.py; InstructPix2Pix, its card.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dataflow.index import BuiltCorpus

Build = Callable[..., BuiltCorpus]  # what the fixture `build` is

_skimage = importlib.util.find_spec("skimage")
assert _skimage is not None
assert _skimage.origin is not None
PHOTOS = Path(_skimage.origin).parent / "data"  # scikit-image's photographs

BUS = {
    "id": "000000033471",
    "image": "coco/train2017/000000033471.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
        {"from": "gpt", "value": "The bus in the image is white and red."},
        {"from": "human", "value": "What feature can be seen on the back of the bus?"},
        {"from": "gpt", "value": "The back of the bus features an advertisement."},
    ],
    "source": "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json",
}
ORCA = {
    "id": "orca_math_7",
    "conversations": [
        {"from": "human", "value": "Jungkook is the 5th place. Find the number of people who crossed before him."},
        {"from": "gpt", "value": "If Jungkook is in 5th place, then 4 people crossed the finish line before him."},
    ],
    "source": "orca_math_200k.json",
}


def photo(width: int = 64, height: int = 48) -> Image.Image:
    """A small real picture: scikit-image's cat."""
    with Image.open(PHOTOS / "chelsea.png") as cat:
        return cat.convert("RGB").resize((width, height))


def file(image: Image.Image, format: str, **options: Any) -> bytes:
    """A picture as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(width: int = 64, height: int = 48) -> bytes:
    """The small cat as JPEG."""
    return file(photo(width, height), "JPEG", quality=90)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jsonl(*rows: dict[str, Any] | bytes) -> bytes:
    """Lines of a JSONL file; bytes go in as they are."""
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def tar(*members: tuple[str, bytes] | tarfile.TarInfo, end: bool = True, format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar by Python's tarfile: files, or links and folders as bare headers."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
        size = archive.offset  # type: ignore[attr-defined]
    return buffer.getvalue() if end else buffer.getvalue()[:size]


def metaclip_json(url: str, *texts: str) -> tuple[str, bytes]:
    """A MetaCLIP sample's uuid and JSON member."""
    uuid = hashlib.sha224(url.encode()).hexdigest()[:24]
    return uuid, json.dumps({"uuid": uuid, "url": url, "texts": [["alt", text] for text in texts]}).encode()


def edits(path: Path, rows: list[tuple[bytes | None, str | None, bytes | None]], **options: Any) -> None:
    """InstructPix2Pix' parquet: before, instruction, after."""
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [
            ("original_prompt", pa.string()),
            ("original_image", cell),
            ("edit_prompt", pa.string()),
            ("edited_prompt", pa.string()),
            ("edited_image", cell),
        ]
    )
    values = [
        {
            "original_prompt": "a cat on a rug",
            "original_image": None if before is None else {"bytes": before, "path": None},
            "edit_prompt": instruction,
            "edited_prompt": "a cat on a rug, in winter",
            "edited_image": None if after is None else {"bytes": after, "path": None},
        }
        for before, instruction, after in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(values, schema), path, **options)
