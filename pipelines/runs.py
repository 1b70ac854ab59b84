"""One training from its recipe: find the built corpora, make the schedule, name the run's folder, train in it.

<root>/trainings/<recipe>-<run key>/   the key hashes what changes the mathematics: recipe less execution, data digests
  recipe.json code.txt plan.json checkpoints/ metrics.jsonl tensorboard/ samples/ done.json
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from dataflow.build import write_atomically
from dataflow.schedule import Schedule
from dataflow.windows import Windows
from pipelines import checkpoint, plan, recipe, submit
from pipelines.batching import RecordBatches
from pipelines.step import Place, alone, cluster
from pipelines.train import fit, prepare
from pipelines.training import Training, Weights


def train(training: Training, place: Place, *, recipe_name: str, measuring: str = "interlace measure") -> Path:
    """Train to the end, or find it trained; returns the run's folder. The same call resumes after anything.

    Args:
        measuring: the command that stores features, for the error that they are not.
    Raises:
        ValueError: corpora that are not built, a mixture that cannot be, a folder with another writer, or features that
            it is to read and that nobody stored.
    """
    opened, schedule, training, run = located(training, place)
    batches = batches_of(training, schedule, opened)
    if training.execution.features == "stored" and not (run / "done.json").is_file():
        from pipelines import features  # which finds with this module what a training starts from

        features.there([member.open() for member in opened], schedule.used(), measuring, place.root)
    with alone(run / "lock", run.name):
        if (run / "done.json").is_file():
            print(f"{run.name}: already trained, nothing to do", flush=True)
            return run
        described(run, training, recipe_name)
        planned = {
            "schedule": schedule.digest,
            "positions": schedule.positions,
            "mixture": plan.table(training, schedule),
            "corpora": sorted({member.corpus.name for member in opened}),
            "selections": sorted({member.selection.name for member in opened if member.selection}),
        }
        write_atomically(run / "plan.json", json.dumps(planned, indent=1).encode())
        if training.start_from is not None:
            _write_start(run, finished(training, place))
        newest = checkpoint.latest(run / "checkpoints")
        begins = "from the start" if newest is None else f"on from {newest.name}"
        print(f"{run.name}: training {begins} to step {training.steps}, {training.batch} records a step", flush=True)
        with cluster(place):
            _gpus(place)
            fit(training, run, batches, workers=place.workers, nodes=place.nodes, ray_address=place.ray_address)
    return run


def _gpus(place: Place) -> None:
    """ValueError where the Ray cluster has fewer GPUs than were asked for: the ranks would be of CPUs, or wait."""
    import ray

    there = int(ray.cluster_resources().get("GPU", 0))
    if place.nodes * place.gpus > there:
        raise ValueError(
            f"--nodes {place.nodes} --gpus {place.gpus} are {place.nodes * place.gpus} GPUs, and there are {there}: "
            "ask for fewer, or give a --cluster that has them"
        )


def located(training: Training, place: Place) -> tuple[tuple[plan.Opened, ...], Schedule | Windows, Training, Path]:
    """Its corpora, its schedule, itself with its number of steps, and the folder of its run.

    Raises:
        ValueError: corpora that are not built, a mixture that cannot be.
    """
    opened = tuple(plan.locate(training.mixture, place))
    schedule = plan.schedule(training, [member.open() for member in opened], place)
    whole = replace(pinned(training), steps=schedule.positions)
    return opened, schedule, whole, plan.run_folder(whole, schedule, place)


def batches_of(training: Training, schedule: Schedule | Windows, opened: tuple[plan.Opened, ...]) -> RecordBatches:
    """What its ranks train on."""
    return RecordBatches(
        schedule=schedule,
        opened=opened,
        architecture=training.architecture,
        length=training.sequence_length,
        seed=training.seed,
        threads=training.execution.decode_threads,
        shortened_to=training.shortened_to,
        shards=training.execution.shards,
    )


def finished(training: Training, place: Place) -> Path:
    """The run that a training starts from.

    Raises:
        ValueError: it is not finished.
    """
    earlier = training.start_from
    assert earlier is not None
    if isinstance(earlier, Weights):
        return _folder(earlier)
    *_, run = located(earlier, place)
    if not (run / "done.json").is_file():
        raise ValueError(f"{training.name} starts from {run.name}, which is not finished: train that first")
    return run


def _folder(weights: Weights) -> Path:
    """Where weights lie. ValueError if there is no finished run."""
    run = Path(weights.path).expanduser().absolute()
    if not (run / "recipe.json").is_file():
        raise ValueError(f"start_from: {run} is no run: give a folder under ROOT/trainings, or import-model's")
    if not (run / "done.json").is_file():
        raise ValueError(f"start_from: {run} is not finished, so its weights still change: train it to its end first")
    return run


def pinned(training: Training) -> Training:
    """The same, with the digest of every folder's weights in it, of what it starts from too: that names the run.

    Raises:
        ValueError: no finished run there, or other weights than those that were asked for.
    """
    earlier = training.start_from
    if isinstance(earlier, Training):
        return replace(training, start_from=pinned(earlier))
    if earlier is None:
        return training
    found = checkpoint.digest(_folder(earlier))
    if earlier.sha256 not in (None, found):
        raise ValueError(
            f"start_from: {earlier.path} has weights {found[:12]}, the recipe wants {earlier.sha256[:12]}: "
            "give the run that it means"
        )
    return replace(training, start_from=replace(earlier, sha256=found))


def _write_start(run: Path, earlier: Path) -> None:
    """start.json, what every rank begins with. ValueError if the run was begun with other weights."""
    path, found = run / "start.json", checkpoint.digest(earlier)
    before = json.loads(path.read_bytes()).get("weights", found) if path.is_file() else found
    if before != found:
        raise ValueError(
            f"{run.name} was begun with weights {before[:12]} of {earlier.name}, which has {found[:12]} now: "
            "restore them, or remove the run"
        )
    write_atomically(path, json.dumps({"run": str(earlier), "weights": found}, indent=1).encode())
    print(f"{run.name}: starts from {earlier.name}: {checkpoint.by_part(checkpoint.names(earlier))}", flush=True)


def described(run: Path, training: Training, recipe_name: str) -> None:
    """What a run is, in its folder: recipe.json, code.txt, the file of a recipe outside the house, and the job that
    trains it. See `prepare`.

    `file` is where the classes of such a recipe are found again: of a job's snapshot, which may go, a copy in the run.
    """
    file, _, _ = recipe.split(recipe_name)
    outside = str(Path(file).expanduser().resolve()) if file.endswith(".py") else None
    if outside and submit.is_snapshot():
        outside = str(run.resolve() / submit.OUTSIDE / Path(file).name)
    prepare(run, {"recipe": recipe_name, "file": outside, "value": recipe.describe(training)})
    submit.into(run)
    if outside:
        shutil.copyfile(outside, run / "recipe.py")  # code.txt tells of the house alone
