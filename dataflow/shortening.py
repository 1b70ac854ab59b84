"""Records that are longer than a row, made to fit: fewer frames of a video first, then a text that ends sooner.

user       [1][2][3][4][5][6][7][8][9] What happens?    ->    [2][5][8] What happens?
assistant  A cat sits down on a mat and ...             ->    A cat sits down on
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import replace

from dataflow.record import Image, Record, Role, Text

Cut = tuple[int, Callable[[int], Record]]
"""How many parts of a kind a record has, and the record with so many of them, from 1 on."""

_FRAMES = ("video_qa",)  # tasks whose user shows frames of which fewer tell the same

# Whose text may end sooner. A question never does: at its end stands what is asked. The questions of frame_prediction
# count the frames that they show and its answers number them, so that nothing can be taken from it.
_SPEAKER: Mapping[str, Role | None] = {"text_to_image": "user", "frame_prediction": None}

_WORD = re.compile(r"\S+")
_LONGEST = 32  # characters of a word: what has no space for longer may end between any two, an address or Chinese
_JOINER = "\u200d"  # between the letters of one sign, as in emoji of families


def shortened(record: Record, *, most: int, length: Callable[[Record], int]) -> Record | None:
    """The record, or the largest part of it that takes no more than `most` tokens; None where none is allowed.

    Of the frames that the user shows of a video as many stay as fit, evenly spaced, one at least. Where one is too many
    still, the longest text of the assistant, or of the caption of a picture to be drawn, ends sooner: behind a whole
    word, the first one at least. Pictures of answers, single pictures and questions stay as they are. A function of the
    record and these tokens alone; what is short enough comes back as it is.

    Args:
        most:   tokens, 1 or more. length: of a record when it is laid out; it grows with what the record holds.
    """
    if length(record) <= most:
        return record
    for parts in (_frames, _text):
        whole, cut = parts(record)
        kept = _largest(whole - 1, lambda count, cut=cut: length(cut(count)) <= most)
        if kept:
            return cut(kept)
        if whole:
            record = cut(1)
    return None


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number of 1 to `most` that fits, 0 where none does. Small ones are tried first: they cost little."""
    high = 1
    while high <= most and fits(high):
        high *= 2
    low = high // 2  # fits, or is 0
    return low + bisect_left(range(low + 1, min(high, most + 1)), True, key=lambda number: not fits(number))


def _frames(record: Record) -> Cut:
    """The frames that the user shows of a video."""
    shown = [
        (turn, place)
        for turn, message in enumerate(record.messages)
        for place, part in enumerate(message.parts)
        if record.task in _FRAMES and message.role == "user" and isinstance(part, Image)
    ]

    def cut(count: int) -> Record:
        middles = [(2 * number + 1) * len(shown) // (2 * count) for number in range(count)]  # of as many equal parts
        gone = set(shown) - {shown[middle] for middle in middles}
        messages = [
            replace(message, parts=tuple(p for place, p in enumerate(message.parts) if (turn, place) not in gone))
            for turn, message in enumerate(record.messages)
        ]
        return _renumbered(replace(record, messages=tuple(messages)))

    return len(shown), cut


def _renumbered(record: Record) -> Record:
    """The record without media that no message shows."""
    shown = sorted({part.index for message in record.messages for part in message.parts if isinstance(part, Image)})
    number = {index: Image(place) for place, index in enumerate(shown)}
    messages = [
        replace(message, parts=tuple(number[p.index] if isinstance(p, Image) else p for p in message.parts))
        for message in record.messages
    ]
    return replace(record, messages=tuple(messages), media=tuple(record.media[index] for index in shown))


def _text(record: Record) -> Cut:
    """The characters of its longest text that may end sooner, the first of several."""
    speaker = _SPEAKER.get(record.task, "assistant")
    said = [
        (part.text, turn, place)
        for turn, message in enumerate(record.messages)
        for place, part in enumerate(message.parts)
        if message.role == speaker and isinstance(part, Text) and part.text.strip()
    ]
    text, turn, place = max(said, key=lambda each: len(each[0]), default=("", 0, 0))
    ends = _ends(text)

    def cut(count: int) -> Record:
        begun = Text(text[: ends[max(0, bisect_right(ends, count) - 1)]])
        messages, parts = list(record.messages), list(record.messages[turn].parts)
        parts[place] = begun
        messages[turn] = replace(messages[turn], parts=tuple(parts))
        return replace(record, messages=tuple(messages))

    return len(text), cut


def _ends(text: str) -> list[int]:
    """Characters behind which a text may end: those of whole words, or whole signs of what is too long for a word."""
    ends: list[int] = []
    for word in _WORD.finditer(text):
        first, last = word.span()
        if last - first > _LONGEST:
            ends += [end for end in range(first + 1, last) if not _joined(text[end - 1], text[end])]
        ends.append(last)
    return ends


def _joined(letter: str, following: str) -> bool:
    """Whether two characters are one sign: a letter and its accent, an emoji and its colour."""
    return letter == _JOINER or unicodedata.category(following) in ("Mn", "Mc", "Me", "Cf", "Sk")
