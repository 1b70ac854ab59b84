"""A real Ray cluster on this machine: a head without a CPU, with its dashboard on loopback, and nodes of one CPU each.

It asks for a token of its own, and its ports and folder are its own: other clusters of this machine never meet it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 90.0  # seconds in which anything must happen, on a loaded machine

_SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True, kw_only=True)
class Here:
    """A cluster that runs. address: of its dashboard. gcs: of its head, for ray.init. token_file: of mode 0600."""

    address: str
    gcs: str
    token_file: Path

    @property
    def token(self) -> str:
        """What it asks for."""
        return self.token_file.read_text()

    def ask(self, path: str) -> Any:
        """What its dashboard answers, as JSON values."""
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def nodes(self) -> list[dict[str, Any]]:
        """Its nodes that are alive."""
        listed = self.ask("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        return [node for node in listed if node["state"] == "ALIVE"]


@contextmanager
def ray_cluster(nodes: int, *, labels: tuple[str, ...] = ()) -> Iterator[Here]:
    """A head and as many nodes, for the block. labels: "name=value", of the last node."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as made:  # short: sockets of Ray lie deep in it
        folder = Path(made)
        token_file = folder / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_hex(32))
        gcs, dashboard, client = _ports(3)
        here = Here(address=f"http://127.0.0.1:{dashboard}", gcs=f"127.0.0.1:{gcs}", token_file=token_file)
        head = ["--head", f"--port={gcs}", "--num-cpus=0"]
        head += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        started: list[subprocess.Popen[bytes]] = []
        try:
            started.append(_start(folder / "head", token_file, head))
            _until(here, 1, started)
            for number in range(nodes):
                told = [f"--labels={','.join(labels)}"] if labels and number == nodes - 1 else []
                started.append(
                    _start(folder / f"{number}", token_file, [f"--address={here.gcs}", "--num-cpus=1", *told])
                )
            _until(here, 1 + nodes, started)
            yield here
        finally:
            _end(started)


def _ports(count: int) -> list[int]:
    """Free ones of this machine."""
    with contextlib.ExitStack() as held:
        taken = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in taken:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in taken]


def _start(folder: Path, token_file: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """One node, with a folder of its own: each unpacks the code of jobs anew, and would under the feet of others."""
    (agent,) = _ports(1)
    common = [
        "--block",
        "--node-ip-address=127.0.0.1",
        "--num-gpus=0",
        "--include-log-monitor=false",
        "--object-store-memory=80000000",
    ]
    common += [
        f"--temp-dir={folder}",
        f"--dashboard-agent-listen-port={agent}",
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]
    told = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file), **_SETTINGS}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with token_file.with_name("started.log").open("ab") as log:
        ray = Path(sys.executable).with_name("ray")
        return subprocess.Popen([str(ray), "start", *common, *words], env={**kept, **told}, stdout=log, stderr=log)


def _until(here: Here, count: int, started: list[subprocess.Popen[bytes]]) -> None:
    """Wait for nodes, and for the head's agent, which takes jobs."""
    deadline = time.monotonic() + LIMIT
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if len(here.nodes()) == count:
                return
        log = here.token_file.with_name("started.log").read_text()
        assert time.monotonic() < deadline and all(each.poll() is None for each in started), log
        time.sleep(0.1)


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    """End what was started and all that it began, by id: `ray stop` would end other clusters of this machine, too."""
    for pid in [pid for each in started for pid in (each.pid, *_below(each.pid))]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for each in started:
        each.wait()


def _below(pid: int) -> list[int]:
    """Processes that a process began, and those that they did."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        below = [int(each) for task in tasks for each in (task / "children").read_text().split()]
    except OSError:
        return []  # it has just ended
    return below + [deeper for each in below for deeper in _below(each)]
