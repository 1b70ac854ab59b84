"""A small whole training as a command: what `chaos.py` disturbs. Beside it, the same in a bare loop of plain Ray Train.

    python tests/driver.py build ADDRESS ROOT --steps N --data DIR
    python tests/driver.py train ADDRESS ROOT --steps N
    python tests/driver.py plain ADDRESS ROOT --steps N

Packed pictures and captions from built corpora, Transfusion, ZeRO-2, two workers, a checkpoint every few steps. It does
what `interlace train` does, on a cluster that it is told of.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dataflow.filters import MinSide
from dataflow.mixture import Group, Member, Mixture
from dataflow.packing import Packing
from dataflow.roots import Roots
from dataflow.sources.instruct_pix2pix import InstructPix2Pix
from dataflow.sources.metaclip import MetaClip
from models.configs import Transfusion
from models.parts import LinearCoder, Llama, Pixels
from pipelines.corpus import Corpus
from pipelines.step import Place
from pipelines.training import AdamW, Execution, Training

SAVE_EVERY = 5
PATIENCE = 5.0  # seconds that a lost node, or the head, is waited for here

CAPTIONS = Corpus(source=MetaClip(), rows_per_shard=25)
EDITS = Corpus(source=InstructPix2Pix(), rows_per_shard=20, filters=(MinSide(pixels=8),))
MIXTURE = Mixture(
    groups=(
        Group(name="generation", share=2, members=(Member(corpus=CAPTIONS),)),
        Group(name="other", share=1, members=(Member(corpus=EDITS),)),
    )
)


def training(steps: int) -> Training:
    """The training, of so many steps."""
    return Training(
        name="chaos",
        architecture=Transfusion(
            backbone=Llama(width=64, layers=2, heads=4, kv_heads=2, ffn=128, max_positions=1024),
            canvas=Pixels(side=16),
            coder=LinearCoder(patch=4),
        ),
        mixture=MIXTURE,
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=10, average=0.99),
        batch=4,
        steps=steps,
        sequence_length=500,
        packing=Packing(fill=920),
        execution=Execution(zero_stage=2, micro_batch=2, save_every=SAVE_EVERY),
    )


def plainly(wanted: Training, place: Place) -> None:
    """Ray's own trainer around `plain`; its journal is where a run's would be."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipelines import runs

    opened, schedule, whole, _ = runs.located(wanted, place)
    journal = place.root / "trainings" / "plain" / "metrics.jsonl"
    journal.parent.mkdir(parents=True)
    batches = runs.batches_of(whole, schedule, opened)
    TorchTrainer(
        plain,
        train_loop_config={"training": whole, "batches": batches, "journal": journal},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="plain", storage_path=str(place.root), failure_config=FailureConfig(max_failures=1)),
    ).fit()


def plain(config: dict[str, Any]) -> None:
    """The same model, batches and stage in a bare loop, with DeepSpeed's own checkpoints, as Ray's manual has it."""
    import torch
    from ray import train
    from torch import distributed

    from pipelines import learning, zero

    torch.set_num_threads(1)
    trained, batches, journal = config["training"], config["batches"], config["journal"]
    rank, world = distributed.get_rank(), distributed.get_world_size()
    architecture = trained.architecture.build()
    engine: Any = zero.engine(
        architecture.module,
        trained.optimizer,
        trained.execution,
        care=architecture.care,
        rows_per_rank_micro=trained.execution.micro_batch,
        accumulation=1,
    )
    begun = journal.with_name(f"begun-{len(list(journal.parent.glob('begun-*'))) + 1}")
    if rank == 0:
        begun.touch()
    start, held = 0, train.get_checkpoint()
    if held is not None:
        with held.as_directory() as folder:
            engine.load_checkpoint(folder)
            start = torch.load(f"{folder}/step.pt")
    for position in range(start, trained.steps):
        items = batches(position, rank, world, trained.execution.micro_batch)
        counts = learning.everywhere(architecture, items, len(batches.sources), engine.device).counts
        learning.learn(engine, architecture, items, counts, len(batches.kinds))
        zero.step(engine, zero.rate(trained.optimizer, position, trained.steps))
        if rank == 0:
            with journal.open("a") as lines:
                told = {"step": position + 1, "time": time.time(), "attempt": int(begun.name[6:])}
                lines.write(json.dumps(told) + "\n")
        if (position + 1) % trained.execution.save_every == 0:
            with tempfile.TemporaryDirectory() as folder:
                engine.save_checkpoint(folder)
                torch.save(position + 1, f"{folder}/step.pt")
                train.report({"step": position + 1}, checkpoint=train.Checkpoint.from_directory(folder))


def main() -> None:
    """A driver's life; its last words are a line."""
    words = argparse.ArgumentParser()
    words.add_argument("what", choices=("build", "train", "plain"))
    words.add_argument("address")
    words.add_argument("root", type=Path)
    words.add_argument("--steps", type=int, required=True)
    words.add_argument("--data", default="")
    options = words.parse_args()
    import ray

    from pipelines import attempt, plan, runs, train

    ray.init(options.address, log_to_driver=False, logging_level=logging.ERROR)
    train.NODE_PATIENCE = attempt.HEAD_PATIENCE = PATIENCE
    roots, wanted = Roots.parse([options.data] if options.data else []), training(options.steps)
    place = Place(root=options.root, roots=roots, workers=2, ray_address=options.address)
    try:
        if options.what == "build":
            plan.build(wanted.mixture, place)
            runs.located(wanted, place)  # which measures lengths
        elif options.what == "train":
            runs.train(wanted, place, recipe_name="tests:chaos")
        else:
            plainly(wanted, place)
    except (ValueError, RuntimeError) as error:
        print(error, flush=True)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print(error, flush=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
