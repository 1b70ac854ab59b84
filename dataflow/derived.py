"""A built corpus as the input of another: a row per record, with what was measured of it, a file per shard.

corpus + measures -> write() -> 00000.jsonl, 00001.jsonl, ..., manifest.json -> readers -> a source -> record(row, read)

A row:  {"key": "mmc4_000000000", "shard": "00000.tar", "offset": 0, "size": 20480, "sha256": "...",
         "instructions": {"groups": [[0, 2]], "replies": ["[...]"]}}
Its sha256 is the record's, so whatever is built from such rows is built anew when a record changes, or a measure of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataflow import shards
from dataflow.build import write_atomically
from dataflow.index import BuiltCorpus
from dataflow.media import Corrupt
from dataflow.record import Record
from dataflow.sources import Read

RECORDS = "records"  # name of the root that is the built corpus
_PLACE = ("key", "offset", "size", "sha256")


def write(folder: Path, corpus: BuiltCorpus, measures: Mapping[str, pa.Table], *, step: dict[str, Any]) -> None:
    """Write the rows of a corpus; the folder is finished once it has a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = corpus.table["shard"].to_numpy()
    bounds = np.searchsorted(numbers, np.arange(len(corpus.manifest["shards"]) + 1))  # shard after shard
    for number, (first, end) in enumerate(pairwise(bounds)):
        file = shards.file_of(corpus.manifest["shards"][number])
        columns = corpus.table.select(_PLACE).slice(first, end - first).to_pylist()
        measured = {name: table.slice(first, end - first).to_pylist() for name, table in measures.items()}
        rows = (
            {**row, "shard": file, **{name: held[place] for name, held in measured.items()}}
            for place, row in enumerate(columns)
        )
        data = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
        write_atomically(folder / f"{number:05d}.jsonl", data)
    manifest = {"step": step, "records": len(numbers)}
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1).encode())


def record(row: Mapping[str, Any], read: Read) -> Record:
    """The record that a row stands for.

    Raises:
        Missing: its shard is not there.
        Corrupt: it is not the record of the row.
    """
    with read.open(f"{RECORDS}/{row['shard']}") as stream:
        stream.seek(row["offset"])
        data = stream.read(row["size"])
    try:
        return shards.read(data, row["key"])
    except ValueError as error:
        raise Corrupt(f"record {row['key']} cannot be read from its shard: {error}") from None
