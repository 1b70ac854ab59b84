"""Samples per second of shard writers on the same samples, and what the step layer adds to the functions that it runs.

    ShardWriter    webdataset's, mtime=0: JSON and tars
    same, fsync    each of its tars is on the disk before the next one begins, as ours are
    litdata        optimize, two worker processes, chunks of 64 MB; the start of the workers counts
    Ray Data       write_webdataset on two CPUs from a parquet file, which it reads; the cluster's start does not count
    ours           JSON, tars, .idx, sha256 of each record and each tar, index.parquet, fsync; in two threads

A sample is a JPEG of 256 px and a chat, a dict or a record; they lie in memory before the clock runs, and one shard was
written. litdata's and Ray's are JPEG and JSON in files that the page cache holds. Our tars must be ShardWriter's bytes.

    loop           a corpus of text: splits, ShardJob.build of each, index.commit, in one process
    build          `interlace build --workers 1` of it, once its cluster runs and the worker has imported the house

Both must come to the same root digest. All take turns, each time as a process of its own (`writers.py`): medians of
wall seconds and of CPU seconds, those of child processes included. Exit 1 where ours is under 2 times ShardWriter or
build over 1.15 times loop. Run: make bench-write
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import turns
from samples import SHARD, Samples, made
from turns import HOUSE, Spent

SENTENCE = "If Jungkook is in 5th place, then 4 people crossed the finish line before him. "
AT_LEAST, AT_MOST = 2.0, 1.15  # the aims
WRITERS: tuple[str, ...] = ("ShardWriter", "ours", "same, fsync", "litdata", "Ray Data")  # in the order of their turns
STEPS: tuple[str, ...] = ("loop", "build")


def main() -> None:
    """Make the files, let the writers take turns, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default=HOUSE / ".venv-peers/bin/python", help="where `make peers` put litdata")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pythons = {**dict.fromkeys(WRITERS, sys.executable), "litdata": str(given.peers)}
        size = Samples.write(folder, made(given.samples))
        _parquet(folder)
        spent = _in_turns(pythons, folder, given.rounds)
        print(f"{given.samples:,} samples of {size / given.samples / 1000:.1f} kB, medians of {given.rounds}")
        wall = turns.table(spent, "ShardWriter", given.samples)
        written = {name: {run.made for run in runs} for name, runs in spent.items()}
        tars = written["ours"] | written["ShardWriter"] | written["same, fsync"]
        assert len(tars) == 1, "ours are not the bytes of ShardWriter"
        assert written["litdata"] == written["Ray Data"] == {str(given.samples)}, f"samples were lost: {written}"
        faster, durable = wall["ShardWriter"] / wall["ours"], wall["same, fsync"] / wall["ours"]

        _text(folder / "text" / "a.jsonl", given.rows)
        spent = _in_turns(dict.fromkeys(STEPS, sys.executable), folder, given.rounds)
        print(f"{given.rows:,} rows of text, medians of {given.rounds}")
        wall = turns.table(spent, "loop", given.rows)
        assert len({run.made for runs in spent.values() for run in runs}) == 1, "build and loop differ"
        slower = wall["build"] / wall["loop"]
    print(f"ours is {faster:.2f} x ShardWriter (aim: at least {AT_LEAST}), {durable:.2f} x ShardWriter with fsync")
    print(f"build takes {slower:.2f} x the loop (aim: at most {AT_MOST})")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    sys.exit(0 if faster >= AT_LEAST and slower <= AT_MOST else 1)


def _in_turns(pythons: dict[str, str], folder: Path, rounds: int) -> dict[str, list[Spent]]:
    """Every writer once a round, in a process of its own, by its interpreter."""
    spent: dict[str, list[Spent]] = {name: [] for name in pythons}
    for turn in range(rounds):
        for name, python in pythons.items():
            out = folder / "out"
            os.sync()  # nobody pays for what another left to the disk
            spent[name].append(turns.run([python, HOUSE / "benchmarks/writers.py", name, folder, out]))
            shutil.rmtree(out)
            turns.told(turn, name, spent[name][-1])
    return spent


def _parquet(folder: Path) -> None:
    """The samples as Ray Data reads them, a row group a shard."""
    names = ("__key__", "0.jpg", "json")
    table = pa.table(dict(zip(names, map(list, zip(*Samples(folder), strict=True)), strict=True)))
    options = {"use_dictionary": False, "compression": "none"}
    pq.write_table(table, folder / "samples.parquet", row_group_size=SHARD, **options)


def _text(file: Path, rows: int) -> None:
    """Documents of 0.9 kB, a JSON a line."""
    file.parent.mkdir()
    with file.open("w") as stream:
        for number in range(rows):
            stream.write(json.dumps({"text": f"{number}: {SENTENCE * 11}", "id": f"<urn:{number}>"}) + "\n")


if __name__ == "__main__":
    main()
