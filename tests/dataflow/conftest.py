"""Fixtures of the data side's tests: upstream folders made by hand, corpora built from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from upstream import Build

from dataflow import index, readers
from dataflow.build import ShardJob, read_receipt, receipt_path
from dataflow.index import BuiltCorpus
from dataflow.roots import Roots


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build a corpus from the folders under tmp_path/data, all in this process; work files are swept away."""

    def build(source: Any, *, filters: tuple[Any, ...] = (), rows: int = 1000, **how: Any) -> BuiltCorpus:
        folder: Path = how.pop("folder", tmp_path / "built" / source.name)
        folder.mkdir(parents=True)
        roots: Roots = how.pop("roots", None) or Roots(base=tmp_path / "data")
        earlier = how.pop("earlier", {})
        job = ShardJob(source=source, filters=filters, roots=roots, recipe_key="recipe", earlier=earlier)
        home = roots.source(source.name)
        plan = [split for file in source.files(home) for split in readers.splits(home, file, rows)]
        for number, split in enumerate(plan):
            job.build(split, number, folder)
        receipts = [read_receipt(receipt_path(folder, number)) for number in range(len(plan))]
        arguments = {"step": {}, "recipe_key": "recipe", "max_dropped": 1.0, "max_missing": 1.0, **how}
        index.commit(folder, receipts, **arguments)
        for leftover in folder.glob(".*"):
            leftover.unlink()
        return BuiltCorpus(folder)

    return build
