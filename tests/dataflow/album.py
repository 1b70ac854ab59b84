"""Photographs and their edits as records, and records as a curation holds them: measured in this process, in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import pyarrow as pa
from PIL import Image, ImageEnhance
from upstream import PHOTOS, file

from dataflow import media, record
from dataflow.curation import Held
from dataflow.record import Lineage, Media, Message, Record, Text

NAMES = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "hubble_deep_field.jpg", "ihc.png")
NAMES += ("motorcycle_left.png", "rocket.jpg", "moon.png", "page.png")


@cache
def photograph(name: str) -> Image.Image:
    """One of scikit-image's, at most 320 px wide."""
    with Image.open(PHOTOS / name) as image:
        shown = image.convert("RGB")
    shown.thumbnail((320, 320))
    return shown


def edits(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """What the web does to a picture on its way: the same picture to whoever looks."""
    yield "JPEG at quality 30", file(image, "JPEG", quality=30)
    yield "half the size", file(image.resize((image.width // 2, image.height // 2)), "PNG")
    yield "other proportions", file(image.resize((200, 200)), "PNG")
    yield "a little brighter", file(ImageEnhance.Brightness(image).enhance(1.1), "PNG")
    yield "a little darker", file(ImageEnhance.Brightness(image).enhance(0.85), "PNG")
    small = ImageEnhance.Brightness(image.resize((image.width // 2, image.height // 2))).enhance(1.05)
    yield "smaller, brighter and JPEG at quality 50", file(small, "JPEG", quality=50)


def others(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Other pictures, made of the same."""
    wide, high = image.size
    for name, part in (("a twentieth", 20), ("a fifth", 5)):
        box = (wide // part, high // part, wide - wide // part, high - high // part)
        yield f"cropped by {name} of each side", file(image.crop(box), "PNG")
    yield "mirrored", file(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG")
    yield "turned", file(image.transpose(Image.Transpose.ROTATE_90), "PNG")


def picture(name: str) -> bytes:
    """A photograph as PNG."""
    return file(photograph(name), "PNG")


def blank(grey: int = 255, side: int = 40) -> bytes:
    """Nothing to see."""
    return file(Image.new("L", (side, side), grey), "PNG")


def chat(key: str, text: str, *pictures: bytes, task: str = "image_qa", answer: str = "yes") -> Record:
    """The user shows pictures and says something."""
    shown = tuple(media.picture(data) for data in pictures)
    parts = (*(record.Image(place) for place in range(len(shown))), Text(text))
    return _record(key, task, (Message("user", parts), Message("assistant", (Text(answer),))), shown)


def edit(key: str, text: str, source: bytes, target: bytes) -> Record:
    """A picture, an instruction, the edited picture."""
    shown = (media.picture(source), media.picture(target))
    asked = Message("user", (record.Image(0), Text(text)))
    return _record(key, "image_editing", (asked, Message("assistant", (record.Image(1),))), shown)


def captioned(key: str, text: str, target: bytes) -> Record:
    """A caption and its picture."""
    said = Message("user", (Text(text),)), Message("assistant", (record.Image(0),))
    return _record(key, "text_to_image", said, (media.picture(target),))


def _record(key: str, task: str, messages: tuple[Message, ...], shown: tuple[Media, ...]) -> Record:
    source = key.rpartition("_")[0]
    lineage = Lineage(file="rows.jsonl", row=int(key[-4:]))
    return Record(key=key, source=source, task=task, messages=messages, media=shown, lineage=lineage).checked()


def held(rule: Any, records: Sequence[Record], used: Sequence[bool] | None = None, **how: Any) -> Held:
    """These records as the curation sees them, measured as it wants. clusters: so far, None for each its own."""
    keys = pa.array([each.key for each in records], pa.string())
    measured = {
        each.name: pa.table({name: list(values) for name, values in each.ready()(records).items()}, each.columns)
        for each in rule.measures
    }
    return Held(
        name=records[0].source,
        index=pa.table({"key": keys, "task": [each.task for each in records]}),
        used=np.ones(len(records), bool) if used is None else np.array(used),
        clusters=pa.array(how["clusters"], pa.string()) if "clusters" in how else keys,
        measures=measured,
        corpus=cast(Any, None),  # these curations read no records
    )


def looking(keys: Sequence[str], pictures: Sequence[Sequence[int]]) -> Held:
    """Records with pictures of these perceptual hashes, and the same words."""
    hashes = pa.array([list(shown) for shown in pictures], pa.list_(pa.uint64()))
    by_bytes = pa.array([[bits.to_bytes(32, "big") for bits in shown] for shown in pictures], pa.list_(pa.binary(32)))
    words = pa.array([bytes(32)] * len(keys), pa.binary(32))
    measured = {"sha256": pa.table({"pictures": by_bytes, "text": words}), "perceptual": pa.table({"pictures": hashes})}
    return Held(
        name="a",
        index=pa.table({"key": list(keys), "task": ["image_qa"] * len(keys)}),
        used=np.ones(len(keys), bool),
        clusters=pa.array(keys, pa.string()),
        measures=measured,
        corpus=cast(Any, None),
    )
