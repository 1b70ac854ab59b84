"""One run of a training: its folder, the one writer it may have, and attempt after attempt until its last step.

    with alone(run / "lock", run.name):
        prepare(run, description)
        fit(training, run, batches, workers=4, ray_address=address)

A worker, a node or Ray's controller that is killed ends an attempt, and the next one begins by itself; after whatever
kills this process the same lines resume. Either goes on from the newest checkpoint, on any number of workers: it is all
there is to know, Ray restores nothing.

    run/  recipe.json code.txt           what it is, and the code that ran
          checkpoints/ metrics.jsonl tensorboard/   written by rank 0
          ray/attempt-001/               what Ray keeps of each attempt, and tracebacks of ranks that failed
              attempt.json               on how many workers, from which checkpoint, how it ended
          leave                          there while it is told to save at the next step's end, and to leave
          done.json                      written last
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from clusters import snapshot
from dataflow.build import write_atomically
from pipelines import attempt, watched
from pipelines.step import HOUSE, Left
from pipelines.training import Training

if TYPE_CHECKING:
    from pipelines.batching import Kind, Micro

NODE_PATIENCE = 60.0  # seconds that a lost node is waited for before fewer workers go on
LEAVE = "leave"


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

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What `Micro.kinds` counts into; empty where losses are not told apart."""
        ...

    def __call__(self, position: int, rank: int, world: int, micro_batch: int) -> list[Micro]:
        """This rank's micro-batches of a position, up to `micro_batch` rows each; equally many on every rank."""
        ...


def fit(
    training: Training, run: Path, batches: Batches, *, workers: int, ray_address: str | None, nodes: int = 1
) -> None:
    """Train to the last step, from the newest checkpoint if there is one. Call it under `step.alone`, after `prepare`.

    What is killed is begun again, `execution.restarts` times without a new checkpoint. A run that has a checkpoint goes
    on with fewer workers where nodes are lost and do not come back, and with all again once they do: batches, rates and
    order are those of the position, whatever the number of workers.

    SIGINT and SIGTERM end the workers and raise KeyboardInterrupt; the same call goes on from the last checkpoint.
    SIGUSR1 lets them end the step they are at and save it, and raises Left.

    Args:    workers: ranks; one CPU each, and one GPU each where there are GPUs.
             ray_address: host:port that this process is expected to be connected to; None for any.
             nodes: that they are spread over, as far as there is room on each.
    Raises:  ValueError where Ray is not ready or a rank raised one, RuntimeError for every other failure that comes
             again: rank, type and message in one line.
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
    least = training.execution.least_workers
    if least > workers:
        raise ValueError(f"execution.least_workers={least} of {workers} workers: ask for more workers, or lower it")
    finished = run / "done.json"
    if not finished.exists():
        run = run.resolve()
        metrics = run / "metrics.jsonl"
        (run / LEAVE).unlink(missing_ok=True)
        with watched.beside(training, run), _progress(metrics, training.steps), _stoppable(run) as signals:
            try:
                _attempts(training, run, batches, workers, nodes, signals)
            except (KeyboardInterrupt, SystemExit):
                raise KeyboardInterrupt(f"the training in {run} was stopped; the same command goes on") from None
        if not finished.exists():
            (run / LEAVE).unlink(missing_ok=True)
            raise Left(f"left {run.name} at {attempt.newest(run)}, as it was told to; the same command goes on")
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
    code, known = snapshot.commit(HOUSE), run / "code.txt"
    told = known.read_text() if known.exists() else ""
    if code not in told:  # later attempts may run other code: all of it is kept, in order
        write_atomically(known, (told + code).encode())


def _attempts(training: Training, run: Path, batches: Batches, wanted: int, nodes: int, signals: list[int]) -> None:
    """Attempt after attempt, until one comes to the last step."""
    import ray

    execution, since = training.execution, time.time()
    gpus = ray.cluster_resources().get("GPU", 0) > 0
    if attempt.newest(run) is None:
        _roomy(wanted, gpus)
    line, workers = "", wanted
    while True:
        workers = _gathered(wanted, workers, execution.least_workers, gpus)
        if why := attempt.begin(run, workers, after=line):
            print(why, flush=True)
        try:
            ended = attempt.once(
                training, run, batches, workers=workers, wanted=wanted, nodes=nodes, gpus=gpus, since=since
            )
        except RuntimeError:  # a signal to a whole group of processes reaches a private cluster, too
            if signals:
                raise KeyboardInterrupt from None
            raise
        if signals:
            raise KeyboardInterrupt
        if ended is None or (run / "done.json").exists():
            return
        if (run / LEAVE).exists():  # and no step that could tell the ranks
            raise KeyboardInterrupt
        line = attempt.end(run, ended)
        if ended.kind == "mishap" and (reason := attempt.enough(run, execution.restarts, since)):
            raise RuntimeError(f"{line}, {reason}")


def _roomy(wanted: int, gpus: bool) -> None:
    """ValueError where the cluster cannot hold a run that is to begin: Ray would wait for ever."""
    import ray

    has = ray.cluster_resources()
    for resource in ("CPU", "GPU") if gpus else ("CPU",):
        held = int(has.get(resource, 0))
        if held < wanted:
            raise ValueError(
                f"{wanted} ranks need {wanted} {resource}s, the Ray cluster has {held}: "
                f"start fewer workers, or a cluster that declares more"
            )


def _gathered(wanted: int, had: int, least: int, gpus: bool) -> int:
    """Workers of the next attempt: all that there is room for, after a while in which what was lost may come back.

    Raises:  RuntimeError where there are fewer than the least.
    """
    deadline, waiting = time.monotonic() + NODE_PATIENCE, False
    while (there := min(wanted, attempt.capacity(gpus))) < had and time.monotonic() < deadline:
        if not waiting:
            print(
                f"the cluster has room for {there} of {had} workers: waiting {NODE_PATIENCE:.0f} s for another node",
                flush=True,
            )
        waiting = True
        time.sleep(1.0)
    if there < least:
        raise RuntimeError(
            f"the cluster has room for {there} workers, execution.least_workers={least}: "
            "once there are nodes again, the same command goes on"
        )
    return there


@contextlib.contextmanager
def _stoppable(run: Path) -> Iterator[list[int]]:
    """SIGTERM and SIGHUP become SIGINT, on which Ray Train ends its workers; SIGUSR1 a file that the ranks see.

    The handlers from before come back at the end.
    """
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, _: Any) -> None:
        signals.append(number)
        if not callable(signal.getsignal(signal.SIGINT)):  # of a command that was begun deaf to Ctrl-C
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in asked}
    signal.signal(signal.SIGTERM, note)
    if before[signal.SIGHUP] is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, note)
    signal.signal(signal.SIGUSR1, lambda number, frame: (run / LEAVE).touch())
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _port(address: str) -> str:
    """What tells clusters apart: a host has several names."""
    return address.rpartition(":")[2]


@contextlib.contextmanager
def _progress(metrics: Path, steps: int) -> Iterator[None]:
    """Print the newest step of what rank 0 appends to metrics.jsonl: every second on a terminal, else every ten.

    Beside it, how many records were replaced and positions passed over so far: lines of events.jsonl.
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
                    lines = events.read_bytes() if events.exists() else b""
                    replaced = lines.count(b'"pack"')
                    skipped = lines.count(b"\n") - replaced
                    told = f"  {replaced} records replaced ({events})" if replaced else ""
                    told += f"  {skipped} positions passed over ({events})" if skipped else ""
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
