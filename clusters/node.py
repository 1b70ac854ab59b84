"""What each node of a job runs: its part of a Ray cluster of this job alone and, on the first node, the command.

    python -m clusters.node DESK [--rank R]          R: $SLURM_PROCID, 0 the first

DESK/job.json holds the job; the variables that its kind exports are in our environment. What the nodes
tell each other stands in a folder that they all see:

    DESK/attempts/ID/      ID: Slurm's job and restart, or $INTERLACE_ATTEMPT
      here-R.json          node R has come, and its addresses
      token                without which nobody talks to this Ray; only its owner reads it
      head.json            where the Ray is that the others join
      gone-R.json          node R has given up, and why
      ray-R.log, logs-R/   what `ray start` said; Ray's own logs where the job did not end well
    DESK/ended.json        the exit code, and of which attempt: the other nodes end when it is theirs

`ray symmetric-run` does not do: it ends by `ray stop`, which ends every Ray of the user on the node, refuses to start
beside another one, exits 0 where a node did not join, and keeps nodes for a minute after the end.

Environment: INTERLACE_GANG_PATIENCE, seconds until all nodes must have come, 300. INTERLACE_NODES_HERE, how many nodes
of the job are this one machine: they meet on its loopback and share its processors and GPUs. RAY_TMPDIR, where Ray
keeps its files on each node, /tmp: a short path.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from clusters import network
from clusters.children import Children
from clusters.job import LEFT, LOST, Job, Site

GRACE = 20.0  # seconds that a command has after SIGTERM: Slurm ends all of us after 30 (KillWait)
ENDS = 8.0  # seconds that a node's Ray has after SIGTERM; it takes 3
WRONG = 1  # exit code where another try would be of no use

_NEEDED = ("ray", "torch", "transformers", "deepspeed", "webdataset", "pyarrow", "PIL")
_RESTARTS = 3  # of a node's Ray that ends by itself
_CUT_OFF = 60.0  # seconds without the head after which a node gives up
_LOOKS = 0.2  # seconds between looks into the shared folder while nodes come together
_LARGEST_LOG = 10_000_000  # bytes of one of Ray's own logs that is kept
_OURS = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "INTERLACE_ATTEMPT", "INTERLACE_NODES_HERE")  # not for what we start
_STARTED = "ray_current_cluster"  # file that `ray start` writes last
_NODES = """
import json, os, sys, time, ray
ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
alive = None
while alive is None or len(alive) < int(sys.argv[1]):
    time.sleep(0.2 if alive else 0)
    alive = sorted({node["NodeName"] for node in ray.nodes() if node["Alive"]})
    with open(f"{sys.argv[2]}.new", "w") as stream:
        json.dump(alive, stream)
    os.replace(stream.name, sys.argv[2])
"""
_Found = TypeVar("_Found")


class Over(Exception):
    """This node has nothing more to do. code: to exit with."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Node:
    """One of a gang. attempt: its id. here: how many nodes of the job are this machine, 0 where it is only this one."""

    job: Job
    rank: int
    attempt: str
    here: int
    patience: float
    children: Children
    since: float = field(default_factory=time.monotonic)

    @property
    def shared(self) -> Path:
        """The folder of this attempt."""
        return self.job.desk / "attempts" / self.attempt

    def run(self) -> int:
        """Be this node until the job ends; the exit code of it."""
        try:
            self.shared.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._first() if self.rank == 0 else self._other()
        except Over as over:
            if self.rank and over.code in (LOST, WRONG):
                _write(self.shared / f"gone-{self.rank}.json", {"code": over.code, "why": f"{self}: {over}"})
            raise

    def _first(self) -> int:
        self._token()
        local = Path(os.environ.get("RAY_TMPDIR", "/tmp"))
        code, temp = LOST, local / f"interlace-ray-{secrets.token_hex(4)}"  # a socket's path holds 107 bytes
        try:
            code = self._lead(temp)
        except Over as over:
            code = over.code
            raise
        finally:
            end(self.job.desk, code, self.attempt)
            self.children.end_all(ENDS)
            self._tidy(temp, code)
        return code

    def _lead(self, temp: Path) -> int:
        _equipped()
        self._say_here()
        others = range(1, self.job.nodes)
        self._until(lambda: all(f"here-{rank}.json" in self._names() for rank in others), self.patience, self._late)
        address = "127.0.0.1" if self.here else self._address()
        ray = self._head(address, temp)
        head = json.loads((self.shared / "head.json").read_bytes())["address"]
        environment = {**self._environment(), "RAY_ADDRESS": head}
        known = self.shared / "nodes.json"
        with known.with_suffix(".log").open("wb") as output:
            asking = self.children.begin(
                [sys.executable, "-c", _NODES, str(self.job.nodes), str(known)],
                folder=self.job.folder,
                environment=environment,
                output=output,
            )

            def all_there() -> bool:
                self._stands(ray)
                return asking.poll() is not None

            self._until(all_there, self.patience, self._absent)
        if asking.returncode:
            raise Over(LOST, f"{head} does not say which nodes it has: {_last_line(known.with_suffix('.log'))}")
        print(f"a Ray of this job's own at {head}, nodes: {self.job.nodes}", flush=True)
        gone: list[Over] = []

        def lost() -> int | None:
            try:
                self._stands(ray)
            except Over as over:
                print(f"{self} {over}; the command is ended", file=sys.stderr, flush=True)
                gone.append(over)
                return signal.SIGTERM
            return None

        code = command(self.job, environment, self.children, lost)
        if gone:
            raise Over(gone[0].code, "has ended the command")
        return code

    def _stands(self, ray: subprocess.Popen[bytes] | None) -> None:
        """Raises Over where a node has given up, or our Ray has ended by itself."""
        for name in self._names():
            if name.startswith("gone-"):
                told = json.loads((self.shared / name).read_bytes())
                raise Over(told["code"], f"is left by {told['why']}")
        if ray is not None and ray.poll() is not None:
            raise Over(LOST, f"has lost its Ray, which ended by itself: {_last_line(self._log)}")

    def _head(self, address: str, temp: Path) -> subprocess.Popen[bytes]:
        """Start the Ray that the others join, and tell them."""
        temp.mkdir(mode=0o700)
        for _ in range(_RESTARTS):  # a port that was free may be taken by the time Ray binds it
            port, client = _free_ports(address, 2)
            ray = self._ray(
                "--head",
                f"--node-ip-address={address}",
                f"--port={port}",
                f"--ray-client-server-port={client}",  # 10001, else: two jobs on a machine would collide
                f"--temp-dir={temp}",
                "--include-dashboard=false",
            )
            self._until(lambda ray=ray: ray.poll() is not None or (temp / _STARTED).exists(), self.patience, self._mute)
            if ray.poll() is None:
                told = {"address": f"{address}:{port}", "temp": str(temp), "host": socket.gethostname()}
                _write(self.shared / "head.json", told)
                return ray
        raise Over(LOST, f"Ray does not start: {_last_line(self._log)}")

    def _other(self) -> int:
        _equipped()
        self._say_here()
        known = self.shared / "head.json"
        self._until(
            lambda: known.name in self._names() or self._over(),
            2 * self.patience,  # the first waits for the last of us, and then for its Ray
            lambda: f"the first node has not come within {2 * self.patience:g} s, or {self.shared} is not shared",
        )
        if self._over():
            return 0
        head = json.loads(known.read_bytes())
        temp = Path(head["temp"])
        temp.mkdir(mode=0o700, exist_ok=True)  # ranks of one machine share it
        try:
            self._follow(head["address"], head["host"])
        finally:
            self.children.end_all(ENDS)
            if not self.here:
                self._tidy(temp, json.loads((self.job.desk / "ended.json").read_bytes())["code"] if self._over() else 1)
        return 0

    def _follow(self, address: str, host: str) -> None:
        """Be a node of the Ray at an address until the job is over; start our Ray again where it ends by itself."""
        self._reaches(address, host)
        print(f"{self} joins the Ray of {host} at {address}", flush=True)
        place = ["--node-ip-address=127.0.0.1"] if self.here else []  # else Ray takes the one on the way to the head
        for again in range(_RESTARTS + 1):
            ray = self._ray(f"--address={address}", *place)
            while ray.poll() is None:
                if self._over() or self.children.heard(1.0) == signal.SIGTERM:
                    return
            self.children.end_all(1.0)  # workers that outlived it may hold a GPU
            if self._reaches(address, host):
                return
            if again < _RESTARTS:
                print(f"{self}: its Ray ended by itself and is started again", file=sys.stderr, flush=True)
        raise Over(LOST, f"its Ray ended by itself {_RESTARTS + 1} times: {_last_line(self._log)}")

    def _reaches(self, address: str, host: str) -> bool:
        """Whether the job is over; comes back once that is so, or the head answers. Raises Over where neither is."""
        until = time.monotonic() + _CUT_OFF
        while not (over := self._over()) and not _answers(address):
            if time.monotonic() > until:
                raise Over(
                    LOST,
                    f"has not reached the Ray of {host} at {address} for {_CUT_OFF:g} s: is it up, and "
                    "is there a firewall between?",
                )
            self.children.heard(_LOOKS)
        return over

    def _ray(self, *place: str) -> subprocess.Popen[bytes]:
        """`ray start` as a child that ends with us."""
        job = self.job
        there = len(os.sched_getaffinity(0))
        given = int(os.environ.get("SLURM_CPUS_ON_NODE", there)) if not self.here else there // self.here
        sizes = [f"--num-cpus={job.cpus or max(1, min(there, given))}", f"--num-gpus={job.gpus}"]
        if job.memory or self.here:
            memory = job.memory * 10**9 or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // self.here
            store = min(memory * 3 // 10, shutil.disk_usage("/dev/shm").total * 9 // 10 // max(1, self.here))
            sizes += [f"--memory={memory - store}", f"--object-store-memory={store}"]  # shares as Ray has them
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", *place, *sizes, "--block"),
            f"--node-name={self._name(self.rank)}",
            *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
            "--disable-usage-stats",
        ]
        with self._log.open("ab") as output:
            return self.children.begin(
                command, folder=job.folder, environment=self._environment(), output=output, deaf=True
            )

    def _environment(self) -> dict[str, str]:
        """For all that we start: the job's, and how to talk to its Ray."""
        told = {
            **outside(self.job),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.shared / "token"),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # `ray start` would wait 30 s for requests of others
        }
        if self.here and self.job.gpus:
            gpus = gpus_here()[self.rank * self.job.gpus :][: self.job.gpus]
            told["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return told

    def _token(self) -> None:
        try:
            file = os.open(self.shared / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise Over(WRONG, f"{self.shared} is of an earlier attempt: INTERLACE_ATTEMPT must differ") from None
        with os.fdopen(file, "w") as stream:
            stream.write(secrets.token_hex(32))

    def _say_here(self) -> None:
        told = {"host": socket.gethostname(), "addresses": [] if self.here else addresses()}
        _write(self.shared / f"here-{self.rank}.json", told)

    def _address(self) -> str:
        """An address of ours on the way to another node: a machine has several, of which some are seen by nobody."""
        ours = addresses()
        theirs = json.loads((self.shared / "here-1.json").read_bytes())
        for address in theirs["addresses"]:
            if address not in ours and (way := _way_to(address)) in ours:
                return str(way)
        there = f"{theirs['host']} ({', '.join(theirs['addresses'])})"
        raise Over(WRONG, f"no network leads from here ({', '.join(ours)}) to {there}: ask who runs the nodes")

    def _until(self, done: Callable[[], _Found], patience: float, why: Callable[[], str]) -> _Found:
        """What `done` finds. Raises Over once patience is at its end, a signal comes, or a node gives up."""
        told = None
        while not (found := done()):
            if self.rank == 0:
                self._stands(None)
            if time.monotonic() > self.since + patience:
                raise Over(LOST, why())
            if told:
                code = LEFT if told == signal.SIGUSR1 else 128 + told
                raise Over(code, f"{signal.Signals(told).name} came before all nodes were there")
            told = self.children.heard(_LOOKS)
        return found

    def _names(self) -> set[str]:
        """Files of this attempt. Listing it lets NFS look again; asking for one that was not there does not."""
        return {path.name for path in self.shared.iterdir()}

    def _over(self) -> bool:
        """Whether this attempt has ended."""
        path = self.job.desk / "ended.json"
        return path in self.job.desk.iterdir() and json.loads(path.read_bytes())["attempt"] == self.attempt

    def _late(self) -> str:
        names = self._names()
        late = [rank for rank in range(self.job.nodes) if f"here-{rank}.json" not in names]
        return self._missing(late, f"or {self.shared} is on a disk that is not shared")

    def _absent(self) -> str:
        known = self.shared / "nodes.json"
        alive = json.loads(known.read_bytes()) if known.exists() else []
        late = [rank for rank in range(self.job.nodes) if self._name(rank) not in alive]
        return self._missing(late, f"their Ray did not join: {self.shared}/ray-R.log says why")

    def _missing(self, ranks: Sequence[int], cure: str) -> str:
        names = ", ".join(f"{rank} ({self._host(rank)})" for rank in ranks)
        return f"of {self.job.nodes} nodes, within {self.patience:g} s, these have not come: {names}; {cure}"

    def _mute(self) -> str:
        return f"Ray does not start within {self.patience:g} s: {_last_line(self._log)}"

    def _host(self, rank: int) -> str:
        """The name of a node: as it told us, else as Slurm has it."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.shared / f"here-{rank}.json").read_bytes())["host"]
        told, ask = os.environ.get("SLURM_STEP_NODELIST", ""), shutil.which("scontrol")
        if told and ask:
            listed = subprocess.run([ask, "show", "hostnames", told], capture_output=True, text=True, check=False)
            hosts = listed.stdout.split()
            return hosts[rank] if rank < len(hosts) else told
        return f"one of {told}" if told else "unknown"

    def _name(self, rank: int) -> str:
        """Of a node in its Ray."""
        return f"rank-{rank}"

    @property
    def _log(self) -> Path:
        return self.shared / f"ray-{self.rank}.log"

    def _tidy(self, temp: Path, code: int) -> None:
        """Ray's own files are deleted; its logs kept first where the job did not end well."""
        if code not in (0, LEFT, 128 + signal.SIGTERM, 128 + signal.SIGINT):
            logs = self.shared / f"logs-{self.rank}"
            for log in temp.glob("session_2*/logs/**/*"):
                if log.is_file() and not log.is_symlink() and 0 < log.stat().st_size <= _LARGEST_LOG:
                    logs.mkdir(exist_ok=True)
                    shutil.copyfile(log, logs / log.name)
        shutil.rmtree(temp, ignore_errors=True)

    def __str__(self) -> str:
        return _us(self.rank)


def command(job: Job, environment: dict[str, str], children: Children, also: Callable[[], int | None]) -> int:
    """Run the job's command to its end, which is its exit code; signals are passed on.

    Raises:
        Over: with 127 or 126, as a shell has it, where it cannot be started.
    """
    told = {**environment, "PYTHONUNBUFFERED": "1"}
    try:
        child = children.begin(job.command, folder=job.folder, environment=told)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise Over(127 if missing else 126, f"{error.filename}: {error.strerror}") from None
    return children.attend(child, grace=GRACE, also=also)


def outside(job: Job) -> dict[str, str]:
    """The environment that we were given, for others: less what is ours, with the job's code first."""
    given = {name: value for name, value in os.environ.items() if name not in _OURS}
    path = os.pathsep.join(filter(None, [str(job.code), os.environ.get("PYTHONPATH")]))
    return {**network.environment(job, Site()), **given, **job.environment, "PYTHONPATH": path}


def end(desk: Path, code: int, attempt: str, why: str = "") -> None:
    """Write how an attempt ended."""
    _write(desk / "ended.json", {"code": code, "attempt": attempt, "why": why})


def gpus_here() -> list[str]:
    """The GPUs of this machine that we may use, as CUDA_VISIBLE_DEVICES names them."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [gpu for gpu in told.split(",") if gpu]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def addresses() -> list[str]:
    """Our IPv4 addresses that others could see, that of our name first."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without one
                told = fcntl.ioctl(any_socket, 0x8915, struct.pack("256s", name[:15].encode()))  # SIOCGIFADDR
                found.append(socket.inet_ntoa(told[20:24]))
    with contextlib.suppress(OSError):
        named = socket.gethostbyname(socket.gethostname())
        found.sort(key=lambda address: address != named)
    return [address for address in found if not address.startswith("127.")]


def _way_to(address: str) -> str | None:
    """Our address on the way there; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect((address, 9))
        except OSError:
            return None
        return way.getsockname()[0]


def _free_ports(address: str, count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((address, 0))
        return [each.getsockname()[1] for each in sockets]


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError:
        return False
    return True


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _write(path: Path, told: dict[str, Any]) -> None:
    """Whole or not at all, and on the disk."""
    fresh = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    with fresh.open("w") as stream:
        stream.write(json.dumps(told) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)


def _us(rank: int) -> str:
    return f"node {rank} ({socket.gethostname()})"


def _alone(job: Job, attempt: str, children: Children) -> int:
    """The command of a job of one node, which needs no Ray of ours."""
    code = WRONG
    try:
        _equipped()
        code = command(job, outside(job), children, lambda: None)
    except Over as over:
        code = over.code
        raise
    finally:
        end(job.desk, code, attempt)
    return code


def _job(desk: Path) -> Job:
    try:
        job = Job.of(json.loads((desk / "job.json").read_bytes())["job"])
        job.folder.stat()
    except OSError as error:
        raise Over(
            WRONG,
            f"does not see {error.filename} ({error.strerror}): --root and the folder in which the job was submitted "
            "must be on a disk that all nodes share, under one path",
        ) from None
    return job


def _equipped() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        image = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
        where = f"{sys.executable} in {image}" if image else sys.executable
        raise Over(
            WRONG,
            f"{where} lacks {', '.join(missing)}: make the image from the Dockerfile, or install "
            "constraints.txt for that interpreter",
        )


def main(words: Sequence[str] | None = None) -> int:
    """Be a node; the exit code is the command's, LOST where the gang did not come or stay together."""
    parser = argparse.ArgumentParser(prog="python -m clusters.node", description="be one node of a job")
    parser.add_argument("desk", type=Path)
    parser.add_argument("--rank", type=int, default=int(os.environ.get("SLURM_PROCID", "0")))
    told = parser.parse_args(words)
    slurm = f"{os.environ.get('SLURM_JOB_ID', 'by-hand')}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    attempt = os.environ.get("INTERLACE_ATTEMPT", slurm)
    children = Children()
    try:
        job = _job(told.desk)
        if job.nodes > 1:
            node = Node(
                job=job,
                rank=told.rank,
                attempt=attempt,
                here=int(os.environ.get("INTERLACE_NODES_HERE", "0")),
                patience=float(os.environ.get("INTERLACE_GANG_PATIENCE", "300")),
                children=children,
            )
            return node.run()
        return _alone(job, attempt, children)
    except Over as over:
        print(f"{_us(told.rank)} {over}", file=sys.stderr, flush=True)
        return over.code
    finally:
        children.end_all(ENDS)


if __name__ == "__main__":
    raise SystemExit(main())
