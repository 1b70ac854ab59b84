"""What a training is: an architecture, a mixture, an optimizer, a length. Values only; `train.py` runs them.

The run key hashes what changes the mathematics; `execution` says how the same mathematics is computed, outside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from dataflow.mixture import Mixture
from dataflow.packing import Packing
from models.bounds import SEED, over_zero, refused, whole, within

LONGEST_NAME = 200  # letters: with a key after it, it names a folder, and 255 is what a disk takes
STEPS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """torch's AdamW with linear warm-up and a cosine down to `minimum_rate`; `clip` bounds the global gradient norm.

    average: decay of a running mean of what is trained (EMA), which is then what samples, evaluations, exports and
    later trainings take; None: what the last step left.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    minimum_rate: float = 0.0
    clip: float = 1.0  # DeepSpeed 0.19 clips at 1.0 when nothing is said; 0 switches it off
    average: float | None = None

    def __post_init__(self) -> None:
        over_zero(self, "learning_rate", "eps")
        within(self, 0, self.learning_rate, "minimum_rate")
        within(self, 0, 1e9, "clip", "weight_decay")
        within(self, 0, 1, "betas")
        if 1 in self.betas:
            raise refused(self, "betas", "must be under 1")
        whole(self, "warmup_steps", least=0, most=STEPS)
        if self.average is not None and not 0 < self.average < 1:
            raise refused(self, "average", "must be over 0 and under 1, as 0.9999, or nothing")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a training is computed: nothing here changes its result beyond rounding."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    micro_batch: int = 8  # rows of one forward pass on one rank
    dtype: Literal["float32", "bfloat16"] = "float32"
    decode_threads: int = 0  # of each rank, that decode its pictures; 0: while a step runs, one decodes the next
    features: Literal["computed", "stored"] = "computed"  # of frozen encoders; `interlace measure` stores them
    recompute: Literal["none", "layers"] = "none"  # layers: backward runs each again, so activations of one are kept
    save_every: int = 50  # steps between checkpoints
    saves: Literal["beside", "between"] = "beside"  # the steps: rank 0 holds a copy while it writes; between: no copy
    keep: int = 2  # newest checkpoints kept
    keep_every: int = 0  # steps; checkpoints at their multiples stay for good; 0: none does
    patience: int = 600  # seconds that a rank may stand still before the run is ended
    restarts: int = 3  # attempts that are begun by themselves after one was killed, without a new checkpoint between
    least_workers: int = 1  # that a run goes on with while the cluster lacks nodes
    shards: Literal["trusted", "checked"] = "trusted"  # checked: hashed when first read, as a store's always are
    max_replaced: int = 100  # records of one source that could not be read, each counted once, before a run stops
    sample_every: int = 0  # steps between answers to `prompts`, each from the next checkpoint; 0: none
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole(self, "zero_stage", least=0, most=3)
        whole(self, "micro_batch")
        whole(self, "save_every", "keep", "patience", "least_workers", most=STEPS)
        whole(self, "keep_every", "restarts", least=0, most=STEPS)
        whole(self, "decode_threads", least=0, most=1024)
        whole(self, "max_replaced", "sample_every", least=0, most=STEPS)
        if not all(prompt.strip() for prompt in self.prompts):
            raise refused(self, "prompts", "must be words, none of them empty")


@dataclass(frozen=True, kw_only=True)
class Spikes:
    """Which steps are undone: the run goes back to its newest checkpoint and passes over their positions.

    A step is one where its loss or its gradient's norm is no finite number, or lies more than `sigmas` deviations over
    the mean of the last `window` steps; the first `window` steps are judged by finiteness alone.
    most: positions passed over before the run ends.
    Source: OLMo-core's skipped steps, 6 deviations over 128 steps; PaLM section 5.1, which goes back and skips data.
    """

    sigmas: float = 6.0
    window: int = 128
    most: int = 10

    def __post_init__(self) -> None:
        over_zero(self, "sigmas")
        whole(self, "window", least=2, most=100_000)
        whole(self, "most", most=STEPS)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The last weights of a finished run's folder, trained here or imported; nothing else of it counts.

    path: WHERE it lies now, so it names no run. sha256: of its parameters.safetensors, which does; None: whatever lies
    there when the training begins.
    """

    path: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256={self.sha256!r}: 64 hex digits, as in the run's state.json, or nothing")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run of one architecture on one mixture.

    architecture: a config with `tasks`, `layout()`, `seen`, `drawn` and `build()` (models/interface.py).
    batch: rows of one optimizer step, over all ranks. sequence_length: tokens of a row.
    packing: how rows hold several records; None: each holds one.
    steps: optimizer steps; None: as many as the amounts of the mixture last for, which takes built corpora to tell.
    start_from: the training, or the folder of a run, whose last weights this one begins with; optimizer and schedule
    are new.
    spikes: steps to undo; None: a step that is not finite ends the run, nothing else is judged.
    """

    name: str
    architecture: Any
    mixture: Mixture
    optimizer: AdamW
    batch: int
    steps: int | None
    sequence_length: int
    packing: Packing | None = None
    seed: int = 0
    start_from: Training | Weights | None = None
    spikes: Spikes | None = None
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", self.name):
            told = self.name if len(self.name) <= 80 else f"{self.name[:80]}..."
            raise ValueError(f"training name {told!r}: it names a folder; use a-z, 0-9, '.', '_' and '-'")
        if len(self.name) > LONGEST_NAME:
            told = f"training name {self.name[:40]}... has {len(self.name)} letters"
            raise ValueError(f"{told}: it names a folder; use {LONGEST_NAME} at most")
        if not isinstance(self.mixture, Mixture) or not isinstance(self.optimizer, AdamW):
            raise ValueError(f"training {self.name}: mixture must be a Mixture, optimizer an AdamW")
        whole(self, "batch", "sequence_length")
        whole(self, *(() if self.steps is None else ("steps",)), most=STEPS)
        whole(self, "seed", least=0, most=SEED)
        if self.shortened_to is not None and self.execution.features == "stored":
            raise ValueError(
                "execution.features=stored: they are of whole records, packing.too_long=shorten trains parts of some: "
                "use features=computed, or too_long=drop"
            )

    @property
    def shortened_to(self) -> int | None:
        """Tokens that longer records are shortened to; None where they stay as they are."""
        shortens = self.packing is not None and self.packing.too_long == "shorten"
        return self.sequence_length if shortens else None

    version: ClassVar[int] = 1
