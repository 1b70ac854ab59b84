"""Visual CoT and V* as upstream lays them: the region and the marked picture are what the assistant shows.

Rows are from: Visual CoT, viscot_benchmark/benchmark/gqa.json and tools/convert_data_to_llava_format.py of its
repository; V*, LLaVA/llava/train/train_search.py of its repository and the files of its data set.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pixels
from upstream import Build, file, photo

from dataflow.media import Corrupt, LeftOut, Missing, boxed, decoded, picture, region
from dataflow.record import Candidate, Image, Message, Text
from dataflow.roots import Roots
from dataflow.sources.visual_cot import VisualCot
from dataflow.sources.vstar import VStar

BRANCHES = {
    "dataset": "gqa",
    "split": "val",
    "question_id": 7,
    "image": ["cot/gqa/2316539.jpg", "cot/gqa/2316539.jpg###[217, 343, 242, 393]"],
    "conversations": [
        {
            "from": "human",
            "value": "<image>\nWhat are the tree branches in front of? Please provide the bounding box coordinate of "
            "the region that can help you answer the question better.",
        },
        {"from": "gpt", "value": "[0.542, 0.686, 0.592, 0.786]"},
        {"from": "human", "value": "<image>"},
        {"from": "gpt", "value": "window"},
    ],
}
PERFUME = {
    "question": "What brand of perfume is displayed in front of the yellow box?",
    "answer": "LANCOME",
    "image": "de16e970e8c0adbe.jpg",
    "dataset": "textcap",
    "split": "val",
    "bboxs": [[227, 501, 300, 549], [290, 510, 423, 540]],
    "width": 1024,
    "height": 1024,
}
CUP = {
    "image": "gqa/images/2368326.jpg",
    "search": ["cup", "plate"],
    "target_instances": [
        {"name": "cup", "bbox": [20, 10, 100, 60], "instance_id": "1058498"},
        {"name": "plate", "bbox": [150.4, 80.6, 90.5, 30.2], "instance_id": "1058507"},
    ],
    "conversations": [
        {
            "from": "human",
            "value": "<image>\nAdditional visual information to focus on: <object>; <object>.\n"
            "Is the cup to the left of the plate?",
        },
        {"from": "gpt", "value": "Yes, the cup is to the left of the plate."},
    ],
}

GQA = file(photo(391, 500), "PNG")  # as large as the picture that the row is of; many .jpg of the web are PNG
TEXTVQA = file(photo(640, 640), "PNG")
SMALL = file(photo(16, 12), "PNG")
KITCHEN = file(photo(300, 200), "PNG")


class Shelf:
    """Reads from these files alone, and remembers which were asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked = files, []

    def __call__(self, path: str) -> bytes:
        self.asked.append(path)
        if path not in self.files:
            raise Missing(f"file {path!r} is not there")
        return self.files[path]


def visual_cot(row: dict[str, Any], key: str = "visual_cot_000000000", data: bytes = GQA) -> Candidate:
    shelf: Any = Shelf({"cot/gqa/2316539.jpg": data, "cot/textvqa/de16e970e8c0adbe.jpg": TEXTVQA})
    (candidate,) = VisualCot().candidates(row, key, shelf)
    return candidate


def boxed_as(box: str) -> dict[str, Any]:
    return {**BRANCHES, "image": ["cot/gqa/2316539.jpg", f"cot/gqa/2316539.jpg###{box}"]}


def pixels(data: Any) -> Any:
    return np.asarray(decoded(data))


# --- Visual CoT


def test_visual_cot_s_published_row_shows_the_region_between_a_phrase_and_the_answer() -> None:
    candidate = visual_cot(BRANCHES)
    assert candidate == Candidate(
        task="visual_thinking",
        messages=(
            Message("user", (Image(0), Text("What are the tree branches in front of?"))),
            Message("assistant", (Text("I look at this region first."), Image(1), Text("window"))),
        ),
        media=(picture(GQA), region(GQA, (217, 343, 242, 393))),
    )
    assert np.array_equal(pixels(candidate.media[1]), np.asarray(photo(391, 500))[343:393, 217:242])


def test_the_phrase_is_drawn_by_the_key_and_may_be_none() -> None:
    keys = [f"visual_cot_{number:09d}" for number in range(60)]
    said, again = (
        [visual_cot(boxed_as("[1, 1, 9, 9]"), key, SMALL).messages[1].parts[:-2] for key in keys] for _ in "ab"
    )
    assert said == again
    assert () in said
    assert len(set(said)) == 8


def test_a_line_of_metadata_is_the_same_chat_with_its_boxes_united() -> None:
    candidate = visual_cot(PERFUME)
    assert candidate.messages[0].parts == (Image(0), Text(PERFUME["question"]))
    assert candidate.messages[1].parts[-2:] == (Image(1), Text("LANCOME"))
    assert np.array_equal(pixels(candidate.media[1]), np.asarray(photo(640, 640))[501:549, 227:423])


def test_pictures_of_metadata_lie_in_the_folder_of_their_set() -> None:
    shelf: Any = Shelf({})
    for row in (PERFUME, {**PERFUME, "dataset": "gqa"}, {**PERFUME, "image": "cot/gqa/1.jpg"}):
        with pytest.raises(Missing):
            list(VisualCot().candidates(row, "visual_cot_000000000", shelf))
    assert shelf.asked == ["cot/textvqa/de16e970e8c0adbe.jpg", "cot/gqa/de16e970e8c0adbe.jpg", "cot/gqa/1.jpg"]


def test_the_request_for_coordinates_is_cut_in_both_of_its_forms() -> None:
    row = copy.deepcopy(BRANCHES)
    row["conversations"][0]["value"] = (
        "<image>\nWho? Please think step by step and provide the bounding box coordinate of the region that can help "
        "you answer the question better."
    )
    assert visual_cot(row).messages[0].parts == (Image(0), Text("Who?"))
    row["conversations"][0]["value"] = "<image>\nWho?"
    assert visual_cot(row).messages[0].parts == (Image(0), Text("Who?"))


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ("[217, 343, 242, 393]", (343, 393), (217, 242)),
        ("[217.2, 343.7, 241.1, 392.5]", (343, 393), (217, 242)),  # whole pixels around it
        ("[0.5, 0.5, 0.75, 0.9]", (250, 450), (250, 375)),  # of the longer side, 500
        ("[0, 0, 0.782, 1.0]", (0, 500), (0, 391)),
        ("[0, 0, 1, 1]", (0, 1), (0, 1)),  # whole numbers are pixels, few as they are
        ("[-10, 480, 30, 900]", (480, 500), (0, 30)),
        ("[217,343,242,393]", (343, 393), (217, 242)),
    ],
)
def test_a_box_is_pixels_or_fractions_of_the_longer_side_and_is_cut_to_the_picture(
    box: str, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    held = visual_cot(boxed_as(box)).media[1]
    assert np.array_equal(pixels(held), np.asarray(photo(391, 500))[slice(*rows), slice(*columns)])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (boxed_as("[242, 343, 217, 393]"), "box [242, 343, 217, 393] has no area"),
        (boxed_as("[217, 393, 242, 393]"), "box [217, 393, 242, 393] has no area"),
        (boxed_as("[400, 10, 500, 90]"), "box [400, 10, 500, 90] is outside the picture of 391x500"),
        (boxed_as("[-90, 10, -1, 90]"), "box [-90, 10, -1, 90] is outside the picture"),
        (boxed_as("[1, 1, 1.5, 1.2]"), "box [500, 500, 750, 600] is outside"),  # a fraction among them, so all are
        (boxed_as("[NaN, 1, 2, 3]"), "is not four numbers in pixels"),
        (boxed_as("[1, 2, Infinity, 3]"), "is not four numbers in pixels"),
        (boxed_as("[1, 2, 3]"), "box [1, 2, 3] is not four numbers in pixels"),
        (boxed_as("[[1, 2, 3, 4]]"), "is not four numbers in pixels"),
        (boxed_as("1, 2, 3, 4"), "box '1, 2, 3, 4' is not [x1, y1, x2, y2]"),
        (boxed_as("[1, 2, 3, 1e999]"), "is not four numbers in pixels"),
        ({**BRANCHES, "image": ["cot/gqa/2316539.jpg"] * 2}, "no ###[x1, y1, x2, y2] in 'cot/gqa/2316539.jpg'"),
        ({**BRANCHES, "image": "cot/gqa/2316539.jpg"}, "image is not a path and a path with its box"),
        ({**BRANCHES, "image": ["a.jpg", None]}, "image is not a path and a path with its box"),
        ({**BRANCHES, "image": ["a.jpg", "b.jpg###[1, 2, 3, 4]"]}, "the box is of 'b.jpg', the question of 'a.jpg'"),
        ({**BRANCHES, "conversations": BRANCHES["conversations"][:3]}, "turns are human, gpt, human: they must be"),
        ({**BRANCHES, "conversations": []}, "turns are none: they must be human, gpt, human, gpt"),
        ({**BRANCHES, "conversations": "x"}, "conversations is not a list of turns"),
        ({**PERFUME, "bboxs": []}, "bboxs is not a list of boxes"),
        ({**PERFUME, "bboxs": [[1, 2, 3]]}, "box [1, 2, 3] is not four numbers in pixels"),
        ({**PERFUME, "question": " "}, "an empty question"),
        ({**PERFUME, "answer": None}, "an empty answer"),
        ({**PERFUME, "image": None}, "no image"),
        ({**PERFUME, "dataset": ""}, "no dataset, whose folder holds the image"),
    ],
)
def test_a_visual_cot_row_that_cannot_be_used_says_why(row: dict[str, Any], says: str) -> None:
    with pytest.raises(Corrupt, match=re.escape(says)):
        visual_cot(row)


@pytest.mark.parametrize(("turn", "value"), [(0, "What?"), (2, "<image><image>"), (2, ""), (3, "it is <image>")])
def test_another_pattern_of_tags_is_named(turn: int, value: str) -> None:
    row = copy.deepcopy(BRANCHES)
    row["conversations"][turn]["value"] = value
    with pytest.raises(Corrupt, match=re.escape("times in the turns, must stand (1, 0, 1, 0)")):
        visual_cot(row)


def test_the_box_is_of_the_stored_pixels_where_exif_turns_the_picture() -> None:
    tags = Pixels.Exif()
    tags[0x0112] = 6
    stored = photo(391, 500).transpose(Pixels.Transpose.ROTATE_90)  # 500 wide, 391 high
    candidate = visual_cot(boxed_as("[100, 50, 300, 90]"), data=file(stored, "PNG", exif=tags))
    whole, part = candidate.media
    assert np.array_equal(pixels(whole), np.asarray(photo(391, 500)))
    upright = stored.crop((100, 50, 300, 90)).transpose(Pixels.Transpose.ROTATE_270)
    assert np.array_equal(pixels(part), np.asarray(upright))


def test_visual_cot_is_built_from_its_list_and_every_row_is_accounted_for(build: Build, tmp_path: Path) -> None:
    home = tmp_path / "data/visual_cot"
    (home / "cot/gqa").mkdir(parents=True)
    (home / "cot/gqa/2316539.jpg").write_bytes(GQA)
    gone = {**BRANCHES, "image": ["cot/gqa/1.jpg", "cot/gqa/1.jpg###[1, 2, 3, 4]"]}
    (home / "viscot_363k.json").write_text(json.dumps([BRANCHES, gone, boxed_as("[5, 5, 5, 9]")], indent=1))
    corpus = build(VisualCot())
    ledger = pq.read_table(corpus.folder / "ledger.parquet").to_pylist()
    assert [(row["outcome"], row["reason"]) for row in ledger] == [
        ("kept", ""),
        ("missing", "file 'cot/gqa/1.jpg' is not there"),
        ("corrupt", "box [5, 5, 5, 9] has no area"),
    ]


# --- V*


def vstar(row: dict[str, Any], key: str = "vstar_000000000", data: bytes = KITCHEN) -> Candidate:
    shelf: Any = Shelf({"gqa/images/2368326.jpg": data})
    (candidate,) = VStar().candidates(row, key, shelf)
    return candidate


def cup(**change: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CUP), **change}


def test_a_vstar_row_names_its_targets_shows_them_marked_and_answers() -> None:
    candidate = vstar(CUP)
    assert candidate == Candidate(
        task="visual_thinking",
        messages=(
            Message("user", (Image(0), Text("Is the cup to the left of the plate?"))),
            Message(
                "assistant",
                (
                    Text("First I find cup and plate in the picture."),
                    Image(1),
                    Text("Yes, the cup is to the left of the plate."),
                ),
            ),
        ),
        media=(picture(KITCHEN), boxed(KITCHEN, [(20, 10, 120, 70), (150.4, 80.6, 240.9, 110.8)], ["cup", "plate"])),
    )


def test_a_system_turn_stays_what_it_is_and_later_turns_too() -> None:
    more = [{"from": "human", "value": "And the plate?"}, {"from": "gpt", "value": "To the right."}]
    row = cup(conversations=[{"from": "system", "value": "Be brief."}, *CUP["conversations"], *more])
    plain, system = vstar(CUP).messages, vstar(row).messages
    assert system[0] == Message("system", (Text("Be brief."),))
    assert system[1:3] == plain
    assert system[3:] == (Message("user", (Text("And the plate?"),)), Message("assistant", (Text("To the right."),)))


def test_boxes_are_left_top_width_height_and_drawn_red_in_the_picture() -> None:
    shown = pixels(vstar(cup(target_instances=[{"name": "cup", "bbox": [20, 30, 100, 60]}])).media[1])
    red = (shown == (255, 0, 0)).all(axis=-1)
    assert red[30:90, 20:25].all()  # left edge, as wide as MetaMorph's
    assert red[30:35, 20:120].all()
    assert red[85:90, 20:120].all()
    assert red[30:90, 115:120].all()
    assert not red[35:85, 25:115].any()
    assert not red[91:].any()
    assert np.array_equal(shown[35:85, 25:115], np.asarray(photo(300, 200))[35:85, 25:115])


@pytest.mark.parametrize(
    "asked",
    [
        "<image>\nAdditional visual information to focus on: <object>; <object>.\nWho is it?",
        "<image>\nAdditional visual information to focus on: <object>.Who is it?",
        "<image>\nAdditional visual information to focus on: <object>.\nWho is it?",
        "<image>\nAdditional visual information to focus on: <object>; <object>; <object>. Who is it?",
        "<image>\nAdditional visual information to focus on:\n<object>\nWho is it?",
        "<image>\nWho is it?",
        "Who is it?\n<image>\nAdditional visual information to focus on: <object>.",
    ],
)
def test_the_line_that_announces_the_targets_is_not_part_of_the_question(asked: str) -> None:
    row = cup()
    row["conversations"][0]["value"] = asked
    parts = vstar(row).messages[0].parts
    assert set(parts) == {Image(0), Text("Who is it?")}


def test_the_sentence_is_drawn_by_the_key_and_lists_each_name_once() -> None:
    targets = [{"name": name, "bbox": [1, 1, 9, 9]} for name in ("red  cup", "dog", "dog", "hat")]
    row = cup(target_instances=targets)
    said = {vstar(row, f"vstar_{number:09d}", SMALL).messages[1].parts[0] for number in range(60)}
    assert len(said) == 5
    assert all(isinstance(part, Text) and "red cup, dog and hat" in part.text for part in said)


def test_later_turns_stay_as_they_are() -> None:
    row = cup()
    row["conversations"] += [{"from": "human", "value": "And the dog?"}, {"from": "gpt", "value": "It sleeps."}]
    assert vstar(row).messages[2:] == (
        Message("user", (Text("And the dog?"),)),
        Message("assistant", (Text("It sleeps."),)),
    )


def test_a_box_that_is_partly_outside_is_cut_to_the_picture() -> None:
    cut = vstar(cup(target_instances=[{"name": "cup", "bbox": [-20, 150, 100, 300]}])).media[1]
    whole = vstar(cup(target_instances=[{"name": "cup", "bbox": [0, 150, 80, 50]}])).media[1]
    assert cut == whole


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (cup(target_instances=[{"name": "cup", "bbox": [20, 10, 0, 60]}]), "box [20, 10, 20, 70] has no area"),
        (cup(target_instances=[{"name": "cup", "bbox": [20, 10, 5, -60]}]), "box [20, 10, 25, -50] has no area"),
        (cup(target_instances=[{"name": "cup", "bbox": [300, 10, 9, 9]}]), "is outside the picture of 300x200"),
        (cup(target_instances=[{"name": "cup", "bbox": [1, 2, 3]}]), "box [1, 2, 3] is not four numbers in pixels"),
        (cup(target_instances=[{"name": "cup", "bbox": ["1", 2, 3, 4]}]), "is not four numbers in pixels"),
        (cup(target_instances=[{"name": "cup"}]), "box None is not four numbers in pixels"),
        (cup(target_instances=[{"bbox": [1, 2, 3, 4]}]), "a target without a name"),
        (cup(target_instances=["cup"]), "target_instances is not a list of targets"),
        (cup(target_instances="cup"), "target_instances is not a list of targets"),
        (cup(image=None), "no image, but targets in it"),
        (cup(conversations=None), "conversations is not a list of turns"),
        (cup(conversations=[{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]), "1 picture but 0"),
        (
            cup(conversations=[{"from": "human", "value": "<image> Who?"}, {"from": "gpt", "value": "An <object>."}]),
            "<object> in the text, outside the line that announces the targets",
        ),
    ],
)
def test_a_vstar_row_that_cannot_be_used_says_why(row: dict[str, Any], says: str) -> None:
    with pytest.raises(Corrupt, match=re.escape(says)):
        vstar(row)


def test_a_row_without_targets_is_left_out_and_no_file_is_opened_for_it() -> None:
    shelf: Any = Shelf({})
    bare = cup()
    del bare["target_instances"]
    for row in (bare, cup(target_instances=[]), cup(target_instances=None)):
        with pytest.raises(LeftOut, match="no target_instances"):
            list(VStar().candidates(row, "vstar_000000000", shelf))
    assert shelf.asked == []


def test_vstar_reads_the_files_that_hold_targets_and_pictures_of_shared_roots(build: Build, tmp_path: Path) -> None:
    home = tmp_path / "vstar"
    home.mkdir()
    coco = cup(image="coco2014/train2014/COCO_train2014_000000000009.jpg")
    bare = cup()
    del bare["target_instances"]
    (home / "GQA_data.json").write_text(json.dumps([CUP, bare]))
    (home / "spatial_relation_data.json").write_text(json.dumps([coco]))
    (home / "negative_data.json").write_text(json.dumps([bare]))
    for place in ("gqa/images/2368326.jpg", "mscoco/train2014/COCO_train2014_000000000009.jpg"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(KITCHEN)
    roots = Roots(named={"vstar": home, "gqa": tmp_path / "gqa", "coco2014": tmp_path / "mscoco"})
    corpus = build(VStar(), roots=roots)
    ledger = pq.read_table(corpus.folder / "ledger.parquet").to_pylist()
    assert [(row["file"], row["outcome"], row["filtered"], row["corrupt"]) for row in ledger] == [
        ("GQA_data.json", "kept", 0, 0),
        ("GQA_data.json", "filtered", 1, 0),
        ("spatial_relation_data.json", "kept", 0, 0),
    ]
