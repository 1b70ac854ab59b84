"""Slurm: what is rendered, and what a real one makes of it. INTERLACE_CLUSTER_TEST=1: what takes minutes, too."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_hosts import Hosts, missing, slurm, until

from clusters import jobs, sites
from clusters.job import Job, State
from clusters.slurm import Slurm

HOUSE = Path(__file__).resolve().parents[2]
ODD = """it's a "root", 100%j $HOME #1"""

real = pytest.mark.skipif(bool(missing()), reason=missing())
long = pytest.mark.skipif("INTERLACE_CLUSTER_TEST" not in os.environ, reason="takes minutes: `make cluster-test`")

HOSTS = """
import os, ray, socket
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
other = next(node["NodeID"] for node in ray.nodes() if node["NodeManagerHostname"] != socket.gethostname())
there = ray.remote(lambda: socket.gethostname())
there = there.options(scheduling_strategy=NodeAffinitySchedulingStrategy(other, soft=False))
print(os.environ["WORD"], socket.gethostname(), ray.get(there.remote()), flush=True)
"""
STAYS = """
import os, pathlib, ray, time
ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
print("attempt", os.environ.get("SLURM_RESTART_COUNT", "0"), len(ray.nodes()), flush=True)
while "SLURM_RESTART_COUNT" not in os.environ:
    time.sleep(0.2)
"""


def _job(root: Path, *command: str, **fields: object) -> Job:
    name = jobs.name(root, "try")
    desk = root / "jobs" / name
    asked = {"nodes": 1, "cpus": 1, **fields}
    return Job(name=name, command=command, folder=desk, desk=desk, code=desk / "code", **asked)  # type: ignore[arg-type]


def _submit(root: Path, *command: str, site: Slurm | None = None, **fields: object) -> jobs.Submitted:
    """Hand it over, the code being this house."""

    def fill(desk: Path) -> None:
        (desk / "code").symlink_to(HOUSE)

    return jobs.submit(_job(root, *command, **fields), site or Slurm(), "try", fill)


def _ended(job: jobs.Submitted) -> State:
    """How it ended; an error that holds its log where it does not."""
    try:
        until(lambda: job.state().over, f"the end of {job.job.name}", 150)
    except TimeoutError as error:
        error.add_note(f"{job.state()}\n{job.log().decode()}")
        raise
    return job.state()


def _said(job: jobs.Submitted, words: str) -> None:
    """Wait until its log holds words."""
    until(lambda: words.encode() in job.log() or job.state().over, f"{words!r} in {job.job.desk}/log.txt", 90)
    assert words in job.log().decode(), job.log().decode()


# What is rendered


def _options(site: Slurm, job: Job) -> dict[str, str]:
    lines = site.render(job)["job.sbatch"].splitlines()
    options = [line.removeprefix("#SBATCH ").strip('"') for line in lines if line.startswith("#SBATCH ")]
    return {name: value for name, _, value in (option.partition("=") for option in options)}


def test_every_field_of_a_job_and_a_site_is_an_option_of_the_script(tmp_path: Path) -> None:
    site = Slurm(account="lab", partition="gpu", qos="high", options=("--constraint=h100", "--nice"), exclusive=True)
    job = _job(tmp_path, "true", nodes=4, gpus=8, cpus=32, memory=500, minutes=90)
    assert _options(site, job) == {
        **{"--job-name": job.name, "--account": "lab", "--partition": "gpu", "--qos": "high"},
        **{"--nodes": "4", "--ntasks-per-node": "1", "--cpus-per-task": "32", "--gpus-per-node": "8"},
        **{"--mem": "500G", "--time": "90", "--exclusive": "", "--requeue": "", "--open-mode": "append"},
        **{"--signal": "B:USR1@180", "--chdir": str(job.folder), "--output": f"{job.desk}/log.txt"},
        **{"--constraint": "h100", "--nice": ""},
    }


def test_what_is_not_asked_for_is_left_to_the_cluster_but_whole_nodes_are_whole(tmp_path: Path) -> None:
    asked = _options(Slurm(), _job(tmp_path, "true", cpus=0))
    assert "--exclusive" in asked
    assert not asked.keys() & {
        "--account",
        "--partition",
        "--qos",
        "--cpus-per-task",
        "--gpus-per-node",
        "--mem",
        "--time",
    }


def test_the_script_is_a_shells_whatever_is_in_paths_and_variables(tmp_path: Path) -> None:
    value = "a 'b' \"c\" $HOME `id` \\ %j #"
    job = _job(tmp_path / ODD, "true", environment={"WORD": value})
    script = Slurm(environment={"HF_HOME": "/a b"}).render(job)["job.sbatch"]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    lines = [line for line in script.splitlines() if line.startswith(("export", "desk"))]
    said = 'printf "%s\\n" "$WORD" "$HF_HOME" "$desk" "${PYTHONPATH%%:*}"'
    done = subprocess.run(["bash", "-c", "\n".join([*lines, said])], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [value, "/a b", str(job.desk), str(job.code)]


def test_modules_and_lines_of_a_site_come_before_the_command_in_their_order(tmp_path: Path) -> None:
    script = Slurm(modules=("cuda/12", "a b"), lines=("ulimit -l unlimited",)).render(_job(tmp_path, "true"))[
        "job.sbatch"
    ]
    places = [script.index(words) for words in ("module load cuda/12", "module load 'a b'", "ulimit -l", "srun ")]
    assert places == sorted(places)


def test_an_image_is_run_by_pyxis_or_apptainer_and_sees_the_root_and_the_mounts(tmp_path: Path) -> None:
    job = _job(tmp_path, "true", gpus=1, environment={"WORD": "x"})
    seen = str(tmp_path)
    pyxis = Slurm(container="pyxis", image="lab/interlace:1", mounts=("/data:/data:ro", "/scratch"))
    told = shlex.split(pyxis.render(job)["job.sbatch"].split("\nsrun ")[1].split("&\n")[0].replace("\\\n", ""))
    assert "--container-image=lab/interlace:1" in told
    assert f"--container-mounts={seen}:{seen},/data:/data:ro,/scratch:/scratch" in told
    assert "--container-env=WORD,PYTHONPATH" in told
    assert told[-4:] == ["python", "-m", "clusters.node", str(job.desk)]
    apptainer = replace(pyxis, container="apptainer", image="/images/a b.sif", python="/opt/python")
    told = shlex.split(apptainer.render(job)["job.sbatch"].split("\nsrun ")[1].split("&\n")[0].replace("\\\n", ""))
    begun = told[told.index("apptainer") :]
    assert begun[:3] == ["apptainer", "exec", "--nv"]
    assert begun[3:9] == ["--bind", f"{seen}:{seen}", "--bind", "/data:/data:ro", "--bind", "/scratch"]
    assert begun[9:13] == ["--pwd", str(job.folder), "/images/a b.sif", "sh"]
    assert 'export APPTAINERENV_PYTHONPATH="$PYTHONPATH"' in apptainer.render(job)["job.sbatch"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"partition": "a\nb"}, "partition = 'a\\\\nb' holds a control character"),
        ({"lines": ["a\rb"]}, "lines = .* holds a control character"),
        ({"image": "x"}, "say both"),
        ({"container": "pyxis"}, "say both"),
        ({"container": "docker", "image": "x"}, "container = 'docker' must be"),
        ({"mounts": ["/data"]}, "there is none"),
        ({"root": "/elsewhere"}, "must see --root"),
        ({"options": ["-p gpu"]}, "one of sbatch's"),
        ({"options": ["--output=x"]}, "said by the job"),
        ({"options": ["--test-only"]}, "said by the job"),
        ({"signal_seconds": 0}, "from 1 to"),
        ({"retries": -1}, "0 or more"),
        ({"partitoin": "gpu"}, "did you mean partition"),
    ],
)
def test_a_site_that_cannot_be_is_refused_in_one_line(fields: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        sites.of({"kind": "slurm", **fields})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("root", "fields", "told"),
    [
        ("a", {"minutes": 3}, "asked to leave 180 s before"),
        ("a\\b", {}, "holds a backslash"),
        ("a,b", {}, "cannot be mounted"),
        ("a", {"nodes": 0}, "cannot be"),
    ],
)
def test_a_job_that_no_script_can_hold_is_refused(tmp_path: Path, root: str, fields: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Slurm(container="pyxis", image="x").render(_job(tmp_path / root, "true", **fields))


def test_a_site_is_the_same_after_it_was_written_down() -> None:
    site = Slurm(partition="gpu", options=("--nice",), container="apptainer", image="x.sif")
    assert sites.of(sites.told(site)) == site
    assert site.python == "python"
    assert Slurm().python == sys.executable


def test_without_sbatch_it_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is no sbatch on the path: run this on a login node"):
        Slurm().check(_job(tmp_path, "true"))


# What a real Slurm makes of it


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A Slurm of two hosts with a processor each, which this process talks to."""
    top = tmp_path_factory.mktemp("slurm")
    with slurm(top / "slurm", nodes=2, cpus=1, seen=(tmp_path_factory.getbasetemp(), HOUSE)) as hosts:
        with pytest.MonkeyPatch.context() as told:
            for name, value in hosts.environment.items():
                told.setenv(name, value)
            told.setenv("SBATCH_PARTITION", "of-another-life")  # must not reach the job
            yield hosts


@pytest.fixture
def root(here: Hosts, tmp_path: Path) -> Iterator[Path]:
    """A root with all the letters that somebody could quote wrongly; its jobs are over afterwards, however it went."""
    here.wait_idle()
    yield tmp_path / ODD
    here.ask("scancel", "--user=root")


@real
def test_a_command_over_two_nodes_finds_a_ray_of_both_hosts(root: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts.py").write_text(HOSTS)
    words = "$HOME 'a' \"b\""
    job = _submit(root, sys.executable, str(tmp_path / "hosts.py"), nodes=2, environment={"WORD": words})
    said = b"".join(job.follow(every=0.2)).decode()
    assert job.state() == State(name="done", code=0), said
    assert f"{words} n1 n2\n" in said


@real
def test_the_code_of_a_command_is_the_jobs(root: Path, here: Hosts) -> None:
    job = _submit(root, "bash", "-c", "exit 7")
    assert _ended(job) == State(name="failed", code=7, why="exit code 7")
    assert "ExitCode=7:0" in here.ask("scontrol", "show", "job", job.there)  # what others see


@real
def test_a_program_that_is_not_there_is_told(root: Path) -> None:
    job = _submit(root, "/no/such/program")
    assert _ended(job).code == 127
    assert "/no/such/program" in job.log().decode()


@real
def test_a_job_waits_for_nodes_and_stop_ends_one_that_runs_and_one_that_waits(root: Path, here: Hosts) -> None:
    mark = f"sleep {600 + os.getpid() / 1e7:.7f}"
    running = _submit(root, "bash", "-c", f"trap 'echo told; exit 3' TERM; {mark} & echo begun; wait; wait", cpus=0)
    other = _submit(root, "sleep", "600", cpus=0)
    waiting = _submit(root, "sleep", "600", cpus=0)
    _said(running, "begun")
    until(lambda: waiting.state() == State(name="waiting", why="nodes that are taken"), "the reason to wait")
    assert running.state() == State(name="running")
    for job in (waiting, running, other):
        assert job.stop()
        assert _ended(job).name == "stopped"
        assert not job.stop()
    assert "told" in running.log().decode()
    for name in here.names:
        alive = subprocess.run([*here.inside(name), "ps", "-eo", "args"], capture_output=True, text=True, check=True)
        assert mark not in alive.stdout
    until(lambda: not here.ask("squeue", "--noheader"), "an empty queue")


@real
def test_a_command_told_of_its_time_limit_is_queued_again_and_goes_on(root: Path, here: Hosts) -> None:
    command = "[ -e saved ] && exit; trap 'touch saved; exit 75' USR1; echo begun; while :; do sleep 0.1; done"
    job = _submit(root, "bash", "-c", command)
    _said(job, "begun")
    here.ask("scancel", "--batch", "--signal=USR1", job.there)  # as Slurm does it, --signal=B:USR1@180
    _said(job, "queued again")
    assert not job.state().over
    assert _ended(job) == State(name="done", code=0), job.log().decode()
    assert "attempt 2" in job.log().decode()


@real
def test_a_job_that_ends_without_a_word_of_its_command_is_queued_again(root: Path) -> None:
    job = _submit(root, "bash", "-c", "[ -e again ] && exit; touch again; kill -9 $PPID; sleep 600")
    assert _ended(job) == State(name="done", code=0), job.log().decode()
    assert "it lost a node: queued again" in job.log().decode()


@real
@pytest.mark.parametrize(
    ("site", "fields", "told"),
    [
        ({"partition": "nope"}, {}, "partition = 'nope' of the site; there are debug"),
        ({}, {"nodes": 3}, "--nodes 3"),
        ({}, {"gpus": 1}, "--gpus 1"),
        ({}, {"cpus": 2}, "--cpus 2"),
        ({"options": ("--constraint=h100",)}, {}, "options = .*h100"),
        ({"container": "pyxis", "image": "x"}, {}, "there is no pyxis"),
    ],
)
def test_what_the_cluster_cannot_give_is_refused_and_leaves_nothing(
    here: Hosts, tmp_path: Path, site: dict[str, str], fields: dict[str, int], told: str
) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        _submit(tmp_path, "true", site=Slurm(**site), **fields)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "jobs").glob("*"))
    assert not here.ask("squeue", "--noheader")


@real
def test_a_controller_that_is_not_there_is_one_line(
    here: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("slurm.conf", "cgroup.conf"):
        text = (here.folder / file).read_text().replace("SlurmctldPort=", "SlurmctldPort=1\nSlurmdPort=")
        (tmp_path / file).write_text(f"{text}MessageTimeout=2\n" if file == "slurm.conf" else text)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    for ask in (lambda: Slurm().check(_job(tmp_path, "true")), lambda: Slurm().state(_job(tmp_path, "true"), "1")):
        _refused_in_one_line(ask, "Slurm does not answer")


def _refused_in_one_line(ask: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        ask()
    assert "\n" not in str(refused.value)


@real
def test_a_job_that_slurm_forgot_is_known_by_how_it_ended(root: Path, here: Hosts) -> None:
    job = _submit(root, "true")
    assert _ended(job) == State(name="done", code=0)
    kind = Slurm()
    assert kind.state(job.job, "999999") == State(name="done", code=0)
    (job.job.desk / "ended.json").unlink()
    assert kind.state(job.job, "999999").name == "lost"
    kind.stop(job.job, "999999")
    kind.stop(job.job, job.there)


@real
@long
def test_a_job_whose_node_dies_runs_again_once_it_is_back_and_leaves_other_rays_alone(
    root: Path, here: Hosts, tmp_path: Path
) -> None:
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--include-dashboard=false", "--num-cpus=1"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = subprocess.Popen([*here.inside("n1"), *ray, "--block", "--port=6379"], env=clean, stdout=subprocess.DEVNULL)
    try:
        (tmp_path / "stays.py").write_text(STAYS)
        job = _submit(root, sys.executable, str(tmp_path / "stays.py"), nodes=2, minutes=30)
        _said(job, "attempt 0 2")
        here.kill_node("n2")
        until(lambda: job.state().name == "waiting", "the job to be queued again", 120)
        here.revive_node("n2")
        assert _ended(job) == State(name="done", code=0), job.log().decode()
        assert "attempt 1 2" in job.log().decode()
        assert own.poll() is None
        alive = subprocess.run([*here.inside("n1"), "ps", "-eo", "args"], capture_output=True, text=True, check=True)
        assert alive.stdout.count("/gcs_server ") == 1
    finally:
        own.send_signal(signal.SIGTERM)
        own.wait(60)


@real
@long
def test_a_job_may_wait_for_a_node_that_is_down_but_not_for_one_that_does_not_exist(root: Path, here: Hosts) -> None:
    here.kill_node("n2")
    until(lambda: "down" in here.ask("sinfo", "--noheader", "--format=%T"), "n2 to be known to be down")
    with pytest.raises(ValueError, match="--nodes 3"):
        _submit(root, "true", nodes=3)
    job = _submit(root, "true", site=Slurm(options=("--nodelist=n2",)))
    until(lambda: "down" in job.state().why, "the reason to wait")
    here.revive_node("n2")
    assert _ended(job) == State(name="done", code=0), job.log().decode()


@real
@long
def test_slurm_itself_tells_a_command_of_its_time_limit(root: Path) -> None:
    command = "[ -e saved ] && exit; trap 'touch saved; exit 75' USR1; while :; do sleep 0.1; done"
    job = _submit(root, "bash", "-c", command, site=Slurm(signal_seconds=60), minutes=2)
    assert _ended(job) == State(name="done", code=0), job.log().decode()
    assert "the time limit is near" in job.log().decode()


@real
@long
def test_a_job_that_loses_nodes_is_queued_again_as_often_as_its_site_says(root: Path) -> None:
    job = _submit(root, "bash", "-c", "exit 70", site=Slurm(retries=1))
    assert _ended(job).code == 70
    assert job.log().decode().count("queued again") == 1
