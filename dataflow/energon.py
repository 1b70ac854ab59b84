"""What megatron-energon wants beside tars: with it a built corpus opens there as it lies, without `energon prepare`.

    .nv-meta/.info.json     records of each shard
    .nv-meta/split.yaml     every record is of the part `train`: which records train is a selection, not known here
    .nv-meta/dataset.yaml   a sample is the dict of its files (CrudeWebdataset)
    .nv-meta/index.sqlite   where a key's bytes lie: for joins, and for reading by key
    .nv-meta/index.uuid     from the root digest: what Energon keeps of a join is of these bytes

The layout is that of megatron-energon 7. The folder is no part of the root digest: it follows from what is.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from dataflow import shards
from dataflow.build import sync

FOLDER = ".nv-meta"
_BATCH = 1 << 16  # rows of the index held at a time
# Energon's own columns; of its table of the files in a sample there is none, for which it looks into the sample.
_TABLE = """CREATE TABLE samples (
    tar_file_id INTEGER NOT NULL,
    sample_key TEXT NOT NULL UNIQUE,
    sample_index INTEGER NOT NULL,
    byte_offset INTEGER,
    byte_size INTEGER
)"""
_COLUMNS = ("shard", "key", "offset", "size")  # of the index


def write(folder: Path, records: Sequence[int], root_digest: str, *, files: Sequence[str] = ()) -> None:
    """Put `.nv-meta` beside the shards and the index of a corpus. Done again, it is the same bytes.

    Args:
        records: of each shard, in order.
        root_digest: of the corpus, 64 hex digits.
        files: of the shards, where they are not called by their numbers alone.
    Raises:
        OSError: the disk fails.
    """
    meta = folder / FOLDER
    meta.mkdir(exist_ok=True)
    named = files or [shards.name(number) for number in range(len(records))]
    counts = dict(zip(named, records, strict=True))
    train = [file for file, count in counts.items() if count] if files else _runs(records)
    texts = {
        ".info.json": json.dumps({"shard_counts": counts}, indent=1),
        "split.yaml": json.dumps({"split_parts": {"train": train, "val": [], "test": []}, "exclude": []}),
        "dataset.yaml": "__module__: megatron.energon\n__class__: CrudeWebdataset\n",
        "index.uuid": str(uuid.UUID(root_digest[:32])),
    }
    for name, text in texts.items():
        with shards.of_file(meta / name):
            (meta / name).write_text(text)
    _write_index(folder / "index.parquet", meta / "index.sqlite")
    for path in (*meta.iterdir(), meta, folder):
        sync(path)


def _runs(records: Sequence[int]) -> list[str]:
    """The shards that hold a record, Energon takes no others; of neighbours one name, `{00000..00099}.tar`."""
    runs: list[list[int]] = []
    for number, count in enumerate(records):
        if not count:
            continue
        if runs and runs[-1][-1] == number - 1:
            runs[-1][-1] = number
        else:
            runs.append([number, number])
    suffix = Path(shards.name(0)).suffix
    return [shards.name(a) if a == b else f"{{{a:05d}..{b:05d}}}{suffix}" for a, b in runs]


def _write_index(index: Path, path: Path) -> None:
    path.unlink(missing_ok=True)  # of a commit that was cut short
    # no locks, which shared file systems may not have: nobody else knows of the file yet
    database = sqlite3.connect(f"{path.resolve().as_uri()}?nolock=1", uri=True, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("BEGIN")
        database.execute(_TABLE)
        database.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", _samples(index))
        database.execute("COMMIT")
    except sqlite3.Error as error:
        code = errno.ENOSPC if error.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from None
    finally:
        database.close()


def _samples(index: Path) -> Iterator[tuple[int, str, int, int, int]]:
    """The rows of the table: shard, key, place in the shard, first byte, bytes."""
    last, place = -1, 0
    with pq.ParquetFile(index) as opened:
        for batch in opened.iter_batches(_BATCH, columns=list(_COLUMNS)):
            for shard, key, offset, size in zip(*(batch[name].to_pylist() for name in _COLUMNS), strict=True):
                last, place = shard, place + 1 if shard == last else 0
                yield shard, key, place, offset, size
