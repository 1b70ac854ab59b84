"""A command as a job: planned and refused here, then the same words, less the cluster, with a snapshot of the code.

    <root>/jobs/train-metamorph-tiny-1/code/    the house as it is now: PYTHONPATH of the job, what Ray ships to workers
                                       /outside/lab.py   a recipe file from elsewhere, and the modules beside it
                                       /code.txt         commit and diff
                                       /job/             recipe.json, job.json, the job as it was rendered

What lies in `job/` goes with the code, whatever the cluster, and into the run that the job trains: run/jobs/<name>/.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusters import jobs, snapshot
from clusters.job import Cluster, Job
from dataflow.build import write_atomically
from pipelines import recipe
from pipelines.step import HOUSE, Place
from pipelines.training import Training

OUTSIDE = "outside"  # a folder in the snapshot, and in a run that was trained from one
_JOB = "job"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a job is to have. cpus, memory (GB): of each node, 0: what the place gives. minutes: 0: its own limit."""

    nodes: int = 1
    gpus: int = 0
    cpus: int = 0
    memory: int = 0
    minutes: int = 0


@dataclass(frozen=True, kw_only=True)
class Order:
    """A command to be submitted: its verb, the recipe by name and value, its other words, and the words as typed."""

    verb: str
    recipe: str
    value: Any
    words: tuple[str, ...]
    typed: str
    root: Path

    def job(self, cluster: Cluster, wanted: Wanted) -> Job:
        """The job of it, under the next free name."""
        name = jobs.name(self.root, f"{self.verb}-{self.recipe.rpartition('/')[2]}")
        desk = self.root / "jobs" / name
        made = Job(
            name=name,
            command=(),
            folder=desk / "code",
            desk=desk,
            code=desk / "code",
            **vars(wanted),
        )
        file, function = self._file()
        words = [self.verb, f"{OUTSIDE}/{file.name}{function}" if file else self.recipe, *self.words]
        words += ["--root", cluster.site.root or str(self.root)]
        words += ["--ray-address", "auto"] if cluster.joins(made) else []
        return Job(**{**vars(made), "command": (cluster.python, "-m", "pipelines", *words)})

    def described(self) -> str:
        """The recipe as JSON."""
        return json.dumps({"recipe": self.recipe, "value": recipe.describe(self.value)}, indent=1, sort_keys=True)

    def page(self, job: Job, cluster: Cluster) -> Iterator[str]:
        """What --dry-run prints: all that would be stored and handed over."""
        yield f"# {job.code / snapshot.TOLD}"
        yield snapshot.commit(HOUSE).rstrip()
        yield f"# {job.code / _JOB}/recipe.json"
        yield self.described()
        yield f"# {job.code / _JOB}/job.json"
        yield _told(job)
        for file, text in cluster.render(job).items():
            yield f"# {job.desk / file}"
            yield text.rstrip()

    def submit(self, job: Job, cluster: Cluster) -> jobs.Submitted:
        """Hand it over. ValueError: nothing is running, nothing is left."""

        def fill(desk: Path) -> None:
            snapshot.take(HOUSE, job.code)
            file, _ = self._file()
            if file:
                (job.code / OUTSIDE).mkdir()
                for beside in sorted(file.parent.glob("*.py")):
                    shutil.copyfile(beside, job.code / OUTSIDE / beside.name)
            (job.code / _JOB).mkdir()
            told = {"recipe.json": self.described(), "job.json": _told(job)}
            for name, text in {**told, **cluster.render(job)}.items():
                (job.code / _JOB / name).write_text(text)

        return jobs.submit(job, cluster, self.typed, fill)

    def _file(self) -> tuple[Path | None, str]:
        """The file of a recipe that lies outside the house, and the rest of its name."""
        file, _, _ = recipe.split(self.recipe)
        if not file.endswith(".py"):
            return None, ""
        return Path(file).expanduser().resolve(), self.recipe[len(file) :]


def _told(job: Job) -> str:
    return json.dumps(job.told(), indent=1)


def refused(order: Order, cluster: Cluster, wanted: Wanted, place: Place | None) -> str | None:
    """Why it cannot work, as `interlace plan` tells it, or None. No GPU is booked to learn that.

    Args:    place: with the corpora of a training that builds none itself; None where it does.
    Raises:  ValueError: corpora that are not built, a mixture that cannot be: of data that this machine sees.
    """
    training = order.value
    if not isinstance(training, Training):
        return None
    if wanted.gpus:
        from pipelines.booking import Booking

        booking, memory = Booking.of(training, nodes=wanted.nodes, gpus=wanted.gpus), cluster.site.gpu_memory or None
        why = booking.refused(memory)
        if why is not None:
            for line in booking.page(memory):
                print(line)
            return why
    if cluster.shared and place is not None:
        from pipelines import plan

        deque(plan.page(training, place), maxlen=0)  # which raises where the data cannot be had
    return None


def is_snapshot() -> bool:
    """Whether the code that runs is a job's snapshot."""
    return (HOUSE / _JOB).is_dir()


def into(run: Path) -> None:
    """Put what a snapshot says of its job, and a recipe file that came with it, into the run that it trains."""
    if not is_snapshot():
        return
    name = json.loads((HOUSE / _JOB / "job.json").read_bytes())["name"]
    for folder, there in ((HOUSE / _JOB, run / "jobs" / name), (HOUSE / OUTSIDE, run / OUTSIDE)):
        for file in sorted(folder.glob("*")):
            if file.is_file():
                there.mkdir(parents=True, exist_ok=True)
                write_atomically(there / file.name, file.read_bytes())


def absolute(words: Sequence[str]) -> list[str]:
    """`--data` words whose folders are found from anywhere: of stores as they are."""
    made = []
    for word in words:
        name, equals, place = word.partition("=")
        if not equals or "/" in name:
            name, equals, place = "", "", word
        made.append(f"{name}{equals}{place if '://' in place else Path(place).expanduser().absolute()}")
    return made
