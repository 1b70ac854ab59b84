"""From a training recipe to a schedule: which finished corpora it reads, through which selections, in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataflow import selection
from dataflow.curation import Verdicts
from dataflow.index import BuiltCorpus, Shards
from dataflow.mixture import Mixture
from dataflow.schedule import Schedule
from dataflow.selection import Every, Part
from dataflow.windows import Windows
from pipelines import corpus, lengths
from pipelines.curate import curate, select, there
from pipelines.recipe import describe, key
from pipelines.step import Place, cluster
from pipelines.training import Training


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A member of a mixture on disk: folder of its corpus and of its selection (None: every record)."""

    corpus: Path
    selection: Path | None

    def open(self, *, shards_are: Shards = "trusted") -> BuiltCorpus:
        """The records it offers."""
        rows = None if self.selection is None else selection.read(self.selection)
        return BuiltCorpus(self.corpus, rows, shards_are=shards_are)


def build(mixture: Mixture, place: Place, *, rehash: bool = False) -> list[Opened]:
    """Build every corpus and selection of a mixture that is not there yet, on one Ray cluster."""
    wanted = {each.recipe_key(): each for each in mixture.corpora}
    with ExitStack() as stack:
        if rehash or not all(corpus.is_built(each, place) for each in wanted.values()):
            there(measure for rule in mixture.curation for measure in rule.measures)
            measured = mixture.curation or any(getattr(each, "measures", ()) for each in wanted.values())
            written = (place.root,) if measured else ()  # by workers, beside corpora
            stack.enter_context(cluster(place, shared=(*written, *filter(None, [place.store]))))
        folders = {recipe_key: corpus.build(each, place, rehash=rehash) for recipe_key, each in wanted.items()}
        return _opened(mixture, folders, place)


def locate(mixture: Mixture, place: Place) -> list[Opened]:
    """The finished corpora of a mixture, selections made.

    Raises:
        ValueError: one is not built.
    """
    return _opened(mixture, _located(mixture, place), place)


def held_out(mixture: Mixture, place: Place) -> list[Opened]:
    """The finished corpora of a mixture's members, each once, through their validation part: what no training saw.

    Raises:
        ValueError: one is not built.
    """
    folders = _located(mixture, place)
    verdicts = _curated(mixture, folders, place)
    names = dict.fromkeys(member.corpus.recipe_key() for member in mixture.members)
    return [_through(Part(part="validation"), folders[name], place, verdicts.get(name)) for name in names]


def schedule(training: Training, opened: Sequence[BuiltCorpus], place: Place) -> Schedule | Windows:
    """The order in which a training reads its mixture; lengths are measured where it needs them.

    Raises:
        ValueError: a source that the architecture cannot learn from, one without records, one that runs dry, or no end.
    """
    members, by_tokens = training.mixture.members, training.mixture.unit == "tokens"
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
    measured, most = training.packing is not None or by_tokens, training.shortened_to
    held = lengths.of(training.architecture, opened, place, most=most) if measured else ()
    about = {
        "mixture": training.mixture,
        "names": names,
        "digests": tuple(built.digest for built in opened),
        "rows": tuple(len(built) for built in opened),
        "batch": training.batch,
        "positions": 0,
    }
    if training.packing:
        endless = Windows(**about, lengths=held, length=training.sequence_length, packing=training.packing)
    else:
        endless = Schedule(**about, lengths=tuple(each.tokens for each in held))
    plan = replace(endless, positions=_steps(training, endless.ends) if training.steps is None else training.steps)
    plan.check()  # an infeasible mixture says so here
    return plan


def _steps(training: Training, ends: int | None) -> int:
    """As many as the mixture lasts for: so many positions, each a step."""
    if ends is None:
        raise ValueError(
            f"training {training.name} has no steps and its mixture no end: give steps, "
            "or give the members of a group a Count or Passes"
        )
    return ends


def run_folder(training: Training, plan: Schedule | Windows, place: Place) -> Path:
    """Where the run of this training on this data belongs: named by what changes its mathematics."""
    description = _mathematics(describe(training))
    run_key = key([description, plan.digest])
    return place.root / "trainings" / f"{training.name}-{run_key[:12]}"


def _mathematics(description: dict[str, Any]) -> dict[str, Any]:
    """A training's description without how it is executed and where weights lie, of those it starts from neither."""
    kept = {name: value for name, value in description.items() if name not in ("execution", "path")}
    if kept.get("start_from") is not None:
        kept["start_from"] = _mathematics(kept["start_from"])
    return kept


def table(training: Training, plan: Schedule | Windows) -> list[dict[str, Any]]:
    """What is planned of each member: group, source, records on disk, turns in this run, passes, share of the samples.

    Also the tokens where lengths are known; of a mixture in tokens the share is of them.
    """
    rows, place, counts, sizes = [], 0, plan.counts(), plan.sizes()
    tokens = plan.tokens() if isinstance(plan, Windows) else sizes if training.mixture.unit == "tokens" else None
    for group in training.mixture.groups:
        for _ in group.members:
            rows.append(
                {
                    "group": group.name,
                    "source": plan.names[place],
                    "records": plan.rows[place],
                    "planned": counts[place],
                    "share": sizes[place] / sum(sizes),
                    "passes": counts[place] / plan.rows[place],
                    **({} if tokens is None else {"tokens": tokens[place]}),
                }
            )
            place += 1
    return rows


def page(training: Training, place: Place) -> Iterator[str]:
    """The lines that `interlace plan` prints of the data: what each source gives, in samples and tokens, and how often.

    Lengths are measured where they are not yet; pictures are not read.

    Raises:
        ValueError: corpora that are not built, a mixture that cannot be.
    """
    plan = schedule(training, [member.open() for member in locate(training.mixture, place)], place)
    rows = table(training, plan)
    counts, tokens = sum(row["planned"] for row in rows), sum(row.get("tokens", 0) for row in rows)
    yield f"{plan.positions} steps of {training.batch} rows, {counts:,} records, shares in {training.mixture.unit}"
    group, source = (max(len(row[name]) for row in rows) for name in ("group", "source"))
    group, source = max(group, 5), max(source, 6)
    head = ("on disk", "planned", "passes", "% samples", "tokens", "% tokens")
    yield f"{'group':{group}}  {'source':{source}}" + "".join(f"{name:>14}" for name in head)
    for row in rows:
        numbers = [f"{row['records']:,}", f"{row['planned']:,}", f"{row['passes']:.2f}"]
        numbers.append(f"{100 * row['planned'] / max(1, counts):.2f}")
        known = "tokens" in row
        numbers += [f"{row['tokens']:,}", f"{100 * row['tokens'] / max(1, tokens):.2f}"] if known else ["-", "-"]
        yield f"{row['group']:{group}}  {row['source']:{source}}" + "".join(f"{number:>14}" for number in numbers)
    if isinstance(plan, Windows):
        yield from _packed(plan, tokens)


def _packed(plan: Windows, tokens: int) -> Iterator[str]:
    """How full rows are, and what is left out of them."""
    places = plan.positions * plan.batch * plan.length
    padding = 1 - tokens / places
    yield (
        f"rows of {plan.length} tokens filled to {plan.fill / 10:g} %: {padding:.1%} of all places is padding"
        + (", over 3 %: longer rows waste less" if padding > 0.03 else "")
    )
    for name, shortened, dropped, rows in zip(plan.names, plan.shortened, plan.dropped, plan.rows, strict=True):
        if shortened:
            yield f"{name}: {shortened} of {rows} records are longer than a row and shortened to it"
        if dropped:
            yield f"{name}: {dropped} of {rows} records are longer than a row and left out"
    windows = range(min(plan.positions // plan.positions_per_window, 8))
    left = sum(len(plan.window(number).left) for number in windows)
    if left:
        yield f"{left} records of the first {len(windows)} windows find no room in them and are left out of that pass"


def slot_seed(seed: int, position: int, slot: int | str, purpose: str) -> int:
    """The seed of one draw of training: a function of run seed, position, record slot and purpose, never of a rank."""
    digest = hashlib.sha256(f"{seed}/{position}/{slot}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits: what torch's manual_seed takes


def _located(mixture: Mixture, place: Place) -> dict[str, Path]:
    """By recipe key the finished corpora of a mixture."""
    return {name: corpus.locate(each, place) for name, each in {c.recipe_key(): c for c in mixture.corpora}.items()}


def _opened(mixture: Mixture, folders: dict[str, Path], place: Place) -> list[Opened]:
    """The members of a mixture whose corpora are built; curated over all of these, then selected from one by one."""
    corpus.note_store(place)
    verdicts, members = _curated(mixture, folders, place), []
    for member in mixture.members:
        name = member.corpus.recipe_key()
        if member.select is None and not mixture.curation:
            members.append(Opened(corpus=folders[name], selection=None))
        else:
            members.append(_through(member.select or Every(), folders[name], place, verdicts.get(name)))
    return members


def _curated(mixture: Mixture, folders: dict[str, Path], place: Place) -> dict[str, Verdicts]:
    """By recipe key what became of the records of each member's corpus; nothing where the mixture is not curated."""
    if not mixture.curation:
        return {}
    opened = {name: BuiltCorpus(folder) for name, folder in folders.items()}
    names = list(dict.fromkeys(member.corpus.recipe_key() for member in mixture.members))
    return dict(zip(names, curate(mixture.curation, [opened[name] for name in names], place, opened), strict=True))


def _through(rule: Any, folder: Path, place: Place, curated: Verdicts | None) -> Opened:
    return Opened(corpus=folder, selection=select(rule, BuiltCorpus(folder), place, curated))
