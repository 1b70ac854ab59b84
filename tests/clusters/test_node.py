"""One node of a gang, by hand: what it says and how it ends where the others, its disk or its libraries are missing.

Gangs that come together are in test_local.py.
"""

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
from desks import HOUSE, job, processes, until

from clusters import node, sites
from clusters.job import LEFT, LOST, Job
from clusters.local import Local

HOST = socket.gethostname()


def _desk(root: Path, program: str = "print('ran')", **fields: Any) -> Job:
    """A job that was handed over, of which no node runs yet."""
    asked = job(root, program, **fields)
    asked.desk.mkdir(parents=True)
    told = {"job": asked.told(), "cluster": sites.told(Local())}
    (asked.desk / "job.json").write_text(json.dumps(told))
    return asked


def _begin(desk: Path, rank: int, python: str = sys.executable, **given: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "INTERLACE_ATTEMPT": "now", **given}
    command = [python, "-m", "clusters.node", str(desk), "--rank", str(rank)]
    return subprocess.Popen(command, env=environment, cwd=HOUSE, text=True, stdout=-1, stderr=subprocess.STDOUT)


def _end(begun: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and all that it says."""
    said, _ = begun.communicate(timeout=180)
    return begun.returncode, said


def _ended(asked: Job) -> int:
    told = json.loads((asked.desk / "ended.json").read_bytes())
    assert told["attempt"] == "now"
    return told["code"]


def test_a_node_that_never_comes_is_named_and_the_others_end(tmp_path: Path) -> None:
    asked = _desk(tmp_path, nodes=3)
    begun = [_begin(asked.desk, rank, INTERLACE_GANG_PATIENCE="1.5") for rank in (0, 1)]
    (code, said), (other, _) = map(_end, begun)
    assert code == LOST == _ended(asked)
    assert said.startswith(f"node 0 ({HOST}) of 3 nodes, within 1.5 s, these have not come: 2 (unknown); ")
    assert said.count("\n") == 1
    assert other == 0
    assert not processes(tmp_path)


def test_a_node_whose_libraries_are_missing_says_which_and_ends_the_gang(tmp_path: Path) -> None:
    asked = _desk(tmp_path, nodes=2)
    bare = getattr(sys, "_base_executable", sys.executable)
    first, second = _begin(asked.desk, 0), _begin(asked.desk, 1, bare, PYTHONNOUSERSITE="1")
    (code, said), (other, told) = _end(first), _end(second)
    assert (code, other) == (node.WRONG, node.WRONG)
    assert f"node 1 ({HOST}) {bare} lacks ray, torch, " in told
    assert "Dockerfile" in told
    assert f"{bare} lacks ray, torch, " in said, "the first node's log is the one that is read"


def test_a_desk_that_a_node_does_not_see_is_said_with_its_cure(tmp_path: Path) -> None:
    code, said = _end(_begin(tmp_path / "jobs" / "elsewhere", 3))
    assert code == node.WRONG
    assert said.startswith(f"node 3 ({HOST}) does not see {tmp_path}/jobs/elsewhere/job.json (No such file")
    assert "--root" in said and said.count("\n") == 1


def test_a_folder_that_a_node_does_not_see_is_said(tmp_path: Path) -> None:
    asked = _desk(tmp_path, nodes=2)
    asked.folder.rmdir()
    code, said = _end(_begin(asked.desk, 1))
    assert (code, f"does not see {asked.folder}" in said) == (node.WRONG, True)


def test_the_end_of_an_earlier_attempt_is_not_this_ones(tmp_path: Path) -> None:
    asked = _desk(tmp_path, nodes=2)
    node.end(asked.desk, 0, "earlier")
    code, said = _end(_begin(asked.desk, 1, INTERLACE_GANG_PATIENCE="0.5"))
    assert code == LOST
    assert "the first node has not come within 1 s" in said
    node.end(asked.desk, 0, "now")
    assert _end(_begin(asked.desk, 1, INTERLACE_GANG_PATIENCE="0.5", INTERLACE_ATTEMPT="now")) == (0, "")


def test_an_attempt_is_not_made_twice(tmp_path: Path) -> None:
    asked = _desk(tmp_path, nodes=2)
    assert _end(_begin(asked.desk, 0, INTERLACE_GANG_PATIENCE="0.2"))[0] == LOST
    code, said = _end(_begin(asked.desk, 0, INTERLACE_GANG_PATIENCE="0.2"))
    assert (code, "is of an earlier attempt" in said) == (node.WRONG, True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, LEFT), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_before_the_gang_is_there_ends_it(tmp_path: Path, number: int, code: int) -> None:
    asked = _desk(tmp_path, nodes=2)
    begun = _begin(asked.desk, 0)
    until((asked.desk / "attempts" / "now" / "here-0.json").exists, "the first node waits")
    begun.send_signal(number)
    assert _end(begun)[0] == code == _ended(asked)


def test_the_first_node_without_a_command_to_run_says_so_as_a_shell_does(tmp_path: Path) -> None:
    asked = _desk(tmp_path, command=("/no/such/program",))
    code, said = _end(_begin(asked.desk, 0))
    assert code == 127 == _ended(asked)
    assert said == f"node 0 ({HOST}) /no/such/program: No such file or directory\n"


def test_a_command_of_one_node_has_its_signals_its_code_and_no_ray(tmp_path: Path) -> None:
    program = """
import os, signal, sys, time
def leave(number, _):
    print("saved")
    sys.exit(75)
signal.signal(signal.SIGUSR1, leave)
print("ready", os.getcwd(), os.environ["PYTHONPATH"].split(":")[0], "RAY_ADDRESS" in os.environ, os.environ["WORD"])
time.sleep(1000)
"""
    asked = _desk(tmp_path, program, code=tmp_path, environment={"WORD": "a 'b"})
    begun = _begin(asked.desk, 0, RAY_ADDRESS="10.0.0.1:1")
    assert begun.stdout is not None
    assert begun.stdout.readline() == f"ready {asked.folder} {tmp_path} False a 'b\n"
    begun.send_signal(signal.SIGUSR1)
    assert _end(begun) == (LEFT, "saved\n")
    assert _ended(asked) == LEFT


def test_addresses_are_those_that_others_may_see() -> None:
    found = node.addresses()
    assert not [address for address in found if address.startswith("127.")]
    assert all(node._way_to(address) == address for address in found)
