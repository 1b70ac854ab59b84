"""Foreign WebDataset tars as the shards of a corpus, without copying: index and ledger beside links to them.

    build:  00000.tar -> /data/captions/cc12m-train-0000.tar    index.parquet cuts it by sample, .idx as for our own
    read:   bytes of one sample -> the source's own candidates -> the record

A tar is adopted whole: up to 10,000 samples (a key has 4 digits of row), its end mark there. What its source makes of a
sample is made again at every read, so the source's class and version are part of the manifest.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dataflow import folders, readers, shards
from dataflow.build import (
    LedgerRow,
    Receipt,
    ShardJob,
    columns,
    put,
    record_of,
    splits,
    write_atomically,
    write_receipt,
)
from dataflow.media import Corrupt, Missing
from dataflow.readers import Split
from dataflow.record import Lineage, Record
from dataflow.roots import Roots
from dataflow.sources import Source

MOST = 10_000  # samples of a tar


def plan(roots: Roots, file: str, source: Source) -> list[Split]:
    """The one split of a tar.

    Raises:
        ValueError: a file that is no whole tar of at most `MOST` samples, one in a store, or a source that no reader
            could find.
    """
    _ours(type(source).__module__, type(source).__qualname__)
    if folders.is_remote(home := roots.source(source.name)):
        raise ValueError(f"{home}: tars are adopted by links, and a store has none: build without shards=adopted")
    if Path(file).suffix.lower() != ".tar":
        raise ValueError(f"{file}: only tars are adopted; build this corpus without shards=adopted")
    held = list(splits(roots, source.name, file, MOST))
    if len(held) != 1 or held[0].problem:
        why = held[-1].problem if held and held[-1].problem else f"it must hold 1 to {MOST} samples"
        raise ValueError(f"{file} cannot be adopted: {why}; leave it out, or build without shards=adopted")
    return held


def adopt(job: ShardJob, split: Split, number: int, folder: Path) -> None:
    """Put a link to the tar, its .idx and a receipt into `folder`, the receipt last.

    Raises:
        ValueError: as `ShardJob.build`; OSError: the disk fails.
    """
    source_folder = job.roots.source(job.source.name)
    tar = (source_folder / split.file).resolve()
    spans = {each.first: each for each in readers.splits(source_folder, split.file, 1)}
    records, ledger = job.preview(split, number)
    one = {record.lineage.row: record for record in records}
    if len(one) != len(records):
        raise ValueError(
            f"{split.file}: {type(job.source).__name__} makes several records of a sample; build without shards=adopted"
        )
    final = folder / shards.name(number)
    put(final, lambda draft: draft.symlink_to(tar))
    offsets = struct.pack(f"<{len(spans) + 1}Q", *(each.offset for each in spans.values()), split.end)
    write_atomically(Path(f"{final}.idx"), offsets)
    entries = []
    with tar.open("rb") as stream:
        for row, record in one.items():
            offset, end = spans[row].offset, spans[row].end
            stream.seek(offset)
            entries.append(shards.entry(record, number, offset, stream.read(end - offset)))
        stream.seek(0)
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    write_receipt(
        folder,
        Receipt(
            number=number,
            split=split,
            key=sha256,
            input_sha256=sha256,
            size=tar.stat().st_size,
            sha256=sha256,
            idx_sha256=hashlib.sha256(offsets).hexdigest(),
            entries=columns(shards.Entry, entries),
            ledger=columns(LedgerRow, ledger),
        ),
    )


def source(description: dict[str, Any]) -> Source:
    """The source that a manifest names, to read its samples with.

    Raises:
        ValueError: its class is not one of dataflow.sources, is gone or has another version.
    """
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in description.items()
        if name not in ("is", "version")
    }
    module, _, kind = description["is"].partition(":")
    _ours(module, kind)
    try:
        made = getattr(importlib.import_module(module), kind)(**fields)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"{description['is']} cannot be made again: {error}; build the corpus again") from None
    if made.version != description["version"]:
        raise ValueError(
            f"{description['is']} was version {description['version']}, this code has {made.version}: build again"
        )
    return made


def _ours(module: str, kind: str) -> None:
    if not module.startswith("dataflow.sources."):
        raise ValueError(
            f"{module}:{kind} is no source of dataflow.sources, where whoever reads an adopted corpus looks for it: "
            "build without shards=adopted"
        )


def read(data: bytes | memoryview, key: str, lineage: Lineage, source: Source) -> Record:
    """The record that a source makes of the bytes of one sample.

    Raises:
        ValueError: they are not the sample they were.
    """
    split = Split(file=lineage.file, first=lineage.row, rows=1, offset=0, end=len(data))
    (row,) = readers.samples(io.BytesIO(data), split, len(data))
    if row.problem:
        raise ValueError(row.problem)
    (candidate,) = source.candidates(row.value, key, _Nothing(lineage.file))
    if isinstance(candidate, Corrupt):
        raise candidate
    return record_of(candidate, key, source.name, lineage)


@dataclass(frozen=True)
class _Nothing:
    """A sample of a tar brings all its files with it."""

    file: str

    def __call__(self, path: str) -> bytes:
        raise Missing(f"file {path!r} is not there: an adopted sample reads no other file")

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self(path))

    def names(self, path: str) -> list[str]:
        raise Missing(f"folder {path!r} is not there: an adopted sample reads no other file")

    def member(self, archive: str, path: str) -> bytes:
        return self(archive)
