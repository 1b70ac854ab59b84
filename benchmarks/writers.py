"""The writers that `write.py` times, one a process: `python benchmarks/writers.py NAME FOLDER OUT`.

Nothing is imported here that a writer does not need: litdata's workers import this file again, on its clock.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from samples import SHARD, Samples
from turns import Spent, clock


def _digest(tars: Iterable[Path]) -> str:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(tars)]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def shard_writer(folder: Path, out: Path, **options: Any) -> Spent:
    """webdataset's, which is given JPEGs and dicts, each made JSON as ours is: with mtime=0 its tars are ours."""
    import webdataset as wds

    def write(samples: list[dict[str, Any]], place: Path) -> None:
        place.mkdir(parents=True)
        settings = {"maxcount": SHARD, "maxsize": 1 << 40, "mtime": 0, "encoder": False, "verbose": 0, **options}
        with wds.ShardWriter(str(place / "%05d.tar"), **settings) as writer:  # type: ignore[attr-defined]
            for sample in samples:
                writer.write({**sample, "json": compact.encode(sample["json"]).encode()})

    compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
    ready = [{"__key__": name, "0.jpg": jpg, "json": json.loads(chat)} for name, jpg, chat in Samples(folder)]
    write(ready[:SHARD], out / "first")
    spent: list[Spent] = []
    with clock(spent):
        write(ready, out / "all")
    return replace(spent[0], made=_digest((out / "all").glob("*.tar")))


def shard_writer_fsync(folder: Path, out: Path) -> Spent:
    """The same, every tar on the disk when it ends, as ours are."""

    def sync(name: str) -> None:
        with Path(name).open("rb") as stream:
            os.fsync(stream.fileno())

    return shard_writer(folder, out, post=sync)


def ours(folder: Path, out: Path) -> Spent:
    """Records to tars: sha256 of each record and each tar, .idx, index.parquet, fsync."""
    import pyarrow as pa

    from dataflow import index, shards
    from dataflow.build import columns
    from dataflow.record import Record, from_json

    def write(records: list[Record], place: Path) -> None:
        place.mkdir(parents=True)
        written = [
            shards.write(records[first : first + SHARD], place / shards.name(number), number)
            for number, first in enumerate(range(0, len(records), SHARD))
        ]
        rows = columns(shards.Entry, (entry for shard in written for entry in shard.entries))
        index.write_table(place / "index.parquet", pa.table(rows, index.INDEX))

    ready = [from_json(name, chat, {"0.jpg": jpg}) for name, jpg, chat in Samples(folder)]
    write(ready[:SHARD], out / "first")
    spent: list[Spent] = []
    with clock(spent):
        write(ready, out / "all")
    return replace(spent[0], made=_digest((out / "all").glob("*.tar")))


def litdata(folder: Path, out: Path) -> Spent:
    """Its optimize with two workers, whose start counts, and chunks of 64 MB."""
    from litdata import optimize  # type: ignore[import-not-found]

    samples, spent = Samples(folder), []
    with clock(spent), redirect_stdout(io.StringIO()):
        optimize(samples.sample, list(range(len(samples))), str(out), num_workers=2, chunk_bytes="64MB")
    chunks = json.loads((out / "index.json").read_bytes())["chunks"]  # empty, and no error, when its workers died
    return replace(spent[0], made=str(sum(chunk["chunk_size"] for chunk in chunks)))


def ray_data(folder: Path, out: Path) -> Spent:
    """write_webdataset on two CPUs from parquet, which it reads; the start of the cluster and of workers is apart."""
    import ray

    from pipelines.step import Place, cluster

    spent: list[Spent] = []
    with redirect_stdout(io.StringIO()), cluster(Place(root=folder, workers=2)):
        ray.data.range(100, override_num_blocks=4).materialize()
        with clock(spent):
            rows = ray.data.read_parquet(str(folder / "samples.parquet"))
            rows.write_webdataset(str(out), encoder=None, min_rows_per_file=SHARD)
    members = 0
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            members += len(tar.getmembers())
    return replace(spent[0], made=str(members // 2))


def loop(folder: Path, out: Path) -> Spent:
    """What a build of text does, without the step layer: plan, shards, commit, in this process."""
    from dataflow import index
    from dataflow.build import ShardJob, read_receipt, receipt_path, splits
    from dataflow.roots import Roots
    from pipelines.recipe import describe
    from pipelines.recipes.corpora import text

    asked, roots = text(), Roots(base=folder)
    source, recipe_key = asked.source, asked.recipe_key()
    out.mkdir()
    spent: list[Spent] = []
    with clock(spent):
        job = ShardJob(source=source, filters=asked.filters, roots=roots, recipe_key=recipe_key, earlier={})
        files = source.files(roots.source(source.name))
        plan = [split for file in files for split in splits(roots, source.name, file, asked.rows_per_shard)]
        for number, split in enumerate(plan):
            job.build(split, number, out)
        manifest = index.commit(
            out,
            (read_receipt(receipt_path(out, number)) for number in range(len(plan))),
            step=describe(asked),
            recipe_key=recipe_key,
            max_dropped=asked.max_dropped,
            max_missing=asked.max_missing,
        )
    return replace(spent[0], made=manifest["root_digest"])


def build(folder: Path, out: Path) -> Spent:
    """`interlace build --workers 1` of the same, once its cluster runs and the worker has imported the house."""
    from dataflow import index
    from dataflow.roots import Roots
    from pipelines import corpus
    from pipelines.recipes.corpora import text
    from pipelines.step import Place, Progress, cluster, each

    place = Place(root=out, roots=Roots(base=folder), workers=1)
    spent: list[Spent] = []
    with redirect_stdout(io.StringIO()), cluster(place):
        list(each(_imported, None, ["pipelines.recipes.corpora"], Progress("start", 1, "modules")))
        with clock(spent):
            built = corpus.build(text(), place)
    return replace(spent[0], made=index.read_manifest(built)["root_digest"])


def _imported(_: None, name: str) -> None:
    __import__(name)


WRITERS: dict[str, Callable[[Path, Path], Spent]] = {
    "ShardWriter": shard_writer,
    "same, fsync": shard_writer_fsync,
    "litdata": litdata,
    "Ray Data": ray_data,
    "ours": ours,
    "loop": loop,
    "build": build,
}

if __name__ == "__main__":
    writer, *folders = sys.argv[1:]
    print(json.dumps(vars(WRITERS[writer](*map(Path, folders)))))
