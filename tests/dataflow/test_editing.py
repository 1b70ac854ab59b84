"""Edited pictures as upstream lays them: InstructPix2Pix' folders, AURORA, OmniEdit, MetaQuery-Instruct.

Rows are from: instruct-pix2pix, edit_dataset.py and its prompts; AURORA, data/*/train.json and its card; OmniEdit and
MetaQuery-Instruct, the columns that MetaQuery's dataset.py reads.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upstream import Build, edits, file, jpeg, photo

from dataflow.index import BuiltCorpus
from dataflow.media import Corrupt, Missing, picture
from dataflow.record import Candidate, Image, Message, Text, to_json
from dataflow.roots import Roots
from dataflow.sources.aurora import Aurora
from dataflow.sources.instruct_pix2pix import InstructPix2Pix
from dataflow.sources.metaquery_instruct import MetaQueryInstruct
from dataflow.sources.omniedit import OmniEdit

CAT = jpeg()
TURNED = file(photo().rotate(180), "JPEG", quality=100)
IN_PNG = file(photo(), "PNG")
CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def lay(folder: Path, **files: bytes | list[Any] | dict[str, Any]) -> None:
    """Files under a folder, JSON where they are given as values."""
    for name, held in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(held if isinstance(held, bytes) else json.dumps(held).encode())


def parquet(path: Path, rows: list[dict[str, Any]], **columns: pa.DataType) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(columns.items()))), path)


def made(source: Any, value: dict[str, Any], folder: Path | None = None) -> list[Candidate | Corrupt]:
    read = Roots(named={source.name: folder} if folder else {}).files(source.name)
    return list(source.candidates(value, f"{source.name}_000000000", read))


def edited(before: bytes, instruction: str, after: bytes) -> Candidate:
    return Candidate(
        task="image_editing",
        messages=(Message("user", (Image(0), Text(instruction))), Message("assistant", (Image(1),))),
        media=(picture(before), picture(after)),
    )


def ledger(corpus: BuiltCorpus) -> list[tuple[str, int, str, str]]:
    rows = pq.read_table(corpus.folder / "ledger.parquet").to_pylist()
    return [(row["file"], row["row"], row["outcome"], row["reason"]) for row in rows]


def golden(corpus: BuiltCorpus, place: int) -> dict[str, Any]:
    return json.loads(to_json(corpus.record(place)))


# --- InstructPix2Pix, the raw folders


def test_each_seed_of_a_prompt_is_an_edit_of_its_own(tmp_path: Path, build: Build) -> None:
    """Also: `input` where people wrote the prompt, a picture that is missing, and a prompt's folder not in the list."""
    pair = {"1259306393_0.jpg": CAT, "1259306393_1.jpg": TURNED, "428914137_0.jpg": TURNED, "428914137_1.jpg": CAT}
    lay(
        tmp_path / "data/instruct_pix2pix",
        **{
            "seeds.json": [["0000000", ["1259306393", "31", "428914137"]], ["0000002", ["7"]], ["0000003", ["8"]]],
            "0000000/prompt.json": {"caption": "a cat", "edit": " turn it over ", "output": "a cat, turned over"},
            "0000000/metadata.jsonl": b'{"seed": 1259306393, "clip_sim_dir": 0.3}\n',
            **{f"0000000/{name}": data for name, data in pair.items()},
            "0000000/31_0.jpg": CAT,
            "0000001/prompt.json": {"caption": "a dog", "edit": "make it a wolf", "output": "a wolf"},
            "0000002/prompt.json": {"input": "a cat", "edit": "make it snow", "output": "a cat in snow"},
            "0000002/7_0.jpg": CAT,
            "0000002/7_1.jpg": TURNED,
        },
    )
    corpus = build(InstructPix2Pix())
    keys = ["instruct_pix2pix_000000000", "instruct_pix2pix_000000000-2", "instruct_pix2pix_000000001"]
    assert [corpus.record(place).key for place in range(len(corpus))] == keys
    assert golden(corpus, 0) == {
        "schema": 1,
        "source": "instruct_pix2pix",
        "task": "image_editing",
        "messages": [
            {"role": "user", "content": [{"type": "image", "index": 0}, {"type": "text", "text": "turn it over"}]},
            {"role": "assistant", "content": [{"type": "image", "index": 1}]},
        ],
        "media": [{"extension": "jpg", "width": 64, "height": 48}] * 2,
        "lineage": {"file": "seeds.json", "row": 0},
    }
    assert corpus.record(1).media == (picture(TURNED), picture(CAT))  # original bytes, before then after
    assert ledger(corpus) == [
        ("seeds.json", 0, "kept", "candidate 1: file '0000000/31_1.jpg' is not there"),
        ("seeds.json", 1, "kept", ""),
        ("seeds.json", 2, "missing", "file '0000003/prompt.json' is not there"),
    ]


def test_a_damaged_picture_harms_its_own_seed_alone(tmp_path: Path) -> None:
    sides = {f"0000004/{seed}_{side}.jpg": CAT for seed in (1, 2, 3) for side in (0, 1)}
    lay(
        tmp_path,
        **{"0000004/prompt.json": {"edit": "x"}, **sides, "0000004/1_1.jpg": b"", "0000004/2_0.jpg": b"<html>"},
    )
    found = made(InstructPix2Pix(), {"value": ["0000004", ["1", "2", "3", "4"]]}, tmp_path)
    assert [type(one) for one in found] == [Corrupt, Corrupt, Candidate, Missing]
    assert str(found[0]) == "0000004/1_1.jpg: picture is 0 bytes"
    assert str(found[1]) == "0000004/2_0.jpg: picture is a web page or XML, not pixels"


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (["../data", ["1"]], "prompt id '../data' is not digits in quotes"),
        (["/etc/0", ["1"]], "prompt id '/etc/0' is not digits in quotes"),
        (["", ["1"]], "prompt id '' is not digits in quotes"),
        ([5, ["1"]], "prompt id 5 is not digits in quotes"),
        (["\u0665", ["1"]], "is not digits in quotes"),  # a digit of another script
        ([["0000005"], ["1"]], "prompt id ['0000005'] is not digits in quotes"),
        (["0000005", []], "the item is not [prompt id, [seed, ...]]"),
        (["0000005"], "the item is not [prompt id, [seed, ...]]"),
        (["0000005", "12"], "the item is not [prompt id, [seed, ...]]"),
        ("0000005", "the item is not [prompt id, [seed, ...]]"),
        (None, "the item is not [prompt id, [seed, ...]]"),
        (["0000005", ["1"]], "file '0000005/prompt.json' is not there"),
        (["0000006", ["1"]], "0000006/prompt.json does not parse: JSONDecodeError"),
        (["0000007", ["1"]], "0000007/prompt.json has no edit"),
        (["0000008", ["1"]], "0000008/prompt.json has no edit"),
        (["0000009", ["1"]], "text holds a NUL, at character 1"),
    ],
)
def test_an_item_of_seeds_json_that_cannot_be_used_says_why(tmp_path: Path, item: Any, says: str) -> None:
    lay(
        tmp_path,
        **{
            "0000006/prompt.json": b"{",
            "0000007/prompt.json": {"caption": "a cat", "edit": " "},
            "0000008/prompt.json": ["a cat", "make it snow"],
            "0000009/prompt.json": {"edit": "a\0b"},
        },
    )
    with pytest.raises(Corrupt, match=re.escape(says)):
        made(InstructPix2Pix(), {"value": item}, tmp_path)


@pytest.mark.parametrize("seed", ["../0000004/1", "1/../1", 1, "", None, "-1", "1 "])
def test_a_seed_is_digits_or_no_path_is_made_of_it(tmp_path: Path, seed: Any) -> None:
    lay(tmp_path, **{"0000004/prompt.json": {"edit": "x"}, "0000004/1_0.jpg": CAT, "0000004/1_1.jpg": CAT})
    bad, good = made(InstructPix2Pix(), {"value": ["0000004", [seed, "1"]]}, tmp_path)
    assert isinstance(bad, Corrupt) and f"seed {seed!r} is not digits in quotes" in str(bad)
    assert good == edited(CAT, "x", CAT)


def test_both_forms_of_instruct_pix2pix_in_one_folder_are_refused(tmp_path: Path) -> None:
    lay(tmp_path, **{"seeds.json": []})
    assert InstructPix2Pix().files(tmp_path) == ["seeds.json"]
    edits(tmp_path / "data/train-00000-of-00262-5179dd4f7a4b1b1c.parquet", [(CAT, "x", CAT)])
    with pytest.raises(ValueError, match=r"holds data/train-\*\.parquet and seeds\.json, forms of the same rows: keep"):
        InstructPix2Pix().files(tmp_path)


def test_a_folder_without_either_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no data/train-\*\.parquet or seeds\.json: is this the corpus' own"):
        InstructPix2Pix().files(tmp_path)


# --- AURORA

AG = {
    "instruction": "Move the towel to the left.",
    "input": "data/ag/images/1K0SU.mp4_4_left.png",
    "output": "data/ag/images/1K0SU.mp4_4_right.png",
}
MAGICBRUSH = {
    "input": "data/magicbrush/images/0-input.png",
    "mask": "0-mask.png",
    "output": "data/magicbrush/images/0-output1.png",
    "instruction": "give the cat a hat",
    "img_id": "0",
}


def aurora_pictures(folder: Path) -> None:
    alpha = file(photo().convert("RGBA"), "PNG")
    lay(folder, **{AG["input"]: IN_PNG, AG["output"]: file(photo().rotate(180), "PNG")})
    lay(folder, **{MAGICBRUSH["input"]: alpha, MAGICBRUSH["output"]: IN_PNG})


def test_aurora_s_lists_are_read_with_paths_from_its_root(tmp_path: Path, build: Build) -> None:
    home = tmp_path / "data/aurora"
    aurora_pictures(home)
    gone = {**AG, "output": "data/ag/images/gone.png"}
    lay(home, **{"data/ag/train.json": [AG, gone], "data/magicbrush/train.json": [MAGICBRUSH]})
    lay(home, **{"data/something/train_.json": [AG], "data/ag/test.json": [AG], "test.json": [AG]})  # others' files
    corpus = build(Aurora())
    assert golden(corpus, 0) == {
        "schema": 1,
        "source": "aurora",
        "task": "image_editing",
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "index": 0}, {"type": "text", "text": "Move the towel to the left."}],
            },
            {"role": "assistant", "content": [{"type": "image", "index": 1}]},
        ],
        "media": [{"extension": "png", "width": 64, "height": 48}] * 2,
        "lineage": {"file": "data/ag/train.json", "row": 0},
    }
    assert corpus.record(0).media[0].data == IN_PNG  # original bytes
    assert corpus.record(1).turns == (("user", (0, "give the cat a hat")), ("assistant", (1,)))
    assert ledger(corpus) == [
        ("data/ag/train.json", 0, "kept", ""),
        ("data/ag/train.json", 1, "missing", "file 'data/ag/images/gone.png' is not there"),
        ("data/magicbrush/train.json", 0, "kept", ""),
    ]


def test_one_part_of_aurora_can_be_asked_for(tmp_path: Path) -> None:
    lay(tmp_path, **{f"data/{part}/train.json": [] for part in ("ag", "kubric", "magicbrush", "something")})
    assert Aurora(parts=("ag", "kubric", "magicbrush")).files(tmp_path) == [
        "data/ag/train.json",
        "data/kubric/train.json",
        "data/magicbrush/train.json",
    ]


def test_a_part_of_aurora_that_is_not_there_is_no_reason_to_read_another(tmp_path: Path) -> None:
    lay(tmp_path, **{"data/ag/train.json": []})
    assert Aurora(parts=("ag", "magicbrush")).files(tmp_path) == ["data/ag/train.json"]
    with pytest.raises(ValueError, match=r"holds no data/magicbrush/train\.json"):
        Aurora(parts=("magicbrush",)).files(tmp_path)


def test_aurora_s_parquet_form_is_read_too(tmp_path: Path, build: Build) -> None:
    rows = [
        {
            "input": {"bytes": CAT, "path": "a.jpg"},
            "output": {"bytes": TURNED},
            "instruction": "turn it",
            "source": "ag",
        },
        {"input": {"bytes": CAT, "path": None}, "output": None, "instruction": "turn it", "source": "kubric"},
        {"input": {"bytes": CAT}, "output": {"bytes": TURNED}, "instruction": "turn it", "source": None},
    ]
    name = "data/train-00042-of-00093.parquet"
    kinds = {"input": CELL, "output": CELL, "instruction": pa.string(), "source": pa.string()}
    parquet(tmp_path / "data/aurora" / name, rows, **kinds)
    corpus = build(Aurora())
    assert corpus.record(0).messages == edited(CAT, "turn it", TURNED).messages
    assert corpus.record(0).media == (picture(CAT), picture(TURNED))
    assert ledger(corpus)[1] == (name, 1, "corrupt", "no output: the row names no picture there")
    some = build(Aurora(parts=("magicbrush", "kubric")), folder=tmp_path / "some")
    assert [row[2:] for row in ledger(some)] == [
        ("filtered", "part 'ag' is left out"),
        ("corrupt", "no output: the row names no picture there"),
        ("corrupt", "no source: the row may be of another part than magicbrush, kubric"),
    ]
    lay(tmp_path / "data/aurora", **{"data/ag/train.json": [AG]})
    with pytest.raises(ValueError, match="forms of the same rows"):
        Aurora().files(tmp_path / "data/aurora")


@pytest.mark.parametrize(
    ("instruction", "taken"),
    [(["turn it", "rotate it"], "turn it"), (["", None, " rotate it "], "rotate it"), (" turn it\n", "turn it")],
)
def test_of_several_instructions_the_first_with_words_is_taken(tmp_path: Path, instruction: Any, taken: str) -> None:
    aurora_pictures(tmp_path)
    (candidate,) = made(Aurora(), {**AG, "instruction": instruction}, tmp_path)
    assert isinstance(candidate, Candidate)
    assert candidate.messages[0].parts == (Image(0), Text(taken))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"output": None}, "no output: the row names no picture there"),
        ({"output": " "}, "no output: the row names no picture there"),
        ({"input": None}, "no input: the row names no picture there"),
        ({"input": 7}, "input holds no bytes"),
        ({"input": "../secret.png"}, "leaves the declared folders"),
        ({"input": "/etc/passwd"}, "leaves the declared folders"),
        ({"input": "0-mask.png"}, "file '0-mask.png' is not there"),
        ({"input": "data/ag/page.png"}, "data/ag/page.png: picture is a web page or XML, not pixels"),
        ({"instruction": []}, "instruction is empty"),
        ({"instruction": [" ", None]}, "instruction is empty"),
        ({"instruction": None}, "instruction is empty"),
        ({"instruction": [["x"]]}, "a field holds list where text belongs"),
        ({"instruction": {"text": "x"}}, "a field holds dict where text belongs"),
        ({"instruction": "a\0"}, "text holds a NUL, at character 1"),
    ],
)
def test_an_aurora_row_that_cannot_be_used_says_why(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    home = tmp_path / "aurora"
    aurora_pictures(home)
    lay(home, **{"data/ag/page.png": b"<!DOCTYPE html>", "../secret.png": IN_PNG})
    with pytest.raises(Corrupt, match=re.escape(says)):
        made(Aurora(), {**AG, **change}, home)


def test_a_test_row_of_aurora_bench_has_no_output_and_says_so(tmp_path: Path) -> None:
    aurora_pictures(tmp_path)
    row = {"input": AG["input"], "instruction": "Make it blue.", "id": 12, "type": "clevr"}
    with pytest.raises(Corrupt, match="no output: the row names no picture there"):
        made(Aurora(), row, tmp_path)


# --- OmniEdit


def test_omniedit_s_last_wording_is_the_instruction(tmp_path: Path, build: Build) -> None:
    rows = [
        {
            "omni_edit_id": "task_obj_swap_1",
            "src_img": {"bytes": CAT, "path": "1.jpg"},
            "edited_img": {"bytes": TURNED, "path": None},
            "edited_prompt_list": ["Turn.", " Turn the cat over. "],
        },
        {"src_img": {"bytes": CAT}, "edited_img": {"bytes": CAT}, "edited_prompt_list": []},
    ]
    name = "data/train-00014-of-00571.parquet"
    kinds = {
        "omni_edit_id": pa.string(),
        "src_img": CELL,
        "edited_img": CELL,
        "edited_prompt_list": pa.list_(pa.string()),
    }
    parquet(tmp_path / "data/omniedit" / name, rows, **kinds)
    parquet(tmp_path / "data/omniedit/data/dev-00003-of-00004.parquet", rows, **kinds)
    corpus = build(OmniEdit())
    assert golden(corpus, 0) == {
        "schema": 1,
        "source": "omniedit",
        "task": "image_editing",
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "index": 0}, {"type": "text", "text": "Turn the cat over."}],
            },
            {"role": "assistant", "content": [{"type": "image", "index": 1}]},
        ],
        "media": [{"extension": "jpg", "width": 64, "height": 48}] * 2,
        "lineage": {"file": name, "row": 0},
    }
    assert [media.data for media in corpus.record(0).media] == [CAT, TURNED]  # original bytes
    assert ledger(corpus) == [(name, 0, "kept", ""), (name, 1, "corrupt", "edited_prompt_list is empty")]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"edited_prompt_list": []}, "edited_prompt_list is empty"),
        ({"edited_prompt_list": None}, "edited_prompt_list is empty"),
        ({"edited_prompt_list": "x"}, "edited_prompt_list is no list of wordings"),
        ({"edited_prompt_list": ["x", " "]}, "the last of edited_prompt_list is empty"),
        ({"edited_prompt_list": ["x", None]}, "the last of edited_prompt_list is empty"),
        ({"src_img": None}, "src_img holds no bytes"),
        ({"edited_img": {"bytes": None, "path": "1.jpg"}}, "edited_img holds no bytes"),
        ({"edited_img": {"bytes": CAT[:-9]}}, "edited_img: picture does not"),
    ],
)
def test_an_omniedit_row_that_cannot_be_used_says_why(change: dict[str, Any], says: str) -> None:
    row = {"src_img": {"bytes": CAT}, "edited_img": {"bytes": CAT}, "edited_prompt_list": ["x"], **change}
    with pytest.raises(Corrupt, match=re.escape(says)):
        made(OmniEdit(), row)


# --- MetaQuery-Instruct


def subject_row(*sources: bytes, **change: Any) -> dict[str, Any]:
    return {
        "source_images": [{"bytes": data, "path": None} for data in sources],
        "source_captions": ["a cat"] * len(sources),
        "prompt": " The same cat, upside down. ",
        "target_image": {"bytes": TURNED, "path": None},
        "target_caption": "a cat upside down",
        **change,
    }


def test_metaquery_s_pictures_and_prompt_ask_for_the_target(tmp_path: Path, build: Build) -> None:
    kinds = {
        "source_images": pa.list_(CELL),
        "source_captions": pa.list_(pa.string()),
        "prompt": pa.string(),
        "target_image": CELL,
        "target_caption": pa.string(),
    }
    rows = [subject_row(CAT, IN_PNG), subject_row(CAT), subject_row(*[CAT] * 5), subject_row()]
    name = "data/train-00000-of-00512.parquet"
    parquet(tmp_path / "data/metaquery_instruct" / name, rows, **kinds)
    corpus = build(MetaQueryInstruct())
    assert golden(corpus, 0) == {
        "schema": 1,
        "source": "metaquery_instruct",
        "task": "subject_driven",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "index": 0},
                    {"type": "image", "index": 1},
                    {"type": "text", "text": "The same cat, upside down."},
                ],
            },
            {"role": "assistant", "content": [{"type": "image", "index": 2}]},
        ],
        "media": [{"extension": extension, "width": 64, "height": 48} for extension in ("jpg", "png", "jpg")],
        "lineage": {"file": name, "row": 0},
    }
    assert [media.data for media in corpus.record(0).media] == [CAT, IN_PNG, TURNED]  # original bytes
    assert corpus.record(1).turns == (("user", (0, "The same cat, upside down.")), ("assistant", (1,)))
    assert corpus.record(2).turns[1] == ("assistant", (5,))
    assert ledger(corpus)[3] == (name, 3, "corrupt", "source_images is empty")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source_images": None}, "source_images is empty"),
        ({"source_images": []}, "source_images is empty"),
        ({"source_images": [{"bytes": CAT}, None]}, "source_images 1 holds no bytes"),
        ({"source_images": [{"bytes": b""}]}, "source_images 0: picture is 0 bytes"),
        ({"source_images": {"bytes": CAT}}, "source_images is no list of pictures"),
        ({"prompt": None}, "prompt is empty"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": "a\0"}, "text holds a NUL, at character 1"),
        ({"target_image": None}, "target_image holds no bytes"),
        ({"target_image": {"bytes": b"GIF89a"}}, "target_image: picture"),
    ],
)
def test_a_metaquery_row_that_cannot_be_used_says_why(change: dict[str, Any], says: str) -> None:
    with pytest.raises(Corrupt, match=re.escape(says)):
        made(MetaQueryInstruct(), subject_row(CAT, **change))
