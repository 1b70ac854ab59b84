"""One run of a training: its folder, the one writer it may have, and Ray Train around the loop of `worker.py`.

    with alone(run / "lock", run.name):
        prepare(run, description)
        fit(training, run, batches, workers=4, ray_address=address)

The same lines again resume: Ray restores nothing, the newest checkpoint in the folder is all there is to know.

    run/  recipe.json code.txt           what it is, and the code that ran
          checkpoints/ metrics.jsonl tensorboard/   written by rank 0
          ray/attempt-001/               what Ray keeps of each attempt, and tracebacks of ranks that failed
          done.json                      written last
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dataflow.build import write_atomically
from pipelines.step import one_line
from pipelines.training import Training

if TYPE_CHECKING:
    from pipelines.batching import Micro

GROUP_TIMEOUT = 1800  # seconds a rank waits for the others in a collective; Ray's value wins over DeepSpeed's


class Batches(Protocol):
    """What the ranks train on: picklable, cheap to construct, and a function of the position alone.

    digest: names the whole schedule; a run resumes only under the digest it was begun with.
    """

    @property
    def digest(self) -> str: ...

    @property
    def sources(self) -> tuple[str, ...]:
        """What `Micro.fed` counts, in its order."""
        ...

    def __call__(self, position: int, rank: int, world: int, micro_batch: int) -> list[Micro]:
        """This rank's micro-batches of a position, up to `micro_batch` rows each; equally many on every rank."""
        ...


def fit(training: Training, run: Path, batches: Batches, *, workers: int, ray_address: str | None) -> None:
    """Train to the last step, from the newest checkpoint if there is one. Call it under `step.alone`, after `prepare`.

    SIGINT and SIGTERM end the workers and raise KeyboardInterrupt; the same call goes on from the last checkpoint.

    Args:    workers: ranks; one CPU each, and one GPU each where there are GPUs.
             ray_address: host:port that this process is expected to be connected to; None for any.
    Raises:  ValueError where Ray is not ready or a rank raised one, RuntimeError for every other failure of a rank:
             rank, type and message in one line.
    """
    import ray

    assert training.steps is not None  # whoever made the schedule knows it
    if not ray.is_initialized():
        raise ValueError(
            "Ray is not initialised: a training runs on a cluster that the caller chose; call ray.init(address=...)"
        )
    connected = ray.get_runtime_context().gcs_address
    if ray_address and re.fullmatch(r"[^/]+:\d+", ray_address) and _port(ray_address) != _port(connected):
        raise ValueError(f"this process is connected to Ray at {connected}, not at {ray_address}: connect to that one")
    finished = run / "done.json"
    if finished.exists():
        print(f"done: {training.steps} steps, {finished}", flush=True)
        return
    run = run.resolve()
    attempts = [int(folder.name.removeprefix("attempt-")) for folder in (run / "ray").glob("attempt-*")]
    attempt = run / "ray" / f"attempt-{max(attempts, default=0) + 1:03d}"
    attempt.mkdir(parents=True)
    with _progress(run / "metrics.jsonl", training.steps):
        _train(training, run, batches, workers, attempt)
    print(f"done: {training.steps} steps, {finished}", flush=True)


def prepare(run: Path, description: dict[str, Any]) -> None:
    """Create the run's folder, or make sure that it is this training's own.

    What lies under `execution` may change between attempts: any stage, micro-batch and world size goes on with the
    same checkpoints; so may the place of weights to start from. Everything else changes the mathematics.

    Args:    description: the recipe as JSON values, written to recipe.json; what stands under `value` must stay, the
             rest says where it came from.
    Raises:  ValueError naming the fields in which the folder's recipe differs.
    """
    run.mkdir(parents=True, exist_ok=True)
    recipe = run / "recipe.json"
    if recipe.exists():
        before = _fields(json.loads(recipe.read_text())["value"])
        now = _fields(json.loads(json.dumps(description["value"])))
        changed = [
            f"{path} ({json.dumps(before.get(path))} there, {json.dumps(now.get(path))} now)"
            for path in sorted(before.keys() | now.keys())
            if before.get(path) != now.get(path)
            and "execution" not in path.split(".")
            and not path.endswith("start_from.path")
        ]
        if changed:
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise ValueError(
                f"{run} holds another training: {', '.join(changed[:5])}{more}; "
                "set them back to resume it, or take another folder to begin anew"
            )
    write_atomically(recipe, json.dumps(description, indent=1, sort_keys=True).encode() + b"\n")
    code, known = _code(), run / "code.txt"
    told = known.read_text() if known.exists() else ""
    if code not in told:  # later attempts may run other code: all of it is kept, in order
        write_atomically(known, (told + code).encode())


def _train(training: Training, run: Path, batches: Batches, workers: int, attempt: Path) -> None:
    """Ray Train around the worker's loop: one attempt, under a name of its own, so that Ray has nothing to restore."""
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipelines.worker import work

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")  # how late a dead rank, or the end, is noticed
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process whose warnings nobody here hears
    gpus = _gpus(workers)
    trainer = TorchTrainer(
        work,
        train_loop_config={"training": training, "run": run, "batches": batches, "attempt": attempt},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=GROUP_TIMEOUT),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=attempt.name,
            storage_path=str(attempt.parent),
            failure_config=FailureConfig(max_failures=0),
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )
    stopped = KeyboardInterrupt(f"the training in {run} was stopped; the same command goes on")
    with _stoppable() as signals:
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _in_one_line(error, attempt) from None
        except SystemExit:  # how Ray's own SIGINT handler leaves, once the workers are gone
            raise stopped from None
        except RayActorError as error:
            if signals:
                raise stopped from None
            raise RuntimeError(f"Ray Train's controller died: {_squeezed(error)}; the same command goes on") from None


def _gpus(workers: int) -> bool:
    """Whether ranks get a GPU each, after a look at whether the cluster can start them at all: Ray would wait for ever.

    Raises:  ValueError where it cannot.
    """
    import ray

    has = ray.cluster_resources()
    for resource in ("CPU", "GPU"):
        held = int(has.get(resource, 0))
        if held < workers and (resource == "CPU" or held > 0):
            raise ValueError(
                f"{workers} ranks need {workers} {resource}s, the Ray cluster has {held}: "
                f"start fewer workers, or a cluster that declares more"
            )
    return has.get("GPU", 0) > 0


@contextlib.contextmanager
def _stoppable() -> Iterator[list[int]]:
    """SIGTERM becomes SIGINT, on which Ray Train ends its workers; the handlers from before come back at the end."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, _: Any) -> None:
        signals.append(number)
        signal.raise_signal(signal.SIGINT)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, note)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_one_line(error: Exception, attempt: Path) -> Exception:
    """The error of the rank that failed first of itself: the others only lost their connection to it."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return RuntimeError(f"Ray Train failed: {_squeezed(error)}")

    def collateral(rank: int) -> bool:
        return any(word in str(failures[rank]) for word in ("Connection closed by peer", "Connection reset", "NCCL"))

    rank = min(failures, key=lambda rank: (collateral(rank), rank))
    cause = failures[rank]
    trace = attempt / f"rank-{rank}.txt"
    where = f" (traceback: {trace})" if trace.exists() else ""
    message = f"rank {rank}: {type(cause).__name__}: {_squeezed(cause)}{where}"
    return ValueError(message) if isinstance(cause, ValueError) else RuntimeError(message)


def _port(address: str) -> str:
    """What tells clusters apart: a host has several names."""
    return address.rpartition(":")[2]


def _squeezed(error: Exception) -> str:
    """Its message in one line, at most 500 characters."""
    text = one_line(error)
    return text if len(text) <= 500 else text[:500] + " ..."


@contextlib.contextmanager
def _progress(metrics: Path, steps: int) -> Iterator[None]:
    """Print the newest step of what rank 0 appends to metrics.jsonl: every second on a terminal, else every ten.

    Beside it, how many records were replaced so far: lines of events.jsonl.
    """
    start = metrics.read_bytes().rfind(b"\n") + 1 if metrics.exists() else 0
    ended = threading.Event()

    def follow() -> None:
        position, newest = start, b""
        while True:
            last = ended.wait(1.0 if sys.stdout.isatty() else 10.0)
            if metrics.exists():
                with metrics.open("rb") as file:
                    file.seek(position)
                    fresh = file.read()
                whole = fresh[: fresh.rfind(b"\n") + 1]
                position += len(whole)
                newest = whole.splitlines()[-1] if whole else b""
                if newest:
                    events = metrics.with_name("events.jsonl")
                    replaced = events.read_bytes().count(b"\n") if events.exists() else 0
                    told = f"  {replaced} records replaced ({events})" if replaced else ""
                    print(_line(json.loads(newest), steps) + told, flush=True)
            if last:
                return

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _line(metrics: dict[str, Any], steps: int) -> str:
    losses = [f"{name} {'-' if loss is None else format(loss, '.3f')}" for name, loss in metrics["losses"].items()]
    return "  ".join((f"step {metrics['step']}/{steps}", *losses, f"{metrics['seconds']:.2f} s/step"))


def _fields(value: Any, path: str = "") -> dict[str, Any]:
    """JSON values by path: {"a": {"b": [1]}} -> {"a.b.0": 1}. What is empty stands for itself."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    flat: dict[str, Any] = {}
    for key, inner in entries:
        flat |= _fields(inner, f"{path}.{key}" if path else str(key))
    return flat or {path: value}


def _code() -> str:
    """The code that runs: commit and uncommitted changes of this repository, or the installed version."""
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout

    try:
        return f"commit {git('rev-parse', 'HEAD').strip()}\n{git('diff', 'HEAD')}"
    except (OSError, subprocess.CalledProcessError):
        try:
            version = importlib.metadata.version("interlace")
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        return f"no git, version {version}\n"
