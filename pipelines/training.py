"""What a training is: an architecture, a mixture, an optimizer, a length. Values only; `train.py` runs them.

The run key hashes what changes the mathematics; `execution` says how the same mathematics is computed, outside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from dataflow.mixture import Mixture


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """torch's AdamW with linear warm-up and a cosine down to `minimum_rate`; `clip` bounds the global gradient norm."""

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    minimum_rate: float = 0.0
    clip: float = 1.0  # DeepSpeed 0.19 clips at 1.0 when nothing is said; 0 switches it off

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or min(self.clip, self.warmup_steps, self.weight_decay, self.minimum_rate) < 0:
            raise ValueError(f"{self}: the learning rate is over 0, the other numbers are not under 0")
        if not all(0 <= beta < 1 for beta in self.betas) or self.eps <= 0 or self.minimum_rate > self.learning_rate:
            raise ValueError(f"{self}: betas are 0 to under 1, eps is over 0, minimum_rate not over the learning rate")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a training is computed: nothing here changes its result beyond rounding."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    micro_batch: int = 8  # rows of one forward pass on one rank
    dtype: Literal["float32", "bfloat16"] = "float32"
    features: Literal["computed", "stored"] = "computed"  # of frozen encoders; `interlace measure` stores them
    save_every: int = 50  # steps between checkpoints
    keep: int = 2  # newest checkpoints kept


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
    batch: records of one optimizer step, over all ranks.
    steps: optimizer steps; None: as many as the amounts of the mixture last for, which takes built corpora to tell.
    start_from: the training, or the folder of a run, whose last weights this one begins with; optimizer and schedule
    are new.
    """

    name: str
    architecture: Any
    mixture: Mixture
    optimizer: AdamW
    batch: int
    steps: int | None
    sequence_length: int
    seed: int = 0
    start_from: Training | Weights | None = None
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", self.name):
            raise ValueError(f"training name {self.name!r}: it names a folder; use a-z, 0-9, '.', '_' and '-'")
        if not isinstance(self.mixture, Mixture) or not isinstance(self.optimizer, AdamW):
            raise ValueError(f"training {self.name}: mixture must be a Mixture, optimizer an AdamW")
        for name in ("batch", "steps", "sequence_length"):
            number = getattr(self, name)
            if name == "steps" and number is None:
                continue
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"training {self.name}: {name}={number!r} must be a whole number from 1")

    version: ClassVar[int] = 1
