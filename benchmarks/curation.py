"""Corpus-wide decisions on a million synthetic records: seconds, and the most memory that was held.

    4 corpora, 250,000 records each     index on disk as a build leaves it, measures in memory, no shards
    pictures      2 in 5 records edit another's picture; 1 in 10 records comes twice, 1 in 20 a few bits apart,
                  1 in 20 shows one logo, 1 in 20 a blank; the rest are pictures of their own
    captions      10 of 500,000 entries each, few of them in very many captions as on the web
    split         train and validation by cluster, through the selection that a mixture's members use

Aims: all of it within 4 GB and 3 minutes on two cores. Run: make bench-curation
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataflow import curation, index, selection, shards
from dataflow.balancing import Listed, Matcher, MetaClipBalance
from dataflow.curation import Held
from dataflow.duplicates import Duplicates
from dataflow.fingerprints import Perceptual, Sha256
from dataflow.index import INDEX, BuiltCorpus, write_table
from dataflow.selection import Part
from pipelines.curate import select
from pipelines.step import Place

CORPORA, RECORDS = 4, 250_000
SHARD = 1000  # records
ENTRIES = 500_000  # as many as MetaCLIP's metadata holds
LOGO = 0x5AA55AA5C33CC33C  # looks of what many pages carry
MOST_SECONDS, MOST_GIGABYTES = 180, 4


def main() -> None:
    """Make the records, decide, print; exit 1 beyond the aims."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        corpora = [_corpus(root / f"corpora/c{number}-0", f"c{number}") for number in range(CORPORA)]
        held = [_held(corpus, looks) for corpus, looks in zip(corpora, _looks(), strict=True)]
        print(f"{CORPORA * RECORDS:,} records, {_gigabytes():.1f} GB before anything is decided")
        spent = [_duplicates(root, held), _balance(root, held), _split(root, corpora)]
    wrong = sum(spent) > MOST_SECONDS or _gigabytes() > MOST_GIGABYTES
    print(f"all: {sum(spent):.1f} s of {MOST_SECONDS}, {_gigabytes():.2f} GB of {MOST_GIGABYTES} at most")
    sys.exit(1 if wrong else 0)


def _duplicates(root: Path, held: list[Held]) -> float:
    """Twins found, the ledger written and read."""
    rule = Duplicates(same="pictures")
    with _timed("duplicates") as seconds:
        manifest = curation.write(root / "selections/duplicates", held, rule(held), step={"curation": {"is": "it"}})
        curation.read(root / "selections/duplicates")
    for line in curation.lines(manifest):
        print(f"  {line}")
    return seconds()


def _balance(root: Path, held: list[Held]) -> float:
    """The entries of every caption, one after the other in this process, and what their counts leave of the records."""
    rule = MetaClipBalance(entries=Listed(entries=tuple(f"entry{number}" for number in range(ENTRIES))), threshold=200)
    captions = [_captions(number) for number in range(CORPORA)]
    with _timed("entries of captions") as matching:
        matcher = Matcher(rule.entries.read())
        found = [pa.array([matcher([text]) for text in each], pa.list_(pa.int32())) for each in captions]
    before = curation.read(root / "selections/duplicates")
    left = [
        replace(
            one,
            measures={"entries": pa.table({"entries": entries})},
            used=before[one.name].used,
            clusters=before[one.name].clusters,
        )
        for one, entries in zip(held, found, strict=True)
    ]
    with _timed("balancing") as seconds:
        manifest = curation.write(root / "selections/balanced", left, rule(left), step={"curation": {"is": "it"}})
        curation.read(root / "selections/balanced")
    print(f"  {next(curation.lines(manifest))}")
    return matching() + seconds()


def _captions(number: int) -> list[str]:
    """Words that are entries, the first of the list the most frequent by far."""
    ranks = np.random.default_rng(number).zipf(1.3, (RECORDS, 10)) % ENTRIES
    return [" ".join(f"entry{rank}" for rank in row) for row in ranks.tolist()]


def _split(root: Path, corpora: list[BuiltCorpus]) -> float:
    """Both parts of each corpus, by cluster; no cluster is in both."""
    found = curation.read(root / "selections/balanced")
    names: dict[str, set[str]] = {"train": set(), "validation": set()}
    spent = 0.0
    for part in ("train", "validation"):
        with _timed(part) as seconds:
            folders = [select(Part(part=part), one, Place(root=root), found[one.name]) for one in corpora]
        spent += seconds()
        for one, folder in zip(corpora, folders, strict=True):
            rows = pa.array(selection.read(folder))
            names[part].update(found[one.name].clusters.take(rows).to_pylist())
    assert names["validation"]
    assert not names["train"] & names["validation"]
    return spent


@contextmanager
def _timed(name: str) -> Iterator[Callable[[], float]]:
    start = time.perf_counter()
    ends: list[float] = []
    yield lambda: ends[0]
    ends.append(time.perf_counter() - start)
    print(f"{name}: {ends[0]:.1f} s, {_gigabytes():.2f} GB at most")


def _gigabytes() -> float:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _corpus(folder: Path, source: str) -> BuiltCorpus:
    """A corpus whose shards are not there: its index is all that is asked of it."""
    folder.mkdir(parents=True)
    keys = [f"{source}_{row // SHARD:05d}{row % SHARD:04d}" for row in range(RECORDS)]
    numbers = np.arange(RECORDS)
    columns = {
        "key": keys,
        "shard": numbers // SHARD,
        "offset": numbers % SHARD * 20_480,
        "size": np.full(RECORDS, 20_480),
        "task": np.where(_edits(), "image_editing", "text_to_image"),
        "pictures": 1 + _edits(),
        "bytes": np.full(RECORDS, 19_000),
        "widths": pa.repeat(pa.scalar([256], pa.list_(pa.int32())), RECORDS),
        "heights": pa.repeat(pa.scalar([256], pa.list_(pa.int32())), RECORDS),
        "text_length": np.full(RECORDS, 60),
        "sha256": ["0" * 64] * RECORDS,
    }
    write_table(folder / "index.parquet", pa.table(columns, INDEX))
    step = {"source": {"name": source}, "shards": "built"}
    counts = {"kept": RECORDS}
    manifest = {"schema": index.SCHEMA, "root_digest": source, "step": step, "shards": [], "counts": counts}
    manifest["tables"] = {"index.parquet": shards.sha256(folder / "index.parquet")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return BuiltCorpus(folder)


def _edits() -> np.ndarray:
    return np.arange(RECORDS) % 5 < 2


def _looks() -> Iterator[np.ndarray]:
    """Of each corpus uint64[n, 2], what the pictures of its records look like; 0 is a blank."""
    chance = np.random.default_rng(0)
    earlier = chance.integers(1, 1 << 63, (RECORDS, 2), np.uint64)
    for _ in range(CORPORA):
        looks = chance.integers(1, 1 << 63, (RECORDS, 2), np.uint64)
        kind = chance.permutation(RECORDS) / RECORDS
        again = (kind < 0.15) & ~_edits()
        looks[again] = earlier[again]
        near = (kind < 0.05) & ~_edits()
        looks[near, 0] ^= np.uint64(3) << chance.integers(0, 62, int(near.sum()), np.uint64)
        looks[(kind > 0.90) & ~_edits()] = LOGO
        looks[kind > 0.95] = 0
        edits = np.flatnonzero(_edits())
        looks[edits, 0] = looks[chance.choice(edits, len(edits)), 0]  # several edits of one source
        yield looks
        earlier = looks


def _held(corpus: BuiltCorpus, looks: np.ndarray) -> Held:
    counts = np.where(_edits(), 2, 1)
    offsets = pa.array(np.append(0, np.cumsum(counts)), pa.int32())
    shown = looks[np.arange(2) < counts[:, None]]
    by_bytes = np.zeros((len(shown), 4), np.uint64)
    by_bytes[:, 0] = shown
    by_bytes[:, 1] = np.arange(len(shown)) % 2  # as many files again as there are pictures
    digests = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(shown), [None, pa.py_buffer(by_bytes.tobytes())])
    hashes = pa.array(shown, mask=shown == 0)
    words = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(32), RECORDS, [None, pa.py_buffer(np.random.default_rng(1).bytes(32 * RECORDS))]
    )
    return Held(
        name=corpus.name,
        index=corpus.table,
        used=np.ones(RECORDS, bool),
        clusters=corpus.table["key"].combine_chunks(),
        measures={
            "sha256": pa.table({"pictures": pa.ListArray.from_arrays(offsets, digests), "text": words}).cast(
                Sha256().columns
            ),
            "perceptual": pa.table({"pictures": pa.ListArray.from_arrays(offsets, hashes)}).cast(Perceptual().columns),
        },
        corpus=corpus,
    )


if __name__ == "__main__":
    main()
