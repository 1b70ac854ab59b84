"""`interlace run`: a training from its input rows to its evaluation, stage after stage; what is done is skipped.

    build ─► measure ─► train ─► sample ─► evaluate

Each stage is what the command of its name does and goes on from what is there, so the same command goes on after
anything. A training that starts from another one has that trained first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pipelines import evaluate, features, plan, runs, watched
from pipelines.step import Place, cluster
from pipelines.training import Training

_PROMPTS = 4  # captions of held-out records, where a recipe names no prompts
_RECORDS, _QUESTIONS = 64, 32  # of each source and task: what `interlace evaluate` takes by itself


def run(training: Training, place: Place, *, recipe_name: str, stages: tuple[str, ...]) -> Path:
    """Go through the stages, in one Ray cluster; returns the run's folder.

    Args:    stages: those of grammar.STAGES that are wanted.
    Raises:  ValueError: what a stage cannot do, a training that is not finished where one is asked to sample it.
    """
    with cluster(place):
        for each in (*_earlier(training), training):
            if "build" in stages:
                plan.build(each.mixture, place)
            if "measure" in stages and each.execution.features == "stored":
                features.measure(each, place)
            if "train" in stages:
                runs.train(each, place, recipe_name=recipe_name)
        *_, whole, folder = runs.located(training, place)
    if {"sample", "evaluate"} & {*stages} and not (folder / "done.json").is_file():
        raise ValueError(f"{folder.name} is not trained to its end: --from train, or earlier, does that first")
    if "sample" in stages:
        _sample(folder, whole, place)
    if "evaluate" in stages:
        _evaluate(folder, place)
    return folder


def _earlier(training: Training) -> Iterator[Training]:
    """What it starts from, the first one first."""
    if isinstance(training.start_from, Training):
        yield from _earlier(training.start_from)
        yield training.start_from


def _sample(folder: Path, training: Training, place: Place) -> None:
    """What the last checkpoint answers to the recipe's prompts, or to captions that no training saw."""
    assert training.steps is not None
    there = watched.folder(folder, training.steps)
    if there.is_dir():
        print(f"{folder.name}: already sampled", flush=True)
        return
    kinds = watched.kinds(training.architecture)
    prompts = training.execution.prompts or tuple(islice(_captions(training, place), _PROMPTS))
    if not kinds or not prompts:
        print(f"{folder.name}: nothing to sample, it answers no prompts or has none", flush=True)
        return
    watched.sampled(folder, training.steps, prompts)
    print(f"{folder.name}: sampled {len(prompts)} prompts, {there}", flush=True)


def _captions(training: Training, place: Place) -> Iterator[str]:
    """Of records held out: what their pictures are to be drawn from."""
    for opened in plan.held_out(training.mixture, place):
        corpus = opened.open()
        if not {"text_to_image", "caption_pair"} & corpus.tasks.keys():
            continue
        for spot in range(len(corpus)):
            record = corpus.record(spot)
            if record.task in ("text_to_image", "caption_pair"):
                words = (part for _, parts in record.turns for part in parts if isinstance(part, str))
                yield next(words)


def _evaluate(folder: Path, place: Place) -> None:
    """As `interlace evaluate`, unless its last step has been."""
    known = folder / "evaluation.json"
    last = json.loads((folder / "done.json").read_bytes())["steps"]
    if known.is_file() and json.loads(known.read_bytes())["step"] == last:
        print(f"{folder.name}: already evaluated", flush=True)
        return
    for name, task in sorted(evaluate.evaluate(folder, place, records=_RECORDS, questions=_QUESTIONS).items()):
        print(task.line(name), flush=True)
    print(known, flush=True)
