"""One training from its recipe: find the built corpora, make the schedule, name the run's folder, train in it.

<root>/trainings/<recipe>-<run key>/   the key hashes what changes the mathematics: recipe less execution, data digests
  recipe.json code.txt plan.json checkpoints/ metrics.jsonl tensorboard/ samples/ done.json
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflow.build import write_atomically
from dataflow.schedule import Schedule
from pipelines import checkpoint, plan, recipe
from pipelines.batching import RecordBatches
from pipelines.step import Place, alone, cluster
from pipelines.train import fit, prepare
from pipelines.training import Training


def train(training: Training, place: Place, *, recipe_name: str) -> Path:
    """Train to the end, or find it trained; returns the run's folder. The same call resumes after anything.

    Raises:
        ValueError: corpora that are not built, a mixture that cannot be, a folder with another writer.
    """
    opened, schedule, training, run = located(training, place)
    batches = batches_of(training, schedule, opened)
    with alone(run / "lock", run.name):
        if (run / "done.json").is_file():
            print(f"{run.name}: already trained, nothing to do", flush=True)
            return run
        description = _description(training, recipe_name)
        prepare(run, description, training)
        if description["file"]:
            shutil.copyfile(description["file"], run / "recipe.py")  # code.txt tells of the house alone
        planned = {
            "schedule": schedule.digest,
            "positions": schedule.positions,
            "mixture": plan.table(training, schedule),
        }
        write_atomically(run / "plan.json", json.dumps(planned, indent=1).encode())
        if training.start_from is not None:
            write_atomically(run / "start.json", json.dumps({"run": str(_finished(training, place))}).encode())
        newest = checkpoint.latest(run / "checkpoints")
        begins = "from the start" if newest is None else f"on from {newest.name}"
        print(f"{run.name}: training {begins} to step {training.steps}, {training.batch} records a step", flush=True)
        with cluster(place):
            fit(training, run, batches, workers=place.workers, ray_address=place.ray_address)
    return run


def located(training: Training, place: Place) -> tuple[tuple[plan.Opened, ...], Schedule, Training, Path]:
    """Its corpora, its schedule, itself with its number of steps, and the folder of its run.

    Raises:
        ValueError: corpora that are not built, a mixture that cannot be.
    """
    opened = tuple(plan.locate(training.mixture, place))
    schedule = plan.schedule(training, [member.open() for member in opened])
    whole = replace(training, steps=schedule.positions)
    return opened, schedule, whole, plan.run_folder(whole, schedule, place)


def batches_of(training: Training, schedule: Schedule, opened: tuple[plan.Opened, ...]) -> RecordBatches:
    """What its ranks train on."""
    return RecordBatches(
        schedule=schedule,
        opened=opened,
        architecture=training.architecture,
        length=training.sequence_length,
        seed=training.seed,
    )


def _finished(training: Training, place: Place) -> Path:
    """The run that a training starts from.

    Raises:
        ValueError: it is not finished.
    """
    assert training.start_from is not None
    *_, run = located(training.start_from, place)
    if not (run / "done.json").is_file():
        raise ValueError(f"{training.name} starts from {run.name}, which is not finished: train that first")
    return run


def _description(training: Training, recipe_name: str) -> dict[str, Any]:
    """What recipe.json holds. `file` is where the classes of a recipe outside the house are found again."""
    file, _, _ = recipe.split(recipe_name)
    outside = str(Path(file).expanduser().resolve()) if file.endswith(".py") else None
    return {"recipe": recipe_name, "file": outside, "value": recipe.describe(training)}
