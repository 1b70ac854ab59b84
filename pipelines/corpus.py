"""A corpus as a workflow step: plan the splits, build each shard on a Ray worker, commit.

<root>/corpora/.building/<source>-<key>/      shards and receipts as they come; a rerun goes on from them
<root>/corpora/.inputs/<source>-<key>.json    the input files that this key stands for: what `--explain` compares
<root>/corpora/<source>-<key>/                the finished corpus; never changes
<root>/corpora/<source>-<key>-<digest>/       one that --rehash found to differ under the same index files

With `--corpora` these lie there instead; what becomes of a build in an object store is told in dataflow/uploads.py.
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

from dataflow import adopt, folders, index, media, readers, shards, stores, uploads
from dataflow.build import (
    LedgerRow,
    Receipt,
    ShardJob,
    read_receipt,
    receipt_path,
    received,
    sweep,
    sync,
    write_atomically,
)
from dataflow.build import splits as plan_of
from dataflow.readers import Split
from dataflow.roots import Roots
from pipelines.recipe import describe, key
from pipelines.step import Place, Progress, alone, cluster, each, finished, slug

_CHECKED_FILES = 10  # at most, of a corpus that is only looked into
_PLAN, _INPUTS = ".plan.json", ".inputs"  # of a work folder; of the folder of all corpora
_STORES, _URL = "stores", "url"  # of a root: where its corpora are kept
_REHASH = "-rehash"  # ends the name of a work folder
_RECEIPTS = 64  # asked of a store at a time
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
    """The input files of a corpus as found; `key` names them and the recipe.

    sizes: bytes. times: mtimes in ns; of objects in a store a number that follows from what tells their states apart.
    """

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
    stamps = place.roots.stamps(corpus.source.name, files)
    listing = [[file, *stamp] for file, stamp in zip(files, stamps, strict=True)]
    return Inputs(
        files=files,
        sizes=tuple(size for size, _ in stamps),
        times=tuple(time for _, time in stamps),
        key=key([corpus.recipe_key(), listing]),
    )


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
            f"{corpus.source.name} is built from {len(same)} different inputs under {_where(place)} ({names}): "
            "say which input is meant by --data DIR, as for the build"
        )
    return same[-1]  # the same bytes, whichever input they came from


def _unbuilt(corpus: Corpus, place: Place) -> str:
    return f"{corpus.source.name} is not built under {_where(place)}: run interlace build with the same recipe"


def _where(place: Place) -> Path:
    """What a person said of where corpora are."""
    return place.store or place.root


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
    remote = folders.is_remote(place.corpora)
    if remote and corpus.shards == "adopted":
        raise ValueError(
            f"shards='adopted' of {corpus.name} are links to tars, and {place.corpora} has no links: "
            "build without it, or leave --corpora out"
        )
    place = corpus.prepared(place)
    found = inputs(corpus, place)
    there = newest(corpus, place, found)
    if there is not None and not rehash:
        _say_built(corpus, there)
        return there
    work = work_folder(corpus, place, found, rehash=rehash)
    with alone(lock_of(work), work.name):
        if remote:
            shutil.rmtree(work, ignore_errors=True)  # receipts in the store are what a build goes on from
        work.mkdir(parents=True, exist_ok=True)
        note_store(place)
        _remember(corpus, place, found)
        if not (work / "manifest.json").is_file():
            try:
                with cluster(place, shared=() if place.store is None else (place.store,)):
                    _build_shards(corpus, place, found, work, rehash=rehash)
            except FileNotFoundError:
                if not remote or rehash or (there := newest(corpus, place, found)) is None:
                    raise
                uploads.discard(begun_folder(place, work.name))
                shutil.rmtree(work)
                print(f"{there.name}: another build finished it meanwhile", flush=True)
                return there
            if inputs(corpus, place) != found:
                if remote:
                    uploads.discard(*_in_store(place, work))
                shutil.rmtree(work)
                raise ValueError(f"input of {corpus.source.name} changed while it was read: build again")
        return _finish(corpus, place, work, found, rehash=rehash)


def _in_store(place: Place, work: Path) -> tuple[Path, Path]:
    """Where a build in a store leaves plan and receipts, and where shards; a rehash names its folder at its end."""
    begun = begun_folder(place, work.name)
    return begun, begun if work.name.endswith(_REHASH) else place.corpora / work.name


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
    begun, parts = _in_store(place, work)
    plan = _plan(corpus, place, found, begun)
    job = _job(corpus, place, earlier={} if rehash else earlier_shards(corpus, place))
    done = received(begun)
    todo = [(split, number) for number, split in enumerate(plan) if number not in done]
    progress = Progress(f"{work.name}", len(todo), "shards")
    for _ in each(_shard_task, (job, corpus.shards, begun, parts), todo, progress):
        pass
    linked = 0

    def receipts() -> Iterator[Receipt]:
        nonlocal linked
        for receipt in _receipts(begun, len(plan)):
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
            **({"file_of": uploads.file_of} if folders.is_remote(begun) else {}),
        )
    except index.TooManyDropped as error:
        for receipt in _receipts(begun, len(plan)):  # what could not be read may be mended before the next try
            if any(receipt.ledger.get("corrupt", ())) or any(receipt.ledger.get("missing", ())):
                stores.remove([receipt_path(begun, receipt.number)])
        cure = f"mend the data under {source_folder}, or raise the limit: --set {error.limit}=..."
        raise ValueError(f"{corpus.source.name}: {error}; {cure}") from None
    counts = manifest["counts"]
    progress.close(
        f"{counts['rows']} rows, {counts['kept']} records kept, "
        f"{counts['filtered']} filtered, {counts['corrupt']} corrupt, {counts['missing']} missing; "
        f"{len(plan) - linked} shards {corpus.shards}, {linked} linked"
    )


def _receipts(begun: Path, count: int) -> Iterator[Receipt]:
    """The receipts of all shards in order, some at a time: together they are as large as the index."""
    some = _RECEIPTS if folders.is_remote(begun) else 1
    for first in range(0, count, some):
        paths = [receipt_path(begun, number) for number in range(first, min(first + some, count))]
        yield from stores.at_once(read_receipt, paths)


def _plan(corpus: Corpus, place: Place, found: Inputs, begun: Path) -> list[Split]:
    """The splits of all files, in order; made once per build and kept beside the receipts."""
    plan = planned(begun)
    if plan is None:
        made: dict[str, list[Split]] = {}
        progress = Progress(f"{begun.name} (plan)", len(found.files), "files")
        for file, splits in each(_plan_task, (corpus, place.roots), found.files, progress):
            made[file] = splits
        plan = [split for file in found.files for split in made[file]]
        write_atomically(begun / _PLAN, json.dumps([asdict(split) for split in plan]).encode())
    return plan


def planned(begun: Path) -> list[Split] | None:
    """The splits of a build that has begun, None before it knows them."""
    try:
        return [Split(**fields) for fields in json.loads(stores.read(begun / _PLAN))]
    except FileNotFoundError:
        return None


def _remember(corpus: Corpus, place: Place, found: Inputs) -> None:
    """Keep what a key stands for: times are in it, so it is in no file of a corpus."""
    folder = place.corpora / _INPUTS
    if not folders.is_remote(folder):
        folder.mkdir(exist_ok=True)
    listing = [list(entry) for entry in zip(found.files, found.sizes, found.times, strict=True)]
    told = {
        "recipe_key": corpus.recipe_key(),
        "folder": str(place.roots.source(corpus.source.name)),
        "files": listing,
    }
    write_atomically(folder / f"{corpus.source.name}-{found.key[:12]}.json", json.dumps(told).encode())


def note_store(place: Place) -> None:
    """Leave under the root where its corpora are kept, so that `gc` knows what was measured of them to be in use."""
    if place.store is not None:
        note = place.root / _STORES / slug(place.store) / _URL
        if not note.is_file():
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(note, str(place.store).encode())


def stores_of(root: Path) -> list[Path]:
    """Where corpora are kept that something under this root was made of."""
    return [folders.folder(note.read_text()) for note in sorted((root / _STORES).glob(f"*/{_URL}"))]


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """The input that a corpus was built from: recipe key, source folder, and by file its size and mtime in ns."""

    recipe_key: str
    folder: str
    files: dict[str, tuple[int, int]]


def remembered(corpora: Path, name: str) -> Remembered | None:
    """The input of the corpus or work folder of this name where corpora are kept; None if nobody noted it."""
    path = corpora / _INPUTS / f"{'-'.join(name.split('-')[:2])}.json"
    try:
        told = json.loads(stores.read(path))
    except FileNotFoundError:
        return None
    files = {file: (size, time) for file, size, time in told["files"]}
    return Remembered(recipe_key=told["recipe_key"], folder=told["folder"], files=files)


def _plan_task(shared: tuple[Corpus, Roots], file: str) -> tuple[str, list[Split]]:
    corpus, roots = shared
    if corpus.shards == "adopted":
        return file, adopt.plan(roots, file, corpus.source)
    return file, list(plan_of(roots, corpus.source.name, file, corpus.rows_per_shard))


def _shard_task(shared: tuple[ShardJob, str, Path, Path], task: tuple[Split, int]) -> None:
    job, shards, begun, parts = shared
    split, number = task
    if folders.is_remote(begun):
        uploads.build(job, split, number, parts, begun)
    elif shards == "adopted":
        adopt.adopt(job, split, number, begun)
    else:
        job.build(split, number, begun)


def _finish(corpus: Corpus, place: Place, work: Path, found: Inputs, *, rehash: bool) -> Path:
    """Give a committed corpus its place; one that a rehash found unchanged is there already."""
    sweep(work)
    corpora, manifest = place.corpora, _manifest(work)
    digest, remote = manifest["root_digest"], folders.is_remote(corpora)
    name = f"{corpus.source.name}-{found.key[:12]}"
    final = corpora / (f"{name}-{digest[:12]}" if rehash else name)
    for folder in of_recipe(corpus, place):
        if rehash and _input_of(folder) == found.key[:12] and _manifest(folder)["root_digest"] == digest:
            if remote:
                uploads.discard(begun_folder(place, work.name))
                stores.write(folder / "manifest.json", stores.read(folder / "manifest.json"))  # found last, as below
            else:
                os.utime(folder / "manifest.json")  # it is what was found last
            shutil.rmtree(work)
            print(f"{folder.name}: unchanged, the same bytes again", flush=True)
            return folder
    if remote:
        begun, parts = _in_store(place, work)
        uploads.publish(work, manifest, parts, final, begun)
        shutil.rmtree(work)
        return final
    work.rename(final)
    sync(corpora)
    return final


def earlier_shards(corpus: Corpus, place: Place) -> dict[str, str]:
    """Shards that finished corpora of this recipe hold, by shard key."""
    known: dict[str, str] = {}
    for folder in of_recipe(corpus, place):
        where = str(folder if folders.is_remote(folder) else folder.resolve())
        known.update({shard["key"]: where for shard in _manifest(folder)["shards"]})
    return known


def of_recipe(corpus: Corpus, place: Place) -> list[Path]:
    """The finished corpora of this recipe, oldest first; those of other schemas have other recipe keys."""
    built, recipe_key = finished(stores.inside(place.corpora, f"{corpus.source.name}-*")), corpus.recipe_key()
    manifests = zip(built, stores.at_once(index.any_manifest, built), strict=True)
    return [folder for folder, manifest in manifests if manifest.get("recipe_key") == recipe_key]


def newest(corpus: Corpus, place: Place, found: Inputs) -> Path | None:
    """The finished corpus of this input, as it was found last."""
    same = [folder for folder in of_recipe(corpus, place) if _input_of(folder) == found.key[:12]]
    return same[-1] if same else None


def work_folder(corpus: Corpus, place: Place, found: Inputs, *, rehash: bool = False) -> Path:
    """Where a corpus lies while it is being built; of one that goes into a store what is put there at the end."""
    return place.locks / f"{corpus.source.name}-{found.key[:12]}{_REHASH if rehash else ''}"


def begun_folder(place: Place, name: str) -> Path:
    """Where plan and receipts of a build lie: its work folder, or what a store has of it."""
    return place.corpora / ".building" / name


def lock_of(work: Path) -> Path:
    """The lock of a work folder, held by whoever builds in it."""
    return work.with_name(f"{work.name}.lock")


def _input_of(folder: Path) -> str:
    """The key of a corpus' input: the second part of its name. Times are in it, so it is in no file."""
    return folder.name.split("-")[1]


def _manifest(folder: Path) -> dict[str, Any]:
    return index.read_manifest(folder)
