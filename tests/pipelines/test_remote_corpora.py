"""Corpora in an object store, on a real S3 server and real Ray: the same bytes, whatever was killed, and read back."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3fs import S3FileSystem

from dataflow import folders, index, stores
from dataflow.build import receipt_path
from dataflow.cache import Cache
from dataflow.index import BuiltCorpus, NotAsBuilt
from dataflow.mixture import Group, Member, Mixture
from dataflow.roots import Roots
from dataflow.selection import Part
from dataflow.stores import StoreError
from pipelines import corpus, diff, explain, export, gc, named, plan, report, status
from pipelines.corpus import Corpus
from pipelines.recipes import corpora
from pipelines.step import Place, cluster, one_line

Interlace = Callable[..., subprocess.CompletedProcess[str]]
HOUSE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One private cluster for the module, whose workers find the server as the fixture `s3` has it found."""
    told = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        with cluster(Place(root=tmp_path_factory.mktemp("unused"), workers=2)):
            yield


@pytest.fixture
def place(s3: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A root, a store, and a source to be changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(world / "cambrian", tmp_path / "data" / "cambrian")
    roots = Roots.parse([str(tmp_path / "data")])
    return Place(root=tmp_path / "root", store=folders.folder(f"{s3}/corpora"), roots=roots)


def cambrian(**changed: Any) -> Corpus:
    return replace(corpora.cambrian(), rows_per_shard=50, **changed)


def change_row(place: Place, number: int) -> None:
    jsonl = next((place.roots.source("cambrian") / "jsons").glob("*.jsonl"))
    lines = jsonl.read_text().splitlines()
    row = json.loads(lines[number])
    row["conversations"][-1]["value"] = "something else altogether"
    lines[number] = json.dumps(row)
    jsonl.write_text("\n".join(lines) + "\n")


def objects(place: Path) -> dict[str, str]:
    """sha256 of everything below a place in a store, by path, but for the notes of inputs."""
    start = len(str(place)) + 1
    paths = {str(each.path)[start:]: each.path for each in stores.under(place)}
    return {
        name: hashlib.sha256(stores.read(path)).hexdigest()
        for name, path in paths.items()
        if not name.startswith(".inputs/")
    }


def records(folder: Path) -> list[Any]:
    opened = BuiltCorpus(folder)
    return [opened.record(number) for number in range(len(opened))]


def test_a_corpus_in_a_store_is_that_of_a_disk_with_its_shards_named_by_content(place: Place) -> None:
    here = corpus.build(cambrian(), replace(place, store=None))
    there = corpus.build(cambrian(), place)
    assert str(there) == f"{place.store}/{here.name}"
    assert corpus.build(cambrian(), place) == there == corpus.locate(cambrian(), place)
    one, other = index.read_manifest(here), index.read_manifest(there)
    assert one["root_digest"] == other["root_digest"]
    assert [{**shard, "file": ""} for shard in one["shards"]] == [{**shard, "file": ""} for shard in other["shards"]]
    parts = [f"{number:05d}-{shard['sha256'][:12]}.tar" for number, shard in enumerate(one["shards"])]
    tables = ["index.parquet", "ledger.parquet", "manifest.json"]
    energon = [".info.json", "dataset.yaml", "index.sqlite", "index.uuid", "split.yaml"]
    assert objects(place.corpora).keys() == {
        f"{here.name}/{name}"
        for name in (*parts, *(f"{part}.idx" for part in parts), *tables, *(f".nv-meta/{name}" for name in energon))
    }
    told = json.loads(stores.read(there / ".nv-meta/.info.json"))
    assert told["shard_counts"] == {part: shard["records"] for part, shard in zip(parts, one["shards"], strict=True)}
    assert records(there) == records(here)
    assert all(problem is None for _, problem in index.verify(there))
    assert not list((place.root / "stores").glob("*/*/"))  # nothing is left of what was made here first


def test_a_row_changed_in_place_builds_one_shard_and_copies_the_rest_inside_the_store(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = corpus.build(cambrian(), place)
    change_row(place, 120)
    capsys.readouterr()
    told = explain.explain(cambrian(), place)
    assert (told.build, told.link) == (1, 5)
    after = corpus.build(cambrian(), place)
    assert "1 shards built, 5 linked" in capsys.readouterr().out
    alone = corpus.build(cambrian(), replace(place, store=place.corpora / "alone"))
    assert objects(after) == objects(alone)
    found = diff.compare(before, after)
    assert [BuiltCorpus(after).keys[spot] for spot in found.changed[1]] == ["cambrian_000020020"]
    assert found.same == len(BuiltCorpus(before)) - 1


HOOK = r'''
import importlib.abc, importlib.machinery, json, os, re, signal, sys

POINT = json.loads(os.environ["KILL"])


class Watch(importlib.abc.MetaPathFinder):
    """Lets s3fs be imported, then stands before what it asks the server for."""

    def find_spec(self, name, path, target=None):
        if name != "s3fs.core":
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        execute = found.loader.exec_module

        def watched(module):
            execute(module)
            watch(module.S3FileSystem)

        found.loader.exec_module = watched
        return found


def watch(store):
    asks = store._call_s3

    async def watched(self, method, *arguments, **options):
        if method == "put_object" and re.search(POINT, str(options.get("Key"))):
            for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc"))), key=os.getpid().__eq__):
                try:
                    if os.getsid(pid) == os.getsid(0):
                        os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        return await asks(self, method, *arguments, **options)

    store._call_s3 = watched


sys.meta_path.insert(0, Watch())
'''


def killed(place: Place, folder: Path, *, key: str) -> None:
    """`interlace build`, all of it killed where an object of this name is about to be put."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(HOOK)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(HOUSE)]),
        "KILL": json.dumps(key),
        "OMP_NUM_THREADS": "1",
    }
    words = ["build", "corpora:cambrian", "--set", "rows_per_shard=50", "--data", str(place.roots.base)]
    words += ["--root", str(place.root), "--corpora", str(place.store), "--workers", "1"]
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "pipelines", *words]
        done = subprocess.run(
            command, env=environment, cwd=HOUSE, stdout=said, stderr=said, timeout=120, start_new_session=True
        )
        said.seek(0)
        assert done.returncode == -signal.SIGKILL, said.read()


def test_a_build_killed_between_uploads_goes_on_from_another_machine_to_the_same_objects(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(place, tmp_path / "hook", key=r"00003\.receipt\.json$")
    left = objects(place.corpora)
    receipts = [name for name in left if name.endswith(".receipt.json")]
    assert any("/00003-" in name for name in left)  # the part is there, but nobody said so
    assert 0 < len(receipts) < 6
    done = {name[-18:-13] for name in receipts}
    put = {each.path: stores.changed(each.path) for each in stores.under(place.corpora) if each.path.name[:5] in done}
    (begun,) = [work for work in status.works(place.root, place.store) if work.kind == "corpus"]
    assert (begun.state, begun.told) == ("interrupted", f"{len(receipts)} of 6 shards")
    killed(place, tmp_path / "hook", key=r"manifest\.json$")
    left = objects(place.corpora)
    assert len([name for name in left if name.endswith(".receipt.json")]) == 6
    assert any(name.endswith("index.parquet") for name in left)
    with pytest.raises(corpus.Unbuilt, match=f"cambrian is not built under {place.store}: run interlace build"):
        corpus.locate(cambrian(), place)
    elsewhere = replace(place, root=tmp_path / "elsewhere")
    capsys.readouterr()
    corpus.build(cambrian(), elsewhere)
    assert "6 shards built, 0 linked" in capsys.readouterr().out
    assert len(put) == 2 * len(done)
    assert {path: stores.changed(path) for path in put} == put  # they were not put there again
    corpus.build(cambrian(), replace(elsewhere, store=place.corpora / "whole"))
    whole = objects(place.corpora / "whole")
    assert {name: digest for name, digest in objects(place.corpora).items() if not name.startswith("whole/")} == whole


def test_two_machines_that_build_the_same_corpus_at_once_both_end_with_it(place: Place, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as machines:
        roots = [replace(place, root=tmp_path / name) for name in ("one", "other")]
        one, other = machines.map(partial(corpus.build, cambrian()), roots)
    assert one == other
    assert all(problem is None for _, problem in index.verify(one))


def test_a_part_that_is_gone_before_the_end_is_built_again_and_strange_parts_go(place: Place) -> None:
    whole = corpus.build(cambrian(), place)
    before = objects(place.corpora)
    held = {each.path.name: each.path for each in stores.entries(whole) if not each.is_folder}
    job, begun = corpus._job(cambrian(), place, earlier={}), place.corpora / ".building" / whole.name
    splits = list(corpus.plan_of(place.roots, "cambrian", corpus.inputs(cambrian(), place).files[0], 50))
    job.build(splits[2], 2, place.root)
    stores.put(receipt_path(place.root, 2), receipt_path(begun, 2))
    stores.remove([held["manifest.json"], next(path for name, path in held.items() if name.startswith("00002-"))])
    stores.write(whole / f"00001-{'0' * 12}.tar", b"of a build whose rows were mended since")
    with pytest.raises(StoreError, match=r"1 shards of .*, 00002.tar first, are not there .*: the same command builds"):
        corpus.build(cambrian(), place)
    assert corpus.build(cambrian(), place) == whole
    assert objects(place.corpora) == before


def test_rehash_finds_what_changed_behind_its_row_and_what_did_not(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = corpus.build(cambrian(), place)
    assert corpus.build(cambrian(), place, rehash=True) == before
    assert "unchanged, the same bytes again" in capsys.readouterr().out
    row = BuiltCorpus(before).record(0).lineage.row
    home = place.roots.source("cambrian")
    told = json.loads(next((home / "jsons").glob("*.jsonl")).read_text().splitlines()[row])
    shown, other = home / told["image"], sorted(home.rglob("*.png"))
    shown.write_bytes(next(path for path in other if path != shown).read_bytes())
    after = corpus.build(cambrian(), place, rehash=True)
    assert after.name.startswith(f"{before.name}-")
    assert corpus.locate(cambrian(), place) == after
    assert all(problem is None for _, problem in index.verify(after))
    assert BuiltCorpus(after).record(0).media != BuiltCorpus(before).record(0).media
    assert not stores.under(place.corpora / ".building")


def test_damage_in_the_store_is_found_by_verify_and_by_whoever_reads(place: Place, interlace: Interlace) -> None:
    built = corpus.build(cambrian(), place)
    whole, damaged = records(built), built / index.read_manifest(built)["shards"][1]["file"]
    data = bytearray(stores.read(damaged))
    data[len(data) // 2] ^= 1
    stores.write(damaged, bytes(data))
    said = interlace("verify", str(built), expect=1).stdout
    assert said.splitlines() == [
        f"{damaged} is not the bytes that were built (sha256 differs)",
        f"{built.name}: 14 files, 1 wrong",
    ]
    shutil.rmtree(Cache().folder)
    opened = BuiltCorpus(built)
    shards = opened.table["shard"].to_numpy()
    first = int(np.flatnonzero(shards == 1)[0])
    assert opened.record(0) == whole[0]
    with pytest.raises(NotAsBuilt, match=rf"{damaged} is not the bytes that were built .* verify {built}, remove"):
        opened.record(first)
    stores.remove([damaged])
    assert (f"{damaged.name}", "is missing") in list(index.verify(built))


def test_what_trains_and_shows_reads_a_store(place: Place, tmp_path: Path, interlace: Interlace) -> None:
    group = Group(name="all", share=1, members=(Member(corpus=cambrian(), select=Part(part="train")),))
    mixture = Mixture(groups=(group,))
    (here,), (there,) = (plan.build(mixture, each) for each in (replace(place, store=None), place))
    assert plan.locate(mixture, place) == [there]
    one, other = here.open(), there.open()
    assert one.digest == other.digest  # the same schedule, the same run
    assert [other.record(n) for n in range(len(other))] == [one.record(n) for n in range(len(one))]
    name = there.corpus.name
    store = ("--corpora", str(place.store), "--root", place.root)
    interlace("report", name, *store, "--out", tmp_path / "page.html")
    assert name in (tmp_path / "page.html").read_text()
    assert named.folder("cambrian", place.root, "corpora", store=place.store) == there.corpus
    assert there.selection is not None
    assert diff.compare(there.selection, there.corpus, store=place.store).same == len(other)
    assert export.beside(there.corpus, place.root) == place.root / "exports" / name
    rows = export.metamorph_jsonl(there.corpus, tmp_path / "theirs").read_text()
    assert rows.replace("theirs", "ours") == export.metamorph_jsonl(here.corpus, tmp_path / "ours").read_text()
    assert report.write(tmp_path / "other.html", [there.corpus], store=place.store).is_file()


def a_second_later() -> None:
    """A store tells whole seconds: what is put there after this is newer than what lay there."""
    began = int(time.time())
    while int(time.time()) == began:
        pass


def test_gc_removes_what_was_superseded_and_what_nobody_builds_any_more(place: Place) -> None:
    first = corpus.build(cambrian(), place)
    change_row(place, 120)
    a_second_later()
    second = corpus.build(cambrian(), place)
    stores.write(place.corpora / ".building" / second.name / ".00001.receipt.json", b"{}")
    stores.write(place.corpora / "llava-0123456789ab" / f"00000-{'0' * 12}.tar", b"x" * 1000)
    stores.write(place.corpora / ".building" / "metaclip-0123456789ab" / ".plan.json", b"[]")  # somebody may be at it
    before = objects(place.corpora)
    with pytest.raises(ValueError, match=rf"corpora in {place.store}: give --corpora {place.store}"):
        gc.unreferenced(place.root)
    found = gc.unreferenced(place.root, place.store)
    assert {str(each.path): each.why.partition(" ")[0] for each in found} == {
        str(first): "superseded",
        str(place.corpora / ".building" / second.name): "left",
        str(place.corpora / "llava-0123456789ab"): "parts",
    }
    assert objects(place.corpora) == before
    assert gc.freed(found) == sum(each.size for each in found) > 1000
    assert str(first) in "\n".join(gc.lines(found, place.root))
    gc.delete(found, place.root, place.store)
    kept = {name: digest for name, digest in before.items() if name.startswith(f"{second.name}/")}
    assert {f"{second.name}/{name}": digest for name, digest in objects(second).items()} == kept
    left = {name.split("/")[0] for name in objects(place.corpora)}
    assert left == {second.name, ".building"}
    assert gc.unreferenced(place.root, place.store) == []
    assert len(stores.under(place.corpora / ".inputs")) == 1


def test_a_store_that_cannot_be_used_is_one_line_within_seconds(
    place: Place, s3: str, monkeypatch: pytest.MonkeyPatch, interlace: Interlace
) -> None:
    words = ("build", "corpora:cambrian", "--data", place.roots.base or "", "--root", place.root, "--corpora")
    said = interlace(*words, "s3://nobody-made-this/corpora", expect=2).stderr
    assert said == (
        "interlace: s3://nobody-made-this/corpora: there is no bucket nobody-made-this: create it, or mend the name\n"
    )
    assert not place.root.exists()
    said = interlace(*words, "nothing://bucket", expect=2).stderr
    assert "fsspec knows no such protocol" in said and said.count("\n") == 1
    for name, value, told in (
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "the store fails"),
        ("AWS_ACCESS_KEY_ID", None, "the store does not let us in (Unable to locate credentials): give credentials"),
    ):
        with monkeypatch.context() as patch:
            patch.delenv(name) if value is None else patch.setenv(name, value)
            if value is None:
                patch.delenv("AWS_SECRET_ACCESS_KEY")
            S3FileSystem.clear_instance_cache()
            with pytest.raises((OSError, StoreError)) as error:
                stores.reach(folders.folder(f"{s3}/corpora"))
        assert told in one_line(error.value) and "\n" not in one_line(error.value)
    with pytest.raises(ValueError, match=r"shards='adopted' of metaclip are links to tars"):
        corpus.build(replace(corpora.metaclip(), shards="adopted"), place)


def test_a_corpus_copied_to_another_store_is_read_there(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    built = corpus.build(cambrian(), Place(root=tmp_path, roots=Roots.parse([str(world)])))
    copied = folders.folder(f"memory://{secrets.token_hex(6)}") / built.name
    for path in built.rglob("*"):
        if path.is_file():
            stores.put(path, copied.joinpath(*path.relative_to(built).parts))
    assert records(copied) == records(built)
    assert list(index.verify(copied)) == list(index.verify(built))
    assert index.drops(copied) == index.drops(built)
    kept = Cache(folder=tmp_path / "other", limit=1000)
    with pytest.raises(OSError, match="this cache of shards holds 1000: give it a larger limit"):
        _ = BuiltCorpus(copied, cache=kept).record(0)
