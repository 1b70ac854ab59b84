"""Recipes: found by name, changed by path, described as JSON, made again from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from models.configs import MetaMorph
from pipelines import recipe
from pipelines.recipes import corpora, metamorph
from pipelines.training import Training


def test_override_takes_values_of_the_annotated_type() -> None:
    made: Training = recipe.override(
        metamorph.tiny(),
        [
            "optimizer.learning_rate=0.5",
            "optimizer.betas=0.1,0.2",
            "execution.zero_stage=3",
            "architecture.head=mlp",
            "mixture.groups.generation.share=30",
            "mixture.groups.0.members.0.corpus.rows_per_shard=7",
        ],
    )
    assert made.optimizer.learning_rate == 0.5
    assert made.optimizer.betas == (0.1, 0.2)
    assert made.execution.zero_stage == 3
    assert made.architecture.head == "mlp"
    assert [group.share for group in made.mixture.groups] == [70, 30, 10]
    assert made.mixture.groups[0].members[0].corpus.rows_per_shard == 7


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("optimzer.clip=1", "did you mean optimizer"),
        ("steps=many", "'many' is not int"),
        ("architecture.head=round", "'linear', 'mlp'"),
        ("execution.zero_stage=4", "0, 1, 2, 3"),
        ("mixture.groups.gen.share=1", "it has understanding, generation, other"),
        ("steps", "write path.to.field=value"),
        ("steps.more=1", "has no fields"),
        ("optimizer=1", "is not AdamW"),
        ("mixture.groups.generation=1", "name one of its fields"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_cure(assignment: str, told: str) -> None:
    with pytest.raises(ValueError, match="--set") as refused:
        recipe.override(metamorph.tiny(), [assignment])
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("corpora:cambrain", "did you mean cambrian"),
        ("corpra:cambrian", "did you mean corpora"),
        ("cambrian", "module:function"),
        ("/nowhere/at_all.py:mine", "is not there"),
        ("no.such.module:x", "is not there"),
        (":", "is not there"),
    ],
)
def test_an_unknown_recipe_is_refused_with_the_nearest(name: str, told: str) -> None:
    with pytest.raises(ValueError, match="recipe") as refused:
        recipe.load(name)
    assert told in str(refused.value)


def test_a_recipe_file_that_fails_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("x = 1\ny = x / 0\n")
    with pytest.raises(ValueError, match=r"broken\.py line 2 fails: ZeroDivisionError"):
        recipe.load(f"{file}:mine")


@pytest.mark.parametrize(
    "assignment",
    [
        "optimizer.learning_rate=nan",
        "optimizer.clip=-1",
        "steps=0",
        "name=a/../b",
        "architecture.grid=9",
        "architecture.vision.patch=100",
        "architecture.backbone.heads=3",
    ],
)
def test_values_without_sense_are_refused_before_anything_starts(assignment: str) -> None:
    with pytest.raises(ValueError, match="now") as refused:
        recipe.override(metamorph.tiny(), [assignment])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("def mine(x): return x", "without parameters"),
        ("def mine(): raise KeyError('k')", "KeyError"),
        ("import sys\ndef mine(): sys.exit(0)", "SystemExit"),
        ("import sys\nsys.exit(3)", "SystemExit"),
    ],
)
def test_a_recipe_function_that_cannot_answer_is_one_line(tmp_path: Path, body: str, told: str) -> None:
    file = tmp_path / f"odd_{abs(hash(body))}.py"
    file.write_text(body)
    with pytest.raises(ValueError, match=told):
        recipe.load(f"{file}:mine")


def test_the_recipe_key_follows_what_decides_the_bytes_and_nothing_else() -> None:
    corpus = corpora.cambrian()
    assert replace(corpus, max_dropped=0.5).recipe_key() == corpus.recipe_key()
    assert replace(corpus, rows_per_shard=7).recipe_key() != corpus.recipe_key()
    assert replace(corpus, filters=corpus.filters[::-1]).recipe_key() != corpus.recipe_key()


def test_a_raised_version_changes_the_key() -> None:
    before = recipe.key(recipe.describe(metamorph.tiny()))
    version = MetaMorph.version
    try:
        MetaMorph.version = version + 1
        assert recipe.key(recipe.describe(metamorph.tiny())) != before
    finally:
        MetaMorph.version = version


def test_a_description_of_another_version_is_refused() -> None:
    description = recipe.describe(metamorph.tiny())
    description["architecture"]["version"] = 99
    with pytest.raises(ValueError, match="it was version 99"):
        recipe.rebuild(description)


@dataclass(frozen=True, kw_only=True)
class _Odd:
    value: object


def test_values_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="in a recipe"):
        recipe.describe(_Odd(value={1, 2}))
