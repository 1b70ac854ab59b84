"""The check for machines with a GPU: all of it that a CPU can do holds on one, and without a GPU it says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
SMALL = """
import sys, gpu
from models.parts import Llama
backbone = Llama(width=64, layers=1, heads=2, kv_heads=2, ffn=64, max_positions=1024)
gpu._rank(0, 1, sys.argv[1], gpu.training(backbone, 1), "cpu")
"""


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so_in_a_line() -> None:
    done = run("gpu.py")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "gpu-check: torch sees no GPU on this machine, nothing was checked\n"


def test_what_a_cpu_can_do_of_it_holds(tmp_path: Path) -> None:
    done = run("-c", SMALL, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines() if "hold" in line.lower()[:14]] == ["holds"] * 4
