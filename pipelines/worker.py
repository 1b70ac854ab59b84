"""What one rank does: the training loop. `train.py` starts it in Ray Train's processes; alone it needs a process group.

Every number that decides something (where to resume, the counts a loss is divided by, whether to stop) is the same on
all ranks; rank 0 alone writes. Nothing of a step depends on the step before but the weights and AdamW's moments, so a
resumed run repeats the interrupted one to the last digit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from dataflow.build import write_atomically
from dataflow.reader import Replaced, Skipped, event_line, events_digest, made_ahead, read_events, read_skips
from models.interface import Architecture
from pipelines import checkpoint, features, learning, zero
from pipelines.average import Average
from pipelines.batching import Micro, RecordBatches
from pipelines.journal import Journal, journal
from pipelines.step import alone
from pipelines.symmetry import Symmetry
from pipelines.train import LEAVE, Batches
from pipelines.training import Training
from pipelines.watchdog import Watchdog

LEFTOVER_WRITER = 120.0  # seconds the ranks of a killed driver may take to go


def work(config: dict[str, Any]) -> None:
    """One rank's share of `train.fit`: Ray Train's entry. A rank that fails leaves its traceback in the attempt."""
    try:
        _work(**config)
    except Exception:
        (config["attempt"] / f"rank-{distributed.get_rank()}.txt").write_text(traceback.format_exc())
        raise


def _work(training: Training, run: Path, batches: Batches, attempt: Path) -> None:
    rank, world = distributed.get_rank(), distributed.get_world_size()
    execution = training.execution
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before any collective: NCCL would meet on device 0
    else:
        torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(attempt, rank, world, execution.patience).watching())
        if rank == 0:  # the ranks of a driver that was killed may still be writing
            stack.enter_context(alone(run / "ray" / "lock", run.name, patience=LEFTOVER_WRITER))
        architecture: Architecture = training.architecture.build()
        told, _ = checkpoint.begin(run, architecture.module)
        if told and rank == 0:
            print(told, flush=True)
        replaced = read_events(run / "events.jsonl")
        if isinstance(batches, RecordBatches):
            batches = dataclasses.replace(batches, known=tuple(replaced))
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
        saver = stack.enter_context(
            contextlib.closing(checkpoint.Saver(run / "checkpoints", engine, average, execution))
        )
        loop = Loop(
            training=training,
            run=run,
            batches=batches,
            attempt=attempt,
            architecture=architecture,
            engine=engine,
            average=average,
            digests=digests,
            watchdog=watchdog,
            symmetry=Symmetry(engine.module, engine.device, lambda position: _read_at(batches, position)),
            saver=saver,
            events=[*replaced, *read_skips(run / "events.jsonl")],
        )
        loop.resume()
        loop.journal = stack.enter_context(journal(run, loop.position)) if rank == 0 else None
        while loop.position < loop.steps and not loop.leaving:
            loop.go_on()
        watchdog.at("waits for the last checkpoint")
        saver.wait()
        if rank == 0 and loop.position == loop.steps:
            done = json.dumps({"steps": loop.steps, "losses": loop.losses}, indent=1) + "\n"
            write_atomically(run / "done.json", done.encode())
        distributed.barrier()


@dataclass(kw_only=True)
class Loop:
    """The steps of one rank, from a position on. All that it decides by is the same on every rank."""

    training: Training
    run: Path
    batches: Batches
    attempt: Path
    architecture: Architecture
    engine: zero.Engine
    average: Average | None
    digests: dict[str, str]
    watchdog: Watchdog
    symmetry: Symmetry
    saver: checkpoint.Saver
    events: list[Replaced | Skipped]
    journal: Journal | None = None
    position: int = 0
    losses: dict[str, float | None] = field(default_factory=dict)
    recent: list[tuple[float, float]] = field(default_factory=list)  # total loss and norm of the last steps
    leaving: bool = False  # it was told to: the checkpoint of its position is the newest

    @property
    def steps(self) -> int:
        """Of the whole training."""
        assert self.training.steps is not None
        return self.training.steps

    def resume(self) -> bool:
        """Take the newest checkpoint: position, losses, what is to be judged by. False where there is none.

        Raises:  ValueError when it was made on other data, or beside other frozen weights.
        """
        self.watchdog.at("resumes")
        self.saver.wait()
        newest = [str(checkpoint.latest(self.run / "checkpoints") or "")]
        distributed.broadcast_object_list(newest, src=0, device=self.engine.device)
        if not newest[0]:
            return False
        state = checkpoint.load(Path(newest[0]), self.engine, average=self.average)
        for name, digest in self.digests.items():
            if state["digests"][name] != digest:
                raise ValueError(
                    f"{newest[0]} was made with {name} {state['digests'][name]}, this training has {name} {digest}: "
                    "a run resumes with what it was begun with; restore that, or take another run folder"
                )
        if state["events"] != events_digest(self.events, state["position"]):
            raise ValueError(
                f"{self.run / 'events.jsonl'} does not tell what was replaced up to position {state['position']} as "
                f"{newest[0]} has it: restore the file"
            )
        self.position, self.losses = state["position"], state["losses"]
        self.recent = [(total, norm) for total, norm in state.get("recent", ())]
        return True

    def go_on(self) -> None:
        """Step to the last position, or until it is told to leave, or a step is undone: then the position is that of a
        checkpoint before it."""
        rank, world = distributed.get_rank(), distributed.get_world_size()

        def begin(position: int) -> Callable[[], list[Micro]]:
            return partial(self.batches, position, rank, world, self.training.execution.micro_batch)

        saving = 0.0
        with contextlib.closing(made_ahead(begin, self._coming(), ahead=1)) as ahead:
            for position in self._coming():
                began = time.perf_counter()
                self.watchdog.at(f"reads the records of position {position}")
                items = next(ahead)
                waited = time.perf_counter() - began
                self.watchdog.at(f"trains position {position}")
                outcome, rate = self._step(items, position)
                wrong = self._wrong(outcome)
                if wrong:
                    self._undo(position, wrong)
                    return
                self.losses = outcome.losses
                if self.journal is not None:
                    now = time.perf_counter()
                    seconds = {"seconds": now - began, "data_seconds": waited, "save_seconds": saving}
                    self.journal.add(position + 1, outcome, rate, seconds, self.attempt)
                self.position = position + 1
                self.saver.look()
                due = self.leaving or self.position % self.training.execution.save_every == 0
                saving = self._saved() if due else 0.0
                if self.leaving:
                    return
        if self.position < self.steps or self.steps % self.training.execution.save_every:
            self.position = self.steps
            self._saved()

    def _coming(self) -> Iterator[int]:
        """The positions from here on that are not passed over."""
        passed = {event.position for event in self.events if isinstance(event, Skipped)}
        return (position for position in range(self.position, self.steps) if position not in passed)

    def _step(self, items: list[Micro], position: int) -> tuple[learning.Outcome, float]:
        """Forward and backward over this rank's micro-batches, then one optimizer step; and its learning rate."""
        training, world = self.training, distributed.get_world_size()
        sources, kinds = self.batches.sources, self.batches.kinds
        _seed(training.seed, position, distributed.get_rank())
        told = distributed.get_rank() == 0 and (self.run / LEAVE).exists()
        held = learning.everywhere(self.architecture, items, len(sources), self.engine.device, leaving=told)
        self.leaving = held.leaving
        if held.items != world * len(items) or not items:
            raise ValueError(
                f"position {position} gives this rank {len(items)} micro-batches and {world} ranks {held.items} "
                "together: every rank needs equally many, at least one; pad with micro-batches without targets"
            )
        replaced = _tell(self.run, items) if held.unread else []
        self.symmetry.begin(position)
        learned = learning.learn(self.engine, self.architecture, items, held.counts, len(kinds))
        self.symmetry.end()
        rate = zero.rate(training.optimizer, position, self.steps)
        norm = zero.step(self.engine, rate)
        if self.average is not None:
            self.average.update(position + 1)
        learned = learned.everywhere()
        means = {
            name: value / count if count else None
            for (name, count), value in zip(held.counts.items(), learned.sums.tolist(), strict=True)
        }
        self.events += replaced
        _within_budget(self.events, training.execution.max_replaced)
        weights = self.architecture.weights
        outcome = learning.Outcome(
            losses=means,
            total=sum(weights[name] * mean for name, mean in means.items() if mean is not None),
            counts=held.counts,
            fed=learning.by_source(sources, held.fed),
            tokens=learning.by_source(sources, held.tokens),
            drawn=learning.by_source(sources, held.drawn),
            places=held.places,
            norm=norm,
            by=learned.by(kinds, list(held.counts)),
        )
        return outcome, rate

    def _wrong(self, outcome: learning.Outcome) -> str:
        """Why a step must not stand; "" where it may, and later ones are judged by it."""
        losses = " ".join(f"{name} {loss:.4g}" for name, loss in outcome.losses.items() if loss is not None)
        told = f"losses {losses}, gradient norm {outcome.norm:.4g}"
        if not math.isfinite(outcome.total + outcome.norm):
            return f"{told}: must be finite"
        spikes = self.training.spikes
        if spikes is None:
            return ""
        if len(self.recent) == spikes.window:
            for name, value, before in zip(
                ("loss", "gradient norm"), (outcome.total, outcome.norm), zip(*self.recent, strict=True), strict=True
            ):
                mean, deviation = statistics.fmean(before), statistics.pstdev(before)
                if value > mean + spikes.sigmas * deviation:
                    return (
                        f"{told}: its {name} is over {mean:.4g} + {spikes.sigmas:g} x {deviation:.4g} of the "
                        f"{spikes.window} steps before (spikes.sigmas)"
                    )
        self.recent = [*self.recent, (outcome.total, outcome.norm)][-spikes.window :]
        return ""

    def _undo(self, position: int, wrong: str) -> None:
        """Back to the newest checkpoint; the position will be passed over, as events.jsonl says from now on.

        Raises:  ValueError where nothing is to be undone, or too much was, or there is no checkpoint.
        """
        spikes = self.training.spikes
        if spikes is None:
            raise ValueError(
                f"step {position + 1}: {wrong}; lower optimizer.learning_rate or optimizer.clip, look at the records "
                f"of position {position}, or set spikes to pass over it; checkpoints of earlier steps are untouched"
            )
        skipped = Skipped(position=position, why=wrong)
        passed = sum(isinstance(event, Skipped) for event in self.events)
        if passed == spikes.most:
            raise ValueError(
                f"{skipped.line()}; it would be one more than spikes.most={spikes.most}: lower "
                "optimizer.learning_rate, or look at the records of the positions in events.jsonl"
            )
        self.events.append(skipped)
        if distributed.get_rank() == 0:
            _append(self.run, [skipped])
        distributed.barrier()
        if not self.resume():
            raise ValueError(
                f"{skipped.line()}; there is no checkpoint yet to go back to: the same command begins again without "
                "it, a smaller execution.save_every loses less"
            )

    def _saved(self) -> float:
        """A checkpoint of the position; the seconds that this loop stood still for it."""
        began = time.perf_counter()
        self.watchdog.at(f"saves step {self.position}")
        state = {
            "step": self.position,
            "position": self.position,
            "digests": self.digests,
            "events": events_digest(self.events, self.position),
            "losses": self.losses,
            "recent": self.recent,
        }
        self.saver.save(self.position, state)
        return time.perf_counter() - began


def _tell(run: Path, items: list[Micro]) -> list[Replaced]:
    """What any rank has just replaced in this position, in order: it is in the run's events, on the disk."""
    heard: list[list[Replaced]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(heard, [event for item in items for event in item.replaced])
    events = sorted((event for told in heard for event in told), key=lambda event: event.place)
    if distributed.get_rank() == 0:
        _append(run, events)
    distributed.barrier()
    return events


def _append(run: Path, events: Sequence[Replaced | Skipped]) -> None:
    """To the run's events, on the disk, and told."""
    with (run / "events.jsonl").open("a") as stream:
        stream.write("".join(map(event_line, events)))
        stream.flush()
        os.fsync(stream.fileno())
    for event in events:
        print(event.line(), flush=True)


def _within_budget(told: list[Replaced | Skipped], most: int) -> None:
    """ValueError: more records of a source could not be read than a run goes on without."""
    events = [event for event in told if isinstance(event, Replaced)]
    if events:
        unread = {(event.source, event.key) for event in events}  # once, in however many passes
        (source, count), *_ = Counter(source for source, _ in unread).most_common(1)
        if count > most:
            last = next(event for event in reversed(events) if event.source == source)
            raise ValueError(
                f"{count} records of {source} could not be read, over execution.max_replaced={most}; the last: "
                f"{last.key}: {last.why}; run interlace verify on its corpus, build it again, or raise the limit"
            )


def _read_at(batches: Batches, position: int) -> str:
    """The shards that this rank reads at a position; of batches without any, their sources."""
    if not isinstance(batches, RecordBatches):
        return ", ".join(batches.sources)
    reader, found = batches.reader, dict[str, None]()
    packs = batches.schedule.packs(position)
    mine = batches.deal(position, distributed.get_rank(), distributed.get_world_size())
    for use in (use for number in mine if number >= 0 for use in packs[number]):
        corpus = reader.corpora[use.member]
        found[f"{reader.schedule.names[use.member]}/{corpus.part(corpus.shard(use.row)).path.name}"] = None
    return ", ".join(found) or "nothing"


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
    number = int.from_bytes(hashlib.sha256(f"{seed} {position} {rank}".encode()).digest()[:8], "big") >> 1
    torch.default_generator.manual_seed(number)  # torch.manual_seed formats a stack for each device that is not there
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(number)
