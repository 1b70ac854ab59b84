"""A real Slurm on this machine: a controller, and nodes that are hosts of their own by namespaces of the kernel.

Each node has its own network, processes, hostname, /tmp and /dev/shm, its own munged and slurmd; files are shared as on
a cluster. It needs root and four packages of Debian: `python tests/clusters/slurm_hosts.py` installs them.

    with slurm(folder, nodes=2, cpus=1) as here:
        subprocess.run(["sinfo"], env=here.environment)
        here.kill_node("n1")      # as if its power went
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
LIMIT = 60.0  # seconds in which anything must happen, on a loaded machine
NETWORKS = range(16, 240)  # 10.213.N.0/24, whichever no other Slurm of ours has

_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"

_CONF = """\
ClusterName=interlace
SlurmctldHost={host}({network}.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={run}/munge.socket,cred_expire=8
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={run}/spool
SlurmdPidFile={run}/slurmd.pid
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
SlurmdTimeout=8
KillWait=5
CompleteWait=0
TCPTimeout=2
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
NodeName=n[1-{nodes}] NodeAddr={network}.[{first}-{last}] CPUs={cpus} RealMemory=100000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

_HOST = """\
set -eu
read -r _go  # its network is there
hostname {name}
export SLURM_CONF={folder}/slurm.conf PATH={path}
mount -t tmpfs none /mnt
n=0
for kept in {kept}; do
    mkdir /mnt/$n; mount --bind "$kept" /mnt/$n; n=$((n + 1))
done
mount -t tmpfs none /tmp; chmod 1777 /tmp
mount -t tmpfs none /dev/shm; chmod 1777 /dev/shm
n=0
for kept in {kept}; do
    mkdir -p "$kept"; mount --move /mnt/$n "$kept"; n=$((n + 1))
done
umount /mnt
mount -t tmpfs none {run}; chmod 755 {run}
mount --bind {folder}/hosts /etc/hosts
{munged} &
until [ -S {run}/munge.socket ]; do sleep 0.05; done
slurmd -D -N {name} -d "$(command -v slurmstepd)" &
wait -n
"""


def missing() -> str:
    """What this machine lacks, in one line; "" where a Slurm can run."""
    if os.geteuid() != 0:
        return "a Slurm of several hosts needs root: namespaces with networks of their own"
    if lacks := _lacks():
        return f"no {', '.join(lacks)} here: `python tests/clusters/slurm_hosts.py` installs {' '.join(PACKAGES)}"
    tried = _run("unshare", "--net", "--uts", "--pid", "--mount", "--fork", "mount", "-t", "tmpfs", "none", "/mnt")
    return f"namespaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else ""


def install() -> None:
    """The packages, from Debian; none of their services is started. Where that does not work, apt-get has said why."""
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")  # no service may be started
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
        if subprocess.run(command, env=environment, check=False).returncode:
            subprocess.run(["apt-get", "update"], env=environment, check=False)
            subprocess.run(command, env=environment, check=False)
    finally:
        if made:
            policy.unlink()


@dataclass(kw_only=True)
class Hosts:
    """A running Slurm. folder: its own; every host sees it. environment: for sbatch and its like, and for us."""

    folder: Path
    names: tuple[str, ...]
    environment: Mapping[str, str]
    network: str
    kept: tuple[Path, ...]
    _hosts: dict[str, tuple[subprocess.Popen[bytes], int]] = field(default_factory=dict)

    def ask(self, *words: str) -> str:
        """What a command of Slurm says."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=LIMIT)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def inside(self, name: str) -> list[str]:
        """What to write before a command that shall run on a host."""
        _, init = self._hosts[name]
        return ["nsenter", f"--target={init}", "--net", "--uts", "--pid", "--mount", "--"]

    def kill_node(self, name: str) -> None:
        """End a host with all that runs on it, at once."""
        process, init = self._hosts.pop(name)
        os.kill(init, signal.SIGKILL)  # the first of its processes: the kernel ends the others
        process.wait(LIMIT)
        _run("ip", "link", "del", self._link(name))

    def revive_node(self, name: str) -> None:
        """Start a host that was killed, as a machine that boots; returns before Slurm knows of it."""
        index = self.names.index(name)
        link = self._link(name)
        run = self.folder / "run"
        script = _HOST.format(
            name=name,
            folder=self.folder,
            run=run,
            path=_PATH,
            kept=" ".join(f"'{path}'" for path in self.kept),
            munged=" ".join(_munged(self.folder)),
        )
        own = ("--net", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")
        with (self.folder / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "unshare", *own, "bash", "-c", script],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                env=self.environment,
            )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until(lambda: children.read_text().split(), f"the first process of {name}")
        init = int(children.read_text().split()[0])
        self._hosts[name] = (process, init)
        net = ("nsenter", f"--target={init}", "--net", "ip")
        for command in (
            ("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(init)),
            ("ip", "link", "set", link, "master", f"il{self.network.split('.')[2]}", "up"),
            (*net, "link", "set", "lo", "up"),
            (*net, "address", "add", f"{self.network}.{_FIRST + index}/24", "dev", "eth0"),
            (*net, "link", "set", "eth0", "up"),
            (*net, "route", "add", "default", "via", f"{self.network}.1"),
        ):
            done = _run(*command)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.close()

    def wait_idle(self) -> None:
        """Until every host is ready for a job."""
        until(
            lambda: set(self.ask("sinfo", "--noheader", "--Node", "--format=%T").split()) == {"idle"},
            f"nodes of {self.folder} to be idle",
        )

    def _link(self, name: str) -> str:
        return f"il{self.network.split('.')[2]}{name}"


_FIRST = 11  # last number of the first node's address


@contextmanager
def slurm(folder: Path, *, nodes: int = 2, cpus: int = 1, seen: Sequence[Path] = ()) -> Iterator[Hosts]:
    """A Slurm whose nodes are idle; all it made is gone afterwards, but for its folder.

    Args:  folder: made; its configuration, logs and state. cpus: of each node, however many there are here.
        seen: folders under /tmp that its hosts shall see, too: their own /tmp is empty.
    """
    folder = folder.resolve()
    for name in ("", "run", "state"):
        (folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(256))
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}
    tmp = Path("/tmp")
    kept = dict.fromkeys(path.resolve() for path in (folder, *seen) if path.resolve().is_relative_to(tmp))
    outer = tuple(path for path in kept if not any(path != other and path.is_relative_to(other) for other in kept))
    with ExitStack() as made:
        network = made.enter_context(_bridge())
        names = tuple(f"n{index + 1}" for index in range(nodes))
        here = Hosts(folder=folder, names=names, environment=environment, network=network, kept=outer)
        hosts = [f"{network}.{_FIRST + index} {name}" for index, name in enumerate(names)]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        conf = _CONF.format(
            host=socket.gethostname().split(".")[0],
            network=network,
            port=_free_port(network),
            folder=folder,
            run=folder / "run",
            nodes=nodes,
            first=_FIRST,
            last=_FIRST + nodes - 1,
            cpus=cpus,
        )
        (folder / "slurm.conf").write_text(conf)
        made.enter_context(_daemon(_munged(folder), folder / "munged.out", environment))
        until((folder / "run" / "munge.socket").exists, "the socket of munged")
        made.enter_context(_daemon(["slurmctld", "-D", "-i"], folder / "slurmctld.out", environment))
        made.callback(lambda: [here.kill_node(name) for name in tuple(here._hosts)])
        for name in names:
            here.revive_node(name)
        until(lambda: _run("scontrol", "ping", environment=environment).returncode == 0, "slurmctld")
        here.wait_idle()
        yield here


def until(asked: Callable[[], object], what: str, limit: float = LIMIT) -> None:
    """Wait for something to be so; an error that names it after `limit` seconds."""
    begun = time.monotonic()
    while not asked():
        if time.monotonic() - begun > limit:
            raise TimeoutError(f"waited {limit:.0f} s for {what}")
        time.sleep(0.05)


def _lacks() -> list[str]:
    programs = ("slurmctld", "slurmd", "slurmstepd", "sbatch", "munged", "unshare", "nsenter", "setpriv", "ip")
    return [program for program in programs if shutil.which(program, path=_PATH) is None]


def _munged(folder: Path) -> list[str]:
    run = folder / "run"
    files = {"key-file": folder / "munge.key", "socket": run / "munge.socket", "pid-file": run / "munged.pid"}
    return ["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items())]


@contextmanager
def _daemon(command: Sequence[str], said: Path, environment: Mapping[str, str]) -> Iterator[None]:
    with said.open("ab") as out:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", *command], stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _bridge() -> Iterator[str]:
    """A network for hosts: a bridge whose name no other has, with an address of this machine at its .1."""
    for number in NETWORKS:
        if _run("ip", "link", "add", f"il{number}", "type", "bridge").returncode == 0:
            break
    else:
        raise RuntimeError("no bridge can be made: `ip link add il16 type bridge`")
    try:
        for words in (("address", "add", f"10.213.{number}.1/24", "dev"), ("link", "set", "up", "dev")):
            done = _run("ip", *words, f"il{number}")
            if done.returncode:
                raise RuntimeError(f"ip {' '.join(words)} il{number}: {done.stderr.strip()}")
        yield f"10.213.{number}"
    finally:
        _run("ip", "link", "del", f"il{number}")


def _free_port(network: str) -> int:
    with socket.socket() as asked:
        asked.bind((f"{network}.1", 0))
        return asked.getsockname()[1]


def _run(*words: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    told = {**(environment or os.environ), "PATH": _PATH}
    return subprocess.run(words, env=told, capture_output=True, text=True, timeout=LIMIT)


if __name__ == "__main__":
    if os.geteuid() == 0 and _lacks() and shutil.which("apt-get"):
        install()
    why = missing()
    print(f"NOT RUN: tests on a real Slurm: {why}" if why else "there is a Slurm for the tests")
