"""This machine as a cluster: what is rendered is what runs, and nothing of it is left when it is over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from desks import HOUSE, job, processes, said, submit, until

from clusters import children, jobs
from clusters.job import LEFT, LOST, Job, State
from clusters.local import Clock, Local

GANG = """
import json, os, pathlib, signal, sys, time, ray

def asked_to_end(*_):
    print("the command was asked to end", flush=True)
    raise SystemExit(7)

def show():
    nodes = [[node["NodeName"], node["NodeID"]] for node in ray.nodes() if node["Alive"]]
    told = {"nodes": nodes, "cwd": os.getcwd(), "environment": dict(os.environ)}
    pathlib.Path("told.new").write_text(json.dumps(told))
    pathlib.Path("told.new").rename("told.json")

ray.init(log_to_driver=False)  # which has its own answer to SIGTERM, and none while its head is gone
signal.signal(signal.SIGTERM, asked_to_end if os.environ["ANSWERS"] else signal.SIG_DFL)
while True:
    show()
    time.sleep(0.1)
"""


@dataclass(frozen=True, kw_only=True)
class Gang:
    """A job of two nodes that runs; its command writes what it sees, again and again."""

    root: Path
    submitted: jobs.Submitted

    def told(self) -> dict:
        path = self.root / "work" / "told.json"
        return json.loads(path.read_bytes()) if path.exists() else {}

    def raylets(self) -> dict[str, int]:
        """Process ids of this gang's raylets, by the names of their nodes."""
        lines = processes(self.submitted.job.desk)
        return {
            f"rank-{rank}": pid
            for pid, line in lines.items()
            for rank in (0, 1)
            if "/raylet/raylet " in line and f"--node-name=rank-{rank}" in line.replace("--node_name", "--node-name")
        }

    def log(self) -> str:
        return self.submitted.log().decode()


@pytest.fixture(scope="module")
def gangs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gang, Gang]]:
    """Two jobs of two nodes each, on this machine at once. The tests that end them stand last."""
    roots = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    both = [
        Gang(root=root, submitted=submit(job(root, GANG, nodes=2, cpus=1, environment={"ANSWERS": answers})))
        for root, answers in zip(roots, ("7", ""), strict=True)
    ]
    for gang in both:
        until(lambda gang=gang: gang.told() or gang.submitted.state().over, "the command of a gang begins")
        assert gang.told(), gang.log()
    yield both[0], both[1]
    for gang in both:
        gang.submitted.stop()
    for gang in both:
        until(lambda gang=gang: not processes(gang.root), "a gang that was stopped ends")


def test_a_job_runs_in_its_folder_with_its_environment_and_its_code_first(tmp_path: Path) -> None:
    code = "import os; print([os.getcwd(), os.environ['WORD'], os.environ['PYTHONPATH'].split(':')[0]])"
    folder = tmp_path / "a folder; with 'quotes'"
    folder.mkdir()
    asked = job(tmp_path, code, folder=folder, code=tmp_path, environment={"WORD": "$HOME `id` a'b\"c \\"})
    submitted = submit(asked)
    assert said(submitted) == f"{[str(folder), asked.environment['WORD'], str(tmp_path)]!r}\n"
    assert submitted.state() == State(name="done", code=0)


def test_the_rendered_script_run_by_hand_does_what_the_job_does(tmp_path: Path) -> None:
    asked = job(tmp_path, "import os; print(os.getcwd(), os.environ['WORD'])", environment={"WORD": "$HOME `id`"})
    script = Local().render(asked)["job.sh"]
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout == f"{asked.folder} $HOME `id`\n"


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("raise SystemExit(7)", State(name="failed", why="exit code 7", code=7)),
        (
            "import os; os.kill(os.getpid(), 9)",
            State(name="failed", why="ended by SIGKILL: was there too little memory?", code=137),
        ),
        (
            f"raise SystemExit({LEFT})",
            State(name="stopped", why="it left when it was told to; submitted again it goes on", code=LEFT),
        ),
        (
            f"raise SystemExit({LOST})",
            State(name="lost", why="a node was lost, or did not come: its log says which", code=LOST),
        ),
    ],
)
def test_how_a_job_ended_is_told_in_words(tmp_path: Path, code: str, state: State) -> None:
    submitted = submit(job(tmp_path, code))
    said(submitted)
    assert submitted.state() == state


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    submitted = submit(job(tmp_path, "", command=("no-such-program",)))
    assert "no-such-program: not found" in said(submitted)
    assert submitted.state().code == 127


def test_the_log_comes_as_it_is_said_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    waits = (
        "import pathlib, time\nprint('first')\nwhile not pathlib.Path('go').exists(): time.sleep(0.02)\nprint('last')"
    )
    submitted = submit(job(tmp_path, waits))
    pieces = submitted.follow(every=0.02)
    assert next(pieces) == b"first\n"
    assert submitted.state() == State(name="running")
    (tmp_path / "work" / "go").touch()
    assert b"".join(pieces) == b"last\n"
    assert stat.S_IMODE((submitted.job.desk / "log.txt").stat().st_mode) == 0o600


def test_stop_reaches_the_command_and_what_it_left_behind(tmp_path: Path) -> None:
    code = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))
subprocess.Popen(["sleep", "1000"], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: (print("so was a daemon"), os._exit(0)))
    print("ready")
time.sleep(1000)
"""
    submitted = submit(job(tmp_path, code))
    until(lambda: b"ready" in submitted.log(), "the daemon is there")
    assert len(processes(tmp_path)) >= 4
    assert submitted.stop()
    assert "asked to end\nso was a daemon\n" in said(submitted)
    assert submitted.state() == State(name="stopped", code=1)
    assert not processes(tmp_path)
    assert not submitted.stop()


def test_a_killed_supervisor_is_a_lost_job_and_takes_the_command_with_it(tmp_path: Path) -> None:
    submitted = submit(job(tmp_path, "import time; print('ready'); time.sleep(1000)"))
    until(lambda: submitted.log(), "the command is there")
    os.kill(int(submitted.there.split(":")[0]), signal.SIGKILL)
    until(lambda: not processes(tmp_path), "the command ends")
    assert submitted.state().name == "lost"


def test_a_process_that_was_given_the_same_id_is_neither_the_job_nor_stopped(tmp_path: Path) -> None:
    asked = job(tmp_path, "")
    with subprocess.Popen(["sleep", "20"]) as other:
        since = children.began(other.pid)
        assert since is not None
        reused = f"{other.pid}:{since - 1}"
        assert Local().state(asked, reused).name == "lost"
        Local().stop(asked, reused)
        assert Local().state(asked, f"{other.pid}:{since}").name == "running"
        Local().stop(asked, f"{other.pid}:{since}")
        assert other.wait() == -signal.SIGTERM


def test_a_job_whose_minutes_are_over_is_told_to_leave_then_ended_then_killed(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(
        "import signal, time\n"
        "for each in (signal.SIGUSR1, signal.SIGTERM):\n"
        "    signal.signal(each, lambda number, _: print(signal.Signals(number).name, flush=True))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(1)\n"
    )
    supervisor = f"""
import os, sys, time
from pathlib import Path
from clusters.children import Children
from clusters.local import Clock
ours = Children()
child = ours.begin([sys.executable, "stubborn.py"], folder=Path({str(tmp_path)!r}), environment=os.environ)
print("exit", ours.attend(child, grace=1.0, also=Clock(seconds=15.0, since=time.monotonic() - 13.2)))
"""
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    done = subprocess.run(
        [sys.executable, "-c", supervisor], env=environment, capture_output=True, text=True, timeout=180, check=True
    )
    assert done.stdout.split("\n")[:4] == ["ready", "SIGUSR1", "SIGTERM", "exit 137"]


def test_the_clock_says_each_signal_once_and_nothing_before_its_time() -> None:
    assert Clock(seconds=3600.0)() is None
    clock = Clock(seconds=3600.0, since=children.time.monotonic() - 3550.0)
    assert [clock(), clock()] == [signal.SIGUSR1, None]
    clock.since -= 100.0
    assert [clock(), clock()] == [signal.SIGTERM, None]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"gpus": 64}, "want 64, and this machine has"),
        ({"nodes": 3, "memory": 1_000_000}, "of 1000000 GB want 3000000, and this machine has"),
        ({"folder": Path("/no/such/folder")}, "no folder /no/such/folder"),
    ],
)
def test_what_this_machine_cannot_hold_is_refused_and_leaves_nothing(tmp_path: Path, fields: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        submit(job(tmp_path, "", **fields))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "jobs").exists()


def test_two_jobs_of_two_nodes_at_once_each_see_their_own_two(gangs: tuple[Gang, Gang]) -> None:
    seen = [dict(gang.told()["nodes"]) for gang in gangs]
    assert [sorted(each) for each in seen] == [["rank-0", "rank-1"]] * 2
    assert not {*seen[0].values()} & {*seen[1].values()}
    assert "node 1" in gangs[0].log() and "joins the Ray of" in gangs[0].log()


def test_two_jobs_at_once_answer_at_ports_of_their_own(gangs: tuple[Gang, Gang]) -> None:
    one, other = (_ports([*processes(gang.root)]) for gang in gangs)
    assert len(one) > 5 < len(other)
    assert not one & other, "gRPC lets two processes bind one port, and a client gets either of them"


def _ports(pids: list[int]) -> set[int]:
    """At which these processes listen."""
    held = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):  # one that has just ended
            held |= {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    lines = [
        line.split() for each in ("tcp", "tcp6") for line in Path(f"/proc/net/{each}").read_text().splitlines()[1:]
    ]
    return {int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in held}


def test_the_command_of_a_gang_knows_its_ray_and_has_its_folder(gangs: tuple[Gang, Gang]) -> None:
    told = gangs[0].told()
    given = told["environment"]
    assert told["cwd"] == str(gangs[0].root / "work")
    assert given["PYTHONPATH"].split(":")[0] == str(HOUSE)
    assert given["RAY_AUTH_MODE"] == "token"
    assert given["RAY_ADDRESS"] != gangs[1].told()["environment"]["RAY_ADDRESS"]
    assert given["RAY_health_check_period_ms"] == "2000"
    assert not {"RAY_AUTH_TOKEN", "INTERLACE_ATTEMPT"} & {*given}


def test_a_jobs_token_is_read_by_its_owner_alone_and_said_nowhere(gangs: tuple[Gang, Gang]) -> None:
    paths = [Path(gang.told()["environment"]["RAY_AUTH_TOKEN_PATH"]) for gang in gangs]
    tokens = [path.read_text() for path in paths]
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o600] * 2
    assert len({*tokens}) == 2 and all(len(token) == 64 for token in tokens)
    assert not processes(tokens[0])
    temp = json.loads((paths[0].parent / "head.json").read_bytes())["temp"]
    written = [path for folder in (gangs[0].root, Path(temp)) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if tokens[0].encode() in path.read_bytes()] == [paths[0]]


def test_a_ray_talks_to_nobody_without_its_token(gangs: tuple[Gang, Gang]) -> None:
    given = gangs[0].told()["environment"]
    foreign = {**given, "RAY_AUTH_TOKEN_PATH": gangs[1].told()["environment"]["RAY_AUTH_TOKEN_PATH"]}
    asked = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", given["RAY_ADDRESS"]]
    answer = subprocess.run(asked, env=foreign, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "AuthenticationError" in answer.stderr


def test_a_node_whose_ray_is_killed_is_replaced_while_the_command_goes_on(gangs: tuple[Gang, Gang]) -> None:
    gang = gangs[0]
    before = dict(gang.told()["nodes"])
    os.kill(gang.raylets()["rank-1"], signal.SIGKILL)
    until(
        lambda: (now := dict(gang.told()["nodes"])).keys() == before.keys() and now["rank-1"] != before["rank-1"],
        "another node in the place of the one that was killed",
    )
    assert gang.submitted.state().name == "running"
    assert dict(gang.told()["nodes"])["rank-0"] == before["rank-0"]
    assert "its Ray ended by itself and is started again" in gang.log()


def test_a_gang_that_is_stopped_leaves_no_process_and_no_file_of_ray(gangs: tuple[Gang, Gang]) -> None:
    gang = gangs[0]
    temp = next((gang.submitted.job.desk / "attempts").glob("*/head.json"))
    assert gang.submitted.stop()
    assert "the command was asked to end" in said(gang.submitted)
    assert gang.submitted.state() == State(name="stopped", code=7)
    assert not processes(gang.root)
    assert not Path(json.loads(temp.read_bytes())["temp"]).exists()


def test_a_gang_whose_head_is_lost_is_lost_and_keeps_rays_logs(gangs: tuple[Gang, Gang]) -> None:
    gang = gangs[1]
    os.kill(gang.raylets()["rank-0"], signal.SIGKILL)
    assert "has lost its Ray, which ended by itself" in said(gang.submitted)
    assert gang.submitted.state() == State(
        name="lost", why="a node was lost, or did not come: its log says which", code=LOST
    )
    assert not processes(gang.root)
    assert [*gang.submitted.job.desk.glob("attempts/*/logs-0/raylet*")]


def test_a_job_that_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    asked = job(tmp_path, "")
    for wrong in (replace(asked, name="Bad Name"), replace(asked, command=()), replace(asked, nodes=0)):
        with pytest.raises(ValueError) as refused:
            Local().render(wrong)
        assert "\n" not in str(refused.value)


def test_a_job_that_is_read_again_is_the_same(tmp_path: Path) -> None:
    submitted = submit(job(tmp_path, "", environment={"A": "b"}))
    said(submitted)
    assert jobs.read(submitted.job.desk) == submitted
    assert isinstance(submitted.job, Job)
