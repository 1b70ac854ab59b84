"""Bytes that repeat, under every miniature corpus: choices by name, pictures, tars, zips, JSON, parquet.

draw, Pillow, pyarrow -> files -> drawings, photographs, clips, and every module that writes a corpus
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dataflow.draw import draw

JPEG_QUALITY = 90
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # a picture in parquet, as `datasets` lays it
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say


def choose(name: str, purpose: str, below: int) -> int:
    """A number in [0, below) that only the row's name and what it is for decide."""
    return draw(purpose, name, below)  # this way round, so that corpora of earlier versions keep their bytes


def between(low: int, high: int, name: str, purpose: str) -> int:
    """A number from low to high, both included."""
    return low + choose(name, purpose, high - low + 1)


def ceil(number: int, by: int) -> int:
    return -(-number // by)


def jpeg(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=JPEG_QUALITY)
    return data.getvalue()


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def put(path: Path, data: bytes) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def document(path: Path, value: Any) -> None:
    """One JSON document; a list has an item per line."""
    text = "[\n" + ",\n".join(map(line, value)) + "\n]" if isinstance(value, list) else line(value)
    put(path, f"{text}\n".encode())


def jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    put(path, "".join(f"{line(row)}\n" for row in rows).encode())


def line(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False)


def parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def cell(data: bytes) -> dict[str, Any]:
    """A picture as a value of type PICTURE."""
    return {"bytes": data, "path": None}


def add(out: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member whose header depends on nothing but name and length: TarInfo's mtime and owner are 0."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    out.addfile(header, io.BytesIO(data))


def zipped(path: Path, members: Mapping[str, bytes]) -> None:
    """A zip of stored members, all of one fixed time and of no particular system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as out:
        for name, data in members.items():
            header = zipfile.ZipInfo(name, _ZIP_TIME)
            header.create_system = 3  # Unix, so that Windows writes the same
            header.external_attr = 0o644 << 16  # its permission bits
            out.writestr(header, data)


def conversations(chat: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Questions and answers as LLaVA's turns."""
    return [
        {"from": speaker, "value": value}
        for pair in chat
        for speaker, value in zip(("human", "gpt"), pair, strict=True)
    ]
