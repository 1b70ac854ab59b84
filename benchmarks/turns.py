"""Programs that take turns, each time as a process of its own: what each spent, by wall and by CPU, in one table."""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a run took, wall and CPU seconds, and what it made: a digest of all, or a number of samples."""

    wall: float
    cpu: float
    made: str


@contextmanager
def clock(spent: list[Spent]) -> Iterator[None]:
    """Appends the seconds of the block, those of child processes included, and not those of what was there before."""
    gc.collect()
    gc.freeze()  # else every program pays for looking through the samples
    cpu, wall = _cpu(), time.perf_counter()
    yield
    wall = time.perf_counter() - wall
    spent.append(Spent(wall=wall, cpu=_cpu() - cpu, made=""))


def _cpu() -> float:
    """CPU seconds of this process, of children that ended, of descendants that run and of what those waited for."""
    import psutil

    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            living += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return time.process_time() + ended.ru_utime + ended.ru_stime + living


def run(command: Sequence[str | Path]) -> Spent:
    """A program that prints a Spent as JSON on its last line.

    Raises: RuntimeError: it fails.
    """
    words = list(map(str, command))
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[1:])} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return Spent(**json.loads(done.stdout.splitlines()[-1]))


def told(turn: int, name: str, spent: Spent) -> None:
    """A line of progress."""
    took = f"{spent.wall:.2f} s, {spent.cpu:.2f} s of CPU"
    print(f"  round {turn + 1}, {name}: {took}", file=sys.stderr, flush=True)


def table(spent: dict[str, list[Spent]], base: str, count: int) -> dict[str, float]:
    """Print a row a program, `count` samples each; returns their median wall seconds."""
    wall = {name: statistics.median(run.wall for run in runs) for name, runs in spent.items()}
    cpu = {name: statistics.median(run.cpu for run in runs) for name, runs in spent.items()}
    print(f"{'':12}{'per s':>9}{'wall s':>9}{'from-to':>15}{'CPU s':>9}{'speed':>9}{'CPU':>7}  as multiples of {base}")
    for name, runs in spent.items():
        span = f"{min(run.wall for run in runs):.2f}-{max(run.wall for run in runs):.2f}"
        ratios = f"{wall[base] / wall[name]:>9.2f}{cpu[name] / cpu[base]:>7.2f}"
        print(f"{name:12}{count / wall[name]:>9,.0f}{wall[name]:>9.2f}{span:>15}{cpu[name]:>9.2f}{ratios}", flush=True)
    return wall
