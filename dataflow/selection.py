"""Which records of a corpus are used: a table made from its index. Shards are never touched by it.

<root>/selections/<key>/selection.parquet   row (int64, into index.parquet), key
                        manifest.json       written last: corpus, rule, counts, sha256
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataflow import shards
from dataflow.build import sweep, write_atomically
from dataflow.draw import draw
from dataflow.index import BuiltCorpus, write_table
from dataflow.measures import read_table

SELECTION = pa.schema([("row", pa.int64()), ("key", pa.string())])


class Selection(Protocol):
    """A rule that chooses records by what the index says of them."""

    version: ClassVar[int]

    def __call__(self, keys: Sequence[str]) -> NDArray[np.bool_]:
        """bool[n]: which of these keys are used."""
        ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """The train or the validation part of a corpus: `validation` of 1,000 records, drawn by hash of the key."""

    part: Literal["train", "validation"]
    validation: int = 20
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.part not in ("train", "validation"):
            raise ValueError(f"part={self.part!r}: a corpus has the parts train and validation")
        if not 0 <= self.validation <= 1000:
            raise ValueError(f"validation={self.validation}: it counts records of 1,000; use 0 to 1000")

    def __call__(self, keys: Sequence[str]) -> NDArray[np.bool_]:
        held_out = np.fromiter((draw(key, "part", 1000) < self.validation for key in keys), bool, len(keys))
        return held_out if self.part == "validation" else ~held_out


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Places `first` up to `end` of 1,000, drawn by hash of the key: portions that do not overlap share no record.

    Independent of `Part`: a portion of the train part is that portion of it.
    """

    first: int = 0
    end: int = 1000
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.end <= 1000:
            raise ValueError(f"first={self.first}, end={self.end}: places of 1,000; use 0 <= first < end <= 1000")

    def __call__(self, keys: Sequence[str]) -> NDArray[np.bool_]:
        places = np.fromiter((draw(key, "portion", 1000) for key in keys), np.int64, len(keys))
        return (self.first <= places) & (places < self.end)


@dataclass(frozen=True, kw_only=True)
class Every:
    """All records: what a member without a selection uses when its mixture is curated."""

    version: ClassVar[int] = 1

    def __call__(self, keys: Sequence[str]) -> NDArray[np.bool_]:
        return np.ones(len(keys), bool)


@dataclass(frozen=True, kw_only=True)
class All:
    """Records that every one of the rules uses."""

    rules: tuple[Selection, ...]
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("All(rules=()): without a rule there is nothing to obey; leave the selection out")

    def __call__(self, keys: Sequence[str]) -> NDArray[np.bool_]:
        return np.logical_and.reduce([rule(keys) for rule in self.rules])


def write(
    folder: Path,
    corpus: BuiltCorpus,
    selection: Selection,
    *,
    step: dict[str, Any],
    names: Sequence[str] | None = None,
) -> None:
    """Apply a selection to a corpus and write its table; the folder is a finished selection once it has a manifest.

    Args:
        corpus: opened whole or through a selection; the rows written are of its index either way.
        names: what the rule draws by instead of the keys: that of the cluster a record stands in, so that records of
            one cluster are chosen together.
    Raises:
        ValueError: the rule did not answer for every key.
    """
    used = np.asarray(selection(corpus.keys if names is None else names))
    if used.dtype != bool or used.shape != (len(corpus),):
        raise ValueError(
            f"{type(selection).__name__} gave {used.dtype}{list(used.shape)} for {len(corpus)} keys of {corpus.name}: "
            "a rule answers with one bool per key"
        )
    places = np.flatnonzero(used)
    chosen = np.asarray(corpus.rows)[places].astype(np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    write_table(folder / "selection.parquet", pa.table([chosen, [corpus.keys[place] for place in places]], SELECTION))
    manifest = {
        "step": step,
        "corpus": corpus.name,
        "corpus_digest": corpus.manifest["root_digest"],
        "counts": {"records": len(corpus), "selected": len(chosen)},
        "sha256": shards.sha256(folder / "selection.parquet"),
    }
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1).encode())


def read(folder: Path) -> NDArray[np.int64]:
    """The index rows of a selection.

    Raises:
        ValueError: no finished selection there, or its table changed.
    """
    return read_table(folder, "selection.parquet", "selection")["row"].to_numpy()


def corpus_of(folder: Path) -> str:
    """Folder name of the corpus that a finished selection chose from."""
    return json.loads((folder / "manifest.json").read_bytes())["corpus"]
