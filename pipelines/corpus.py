"""A corpus as a workflow step: plan the splits, build each shard on a Ray worker, commit.

<root>/corpora/.building/<source>-<key>/      shards and receipts as they come; a rerun goes on from them
<root>/corpora/.inputs/<source>-<key>.json    the input files that this key stands for: what `--explain` compares
<root>/corpora/<source>-<key>/                the finished corpus; never changes
<root>/corpora/<source>-<key>-<digest>/       one that --rehash found to differ under the same index files
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from dataflow import adopt, index, media, readers, shards
from dataflow.build import LedgerRow, Receipt, ShardJob, read_receipt, receipt_path, sweep, sync, write_atomically
from dataflow.build import splits as plan_of
from dataflow.readers import Split
from dataflow.roots import Roots
from pipelines.recipe import describe, key
from pipelines.step import Place, Progress, alone, cluster, each, finished

_CHECKED_FILES = 10  # at most, of a corpus that is only looked into
_PLAN, _INPUTS = ".plan.json", ".inputs"  # of a work folder; of the folder of all corpora
_PREVIEWED = 100  # rows held at a time while looking: their pictures are in memory


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A source, built: which filters it passes, how many input rows make a shard.

    shards: `adopted` links to the tars of the source, a shard each, where `built` writes shards of our own.
    max_dropped: share of input rows that may be lost before the build stops; max_missing: the same of rows that name a
    file that is not there, so that a part of a corpus is a corpus.
    """

    source: Any
    filters: tuple[Any, ...] = ()
    rows_per_shard: int = 1000
    max_dropped: float = 0.1
    max_missing: float = 0.1
    shards: Literal["built", "adopted"] = "built"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.shards not in ("built", "adopted"):
            raise ValueError(f"shards={self.shards!r} of {self.name}: shards are built or adopted")

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    @property
    def folder(self) -> str:
        """Name under `--data` of what it is made from in the end."""
        return self.source.name

    @property
    def parts(self) -> tuple[Any, ...]:
        """What may name libraries whose versions decide the bytes."""
        return self.source, *self.filters

    def recipe_key(self) -> str:
        """The hash of everything but the input that decides the bytes."""
        named = [name for part in self.parts for name in getattr(part, "libraries", ())]
        versions = {name: importlib.metadata.version(name) for name in named}
        return key([self.deciding(), {"encoder": media.ENCODER, "index": index.SCHEMA, **versions}])

    def deciding(self) -> dict[str, Any]:
        """The description of what decides the bytes."""
        description = describe(self)
        del description["max_dropped"], description["max_missing"]  # they decide whether there is a result, not which
        return description

    def prepared(self, place: Place) -> Place:
        """Where its input lies, once it is there."""
        return place

    def found(self, place: Place) -> Place:
        """Where its input lies. Raises: Unbuilt: it is made here, and is not."""
        return place


class Unbuilt(ValueError):
    """A corpus is not there yet, or not of this input."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The input files of a corpus as found, with sizes in bytes and mtimes in ns; `key` names them and the recipe."""

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    times: tuple[int, ...]
    key: str


def inputs(corpus: Corpus, place: Place) -> Inputs:
    """List the input.

    Raises:
        ValueError: the folder or its files are not there, or rows_per_shard does not fit a key.
    """
    if not 1 <= corpus.rows_per_shard <= 10_000:
        raise ValueError(f"rows_per_shard={corpus.rows_per_shard}: a key holds 4 digits of row; use 1 to 10000")
    if not re.fullmatch("[a-z][a-z0-9_]*", corpus.source.name):
        raise ValueError(f"source name {corpus.source.name!r}: use lower case letters, digits and '_'")
    folder = place.roots.source(corpus.source.name)
    files = tuple(corpus.source.files(folder))
    sizes, times = [], []
    for file in files:
        sound = place.roots.unreadable(corpus.source.name, file) is None  # else the ledger says why not
        status = (folder / file).stat() if sound else None
        sizes.append(status.st_size if status else 0)
        times.append(status.st_mtime_ns if status else 0)
    listing = [list(entry) for entry in zip(files, sizes, times, strict=True)]
    return Inputs(files=files, sizes=tuple(sizes), times=tuple(times), key=key([corpus.recipe_key(), listing]))


def locate(corpus: Corpus, place: Place) -> Path:
    """The finished corpus of this recipe, of the input under `--data` where that is declared, else the only one there.

    Raises:
        ValueError: none is finished, or several differ and no `--data` tells them apart.
    """
    place = corpus.found(place)
    newest = {_input_of(folder): folder for folder in of_recipe(corpus, place)}  # a rehash comes later
    if is_declared(corpus, place):
        folder = newest.get(inputs(corpus, place).key[:12])
        if folder is not None:
            return folder
        if newest:
            raise Unbuilt(f"input of {corpus.source.name} changed since it was built: run interlace build again")
        raise Unbuilt(_unbuilt(corpus, place))
    if not newest:
        raise Unbuilt(f"{_unbuilt(corpus, place)} and --data")
    same = list(newest.values())
    if len({_manifest(folder)["root_digest"] for folder in same}) > 1:
        names = ", ".join(folder.name for folder in same)
        raise ValueError(
            f"{corpus.source.name} is built from {len(same)} different inputs under {place.root} ({names}): "
            "say which input is meant by --data DIR, as for the build"
        )
    return same[-1]  # the same bytes, whichever input they came from


def _unbuilt(corpus: Corpus, place: Place) -> str:
    return f"{corpus.source.name} is not built under {place.root}: run interlace build with the same recipe"


def is_declared(corpus: Corpus, place: Place) -> bool:
    """Whether it is said where its input lies."""
    return place.roots.base is not None or corpus.source.name in place.roots.named


def is_built(corpus: Corpus, place: Place) -> bool:
    """Whether the corpus of the present input is finished."""
    try:
        place = corpus.found(place)
    except Unbuilt:
        return False
    return newest(corpus, place, inputs(corpus, place)) is not None


def build(corpus: Corpus, place: Place, *, rehash: bool = False) -> Path:
    """Build a corpus, or find it built. Says what it does.

    Args:
        rehash: build it again although its index files look the same: pictures may have changed, or arrived.
    Raises:
        ValueError: input that is not there or changes while it is read, too many rows dropped.
    """
    place = corpus.prepared(place)
    found = inputs(corpus, place)
    there = newest(corpus, place, found)
    if there is not None and not rehash:
        _say_built(corpus, there)
        return there
    work = work_folder(corpus, place, found, rehash=rehash)
    with alone(lock_of(work), work.name):
        work.mkdir(parents=True, exist_ok=True)
        _remember(corpus, place, found)
        if not (work / "manifest.json").is_file():
            with cluster(place):
                _build_shards(corpus, place, found, work, rehash=rehash)
            if inputs(corpus, place) != found:
                shutil.rmtree(work)
                raise ValueError(f"input of {corpus.source.name} changed while it was read: build again")
        return _finish(corpus, place, work, found, rehash=rehash)


def _say_built(corpus: Corpus, folder: Path) -> None:
    counts = _manifest(folder)["counts"]
    lost, rows = counts["missing"], counts["rows"]
    if lost > corpus.max_missing * rows:
        raise ValueError(
            f"{folder.name} was built without {lost} of {rows} rows whose files were not there, over "
            f"max_missing={corpus.max_missing}: obtain them and build with --rehash, or --set max_missing=..."
        )
    again = f"; {lost} rows named files that were not there: --rehash looks again" if lost else ""
    print(f"{folder.name}: already built, nothing to do{again}", flush=True)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What some rows of a corpus would give: nothing was written.

    kept: records. bytes: of these as they lie in a shard. seen: which part of the input was read, 0..1.
    """

    name: str
    ledger: tuple[LedgerRow, ...]
    kept: int
    bytes: int
    seen: float

    def rows(self, outcome: str) -> int:
        """Input rows of this outcome."""
        return sum(row.outcome == outcome for row in self.ledger)

    def stops(self, corpus: Corpus) -> str | None:
        """Why a build would stop when all rows are like these."""
        missing, total = self.rows("missing"), max(1, len(self.ledger))
        dropped = len(self.ledger) - self.rows("kept") - missing
        where = "place a root that rows name first by --data NAME=DIR"
        for name, lost, limit, cure in (
            ("max_missing", missing, corpus.max_missing, f"obtain the files, {where}, or raise the limit"),
            ("max_dropped", dropped, corpus.max_dropped, "mend the rows, or raise the limit"),
        ):
            if lost > limit * total:
                return f"a build would stop: {lost} of {total} rows lost, over {name}={limit}; {cure}: --set {name}=..."
        return None


def check(corpus: Corpus, place: Place, *, rows: int) -> Checked:
    """Read about `rows` input rows, spread over the input files, in this process, and write nothing.

    Raises:
        ValueError: input that is not there, or that cannot be adopted.
    """
    place = corpus.found(place)
    found = inputs(corpus, place)
    folder = place.roots.source(corpus.source.name)
    job = _job(corpus, place, earlier={})
    sizes = dict(zip(found.files, found.sizes, strict=True))
    files = found.files[:: math.ceil(len(found.files) / _CHECKED_FILES)]
    share = math.ceil(rows / len(files))
    size = min(corpus.rows_per_shard, share, _PREVIEWED)
    ledger: list[LedgerRow] = []
    kept, weight, seen = 0, 0, 0.0
    progress = Progress(f"{corpus.name} (check)", rows, "rows")
    for file in files:
        if corpus.shards == "adopted":
            adopt.plan(place.roots, file, corpus.source)
        part = 0.0
        splits = plan_of(place.roots, corpus.source.name, file, size)
        for number, split in enumerate(islice(splits, math.ceil(share / size))):
            records, read = job.preview(split, number)
            ledger += read
            kept += len(records)
            weight += 0 if corpus.shards == "adopted" else sum(shards.size(record) for record in records)
            part = readers.share(folder, split)
            progress.advance(len(read))
        seen += sizes[file] * (part if next(splits, None) else 1.0)  # what ends a file is in no split
    return Checked(
        name=corpus.name, ledger=tuple(ledger), kept=kept, bytes=weight, seen=seen / max(1, sum(sizes.values()))
    )


def _job(corpus: Corpus, place: Place, *, earlier: dict[str, str]) -> ShardJob:
    return ShardJob(
        source=corpus.source,
        filters=corpus.filters,
        roots=place.roots,
        recipe_key=corpus.recipe_key(),
        earlier=earlier,
    )


def _build_shards(corpus: Corpus, place: Place, found: Inputs, work: Path, *, rehash: bool) -> None:
    source_folder = place.roots.source(corpus.source.name)
    plan = _plan(corpus, place, found, work)
    job = _job(corpus, place, earlier={} if rehash else earlier_shards(corpus, place))
    todo = [(split, number) for number, split in enumerate(plan) if not receipt_path(work, number).is_file()]
    progress = Progress(f"{work.name}", len(todo), "shards")
    for _ in each(_shard_task, (job, corpus.shards, str(work)), todo, progress):
        pass
    linked = 0

    def receipts() -> Iterator[Receipt]:
        nonlocal linked
        for receipt in _receipts(work, len(plan)):
            linked += receipt.linked is not None
            yield receipt

    try:
        manifest = index.commit(
            work,
            receipts(),
            step=describe(corpus),
            recipe_key=corpus.recipe_key(),
            max_dropped=corpus.max_dropped,
            max_missing=corpus.max_missing,
        )
    except index.TooManyDropped as error:
        for receipt in _receipts(work, len(plan)):  # what could not be read may be mended before the next try
            if any(receipt.ledger.get("corrupt", ())) or any(receipt.ledger.get("missing", ())):
                receipt_path(work, receipt.number).unlink()
        cure = f"mend the data under {source_folder}, or raise the limit: --set {error.limit}=..."
        raise ValueError(f"{corpus.source.name}: {error}; {cure}") from None
    counts = manifest["counts"]
    progress.close(
        f"{counts['rows']} rows, {counts['kept']} records kept, "
        f"{counts['filtered']} filtered, {counts['corrupt']} corrupt, {counts['missing']} missing; "
        f"{len(plan) - linked} shards {corpus.shards}, {linked} linked"
    )


def _receipts(work: Path, count: int) -> Iterator[Receipt]:
    """The receipts of all shards in order, one at a time: together they are as large as the index."""
    for number in range(count):
        yield read_receipt(receipt_path(work, number))


def _plan(corpus: Corpus, place: Place, found: Inputs, work: Path) -> list[Split]:
    """The splits of all files, in order; made once per build and kept in the work folder."""
    plan = planned(work)
    if plan is None:
        made: dict[str, list[Split]] = {}
        progress = Progress(f"{work.name} (plan)", len(found.files), "files")
        for file, splits in each(_plan_task, (corpus, place.roots), found.files, progress):
            made[file] = splits
        plan = [split for file in found.files for split in made[file]]
        write_atomically(work / _PLAN, json.dumps([asdict(split) for split in plan]).encode())
    return plan


def planned(work: Path) -> list[Split] | None:
    """The splits of a build that has begun, None before it knows them."""
    path = work / _PLAN
    return [Split(**fields) for fields in json.loads(path.read_bytes())] if path.is_file() else None


def _remember(corpus: Corpus, place: Place, found: Inputs) -> None:
    """Keep what a key stands for: times are in it, so it is in no file of a corpus."""
    folder = place.root / "corpora" / _INPUTS
    folder.mkdir(exist_ok=True)
    listing = [list(entry) for entry in zip(found.files, found.sizes, found.times, strict=True)]
    told = {
        "recipe_key": corpus.recipe_key(),
        "folder": str(place.roots.source(corpus.source.name)),
        "files": listing,
    }
    write_atomically(folder / f"{corpus.source.name}-{found.key[:12]}.json", json.dumps(told).encode())


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """The input that a corpus was built from: recipe key, source folder, and by file its size and mtime in ns."""

    recipe_key: str
    folder: str
    files: dict[str, tuple[int, int]]


def remembered(corpora: Path, name: str) -> Remembered | None:
    """The input of the corpus or work folder of this name under <root>/corpora; None if nobody noted it."""
    path = corpora / _INPUTS / f"{'-'.join(name.split('-')[:2])}.json"
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    files = {file: (size, time) for file, size, time in told["files"]}
    return Remembered(recipe_key=told["recipe_key"], folder=told["folder"], files=files)


def _plan_task(shared: tuple[Corpus, Roots], file: str) -> tuple[str, list[Split]]:
    corpus, roots = shared
    if corpus.shards == "adopted":
        return file, adopt.plan(roots, file, corpus.source)
    return file, list(plan_of(roots, corpus.source.name, file, corpus.rows_per_shard))


def _shard_task(shared: tuple[ShardJob, str, str], task: tuple[Split, int]) -> None:
    job, shards, work = shared
    split, number = task
    if shards == "adopted":
        adopt.adopt(job, split, number, Path(work))
    else:
        job.build(split, number, Path(work))


def _finish(corpus: Corpus, place: Place, work: Path, found: Inputs, *, rehash: bool) -> Path:
    """Give a committed corpus its place; one that a rehash found unchanged is there already."""
    sweep(work)
    corpora, digest = place.root / "corpora", _manifest(work)["root_digest"]
    name = f"{corpus.source.name}-{found.key[:12]}"
    final = corpora / (f"{name}-{digest[:12]}" if rehash else name)
    for folder in of_recipe(corpus, place):
        if rehash and _input_of(folder) == found.key[:12] and _manifest(folder)["root_digest"] == digest:
            shutil.rmtree(work)
            os.utime(folder / "manifest.json")  # it is what was found last
            print(f"{folder.name}: unchanged, the same bytes again", flush=True)
            return folder
    work.rename(final)
    sync(corpora)
    return final


def earlier_shards(corpus: Corpus, place: Place) -> dict[str, str]:
    """Shards that finished corpora of this recipe hold, by shard key."""
    known: dict[str, str] = {}
    for folder in of_recipe(corpus, place):
        known.update({shard["key"]: str(folder.resolve()) for shard in _manifest(folder)["shards"]})
    return known


def of_recipe(corpus: Corpus, place: Place) -> list[Path]:
    """The finished corpora of this recipe, oldest first; those of other schemas have other recipe keys."""
    built, recipe_key = finished((place.root / "corpora").glob(f"{corpus.source.name}-*")), corpus.recipe_key()
    return [folder for folder in built if index.any_manifest(folder).get("recipe_key") == recipe_key]


def newest(corpus: Corpus, place: Place, found: Inputs) -> Path | None:
    """The finished corpus of this input, as it was found last."""
    same = [folder for folder in of_recipe(corpus, place) if _input_of(folder) == found.key[:12]]
    return same[-1] if same else None


def work_folder(corpus: Corpus, place: Place, found: Inputs, *, rehash: bool = False) -> Path:
    """Where a corpus lies while it is being built."""
    name = f"{corpus.source.name}-{found.key[:12]}{'-rehash' if rehash else ''}"
    return place.root / "corpora" / ".building" / name


def lock_of(work: Path) -> Path:
    """The lock of a work folder, held by whoever builds in it."""
    return work.with_name(f"{work.name}.lock")


def _input_of(folder: Path) -> str:
    """The key of a corpus' input: the second part of its name. Times are in it, so it is in no file."""
    return folder.name.split("-")[1]


def _manifest(folder: Path) -> dict[str, Any]:
    return index.read_manifest(folder)
