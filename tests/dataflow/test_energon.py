"""What lies beside a corpus for Energon: keys that cut the shards, no empty shard, the same bytes every time.

Energon itself reads such folders in `make interop`.
"""

from __future__ import annotations

import errno
import json
import resource
import sqlite3
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from upstream import Build, jsonl
from webdataset.shardlists import expand_urls

from dataflow import energon, shards
from dataflow.index import BuiltCorpus
from dataflow.record import Record
from dataflow.sources.text import TextDocuments


@dataclass(frozen=True, kw_only=True)
class Without:
    """Drops rows by their number."""

    rows: frozenset[int]
    version: ClassVar[int] = 1

    def __call__(self, record: Record) -> str | None:
        return "unwanted" if record.lineage.row in self.rows else None


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """60 documents, none as long as another."""
    home = tmp_path / "data/text"
    home.mkdir(parents=True)
    (home / "a.jsonl").write_bytes(jsonl(*({"text": "word " * (number + 1)} for number in range(60))))
    return home


def meta(corpus: BuiltCorpus) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (corpus.folder / ".nv-meta").iterdir()}


def keys(folder: Path) -> list[tuple[int, str, int, int, int]]:
    with sqlite3.connect(folder / ".nv-meta/index.sqlite") as database:
        return database.execute(
            "SELECT tar_file_id, sample_key, sample_index, byte_offset, byte_size FROM samples"
        ).fetchall()


def test_every_key_is_found_where_the_table_says(text: Path, build: Build) -> None:
    corpus = build(TextDocuments(), rows=7, filters=(Without(rows=frozenset({0, 8, 9})),))
    rows = keys(corpus.folder)
    assert [key for _, key, _, _, _ in rows] == corpus.keys
    names = list(json.loads(meta(corpus)[".info.json"])["shard_counts"])
    for place, (shard, key, number, offset, size) in enumerate(rows):
        tar = corpus.folder / names[shard]
        assert shards.read(tar.read_bytes()[offset : offset + size], key) == corpus.record(place)
        assert struct.unpack_from("<2Q", Path(f"{tar}.idx").read_bytes(), 8 * number) == (offset, offset + size)


def test_shards_are_counted_and_those_without_a_record_are_of_no_part(text: Path, build: Build) -> None:
    gone = frozenset({*range(10, 20), *range(40, 50)})
    corpus = build(TextDocuments(), rows=10, filters=(Without(rows=gone),))
    held = meta(corpus)
    counts = {"00000.tar": 10, "00001.tar": 0, "00002.tar": 10, "00003.tar": 10, "00004.tar": 0, "00005.tar": 10}
    assert json.loads(held[".info.json"]) == {"shard_counts": counts}
    split = json.loads(held["split.yaml"])
    assert [name for run in split["split_parts"]["train"] for name in expand_urls(run)] == [
        name for name, count in counts.items() if count
    ]


def test_its_bytes_follow_from_the_corpus_whatever_lay_there(text: Path, build: Build, tmp_path: Path) -> None:
    first, second = (build(TextDocuments(), rows=7, folder=tmp_path / name) for name in ("a", "b"))
    assert meta(first) == meta(second)
    held = first.folder / ".nv-meta"
    (held / "index.sqlite").write_bytes(b"half of one")
    counts = [shard["records"] for shard in first.manifest["shards"]]
    energon.write(first.folder, counts, first.manifest["root_digest"])
    assert meta(first) == meta(second)
    (text / "a.jsonl").write_bytes(jsonl({"text": "another"}))
    assert meta(build(TextDocuments(), rows=7, folder=tmp_path / "c"))["index.uuid"] != meta(first)["index.uuid"]


def test_a_full_disk_is_an_error_of_the_disk_that_names_the_file(text: Path, build: Build) -> None:
    corpus = build(TextDocuments(), rows=7)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=r"index\.sqlite") as failed:
            energon.write(corpus.folder, [1], corpus.manifest["root_digest"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed.value.errno in (errno.ENOSPC, errno.EIO)
