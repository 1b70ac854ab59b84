"""Run folders that are damaged or hostile: one clear error, and nothing in them is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import by_hand
import pytest
import torch
from PIL import Image

from models.configs import MetaMorph, Visualizer
from models.interface import Asked
from models.parts import Llama, Pixels, Siglip, StableUNet, UNet
from pipelines import checkpoint, recipe, sample
from pipelines.__main__ import main

VISION = Siglip(picture=16, patch=8, width=16, layers=1, heads=2, ffn=16)
MORPH = MetaMorph(
    backbone=Llama(width=16, layers=1, heads=2, kv_heads=1, ffn=16, max_positions=64), vision=VISION, grid=2
)
PAINTER = Visualizer(
    vision=VISION,
    decoder=StableUNet(
        canvas=Pixels(side=8),
        network=UNet(
            picture=8, channels=(32, 32), attends=(False, True), layers_per_block=1, condition_width=8, heads=2
        ),
    ),
    grid=2,
    projector_width=8,
)


def rewritten(run: Path, **changes: Any) -> None:
    path = run / "recipe.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


@pytest.fixture
def morph(tmp_path: Path) -> Path:
    return by_hand.run(tmp_path / "trainings" / "morph", MORPH)


def test_a_description_makes_dataclasses_and_runs_nothing_else(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    with pytest.raises(ValueError, match="it is no dataclass"):
        recipe.rebuild({"is": "subprocess:Popen", "args": ["touch", str(mark)]})
    assert not mark.exists()


@pytest.mark.parametrize("value", ["text", None, [1], {"a": 1}, {"is": 3}])
def test_a_recipe_that_is_none_is_named(morph: Path, value: Any) -> None:
    rewritten(morph, value=value)
    with pytest.raises(ValueError, match=r"restore"):
        sample.read_training(morph)


def test_painting_passes_over_neighbours_that_are_damaged_or_come_with_a_file(
    morph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    painter = by_hand.run(morph.parent / "painter", PAINTER)
    damaged = by_hand.run(morph.parent / "damaged", PAINTER)
    rewritten(damaged, value={"is": 3})
    stranger, mark = by_hand.run(morph.parent / "stranger", PAINTER), morph.parent / "ran"
    (morph.parent / "theirs.py").write_text(f"open({str(mark)!r}, 'w')")
    rewritten(stranger, file=str(morph.parent / "theirs.py"))
    assert sample.find_visualizer(sample.Run(morph)) == painter
    assert "damaged is passed over" in capsys.readouterr().out and not mark.exists()


def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(morph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer = morph / "checkpoints" / "step-000002"
    newer.mkdir()
    (newer / "state.json").write_text("{")
    assert checkpoint.latest(morph / "checkpoints") == morph / "checkpoints" / "step-000001"
    assert f"{newer} is damaged" in capsys.readouterr().out


def test_a_run_that_starts_from_itself_is_refused(morph: Path) -> None:
    (morph / "start.json").write_text(json.dumps({"run": str(morph)}))
    with pytest.raises(ValueError, match="starts from itself"):
        checkpoint.begin(morph, torch.nn.Linear(1, 1))
    (morph / "start.json").write_text("[]")
    with pytest.raises(ValueError, match=r"start\.json is damaged"):
        checkpoint.begin(morph, torch.nn.Linear(1, 1))


def test_weights_that_are_no_numbers_are_refused_by_name(morph: Path) -> None:
    weights = checkpoint.weights(morph / "checkpoints" / "step-000001")
    weights["adapter.0.bias"][0] = torch.nan
    checkpoint.write(
        morph / "checkpoints" / "step-000003",
        {name: tuple(tensor.shape) for name, tensor in weights.items()},
        weights.values(),
    )
    with pytest.raises(ValueError, match=r"adapter\.0\.bias holds numbers that are not finite"):
        sample.Run(morph)


def test_a_prompt_that_the_model_has_no_room_for_is_counted(morph: Path) -> None:
    with pytest.raises(ValueError, match=r"takes \d+ tokens, the language model has 64 positions"):
        next(sample.answers(morph, ["a" * 100], [], Asked(answer="text")))


def test_a_picture_cut_off_in_its_pixels_is_refused(morph: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((64, 64), 80).convert("RGB").save(whole, quality=95)
    data = whole.read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    with pytest.raises(ValueError, match="--image"):
        next(sample.answers(morph, ["a"], [tmp_path / "cut.jpg"], Asked(answer="text")))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--guidance", "nan"], "number from -1000 to 1000"),
        (["--guidance", "1e39"], "number from -1000 to 1000"),
        (["--max-tokens", "9" * 5000], "15 digits at most"),
        (["--steps", "1001"], "1 to 1000"),
        (["--seed", "9" * 40], "18 digits at most"),
        (["--seed", "-1"], "whole number from 0"),
    ],
)
def test_settings_beyond_reason_are_one_line(
    words: list[str], told: str, morph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        raise SystemExit(main(["sample", str(morph), "hi", *words]))
    assert left.value.code == 2 and told in capsys.readouterr().err
