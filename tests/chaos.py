"""A training on several nodes where everything is killed in turn: `python tests/chaos.py` is `make chaos`.

The nodes are raylets of this machine: a head without a CPU, where driver and controller live, and nodes of one each for
a rank. The training is that of `driver.py`, one of whose records cannot be read. A kill is with -9 after a drawn step;
who survives goes on by itself, a driver that was killed is begun again by the same command. The run must tell the
losses of one that nobody disturbed: to the last digit as long as it has had two workers, within `CLOSE` after steps
with another number. Beside it, how long plain Ray Train takes to recover.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driver import SAVE_EVERY

from dataflow.index import BuiltCorpus
from pipelines.step import Place

HERE = Path(__file__).resolve()
HOUSE = HERE.parent.parent
CLOSE = 1e-4  # relative: float32 sums in another order
STEPS = 180
LIMIT = 240.0  # seconds in which anything must happen, on a loaded machine
WORD = "kill the next save"  # a file that asks for it

HOOK = """
import os, signal

_fsync, _word = os.fsync, os.environ.get("CHAOS_SAVE", "")


def _killed_between_files(descriptor):
    _fsync(descriptor)
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    if "/.saving-" in path and path.endswith("/exp_avg.safetensors") and os.path.exists(_word):
        os.unlink(_word)
        os.kill(os.getpid(), signal.SIGKILL)


os.fsync = _killed_between_files
"""


class Nodes:
    """A cluster of raylets, ours alone: a head and some nodes. Its processes are known by their ids."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes: list[Any] = []
        for _ in range(nodes):
            self.add()

    @property
    def address(self) -> str:
        """Of the head."""
        return str(self._cluster.address)

    def add(self) -> None:
        """One more node."""
        self._nodes.append(self._cluster.add_node(num_cpus=1))

    def ranks(self) -> list[int]:
        """Ids of the processes that train, by node."""
        return [pid for node in self._nodes for pid in _children(_raylet(node), b"ray::RayTrainWorker")]

    def controllers(self) -> list[int]:
        """Ids of Ray Train's controllers."""
        return _children(_raylet(self._cluster.head_node), b"ray::TrainController")

    def lose(self, which: int) -> None:
        """Kill a node's raylet."""
        node = self._nodes.pop(which)
        os.kill(_raylet(node), signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def behead(self) -> None:
        """Kill all of the head's processes at once."""
        for kind in self._cluster.head_node.all_processes.values():
            for process in kind:
                os.kill(process.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End what lives of it."""
        for node in [*self._nodes, self._cluster.head_node]:
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


def _raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def _children(parent: int, title: bytes) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            named = (folder / "cmdline").read_bytes().startswith(title)
            if named and int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue  # it has just ended
    return sorted(found)


@contextmanager
def environment(folder: Path) -> Iterator[None]:
    """What raylets, workers and drivers that are begun in the block find."""
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    before = dict(os.environ)
    os.environ.update(
        PYTHONPATH=os.pathsep.join(map(str, (folder / "hook", HOUSE, HERE.parent))),
        CHAOS_SAVE=str(folder / WORD),
        OMP_NUM_THREADS="1",
        RAY_TRAIN_V2_ENABLED="1",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        RAY_health_check_period_ms="1000",
        RAY_health_check_failure_threshold="3",
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def built(nodes: Nodes, folder: Path, data: Path, steps: int) -> tuple[Path, Path]:
    """Two roots with the same corpora, for a run that nobody disturbs and for one that is. A picture is broken."""
    calm, rough = folder / "calm", folder / "rough"
    command = [*_command("build", nodes.address, calm, steps), "--data", str(data)]
    subprocess.run(command, check=True, timeout=LIMIT, stdout=subprocess.DEVNULL)
    corpus = BuiltCorpus(next((calm / "corpora").glob("metaclip-*")))
    record = corpus.record(7)
    shard = corpus.folder / f"{corpus.table['shard'][7].as_py():05d}.tar"
    shard.write_bytes(shard.read_bytes().replace(record.media[0].data, b"\0" * len(record.media[0].data)))
    shutil.copytree(calm, rough)
    return calm, rough


def _command(what: str, address: str, root: Path, steps: int) -> list[str]:
    return [sys.executable, str(HERE.with_name("driver.py")), what, address, str(root), "--steps", str(steps)]


class Course:
    """A run under way: the cluster it is on, its driver, what its journal and its driver say."""

    def __init__(self, nodes: Nodes, root: Path, steps: int, what: str = "train") -> None:
        self.nodes, self.root, self.steps, self.what = nodes, root, steps, what
        self.said = root.with_suffix(".txt")
        self.driver: subprocess.Popen[bytes] | None = None
        self._read: tuple[int, list[dict[str, Any]]] = 0, []

    def start(self) -> None:
        """Give the command, in a process group of its own."""
        with self.said.open("ab") as said:
            command = _command(self.what, self.nodes.address, self.root, self.steps)
            self.driver = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)

    def end(self, code: int) -> str:
        """Wait until the driver has ended, with this code. Returns its last words."""
        assert self.driver is not None
        found = self.driver.wait(LIMIT)
        *_, last = ["", *self.said.read_text().splitlines()]
        if found != code:
            raise RuntimeError(f"the driver ended with {found}, not with {code}: {self.tail()}")
        return last

    def kill(self) -> None:
        """Whatever is left of the driver."""
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()

    def tail(self) -> str:
        """The end of what the driver said."""
        return self.said.read_text()[-3000:]

    @property
    def run(self) -> Path:
        """Its folder."""
        return next((self.root / "trainings").glob("chaos-*"))

    def lines(self) -> list[dict[str, Any]]:
        """The journal's whole lines, those of repeated steps too."""
        for path in self.root.glob("trainings/*/metrics.jsonl"):
            if path.stat().st_size != self._read[0]:
                text = path.read_text()
                whole = text[: text.rfind("\n") + 1]
                self._read = len(text), [json.loads(line) for line in whole.splitlines()]
        return self._read[1]

    def workers(self) -> dict[int, int]:
        """Of each attempt."""
        notes = self.run.glob("ray/attempt-*/attempt.json")
        return {int(path.parent.name[-3:]): json.loads(path.read_text())["workers"] for path in notes}

    def until(self, met: Callable[[list[dict[str, Any]]], bool], what: str) -> list[dict[str, Any]]:
        """Wait until the journal's lines meet something. RuntimeError where the driver ends first, or after `LIMIT`."""
        deadline = time.monotonic() + LIMIT
        while not met(lines := self.lines()):
            assert self.driver is not None
            if self.driver.poll() is not None and not met(self.lines()):
                raise RuntimeError(f"the driver ended ({self.driver.returncode}) before {what}: {self.tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"not in {LIMIT:.0f} s: {what}: {self.tail()}")
            time.sleep(0.02)
        return lines


@dataclass(frozen=True, kw_only=True)
class Kill:
    """Something that is killed. `do` kills it and returns when, in unix seconds; `by_itself`: the driver goes on."""

    name: str
    do: Callable[[Course, random.Random], float]
    by_itself: bool = True


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What a kill did. attempt: the last one before it. step: the last one before it. seconds: to the next new step."""

    name: str
    attempt: int
    step: int
    by_itself: bool
    seconds: float
    repeated: int
    said: tuple[str, ...]


def disturbed(course: Course, kill: Kill, dice: random.Random) -> Recovery:
    """Let some steps pass, kill, and wait for the first step that is new."""
    lines = course.until(lambda lines: bool(lines), "the first step")
    wanted = max(line["step"] for line in lines) + dice.randint(SAVE_EVERY - 1, SAVE_EVERY + 3)
    course.until(lambda lines: max(line["step"] for line in lines) >= wanted, f"step {wanted}")
    spoken = len(course.said.read_text())
    when = kill.do(course, dice)
    before = [line for line in course.lines() if line["time"] <= when]
    attempt = before[-1]["attempt"]

    def new(lines: list[dict[str, Any]]) -> bool:
        reached = max(line["step"] for line in lines if line["attempt"] == attempt)
        return any(line["attempt"] > attempt and line["step"] > reached for line in lines)

    lines = course.until(new, f"a new step after {kill.name}")
    reached = max(line["step"] for line in lines if line["attempt"] == attempt)
    after = [line for line in lines if line["attempt"] > attempt]
    first = next(line for line in after if line["step"] > reached)
    words = course.said.read_text()[spoken:].splitlines()
    return Recovery(
        name=kill.name,
        attempt=attempt,
        step=reached,
        by_itself=kill.by_itself,
        seconds=first["time"] - when,
        repeated=sum(line["step"] <= reached for line in after),
        said=tuple(line for line in words if re.search("going on|goes on|waiting", line)),
    )


# ---- what is killed


def a_worker(course: Course, dice: random.Random) -> float:
    """Any rank."""
    os.kill(dice.choice(course.nodes.ranks()), signal.SIGKILL)
    return time.time()


def in_a_save(course: Course, dice: random.Random) -> float:
    """Rank 0, between two files of its next checkpoint."""
    word = Path(os.environ["CHAOS_SAVE"])
    word.touch()
    course.until(lambda _: not word.exists(), "a save")
    return time.time()


def the_controller(course: Course, dice: random.Random) -> float:
    for pid in course.nodes.controllers():
        os.kill(pid, signal.SIGKILL)
    return time.time()


def a_replaced_node(course: Course, dice: random.Random) -> float:
    """A raylet, and another one comes at once."""
    course.nodes.lose(dice.randrange(2))
    when = time.time()
    course.nodes.add()
    return when


def a_node(course: Course, dice: random.Random) -> float:
    """A raylet, for good."""
    course.nodes.lose(dice.randrange(2))
    return time.time()


def a_node_comes(course: Course, dice: random.Random) -> float:
    course.nodes.add()
    return time.time()


def the_driver(course: Course, dice: random.Random) -> float:
    assert course.driver is not None
    course.driver.kill()
    when = time.time()
    course.end(-signal.SIGKILL)
    course.start()
    return when


def the_driver_gently(course: Course, dice: random.Random) -> float:
    """SIGTERM, as a scheduler sends it."""
    assert course.driver is not None
    course.driver.terminate()
    when = time.time()
    last = course.end(130)
    if not last.endswith("was stopped; the same command goes on"):
        raise RuntimeError(f"the driver said: {last}")
    course.start()
    return when


def in_a_start(course: Course, dice: random.Random) -> float:
    """The driver, and then a rank of the command that goes on, before its first step."""
    old = set(course.nodes.ranks())
    the_driver(course, dice)
    course.until(lambda _: bool(set(course.nodes.ranks()) - old), "ranks")
    os.kill(dice.choice(sorted(set(course.nodes.ranks()) - old)), signal.SIGKILL)
    return time.time()


def the_head(course: Course, dice: random.Random) -> float:
    """The head, with all that only it knows, and the nodes; another cluster comes in their place."""
    course.nodes.behead()
    when = time.time()
    course.nodes.close()  # else ranks train on until Ray's own minute without a head is over
    last = course.end(2)
    if "the same command goes on" not in last:
        raise RuntimeError(f"the driver said: {course.tail()}")
    course.nodes = Nodes(2)
    course.start()
    return when


KILLS = (
    Kill(name="a worker", do=a_worker),
    Kill(name="rank 0 between two files of a save", do=in_a_save),
    Kill(name="a node, replaced", do=a_replaced_node),
    Kill(name="Ray Train's controller", do=the_controller),
    Kill(name="a worker, again", do=a_worker),
    Kill(name="the driver", do=the_driver, by_itself=False),
    Kill(name="a worker as the ranks start", do=in_a_start),
    Kill(name="the driver, by SIGTERM", do=the_driver_gently, by_itself=False),
    Kill(name="the head and all nodes", do=the_head, by_itself=False),
    Kill(name="a node, for good", do=a_node),
    Kill(name="(a node comes)", do=a_node_comes),
)


# ---- what must be equal


def differences(course: Course, calm: Course) -> dict[int, float]:
    """By attempt the largest relative difference of a loss or norm from the undisturbed run; inf for other records."""
    wanted = {line["step"]: line for line in calm.lines()}
    found: dict[int, float] = {}
    for line in course.lines():
        other = wanted[line["step"]]
        same = all(line[name] == other[name] for name in ("counts", "fed", "tokens", "rate"))
        mine, theirs = ({**each["losses"], "norm": each["norm"]} for each in (line, other))
        error = max(_relative(mine[name], theirs[name]) for name in theirs) if same else math.inf
        found[line["attempt"]] = max(error, found.get(line["attempt"], 0.0))
    return found


def _relative(found: float | None, wanted: float | None) -> float:
    if found == wanted:
        return 0.0
    return abs(found - wanted) / abs(wanted) if found is not None and wanted else math.inf


def allowed(course: Course) -> dict[int, float]:
    """By attempt the difference that it may have: none until an attempt had another number of workers."""
    limits, limit = {}, 0.0
    for attempt, workers in sorted(course.workers().items()):
        limit = max(limit, 0.0 if workers == 2 else CLOSE)
        limits[attempt] = limit
    return limits


def accounts(course: Course, calm: Course) -> Iterator[str]:
    """What is wrong with the accounts of a finished run."""
    from pipelines import audit

    if sorted({line["step"] for line in course.lines()}) != list(range(1, course.steps + 1)):
        yield "not every position was stepped"
    if (course.run / "events.jsonl").read_bytes() != (calm.run / "events.jsonl").read_bytes():
        yield "other events"
    table, sound = audit.table(audit.Scheduled.of(course.run, Place(root=course.root)))
    if not sound:
        yield "\n".join(table)


@contextmanager
def begun(nodes: Nodes, root: Path, steps: int, what: str = "train") -> Iterator[Course]:
    """A run whose command was given; what is left of it and of its cluster ends with the block."""
    course = Course(nodes, root, steps, what)
    try:
        course.start()
        yield course
    finally:
        course.kill()


def plainly(nodes: Nodes, root: Path, calm: Path, dice: random.Random) -> float:
    """Seconds from a killed worker to the next new step in plain Ray Train."""
    shutil.copytree(calm, root, ignore=shutil.ignore_patterns("trainings"))
    with begun(nodes, root, STEPS, "plain") as course:
        return disturbed(course, Kill(name="a worker", do=a_worker), dice).seconds


def told(course: Course, calm: Course, recoveries: Sequence[Recovery]) -> int:
    """Print the table; returns how many recoveries are wrong, the end of the run among them."""
    errors, limits = differences(course, calm), allowed(course)
    workers, wrong, rows = course.workers(), 0, []
    ends = [*(each.attempt for each in recoveries[1:]), max(errors)]
    for each, end in zip(recoveries, ends, strict=True):
        attempts = [attempt for attempt in errors if each.attempt < attempt <= end]
        error, limit = max(errors[attempt] for attempt in attempts), max(limits[attempt] for attempt in attempts)
        wrong += error > limit
        equal = "to the last digit" if error == 0 else f"{error:.0e}" if error <= limit else f"NO: {error:.0e}"
        rows.append(
            (
                each.name,
                str(each.step),
                "by itself" if each.by_itself else "same command",
                str(workers[max(attempts)]),
                f"{each.seconds:.1f}",
                str(each.repeated),
                equal,
            )
        )
    head = ("killed", "after step", "goes on", "workers", "seconds to a new step", "repeated", "equal")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for each in recoveries:
        print("\n".join((f"{each.name}:", *(f"    {line}" for line in each.said))))
    problems = list(accounts(course, calm))
    for problem in problems:
        print(problem)
    return wrong + len(problems)


def main() -> None:
    """A run that nobody disturbs, one where all is killed, plain Ray Train; a table, exit 1 if anything differs."""
    words = argparse.ArgumentParser(description="Kill everything that a training consists of, in turn.")
    words.add_argument("--seed", type=int, default=0, help="of steps and victims")
    options = words.parse_args()
    from conftest import WORLD

    from dataflow import mini

    dice, started, wrong = random.Random(options.seed), time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        mini.write(folder / "data", rows=WORLD)
        with environment(folder):
            nodes = Nodes(2)
            try:
                roots = built(nodes, folder, folder / "data", STEPS)
                with begun(nodes, roots[0], STEPS) as calm:
                    calm.end(0)
                with begun(nodes, roots[1], STEPS) as course:
                    recoveries = []
                    try:
                        for kill in KILLS:
                            recoveries.append(disturbed(course, kill, dice))
                            print(f"{kill.name}: {recoveries[-1].seconds:.1f} s", flush=True)
                        course.end(0)
                    finally:
                        nodes = course.nodes
                wrong = told(course, calm, recoveries)
                measured = [plainly(nodes, folder / f"plain-{number}", roots[0], dice) for number in range(2)]
            finally:
                nodes.close()
    ours = [each.seconds for each in recoveries if each.name.startswith("a worker")][:2]
    print(
        f"a worker killed to the next new step: {statistics.median(ours):.1f} s here, "
        f"{statistics.median(measured):.1f} s in plain Ray Train"
    )
    print(f"{len(recoveries)} recoveries, {wrong} wrong, {time.monotonic() - started:.0f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
