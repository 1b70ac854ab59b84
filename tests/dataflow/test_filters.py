"""Filters: None to keep, a reason with the measured value and the limit to drop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from upstream import file, jpeg, photo

from dataflow.filters import Decodes, MaxAspect, MaxText, MinSide
from dataflow.media import picture
from dataflow.record import Image, Lineage, Media, Message, Record, Text


def record(*sizes: tuple[int, int], text: str = "") -> Record:
    return Record(
        key="a_000000000",
        source="a",
        task="image_qa",
        messages=(
            Message("user", tuple(Image(index) for index in range(len(sizes)))),
            Message("assistant", (Text(text), Text(text))),
        ),
        media=tuple(Media(data=b"", extension="jpg", width=width, height=height) for width, height in sizes),
        lineage=Lineage(file="a", row=0),
    )


@pytest.mark.parametrize(
    ("rule", "given", "reason"),
    [
        (MinSide(pixels=256), record((256, 300), (300, 256)), None),
        (MinSide(pixels=256), record(), None),
        (MinSide(pixels=256), record((300, 300), (120, 80)), "picture 1 is 120x80, under 256 px"),
        (MinSide(pixels=256), record((1000, 255)), "picture 0 is 1000x255, under 256 px"),
        (MaxAspect(ratio=3), record((300, 100), (100, 300)), None),
        (MaxAspect(ratio=3), record((301, 100)), "picture 0 is 301x100, over 3:1"),
        (MaxAspect(ratio=3), record((1, 1), (100, 5000)), "picture 1 is 100x5000, over 3:1"),
        (MaxAspect(ratio=2.5), record((251, 100)), "picture 0 is 251x100, over 2.5:1"),
        (MaxText(characters=10), record(text="12345"), None),
        (MaxText(characters=10), record(text="123456"), "12 characters of text, over 10"),
    ],
)
def test_a_filter_keeps_or_says_what_it_measured_and_the_limit(rule: Any, given: Record, reason: str | None) -> None:
    assert rule(given) == reason


def test_a_picture_that_does_not_decode_in_full_is_named_with_its_place() -> None:
    sound, whole = picture(file(photo(), "PNG")), jpeg(640, 480)
    cut = picture(whole[: len(whole) // 2] + whole[len(whole) * 3 // 5 :])  # passes by its headers and end marker
    given = record((64, 48), (640, 480))
    assert Decodes()(replace(given, media=(sound, picture(whole)))) is None
    assert Decodes()(record()) is None
    reason = "picture 1: picture does not decode: its pixels are damaged or cut short"
    assert Decodes()(replace(given, media=(sound, cut))) == reason


def test_a_filter_is_a_value_and_cannot_be_changed() -> None:
    assert MinSide(pixels=9) == MinSide(pixels=9) != MinSide(pixels=8)
    with pytest.raises(AttributeError):
        MinSide(pixels=9).pixels = 8  # type: ignore[misc]
