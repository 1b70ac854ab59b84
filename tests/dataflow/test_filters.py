"""Filters: None to keep, a reason with the measured value and the limit to drop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from upstream import BUS, ORCA, file, jpeg, photo

from dataflow.filters import Decodes, Language, MaxAspect, MaxBadCharacters, MaxSide, MaxText, MinSide, MinText
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
        (MaxSide(pixels=300), record((300, 1), (1, 300)), None),
        (MaxSide(pixels=300), record((300, 300), (80, 301)), "picture 1 is 80x301, over 300 px"),
        (MaxAspect(ratio=3), record((300, 100), (100, 300)), None),
        (MaxAspect(ratio=3), record((301, 100)), "picture 0 is 301x100, over 3:1"),
        (MaxAspect(ratio=3), record((1, 1), (100, 5000)), "picture 1 is 100x5000, over 3:1"),
        (MaxAspect(ratio=2.5), record((251, 100)), "picture 0 is 251x100, over 2.5:1"),
        (MinText(characters=10), record(text="12345"), None),
        (MinText(characters=10), record(text="1234"), "8 characters of text, under 10"),
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


def said(*texts: str) -> Record:
    parts = tuple(Text(text) for text in texts)
    return replace(record(), messages=(Message("user", parts[:1]), Message("assistant", parts[1:])))


@pytest.mark.parametrize(
    "text",
    [
        "naïve café – “quoted”, 50 % of £5",
        "São Paulo, MANHÃ",
        "日本語のテキスト、русский текст, नमस्ते, العربية",
        "a family: 👨\u200d👩\u200d👧, flag 🏴\U000e0067\U000e007f",
        "tab\tand\r\nlines",
        *(turn["value"] for row in (BUS, ORCA) for turn in row["conversations"]),  # type: ignore[attr-defined]
    ],
)
def test_text_of_any_writing_has_no_bad_characters(text: str) -> None:
    assert MaxBadCharacters()(said(text, text)) is None


@pytest.mark.parametrize(
    ("text", "bad", "shown"),
    [
        ("caf\ufffd", 1, r"'\ufffd'"),
        ("a\x00b\x9fc", 2, r"'\x00\x9f'"),
        ("caf\u00c3\u00a9 sch\u00c3\u00b6n", 4, r"'\xc3\xa9\xc3\xb6'"),  # UTF-8 that was read as Latin-1
        ("it\u00e2\u20ac\u2122s", 2, r"'\xe2\u20ac'"),  # and as Windows-1252
        ("an icon \ue014 of a font", 1, r"'\ue014'"),
    ],
)
def test_bad_characters_are_counted_and_shown(text: str, bad: int, shown: str) -> None:
    reason = MaxBadCharacters()(said("fine", text))
    assert reason == f"{bad} of {len(text) + 4} characters are bad, over a share of 0: {shown}"
    assert MaxBadCharacters(share=bad / (len(text) + 4))(said("fine", text)) is None


GERMAN = "Ein roter Bus fährt im Regen durch die Stadt"


def test_text_in_another_language_is_named_with_its_score() -> None:
    english = Language(languages=("en",))
    assert english(said(*(turn["value"] for turn in BUS["conversations"]))) is None  # type: ignore[attr-defined]
    assert english(said(*(turn["value"] for turn in ORCA["conversations"]))) is None  # type: ignore[attr-defined]
    assert english(said("A SMALL BLUE TRIANGLE")) is None
    assert english(said(GERMAN)) == "text is 'de' by 1.00, not en"
    assert english(said("赤いバスが雨の中を走る")) == "text is 'ja' by 1.00, not en"
    assert Language(languages=("en", "de"))(said(GERMAN)) is None
    assert Language(languages=("en",), min_score=0.9)(said("a red bus")) == "text is 'en' by 0.65, not en by 0.9"


def test_text_without_a_letter_is_in_no_language() -> None:
    assert Language(languages=("fr",))(said("12 + 34 = 46", "!")) is None
    assert Language(languages=("fr",))(record((8, 8))) is None


@pytest.mark.parametrize(
    ("rule", "given"),
    [
        (Language, {"languages": ()}),
        (Language, {"languages": ("en",), "min_score": 2}),
        (MaxBadCharacters, {"share": 1}),
    ],
)
def test_a_filter_that_could_keep_nothing_is_refused(rule: Any, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="="):
        rule(**given)


def test_a_filter_is_a_value_and_cannot_be_changed() -> None:
    assert MinSide(pixels=9) == MinSide(pixels=9) != MinSide(pixels=8)
    with pytest.raises(AttributeError):
        MinSide(pixels=9).pixels = 8  # type: ignore[misc]
