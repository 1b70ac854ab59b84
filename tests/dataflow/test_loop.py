"""docs/loop.py as a reader of it would run it: to its end, killed and again, on two processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from upstream import ORCA, Build, jsonl

from dataflow.sources.cambrian import Cambrian

HOUSE = Path(__file__).resolve().parents[2]
LOOP = HOUSE / "docs/loop.py"


@pytest.fixture
def corpus(tmp_path: Path, build: Build) -> Path:
    (tmp_path / "data/cambrian/jsons").mkdir(parents=True)
    rows = [{**ORCA, "id": str(number)} for number in range(60)]
    (tmp_path / "data/cambrian/jsons/a.jsonl").write_bytes(jsonl(*rows))
    return build(Cambrian(), rows=20).folder


def started(corpus: Path, folder: Path, *before: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *before, str(LOOP), str(corpus)]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return [json.loads(line) for line in told.splitlines()]


ALONE = """
import runpy, sys
runpy.run_path(sys.argv.pop(1), run_name="__main__")
ours = {"ray", "deepspeed", "models", "pipelines", "clusters"} & set(sys.modules)
assert not ours, ours
"""


def test_it_learns_without_the_rest_of_the_house_goes_on_after_a_kill_and_on_two_processes(
    corpus: Path, tmp_path: Path
) -> None:
    whole = lines(started(corpus, tmp_path / "whole", "-c", ALONE))
    assert [line["step"] for line in whole] == list(range(1, 21))
    assert whole[-1]["loss"] < whole[0]["loss"] * 0.8

    killed = started(corpus, tmp_path / "killed")
    assert killed.stdout is not None
    first = [json.loads(killed.stdout.readline()) for _ in range(8)]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    rest = lines(started(corpus, tmp_path / "killed"))
    assert rest[0]["step"] > 7  # the one after what is in the state
    by_step = {line["step"]: line for line in first + rest}
    assert [by_step[step] for step in sorted(by_step)] == [line for line in whole if line["step"] in by_step]
    assert rest[-1] == whole[-1]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}")
    both = lines(started(corpus, tmp_path / "two", *run))
    assert [line["bytes"] for line in both] == [line["bytes"] for line in whole]
    assert [line["loss"] for line in both] == pytest.approx([line["loss"] for line in whole], rel=1e-4)
