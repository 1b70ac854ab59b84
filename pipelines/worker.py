"""What one rank does: the training loop. `train.py` starts it in Ray Train's processes; alone it needs a process group.

Every number that decides something (where to resume, the counts a loss is divided by, whether to stop) is the same on
all ranks; rank 0 alone writes. Nothing of a step depends on the step before but the weights and AdamW's moments, so a
resumed run repeats the interrupted one to the last digit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor, distributed

from dataflow.build import write_atomically
from dataflow.reader import Replaced, event_line, events_digest, made_ahead, read_events
from models.interface import Architecture
from pipelines import checkpoint, features, zero
from pipelines.average import Average
from pipelines.batching import Micro, RecordBatches
from pipelines.step import alone
from pipelines.train import Batches
from pipelines.training import Training

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LEFTOVER_WRITER = 120.0  # seconds the ranks of a killed driver may take to go


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One optimizer step. Means and counts over all ranks and micro-batches; None: nothing of it was in the step."""

    losses: dict[str, float | None]
    total: float
    counts: dict[str, int]
    fed: dict[str, int]  # records each source gave
    tokens: dict[str, int]  # and their tokens
    drawn: dict[str, int]  # of these, tokens of pictures that are answers
    replaced: list[Replaced]  # records that could not be read
    norm: float  # of the gradient, before clipping


def work(config: dict[str, Any]) -> None:
    """One rank's share of `train.fit`: Ray Train's entry. A rank that fails leaves its traceback in the attempt."""
    try:
        _work(**config)
    except Exception:
        (config["attempt"] / f"rank-{distributed.get_rank()}.txt").write_text(traceback.format_exc())
        raise


def _work(training: Training, run: Path, batches: Batches, attempt: Path) -> None:
    rank, world = distributed.get_rank(), distributed.get_world_size()
    execution, steps = training.execution, training.steps
    assert steps is not None
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before any collective: NCCL would meet on device 0
    else:
        torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        if rank == 0:  # the ranks of a driver that was killed may still be writing
            stack.enter_context(alone(run / "ray" / "lock", run.name, patience=LEFTOVER_WRITER))
        architecture: Architecture = training.architecture.build()
        told, _ = checkpoint.begin(run, architecture.module)
        if told and rank == 0:
            print(told, flush=True)
        known = read_events(run / "events.jsonl")
        if isinstance(batches, RecordBatches):
            batches = replace(batches, known=tuple(known))
        digests = {
            "batches": batches.digest,
            "encoder": _digest(architecture.encoder.state_dict().items()),
            "frozen": _digest((name, p) for name, p in architecture.module.named_parameters() if not p.requires_grad),
        }
        _agree(digests)
        if execution.features == "stored":
            assert isinstance(batches, RecordBatches)
            name = json.loads((run / "recipe.json").read_bytes())["recipe"]
            batches = features.stored(batches, architecture, name, run.parent.parent)
            assert batches.stored is not None
            _agree({"features": str(batches.stored.folders)})
        engine = zero.engine(
            architecture.module,
            training.optimizer,
            execution,
            care=architecture.care,
            rows_per_rank_micro=execution.micro_batch,
            accumulation=max(1, math.ceil(training.batch / (world * execution.micro_batch))),
        )
        architecture.encoder.to(engine.device).eval().requires_grad_(False)
        decay = training.optimizer.average
        average = None if decay is None else Average(engine, decay)
        start, losses = _resume(run, engine, average, digests, known)

        journal = stack.enter_context(_journal(run, start)) if rank == 0 else None

        def fetch(position: int) -> list[Micro]:
            return batches(position, rank, world, execution.micro_batch)

        events = list(known)
        ahead = stack.enter_context(contextlib.closing(made_ahead(fetch, range(start, steps), ahead=1)))
        for position in range(start, steps):
            began = time.perf_counter()
            items = next(ahead)
            waited = time.perf_counter() - began
            _seed(training.seed, position, rank)
            rate = zero.rate(training.optimizer, position, steps)
            outcome = _step(engine, architecture, items, batches.sources, position, rate, run)
            if average is not None:
                average.update(position + 1)
            events += outcome.replaced
            _within_budget(events, execution.max_replaced)
            losses = outcome.losses
            if journal is not None:
                seconds = {"seconds": time.perf_counter() - began, "data_seconds": waited}
                journal.add(position + 1, outcome, rate, seconds, attempt)
            if not math.isfinite(outcome.total + outcome.norm):
                raise ValueError(
                    f"step {position + 1}: losses {outcome.losses}, gradient norm {outcome.norm}: must be finite; "
                    f"lower optimizer.learning_rate or optimizer.clip, or look at the records of position {position}; "
                    "checkpoints of earlier steps are untouched"
                )
            if (position + 1) % execution.save_every == 0 or position + 1 == steps:
                state = {
                    "step": position + 1,
                    "position": position + 1,
                    "digests": digests,
                    "events": events_digest(events, position + 1),
                    "losses": losses,
                }
                folder = run / "checkpoints" / f"step-{position + 1:06d}"
                checkpoint.save(folder, engine, state=state, average=average)
                if rank == 0:
                    checkpoint.prune(run / "checkpoints", execution.keep)
        if rank == 0:
            done = json.dumps({"steps": steps, "losses": losses}, indent=1) + "\n"
            write_atomically(run / "done.json", done.encode())
        distributed.barrier()


def _step(
    engine: zero.Engine,
    architecture: Architecture,
    items: list[Micro],
    sources: tuple[str, ...],
    position: int,
    rate: float,
    run: Path,
) -> Outcome:
    """Forward and backward over this rank's micro-batches, then one optimizer step."""
    world = distributed.get_world_size()
    held = everywhere(architecture, items, len(sources), engine.device)
    if held.items != world * len(items) or not items:
        raise ValueError(
            f"position {position} gives this rank {len(items)} micro-batches and {world} ranks {held.items} together: "
            "every rank needs equally many, at least one; pad with micro-batches without targets"
        )
    replaced = _tell(run, items) if held.unread else []
    sums = learn(engine, architecture, items, held.counts)
    norm = zero.step(engine, rate)
    distributed.all_reduce(sums)
    means = {
        name: value / count if count else None
        for (name, count), value in zip(held.counts.items(), sums.tolist(), strict=True)
    }
    return Outcome(
        losses=means,
        total=sum(architecture.weights[name] * mean for name, mean in means.items() if mean is not None),
        counts=held.counts,
        fed=_by_source(sources, held.fed),
        tokens=_by_source(sources, held.tokens),
        drawn=_by_source(sources, held.drawn),
        replaced=replaced,
        norm=norm,
    )


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a position holds over all ranks and micro-batches; fed, tokens, drawn: of each source, as `Micro` has them.

    items: micro-batches. unread: records that could not be read. counts: targets of each modality.
    """

    items: int
    unread: int
    counts: dict[str, int]
    fed: list[int]
    tokens: list[int]
    drawn: list[int]


def everywhere(architecture: Architecture, items: list[Micro], sources: int, device: torch.device) -> Held:
    """What all ranks hold together, in one all-reduce. Collective; ranks may disagree in how many items they have."""
    names = list(architecture.weights)
    counts = [architecture.counts(item.batch) for item in items]
    learned = [sum(count[name] for count in counts) for name in names]
    given = [sum(item.fed[place] for item in items) for place in range(sources)]
    taken = [sum(item.tokens[place] for item in items if item.tokens) for place in range(sources)]
    drawn = [sum(item.drawn[place] for item in items if item.drawn) for place in range(sources)]
    table = torch.tensor(
        [len(items), sum(len(item.replaced) for item in items), *learned, *given, *taken, *drawn], device=device
    )
    distributed.all_reduce(table)
    number, unread, *told = table.tolist()
    shared, of_sources = told[: len(names)], told[len(names) :]
    fed, tokens, answers = (of_sources[place * sources : (place + 1) * sources] for place in range(3))
    return Held(
        items=number,
        unread=unread,
        counts=dict(zip(names, shared, strict=True)),
        fed=fed,
        tokens=tokens,
        drawn=answers,
    )


def learn(engine: zero.Engine, architecture: Architecture, items: list[Micro], counts: dict[str, int]) -> Tensor:
    """Forward and backward over this rank's micro-batches: the gradients of a whole step. Collective.

    The loss of the step is sum over modalities of weight * (sum over everything) / (count over everything), so how rows
    are dealt to micro-batches and ranks does not show in it. DeepSpeed averages gradients over ranks: hence `world`.

    Args:     counts: targets of each modality over all ranks and micro-batches of the step; 0 is safe.
    Returns:  this rank's sum of each loss, float64[modalities] in the order of `counts`.
    """
    world, device, weights = distributed.get_world_size(), engine.device, architecture.weights
    factors = {name: weights[name] * world / max(count, 1) for name, count in counts.items()}
    sums = torch.zeros(len(counts), dtype=torch.float64, device=device)
    for index, item in enumerate(items):
        there = item.batch.to(device)
        with torch.no_grad():
            given = architecture.encode(there) if item.parts is None else architecture.together(item.parts, there)
        losses: dict[str, Tensor] = engine(there, given, item.draw)
        total = sum(losses[name].float() * factor for name, factor in factors.items())
        assert isinstance(total, Tensor)
        zero.backward(engine, total, last=index == len(items) - 1)
        sums += torch.stack([losses[name].detach().double() for name in counts])
    return sums


def _tell(run: Path, items: list[Micro]) -> list[Replaced]:
    """What any rank has just replaced in this position, in order: it is in the run's events, on the disk."""
    heard: list[list[Replaced]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(heard, [event for item in items for event in item.replaced])
    events = sorted((event for told in heard for event in told), key=lambda event: event.place)
    if distributed.get_rank() == 0:
        with (run / "events.jsonl").open("a") as stream:
            stream.write("".join(map(event_line, events)))
            stream.flush()
            os.fsync(stream.fileno())
        for event in events:
            print(event.line(), flush=True)
    distributed.barrier()
    return events


def _within_budget(events: list[Replaced], most: int) -> None:
    """ValueError: more records of a source could not be read than a run goes on without."""
    if events:
        unread = {(event.source, event.key) for event in events}  # once, in however many passes
        (source, count), *_ = Counter(source for source, _ in unread).most_common(1)
        if count > most:
            last = next(event for event in reversed(events) if event.source == source)
            raise ValueError(
                f"{count} records of {source} could not be read, over execution.max_replaced={most}; the last: "
                f"{last.key}: {last.why}; run interlace verify on its corpus, build it again, or raise the limit"
            )


def _by_source(sources: tuple[str, ...], fed: list[int]) -> dict[str, int]:
    """Records by source; a source may stand in a mixture twice."""
    return {source: sum(n for name, n in zip(sources, fed, strict=True) if name == source) for source in sources}


def _resume(
    run: Path, engine: zero.Engine, average: Average | None, digests: dict[str, str], known: list[Replaced]
) -> tuple[int, dict[str, float | None]]:
    """Load the newest checkpoint. Returns the position to go on from and the losses at it; 0 and none at a beginning.

    Raises:  ValueError when the checkpoint was made on other data, or beside other frozen weights.
    """
    newest = [str(checkpoint.latest(run / "checkpoints") or "")]
    distributed.broadcast_object_list(newest, src=0, device=engine.device)
    if not newest[0]:
        return 0, {}
    state = checkpoint.load(Path(newest[0]), engine, average=average)
    for name, digest in digests.items():
        if state["digests"][name] != digest:
            raise ValueError(
                f"{newest[0]} was made with {name} {state['digests'][name]}, this training has {name} {digest}: "
                "a run resumes with what it was begun with; restore that, or take another run folder"
            )
    if state["events"] != events_digest(known, state["position"]):
        raise ValueError(
            f"{run / 'events.jsonl'} does not tell what was replaced up to position {state['position']} as "
            f"{newest[0]} has it: restore the file"
        )
    return state["position"], state["losses"]


def _agree(digests: dict[str, str]) -> None:
    """Refuse ranks that built different frozen weights or see different data: their gradients would be mixed."""
    heard: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(heard, digests)
    for rank, other in enumerate(heard):
        for name, digest in heard[0].items():
            if other[name] != digest:
                raise ValueError(
                    f"rank {rank} has {name} {other[name]}, rank 0 has {digest}: all ranks must build the same; "
                    "take random weights from a seed in the config, and pin hub ids by revision"
                )


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 of named tensors, to the last bit."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _seed(seed: int, position: int, rank: int) -> None:
    """Whatever draws from torch's global state (dropout in a pretrained part) is a function of the position, too."""
    torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {position} {rank}".encode()).digest()[:8], "big") >> 1)


@dataclass(frozen=True)
class Journal:
    """metrics.jsonl, a line per step in full precision, and the same as TensorBoard scalars."""

    lines: TextIO
    board: SummaryWriter

    def add(self, step: int, outcome: Outcome, rate: float, seconds: dict[str, float], attempt: Path) -> None:
        """step: optimizer steps taken, this one included."""
        line = {
            "step": step,
            "losses": outcome.losses,
            "total": outcome.total,
            "counts": outcome.counts,
            "fed": outcome.fed,
            "tokens": outcome.tokens,
            "drawn": outcome.drawn,
            "rate": rate,
            "norm": outcome.norm,
            **seconds,
            "attempt": int(attempt.name.removeprefix("attempt-")),
        }
        self.lines.write(json.dumps(line) + "\n")
        self.lines.flush()
        scalars = {f"loss/{name}": loss for name, loss in outcome.losses.items() if loss is not None}
        scalars |= {"total": outcome.total, "rate": rate, "norm": outcome.norm, **seconds}
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)


@contextlib.contextmanager
def _journal(run: Path, start: int) -> Iterator[Journal]:
    """Append to the journal, from after its last whole line: a killed rank may have left half of one."""
    from torch.utils.tensorboard import SummaryWriter

    path = run / "metrics.jsonl"
    path.touch()
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    with path.open("a") as lines, SummaryWriter(str(run / "tensorboard"), purge_step=start + 1) as board:
        yield Journal(lines, board)
