"""One shard from one split: every row accounted for, the same bytes wherever it is built."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image as Pixels
from upstream import BUS, ORCA, Build, edits, file, jpeg, jsonl, metaclip_json, photo, png_header, tar

from dataflow import index, readers, shards
from dataflow.build import LedgerRow, ShardJob, columns, read_receipt, receipt_path, write_atomically
from dataflow.filters import MaxText, MinSide
from dataflow.media import Corrupt, picture
from dataflow.record import Candidate, Image, Message, Record, Text
from dataflow.roots import Roots
from dataflow.sources import Read, matching
from dataflow.sources.cambrian import Cambrian
from dataflow.sources.instruct_pix2pix import InstructPix2Pix
from dataflow.sources.metaclip import MetaClip
from dataflow.sources.text import TextDocuments


def shown(image: Any, **more: Any) -> dict[str, Any]:
    """A Cambrian row about a picture."""
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    return {"id": 7, "image": image, "conversations": turns, **more}


def said(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "1", "conversations": [{"from": speaker, "value": value} for speaker, value in turns], **more}


def exif_turned() -> bytes:
    tags = Pixels.Exif()
    tags[0x0112] = 6
    return file(photo(), "JPEG", exif=tags)


# name -> bytes of the pictures that rows name, and whether they make a record
PICTURES: dict[str, tuple[bytes, bool]] = {
    "sound.jpg": (jpeg(), True),
    "sound.png": (file(photo(), "PNG"), True),
    "png_named.jpg": (file(photo(), "PNG"), True),
    "palette.png": (file(photo().convert("P"), "PNG"), True),
    "alpha.png": (file(photo().convert("RGBA"), "PNG"), True),
    "cmyk.jpg": (file(photo().convert("CMYK"), "JPEG"), True),
    "deep.png": (file(photo().convert("I;16"), "PNG"), True),
    "turned.jpg": (exif_turned(), True),
    "animated.gif": (file(photo(), "GIF", save_all=True, append_images=[photo().rotate(90)]), True),
    "animated.webp": (file(photo(), "WEBP", save_all=True, append_images=[photo().rotate(90)]), True),
    "empty.jpg": (b"", False),
    "page.jpg": (b"<!DOCTYPE html><title>404</title>", False),
    "cut.jpg": (jpeg()[:900], False),
    "cut.png": (file(photo(), "PNG")[:900], False),
    "bomb.png": (png_header(100_000, 100_000), False),
    "words.jpg": (b"just words", False),
}
ESCAPES = (
    "../../../secret.jpg",
    "/etc/passwd",
    "link.jpg",
    "folder/secret.jpg",
    "no/such.jpg",
    "half\ud83d.jpg",
    "a\0b",
)
BAD_LINES = (
    b'{"id": 1',
    b"\xff\xfe not UTF-8",
    b"[]",
    b"7",
    b"[" * 100_000,
    b'{"id": ' + b"1" * 5000 + b"}",
)
BAD_ROWS = (
    said(("human", "?"), ("gpt", "!"), image="coco/sound.jpg"),  # a picture but no <image>
    said(("human", "<image>?"), ("gpt", "!")),  # an <image> but no picture
    said(("human", "<image><image>?"), ("gpt", "!"), image="coco/sound.jpg"),
    said(("gpt", "!"), ("human", "?"), ("gpt", "!")),
    said(("human", "?"), ("gpt", "")),
    said(("human", "half of a pair: \ud83d"), ("gpt", "!")),
    said(("human", ["?"]), ("gpt", "!")),
    {"id": 1},
    {},
)
TEXT_ROWS = (*({**ORCA, "image": image} for image in ("", None, "nan", "None", float("nan"))), ORCA, {**ORCA, "id": 12})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """data/cambrian with every kind of bad row, documented or met; good ones between, a blank line here and there."""
    home = tmp_path / "data/cambrian"
    (home / "coco/train2017").mkdir(parents=True)
    (home / "jsons").mkdir()
    (home / "coco/train2017/000000033471.jpg").write_bytes(jpeg())
    for name, (data, _) in PICTURES.items():
        (home / "coco" / name).write_bytes(data)
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    (home / "link.jpg").symlink_to("../../secret.jpg")
    (home / "folder").symlink_to("../..")
    rows = [BUS, b"", *TEXT_ROWS, *(shown(f"coco/{name}") for name in PICTURES), b"  \r", *map(shown, ESCAPES)]
    rows += [*BAD_LINES, *BAD_ROWS, json.dumps(BUS).encode() + b"\r"]
    (home / "jsons/a.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(*rows))  # type: ignore[arg-type]
    (home / "jsons/b.jsonl").write_bytes(jsonl(BUS, ORCA)[:-1])
    return tmp_path / "data"


def job(source: Any, data: Path, *filters: Any) -> ShardJob:
    return ShardJob(source=source, filters=filters, roots=Roots(base=data), recipe_key="recipe", earlier={})


def plan(job: ShardJob, size: int) -> list[readers.Split]:
    home = job.roots.source(job.source.name)
    return [split for file in job.source.files(home) for split in readers.splits(home, file, size)]


def preview(job: ShardJob, size: int = 1000) -> tuple[list[Record], list[LedgerRow]]:
    made = [job.preview(split, number) for number, split in enumerate(plan(job, size))]
    return [record for records, _ in made for record in records], [row for _, ledger in made for row in ledger]


def test_every_row_gets_one_ledger_row_and_the_ledger_sums_up(data: Path) -> None:
    lines = (data / "cambrian/jsons/a.jsonl").read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    numbers = [number for number, line in enumerate(lines) if line.strip()]
    for size in (1, 7, 1000):
        records, ledger = preview(job(Cambrian(), data, MaxText(characters=160)), size)
        assert [row.row for row in ledger if row.file == "jsons/a.jsonl"] == numbers
        assert [row.row for row in ledger if row.file == "jsons/b.jsonl"] == [0, 1]
        for row in ledger:
            assert row.candidates == row.kept + row.filtered + row.duplicate + row.corrupt + row.missing == 1
            assert (row.outcome == "kept") == (row.reason == "") == (row.kept == 1)
            assert row.reason.isprintable()
        assert sum(row.kept for row in ledger) == len(records)
        kept = {(row.file, row.row) for row in ledger if row.kept}
        assert {(record.lineage.file, record.lineage.row) for record in records} == kept
        assert sum(row.filtered for row in ledger) == 3  # the bus has the longest talk
    reasons = [row.reason for row in ledger if row.outcome == "filtered"]
    assert reasons == ["MaxText: 176 characters of text, over 160"] * 3


def test_good_rows_are_kept_and_bad_ones_are_not(data: Path) -> None:
    records, ledger = preview(job(Cambrian(), data))
    good = 2 + len(TEXT_ROWS) + sum(sound for _, sound in PICTURES.values()) + 2  # the bus twice, and all of b.jsonl
    assert len(records) == good
    assert sum(row.missing for row in ledger) == 1  # no/such.jpg
    assert sum(row.corrupt for row in ledger) == len(ledger) - good - 1
    said = " | ".join(row.reason for row in ledger)
    for expected in (
        "picture is 0 bytes",
        "web page",
        "format is not known, it starts with b'just wor'",
        "picture does not decode",
        "picture does not open: Image size",
        "leaves the declared folders: admit it by --data NAME=/etc",
        "file 'no/such.jpg' is not there",
        "is no path",
        "line is not JSON",
        "line is not UTF-8",
        "line holds list",
        "1 picture but 0 <image>",
        "turns are assistant, user, assistant",
        "an empty gpt turn",
        r"text holds half a surrogate pair, '\ud83d', at character 16",
    ):
        assert expected in said, expected
    assert said.count("leaves the declared folders") == 4


def test_a_record_s_key_counts_rows_before_any_filter(data: Path) -> None:
    records, _ = preview(job(Cambrian(), data), 4)
    for record in records:
        numbers = [split.first for split in plan(job(Cambrian(), data), 4) if split.file == record.lineage.file]
        split = max(first for first in numbers if first <= record.lineage.row)
        assert int(record.key[-4:]) == record.lineage.row - split
    assert len({record.key for record in records}) == len(records)


def test_what_is_built_is_what_is_previewed(data: Path, tmp_path: Path) -> None:
    made, out = job(Cambrian(), data, MinSide(pixels=50)), tmp_path / "out"
    out.mkdir()
    for number, split in enumerate(plan(made, 9)):
        made.build(split, number, out)
        records, ledger = made.preview(split, number)
        receipt = read_receipt(receipt_path(out, number))
        assert receipt.ledger == columns(LedgerRow, ledger)
        assert receipt.entries["key"] == [record.key for record in records]
        tar = (out / shards.name(number)).read_bytes()
        cut = zip(*(receipt.entries[name] for name in ("offset", "size", "key")), strict=True)
        assert [shards.read(tar[offset : offset + size], key) for offset, size, key in cut] == records
        assert (receipt.size, receipt.sha256) == (len(tar), hashlib.sha256(tar).hexdigest())
        assert receipt.split == split
        assert receipt.linked is None


def digests(folder: Path) -> dict[str, str]:
    return {path.name: shards.sha256(path) for path in sorted(folder.iterdir())}


_BUILD = """
import pathlib, sys
from dataflow import readers
from dataflow.build import ShardJob
from dataflow.filters import MinSide
from dataflow.roots import Roots
from dataflow.sources.cambrian import Cambrian
data, out = map(pathlib.Path, sys.argv[1:])
filters = (MinSide(pixels=50),)
job = ShardJob(source=Cambrian(), filters=filters, roots=Roots(base=data), recipe_key="recipe", earlier={})
home = job.roots.source("cambrian")
plan = [split for file in job.source.files(home) for split in readers.splits(home, file, 9)]
for number, split in reversed(list(enumerate(plan))):
    job.build(split, number, out)
"""


def test_the_same_split_gives_the_same_bytes_again_and_elsewhere(data: Path, tmp_path: Path) -> None:
    made = job(Cambrian(), data, MinSide(pixels=50))
    folders = [tmp_path / name for name in ("here", "again", "other process", "moved")]
    for folder in folders:
        folder.mkdir()
    for folder in folders[:2]:
        for number, split in enumerate(plan(made, 9)):
            made.build(split, number, folder)
    shutil.copytree(data.parent, tmp_path.parent / f"{tmp_path.name}-moved", symlinks=True)
    root = Path(__file__).parents[2]
    for folder, place, seed in zip(
        folders[2:], (data, tmp_path.parent / f"{tmp_path.name}-moved/data"), "12", strict=True
    ):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root), "LC_ALL": "C", "TZ": "Asia/Tokyo"}
        subprocess.run([sys.executable, "-c", _BUILD, str(place), str(folder)], env=environment, cwd="/", check=True)
    assert len(digests(folders[0])) == 3 * len(plan(made, 9))
    for folder in folders[1:]:
        assert digests(folder) == digests(folders[0]), folder


def test_building_over_what_a_killed_worker_left_gives_the_same(data: Path, tmp_path: Path) -> None:
    made, out = job(Cambrian(), data), tmp_path / "out"
    out.mkdir()
    (split,) = [split for split in plan(made, 1000) if split.file == "jsons/a.jsonl"]
    made.build(split, 0, out)
    before = digests(out)
    (out / "00000.tar").write_bytes(b"half a sh")
    (out / "00000.tar.idx").unlink()
    (out / ".0123456789ab-00000.tar").write_bytes(b"quarter")
    made.build(split, 0, out)
    (out / ".0123456789ab-00000.tar").unlink()
    assert digests(out) == before


def test_a_task_done_several_times_at_once_and_in_any_order_gives_the_same(data: Path, tmp_path: Path) -> None:
    """As Ray does when a node is slow to be found dead; shards built, and the same shards linked."""
    made, once = job(Cambrian(), data), tmp_path / "once"
    once.mkdir()
    splits = list(enumerate(plan(made, 9)))
    for number, split in splits:
        made.build(split, number, once)
    receipts = (read_receipt(receipt_path(once, number)) for number, _ in splits)
    index.commit(once, receipts, step={}, recipe_key=made.recipe_key, max_dropped=1, max_missing=1)
    shards_of_once = {shard["key"]: str(once) for shard in index.read_manifest(once)["shards"]}
    for name, task in (("built", made), ("linked", replace(made, earlier=shards_of_once))):
        out = tmp_path / name
        out.mkdir()
        with ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(task.build, split, number, out) for number, split in [*splits[::-1], *splits] * 4]:
                done.result()
        assert all((out / shard.name).read_bytes() == shard.read_bytes() for shard in once.glob("*.tar*"))
        assert {path.name for path in out.iterdir()} == {path.name for path in once.iterdir()} - {
            "index.parquet",
            "ledger.parquet",
            "manifest.json",
            ".nv-meta",
        }
        receipts = (read_receipt(receipt_path(out, number)) for number, _ in splits)
        commit = index.commit(out, receipts, step={}, recipe_key=made.recipe_key, max_dropped=1, max_missing=1)
        assert commit == index.read_manifest(once)


# --- sources defined here


@dataclass(frozen=True, kw_only=True)
class Album:
    """Rows {"pictures": [...], "caption": ...}: a candidate for each picture. Trips over a row without a caption."""

    name: str = "album"
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        return matching(folder, "*.jsonl")

    def candidates(self, value: Any, key: str, read: Read) -> Iterator[Candidate | Corrupt]:
        for path in value["pictures"]:
            messages = (Message("user", (Text(value["caption"]),)), Message("assistant", (Image(0),)))
            try:
                yield Candidate(
                    task=value.get("task", "text_to_image"), messages=messages, media=(picture(read(path)),)
                )
            except Corrupt as problem:
                yield problem


@pytest.fixture
def albums(tmp_path: Path) -> Path:
    home = tmp_path / "data/album"
    home.mkdir(parents=True)
    for name, data in (("a.jpg", jpeg()), ("b.jpg", jpeg(32, 32)), ("c.jpg", b"")):
        (home / name).write_bytes(data)
    return home


def test_a_row_of_several_candidates_is_one_ledger_row_with_their_sum(albums: Path) -> None:
    paths = [["a.jpg", "b.jpg", "a.jpg", "c.jpg"], ["b.jpg"], ["c.jpg", "b.jpg"], ["c.jpg", "c.jpg"], []]
    (albums / "x.jsonl").write_bytes(jsonl(*({"pictures": each, "caption": "a cat"} for each in paths)))
    records, ledger = preview(job(Album(), albums.parent, MinSide(pixels=40)))
    assert [record.key for record in records] == ["album_000000000", "album_000000000-2"]
    counts = [(row.outcome, row.candidates, row.kept, row.filtered, row.duplicate, row.corrupt) for row in ledger]
    assert counts == [
        ("kept", 4, 2, 1, 0, 1),
        ("filtered", 1, 0, 1, 0, 0),
        ("filtered", 2, 0, 1, 0, 1),
        ("corrupt", 2, 0, 0, 0, 2),
        ("corrupt", 1, 0, 0, 0, 1),
    ]
    assert [row.reason for row in ledger] == [
        "candidate 1: MinSide: picture 0 is 32x32, under 40 px; candidate 3: picture is 0 bytes",
        "MinSide: picture 0 is 32x32, under 40 px",
        "candidate 0: picture is 0 bytes; candidate 1: MinSide: picture 0 is 32x32, under 40 px",
        "candidate 0: picture is 0 bytes; candidate 1: picture is 0 bytes",
        "the source gave no candidate",
    ]


def test_a_row_that_a_source_trips_over_is_corrupt_and_the_next_goes_on(albums: Path) -> None:
    (albums / "x.jsonl").write_bytes(
        jsonl(
            {"pictures": ["a.jpg"]},
            {"caption": "no pictures"},
            {"pictures": 3},
            {"pictures": ["a.jpg"], "caption": "ok"},
        )
    )
    records, ledger = preview(job(Album(), albums.parent))
    assert [row.outcome for row in ledger] == ["corrupt", "corrupt", "corrupt", "kept"]
    assert ledger[0].reason == "Album failed on this row: KeyError: 'caption'"
    assert ledger[2].reason == "Album failed on this row: TypeError: 'int' object is not iterable"
    assert len(records) == 1


@pytest.mark.parametrize(
    "error", [KeyError("x"), ZeroDivisionError(), IndexError(), OverflowError(), EOFError(), UnicodeError()]
)
def test_whatever_a_row_makes_a_source_raise_is_a_ledger_row(albums: Path, error: Exception) -> None:
    class Tripping(Album):
        def candidates(self, value: Any, key: str, read: Read) -> Iterator[Candidate | Corrupt]:
            raise error
            yield

    (albums / "x.jsonl").write_bytes(jsonl({"pictures": []}))
    _, ledger = preview(job(Tripping(), albums.parent))
    assert ledger[0].outcome == "corrupt"
    assert type(error).__name__ in ledger[0].reason


def test_the_disk_s_failure_stops_the_build_and_names_the_row(albums: Path) -> None:
    class Failing(Album):
        def candidates(self, value: Any, key: str, read: Read) -> Iterator[Candidate | Corrupt]:
            raise OSError(5, "Input/output error")
            yield

    (albums / "x.jsonl").write_bytes(jsonl({"pictures": []}))
    with pytest.raises(OSError, match="Input/output error") as failure:
        preview(job(Failing(), albums.parent))
    assert failure.value.__notes__ == ["Failing, row 0 of x.jsonl"]


def test_a_record_that_breaks_the_contract_stops_the_build_and_names_the_row(albums: Path) -> None:
    rows = [{"pictures": ["a.jpg"], "caption": "x", "task": task} for task in ("text_to_image", "text2image")]
    (albums / "x.jsonl").write_bytes(jsonl(*rows))
    with pytest.raises(ValueError, match="task 'text2image' of album_000000001: must be one of") as failure:
        preview(job(Album(), albums.parent))
    assert failure.value.__notes__ == ["Album, row 1 of x.jsonl"]


def test_a_source_with_an_impossible_name_is_told_the_rule(albums: Path) -> None:
    albums.rename(albums.parent / "My.Album")
    (albums.parent / "My.Album/x.jsonl").write_bytes(jsonl({"pictures": ["a.jpg"], "caption": "x"}))
    with pytest.raises(ValueError, match="a source's name is a lower case letter, then lower case letters, digits"):
        preview(job(Album(name="My.Album"), albums.parent))


def test_a_reason_is_one_short_line_whatever_the_row_holds(albums: Path) -> None:
    class Shouting(Album):
        def candidates(self, value: Any, key: str, read: Read) -> Iterator[Candidate | Corrupt]:
            raise ValueError(f"line\nend \ud83d {'x' * 10_000}")
            yield

    (albums / "x.jsonl").write_bytes(jsonl({"pictures": []}))
    _, (row,) = preview(job(Shouting(), albums.parent))
    assert len(row.reason) <= 500
    assert row.reason.isprintable()
    row.reason.encode()


def test_the_first_filter_that_drops_is_the_reason(albums: Path) -> None:
    (albums / "x.jsonl").write_bytes(jsonl({"pictures": ["b.jpg"], "caption": "too long"}))
    _, (row,) = preview(job(Album(), albums.parent, MaxText(characters=3), MinSide(pixels=100)))
    assert row.reason == "MaxText: 8 characters of text, over 3"


# --- the other kinds of input


def test_a_tar_with_every_kind_of_bad_sample_is_accounted_for(tmp_path: Path) -> None:
    home = tmp_path / "data/metaclip/0"
    home.mkdir(parents=True)
    uuid, fields = metaclip_json("http://example.com/1", "a cat")
    link = tarfile.TarInfo("linked.jpeg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = [
        (f"{uuid}.jpeg", jpeg()),
        (f"{uuid}.json", fields),
        link,
        ("linked.json", fields),
        ("twice.jpeg", jpeg()),
        ("twice.jpeg", jpeg()),
        ("twice.json", fields),
        ("foreign.cls", b"3"),
        ("alone.jpeg", jpeg()),
        ("page.jpeg", b"<html>"),
        ("page.json", fields),
        ("last.jpeg", jpeg()),
        ("last.json", fields),
    ]
    whole = tar(*members)
    (home / "100.tar").write_bytes(whole[: whole.rindex(b"last.json") + 512 + 10])
    (home / "101.tar").write_bytes(b"this is no tar" * 99)
    records, ledger = preview(job(MetaClip(), home.parents[1]), 3)
    assert [(row.file, row.row, row.outcome) for row in ledger] == [
        ("0/100.tar", 0, "kept"),
        *[("0/100.tar", number, "corrupt") for number in range(1, 8)],
        ("0/101.tar", 0, "corrupt"),
    ]
    assert len(records) == 1
    needs = "needs jpeg and json, or txt and one of jpg, png, webp"
    assert [row.reason for row in ledger[1:]] == [
        "member 'linked.jpeg' is a link or folder, not a plain file",
        "two members 'twice.jpeg' in one sample",
        f"sample has members ['cls'], {needs}",
        f"sample has members ['jpeg'], {needs}",
        "jpeg: picture is a web page or XML, not pixels",
        "archive ends inside member 'last.json'",
        "archive is cut off or broken: unexpected end of data",
        "archive is cut off or broken: invalid header",
    ]


def test_parquet_with_null_cells_across_row_groups_is_accounted_for(tmp_path: Path) -> None:
    home, cat = tmp_path / "data/instruct_pix2pix", jpeg()
    rows = [
        (cat, "snow", cat),
        (None, "snow", cat),
        (cat, None, cat),
        (cat, "rain", None),
        (cat, "", cat),
        (cat, "sun", cat),
    ]
    edits(home / "data/train-00000-of-00262-5179dd4f7a4b1b1c.parquet", rows * 3, row_group_size=4)
    (home / "data/train-00001-of-00262-0000000000000000.parquet").write_bytes(b"PAR1")
    for size in (1, 5, 1000):
        records, ledger = preview(job(InstructPix2Pix(), home.parent), size)
        outcomes = ["kept", "corrupt", "corrupt", "corrupt", "corrupt", "kept"] * 3
        assert [row.outcome for row in ledger] == [*outcomes, "corrupt"]
        assert [record.lineage.row for record in records] == [0, 5, 6, 11, 12, 17]
        assert ledger[-1].reason.startswith("file is not parquet: ")


# --- the small parts


def test_an_atomic_write_leaves_nothing_else(tmp_path: Path) -> None:
    for data in (b"one", b"two"):
        write_atomically(tmp_path / "a", data)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert (tmp_path / "a").read_bytes() == data


def test_a_reason_is_printable_whatever_the_row_puts_into_it(data: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Echo(Cambrian):
        def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
            raise Corrupt(value["id"])

    (data / "cambrian/jsons/a.jsonl").write_bytes(jsonl({"id": "a\u202eb \ud83d\n\0 猫"}))
    _, ledger = preview(job(Echo(listing=("jsons/a.jsonl",)), data))
    assert ledger[0].reason == r"a\u202eb \ud83d \x00 猫"


# --- input files that are not what they seem


def test_an_input_file_outside_the_declared_folders_is_never_read(tmp_path: Path, build: Build) -> None:
    home, secret = tmp_path / "data/text", tmp_path / "secret"
    (home / "deep").mkdir(parents=True)
    secret.mkdir()
    for name in ("a.txt", "b.jsonl", "folder/c.txt"):
        (secret / name).parent.mkdir(exist_ok=True)
        (secret / name).write_text('{"text": "SECRET"}\n')
    (home / "evil.txt").symlink_to(secret / "a.txt")
    (home / "evil.jsonl").symlink_to(secret / "b.jsonl")
    (home / "deep/linked.txt").symlink_to(home / "good.txt")  # inside: followed
    (home / "good.txt").write_text("a document\n")
    corpus = build(TextDocuments())
    assert corpus.manifest["counts"]["kept"] == 2
    assert b"SECRET" not in b"".join(path.read_bytes() for path in corpus.folder.glob("*.tar"))
    reasons = {drop.example.reason for drop in index.drops(corpus.folder)}
    assert reasons == {"file is a link that leaves the declared folders: admit it by --data NAME=DIR of where it ends"}


def test_input_files_that_are_no_plain_files_are_rows_that_say_so(tmp_path: Path, build: Build) -> None:
    home = tmp_path / "data/text"
    home.mkdir(parents=True)
    (home / "good.txt").write_text("a document\n")
    os.mkfifo(home / "fifo.jsonl")
    (home / "folder.jsonl").mkdir()
    (home / "zero.jsonl").symlink_to("/dev/zero")
    (home / "gone.jsonl").symlink_to(home / "nowhere")
    (home / "circle.jsonl").symlink_to(home / "circle.jsonl")
    corpus = build(TextDocuments())
    assert (corpus.manifest["counts"]["kept"], corpus.manifest["counts"]["corrupt"]) == (1, 4)


def test_a_job_reads_no_file_that_became_a_link_after_it_was_planned(tmp_path: Path) -> None:
    home = tmp_path / "data/text"
    home.mkdir(parents=True)
    (home / "a.txt").write_text("a document\n")
    (tmp_path / "secret.txt").write_text("SECRET NOTE\n")
    task = job(TextDocuments(), tmp_path / "data")
    (split,) = plan(task, 10)
    (home / "a.txt").unlink()
    (home / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match="leaves the declared folders"):
        task.preview(split, 0)
