"""`interlace sweep`: one training per point of a grid, each a job of any cluster; one table and page at the end.

The points are every combination of the values that --grid gives a field. The same command goes on: points whose jobs
still wait or run are waited for, those that are done stay so, those that failed are submitted again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clusters import jobs
from clusters.job import Cluster, State
from pipelines import journal, report, runs
from pipelines.step import Place, one_line
from pipelines.submit import Order, Wanted
from pipelines.training import Training

_LOOKS = 2.0  # seconds between looks at the jobs


@dataclass(kw_only=True)
class Point:
    """One point: what it sets, its command, its job once there is one, and how that was when it was last looked at."""

    sets: tuple[str, ...]
    order: Order
    job: jobs.Submitted | None = None
    state: State | None = None


def points(grid: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination: ("a=1", "a=2", "b=3") is [("a=1", "b=3"), ("a=2", "b=3")].

    Raises:  ValueError: an assignment without a value, or given twice.
    """
    by_field: dict[str, list[str]] = {}
    for assignment in grid:
        field, equals, _ = assignment.partition("=")
        if not equals or not field:
            raise ValueError(f"--grid {assignment}: write path.to.field=value, once for each value")
        if assignment in by_field.setdefault(field, []):
            raise ValueError(f"--grid {assignment} is given twice: give each value once")
        by_field[field].append(assignment)
    if not by_field:
        raise ValueError("a sweep has a grid: give --grid FIELD=VALUE, once for each value")
    return list(itertools.product(*by_field.values()))


def run(found: list[Point], cluster: Cluster, wanted: Wanted, *, at_once: int) -> bool:
    """Submit the points, `at_once` at a time, and wait for all. False where any did not end well."""
    known = jobs.listing(found[0].order.root)
    for point in found:
        _take_up(point, known, cluster, wanted)
    while not all(point.state is not None and point.state.over for point in found):
        under_way = sum(point.job is not None and not (point.state and point.state.over) for point in found)
        for point in found:
            if point.job is None and under_way < at_once:
                point.job = point.order.submit(point.order.job(cluster, wanted), cluster)
                under_way += 1
                _tell(point, State(name="waiting", why=f"submitted to {cluster.kind} as {point.job.there}"))
            elif point.job is not None and not (point.state and point.state.over):
                try:
                    _tell(point, point.job.state())
                except ValueError as error:  # a cluster that does not answer now may later
                    _tell(point, State(name="waiting", why=one_line(error)))
        time.sleep(_LOOKS)
    return all(point.state is not None and point.state.name == "done" for point in found)


def _take_up(point: Point, known: Sequence[jobs.Submitted], cluster: Cluster, wanted: Wanted) -> None:
    """The newest job of the same command, unless it ended badly."""
    command = point.order.job(cluster, wanted).command
    for each in reversed(known):
        if each.job.command == command and each.cluster == cluster:
            state = each.state()
            if state.name in ("waiting", "running", "done"):
                point.job = each
                _tell(point, state)
            return


def _tell(point: Point, state: State) -> None:
    if state != point.state:
        point.state = state
        name = point.job.job.name if point.job else "-"
        print(f"{' '.join(point.sets)}: {name}: {state.name}{f', {state.why}' if state.why else ''}", flush=True)


def table(found: Sequence[Point], folders: Sequence[Path | None]) -> Iterator[str]:
    """A line for each point: what it sets, how its job ended, its last losses, its run."""
    rows = [("point", "job", "state", "steps", "last losses", "run")]
    for point, folder in zip(found, folders, strict=True):
        lines = [] if folder is None else journal.latest(journal.read(folder))
        losses = lines[-1]["losses"] if lines else {}
        told = "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None)
        job, state = point.job.job.name if point.job else "-", point.state.name if point.state else "-"
        run = "-" if folder is None else folder.name
        rows.append((" ".join(point.sets), job, state, str(lines[-1]["step"]) if lines else "-", told or "-", run))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()


def trained(found: Sequence[Point], place: Place) -> list[Path | None]:
    """The runs of the points; None of those that this machine does not see."""
    folders: list[Path | None] = []
    for point in found:
        training = point.order.value
        assert isinstance(training, Training)
        try:
            *_, folder = runs.located(training, place)
        except ValueError:  # its corpora lie elsewhere
            folders.append(None)
        else:
            folders.append(folder if (folder / "recipe.json").is_file() else None)
    return folders


def page(folders: Sequence[Path | None], out: Path) -> Path | None:
    """All runs of the sweep on one page; None where there is none to show."""
    shown = [folder for folder in folders if folder is not None]
    return report.write(out, shown) if shown else None
