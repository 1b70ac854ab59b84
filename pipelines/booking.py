"""Whether a training fits before a GPU is booked: a rank's memory at its peak, the host's, the disk's, and the cure.

    kept        weights, gradients, optimizer, encoders (parameters.py), all the time
  + the larger  of a micro-batch at its peak (memory.py) with buffers of communication, and of what AdamW's step takes
    or, if more, the whole module's weights, with which every rank begins

Rows hold more or less: a training is refused where even its lightest cannot fit, and warned of where its heaviest may
not. What is told to fit fits with the heaviest. CUDA's own memory, about 1 GB of a card, is in none of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from models.interface import Architecture
from pipelines import memory, parameters
from pipelines.memory import Row
from pipelines.parameters import Bytes
from pipelines.training import Execution, Training

MOST = 1 << 14  # GPUs that are tried
LONG = 4  # bytes of a float32


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Bytes of one rank's GPU at its peak, under the lightest and under the heaviest rows."""

    least: int
    most: int


@dataclass(frozen=True, kw_only=True)
class Booking:
    """A training on `nodes` machines of `gpus` GPUs each.

    built: of the training, on the meta device.
    """

    training: Training
    built: Architecture
    nodes: int
    gpus: int
    _peaks: dict[Any, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, training: Training, *, nodes: int, gpus: int) -> Booking:
        """ValueError where a recipe does not spell sizes out, or no record fits into a row."""
        return cls(training=training, built=parameters.built(training), nodes=nodes, gpus=gpus)

    @property
    def ranks(self) -> int:
        """One for each GPU."""
        return self.nodes * self.gpus

    @cached_property
    def rows(self) -> tuple[list[Row], list[Row]]:
        """What rows hold: light and heavy ones."""
        return memory.rows(self.training, memory.vocabulary(self.built.module))

    @cached_property
    def counted(self) -> tuple[parameters.Part, parameters.Part]:
        """Parameters of the module and of the encoders."""
        module, *_ = parameters.parts(self.built.module, self.built.care, "module")
        encoder, *_ = [*parameters.parts(self.built.encoder, self.built.care, "encoders"), _NONE]
        return module, encoder

    def kept(self, execution: Execution, ranks: int) -> Bytes:
        """Of parameters, on a rank."""
        return parameters.bytes_of_a_rank(
            *self.counted,
            ranks=ranks,
            stage=execution.zero_stage,
            dtype=execution.dtype,
            averaged=self.training.optimizer.average is not None,
        )

    def peak(self, execution: Execution, row: Row) -> int:
        """Of a micro-batch of such rows. Between one row and the recipe's number it is drawn as a line: never under."""
        rows, most = execution.micro_batch, self.training.execution.micro_batch
        if rows in (1, most):
            return self._passed(execution, row, rows)
        one, all_ = self._passed(execution, row, 1), self._passed(execution, row, most)
        return one + (all_ - one) * (rows - 1) // (most - 1)

    def _passed(self, execution: Execution, row: Row, rows: int) -> int:
        number = (execution.dtype, execution.recompute, rows, row)
        if number not in self._peaks:
            memory.set_up(self.built, execution)
            batch = memory.batch_of(self.training.architecture, row, rows)
            stored = self.training.execution.features == "stored"
            self._peaks[number] = memory.peak(self.built, batch, stored=stored)
        return self._peaks[number]

    def taken(self, execution: Execution, ranks: int) -> Taken:
        """At the peak; of passes that cannot be told nothing is in it."""
        light, heavy = ([self._told(execution, row) for row in rows] for rows in self.rows)
        least, most = min(light), max(heavy)
        return Taken(least=self._around(least, execution, ranks), most=self._around(most, execution, ranks))

    def _told(self, execution: Execution, row: Row) -> int:
        """The peak, or nothing where it cannot be told."""
        try:
            return self.peak(execution, row)
        except memory.Untold:
            return 0

    def _around(self, peak: int, execution: Execution, ranks: int) -> int:
        """All that a rank needs at once, beside a micro-batch of this peak."""
        kept = self.kept(execution, ranks)
        begun = self.kept(replace(execution, zero_stage=0), ranks).weights  # whole, also where they are then split
        return max(begun, kept.kept + max(peak + kept.buffers, self._stepped(execution, ranks)))

    def _stepped(self, execution: Execution, ranks: int) -> int:
        """What AdamW's step takes for itself: two numbers of each parameter that it steps, of all at once."""
        module, _ = self.counted
        if execution.zero_stage > 0:
            return -(-module.trained // ranks) * 2 * LONG
        return module.trained * 3 * LONG if execution.dtype == "bfloat16" else 0

    def page(self, gpu_memory: float | None = None) -> Iterator[str]:
        """The lines that `interlace plan` prints but for its data. gpu_memory: GB of one GPU."""
        yield from parameters.page(self.training, self.built, nodes=self.nodes, gpus=self.gpus)
        training, execution = self.training, self.training.execution
        taken = self.taken(execution, self.ranks)
        try:
            yield from self._passes()
        except memory.Untold as untold:
            yield f"a micro-batch: not known and not counted below, {untold}"
        yield (
            f"a GPU in all: {_range(taken.least, taken.most)} at execution.zero_stage={execution.zero_stage}, "
            f"{execution.dtype}, and about 1 GB of CUDA's own"
        )
        yield self._steps()
        module, encoder = self.counted
        saved = self.saved
        kept = f"{execution.keep} are kept, {_gigabytes(saved * execution.keep)} GB"
        yield f"a checkpoint: {_gigabytes(saved)} GB on disk, float32; {kept} and one while it is written"
        loaded = self.gpus * (module.total + encoder.total) * LONG
        copied = f", {_gigabytes(saved)} GB more on the first to save" if execution.saves == "beside" else ""
        yield f"host memory of a node: {_gigabytes(loaded)} GB while {self.gpus} ranks load their weights{copied}"
        if gpu_memory is not None and taken.least <= gpu_memory * 1e9 < taken.most:
            yield f"tight: the heaviest rows do not fit into {gpu_memory:g} GB; {self._cure(gpu_memory)}"
        places = memory.positions(self.built.module)
        if places is not None and training.sequence_length > places and training.packing is not None:
            yield f"records of over {places} tokens, if there are any, are longer than the language model was made for"

    def _passes(self) -> Iterator[str]:
        """What a micro-batch takes, by what its rows hold."""
        execution = self.training.execution
        peaks = {row: self.peak(execution, row) for rows in self.rows for row in rows}
        yield (
            f"a micro-batch of {execution.micro_batch} rows, execution.recompute={execution.recompute}, "
            f"features={execution.features}: "
            f"{_range(min(peaks.values()), max(peaks.values()))} at its peak, by what a row holds"
        )
        for row, peak in peaks.items():
            yield f"{peak / 1e9:>9.3f}  {_told(row)}"

    def _steps(self) -> str:
        """How a step's rows are dealt."""
        batch, rows = self.training.batch, self.training.execution.micro_batch
        of_a_rank = math.ceil(batch / self.ranks)
        passes = math.ceil(of_a_rank / rows)
        empty = 1 - batch / (self.ranks * passes * rows)
        told = f"a step: {batch} rows, {passes} micro-batches of {rows} on each of {self.ranks} ranks"
        if batch < self.ranks:
            return f"{told}; {self.ranks - batch} ranks have none and run empty ones: book fewer, or raise batch"
        return f"{told}; {empty:.0%} of the rows are empty" if empty >= 0.005 else told

    @property
    def saved(self) -> int:
        """Bytes of a checkpoint: what is trained, AdamW's moments, the running mean, and buffers that are kept."""
        module, _ = self.counted
        averaged = self.training.optimizer.average is not None
        return module.trained * LONG * (3 + averaged) + _buffers(self.built.module)

    def refused(self, gpu_memory: float | None) -> str | None:
        """Why it cannot work, and what could; None where it can. gpu_memory: GB of one GPU; None: any."""
        training, execution = self.training, self.training.execution
        places = memory.positions(self.built.module)
        if places is not None and training.sequence_length > places and training.packing is None:
            return (
                f"sequence_length={training.sequence_length} is over the {places} positions of the language model: "
                f"set sequence_length={places} or less"
            )
        if gpu_memory is None or (taken := self.taken(execution, self.ranks)).least <= gpu_memory * 1e9:
            return None
        return (
            f"{_range(taken.least, taken.most)} are needed at execution.zero_stage={execution.zero_stage}, "
            f"micro_batch={execution.micro_batch}, recompute={execution.recompute}, dtype={execution.dtype} on "
            f"{self.nodes} x {self.gpus} GPUs, a GPU has {gpu_memory:g} GB: {self._cure(gpu_memory)}"
        )

    def _cure(self, gpu_memory: float) -> str:
        """The fewest changes under which the heaviest rows fit: of how it is executed, else of the number of GPUs."""
        execution = self.training.execution
        changes: dict[str, list[Any]] = {
            "recompute": ["layers"] if execution.recompute == "none" and self._recomputes else [],
            "micro_batch": [execution.micro_batch >> halved for halved in range(1, execution.micro_batch.bit_length())],
            "zero_stage": list(range(execution.zero_stage + 1, 4)),
            "dtype": ["bfloat16"] if execution.dtype == "float32" else [],
        }
        options = [[(name, None), *((name, value) for value in values)] for name, values in changes.items()]
        tried = [{name: value for name, value in each if value is not None} for each in itertools.product(*options)]
        for changed in sorted(tried, key=len):
            if self._fits(replace(execution, **changed), self.ranks, gpu_memory):
                return f"set {_fields(changed)}"
        best = {name: values[-1] for name, values in changes.items() if values}
        last, nodes = replace(execution, **best), self.nodes
        most = min(MOST, self.training.batch)  # more ranks than rows run empty ones
        while (nodes := 2 * nodes) * self.gpus <= most:
            if self._fits(last, nodes * self.gpus, gpu_memory):
                return f"book {nodes} nodes" + (f" and set {_fields(best)}" if best else "")
        most = max(most, self.ranks)
        least = _gigabytes(self.taken(last, most).most)
        return f"nothing fits; {_fields(best) or 'the same'} on {most} GPUs would still take {least} GB of each"

    def _fits(self, execution: Execution, ranks: int, gpu_memory: float) -> bool:
        """Whether the heaviest rows do; no passes are run where there is no room for them in any case."""
        if self._around(0, execution, ranks) > gpu_memory * 1e9:
            return False
        peaks = (self._told(execution, row) for row in self.rows[1])
        return all(self._around(peak, execution, ranks) <= gpu_memory * 1e9 for peak in peaks)

    @cached_property
    def _recomputes(self) -> bool:
        return any(hasattr(part, "gradient_checkpointing") for part in self.built.module.modules())


_NONE = parameters.Part(name="encoders", total=0, trained=0, decayed=0, rates=())


def _buffers(module: nn.Module) -> int:
    """Bytes of the buffers that a module's state has."""
    named = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return sum(tensor.nbytes for name, tensor in module.state_dict().items() if name not in named)


def _fields(changed: dict[str, Any]) -> str:
    return ", ".join(f"execution.{name}={value}" for name, value in changed.items())


def _range(least: float, most: float) -> str:
    """In GB; one number where two would look alike."""
    low, high = _gigabytes(least), _gigabytes(most)
    return f"{low} GB" if low == high else f"{low} to {high} GB"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size >= 1e9 else f"{size / 1e9:.3f}"


def _told(row: Row) -> str:
    """What a row holds, in words."""
    width, learned, read, drawn = row.holds
    told = f"{len(row.documents)} {row.task} in {width} tokens"
    told += f", {learned} learned" if learned else ""
    told += f", {read} of pictures that are read" if read else ""
    return told + (f", pictures that are drawn: {drawn}" if drawn else "")
