"""What a run answers while it trains: beside the ranks, from each checkpoint in its turn, and never in their way."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import by_hand
import pytest
import torch
from PIL import Image

from models.configs import MetaMorph, MetaQuery, Transfusion
from models.parts import LinearCoder, Llama, Pixels, Siglip
from pipelines import runs, watched
from pipelines.recipes import metamorph
from pipelines.training import Training

LLAMA = Llama(width=32, layers=1, heads=2, kv_heads=2, ffn=48, max_positions=320)
TRANSFUSION = Transfusion(backbone=LLAMA, canvas=Pixels(side=16), coder=LinearCoder(patch=4))
MORPH = MetaMorph(backbone=LLAMA, vision=Siglip(picture=16, patch=8, width=16, layers=1, heads=2, ffn=16), grid=2)
PROMPTS = ("a red circle", "a <b>blue</b> square")


def training(*, every: int, saved: int = 1, steps: int = 1, prompts: tuple[str, ...] = PROMPTS) -> Training:
    made = replace(by_hand.training(TRANSFUSION), steps=steps)
    return replace(made, execution=replace(made.execution, sample_every=every, save_every=saved, prompts=prompts))


def test_a_checkpoint_answers_in_pictures_and_in_text(tmp_path: Path) -> None:
    run = by_hand.run(tmp_path / "run", TRANSFUSION)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    watched.sampled(run, 1, PROMPTS)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    lines = watched.kept(run)[1]
    assert [(line["prompt"], line["settings"]["answer"]) for line in lines] == [
        (PROMPTS[0], "picture"),
        (PROMPTS[1], "picture"),
        (PROMPTS[0], "text"),
        (PROMPTS[1], "text"),
    ]
    folder = watched.folder(run, 1)
    assert Image.open(folder / lines[0]["parts"][0]["picture"]).size == (16, 16)
    assert lines[0]["step"] == 1
    assert [path.name for path in (run / "samples").iterdir()] == ["step-000001"]  # no draft is left


def test_pictures_that_nobody_can_paint_are_left_out(tmp_path: Path) -> None:
    run = by_hand.run(tmp_path / "run", MORPH)
    watched.sampled(run, 1, PROMPTS[:1])
    assert [line["settings"]["answer"] for line in watched.kept(run)[1]] == ["text"]


def test_kinds_of_answers_follow_from_what_is_learned() -> None:
    assert watched.kinds(TRANSFUSION) == ("picture", "text")
    assert watched.kinds(MetaQuery) == ("picture",)  # its language model is frozen
    assert watched.kinds(metamorph.tiny_visualizer().architecture) == ()


def test_checkpoints_are_due_at_every_multiple_or_after_it_and_at_the_end(tmp_path: Path) -> None:
    for step in (30, 60, 90, 120, 150, 170):
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".saving-step-000200").mkdir()
    assert watched.due(training(every=60, saved=30, steps=170), tmp_path) == [60, 120, 170]
    assert watched.due(training(every=50, saved=30, steps=170), tmp_path) == [60, 120, 150, 170]
    watched.folder(tmp_path, 60).mkdir(parents=True)
    assert watched.due(training(every=50, saved=30, steps=170), tmp_path) == [120, 150, 170]


def test_what_appears_while_a_block_trains_is_sampled_by_a_process_beside_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = by_hand.run(tmp_path / "run", TRANSFUSION)
    told = training(every=1)
    runs.described(run, told, "by_hand:made")
    whole = run / "checkpoints" / "step-000001"
    with watched.beside(told, run):
        before = torch.get_rng_state()
        damaged = shutil.copytree(whole, run / "checkpoints" / "step-000002")
        (damaged / "parameters.safetensors").write_bytes(b"not what was written")
    assert torch.equal(torch.get_rng_state(), before)
    assert list(watched.kept(run)) == [1]
    said = capfd.readouterr().out
    assert f"step 1 is sampled: {watched.folder(run, 1)}" in said
    assert "step 2 is not sampled: " in said and "no sound state.json" in said
    assert said.count("\n") == 2


def test_a_training_that_fails_is_not_waited_for(tmp_path: Path) -> None:
    run = by_hand.run(tmp_path / "run", TRANSFUSION)
    with pytest.raises(KeyboardInterrupt), watched.beside(training(every=1), run):
        raise KeyboardInterrupt
    assert watched.kept(run) == {}


def test_what_cannot_be_answered_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sample_every=1: there is nothing to answer; give execution.prompts"):
        with watched.beside(training(every=1, prompts=()), tmp_path):
            raise AssertionError
    painter = replace(training(every=1), architecture=metamorph.tiny_visualizer().architecture)
    with pytest.raises(ValueError, match="a Visualizer answers no prompts"), watched.beside(painter, tmp_path):
        raise AssertionError
    with pytest.raises(ValueError, match=r"Execution.prompts=\('a', ' '\) must be words, none of them empty"):
        training(every=1, prompts=("a", " "))
    with watched.beside(training(every=0, prompts=()), tmp_path):  # nothing is asked for
        pass
    assert not (tmp_path / "samples").exists()
