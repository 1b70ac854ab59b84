"""The miniature corpora: upstream's layouts, true captions, the same bytes twice, no traps but the documented.

Layouts of the three that came first, and how all are written; the layouts of the others are in test_mini_layouts.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from dataflow import mini
from dataflow.mini import editing, generation, material, photographs, understanding

JSONL = "cambrian/jsons/Cambrian7M_withsystemprompt.jsonl"
NOTHING = dict.fromkeys(mini.SOURCES, 0)
FIRST = mini.Sizes(**{**NOTHING, "cambrian": 2000, "metaclip": 600, "instruct_pix2pix": 300})
SMALL = mini.Sizes(
    **{**NOTHING, "cambrian": 120, "metaclip": 30, "instruct_pix2pix": 12, "text": 6, "something_something": 2}
)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mini")
    mini.write(folder, rows=FIRST)
    return folder


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hundred")
    mini.write(folder, rows=mini.Sizes(**{**NOTHING, "cambrian": 100}))
    return folder


@pytest.fixture(scope="module")
def rows(corpora: Path) -> list[dict[str, Any] | None]:
    """Cambrian's rows in order, None for the line that is not JSON."""
    return [_parsed(line) for line in (corpora / JSONL).read_text().splitlines()]


@pytest.fixture(scope="module")
def pairs(corpora: Path) -> list[tuple[dict[str, Any], Image.Image]]:
    return [pair for tar in _tars(corpora) for pair in _pairs(tar)]


@pytest.fixture(scope="module")
def edits(corpora: Path) -> list[dict[str, Any]]:
    return [row for file in _parquets(corpora) for row in pq.read_table(file).to_pylist()]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _tars(folder: Path) -> list[Path]:
    return sorted((folder / "metaclip").rglob("*.tar"), key=lambda path: int(path.stem))


def _parquets(folder: Path) -> list[Path]:
    return sorted((folder / "instruct_pix2pix").rglob("*.parquet"))


def _pairs(tar: Path) -> Iterator[tuple[dict[str, Any], Image.Image]]:
    with tarfile.open(tar) as opened:
        members = opened.getmembers()
        for picture, fields in zip(members[::2], members[1::2], strict=True):
            text, data = opened.extractfile(fields), opened.extractfile(picture)
            assert text is not None
            assert data is not None
            yield json.load(text), _image(data.read())


def _image(data: bytes) -> Image.Image:
    """Decoded to the last pixel: a truncated file raises OSError."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _shape(image: Image.Image) -> tuple[str, str]:
    """Color and shape of a drawing, from its pixels alone.

    The shape is what differs much from the tint, its median the color. Its upper and its lower fifth, without the
    outermost rows, tell: a rectangle is as wide there as anywhere, a circle narrower, a triangle has a tip.
    """
    pixels = np.asarray(image.convert("RGB")).astype(int)
    rounded, counts = np.unique(pixels // 4 @ [2**12, 2**6, 1], return_counts=True)
    tint = rounded[counts.argmax()] // [2**12, 2**6, 1] % 2**6 * 4 + 2
    distance: NDArray[np.int64] = abs(pixels - tint).max(axis=-1)
    inside = distance > np.percentile(distance[distance > distance.max() / 3], 60) / 2
    median = np.median(pixels[inside & (distance >= np.percentile(distance[inside], 60))], axis=0)
    color = min(mini.COLORS, key=lambda name: float(abs(median - mini.COLORS[name]).sum()))
    widths = inside.sum(axis=1)
    widths = widths[widths > 0][1:-1]
    fifth = max(len(widths) // 5, 1)
    narrowest = min(widths[:fifth].mean(), widths[-fifth:].mean()) / widths.max()
    frayed = 0.84 if image.format == "JPEG" else 0.95  # of the full width, for edges that JPEG blurs
    return color, "triangle" if narrowest < 0.5 else "circle" if narrowest < frayed else "rectangle"


# ---------------------------------------------------------------------------------------------------- layouts


def test_cambrian_rows_have_upstreams_fields_and_shares(rows: list[dict[str, Any] | None]) -> None:
    assert len(rows) == 2000
    whole = [row for row in rows if row is not None]
    assert len({row["id"] for row in whole}) == len(whole)
    for row in whole:
        assert list(row) in (["id", "image", "conversations", "source"], ["id", "conversations", "source"])
        speakers = [turn["from"] for turn in row["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        assert speakers
        assert all(turn["value"].strip() for turn in row["conversations"])
    kinds = Counter(row["source"] for row in whole)
    assert kinds == {"easy_vqa_train_38k.json": 1599, "photographs_0k.json": 100, "interlace_text_6k.json": 300}
    assert sum(len(row["conversations"]) > 2 for row in whole) > 150


def test_cambrian_text_rows_lack_the_picture_in_all_four_ways(rows: list[dict[str, Any] | None]) -> None:
    absent = [row for row in rows if row is not None and row["source"].startswith("interlace_text")]
    assert Counter(repr(row["image"]) if "image" in row else "no key" for row in absent) == dict.fromkeys(
        ["no key", "None", "''", "'nan'"], 75
    )
    assert not any("<image>" in turn["value"] for row in absent for turn in row["conversations"])


@pytest.mark.parametrize("size", ["hundred", "corpora"])
def test_cambrian_has_the_documented_traps_and_no_others(size: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(size)
    found = dict[int, str]()
    for number, line in enumerate((folder / JSONL).read_text().splitlines()):
        row = _parsed(line)
        if row is None:
            found[number] = "line cut"
        elif row.get("image") not in (None, "", "nan"):
            path = folder / "cambrian" / row["image"]
            if not path.exists():
                found[number] = "picture missing"
                continue
            try:
                _image(path.read_bytes())
            except OSError:
                found[number] = "picture truncated"
            said = [turn["value"].count("<image>") for turn in row["conversations"]]
            if said[0] == 2:
                found[number] = "two <image> for one picture"
            assert row["conversations"][0]["value"].startswith("<image>\n")
            assert not any(said[1:])
    assert found == mini.DIRTY["cambrian"]


def test_a_small_cambrian_is_clean(tmp_path: Path) -> None:
    mini.write(tmp_path, rows=mini.Sizes(**{**NOTHING, "cambrian": 99}))
    lines = (tmp_path / JSONL).read_text().splitlines()
    images = [json.loads(line).get("image") for line in lines]
    for image in images:
        if image not in (None, "", "nan"):
            _image((tmp_path / "cambrian" / image).read_bytes())
    assert len(images) == 99
    assert not (tmp_path / "metaclip").exists()


def test_every_kind_of_question_is_asked_already_in_a_hundred_rows(hundred: Path) -> None:
    drawn = [
        row for line in (hundred / JSONL).read_text().splitlines() if (row := _parsed(line)) and "easy" in row["id"]
    ]
    assert {"yes", "no", *mini.SHAPES} <= {turn["value"] for row in drawn for turn in row["conversations"]}
    assert {turn["value"] for row in drawn for turn in row["conversations"]} & set(mini.COLORS)
    assert all(understanding.BRIEFLY in row["conversations"][0]["value"] for row in drawn)


def test_metaclip_tars_alternate_jpeg_and_json_under_the_shard_modulo_100(corpora: Path) -> None:
    assert [tar.relative_to(corpora / "metaclip").as_posix() for tar in _tars(corpora)] == [
        "0/0.tar",
        "1/1.tar",
        "2/2.tar",
    ]
    sizes = []
    for tar in _tars(corpora):
        with tarfile.open(tar) as opened:
            names = [member.name for member in opened.getmembers()]
            assert {member.mtime for member in opened.getmembers()} == {0}
        sizes.append(len(names) // 2)
        for picture, fields in zip(names[::2], names[1::2], strict=True):
            assert re.fullmatch(r"[0-9a-f]{24}\.jpeg", picture)
            assert fields == picture.replace(".jpeg", ".json")
    assert sizes == [250, 250, 100]


def test_metaclip_texts_are_keyed_and_uuids_come_from_urls(pairs: list[tuple[dict[str, Any], Image.Image]]) -> None:
    assert len(pairs) == len({fields["uuid"] for fields, _ in pairs}) == 600
    for fields, image in pairs:
        assert list(fields) == ["uuid", "url", "texts"]
        assert fields["uuid"] == hashlib.sha224(fields["url"].encode()).hexdigest()[:24]
        assert all(key == "alt" and text for key, text in fields["texts"])
        drawn = "easy-vqa" in fields["url"]
        assert image.format == "JPEG"
        assert image.size == (64, 64) if drawn else 96 <= min(image.size) <= max(image.size) <= 160
    assert sum("scikit-image" in fields["url"] for fields, _ in pairs) == 120
    assert {len(fields["texts"]) for fields, _ in pairs} == {1, 2, 3}


def test_edits_lie_in_two_parquet_files_in_row_groups_of_100(corpora: Path, edits: list[dict[str, Any]]) -> None:
    files = _parquets(corpora)
    assert len(files) == 2
    for number, path in enumerate(files):
        assert re.fullmatch(rf"train-0000{number}-of-00002-[0-9a-f]{{16}}\.parquet", path.name)
        assert path.name[-24:-8] == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        layout = pq.read_metadata(path)
        assert [layout.row_group(group).num_rows for group in range(layout.num_row_groups)] == [100, 50]
    picture = "struct<bytes: binary, path: string>"
    assert {field.name: str(field.type) for field in pq.read_schema(files[0])} == {
        "original_prompt": "string",
        "original_image": picture,
        "edit_prompt": "string",
        "edited_prompt": "string",
        "edited_image": picture,
    }
    assert len(edits) == 300
    prompts = {row["edit_prompt"] for row in edits}
    for edit in (*editing.OF_PHOTOGRAPHS, *editing.OF_DRAWINGS):
        assert prompts & set(edit.requests), edit.after


# ------------------------------------------------------------------------------------------- truth of captions


def test_captions_of_drawings_name_the_shape_and_color_in_the_pixels(
    pairs: list[tuple[dict[str, Any], Image.Image]],
) -> None:
    seen = Counter[tuple[str, str]]()
    for fields, image in pairs:
        if "easy-vqa" in fields["url"]:
            color, shape = _shape(image)
            size, *named = fields["texts"][0][1].split()[1:]
            assert named[0] == color, fields
            assert named[1] == shape or size == "small", fields  # JPEG blurs the form of small ones
            assert all(" ".join(named) in text for _, text in fields["texts"])
            seen[color, named[1]] += 1
    assert len(seen) == len(mini.COLORS) * len(mini.SHAPES)
    assert max(seen.values()) - min(seen.values()) <= 1


def test_answers_about_drawings_agree_with_the_pixels(corpora: Path, rows: list[dict[str, Any] | None]) -> None:
    checked = Counter[str]()
    for number, row in enumerate(rows):
        if row is None or number in mini.DIRTY["cambrian"] or not row["id"].startswith("easy_vqa") or number % 2:
            continue
        shown = set(_shape(Image.open(corpora / "cambrian" / row["image"])))
        for asked, answered in zip(row["conversations"][::2], row["conversations"][1::2], strict=True):
            question = asked["value"].removeprefix("<image>\n").removesuffix(f"\n{understanding.BRIEFLY}")
            words, answer = set(re.findall("[a-z]+", question)), answered["value"]
            if answer in ("yes", "no"):
                assert (bool(words & shown) != bool(words & {"no", "not"})) == (answer == "yes"), row
            else:
                assert answer in shown, row
            checked["yes or no" if answer in ("yes", "no") else "color" if answer in mini.COLORS else "shape"] += 1
    assert min(checked["yes or no"], checked["color"], checked["shape"]) > 75, checked


def test_an_edit_shows_what_its_prompt_says_and_is_not_the_picture_it_began_with(edits: list[dict[str, Any]]) -> None:
    recolored = 0
    for row in edits:
        before, after = (_image(row[name]["bytes"]) for name in ("original_image", "edited_image"))
        assert before.format == after.format
        drawn = re.fullmatch(r"a (small|medium|large) (\w+) (\w+)", row["original_prompt"])
        outcome = re.fullmatch(r"a (small|medium|large) (\w+) (\w+)", row["edited_prompt"])
        if drawn:
            assert _shape(before) == drawn.groups()[1:]
        if outcome:
            assert _shape(after) == outcome.groups()[1:]
            assert outcome[2] in row["edit_prompt"].split()
            recolored += 1
        if before.size == after.size:
            change = np.asarray(before.convert("RGB")).astype(int) - np.asarray(after.convert("RGB"))
            assert abs(change).max() > 30, row["edit_prompt"]
        else:
            assert before.size == after.size[::-1]
            assert "quarter turn" in row["edit_prompt"]
    assert recolored > 80


@pytest.mark.parametrize("view", mini.VIEWS, ids=lambda view: view.caption)
def test_a_crop_holds_all_that_its_caption_speaks_of(view: photographs.View) -> None:
    for number in range(50):
        (left, top, right, bottom), (width, height) = photographs.crop_box(view, f"{number}")
        assert view.within[0] <= left <= view.core[0]
        assert view.within[1] <= top <= view.core[1]
        assert view.core[2] <= right <= view.within[2]
        assert view.core[3] <= bottom <= view.within[3]
        assert 96 <= min(width, height) <= max(width, height) <= 160
        assert width * (bottom - top) == height * (right - left), "a crop is never stretched"


# --------------------------------------------------------------------------------------------- written safely


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    sizes = mini.Sizes(**{**dict.fromkeys(mini.SOURCES, 10), "cambrian": 300, "metaclip": 300})
    assert mini.write(tmp_path / "one", rows=sizes) == dataclasses.asdict(sizes)
    mini.write(tmp_path / "other", rows=sizes)
    written = _hashes(tmp_path / "one")
    assert written == _hashes(tmp_path / "other")
    assert {name.split("/")[0] for name in written} == {*mini.SOURCES, "mini.begun", "mini.json"}


def test_a_second_write_touches_nothing(corpora: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpora.rglob("*")}
    assert mini.write(corpora, rows=FIRST) == dataclasses.asdict(FIRST)
    assert {path: path.stat().st_mtime_ns for path in corpora.rglob("*")} == before


def test_a_half_written_folder_is_completed(tmp_path: Path) -> None:
    mini.write(tmp_path / "whole", rows=SMALL)
    mini.write(tmp_path / "half", rows=SMALL)
    clip = next((tmp_path / "half/something_something").rglob("*.webm"))
    clip.write_bytes(clip.read_bytes()[:100])
    tar = tmp_path / "half/metaclip/0/0.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    (tmp_path / "half/instruct_pix2pix/data/0.part").write_bytes(b"left by a killed write")
    (tmp_path / "half/mini.json").unlink()
    mini.write(tmp_path / "half", rows=SMALL)
    assert _hashes(tmp_path / "half") == _hashes(tmp_path / "whole")


def test_another_size_leaves_nothing_of_the_earlier_one_and_nothing_else_is_touched(tmp_path: Path) -> None:
    (tmp_path / "changed/coco").mkdir(parents=True)
    (tmp_path / "changed/coco/mine.txt").write_text("not of the miniature corpora")
    mini.write(tmp_path / "changed", rows=mini.Sizes(**{**NOTHING, "cambrian": 200, "metaclip": 300, "videostar": 6}))
    mini.write(tmp_path / "changed", rows=SMALL)
    mini.write(tmp_path / "fresh", rows=SMALL)
    assert (tmp_path / "changed/coco/mine.txt").exists()
    assert {k: v for k, v in _hashes(tmp_path / "changed").items() if k != "coco/mine.txt"} == _hashes(
        tmp_path / "fresh"
    )


def test_a_corpus_that_was_not_written_here_is_refused_and_kept(tmp_path: Path) -> None:
    real = tmp_path / "cambrian/jsons/Cambrian7M_withsystemprompt.jsonl"
    real.parent.mkdir(parents=True)
    real.write_text("{}\n")
    with pytest.raises(ValueError, match=r"not written by dataflow\.mini") as refusal:
        mini.write(tmp_path, rows=SMALL)
    assert "\n" not in str(refusal.value)
    assert _hashes(tmp_path).keys() == {JSONL}


# ------------------------------------------------------------------------------------------------ refused sizes


@pytest.mark.parametrize("source", mini.SOURCES)
def test_more_rows_than_the_pictures_give_are_refused_in_one_line(source: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{source}=60000: .* fill \d+ rows; ask for no more$") as refusal:
        mini.write(tmp_path / "refused", rows=mini.Sizes(**{**NOTHING, source: 60_000}))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    "kind", [understanding.cambrian_kind, generation.metaclip_kind, editing.edit_kind, understanding.alignment_kind]
)
def test_the_limit_is_where_the_next_row_would_want_one_drawing_more(kind: Callable[[int], str]) -> None:
    most = material.limit(kind, 1000)
    assert sum(kind(row) == "drawing" for row in range(most)) == 1000
    assert kind(most) == "drawing"


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metaclip=-1: .* 0 or more"):
        mini.Sizes(metaclip=-1)


@pytest.mark.parametrize("package", ["easy_vqa", "skimage", "skvideo"])
def test_a_missing_package_is_named_with_its_cure(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # the import system's own way to say: not there
    with pytest.raises(ValueError, match=r'pip install "interlace\[mini\]"') as refusal:
        mini.write(tmp_path / "refused", rows=SMALL)
    assert "\n" not in str(refusal.value)


def test_writing_imports_neither_the_packages_nor_our_sources(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from dataflow import mini;"
        "mini.write(pathlib.Path(sys.argv[1]), rows=mini.Sizes(**dict.fromkeys(mini.SOURCES, 2)));"
        "print(*sorted(sys.modules))"
    )
    root = Path(mini.__file__).parents[2]
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=root, capture_output=True, text=True, check=True
    )
    loaded = set(said.stdout.split())
    assert not loaded & {"torch", "ray", "skimage", "easy_vqa", "skvideo", "dataflow.sources", "dataflow.readers"}
