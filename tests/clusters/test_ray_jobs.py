"""Jobs on a real Ray cluster that asks for a token; and heads that do not answer as one should."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import shlex
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from ray_here import LIMIT, Here, ray_cluster

from clusters import jobs, ray_jobs, sites
from clusters.job import LEFT, Job, State
from clusters.ray_jobs import RayJobs

EVERYWHERE = """
import os, pathlib, sys, ray
import only_here
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

ray.init("auto", log_to_driver=False, logging_level="ERROR")
look = ray.remote(num_cpus=1)(lambda: (only_here.WORD, os.environ["WORD"]))
asked = {
    node["NodeID"]: look.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote()
    for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")
}
for name, answer in asked.items():
    print("seen", name, *ray.get(answer))
print("here", pathlib.Path(only_here.__file__) == pathlib.Path("only_here.py").absolute(), flush=True)
sys.stdout.buffer.write(b"no utf-8: \\xff\\n")
"""

PARENT = """
import os, signal, subprocess, sys, time

child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])


def end(*_):
    time.sleep(3.5)  # longer than Ray would wait by itself
    sys.exit(print("ended by itself"))


signal.signal(signal.SIGTERM, end)
print("pids", os.getpid(), child.pid, flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def here() -> Iterator[Here]:
    """A head and two nodes; one has the label place=side."""
    with ray_cluster(2, labels=("place=side",)) as cluster:
        yield cluster


@pytest.fixture
def site(here: Here) -> RayJobs:
    """The cluster as a site file says it."""
    return RayJobs(address=here.address, token_file=here.token_file, python=sys.executable)


def _job(folder: Path, name: str, *command: str, **fields: Any) -> Job:
    desk = folder / "jobs" / name
    return Job(name=name, command=command or ("true",), folder=desk, desk=desk, code=desk / "code", **fields)


def _submitted(job: Job, cluster: RayJobs) -> jobs.Submitted:
    def fill(desk: Path) -> None:
        (desk / "code").mkdir()
        (desk / "code" / "only_here.py").write_text("WORD = 'snapshot'\n")

    return jobs.submit(job, cluster, "interlace try", fill)


def _over(submitted: jobs.Submitted) -> State:
    return _until(lambda: state if (state := submitted.state()).over else None)


def _until(look: Any) -> Any:
    deadline = time.monotonic() + LIMIT
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def _lives(pid: int) -> bool:
    """Whether a process runs: one that is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_job_uses_all_nodes_and_runs_the_code_as_it_was_submitted(here: Here, site: RayJobs, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(EVERYWHERE)
    words = (sys.executable, str(tmp_path / "script.py"))
    job = _job(tmp_path, "try-1", *words, nodes=2, environment={"WORD": "a b'c"})
    submitted = _submitted(job, site)
    assert _over(submitted) == State(name="done", code=0), submitted.log().decode(errors="replace")
    said = submitted.log()
    with_cpus = [node["node_id"] for node in here.nodes() if node["resources_total"].get("CPU")]
    for node in with_cpus:
        assert f"seen {node} snapshot a b'c\n".encode() in said
    assert len(with_cpus) == 2
    assert b"here True\n" in said
    assert said.endswith(b"no utf-8: \xff\n")
    assert submitted.log(len(said) - 3) == said[-3:]
    told = json.dumps(here.ask("/api/jobs/try-1"))
    for text in (told, said.decode(errors="replace"), *(path.read_text() for path in job.desk.glob("*.json"))):
        assert here.token not in text
    with pytest.raises(ValueError, match=r"has a job try-1 \(succeeded\), and takes a name once"):
        site.check(job)
    with pytest.raises(ValueError, match=r"did not take job try-1: .*already exists"):  # of two at the same moment
        site.submit(job)


def test_a_failed_job_tells_its_exit_code_and_last_words_and_its_driver_ran_where_it_should(
    here: Here, site: RayJobs, tmp_path: Path
) -> None:
    (side,) = (node["node_id"] for node in here.nodes() if node["labels"].get("place") == "side")
    there = RayJobs(address=site.address, token_file=site.token_file, driver={"place": "side"})
    command = ("sh", "-c", "echo out of luck; exit 7")
    submitted = _submitted(_job(tmp_path, "try-2", *command), there)
    assert _over(submitted) == State(name="failed", code=7, why="exit code 7: out of luck")
    assert here.ask("/api/jobs/try-2")["driver_node_id"] == side
    assert b"out of luck\n" in b"".join(submitted.follow())


def test_stop_ends_the_command_and_its_children(site: RayJobs, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    submitted = _submitted(_job(tmp_path, "try-3", sys.executable, str(tmp_path / "parent.py")), site)
    follower = submitted.follow(every=0.1)
    said = b""
    while b"pids" not in said:
        said += next(follower)
    pids = [int(word) for word in said.partition(b"pids")[2].split()]
    assert submitted.state().name == "running"
    assert submitted.stop()
    _until(lambda: not any(map(_lives, pids)))
    assert _over(submitted).name == "stopped"
    assert b"ended by itself" in submitted.log()
    assert not submitted.stop()
    site.stop(submitted.job, submitted.there)  # of one that is over, nothing happens


def test_a_job_that_the_head_does_not_know_is_lost(site: RayJobs, tmp_path: Path) -> None:
    job = _job(tmp_path, "never-there")
    state = site.state(job, "never-there")
    assert (state.name, "does not know it" in state.why) == ("lost", True)
    assert site.log(job, "never-there", 0) == b""
    site.stop(job, "never-there")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"nodes": 3}, "has 2 nodes with 1 CPUs, and the job asks for 3"),
        ({"cpus": 2}, "has 0 nodes with 2 CPUs, and the job asks for 1"),
        ({"gpus": 1}, "has 0 nodes with 1 CPUs and 1 GPUs"),
        ({"memory": 100_000}, "has 0 nodes with 1 CPUs and 100000 GB of memory"),
    ],
)
def test_more_than_there_is_is_refused_and_leaves_nothing(here, site, tmp_path: Path, fields: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        _submitted(_job(tmp_path, "large-1", **fields), site)
    assert "there are 1 with 0 CPUs, 0 GPUs; 2 with 1 CPUs, 0 GPUs" in str(refused.value)
    assert not (tmp_path / "jobs").exists()
    assert "large-1" not in json.dumps(here.ask("/api/jobs/"))


def test_labels_that_no_node_has_are_refused(site: RayJobs, tmp_path: Path) -> None:
    there = RayJobs(address=site.address, token_file=site.token_file, driver={"place": "nowhere"})
    with pytest.raises(ValueError, match=r"no node .* has these labels"):
        there.check(_job(tmp_path, "try-9"))


def test_a_wrong_or_missing_token_is_refused_and_not_told(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    job = _job(tmp_path, "try-9")
    with pytest.raises(ValueError, match="asks for a token, and there is none"):
        RayJobs(address=here.address).check(job)
    wrong = tmp_path / "wrong"
    wrong.write_text("0123456789" * 5)
    with pytest.raises(ValueError, match=f"does not take the token of {wrong}") as refused:
        RayJobs(address=here.address, token_file=wrong).check(job)
    assert wrong.read_text() not in str(refused.value)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(here.token_file))
    RayJobs(address=here.address).check(job)
    monkeypatch.setenv("RAY_AUTH_TOKEN", wrong.read_text())
    with pytest.raises(ValueError, match="does not take the token of RAY_AUTH_TOKEN:"):
        RayJobs(address=here.address).check(job)


@pytest.mark.parametrize(("text", "told"), [("a b", "holds no token"), ("", "holds no token"), (None, "No such file")])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, text: str | None, told: str) -> None:
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=told) as refused:
        RayJobs(address="http://127.0.0.1:9", token_file=file).check(_job(tmp_path, "try-1"))
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


class _Elsewhere(BaseHTTPRequestHandler):
    """What is no Ray of our version: by its first path, an older one, a page, a login."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        self.send_response(302 if kind == "login" else 200)
        if kind == "login":
            self.send_header("Location", "http://127.0.0.1:9/")
        self.end_headers()
        self.wfile.write(b'{"ray_version": "2.9.3"}' if kind == "older" else b"<html>")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """Address of a server that is no Ray of our version."""
    with HTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/older", "runs Ray 2.9.3, and this is 2.6"),
        ("/page", "is that a Ray dashboard"),
        ("/login", "sends us elsewhere"),
    ],
)
def test_what_is_no_ray_of_our_version_is_refused(elsewhere: str, tmp_path: Path, path: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RayJobs(address=elsewhere + path).check(_job(tmp_path, "try-1"))


def test_a_head_that_cannot_be_reached_is_one_line_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "_ANSWERS", 0.2)
    job = _job(tmp_path, "try-1")

    def refused(address: str) -> str:
        with pytest.raises(ValueError) as error:
            RayJobs(address=address).check(job)
        assert "\n" not in str(error.value)
        assert address in str(error.value)
        return str(error.value)

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as hangs:
        port = hangs.getsockname()[1]
        assert "does not answer in 0 s" in refused(f"http://127.0.0.1:{port}")
        assert "does not answer in 0 s" in refused(f"https://127.0.0.1:{port}")
    assert "cannot be reached (Connection refused)" in refused(f"http://127.0.0.1:{port}")
    assert "cannot be reached" in refused("http://no-such-host.invalid:8265")


def test_another_protocol_is_told(here: Here, tmp_path: Path) -> None:
    job = _job(tmp_path, "try-1")
    with pytest.raises(ValueError, match="speaks no HTTP: give the dashboard's address"):
        RayJobs(address=f"http://{here.gcs}", token_file=here.token_file).check(job)
    with pytest.raises(ValueError, match=r"speaks no TLS that we understand .*is it an http:// address"):
        RayJobs(address=here.address.replace("http:", "https:"), token_file=here.token_file).check(job)


def test_a_site_file_says_it_and_its_address_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big.toml").write_text(
        'kind = "ray"\naddress = "https://head:8265/"\ntoken_file = "token"\nverify = "ca.pem"\n'
        '[driver]\nplace = "side"\n'
    )
    site = sites.site(str(tmp_path / "big.toml"))
    assert site == RayJobs(
        address="https://head:8265/",
        token_file=tmp_path / "token",
        verify=tmp_path / "ca.pem",
        driver={"place": "side"},
    )
    assert sites.of(json.loads(json.dumps(sites.told(site)))) == site
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://one:8265")
    kept = sites.told(sites.of({"kind": "ray"}))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:8265")
    assert sites.of(kept) == RayJobs(address="http://one:8265")


def _certificate(file: Path) -> None:
    """A key and a certificate of 127.0.0.1 that nobody but itself vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "head")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = made.add_extension(address, critical=False).sign(key, hashes.SHA256())
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(key.private_bytes(*plain) + signed.public_bytes(serialization.Encoding.PEM))


def test_a_certificate_must_be_vouched_for_unless_the_site_says_otherwise(tmp_path: Path) -> None:
    file, job = tmp_path / "head.pem", _job(tmp_path, "try-1")
    _certificate(file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with HTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"https://127.0.0.1:{server.server_port}/older"
        with pytest.raises(ValueError, match=r"certificate that we do not trust \(self-signed certificate\): name"):
            RayJobs(address=address).check(job)
        for verify in (False, file):
            with pytest.raises(ValueError, match=r"runs Ray 2\.9\.3"):
                RayJobs(address=address, verify=verify).check(job)
        server.shutdown()
    with pytest.raises(ValueError, match=r"nothing\.pem': No such file"):
        RayJobs(address=address, verify=tmp_path / "nothing.pem").check(job)
    (tmp_path / "no.pem").write_text("no certificate")
    with pytest.raises(ValueError, match=r"no\.pem': .*; name certificates in PEM form"):
        RayJobs(address=address, verify=tmp_path / "no.pem").check(job)


@pytest.mark.parametrize(
    "address",
    [
        "head:8265",
        "ray://head:1",
        "http://",
        "http://me:secret@head:1",
        "http://head:99999",
        "http://head:1/?a",
        "http://a b",
    ],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="address") as refused:
        RayJobs(address=address)
    assert "secret" not in str(refused.value)


def test_a_command_reaches_the_shell_as_it_is(tmp_path: Path) -> None:
    words = ("printf", "%s.", "a b", "$HOME", "`id`", "'; rm -rf x", '"')
    asked = json.loads(RayJobs().render(_job(tmp_path, "try-1", *words))["ray-job.json"])
    said = subprocess.run(asked["entrypoint"], shell=True, capture_output=True, text=True, check=True)
    assert said.stdout == "a b.$HOME.`id`.'; rm -rf x.\"."


def test_variables_are_those_of_the_job_before_those_of_the_site_and_none_of_who_starts_a_cluster(
    tmp_path: Path,
) -> None:
    site = RayJobs(environment={"A": "site", "B": "site"})
    job = _job(tmp_path, "try-1", nodes=2, gpus=8, environment={"A": "job"})
    told = json.loads(site.render(job)["ray-job.json"])["runtime_env"]["env_vars"]
    assert (told["A"], told["B"]) == ("job", "site")
    assert "NCCL_SOCKET_IFNAME" in told
    assert not [name for name in told if name.startswith("RAY_") and name != "RAY_JOB_STOP_WAIT_TIME_S"]


@pytest.mark.parametrize(
    ("variables", "told"),
    [({"A": "$HOME/x"}, "write it out"), ({"A": "${B}"}, "write it out"), ({"HF_TOKEN": "x"}, "looks like a secret")],
)
def test_variables_that_would_change_or_be_seen_are_refused(tmp_path: Path, variables: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RayJobs(environment=variables).render(_job(tmp_path, "try-1"))
    with pytest.raises(ValueError, match=told):
        RayJobs().render(_job(tmp_path, "try-1", environment=variables))


@pytest.mark.parametrize(("trap", "code"), [("trap 'exit 75' USR1", LEFT), ("true", 138), ("trap '' USR1", 137)])
def test_a_command_whose_time_is_over_is_told_to_leave_and_then_killed(tmp_path: Path, trap: str, code: int) -> None:
    job = _job(tmp_path, "try-1", "sh", "-c", f"{trap}; while true; do sleep 0.01; done", minutes=1)
    words = shlex.split(json.loads(RayJobs().render(job)["ray-job.json"])["entrypoint"])
    assert "30" in words
    assert "--kill-after=30" in words
    quick = [{"30": "0.1", "--kill-after=30": "--kill-after=0.1"}.get(word, word) for word in words]
    done = subprocess.run(shlex.join(quick), shell=True, check=False)
    assert done.returncode in (code, code - 128 if code > 128 else code, 128 + code)
