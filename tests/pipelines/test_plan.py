"""`interlace plan`: what a training's parameters are and take, from shapes alone."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import parameters, recipe
from pipelines.parameters import Bytes, Part, bytes_of_a_rank
from pipelines.training import Training

Interlace = Callable[..., subprocess.CompletedProcess[str]]

TRAININGS = [name for name, _ in recipe.listing() if isinstance(recipe.load(name), Training)]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the hub fails."""
    import huggingface_hub

    def asked(*words: Any, **options: Any) -> None:
        raise AssertionError("a plan asks nobody for weights")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)


def table(name: str) -> dict[str, Part]:
    training = recipe.load(name)
    architecture = parameters.built(training)
    return {part.name: part for part in parameters.parts(architecture.module, architecture.care, "module")}


@pytest.mark.parametrize("name", TRAININGS)
def test_every_training_of_the_house_is_planned_offline(name: str, offline: None) -> None:
    lines = list(parameters.page(recipe.load(name), nodes=2, gpus=8))
    assert sum("<- the recipe's" in line for line in lines) == 1
    assert any(line.startswith("encoders ") for line in lines)


@pytest.mark.parametrize(
    ("size", "transformer"),  # table 2 of Transfusion
    [("0.16b", 0.16e9), ("0.37b", 0.37e9), ("0.76b", 0.76e9), ("1.4b", 1.4e9), ("7b", 7e9)],
)
def test_the_papers_sizes_of_transfusion_have_the_papers_weights(size: str, transformer: float, offline: None) -> None:
    found = table(f'transfusion:paper(size="{size}")')
    assert found["backbone"].total == pytest.approx(transformer, rel=0.05)
    assert found["coder"].total == pytest.approx(0.27e9, rel=0.03)  # "+0.27B in all sizes"
    assert found["module"].trained == found["module"].total


def test_the_table_is_what_the_optimizer_gets() -> None:
    training = recipe.load("lmfusion:tiny")
    built = training.architecture.build()
    found = table("lmfusion:tiny")
    learned = {name: parameter for name, parameter in built.module.named_parameters() if parameter.requires_grad}
    whole = found["module"]
    assert whole.total == sum(parameter.numel() for parameter in built.module.parameters())
    assert whole.trained == sum(parameter.numel() for parameter in learned.values())
    assert whole.decayed == sum(p.numel() for name, p in learned.items() if built.care(name).decay)
    assert found["backbone"].trained == 0 and found["backbone"].rates == ()  # frozen
    assert found["tower"].trained == found["tower"].total
    assert found["marks_in"].trained and not found["marks_in"].decayed


def test_parts_add_up_and_none_says_its_parent_again() -> None:
    found = table("transfusion:tiny")
    top = [part for name, part in found.items() if "." not in name and name != "module"]
    assert sum(part.total for part in top) == found["module"].total
    within = [part for name, part in found.items() if name.startswith("backbone.model.")]
    assert sum(part.total for part in within) == found["backbone.model"].total
    assert not any(part.rpartition(".")[2].isdigit() or part.endswith(".weight") for part in found)


def test_rates_are_shown_apart_and_a_rate_of_0_is_frozen() -> None:
    slow = table("transfusion:dense(text_rate=0.1)")
    assert slow["backbone"].rates == (0.1,) and slow["coder"].rates == (1.0,) and slow["module"].rates == (0.1, 1.0)
    frozen = table("transfusion:dense(text_rate=0.0)")
    assert frozen["backbone"].trained == 0 and frozen["module"].total == slow["module"].total


def test_tied_matrices_count_once() -> None:
    assert table("lmfusion:smollm2")["backbone"].total == 134_515_008  # SmolLM2-135M


@pytest.mark.parametrize(
    ("dtype", "stage", "expected"),
    [  # of 1,000 parameters, 600 trained, and 50 of encoders, on 4 ranks
        ("float32", 0, Bytes(weights=4000, gradients=2400, optimizer=4800, encoders=200)),
        ("float32", 1, Bytes(weights=4000, gradients=2400, optimizer=1200, encoders=200)),
        ("float32", 2, Bytes(weights=4000, gradients=600, optimizer=1200, encoders=200)),
        ("float32", 3, Bytes(weights=1000, gradients=600, optimizer=1200, encoders=200)),
        ("bfloat16", 0, Bytes(weights=2000, gradients=1200, optimizer=7200, encoders=200)),
        ("bfloat16", 1, Bytes(weights=2000, gradients=2400, optimizer=1800, encoders=200)),
        ("bfloat16", 2, Bytes(weights=2000, gradients=600, optimizer=1800, encoders=200)),
        ("bfloat16", 3, Bytes(weights=500, gradients=600, optimizer=1800, encoders=200)),
    ],
)
def test_a_rank_keeps_its_share_of_what_the_stage_splits(dtype: Any, stage: int, expected: Bytes) -> None:
    module = Part(name="module", total=1000, trained=600, decayed=600, rates=(1.0,))
    encoder = Part(name="encoders", total=50, trained=0, decayed=0, rates=())
    assert bytes_of_a_rank(module, encoder, ranks=4, stage=stage, dtype=dtype) == expected
    assert expected.total == expected.weights + expected.gradients + expected.optimizer + expected.encoders
    mean = bytes_of_a_rank(module, encoder, ranks=4, stage=stage, dtype=dtype, averaged=True).optimizer
    assert mean - expected.optimizer == (2400 if stage == 0 else 600)


def test_the_command_prints_the_table_and_says_what_it_leaves_out(interlace: Interlace) -> None:
    said = interlace("plan", 'transfusion:paper(size="7b")', "--nodes", "4", "--gpus", "8").stdout
    assert "7,009,020,488" in said and "parameters only" in said and "of one of 4 x 8 ranks" in said
    (chosen,) = [line for line in said.splitlines() if line.endswith("<- the recipe's")]
    assert chosen.split()[:7] == ["stage", "3,", "bfloat16", "0.438", "0.876", "2.628", "0.335"]


def test_a_plan_that_cannot_be_made_is_one_line(interlace: Interlace, tmp_path: Path) -> None:
    outside = tmp_path / "mine.py"
    outside.write_text(
        "from dataclasses import replace\n"
        "from models.parts import Pretrained\n"
        "from pipelines.recipes import transfusion\n"
        "def blind():\n"
        "    whole = transfusion.tiny()\n"
        "    blind = replace(whole.architecture, backbone=Pretrained(path='nobody/nothing'))\n"
        "    return replace(whole, architecture=blind)\n"
    )
    said = interlace("plan", f"{outside}:blind", expect=2).stderr
    assert said == (
        "interlace: the sizes of nobody/nothing are not spelled out in the recipe: give Pretrained(sizes=...)\n"
    )
    said = interlace("plan", "corpora:text", expect=2).stderr
    assert said.count("\n") == 1 and "corpora:text is a Corpus, plan wants a Training" in said
