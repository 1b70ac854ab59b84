"""mmc4 from its documented rows, zipped or plain, with pictures as upstream's script and as img2dataset leave them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upstream import Build, file, jpeg, jsonl, photo, tar

from dataflow.index import BuiltCorpus
from dataflow.sources.mmc4 import Mmc4

CAT, SMALL, PNG = jpeg(), jpeg(40, 40), file(photo(48, 48), "PNG")
# The README's row: its sentences are left out there, its similarities cut short.
ROW = {
    "image_info": [
        {
            "face_detections": None,
            "image_name": "b9040a0dbb22.jpg",
            "matched_sim": 0.27694183588027954,
            "matched_text_index": 2,
            "raw_url": "http://www.hfitinfo.com/honda_fit_pics/3/2/index.90.jpg",
        },
        {
            "face_detections": None,
            "image_name": "db1c21bc8474.jpg",
            "matched_sim": 0.3234919607639313,
            "matched_text_index": 1,
            "raw_url": "http://www.hfitinfo.com/honda_fit_pics/3/2/index.91.jpg",
        },
    ],
    "similarity_matrix": [[0.24363446235656738, 0.31758159399032593, 0.27694183588027954]] * 2,
    "text_list": [
        "When you lock the door using the lock tab on the driver's door, all of the other doors lock at the same time.",
        "Press the master door lock switch  in as\nshown to lock or unlock all doors.",
        "When you lock/unlock the driver's door, the others lock too.",
    ],
    "url": "http://www.hfitinfo.com/hofi-48.html",
    "could_have_url_duplicate": 0,
}
FIRST, SECOND = (info["image_name"] for info in ROW["image_info"])
URLS = [info["raw_url"] for info in ROW["image_info"]]
SAID = [" ".join(sentence.split()) for sentence in ROW["text_list"]]


def lay(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def packed(name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip with one member, and what a Mac puts beside it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(f"__MACOSX/._{name}", b"Mac OS X")
        archive.writestr(name, data)
    return buffer.getvalue()


def ledger(corpus: BuiltCorpus) -> list[dict[str, Any]]:
    return pq.read_table(corpus.folder / "ledger.parquet").to_pylist()


def changed(**fields: Any) -> dict[str, Any]:
    """The row with fields of its second picture changed."""
    first, second = ROW["image_info"]
    return {**ROW, "image_info": [first, {**second, **fields}]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data" / "mmc4"


@pytest.mark.parametrize("kind", ["jsonl", "zip", "stored"])
def test_the_documented_row_is_its_text_with_each_picture_before_its_sentence(
    kind: str, data: Path, build: Build
) -> None:
    name, lines = "docs_no_face_shard_17_v3.jsonl", jsonl(ROW)
    method = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
    documents = {name: lines} if kind == "jsonl" else {f"{name}.zip": packed(name, lines, method)}
    lay(data, {**documents, f"images/17/{FIRST}": CAT, f"images/17/{SECOND}": SMALL})
    corpus = build(Mmc4())
    record = corpus.record(0)
    assert record.task == "interleaved_document"
    assert record.turns == (("assistant", (SAID[0], 0, SAID[1], 1, SAID[2])),)
    assert [media.data for media in record.media] == [SMALL, CAT]
    assert record.lineage.row == 0
    assert [(row["outcome"], row["candidates"], row["reason"]) for row in ledger(corpus)] == [("kept", 1, "")]


def test_a_document_goes_on_without_a_picture_and_the_ledger_counts_each(data: Path, build: Build) -> None:
    rows = [
        ROW,
        changed(image_name="gone.jpg"),
        changed(image_name="page.jpg"),
        changed(image_name="icon.jpg"),
        changed(image_name="strip.jpg"),
        changed(matched_text_index=3),
        changed(image_name="../secret.jpg"),
        {**ROW, "image_info": []},
        {**ROW, "image_info": [changed(image_name="gone.jpg")["image_info"][1]]},
        {**ROW, "text_list": None},
        b'{"image_info": [{"face_det',
    ]
    pictures = {FIRST: CAT, SECOND: SMALL, "page.jpg": b"<!DOCTYPE html>", "icon.jpg": jpeg(16, 16)}
    lay(data, {f"images/17/{name}": held for name, held in pictures.items()})
    lay(data, {"images/17/strip.jpg": jpeg(600, 40), "docs_no_face_shard_17_v3.jsonl": jsonl(*rows)})
    corpus = build(Mmc4())
    found = ledger(corpus)
    names = ("kept", "filtered", "corrupt", "missing")
    assert [tuple(row[name] for name in names) for row in found] == [
        (1, 0, 0, 0),
        (1, 0, 0, 1),
        (1, 0, 1, 0),
        (1, 1, 0, 0),
        (1, 1, 0, 0),
        (1, 0, 1, 0),
        (1, 0, 1, 0),
        (0, 0, 1, 0),
        (0, 0, 0, 1),
        (0, 0, 1, 0),
        (0, 0, 1, 0),
    ]
    assert all(row["candidates"] == sum(row[name] for name in (*names, "duplicate")) for row in found)
    assert [row["reason"] for row in found[1:8]] == [
        "candidate 1: picture 1: file 'images/17/gone.jpg' is not there",
        "candidate 1: picture 1: images/17/page.jpg: picture is a web page or XML, not pixels",
        "candidate 1: picture 1: 16x16, under 32 px",
        "candidate 1: picture 1: 600x40, over 8.0:1",
        "candidate 1: picture 1: matched_text_index 3 is none of 3 sentences",
        "candidate 1: picture 1: image_name '../secret.jpg' is no name of a file",
        "document without pictures: image_info is empty",
    ]
    assert corpus.record(1).turns == (("assistant", ("\n".join(SAID[:2]), 0, SAID[2])),)


def test_pictures_of_one_sentence_stand_together_before_it(data: Path, build: Build) -> None:
    lay(data, {"docs_no_face_shard_0_v3.jsonl": jsonl(changed(matched_text_index=2))})
    lay(data, {f"images/0/{FIRST}": CAT, f"images/0/{SECOND}": PNG})
    assert build(Mmc4()).record(0).turns == (("assistant", ("\n".join(SAID[:2]), 0, 1, SAID[2])),)


def test_documents_that_may_be_there_twice_are_left_out_when_asked(data: Path, build: Build, tmp_path: Path) -> None:
    lay(data, {"docs_no_face_shard_0_v3.jsonl": jsonl({**ROW, "could_have_url_duplicate": 1}, ROW)})
    lay(data, {f"images/0/{FIRST}": CAT, f"images/0/{SECOND}": PNG})
    assert len(build(Mmc4())) == 2
    strict = build(Mmc4(twice="left out"), folder=tmp_path / "strict")
    assert [row["outcome"] for row in ledger(strict)] == ["filtered", "kept"]


def output(shard: str, *rows: tuple[str, str, str]) -> dict[str, bytes]:
    """The table img2dataset writes beside a shard."""
    columns = ("url", "key", "status")
    table = pa.table({name: [row[place] for row in rows] for place, name in enumerate(columns)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return {f"images/{shard}.parquet": buffer.getvalue(), f"images/{shard}_stats.json": b"{}"}


@pytest.mark.parametrize("form", ["files", "webdataset"])
def test_pictures_are_found_by_address_where_img2dataset_put_them(form: str, data: Path, build: Build) -> None:
    other = "http://example.com/other.jpg"
    lay(data, {"docs_no_face_shard_9_v3.jsonl": jsonl(ROW, changed(raw_url=other), changed(raw_url="http://x/y.jpg"))})
    lay(data, output("00000", (other, "000000000", "failed_to_download"), (URLS[1], "000000001", "success")))
    lay(data, output("00001", (URLS[0], "000010000", "success")))
    # asked for a second time, in vain
    lay(data, output("00002", (URLS[0], "000020000", "failed_to_download")))
    if form == "files":
        lay(data, {"images/00000/000000001.jpg": SMALL, "images/00001/000010000.png": PNG})
    else:
        meta = json.dumps({"url": URLS[1]}).encode()
        lay(data, {"images/00000.tar": tar(("000000001.jpg", SMALL), ("000000001.json", meta))})
        lay(data, {"images/00001.tar": tar(("000010000.json", b"{}"), ("000010000.png", PNG))})
    corpus = build(Mmc4())
    assert [media.data for media in corpus.record(0).media] == [SMALL, PNG]
    assert [(row["kept"], row["missing"], row["reason"]) for row in ledger(corpus)] == [
        (1, 0, ""),
        (1, 1, "candidate 1: picture 1: the picture was never obtained: img2dataset failed"),
        (1, 1, "candidate 1: picture 1: its address is none that img2dataset was given"),
    ]


def test_a_shard_that_lies_packed_beside_its_lines_is_read_once(data: Path, build: Build) -> None:
    names = [f"docs_no_face_shard_{number}_v3.jsonl" for number in range(3)]
    lay(data, {names[0]: jsonl(ROW), f"{names[0]}.zip": packed(names[0], jsonl(ROW))})
    lay(data, {f"{names[1]}.zip": packed(names[1], jsonl(ROW)), names[2]: jsonl(ROW)})
    lay(data, {f"images/{number}/{FIRST}": CAT for number in range(3)})
    assert Mmc4().files(data) == [names[0], f"{names[1]}.zip", names[2]]
    assert len(build(Mmc4())) == 3


def test_what_makes_no_sense_is_refused_where_it_is_said() -> None:
    with pytest.raises(ValueError, match="side=0 of mmc4: it must be over 0"):
        Mmc4(side=0)
    with pytest.raises(ValueError, match="twice='both' of mmc4: such documents are kept or left out"):
        Mmc4(twice="both")  # type: ignore[arg-type]
