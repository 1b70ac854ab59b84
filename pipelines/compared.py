"""Runs on one page: what each was asked, took and lost, in one table, and their curves in common plots."""

from __future__ import annotations

import itertools
import json
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dataflow.reader import read_events, read_skips
from pipelines import journal
from pipelines.curves import Plot, plot, written

LAST = 10  # steps whose mean is told as a run's last loss
_LARGE, _SMALL = (640, 250), (318, 150)  # of a plot, in pixels
_DIFFERENCES = 40  # fields shown that differ between recipes
_CELL = 90  # letters of a value in a table
_ABSENT = object()
_TOLD_BY_ALL = {"step", "losses", "fed", "rate", "norm", "seconds", "data_seconds", "attempt"}  # lines, old ones too

Line = dict[str, Any]
"""Of metrics.jsonl, as `journal` has it; old ones lack what was not told then."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a run's folder tells. number: in the order of the page. planned: the mixture of its plan.json."""

    number: int
    name: str
    folder: Path
    recipe: dict[str, Any]
    planned: list[dict[str, Any]]
    written: list[Line]

    @cached_property
    def steps(self) -> list[Line]:
        """A line per step."""
        return journal.latest(self.written)

    @cached_property
    def fed(self) -> Counter[str]:
        """Records by source."""
        fed = Counter[str]()
        for line in self.steps:
            fed.update(line["fed"])
        return fed

    @cached_property
    def begun_again(self) -> list[int]:
        """Steps that an attempt began with, but for the first one's."""
        return [now["step"] for before, now in itertools.pairwise(self.written) if now["attempt"] != before["attempt"]]

    @property
    def modalities(self) -> list[str]:
        """What losses it has, in its architecture's order."""
        return list(self.steps[0]["losses"]) if self.steps else []

    def last_loss(self, modality: str) -> float | None:
        """The mean of the last steps that have one."""
        losses = [line["losses"].get(modality) for line in self.steps]
        known = [loss for loss in losses if loss is not None][-LAST:]
        return statistics.fmean(known) if known else None

    def total(self, name: str) -> float | None:
        """A kind of seconds over all steps; None where it was not told."""
        known = [line[name] for line in self.steps if name in line]
        return sum(known) if known else None


def read(number: int, name: str, folder: Path) -> Told:
    """What a run's folder tells.

    Raises:
        KeyError, TypeError, json.JSONDecodeError: a file in it is not what we write.
    """
    recipe, plan = json.loads((folder / "recipe.json").read_bytes()), folder / "plan.json"
    lines = journal.read(folder)
    for line in lines:
        if missing := _TOLD_BY_ALL - line.keys():
            raise KeyError(f"metrics.jsonl lacks {', '.join(sorted(missing))}")
    return Told(
        number=number,
        name=name,
        folder=folder,
        recipe={"recipe": recipe["recipe"], "value": recipe["value"]},
        planned=json.loads(plan.read_bytes())["mixture"] if plan.is_file() else [],
        written=lines,
    )


def names(folders: Sequence[Path]) -> list[str]:
    """What tells folders apart, as short as that: their own names, or with what is above them in common left out."""
    short = [folder.name for folder in folders]
    if len(set(short)) == len(short) or len(folders) < 2:
        return short
    above = os.path.commonpath([folder.absolute() for folder in folders])
    return [
        str(folder.absolute().relative_to(above)) if short.count(folder.name) > 1 else folder.name for folder in folders
    ]


# ---- tables


def table(runs: Sequence[Told]) -> dict[str, Any]:
    """The page's first table: a column for each thing that some run tells, a row of text for each run."""
    columns: list[tuple[str, Callable[[Told], str]]] = [("steps", _steps)]
    for modality in _union(run.modalities for run in runs):
        columns.append((f"{modality} loss", lambda run, modality=modality: _number(run.last_loss(modality))))
    columns += [
        ("s / step", _pace),
        ("tokens / s", _speed),
        ("waiting for data", lambda run: _share(run, "data_seconds")),
        ("saving", lambda run: _share(run, "save_seconds")),
        ("padding", _padding),
        ("attempts", _attempts),
        ("records replaced", lambda run: _count(len(read_events(run.folder / "events.jsonl")))),
        ("positions passed over", lambda run: _count(len(read_skips(run.folder / "events.jsonl")))),
        ("GB at most", _peak),
    ]
    filled = [(name, [tell(run) for run in runs]) for name, tell in columns]
    shown = [(name, cells) for name, cells in filled if any(cells)]
    return {
        "columns": [name for name, _ in shown],
        "rows": [{"run": run, "cells": [cells[run.number] for _, cells in shown]} for run in runs],
    }


def shares(runs: Sequence[Told]) -> list[dict[str, Any]]:
    """A row for each source of some run: its group, and of each run the share of records it was to give, and gave.

    Plans whose amounts are tokens tell no share of records: there it is that of the records planned.
    """
    rows: dict[str, dict[str, list[dict[str, float] | None]]] = {}
    for run in runs:
        planned = Counter[tuple[str, str]]()
        for member in run.planned:
            planned[member["group"], member["source"]] += member["planned"]
        for (group, source), count in planned.items():
            cells = rows.setdefault(group, {}).setdefault(source, [None] * len(runs))
            given = run.fed[source] / run.fed.total() if run.fed.total() else 0.0
            cells[run.number] = {"planned": count / (planned.total() or 1), "fed": given}
    return [
        {"group": group, "source": source, "cells": cells}
        for group, sources in rows.items()
        for source, cells in sources.items()
    ]


def differences(runs: Sequence[Told], in_words: Callable[[Any], str]) -> dict[str, Any]:
    """The fields in which recipes differ, by path, with the value of each run in words; none where there is one run."""
    found = (
        [] if len(runs) < 2 else list(_differing([{"recipe": _named(run), **run.recipe["value"]} for run in runs], ""))
    )
    rows = []
    for path, values in found[:_DIFFERENCES]:
        whole = ["–" if value is _ABSENT else in_words(value) or "none" for value in values]
        cells = [{"text": _brief(value, text), "whole": text} for value, text in zip(values, whole, strict=True)]
        rows.append({"path": path, "cells": cells})
    return {"rows": rows, "more": max(0, len(found) - _DIFFERENCES)}


def _named(run: Told) -> str:
    return str(run.recipe["recipe"])


def _differing(values: Sequence[Any], path: str) -> Iterator[tuple[str, Sequence[Any]]]:
    """Paths at which values differ, as deep as they are of one kind."""
    if all(value == values[0] for value in values):
        return
    inside = f"{path}." if path else ""
    if all(isinstance(value, dict) for value in values) and len({value.get("is") for value in values}) == 1:
        for name in _union(values):
            if name not in ("is", "version"):
                yield from _differing([value.get(name, _ABSENT) for value in values], f"{inside}{name}")
    elif all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
        for place, items in enumerate(zip(*values, strict=True)):
            known = {item.get("name") for item in items if isinstance(item, dict)}
            name = known.pop() if len(known) == 1 else None
            yield from _differing(items, f"{inside}{name or place}")
    else:
        yield path, values


def _union(names: Iterable[Iterable[str]]) -> list[str]:
    """All names, each once, in the order they first come in."""
    return list(dict.fromkeys(name for each in names for name in each))


def _brief(value: Any, text: str) -> str:
    """A value's words if they fit into a table; of larger ones the kind, or the names of its items."""
    if len(text) <= _CELL:
        return text
    if isinstance(value, dict):
        return str(value["is"]).rpartition(":")[2]
    named = [str(item["name"]) for item in value if isinstance(item, dict) and "name" in item]
    told = ", ".join(named) if named and len(named) == len(value) else text
    return told if len(told) <= _CELL else f"{told[:_CELL]}…"


def _steps(run: Told) -> str:
    taken, wanted = len(run.steps), run.recipe["value"].get("steps")
    return f"{taken:,}" if taken == wanted or wanted is None else f"{taken:,} of {wanted:,}"


def _number(value: float | None) -> str:
    return "" if value is None else written(value)


def _count(value: int) -> str:
    return f"{value:,}" if value else ""


def _pace(run: Told) -> str:
    return written(statistics.median(line["seconds"] for line in run.steps)) if run.steps else ""


def _speed(run: Told) -> str:
    tokens, seconds = sum(sum(line.get("tokens", {}).values()) for line in run.steps), run.total("seconds")
    return written(tokens / seconds) if tokens and seconds else ""


def _share(run: Told, name: str) -> str:
    """Seconds of a kind, and what part of all steps' they are. Saves are no part of a step: theirs is beside it."""
    spent, seconds = run.total(name), run.total("seconds")
    return f"{written(spent)} s, {spent / seconds:.2%}" if spent is not None and seconds else ""


def _padding(run: Told) -> str:
    known = [line["padding"] for line in run.steps if line.get("padding") is not None]
    return f"{statistics.fmean(known):.2%}" if known else ""


def _attempts(run: Told) -> str:
    """How many there were, and how long it took from one to the next."""
    count = len({line["attempt"] for line in run.written})
    lost, seconds = len(run.written) - len(run.steps), journal.recoveries(run.written)
    if count < 2:
        return ""
    again = f", {lost} repeated" if lost else ""
    between = f", {written(statistics.median(seconds))} s between" if seconds else ""
    return f"{count}{again}{between}"


def _peak(run: Told) -> str:
    peaks = [line["peak"] for line in run.steps if "peak" in line]
    return ", ".join(f"{place} {written(max(peak[place] for peak in peaks) / 1e9)}" for place in (peaks or [{}])[-1])


# ---- plots


def plots(runs: Sequence[Told]) -> list[tuple[str, list[Plot]]]:
    """The page's plots under their headings, all runs in each."""
    again = {run.number: run.begun_again for run in runs}

    def drawn(title: str, value: Callable[[Line], float | None], size: tuple[int, int]) -> Plot | None:
        series = {}
        for run in runs:
            values = ((line["step"], value(line)) for line in run.steps)
            series[run.number] = {step: each for step, each in values if each is not None}
        return plot(title, series, width=size[0], height=size[1], marks=again)

    sections: list[tuple[str, list[Plot | None]]] = []
    losses = [
        drawn(f"{name} loss", lambda line, name=name: line["losses"].get(name), _LARGE)
        for name in _union(run.modalities for run in runs)
    ]
    sections.append(("Losses", losses))
    for what in ("group", "task", "source"):
        held = _union(line.get("by", {}).get(what, {}) for run in runs for line in run.steps)
        small = [
            drawn(f"{name}: {modality}", _by(what, name, modality), _SMALL)
            for name in held
            for modality in _union(run.modalities for run in runs)
        ]
        sections.append((f"Losses by {what}", small))
    course = [
        drawn("gradient norm, before it is clipped", lambda line: line["norm"], _SMALL),
        drawn("learning rate", lambda line: line["rate"], _SMALL),
        drawn("seconds of a step", lambda line: line["seconds"], _SMALL),
        drawn("share of it waiting for data", lambda line: line["data_seconds"] / line["seconds"], _SMALL),
        drawn("seconds of a save", lambda line: line.get("save_seconds") or None, _SMALL),
        drawn("tokens of a step", lambda line: sum(line["tokens"].values()) if line.get("tokens") else None, _SMALL),
        drawn("padding of a step", lambda line: line.get("padding"), _SMALL),
        drawn("GB at most, rank 0's host", _gigabytes("host"), _SMALL),
        drawn("GB at most, rank 0's device", _gigabytes("device"), _SMALL),
    ]
    sections.append(("Its course" if len(runs) == 1 else "Their course", course))
    kept = ((heading, [each for each in made if each is not None]) for heading, made in sections)
    return [(heading, made) for heading, made in kept if made]


def _by(what: str, name: str, modality: str) -> Callable[[Line], float | None]:
    return lambda line: line.get("by", {}).get(what, {}).get(name, {}).get(modality)


def _gigabytes(place: str) -> Callable[[Line], float | None]:
    return lambda line: line["peak"][place] / 1e9 if place in line.get("peak", {}) else None
