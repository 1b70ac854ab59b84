"""The journal of a training: what a line holds, what the boards are shown, and what becomes of repeated steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines import journal
from pipelines.learning import Outcome

ATTEMPT = Path("ray/attempt-001")
SECONDS = {"seconds": 0.5, "data_seconds": 0.25, "save_seconds": 0.0}


def outcome(*, cambrian: int = 3, text: int = 1) -> Outcome:
    """A step whose records are of two sources."""
    return Outcome(
        losses={"text": 2.5, "picture": None},
        total=2.5,
        counts={"text": 40, "picture": 0},
        fed={"cambrian": cambrian, "text": text},
        tokens={"cambrian": 50, "text": 10},
        drawn={"cambrian": 0, "text": 0},
        places=80,
        norm=0.125,
        by={"source": {"cambrian": {"text": 2.0}}, "task": {"image_qa": {"text": 2.0}}, "group": {}},
    )


def board(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: by name (step, value)."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_a_line_holds_a_step_in_full_and_the_board_the_same(tmp_path: Path) -> None:
    run = tmp_path
    with journal.journal(run, 0) as told:
        told.add(1, outcome(), 0.01, SECONDS, ATTEMPT)
        told.add(2, outcome(cambrian=1, text=3), 0.02, SECONDS, ATTEMPT)
    first, second = journal.read(run)
    assert (first["step"], second["step"], first["attempt"]) == (1, 2, 1)
    assert first["by"] == outcome().by and first["losses"] == {"text": 2.5, "picture": None}
    assert first["padding"] == 1 - 60 / 80
    assert first["peak"]["host"] > 50e6  # torch alone is more
    assert second["time"] >= first["time"] > 1.7e9
    shown = board(run)
    assert shown["loss/text"] == [(1, 2.5), (2, 2.5)] and "loss/picture" not in shown
    assert shown["loss_by_source/cambrian/text"] == [(1, 2.0), (2, 2.0)]
    assert shown["loss_by_task/image_qa/text"] == [(1, 2.0), (2, 2.0)]
    assert shown["share_of_records/cambrian"] == [(1, 0.75), (2, 0.5)]  # of all so far
    assert shown["padding"][0] == (1, 0.25) and shown["tokens"][0] == (1, 60)
    assert shown["targets/text"][0] == (1, 40)
    assert [shown[name][0][1] for name in SECONDS] == list(SECONDS.values())
    assert shown["gigabytes_at_most/host"][0][1] == pytest.approx(first["peak"]["host"] / 1e9)


def test_a_run_that_goes_on_repeats_steps_and_the_last_line_of_each_counts(tmp_path: Path) -> None:
    with journal.journal(tmp_path, 0) as told:
        for step in (1, 2, 3):
            told.add(step, outcome(), 0.01, SECONDS, ATTEMPT)
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 4, "losses": {"te')  # killed in the middle of a line
    with journal.journal(tmp_path, 1) as told:
        told.add(2, outcome(cambrian=1, text=3), 0.02, SECONDS, Path("ray/attempt-002"))
    lines = journal.read(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 2]
    assert [(line["step"], line["attempt"]) for line in journal.latest(lines)] == [(1, 1), (2, 2), (3, 1)]
    assert told.fed == {"cambrian": 3 + 1, "text": 1 + 3}  # steps 2 and 3 of the first attempt are forgotten


def test_recovery_is_from_the_last_step_of_an_attempt_to_the_first_of_the_next() -> None:
    told = [(1, 1, 100.0), (2, 1, 101.0), (2, 2, 131.5), (3, 2, 132.0), (4, 3, 140.0)]
    lines = [{"step": step, "attempt": attempt, "time": time} for step, attempt, time in told]
    assert journal.recoveries(lines) == [30.5, 8.0]
    assert journal.recoveries([{"step": 1, "attempt": 1}, {"step": 1, "attempt": 2}]) == []  # old lines tell no time


def test_wandb_is_used_where_it_is_installed_and_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    runs, installed = tmp_path / "runs", tmp_path / "installed"
    (runs / "wandb").mkdir(parents=True)  # what offline runs leave in a folder that Python looks for modules in
    (installed / "wandb").mkdir(parents=True)
    (installed / "wandb" / "__init__.py").touch()
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.syspath_prepend(runs)
    assert not journal.wandb_wanted()
    monkeypatch.syspath_prepend(installed)
    assert journal.wandb_wanted()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert not journal.wandb_wanted()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_PROJECT")
    assert not journal.wandb_wanted()
