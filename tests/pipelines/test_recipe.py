"""Recipes: found by name, changed by path, described as JSON, made again from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dataflow.mixture import Count
from dataflow.selection import Part, Portion
from models.configs import MetaMorph
from pipelines import recipe
from pipelines.recipes import corpora, metamorph, mixtures
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
        ("def mine(x): return x", "needs x: write mine(x=...)"),
        ("def mine(*x): return x", "whose parameters have names"),
        ("def mine(x, /): return x", "whose parameters have names"),
        ("async def mine(): return 1", "plain function"),
        ("def mine(): raise KeyError('k')", "KeyError"),
        ("import sys\ndef mine(): sys.exit(0)", "SystemExit"),
        ("import sys\nsys.exit(3)", "SystemExit"),
    ],
)
def test_a_recipe_function_that_cannot_answer_is_one_line(tmp_path: Path, body: str, told: str) -> None:
    file = tmp_path / f"odd_{abs(hash(body))}.py"
    file.write_text(body)
    with pytest.raises(ValueError, match="recipe") as refused:
        recipe.load(f"{file}:mine")
    assert told in str(refused.value)


PARAMETERS = """
from __future__ import annotations
from typing import Literal
from pipelines.training import AdamW

def mine(
    rate: float = 0.5,
    clip: float | None = None,
    steps: int = 3,
    betas: tuple[float, float] = (0.9, 0.99),
    kind: Literal["slow", "fast"] = "slow",
    fast: bool = False,
    anything=None,
):
    \"\"\"Takes what recipes take.\"\"\"
    return (rate, clip, steps, betas, kind, fast, anything)

def unread(x: Nowhere = 1):
    return x
"""


@pytest.fixture
def parameters(tmp_path: Path) -> str:
    (tmp_path / "brackets (1)").mkdir()
    file = tmp_path / "brackets (1)" / f"takes_{abs(hash(tmp_path))}.py"
    file.write_text(PARAMETERS)
    return str(file)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ("", (0.5, None, 3, (0.9, 0.99), "slow", False, None)),
        ("()", (0.5, None, 3, (0.9, 0.99), "slow", False, None)),
        ("(steps=1_000, rate=1)", (1.0, None, 1000, (0.9, 0.99), "slow", False, None)),
        ("(clip=-1e-3, betas=(0, 1), fast=True)", (0.5, -0.001, 3, (0.0, 1.0), "slow", True, None)),
        ('(kind="fast", clip=None, anything="a:b(c=1)", )', (0.5, None, 3, (0.9, 0.99), "fast", False, "a:b(c=1)")),
        ("(anything=7)", (0.5, None, 3, (0.9, 0.99), "slow", False, 7)),
    ],
)
def test_a_recipe_takes_literals_by_name(parameters: str, arguments: str, value: tuple) -> None:
    made = recipe.load(f"{parameters}:mine{arguments}")
    assert made == value
    assert [type(each) for each in made] == [type(each) for each in value]
    assert recipe.split(f"{parameters}:mine{arguments}")[:2] == (parameters, "mine")


def test_a_recipe_of_the_house_takes_literals_by_name() -> None:
    small = recipe.load("mixtures:unlock(generation=5000, with_understanding=False)")
    assert small == mixtures.unlock(generation=5000, with_understanding=False)
    assert small != recipe.load("mixtures:unlock")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("(step=1)", "there is no parameter step; did you mean steps"),
        ("(steps=True)", "steps=True is not int, written as a literal"),
        ("(steps=1.5)", "steps=1.5 is not int"),
        ("(steps='3')", "steps='3' is not int"),
        ("(steps=None)", "steps=None is not int"),
        ("(fast=1)", "fast=1 is not bool"),
        ("(rate=1e999)", "rate=1e999 is not float"),
        ("(rate=True)", "rate=True is not float"),
        ("(kind=fast)", "kind=fast is not one of 'slow', 'fast', written as a literal"),
        ("(kind='fats')", "is not one of 'slow', 'fast'"),
        ("(betas=(1, 2, 3))", "betas=(1, 2, 3) is not tuple[float, float]"),
        ("(betas=[1, 2])", "is not tuple[float, float]"),
        ("(anything=b'1')", "is not str | int | float | bool | None"),
        ("(3)", "name what you give: rate=..., clip=..., steps=..."),
        ("(*[1])", "name what you give"),
        ("(**{'steps': 1})", "there is no parameter"),
        ("(steps=1, steps=2)", "steps"),
        ("(steps=1", "with brackets if it takes something"),
        ("steps=1)", "has no minesteps=1)"),
        ("(steps=)", "the brackets do not read"),
        ("(steps=1\0)", "the brackets do not read"),
        ("(steps=1 # )", "the brackets do not read"),
        ("(steps=1)(rate=2)", "name what you give"),
        ("(steps=1), mine(steps=2)", "name what you give"),
        ("(steps=__import__('os').system('touch HOSTILE'))", "is not int, written as a literal"),
        ("(anything=open('HOSTILE', 'w'))", "written as a literal"),
        ("(anything=(lambda: 1)())", "written as a literal"),
        ("(anything=[x for x in 'ab'])", "written as a literal"),
        ("(anything=f'{1}')", "written as a literal"),
        ("(steps=2**99999999)", "is not int"),
        ("(rate=" + "9" * 400 + ")", "is not float"),
        ("(steps=" + "9" * 100_000 + ")", "100006 characters in its brackets, over 1000"),
        ("(steps=" + "(" * 400 + "1" + ")" * 400 + ")", "the brackets do not read"),
        ("(steps=" + "-" * 900 + "1)", "is not int"),
        ("(steps=" + "[" * 90 + "]" * 90 + ")", "is not int"),
    ],
)
def test_what_a_recipe_does_not_take_is_refused_in_a_line_and_never_run(
    parameters: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="recipe") as refused:
        recipe.load(f"{parameters}:mine{arguments}")
    assert told in str(refused.value)
    assert len(str(refused.value)) < 2500
    assert not (tmp_path / "HOSTILE").exists()


def test_annotations_that_do_not_read_are_told(parameters: str) -> None:
    with pytest.raises(ValueError, match=r"its annotations do not read .*Nowhere"):
        recipe.load(f"{parameters}:unread(x=2)")


def test_override_changes_amounts_and_exchanges_them() -> None:
    mixture = recipe.override(
        mixtures.unlock(),
        [
            "groups.generation.members.0.amount.records=7",
            "groups.understanding.members.0.amount=Count(records=30)",
            "groups.understanding.members.0.select.validation=5",
            "groups.generation.members.0.select.rules.1.end=800",
            "unit=tokens",
            "max_passes=none",
        ],
    )
    understanding, generation = mixture.members
    assert generation.amount == Count(records=7)
    assert understanding.amount == Count(records=30)
    assert (understanding.select, generation.select.rules[1]) == (Part(part="train", validation=5), Portion(end=800))
    assert (mixture.unit, mixture.max_passes) == ("tokens", None)


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("groups.generation.members.0.amount=30", "'30' is not Share | Count | Passes | None; amount is Count("),
        ("groups.generation.members.0.amount=Count(record=3)", "there is no parameter record; did you mean records?"),
        ("groups.generation.members.0.amount=Count()", "needs records: write Count(records=...)"),
        ("groups.generation.members.0.amount=Count(records=0)", "a count is a whole number of records from 1"),
        ("groups.generation.members.0.amount=Count(records=" + "9" * 2000 + ")", "characters in its brackets"),
        ("groups.generation.members.0.amount=Portion(end=3)", "is not Share | Count | Passes | None"),
        ("groups.generation.members.0.amount=none", "group 'generation' has no share"),
        ("groups.generation.share=3", "group 'understanding' has no share and others have one"),
        ("groups.generation.members.0.amount.records=-1", "a count is a whole number of records from 1"),
        ("groups.generation.members.0.amount.of=1", "Count has no field 'of'"),
    ],
)
def test_an_amount_that_does_not_fit_is_refused_with_a_cure(assignment: str, told: str) -> None:
    with pytest.raises(ValueError, match=r"--set|group|Count") as refused:
        recipe.override(mixtures.unlock(), [assignment])
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


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
