"""Ray's job API: a command handed to the head of a Ray cluster that runs already.

Spoken as HTTP (Ray 2.60, dashboard/modules/job/job_head.py), without ray.job_submission.JobSubmissionClient: that waits
for ever where a head accepts and says nothing, goes where RAY_ADDRESS points instead of where a site does, and knows of
no token but its process's.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.metadata
import json
import os
import re
import shlex
import signal
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, urlencode, urlsplit

from clusters import network, snapshot
from clusters.job import LEFT, Job, Site, State

_ANSWERS = 10.0  # seconds a head has for an answer that it only looks up
_WORKS = 60.0  # seconds it has to take a package or a job, or to send a log
_ENDS = 30  # seconds that what is stopped has to end by itself; Ray's own 3 are too few to end workers
_LEAVES = 180  # seconds before its end at which a command with a time limit is told to leave, as under Slurm
_BEGUN = "Running entrypoint for job "  # a line of Ray's in a log, behind the words of a command that was quick
_ADDRESS = re.compile(r"[\w./:~\[\]-]+", re.ASCII)
_REPLACED = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)  # what Ray replaces in variables, by os.path.expandvars


def _default_address() -> str:
    return os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"


@dataclass(frozen=True, kw_only=True)
class RayJobs(Site):
    """A Ray cluster that runs already, by the address of its dashboard.

    The command runs on the head and takes none of its CPUs: what it starts takes its own. It runs in the snapshot,
    which Ray unpacks where it likes: job.folder means nothing there, other paths in a command are absolute, and seen.

    address: http(s)://HOST:PORT; $RAY_API_SERVER_ADDRESS if it is not said. A token goes over http in the clear: have
    an ssh tunnel, or https. token_file: holds the cluster's token; else $RAY_AUTH_TOKEN, $RAY_AUTH_TOKEN_PATH and
    ~/.ray/auth_token are looked at, as Ray does. verify: false trusts any certificate; a path names the authorities
    to trust. driver: labels of the node that the command runs on, instead of the head. python: the interpreter there.
    """

    kind: ClassVar[str] = "ray"
    shared: ClassVar[bool] = False

    address: str = field(default_factory=_default_address)
    token_file: Path | None = None
    verify: bool | Path = True
    driver: Mapping[str, str] = field(default_factory=dict)
    python: str = "python"

    def __post_init__(self) -> None:
        if "@" in self.address:
            raise ValueError("address holds a name or a password, which others can read: put a token in token_file")
        try:
            parts = urlsplit(self.address)
            whole = bool(parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
        except ValueError:  # a port that is none
            whole = False
        if not whole or not _ADDRESS.fullmatch(self.address):
            raise ValueError(f"address = {self.address!r} must be that of a Ray dashboard, as in http://HOST:8265")

    def joins(self, job: Job) -> bool:
        """Always: Ray tells a job where its cluster is."""
        return True

    def render(self, job: Job) -> dict[str, str]:
        """What is posted to the head, but for working_dir: that is uploaded, and named by what is in it.

        Raises:
            ValueError: a variable that Ray would not pass on as it is written.
        """
        said = {**self.environment, **job.environment}
        ours = {name: value for name, value in network.environment(job, self).items() if name not in network.HEALTH}
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(_ENDS), **ours, **said}  # HEALTH: this cluster was begun by others
        for name, value in variables.items():
            if _REPLACED.search(value):
                raise ValueError(
                    f"{name} = {value!r}: Ray would replace what follows the $ by a variable of the node: write it out"
                )
        asked = {
            "submission_id": job.name,
            "entrypoint": shlex.join(_ended_in_time(job)),
            "runtime_env": {"working_dir": str(job.code), "env_vars": dict(sorted(variables.items()))},
            "metadata": {"desk": str(job.desk)},
        }
        if self.driver:
            asked["entrypoint_label_selector"] = dict(self.driver)
        return {"ray-job.json": json.dumps(asked, indent=1, ensure_ascii=False) + "\n"}

    def check(self, job: Job) -> None:
        """Ask the head for its version, its nodes and whether it knows a job of this name.

        Raises:
            ValueError: it does not answer, does not let us in, runs another Ray, has too few nodes for the job, or a
                job of the name.
        """
        theirs, ours = self._read("/api/version", "ray_version")["ray_version"], importlib.metadata.version("ray")
        if theirs.split(".")[:2] != ours.split(".")[:2]:
            raise ValueError(
                f"{self.address} runs Ray {theirs}, and this is {ours}: start it from our constraints.txt, or install "
                "its version here"
            )
        query = urlencode({"detail": 1, "limit": 10000})
        told = self._read(f"/api/v0/nodes?{query}", "data")["data"]
        alive = [node for node in told["result"]["result"] if node["state"] == "ALIVE"]
        fitting = [node for node in alive if _holds(node["resources_total"], job)]
        if len(fitting) < job.nodes:
            raise ValueError(
                f"{self.address} has {len(fitting)} nodes with {_need(job)}, and the job asks for {job.nodes}: ask for "
                f"less, or add nodes (there are {_counted(alive)})"
            )
        if self.driver and not any(self.driver.items() <= node["labels"].items() for node in alive):
            raise ValueError(f"driver = {dict(self.driver)}: no node at {self.address} has these labels")
        if (known := self._job(job.name)) is not None:
            raise ValueError(
                f"{self.address} has a job {job.name} ({known['status'].lower()}), and takes a name once: submit under "
                "another --root"
            )

    def submit(self, job: Job) -> str:
        """Upload the code, then post the job. Ray refuses a name that it has seen."""
        asked = json.loads(self.render(job)["ray-job.json"])
        asked["runtime_env"]["working_dir"] = self._uploaded(snapshot.archive(job.code))
        try:
            status, said = self._answer("POST", "/api/jobs/", json.dumps(asked).encode(), patience=_WORKS)
        except _Silent as silent:  # it may have taken the job all the same
            known = self._job(job.name)
            if known is not None and known["metadata"].get("desk") == str(job.desk):
                return job.name
            raise silent
        if status != 200:
            raise ValueError(f"{self.address} did not take job {job.name}: {_last_line(said)}")
        return str(json.loads(said)["submission_id"])

    def state(self, job: Job, there: str) -> State:
        """As the head tells it; lost where the head does not know the job."""
        told = self._job(there)
        if told is None:
            return State(name="lost", why=f"{self.address} does not know it: its head began anew, and had kept no jobs")
        said = str(told["message"] or "")
        match told["status"]:
            case "PENDING":
                return State(name="waiting", why=" ".join(said.split()))
            case "RUNNING":
                return State(name="running")
            case "SUCCEEDED":
                return State(name="done", code=0)
            case "STOPPED":
                return State(name="stopped")
        code = told["driver_exit_code"]
        if code is None:
            return State(name="failed", why=said.partition("\n")[0])
        code = 128 - code if code < 0 else code  # by a signal, as a shell tells it
        if job.minutes and code in (LEFT, 128 + signal.SIGUSR1):
            return State(name="failed", code=code, why=f"its {job.minutes} minutes were over; submit it again to go on")
        words = [line for line in said.splitlines() if not line.startswith(_BEGUN)]
        return State(name="failed", code=code, why=f"exit code {code}: {_last_line(chr(10).join(words).encode())}")

    def log(self, job: Job, there: str, seen: int) -> bytes:
        """What it has said after its first `seen` bytes. Ray sends a log from its beginning, each time."""
        told = self._job(there)
        if told is None or told["driver_node_id"] is None:
            return b""
        query = urlencode(
            {
                "node_id": told["driver_node_id"],
                "filename": f"job-driver-{there}.log",
                "lines": -1,
                "timeout": int(_WORKS),
            }
        )
        # not /api/jobs/NAME/logs: that fails, and for good, once a log holds a byte that is no UTF-8
        status, said = self._answer("GET", f"/api/v0/logs/file?{query}", patience=_WORKS)
        if status != 200:
            raise ValueError(f"{self.address} does not send the log of {there}: {_last_line(said)}")
        return said[seen:]

    def stop(self, job: Job, there: str) -> None:
        """SIGTERM to the command and all it started, SIGKILL where that does not do; Ray then ends its workers."""
        status, said = self._answer("POST", f"/api/jobs/{quote(there, safe='')}/stop", b"", patience=_WORKS)
        if status not in (200, 404):
            raise ValueError(f"{self.address} did not stop {there}: {_last_line(said)}")

    def _uploaded(self, package: bytes) -> str:
        """The URI of a package that the head has now. That it is asked for keeps it there until a job uses it."""
        name = f"_ray_pkg_{hashlib.sha1(package).hexdigest()}.zip"  # as Ray names a zip
        status, said = self._answer("GET", f"/api/packages/gcs/{name}", patience=_WORKS)
        if status == 404:
            status, said = self._answer("PUT", f"/api/packages/gcs/{name}", package, patience=_WORKS)
        if status != 200:
            raise ValueError(f"{self.address} did not take the code: {_last_line(said)}")
        return f"gcs://{name}"

    def _job(self, there: str) -> dict[str, Any] | None:
        """What the head tells of a job; None if it does not know it."""
        status, said = self._answer("GET", f"/api/jobs/{quote(there, safe='')}", patience=_ANSWERS)
        return None if status == 404 else self._values(status, said, "status")

    def _read(self, path: str, key: str) -> dict[str, Any]:
        return self._values(*self._answer("GET", path, patience=_ANSWERS), key)

    def _values(self, status: int, said: bytes, key: str) -> dict[str, Any]:
        """An answer as JSON values, the key being among them."""
        try:
            values = json.loads(said)
        except ValueError:
            values = None
        if status != 200 or not isinstance(values, dict) or key not in values:
            raise ValueError(
                f"{self.address} tells no {key} (status {status}): is that a Ray dashboard, port 8265 of a head?"
            )
        return values

    def _answer(self, method: str, path: str, body: bytes | None = None, *, patience: float) -> tuple[int, bytes]:
        """Status and body of an answer of the head.

        Raises:
            _Silent: there was none. ValueError: it does not let us in.
        """
        token, origin = self._token()
        told = {"Authorization": f"Bearer {token}"} if token else {}
        kind = {} if body is None else {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address.rstrip("/") + path, body, {**told, **kind}, method=method)
        to = urlsplit(self.address)
        near = to.hostname in ("127.0.0.1", "localhost", "::1")  # no proxy finds our loopback
        handlers = [_AsItIs(), urllib.request.ProxyHandler({} if near else None)]
        if to.scheme == "https":
            handlers.append(urllib.request.HTTPSHandler(context=self._trust()))
        opener = urllib.request.build_opener(*handlers)
        try:
            with opener.open(request, timeout=patience) as answer:
                status, said = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise _Silent(f"{self.address} {_told(error, patience)}") from None
        if status in (401, 403) and token:
            raise ValueError(f"{self.address} does not take the token of {origin}: ask who started it for its own")
        if status in (401, 403):
            raise ValueError(
                f"{self.address} asks for a token, and there is none: name the file that holds it, as token_file in "
                "the site or as RAY_AUTH_TOKEN_PATH"
            )
        if 300 <= status < 400:
            raise ValueError(f"{self.address} sends us elsewhere (status {status}): give the dashboard's own address")
        return status, said

    def _token(self) -> tuple[str, str]:
        """The token, and where it is from; "" for both if there is none."""
        said = os.environ.get("RAY_AUTH_TOKEN", "").strip()
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        usual = Path("~/.ray/auth_token").expanduser()
        if self.token_file is None and os.environ.get("RAY_AUTH_MODE") == "disabled":
            return "", ""
        if self.token_file is None and said:
            token, origin = said, "RAY_AUTH_TOKEN"
        else:
            path = self.token_file or (Path(named) if named else usual)
            if path == usual and not path.is_file():
                return "", ""
            try:
                token, origin = path.read_text().strip(), str(path)
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "no text"
                raise ValueError(f"token file {path}: {reason}; name one that holds the cluster's token") from None
        if not token.isascii() or not token.isprintable() or not token or " " in token:
            raise ValueError(f"{origin} holds no token: that is one line of letters without spaces")
        return token, origin

    def _trust(self) -> ssl.SSLContext:
        trust = ssl.create_default_context()
        if isinstance(self.verify, Path):
            whole = self.verify.is_dir()
            try:
                trust.load_verify_locations(None if whole else self.verify, self.verify if whole else None)
            except OSError as error:  # ssl's own errors are such
                said = error.reason if isinstance(error, ssl.SSLError) else error.strerror
                raise ValueError(f"verify = {str(self.verify)!r}: {said}; name certificates in PEM form") from None
        elif not self.verify:
            trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        return trust


class _Silent(ValueError):
    """The head gave no answer."""


class _AsItIs(urllib.request.HTTPErrorProcessor):
    """Every answer is one, whatever its status. Nobody is followed elsewhere: a token is for one address."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


def _told(error: Exception, patience: float) -> str:
    """Why there is no answer, and what to do."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"has a certificate that we do not trust ({reason.verify_message}): name its authority as verify"
    if isinstance(reason, ssl.SSLError):
        return f"speaks no TLS that we understand ({reason.reason}): is it an http:// address?"
    if isinstance(reason, TimeoutError):
        return f"does not answer in {patience:.0f} s: is its head alive, and does a firewall let us through?"
    if isinstance(reason, http.client.HTTPException | ConnectionResetError):
        return "speaks no HTTP: give the dashboard's address, port 8265 of a head, https:// if it has a certificate"
    said = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
    return f"cannot be reached ({said}): start the cluster, open a tunnel to its dashboard, or give another address"


def _ended_in_time(job: Job) -> Sequence[str]:
    """The command, which coreutils' timeout tells to leave (SIGUSR1) before its time is over, and kills when it is."""
    if not job.minutes:
        return job.command
    leaves = min(_LEAVES, 30 * job.minutes)
    told = (f"--kill-after={leaves}", "--signal=USR1", "--preserve-status", "--foreground")
    return ("timeout", *told, str(60 * job.minutes - leaves), *job.command)


def _holds(there: Mapping[str, float], job: Job) -> bool:
    """Whether a node has what the job asks of each."""
    memory = there.get("memory", 0) + there.get("object_store_memory", 0)
    return there.get("CPU", 0) >= max(job.cpus, 1) and there.get("GPU", 0) >= job.gpus and memory >= job.memory * 10**9


def _need(job: Job) -> str:
    asked = [f"{max(job.cpus, 1)} CPUs", *([f"{job.gpus} GPUs"] if job.gpus else [])]
    return " and ".join([*asked, *([f"{job.memory} GB of memory"] if job.memory else [])])


def _counted(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Nodes in words, alike ones together."""
    kinds: dict[str, int] = {}
    for node in nodes:
        there = node["resources_total"]
        kind = f"{there.get('CPU', 0):.0f} CPUs, {there.get('GPU', 0):.0f} GPUs"
        kinds[kind] = kinds.get(kind, 0) + 1
    return "; ".join(f"{count} with {kind}" for kind, count in sorted(kinds.items())) or "none alive"


def _last_line(said: bytes) -> str:
    """Of a log or of a traceback: what matters, 300 letters at most."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if re.search(r"\w", line)]
    return lines[-1][:300] if lines else "without a word"
