"""Durable steps on Ray: the layer that ray.workflow (gone after Ray 2.47) used to be.

A step's output is a folder named by a hash of what made it. The driver makes a plan, Ray workers run pure tasks that
each put their result down by rename, and the driver commits: manifest last, then the folder appears. Whatever dies, the
same command goes on from the tasks that are there.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dataflow.roots import Roots
from pipelines.recipe import outside_modules

HOUSE = Path(__file__).resolve().parent.parent  # what Ray ships as working_dir to other machines

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a command works, never part of a recipe.

    roots: where upstream data lies. root: what we write. workers: Ray workers of a build, ranks of a CPU training.
    ray_address: of a running cluster; None starts a private one.
    """

    root: Path
    roots: Roots = field(default_factory=Roots)
    workers: int = 2
    ray_address: str | None = None


@contextmanager
def cluster(place: Place) -> Iterator[None]:
    """A Ray cluster for the block: private to this process, or the one at `place.ray_address`, never a chance find.

    Inside another such block it is that block's cluster.

    Raises:
        ValueError: nothing answers at the address.
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
        try:
            ray.init(place.ray_address, runtime_env={"working_dir": str(HOUSE)}, **quiet)
        except ConnectionError as error:
            told = f"it does not let us in ({error}); does it ask for a token (RAY_AUTH_MODE)?"
            raise ValueError(f"--ray-address {place.ray_address}: {told}") from None
    for module in outside_modules():
        cloudpickle.register_pickle_by_value(module)
    try:
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
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto", and whatever else Ray resolves by itself
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"--ray-address {address}: no cluster answers there ({error})") from None


def each(task: Callable[..., Result], shared: Any, items: Sequence[Item], progress: Progress) -> Iterator[Result]:
    """`task(shared, item)` for every item on Ray workers, a bounded number at a time; results as they come.

    Tasks are pure and commit by rename, so Ray may run one again after a worker died.

    Raises:
        what the task raised, as itself, without Ray's frames.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    remote: Any = ray.remote(num_cpus=1)(_undisturbed(task))
    handle = ray.put(shared)
    slots = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: list[Item] = list(reversed(items))
    running: list[Any] = []
    given: dict[Any, Item] = {}
    reference = None
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                item = waiting.pop()
                running.append(remote.remote(handle, item))
                given[running[-1]] = item
            ready, running = ray.wait(running, num_returns=1)
            for reference in ready:
                result = ray.get(reference)
                del given[reference]
                progress.advance()
                yield result
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        raise cause from None
    except RayError as error:
        item = " ".join(str(given.get(reference)).split())[:300]
        raise ValueError(
            f"a worker died over {item} ({type(error).__name__}), again when it was tried again: memory, perhaps; "
            "the same command goes on from here, with fewer --workers it needs less"
        ) from None
    finally:
        for reference in running:
            ray.cancel(reference, force=False)


@contextmanager
def alone(path: Path, what: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock file for the block. The kernel lets go when the process ends, however it ends.

    Args:
        patience: seconds to wait for another holder to end.
    Raises:
        ValueError: another process holds it; the message names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with path.open("a+") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    stream.seek(0)
                    holder = stream.read().strip() or "a process that has not named itself yet"
                    raise ValueError(
                        f"{what} is being written by {holder}: it has one writer; wait for it, or stop it first"
                    ) from None
                time.sleep(0.1)
        stream.truncate(0)
        stream.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield


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

    def close(self, message: str) -> None:
        """Say how it ended."""
        seconds = time.monotonic() - self.start
        clear = "\x1b[2K" if self.live else ""
        print(f"{clear}{self.label}: {message} ({seconds:.1f} s)", flush=True)

    def _line(self) -> str:
        seconds = time.monotonic() - self.start
        left = seconds / self.done * (self.total - self.done) if self.done else 0
        return f"{self.label}: {self.done}/{self.total} {self.unit}, about {left:.0f} s left"


def finished(folders: Iterable[Path]) -> list[Path]:
    """Those of these folders that have a manifest, oldest first."""
    with_manifest = [folder for folder in folders if (folder / "manifest.json").is_file()]
    return sorted(with_manifest, key=lambda folder: ((folder / "manifest.json").stat().st_mtime_ns, folder.name))
