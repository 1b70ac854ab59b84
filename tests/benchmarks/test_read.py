"""The benchmark of readers: ours gives every sample once, whole and resumed; no time is judged."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parent.parent.parent
SAMPLES = 200  # the last batch of 64 is not full


def read(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, HOUSE / "benchmarks/read.py", "--readers", "ours", "--samples", str(SAMPLES), *words]
    return subprocess.run([*map(str, command), "--rounds", "1"], capture_output=True, text=True, check=False)


def trained(folder: Path, waited: float) -> Path:
    """A run whose steps take a second; the first one waits for long."""
    folder.mkdir()
    steps = [{"step": step, "seconds": 1.0, "data_seconds": waited if step > 1 else 0.9} for step in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder


def test_our_reader_gives_every_sample_once_and_every_aim_has_a_line(tmp_path: Path) -> None:
    done = read("--run", trained(tmp_path / "quick", 0.004), "--run", trained(tmp_path / "slow", 0.02))
    assert "Traceback" not in done.stderr and done.returncode == 1, done.stderr  # a run of the two is too slow
    assert re.search(r"^200 samples of \d+\.\d kB", done.stdout)
    assert "raw, each sample once" in done.stdout and "decoded, each sample once" in done.stdout
    (resumed,) = [line for line in done.stdout.splitlines() if line.startswith("ours") and line.endswith("  yes")]
    assert len(resumed.split()) == 8
    aims = [line for line in done.stdout.splitlines() if re.match("(reached|MISSED): ", line)]
    assert len(aims) == 4
    assert aims[2].startswith("reached: quick waits 0.40%") and aims[3].startswith("MISSED: slow waits 2.00%")


def test_samples_that_were_lost_repeated_or_changed_have_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HOUSE / "benchmarks"))
    import readers  # type: ignore[import-not-found]

    samples = [(f"synthetic_{number:09d}", 20_000) for number in range(3)]
    assert readers.digest(samples[::-1]) == readers.digest(samples)
    assert readers.digest(samples[:2]) != readers.digest(samples) != readers.digest([*samples, samples[0]])
    assert readers.digest([*samples[:2], (samples[2][0], 19_999)]) != readers.digest(samples)
