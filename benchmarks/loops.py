"""What `train.py` times: the training, a bare loop beside ours, and the processes in which they take turns.

    python benchmarks/loops.py ranks FOLDER RANK   one of two gloo ranks: takes the turns of FOLDER/turns.json
    python benchmarks/loops.py plain FOLDER TOLD   Ray Train around the bare loop, until its first step is in TOLD

FOLDER/training.pickle holds the training and its batches. A turn is the same positions from the same first weights, in
the same two processes, one after the other, by
    bare      deepspeed.initialize with the settings of pipelines/zero.py on batches made beforehand, then forward,
              backward and step of each, and nothing else
    reads     the same, while a thread reads the records of the next position, as it must for whoever trains on them
    ours      worker.work, as Ray Train's ranks run it: reader, schedule, counts of all ranks, guards, journal
    saves     ours, with a checkpoint every few steps
    padded    ours on the same records, each in a row of its own
    stored    ours on features of the pictures that were stored before
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import pickle
import sys
import time
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from dataflow.filters import MaxText
from dataflow.mixture import Group, Member, Mixture
from dataflow.packing import Packing
from dataflow.reader import made_ahead
from dataflow.schedule import Use
from dataflow.windows import Windows
from models.configs import MetaMorph
from models.parts import Llama, Siglip
from pipelines.batching import Micro, RecordBatches
from pipelines.recipes import corpora
from pipelines.training import AdamW, Execution, Training

STEPS = 14  # of a turn
BEGIN = 4  # the first one, counted from 1, that is timed: what warms up, and the first looks of guards, are before it
SAVE_EVERY = 5  # steps, of `saves`


def training() -> Training:
    """MetaMorph of 6 M parameters and a frozen SigLIP of 3 M: a step is long enough to see 2 % of it.

    Run:     make bench-train
    Cost:    0.75 s of CPU a step and rank
    Expect:  nothing but its times
    """
    members = (
        ("understanding", 70, corpora.cambrian()),
        ("generation", 20, corpora.metaclip()),
        ("other", 10, corpora.instruct_pix2pix()),
    )
    small = {"rows_per_shard": 250}
    return Training(
        name="bench",
        architecture=MetaMorph(
            backbone=Llama(width=256, layers=6, heads=4, kv_heads=2, ffn=768, max_positions=640),
            vision=Siglip(picture=64, patch=8, width=192, layers=6, heads=4, ffn=768),
            grid=4,
        ),
        mixture=Mixture(
            groups=tuple(
                Group(
                    name=name,
                    share=share,
                    members=(Member(corpus=replace(each, filters=(*each.filters, MaxText(characters=400)), **small)),),
                )
                for name, share, each in members
            )
        ),
        optimizer=AdamW(learning_rate=1e-3, minimum_rate=1e-3, betas=(0.9, 0.95)),
        batch=4,
        steps=STEPS,
        sequence_length=640,
        packing=Packing(),
        execution=Execution(zero_stage=2, micro_batch=2, save_every=1000),
    )


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What rank 0 saw of one. seconds: from the end of a step to that of the next one, of steps from BEGIN on.

    losses: means of each modality, by step. filled: share of the places of its rows that hold tokens. steps: lines of
    metrics.jsonl; none of the bare loop.
    """

    loop: str
    seconds: list[float]
    losses: list[dict[str, float | None]]
    filled: float
    steps: list[dict[str, Any]] = field(default_factory=list)


class Padded(RecordBatches):
    """All records of a rank in one forward pass, as many passes as there are of packed rows."""

    def __call__(self, position: int, rank: int, world: int, micro_batch: int) -> list[Micro]:
        return super().__call__(position, rank, world, len(self.deal(position, rank, world)))


class Apart(Windows):
    """The same records at the same positions, each in a row of its own."""

    def packs(self, position: int) -> list[tuple[Use, ...]]:
        return [(use,) for pack in super().packs(position) for use in pack]


def ours(loop: str, training: Training, batches: RecordBatches, run: Path) -> Turn:
    """Our loop to its end, in a folder of its own."""
    from pipelines import worker

    training = replace(training, execution=replace(training.execution, **EXECUTIONS[loop]))
    if loop == "padded":
        assert isinstance(batches.schedule, Windows)
        packing = replace(batches.schedule.packing, fill=batches.schedule.fill)
        apart = Apart(**{**_fields(batches.schedule), "packing": packing})
        batches = Padded(**{**_fields(batches), "schedule": apart})
    attempt = run / "ray" / "attempt-001"
    attempt.mkdir(parents=True, exist_ok=True)
    worker.work({"training": training, "run": run, "batches": batches, "attempt": attempt})
    lines = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
    return Turn(
        loop=loop,
        seconds=_seconds([line["time"] for line in lines]),
        losses=[line["losses"] for line in lines],
        filled=_filled([batches(position, 0, 2, training.execution.micro_batch) for position in range(len(lines))]),
        steps=lines,
    )


def bare(training: Training, batches: RecordBatches, *, reads: bool = False) -> Turn:
    """What one writes by hand for this model and these batches. reads: each again while the one before runs."""
    import torch
    from torch import distributed

    from pipelines import learning, zero

    rank, world, rows = distributed.get_rank(), distributed.get_world_size(), training.execution.micro_batch
    architecture, optimizer = training.architecture.build(), training.optimizer
    module, weights = architecture.module, architecture.weights
    architecture.encoder.eval()
    groups: dict[bool, list[torch.nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        groups.setdefault(architecture.care(name).decay, []).append(parameter)
    adamw = torch.optim.AdamW(
        [{"params": group} for group in groups.values()],
        lr=optimizer.learning_rate,
        betas=optimizer.betas,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        foreach=False,
    )
    module.register_forward_hook(lambda module, inputs, losses: dict(losses.sums))  # DeepSpeed sees into a dict
    told = zero.settings(optimizer, training.execution, list(module.parameters()), rows, 1)
    engine, *_ = zero.library().initialize(model=module, optimizer=adamw, config=told)
    engine.train()

    made = [batches(position, rank, world, rows) for position in range(training.steps or 0)]
    counts = [learning.everywhere(architecture, items, len(batches.sources), engine.device).counts for items in made]
    factors = [{name: weights[name] * world / max(1, count) for name, count in of.items()} for of in counts]
    ended, sums = [], []
    coming = (
        made_ahead(lambda at: partial(batches, at, rank, world, rows), range(len(made)), ahead=1) if reads else made
    )
    for (item,), factor in zip(coming, factors, strict=True):
        with torch.no_grad():
            features = architecture.encode(item.batch)
        losses = engine(item.batch, features, item.draw)
        engine.backward(sum(losses[name] * factor[name] for name in factor))
        engine.step()
        sums.append(torch.stack([losses[name].detach().double() for name in factor]))
        ended.append(time.perf_counter())

    lost = torch.stack(sums)
    distributed.all_reduce(lost)
    means = [
        {name: one / count if count else None for (name, count), one in zip(of.items(), step, strict=True)}
        for of, step in zip(counts, lost.tolist(), strict=True)
    ]
    return Turn(loop="reads" if reads else "bare", seconds=_seconds(ended), losses=means, filled=_filled(made))


def _seconds(ended: list[float]) -> list[float]:
    """Of each step from BEGIN on, by the moments at which steps end."""
    return [end - before for before, end in itertools.pairwise(ended[BEGIN - 2 :])]


def _filled(steps: list[list[Micro]]) -> float:
    """The share of places that hold tokens."""
    micros = [micro for step in steps for micro in step]
    return sum(sum(micro.tokens) for micro in micros) / sum(micro.batch.ids.numel() for micro in micros)


def _fields(value: Any) -> dict[str, Any]:
    return {each.name: getattr(value, each.name) for each in fields(value)}


EXECUTIONS: dict[str, dict[str, Any]] = {  # of the loops that are ours
    "ours": {},
    "saves": {"save_every": SAVE_EVERY},
    "padded": {},
    "stored": {"features": "stored"},
}


def ranks(folder: Path, rank: int) -> None:
    """Take the turns, as one of two; rank 0 says what came of each, as a line of JSON."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    import torch
    from torch import distributed

    from pipelines import zero

    zero.library()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    training, batches = pickle.loads((folder / "training.pickle").read_bytes())
    for loop, run in json.loads((folder / "turns.json").read_text()):
        if loop in ("bare", "reads"):
            turn = bare(training, batches, reads=loop == "reads")
        else:
            turn = ours(loop, training, batches, Path(run))
        gc.collect()  # engines are in circles
        if rank == 0:
            print(json.dumps(vars(turn)), flush=True)
    distributed.barrier()


def plain(folder: Path, told: Path) -> None:
    """Ray Train as its guide has it, on a private cluster, around one step of the bare loop."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    training, batches = pickle.loads((folder / "training.pickle").read_bytes())

    def loop(config: dict[str, Any]) -> None:
        import torch
        from torch import distributed

        torch.set_num_threads(1)
        turn = bare(replace(training, steps=1), batches)
        if distributed.get_rank() == 0:
            told.write_text(json.dumps(turn.losses))

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    TorchTrainer(
        loop,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name=told.name, storage_path=str(folder / "plain")),
    ).fit()
    ray.shutdown()


if __name__ == "__main__":
    if sys.argv[1] == "ranks":
        ranks(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        plain(Path(sys.argv[2]), Path(sys.argv[3]))
