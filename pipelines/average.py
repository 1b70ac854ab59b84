"""The running mean of what is trained (EMA), kept where the masters are: each rank averages its own part of them.

    average = decay * average + (1 - decay) * master, after every step

A mean with a decay of 0.9999 remembers its random beginning for ten thousand steps, so the decay begins lower:
(1 + step) / (10 + step) until that is the larger, as diffusers and timm have it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pipelines import checkpoint
from pipelines.zero import Engine


class Average:
    """Of an engine's trained parameters, float32. Begins as what they are now.

    Args:  decay: share of the mean that stays at a step, 0 < decay < 1.
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        self._masters = [master.detach() for master in checkpoint.stepped(engine)]
        self._means = [master.clone() for master in self._masters]
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in what a step left. step: optimizer steps taken, this one included."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for mean, master in zip(self._means, self._masters, strict=True):
            mean.lerp_(master, 1 - decay)

    @contextlib.contextmanager
    @torch.no_grad()
    def swapped(self) -> Iterator[None]:
        """Within the block the masters are the mean, and the mean is the masters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for mean, master in zip(self._means, self._masters, strict=True):
            held = master.clone()
            master.copy_(mean)
            mean.copy_(held)

    @torch.no_grad()
    def begin(self) -> None:
        """What the masters are now is the mean."""
        for mean, master in zip(self._means, self._masters, strict=True):
            mean.copy_(master)
