"""The readers that `read.py` times, one a process: `python benchmarks/readers.py NAME TASK FOLDER`.

A reader is a function of the folder and of whether pictures are decoded. It imports what it needs, and returns how to
begin: from a state or at the start, a `Feed` of batches. Tasks: `files` writes the form that it reads; `raw` and
`decoded` read all; `first` begins in a fresh process; `half` reads half of it and keeps the state, `resume` goes on.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import pickle
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from samples import SHARD, SIDE, Samples
from turns import Spent, clock

BATCH = 64  # records
WORKERS = 2  # processes of a peer
CHUNK = "64MB"
PREFETCHED, THREADS = 16, 4  # grain's read options, for two cores

Batch = tuple[Sequence[str], Any]
"""Keys, and their JPEGs: a sequence of bytes, or decoded uint8[B, SIDE, SIDE, 3]."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Batches, and what a run that stops after the last one given would save."""

    batches: Iterator[Batch]
    state: Callable[[], Any]


Begin = Callable[[Any], Feed]


def ours(folder: Path, decode: bool) -> Begin:
    """Reader and fed over a corpus; its state is a position."""
    from dataflow.index import BuiltCorpus
    from dataflow.media import decoded
    from dataflow.mixture import Group, Member, Mixture
    from dataflow.reader import Reader, Slot, fed
    from dataflow.record import Record
    from dataflow.schedule import Schedule, Use

    def read(_: Use, record: Record) -> tuple[str, Any]:
        (picture,) = record.media
        return record.key, np.asarray(decoded(picture)) if decode else picture.data

    def batch(packs: Iterable[Sequence[Slot[tuple[str, Any]]]]) -> Batch:
        keys, pictures = zip(*(slot.value for pack in packs for slot in pack), strict=True)
        return keys, np.stack(pictures) if decode else pictures

    def begin(state: int | None) -> Feed:
        corpus = BuiltCorpus(folder / "corpus")
        schedule = Schedule(
            mixture=Mixture(groups=(Group(name="all", share=100, members=(Member(corpus=None),)),), seed=1),
            names=("synthetic",),
            digests=(corpus.digest,),
            rows=(len(corpus),),
            batch=BATCH,
            positions=-(-len(corpus) // BATCH),
        )
        reader = Reader(schedule, [corpus], decode=read, threads=THREADS if decode else 0)
        done = state or 0

        def deal(position: int) -> range:
            return range(min(BATCH, len(corpus) - position * BATCH))  # the last position begins a second epoch

        def batches() -> Iterator[Batch]:
            nonlocal done
            for position, packs in fed(reader, range(done, schedule.positions), deal):
                done = position + 1
                yield batch(packs)

        return Feed(batches=batches(), state=lambda: done)

    return begin


def _corpus(folder: Path) -> None:
    """The samples as a corpus of ours, which webdataset and Energon read as it lies."""
    from dataflow import index, shards
    from dataflow.build import LedgerRow, Receipt, columns
    from dataflow.readers import Split
    from dataflow.record import from_json

    def receipts() -> Iterator[Receipt]:
        samples = iter(Samples(folder))
        for number in itertools.count():
            records = [from_json(key, chat, {"0.jpg": jpg}) for key, jpg, chat in itertools.islice(samples, SHARD)]
            if not records:
                return
            shard = shards.write(records, out / shards.name(number), number)
            file, counts = f"{number}.tar", {"filtered": 0, "duplicate": 0, "corrupt": 0, "missing": 0}
            ledger = [
                LedgerRow(file=file, row=row, shard=number, outcome="kept", reason="", candidates=1, kept=1, **counts)
                for row in range(len(records))
            ]
            yield Receipt(
                number=number,
                split=Split(file=file, first=0, rows=len(records)),
                key=str(number),
                input_sha256="",
                size=shard.size,
                sha256=shard.sha256,
                idx_sha256=shard.idx_sha256,
                entries=columns(shards.Entry, shard.entries),
                ledger=columns(LedgerRow, ledger),
            )

    out = folder / "corpus"
    out.mkdir()
    index.commit(out, receipts(), step={}, recipe_key="benchmark", max_dropped=0.0, max_missing=0.0)


def webdataset(folder: Path, decode: bool) -> Begin:
    """WebDataset and WebLoader; it has no state, so that who resumes reads and drops what he had."""
    import webdataset as wds

    def member(sample: dict[str, Any]) -> tuple[str, Any]:
        return sample["__key__"], pixels(sample["0.jpg"]) if decode else sample["0.jpg"]

    def together(samples: Sequence[tuple[str, bytes]]) -> Batch:
        keys, pictures = zip(*samples, strict=True)
        return keys, pictures

    def begin(state: int | None) -> Feed:
        tars = sorted(map(str, (folder / "corpus").glob("*.tar")))
        opened = wds.WebDataset(tars, shardshuffle=False, nodesplitter=wds.split_by_node)  # type: ignore[attr-defined]
        batched = opened.map(member).batched(BATCH, collation_fn=_together if decode else together)
        loader = wds.WebLoader(batched, batch_size=None, num_workers=WORKERS)  # type: ignore[attr-defined]
        given = 0

        def batches() -> Iterator[Batch]:
            nonlocal given
            for batch in loader:
                given += 1
                if given > (state or 0):
                    yield batch

        return Feed(batches=batches(), state=lambda: given)

    return begin


def energon(folder: Path, decode: bool) -> Begin:
    """get_train_dataset of the folder and a savable loader, with its state."""
    import warnings

    from megatron.energon import (  # type: ignore[import-not-found]
        Cooker,
        DefaultTaskEncoder,
        Sample,
        WorkerConfig,
        basic_sample_keys,
        edataclass,
        get_savable_loader,
        get_train_dataset,
        stateless,
    )

    warnings.filterwarnings("ignore", "'pin_memory'")  # it asks for it, on a machine without a GPU too
    globals()["Sample"] = Sample  # where edataclass looks for it

    @edataclass
    class Member(Sample):
        value: Any

    @stateless
    def cook(sample: dict[str, Any]) -> Member:
        jpg = sample["0.jpg"]
        return Member(**basic_sample_keys(sample), value=pixels(jpg) if decode else jpg)

    class Encoder(DefaultTaskEncoder):
        decoder = None
        cookers = (Cooker(cook),)

        def batch(self, samples: list[Member]) -> Any:
            pairs = [(sample.__key__, sample.value) for sample in samples]
            return _together(pairs) if decode else list(zip(*pairs, strict=True))

    def begin(state: Any) -> Feed:
        opened = get_train_dataset(
            folder / "corpus",
            batch_size=BATCH,
            shuffle_buffer_size=None,
            max_samples_per_sequence=None,
            worker_config=WorkerConfig(rank=0, world_size=1, num_workers=WORKERS),
            task_encoder=Encoder(),
            repeat=False,
        )
        loader = get_savable_loader(opened)
        if state is not None:
            loader.restore_state_rank(state)
        return Feed(batches=iter(loader), state=loader.save_state_rank)

    return begin


def litdata(folder: Path, decode: bool) -> Begin:
    """StreamingDataset of its chunks, shuffled, and a StreamingDataLoader, with its state."""
    import litdata as library  # type: ignore[import-not-found]

    def pair(sample: tuple[str, bytes, bytes]) -> tuple[str, Any]:
        key, jpg, _ = sample
        return key, pixels(jpg)

    def begin(state: dict[str, Any] | None) -> Feed:
        opened = library.StreamingDataset(str(folder / "litdata"), shuffle=True, transform=pair if decode else None)
        collate = _together if decode else _copied
        loader = library.StreamingDataLoader(opened, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate)
        if state is not None:
            loader.load_state_dict(state)
        return Feed(batches=((batch[0], batch[1]) for batch in loader), state=loader.state_dict)

    return begin


def _chunks(folder: Path) -> None:
    """Chunks of litdata's."""
    import litdata as library  # type: ignore[import-not-found]

    samples = Samples(folder)
    out = str(folder / "litdata")
    library.optimize(samples.sample, list(range(len(samples))), out, num_workers=WORKERS, chunk_bytes=CHUNK)


def grain(folder: Path, decode: bool) -> Begin:
    """MapDataset over ArrayRecord, fully shuffled, read by threads, with its state."""
    import grain as library  # type: ignore[import-not-found]

    def sample(record: bytes) -> tuple[str, Any]:
        named, sized = struct.unpack_from("<II", record)
        jpg = record[8 + named : 8 + named + sized]
        return record[8 : 8 + named].decode(), pixels(jpg) if decode else jpg

    def together(samples: Sequence[tuple[str, Any]]) -> Batch:
        keys, pictures = zip(*samples, strict=True)
        return keys, np.stack(pictures) if decode else pictures

    def begin(state: Any) -> Feed:
        source = library.sources.ArrayRecordDataSource(sorted(map(str, (folder / "grain").glob("*"))))
        batched = library.MapDataset.source(source).shuffle(seed=1).map(sample).batch(BATCH, batch_fn=together)
        options = library.ReadOptions(num_threads=THREADS, prefetch_buffer_size=PREFETCHED)
        batches = iter(batched.to_iter_dataset(options))
        if state is not None:
            batches.set_state(state)
        return Feed(batches=batches, state=batches.get_state)

    return begin


def _array_records(folder: Path) -> None:
    """ArrayRecord files, one sample a group so that any can be read alone: lengths of key and JPEG, then all three."""
    from array_record.python.array_record_module import ArrayRecordWriter  # type: ignore[import-not-found]

    (folder / "grain").mkdir()
    samples = iter(Samples(folder))
    for number in itertools.count():
        held = list(itertools.islice(samples, SHARD))
        if not held:
            return
        writer = ArrayRecordWriter(str(folder / "grain" / f"{number:05d}.array_record"), "group_size:1,uncompressed")
        for key, jpg, chat in held:
            writer.write(struct.pack("<II", len(key), len(jpg)) + key.encode() + jpg + chat)
        writer.close()


def pixels(jpg: bytes) -> np.ndarray[Any, Any]:
    """uint8[SIDE, SIDE, 3] of a JPEG, as peers' users decode it."""
    from PIL import Image

    with Image.open(io.BytesIO(jpg)) as image:
        return np.asarray(image.convert("RGB"))


def _together(samples: Sequence[tuple[str, Any]]) -> Batch:
    """A batch of torch's workers, its pictures one tensor: those travel in shared memory, and not through a pipe."""
    import torch

    keys, pictures = zip(*samples, strict=True)
    return keys, torch.from_numpy(np.stack(pictures))


def _copied(samples: Sequence[tuple[str, memoryview, memoryview]]) -> Batch:
    """A batch of litdata's where nothing is decoded: its views of a chunk cannot leave a worker."""
    keys, pictures, _ = zip(*samples, strict=True)
    return keys, list(map(bytes, pictures))


def _read(begin: Begin, decode: bool) -> Spent:
    """All of it, from the start."""
    spent: list[Spent] = []
    held: list[tuple[Sequence[str], Any]] = []
    with clock(spent):
        for keys, pictures in begin(None).batches:
            held.append((keys, pictures.shape if decode else list(map(len, pictures))))
    if decode:
        assert all(tuple(shape) == (len(keys), SIDE, SIDE, 3) for keys, shape in held), "not the pictures' shape"
    sizes = (size for keys, sizes in held for size in ([0] * len(keys) if decode else sizes))
    return replace(spent[0], made=digest(zip((key for keys, _ in held for key in keys), sizes, strict=True)))


def _first(begin: Begin) -> Spent:
    """Until the first batch is there."""
    spent: list[Spent] = []
    with clock(spent):
        keys, _ = next(begin(None).batches)
    return replace(spent[0], made=str(len(keys)))


def _half(begin: Begin, saved: Path, count: int) -> Spent:
    """Read half of the batches, then save the state and the keys that were given."""
    feed, spent, keys = begin(None), [], []
    with clock(spent):
        for batch, _ in itertools.islice(feed.batches, max(1, count // BATCH // 2)):
            keys += batch
    saved.write_bytes(pickle.dumps((feed.state(), keys)))
    return replace(spent[0], made=str(len(keys)))


def _resume(begin: Begin, saved: Path) -> Spent:
    """Until the first batch after a saved state is there; the rest is read to see that nothing is lost or repeated."""
    state, keys = pickle.loads(saved.read_bytes())
    spent: list[Spent] = []
    with clock(spent):
        batches = begin(state).batches
        batch, _ = next(batches)
    keys += batch
    for batch, _ in batches:
        keys += batch
    return replace(spent[0], made=digest((key, 0) for key in keys))


def digest(samples: Iterable[tuple[str, int]]) -> str:
    """Names a multiset of keys and sizes."""
    return hashlib.sha256(json.dumps(sorted(samples)).encode()).hexdigest()


READERS: dict[str, Callable[[Path, bool], Begin]] = {
    "ours": ours,
    "litdata": litdata,
    "grain": grain,
    "webdataset": webdataset,
    "Energon": energon,
}
FILES: dict[str, Callable[[Path], None]] = {"ours": _corpus, "litdata": _chunks, "grain": _array_records}


def main(name: str, task: str, folder: Path) -> Spent:
    """One task of one reader."""
    saved = folder / f"{name}.state"
    if task == "files":
        spent: list[Spent] = []
        with clock(spent):
            FILES[name](folder)
        return spent[0]
    begin = READERS[name](folder, task == "decoded")
    if task == "first":
        return _first(begin)
    if task == "half":
        return _half(begin, saved, len(Samples(folder)))
    if task == "resume":
        return _resume(begin, saved)
    return _read(begin, task == "decoded")


if __name__ == "__main__":
    print(json.dumps(vars(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))))
