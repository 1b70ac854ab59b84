"""The whole chain by one command: what is done is skipped, what a training starts from is trained first."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Interlace = Callable[..., subprocess.CompletedProcess[str]]

SHORT = ("--set", "steps=1", "--set", "batch=2", "--set", "execution.micro_batch=1")


def test_a_chain_goes_from_rows_to_an_evaluation_and_does_nothing_twice(
    world: Path, tmp_path: Path, interlace: Interlace
) -> None:
    words = ("run", "metamorph:tiny", "--data", world, "--root", tmp_path, "--workers", "1", *SHORT)
    told = interlace(*words, "--from", "train", "--to", "train", expect=2).stderr
    assert "is not built" in told
    said = interlace(*words).stdout.splitlines()
    run = Path(said[-1])
    order = ["training from the start", ": sampled ", "evaluation.json"]
    places = [next(place for place, line in enumerate(said) if word in line) for word in order]  # all are said
    assert places == sorted(places)
    assert list((tmp_path / "corpora").glob("*/manifest.json"))
    answers = (run / "samples" / "step-000001" / "samples.jsonl").read_text().splitlines()
    assert 1 <= len({json.loads(line)["prompt"] for line in answers}) <= 4
    assert json.loads((run / "evaluation.json").read_bytes())["step"] == 1
    again = interlace(*words).stdout
    for word in ("already trained", "already sampled", "already evaluated"):
        assert word in again
    assert "training from" not in again
