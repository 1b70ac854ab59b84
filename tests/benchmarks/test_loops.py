"""The benchmark of training: what it makes of the turns that loops took; no time is judged."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

HOUSE = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks import each other."""
    monkeypatch.syspath_prepend(str(HOUSE / "benchmarks"))
    monkeypatch.delitem(sys.modules, "train", raising=False)


def turn(loop: str, second: float, *, saved: float = 0.0, waited: float = 0.0) -> Any:
    """A turn whose steps take so long, but for those in which a checkpoint is saved."""
    import loops  # type: ignore[import-not-found]

    numbers = range(1, loops.STEPS + 1)
    added = [saved if number % loops.SAVE_EVERY == 1 else 0.0 for number in numbers]  # told by the step after
    lines = [
        {"step": n, "seconds": second, "data_seconds": waited, "save_seconds": more, "tokens": {"a": 90, "b": 10}}
        for n, more in zip(numbers, added, strict=True)
    ]
    timed = [second + more for more in added[loops.BEGIN - 1 :]]
    losses = [{"text": 2.0, "picture": None} for _ in numbers]
    return loops.Turn(
        loop=loop, seconds=timed, losses=losses, filled=0.9, steps=[] if loop in ("bare", "reads") else lines
    )


def test_every_aim_is_judged_by_the_turns(capsys: pytest.CaptureFixture[str]) -> None:
    import train  # type: ignore[import-not-found]

    told = train._told([turn("reads", 1.0), turn("ours", 1.03, waited=0.02), turn("saves", 1.03, saved=6.0)])
    assert [met for _, met in told] == [False, False, False]
    assert told[0][0].startswith("ours waits 1.94% of a step for data")
    assert told[1][0].startswith("a step of ours takes 1.030 x that of the bare loop that reads")
    assert told[2][0].startswith("a save adds 6.00 s, 5.83% of 100 steps, which stand still for 6.00 s")
    assert all(met for _, met in train._told([turn("reads", 1.0), turn("ours", 1.01), turn("saves", 1.01, saved=4.0)]))
    train._told([turn("ours", 1.0), turn("padded", 2.0), turn("stored", 0.5)])
    said = capsys.readouterr().out
    assert "packed rows give 2.00 x the tokens/s of padded ones" in said
    assert "stored features give 2.00 x the tokens/s" in said


def test_a_loop_that_learns_something_else_is_told() -> None:
    import train  # type: ignore[import-not-found]

    bare, near = turn("bare", 1.0), [{"text": 2.0001, "picture": None} for _ in turn("bare", 1.0).losses]
    train._agree([bare, turn("ours", 2.0), replace(turn("padded", 1.0), losses=near)])
    with pytest.raises(AssertionError, match=r"ours, step 1: text is 2\.0001, in bare it is 2\.0"):
        train._agree([bare, replace(turn("ours", 1.0), losses=near)])
    with pytest.raises(AssertionError, match=r"saves, step 1: picture is 1\.0, in bare it is None"):
        train._agree([bare, replace(turn("saves", 1.0), losses=[{**loss, "picture": 1.0} for loss in bare.losses])])
