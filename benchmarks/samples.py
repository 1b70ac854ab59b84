"""The samples that writers and readers are timed on: a JPEG of 256 px and a chat, made once, read from one file."""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

SHARD = 1000  # samples, a corpus' default
SIDE = 256  # pixels
DISTINCT = 1000  # pictures, that samples repeat: no writer and no reader looks for what it has seen
QUALITY = 92  # of a JPEG: 20 kB on average


class Samples:
    """Keys, JPEGs and JSONs of a folder: `offsets.bin` cuts `members.bin` into the two files of each sample."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ends = (folder / "offsets.bin").read_bytes()
        self.cuts = struct.unpack(f"<{len(ends) // 8}Q", ends)

    def __len__(self) -> int:
        return len(self.cuts) // 2

    def __iter__(self) -> Iterator[tuple[str, bytes, bytes]]:
        return (self.sample(number) for number in range(len(self)))

    def sample(self, number: int) -> tuple[str, bytes, bytes]:
        """Key, JPEG and JSON, copied from the page cache."""
        with (self.folder / "members.bin").open("rb") as stream:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
                picture, chat = (view[a:b] for a, b in pairwise(self.cuts[2 * number : 2 * number + 3]))
        return f"synthetic_{number // SHARD:05d}{number % SHARD:04d}", picture, chat

    @staticmethod
    def write(folder: Path, samples: Iterable[tuple[bytes, bytes]]) -> int:
        """Put JPEGs and JSONs into such a folder; returns their bytes."""
        ends = [0]
        with (folder / "members.bin").open("wb") as stream:
            for sample in samples:
                for member in sample:
                    stream.write(member)
                    ends.append(ends[-1] + len(member))
        (folder / "offsets.bin").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
        return ends[-1]


def made(count: int) -> Iterator[tuple[bytes, bytes]]:
    """JPEG and JSON of each sample, the JSON as our records are written."""
    from dataflow import record  # here, and so below, for litdata's workers import this file on its clock
    from dataflow.record import Lineage, Media, Message, Record, Text, to_json

    pictures = _jpegs(min(count, DISTINCT))
    for number in range(count):
        jpg = pictures[number % DISTINCT]
        said = Message("user", (Text(f"a photograph, number {number}, of what stands in front of the camera"),))
        shown = Message("assistant", (record.Image(0),))
        sample = Record(
            key=record.key("synthetic", number // SHARD, number % SHARD),
            source="synthetic",
            task="text_to_image",
            messages=(said, shown),
            media=(Media(data=jpg, extension="jpg", width=SIDE, height=SIDE),),
            lineage=Lineage(file=f"{number // SHARD}.tar", row=number % SHARD),
        )
        yield jpg, to_json(sample)


def _jpegs(count: int) -> list[bytes]:
    """Real photographs, each cropped by its number."""
    from PIL import Image
    from skimage import data

    photographs = (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
    jpegs = []
    for number in range(count):
        with Image.fromarray(photographs[number % len(photographs)]) as photograph:
            left, top = number // 4 % 16, number // 64 % 16
            crop = photograph.crop((left, top, left + SIDE, top + SIDE))
            buffer = io.BytesIO()
            crop.save(buffer, "JPEG", quality=QUALITY)
            jpegs.append(buffer.getvalue())
    return jpegs
