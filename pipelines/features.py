"""Features once: Ray actors encode the pictures that a training reads into side tars, for every training after it.

<root>/measures/features-<source>-<key>-<rows>/   as `dataflow/sides.py` has it, a tar for each shard of the corpus
    key    of what decides features: encoder, settings, views, float type, the corpus' root digest
    rows   of the records in this folder: those that the folders of this key lacked when it was begun
<root>/measures/.building/                        shards and receipts as they come; the same command goes on from them

A record is encoded together with the same others by however many actors, so the bytes are the same.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataflow import sides
from dataflow.build import receipt_path, sync
from dataflow.folders import is_remote
from dataflow.index import BuiltCorpus
from dataflow.record import Record
from models.interface import Architecture, Features, Measured
from models.layout import Layout, ViewName
from pipelines import checkpoint, plan, runs
from pipelines.batching import EXTENSION, RecordBatches, Stored, collate, of_view, packed, prepared
from pipelines.corpus import lock_of
from pipelines.recipe import describe, key
from pipelines.step import Place, Progress, alone, cluster, each_ready, finished
from pipelines.training import Training

Dtype = Literal["float32", "float16", "bfloat16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)  # the finest first
FORM = 1  # part of every key; raise it when the bytes change
RECORDS = 16  # encoded together

Task = tuple[int, Path, int, NDArray[np.int64], Path]
"""A task of an actor: number of its work, corpus, shard, rows of the corpus' index, folder to write to."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What actors encode with: a config, the run whose weights its training starts from, the float type to keep."""

    config: Any
    earlier: Path | None
    dtype: Dtype

    def built(self) -> Architecture:
        """The architecture as a training begins with it."""
        architecture: Architecture = self.config.build()
        if self.earlier is not None:
            checkpoint.start_from(self.earlier, architecture.module)
        return architecture


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be encoded of one corpus: rows of its index.

    name: of the folders with its features, less rows. measures: where these lie.
    """

    corpus: BuiltCorpus
    name: str
    rows: NDArray[np.int64]
    measures: Path

    @property
    def folder(self) -> Path:
        """Where it will lie when it is done."""
        rows = hashlib.sha256(np.ascontiguousarray(self.rows, "<i8").tobytes()).hexdigest()
        return self.measures / f"{self.name}-{rows[:12]}"

    @property
    def building(self) -> Path:
        """Where it lies until then."""
        return self.folder.parent / ".building" / self.folder.name

    @cached_property
    def shards(self) -> dict[int, NDArray[np.int64]]:
        """The rows of each shard that has any."""
        shard = self.corpus.table["shard"].to_numpy()[self.rows]
        return {int(number): self.rows[shard == number] for number in np.unique(shard)}

    def tasks(self, number: int) -> list[Task]:
        """What no actor has done yet of this work, the `number`th."""
        self.building.mkdir(parents=True, exist_ok=True)
        return [
            (number, self.corpus.folder, shard, rows, self.building)
            for shard, rows in self.shards.items()
            if not receipt_path(self.building, shard).is_file()
        ]

    def finish(self, step: dict[str, Any]) -> dict[str, Any]:
        """Give it its place when all shards are there; returns its manifest."""
        manifest = sides.commit(self.building, list(self.shards), self.corpus, step=step)
        for leftover in self.building.glob(".*"):
            leftover.unlink()
        self.building.rename(self.folder)
        sync(self.folder.parent)
        return manifest


def measure(training: Training, place: Place, *, dtype: Dtype = "float32") -> list[Path]:
    """Encode the pictures of all records that a training reads and no one encoded yet; say what there is to say.

    Returns:  the folders that hold them, of all corpora.
    Raises:
        ValueError: corpora that are not built, nothing to store or none who may read it, a number that the float type
            cannot hold.
    """
    replace(training, execution=replace(training.execution, features="stored"))  # refused here, not after hours
    encoder = Encoder(config=training.architecture, earlier=None, dtype=dtype)
    architecture = encoder.built()
    if training.start_from is not None and architecture.measured.network is not architecture.encoder:
        encoder = replace(encoder, earlier=runs.finished(training, place))  # whose weights read, too
        architecture = encoder.built()
    named = naming(encoder.config, _worthwhile(architecture.measured, encoder.config))
    with ExitStack() as stack:
        wanted, lacking = works(training, place, named, dtype), list[Work]()
        for work in wanted:
            if len(work.rows):
                stack.enter_context(alone(lock_of(work.building), work.folder.name))
            if len(work.rows) and not work.folder.is_dir():  # another command may have made it just now
                lacking.append(work)
            else:
                print(f"{work.name}: all pictures are encoded, nothing to do", flush=True)
        if lacking:
            stack.enter_context(cluster(place))
            _encode(lacking, encoder, named)
    return [folder for work in wanted for folder in folders(work.measures, work.name)]


def works(training: Training, place: Place, named: Mapping[str, Any], dtype: Dtype) -> list[Work]:
    """What is to be encoded of each corpus that a training reads; of some perhaps nothing.

    Args:  named: as `naming` gives it.
    """
    corpora = [member.open() for member in plan.locate(training.mixture, place)]
    rows: dict[Path, list[NDArray[np.int64]]] = {}
    for corpus, used in zip(corpora, plan.schedule(training, corpora, place).used(), strict=True):
        rows.setdefault(corpus.folder, []).append(pictured(corpus, used))
    found = []
    for folder, parts in rows.items():
        corpus = BuiltCorpus(folder)
        name = name_of(named, dtype, corpus)
        measures = beside(corpus, place.root)
        held = sides.Sides(folders(measures, name), corpus.table.num_rows)
        lacking = held.lacking(np.unique(np.concatenate(parts)))
        found.append(Work(corpus=corpus, name=name, rows=lacking, measures=measures))
    return found


def stored(batches: RecordBatches, architecture: Architecture, recipe: str, root: Path | None = None) -> RecordBatches:
    """The same batches with features of this architecture in place of pictures, the finest that are stored of all.

    Args:    architecture: as its training begins. recipe: its name. root: of its run, for corpora kept in a store.
    Raises:  ValueError: features of some records are not stored, or of another encoder only.
    """
    measured = _worthwhile(architecture.measured, batches.architecture)
    named, corpora = naming(batches.architecture, measured), batches.reader.corpora
    used = [pictured(*pair) for pair in zip(corpora, batches.schedule.used(), strict=True)]
    lacking: dict[Dtype, str | None] = {}
    for dtype in DTYPES:
        found = [folders(beside(corpus, root), name_of(named, dtype, corpus)) for corpus in corpora]
        members = zip(corpora, found, used, strict=True)
        lacking[dtype] = next(filter(None, (_lacking(*member, named, root) for member in members)), None)
        if lacking[dtype] is None:
            return replace(batches, stored=Stored(folders=tuple(found), views=measured.views, pixels=measured.pixels))
    raise ValueError(f"{lacking['float32']}: run interlace measure {recipe}, or train with execution.features=computed")


def there(
    corpora: Sequence[BuiltCorpus], used: Sequence[NDArray[np.int64]], measuring: str, root: Path | None = None
) -> None:
    """Whether features of all pictures of a training are stored at all, of whichever encoder: nothing is loaded.

    `stored` looks closer, on the ranks that have built the encoder.

    Args:    used: of each corpus, the records that the training reads. measuring: the command that stores features.
             root: of the training, for corpora kept in a store.
    Raises:  ValueError: features of some records are not stored.
    """
    for corpus, read in zip(corpora, used, strict=True):
        rows, alike = pictured(corpus, read), dict[str, list[Path]]()
        for folder in finished(beside(corpus, root).glob(f"features-{_source(corpus)}-*")):
            if json.loads((folder / "manifest.json").read_bytes())["corpus_digest"] == corpus.manifest["root_digest"]:
                alike.setdefault(folder.name.rpartition("-")[0], []).append(folder)
        lacking = [len(sides.Sides(found, corpus.table.num_rows).lacking(rows)) for found in alike.values()]
        if fewest := min(lacking, default=len(rows)):
            raise ValueError(
                f"features of {fewest} of {len(rows)} records of {corpus.name} are not stored: run {measuring}, "
                "or train with --set execution.features=computed"
            )


def _worthwhile(measured: Measured, config: Any) -> Measured:
    """What is stored. ValueError where that is nothing."""
    if not measured.views:
        raise ValueError(
            f"{type(config).__name__} over a canvas of pixels has no features to store: its pictures are all it reads; "
            "train with execution.features=computed"
        )
    return measured


def naming(config: Any, measured: Measured) -> dict[str, Any]:
    """What decides features, as JSON values, but their float type and the corpus."""
    return {
        "form": [FORM, RECORDS],
        "version": config.version,
        "encoder": measured.network.digest(),
        "settings": {name: describe(value) for name, value in sorted(measured.settings.items())},
        "views": {view: describe(getattr(config, view)) for view in measured.views},
    }


def name_of(named: Mapping[str, Any], dtype: Dtype, corpus: BuiltCorpus) -> str:
    """Name of the folders that hold such features of a corpus, less that of their rows."""
    whole = {**named, "dtype": dtype, "corpus": corpus.manifest["root_digest"]}
    return f"features-{_source(corpus)}-{key(whole)[:12]}"


def folders(measures: Path, name: str) -> tuple[Path, ...]:
    """The finished ones of this name."""
    return tuple(finished(measures.glob(f"{name}-*")))


def beside(corpus: BuiltCorpus, root: Path | None) -> Path:
    """Where what was measured of a corpus lies: <root>/measures. root: None for that of <root>/corpora/<name>."""
    if root is None and is_remote(corpus.folder):
        raise ValueError(f"{corpus.folder} is kept in a store: say under which root its features lie")
    return (corpus.folder.parent.parent if root is None else root) / "measures"


def pictured(corpus: BuiltCorpus, used: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of records that a corpus offers, those that hold pictures, as rows of its index."""
    rows = corpus.rows[used]
    return rows[corpus.table["pictures"].to_numpy()[rows] > 0]


def _source(corpus: BuiltCorpus) -> str:
    return corpus.name.partition("-")[0]


def _lacking(
    corpus: BuiltCorpus,
    found: Sequence[Path],
    rows: NDArray[np.int64],
    named: Mapping[str, Any],
    root: Path | None,
) -> str | None:
    """Why features of these rows of a corpus cannot be read."""
    lacking = sides.Sides(found, corpus.table.num_rows).lacking(rows)
    if not len(lacking):
        return None
    if not found:
        for folder in finished(beside(corpus, root).glob(f"features-{_source(corpus)}-*")):
            manifest = json.loads((folder / "manifest.json").read_bytes())
            other = manifest["step"]["encoder"]
            if manifest["corpus_digest"] == corpus.manifest["root_digest"] and other != named["encoder"]:
                mine = named["encoder"]
                return f"features of {corpus.name} are stored of encoder {other[:12]}, this training has {mine[:12]}"
    return f"features of {len(lacking)} of {len(rows)} records of {corpus.name} are not stored"


def _encode(works: Sequence[Work], encoder: Encoder, named: Mapping[str, Any]) -> None:
    """Encode on the cluster there is, finish each work as it is done, and say what came of it."""
    tasks = [work.tasks(number) for number, work in enumerate(works)]
    left, seconds = [len(each) for each in tasks], [0.0] * len(works)
    progress = Progress(f"features of {type(encoder.config).__name__}", sum(left), "shards")
    lines = [("corpus", "records", "pictures", "MB", "seconds")]

    def finish(number: int) -> None:
        made = works[number].finish({**named, "dtype": encoder.dtype})
        numbers = (f"{made['records']}", f"{made['pictures']}", f"{made['bytes'] / 1e6:.1f}")
        lines.append((works[number].corpus.name, *numbers, f"{seconds[number]:.1f}"))

    for number in range(len(works)):
        if not left[number]:  # it was cut off just before its end
            finish(number)
    for number, took in each_ready(ready, (encoder, named), list(chain(*tasks)), progress, gpus=1):
        left[number] -= 1
        seconds[number] += took
        if not left[number]:
            finish(number)
    progress.close(f"{progress.done} shards encoded in {encoder.dtype} by encoder {named['encoder'][:12]}")
    width = max(len(name) for name, *_ in lines)
    for name, *numbers in lines:
        print(f"{name:{width}}{''.join(f'{number:>11}' for number in numbers)}", flush=True)


def ready(shared: tuple[Encoder, Mapping[str, Any]]) -> Callable[[Task], tuple[int, float]]:
    """What an actor does: it encodes the rows of a shard; answers number of the work, seconds."""
    encoder, named = shared
    torch.set_num_threads(1)  # sums are added up in the same order everywhere
    architecture = encoder.built()
    found = naming(encoder.config, architecture.measured)["encoder"]
    if found != named["encoder"]:
        raise ValueError(
            f"an actor built encoder {found[:12]}, the command {named['encoder'][:12]}: "
            "take random weights from a seed in the config, and pin hub ids by revision"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    architecture.measured.network.to(device)
    layout, corpora = encoder.config.layout(), dict[Path, BuiltCorpus]()

    def encode(task: Task) -> tuple[int, float]:
        number, folder, shard, rows, building = task
        began = time.monotonic()
        if folder not in corpora:
            corpora[folder] = BuiltCorpus(folder)
        corpus = corpora[folder]

        def records() -> Iterator[tuple[str, int, int, Mapping[str, bytes]]]:
            for first in range(0, len(rows), RECORDS):
                part = rows[first : first + RECORDS].tolist()
                held = [corpus.record(row) for row in part]
                for row, record, (pictures, data) in zip(
                    part, held, encoded(held, architecture, encoder, layout, device), strict=True
                ):
                    yield record.key, row, pictures, {EXTENSION: data}

        sides.write(building, shard, records())
        return number, time.monotonic() - began

    return encode


def encoded(
    records: Sequence[Record], architecture: Architecture, encoder: Encoder, layout: Layout, device: torch.device
) -> Iterator[tuple[int, bytes]]:
    """How many features a record has, one a picture and view, and its file in a side tar; of each record.

    Raises:  ValueError: a picture that does not decode, or features that are not finite.
    """
    rows = [[prepared(record, encoder.config, layout)] for record in records]
    batch, _ = collate(rows, encoder.config, rows=len(records), length=sys.maxsize)
    with torch.no_grad():
        parts = architecture.apart(batch.to(device))
    for row, record in enumerate(records):
        mine: dict[ViewName, list[Features]] = {
            view: [
                {name: kept(tensor, encoder.dtype, record.key) for name, tensor in picture.items()}
                for picture, owner in zip(pictures, of_view(batch, view).row.tolist(), strict=True)
                if owner == row
            ]
            for view, pictures in parts.items()
        }
        yield sum(map(len, mine.values())), packed(mine)


def kept(feature: Tensor, dtype: Dtype, record: str) -> Tensor:
    """As it is stored: a copy on the CPU."""
    held = feature.to("cpu", getattr(torch, dtype), copy=True)
    if not held.isfinite().all():
        raise ValueError(f"{record}: features are not finite in {dtype}: store float32 or bfloat16, or mend the record")
    return held
