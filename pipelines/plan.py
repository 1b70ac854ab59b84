"""From a training recipe to a schedule: which finished corpora it reads, through which selections, in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflow import selection
from dataflow.index import BuiltCorpus
from dataflow.mixture import Mixture
from dataflow.schedule import Schedule
from pipelines import corpus
from pipelines.curate import select
from pipelines.recipe import describe, key
from pipelines.step import Place, cluster
from pipelines.training import Training


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A member of a mixture on disk: folder of its corpus and of its selection (None: every record)."""

    corpus: Path
    selection: Path | None

    def open(self) -> BuiltCorpus:
        """The records it offers."""
        return BuiltCorpus(self.corpus, None if self.selection is None else selection.read(self.selection))


def build(mixture: Mixture, place: Place, *, rehash: bool = False) -> list[Opened]:
    """Build every corpus and selection of a mixture that is not there yet, on one Ray cluster."""
    wanted = {member.corpus.recipe_key(): member.corpus for member in mixture.members}
    with ExitStack() as stack:
        if not all(corpus.is_built(each, place, rehash=rehash) for each in wanted.values()):
            stack.enter_context(cluster(place))
        folders = {recipe_key: corpus.build(each, place, rehash=rehash) for recipe_key, each in wanted.items()}
    return [_opened(member, folders[member.corpus.recipe_key()], place) for member in mixture.members]


def locate(mixture: Mixture, place: Place) -> list[Opened]:
    """The finished corpora of a mixture, selections made.

    Raises:
        ValueError: one is not built.
    """
    return [_opened(member, corpus.locate(member.corpus, place), place) for member in mixture.members]


def schedule(training: Training, opened: Sequence[BuiltCorpus]) -> Schedule:
    """The order in which a training reads its mixture.

    Raises:
        ValueError: a source that the architecture cannot learn from, or one without records.
    """
    members = training.mixture.members
    names = tuple(member.corpus.name for member in members)
    for name, built in zip(names, opened, strict=True):
        deaf = {task: count for task, count in built.tasks.items() if task not in training.architecture.tasks}
        if deaf:
            share = sum(deaf.values()) / len(built)
            kind = type(training.architecture).__name__
            raise ValueError(
                f"{share:.0%} of {name} is {', '.join(deaf)}, from which {kind} learns nothing: "
                f"it learns {', '.join(training.architecture.tasks)}; select other records or take {name} out"
            )
    plan = Schedule(
        mixture=training.mixture,
        names=names,
        digests=tuple(built.digest for built in opened),
        rows=tuple(len(built) for built in opened),
        batch=training.batch,
        positions=training.steps,
    )
    plan.counts(0)  # an infeasible mixture says so here
    return plan


def run_folder(training: Training, plan: Schedule, place: Place) -> Path:
    """Where the run of this training on this data belongs: named by what changes its mathematics."""
    description: dict[str, Any] = describe(training)
    del description["execution"]
    run_key = key([description, plan.digest])
    return place.root / "trainings" / f"{training.name}-{run_key[:12]}"


def table(training: Training, plan: Schedule) -> list[dict[str, Any]]:
    """Planned samples per member: group, source, records on disk, turns in this run, share, passes."""
    rows, place, counts = [], 0, plan.counts()
    for group in training.mixture.groups:
        for _ in group.members:
            rows.append(
                {
                    "group": group.name,
                    "source": plan.names[place],
                    "records": plan.rows[place],
                    "planned": counts[place],
                    "share": counts[place] / sum(counts),
                    "passes": counts[place] / plan.rows[place],
                }
            )
            place += 1
    return rows


def slot_seed(seed: int, position: int, slot: int, purpose: str) -> int:
    """The seed of one draw of training: a function of run seed, position, record slot and purpose, never of a rank."""
    digest = hashlib.sha256(f"{seed}/{position}/{slot}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits: what torch's manual_seed takes


def _opened(member: Any, folder: Path, place: Place) -> Opened:
    if member.select is None:
        return Opened(corpus=folder, selection=None)
    return Opened(corpus=folder, selection=select(member.select, BuiltCorpus(folder), place))
