"""Attempts of a training: Ray Train around the loop of `worker.py`, and in words how one ended before its last step.

A controller of Ray Train begins the next attempt in place where all nodes answer, which saves a start of its own; it
asks us whether it may. All else is `train.fit`'s: it begins a controller anew, on as many ranks as there is room for.
Ray's own elasticity ends in DeepSpeed's checkpoints, which load at one world size only, and in a minute's wait for a
node that is gone but not yet known to be dead (Ray 2.60, DeepSpeed 0.19.8).

    run/ray/attempt-001/attempt.json   {"workers": 2, "from": "step-000010", "began": unix seconds, "why": a line,
                                        "by_itself": true, "ended": a line, "step": the last one}
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dataflow.build import write_atomically
from pipelines.step import one_line
from pipelines.training import Training

if TYPE_CHECKING:
    from pipelines.train import Batches

GROUP_TIMEOUT = 1800  # seconds a rank waits for the others in a collective; Ray's value wins over DeepSpeed's
ANSWERS = 2.0  # seconds that a node has to accept a connection
HEAD_PATIENCE = 30.0  # seconds without the head; Ray ends this process after 60, with a page of its own

_TAIL = 1 << 20  # bytes that hold the last line of a journal
_COLLATERAL = (  # what a rank says that only lost its connection to another one
    "Connection closed by peer",
    "Connection reset",
    "Connection refused",
    "Broken pipe",
    "NCCL",
)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How an attempt ended that is worth another one.

    what: in words, as "rank 1 was killed". kind: a mishap is nobody's mistake; a pause was for the better.
    """

    what: str
    kind: Literal["mishap", "pause"] = "mishap"


class Handed(Exception):
    """What a controller does not go on from by itself: of each rank that failed its exception."""

    def __init__(self, failures: Mapping[int, Exception]) -> None:
        super().__init__(failures)
        self.failures = failures


def once(
    training: Training,
    run: Path,
    batches: Batches,
    *,
    workers: int,
    wanted: int,
    nodes: int,
    gpus: bool,
    since: float,
) -> Ended | None:
    """Train from the newest checkpoint until the last step or until told to leave, when it returns None, or until
    something ends it.

    `begin` was called; after a mishap that left all nodes there, the next attempt follows in place. Where fewer workers
    than wanted train, it ends after a checkpoint once there is room for more.

    Args:   workers: ranks; one CPU each, and one GPU each where `gpus`. nodes: to spread them over, where there is
            room. since: as `enough` has it.
    Raises: ValueError where a rank raised one, RuntimeError for every other failure that would come again: rank, type
            and message in one line, or the head of the cluster gone. SystemExit or KeyboardInterrupt when it is told
            to stop.
    """
    import ray
    from ray.exceptions import RayError
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipelines.worker import work

    restarts = training.execution.restarts

    def rank() -> None:  # what it needs travels to the ranks alone: a controller would load it, too
        work({"training": training, "run": run, "batches": batches, "attempt": folders(run)[-1]})

    class Judge(UserCallback):
        """Asked in the controller when ranks failed; they are begun again unless it raises."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            try:
                ended = _of_ranks(worker_exceptions, folders(run)[-1])
            except (ValueError, RuntimeError):
                raise Handed(worker_exceptions) from None
            if capacity(gpus) < workers:
                raise Handed(worker_exceptions)
            line = end(run, ended)
            if enough(run, restarts, since):
                raise Handed(worker_exceptions)
            begin(run, workers, after=line)

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")  # how late a dead rank, or the end, is noticed
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process whose warnings nobody here hears
    head, first = ray.get_runtime_context().gcs_address, folders(run)[-1]
    trainer = TorchTrainer(
        rank,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=GROUP_TIMEOUT),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus,
            resources_per_worker={"CPU": 1},
            placement_strategy="SPREAD" if nodes > 1 else "PACK",
        ),
        run_config=RunConfig(
            name=first.name,  # of its own, so that Ray has nothing to restore
            storage_path=str(first.parent),
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=0),
            logging_config=LoggingConfig(log_level="CRITICAL"),
            callbacks=[Judge()],
        ),
    )
    watch = _Watch(head=head)
    try:
        with watch.watching(run, workers, wanted, gpus):
            trainer.fit()
        return None
    except (SystemExit, KeyboardInterrupt):  # SystemExit is how Ray's own SIGINT handler leaves
        if not watch.gone and not watch.room:
            raise
    except TrainingFailedError as error:
        if not watch.room:
            return _of_controller(getattr(error, "controller_failure", error), folders(run)[-1])
    except RayError as error:
        watch.gone = watch.gone or not answers(head)
        if not watch.gone and not watch.room:
            _give_back()
            return Ended(what=f"Ray Train's controller was killed ({type(error).__name__})")
    if watch.gone:
        raise RuntimeError(
            f"the head of the Ray cluster at {head} is gone: once there is a cluster again, the same command goes on"
        )
    return Ended(what=f"there is room for {watch.room} workers again", kind="pause")


# ---- what is told of attempts


def begin(run: Path, workers: int, after: str = "") -> str:
    """Make the next attempt's folder. Returns a line about it, where it goes on by itself after another one."""
    numbers = [int(folder.name.removeprefix("attempt-")) for folder in folders(run)]
    folder, begun = run / "ray" / f"attempt-{max(numbers, default=0) + 1:03d}", newest(run)
    folder.mkdir(parents=True)
    ranks = f"{workers} worker{'s' if workers > 1 else ''}"
    why = f"{after}; going on from {begun or 'the start'} with {ranks}" if after else ""
    _write(folder, {"workers": workers, "from": begun, "began": time.time(), "why": why})
    return why


def end(run: Path, ended: Ended) -> str:
    """Note in the newest attempt's folder how it ended. Returns that in a line."""
    folder = folders(run)[-1]
    step, stuck = _last_step(run / "metrics.jsonl", folder), folder / "stuck.txt"
    what = stuck.read_text().partition("\n")[0] if stuck.exists() else ended.what
    line = f"{what} before its first step" if step is None else f"{what} at step {step + 1}"
    cause = "stuck" if stuck.exists() else ended.what
    _write(folder, note(folder) | {"ended": line, "cause": cause, "step": step})
    return line


def enough(run: Path, restarts: int, since: float) -> str:
    """Why the newest attempt, which a mishap ended, is the last; "" where another one is begun.

    Args:  restarts: without a new checkpoint. since: unix seconds; attempts before were begun by another command.
    """
    notes = [told for told in map(note, folders(run)) if told and told["began"] >= since]
    last, here = notes[-1], newest(run)
    if last["from"] != here and restarts > 0:
        return ""
    if any((each["cause"], each["step"]) == (last["cause"], last["step"]) for each in notes[-2:-1]):
        return f"as in the attempt before: memory, perhaps; see {folders(run)[-1]}; the same command tries again"
    again = [told["from"] == here and told["why"] != "" for told in reversed(notes)]
    if restarts <= (again.index(False) if False in again else len(again)):
        return f"with no new checkpoint in execution.restarts={restarts} attempts more: the same command goes on"
    return ""


def folders(run: Path) -> list[Path]:
    """Of a run's attempts, in order."""
    return sorted((run / "ray").glob("attempt-*"), key=lambda folder: int(folder.name.removeprefix("attempt-")))


def note(folder: Path) -> dict[str, Any]:
    """attempt.json of an attempt's folder; empty where it has none."""
    path = folder / "attempt.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


def _write(folder: Path, told: dict[str, Any]) -> None:
    write_atomically(folder / "attempt.json", json.dumps(told, indent=1).encode() + b"\n")


def newest(run: Path) -> str | None:
    """The name of the newest checkpoint, by its name alone; None at a beginning."""
    names = [folder.name for folder in (run / "checkpoints").glob("step-*")]
    return max(names, default=None, key=lambda name: (len(name), name))


def _last_step(metrics: Path, folder: Path) -> int | None:
    """The newest step that an attempt told of; None if it took none."""
    if not metrics.exists():
        return None
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")
    told = json.loads(lines[-2]) if len(lines) > 1 else {}
    return told["step"] if told.get("attempt") == int(folder.name.removeprefix("attempt-")) else None


# ---- the cluster


def _give_back() -> None:
    """What a dead controller of ours had reserved: without a dashboard Ray keeps it until this process ends."""
    import ray
    from ray._private.state import state
    from ray.core.generated import gcs_pb2
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    kind: Any = gcs_pb2.__dict__["PlacementGroupTableData"]
    job, deadline, held = ray.get_runtime_context().get_job_id(), time.monotonic() + ANSWERS, []
    while not held and time.monotonic() < deadline:  # the head may hear of its death after us
        groups = map(kind.FromString, state._connect_and_get_accessor().get_placement_group_table())
        ours = (group for group in groups if group.creator_job_id.hex() == job and group.creator_actor_dead)
        held = [group.placement_group_id for group in ours if group.state != kind.REMOVED]
        time.sleep(0.1)
    for group in held:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group)))


def capacity(gpus: bool) -> int:
    """Ranks that the cluster has room for, whoever uses it now: on nodes that answer.

    Ray lists a node that is gone as alive for a while: RAY_health_check_period_ms times _failure_threshold.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    there = [node for node in nodes if answers(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")]
    rooms = [  # where none answers, they are out of this process's reach, as behind ray://
        min(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0) if gpus else math.inf)
        for node in there or nodes
    ]
    return sum(map(int, rooms))


def answers(address: str) -> bool:
    """Whether something accepts connections at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWERS):
            return True
    except OSError:
        return False


@dataclass(kw_only=True)
class _Watch:
    """What a thread beside an attempt saw, and interrupted it for: the head gone, or room for more ranks."""

    head: str
    gone: bool = False
    room: int = 0

    @contextlib.contextmanager
    def watching(self, run: Path, workers: int, wanted: int, gpus: bool) -> Iterator[None]:
        """Interrupt the block in the main thread. Ray leaves its SIGINT handler behind: those from before come back."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ended, main = threading.Event(), threading.get_ident()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def stop(number: int, frame: Any) -> None:
            told = before[signal.SIGTERM]
            if self.gone or not callable(told):  # Ray's own way to stop asks the head
                raise KeyboardInterrupt
            told(number, frame)

        def watch() -> None:
            if not answers(self.head):  # it is out of this process's reach, as behind ray://
                return
            begun, heard, known = newest(run), time.monotonic(), folders(run)
            while not ended.wait(1.0):
                for folder in folders(run)[len(known) :]:  # begun in place
                    if told := note(folder):
                        known, begun = [*known, folder], told["from"]
                        print(told["why"], flush=True)
                if not answers(self.head):
                    self.gone = time.monotonic() - heard > HEAD_PATIENCE
                else:
                    heard = time.monotonic()
                    if workers < wanted and newest(run) != begun:
                        there = min(wanted, capacity(gpus))
                        self.room = there if there > workers else 0
                if (self.gone or self.room) and not ended.is_set():
                    signal.pthread_kill(main, signal.SIGTERM if self.gone else signal.SIGINT)
                    return

        thread = threading.Thread(target=watch, name="watch", daemon=True)
        signal.signal(signal.SIGTERM, stop)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(ANSWERS)  # asking a head that has just gone may take it longer
            for number, handler in before.items():
                signal.signal(number, handler)


# ---- why an attempt ended


def _of_ranks(failures: Mapping[int, Exception], folder: Path) -> Ended:
    """What failed first of itself: the others only lost their connection to it."""
    lost = {rank: failure for rank, failure in failures.items() if _is_lost(failure)}
    own = {rank: failure for rank, failure in failures.items() if rank not in lost and not _is_collateral(failure)}
    mistakes = [rank for rank, failure in own.items() if isinstance(failure, ValueError)] or ([] if lost else [*own])
    if mistakes:
        rank = min(mistakes)
        trace = folder / f"rank-{rank}.txt"
        where = f" (traceback: {trace})" if trace.exists() else ""
        message = f"rank {rank}: {type(failures[rank]).__name__}: {_squeezed(failures[rank])}{where}"
        raise ValueError(message) if isinstance(failures[rank], ValueError) else RuntimeError(message)
    if not lost:
        return Ended(what=f"rank {min(failures)} lost its connection to another rank")
    ranks = sorted(lost)
    who = f"rank {ranks[0]} was" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} were"
    said = " ".join(str(getattr(failure, "health_check_failure", failure)) for failure in lost.values())
    if "running low on memory" in said:
        return Ended(what=f"{who} killed by Ray, as memory ran low there")
    return Ended(what=f"{who} lost with its node" if "node has died" in said else f"{who} killed")


def _of_controller(failure: Exception, folder: Path) -> Ended:
    """Of the ranks, if it hands them over, or of itself: then an attempt that was never started."""
    name = type(failure).__name__
    if isinstance(failure, Handed):
        return _of_ranks(failure.failures, folder)
    if name == "WorkerGroupStartupTimeoutError":
        return Ended(what="the ranks found no room: others use the cluster", kind="pause")
    if name == "WorkerGroupStartupFailedError":
        return Ended(what="a rank was killed while the ranks started")
    if isinstance(failure, ValueError):
        raise ValueError(f"Ray Train failed: {_squeezed(failure)}")
    return Ended(what=f"Ray Train failed ({name}: {_squeezed(failure)})")


def _is_lost(failure: Exception) -> bool:
    """Whether a rank's process, or its node, is gone: its controller asks it every second how it is."""
    from ray.exceptions import RayError, RayTaskError

    cause = getattr(failure, "health_check_failure", failure)
    if type(cause).__name__ == "WorkerHealthCheckTimeoutError":
        return True
    return isinstance(cause, RayError) and not isinstance(cause, RayTaskError)


def _is_collateral(failure: Exception) -> bool:
    return type(failure).__name__.startswith("Dist") or any(word in str(failure) for word in _COLLATERAL)


def _squeezed(error: Exception) -> str:
    """Its message in one line, at most 500 characters."""
    text = one_line(error)
    return text if len(text) <= 500 else text[:500] + " ..."
