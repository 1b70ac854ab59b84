"""Builds killed by SIGKILL at an exact operation, and built again: `python tests/kill.py` is `make kill-test`.

`interlace build` runs as a user runs it, but that every Python process of it loads our sitecustomize. That numbers what
is done to files under the root (rename, link, unlink, mkdir, fsync), in one order over all processes, and kills at one
of them. A point is such an operation, before or after it is done; the victim is the worker that does it (any worker, if
the driver does it), the driver, or all processes of the command (Ray gives workers groups of their own, so killing the
group of the driver leaves them a moment); or the operation meets an error of the disk instead. Nothing in the house
knows of this.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

HOUSE = Path(__file__).resolve().parent.parent

HOOK = r'''
import errno, fcntl, json, os, re, signal, sys

_TOLD = json.loads(os.environ["KILL"])
_ROOT = os.path.join(_TOLD["root"], "")


def _at_the_point():
    """What was ordered, on ourselves where that is the victim."""
    leader = os.getsid(0)
    victim = _TOLD["victim"]
    if victim in errno.errorcode.values():
        raise OSError(getattr(errno, victim), os.strerror(getattr(errno, victim)))
    if victim == "driver":
        os.kill(leader, signal.SIGKILL)
    if victim == "worker" and os.getpid() != leader:
        os.kill(os.getpid(), signal.SIGKILL)
    ours = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _session(pid) == leader]
    if victim == "worker":
        for pid in [pid for pid in ours if re.match(rb"ray::(?!\w*Agent)", _command(pid))][:1]:
            os.kill(pid, signal.SIGKILL)
    if victim == "group":
        for pid in sorted(ours, key=os.getpid().__eq__):  # ourselves last
            os.kill(pid, signal.SIGKILL)


def _session(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _command(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return stream.read()
    except OSError:
        return b""


def _watched(operation, call, path_of):
    def done(*arguments, **options):
        path = path_of(*arguments)
        if not path.startswith(_ROOT):
            return call(*arguments, **options)
        short = re.sub(r"\.[0-9a-f]{12}-|\.\d+-(?=\d{5}\.tar)", ".", path[len(_ROOT):])
        with open(_TOLD["journal"], "a+") as journal:
            fcntl.flock(journal, fcntl.LOCK_EX)
            journal.seek(0)
            label = f"{operation} {short}"
            seen = sum(line.split("\t")[0] == label for line in journal)
            journal.write(f"{label}\t{seen}\t{os.getpid()}\t{os.getsid(0)}\n")
            journal.flush()
            here = label == _TOLD["label"] and seen == _TOLD["nth"]
            if here and not _TOLD["after"]:
                _at_the_point()
            result = call(*arguments, **options)
            if here and _TOLD["after"]:
                _at_the_point()
            return result
    return done


def _of_descriptor(descriptor):
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _second(first, second, *rest, **options):
    return os.path.abspath(os.fspath(second))


def _first(first, *rest, **options):
    return os.path.abspath(os.fspath(first))


for _name, _path_of in (
    ("rename", _second), ("replace", _second), ("link", _second), ("symlink", _second),
    ("unlink", _first), ("remove", _first), ("mkdir", _first), ("fsync", _of_descriptor),
):
    setattr(os, _name, _watched(_name, getattr(os, _name), _path_of))
'''

RECIPE = '''
"""Three corpora, their duplicates, their parts: every kind of step that a build has."""

from dataclasses import replace

from dataflow.duplicates import Duplicates
from dataflow.mixture import Group, Member, Mixture
from dataflow.selection import Part
from pipelines.recipes import corpora

THREE = (corpora.cambrian(), corpora.metaclip(), corpora.instruct_pix2pix())


def mixture() -> Mixture:
    members = tuple(
        Member(corpus=replace(each, rows_per_shard=50), select=Part(part="train")) for each in THREE
    )
    return Mixture(
        groups=(Group(name="all", share=1, members=members),), curation=(Duplicates(distance=None),)
    )
'''

Victim = Literal["worker", "driver", "group", "ENOSPC", "EIO"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """An operation of a build: what is done to which file under the root, the nth time that it is done; and what then.

    victim: who is killed there, or the error that the operation meets instead.
    """

    label: str
    nth: int = 0
    after: bool = False
    victim: Victim = "driver"

    def __str__(self) -> str:
        when = "after" if self.after else "before"
        again = f" ({self.nth + 1}. time)" if self.nth else ""
        return f"{when} {self.label}{again}"


NOWHERE = Point(label="")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A mixture to build, the miniature corpora that it is of, and a folder for roots and journals."""

    recipe: str
    data: Path
    folder: Path

    @staticmethod
    def at(folder: Path, data: Path) -> Bench:
        """One in an empty folder."""
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK)
        (folder / "three.py").write_text(RECIPE)
        return Bench(recipe=f"{folder / 'three.py'}:mixture", data=data, folder=folder)

    def build(self, root: Path, point: Point = NOWHERE, *, workers: int = 2) -> subprocess.CompletedProcess[str]:
        """`interlace build`, killed at the point if there is one. Workers that outlive their driver are not waited for:
        whoever gives the same command again does not wait for them either."""
        path = os.pathsep.join([str(self.folder / "hook"), str(HOUSE)])
        told = {
            "root": str(root),
            "journal": str(self.journal(root)),
            "label": point.label,
            "nth": point.nth,
            "after": point.after,
            "victim": point.victim,
        }
        environment = {**os.environ, "PYTHONPATH": path, "KILL": json.dumps(told), "OMP_NUM_THREADS": "1"}
        words = ["build", self.recipe, "--data", str(self.data), "--root", str(root), "--workers", str(workers)]
        self.journal(root).unlink(missing_ok=True)
        with (
            tempfile.TemporaryFile("w+") as said,
            subprocess.Popen(
                [sys.executable, "-m", "pipelines", *words],
                env=environment,
                cwd=HOUSE,
                stdout=said,
                stderr=said,  # a file: what Ray leaves behind for a moment would hold a pipe open
                text=True,
                start_new_session=True,
            ) as driver,
        ):
            try:
                code = driver.wait(timeout=600)
            except subprocess.TimeoutExpired:
                os.killpg(driver.pid, signal.SIGKILL)
                raise
            said.seek(0)
            return subprocess.CompletedProcess(words, code, said.read(), "")

    def journal(self, root: Path) -> Path:
        """The operations of the last build under a root, in order."""
        return self.folder / f"{root.name}.journal"

    def points(self, root: Path) -> list[Point]:
        """The operations of the last build under a root."""
        rows = [line.split("\t") for line in self.journal(root).read_text().splitlines()]
        return [Point(label=label, nth=int(seen)) for label, seen, *_ in rows]


def content(root: Path) -> dict[str, str]:
    """sha256 of every file in the folders that a build leaves; what is hidden beside these is work and locks."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in sorted(root.glob("*/[!.]*/"))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def boundaries(points: Sequence[Point]) -> list[Point]:
    """Where one stage ends and the next begins, in the order of a build: each with a victim."""

    def find(pattern: str, place: int = 0) -> Point:
        return [point for point in points if re.fullmatch(pattern, point.label)][place]

    shard = r"corpora/\.building/cambrian-\w+/"
    return [
        replace(find(r"rename .*/\.plan\.json"), victim="driver"),
        replace(find(r"rename .*/\.plan\.json"), victim="group", after=True),
        replace(find(rf"rename {shard}\d+\.tar"), victim="worker", after=True),
        replace(find(rf"rename {shard}\d+\.tar\.idx"), victim="worker", after=True),
        replace(find(rf"rename {shard}\.\d+\.receipt\.json"), victim="driver", after=True),
        replace(find(rf"rename {shard}\.\d+\.receipt\.json", -1), victim="group", after=True),
        replace(find(rf"fsync {shard}index\.parquet"), victim="driver"),
        replace(find(rf"fsync {shard}ledger\.parquet"), victim="group", after=True),
        replace(find(rf"rename {shard}manifest\.json"), victim="worker"),
        replace(find(rf"rename {shard}manifest\.json"), victim="driver", after=True),
        replace(find(rf"unlink {shard}\.\d+\.receipt\.json", 2), victim="driver"),
        replace(find(r"rename corpora/metaclip-\w+"), victim="group"),
        replace(find(r"rename corpora/metaclip-\w+"), victim="driver", after=True),
        replace(find(r"rename measures/.*/\.\d+\.parquet", 1), victim="worker"),
        replace(find(r"rename measures/.*/manifest\.json"), victim="driver", after=True),
        replace(find(r"rename selections/\w+/manifest\.json"), victim="group"),
        replace(find(r"rename selections/\w+/manifest\.json", 1), victim="driver"),
    ]


def drawn(points: Sequence[Point], count: int, seed: int) -> list[Point]:
    """Any operations, before or after, and any victims."""
    dice = random.Random(seed)
    victims: tuple[Victim, ...] = ("worker", "driver", "group")
    return [replace(dice.choice(points), victim=dice.choice(victims), after=dice.random() < 0.5) for _ in range(count)]


def faults(points: Sequence[Point]) -> list[Point]:
    """A disk that is full under a shard, and one that fails under the index."""
    shard = next(point for point in points if re.fullmatch(r"fsync .*/\.building/cambrian-\w+/\.\d+\.tar", point.label))
    table = next(point for point in points if re.fullmatch(r"fsync .*/cambrian-\w+/index\.parquet", point.label))
    return [replace(shard, victim="ENOSPC"), replace(table, victim="EIO")]


def main() -> None:
    """Unbroken builds with 1, 2 and 4 workers, then every point; a table, exit 1 when a byte differs anywhere."""
    words = argparse.ArgumentParser(description="Kill builds at exact points and compare what the next build leaves.")
    words.add_argument("--points", type=int, default=20, help="the stage boundaries, and others drawn up to so many")
    words.add_argument("--seed", type=int, default=0, help="of the draw")
    options = words.parse_args()
    sys.path.insert(0, str(HOUSE))
    from conftest import WORLD

    from dataflow import mini

    with tempfile.TemporaryDirectory(prefix="kill-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        mini.write(folder / "data", rows=WORLD)
        bench, table = Bench.at(folder, folder / "data"), _Table()
        for workers in (1, 4, 2):
            root = folder / f"workers-{workers}"
            table.row(f"none, {workers} workers", "", root, [bench.build(root, workers=workers)])
        points = bench.points(root)
        chosen = boundaries(points)
        chosen += drawn(points, max(0, options.points - len(chosen)), options.seed)
        for number, point in enumerate([*chosen, *faults(points)]):
            root = folder / f"killed-{number}"
            table.row(str(point), point.victim, root, [bench.build(root, point), bench.build(root)])
            shutil.rmtree(root, ignore_errors=True)
    print(f"{table.rows} builds, {table.wrong} of them wrong" if table.wrong else f"{table.rows} builds, one digest")
    sys.exit(1 if table.wrong else 0)


class _Table:
    """Rows as they come; the first is what all others must equal."""

    def __init__(self) -> None:
        self.rows = self.wrong = 0
        self.wanted: dict[str, str] = {}
        self._start = time.monotonic()
        print(f"{'point':72}  {'victim':7}  {'seconds':>8}  {'digest':12}  same", flush=True)

    def row(self, point: str, victim: str, root: Path, builds: Sequence[subprocess.CompletedProcess[str]]) -> None:
        held = content(root)
        self.wanted = self.wanted or held
        seconds, self._start = time.monotonic() - self._start, time.monotonic()
        problems = list(_problems(victim, root, builds))
        for name in sorted(held.keys() | self.wanted.keys()):
            if held.get(name) != self.wanted.get(name):
                problems.append(f"{name}: {held.get(name)} for {self.wanted.get(name)}")
        digest = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()
        same = "NO" if problems else "yes"
        print(f"{point:72}  {victim:7}  {seconds:8.1f}  {digest[:12]}  {same}", flush=True)
        for problem in problems:
            print(f"    {problem}", flush=True)
        self.rows, self.wrong = self.rows + 1, self.wrong + bool(problems)


def _problems(victim: str, root: Path, builds: Sequence[subprocess.CompletedProcess[str]]) -> Iterator[str]:
    """What a build said or left that it should not have."""
    codes = {"": 0, "worker": 0, "driver": -signal.SIGKILL, "group": -signal.SIGKILL}
    for build, code in zip(builds, (codes.get(victim, 2), 0), strict=False):
        if build.returncode != code:
            yield f"exit {build.returncode} for {code}: {build.stdout}"
    if victim not in codes:
        *_, said = builds[0].stdout.splitlines()
        if not said.startswith("interlace: ") or "the same command goes on" not in said:
            yield f"said {said}"
    yield from (f"left {path}" for path in root.glob("*/.building/*/"))


if __name__ == "__main__":
    main()
