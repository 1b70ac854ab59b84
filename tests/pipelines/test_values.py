"""Numbers of a recipe that cannot work are refused when they are set: one line that names field, value and rule."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from models import configs, parts
from models.bounds import SIZE
from models.parts import DeepLatents, DeepVae, RopeScaling, Vae
from pipelines import recipe, training
from pipelines.__main__ import main

BESIDE = (  # what no recipe of the house holds
    DeepLatents(
        vae=DeepVae(
            channels=(8, 8),
            attends=(False, True),
            latent_channels=4,
            encoder_layers=(1, 1),
            decoder_layers=(1, 1),
            scale=0.5,
            head_width=8,
        ),
        side=16,
        factor=2,
        channels=4,
    ),
    Vae(channels=(32,), latent_channels=4, layers_per_block=1, scale=0.5),
    RopeScaling(factor=8.0, low=1.0, high=4.0, original=64),
    training.Spikes(),
)


def within(value: Any) -> Iterator[Any]:
    """The value and all dataclasses in it."""
    if dataclasses.is_dataclass(value):
        yield value
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    items = value if isinstance(value, tuple) else (getattr(value, field.name) for field in fields)
    for item in items:
        if dataclasses.is_dataclass(item) or isinstance(item, tuple):
            yield from within(item)


def numeric(value: Any) -> Iterator[str]:
    """Names of its fields that hold numbers, or tuples of them."""
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        items = held if isinstance(held, tuple) else (held,)
        if items and all(isinstance(item, int | float) and not isinstance(item, bool) for item in items):
            yield field.name


def classes(module: ModuleType) -> set[type]:
    return {
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
    }


HELD = {type(each): each for name, _ in recipe.listing() for each in within(recipe.load(name))}
HELD |= {type(each): each for value in BESIDE for each in within(value)}
MODULES = (configs, parts, training)
CASES = [
    (HELD[kind], field)
    for module in MODULES
    for kind in sorted(classes(module) & HELD.keys(), key=lambda kind: kind.__name__)
    for field in numeric(HELD[kind])
]


def test_every_class_with_numbers_is_looked_at() -> None:
    for module in MODULES:
        for kind in classes(module) - HELD.keys():
            hints = typing.get_type_hints(kind).values()
            assert not {int, float} & {*hints, *(part for hint in hints for part in typing.get_args(hint))}, kind


@pytest.mark.parametrize(("value", "field"), CASES, ids=[f"{type(value).__name__}.{name}" for value, name in CASES])
@pytest.mark.parametrize("number", [-1, math.nan, math.inf])
def test_no_field_takes_what_is_no_number_for_it(value: Any, field: str, number: float) -> None:
    held = getattr(value, field)
    wrong = (number,) * len(held) if isinstance(held, tuple) else number
    with pytest.raises(ValueError, match=rf"\b{field}=") as refused:
        dataclasses.replace(value, **{field: wrong})
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250


@pytest.mark.parametrize(
    ("value", "field"), [case for case in CASES if isinstance(getattr(*case), int)], ids=lambda part: str(part)[:30]
)
def test_no_size_is_beyond_reason(value: Any, field: str) -> None:
    with pytest.raises(ValueError, match=rf"\b{field}="):
        dataclasses.replace(value, **{field: 10**30})


@pytest.mark.parametrize(
    ("name", "assignment", "told"),
    [
        ("metamorph:tiny", "name=" + "a" * 301, "has 301 letters: it names a folder; use 200 at most"),
        ("metamorph:tiny", "name=a/b", "training name 'a/b': it names a folder"),
        ("metamorph:tiny", "batch=0", "Training.batch=0 must be a whole number from 1 to 1,000,000; batch is "),
        ("metamorph:tiny", "steps=0", "steps=0 must be a whole number from 1"),
        ("metamorph:tiny", "seed=-1", "seed=-1 must be a whole number from 0"),
        ("metamorph:tiny", "optimizer.learning_rate=0", "AdamW.learning_rate=0.0 must be over 0 and finite"),
        ("metamorph:tiny", "optimizer.minimum_rate=1", "minimum_rate=1.0 must be from 0 to 0.002"),
        ("metamorph:tiny", "optimizer.betas=0.9,1", "betas=(0.9, 1.0) must be under 1"),
        ("metamorph:tiny", "execution.micro_batch=0", "micro_batch=0 must be a whole number from 1"),
        ("metamorph:tiny", "architecture.vision_coefficient=-1", "vision_coefficient=-1.0 must be from 0 to 1e+06"),
        ("metamorph:tiny", "architecture.grid=9", "MetaMorph.grid=9 must be a whole number from 1 to 8"),
        ("metamorph:tiny", "architecture.backbone.heads=3", "Llama.heads=3 must divide width=128"),
        ("metamorph:tiny", "architecture.backbone.heads=128", "heads=128 makes heads of 1: rotary angles turn pairs"),
        ("metamorph:tiny", "architecture.backbone.kv_heads=3", "kv_heads=3 must divide heads=4"),
        ("metamorph:tiny", "architecture.backbone.width=2000000", f"from 1 to {SIZE:,}"),
        ("metamorph:tiny", "architecture.vision.heads=5", "Siglip.heads=5 must divide width=96"),
        ("metamorph:tiny", "architecture.vision.patch=65", "patch=65 must be no more than picture=64"),
        ("metamorph:tiny_visualizer", "architecture.projector_width=0", "projector_width=0 must be a whole number"),
        ("metamorph:tiny_visualizer", "architecture.condition_dropout=2", "condition_dropout=2.0 must be from 0 to 1"),
        ("metamorph:tiny_visualizer", "architecture.decoder.network.heads=5", "heads=5 must divide channels="),
        ("transfusion:tiny", "architecture.text_rate=-1", "text_rate=-1.0 must be from 0"),
        ("transfusion:tiny", "architecture.noise_cap=0", "noise_cap=0 must be a whole number from 1 to 1,000"),
        ("metaquery:tiny", "architecture.queries=0", "MetaQuery.queries=0 must be a whole number from 1"),
        ("metaquery:tiny", "architecture.pixels=9,3", "pixels=(9, 3) must be the fewest, then the most"),
        ("metaquery:tiny", "architecture.connector.head_width=3", "head_width=3 must be even"),
        ("metaquery:tiny", "architecture.backbone.sections=1,1,1", "must add up to half the width of a head"),
        ("metaquery:tiny", "mixture=x", "mixture is of class Mixture now: change a field of it, as --set mixture."),
        ("metaquery:tiny", "mixture.groups=x", "--set mixture.groups.generation."),
    ],
)
def test_a_value_that_cannot_work_is_one_line_for_its_user(
    name: str, assignment: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["show", name, "--set", assignment])
    said = capsys.readouterr().err
    assert left.value.code == 2 and told in said
    assert said.count("\n") == 1 and len(said) < 400
