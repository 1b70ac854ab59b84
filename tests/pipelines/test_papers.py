"""docs/papers.md is true: its table of what sets recipes apart, row by row, and every training of a paper is in it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import recipe

PAGE = (Path(__file__).parents[2] / "docs/papers.md").read_text()
ROWS = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| (`(?:architecture|optimizer|[a-z_]+)[^|]*`) \|$", PAGE, re.MULTILINE)
SPLIT = ("architecture", "optimizer")  # named field by field


def made(words: str) -> Any:
    """The training of `module:function --set a=b`."""
    name, *assignments = words.split(" --set ")
    return recipe.override(recipe.load(name), assignments)


def leaves(description: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(description, dict) and description:
        for name, value in description.items():
            yield from leaves(value, (*path, name))
    else:
        yield path, json.dumps(description)


def different(one: Any, other: Any) -> set[str]:
    """Fields of two trainings that differ; those of SPLIT one level deeper."""
    pair = set(leaves(recipe.describe(one))) ^ set(leaves(recipe.describe(other)))
    return {".".join(path[: 2 if path[0] in SPLIT else 1]) for path, _ in pair} - {"name"}


@pytest.mark.parametrize(("training", "beside", "fields"), ROWS, ids=[row[0] for row in ROWS])
def test_two_trainings_differ_in_exactly_the_fields_of_the_table(training: str, beside: str, fields: str) -> None:
    assert different(made(training), made(beside)) == set(re.findall(r"`([^`]+)`", fields))


def test_every_training_of_a_paper_stands_in_the_table() -> None:
    papers = ("metamorph", "transfusion", "lmfusion", "llavafusion", "metaquery")
    named = {name for name, _ in recipe.listing() if name.partition(":")[0] in papers}
    shown = {words.partition(" ")[0].partition("(")[0] for words in itertools.chain(*(row[:2] for row in ROWS))}
    assert {name for name in named if not name.partition(":")[2].startswith("tiny")} - shown == set()
