"""Measures: what is known of every record of a corpus beside its index: hashes, scores, lengths. No shard is touched.

.00017.parquet, one per shard, as they come   ->   measure.parquet, a row per record in the order of the index
                                                   manifest.json, written last: step, corpus digest, sha256
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataflow import shards
from dataflow.build import sweep, write_atomically
from dataflow.index import BuiltCorpus, write_table
from dataflow.record import Record

_BATCH = 64  # records measured at a time: their pictures are in memory

Ready = Callable[..., Mapping[str, Sequence[Any]]]
"""Records -> by column a value per record. One that has `measures` is given their rows of these records, too, by name.
"""


class Measure(Protocol):
    """A frozen dataclass: its values and `version` are part of the key, so is the version of every library it names.

    libraries: distributions whose version changes the values. gpus: of one worker, where the cluster has any. It may
    have `measures`: others, that it is made of; and `there()`, which raises ValueError where files or weights that
    `ready` will need are not to be had, so that it is known before hours of other work.
    """

    version: ClassVar[int]
    libraries: ClassVar[tuple[str, ...]]
    gpus: ClassVar[float]

    @property
    def name(self) -> str:
        """Names the folder: lower case letters, digits, '_'."""
        ...

    @property
    def columns(self) -> pa.Schema:
        """Of its table."""
        ...

    def ready(self) -> Ready:
        """What measures; called once per worker, where networks are loaded. A record's values are its own: the others
        beside it in a batch do not change them."""
        ...


def part_path(folder: Path, shard: int) -> Path:
    """Where the rows of one shard lie until the measure is finished."""
    return folder / f".{shard:05d}.parquet"


def write_part(
    folder: Path,
    shard: int,
    corpus: BuiltCorpus,
    measure: Measure,
    ready: Ready,
    *,
    tables: Mapping[str, pa.Table] | None = None,
) -> None:
    """Measure the records of one shard; by rename, so that a part that is there is whole.

    tables: of the measures that this one is made of, if it is made of any.
    """
    places = np.flatnonzero(corpus.table["shard"].to_numpy() == shard)
    columns: dict[str, list[Any]] = {name: [] for name in measure.columns.names}
    for records, rows in _batches(corpus, places, tables):
        found = ready(records) if rows is None else ready(records, rows)
        sizes = {name: len(values) for name, values in found.items()}
        if sizes != dict.fromkeys(columns, len(records)):
            raise ValueError(
                f"{measure.name} gave {sizes} for {len(records)} records: one value of each column for each"
            )
        for name, values in found.items():
            columns[name].extend(values)
    table = pa.table(columns, measure.columns)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(part_path(folder, shard), sink.getvalue().to_pybytes())


def _batches(
    corpus: BuiltCorpus, places: NDArray[np.int64], tables: Mapping[str, pa.Table] | None
) -> Iterator[tuple[list[Record], dict[str, list[dict[str, Any]]] | None]]:
    """Records, and what other measures say of them."""
    for first in range(0, len(places), _BATCH):
        some = places[first : first + _BATCH]
        rows = None if tables is None else {name: table.take(some).to_pylist() for name, table in tables.items()}
        yield [corpus.record(int(place)) for place in some], rows


def commit(folder: Path, corpus: BuiltCorpus, measure: Measure, *, step: dict[str, Any]) -> None:
    """Put the parts of all shards together, in order; after this the measure is finished."""
    parts = [part_path(folder, shard) for shard in range(len(corpus.manifest["shards"]))]
    tables = [pq.read_table(part, schema=measure.columns) for part in parts]
    table = pa.concat_tables([measure.columns.empty_table(), *tables])
    assert table.num_rows == corpus.table.num_rows
    write_table(folder / "measure.parquet", table)
    manifest = {
        "step": step,
        "corpus": corpus.name,
        "corpus_digest": corpus.manifest["root_digest"],
        "records": table.num_rows,
        "sha256": shards.sha256(folder / "measure.parquet"),
    }
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    sweep(folder)


def read(folder: Path) -> pa.Table:
    """The table of a finished measure, a row per record in the order of its corpus' index.

    Raises: ValueError: no finished measure there, or its table changed.
    """
    return read_table(folder, "measure.parquet", "measure")


def read_table(folder: Path, name: str, what: str) -> pa.Table:
    """A table that its folder's manifest vouches for.

    Raises: ValueError: no manifest, or the table is not what was written.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{folder} is no finished {what}: it has no manifest.json") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}/manifest.json does not parse ({error}): remove the folder, build again") from None
    path = folder / name
    if not path.is_file() or shards.sha256(path) != manifest["sha256"]:
        raise ValueError(f"{path} changed since it was written: remove the folder, build again")
    return pq.read_table(path)
