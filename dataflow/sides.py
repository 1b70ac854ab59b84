"""Side tars: what was made once of the records of a corpus, beside it under the same keys. No shard is touched.

    00017.tar 00017.tar.idx   files of records of the corpus' shard 17, in its order; offsets beside it
    index.parquet             a row per record: key, row in the corpus' index, pictures, shard, offset, size
    manifest.json             written last: step, corpus digest, counts, sha256s

A measure that makes much of every record grows by such folders, each with records that those before lack; a finished
one never changes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataflow import shards
from dataflow.build import receipt_path, write_atomically
from dataflow.index import BuiltCorpus, write_table
from dataflow.measures import read_table

SIDES = pa.schema(
    [
        ("key", pa.string()),
        ("row", pa.int64()),
        ("pictures", pa.int32()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)


def write(folder: Path, shard: int, records: Iterable[tuple[str, int, int, Mapping[str, bytes]]]) -> None:
    """Put the tar of one shard, its .idx and a receipt into `folder`, each by rename, the receipt last.

    Args:  records: key, row in the corpus' index, how many pictures, and files by extension; in the corpus' order.
    """
    final = folder / shards.name(shard)
    temporary = folder / f".{os.getpid()}-{final.name}"
    rows: list[tuple[str, int, int]] = []

    def samples() -> Iterator[tuple[str, Mapping[str, bytes]]]:
        for key, row, pictures, files in records:
            rows.append((key, row, pictures))
            yield key, files

    tar = shards.write_files(samples(), temporary)
    temporary.rename(final)
    Path(f"{temporary}.idx").rename(f"{final}.idx")
    sizes = np.diff([*tar.offsets, tar.end]).tolist()
    receipt = {
        "name": final.name,
        "size": tar.size,
        "sha256": tar.sha256,
        "idx_sha256": tar.idx_sha256,
        "rows": [[*row, shard, *span] for row, *span in zip(rows, tar.offsets, sizes, strict=True)],
    }
    write_atomically(receipt_path(folder, shard), json.dumps(receipt).encode())


def commit(folder: Path, numbers: Sequence[int], corpus: BuiltCorpus, *, step: dict[str, Any]) -> dict[str, Any]:
    """Finish a folder that holds the tars of all these shards. Returns its manifest."""
    receipts = [json.loads(receipt_path(folder, number).read_bytes()) for number in numbers]
    columns = zip(*(row for receipt in receipts for row in receipt.pop("rows")), strict=True)
    table = pa.table([list(column) for column in columns], SIDES)
    write_table(folder / "index.parquet", table)
    manifest = {
        "step": step,
        "corpus": corpus.name,
        "corpus_digest": corpus.manifest["root_digest"],
        "records": table.num_rows,
        "pictures": int(table["pictures"].to_numpy().sum()),
        "bytes": sum(receipt["size"] for receipt in receipts),
        "shards": receipts,
        "sha256": shards.sha256(folder / "index.parquet"),
    }
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest


class Sides:
    """What finished folders hold beside one corpus, by row of its index. Not to be shared by processes or threads.

    Args:
        records: of the corpus.
    Raises:
        ValueError: a folder is not finished, or its index is not what was written.
    """

    def __init__(self, folders: Sequence[Path], records: int) -> None:
        self.folders = tuple(folders)
        tables = [read_table(folder, "index.parquet", "measure") for folder in folders]
        table = pa.concat_tables([SIDES.empty_table(), *tables])
        self._columns = {name: table[name].to_numpy() for name in ("shard", "offset", "size")}
        self._folder = np.repeat(np.arange(len(tables)), [each.num_rows for each in tables])
        self._place = np.full(records, -1)
        self._place[table["row"].to_numpy()] = np.arange(table.num_rows)
        self._maps = shards.Maps()

    def lacking(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of these rows of the corpus' index of which there is nothing."""
        return rows[self._place[rows] < 0]

    def files(self, row: int, key: str) -> dict[str, bytes]:
        """What there is of a record, by extension.

        Raises:
            ValueError: nothing, or not what the index says.
        """
        place = int(self._place[row])
        if place < 0:
            raise ValueError(f"nothing was measured of {key}")
        shard, offset, size = (int(self._columns[name][place]) for name in ("shard", "offset", "size"))
        path = self.folders[self._folder[place]] / shards.name(shard)
        try:
            return shards.files(memoryview(self._maps[path])[offset : offset + size], key)
        except (ValueError, OSError) as error:
            raise ValueError(f"{key} cannot be read from {path} ({error}): remove the folder, measure again") from None
