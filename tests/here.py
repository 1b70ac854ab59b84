"""A corpus built in the test's own process: what a Ray worker does for each shard, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflow import adopt, index
from dataflow.build import ShardJob, read_receipt, receipt_path, splits, sweep
from dataflow.index import BuiltCorpus
from dataflow.roots import Roots


def build(
    source: Any,
    roots: Roots,
    folder: Path,
    *,
    filters: tuple[Any, ...] = (),
    rows: int = 1000,
    adopted: bool = False,
    earlier: Mapping[str, str] | None = None,
    recipe_key: str = "recipe",
    step: Mapping[str, Any] | None = None,
    max_dropped: float = 1.0,
    max_missing: float = 1.0,
) -> BuiltCorpus:
    """The corpus of a source, `rows` a shard, its tars adopted or its shards built; work files are swept away."""
    folder.mkdir(parents=True)
    job = ShardJob(source=source, filters=filters, roots=roots, recipe_key=recipe_key, earlier=dict(earlier or {}))
    home = roots.source(source.name)
    files = source.files(home)
    if adopted:
        plan = [split for file in files for split in adopt.plan(roots, file, source)]
    else:
        plan = [split for file in files for split in splits(roots, source.name, file, rows)]
    for number, split in enumerate(plan):
        if adopted:
            adopt.adopt(job, split, number, folder)
        else:
            job.build(split, number, folder)
    index.commit(
        folder,
        [read_receipt(receipt_path(folder, number)) for number in range(len(plan))],
        step=dict(step or {}),
        recipe_key=recipe_key,
        max_dropped=max_dropped,
        max_missing=max_missing,
    )
    sweep(folder)
    return BuiltCorpus(folder)
