"""What a training tells while it runs: metrics.jsonl, a line per step in full precision; TensorBoard and W&B.

    {"step": 40, "losses": {"text": 2.8, ...}, "by": {"source": {"cambrian": {"text": 2.1}}, "task": .., "group": ..},
     "counts": targets, "fed": records, "tokens", "drawn": by source, "rate", "norm", "total", "seconds",
     "data_seconds", "save_seconds", "padding": share of the step's places, "peak": {"host": bytes, "device": bytes},
     "time": unix seconds, "attempt": 1}

A run that goes on from a checkpoint writes some steps again: the last line of a step counts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import netrc
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from pipelines.learning import Outcome

_ASKS_FOR_WANDB = ("WANDB_MODE", "WANDB_PROJECT", "WANDB_API_KEY")  # variables of the environment, any of them
_LONGEST_ID = 64  # letters of a W&B run's id
_WANDB_PATIENCE = 30.0  # seconds that its server has to answer, while all ranks wait


class Board(Protocol):
    """Where scalars are drawn while the training runs."""

    def add(self, step: int, scalars: Mapping[str, float]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Journal:
    """metrics.jsonl, and the same as scalars on boards.

    fed: records of each source up to the last step that was told.
    """

    lines: TextIO
    boards: tuple[Board, ...]
    fed: Counter[str]

    def add(self, step: int, outcome: Outcome, rate: float, seconds: Mapping[str, float], attempt: Path) -> None:
        """step: optimizer steps taken, this one included. seconds: that it took, by what took them."""
        line = {
            "step": step,
            "losses": outcome.losses,
            "total": outcome.total,
            "by": outcome.by,
            "counts": outcome.counts,
            "fed": outcome.fed,
            "tokens": outcome.tokens,
            "drawn": outcome.drawn,
            "rate": rate,
            "norm": outcome.norm,
            **seconds,
            "padding": 1 - sum(outcome.tokens.values()) / outcome.places,
            "peak": peak(),
            "time": time.time(),
            "attempt": int(attempt.name.removeprefix("attempt-")),
        }
        self.lines.write(json.dumps(line) + "\n")
        self.lines.flush()
        self.fed.update(outcome.fed)
        scalars = dict(_scalars(line, self.fed))
        for board in self.boards:
            board.add(step, scalars)


@contextlib.contextmanager
def journal(run: Path, start: int) -> Iterator[Journal]:
    """Append to the journal, from after its last whole line: a killed rank may have left half of one."""
    path = run / "metrics.jsonl"
    path.touch()
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    fed = Counter[str]()
    for line in latest(read(run)):
        if line["step"] <= start:
            fed.update(line["fed"])
    recipe = run / "recipe.json"
    value = json.loads(recipe.read_bytes())["value"] if recipe.is_file() else {}
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(path.open("a"))
        boards: list[Board] = [stack.enter_context(_tensorboard(run, start))]
        if wandb_wanted():
            boards += stack.enter_context(_wandb(run, value))
        yield Journal(lines=lines, boards=tuple(boards), fed=fed)


def read(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's journal as they were written; one that a killed rank left half is passed over."""
    path = run / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def latest(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line per step, in the order of steps: of those that were repeated the last."""
    steps = {line["step"]: line for line in lines}
    return [steps[step] for step in sorted(steps)]


def recoveries(lines: Iterable[dict[str, Any]]) -> list[float]:
    """Seconds from the last step of each attempt to the end of the first of the next one."""
    timed = [line for line in lines if "time" in line]
    return [
        after["time"] - before["time"]
        for before, after in itertools.pairwise(timed)
        if after["attempt"] != before["attempt"]
    ]


def peak() -> dict[str, int]:
    """The most bytes that this process has held so far, on its host and, where it has one, on its device."""
    unit = 1 if sys.platform == "darwin" else 1024
    held = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    torch = sys.modules.get("torch")  # who has not loaded it holds nothing on a device
    if torch is not None and torch.cuda.is_initialized():
        held["device"] = torch.cuda.max_memory_allocated()
    return held


def wandb_wanted() -> bool:
    """Whether W&B is installed and the environment asks for it: it would upload what a user did not mean to show."""
    asked = any(os.environ.get(name) for name in _ASKS_FOR_WANDB) and os.environ.get("WANDB_MODE") != "disabled"
    found = importlib.util.find_spec("wandb") if asked else None
    return found is not None and found.origin is not None  # a folder of offline runs is no package


def _scalars(line: Mapping[str, Any], fed: Counter[str]) -> Iterator[tuple[str, float]]:
    """The numbers of a line by the name that a board shows them under."""
    for modality, loss in line["losses"].items():
        if loss is not None:
            yield f"loss/{modality}", loss
    for what, names in line["by"].items():
        for name, losses in names.items():
            for modality, loss in losses.items():
                yield f"loss_by_{what}/{name}/{modality}", loss
    yield from ((name, line[name]) for name in ("total", "rate", "norm"))
    yield from ((name, line[name]) for name in line if name == "seconds" or name.endswith("_seconds"))
    yield "tokens", sum(line["tokens"].values())
    yield from ((f"targets/{modality}", count) for modality, count in line["counts"].items())
    records = fed.total()
    yield from ((f"share_of_records/{source}", count / records) for source, count in fed.items() if records)
    yield "padding", line["padding"]
    yield from ((f"gigabytes_at_most/{place}", size / 1e9) for place, size in line["peak"].items())


# ---- boards


@dataclass(frozen=True)
class _TensorBoard:
    """All scalars of a step as one event: writing them one by one takes the loop's time."""

    writer: SummaryWriter

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  made at run time

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        assert self.writer.file_writer is not None
        self.writer.file_writer.add_summary(Summary(value=values), step)


@contextlib.contextmanager
def _tensorboard(run: Path, start: int) -> Iterator[Board]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / "tensorboard"), purge_step=start + 1) as writer:
        yield _TensorBoard(writer)


@dataclass(frozen=True)
class _WandB:
    """Steps are a scalar like others: W&B's own never goes back, and a run that goes on from a checkpoint does."""

    run: Any

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log({"step": step, **scalars})


@contextlib.contextmanager
def _wandb(run: Path, recipe: Mapping[str, Any]) -> Iterator[list[Board]]:
    """No board where it does not start: a training goes on without it, and nobody is asked to log in."""
    import wandb  # pyright: ignore[reportMissingImports]

    try:
        begun = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "interlace"),
            id=run.name[-_LONGEST_ID:],
            name=run.name,
            dir=run,
            config=dict(recipe),
            resume="allow",
            mode=_wandb_mode(wandb.Settings().base_url),
            settings=wandb.Settings(console="off", silent=True, init_timeout=_WANDB_PATIENCE, login_timeout=1),
        )
    except (wandb.Error, ValueError, TimeoutError) as error:  # ValueError: a setting in the environment is none of its
        print(f"W&B is left out ({' '.join(str(error).split())}); WANDB_MODE=offline needs no network", flush=True)
        yield []
        return
    begun.define_metric("step")
    begun.define_metric("*", step_metric="step")
    failed = 1
    try:
        yield [_WandB(begun)]
        failed = 0
    finally:
        begun.finish(exit_code=failed)


def _wandb_mode(server: str) -> Any:
    """What the environment says; if nothing, online for who has a key. Without one, W&B would ask a terminal for it."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    known = bool(os.environ.get("WANDB_API_KEY"))
    with contextlib.suppress(OSError, netrc.NetrcParseError):  # where `wandb login` keeps it
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
        known = known or bool({urlsplit(server).netloc, "api.wandb.ai"} & hosts.keys())
    return "online" if known else "offline"
