"""Submitted jobs, a folder each under <root>/jobs, alike for every kind of cluster.

<root>/jobs/train-metamorph-tiny-1-3fa9/
  job.json      the job, its cluster, the command line as it was typed, when: written before it is handed over
  job.sbatch    or whatever its kind renders
  there.json    its name at the cluster: written once it was handed over
  log.txt       what it says, and ended.json, its exit code: of kinds that share the disk with us
  stopped       there once `stop` was asked for
  state.json    how it ended, once anybody looked: a cluster forgets its jobs
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clusters import sites
from clusters.job import Cluster, Job, State

PATIENCE = 60.0  # seconds that a cluster may not answer while a job is followed

_LONGEST_STEM = 37  # letters: with a number and a mark after it, a name of at most 47
_NUMBERED = re.compile(r"(\d+)-[0-9a-f]{4}")


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job that was handed to a cluster. there: its name at the cluster, "" if that was cut short."""

    job: Job
    cluster: Cluster
    words: str
    since: float
    there: str

    def state(self) -> State:
        """How it is doing. Raises ValueError where its cluster does not answer."""
        kept = self.job.desk / "state.json"
        if kept.is_file():
            return State(**json.loads(kept.read_bytes()))
        if not self.there:
            return State(name="lost", why="its command was ended while it handed it over; look for its name there")
        state = self.cluster.state(self.job, self.there)
        if state.over:
            if state.name != "done" and (self.job.desk / "stopped").exists():
                state = State(name="stopped", code=state.code)
            _write(kept, vars(state))
        return state

    def follow(self, *, every: float = 1.0) -> Iterator[bytes]:
        """What it says, as it says it, until it is over.

        Args:    every: seconds between looks.
        Raises:  ValueError where its cluster does not answer for a while.
        """
        seen, heard = 0, time.monotonic()
        while True:
            try:
                over = self.state().over
                piece = self.log(seen)
            except ValueError:
                if time.monotonic() - heard > PATIENCE:
                    raise
                time.sleep(every)
                continue
            seen, heard = seen + len(piece), time.monotonic()
            if piece:
                yield piece
            if over:
                return
            time.sleep(every)

    def log(self, seen: int = 0) -> bytes:
        """What it has said after its first `seen` bytes."""
        return self.cluster.log(self.job, self.there, seen) if self.there else b""

    def stop(self) -> bool:
        """End it; False where it was over."""
        if self.state().over:
            return False
        (self.job.desk / "stopped").touch()
        self.cluster.stop(self.job, self.there)
        return True


def name(root: Path, stem: str) -> str:
    """The next free name that begins with a stem: letters that no kind takes become '-'.

    A number counts the jobs of a root; a mark behind it is drawn anew, as a cluster may know those of another root.
    """
    plain = "-".join(filter(None, "".join(c if c.isascii() and c.isalnum() else " " for c in stem.lower()).split()))
    plain = plain[:_LONGEST_STEM].strip("-") or "job"
    plain = plain if plain[0].isalpha() else f"job-{plain}"[:_LONGEST_STEM]
    known = (_NUMBERED.fullmatch(each.name.removeprefix(f"{plain}-")) for each in (root / "jobs").glob(f"{plain}-*"))
    return f"{plain}-{max((int(told[1]) for told in known if told), default=0) + 1}-{secrets.token_hex(2)}"


def find(root: Path, word: str) -> Submitted:
    """The job that a person means: by its name, with or without its mark, or by the beginning of one.

    Raises:  ValueError: none is called so, or several.
    """
    names = sorted(path.parent.name for path in (root / "jobs").glob("*/job.json"))
    marked = [each for each in names if each == word or re.fullmatch(rf"{re.escape(word)}-[0-9a-f]{{4}}", each)]
    found = marked or [each for each in names if each.startswith(word)]
    if len(found) != 1:
        told = f"{len(found)} jobs begin so: {', '.join(found[:8])}" if found else "no job is called so"
        raise ValueError(f"{word!r}: {told}; `interlace jobs --root {root}` lists them")
    return read(root / "jobs" / found[0])


def submit(job: Job, cluster: Cluster, words: str, fill: Callable[[Path], None]) -> Submitted:
    """Hand a job over; its desk is there afterwards, or nothing is.

    Args:    words: the command line as it was typed. fill: writes into the desk what the job needs, its code.
    Raises:  ValueError where the kind cannot hold it, or the place does not take it: nothing runs, nothing is left.
    """
    files = cluster.render(job)
    cluster.check(job)
    job.desk.parent.mkdir(parents=True, exist_ok=True)
    try:
        job.desk.mkdir(mode=0o700)
    except FileExistsError:
        raise ValueError(f"job {job.name} was submitted by another command just now: try again") from None
    try:
        fill(job.desk)
        for file, text in files.items():
            (job.desk / file).write_text(text)
        asked = {"job": job.told(), "cluster": sites.told(cluster), "words": words, "since": time.time()}
        _write(job.desk / "job.json", asked)
    except BaseException:
        shutil.rmtree(job.desk)
        raise
    try:
        there = cluster.submit(job)
    except Exception:  # one who interrupts may come too late: then there is a job, and its desk stays
        shutil.rmtree(job.desk)
        raise
    _write(job.desk / "there.json", {"there": there})
    return read(job.desk)


def read(desk: Path) -> Submitted:
    """The job of a desk. ValueError where there is none."""
    try:
        asked = json.loads((desk / "job.json").read_bytes())
        known = desk / "there.json"
        there = json.loads(known.read_bytes())["there"] if known.is_file() else ""
        return Submitted(
            job=Job.of(asked["job"]),
            cluster=sites.of(asked["cluster"]),
            words=asked["words"],
            since=asked["since"],
            there=there,
        )
    except FileNotFoundError:
        raise ValueError(f"{desk} is no job: `interlace jobs` lists those of a root") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{desk / 'job.json'} does not read ({error}): it is not what was written there") from None


def listing(root: Path) -> list[Submitted]:
    """The jobs of a root, oldest first."""
    desks = [path.parent for path in (root / "jobs").glob("*/job.json")]
    return sorted(map(read, desks), key=lambda each: (each.since, each.job.name))


def table(found: Sequence[Submitted]) -> Iterator[str]:
    """A line for each job: how it is doing, where, since when, and what was typed."""
    rows = [("JOB", "STATE", "CLUSTER", "NODES", "SUBMITTED", "COMMAND")]
    for each in found:
        try:
            state = each.state()
            told = f"{state.name}: {state.why}" if state.why else state.name
        except ValueError as error:
            told = f"not known: {error}"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.since))
        nodes = f"{each.job.nodes} x {each.job.gpus} GPUs" if each.job.gpus else str(each.job.nodes)
        rows.append((each.job.name, told, each.cluster.kind, nodes, when, each.words))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()


def _write(path: Path, told: dict[str, object]) -> None:
    """Whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(told, indent=1) + "\n")
    fresh.replace(path)
