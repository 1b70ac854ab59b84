"""What a run survives or ends in, on two real ranks: steps undone, a stopped rank, ranks askew, a disk that is full.

Run as a script this file is one of the two ranks, which go through all of it in one life.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dataflow.reader import read_skips
from pipelines import symmetry, watchdog
from pipelines.training import Execution, Spikes

ROOT = Path(__file__).resolve().parents[2]
STEPS, POISONED = 9, 5
PATIENCE = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where two ranks have left their runs; the second stopped itself in the end and lay there until it was killed."""
    folder = tmp_path_factory.mktemp("survives")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", WORLD_SIZE="2")
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank)],
            env=dict(environment, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = ranks[0].communicate(timeout=240)[0]
    ranks[1].kill()
    said += ranks[1].communicate()[0]
    assert ranks[0].returncode == watchdog.ENDED, said
    (folder / "said.txt").write_text(said)
    yield folder


def last(run: Path) -> dict[int, dict[str, Any]]:
    """The lines of a journal by step; of a repeated one the last."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines}


def errors(folder: Path) -> dict[str, str]:
    return json.loads((folder / "errors.json").read_text())


def test_a_step_that_is_not_finite_is_undone_and_its_position_passed_over(folder: Path) -> None:
    run = folder / "undone"
    (skipped,) = read_skips(run / "events.jsonl")
    assert (skipped.position, "must be finite" in skipped.why) == (POISONED, True)
    assert sorted(last(run)) == [step for step in range(1, STEPS + 1) if step != POISONED + 1]
    assert json.loads((run / "done.json").read_text())["steps"] == STEPS
    assert f"position {POISONED} is passed over" in (folder / "said.txt").read_text()


def test_what_follows_is_as_if_the_position_had_never_been(folder: Path) -> None:
    undone, without = last(folder / "undone"), last(folder / "without")
    for step, line in without.items():
        for name in ("losses", "norm", "counts", "rate"):
            assert undone[step][name] == line[name]


def test_so_many_positions_are_passed_over_and_no_more(folder: Path) -> None:
    assert "spikes.most=1" in errors(folder)["budget"]
    assert len(read_skips(folder / "budget" / "events.jsonl")) == 1


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(folder: Path) -> None:
    assert "no checkpoint yet to go back to" in errors(folder)["early"]


def test_a_norm_far_over_those_before_is_undone(folder: Path) -> None:
    (skipped,) = read_skips(folder / "spike" / "events.jsonl")
    assert skipped.position == POISONED
    assert "its gradient norm is over" in skipped.why or "its loss is over" in skipped.why


def test_ranks_that_run_other_branches_are_told_apart_before_they_learn(folder: Path) -> None:
    told = errors(folder)["askew"]
    assert told.startswith("position 0: rank 1 called picture where rank 0 called text (")
    assert "branch picture" in told
    assert told.endswith("Rank 1 read toys; rank 0 toys")
    assert not list((folder / "askew").glob("checkpoints/*"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where a lone process left its checkpoints, and what it said."""
    folder = tmp_path_factory.mktemp("alone")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    command = [sys.executable, __file__, str(folder)]
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return folder, said.stdout


def test_a_disk_that_takes_no_more_ends_the_run_and_leaves_the_checkpoint_before(alone: tuple[Path, str]) -> None:
    folder, said = alone
    assert said.startswith(f"{folder}/full/checkpoints/step-000004 could not be written ([Errno 27] "), said
    assert "earlier checkpoints are whole" in said
    assert [path.name for path in sorted((folder / "full" / "checkpoints").glob("step-*"))] == ["step-000002"]


def test_what_is_written_beside_the_steps_is_what_it_was_when_they_went_on(alone: tuple[Path, str]) -> None:
    folder, said = alone
    at_once, beside = folder / "at-once", folder / "beside" / "step-000001"
    assert len(list(at_once.iterdir())) == 5, said
    for path in at_once.iterdir():
        assert path.read_bytes() == (beside / path.name).read_bytes()


def test_saves_beside_and_between_steps_write_the_same_bytes(folder: Path) -> None:
    name = f"checkpoints/step-{STEPS:06d}"
    beside, between = folder / "undone" / name, folder / "between" / name
    assert sorted(path.name for path in beside.iterdir()) == sorted(path.name for path in between.iterdir())
    for path in beside.iterdir():
        assert path.read_bytes() == (between / path.name).read_bytes()


def test_checkpoints_at_multiples_stay_for_good(folder: Path) -> None:
    steps = [path.name for path in sorted((folder / "between" / "checkpoints").iterdir())]
    assert steps == ["step-000004", "step-000008", "step-000009"]  # of 2, 4, 8, 9 the newest two, and 4


def test_a_rank_that_was_stopped_ends_the_run_which_says_where_each_rank_stands(folder: Path) -> None:
    attempt = folder / "stopped" / "ray" / "attempt-001"
    first, one, other = (attempt / "stuck.txt").read_text().splitlines()
    assert first.startswith(f"no rank went on for {PATIENCE} s (execution.patience): rank 1 does not answer (stopped, ")
    assert "; it last told that it " in one
    assert other.startswith("rank 0 trains position ")
    assert other.endswith(", in all_reduce")
    assert "pipelines/learning.py" in other
    assert "all_reduce" in (attempt / "rank-0.stuck.txt").read_text()


def test_a_rule_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="window=1"):
        Spikes(window=1)
    with pytest.raises(ValueError, match="sigmas"):
        Spikes(sigmas=0)
    with pytest.raises(ValueError, match="patience=0"):
        Execution(patience=0)


def test_the_first_difference_is_told() -> None:
    told = symmetry._difference(7, "called", [(["a", "text.x", "b"], "s/0.tar"), (["a", "text.x"], "s/1.tar")])
    assert told.startswith("position 7: rank 1 was done where rank 0 called b (3. in order, branch b)")
    assert told.endswith("Rank 1 read s/1.tar; rank 0 s/0.tar")


def rank(folder: Path, number: int) -> None:
    """One rank's life."""
    import torch
    import toys
    from torch import distributed

    from pipelines import zero

    torch.set_num_threads(1)
    zero.library()
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    told: dict[str, str] = {}
    rows = toys.Rows(batch=8, poisoned=(POISONED,))
    plain = toys.training(steps=STEPS, save_every=2, micro_batch=2)
    careful = replace(plain, spikes=Spikes(window=100, most=1))

    def train(name: str, training: Any, rows: Any) -> None:
        told[name] = trained(folder / name, training, rows)
        distributed.barrier()

    train("undone", careful, rows)
    if number == 0:
        (folder / "without").mkdir()
        (folder / "without" / "events.jsonl").write_bytes((folder / "undone" / "events.jsonl").read_bytes())
    distributed.barrier()
    train("without", careful, rows)
    train("between", executed(careful, saves="between", keep_every=4), rows)
    train("budget", careful, replace(rows, poisoned=(POISONED, POISONED + 1)))
    train("early", careful, replace(rows, poisoned=(1,)))
    judged = replace(careful, spikes=Spikes(window=4, sigmas=6))
    train("spike", replace(judged, steps=4), toys.Rows(batch=8))  # what it goes on from remembers four steps
    train("spike", judged, toys.Rows(batch=8, bright=(POISONED,)))
    train("askew", replace(plain, architecture=toys.Toy(askew=1)), toys.Rows(batch=8))
    if number == 0:
        (folder / "errors.json").write_text(json.dumps(told))
    distributed.barrier()
    train("stopped", executed(plain, patience=PATIENCE), toys.Rows(batch=8, stopped=(3, 1)))


def lone(folder: Path) -> None:
    """A process of its own: weights change while they are written; then files cannot grow from some position on."""
    import torch
    import toys

    from pipelines import checkpoint, zero
    from pipelines.average import Average

    zero.join()
    plain = toys.training(steps=STEPS, zero_stage=0)
    engine = toys.engine(plain.architecture.build(), plain)
    average = Average(engine, 0.9)
    checkpoint.save(folder / "at-once", engine, state={}, average=average)
    saver, go = checkpoint.Saver(folder / "beside", engine, average, plain.execution), threading.Event()
    saver._pool.submit(go.wait)
    saver.save(1, {})
    with torch.no_grad():
        for master in checkpoint.stepped(engine):
            master.fill_(9.0)
    go.set()
    saver.wait()
    engine.destroy()
    training = toys.training(steps=STEPS, save_every=2, saves="between", toy=toys.Toy(width=64))
    print(trained(folder / "full", training, toys.Rows(batch=8, limited=(4, 8000))))


def trained(run: Path, training: Any, rows: Any) -> str:
    """The training loop of this rank; what it ended in, or nothing."""
    from pipelines import worker

    attempt = run / "ray" / "attempt-001"
    attempt.mkdir(parents=True, exist_ok=True)
    try:
        worker.work({"training": training, "run": run, "batches": rows, "attempt": attempt})
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def executed(training: Any, **execution: Any) -> Any:
    return replace(training, execution=replace(training.execution, **execution))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        rank(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        lone(Path(sys.argv[1]))
