"""Sources on rows copied by hand from the documented upstream form: what each becomes, and why it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from upstream import BUS, ORCA, edits, file, jpeg, metaclip_json, photo, tar

from dataflow.media import Corrupt, picture
from dataflow.readers import rows, splits
from dataflow.record import Candidate, Image, Message, Text
from dataflow.sources import matching
from dataflow.sources.cambrian import Cambrian
from dataflow.sources.instruct_pix2pix import InstructPix2Pix
from dataflow.sources.metaclip import MetaClip

CAT = jpeg()
IN_WINTER = file(photo().rotate(180), "PNG")


def shelf(**files: bytes) -> Callable[[str], bytes]:
    """Reads from these files alone."""

    def read(path: str) -> bytes:
        if path not in files:
            raise Corrupt(f"picture {path!r} is not there")
        return files[path]

    return read


def cambrian(row: dict[str, Any]) -> Candidate | Corrupt:
    read = shelf(**{"coco/train2017/000000033471.jpg": CAT, "7": CAT})
    (candidate,) = Cambrian().candidates(row, "cambrian_000000000", read)
    return candidate


def say(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "1", "conversations": [{"from": speaker, "value": value} for speaker, value in turns], **more}


# --- Cambrian


def test_cambrian_s_published_row_is_one_image_qa_with_all_its_turns() -> None:
    assert cambrian(BUS) == Candidate(
        task="image_qa",
        messages=(
            Message("user", (Image(0), Text("What are the colors of the bus in the image?"))),
            Message("assistant", (Text("The bus in the image is white and red."),)),
            Message("user", (Text("What feature can be seen on the back of the bus?"),)),
            Message("assistant", (Text("The back of the bus features an advertisement."),)),
        ),
        media=(picture(CAT),),
    )


def test_cambrian_s_row_without_a_picture_is_text_qa() -> None:
    assert cambrian(ORCA) == Candidate(
        task="text_qa",
        messages=(
            Message("user", (Text(ORCA["conversations"][0]["value"]),)),  # type: ignore[index]
            Message("assistant", (Text(ORCA["conversations"][1]["value"]),)),  # type: ignore[index]
        ),
    )


@pytest.mark.parametrize("image", ["", "None", "none", "nan", None, float("nan"), " ", "NaN", "null"])
def test_every_spelling_of_no_picture_is_text_qa(image: Any) -> None:
    candidate = cambrian({**ORCA, "image": image})
    assert isinstance(candidate, Candidate)
    assert (candidate.task, candidate.media) == ("text_qa", ())


def test_the_picture_stands_where_its_tag_stood() -> None:
    row = say(("human", "Before <image> after"), ("gpt", "yes"), image="7")
    candidate = cambrian(row)
    assert isinstance(candidate, Candidate)
    assert candidate.messages[0].parts == (Text("Before"), Image(0), Text("after"))


def test_integer_ids_extra_keys_and_integer_paths_do_no_harm() -> None:
    row = {**say(("human", "<image>\n?"), ("gpt", 4)), "id": 33471, "model": "", "markdown": None, "image": 7}
    candidate = cambrian(row)
    assert isinstance(candidate, Candidate)
    assert candidate.messages[1].parts == (Text("4"),)


def test_a_system_turn_may_come_first() -> None:
    candidate = cambrian(say(("system", "Be brief."), ("human", "?"), ("gpt", "!")))
    assert isinstance(candidate, Candidate)
    assert [message.role for message in candidate.messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (say(("human", "?"), ("gpt", "!"), image="7"), "1 pictures but 0 <image> in the text"),
        (say(("human", "<image>?"), ("gpt", "!")), "0 pictures but 1 <image> in the text"),
        (say(("human", "<image><image>?"), ("gpt", "!"), image="7"), "1 pictures but 2 <image>"),
        (
            say(("human", "what?"), ("gpt", "<image>"), image="7"),
            "<image> in an answer: it would become a picture to learn",
        ),
        (say(("gpt", "!"), ("human", "?")), "turns are assistant, user: they must be user, assistant"),
        (say(("human", "?")), "turns are user: "),
        (say(("human", "?"), ("human", "?"), ("gpt", "!"), ("gpt", "!")), "turns are user, user, assistant, assistant"),
        (say(), "turns are none"),
        (say(("system", "x")), "turns are none"),
        (say(("human", "?"), ("gpt", "")), "an empty gpt turn"),
        (say(("human", " \n"), ("gpt", "!")), "an empty human turn"),
        (say(("human", "?"), ("gpt", None)), "an empty gpt turn"),
        (say(("human", "?"), ("bing", "!")), "turn from 'bing': only human, gpt and system speak"),
        (say(("human", "?"), ("gpt", ["a", "b"])), "a field holds list where text belongs"),
        ({"id": "1", "image": "7"}, "conversations is not a list of turns"),
        ({"id": "1", "conversations": "hello"}, "conversations is not a list of turns"),
        ({"id": "1", "conversations": ["hello", "you"]}, "conversations is not a list of turns"),
        (say(("human", "<image>?"), ("gpt", "!"), image="gone.jpg"), "picture 'gone.jpg' is not there"),
        (say(("human", "<image>?"), ("gpt", "!"), image=["7", "7"]), "2 pictures in a list: Cambrian rows hold one"),
        (say(("human", "<image>?"), ("gpt", "!"), image={"bytes": "x"}), "a field holds dict where text belongs"),
    ],
)
def test_a_cambrian_row_that_cannot_be_used_says_why(row: dict[str, Any], says: str) -> None:
    with pytest.raises(Corrupt, match=re.escape(says)):
        cambrian(row)


def test_cambrian_reads_the_jsonl_it_is_told_to(tmp_path: Path) -> None:
    for name in ("jsons/Cambrian7M_withsystemprompt.jsonl", "jsons/gpt4v_77k.jsonl", "other.jsonl", "jsons/readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert Cambrian().files(tmp_path) == ["jsons/Cambrian7M_withsystemprompt.jsonl", "jsons/gpt4v_77k.jsonl"]
    assert Cambrian(jsonl="jsons/gpt4v*.jsonl").files(tmp_path) == ["jsons/gpt4v_77k.jsonl"]


# --- MetaCLIP


def samples(tmp_path: Path, *members: tuple[str, bytes]) -> list[dict[str, Any]]:
    (tmp_path / "17").mkdir()
    (tmp_path / "17/317.tar").write_bytes(tar(*members))
    assert MetaClip().files(tmp_path) == ["17/317.tar"]
    return [row.value for split in splits(tmp_path, "17/317.tar", 9) for row in rows(tmp_path, split)[1]]


def metaclip(value: dict[str, Any], key: str = "metaclip_000000000") -> Candidate | Corrupt:
    (candidate,) = MetaClip().candidates(value, key, shelf())
    return candidate


def test_a_metaclip_sample_is_a_caption_that_asks_for_its_picture(tmp_path: Path) -> None:
    uuid, fields = metaclip_json("http://example.com/bus.jpg", " a red bus in the rain ")
    (value,) = samples(tmp_path, (f"{uuid}.jpeg", CAT), (f"{uuid}.json", fields))
    assert metaclip(value) == Candidate(
        task="text_to_image",
        messages=(Message("user", (Text("a red bus in the rain"),)), Message("assistant", (Image(0),))),
        media=(picture(CAT),),
    )


def test_of_several_texts_one_is_drawn_by_the_key(tmp_path: Path) -> None:
    texts = ["a cat", "Katze", "IMG_0001", " "]
    uuid, fields = metaclip_json("http://example.com/cat.jpg", *texts)
    (value,) = samples(tmp_path, (f"{uuid}.jpeg", CAT), (f"{uuid}.json", fields))

    def drawn(key: str) -> str:
        candidate = metaclip(value, key)
        assert isinstance(candidate, Candidate)
        (part,) = candidate.messages[0].parts
        assert isinstance(part, Text)
        return part.text

    keys = [f"metaclip_{number:09d}" for number in range(60)]
    assert [drawn(key) for key in keys] == [drawn(key) for key in keys]
    assert {drawn(key) for key in keys} == {"a cat", "Katze", "IMG_0001"}  # never the empty one


def test_matched_texts_with_entry_ids_are_read_too() -> None:
    fields = {"uuid": "x", "url": "u", "texts": [["alt", "a cat", [17, 4]], ["title", "Cat - Wikipedia", []]]}
    candidate = metaclip({"__key__": "x", "jpeg": CAT, "json": json.dumps(fields).encode()})
    assert isinstance(candidate, Candidate)
    assert candidate.task == "text_to_image"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"jpg": CAT, "json": b"{}"}, "sample has members ['jpg', 'json'], needs jpeg and json"),
        ({"jpeg": CAT, "txt": b"a cat"}, "sample has members ['jpeg', 'txt'], needs jpeg and json"),
        ({"jpeg": CAT, "json": b"{"}, "the json member does not parse: JSONDecodeError"),
        ({"jpeg": CAT, "json": b"\xff\xfe"}, "the json member does not parse"),
        ({"jpeg": CAT, "json": b"[]"}, "texts is not a list of [kind, text]"),
        ({"jpeg": CAT, "json": b'{"texts": ["a cat"]}'}, "texts is not a list of [kind, text]"),
        ({"jpeg": CAT, "json": b'{"texts": [["alt"]]}'}, "texts is not a list of [kind, text]"),
        ({"jpeg": CAT, "json": b'{"texts": []}'}, "no text for the picture"),
        ({"jpeg": CAT, "json": b'{"texts": [["alt", null], ["alt", " "]]}'}, "no text for the picture"),
        ({"jpeg": b"<html>", "json": b'{"texts": [["alt", "a cat"]]}'}, "web page"),
    ],
)
def test_a_metaclip_sample_that_cannot_be_used_says_why(value: dict[str, Any], says: str) -> None:
    with pytest.raises(Corrupt, match=re.escape(says)):
        metaclip({"__key__": "x", **value})


# --- InstructPix2Pix


def test_an_instruct_pix2pix_row_is_a_picture_edited_by_an_instruction(tmp_path: Path) -> None:
    name = "data/train-00000-of-00262-5179dd4f7a4b1b1c.parquet"
    edits(tmp_path / name, [(CAT, " make it snow ", IN_WINTER)])
    (tmp_path / "data/validation-00000.parquet").write_bytes(b"")
    source = InstructPix2Pix()
    assert source.files(tmp_path) == [name]
    (row,) = [row for split in splits(tmp_path, name, 9) for row in rows(tmp_path, split)[1]]
    assert list(source.candidates(row.value, "instruct_pix2pix_000000000", shelf())) == [
        Candidate(
            task="image_editing",
            messages=(Message("user", (Image(0), Text("make it snow"))), Message("assistant", (Image(1),))),
            media=(picture(CAT), picture(IN_WINTER)),
        )
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"edit_prompt": None}, "edit_prompt is empty"),
        ({"edit_prompt": "\t"}, "edit_prompt is empty"),
        ({"original_image": None}, "original_image holds no bytes"),
        ({"edited_image": {"bytes": None, "path": "1.jpg"}}, "edited_image holds no bytes"),
        ({"edited_image": {"bytes": b"", "path": None}}, "edited_image: picture is 0 bytes"),
        ({"original_image": {"bytes": CAT[:99]}}, "original_image: picture does not"),
    ],
)
def test_an_instruct_pix2pix_row_that_cannot_be_used_says_why(change: dict[str, Any], says: str) -> None:
    row = {"edit_prompt": "x", "original_image": {"bytes": CAT}, "edited_image": {"bytes": CAT}, **change}
    with pytest.raises(Corrupt, match=re.escape(says)):
        list(InstructPix2Pix().candidates(row, "instruct_pix2pix_000000000", shelf()))


# --- all


def test_files_are_listed_once_in_one_order(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "10/x.tar", "9/x.tar", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert matching(tmp_path, "*.tar", "a*", "*/*.tar") == ["10/x.tar", "9/x.tar", "a.tar", "a.txt", "b.tar"]


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \*/\*\.tar: is this the corpus' own layout\?"):
        MetaClip().files(tmp_path)


def test_a_file_name_that_no_ledger_could_spell_is_refused(tmp_path: Path) -> None:
    Path(str(tmp_path) + "/caf\udce9.tar").write_bytes(b"")  # a Latin-1 name
    with pytest.raises(ValueError, match="a name that is not UTF-8: rename the file"):
        matching(tmp_path, "*.tar")
