"""What was made of records once lies beside their corpus under the same keys; it grows by folders that never change."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import here
import numpy as np
import pytest
import upstream

from dataflow import shards, sides
from dataflow.index import BuiltCorpus
from dataflow.roots import Roots
from dataflow.sides import Sides
from dataflow.sources.cambrian import Cambrian

YES = {"from": "gpt", "value": "yes"}


@pytest.fixture
def corpus(tmp_path: Path) -> BuiltCorpus:
    """Six records in three shards."""
    folder = tmp_path / "data/cambrian"
    (folder / "jsons").mkdir(parents=True)
    rows = (
        {"id": str(number), "source": "orca.json", "conversations": [{"from": "human", "value": f"{number}?"}, YES]}
        for number in range(6)
    )
    (folder / "jsons/a.jsonl").write_bytes(upstream.jsonl(*rows))
    return here.build(Cambrian(), Roots.parse([str(tmp_path / "data")]), tmp_path / "cambrian-0", rows=2)


def measured(corpus: BuiltCorpus, folder: Path, rows: list[int]) -> Path:
    """A file `said` beside each of these rows: its key, twice."""
    folder.mkdir()
    shard = corpus.table["shard"].to_numpy()
    numbers = sorted({int(shard[row]) for row in rows})
    for number in numbers:
        mine = [row for row in rows if shard[row] == number]
        sides.write(folder, number, ((key(corpus, row), row, 1, {"said": spelled(corpus, row)}) for row in mine))
    sides.commit(folder, numbers, corpus, step={"kind": "said"})
    return folder


def key(corpus: BuiltCorpus, row: int) -> str:
    return corpus.table["key"][row].as_py()


def spelled(corpus: BuiltCorpus, row: int) -> bytes:
    return 2 * key(corpus, row).encode()


def test_what_lies_beside_a_record_is_read_from_whichever_folder_has_it(corpus: BuiltCorpus, tmp_path: Path) -> None:
    first, second = measured(corpus, tmp_path / "a", [0, 1, 4]), measured(corpus, tmp_path / "b", [2, 5])
    both = Sides([first, second], len(corpus))
    for row in (0, 1, 4, 2, 5, 0):
        assert both.files(row, key(corpus, row)) == {"said": spelled(corpus, row)}
    assert both.lacking(np.arange(6)).tolist() == [3]
    assert Sides([], len(corpus)).lacking(np.arange(6)).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=f"nothing was measured of {key(corpus, 3)}"):
        both.files(3, key(corpus, 3))


def test_a_folder_has_a_tar_for_each_shard_its_offsets_and_a_manifest(corpus: BuiltCorpus, tmp_path: Path) -> None:
    folder = measured(corpus, tmp_path / "a", [0, 1, 4])
    tars = ["00000.tar", "00002.tar"]
    assert [path.name for path in sorted(folder.glob("*.tar"))] == tars
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["records"] == 3 and manifest["corpus_digest"] == corpus.manifest["root_digest"]
    for told in manifest["shards"]:
        assert shards.sha256(folder / told["name"]) == told["sha256"]
        assert shards.sha256(folder / f"{told['name']}.idx") == told["idx_sha256"]
        assert (folder / told["name"]).stat().st_size == told["size"]
    assert struct.unpack("<3Q", (folder / "00000.tar.idx").read_bytes()) == (0, 1024, 2048)


def test_what_changed_since_is_not_read(corpus: BuiltCorpus, tmp_path: Path) -> None:
    folder = measured(corpus, tmp_path / "a", [0, 1, 4])
    tar = (folder / "00000.tar").read_bytes()
    (folder / "00000.tar").write_bytes(tar[1024:2048] + tar[:1024] + tar[2048:])
    with pytest.raises(ValueError, match=rf"{key(corpus, 0)} cannot be read from .*00000\.tar \(found .*measure again"):
        Sides([folder], len(corpus)).files(0, key(corpus, 0))
    (folder / "index.parquet").write_bytes((folder / "index.parquet").read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"index\.parquet changed since it was written"):
        Sides([folder], len(corpus))
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="is no finished measure"):
        Sides([folder], len(corpus))
