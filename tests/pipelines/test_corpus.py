"""Corpora as workflow steps on a real Ray cluster: the same bytes, nothing built twice, one shard for one row."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray import cloudpickle

from dataflow import index, readers, shards
from dataflow.build import receipt_path
from dataflow.index import BuiltCorpus
from dataflow.roots import Roots
from pipelines import corpus
from pipelines.corpus import Corpus
from pipelines.recipes import corpora
from pipelines.step import Place, Progress, cluster, each

GOLDEN = "f8258978fa1d58c3b088ca92e1688e08ec7243a1d14cc6114c9b89c85cd7247a"


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One private cluster for the module."""
    with cluster(Place(root=tmp_path_factory.mktemp("unused"), workers=2)):
        yield


def _cambrian() -> Corpus:
    return replace(corpora.cambrian(), rows_per_shard=50)


def _place(root: Path, data: Path) -> Place:
    return Place(root=root, roots=Roots.parse([str(data)]))


def _bytes(folder: Path) -> dict[str, str]:
    """Digest of every file but the manifest's."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def data(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of the module's own, to be changed."""
    folder = tmp_path_factory.mktemp("data") / "world"
    shutil.copytree(world, folder)
    return folder


def test_a_second_build_does_nothing_and_other_roots_get_the_same_bytes(tmp_path: Path, world: Path) -> None:
    first = corpus.build(_cambrian(), _place(tmp_path / "a", world))
    written = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert corpus.build(_cambrian(), _place(tmp_path / "a", world)) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == written
    other = corpus.build(_cambrian(), _place(tmp_path / "b", world))
    assert _bytes(other) == _bytes(first)
    hidden = sorted(path.name for path in first.parent.iterdir() if path.name.startswith("."))
    assert hidden == [".building", ".inputs"]
    assert not [path for path in (first.parent / ".building").iterdir() if path.is_dir()]


def test_ray_data_reads_the_shards_as_we_do(tmp_path: Path, world: Path) -> None:
    built = BuiltCorpus(corpus.build(_cambrian(), _place(tmp_path, world)))
    rows = ray.data.read_webdataset(sorted(map(str, built.folder.glob("*.tar"))), decoder=None).take_all()
    found = {row["__key__"]: {name: value for name, value in row.items() if isinstance(value, bytes)} for row in rows}
    assert len(rows) == len(built)
    assert found == {record.key: shards.members(record) for record in map(built.record, range(len(built)))}


def test_the_miniature_corpus_is_what_it_was(tmp_path: Path, world: Path) -> None:
    """Output bytes changed? Raise the version of the class that changed them, then this digest."""
    manifest = index.read_manifest(corpus.build(_cambrian(), _place(tmp_path, world)))
    assert manifest["counts"] == {
        "rows": 300,
        "candidates": 300,
        "kept": 296,
        "filtered": 0,
        "duplicate": 0,
        "corrupt": 3,
        "missing": 1,
    }
    assert manifest["root_digest"] == GOLDEN


def test_a_row_changed_in_place_builds_one_shard_and_links_the_rest(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = _place(tmp_path, data)
    before = corpus.build(_cambrian(), place)
    jsonl = next((data / "cambrian" / "jsons").glob("*.jsonl"))
    lines = jsonl.read_text().splitlines()
    row = json.loads(lines[120])
    row["conversations"][-1]["value"] = "something else altogether"
    lines[120] = json.dumps(row)
    jsonl.write_text("\n".join(lines) + "\n")
    capsys.readouterr()
    after = corpus.build(_cambrian(), place)
    assert "1 shards built, 5 linked" in capsys.readouterr().out
    same = [path.name for path in sorted(after.glob("*.tar")) if path.samefile(before / path.name)]
    assert same == ["00000.tar", "00001.tar", "00003.tar", "00004.tar", "00005.tar"]
    assert all(problem is None for _, problem in index.verify(after))
    alone = corpus.build(_cambrian(), _place(tmp_path / "alone", data))
    assert {**_bytes(after), "manifest.json": ""} == {**_bytes(alone), "manifest.json": ""}
    assert index.read_manifest(alone)["root_digest"] == index.read_manifest(after)["root_digest"]
    said = [record.messages[-1].parts for record in map(BuiltCorpus(after).record, range(len(BuiltCorpus(after))))]
    assert sum("something else altogether" in str(parts) for parts in said) == 1


def test_a_touched_file_links_every_shard(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = _place(tmp_path, data)
    before = corpus.build(_cambrian(), place)
    jsonl = next((data / "cambrian" / "jsons").glob("*.jsonl"))
    os.utime(jsonl, (1, 1))
    capsys.readouterr()
    after = corpus.build(_cambrian(), place)
    assert "0 shards built, 6 linked" in capsys.readouterr().out
    assert _bytes(after) == _bytes(before)


def test_rehash_sees_a_picture_that_changed_behind_its_row(tmp_path: Path, data: Path) -> None:
    place = _place(tmp_path, data)
    before = corpus.build(_cambrian(), place)
    pictures = sorted((data / "cambrian").rglob("*.png"))
    used = BuiltCorpus(before).record(0).lineage.row
    row = json.loads(next((data / "cambrian" / "jsons").glob("*.jsonl")).read_text().splitlines()[used])
    shown = data / "cambrian" / row["image"]
    shown.write_bytes(next(other for other in pictures if other != shown).read_bytes())
    assert corpus.build(_cambrian(), place) == before
    after = corpus.build(_cambrian(), place, rehash=True)
    assert after != before
    assert BuiltCorpus(after).record(0).media != BuiltCorpus(before).record(0).media
    assert corpus.locate(_cambrian(), place) == after
    assert corpus.build(_cambrian(), place, rehash=True) == after  # unchanged: found again, not kept twice
    assert [path.name for path in sorted((tmp_path / "corpora").glob("cambrian-*"))] == sorted(
        [before.name, after.name]
    )


def test_files_that_came_later_are_found_by_rehash_and_a_build_says_so(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures in a root of its own, which comes to hold more: nothing of the index files tells of it."""
    home, pictures = tmp_path / "data/cambrian", tmp_path / "pictures"
    shutil.copytree(data / "cambrian/jsons", home / "jsons")
    pictures.mkdir()
    place = Place(root=tmp_path, roots=Roots.parse([f"cambrian={home}", f"easy_vqa={pictures}"]))
    lenient = replace(_cambrian(), max_missing=1.0)
    few = corpus.build(lenient, place)
    missing = index.read_manifest(few)["counts"]["missing"]
    assert missing > 200
    shutil.copytree(data / "cambrian/easy_vqa", pictures, dirs_exist_ok=True)
    capsys.readouterr()
    assert corpus.build(lenient, place) == few
    assert f"{missing} rows named files that were not there: --rehash looks again" in capsys.readouterr().out
    with pytest.raises(ValueError, match=rf"was built without {missing} of 300 rows .* over max_missing=0\.1: obtain"):
        corpus.build(_cambrian(), place)
    more = corpus.build(lenient, place, rehash=True)
    assert index.read_manifest(more)["counts"]["missing"] < 30
    assert corpus.locate(lenient, place) == more
    assert corpus.build(lenient, place) == more


def test_a_corpus_of_an_earlier_schema_is_in_nobody_s_way(tmp_path: Path, world: Path) -> None:
    old = tmp_path / "corpora/cambrian-0123456789ab"
    old.mkdir(parents=True)
    (old / "manifest.json").write_text('{"schema": 1, "recipe_key": "x", "shards": []}')
    place = _place(tmp_path, world)
    made = corpus.build(_cambrian(), place)
    assert corpus.locate(_cambrian(), place) == made


def test_an_interrupted_build_goes_on_from_its_receipts(tmp_path: Path, world: Path) -> None:
    place = _place(tmp_path, world)
    whole = corpus.build(_cambrian(), _place(tmp_path / "whole", world))
    work = tmp_path / "corpora" / ".building" / whole.name
    source_folder = world / "cambrian"
    found = corpus.inputs(_cambrian(), place)
    splits = [split for file in found.files for split in readers.splits(source_folder, file, 50)]
    from dataflow.build import ShardJob

    job = ShardJob(
        source=_cambrian().source,
        filters=_cambrian().filters,
        roots=place.roots,
        recipe_key=_cambrian().recipe_key(),
        earlier={},
    )
    work.mkdir(parents=True)
    job.build(splits[3], 3, work)
    (work / "00001.tar").write_bytes(b"half of a shard whose worker was killed")
    (work / ".4711-00002.tar").write_bytes(b"a temporary file of one")
    done = receipt_path(work, 3).stat().st_mtime_ns, (work / "00003.tar").stat().st_mtime_ns
    after = corpus.build(_cambrian(), place)
    assert (after / "00003.tar").stat().st_mtime_ns == done[1]
    assert _bytes(after) == _bytes(whole)


def test_too_many_dropped_rows_stop_the_build_with_reasons_and_it_goes_on_when_allowed(
    tmp_path: Path, world: Path
) -> None:
    place = _place(tmp_path, world)
    strict = replace(_cambrian(), max_dropped=0.001)
    with pytest.raises(
        ValueError, match=r"3 of 300 rows would be dropped.*max_dropped=0\.001.*--set max_dropped"
    ) as no:
        corpus.build(strict, place)
    assert "\n" not in str(no.value)
    assert not list((tmp_path / "corpora").glob("cambrian-*"))
    assert corpus.build(_cambrian(), place).is_dir()


def test_a_second_builder_is_refused_by_name(tmp_path: Path, world: Path) -> None:
    place = _place(tmp_path, world)
    name = f"cambrian-{corpus.inputs(_cambrian(), place).key[:12]}"
    lock = tmp_path / "corpora" / ".building" / f"{name}.lock"
    lock.parent.mkdir(parents=True)
    code = (
        "import fcntl, os, sys, time; stream = open(sys.argv[1], 'a+'); fcntl.flock(stream, fcntl.LOCK_EX);"
        "stream.write(str(os.getpid())); stream.flush(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ValueError, match=str(holder.pid)):
            corpus.build(_cambrian(), place)
        holder.communicate("")
    assert corpus.build(_cambrian(), place).is_dir()


def _die(shared: str, item: int) -> None:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_one_line_that_names_its_work() -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    with pytest.raises(ValueError, match=r"a worker died over 2 \(\w+\), again when it was tried again") as told:
        list(each(_die, "", [0, 1, 2, 3], Progress("dying", 4, "items")))
    assert "\n" not in str(told.value)
