"""Measures, curations and selections as workflow steps: what is known of records, and which of them a mixture uses.

<root>/measures/<name>-<key>/   a table beside a corpus            key = hash of (measure, corpus root digest)
<root>/selections/<key>/        verdicts over all corpora, or       key = hash of (rule, corpora, what was done before)
                                which records a member uses
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataflow import curation, measures, selection
from dataflow.build import sweep
from dataflow.curation import Held, Verdicts
from dataflow.index import BuiltCorpus
from dataflow.measures import Measure
from pipelines.recipe import describe, key
from pipelines.step import Place, Progress, alone, cluster, each, each_ready

Shared = tuple[Measure, Path, Path, tuple[tuple[str, Path], ...]]
"""What workers are told: the measure, its corpus, its folder, and the folders of those that it is made of, by name."""


def measure(rule: Measure, corpus: BuiltCorpus, place: Place, *, here: int = 0) -> Path:
    """Measure the records of a corpus on Ray, or find them measured; returns the folder. Goes on from what is there.

    What the measure is made of is measured first.

    Args:  here: so many shards left are measured in this process: a cluster may take longer to start.
    """
    step, folder = _step(rule, corpus, place)
    if (folder / "manifest.json").is_file():
        sweep(folder)  # parts, if whoever finished it was killed over them
        return folder
    made_of = tuple((each.name, measure(each, corpus, place)) for each in getattr(rule, "measures", ()))
    with ExitStack() as stack:
        stack.enter_context(alone(folder.with_name(f".{folder.name}.lock"), folder.name))
        folder.mkdir(parents=True, exist_ok=True)
        shards = range(len(corpus.manifest["shards"]))
        todo = [shard for shard in shards if not measures.part_path(folder, shard).is_file()]
        progress = Progress(f"{folder.name} of {corpus.name}", len(todo), "shards")
        if len(todo) > here or rule.gpus:
            stack.enter_context(cluster(place))
        shared = (rule, corpus.folder, folder, made_of)
        if rule.gpus:
            done = each_ready(_measurer, shared, todo, progress, gpus=rule.gpus)
        elif len(todo) <= here:
            done = map(partial(_measured, shared), todo)
        else:  # actors start anew for every corpus, workers are there already
            done = each(_measured, shared, todo, progress)
        for _ in done:
            pass
        measures.commit(folder, corpus, rule, step=step)
        progress.close(f"{corpus.table.num_rows} records measured")
    return folder


def _versions(rule: Any) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in rule.libraries}


def measured(rule: Measure, corpus: BuiltCorpus, place: Place) -> Path | None:
    """The folder of a finished measure, None where it is yet to be made."""
    _, folder = _step(rule, corpus, place)
    return folder if (folder / "manifest.json").is_file() else None


def _step(rule: Measure, corpus: BuiltCorpus, place: Place) -> tuple[dict[str, Any], Path]:
    """What makes a measure, and the folder that is named by it."""
    step = {"measure": describe(rule), "libraries": _versions(rule), "corpus": corpus.manifest["root_digest"]}
    return step, place.root / "measures" / f"{rule.name}-{key(step)[:12]}"


def _measured(shared: Shared, shard: int) -> None:
    _kept(shared)(shard)


def _measurer(shared: Shared) -> Callable[[int], None]:
    """What measures a shard; made once per worker, for networks are loaded here."""
    rule, place, folder, made_of = shared
    corpus, ready = BuiltCorpus(place), rule.ready()
    tables = {name: measures.read(other) for name, other in made_of} or None
    return lambda shard: measures.write_part(folder, shard, corpus, rule, ready, tables=tables)


_kept = lru_cache(maxsize=1)(_measurer)


def there(rules: Iterable[Measure]) -> None:
    """Whether what measures need is there: files, weights. Asked before work that is lost, or waits, without them.

    Raises: ValueError: something is not.
    """
    for rule in rules:
        there(getattr(rule, "measures", ()))
        ask = getattr(rule, "there", None)
        if ask is not None:
            ask()


def curate(
    rules: Sequence[Any], corpora: Sequence[BuiltCorpus], place: Place, beside: Mapping[str, BuiltCorpus] | None = None
) -> list[Verdicts]:
    """Apply curations one after the other over all records of a mixture's corpora, measuring what they need.

    Args:
        beside: by recipe key, the corpora that are no part of the mixture and that a rule compares it with.
    Returns:  the last verdicts on each corpus.
    """
    now = []
    for one in corpora:
        keys = one.table["key"].combine_chunks()
        now.append(Verdicts(used=np.ones(len(keys), bool), reasons=pa.repeat("", len(keys)), clusters=keys))
    needed = dict.fromkeys(each for rule in rules for each in rule.measures)
    there(each for each in needed if not all(measured(each, one, place) for one in corpora))
    before = ""
    for rule in rules:
        against = [(beside or {})[each.recipe_key()] for each in getattr(rule, "against", ())]
        step, folder = curation_step(rule, corpora, against, before, place)
        before = key(step)
        if not (folder / "manifest.json").is_file():
            with alone(folder.with_name(f".{folder.name}.lock"), folder.name):
                _decide(rule, corpora, against, now, place, folder, step)
        found = curation.read(folder)
        now = [found[one.name] for one in corpora]
    return now


def curation_step(
    rule: Any, corpora: Sequence[BuiltCorpus], against: Sequence[BuiltCorpus], before: str, place: Place
) -> tuple[dict[str, Any], Path]:
    """What a curation depends on, `before` the key of the one before it, and its folder."""
    step = {
        "curation": describe(rule),
        "libraries": _versions(rule),
        "measures": [[describe(each), _versions(each)] for each in rule.measures],
        "corpora": [[one.name, one.manifest["root_digest"]] for one in corpora],
        "against": [[one.name, one.manifest["root_digest"]] for one in against],
        "before": before,
    }
    return step, place.root / "selections" / key(step)[:12]


def _decide(
    rule: Any,
    corpora: Sequence[BuiltCorpus],
    against: Sequence[BuiltCorpus],
    now: Sequence[Verdicts],
    place: Place,
    folder: Path,
    step: dict[str, Any],
) -> None:
    """Measure what a curation needs, all on one cluster, let it judge, write what became of every record and say so."""
    with ExitStack() as stack:
        if not all(measured(each, one, place) for each in rule.measures for one in (*corpora, *against)):
            stack.enter_context(cluster(place))
        held = [_held(rule, one, verdicts, place) for one, verdicts in zip(corpora, now, strict=True)]
        sets = [_held(rule, one, None, place) for one in against]
    progress = Progress(f"selections/{folder.name}: {type(rule).__name__}", 1, "curations")
    manifest = curation.write(folder, held, rule(held, sets) if against else rule(held), step=step)
    first, *rest = curation.lines(manifest)
    progress.close(first)
    for line in rest:
        print(line, flush=True)


def _held(rule: Any, corpus: BuiltCorpus, verdicts: Verdicts | None, place: Place) -> Held:
    keys = corpus.table["key"].combine_chunks()
    return Held(
        name=corpus.manifest["step"]["source"]["name"],
        index=corpus.table,
        used=np.ones(len(keys), bool) if verdicts is None else verdicts.used,
        clusters=keys if verdicts is None else verdicts.clusters,
        measures={each.name: measures.read(measure(each, corpus, place)).cast(each.columns) for each in rule.measures},
        corpus=corpus,
    )


def select(rule: Any, corpus: BuiltCorpus, place: Place, curated: Verdicts | None = None) -> Path:
    """Apply a selection to a corpus, or find it applied; returns its folder.

    curated: takes records out of use first, and says which of them are chosen together.
    """
    corpus, names = _through(corpus, curated)
    step, folder = _selection_step(rule, corpus, names, place)
    if not (folder / "manifest.json").is_file():
        with alone(folder.with_name(f".{folder.name}.lock"), folder.name):
            selection.write(folder, corpus, rule, step=step, names=names)
    return folder


def selected(rule: Any, corpus: BuiltCorpus, place: Place, curated: Verdicts | None = None) -> Path | None:
    """The folder of a selection that is made, None where it is yet to be."""
    _, folder = _selection_step(rule, *_through(corpus, curated), place)
    return folder if (folder / "manifest.json").is_file() else None


def _through(corpus: BuiltCorpus, curated: Verdicts | None) -> tuple[BuiltCorpus, list[str] | None]:
    """What a curation leaves of a corpus, and the cluster of each record of it."""
    if curated is None:
        return corpus, None
    left = BuiltCorpus(corpus.folder, np.flatnonzero(curated.used))
    return left, curated.clusters.take(pa.array(left.rows)).to_pylist()


def _selection_step(
    rule: Any, corpus: BuiltCorpus, names: Sequence[str] | None, place: Place
) -> tuple[dict[str, Any], Path]:
    """What a selection depends on, and its folder."""
    step = {"select": describe(rule), "corpus": corpus.manifest["root_digest"]}
    if names is not None:
        step |= {"curated": corpus.digest, "clusters": key(names)}
    return step, place.root / "selections" / key(step)[:12]
