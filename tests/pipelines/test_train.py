"""A run on two real Ray Train ranks: killed with -9 it repeats itself to the last digit; one writer; plain errors.

Run as a script this file is a driver, the process that calls `fit`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import step, train
from pipelines.training import Training

ROOT = Path(__file__).resolve().parents[2]
STEPS, SAVE_EVERY = 9, 4
SIGNALS = ((6, signal.SIGKILL), (7, signal.SIGTERM))  # sent when position 6 is drawn for: five steps are in the journal


def test_ray_must_be_initialised_by_the_caller(tmp_path: Path) -> None:
    import toys

    with pytest.raises(ValueError, match="Ray is not initialised"):  # first in this file: no cluster has started yet
        train.fit(toys.training(steps=1), tmp_path, toys.Rows(batch=8), workers=2, ray_address=None)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A real local cluster for all drivers of this file."""
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@dataclass(frozen=True)
class Call:
    """What a driver left when it ended."""

    returncode: int
    stdout: str
    stderr: str


def start(address: str, run: Path, **options: Any) -> subprocess.Popen[str]:
    """A driver, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, address, str(run), json.dumps(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(driver: subprocess.Popen[str]) -> Call:
    stdout, stderr = driver.communicate(timeout=400)
    return Call(driver.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def broken(address: str, tmp_path_factory: pytest.TempPathFactory) -> subprocess.Popen[str]:
    """A driver one of whose ranks fails, beside the others."""
    return start(address, tmp_path_factory.mktemp("broken") / "run", broken_rank=1)


@pytest.fixture(scope="module")
def interrupted(address: str, broken: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Call]]:
    """A run whose driver was killed with -9, then terminated, then let be; and what the three calls said."""
    run = tmp_path_factory.mktemp("train") / "run"
    return run, [end(start(address, run, signals=SIGNALS)) for _ in range(3)]


def journal(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_an_interrupted_run_repeats_its_steps_to_the_last_digit(interrupted: tuple) -> None:
    run, calls = interrupted
    assert [call.returncode for call in calls] == [-signal.SIGKILL, 130, 0], calls
    attempts = [[line for line in journal(run) if line["attempt"] == attempt] for attempt in (1, 2, 3)]
    killed, terminated, finished = ([line["step"] for line in attempt] for attempt in attempts)
    assert killed[:5] == [1, 2, 3, 4, 5]
    assert terminated[:2] == [5, 6]  # step 4 was the newest checkpoint
    assert finished == [5, 6, 7, 8, 9]
    kept = {line["step"]: line for line in attempts[2]}
    for line in [line for attempt in attempts[:2] for line in attempt if line["step"] in kept]:
        for name in ("losses", "total", "counts", "norm", "rate"):
            assert line[name] == kept[line["step"]][name]


def test_a_terminated_driver_says_so_in_one_line(interrupted: tuple) -> None:
    run, calls = interrupted
    assert calls[1].stderr == f"the training in {run} was stopped; the same command goes on\n"


def test_a_run_folder_holds_what_it_should(interrupted: tuple) -> None:
    run, _ = interrupted
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000008", "step-000009"]
    last = journal(run)[-1]
    assert json.loads((run / "done.json").read_text()) == {"steps": STEPS, "losses": last["losses"]}
    assert last["counts"]["picture"] == 4
    assert 0 <= last["data_seconds"] <= last["seconds"]
    assert list((run / "tensorboard").glob("events.*"))
    assert json.loads((run / "recipe.json").read_text())["value"]["steps"] == STEPS
    assert (run / "code.txt").read_text()


def test_every_step_is_in_the_running_mean(interrupted: tuple) -> None:
    from safetensors.numpy import load_file

    run, _ = interrupted
    before, after = (run / "checkpoints" / name for name in ("step-000008", "step-000009"))
    held, mean = load_file(before / "average.safetensors"), load_file(after / "average.safetensors")
    decay = min(0.9, (1 + 9) / (10 + 9))
    for name, weights in load_file(after / "parameters.safetensors").items():
        if name in mean:
            assert mean[name] == pytest.approx(decay * held[name] + (1 - decay) * weights, rel=1e-5, abs=1e-7)
    assert mean.keys() == held.keys() != set()


def test_the_driver_tells_its_steps_readably(interrupted: tuple) -> None:
    run, calls = interrupted
    lines = calls[2].stdout.splitlines()
    step = re.compile(rf"step {STEPS}/{STEPS}  text \d\.\d{{3}}  picture \d\.\d{{3}}  \d+\.\d\d s/step")
    assert any(step.fullmatch(line) for line in lines), lines
    assert lines[-3] == f"done: {STEPS} steps, {run / 'done.json'}"


def test_a_finished_run_is_left_alone(interrupted: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = interrupted
    before = (run / "metrics.jsonl").read_bytes()
    import toys

    train.fit(toys.training(steps=STEPS), run, toys.Rows(batch=8), workers=2, ray_address=None)
    assert capsys.readouterr().out == f"done: {STEPS} steps, {run / 'done.json'}\n"
    assert (run / "metrics.jsonl").read_bytes() == before


def test_another_schedule_is_refused(interrupted: tuple) -> None:
    run, calls = interrupted
    words = f"{run}/checkpoints/step-000009 was made with batches rows, this training has batches other rows"
    assert calls[2].stderr.startswith(words)


def test_bfloat16_trains_to_the_end(interrupted: tuple) -> None:
    done = json.loads((interrupted[0].with_name("half") / "done.json").read_text())
    assert done["steps"] == 2
    assert 0 < done["losses"]["text"] < 3


def test_a_step_that_is_not_finite_ends_the_run_before_it_is_saved(interrupted: tuple) -> None:
    run, calls = interrupted
    assert calls[2].stderr.splitlines()[1].startswith("step 2: losses text ")
    assert "must be finite; lower optimizer.learning_rate" in calls[2].stderr.splitlines()[1]
    assert [path.name for path in (run.with_name("wild") / "checkpoints").iterdir()] == ["step-000001"]


def test_ranks_that_are_told_to_leave_save_the_step_they_are_at(interrupted: tuple) -> None:
    run, calls = interrupted
    assert calls[2].stdout.splitlines()[-2:] == ["left with ['step-000001'], not done", "went on to step 2, done"]
    steps = [line["step"] for line in journal(run.with_name("left"))]
    assert steps == [1, 2]


def test_a_driver_that_is_told_to_leave_tells_the_ranks(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with train._stoppable(tmp_path) as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (tmp_path / train.LEAVE).exists()
        assert not signals
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_failing_rank_ends_in_its_own_error(broken: subprocess.Popen[str]) -> None:
    said = end(broken)
    assert said.returncode == 2
    assert said.stderr.startswith("ValueError: rank 1: ValueError: no weights at tests/toy (traceback: ")
    assert said.stderr.count("\n") == 1
    trace = Path(said.stderr.rpartition("traceback: ")[2].strip().removesuffix(")"))
    assert "in build" in trace.read_text()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with step.alone(tmp_path / "lock", "the run"):
        with pytest.raises(ValueError, match=rf"being written by pid {os.getpid()} on .*: it has one writer"):
            with step.alone(tmp_path / "lock", "the run"):
                pass
    with step.alone(tmp_path / "lock", "the run"):
        pass


def test_a_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    value = {"optimizer": {"learning_rate": 0.1}, "execution": {"zero_stage": 2}, "steps": 3}
    train.prepare(tmp_path, {"value": value, "file": "here.py"})
    train.prepare(tmp_path, {"value": value | {"execution": {"zero_stage": 3}}, "file": "moved.py"})
    with pytest.raises(ValueError, match=r"optimizer.learning_rate \(0.1 there, 0.2 now\), steps \(3 there, 4 now\)"):
        other = {"optimizer": {"learning_rate": 0.2}, "execution": {}, "steps": 4}
        train.prepare(tmp_path, {"value": other})
    assert json.loads((tmp_path / "recipe.json").read_text())["value"]["execution"] == {"zero_stage": 3}
    assert (tmp_path / "code.txt").read_text().count("commit") + (tmp_path / "code.txt").read_text().count(
        "no git"
    ) >= 1


def test_a_length_that_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="steps=0 must be a whole number from 1"):
        replace(quick(), steps=0)
    with pytest.raises(ValueError, match=r"Execution\.save_every=0 must be a whole number from 1"):
        replace(quick().execution, save_every=0)


def test_the_module_is_light() -> None:
    code = "import sys, pipelines.train; print(sorted({'torch', 'ray', 'deepspeed'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def quick() -> Training:
    from dataflow.mixture import Mixture
    from pipelines.training import AdamW

    return Training(
        name="quick",
        architecture=None,
        mixture=Mixture(groups=()),
        optimizer=AdamW(learning_rate=0.1),
        batch=8,
        steps=3,
        sequence_length=6,
    )


def main(address: str, run: Path, options: dict[str, Any]) -> None:
    """The driver: connect, lock, prepare, fit; its last words are one line."""
    import logging

    import ray
    import toys

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    toy = toys.Toy(broken_rank=options.pop("broken_rank", None))
    training = toys.training(steps=STEPS, toy=toy, zero_stage=2, micro_batch=2, save_every=SAVE_EVERY, keep=2)
    batches = toys.Rows(batch=8, driver=os.getpgid(0), marks=str(run.parent), **options)
    try:
        with step.alone(run / "lock", run.name):
            train.prepare(run, {"value": {"name": training.name, "steps": STEPS}})
            train.fit(training, run, batches, workers=2, ray_address=address)
    except (ValueError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(130)
    without_ray(run, training, batches)


def without_ray(run: Path, training: Training, batches: Any) -> None:
    """And now one rank without Ray: on other data, in bfloat16, and with a rate that cannot end well."""
    from pipelines import worker, zero

    zero.join()
    wild = replace(training.optimizer, learning_rate=1e30)
    for folder, plan, rows in (
        (run, training, replace(batches, digest="other rows")),
        (run.with_name("half"), replaced(training, steps=2, zero_stage=3, dtype="bfloat16"), batches),
        (run.with_name("wild"), replace(replaced(training, steps=3, save_every=1), optimizer=wild), batches),
    ):
        attempt = folder / "ray" / "attempt-001"
        attempt.mkdir(parents=True, exist_ok=True)
        try:
            worker.work({"training": plan, "run": folder, "batches": rows, "attempt": attempt})
        except ValueError as error:
            print(error, file=sys.stderr, flush=True)
    leaving(run.with_name("left"), replaced(training, steps=2, save_every=100), batches)


def leaving(run: Path, training: Training, batches: Any) -> None:
    """A run whose rank finds that it is to leave, and is begun again."""
    from pipelines import worker

    attempt = run / "ray" / "attempt-001"
    attempt.mkdir(parents=True)
    (run / train.LEAVE).touch()
    work = {"training": training, "run": run, "batches": batches, "attempt": attempt}
    worker.work(work)
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    print(f"left with {kept}, {'done' if (run / 'done.json').exists() else 'not done'}", flush=True)
    (run / train.LEAVE).unlink()
    worker.work(work)
    done = json.loads((run / "done.json").read_text())
    print(f"went on to step {done['steps']}, done", flush=True)


def replaced(training: Training, *, steps: int, **execution: Any) -> Training:
    return replace(training, steps=steps, execution=replace(training.execution, **execution))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
