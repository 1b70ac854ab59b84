"""This machine: a process of ours that nobody waits for runs the job, on one node or on several raylets.

What runs is DESK/job.sh, below a process of `main`, which ends all that it started when the job has ended, when its
minutes are over, or when it is told to (SIGTERM); DESK/log.txt is what all of them say.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shlex
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from clusters import network, node
from clusters.children import Children, began, runs
from clusters.job import LEFT, LOST, Job, Site, State

_NOTICE = 120.0  # seconds before its end that a job is told to leave, a tenth of its time at most
_ENDS = 5.0  # seconds that what a job left behind has after SIGTERM
_SCRIPT = """\
#!/bin/bash
# {name}: {where}
set -eu
{lines}
"""


_SUPERVISOR = "import sys; sys.path.insert(0, sys.argv[1]); from clusters import local; local.main(sys.argv[2])"


@dataclass(frozen=True, kw_only=True)
class Local(Site):
    """Runs jobs here. Several nodes are raylets of this machine, which may claim more processors than there are."""

    kind: ClassVar[str] = "local"
    shared: ClassVar[bool] = True

    @property
    def python(self) -> str:
        """The one that runs this."""
        return sys.executable

    def joins(self, job: Job) -> bool:
        """Where it has several nodes; of one node, the command starts its own."""
        return job.nodes > 1

    def render(self, job: Job) -> dict[str, str]:
        """job.sh, which can be run by hand, too. Raises ValueError for a job that cannot be rendered safely."""
        job.checked()
        exported = {"PYTHONUNBUFFERED": "1", **network.environment(job, self)}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in exported.items()]
        where = "one node, this machine"
        if self.joins(job):
            where = f"{job.nodes} nodes, all of them this machine"
            gang = f"{shlex.join([self.python, '-P', '-m', 'clusters.node', str(job.desk)])} --rank"
            lines += [
                'export INTERLACE_ATTEMPT="${INTERLACE_ATTEMPT:-by-hand-$$-$RANDOM}"',
                f"export INTERLACE_NODES_HERE={job.nodes}",
                f"export PYTHONPATH={_first(job.code)}",
                *(f"{gang} {rank} &" for rank in range(1, job.nodes)),
                f"exec {gang} 0",
            ]
        else:
            lines += [
                f"cd {shlex.quote(str(job.folder))}",
                f"export PYTHONPATH={_first(job.code)}",
                f"exec {shlex.join(job.command)}",
            ]
        return {"job.sh": _SCRIPT.format(name=job.name, where=where, lines="\n".join(lines))}

    def check(self, job: Job) -> None:
        """Raises ValueError where this machine has too few GPUs or too little memory, or the job's folder is not."""
        if not job.folder.is_dir() and not job.folder.is_relative_to(job.desk):  # what lies there comes with the job
            raise ValueError(f"job {job.name}: there is no folder {job.folder} to run in")
        if not shutil.which("bash"):
            raise ValueError(f"job {job.name}: there is no bash on the path, and a job here is a script of it")
        gpus = len(node.gpus_here())
        if job.nodes * job.gpus > gpus:
            raise ValueError(
                f"job {job.name}: {job.nodes} nodes of {job.gpus} GPUs want {job.nodes * job.gpus}, and this machine "
                f"has {gpus}: ask for less, or give another --cluster"
            )
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**9
        if job.nodes * job.memory > memory:
            raise ValueError(
                f"job {job.name}: {job.nodes} nodes of {job.memory} GB want {job.nodes * job.memory}, and this machine "
                f"has {memory}: ask for less, or give another --cluster"
            )

    def submit(self, job: Job) -> str:
        """Start it; returns the id of its process and when that began."""
        house = str(Path(__file__).resolve().parent.parent)  # not on the PYTHONPATH: the job's code is
        log = (os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        pid = os.posix_spawn(
            self.python,
            [self.python, "-P", "-c", _SUPERVISOR, house, str(job.desk)],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(job.desk / "log.txt"), *log),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD),
        )
        return f"{pid}:{began(pid)}"

    def state(self, job: Job, there: str) -> State:
        """How it is doing: the process tells, and once that is gone, ended.json."""
        if _runs(there):
            return State(name="running")
        try:
            ended = json.loads((job.desk / "ended.json").read_bytes())
        except FileNotFoundError:
            return State(name="lost", why="its process is gone without a word: killed, or cut off")
        code, why = ended["code"], ended["why"]
        if code == 0:
            return State(name="done", why=why, code=0)
        if code == LEFT:
            return State(
                name="stopped", why=why or "it left when it was told to; submitted again it goes on", code=code
            )
        if code == LOST:
            return State(name="lost", why=why or "a node was lost, or did not come: its log says which", code=code)
        return State(name="failed", why=why or _words(code), code=code)

    def log(self, job: Job, there: str, seen: int) -> bytes:
        """What the job and all its nodes wrote after the first `seen` bytes."""
        return job.said(seen)

    def stop(self, job: Job, there: str) -> None:
        """SIGTERM, which its process passes on; what has not ended some seconds later is killed."""
        if _runs(there):
            os.kill(int(there.partition(":")[0]), signal.SIGTERM)


def _first(code: Path) -> str:
    return f"{shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"


def _runs(there: str) -> bool:
    pid, _, since = there.partition(":")
    return runs(int(pid), int(since))


def _words(code: int) -> str:
    """What an exit code says."""
    if code in (126, 127):
        return "its program was not found, or cannot be run: its log says which"
    if code > 128 and code - 128 in signal.valid_signals():
        cause = ": was there too little memory?" if code == 128 + signal.SIGKILL else ""
        return f"ended by {signal.Signals(code - 128).name}{cause}"
    return f"exit code {code}"


def main(desk: str) -> None:
    """Run a desk's job.sh to its end, and write how it ended."""
    told = json.loads((Path(desk) / "job.json").read_bytes())
    job = Job.of(told["job"])
    attempt = secrets.token_hex(4)
    children = Children()
    grace = node.GRACE + (node.ENDS + _ENDS if job.nodes > 1 else 0)
    clock = Clock(seconds=job.minutes * 60 or math.inf)
    child = children.begin(
        ["bash", str(job.desk / "job.sh")],
        folder=job.desk,
        environment={**os.environ, "INTERLACE_ATTEMPT": attempt},
    )
    code = children.attend(child, grace=grace, also=clock)
    children.end_all(_ENDS)
    node.end(job.desk, code, attempt, why=f"its {job.minutes} minutes were over" if clock.told and code else "")


@dataclass(kw_only=True)
class Clock:
    """Ends a job when its time is over: SIGUSR1, some time before, and SIGTERM, each once.

    seconds: of the job. told: the signals that were sent.
    """

    seconds: float
    told: list[int] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def __call__(self) -> int | None:
        """The signal that is due."""
        left = self.since + self.seconds - time.monotonic()
        due = [signal.SIGUSR1] * (left < min(_NOTICE, self.seconds / 10)) + [signal.SIGTERM] * (left < 0)
        fresh = [number for number in due if number not in self.told]
        self.told += fresh
        return fresh[-1] if fresh else None
