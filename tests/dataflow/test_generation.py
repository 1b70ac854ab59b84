"""Captioned pictures and documents as upstream lays them: img2dataset's output, CC12M- and BLIP3o-style sets, text.

Rows are from: img2dataset, README and writer.py; CC12M, the card of pixparse/cc12m-wds; BLIP3o, blip3o/train/train.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upstream import Build, file, jpeg, jsonl, metaclip_json, photo, tar

from dataflow.media import Corrupt, Missing, picture
from dataflow.record import Candidate, Image, Message, Record, Text, to_json
from dataflow.roots import Roots
from dataflow.sources.captions import Captions
from dataflow.sources.metaclip import MetaClip
from dataflow.sources.text import TextDocuments

CAT = jpeg()
CAT_PNG = file(photo(), "PNG")
FULL = Roots().files("none")  # these rows name no files


def img2dataset_json(key: str, caption: str | None) -> bytes:
    """What img2dataset 1.4x writes beside a picture, indented by 4."""
    fields = {
        "caption": caption,
        "url": "http://example.com/cat.jpg",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": 64,
        "height": 48,
        "original_width": 451,
        "original_height": 300,
        "exif": '{"Image Orientation": "Horizontal (normal)"}',
        "sha256": "3a1c",
    }
    return json.dumps(fields, indent=4).encode()


def sample(key: str, caption: str | None, extension: str = "jpg", data: bytes = CAT) -> tuple[tuple[str, bytes], ...]:
    members = {extension: data, "json": img2dataset_json(key, caption), "txt": (caption or "").encode()}
    return tuple((f"{key}.{name}", members[name]) for name in sorted(members))


def shard(folder: Path, stem: str, *members: tuple[str, bytes], stats: bool = True) -> None:
    """A shard as img2dataset leaves it; the second URL of its list failed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.tar").write_bytes(tar(*members))
    urls = [
        {"url": "http://example.com/cat.jpg", "caption": "a cat", "key": f"{stem}0000", "status": "success"},
        {"url": "http://example.com/gone.jpg", "caption": "gone", "key": f"{stem}0001", "status": "failed_to_download"},
    ]
    pq.write_table(pa.Table.from_pylist(urls), folder / f"{stem}.parquet")
    if stats:
        counts = {"count": 2, "successes": 1, "failed_to_download": 1, "failed_to_resize": 0, "status_dict": {}}
        (folder / f"{stem}_stats.json").write_text(json.dumps(counts))


def asks(caption: str, data: bytes = CAT) -> Candidate:
    return Candidate(
        task="text_to_image",
        messages=(Message("user", (Text(caption),)), Message("assistant", (Image(0),))),
        media=(picture(data),),
    )


def made(source: Any, value: dict[str, Any], key: str = "captions_000000000") -> Candidate | Corrupt:
    (candidate,) = source.candidates({"__key__": "000000017", **value}, key, FULL)
    return candidate


def ledger(folder: Path) -> list[tuple[str, int, str, str]]:
    rows = pq.read_table(folder / "ledger.parquet").to_pylist()
    return [(row["file"], row["row"], row["outcome"], row["reason"]) for row in rows]


def golden(record: Record) -> dict[str, Any]:
    return json.loads(to_json(record))


# --- MetaCLIP's own tars and img2dataset's under one name


def test_img2dataset_s_output_is_read_as_metaclip(tmp_path: Path, build: Build) -> None:
    """Also: a caption of null, and keys with gaps where a download failed."""
    members = (*sample("000000000", "a cat"), *sample("000000007", None), *sample("000000003", " Katze, 2 "))
    shard(tmp_path / "data/metaclip", "00000", *members)
    corpus = build(MetaClip())
    assert golden(corpus.record(0)) == {
        "schema": 1,
        "source": "metaclip",
        "task": "text_to_image",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a cat"}]},
            {"role": "assistant", "content": [{"type": "image", "index": 0}]},
        ],
        "media": [{"extension": "jpg", "width": 64, "height": 48}],
        "lineage": {"file": "00000.tar", "row": 0},
    }
    assert corpus.record(0).media[0].data == CAT  # original bytes
    assert [corpus.record(place).key for place in range(len(corpus))] == ["metaclip_000000000", "metaclip_000000002"]
    assert corpus.record(1).turns[0] == ("user", ("Katze, 2",))
    assert ledger(corpus.folder) == [
        ("00000.tar", 0, "kept", ""),
        ("00000.tar", 1, "corrupt", "no text for the picture"),
        ("00000.tar", 2, "kept", ""),
    ]


def test_both_layouts_may_lie_under_metaclip(tmp_path: Path) -> None:
    shard(tmp_path, "00000", *sample("000000000", "a cat"))
    uuid, fields = metaclip_json("http://example.com/bus.jpg", "a bus")
    (tmp_path / "17").mkdir()
    (tmp_path / "17/317.tar").write_bytes(tar((f"{uuid}.jpeg", CAT), (f"{uuid}.json", fields)))
    assert MetaClip().files(tmp_path) == ["00000.tar", "17/317.tar"]


@pytest.mark.parametrize(("extension", "data"), [("png", CAT_PNG), ("webp", file(photo(), "WEBP"))])
def test_img2dataset_may_encode_as_png_or_webp(extension: str, data: bytes) -> None:
    value = {extension: data, "json": img2dataset_json("1", "a cat"), "txt": b"a cat"}
    assert made(MetaClip(), value) == asks("a cat", data)


def test_img2dataset_without_a_caption_column_says_what_is_missing() -> None:
    with pytest.raises(Corrupt, match=r"members \['jpg', 'json'\], needs jpeg and json, or txt and one of jpg, png"):
        made(MetaClip(), {"jpg": CAT, "json": img2dataset_json("1", None)})


@pytest.mark.parametrize("source", [MetaClip(), Captions()])
@pytest.mark.parametrize("folder", ["", "cc12m"])
def test_a_shard_that_img2dataset_has_not_finished_is_refused(tmp_path: Path, source: Any, folder: str) -> None:
    shard(tmp_path / folder, "00000", *sample("000000000", "a cat"))
    shard(tmp_path / folder, "00001", *sample("000010000", "a cat"), stats=False)
    unfinished = re.escape(f"{folder}/00001.tar".lstrip("/"))
    with pytest.raises(ValueError, match=rf"has not finished 1 of 2 shards, no _stats\.json .*: {unfinished}; run it"):
        source.files(tmp_path)


@pytest.mark.parametrize("source", [MetaClip(), Captions()])
def test_a_first_shard_that_is_not_finished_is_refused_too(tmp_path: Path, source: Any) -> None:
    shard(tmp_path, "00000", *sample("000000000", "a cat"), stats=False)  # img2dataset opens its parquet at once
    with pytest.raises(ValueError, match="has not finished 1 of 1 shards"):
        source.files(tmp_path)


def test_a_tar_whose_parquet_was_not_copied_needs_its_statistics_where_others_have_them(tmp_path: Path) -> None:
    shard(tmp_path, "00000", *sample("000000000", "a cat"))
    (tmp_path / "00001.tar").write_bytes(tar(*sample("000010000", "a cat")))
    with pytest.raises(ValueError, match=r"1 of 2 shards.*00001\.tar"):
        Captions().files(tmp_path)


def test_of_many_unfinished_shards_five_are_named(tmp_path: Path) -> None:
    for number in range(7):
        shard(tmp_path, f"{number:05d}", *sample(f"{number:05d}0000", "a cat"), stats=False)
    with pytest.raises(ValueError, match=r"7 of 7 shards.*00004\.tar, \.\.\.; run it again"):
        MetaClip().files(tmp_path)


# --- captions


def test_cc12m_s_tars_need_no_statistics(tmp_path: Path, build: Build) -> None:
    home = tmp_path / "data/captions"
    home.mkdir(parents=True)
    members = [
        ("000000000.jpg", CAT),
        ("000000000.json", img2dataset_json("000000000", "not this one")),
        ("000000000.txt", b"<PERSON> with a cat\n"),
        ("000000012.jpg", CAT),  # the json is optional, keys have gaps
        ("000000012.txt", "une caf\xe9".encode()),
    ]
    (home / "cc12m-train-0000.tar").write_bytes(tar(*members))
    (home / "_info.json").write_text("{}")
    corpus = build(Captions())
    assert golden(corpus.record(0)) == {
        "schema": 1,
        "source": "captions",
        "task": "text_to_image",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "<PERSON> with a cat"}]},
            {"role": "assistant", "content": [{"type": "image", "index": 0}]},
        ],
        "media": [{"extension": "jpg", "width": 64, "height": 48}],
        "lineage": {"file": "cc12m-train-0000.tar", "row": 0},
    }
    assert corpus.record(1).turns == (("user", ("une caf\xe9",)), ("assistant", (0,)))
    assert len(corpus) == 2


def test_img2dataset_s_list_of_urls_is_no_input(tmp_path: Path, build: Build) -> None:
    shard(tmp_path / "data/captions/cc12m", "00000", *sample("000000000", "a cat"))
    corpus = build(Captions())
    assert ledger(corpus.folder) == [("cc12m/00000.tar", 0, "kept", "")]


def test_parquet_with_pictures_is_read_in_each_documented_form(tmp_path: Path, build: Build) -> None:
    home = tmp_path / "data/captions"
    home.mkdir(parents=True)
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    hub = [{"__key__": "0", "jpg": {"bytes": CAT, "path": "0.jpg"}, "txt": "a cat", "json": {"caption": "no"}}]
    kinds = [
        ("__key__", pa.string()),
        ("jpg", cell),
        ("txt", pa.string()),
        ("json", pa.struct([("caption", pa.string())])),
    ]
    pq.write_table(pa.Table.from_pylist(hub, pa.schema(kinds)), home / "train-00000-of-00001.parquet")
    (home / "shutterstock").mkdir()
    stock = [{"image": CAT_PNG, "caption": "the same cat"}, {"image": None, "caption": "no cat"}]
    pq.write_table(pa.Table.from_pylist(stock), home / "shutterstock/part.parquet")
    corpus = build(Captions())
    assert [corpus.record(place).turns[0] for place in range(2)] == [
        ("user", ("the same cat",)),
        ("user", ("a cat",)),
    ]
    assert corpus.record(0).media == (picture(CAT_PNG),)
    assert ledger(corpus.folder)[1] == (
        "shutterstock/part.parquet",
        1,
        "corrupt",
        "0 pictures for one caption, a sample has one of jpg, jpeg, png, webp, image; it has caption, image",
    )


def test_a_failed_download_in_img2dataset_s_parquet_form_is_missing_not_corrupt() -> None:
    failed = {"key": "000000001", "jpg": None, "txt": None, "status": "failed_to_download", "error_message": "404"}
    with pytest.raises(Missing, match="the picture was never obtained: failed_to_download"):
        made(Captions(), failed)
    obtained = {"key": "000000000", "jpg": CAT, "txt": "a cat", "status": "success", "error_message": None}
    assert made(Captions(), obtained) == asks("a cat")


@pytest.mark.parametrize(
    ("value", "caption"),
    [
        ({"txt": b"of txt", "caption": b"of caption", "json": b'{"caption": "of json"}'}, "of txt"),
        ({"txt": b"", "json": b'{"text": "of text", "caption": "of caption"}'}, "of caption"),
        ({"txt": b" \n", "json": b'{"caption": null, "text": " of text "}'}, "of text"),
        ({"caption": "of a column", "text": "of another"}, "of a column"),
        ({"json": '{"caption": "JSON in a column"}'}, "JSON in a column"),
        ({"json": {"caption": "an object in a column"}}, "an object in a column"),
        ({"json": b'{"caption": "", "txt": 4}'}, "4"),
        ({"txt": b"\xef\xbb\xbfmarked"}, "marked"),
        ({"txt": b"of txt", "json": b"{ no JSON"}, "of txt"),  # is not parsed when it is not needed
    ],
)
def test_the_caption_is_the_first_that_has_words(value: dict[str, Any], caption: str) -> None:
    assert made(Captions(), {"jpg": CAT, **value}) == asks(caption)


def test_the_order_of_captions_can_be_told() -> None:
    value = {"jpg": CAT, "txt": b"alt text", "json": b'{"recaption": "long words"}'}
    assert made(Captions(keys=("recaption", "txt")), value) == asks("alt text")  # members come before fields
    assert made(Captions(keys=("recaption",)), value) == asks("long words")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"jpg": CAT, "txt": b""}, "no caption: txt, caption, text are empty or missing"),
        ({"jpg": CAT, "json": b"[]"}, "no caption: txt, caption, text are empty or missing"),
        ({"jpg": CAT, "json": b'{"caption": null}'}, "no caption"),
        ({"jpg": CAT, "json": b'{"caption": "x'}, "the json member does not parse: JSONDecodeError"),
        ({"jpg": CAT, "json": b"[" * 100_000}, "the json member does not parse: RecursionError"),
        ({"jpg": CAT, "json": b'{"caption": ' + b"9" * 5000 + b"}"}, "the json member does not parse: ValueError"),
        ({"jpg": CAT, "json": b'{"caption": ["a", "b"]}'}, "a field holds list where text belongs"),
        ({"jpg": CAT, "txt": b"caf\xe9"}, "text is not UTF-8: byte 3"),
        ({"jpg": CAT, "txt": b"a\0b"}, "text holds a NUL, at character 1"),
        ({"jpg": CAT, "json": b'{"caption": "a\\u0000b"}'}, "text holds a NUL, at character 1"),
        ({"txt": b"a cat"}, "0 pictures for one caption, a sample has one of jpg, jpeg, png, webp, image; it has txt"),
        ({"jpg": CAT, "png": CAT_PNG, "txt": b"a cat"}, "2 pictures for one caption"),
        ({"jpg": b"", "txt": b"a cat"}, "jpg: picture is 0 bytes"),
        ({"jpg": b"<html>", "txt": b"a cat"}, "jpg: picture is a web page"),
        ({"png": CAT_PNG[:-40], "txt": b"a cat"}, "png: picture does not decode"),
        ({"image": {"bytes": None, "path": "1.jpg"}, "txt": "a cat"}, "image holds no bytes"),
        ({"image": "1.jpg", "txt": "a cat"}, "image holds no bytes"),
    ],
)
def test_a_captioned_picture_that_cannot_be_used_says_why(value: dict[str, Any], says: str) -> None:
    with pytest.raises(Corrupt, match=re.escape(says)) as caught:
        made(Captions(), value)
    assert not isinstance(caught.value, Missing)


def test_what_is_no_captioned_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cc12m.tsv").write_text("http://example.com/cat.jpg\ta cat\n")
    with pytest.raises(ValueError, match=r"holds no \*\.tar or \*/\*\.tar or \*\.parquet"):
        Captions().files(tmp_path)


# --- caption_pair


def test_a_caption_pair_is_said_by_the_assistant_alone() -> None:
    first = Captions(task="caption_pair", caption_first=100)
    value = {"jpg": CAT, "txt": b"a cat"}
    both = (Message("assistant", (Text("a cat"), Image(0))),)
    assert made(first, value) == Candidate(task="caption_pair", messages=both, media=(picture(CAT),))
    turned = (Message("assistant", (Image(0), Text("a cat"))),)
    assert made(replace(first, caption_first=0), value) == Candidate(
        task="caption_pair", messages=turned, media=(picture(CAT),)
    )


def test_four_of_five_caption_pairs_begin_with_the_caption_and_the_key_decides_which() -> None:
    def begins(key: str) -> bool:
        candidate = made(Captions(task="caption_pair"), {"jpg": CAT, "txt": b"a cat"}, key)
        assert isinstance(candidate, Candidate)
        return isinstance(candidate.messages[0].parts[0], Text)

    keys = [f"captions_{number:09d}" for number in range(1000)]
    first = [begins(key) for key in keys]
    assert first == [begins(key) for key in keys]
    assert 760 < sum(first) < 840
    assert [number for number in range(40) if not first[number]] == [4, 5, 7, 15, 19, 22, 23, 24, 25, 34, 37, 38]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"task": "image_qa"}, "task 'image_qa' of captions: a caption becomes text_to_image or caption_pair"),
        ({"caption_first": 101}, "caption_first=101 of captions: it is of 100, so 0 to 100"),
        ({"caption_first": -1}, "caption_first=-1"),
    ],
)
def test_a_caption_setting_without_a_meaning_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Captions(**fields)


# --- text


def test_documents_are_read_from_all_three_kinds_of_file_in_one_order(tmp_path: Path, build: Build) -> None:
    home = tmp_path / "data/text"
    (home / "en").mkdir(parents=True)
    (home / "b.jsonl").write_bytes(jsonl({"id": 1, "text": "  The bus was late.\n\tTwice. "}, {"id": 2, "text": " \n"}))
    (home / "c.txt").write_bytes("First line.\nZweite Zeile: \xfc\n\nlast one".encode() + b"\nnot \xe9\nnul \0\n")
    pq.write_table(pa.table({"text": ["From parquet.", None], "url": ["u", "v"]}), home / "en/a.parquet")
    corpus = build(TextDocuments())
    assert golden(corpus.record(0)) == {
        "schema": 1,
        "source": "text",
        "task": "text_document",
        "messages": [
            {"role": "assistant", "content": [{"type": "text", "text": "  The bus was late.\n\tTwice. "}]},
        ],
        "media": [],
        "lineage": {"file": "b.jsonl", "row": 0},
    }
    assert [corpus.record(place).turns for place in range(1, len(corpus))] == [
        (("assistant", ("First line.",)),),
        (("assistant", ("Zweite Zeile: \xfc",)),),
        (("assistant", ("last one",)),),
        (("assistant", ("From parquet.",)),),
    ]
    assert [row for row in ledger(corpus.folder) if row[2] != "kept"] == [
        ("b.jsonl", 1, "corrupt", "text is empty"),
        ("c.txt", 4, "corrupt", "line is not UTF-8: byte 4"),
        ("c.txt", 5, "corrupt", "text holds a NUL, at character 4"),
        ("en/a.parquet", 1, "corrupt", "text is empty"),
    ]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": ""}, "text is empty"),
        ({"text": None}, "text is empty"),
        ({"text": float("nan")}, "text is empty"),
        ({"text": "a\0"}, "text holds a NUL, at character 1"),
        ({"text": b"caf\xe9"}, "text is not UTF-8: byte 3"),
        ({"text": ["a"]}, "a field holds list where text belongs"),
        ({"content": "a", "id": 3}, "no 'text' in the row, it has content, id"),
    ],
)
def test_a_document_that_cannot_be_used_says_why(row: dict[str, Any], says: str) -> None:
    with pytest.raises(Corrupt, match=re.escape(says)):
        list(TextDocuments().candidates(row, "text_000000000", FULL))


def test_the_column_of_the_text_can_be_told() -> None:
    (candidate,) = TextDocuments(column="content").candidates({"content": "a", "text": "b"}, "text_000000000", FULL)
    assert candidate.messages == (Message("assistant", (Text("a"),)),)


def test_documents_are_found_however_deep_they_lie_and_not_in_hidden_folders(tmp_path: Path) -> None:
    for name in ("data/CC-MAIN-2024-10/train-0.parquet", "a.jsonl", ".cache/huggingface/b.jsonl", "c/.git/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c/.git/objects.zip").write_bytes(b"")
    assert TextDocuments().files(tmp_path) == ["a.jsonl", "data/CC-MAIN-2024-10/train-0.parquet"]


def test_a_linked_folder_of_documents_is_refused_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "text/deep").mkdir(parents=True)
    (tmp_path / "text/deep/up").symlink_to("/")
    with pytest.raises(ValueError, match=r"deep/up is a link to a folder: put the files there, or place them by"):
        TextDocuments().files(tmp_path / "text")


def test_a_folder_without_documents_says_what_it_would_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \*\*/\*\.jsonl or"):
        TextDocuments().files(tmp_path)


@pytest.mark.parametrize("packed", ["c4-train.00000-of-01024.json.gz", "en/part.jsonl.zst"])
def test_packed_documents_are_refused_not_passed_over(tmp_path: Path, packed: str) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / packed).write_bytes(b"")
    with pytest.raises(ValueError, match=f"holds 1 packed files, {packed} first: unpack them"):
        TextDocuments().files(tmp_path)
