"""Upstream data in an object store: the rows, ledgers and shards of the same files in a local folder, byte for byte."""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
import secrets
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clips import clip
from s3fs import S3FileSystem
from upath import UPath
from upstream import BUS, Build, edits, jpeg, jsonl, metaclip_json, tar

from dataflow import adopt, folders
from dataflow.media import Corrupt, Missing
from dataflow.readers import Row, Split, rows, share, splits
from dataflow.roots import Roots
from dataflow.sources import either, matching
from dataflow.sources.aurora import Aurora
from dataflow.sources.cambrian import Cambrian
from dataflow.sources.captions import Captions
from dataflow.sources.instruct_pix2pix import InstructPix2Pix
from dataflow.sources.llava import Llava
from dataflow.sources.metaclip import MetaClip
from dataflow.sources.text import TextDocuments
from dataflow.sources.videostar import VideoStar

Put = Callable[[Path], Path]


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    """These files in a local folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def put() -> Iterator[Put]:
    """Put a local folder's files under a fresh folder of memory:// and give that."""
    made: list[Path] = []

    def put(folder: Path) -> Path:
        made.append(folders.folder(f"memory://{secrets.token_hex(6)}"))
        for path in folder.rglob("*"):
            if path.is_file():
                store(made[-1] / path.relative_to(folder).as_posix(), path.read_bytes())
        return made[-1]

    yield put
    for folder in made:
        fsspec.filesystem("memory").rm(folders.stored(folder).path, recursive=True)


def store(path: Path, data: bytes) -> None:
    """Put an object into a store."""
    assert isinstance(path, UPath)
    path.fs.pipe_file(path.path, data)


# --- one file

TEXT = [f"{n} of some rows" * 20 for n in range(30)]
SAMPLES = tar(*((f"{n:03d}.{end}", b"%d" % n * 300) for n in range(9) for end in ("jpg", "txt")))
LINES = jsonl(*({"n": n} for n in range(8)), b"{broken", b"", {"n": 9})


def parquet(*, damaged: bool = False) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": TEXT}), buffer, row_group_size=10, compression="zstd", use_dictionary=False)
    data = bytearray(buffer.getvalue())
    if damaged:
        column = pq.read_metadata(buffer).row_group(1).column(0)
        begin = column.data_page_offset
        data[begin + 30 : begin + column.total_compressed_size] = bytes(column.total_compressed_size - 30)
    return bytes(data)


def zipped(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


FILES = {
    "lines.jsonl": LINES,
    "long.jsonl": jsonl(*({"text": "x" * 100_000} for _ in range(25))),
    "empty.jsonl": b"",
    "document.json": json.dumps([{"n": n} for n in range(9)]).encode(),
    "lists.json": b'{"train": [{"a": 1}, {"a": NaN}], "val": [{"a": 2}',
    "nothing.json": b"",
    "lines.json": LINES,
    "table.csv": b"a,b\r\n1,2\r\nonly one\r\n3,4",
    "table.tsv": b"a\tb\n1\t2\n",
    "words.txt": b"one\n\ntwo\nthree",
    "whole.tar": SAMPLES,
    "cut.tar": SAMPLES[:-9000],
    "headless.tar": SAMPLES[:4096] + b"?" * 512 + SAMPLES[4608:],
    "joined.tar": SAMPLES + SAMPLES,
    "no.tar": b"",
    "whole.parquet": parquet(),
    "damaged.parquet": parquet(damaged=True),
    "cut.parquet": parquet()[:-100],
    "lines.zip": zipped(("a.jsonl", LINES)),
    "two.zip": zipped(("a.jsonl", LINES), ("b.jsonl", LINES)),
    "cut.zip": zipped(("a.jsonl", LINES))[:-30],
    "pointer.jsonl": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
}


def told(folder: Path, name: str, size: int) -> list[tuple[Split, float, str, list[Row]]]:
    """Splits of a file, how far into it each ends, and the digest and rows of each."""
    found = []
    for split in splits(folder, name, size):
        digest, there = rows(folder, split)
        found.append((split, share(folder, split), digest, list(there)))
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_store_has_the_splits_digests_and_rows_of_the_same_file_on_a_disk(
    name: str, tmp_path: Path, put: Put
) -> None:
    there = put(lay(tmp_path, {name: FILES[name]}))
    for size in (1, 4, 1000):
        assert told(there, name, size) == told(tmp_path, name, size)


def test_an_object_that_shrank_after_it_was_planned_stops_the_build(tmp_path: Path, put: Put) -> None:
    there = put(lay(tmp_path, {"a.jsonl": LINES}))
    (split,) = splits(there, "a.jsonl", 100)
    store(there / "a.jsonl", LINES[:-9])
    with pytest.raises(ValueError, match="is shorter than when its splits were planned: build again"):
        rows(there, split)


def test_a_stream_reads_seeks_and_ends_as_a_file_does(tmp_path: Path, put: Put) -> None:
    data = secrets.token_bytes(1 << 20)
    there = put(lay(tmp_path, {"a.bin": data}))
    with folders.opened(there / "a.bin") as far, (tmp_path / "a.bin").open("rb") as near:
        for place, whence, size in (
            (0, 0, 10),
            (-5, 2, 99),
            (300_000, 0, 400_000),
            (7, 1, 70_000),
            (100_000, 1, 9),
            (2 << 20, 0, 1),
        ):
            assert far.seek(place, whence) == near.seek(place, whence)
            assert far.read(size) == near.read(size)
            assert far.tell() == near.tell()
        far.seek(0), near.seek(0)
        assert far.readline(1 << 16) == near.readline(1 << 16)
        assert far.read() == near.read()
        assert far.name.startswith("memory://")


# --- a source's files


LAYOUT = (
    "a.json",
    "b.jsonl",
    ".hidden.json",
    ".cache/c.json",
    "x/a.json",
    "x/y/a.json",
    "x/y/z/a.json",
    "[1]/a.json",
    "x/a b#c?d%20.json",
    "ü/a.json",
)


@pytest.mark.parametrize(
    "pattern",
    [
        "*.json",
        "*/*.json",
        "**/*.json",
        "x/*.json",
        "x/**/a.json",
        "a.json",
        "x/y/a.json",
        "*/y/*.json",
        "x/?/a.json",
        "[[]1]/*",
    ],
)
def test_a_pattern_matches_what_it_matches_on_a_disk(pattern: str, tmp_path: Path, put: Put) -> None:
    folder = lay(tmp_path, {f"[0]/{name}": b"" for name in LAYOUT})
    there = put(folder)
    assert sorted(folders.glob(there / "[0]", pattern)) == sorted(folders.glob(folder / "[0]", pattern))
    assert matching(there / "[0]", pattern) == matching(folder / "[0]", pattern)


def test_an_object_added_a_moment_ago_is_listed(s3: str) -> None:
    folder = folders.folder(f"{s3}/corpus")
    for name in ("a", "b", "c"):
        S3FileSystem().pipe_file(f"{s3}/corpus/{name}.jsonl", b"")
        assert matching(folder, "*.jsonl")[-1] == f"{name}.jsonl"


def test_a_folder_s_own_mark_and_nameless_parts_of_keys_are_no_files(s3: str, caplog: pytest.LogCaptureFixture) -> None:
    client = S3FileSystem()
    for key in ("d/", "d/a.txt", "d//b.txt", "d/e/", "d/e/c.txt"):
        client.pipe_file(f"{s3}/{key}", b"x")
    folder = folders.folder(s3)
    assert sorted(folders.names(folder / "d")) == ["a.txt", "e"]
    assert sorted(folders.glob(folder, "**/*.txt")) == ["d/a.txt", "d/e/c.txt"]
    with caplog.at_level(logging.INFO, "werkzeug"):
        assert TextDocuments().files(folder) == ["d/a.txt", "d/e/c.txt"]
    assert len(caplog.records) == 1
    assert Roots(base=folder).files("d", "")(".././d/a.txt") == b"x"
    with pytest.raises(Corrupt, match=r"'\.' is no file"):
        Roots(named={"d": folder}).files("d")(".")


def test_layouts_of_several_forms_are_told_apart_in_a_store(tmp_path: Path, put: Put) -> None:
    lists = put(lay(tmp_path / "a", {"data/kubric/train.json": b"[]"}))
    assert Aurora().files(lists) == ["data/kubric/train.json"]
    with pytest.raises(ValueError, match="forms of the same rows"):
        either(put(lay(tmp_path / "b", {"a.json": b"", "a.parquet": b""})), "*.json", "*.parquet")
    unfinished = put(lay(tmp_path / "c", {"00000.tar": b"", "00000.parquet": b""}))
    with pytest.raises(ValueError, match="img2dataset has not finished 1 of 1"):
        Captions(name="captions").files(unfinished)
    listed = b"datasets:\n- json_path: parts/a.json\n"
    parts = put(lay(tmp_path / "d", {"all.yaml": listed, "parts/a.json": b"[]"}))
    assert Llava(name="llava", listing=("*.yaml",)).files(parts) == ["parts/a.json"]


# --- what rows name

PICTURE = jpeg()
NAMED = {
    "cambrian/1.jpg": PICTURE,
    "cambrian/empty.jpg": b"",
    "cambrian/frames/2.png": b"2",
    "cambrian/frames/1.png": b"1",
    "cambrian/frames/.hidden": b"",
    "cambrian/frames/more/3.png": b"3",
    "cambrian/a#b?c %20*[1].jpg": b"odd",
    "coco/train/1.jpg": b"coco",
    "coco-private/1.jpg": b"private",
    "cambrian/pictures.zip": zipped(("1.jpg", PICTURE)),
}
PATHS = (
    "1.jpg",
    "./1.jpg",
    "frames/../1.jpg",
    "../coco/train/1.jpg",
    "coco/train/1.jpg",
    "empty.jpg",
    "a#b?c %20*[1].jpg",
    "9.jpg",
    "1.jpg/more",
    "1.jpg?versionId=1",
    "frames",
    "frames/",
    "..",
    ".",
    "",
    "  ",
    "a\0b",
    "half \ud83d.jpg",
    "byte \udc80.jpg",
    "x" * 300,
    "x" * 5000,
    "line\nend.jpg",
    "../coco-private/1.jpg",
    "../../../../etc/passwd",
    "coco/../../coco-private/1.jpg",
    "coco//etc/passwd",
    "/etc/passwd",
    "/cambrian/1.jpg",
    "https://example.org/1.jpg",
)


def outcome(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except Corrupt as problem:
        return type(problem), str(problem)


@pytest.mark.parametrize("store", ["memory", "s3"])
def test_what_a_row_names_is_read_or_refused_in_the_words_of_a_disk(
    store: str, tmp_path: Path, put: Put, s3: str
) -> None:
    folder = lay(tmp_path / "x/y/data", NAMED)
    if store == "s3":
        there = folders.folder(f"{s3}/x/y/data")
        client = S3FileSystem()
        for name, data in NAMED.items():
            client.pipe_file(f"{s3}/x/y/data/{name}", data)
    else:
        there = put(tmp_path) / "x/y/data"
    roots = (Roots(named={name: data / name for name in ("cambrian", "coco")}) for data in (folder, there))
    near, far = (each.files("cambrian") for each in roots)
    for path in PATHS:
        assert outcome(lambda path=path: far(path)) == outcome(lambda path=path: near(path)), path
        assert outcome(lambda path=path: far.open(path).read()) == outcome(lambda path=path: near.open(path).read())
    for path in ("frames", "1.jpg", "nowhere", "../coco-private"):
        assert outcome(lambda path=path: far.names(path)) == outcome(lambda path=path: near.names(path)), path
    for archive, member in (("pictures.zip", "1.jpg"), ("pictures.zip", "2.jpg"), ("9.zip", "a"), ("1.jpg", "a")):
        assert outcome(lambda a=archive, m=member: far.member(a, m)) == outcome(
            lambda a=archive, m=member: near.member(a, m)
        )
    assert far.names("frames") == ["1.png", "2.png"]


def test_a_row_s_own_url_is_followed_inside_a_declared_root_alone(tmp_path: Path, put: Put) -> None:
    there = put(lay(tmp_path, NAMED))
    read = Roots(named={"cambrian": there / "cambrian", "coco": there / "coco"}).files("cambrian")
    assert read(f"{there}/coco/train/1.jpg") == b"coco"
    for path in (f"{there}/coco-private/1.jpg", f"{there}/coco/../coco-private/1.jpg"):
        with pytest.raises(Corrupt, match="leaves the declared folders: admit it by --data NAME="):
            read(path)


def test_a_source_in_a_store_may_have_its_pictures_on_a_disk_and_the_other_way_round(tmp_path: Path, put: Put) -> None:
    near = lay(tmp_path / "data", NAMED)
    far = put(near)
    for source, pictures in ((far, near), (near, far)):
        roots = Roots(named={"cambrian": source / "cambrian", "coco": pictures / "coco"})
        read = pickle.loads(pickle.dumps(roots)).files("cambrian", "a.jsonl")
        assert (read("coco/train/1.jpg"), read("1.jpg")) == (b"coco", PICTURE)
        assert read(f"{pictures}/coco/train/1.jpg") == b"coco"
        with pytest.raises(Missing, match=r"file 'coco/train/2.jpg' is not there"):
            read("coco/train/2.jpg")
        with pytest.raises(Corrupt, match="leaves the declared folders"):
            read("coco/../coco-private/1.jpg")


def test_a_picture_is_one_request(s3: str, caplog: pytest.LogCaptureFixture) -> None:
    client = S3FileSystem()
    client.pipe_file(f"{s3}/cambrian/1.jpg", PICTURE)
    read = Roots.parse([s3]).files("cambrian", "a.jsonl")
    read("1.jpg")
    with caplog.at_level(logging.INFO, "werkzeug"):
        read("1.jpg")
    assert [re.findall("GET|HEAD", record.getMessage()) for record in caplog.records] == [["GET"]]


def test_a_tar_is_planned_in_few_requests_and_a_split_is_fetched_once_and_nothing_else(
    s3: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_AHEAD", 1 << 20)
    big = [(f"{n:03d}.jpg", secrets.token_bytes(300_000)) for n in range(20)]
    pq.write_table(pa.table({"picture": [data for _, data in big]}), tmp_path / "a.parquet", row_group_size=5)
    lay(tmp_path, {"a.tar": tar(*big)})
    folder = folders.folder(s3)

    def gets() -> int:
        count = sum("GET" in record.getMessage() for record in caplog.records)
        caplog.clear()
        return count

    for name, plans, fetches in (("a.tar", 12, 2), ("a.parquet", 4, 6)):
        store(folder / name, (tmp_path / name).read_bytes())
        with caplog.at_level(logging.INFO, "werkzeug"):
            split = list(splits(folder, name, 5))[1]
            assert gets() <= plans
            digest, found = rows(folder, split)
            assert (digest, list(found)) == (lambda near: (near[0], list(near[1])))(rows(tmp_path, split))
            assert gets() <= fetches


# --- whole corpora


def cambrian(folder: Path) -> None:
    named = (path for path in PATHS if path.isascii() and "\0" not in path)
    lines = jsonl(*({**BUS, "image": path} for path in named), b"{")
    lay(folder, {"a.jsonl": lines, "1.jpg": PICTURE, "frames/1.jpg": b""})


def metaclip(folder: Path) -> None:
    members = []
    for n in range(7):
        name, told = metaclip_json(f"http://example.org/{n}.jpg", f"a cat, {n}")
        members += [(f"{name}.jpeg", jpeg(64 + n)), (f"{name}.json", told)]
    lay(folder, {"0/0.tar": tar(*members), "1/1.tar": tar(*members)[:-12_000]})


def instruct_pix2pix(folder: Path) -> None:
    told = [f"turn it {n}" if n != 3 else None for n in range(9)]
    edits(folder / "data/train-00000-of-00001.parquet", [(jpeg(64 + n), each, PICTURE) for n, each in enumerate(told)])


def videostar(folder: Path) -> None:
    turns = [{"from": "human", "value": "<video>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    listed = [{"video": f"Kinetics700/{n}.mp4", "conversations": turns} for n in range(4)]
    clips = {f"Kinetics700/{n}.mp4": clip(20 + n) for n in range(2)}
    document = {"ft_json/kinetics700_tune_.json": json.dumps(listed).encode()}
    lay(folder, {**document, **clips, "Kinetics700/3.mp4": b"no clip"})


@pytest.mark.parametrize(
    ("source", "written"),
    [
        (Cambrian(listing=("*.jsonl",)), cambrian),
        (MetaClip(), metaclip),
        (InstructPix2Pix(), instruct_pix2pix),
        (VideoStar(), videostar),
    ],
)
def test_shards_index_and_ledger_are_those_of_the_same_files_on_a_disk(
    source: Any, written: Callable[[Path], None], tmp_path: Path, put: Put, build: Build
) -> None:
    written(tmp_path / "data" / source.name)
    near = build(source, rows=4, folder=tmp_path / "near")
    far = build(source, rows=4, folder=tmp_path / "far", roots=Roots(base=put(tmp_path / "data")))
    assert near.manifest["counts"]["kept"] > 0
    assert near.manifest["counts"]["kept"] < near.manifest["counts"]["rows"]
    assert far.manifest == near.manifest
    tars = sorted(path.name for path in near.folder.glob("*.tar"))
    assert [(far.folder / name).read_bytes() for name in tars] == [(near.folder / name).read_bytes() for name in tars]


def test_tars_of_a_store_are_not_adopted(tmp_path: Path, put: Put) -> None:
    there = put(lay(tmp_path, {"metaclip/0/0.tar": SAMPLES}))
    says = f"{there}/metaclip: tars are adopted by links, and a store has none: build without shards=adopted"
    with pytest.raises(ValueError, match=re.escape(says)):
        adopt.plan(Roots(base=there), "0/0.tar", MetaClip())


# --- what changed


def test_a_stamp_changes_with_the_object_alone_and_is_the_same_asked_or_listed(s3: str) -> None:
    folder, client = folders.folder(f"{s3}/c"), S3FileSystem()
    few = ["a.jsonl", "sub/b.jsonl", "gone.jsonl", "sub"]
    many = [f"{n}.jsonl" for n in range(9)]
    for name in (*few[:2], *many):
        client.pipe_file(f"{s3}/c/{name}", b"one")
    before = Roots(base=folder, named={"c": folder}).stamps("c", few)
    assert [size for size, _ in before] == [3, 3, 0, 0]
    assert folders.stamps(folder, [*few, *many])["a.jsonl"] == before[0]  # listed now
    client.pipe_file(f"{s3}/c/a.jsonl", b"two")  # in the same second, of the same size
    client.pipe_file(f"{s3}/c/sub/b.jsonl", b"one")
    after = folders.stamps(folder, few)
    assert after["a.jsonl"] != before[0]
    assert after["sub/b.jsonl"] == before[1]


def test_a_stamp_of_a_store_without_digests_follows_its_clock(tmp_path: Path, put: Put) -> None:
    there = put(lay(tmp_path, {"a.jsonl": b"one"}))
    before = folders.stamps(there, ["a.jsonl"])
    assert folders.stamps(there, ["a.jsonl"]) == before
    assert folders.stamps(there, ["a.jsonl", *(f"{n}" for n in range(20))]) == before
    store(there / "a.jsonl", b"two")
    assert folders.stamps(there, ["a.jsonl"]) != before


# --- what cannot be read


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            "{s3}/nothing",
            "--data {s3}/nothing: no bucket, or nothing in it under this name, {s3}/nothing; give",
        ),
        ("s3://no-such-bucket", "no bucket, or nothing in it under this name, s3://no-such-bucket/; give an existing"),
        ("coco=s3://no-such-bucket/a", "--data coco=s3://no-such-bucket/a: no bucket"),
        ("s3://", "--data s3://: names no bucket or folder; write s3://BUCKET/FOLDER"),
        ("s3://Not_A_Bucket!/a", "Invalid bucket name"),
        ("gs://bucket/a", "--data gs://bucket/a: Please install gcsfs"),
        ("ftpx://bucket/a", "--data ftpx://bucket/a: fsspec knows no such protocol"),
        ("file://host/a", "--data file://host/a: a file:// names no host; write file:///path"),
    ],
)
def test_a_root_that_is_not_there_is_refused_in_one_line(value: str, says: str, s3: str) -> None:
    with pytest.raises((ValueError, OSError), match=re.escape(says.format(s3=s3))) as problem:
        Roots.parse([value.format(s3=s3)])
    assert "\n" not in str(problem.value)


def test_a_local_folder_may_be_named_by_its_url(tmp_path: Path) -> None:
    lay(tmp_path, {"a b/cambrian/1.jpg": PICTURE})
    assert Roots.parse([f"file://{tmp_path}/a%20b"]).base == tmp_path / "a b"


def test_a_store_that_does_not_answer_or_let_us_in_is_a_failure_and_no_row(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    S3FileSystem().pipe_file(f"{s3}/cambrian/1.jpg", PICTURE)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for variable, value, says in (
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "the store fails .*: see that its address is right and answers"),
        ("AWS_ACCESS_KEY_ID", "", "the store does not let us in .*: give credentials that may list and read it"),
    ):
        with monkeypatch.context() as changed:
            changed.setenv(variable, value)
            S3FileSystem.clear_instance_cache()
            roots = Roots(named={"cambrian": folders.folder(f"{s3}/cambrian")})
            for act in (roots.files("cambrian"), roots.files("cambrian").open):
                with pytest.raises(OSError, match=says) as problem:
                    act("1.jpg")
                assert problem.value.filename == f"{s3}/cambrian/1.jpg"
                assert str(pickle.loads(pickle.dumps(problem.value))) == str(problem.value)
    S3FileSystem.clear_instance_cache()
