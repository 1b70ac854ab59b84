"""The record: what it promises, and its JSON form."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dataflow.record import GROUPS, TASKS, Image, Lineage, Media, Message, Record, Text, from_json, key, to_json

CAT = Media(data=b"a jpeg", extension="jpg", width=640, height=480)
DOG = Media(data=b"a png", extension="png", width=32, height=24)
RECORD = Record(
    key="cambrian_000030014",
    source="cambrian",
    task="visual_thinking",
    messages=(
        Message("system", (Text("Be brief."),)),
        Message("user", (Image(0), Text("What is ‘it’? 猫 🐈 \u0000 </script>"))),
        Message("assistant", (Text("Look: "), Image(1), Text(" a cat."))),
    ),
    media=(CAT, DOG),
    lineage=Lineage(file="jsons/a.jsonl", row=3014),
)
FILES = {"0.jpg": b"a jpeg", "1.png": b"a png"}


def test_a_key_is_the_source_five_digits_of_split_and_four_of_row() -> None:
    assert key("cambrian", 12, 345) == "cambrian_000120345"
    assert key("cambrian", 99_999, 9_999) == "cambrian_999999999"


def test_later_candidates_of_a_row_carry_their_number() -> None:
    assert [key("a", 0, 7, candidate) for candidate in range(3)] == ["a_000000007", "a_000000007-1", "a_000000007-2"]


@pytest.mark.parametrize(("split", "row", "cure"), [(100_000, 0, "raise"), (0, 10_000, "lower"), (-1, 0, "raise")])
def test_a_key_that_does_not_fit_says_how_to_change_rows_per_shard(split: int, row: int, cure: str) -> None:
    with pytest.raises(ValueError, match=f"{cure} rows_per_shard"):
        key("cambrian", split, row)


def test_every_task_of_the_design_is_in_one_group() -> None:
    listed = [task for tasks in GROUPS.values() for task in tasks]
    assert sorted(listed) == sorted(TASKS) == sorted(set(listed))
    assert len(TASKS) == 11


def test_a_record_comes_back_from_its_members_as_it_was() -> None:
    assert from_json(RECORD.key, to_json(RECORD), FILES) == RECORD


def test_the_json_member_is_what_the_library_s_encoder_writes_whatever_the_text() -> None:
    odd = "".join(map(chr, range(256))) + "\u2028 \U0001f600 </script> {0} \\u0041"
    said = (Message("user", (Image(0), Text(odd))), Message("assistant", (Text(""), Image(1))), Message("user", ()))
    for record in (
        replace(RECORD, messages=said, lineage=Lineage(file=odd, row=3)),
        replace(RECORD, messages=(Message("assistant", (Text("a"),)),), media=()),
    ):
        written = json.loads(to_json(record))
        assert to_json(record) == json.dumps(written, ensure_ascii=False, separators=(",", ":")).encode()
        assert from_json(RECORD.key, to_json(record), FILES) == record


def test_the_json_member_is_these_bytes() -> None:
    record = replace(RECORD, messages=(Message("user", (Image(0), Text("猫?"))), Message("assistant", (Image(1),))))
    assert to_json(record).decode() == (
        '{"schema":1,"source":"cambrian","task":"visual_thinking","messages":['
        '{"role":"user","content":[{"type":"image","index":0},{"type":"text","text":"猫?"}]},'
        '{"role":"assistant","content":[{"type":"image","index":1}]}],'
        '"media":[{"extension":"jpg","width":640,"height":480},{"extension":"png","width":32,"height":24}],'
        '"lineage":{"file":"jsons/a.jsonl","row":3014}}'
    )


def test_a_record_of_another_schema_is_refused() -> None:
    for data in (to_json(RECORD).replace(b'"schema":1', b'"schema":2'), b"{}", b"[]", b"null"):
        with pytest.raises(ValueError, match="this code reads 1; rebuild the corpus"):
            from_json(RECORD.key, data, FILES)


def test_a_record_whose_picture_is_gone_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"cambrian_000030014: member 1\.png is missing"):
        from_json(RECORD.key, to_json(RECORD), {"0.jpg": b"a jpeg"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"key": "Cambrian_000000000"}, "key 'Cambrian_000000000'"),
        ({"key": "a.b_000000000"}, "must be <source>_<9 digits>"),
        ({"key": "cambrian_00000000"}, "9 digits"),
        ({"key": "cambrian_000000000\n"}, "9 digits"),
        ({"task": "image_q"}, "task 'image_q' of cambrian_000030014: must be one of"),
        ({"messages": RECORD.messages[:2]}, "no assistant turn"),
        ({"messages": (*RECORD.messages[:2], Message("assistant", ()))}, "no assistant turn"),
        ({"messages": (*RECORD.messages, Message("gpt", ()))}, "role 'gpt'"),  # type: ignore[arg-type]
        ({"media": (CAT,)}, r"use pictures \[0, 1\] but 1 are held"),
        ({"media": (CAT, DOG, DOG)}, r"use pictures \[0, 1\] but 3 are held"),
    ],
)
def test_a_record_that_breaks_the_contract_says_which_rule(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(RECORD, **change).checked()


def test_a_picture_may_be_shown_twice() -> None:
    twice = replace(RECORD, messages=(Message("user", (Image(0), Image(0))), Message("assistant", (Image(1),))))
    assert twice.checked() is twice


def test_turns_are_plain_values_in_order() -> None:
    assert RECORD.turns[2] == ("assistant", ("Look: ", 1, " a cat."))
    assert [role for role, _ in RECORD.turns] == ["system", "user", "assistant"]


def test_text_length_counts_characters_of_all_turns() -> None:
    assert RECORD.text_length == sum(len(part) for _, parts in RECORD.turns for part in parts if isinstance(part, str))
