"""`interlace plan`: what a training's parameters are and take, from shapes alone."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from models.configs import MetaMorph
from models.interface import Architecture
from pipelines import parameters, recipe
from pipelines.booking import Booking
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
    training = recipe.load(name)
    lines = list(parameters.page(training, parameters.built(training), nodes=2, gpus=8))
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
        ("float32", 0, Bytes(weights=4000, gradients=2400, optimizer=4800, encoders=200, bucket=0, gathered=0)),
        ("float32", 1, Bytes(weights=4000, gradients=2400, optimizer=1800, encoders=200, bucket=2400, gathered=0)),
        ("float32", 2, Bytes(weights=4000, gradients=600, optimizer=1800, encoders=200, bucket=2400, gathered=0)),
        ("float32", 3, Bytes(weights=1000, gradients=600, optimizer=1800, encoders=200, bucket=2400, gathered=4000)),
        ("bfloat16", 0, Bytes(weights=2000, gradients=1200, optimizer=7200, encoders=200, bucket=0, gathered=0)),
        ("bfloat16", 1, Bytes(weights=2000, gradients=3600, optimizer=1800, encoders=200, bucket=0, gathered=0)),
        ("bfloat16", 2, Bytes(weights=2000, gradients=600, optimizer=1800, encoders=200, bucket=1200, gathered=0)),
        ("bfloat16", 3, Bytes(weights=500, gradients=600, optimizer=1800, encoders=200, bucket=1200, gathered=2000)),
    ],
)
def test_a_rank_keeps_its_share_of_what_the_stage_splits(dtype: Any, stage: int, expected: Bytes) -> None:
    module = Part(name="module", total=1000, trained=600, decayed=600, rates=(1.0,))
    encoder = Part(name="encoders", total=50, trained=0, decayed=0, rates=())
    assert bytes_of_a_rank(module, encoder, ranks=4, stage=stage, dtype=dtype) == expected
    assert expected.kept == expected.weights + expected.gradients + expected.optimizer + expected.encoders
    assert expected.total == expected.kept + expected.buffers
    mean = bytes_of_a_rank(module, encoder, ranks=4, stage=stage, dtype=dtype, averaged=True).optimizer
    assert mean - expected.optimizer == (2400 if stage == 0 else 600)


def test_the_command_prints_the_table_and_says_what_it_leaves_out(interlace: Interlace) -> None:
    said = interlace("plan", 'transfusion:paper(size="7b")', "--nodes", "4", "--gpus", "8").stdout
    assert "7,009,020,488" in said and "parameters only" in said and "of one of 4 x 8 ranks" in said
    (chosen,) = [line for line in said.splitlines() if line.endswith("<- the recipe's")]
    assert chosen.split()[:7] == ["stage", "3,", "bfloat16", "0.438", "0.876", "2.628", "0.335"]


def test_metaquery_is_planned_offline_and_refused_where_it_cannot_fit(interlace: Interlace) -> None:
    asked = ("--nodes", "4", "--gpus", "8", "--gpu-memory", "64", "--set", "execution.zero_stage=0")
    said = interlace("plan", "metaquery:xl_sana", *asked, expect=1).stdout
    assert "a step: 4096 rows, 16 micro-batches of 8 on each of 32 ranks" in said
    (line,) = [line for line in said.splitlines() if line.startswith("refused: ")]
    assert "are needed at execution.zero_stage=0, " in line and " a GPU has 64 GB: set execution." in line


def booked(training: Training, gpu_memory: float | None = None, gpus: int = 2) -> tuple[Booking, str]:
    booking = Booking.of(training, nodes=1, gpus=gpus)
    return booking, booking.refused(gpu_memory) or ""


@pytest.mark.parametrize("share", [0.99, 0.4])
def test_what_cannot_fit_is_refused_and_its_cure_fits(share: float) -> None:
    training = recipe.override(recipe.load("metamorph:tiny"), ["execution.zero_stage=0"])
    booking, _ = booked(training)
    memory = share * booking.taken(training.execution, 2).least / 1e9
    _, why = booked(training, memory)
    _, _, cure = why.partition(": set ")
    cured = recipe.override(training, cure.split(", "))
    assert cured.execution != training.execution
    after, refused = booked(cured, memory)
    assert refused == "" and after.taken(cured.execution, 2).most <= memory * 1e9


def test_more_gpus_are_booked_where_nothing_else_helps_and_some_things_never_fit() -> None:
    training = recipe.override(recipe.load("metamorph:tiny"), ["execution.zero_stage=3", "execution.micro_batch=1"])
    training = recipe.override(training, ["execution.recompute=layers", "execution.dtype=bfloat16", "batch=64"])
    booking, refused = booked(training, 1e-6)
    assert "nothing fits" in refused
    one, many = (booking.taken(training.execution, ranks) for ranks in (2, 64))
    assert one.least > many.most
    _, refused = booked(training, many.most / 1e9)
    assert re.search(r": book \d+ nodes$", refused)
    _, refused = booked(replace(training, batch=4), many.most / 1e9)
    assert "nothing fits" in refused and "on 4 GPUs" in refused  # more would have no rows


def test_a_rank_begins_with_the_whole_module_however_it_is_split_later(monkeypatch: pytest.MonkeyPatch) -> None:
    for most in ("LIVE", "BUCKET"):  # small beside a module of a paper's size
        monkeypatch.setattr(parameters, most, 1000)
    training = recipe.override(recipe.load("metamorph:tiny"), ["execution.zero_stage=3"])
    booking, _ = booked(training)
    module, encoder = booking.counted
    assert 4 * encoder.total < 4 * module.total == booking._around(0, training.execution, 1 << 20)


def asked(module: nn.Module, inputs: Any) -> None:
    float(next(module.parameters()).detach().sum())


class Asking(MetaMorph):
    """One that branches on what its weights are."""

    def build(self) -> Architecture:
        made = super().build()
        made.module.register_forward_pre_hook(asked)
        return made


def test_what_does_not_run_on_shapes_is_planned_without_its_passes() -> None:
    training = recipe.load("metamorph:tiny")
    known = {field.name: getattr(training.architecture, field.name) for field in fields(training.architecture)}
    asking = replace(training, architecture=Asking(**known))
    booking, refused = booked(asking, 1e-3)
    assert any("not known and not counted below, MetaMorphModule does not run" in line for line in booking.page(1e-3))
    assert "nothing fits" in refused
    assert booking.taken(asking.execution, 2).most < booked(training)[0].taken(training.execution, 2).least


def test_a_row_longer_than_the_language_model_reads_is_refused() -> None:
    long = replace(recipe.load("metaquery:tiny"), sequence_length=1025)
    assert booked(long)[1].startswith("sequence_length=1025 is over the 1024 positions")
    packed = replace(recipe.load("transfusion:tiny"), sequence_length=640)  # of documents that are shorter
    booking, refused = booked(packed)
    assert refused == "" and any("records of over 320 tokens" in line for line in booking.page())


def test_a_step_that_leaves_ranks_without_rows_says_so() -> None:
    training = recipe.load("metamorph:tiny")  # 6 rows, 3 a micro-batch
    booking, _ = booked(training, gpus=2)
    assert "a step: 6 rows, 1 micro-batches of 3 on each of 2 ranks" in list(booking.page())
    booking, _ = booked(training, gpus=16)
    (line,) = [line for line in booking.page() if line.startswith("a step: ")]
    assert "10 ranks have none" in line


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
