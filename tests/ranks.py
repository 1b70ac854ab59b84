"""Two processes that are the ranks of one gloo group, without Ray: told what to do, timed, and ended by their ids.

They live on from one piece of work to the next, since starting costs seconds; after a failure there are two new ones.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

START = 120.0  # seconds that two processes may take to import all there is and meet


class Failed(Exception):
    """A rank raised, or ended: what it said last."""


class Hung(Exception):
    """A rank did not answer in time."""


class Ranks:
    """Ranks 0 and 1, on the CPU, one thread each. They start when they are first asked."""

    def __init__(self) -> None:
        self._pair: _Pair | None = None

    def ask(self, work: Callable[..., Any], *arguments: Any, seconds: float) -> list[Any]:
        """What `work(*arguments)` returns on each rank.

        Args:   work: of a module that the ranks can import; it runs on both at once.
        Raises: Failed when a rank raises or dies, Hung when one does not answer for so many seconds.
        """
        if self._pair is None:
            self._pair = _Pair()
            self._pair.ask(os.getpid, seconds=START)
        try:
            return self._pair.ask(work, *arguments, seconds=seconds)
        except (Failed, Hung):
            self.end()
            raise

    def end(self) -> None:
        """End both; twice is once."""
        if self._pair is not None:
            self._pair.end()
            self._pair = None


class _Pair:
    """Two processes, and a line to each."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["deepspeed", "diffusers", "transformers"])  # once, not for every pair
        self.folder = tempfile.TemporaryDirectory(prefix="ranks-")
        self.lines: list[Any] = []  # of Connections
        self.processes = []
        for rank in range(2):
            here, there = context.Pipe()
            process = context.Process(target=_live, args=(rank, Path(self.folder.name), there), daemon=True)
            with _on_the_cpu():
                process.start()
            there.close()  # so that its end is heard
            self.lines.append(here)
            self.processes.append(process)

    def ask(self, work: Callable[..., Any], *arguments: Any, seconds: float) -> list[Any]:
        """See `Ranks.ask`."""
        for line in self.lines:
            line.send((work, arguments))
        answers, until = dict[int, Any](), time.monotonic() + seconds
        while len(answers) < len(self.lines):
            asked = [line for rank, line in enumerate(self.lines) if rank not in answers]
            heard = wait(asked, timeout=max(0.0, until - time.monotonic()))
            if not heard:
                raise Hung(
                    f"no answer in {seconds:.0f} s: rank 0 {self.said(0)[-200:]!r}, rank 1 {self.said(1)[-200:]!r}"
                )
            for line in heard:
                rank = [line is each for each in self.lines].index(True)
                try:
                    answers[rank] = self.lines[rank].recv()
                except (EOFError, ConnectionResetError):
                    raise Failed(f"rank {rank} ended: {self.said(rank)}") from None
        return [answers[rank] for rank in sorted(answers)]

    def said(self, rank: int) -> str:
        """The end of what a rank wrote."""
        return (Path(self.folder.name) / f"{rank}.txt").read_text()[-2000:].strip()

    def end(self) -> None:
        """End both, and wait until they are gone."""
        for process in self.processes:
            process.kill()
            process.join()
        for line in self.lines:
            line.close()
        self.folder.cleanup()


@contextlib.contextmanager
def _on_the_cpu() -> Iterator[None]:
    """What the server of these processes is to find in its environment when it starts."""
    before = dict(os.environ)
    os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _live(rank: int, folder: Path, line: Connection) -> None:
    """A rank's life. What it and its libraries write goes to a file: gloo says much when the other rank is gone."""
    said = os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    import torch
    from torch import distributed

    from pipelines import zero

    zero.library()
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    while True:
        try:
            work, arguments = line.recv()
        except EOFError:  # whoever started us is gone
            os._exit(0)
        line.send(work(*arguments))  # what it raises ends us, and is written as Python does
