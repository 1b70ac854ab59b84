"""Processes that we start, and all that those start: signals reach them, none outlives us. Linux only.

A process with `Children` is a subreaper: whatever its children leave behind becomes its child, in whatever session or
group it hid. Its signals wait in a queue that `heard` reads, so that there is one loop, and nothing runs between two
lines of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from clusters.job import LEFT

_PASSED_ON = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
_HEARD = {*_PASSED_ON, signal.SIGCHLD}
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
_LEFT_BEHIND = 1.5  # seconds for what our children left to us: whoever was to end it has ended
_LOOKS = 1.0  # seconds between questions that no signal answers


class Children:
    """Of this process, which has one of these, one thread, and does not ask its signals otherwise."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        if self._libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER): Linux 3.4 and later know it")
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        self._begun: dict[int, subprocess.Popen[bytes]] = {}

    def begin(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        output: IO[bytes] | None = None,
        deaf: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start one, in a session of its own; SIGTERM tells it when we are gone without a word.

        Args:
            output: what it says goes there, not where ours goes. deaf: it and its own ignore SIGUSR1, which Slurm
                sends to all processes of a step.

        Raises:
            OSError: there is no such program or folder.
        """

        def as_child() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
            self._libc.prctl(_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if deaf:
                signal.signal(signal.SIGUSR1, signal.SIG_IGN)

        sys.stdout.flush()
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=as_child,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
        )
        self._begun[child.pid] = child
        return child

    def heard(self, seconds: float) -> int | None:
        """The next signal for whoever we run for; None after so many seconds, or at once when a child has ended."""
        got = signal.sigtimedwait(_HEARD, seconds)
        self._reap()
        return got.si_signo if got is not None and got.si_signo in _PASSED_ON else None

    def attend(
        self, child: subprocess.Popen[bytes], *, grace: float, also: Callable[[], int | None] = lambda: None
    ) -> int:
        """Pass signals on to a child until it ends; its exit code, 128 + N where signal N ended it.

        Told to leave (SIGUSR1) before it could have been ready for that, it left: LEFT.

        Args:
            grace: seconds from SIGTERM or SIGINT to SIGKILL. also: asked every second for a signal to send, until the
                child was asked to end.
        """
        until, leaving = math.inf, False
        while (code := child.poll()) is None:
            told = self.heard(_LOOKS) or (also() if until == math.inf else None)
            if told:
                child.send_signal(told)
                leaving |= told == signal.SIGUSR1
            if told in (signal.SIGINT, signal.SIGTERM):
                until = min(until, time.monotonic() + grace)
            if time.monotonic() > until:
                child.kill()
        if leaving and code == -signal.SIGUSR1:
            return LEFT
        return code if code >= 0 else 128 - code

    def end_all(self, grace: float) -> None:
        """SIGTERM to our children, and to what those leave to us when they end; SIGKILL to whoever does not hear it.

        Args:  grace: seconds between the two; of what was left to us in the meantime, a second or two.
        """
        until, late = dict[int, float](), grace
        while True:
            self._reap()
            ours, now = _children(os.getpid()), time.monotonic()
            if not ours:
                return
            for pid in ours:
                if pid not in until or now > until[pid]:
                    with contextlib.suppress(ProcessLookupError):  # it ended by itself
                        os.kill(pid, signal.SIGKILL if pid in until else signal.SIGTERM)
                until.setdefault(pid, now + late)
            late = min(grace, _LEFT_BEHIND)
            signal.sigtimedwait({signal.SIGCHLD}, 0.1)

    def _reap(self) -> None:
        """Take the exit codes of those that ended: of our own for whoever asks them, of what they left for nobody."""
        try:
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                ours = self._begun.pop(ended.si_pid, None)
                if ours is None:
                    os.waitpid(ended.si_pid, 0)
                else:
                    ours.poll()
        except ChildProcessError:
            return


def began(pid: int) -> int | None:
    """When a process began, in ticks since the machine did: with its id, a name of its own. None: it is no more."""
    found = _stat(pid)
    return None if found is None else int(found[19])


def runs(pid: int, since: int) -> bool:
    """Whether the process of this id that began then still runs; one that its parent has not asked for does not."""
    found = _stat(pid)
    return found is not None and found[0] not in "ZX" and int(found[19]) == since


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on; the second, its name, may hold anything."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return told.rpartition(")")[2].split()


def _children(parent: int) -> set[int]:
    """Ids of its children."""
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return {pid for pid in pids if (found := _stat(pid)) and int(found[1]) == parent}
