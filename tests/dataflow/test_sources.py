"""Sources on rows copied by hand from the documented upstream form: what each becomes, and why it does not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upstream import BUS, ORCA, Build, edits, file, jpeg, jsonl, metaclip_json, photo, tar

from dataflow.media import Corrupt, LeftOut, picture
from dataflow.readers import rows, splits
from dataflow.record import Candidate, Image, Message, Text
from dataflow.sources import matching, named
from dataflow.sources.cambrian import Cambrian
from dataflow.sources.instruct_pix2pix import InstructPix2Pix
from dataflow.sources.llava import Llava, conversation
from dataflow.sources.metaclip import MetaClip

CAT = jpeg()
IN_WINTER = file(photo().rotate(180), "PNG")


def shelf(**files: bytes) -> Any:
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
        (say(("human", "?"), ("gpt", "!"), image="7"), "1 picture but 0 <image> in the text"),
        (say(("human", "<image>?"), ("gpt", "!")), "0 pictures but 1 <image> in the text"),
        (say(("human", "<image><image>?"), ("gpt", "!"), image="7"), "1 picture but 2 <image>"),
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
    assert Cambrian(listing=("jsons/gpt4v*.jsonl",)).files(tmp_path) == ["jsons/gpt4v_77k.jsonl"]


def test_folders_that_are_left_out_are_so_wherever_they_lie_and_before_a_file_is_opened() -> None:
    source = Cambrian(
        name="cambrian_alignment", listing=("jsons/alignment_2.5m.jsonl",), without=("allava_laion", "sbu558k")
    )
    read = shelf(**{"./allava/allava_vflan/1.jpeg": CAT})

    def row(image: str) -> dict[str, Any]:
        return say(("human", "<image>\n?"), ("gpt", "!"), image=image)

    for image, folder in (("./allava/allava_laion/images/7.jpeg", "allava_laion"), ("sbu558k/0.jpg", "sbu558k")):
        with pytest.raises(LeftOut, match=f"pictures of {folder} are left out"):
            list(source.candidates(row(image), "cambrian_alignment_000000000", read))
    (kept,) = source.candidates(row("./allava/allava_vflan/1.jpeg"), "cambrian_alignment_000000000", read)
    (text_only,) = source.candidates(ORCA, "cambrian_alignment_000000000", read)
    assert (kept.task, text_only.task) == ("image_qa", "text_qa")


def test_rows_of_folders_left_out_are_filtered_in_the_ledger(build: Build, tmp_path: Path) -> None:
    home = tmp_path / "data/cambrian"
    for folder in ("jsons", "coco/train2017"):
        (home / folder).mkdir(parents=True)
    (home / "coco/train2017/000000033471.jpg").write_bytes(CAT)
    (home / "jsons/a.jsonl").write_bytes(jsonl(BUS, {**BUS, "image": "./laion/1.jpg"}, ORCA))
    corpus = build(Cambrian(without=("laion",)))
    ledger = pq.read_table(corpus.folder / "ledger.parquet").to_pylist()
    assert [(row["outcome"], row["reason"]) for row in ledger] == [
        ("kept", ""),
        ("filtered", "pictures of laion are left out"),
        ("kept", ""),
    ]
    assert sum(row["filtered"] for row in ledger) == 1
    assert not any(row["corrupt"] or row["missing"] for row in ledger)


# --- LLaVA

DOG = jpeg(48, 64)
SPOT = {  # LLaVA-NeXT-Interleave's kind: pictures stand where they are spoken of
    "id": 12,
    "image": ["spot/1.png", "spot/1_2.png"],
    "conversations": [
        {"from": "human", "value": "Here are <image> and <image>\nWhat differs?"},
        {"from": "gpt", "value": "The cat has turned."},
    ],
    "data_source": "spot_the_diff",
}
SHAREGPT = {
    "id": "wgByO4Y_0",
    "model": "",
    "conversations": [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello.", "text": "", "markdown": None},
    ],
}


def llava(row: dict[str, Any]) -> Candidate:
    read = shelf(**{"coco/train2017/000000033471.jpg": CAT, "spot/1.png": CAT, "spot/1_2.png": DOG})
    (candidate,) = Llava().candidates(row, "llava_000000000", read)
    return candidate


def test_a_llava_row_of_one_picture_is_what_cambrian_makes_of_it() -> None:
    assert llava(BUS) == cambrian(BUS)


def test_a_llava_row_of_several_pictures_holds_each_where_it_is_spoken_of() -> None:
    assert llava(SPOT) == Candidate(
        task="image_qa",
        messages=(
            Message("user", (Text("Here are"), Image(0), Text("and"), Image(1), Text("What differs?"))),
            Message("assistant", (Text("The cat has turned."),)),
        ),
        media=(picture(CAT), picture(DOG)),
    )
    assert llava({**SPOT, "image": None, "images": SPOT["image"]}) == llava(SPOT)


def test_a_llava_row_without_a_picture_is_text_qa_whatever_keys_it_has() -> None:
    said = (Message("user", (Text("Hi"),)), Message("assistant", (Text("Hello."),)))
    for more in (
        {},
        {"image": None},
        {"image": ""},
        {"image": []},
        {"image": {"bytes": None, "path": None}},
        {"video": None},
    ):
        assert llava({**SHAREGPT, **more}) == Candidate(task="text_qa", messages=said)


def test_pictures_in_a_parquet_row_are_bytes_or_a_path() -> None:
    row = {key: SPOT[key] for key in ("id", "conversations", "data_source")}
    assert llava({**row, "image": [{"bytes": CAT, "path": "1.png"}, {"bytes": None, "path": "spot/1_2.png"}]}) == llava(
        SPOT
    )
    (one,) = llava({**BUS, "image": {"bytes": DOG, "path": None}}).media
    assert one == picture(DOG)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**SPOT, "image": SPOT["image"][:1]}, "1 picture but 2 <image> in the text"),
        ({**SPOT, "image": [*SPOT["image"], "spot/1.png"]}, "3 pictures but 2 <image> in the text"),
        ({**SPOT, "image": ["spot/1.png", "gone.png"]}, "picture 'gone.png' is not there"),
        ({**SPOT, "image": ["spot/1.png", ""]}, "picture 1 of 2 is '': neither a path nor bytes"),
        ({**SPOT, "image": [{"bytes": CAT}, {"bytes": b"<html>"}]}, "picture 1 of 2: picture is a web page"),
        ({**SPOT, "image": [{"bytes": CAT}, {"bytes": "x"}]}, "bytes of a picture hold str"),
        ({**SPOT, "image": [["spot/1.png"], "spot/1.png"]}, "a field holds list where text belongs"),
        ({**SHAREGPT, "video": "academic/1.mp4"}, "video 'academic/1.mp4': rows of videos are read by the sources"),
        (say(("gpt", "!"), ("human", "?"), ("gpt", "!")), "turns are assistant, user, assistant: they must be user"),
        (say(("human", "?"), ("gpt", "caf\0e")), "text holds a NUL, at character 3"),
        (say(("human", "?"), ("gpt", "<image>"), image=["spot/1.png"]), "<image> in an answer"),
    ],
)
def test_a_llava_row_that_cannot_be_used_says_why(row: dict[str, Any], says: str) -> None:
    with pytest.raises(Corrupt, match=re.escape(says)):
        llava(row)


def test_llava_reads_the_files_it_is_told_to(tmp_path: Path) -> None:
    for name in ("llava_v1_5_mix665k.json", "mine.jsonl", "ai2d(cauldron,llava_format)/train-0.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert Llava().files(tmp_path) == ["llava_v1_5_mix665k.json"]
    assert Llava(listing=("*.jsonl",)).files(tmp_path) == ["mine.jsonl"]
    assert Llava(listing=("*/*.parquet",)).files(tmp_path) == ["ai2d(cauldron,llava_format)/train-0.parquet"]


def test_a_yaml_of_parts_gives_its_files_in_its_order(tmp_path: Path) -> None:
    for name in ("b.json", "parts/a.json", "c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"[]")
    (tmp_path / "mix.yaml").write_text(
        f"""datasets:
  - json_path: parts/a.json
    sampling_strategy: "all"
  - json_path: {tmp_path}/b.json
  - json_path: c.jsonl
    sampling_strategy: all
"""
    )
    assert Llava(listing=("mix.yaml",)).files(tmp_path) == ["parts/a.json", "b.json", "c.jsonl"]


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        (
            "datasets: [{json_path: a.json, sampling_strategy: 'first:10%'}]",
            "takes 'first:10%' of a.json: a corpus holds",
        ),
        ("datasets: [{json_path: a.json, sampling_strategy: 'random:999'}]", "give it an amount in the mixture"),
        (
            "datasets: [{json_path: a.json}, {json_path: ./a.json}]",
            "a.json is listed 2 times: a corpus holds each file",
        ),
        ("datasets: &a [{json_path: a.json}, {json_path: *a}]", "it has aliases, which a list of parts does not need"),
        ('datasets: [{json_path: !!int ""}]', "mix.yaml is not YAML that can be read"),
        ("datasets: [{json_path: !!timestamp x}]", "mix.yaml is not YAML that can be read"),
        ("datasets: [{json_path: [a.json]}]", "lists no parts"),
        (f"# {'x' * (1 << 20)}", "is no file of at most 1048576 bytes"),
        ("datasets: [{json_path: gone.json}]", "lists gone.json: no file of"),
        ("datasets: [{json_path: ../a.json}]", "lists ../a.json: no file of"),
        ("datasets: [{json_path: /etc/passwd}]", "lists /etc/passwd: no file of"),
        ("datasets: [{path: a.json}]", "lists no parts: it needs `datasets:`, a list of entries with json_path"),
        ("- a.json", "lists no parts"),
        ("datasets: [", "mix.yaml is not YAML"),
        ("datasets: !!python/object/apply:os.getcwd []", "mix.yaml is not YAML"),
    ],
)
def test_a_yaml_that_is_no_list_of_whole_files_is_refused(tmp_path: Path, yaml: str, says: str) -> None:
    home = tmp_path / "llava"
    home.mkdir()
    for place in (home / "a.json", tmp_path / "a.json"):
        place.write_bytes(b"[]")
    (home / "mix.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        Llava(listing=("mix.yaml",)).files(home)
    assert "\n" not in str(caught.value)


def test_one_vision_s_parquet_and_one_point_five_s_list_are_built_alike(build: Build, tmp_path: Path) -> None:
    (tmp_path / "data/llava/spot").mkdir(parents=True)
    for name, data in (("1.png", CAT), ("1_2.png", DOG)):
        (tmp_path / "data/llava/spot" / name).write_bytes(data)
    (tmp_path / "data/llava/mix.json").write_text(json.dumps([SPOT, SHAREGPT]))
    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("image", pa.list_(cell)),
            ("conversations", pa.list_(turn)),
            ("data_source", pa.string()),
        ]
    )
    rows = [
        {**SPOT, "id": "12", "image": [{"bytes": CAT, "path": "1.png"}, {"bytes": DOG, "path": "1_2.png"}]},
        {**SHAREGPT, "image": None, "data_source": "sharegpt"},
    ]
    (tmp_path / "data/llava/spot(llava,v1)").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "data/llava/spot(llava,v1)/train-0.parquet")
    listed, packed = build(Llava()), build(Llava(listing=("*/*.parquet",)), folder=tmp_path / "built/parquet")
    index = [pq.read_table(corpus.folder / "index.parquet").to_pylist() for corpus in (listed, packed)]
    assert [[(row["key"], row["task"]) for row in rows] for rows in index] == [
        [("llava_000000000", "image_qa"), ("llava_000000001", "text_qa")]
    ] * 2


def test_the_chat_and_the_spelling_of_no_file_are_there_for_other_sources() -> None:
    assert [named(field) for field in (" a.jpg ", 7, None, "NaN", "None", float("nan"))] == [
        "a.jpg",
        "7",
        "",
        "",
        "",
        "",
    ]
    said = conversation(SHAREGPT["conversations"], pictures=0)
    assert [message.role for message in said] == ["user", "assistant"]


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


def test_a_row_of_a_thousand_times_one_picture_is_refused_before_any_is_read() -> None:
    row = say(("human", "<image>" * 3000), ("gpt", "!"), image=["7"] * 3000)
    with pytest.raises(Corrupt, match="3000 pictures in a row: over 70"):
        list(Llava().candidates(row, "llava_000000000", shelf()))
