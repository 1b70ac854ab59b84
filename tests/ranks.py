"""Two processes that are the ranks of one gloo group, without Ray: told what to do, timed, and ended by their ids.

They live on from one piece of work to the next, since starting costs seconds; a pair that failed is done for.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

START = 120.0  # seconds that two interpreters may take to import torch and meet


class Failed(Exception):
    """A rank raised, or ended: what it said last."""


class Hung(Exception):
    """A rank did not answer in time."""


class Pair:
    """Ranks 0 and 1, on the CPU, one thread each; a context that ends them."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        self._lines: list[Connection] = []
        self._ranks = []
        for rank in range(2):
            here, there = context.Pipe()
            process = context.Process(target=_live, args=(rank, Path(self._folder.name), there), daemon=True)
            process.start()
            there.close()  # so that its end is heard
            self._lines.append(here)
            self._ranks.append(process)
        self.ask(os.getpid, seconds=START)

    def ask(self, work: Callable[..., Any], *arguments: Any, seconds: float) -> list[Any]:
        """What `work(*arguments)` returns on each rank. Both are ended when one fails.

        Args:   work: of a module that the ranks can import; it runs on both at once.
        Raises: Failed when a rank raises or dies, Hung when nothing of that kind is heard for so many seconds.
        """
        for line in self._lines:
            line.send((work, arguments))
        answers, until = dict[int, Any](), time.monotonic() + seconds
        while len(answers) < len(self._lines):
            open_ = [line for rank, line in enumerate(self._lines) if rank not in answers]
            heard = wait(open_, timeout=max(0.0, until - time.monotonic()))
            if not heard:
                self.end()
                raise Hung(f"no answer of ranks {sorted({0, 1} - answers.keys())} in {seconds:.0f} s")
            for line in heard:
                assert isinstance(line, Connection)
                rank = self._lines.index(line)
                try:
                    answers[rank] = line.recv()
                except (EOFError, ConnectionResetError):
                    said = self._said(rank)
                    self.end()
                    raise Failed(f"rank {rank} ended: {said}") from None
        return [answers[rank] for rank in sorted(answers)]

    def _said(self, rank: int) -> str:
        """The end of what a rank wrote."""
        return (Path(self._folder.name) / f"{rank}.txt").read_text()[-2000:].strip()

    def end(self) -> None:
        """End both. Twice is once."""
        for rank in self._ranks:
            rank.kill()
            rank.join()
        for line in self._lines:
            line.close()
        self._folder.cleanup()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _live(rank: int, folder: Path, line: Connection) -> None:
    """A rank's life. What it and its libraries write goes to a file: gloo says much when the other rank is gone."""
    said = os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", CUDA_VISIBLE_DEVICES="")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    while True:
        try:
            work, arguments = line.recv()
        except EOFError:  # whoever started us is gone
            os._exit(0)
        try:
            line.send(work(*arguments))
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # the other rank waits in a collective: no destructor of gloo's may wait for it
