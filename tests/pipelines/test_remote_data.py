"""`--data s3://...` as a user gives it: a real server of S3, the command in a process of its own, Ray's workers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from here import build
from s3fs import S3FileSystem

from dataflow import index
from dataflow.roots import Roots
from pipelines import corpus, explain
from pipelines.recipes import corpora
from pipelines.step import Place

Interlace = Callable[..., subprocess.CompletedProcess[str]]
LISTED = "jsons/Cambrian7M_withsystemprompt.jsonl"


def test_a_build_from_a_store_gives_the_digest_of_a_local_one_and_sees_what_changed(
    world: Path, tmp_path: Path, s3: str, interlace: Interlace
) -> None:
    data = tmp_path / "data/cambrian"
    shutil.copytree(world / "cambrian", data)
    lines = (data / LISTED).read_bytes().splitlines(keepends=True)
    gone = next(number for number, line in enumerate(lines) if b'"image"' in line)
    (data / json.loads(lines[gone])["image"]).unlink()
    S3FileSystem().put(str(tmp_path / "data"), f"{s3}/corpora", recursive=True)

    wanted = replace(corpora.cambrian(), rows_per_shard=100)
    near = build(wanted.source, Roots(base=data.parent), tmp_path / "near", filters=wanted.filters, rows=100)
    given = ("corpora:cambrian", "--data", f"{s3}/corpora", "--root", tmp_path / "runs", "--set", "rows_per_shard=100")
    place = Place(root=tmp_path / "runs", roots=Roots.parse([f"{s3}/corpora"]))
    looked = corpus.check(wanted, place, rows=1000)
    assert (looked.rows("kept"), looked.rows("missing"), looked.rows("corrupt")) == (295, 2, 3)
    far = Path(interlace("build", *given).stdout.split()[-1])
    assert index.read_manifest(far)["root_digest"] == near.manifest["root_digest"]
    rows = pq.read_table(far / "ledger.parquet", filters=[("outcome", "=", "missing")]).to_pylist()
    assert (LISTED, gone) in [(row["file"], row["row"]) for row in rows]

    assert explain.explain(wanted, place).folder == far
    changed = lines[150].replace(b"a", b"e")
    S3FileSystem().pipe_file(f"{s3}/corpora/cambrian/{LISTED}", b"".join([*lines[:150], changed, *lines[151:]]))
    told = explain.explain(wanted, place).line()
    assert f"would build 1 shard, link 2: changed or new: rows 100 to 199 of {LISTED} (shard 1)" in told


def test_a_store_that_cannot_be_read_is_told_in_one_line(
    s3: str, interlace: Interlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    done = interlace("check", "corpora:cambrian", "--data", f"{s3}/corpora", expect=2)
    assert done.stderr.startswith(
        f"interlace: {s3}/corpora: the store does not let us in (Unable to locate credentials"
    )
    assert done.stderr.count("\n") == 1
