"""Durable steps on Ray: the layer that ray.workflow (gone after Ray 2.47) used to be.

A step's output is a folder named by a hash of what made it. The driver makes a plan, Ray workers run pure tasks that
each put their result down by rename, and the driver commits: manifest last, then the folder appears. Whatever dies, the
same command goes on from the tasks that are there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar

from dataflow import folders, shards, stores
from dataflow.build import write_atomically
from dataflow.roots import Roots
from pipelines.recipe import outside_modules

HOUSE = Path(__file__).resolve().parent.parent  # what Ray ships as working_dir to other machines

_ANSWERS = 120  # seconds a node has to start a worker and look at a file
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # a Ray answers with SETTINGS
_LOOKS = 1.0  # seconds between looks at what trainings leave
_LET_GO = 0.3  # seconds in which a lock may be held by nobody but a look at it
_ON_DISK = {  # what to do about what a disk says, by errno
    errno.ENOSPC: "free some space, or give another folder; the same command goes on from what is there",
    errno.EDQUOT: "free some space, or give another folder; the same command goes on from what is there",
    errno.EIO: "the disk fails (dmesg tells more); once it is sound the same command goes on from what is there",
    errno.EROFS: "mount it for writing, or give another folder",
    errno.EACCES: "give this user the right to it, or give another folder",
    errno.EPERM: "give this user the right to it, or give another folder",
}

Item = TypeVar("Item")
Result = TypeVar("Result")


class Left(KeyboardInterrupt):
    """Work that was told by SIGUSR1 to leave its place to others: the same command goes on from where it left."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a command works, never part of a recipe.

    roots: where upstream data lies. root: what we write. store: where corpora are kept instead of <root>/corpora, a
    folder of this machine or of an object store. workers: Ray workers of a build, ranks of a training. nodes: that
    ranks are spread over. gpus: of each, 0: ranks are of CPUs. ray_address: of a running cluster; None starts a private
    one.
    """

    root: Path
    store: Path | None = None
    roots: Roots = field(default_factory=Roots)
    workers: int = 2
    nodes: int = 1
    gpus: int = 0
    ray_address: str | None = None

    @property
    def corpora(self) -> Path:
        """Where corpora are kept."""
        return self.root / "corpora" if self.store is None else self.store

    @property
    def locks(self) -> Path:
        """The folder of this machine with the locks of those who build corpora, and what they build there first."""
        if not folders.is_remote(self.corpora):
            return self.corpora / ".building"
        return self.root / "stores" / slug(self.corpora)


def slug(place: Path) -> str:
    """A folder's name that tells of a place elsewhere, of no other one."""
    digest = hashlib.sha256(str(place).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9._]+', '-', str(place)).strip('-')[:100]}-{digest[:8]}"


@contextmanager
def cluster(place: Place, *, shared: Sequence[Path] = ()) -> Iterator[None]:
    """A Ray cluster for the block: private to this process, or the one at `place.ray_address`, never a chance find.

    Inside another such block it is that block's cluster.

    Args:  shared: folders that every node must see; the root, if it is not said which.

    Raises:
        ValueError: nothing answers at the address, or a node there does not see our folders.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; silences its notice
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import cloudpickle

    if ray.is_initialized():
        yield
        return
    _nothing_shadows_the_house()
    paths = [str(HOUSE), *(str(Path(module.__file__).parent) for module in outside_modules() if module.__file__)]
    python_path = os.pathsep.join(dict.fromkeys([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]))
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if place.ray_address is None:
        os.environ["PYTHONPATH"] = python_path  # inherited by the raylet and its workers
        try:
            with _our_own_signals():
                ray.init("local", num_cpus=place.workers, include_dashboard=False, **quiet)
        except Exception as error:  # noqa: BLE001  what Ray raises when a busy machine starts it too slowly
            raise RuntimeError(f"a private Ray cluster did not start ({error}): try again") from None
    else:
        _answers(place.ray_address)
        shipped = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # with a Ray job, which must not ship its code again
        ours = {} if shipped else {"runtime_env": {"working_dir": str(HOUSE)}}
        try:
            with warnings.catch_warnings(action="ignore"):
                ray.init(place.ray_address, **ours, **quiet)
        except ConnectionError as error:
            told = f"it does not let us in ({error}); does it ask for a token (RAY_AUTH_MODE)?"
            if place.ray_address == "auto":
                told = "no Ray was started on this machine: give HOST:PORT, or leave it out for a private one"
            raise ValueError(f"--ray-address {place.ray_address}: {told}") from None
    for module in outside_modules():
        cloudpickle.register_pickle_by_value(module)
    try:
        if place.ray_address is not None:
            for written in shared or (place.root,):
                _seen_everywhere(place, written)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _our_own_signals() -> Iterator[None]:
    """Ray's start puts a SIGTERM handler of its own in place; afterwards ours is back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _undisturbed(task: Callable[..., Result]) -> Callable[..., Result]:
    """The task, deaf to the Ctrl-C that a terminal sends to every process: an answer cut short makes Ray abort us."""

    def run(shared: Any, item: Any) -> Result:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return task(shared, item)

    return run


def _nothing_shadows_the_house() -> None:
    """Ray's workers look for modules where the command was given before they look here."""
    here = Path.cwd()
    for room in ("dataflow", "models", "clusters", "pipelines"):
        for shadow in (here / f"{room}.py", here / room / "__init__.py"):
            if here != HOUSE and shadow.is_file():
                raise ValueError(f"{shadow} hides Interlace's own {room} from Ray's workers: run from another folder")


def _answers(address: str) -> None:
    """Ray itself would try a dead address for minutes."""
    if address == "auto":
        return  # Ray knows where it was started here
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--ray-address {address}: write HOST:PORT of a running cluster, ray://HOST:PORT, or auto")
    try:
        with socket.create_connection((host, int(port)), timeout=5) as link:
            link.sendall(_HTTP2)
            kind = link.recv(4)[3:]
    except (OSError, OverflowError) as error:
        raise ValueError(f"--ray-address {address}: no cluster answers there ({error})") from None
    if kind != b"\4" and os.environ.get("RAY_USE_TLS", "0") == "0":
        raise ValueError(f"--ray-address {address}: what answers there is no Ray: give the port of its head node")


def _seen_everywhere(place: Place, written: Path) -> None:
    """Let every node that works read back a word written to a folder, and look for the folders of --data."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    word = secrets.token_hex(16)
    path = written / f".nonce-{word[:12]}"
    data = tuple(folder for folder in (place.roots.base, *place.roots.named.values()) if folder is not None)
    if not folders.is_remote(written):
        written.mkdir(parents=True, exist_ok=True)
    try:
        write_atomically(path, word.encode())
        remote: Any = ray.remote(num_cpus=0, max_retries=1)(_looks)
        asked = {}
        for node in ray.nodes():
            if node["Alive"] and node["Resources"].get("CPU", 0):
                here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                asked[name] = remote.options(scheduling_strategy=here).remote(path, word, data)
        for name, answer in asked.items():
            try:
                problem = ray.get(answer, timeout=_ANSWERS)
            except RayError as error:
                raise ValueError(
                    f"node {name} of --ray-address {place.ray_address} runs nothing ({type(error).__name__}): "
                    "take it out of the cluster, or mend it"
                ) from None
            if problem:
                raise ValueError(f"node {name} {problem}")
    finally:
        if folders.is_remote(path):
            stores.remove([path])
        else:
            path.unlink(missing_ok=True)


def _looks(path: Path, word: str, data: tuple[Path, ...]) -> str | None:
    """On a node: what it does not see of what it should."""
    try:
        seen = stores.read(path).decode(errors="replace")
    except OSError as error:
        if folders.is_remote(path):  # a store that this node does not reach
            return f"does not read {one_line(error)}"
        seen = f"no such file: {error.strerror}"
    if seen != word:
        return (
            f"does not see what was written to {path.parent} ({seen[:80]}): --root must be a folder that all nodes "
            "share under one path; mount it there, or give another"
        )
    for folder in data:
        try:
            there = folders.is_folder(folder)
        except OSError as error:  # a store that this node does not reach
            return f"does not read {one_line(error)}"
        if not there:
            return f"has no folder {folder}: --data must be seen by all nodes under one path; mount it there"
    return None


def each(task: Callable[..., Result], shared: Any, items: Sequence[Item], progress: Progress) -> Iterator[Result]:
    """`task(shared, item)` for every item on Ray workers, a bounded number at a time; results as they come.

    Tasks are pure and commit by rename, so Ray may run one again after a worker died. They use what trainings on the
    same cluster leave, `left`: while there is nothing, they wait.

    Raises:
        what the task raised, as itself, without Ray's frames.
    """
    import ray
    from ray.exceptions import LocalRayletDiedError, RayError, RayTaskError

    remote: Any = ray.remote(num_cpus=1)(_undisturbed(task))
    handle = ray.put(shared)
    waiting: list[Item] = list(reversed(items))
    running: list[Any] = []
    given: dict[Any, Item] = {}
    reference = None
    room = _Watched()
    try:
        while waiting or running:
            while waiting and len(running) < room.tasks():
                item = waiting.pop()
                running.append(remote.remote(handle, item))
                given[running[-1]] = item
            if not running:
                progress.wait("a training on this cluster uses all CPUs")
                continue
            ready, running = ray.wait(running, num_returns=1)
            for reference in ready:
                result = ray.get(reference)
                del given[reference]
                progress.advance()
                yield result
    except RayTaskError as error:
        raise _cause(error) from None
    except LocalRayletDiedError as error:
        raise ValueError(
            f"Ray does not answer on this machine ({type(error).__name__}): it is too busy, or Ray was ended; "
            "the same command goes on from here"
        ) from None
    except RayError as error:
        raise _died(f"a worker died over {' '.join(str(given.get(reference)).split())[:300]}", error) from None
    finally:
        for reference in running:
            ray.cancel(reference, force=False)


def each_ready(
    ready: Callable[[Any], Callable[[Item], Result]],
    shared: Any,
    items: Sequence[Item],
    progress: Progress,
    *,
    gpus: float = 0,
) -> Iterator[Result]:
    """`ready(shared)(item)` for every item on Ray actors; results as they come. An actor makes itself ready once.

    Items are pure and commit by rename, as in `each`: an actor that died is begun anew, and its item, too. Actors are
    as many as trainings leave room for, one at least; those over it end behind their item.

    Args:  gpus: that an actor is given, a whole one or a part, where the cluster has any.

    Raises:
        what an actor raised, as itself, without Ray's frames.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    gpus = gpus if ray.cluster_resources().get("GPU", 0) else 0
    kind: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=3, max_task_retries=3)(_Ready)
    waiting: list[Item] = list(reversed(items))
    idle: list[Any] = []
    busy: dict[Any, Any] = {}  # what an actor is asked for -> the actor
    room = _Watched()
    try:
        while waiting or busy:
            actors = max(1, room.actors(gpus))
            while len(idle) + len(busy) < min(actors, len(waiting) + len(busy)):
                idle.append(kind.remote(ready, shared))
            while idle and len(idle) + len(busy) > actors:
                ray.kill(idle.pop())
            while idle and waiting:
                actor = idle.pop()
                busy[actor.work.remote(waiting.pop())] = actor
            answered, _ = ray.wait(list(busy), num_returns=1)
            for reference in answered:
                idle.append(busy.pop(reference))
                result = ray.get(reference)
                progress.advance()
                yield result
    except RayTaskError as error:
        raise _cause(error) from None
    except RayError as error:
        raise _died("an actor died", error) from None
    finally:
        for actor in (*idle, *busy.values()):
            ray.kill(actor)


class _Watched:
    """What trainings leave of a cluster, looked at as often as is worth it."""

    def __init__(self) -> None:
        self._seen = -math.inf
        self._left: Room | None = None

    def tasks(self) -> int:
        """Tasks of a CPU each to hand over: those that run, and so many that a worker finds its next one waiting.

        None wait while a training does: Ray lets a worker go only when nothing is there for it.
        """
        room = self._looked()
        return 2 + 2 * int(room.cpus) if room.cpus >= 1 and not room.wanted else int(room.cpus)

    def actors(self, gpus: float) -> int:
        """Actors of a CPU each, and of as much of a GPU."""
        room = self._looked()
        return int(min(room.cpus, room.gpus / gpus if gpus else math.inf))

    def _looked(self) -> Room:
        if self._left is None or time.monotonic() - self._seen > _LOOKS:
            self._left, self._seen = left(), time.monotonic()
        return self._left


@dataclass(frozen=True, kw_only=True)
class Room:
    """CPUs and GPUs of a cluster that no placement group has or waits for. wanted: whether any waits."""

    cpus: float
    gpus: float
    wanted: bool


def left() -> Room:
    """What is left of the cluster. Ray Train reserves its ranks by a placement group.

    A group that waits counts, so that whoever asks here makes room for it: tasks that take each CPU as it comes would
    keep it waiting for ever.
    """
    import ray
    from ray.util import placement_group_table

    there = ray.cluster_resources()
    held = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    cpus, gpus = (
        max(
            0.0, there.get(name, 0.0) - sum(each.get(name, 0.0) for group in held for each in group["bundles"].values())
        )
        for name in ("CPU", "GPU")
    )
    return Room(cpus=cpus, gpus=gpus, wanted=any(group["state"] != "CREATED" for group in held))


def _died(what: str, error: Exception) -> ValueError:
    return ValueError(
        f"{what} ({type(error).__name__}), again when it was tried again: memory, perhaps; "
        "the same command goes on from here, with fewer --workers it needs less"
    )


def _cause(error: Any) -> BaseException:
    """What a task or an actor raised, as itself."""
    return error.cause if isinstance(error.cause, BaseException) else error


class _Ready:
    """An actor, deaf to the terminal's Ctrl-C as `_undisturbed` tasks are."""

    def __init__(self, ready: Callable[[Any], Callable[[Any], Any]], shared: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.ready, self.shared = ready, shared
        self.made: Callable[[Any], Any] | None = None

    def work(self, item: Any) -> Any:
        self.made = self.made or self.ready(self.shared)  # here, so that what it raises is told as of an item
        return self.made(item)


@contextmanager
def alone(path: Path, what: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock file for the block. The kernel lets go when the process ends, however it ends.

    The file says who holds it and by which command, and afterwards how that failed: `last_holder` reads it.

    Args:
        patience: seconds to wait for another holder to end.
    Raises:
        ValueError: another process holds it; the message names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, what, max(patience, _LET_GO)) as stream:
        told = {"holder": f"pid {os.getpid()} on {socket.gethostname()}", "command": _command()}
        _rewrite(stream, told)
        try:
            yield
        except Exception as error:
            told |= {"failed": one_line(error), "origin": list(getattr(error, "__notes__", ()))}
            with contextlib.suppress(OSError):  # the disk may be what failed
                _rewrite(stream, told)
            raise


@contextmanager
def _locked(path: Path, what: str, patience: float) -> Iterator[TextIO]:
    deadline = time.monotonic() + patience
    while True:
        with path.open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = _said(path).get("holder") or "a process that has not named itself yet"
                    raise ValueError(
                        f"{what} is being written by {holder}: it has one writer; wait for it, or stop it first"
                    ) from None
                time.sleep(0.1)
                continue
            if _is_at(stream, path):
                yield stream
                return


def _is_at(stream: TextIO, path: Path) -> bool:
    """Whether the open file is still the one at the path: `gc` may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _rewrite(stream: TextIO, told: dict[str, Any]) -> None:
    with shards.of_file(Path(stream.name)):
        stream.truncate(0)
        stream.write(json.dumps(told))
        stream.flush()


def _command() -> str:
    """A shell line that does what this process was asked to do."""
    program, *words = sys.argv
    name = "interlace" if Path(program).name in ("__main__.py", "interlace") else program
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join([name, *words])}"


@dataclass(frozen=True, kw_only=True)
class LastHolder:
    """What a lock file tells. held: now. who: process and host. command: a shell line that goes on. failed: how it
    ended, None where it did not fail or was killed. origin: source, file and row, where the failure has them."""

    held: bool
    who: str
    command: str
    failed: str | None
    origin: tuple[str, ...]


def last_holder(path: Path) -> LastHolder | None:
    """Who holds a lock, or held it last; None where nobody ever did."""
    try:
        with path.open() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                held = False
            except BlockingIOError:
                held = True
    except FileNotFoundError:
        return None
    said = _said(path)
    return LastHolder(
        held=held,
        who=said.get("holder", "a process that has not named itself"),
        command=said.get("command", ""),
        failed=said.get("failed"),
        origin=tuple(said.get("origin", ())),
    )


def _said(path: Path) -> dict[str, Any]:
    """What is in a lock file; one of other make, or just being written, is taken as a name."""
    text = path.read_text(errors="replace").strip()
    try:
        said = json.loads(text)
    except json.JSONDecodeError:
        return {"holder": text} if text else {}
    return said if isinstance(said, dict) else {"holder": text}


def one_line(error: BaseException) -> str:
    """An error as a user is told it: what the system said of which file, and what to do about it."""
    if isinstance(error, OSError) and error.strerror:
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        cure = _ON_DISK.get(error.errno or 0)
        return f"{said}; {cure}" if cure else said
    return " ".join(str(error).split()) or type(error).__name__


class Progress:
    """Lines about long work: one that rewrites itself on a terminal, one every ten seconds elsewhere."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.start = self.shown = time.monotonic()
        self.live = sys.stdout.isatty()

    def advance(self, count: int = 1) -> None:
        """Say that more is done."""
        self.done += count
        now = time.monotonic()
        if now - self.shown >= (0.2 if self.live else 10):
            self.shown = now
            print(f"{self._line()}\r" if self.live else self._line(), end="" if self.live else "\n", flush=True)

    def wait(self, why: str) -> None:
        """Say, as rarely as that it goes on, why it does not; and a moment passes."""
        now = time.monotonic()
        if now - self.shown >= 10:
            self.shown = now
            print(f"{self.label}: {self.done}/{self.total} {self.unit}, waiting: {why}", flush=True)
        time.sleep(0.5)

    def close(self, message: str) -> None:
        """Say how it ended."""
        seconds = time.monotonic() - self.start
        clear = "\x1b[2K" if self.live else ""
        print(f"{clear}{self.label}: {message} ({seconds:.1f} s)", flush=True)

    def _line(self) -> str:
        seconds = time.monotonic() - self.start
        left = seconds / self.done * (self.total - self.done) if self.done else 0
        return f"{self.label}: {self.done}/{self.total} {self.unit}, about {left:.0f} s left"


def finished(there: Iterable[Path]) -> list[Path]:
    """Those of these folders that have a manifest, oldest first. A store is asked once for each, and all at once."""
    found = list(there)
    if any(map(folders.is_remote, found)):
        written = stores.at_once(lambda folder: stores.changed(folder / "manifest.json"), found)
    else:
        written = [stores.changed(folder / "manifest.json") for folder in found]
    with_manifest = [(time, folder) for time, folder in zip(written, found, strict=True) if time is not None]
    return [folder for _, folder in sorted(with_manifest, key=lambda each: (each[0], each[1].name))]
