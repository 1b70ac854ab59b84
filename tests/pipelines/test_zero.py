"""ZeRO stages 0-3 on two real ranks against plain torch in one process: the same training, with and without pictures.

Run as a script this file is one of the two ranks: it goes through all cases in one life, since starting costs seconds.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import zero
from pipelines.training import AdamW

CASES = [
    (stage, micro_batch, clip) for stage in range(4) for micro_batch, clip in ((4, 0.0), (4, 0.05), (2, 0.05), (1, 0.0))
]
STEPS = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What two ranks found, by case."""
    folder = tmp_path_factory.mktemp("zero")
    root = Path(__file__).resolve().parents[2]
    environment = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS="1", WORLD_SIZE="2")
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=dict(environment, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert (folder / "results.json").exists(), "\n".join(said)
    return {"said": said} | json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(("stage", "micro_batch", "clip"), CASES)
def test_two_ranks_train_like_one_process(results: dict, stage: int, micro_batch: int, clip: float) -> None:
    found = results[str((stage, micro_batch, clip))]
    assert found["furthest"] < 1e-6  # of any weight, after three steps; rank 1 never saw a picture
    assert found["norms"] == pytest.approx(found["expected norms"], rel=1e-5)


def test_clipping_changes_the_result(results: dict) -> None:
    assert results[str((2, 4, 0.05))]["last weight"] != pytest.approx(
        results[str((2, 4, 0.0))]["last weight"], abs=1e-4
    )


@pytest.mark.parametrize("stage", range(4))
def test_bfloat16_trains_close_to_float32(results: dict, stage: int) -> None:
    found = results[f"bfloat16 {stage}"]
    assert 0 < found["furthest"] < 0.05


def test_starting_says_nothing(results: dict) -> None:
    assert [said for said in results["said"] if said.strip()] == []


def test_the_rate_warms_up_and_falls_to_its_minimum() -> None:
    optimizer = AdamW(learning_rate=1.0, warmup_steps=4, minimum_rate=0.1)
    rates = [zero.rate(optimizer, step, 24) for step in range(25)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14] == pytest.approx(0.55)  # half way down
    assert rates[24] == pytest.approx(0.1)
    assert all(after < before for before, after in itertools.pairwise(rates[4:]))
    assert zero.rate(replace(optimizer, warmup_steps=0), 0, 10) == 1.0
    assert zero.rate(replace(optimizer, warmup_steps=10), 10, 10) == 1.0  # nothing left to fall through


def rank(folder: Path) -> None:
    """One rank's life: every case, then rank 0 writes the results."""
    import torch
    import toys
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=me(), world_size=2)
    results = {}
    for stage, micro_batch, clip in CASES:
        training = toys.training(steps=STEPS, clip=clip, zero_stage=stage, micro_batch=micro_batch)
        expected, expected_norms = alone(training)
        found, norms = together(training)
        results[str((stage, micro_batch, clip))] = {
            "furthest": max(float((found[name] - expected[name]).abs().max()) for name in expected),
            "norms": norms,
            "expected norms": expected_norms,
            "last weight": float(found["text.weight"].flatten()[0]),
        }
    for stage in range(4):
        training = toys.training(steps=STEPS, zero_stage=stage, micro_batch=2, dtype="bfloat16")
        expected, _ = alone(training)
        found, _ = together(training)
        furthest = max(float((found[name] - expected[name]).abs().max()) for name in expected)
        results[f"bfloat16 {stage}"] = {"furthest": furthest}
    distributed.barrier()
    if me() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    distributed.barrier()
    distributed.destroy_process_group()


def me() -> int:
    return int(os.environ["RANK"])


def alone(training):  # -> (weights by name, norms)
    """The reference: all rows in one forward pass, torch's AdamW."""
    import torch
    import toys

    built, optimizer = training.architecture.build(), training.optimizer
    trained = {name: p for name, p in built.module.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p], "factor": care.rate, "weight_decay": optimizer.weight_decay if care.decay else 0.0}
        for p, care in ((p, built.care(name)) for name, p in trained.items())
    ]
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=optimizer.betas, eps=optimizer.eps)
    norms = []
    for position in range(training.steps):
        whole = toys.item(position, range(training.batch))
        batch, draw = whole.batch, whole.draw
        losses, counts = built.module(batch, built.encode(batch), draw), built.counts(batch)
        text, picture = (built.weights[name] * losses.sums[name] / counts[name] for name in built.weights)
        (text + picture).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), optimizer.clip or math.inf)))
        for group in adamw.param_groups:
            group["lr"] = group["factor"] * zero.rate(optimizer, position, training.steps)
        adamw.step()
        adamw.zero_grad()
    return {name: p.detach() for name, p in trained.items()}, norms


def together(training):  # -> (weights by name, norms)
    """The same rows dealt to the ranks, through the engine."""
    import toys

    built = training.architecture.build()
    engine = toys.engine(built, training)
    _, norms = toys.advance(engine, built, training, range(training.steps))
    found = toys.weights(engine)
    engine.destroy()
    return found, norms


if __name__ == "__main__":
    rank(Path(sys.argv[1]))
    os._exit(0)  # gloo sometimes aborts in its destructors after all is said
