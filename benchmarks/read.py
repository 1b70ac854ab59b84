"""Samples per second of shuffled readers on the same samples, how fast they begin and resume, and what steps wait.

    ours         Reader and fed over a corpus, records in the order of a schedule: shuffled over all; headers checked,
                 JSON made a record; decoded in four threads by dataflow.media
    litdata      StreamingDataset, shuffle=True (chunks and inside them), two worker processes
    grain        MapDataset over ArrayRecord, shuffled over all, read and decoded in four threads
    webdataset   the shards of ours in order, two worker processes, no shuffle
    Energon      the corpus of ours in order, two worker processes, no shuffle

A sample is a JPEG of 256 px and a chat; raw, peers hand over bytes and ours records. Decoded, all give batches of 64
pictures, uint8[64, 256, 256, 3]. All take turns, each time as a process of its own (`readers.py`): medians of wall
seconds and of CPU seconds, those of child processes included and imports apart; files lie in the page cache. Every
reader must give each sample once. Then, raw, seconds to the first batch of a fresh process, and to the first batch
after half an epoch, by each reader's own state; webdataset has none and reads again what it had. Complete: both halves
are all samples, each once.

With `--run DIR`, a folder of a training, the share of its steps that waited for data, too. Exit 1 where an aim is
missed: ours at least 30,000/s raw and 3,700/s decoded and no peer faster, and less than 1 % waiting.
Run: make bench-read
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import turns
from readers import FILES, READERS, digest
from samples import Samples, made
from turns import HOUSE, Spent

RAW, DECODED = 30_000, 3_700  # samples a second: the aims
WAITING = 0.01  # share of a step
BESIDE = ("ours", "webdataset")  # readers that need no package but ours


def main() -> None:
    """Make the files, let the readers take turns, print the tables and what became of the aims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=HOUSE / ".venv-peers/bin/python", help="where `make peers` put them")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS), help="ours is always one")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a training's folder; repeatable")
    given = parser.parse_args()
    pythons = {
        name: sys.executable if name in BESIDE else str(given.peers)
        for name in READERS
        if name == "ours" or name in given.readers
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = Samples.write(folder, made(given.samples))
        print(f"{given.samples:,} samples of {size / given.samples / 1000:.1f} kB, medians of {given.rounds}")
        for name, python in pythons.items():
            for task in ("files", "half") if name in FILES else ("half",):
                _turn(python, name, task, folder)
        sizes = [(key, len(jpg)) for key, jpg, _ in Samples(folder)]
        keys = digest((key, 0) for key, _ in sizes)
        reached = [
            _throughput(pythons, folder, given.rounds, task, given.samples, aim, whole)
            for task, aim, whole in (("raw", RAW, digest(sizes)), ("decoded", DECODED, keys))
        ]
        _beginnings(pythons, folder, given.rounds, keys)
    reached += [_waiting(run) for run in given.run]
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("\n".join(f"{'reached' if met else 'MISSED'}: {aim}" for aims in reached for aim, met in aims))
    sys.exit(0 if all(met for aims in reached for _, met in aims) else 1)


def _throughput(
    pythons: dict[str, str], folder: Path, rounds: int, task: str, count: int, aim: int, whole: str
) -> list[tuple[str, bool]]:
    """Let all read everything, print a table; returns the aims and whether they were reached."""
    spent = _in_turns(pythons, folder, rounds, task)
    for name, runs in spent.items():
        assert {run.made for run in runs} == {whole}, f"{name} lost, repeated or changed samples"
    print(f"{task}, each sample once")
    wall = turns.table(spent, "ours", count)
    aims = [
        (
            f"{task}, ours gives {count / wall['ours']:,.0f} samples/s (aim: at least {aim:,})",
            count / wall["ours"] >= aim,
        )
    ]
    peers = {name: seconds for name, seconds in wall.items() if name != "ours"}
    if peers:
        best = min(peers, key=peers.__getitem__)
        faster = wall[best] / wall["ours"]
        aims.append((f"{task}, ours is {faster:.2f} x the fastest peer, {best} (aim: at least 1)", faster >= 1))
    return aims


def _beginnings(pythons: dict[str, str], folder: Path, rounds: int, keys: str) -> None:
    """Seconds to a first batch, at the start and at half of an epoch."""
    first = _in_turns(pythons, folder, rounds, "first")
    again = _in_turns(pythons, folder, rounds, "resume")
    print(f"{'':12}{'first batch s':>15}{'CPU s':>9}{'x ours':>9}{'resumed s':>15}{'CPU s':>9}{'x ours':>9}  complete")
    for name in pythons:
        once = {run.made for run in again[name]} == {keys}
        assert once or name != "ours", "ours lost or repeated samples when it was resumed"
        print(f"{name:12}{_beside(first, name)}{_beside(again, name)}  {'yes' if once else 'NO'}")


def _beside(spent: dict[str, list[Spent]], name: str) -> str:
    """Median wall and CPU seconds, and how many times ours the former are."""
    wall, ours = (statistics.median(run.wall for run in spent[each]) for each in (name, "ours"))
    return f"{wall:>15.3f}{statistics.median(run.cpu for run in spent[name]):>9.3f}{wall / ours:>9.2f}"


def _waiting(run: Path) -> list[tuple[str, bool]]:
    """The aim of a training's data, from its metrics: the first step starts the reader, and is left out."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    if not steps:
        raise ValueError(f"{run} has fewer than two steps: train it for longer")
    share = statistics.median(step["data_seconds"] / step["seconds"] for step in steps)
    seconds = statistics.median(step["seconds"] for step in steps)
    told = f"{run.name} waits {share:.2%} of a step of {seconds:.2f} s for data, {len(steps)} steps"
    return [(f"{told} (aim: under {WAITING:.0%})", share < WAITING)]


def _in_turns(pythons: dict[str, str], folder: Path, rounds: int, task: str) -> dict[str, list[Spent]]:
    """Every reader once a round, in a process of its own, by its interpreter."""
    spent: dict[str, list[Spent]] = {name: [] for name in pythons}
    for turn in range(rounds):
        for name, python in pythons.items():
            spent[name].append(_turn(python, name, task, folder))
            turns.told(turn, f"{name}, {task}", spent[name][-1])
    return spent


def _turn(python: str, name: str, task: str, folder: Path) -> Spent:
    return turns.run([python, HOUSE / "benchmarks/readers.py", name, task, folder])


if __name__ == "__main__":
    main()
