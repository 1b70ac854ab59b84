"""What a run says to the same prompts while it trains: its checkpoints are sampled by a process beside the ranks.

    <run>/samples/step-000100/   laid out as samples/ is; appears whole, by one rename

No rank waits for it or knows of it, so it changes nothing that is trained: `beside` runs where the training was called,
looks for checkpoints, the newest first, and has each sampled by a child that gives way to everything else. The child
holds the model once more, in float32, in that machine's memory, and computes on its CPUs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from models.configs import MetaMorph, Visualizer
from pipelines.step import HOUSE, one_line
from pipelines.training import Training

_DRAWN = ("text_to_image", "caption_pair")  # tasks of a model that paints what it is told
_SPOKEN = ("image_qa", "video_qa", "text_qa", "text_document")  # and of one that speaks
_MAX_TOKENS = 64  # of an answer: enough to see what it has learned


@contextlib.contextmanager
def beside(training: Training, run: Path) -> Iterator[None]:
    """While the block trains, sample its checkpoints; after it, what is left of them, unless it fails.

    A checkpoint that cannot be sampled, or is pruned before its turn, is told in a line and passed over.

    Raises:
        ValueError: `execution.sample_every` without prompts, or of an architecture that answers none.
    """
    execution = training.execution
    if not execution.sample_every:
        yield
        return
    if not execution.prompts:
        raise ValueError(
            f"execution.sample_every={execution.sample_every}: there is nothing to answer; give execution.prompts"
        )
    if not kinds(training.architecture):
        kind = type(training.architecture).__name__
        raise ValueError(
            f"execution.sample_every={execution.sample_every}: a {kind} answers no prompts; 0 samples nothing"
        )
    for draft in (run / "samples").glob(".step-*"):  # of a child that was killed
        shutil.rmtree(draft, ignore_errors=True)
    follower = _Follower(training, run)
    follower.start()
    try:
        yield
    except BaseException:
        follower.stopped.set()
        raise
    finally:
        follower.ended.set()
        follower.join()


def kinds(architecture: Any) -> tuple[Literal["picture", "text"], ...]:
    """What an architecture, a config, can be asked for by words alone."""
    if isinstance(architecture, Visualizer):
        return ()
    drawn, spoken = (any(task in architecture.tasks for task in tasks) for tasks in (_DRAWN, _SPOKEN))
    return (*(("picture",) if drawn else ()), *(("text",) if spoken else ()))


def due(training: Training, run: Path) -> list[int]:
    """Steps whose checkpoint is there and is to be sampled and is not, in order.

    The first at or after every multiple of `sample_every`, and the last of the training.
    """
    every, saved = training.execution.sample_every, training.execution.save_every
    found = []
    for path in (run / "checkpoints").glob("step-*"):
        step = int(path.name.removeprefix("step-")) if re.fullmatch(r"step-\d+", path.name) else 0
        passed = step // every > max(0, step - saved) // every
        if (passed or step == training.steps) and not folder(run, step).exists():
            found.append(step)
    return sorted(found)


def sampled(run: Path, step: int, prompts: Sequence[str]) -> None:
    """Answer the prompts from a checkpoint, in pictures and in text, whatever its architecture can; kept with the run.

    It loads the model and computes in this process, on the CPU; torch's random state is left as it was. MetaMorph's
    pictures are painted by a finished visualizer beside the run; where there is none it answers in text alone.

    Raises:
        ValueError: no such run, no sound checkpoint of that step, or one that cannot be sampled.
    """
    from models.interface import Asked
    from pipelines import sample

    opened = sample.Run(run, step)
    draft = run / "samples" / f".step-{step:06d}-{os.getpid()}"
    draft.mkdir(parents=True)
    try:
        for kind in kinds(opened.config):
            painter = None
            if kind == "picture" and isinstance(opened.config, MetaMorph):
                try:
                    painter = sample.find_visualizer(opened)
                except ValueError:
                    continue
            asked = Asked(answer=kind, max_tokens=_MAX_TOKENS)
            for _ in sample.answered(opened, prompts, [], asked, draft, visualizer=painter):
                pass
        with contextlib.suppress(OSError):  # somebody was faster: the same answers lie there
            draft.rename(folder(run, step))
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def kept(run: Path) -> dict[int, list[dict[str, Any]]]:
    """By step the lines of samples.jsonl of what was sampled while the run trained, in order."""
    found = {}
    for path in (run / "samples").glob("step-*"):
        lines = (path / "samples.jsonl").read_text().splitlines()
        found[int(path.name.removeprefix("step-"))] = [json.loads(line) for line in lines]
    return dict(sorted(found.items()))


def folder(run: Path, step: int) -> Path:
    """Where the answers from a step's checkpoint lie."""
    return run / "samples" / f"step-{step:06d}"


class _Follower(threading.Thread):
    """Samples checkpoints as they appear, one at a time. ended: none will come any more. stopped: do not go on."""

    def __init__(self, training: Training, run: Path) -> None:
        super().__init__(name="samples", daemon=True)
        self.ended, self.stopped = threading.Event(), threading.Event()
        self._training, self._run, self._tried = training, run, set[int]()

    def run(self) -> None:
        """The thread's own."""
        while True:
            ending = self.ended.wait(1.0)
            if self.stopped.is_set():
                return
            waiting = [step for step in due(self._training, self._run) if step not in self._tried]
            if waiting:
                self._tried.update(waiting)
                self._sample(waiting[::-1])
            elif ending:
                return

    def _sample(self, steps: list[int]) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(HOUSE), os.environ.get("PYTHONPATH")])),
            "CUDA_VISIBLE_DEVICES": "",  # the ranks need all of their devices' memory
        }
        words = [sys.executable, "-m", "pipelines.watched", str(self._run), *map(str, steps)]
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stderr=errors)
            while child.poll() is None:
                if self.stopped.wait(0.2):
                    child.kill()
                    child.wait()
                    return
            errors.seek(0)
            last = errors.read().splitlines()[-1:]
        if child.returncode:
            why = " ".join(last) or f"exit {child.returncode}"
            print(f"{self._run.name}: what steps {steps} answer is not known: {why}", flush=True)


def main(run: Path, steps: Sequence[int]) -> None:
    """The child: these checkpoints in turn, the prompts of the run's recipe. One that cannot be sampled is told."""
    from pipelines import sample

    os.nice(19)
    prompts = sample.read_training(run).execution.prompts
    for step in steps:
        try:
            sampled(run, step, prompts)
        except (ValueError, OSError) as error:
            print(f"step {step} is not sampled: {one_line(error)}", flush=True)
        else:
            print(f"step {step} is sampled: {folder(run, step)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(step) for step in sys.argv[2:]])
