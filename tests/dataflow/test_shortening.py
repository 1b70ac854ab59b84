"""What is left of a record that is longer than a row: as much as fits, of what may go, and nothing of what may not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from dataflow.record import GROUPS, Image, Lineage, Media, Message, Record, Role, Text
from dataflow.shortening import shortened

PICTURE = 10  # tokens
ADDRESS = "https://a.b/" + "c" * 40
PIECES = ("a", "cat", "sits", "Straße", "猫が座る", "e\u0301", "👩\u200d👧", "👍🏽", "\n\n", "x" * 50, "นี่", ADDRESS)


def length(record: Record) -> int:
    """As a layout of bytes has it: one token around each turn, ten a picture, one a byte of UTF-8."""
    parts = [part for message in record.messages for part in message.parts]
    text = sum(len(part.text.encode()) for part in parts if isinstance(part, Text))
    return len(record.messages) + PICTURE * sum(isinstance(part, Image) for part in parts) + text


def picture(number: int) -> Media:
    return Media(data=f"{number}".encode(), extension="jpg", width=100 + number, height=60)


def record(task: str, *turns: tuple[Role, tuple[str | int, ...]]) -> Record:
    """Pictures are numbers: of a file's name, not of its place."""
    numbers = list(dict.fromkeys(part for _, parts in turns for part in parts if isinstance(part, int)))
    messages = [
        Message(role, tuple(Text(p) if isinstance(p, str) else Image(numbers.index(p)) for p in parts))
        for role, parts in turns
    ]
    return Record(
        key="a_000000000",
        source="a",
        task=task,
        messages=tuple(messages),
        media=tuple(map(picture, numbers)),
        lineage=Lineage(file="a.jsonl", row=0),
    ).checked()


def said(held: Record, role: Role) -> list[str]:
    return [p.text for m in held.messages if m.role == role for p in m.parts if isinstance(p, Text)]


def shown(held: Record, role: Role) -> list[int]:
    """The numbers of the pictures that a role shows, by their bytes."""
    parts = [part for message in held.messages if message.role == role for part in message.parts]
    return [int(held.media[part.index].data) for part in parts if isinstance(part, Image)]


def clip(frames: int, answer: str = "A cat.") -> Record:
    return record("video_qa", ("user", (*range(frames), "What happens?")), ("assistant", (answer,)))


def records(seed: int) -> Iterator[Record]:
    """One of every task, as its sources have it, of random lengths."""
    draw = random.Random(seed)

    def words(most: int = 60) -> str:
        return " ".join(draw.choice(PIECES) for _ in range(draw.randint(1, most))).strip() or "a"

    yield record("text_document", ("assistant", (words(200),)))
    asked, told = words(9), words()
    yield record("text_qa", ("system", (words(5),)), ("user", (asked,)), ("assistant", (told,)), ("assistant", (told,)))
    yield record("image_qa", ("user", (0, words(9))), ("assistant", (words(),)))
    yield record("image_qa", ("user", (*range(draw.randint(2, 5)), words(9))), ("assistant", (words(),)))
    yield clip(draw.randint(1, 60), words())
    yield record("video_qa", ("user", (*range(9), "Which?")), ("assistant", (words(), 3)), ("user", (4, 9)))
    yield record("text_to_image", ("user", (words(),)), ("assistant", (0,)))
    yield record("caption_pair", ("assistant", (words(), 0)))
    yield record("frame_prediction", ("user", (*range(7), words(9))), ("assistant", (7,)))
    yield record("frame_prediction", ("user", (*range(7), words(9))), ("assistant", ("2, 1, 3, 7, 5, 4, 6",)))
    yield record("visual_thinking", ("user", (0, words(9))), ("assistant", (words(), 1, words())))
    yield record("image_editing", ("user", (0, words(9))), ("assistant", (1,)))
    yield record("subject_driven", ("user", (0, 1, words(9))), ("assistant", (2,)))
    yield record("interleaved_document", ("assistant", (words(), 0, words(), 1, 2, words())))


def test_every_task_is_among_those_that_are_tried() -> None:
    assert {held.task for held in records(0)} == {task for tasks in GROUPS.values() for task in tasks}


@pytest.mark.parametrize("seed", range(60))
def test_what_is_left_fits_and_lacks_only_what_may_go(seed: int) -> None:
    draw = random.Random(seed)
    for whole in records(seed):
        most = draw.randint(1, length(whole) + 20)
        part = shortened(whole, most=most, length=length)
        if part is None:
            assert most < length(whole)
            continue
        assert length(part) <= most
        assert shortened(part, most=most, length=length) is part
        assert part.checked().key == whole.key and part.lineage == whole.lineage
        assert (part is whole) == (length(whole) <= most)
        assert shown(part, "assistant") == shown(whole, "assistant")
        assert [message.role for message in part.messages] == [message.role for message in whole.messages]
        kept, had = shown(part, "user"), shown(whole, "user")
        rest = iter(had)
        assert kept == had or (whole.task == "video_qa" and kept and all(number in rest for number in kept))
        for role in ("system", "user", "assistant"):
            changed = [pair for pair in zip(said(part, role), said(whole, role), strict=True) if pair[0] != pair[1]]
            assert not changed or role == ("user" if whole.task == "text_to_image" else "assistant")
            assert (len(changed) <= 1 and whole.task != "frame_prediction") or not changed
            for begun, text in changed:
                assert len(text) == max(map(len, said(whole, role)))
                assert begun.strip() and text.startswith(begun)
                begun.encode()
            assert not changed or whole.task != "video_qa" or len(kept) == 1


def test_no_more_goes_than_must() -> None:
    for whole in (clip(40, "a " * 30 + "b"), record("text_document", ("assistant", ("a " * 300 + "b",)))):
        before = None
        for most in range(20, length(whole)):
            part = shortened(whole, most=most, length=length)
            if part is None:
                assert before is None
                continue
            assert most - length(part) < PICTURE
            assert before is None or length(part) >= length(before)
            before = part
        assert before is not None


@pytest.mark.parametrize("frames", [2, 3, 8, 45, 64])
def test_frames_that_stay_are_evenly_spaced(frames: int) -> None:
    whole = clip(frames)
    for count in range(1, frames):
        part = shortened(whole, most=length(whole) - PICTURE * (frames - count), length=length)
        assert part is not None and said(part, "assistant") == ["A cat."]
        kept = shown(part, "user")
        steps = {later - earlier for earlier, later in pairwise(kept)}
        assert len(kept) == count and max(steps, default=0) - min(steps, default=0) <= 1
        assert abs(kept[0] - (frames - 1 - kept[-1])) <= 1  # as much is left out before as behind
        assert [media.width for media in part.media] == [100 + number for number in kept]
        assert [p.index for p in part.messages[0].parts if isinstance(p, Image)] == list(range(count))


def test_text_goes_after_frames_and_ends_behind_a_word() -> None:
    part = shortened(clip(9, "A cat sits down on a mat."), most=2 + PICTURE + 13 + 16, length=length)
    assert part is not None
    assert shown(part, "user") == [4]
    assert said(part, "assistant") == ["A cat sits down"]
    assert said(part, "user") == ["What happens?"]
    assert shortened(clip(9, "A cat."), most=2 + PICTURE + 13, length=length) is None


def test_the_longest_text_alone_ends_sooner() -> None:
    whole = record("text_qa", ("user", ("a " * 90,)), ("assistant", ("b c d",)), ("assistant", ("one two three four",)))
    part = shortened(whole, most=length(whole) - 2, length=length)
    assert part is not None and said(part, "user") == ["a " * 90]
    assert said(part, "assistant") == ["b c d", "one two three"]
    assert shortened(whole, most=length(whole) - 16, length=length) is None


def test_what_has_no_spaces_is_cut_between_signs() -> None:
    for sign in ("猫", "e\u0301", "👍🏽", "नि", "ที่"):
        whole = record("text_document", ("assistant", (sign * 200,)))
        for most in range(300, length(whole), 7):
            part = shortened(whole, most=most, length=length)
            assert part is not None
            (text,) = said(part, "assistant")
            assert text == sign * (len(text) // len(sign)) and most - length(part) < len(sign.encode())
    family = "👩\u200d👩\u200d👧"
    whole = record("text_document", ("assistant", ("a " * 20 + family * 9,)))
    for most in range(45, length(whole)):
        part = shortened(whole, most=most, length=length)
        assert part is not None
        assert not said(part, "assistant")[0].endswith("\u200d")


def test_a_blank_text_and_one_word_stay() -> None:
    for text in (" \n " * 30, "x" * 30):
        whole = record("text_document", ("assistant", (text,)))
        assert shortened(whole, most=20, length=length) is None
    spaced = record("text_document", ("assistant", ("a word" + " " * 30,)))
    assert shortened(spaced, most=7, length=length) == record("text_document", ("assistant", ("a word",)))


def test_a_long_text_is_laid_out_a_few_times_and_seldom_whole() -> None:
    whole, sizes = record("text_document", ("assistant", ("word " * 100_000,))), list[int]()

    def counted(held: Record) -> int:
        sizes.append(length(held))
        return sizes[-1]

    assert shortened(whole, most=4096, length=counted) is not None
    assert len(sizes) < 30 and sum(sizes[1:]) < 20 * 4096


def test_keys_do_not_matter() -> None:
    whole = clip(20, "a " * 50)
    one, other = (shortened(each, most=90, length=length) for each in (whole, replace(whole, key="b_000000007")))
    assert one is not None and other is not None and one.messages == other.messages and one.media == other.media
