"""Corpora of ours in the hands of others: each must yield the records that `BuiltCorpus` yields, and change nothing.

    webdataset     the shards in order
    Energon        the folder as it lies, without `energon prepare`; every sample by its key, too
    Ray Data       read_webdataset
    HF datasets    the `webdataset` builder, the members named to it where records differ in them

Two miniature corpora, real pictures: `metaclip` (one picture a record) and `instruct_pix2pix` (two, JPEG or PNG). Each
reader gives key, JSON and the bytes of the pictures; exit 1 where one differs. Run: make interop
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-not-found]
import ray
import webdataset as wds
from megatron.energon import (  # type: ignore[import-not-found]
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_loader,
    get_train_dataset,
    stateless,
)
from megatron.energon.cache.file_store import WebdatasetFileStore  # type: ignore[import-not-found]
from megatron.energon.epathlib import EPath  # type: ignore[import-not-found]

from dataflow import index, mini, shards
from dataflow.index import BuiltCorpus
from dataflow.roots import Roots
from pipelines import corpus
from pipelines.recipes import corpora
from pipelines.step import Place, cluster

ROWS = {"metaclip": 100, "instruct_pix2pix": 40}
Files = dict[str, bytes]  # of a record, by extension


@edataclass
class Members(Sample):
    """An Energon sample that keeps its files as they are."""

    files: Files


@stateless
def keep(sample: dict[str, Any]) -> Members:
    """Energon's cook: nothing is decoded."""
    return Members(**basic_sample_keys(sample), files=members(sample))


class Bytes(DefaultTaskEncoder):
    """An Energon task that gives samples as they lie in the shard, in lists."""

    decoder = None
    cookers = (Cooker(keep),)

    def batch(self, samples: list[Members]) -> list[Members]:
        return samples


def main() -> None:
    """Build the corpora, let everybody read them, print who read what."""
    wrong = 0
    os.environ["HF_HUB_OFFLINE"] = "1"
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", "'pin_memory'")  # Energon's loader asks for it, on a machine without a GPU too
    with tempfile.TemporaryDirectory() as scratch:
        sizes = {field: ROWS.get(field, 0) for field in mini.Sizes.__dataclass_fields__}
        mini.write(Path(scratch) / "data", rows=mini.Sizes(**sizes))
        place = Place(root=Path(scratch) / "runs", roots=Roots(base=Path(scratch) / "data"))
        with cluster(place):
            ray.data.DataContext.get_current().enable_progress_bars = False
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            asked = corpora.metaclip(), corpora.instruct_pix2pix()
            folders = [corpus.build(replace(each, rows_per_shard=30), place) for each in asked]
            print(f"{'reader':24}{'version':10}{'corpus':20}{'records':>8}")
            for folder in folders:
                before = _state(folder)
                for name, package, read in READERS:
                    problem, count = _compared(read, BuiltCorpus(folder))
                    wrong += problem is not None
                    version = importlib.metadata.version(package)
                    print(f"{name:24}{version:10}{folder.name.split('-')[0]:20}{count:>8}  {problem or 'the same'}")
                if _state(folder) != before or any(problem for _, problem in index.verify(folder)):
                    print(f"{folder} was changed by its readers")
                    wrong += 1
    sys.exit(1 if wrong else 0)


def _compared(read: Callable[[Path], Iterable[tuple[str, Files]]], built: BuiltCorpus) -> tuple[str | None, int]:
    """What is wrong with what a reader yields, if anything; how many records it yields."""
    found = [(key, _comparable(files)) for key, files in read(built.folder)]
    meant = {record.key: _comparable(shards.members(record)) for record in map(built.record, range(len(built)))}
    if len(found) != len(meant):
        return f"{len(meant)} were written", len(found)
    differing = sorted(key for key, files in found if meant.pop(key, None) != files)
    return f"{len(differing)} differ, {differing[0]} first" if differing else None, len(found)


def _comparable(files: Files) -> dict[str, Any]:
    return {**files, "json": json.loads(files["json"])}


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def members(sample: dict[str, Any]) -> Files:
    """The files of a sample by extension; what a table fills in for a picture that a record lacks is none."""
    return {name: value for name, value in sample.items() if not name.startswith("__") and isinstance(value, bytes)}


def tars(folder: Path) -> list[str]:
    """The shards, in order."""
    return sorted(map(str, folder.glob("*.tar")))


def by_webdataset(folder: Path) -> Iterable[tuple[str, Files]]:
    """`webdataset.WebDataset(tars)`."""
    for sample in wds.WebDataset(tars(folder), shardshuffle=False):  # type: ignore[attr-defined]
        yield sample["__key__"], members(sample)


def by_energon(folder: Path) -> Iterable[tuple[str, Files]]:
    """`get_train_dataset(folder)`."""
    opened = get_train_dataset(
        folder,
        batch_size=8,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        task_encoder=Bytes(),
        repeat=False,
    )
    for batch in get_loader(opened):
        for sample in batch:
            yield sample.__key__, sample.files


def by_energon_s_keys(folder: Path) -> Iterable[tuple[str, Files]]:
    """Each member by its name, through `index.sqlite`, as Energon's cookers look up files of another corpus."""
    store = WebdatasetFileStore(EPath(folder))
    for key, _, _ in store.list_all_samples():
        names = [name for name, _, _ in store.list_sample_parts(key, slow_mode=True)]
        yield key, {name: store[f"{key}.{name}"][0] for name in names}


def by_ray(folder: Path) -> Iterable[tuple[str, Files]]:
    """`ray.data.read_webdataset(tars, decoder=None)`."""
    for row in ray.data.read_webdataset(tars(folder), decoder=None).iter_rows():
        yield row["__key__"], members(row)


def by_datasets(folder: Path) -> Iterable[tuple[str, Files]]:
    """`load_dataset("webdataset", data_files=tars)`; `features` name the members where records differ in them."""
    built = BuiltCorpus(folder)
    held = {name for place in range(len(built)) for name in shards.members(built.record(place))} - {"json"}
    pictures = {name: datasets.Image(decode=False) for name in sorted(held)}
    features = datasets.Features({"__key__": datasets.Value("string"), **pictures, "json": datasets.Json()})
    options: dict[str, Any] = {"features": features} if len(held) > 1 else {}
    with tempfile.TemporaryDirectory() as cache:
        opened = datasets.load_dataset("webdataset", data_files=tars(folder), split="train", cache_dir=cache, **options)
        for name, feature in pictures.items():
            opened = opened.cast_column(name, feature)
        for row in opened:
            files = {name: row[name]["bytes"] for name in held if row[name] is not None}
            yield row["__key__"], {**files, "json": json.dumps(_filled_in(row["json"])).encode()}


def _filled_in(value: Any) -> Any:
    """JSON without the nulls of Arrow's structs, which have every field; ours has none of its own."""
    if isinstance(value, dict):
        return {name: _filled_in(each) for name, each in value.items() if each is not None}
    return list(map(_filled_in, value)) if isinstance(value, list) else value


READERS = (
    ("webdataset", "webdataset", by_webdataset),
    ("Energon", "megatron-energon", by_energon),
    ("Energon, by key", "megatron-energon", by_energon_s_keys),
    ("Ray Data", "ray", by_ray),
    ("HF datasets", "datasets", by_datasets),
)

if __name__ == "__main__":
    main()
