"""Runs made by hand: the folder that a training leaves, its trained weights drawn at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dataflow.mixture import Mixture
from pipelines import checkpoint, runs
from pipelines.training import AdamW, Training


def training(architecture: Any, name: str = "by-hand") -> Training:
    """A training that is never run."""
    return Training(
        name=name,
        architecture=architecture,
        mixture=Mixture(groups=()),
        optimizer=AdamW(learning_rate=0.1),
        batch=1,
        steps=1,
        sequence_length=64,
    )


def run(folder: Path, architecture: Any, *, seed: int = 7) -> Path:
    """A finished run of one step."""
    runs.described(folder, training(architecture), "by_hand:made")
    built = architecture.build()
    trained = {name: p for name, p in built.module.named_parameters() if p.requires_grad}
    draws = torch.Generator().manual_seed(seed)
    checkpoint.write(
        folder / "checkpoints" / "step-000001",
        {name: tuple(parameter.shape) for name, parameter in trained.items()},
        (0.05 * torch.randn(parameter.shape, generator=draws) for parameter in trained.values()),
    )
    (folder / "done.json").write_text('{"steps": 1, "losses": {}}')
    return folder
