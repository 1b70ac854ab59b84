"""What a build would do and why, said before it does it: shards built, shards linked, tables made. Writes nothing.

It goes by names, sizes and times of the index files. Where these differ from an earlier build it reads the text ones
(jsonl, json, csv, tsv, txt), row by row as the build would, and so knows their shards exactly. Tars, parquet files and
whatever rows name are left alone: they hold pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dataflow import curation, index, readers, stores
from dataflow.build import name_of, received
from dataflow.build import splits as plan_of
from dataflow.curation import Verdicts
from dataflow.index import BuiltCorpus
from dataflow.mixture import Mixture
from dataflow.selection import Every
from pipelines import corpus, curate
from pipelines.corpus import Corpus, Inputs
from pipelines.recipe import describe
from pipelines.recipe import key as key_of
from pipelines.step import Place, finished, last_holder

_TEXT = (".jsonl", ".json", ".csv", ".tsv", ".txt")  # index files without pictures in them
_NAMED = 3  # files or fields told of at most


@dataclass(frozen=True, kw_only=True)
class Explained:
    """What a build would do to one corpus.

    folder: it is finished, there is nothing to do. build, link: shards. unread: files that hold pictures, or that
    follow such a one: which of their shards would be linked is known once they are read. why: in words.
    """

    name: str
    folder: Path | None = None
    build: int = 0
    link: int = 0
    unread: int = 0
    why: tuple[str, ...] = ()

    def line(self) -> str:
        """In a line."""
        if self.folder is not None:
            return f"{self.name}: nothing to do: {'; '.join(self.why)}"
        if not self.build + self.link + self.unread:
            return f"{self.name}: would be built: {'; '.join(self.why)}"
        unread = f"the shards of {_count(self.unread, 'file')} that only a build reads" if self.unread else ""
        counted = f"{_count(self.build, 'shard')}, link {self.link}" if self.build + self.link or not unread else ""
        return f"{self.name}: would build {', and '.join(filter(None, (counted, unread)))}: {'; '.join(self.why)}"


def lines(value: Mixture | Corpus, place: Place, *, rehash: bool) -> Iterator[str]:
    """What `interlace build` would do, line by line.

    Raises:
        ValueError: input that is not there, as for the build.
    """
    corpora = value.corpora if isinstance(value, Mixture) else (value,)
    wanted = {each.recipe_key(): each for each in corpora}
    found = {key: explain(each, place, rehash=rehash) for key, each in wanted.items()}
    yield from (each.line() for each in found.values())
    if isinstance(value, Mixture):
        yield from _tables(value, {key: each.folder for key, each in found.items()}, place)
    todo = [each for each in found.values() if each.folder is None]
    built, linked = sum(each.build for each in todo), sum(each.link for each in todo)
    unread = " and those of files that only a build reads" if any(each.unread for each in todo) else ""
    yield (
        f"{len(found) - len(todo)} of {len(found)} corpora are built; {_count(built, 'shard')} to build{unread}, "
        f"{linked} to link"
    )
    yield (
        "known from names, sizes and times of index files, and the text of those that changed; not known before a "
        "build: whether pictures changed behind their rows (--rehash), and which rows a filter drops"
    )


def explain(wanted: Corpus, place: Place, *, rehash: bool = False) -> Explained:
    """What a build would do to a corpus.

    Raises:
        ValueError: input that is not there.
    """
    try:
        place = wanted.found(place)
    except corpus.Unbuilt as error:  # its rows are made of another corpus, before it
        return Explained(name=wanted.name, why=(str(error),))
    found = corpus.inputs(wanted, place)
    there = corpus.newest(wanted, place, found)
    if there is not None and not rehash:
        return Explained(name=there.name, folder=there, why=("index files have the names, sizes and times they had",))
    work = corpus.work_folder(wanted, place, found, rehash=rehash)
    begun = corpus.begun_folder(place, work.name)
    plan = corpus.planned(begun)
    shown = _Shards(wanted, place, found, rehash=rehash)
    for file in found.files:
        shown.add(file)
    why = [f"--rehash builds {there.name} again"] if there is not None else _why(wanted, place, found, shown)
    if plan is not None:
        done = len(received(begun))
        holder = last_holder(corpus.lock_of(work))
        who = f"{holder.who} is at it" if holder and holder.held else "a build of it was interrupted"
        why.insert(0, f"{who}, {done} of {len(plan)} shards are done and stay")
    return Explained(name=work.name, build=shown.build, link=shown.link, unread=shown.unread, why=tuple(why))


@dataclass(frozen=True, kw_only=True)
class _Known:
    """An earlier corpus of the same recipe: its input and, of each file, the numbers and keys of its shards."""

    files: dict[str, tuple[int, int]]
    shards: dict[str, list[tuple[int, str]]]


@dataclass
class _Shards:
    """The shards of a build counted file by file, in order: a number that is not known leaves those after it open."""

    wanted: Corpus
    place: Place
    found: Inputs
    rehash: bool
    build: int = 0
    link: int = 0
    unread: int = 0
    number: int | None = 0  # of the next shard, None after a file whose shards are not counted
    changed: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)  # files whose shards have other numbers now

    def __post_init__(self) -> None:
        self.earlier = {} if self.rehash else corpus.earlier_shards(self.wanted, self.place)
        self.known = [] if self.rehash else list(_known(self.wanted, self.place))
        stamps = zip(self.found.sizes, self.found.times, strict=True)
        self.now = dict(zip(self.found.files, stamps, strict=True))

    def add(self, file: str) -> None:
        """Count the shards of the next file."""
        if self.wanted.shards == "adopted":
            self._count([None])
            return
        same = next((each for each in self.known if each.files.get(file) == self.now[file]), None)
        if self.number is not None and same is not None:
            held = same.shards.get(file, [])
            if held and held[0][0] != self.number:
                self.moved.append(file)
            self._count([key if number == place else None for place, (number, key) in enumerate(held, self.number)])
        elif self.number is not None and file.endswith(_TEXT):
            self._read(file, self.number)
        else:
            self.unread += 1
            self.number = None

    def _read(self, file: str, first: int) -> None:
        roots, name = self.place.roots, self.wanted.source.name
        keys: list[str | None] = []
        for number, split in enumerate(plan_of(roots, name, file, self.wanted.rows_per_shard), first):
            if not self.earlier:  # what is built anew need not be read
                keys.append(None)
                continue
            digest, _ = readers.rows(roots.source(name), split)
            keys.append(name_of(self.wanted.recipe_key(), number, split, digest))
            if keys[-1] not in self.earlier:
                last = split.first + split.rows - 1
                self.changed.append(f"rows {split.first} to {last} of {file} (shard {number})")
        self._count(keys)

    def _count(self, keys: Sequence[str | None]) -> None:
        linked = sum(key in self.earlier for key in keys)
        self.link += linked
        self.build += len(keys) - linked
        self.number = None if self.number is None else self.number + len(keys)


def _known(wanted: Corpus, place: Place) -> Iterator[_Known]:
    for folder in reversed(corpus.of_recipe(wanted, place)):
        noted = corpus.remembered(folder.parent, folder.name)
        if noted is None:
            continue
        keys = [shard["key"] for shard in index.read_manifest(folder)["shards"]]
        ledger = pq.read_table(stores.readable(folder / "ledger.parquet"), columns=["file", "shard"])
        by_file: dict[str, list[tuple[int, str]]] = {}
        for row in ledger.group_by(["file", "shard"], use_threads=False).aggregate([]).to_pylist():
            by_file.setdefault(row["file"], []).append((row["shard"], keys[row["shard"]]))
        yield _Known(files=noted.files, shards=by_file)


def _why(wanted: Corpus, place: Place, found: Inputs, shown: _Shards) -> list[str]:
    same = corpus.of_recipe(wanted, place)
    if not same:
        return [_recipes(wanted, place)]
    before = next((noted for each in reversed(same) if (noted := corpus.remembered(each.parent, each.name))), None)
    if before is None:
        return [f"input differs from {same[-1].name}'s, whose files were not noted"]
    now = shown.now
    new = [file for file in now if file not in before.files]
    gone = [file for file in before.files if file not in now]
    other = [file for file in now if file in before.files and before.files[file] != now[file]]
    why = []
    if shown.changed:
        why.append(f"changed or new: {_few(shown.changed)}")
    elif other:
        why.append(f"other size or time: {_few(other)}")
    if new:
        why.append(f"new: {_few(new)}")
    if gone:
        why.append(f"gone: {_few(gone)}")
    if shown.moved:
        why.append(f"shards have other numbers from {shown.moved[0]} on, as other files before it have more or fewer")
    return why or [f"the files of {same[-1].name} in another order"]


def _recipes(wanted: Corpus, place: Place) -> str:
    """How the recipe differs from the one nearest to it that this source was built by."""
    nearest: tuple[int, str, list[str]] | None = None
    for folder in finished(stores.inside(place.corpora, f"{wanted.source.name}-*")):
        manifest = index.any_manifest(folder)
        told = list(differences(manifest.get("step", {}), describe(wanted)))
        if manifest.get("schema") != index.SCHEMA:
            told.append(f"schema of corpora is {index.SCHEMA}, was {manifest.get('schema')}")
        if nearest is None or len(told) <= nearest[0]:
            nearest = len(told), folder.name, told
    if nearest is None:
        return f"never built under {place.store or place.root}"
    _, name, told = nearest
    return f"recipe differs from {name}'s: {_few(told or ['a library that encodes has another version'])}"


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """In which fields one description differs from another, by path."""
    if before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict) and before.get("is") == now.get("is"):
        pairs = {name: (before.get(name), now.get(name)) for name in {**before, **now}}
    elif isinstance(before, list) and isinstance(now, list):
        pairs = {str(place): pair for place, pair in enumerate(zip_longest(before, now))}
    else:
        yield f"{path} is {_short(now)}, was {_short(before)}"
        return
    for name, (old, new) in pairs.items():
        yield from differences(old, new, f"{path}.{name}".strip("."))


def _short(description: Any) -> str:
    """A value in a line: of a dataclass its name."""
    if isinstance(description, dict):
        return str(description.get("is", "")).rpartition(":")[2]
    return "nothing" if description is None else json.dumps(description, ensure_ascii=False)[:80]


def _tables(mixture: Mixture, folders: dict[str, Path | None], place: Place) -> Iterator[str]:
    """What becomes of measures, curations and selections: tables beside corpora, which touch no shard."""
    opened = {key: BuiltCorpus(folder) for key, folder in folders.items() if folder is not None}
    members = list(dict.fromkeys(member.corpus.recipe_key() for member in mixture.members))
    waiting = [each.name for each in mixture.corpora if each.recipe_key() not in opened]
    verdicts: dict[str, Verdicts] = {}
    before, open_ = "", "its corpora are not built" if waiting and mixture.curation else ""
    for rule in mixture.curation:
        name = f"curation {type(rule).__name__}"
        if open_:
            yield f"{name}: would be made: {open_}"
            continue
        against = [opened[each.recipe_key()] for each in getattr(rule, "against", ())]
        step, folder = curate.curation_step(rule, [opened[key] for key in members], against, before, place)
        before = key_of(step)
        if (folder / "manifest.json").is_file():
            found = curation.read(folder)
            verdicts = {key: found[opened[key].name] for key in members}
            yield f"{name}: nothing to do"
            continue
        new = [
            f"{each.name} of {one.name}"
            for each in rule.measures
            for one in (*(opened[key] for key in members), *against)
            if curate.measured(each, one, place) is None
        ]
        measuring = f", after {_count(len(new), 'measure')} ({_few(new)}), which read the records" if new else ""
        yield f"{name}: would be made: no table of this rule on these corpora{measuring}"
        open_ = "the one before it is not made"
    told: dict[str, list[str]] = {}
    for member in mixture.members:
        rule, key = member.select or (Every() if mixture.curation else None), member.corpus.recipe_key()
        if rule is None:
            continue
        if key not in opened or open_:
            outcome = f"would be made: {open_ or 'its corpus is not built'}"
        elif curate.selected(rule, opened[key], place, verdicts.get(key)) is None:
            outcome = f"would be made: none of this {type(rule).__name__} on this corpus"
        else:
            outcome = "nothing to do"
        told.setdefault(outcome, []).append(member.corpus.name)
    for outcome, names in told.items():
        yield f"selection of {_few(names)}: {outcome}"


def _few(told: Sequence[str]) -> str:
    return ", ".join(told[:_NAMED]) + (f" and {len(told) - _NAMED} more" if len(told) > _NAMED else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
