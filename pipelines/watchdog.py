"""A rank that stands still ends the run, after it has said where every rank stands.

Each rank's watchdog, a thread, writes rank-N.beat into the attempt's folder every few seconds: what its rank does and
since when. Where a rank does one thing for longer than it may, its stack goes to rank-N.stuck.txt, stuck.txt says in
its first line which rank stands where, and the process ends. A rank that was stopped, or whose node is gone, is told by
its beats, which have ceased.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from dataflow.build import write_atomically

HOUSE = Path(__file__).resolve().parent.parent
SLOWEST_BEAT = 10.0  # seconds
BEATS_MISSED = 3  # after which a rank does not answer
ENDED = 75  # the exit code of a rank that its watchdog ends


class Watchdog:
    """Of one rank. `at` says what the calling thread begins to do; the same thing may last `patience` seconds."""

    def __init__(self, attempt: Path, rank: int, world: int, patience: float) -> None:
        self._attempt, self._rank, self._world, self._patience = attempt, rank, world, patience
        self._beat = min(SLOWEST_BEAT, patience / 20)
        self._thread = threading.get_ident()
        self._ended = threading.Event()
        self.at("begins")

    def at(self, doing: str) -> None:
        """What this rank does from now on, as "trains position 12"."""
        self._doing = doing, time.time()

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watchdog]:
        """Within the block the thread runs."""
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._beat):
            self._tell()
            if time.time() - self._doing[1] > self._patience:
                self._end()

    def _tell(self) -> None:
        doing, since = self._doing
        told = {"doing": doing, "since": since, "time": time.time(), "where": self._where()}
        write_atomically(self._path(self._rank), json.dumps(told).encode())

    def _where(self) -> str:
        return where(sys._current_frames()[self._thread])

    def _end(self) -> None:
        with (self._attempt / f"rank-{self._rank}.stuck.txt").open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self._ended.wait(BEATS_MISSED * self._beat)  # the others are as late as a beat
        self._tell()
        told, now = {rank: self._heard(rank) for rank in range(self._world)}, time.time()
        silent = {rank for rank, beat in told.items() if now - beat["time"] > (BEATS_MISSED + 1) * self._beat}
        if self._rank == min(told.keys() - silent):
            lines = said(told, silent, now, self._patience)
            write_atomically(self._attempt / "stuck.txt", "\n".join(lines).encode() + b"\n")
        else:  # whoever ends first ends all
            self._ended.wait(BEATS_MISSED * self._beat)
        os._exit(ENDED)

    def _heard(self, rank: int) -> dict[str, Any]:
        path = self._path(rank)
        if not path.is_file():
            return {"doing": "begins", "since": 0, "time": 0, "where": ""}
        return json.loads(path.read_bytes())

    def _path(self, rank: int) -> Path:
        return self._attempt / f"rank-{rank}.beat"


def said(told: dict[int, dict[str, Any]], silent: set[int], now: float, patience: float) -> list[str]:
    """All in a line, then each rank in a line; ranks that do not answer first, then who stands longest.

    Args:  told: of each rank its last beat. silent: ranks whose beats have ceased.
    """
    order = sorted(told, key=lambda rank: (rank not in silent, told[rank]["since"], rank))
    ranks = []
    for rank in order:
        beat = told[rank]
        if rank in silent:
            lost = "does not answer (stopped, or its node is gone)"
            ranks.append(f"rank {rank} {lost}; it last told that it {beat['doing']}")
        else:
            ranks.append(f"rank {rank} {beat['doing']} for {now - beat['since']:.0f} s: {beat['where']}")
    first = ranks[0] if len(ranks) == 1 else f"{ranks[0]}; {ranks[1]}"
    more = f"; {len(ranks) - 2} more ranks" if len(ranks) > 2 else ""
    return [f"no rank went on for {patience:g} s (execution.patience): {first}{more}", *ranks]


def where(frame: FrameType | None) -> str:
    """The innermost line of the house that a stack stands in, and the collective of torch's that it called, if any."""
    place, collective = "", ""
    while frame is not None and not place:
        code = frame.f_code
        file = Path(code.co_filename)
        if file.name == "distributed_c10d.py":
            collective = code.co_name
        elif file.is_relative_to(HOUSE) and "site-packages" not in file.parts:
            place = f"{file.relative_to(HOUSE)}:{frame.f_lineno} in {code.co_name}"
        frame = frame.f_back
    return f"{place}, in {collective}" if collective else place
