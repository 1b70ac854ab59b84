"""Jobs on every kind of cluster that this machine can hold, end to end: `make cluster-test`.

    local    metamorph:tiny on two raylets of this machine; a sweep of two learning rates
    ray      mixtures:mini by Ray's job API on a head with three raylets and a token; a training beside builds
    slurm    metamorph:tiny on two nodes: told to leave as before a time limit; one node dies and comes back

Prints a line as each thing ends, and a table. Exits 1 where something went wrong; what cannot run here is said.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray_here
import slurm_hosts

from clusters import jobs
from clusters.job import State

HOUSE = Path(__file__).resolve().parents[2]
STEPS, SAVE_EVERY = 40, 10
LIMIT = 900.0  # seconds in which a job must come to what is waited for


@dataclass(kw_only=True)
class Bench:
    """Where all of it happens, and what came of it. root, data: of every command."""

    folder: Path
    told: list[tuple[str, str, float]] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def say(self, what: str, how: str, since: float) -> None:
        """A line of the table, now and at the end."""
        self.told.append((what, how, time.monotonic() - since))
        print(f"{what}: {how} ({time.monotonic() - since:.0f} s)", flush=True)

    def root(self, name: str, *, empty: bool = False) -> Path:
        """A root of its own, with the corpora that are built, or none."""
        made = self.folder / name
        if empty:
            made.mkdir()
        else:
            subprocess.run(["cp", "-r", self.folder / "built", made], check=True)
        return made

    def same(self, root: Path) -> str:
        """That a curve is that of the unbroken run to the last digit; RuntimeError where it is not."""
        ours, theirs = curve(root), curve(self.folder / "unbroken")
        if ours != theirs:
            wrong = next(step for step in sorted(ours.keys() | theirs.keys()) if ours.get(step) != theirs.get(step))
            raise RuntimeError(f"the curves differ at step {wrong}: {ours.get(wrong)}, unbroken {theirs.get(wrong)}")
        return f"equal to the last digit to an unbroken one, {len(ours)} steps"

    def interlace(self, *words: object, environment: dict[str, str] | None = None, expect: int = 0) -> list[str]:
        """A command's lines; RuntimeError with all it said where it exits otherwise."""
        command = [sys.executable, "-m", "pipelines", *map(str, words)]
        variables = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1", **(environment or {})}
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True)
        if done.returncode != expect:
            raise RuntimeError(f"{' '.join(command[2:])}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout.splitlines()


def training(root: Path) -> list[object]:
    """The words of the training that is disturbed."""
    short = [f"steps={STEPS}", f"execution.save_every={SAVE_EVERY}", "batch=4", "execution.micro_batch=2"]
    return ["train", "metamorph:tiny", "--root", root, *(word for each in short for word in ("--set", each))]


def told(root: Path) -> Iterator[dict[str, Any]]:
    """The journal of the one run under a root, what is being written left out."""
    for metrics in (root / "trainings").glob("metamorph-tiny-*/metrics.jsonl"):
        yield from map(json.loads, metrics.read_bytes().split(b"\n")[:-1])


def curve(root: Path) -> dict[int, dict[str, float]]:
    """Losses by step; RuntimeError where attempts that repeated one disagree."""
    found: dict[int, dict[str, float]] = {}
    for line in told(root):
        before = found.setdefault(line["step"], line["losses"])
        if before != line["losses"]:
            raise RuntimeError(f"step {line['step']} was {before}, and repeated {line['losses']}")
    return found


def until(asked: Callable[[], object], what: str, of: jobs.Submitted) -> None:
    """Wait for something that a job does. RuntimeError with its log where that ends first, or it does not come."""
    ended = time.monotonic() + LIMIT
    while not asked():
        late = time.monotonic() > ended
        if late or (of.state().over and not asked()):
            why = f"not in {LIMIT:.0f} s" if late else f"it is {of.state()}"
            raise RuntimeError(f"{what} did not come, {why}\n{of.log().decode(errors='replace')[-2000:]}")
        time.sleep(0.5)


def over(submitted: jobs.Submitted) -> State:
    """How a job ended. RuntimeError with its log where it did not end well."""
    until(lambda: submitted.state().over, f"the end of {submitted.job.name}", submitted)
    if (state := submitted.state()).name != "done":
        raise RuntimeError(f"{submitted.job.name}: {state}\n{submitted.log().decode(errors='replace')}")
    return state


def slurm(bench: Bench) -> None:
    """Training over two nodes of a real Slurm: asked to leave as at its time limit, then a node dies and comes back."""
    if lacks := slurm_hosts.missing():
        bench.say("slurm", f"NOT RUN: {lacks}", time.monotonic())
        return
    root, since = bench.root("slurm"), time.monotonic()
    seen = (bench.folder, HOUSE, Path(sys.prefix))  # by nodes that have a /tmp of their own
    with slurm_hosts.slurm(bench.folder / "hosts", nodes=2, cpus=1, seen=seen) as here:
        with environment(here.environment):
            bench.interlace(*training(root), "--cluster", "slurm", "--nodes", 2)
            submitted = jobs.find(root, "train-metamorph-tiny-1")
            until(lambda: steps(root) > 3, "a step of the first attempt", submitted)
            here.ask("scancel", "--signal=USR1", "--batch", submitted.there)  # what Slurm does before a time limit
            until(lambda: submitted.state().name == "waiting", "the job queued again", submitted)
            left = steps(root)
            bench.say("slurm: asked to leave", f"saved step {left} and queued again", since)
            until(lambda: steps(root) > SAVE_EVERY + 3, "a step after the next checkpoint", submitted)
            if repeated := len(list(told(root))) - len(curve(root)):
                raise RuntimeError(f"{repeated} steps were repeated after it left")
            since = time.monotonic()
            here.kill_node("n2")
            reached = steps(root)
            until(lambda: submitted.state().name == "waiting", "the job queued again", submitted)
            here.revive_node("n2")
            over(submitted)
            bench.say("slurm: one of two nodes killed", f"at step {reached}; queued again, went on, done", since)
    bench.say("slurm: its curve", bench.same(root), time.monotonic())


def ray(bench: Bench) -> None:
    """Ray's job API, three raylets and a token: a build, then a training that takes its room beside others."""
    root, since = bench.root("ray", empty=True), time.monotonic()
    with ray_here.ray_cluster(3) as here:
        site = bench.folder / "ray.toml"
        told = {"kind": "ray", "address": here.address, "token_file": here.token_file, "python": sys.executable}
        site.write_text("".join(f'{name} = "{value}"\n' for name, value in told.items()))
        place = ("--data", bench.data, "--root", root, "--cluster", site)
        bench.interlace("build", "mixtures:mini", *place)
        over(jobs.find(root, "build-mixtures-mini-1"))
        bench.say(
            "ray: mixtures:mini", f"built, {len(list((root / 'corpora').glob('*/manifest.json')))} corpora", since
        )
        since, alone, beside = time.monotonic(), bench.root("alone"), bench.root("beside")
        bench.interlace(*training(alone), "--cluster", site)
        over(jobs.find(alone, "train-metamorph-tiny-1"))
        bench.say("ray: the curve of a training", bench.same(alone), since)
        since, built = time.monotonic(), 0
        words = ("build", "corpora:cambrian", "--data", bench.data, "--root", root, "--cluster", site)
        trained: jobs.Submitted | None = None
        while trained is None or not trained.state().over:
            built += 1
            bench.interlace(*words, "--set", f"rows_per_shard={20 + built}")
            builds = jobs.find(root, f"build-corpora-cambrian-{built}")
            if trained is None:
                until(partial(_begun, builds), "the build's start", builds)
                bench.interlace(*training(beside), "--cluster", site)
                trained = jobs.find(beside, "train-metamorph-tiny-1")
            over(builds)
        over(trained)
        ratio = pace(beside) / pace(alone)
        bench.say("ray: a training that began beside builds", f"{bench.same(beside)}; {built} builds done", since)
        bench.say("ray: its steps", f"{ratio:.2f} x as long as alone ({pace(alone):.2f} s)", since)


def _begun(submitted: jobs.Submitted) -> bool:
    return submitted.state().name != "waiting"


def local(bench: Bench) -> None:
    """Two raylets of this machine, and a sweep."""
    root, since = bench.root("local"), time.monotonic()
    said = bench.interlace(*training(root), "--cluster", "local", "--nodes", 2, "--follow")
    told = sorted(path.name for path in (Path(said[-1]) / "jobs").glob("train-metamorph-tiny-1-*/*"))
    if told != ["job.json", "job.sh", "recipe.json"]:
        raise RuntimeError(f"{said[-1]}/jobs should hold the job that trained it, and holds {told}")
    bench.say("local: two raylets", bench.same(root), since)
    since, page = time.monotonic(), bench.folder / "sweep.html"
    grid = [word for rate in (0.001, 0.002) for word in ("--grid", f"optimizer.learning_rate={rate}")]
    words = ["sweep", "metamorph:tiny", "--root", root, "--set", "steps=2", *grid, "--out", page]
    lines = bench.interlace(*words)
    for line in lines[-4:]:
        print(f"  {line}", flush=True)
    known = len(jobs.listing(root))
    if bench.interlace(*words)[-4:] != lines[-4:] or len(jobs.listing(root)) != known:
        raise RuntimeError("the same sweep again submitted something, or told something else")
    bench.say("local: a sweep of two rates", f"a table and {page.stat().st_size // 1000} kB of page", since)


def steps(root: Path) -> int:
    """The newest step that the run under a root has told of."""
    return max((line["step"] for line in told(root)), default=0)


def pace(root: Path) -> float:
    """Seconds of a step, the median."""
    return statistics.median(line["seconds"] for line in told(root))


@contextmanager
def environment(told: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process and of whom it starts, for the block."""
    before = dict(os.environ)
    os.environ.update(told)
    yield
    os.environ.clear()
    os.environ.update(before)


def main() -> None:
    """All of it, or the kinds that are named."""
    known: dict[str, Callable[[Bench], None]] = {"local": local, "ray": ray, "slurm": slurm}
    wanted = sys.argv[1:] or list(known)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="cluster-", dir="/var/tmp") as made:  # nodes have a /tmp of their own
        bench, since = Bench(folder=Path(made)), time.monotonic()
        bench.interlace("mini", "--data-only", bench.data)
        bench.interlace("build", "metamorph:tiny", "--data", bench.data, "--root", bench.folder / "built")
        unbroken = bench.root("unbroken")
        bench.interlace(*training(unbroken))
        bench.say("here, unbroken", f"{len(curve(unbroken))} steps on two ranks", since)
        for name in wanted:
            try:
                known[name](bench)
            except (RuntimeError, ValueError, OSError) as error:
                wrong += 1
                bench.say(name, f"WRONG: {error}", since)
        print()
        for what, how, seconds in bench.told:
            print(f"{what:45} {how}  ({seconds:.0f} s)")
    print(f"{wrong} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
