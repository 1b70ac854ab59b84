"""The miniature corpora as they lie on disk: the layouts that upstream documents; what is said is to be seen."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataflow import mini
from dataflow.mini import clips, material

SIZES = mini.Sizes(**{source: min(rows, 200) for source, rows in vars(mini.MINI).items()})
PICTURE = "struct<bytes: binary, path: string>"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mini")
    mini.write(folder, rows=SIZES)
    return folder


def _image(data: bytes) -> Image.Image:
    """Decoded to the last pixel."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image.convert("RGB")


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _frames(data: bytes | Path) -> list[Image.Image]:
    with av.open(data if isinstance(data, Path) else io.BytesIO(data), "r") as film:
        return [frame.to_image() for frame in film.decode(video=0)]


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _parquets(folder: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Types of the columns, and the rows of all files."""
    files = sorted(folder.glob("data/train-?????-of-?????.parquet"))
    assert len(files) == 2
    types = {field.name: str(field.type) for field in pq.read_schema(files[0])}
    return types, [row for file in files for row in pq.read_table(file).to_pylist()]


def _differ(before: Image.Image, after: Image.Image) -> bool:
    if before.size != after.size:
        return True
    return int(abs(np.asarray(before).astype(int) - np.asarray(after)).max()) > 30


def _chat(row: dict[str, Any]) -> list[str]:
    """The texts of a row whose turns take turns."""
    speakers = [turn["from"] for turn in row["conversations"]]
    assert speakers
    assert speakers == ["human", "gpt"] * (len(speakers) // 2)
    return [turn["value"] for turn in row["conversations"]]


# ------------------------------------------------------------------------------------------ pictures, questions


def test_the_alignment_set_asks_once_to_describe_a_picture(corpora: Path) -> None:
    rows = _jsonl(corpora / "cambrian_alignment/jsons/alignment_2.5m.jsonl")
    assert len(rows) == len({row["id"] for row in rows}) == 200
    wrong = dict[int, str]()
    for number, row in enumerate(rows):
        asked, _ = _chat(row)
        assert asked.count("<image>") == 1
        data = (corpora / "cambrian_alignment" / row["image"]).read_bytes()
        if not data:
            wrong[number] = "picture empty"
        else:
            _image(data)
    assert wrong == mini.DIRTY["cambrian_alignment"]
    assert {_chat(row)[0].startswith("<image>\n") for row in rows} == {True, False}


def test_llava_is_one_list_with_integer_ids_text_rows_and_pairs_of_pictures(corpora: Path) -> None:
    rows = json.loads((corpora / "llava/llava_v1_5_mix665k.json").read_text())
    wrong, pictures = dict[int, str](), Counter[str]()
    for number, row in enumerate(rows):
        texts = _chat(row)
        if "image" not in row:
            assert row["model"] == ""
            assert "<image>" not in "".join(texts)
            continue
        images = row["image"] if isinstance(row["image"], list) else [row["image"]]
        pictures[f"{type(row['image']).__name__} {len(images)}"] += 1
        for image in images:
            _image((corpora / "llava" / image).read_bytes())
        if texts[0].count("<image>") != len(images):
            wrong[number] = "one <image> for two pictures"
    assert wrong == mini.DIRTY["llava"]
    assert pictures == {"str 1": 160, "list 2": 20}
    assert {type(row["id"]) for row in rows} == {int, str}
    assert len({str(row["id"]) for row in rows}) == 200


# -------------------------------------------------------------------------------------------------------- clips


def test_videostar_is_a_list_and_an_object_of_lists_that_name_clips(corpora: Path) -> None:
    kinetics = json.loads((corpora / "videostar/ft_json/kinetics700_tune_.json").read_text())
    star = json.loads((corpora / "videostar/ft_json/starb_tune_.json").read_text())
    assert isinstance(kinetics, list)
    assert list(star) == ["cot", "qa"]
    rows = [*kinetics, *star["cot"], *star["qa"]]
    assert len(rows) == 40
    assert {type(row["label"]) for row in rows} == {dict, list}
    wrong = dict[int, str]()
    for number, row in enumerate(rows):
        asked, _ = _chat(row)
        assert asked.startswith("<video>\n")
        assert re.fullmatch(r"(Kinetics700|STAR-benchmark)/[\w-]{11}_\d{6}_\d{6}(_cut)?\.mp4", row["video"])
        try:
            assert len(_frames(corpora / "videostar" / row["video"])) > 10
        except av.error.InvalidDataError:
            wrong[number] = "clip cut"
    assert wrong == mini.DIRTY["videostar"]
    assert all("k700" in row["id"] for row in kinetics)


def test_sharegptvideo_names_folders_of_frames_336_wide_two_a_second(corpora: Path) -> None:
    rows = _jsonl(corpora / "sharegptvideo/video_instruction/train/sft/video_240k_caption_15k.jsonl")
    assert len(rows) == len({row["id"] for row in rows}) == 40
    wrong = dict[int, str]()
    for number, row in enumerate(rows):
        assert row["id"].startswith(f"{row['video']}__")
        assert _chat(row)[0].startswith("<video>\n")
        names = sorted(path.name for path in (corpora / "sharegptvideo/train_300k" / row["video"]).iterdir())
        assert names == [f"c01_{place:04d}.jpeg" for place in range(1, len(names) + 1)]
        if not names:
            wrong[number] = "no frames"
    assert wrong == mini.DIRTY["sharegptvideo"]
    assert {_image(path.read_bytes()).width for path in (corpora / "sharegptvideo").rglob("*.jpeg")} == {336}


def test_sharegpt4video_zips_hold_the_clips_and_the_last_caption_is_of_the_whole(corpora: Path) -> None:
    rows = _jsonl(corpora / "sharegpt4video/sharegpt4video_40k.jsonl")
    assert len(rows) == 24
    for row in rows:
        site = row["video_path"].split("/")[0]
        assert row["zip_folder"] == f"{site}_videos_1.zip"
        with zipfile.ZipFile(corpora / f"sharegpt4video/zip_folder/{site}/{row['zip_folder']}") as held:
            assert {member.date_time for member in held.infolist()} == {(1980, 1, 1, 0, 0, 0)}
            frames = _frames(held.read(row["video_path"]))
        assert row["timestamp"] == sorted(row["timestamp"])
        assert 0 <= row["timestamp"][0] < row["timestamp"][-1] <= len(frames) / clips.FRAMES_PER_SECOND + 0.1
        assert [part["idx"] for part in row["captions"]] == [*map(str, range(len(row["captions"]) - 1)), "-1"]
        assert all(part["content"] for part in row["captions"])


def test_something_something_labels_fill_their_templates_and_number_their_classes(corpora: Path) -> None:
    folder = corpora / "something_something"
    rows = [json.loads((folder / f"labels/{part}.json").read_text()) for part in ("train", "validation")]
    classes = json.loads((folder / "labels/labels.json").read_text())
    assert [len(part) for part in rows] == [28, 4]
    assert sorted(classes.values(), key=int) == [str(number) for number in range(len(classes))]
    for row in (*rows[0], *rows[1]):
        assert list(row) == ["id", "label", "template", "placeholders"]
        assert row["id"].isdigit()
        assert row["template"].replace("[", "").replace("]", "") in classes
        words = iter(row["placeholders"])
        assert re.sub(r"\[[^]]*\]", lambda slot, words=words: next(words), row["template"]).lower() == row["label"]
        assert next(words, None) is None
        with av.open(folder / f"20bn-something-something-v2/{row['id']}.webm") as film:
            assert "webm" in film.format.name
            assert film.streams.video[0].average_rate == 12


def test_howto100m_lists_videos_of_three_kinds_most_with_captions_and_one_missing(corpora: Path) -> None:
    folder = corpora / "howto100m"
    rows = _table(folder / "HowTo100M_v1.csv")
    assert len(rows) == 24
    wrong, kinds, heard = dict[int, str](), Counter[str](), 0
    for number, row in enumerate(rows):
        assert list(row) == ["video_id", "category_1", "category_2", "rank", "task_id"]
        found = list((folder / "videos").glob(f"{row['video_id']}.*"))
        if not found:
            wrong[number] = "video missing"
            continue
        kinds[found[0].suffix] += 1
        seconds = len(_frames(found[0])) / clips.FRAMES_PER_SECOND
        if (captions := folder / f"captions/{row['video_id']}.csv").exists():
            heard += 1
            for said in _table(captions):
                assert list(said) == ["start", "end", "text"]
                assert 0 <= float(said["start"]) < float(said["end"]) <= seconds + 0.1
    assert wrong == mini.DIRTY["howto100m"]
    assert kinds == {".mp4": 8, ".webm": 8, ".mkv": 7}
    assert 12 < heard < 23
    assert any(row["video_id"].startswith("-") for row in rows)


@pytest.mark.parametrize("number", range(len(mini.SCENES)))
def test_a_cut_stays_within_its_scene_and_holds_what_is_said_of_it(number: int) -> None:
    scene = mini.SCENES[number]
    for name in range(50):
        made = clips.cut(number, f"{name}")
        assert scene.within[0] <= made.start <= scene.core[0] < scene.core[1] <= made.end <= scene.within[1]
        assert made.events
        assert all(0 <= start < end <= made.end - made.start + 0.01 for start, end, _ in made.events)


def test_no_scene_of_one_shot_reaches_into_the_next() -> None:
    """Between two shots most of the picture changes at once."""
    film = material.Material.load().clips
    shots = [
        scene for scene in mini.SCENES if scene.file == clips.BIKES and scene.caption != "bicycles and cars in a city"
    ]
    assert len(shots) == 5
    for scene in shots:
        frames = film.pictures(clips.Cut(scene=scene, start=scene.within[0], end=scene.within[1]), per_second=25)
        gray = [np.asarray(frame.convert("L").resize((16, 8))).astype(int) for frame in frames]
        assert max(abs(one - other).mean() for one, other in itertools.pairwise(gray)) < 30, scene.caption


# --------------------------------------------------------------------------------------------- captions, words


def test_captions_are_tars_of_jpg_and_txt_with_keys_of_nine_digits(corpora: Path) -> None:
    tars = sorted((corpora / "captions").iterdir())
    assert [tar.name for tar in tars] == ["cc12m-train-0000.tar", "cc12m-train-0001.tar"]
    wrong, keys = dict[int, str](), []
    for tar in tars:
        with tarfile.open(tar) as opened:
            held = dict[str, dict[str, bytes]]()
            for member in opened.getmembers():
                key, extension = member.name.split(".")
                stream = opened.extractfile(member)
                assert stream is not None
                assert (not held) or key == list(held)[-1] or key not in held, "files of a sample lie side by side"
                held.setdefault(key, {})[extension] = stream.read()
        for key, sample in held.items():
            keys.append(key)
            assert _image(sample["jpg"]).width >= 64
            if not sample.get("txt"):
                wrong[int(key)] = "no text"
            if tar == tars[1]:
                assert json.loads(sample["json"])["key"] == key
    assert keys == [f"{number:09d}" for number in range(200)]
    assert wrong == mini.DIRTY["captions"]


def test_text_lies_in_lines_of_json_in_a_column_and_in_plain_lines(corpora: Path) -> None:
    rows = [row["text"] for row in _jsonl(corpora / "text/part-00000.jsonl")]
    column = pq.read_table(corpora / "text/part-00001.parquet").to_pylist()
    lines = (corpora / "text/part-00002.txt").read_text().splitlines()
    assert (len(rows), len(column), len(lines)) == (100, 66, 34)
    documents = [*rows, *(row["text"] for row in column), *lines]
    assert len(set(documents)) == 200
    assert all(document == document.strip() and 20 < len(document) <= 300 for document in documents)


# ----------------------------------------------------------------------------------------------- looking, edits


def test_visual_cot_boxes_frame_the_shape_and_are_repeated_as_shares_of_the_square(corpora: Path) -> None:
    rows = json.loads((corpora / "visual_cot/viscot_363k.json").read_text())
    assert len(rows) == 150
    wrong = dict[int, str]()
    for number, row in enumerate(rows):
        asked, shares, again, _ = _chat(row)
        assert asked.startswith("<image>\n")
        assert "Please provide the bounding box coordinate of the region" in asked
        assert again == "<image>"
        path, box = row["image"][1].split("###")
        assert path == row["image"][0]
        assert path.startswith("cot/")
        left, top, right, bottom = json.loads(box)
        image = _image((corpora / "visual_cot" / path).read_bytes())
        if left >= right or top >= bottom:
            wrong[number] = "box without area"
            continue
        side, (width, height) = max(image.size), image.size
        padded = np.array([left, top, right, bottom]) + np.tile([(side - width) // 2, (side - height) // 2], 2)
        assert np.allclose(json.loads(shares), padded / side, atol=0.001)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    assert wrong == mini.DIRTY["visual_cot"]


def _seen(image: Image.Image, box: tuple[int, int, int, int]) -> str:
    """The color in the middle of a box."""
    left, top, right, bottom = box
    row, column = (top * 2 + bottom * 3) // 5, (left + right) // 2
    pixels = np.asarray(image).astype(int)[row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3)
    median = np.median(pixels, axis=0)
    return min(mini.COLORS, key=lambda name: float(abs(median - mini.COLORS[name]).sum()))


def test_what_visual_cot_answers_about_colors_is_seen_in_the_box(corpora: Path) -> None:
    checked = 0
    for number, row in enumerate(json.loads((corpora / "visual_cot/viscot_363k.json").read_text())):
        texts = _chat(row)
        path, box = row["image"][1].split("###")
        if number in mini.DIRTY["visual_cot"] or texts[3] not in mini.COLORS:
            continue
        assert _seen(_image((corpora / "visual_cot" / path).read_bytes()), tuple(json.loads(box))) == texts[3]
        checked += 1
    assert checked > 20


def test_vstar_boxes_are_left_top_width_height_and_its_answers_hold(corpora: Path) -> None:
    rows = json.loads((corpora / "vstar/GQA_data.json").read_text())
    negative = json.loads((corpora / "vstar/negative_data.json").read_text())
    assert (len(rows), len(negative)) == (132, 18)
    assert {"target_instances" in row for row in negative} == {True, False}
    assert [number for number, row in enumerate(rows) if "target_instances" not in row] == [*range(5, 132, 12)]
    wrong, kinds = dict[int, str](), Counter[str]()
    for number, row in enumerate([*rows, *negative]):
        image = _image((corpora / "vstar" / row["image"]).read_bytes())
        asked, answer = _chat(row)
        targets = row.get("target_instances", [])
        assert asked.count("<object>") == len(targets)
        boxes = [(x, y, x + width, y + height) for x, y, width, height in (target["bbox"] for target in targets)]
        if any(box[2] > image.width or box[3] > image.height for box in boxes):
            wrong[number] = "box outside"
        elif answer.startswith(f"The {targets[0]['name']} is " if targets else "-") and len(targets) == 1:
            assert _seen(image, boxes[0]) == answer.rstrip(".").split()[-1]
            kinds["color"] += 1
        elif len(targets) == 2:
            one, other = (((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in boxes)
            holds = {
                "left": one[0] < other[0],
                "right": one[0] > other[0],
                "above": one[1] < other[1],
                "below": one[1] > other[1],
            }
            assert holds[next(word for word in holds if f"is {word}" in answer)], row
            kinds["place"] += 1
    assert wrong == mini.DIRTY["vstar"]
    assert min(kinds.values()) > 40


def test_aurora_rows_name_two_different_pictures_from_the_corpus_root(corpora: Path) -> None:
    folder = corpora / "aurora"
    parts = {
        part: json.loads((folder / f"data/{part}/train.json").read_text()) for part in ("ag", "kubric", "magicbrush")
    }
    assert [len(rows) for rows in parts.values()] == [30, 60, 60]
    wrong, number = dict[int, str](), 0
    for part, rows in parts.items():
        for row in rows:
            assert isinstance(row["instruction"], str if number % 8 != 7 else list)
            assert row["input"].startswith(f"data/{part}/images/")
            if not (folder / row["output"]).exists():
                wrong[number] = "picture missing"
            else:
                pair = [_image((folder / row[side]).read_bytes()) for side in ("input", "output")]
                assert pair[0].size == pair[1].size
                assert _differ(*pair), row
            number += 1
    assert wrong == mini.DIRTY["aurora"]
    assert all(re.fullmatch(r"data/ag/images/\w+\.mp4_\d+_left\.png", row["input"]) for row in parts["ag"])
    assert all((folder / "data/magicbrush/images" / row["mask"]).exists() for row in parts["magicbrush"])


def test_omniedit_rows_hold_two_pictures_and_several_wordings(corpora: Path) -> None:
    types, rows = _parquets(corpora / "omniedit")
    assert types == {"src_img": PICTURE, "edited_img": PICTURE, "edited_prompt_list": "list<element: string>"}
    assert len(rows) == 120
    assert {number: "no prompts" for number, row in enumerate(rows) if not row["edited_prompt_list"]} == mini.DIRTY[
        "omniedit"
    ]
    for row in rows:
        assert _differ(*(_image(row[side]["bytes"]) for side in ("src_img", "edited_img")))


def test_metaquery_rows_lead_from_one_to_three_pictures_to_another(corpora: Path) -> None:
    types, rows = _parquets(corpora / "metaquery_instruct")
    assert types == {
        "source_images": f"list<element: {PICTURE}>",
        "source_captions": "list<element: string>",
        "prompt": "string",
        "target_image": PICTURE,
        "target_caption": "string",
    }
    assert Counter(len(row["source_images"]) for row in rows) == {1: 60, 2: 30, 3: 30}
    for row in rows:
        assert len(row["source_images"]) == len(row["source_captions"])
        assert row["prompt"]
        assert row["target_caption"]
        target = _image(row["target_image"]["bytes"])
        assert all(_differ(_image(source["bytes"]), target) for source in row["source_images"])


def test_mmc4_pages_hold_two_to_four_pictures_each_beside_its_sentence(corpora: Path) -> None:
    folder = corpora / "mmc4"
    with zipfile.ZipFile(folder / "docs_no_face_shard_1_v3.jsonl.zip") as packed:
        (member,) = packed.namelist()
        unpacked = packed.read(member).decode()
    assert member == "docs_no_face_shard_1_v3.jsonl"
    shards = [_jsonl(folder / "docs_no_face_shard_0_v3.jsonl"), [json.loads(line) for line in unpacked.splitlines()]]
    rows = [(shard, row) for shard, held in enumerate(shards) for row in held]
    assert Counter(len(row["image_info"]) for _, row in rows) == {3: 80, 4: 40}
    wrong = {}
    for number, (shard, row) in enumerate(rows):
        assert row.keys() == {"image_info", "similarity_matrix", "text_list", "url", "could_have_url_duplicate"}
        assert len(row["similarity_matrix"]) == len(row["image_info"])
        for info, alike in zip(row["image_info"], row["similarity_matrix"], strict=True):
            assert re.fullmatch(r"[0-9a-f]{12}\.jpg", info["image_name"])
            assert len(alike) == len(row["text_list"])
            assert alike[info["matched_text_index"]] == max(alike) == info["matched_sim"]
            if not (folder / f"images/{shard}" / info["image_name"]).exists():
                wrong[number] = "picture missing"
    assert wrong == mini.DIRTY["mmc4"]
    beside = [Counter(info["matched_text_index"] for info in row["image_info"]) for _, row in rows]
    assert sum(max(held.values()) > 1 for held in beside) == 40


def test_small_corpora_are_clean(tmp_path: Path) -> None:
    """As many rows as a test wants: nothing is missing, nothing is cut."""
    mini.write(tmp_path, rows=mini.Sizes(**dict.fromkeys(mini.SOURCES, 12)))
    for path in tmp_path.rglob("*"):
        if path.suffix in (".png", ".jpg", ".jpeg"):
            _image(path.read_bytes())
        elif path.suffix in (".mp4", ".webm", ".mkv"):
            assert _frames(path)
        elif path.is_dir():
            assert any(path.iterdir())
    videos = _table(tmp_path / "howto100m/HowTo100M_v1.csv")
    assert len(list((tmp_path / "howto100m/videos").iterdir())) == len(videos) == 12
    for part in ("ag", "kubric", "magicbrush"):
        rows = json.loads((tmp_path / f"aurora/data/{part}/train.json").read_text())
        assert all((tmp_path / "aurora" / row["output"]).exists() for row in rows)
