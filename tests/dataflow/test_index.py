"""A built corpus: commit, linking from an earlier one, verify, reading, drops, and the bytes of a small one."""

from __future__ import annotations

import json
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upstream import BUS, ORCA, PHOTOS, Build, edits, file, jpeg, jsonl, metaclip_json, photo, tar

from dataflow import index, shards
from dataflow.build import Receipt
from dataflow.filters import MinSide
from dataflow.index import BuiltCorpus
from dataflow.readers import Split
from dataflow.sources.cambrian import Cambrian
from dataflow.sources.instruct_pix2pix import InstructPix2Pix
from dataflow.sources.metaclip import MetaClip

BUS_PATH = "coco/train2017/000000033471.jpg"


def talk(number: int) -> dict[str, Any]:
    return {**ORCA, "conversations": [{"from": "human", "value": f"{number}?"}, {"from": "gpt", "value": f"{number}!"}]}


@pytest.fixture
def cambrian(tmp_path: Path) -> Path:
    """30 rows: every third about a bus, every tenth broken."""
    home = tmp_path / "data/cambrian"
    (home / "coco/train2017").mkdir(parents=True)
    (home / "jsons").mkdir()
    (home / BUS_PATH).write_bytes(jpeg())
    rows = [b"{" if number % 10 == 9 else BUS if number % 3 == 0 else talk(number) for number in range(30)]
    (home / "jsons/a.jsonl").write_bytes(jsonl(*rows))
    return home


def test_the_index_has_a_row_per_record_and_cuts_it_exactly(cambrian: Path, build: Build) -> None:
    corpus = build(Cambrian(), rows=8)
    assert len(corpus) == 27
    table = pq.read_table(corpus.folder / "index.parquet")
    assert table.schema.equals(index.INDEX)
    for place, row in enumerate(table.to_pylist()):
        tar = (corpus.folder / shards.name(row["shard"])).read_bytes()
        record = shards.read(tar[row["offset"] : row["offset"] + row["size"]], row["key"])
        assert record == corpus.record(place)
        assert (row["task"], row["pictures"], row["text_length"]) == (
            record.task,
            len(record.media),
            record.text_length,
        )
        assert row["widths"] == [64] * len(record.media)
    assert corpus.keys == table["key"].to_pylist() == sorted(corpus.keys)
    assert corpus.tasks == {"image_qa": 9, "text_qa": 18}
    assert corpus.name == "cambrian"


def test_the_ledger_has_a_row_per_input_row_and_sums_up(cambrian: Path, build: Build) -> None:
    corpus = build(Cambrian(), rows=8, filters=(MinSide(pixels=49),))
    table = pq.read_table(corpus.folder / "ledger.parquet")
    assert table.schema.equals(index.LEDGER)
    assert table["row"].to_pylist() == list(range(30))
    counts = corpus.manifest["counts"]
    assert counts == {
        "rows": 30,
        "candidates": 30,
        "kept": 18,
        "filtered": 9,
        "duplicate": 0,
        "corrupt": 3,
        "missing": 0,
    }
    assert [shard["records"] for shard in corpus.manifest["shards"]] == [5, 5, 5, 3]


def test_a_split_without_survivors_is_an_empty_shard(cambrian: Path, build: Build) -> None:
    (cambrian / "jsons/a.jsonl").write_bytes(jsonl(BUS, b"{", b"{", BUS))
    corpus = build(Cambrian(), rows=1)
    assert [shard["records"] for shard in corpus.manifest["shards"]] == [1, 0, 0, 1]
    assert [corpus.record(place).lineage.row for place in range(2)] == [0, 3]
    assert all(problem is None for _, problem in index.verify(corpus.folder))


def test_the_root_digest_is_what_sha256sum_says(cambrian: Path, build: Build) -> None:
    corpus = build(Cambrian(), rows=8)
    command = "sha256sum -- *.tar *.tar.idx index.parquet ledger.parquet | LC_ALL=C sort -k2 | sha256sum"
    told = subprocess.run(["sh", "-c", command], cwd=corpus.folder, capture_output=True, check=True).stdout
    assert told.split()[0].decode() == corpus.manifest["root_digest"]


def test_too_many_dropped_rows_stop_the_commit_with_the_main_reasons(
    cambrian: Path, build: Build, tmp_path: Path
) -> None:
    (cambrian / "jsons/a.jsonl").write_bytes(jsonl(BUS, *[b"{"] * 3, *[b"[]"] * 2))
    with pytest.raises(index.TooManyDropped, match=r"5 of 6 rows would be dropped, over max_dropped=0\.8: 3 x line is"):
        build(Cambrian(), max_dropped=0.8)
    assert not (tmp_path / "built/cambrian/manifest.json").exists()
    assert build(Cambrian(), max_dropped=5 / 6, folder=tmp_path / "again").manifest["counts"]["kept"] == 1


def test_rows_whose_files_are_not_there_have_a_limit_of_their_own(cambrian: Path, build: Build, tmp_path: Path) -> None:
    gone = [{**BUS, "image": f"gone/{number}.jpg"} for number in range(3)]
    (cambrian / "jsons/a.jsonl").write_bytes(jsonl(BUS, *gone, b"{"))
    with pytest.raises(index.TooManyDropped, match=r"3 of 5 rows .* over max_missing=0\.5: 3 x file 'gone"):
        build(Cambrian(), max_missing=0.5)
    counts = build(Cambrian(), max_missing=0.6, max_dropped=0.2, folder=tmp_path / "again").manifest["counts"]
    assert (counts["kept"], counts["missing"], counts["corrupt"]) == (1, 3, 1)


def test_what_a_source_leaves_out_on_purpose_is_filtered(cambrian: Path, build: Build) -> None:
    (cambrian / "jsons/a.jsonl").write_bytes(jsonl(BUS, {**BUS, "image": "llava_pretrain/1.jpg"}))
    corpus = build(Cambrian(without=("llava_pretrain",)))
    assert [(drop.outcome, drop.example.reason) for drop in index.drops(corpus.folder)] == [
        ("filtered", "pictures of llava_pretrain are left out")
    ]


def test_a_corpus_without_any_row_is_refused(cambrian: Path, build: Build, tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"\n")):
        (cambrian / "jsons/a.jsonl").write_bytes(data)
        with pytest.raises(ValueError, match=r"no input rows for .*: its files are empty"):
            build(Cambrian(), folder=tmp_path / str(number))


def test_an_unchanged_shard_is_linked_and_the_corpus_is_the_same_bytes(
    cambrian: Path, build: Build, tmp_path: Path
) -> None:
    first = build(Cambrian(), rows=8)
    lines = (cambrian / "jsons/a.jsonl").read_bytes().split(b"\n")
    lines[10] = json.dumps(talk(1000)).encode()
    (cambrian / "jsons/a.jsonl").write_bytes(b"\n".join(lines))
    earlier = {shard["key"]: str(first.folder) for shard in first.manifest["shards"]}
    linked = build(Cambrian(), rows=8, earlier=earlier, folder=tmp_path / "linked")
    rebuilt = build(Cambrian(), rows=8, folder=tmp_path / "rebuilt")
    assert linked.manifest == rebuilt.manifest
    same = [(linked.folder / f"0000{n}.tar").samefile(first.folder / f"0000{n}.tar") for n in range(4)]
    assert same == [True, False, True, True]
    assert all(problem is None for _, problem in index.verify(linked.folder))
    assert linked.record(9).turns == (("user", ("1000?",)), ("assistant", ("1000!",)))


def test_shards_are_not_linked_from_a_corpus_that_was_damaged(cambrian: Path, build: Build, tmp_path: Path) -> None:
    first = build(Cambrian(), rows=8)
    earlier = {shard["key"]: str(first.folder) for shard in first.manifest["shards"]}
    table = (first.folder / "ledger.parquet").read_bytes()
    (first.folder / "ledger.parquet").write_bytes(table[:-1] + b"?")
    with pytest.raises(
        ValueError, match=r"ledger\.parquet changed since it was built: remove the folder and build again"
    ):
        build(Cambrian(), rows=8, earlier=earlier, folder=tmp_path / "a")
    (first.folder / "ledger.parquet").write_bytes(table)
    with (first.folder / "00002.tar").open("r+b") as stream:
        stream.truncate(5000)
    with pytest.raises(ValueError, match=r"00002\.tar is not the 20480 bytes that were built: remove"):
        build(Cambrian(), rows=8, earlier=earlier, folder=tmp_path / "b")


# --- verify


def differing(folder: Path) -> dict[str, str]:
    return {name: problem for name, problem in index.verify(folder) if problem is not None}


def test_verify_passes_what_was_built(cambrian: Path, build: Build) -> None:
    corpus = build(Cambrian(), rows=8)
    names = [name for name, problem in index.verify(corpus.folder)]
    assert differing(corpus.folder) == {}
    assert {*names, "manifest.json", ".nv-meta"} == {path.name for path in corpus.folder.iterdir()}
    assert sorted(set(names)) == sorted(names)


def test_verify_names_the_changed_the_missing_and_the_foreign_file(cambrian: Path, build: Build) -> None:
    folder = build(Cambrian(), rows=8).folder
    with (folder / "00001.tar").open("r+b") as stream:
        stream.seek(700)
        stream.write(b"?")
    (folder / "00002.tar.idx").unlink()
    (folder / "00009.tar").write_bytes(b"")
    (folder / "notes").mkdir()
    (folder / "report.html").write_bytes(b"the card lies here, outside the digest")
    assert differing(folder) == {
        "00001.tar": "is not the bytes that were built (sha256 differs)",
        "00002.tar.idx": "is missing",
        "00009.tar": "is not part of this corpus",
        "notes": "is not part of this corpus",
    }


def test_verify_notices_a_manifest_that_was_made_to_fit(cambrian: Path, build: Build) -> None:
    folder = build(Cambrian(), rows=8).folder
    (folder / "00001.tar").write_bytes(b"other")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["shards"][1]["sha256"] = shards.sha256(folder / "00001.tar")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert differing(folder) == {"manifest.json": "does not agree with its own root digest"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is no built corpus: it has no manifest.json"),
        (b"{", "manifest.json does not parse"),
        (b"[]", "not a corpus manifest of schema 2: build it again"),
        (b'{"schema": 0}', "not a corpus manifest of schema 2"),
    ],
)
def test_a_folder_that_is_no_finished_corpus_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    for use in (index.read_manifest, BuiltCorpus, lambda folder: list(index.verify(folder))):
        with pytest.raises(ValueError, match=says):
            use(tmp_path)
    with pytest.raises(ValueError, match="is no built corpus"):
        BuiltCorpus(Path(__file__))


# --- reading


def test_a_selection_offers_its_rows_in_its_order(cambrian: Path, build: Build) -> None:
    whole = build(Cambrian(), rows=8)
    some = BuiltCorpus(whole.folder, np.array([20, 3, 4]))
    assert len(some) == 3
    assert some.keys == [whole.keys[row] for row in (20, 3, 4)]
    assert [some.record(place) for place in range(3)] == [whole.record(row) for row in (20, 3, 4)]
    assert sum(some.tasks.values()) == 3
    assert BuiltCorpus(whole.folder, np.array([], np.int64)).keys == []


def test_the_digest_names_records_and_order_and_not_the_folder(cambrian: Path, build: Build, tmp_path: Path) -> None:
    whole = build(Cambrian(), rows=8)
    elsewhere = build(Cambrian(), rows=8, folder=tmp_path / "elsewhere")
    assert whole.digest == elsewhere.digest == BuiltCorpus(whole.folder, np.arange(27)).digest
    others = [np.arange(26), np.arange(27)[::-1], np.array([], np.int64)]
    assert len({whole.digest, *(BuiltCorpus(whole.folder, rows).digest for rows in others)}) == 4


@pytest.mark.parametrize("rows", [[27], [-1], [0, 99]])
def test_a_selection_of_another_corpus_is_refused(cambrian: Path, build: Build, rows: list[int]) -> None:
    folder = build(Cambrian(), rows=8).folder
    with pytest.raises(ValueError, match=r"a selection names rows beyond the 27 of .*: select again"):
        BuiltCorpus(folder, np.array(rows))


@pytest.mark.parametrize(
    "damage", ["00001.tar cut", "00001.tar empty", "00001.tar gone", "00001.tar zeros", "00001.tar noise"]
)
def test_a_damaged_shard_is_named_with_the_record_and_the_command(cambrian: Path, build: Build, damage: str) -> None:
    folder = build(Cambrian(), rows=8).folder
    path = folder / "00001.tar"
    size = path.stat().st_size
    contents = {"cut": path.read_bytes()[:700], "empty": b"", "zeros": bytes(size), "noise": b"\xa5" * size}
    path.unlink()
    if damage.split()[1] in contents:
        path.write_bytes(contents[damage.split()[1]])
    corpus = BuiltCorpus(folder)
    assert corpus.record(0).key == "cambrian_000000000"
    kind = OSError if damage.endswith("gone") else ValueError
    with pytest.raises(kind, match=r"record cambrian_000010000 cannot be read from .*/00001\.tar .*interlace verify"):
        corpus.record(8)


def test_a_corpus_whose_index_is_gone_says_to_verify(cambrian: Path, build: Build) -> None:
    folder = build(Cambrian(), rows=8).folder
    for damage, why in ((lambda path: path.write_bytes(b"PAR1"), "is not the bytes"), (Path.unlink, "does not read")):
        damage(folder / "index.parquet")
        with pytest.raises(ValueError, match=rf"index\.parquet {why} .*: run interlace verify"):
            len(BuiltCorpus(folder).table)


def test_more_shards_than_may_be_open_are_read_in_any_order(
    cambrian: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_OPEN", 4)
    (cambrian / "jsons/a.jsonl").write_bytes(jsonl(*(talk(number) for number in range(30))))
    corpus = build(Cambrian(), rows=2)
    for row in [*range(30), *range(0, 30, 7), 29, 0]:
        assert corpus.record(row).lineage.row == row
        assert len(corpus._maps._held) <= 4


# --- why rows were dropped


def test_drops_are_counted_by_kind_most_frequent_first(cambrian: Path, build: Build) -> None:
    small = {**BUS, "image": "small.jpg"}
    gone = [{**BUS, "image": name} for name in ("a.jpg", "with space.jpg", "deep/er.jpg", "it's.jpg")]
    (cambrian / "small.jpg").write_bytes(jpeg(20, 10))
    (cambrian / "jsons/a.jsonl").write_bytes(jsonl(BUS, *gone, b"{", b'{"a', small))
    corpus = build(Cambrian(), filters=(MinSide(pixels=40),))
    drops = index.drops(corpus.folder)
    assert (drops[0].outcome, drops[0].rows) == ("missing", 4)
    assert drops[0].kind == "file … is not there"
    assert drops[0].example.reason == "file 'a.jpg' is not there"
    assert (drops[-1].outcome, drops[-1].kind) == ("filtered", "MinSide: picture … is …, under … px")
    assert sum(drop.rows for drop in drops) == 7


def test_tally_leaves_kept_rows_out() -> None:
    kept = index.LedgerRow(
        file="a",
        row=0,
        shard=0,
        outcome="kept",
        reason="",
        candidates=1,
        kept=1,
        filtered=0,
        duplicate=0,
        corrupt=0,
        missing=0,
    )
    assert index.tally([kept]) == []


# --- the bytes of a small corpus of each kind: changes here mean that a `version` must be raised

GOLDEN = {
    "cambrian": "8cec8bf8f3d5892c90e1b0fdc1a6d06fc9c76bf4c3c37d171328ce3c2f908618",
    "metaclip": "69dfcc07d9fdb9f06cb0d1fea7ef2b7e22659fddcb391467adf6f1138d483f05",
    "instruct_pix2pix": "b181b3ecbda703c51c5f3cb4fae09958bf1fea97255b1a90271e0a4044eb1968",
}


def test_a_small_corpus_of_each_source_has_the_root_digest_it_always_had(tmp_path: Path, build: Build) -> None:
    """Fails when output bytes change: raise the `version` of what changed (or SCHEMA), then pin the new digest here."""
    data = tmp_path / "data"
    (data / "cambrian/coco/train2017").mkdir(parents=True)
    (data / "cambrian/jsons").mkdir()
    (data / "cambrian" / BUS_PATH).write_bytes((PHOTOS / "rocket.jpg").read_bytes())
    (data / "cambrian/palette.png").write_bytes(file(photo().quantize(16), "PNG"))
    rows = (
        BUS,
        ORCA,
        b"{",
        {**BUS, "image": "palette.png"},
        {**BUS, "image": "../../x.jpg"},
        {**BUS, "image": "gone.jpg"},
    )
    (data / "cambrian/jsons/a.jsonl").write_bytes(jsonl(*rows))
    members = []
    for number in range(5):
        uuid, fields = metaclip_json(f"http://example.com/{number}.jpg", f"a cat {number}", "Katze 猫")
        name = ("rocket.jpg", "retina.jpg")[number % 2]
        members += [(f"{uuid}.jpeg", (PHOTOS / name).read_bytes()), (f"{uuid}.json", fields)]
    (data / "metaclip/0").mkdir(parents=True)
    (data / "metaclip/0/0.tar").write_bytes(tar(*members, end=False))
    cat, camera = (PHOTOS / "chelsea.png").read_bytes(), (PHOTOS / "camera.png").read_bytes()
    path = data / "instruct_pix2pix/data/train-00000-of-00262-5179dd4f7a4b1b1c.parquet"
    edits(path, [(cat, "make it a photographer", camera), (cat, None, cat), (camera, "make it a cat", cat)])
    found = {
        source.name: build(source, rows=2, filters=(MinSide(pixels=40),)).manifest["root_digest"]
        for source in (Cambrian(), MetaClip(), InstructPix2Pix())
    }
    assert found == GOLDEN


def test_a_table_written_as_its_rows_come_is_the_bytes_of_the_whole(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(index, "_GROUP", 50)
    rows = [
        {**dict.fromkeys(index.LEDGER.names, 1), "file": f"{row // 70}", "outcome": "kept", "reason": f"{row % 9}"}
        for row in range(170)
    ]
    whole = pa.Table.from_pylist(rows, index.LEDGER)
    pq.write_table(whole, tmp_path / "whole", compression="zstd", store_schema=False, row_group_size=50)
    for size in (1, 7, 50, 60, 170):
        with index.Rows(tmp_path / "rows", index.LEDGER) as written:
            for first in range(0, 170, size):
                written.add(whole.slice(first, size))
        assert (tmp_path / "rows").read_bytes() == (tmp_path / "whole").read_bytes(), size
    with index.Rows(tmp_path / "rows", index.LEDGER):
        pass
    assert pq.read_table(tmp_path / "rows").num_rows == 0


def test_the_memory_of_a_commit_does_not_grow_with_the_corpus(
    cambrian: Path, build: Build, tmp_path: Path, monkeypatch: Any
) -> None:
    """Receipts are read one by one, rows written as they come, linked ones read as they are asked for."""
    monkeypatch.setattr(index, "_GROUP", 3_000)
    monkeypatch.setattr(index, "_BATCH", 1_000)
    monkeypatch.setattr(index.energon, "_BATCH", 1_000)
    (cambrian / "jsons/a.jsonl").write_bytes(jsonl(*(talk(number) for number in range(1000))))
    corpus = build(Cambrian(), rows=1000)
    one, ledger = corpus.table.to_pydict(), pq.read_table(corpus.folder / "ledger.parquet").to_pydict()
    peaks = []
    for count in (6, 24):
        folders = [tmp_path / f"{count}-{kind}" for kind in ("built", "linked")]
        for folder in folders:
            folder.mkdir()
            built = (
                Receipt(
                    number=number,
                    split=Split(file=f"{number}.jsonl", first=0, rows=1000),
                    key=str(number),
                    input_sha256="",
                    size=0,
                    sha256="",
                    idx_sha256="",
                    entries={**one, "shard": [number] * 1000, "key": [f"{number}-{row}" for row in range(1000)]},
                    ledger={**ledger, "shard": [number] * 1000},
                )
                for number in range(count)
            )
            linked = (replace(each, entries={}, ledger={}, linked=str(folders[0])) for each in built)
            pool = pa.proxy_memory_pool(pa.default_memory_pool())
            before = pa.default_memory_pool()
            pa.set_memory_pool(pool)
            tracemalloc.start()
            try:
                index.commit(
                    folder,
                    built if folder == folders[0] else linked,
                    step={},
                    recipe_key="",
                    max_dropped=1,
                    max_missing=1,
                )
                peaks.append((pool.max_memory() or 0) + tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
                pa.set_memory_pool(before)
        assert (folders[0] / "index.parquet").read_bytes() == (folders[1] / "index.parquet").read_bytes()
    assert max(peaks[2:]) < 1.3 * max(peaks[:2]), peaks
