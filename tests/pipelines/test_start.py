"""A training that starts from another's weights: what it takes, what it refuses, and what names its run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines import checkpoint, recipe
from pipelines.plan import run_folder
from pipelines.recipes import metamorph
from pipelines.step import Place


def saved(run: Path, weights: dict[str, Tensor]) -> Path:
    """A run with one checkpoint of these weights, in the form that `checkpoint.save` writes."""
    folder = run / "checkpoints/step-000003"
    folder.mkdir(parents=True)
    file = folder / "parameters.safetensors"
    save_file(weights, file)
    entry = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
    record = {"format": checkpoint.FORMAT, "optimizer_step": 3, "files": {file.name: entry}, "state": {}}
    (folder / "state.json").write_text(json.dumps(record))
    return run


def test_weights_are_taken_by_name_and_the_rest_begins_anew(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = module.get_parameter("1.weight").detach().clone()
    told = checkpoint.start_from(saved(tmp_path, {"0.weight": torch.ones(3, 2)}), module)
    assert torch.equal(module.get_parameter("0.weight"), torch.ones(3, 2))
    assert torch.equal(module.get_parameter("1.weight"), before)
    assert told.endswith("step-000003: 1 weights taken, 3 trained ones begin anew")


@pytest.mark.parametrize("weights", [{"0.weight": torch.ones(3, 3)}, {"2.weight": torch.ones(3, 2)}])
def test_weights_that_do_not_fit_are_refused_before_any_is_taken(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    module = nn.Sequential(nn.Linear(2, 3))
    before = module.get_parameter("0.bias").detach().clone()
    with pytest.raises(ValueError, match=r"1 of 2 weights of .* do not fit this architecture, first \d.weight"):
        checkpoint.start_from(saved(tmp_path, {"0.bias": torch.zeros(3), **weights}), module)
    assert torch.equal(module.get_parameter("0.bias"), before)


def test_a_run_without_a_checkpoint_cannot_be_started_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no checkpoint to start from"):
        checkpoint.start_from(tmp_path, nn.Linear(2, 2))


def test_what_a_training_starts_from_names_its_run_and_how_that_was_executed_does_not(tmp_path: Path) -> None:
    class Plan:
        digest = "0" * 64

    place = Place(root=tmp_path)
    second = metamorph.vpit()
    first = second.start_from
    assert first is not None and recipe.rebuild(recipe.describe(second)) == second

    def name(training) -> str:
        return run_folder(training, Plan(), place).name  # pyright: ignore[reportArgumentType]

    slower = replace(first, execution=replace(first.execution, micro_batch=1))
    assert name(replace(second, start_from=slower)) == name(second)
    assert name(replace(second, start_from=None)) != name(second)
    assert name(replace(second, start_from=replace(first, seed=1))) != name(second)
