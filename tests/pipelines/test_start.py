"""A training that starts from another's weights: what it takes, what it refuses, and what names its run."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines import checkpoint, recipe, runs, train
from pipelines.plan import run_folder
from pipelines.recipes import metamorph
from pipelines.step import Place
from pipelines.training import Training, Weights


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
    told, _ = checkpoint.start_from(saved(tmp_path, {"0.weight": torch.ones(3, 2)}), module)
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
    assert isinstance(first, Training) and recipe.rebuild(recipe.describe(second)) == second

    def name(training) -> str:
        return run_folder(training, Plan(), place).name  # pyright: ignore[reportArgumentType]

    slower = replace(first, execution=replace(first.execution, micro_batch=1))
    assert name(replace(second, start_from=slower)) == name(second)
    assert name(replace(second, start_from=None)) != name(second)
    assert name(replace(second, start_from=replace(first, seed=1))) != name(second)


def test_what_a_run_started_from_comes_along_when_another_starts_from_it(tmp_path: Path) -> None:
    """Three runs in a row: the first learns both layers, the second the first one, the third starts from it."""
    first = saved(tmp_path / "first", {"0.weight": torch.zeros(3, 2), "1.weight": torch.ones(2, 3)})
    second = saved(tmp_path / "second", {"0.weight": torch.ones(3, 2)})
    (second / "start.json").write_text(json.dumps({"run": str(first), "weights": checkpoint.digest(first)}))
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    told, names = checkpoint.start_from(second, module)
    assert torch.equal(module.get_parameter("0.weight"), torch.ones(3, 2))
    assert torch.equal(module.get_parameter("1.weight"), torch.ones(2, 3))
    assert names == {"0.weight", "1.weight"} and told.endswith("2 weights taken, 2 trained ones begin anew")


def test_weights_that_changed_or_went_since_a_run_began_are_refused(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "first", {"weight": torch.ones(2, 2)}), tmp_path / "second"
    second.mkdir()
    (second / "start.json").write_text(json.dumps({"run": str(first), "weights": checkpoint.digest(first)}))
    module = nn.Linear(2, 2)
    checkpoint.begin(second, module)
    shutil.rmtree(first)
    saved(first, {"weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"second starts from weights \w{12}, .*first has \w{12} now"):
        checkpoint.begin(second, module)
    assert torch.equal(module.weight, torch.ones(2, 2))
    shutil.rmtree(first)
    with pytest.raises(ValueError, match="which is gone: put it back"):
        checkpoint.begin(second, module)


def finished(run: Path, weights: dict[str, Tensor]) -> Weights:
    saved(run, weights)
    (run / "recipe.json").write_text("{}")
    (run / "done.json").write_text("{}")
    return Weights(path=str(run))


def test_a_folder_to_start_from_names_a_run_by_its_weights_and_not_by_its_place(tmp_path: Path) -> None:
    class Plan:
        digest = "0" * 64

    def name(weights: Weights) -> str:
        training = runs.pinned(replace(metamorph.vpit(), start_from=weights))
        assert isinstance(training.start_from, Weights) and training.start_from.sha256 is not None
        return run_folder(training, Plan(), Place(root=tmp_path)).name  # pyright: ignore[reportArgumentType]

    here = finished(tmp_path / "here", {"x": torch.ones(2)})
    there = finished(tmp_path / "there", {"x": torch.ones(2)})
    other = finished(tmp_path / "other", {"x": torch.zeros(2)})
    assert name(here) == name(there) != name(other)
    pinned = replace(other, sha256=checkpoint.digest(tmp_path / "here"))
    with pytest.raises(ValueError, match=r"other has weights \w{12}, the recipe wants \w{12}"):
        name(pinned)


def test_a_run_goes_on_when_what_it_started_from_was_moved(tmp_path: Path) -> None:
    before, run = finished(tmp_path / "before", {"x": torch.ones(2)}), tmp_path / "run"
    training = runs.pinned(replace(metamorph.vpit(), start_from=before))
    train.prepare(run, {"value": recipe.describe(training)})
    moved = replace(before, path=str((tmp_path / "before").rename(tmp_path / "after")))
    again = runs.pinned(replace(metamorph.vpit(), start_from=moved))
    train.prepare(run, {"value": recipe.describe(again)})
    assert runs.finished(again, Place(root=tmp_path)) == tmp_path / "after"
    other = runs.pinned(replace(again, start_from=finished(tmp_path / "other", {"x": torch.zeros(2)})))
    with pytest.raises(ValueError, match=r"start_from.sha256 \("):
        train.prepare(run, {"value": recipe.describe(other)})


def test_only_a_finished_run_can_be_started_from(tmp_path: Path) -> None:
    training = replace(metamorph.vpit(), start_from=Weights(path=str(tmp_path / "run")))
    with pytest.raises(ValueError, match="is no run: give a folder under ROOT/trainings"):
        runs.pinned(training)
    finished(tmp_path / "run", {"x": torch.ones(2)})
    (tmp_path / "run/done.json").unlink()
    with pytest.raises(ValueError, match="is not finished, so its weights still change"):
        runs.pinned(training)


def test_a_folder_to_start_from_is_set_in_words(tmp_path: Path) -> None:
    changed = recipe.override(metamorph.vpit(), ["start_from=Weights(path='runs/trainings/imported')"])
    assert changed.start_from == Weights(path="runs/trainings/imported")
    assert recipe.rebuild(json.loads(json.dumps(recipe.describe(changed)))) == changed
    with pytest.raises(ValueError, match="64 hex digits"):
        Weights(path="here", sha256="abc")
