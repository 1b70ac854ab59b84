"""A run on two nodes that loses a worker, then a node: it goes on by itself. `make chaos` kills all the rest, too."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import chaos
import pytest
import toys
from chaos import Course, Kill, Nodes, Recovery

from pipelines import attempt, audit, train
from pipelines.batching import Micro
from pipelines.step import Place

STEPS = 26
KILLS = (Kill(name="a worker", do=chaos.a_worker), Kill(name="a node", do=chaos.a_node))


@dataclass(frozen=True, kw_only=True)
class Deadly(toys.Rows):
    """Rows over which a rank dies whenever it has come so far."""

    deadly: int
    journal: Path

    def __call__(self, position: int, rank: int, world: int, micro_batch: int) -> list[Micro]:
        if position == self.deadly:  # read while the step before is taken
            while self.journal.read_text().count("\n") < position:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(position, rank, world, micro_batch)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head and two nodes of a CPU each."""
    with chaos.environment(tmp_path_factory.mktemp("environment")):
        os.environ["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
        made = Nodes(2)
        yield made
        made.close()


@pytest.fixture(scope="module")
def course(nodes: Nodes, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Course, list[Recovery]]:
    """A finished run, and its two recoveries; a node is left."""
    _, root = chaos.built(nodes, tmp_path_factory.mktemp("course"), world, STEPS)
    dice = random.Random(0)
    with chaos.begun(nodes, root, STEPS) as course:
        recoveries = [chaos.disturbed(course, kill, dice) for kill in KILLS]
        course.end(0)
    return course, recoveries


def test_a_run_goes_on_by_itself_and_with_fewer_workers_where_a_node_does_not_come_back(
    course: tuple[Course, list[Recovery]],
) -> None:
    run, (worker, node) = course
    assert run.workers() == {1: 2, 2: 2, 3: 1}
    (told,) = worker.said
    assert re.fullmatch(r"rank \d (was killed|lost its .*) at step \d+; going on from step-0000\d\d with 2 .*", told)
    waiting, told = node.said
    assert waiting == "the cluster has room for 1 of 2 workers: waiting 5 s for another node"
    ended, begun = (json.loads((run.run / f"ray/attempt-00{number}/attempt.json").read_text()) for number in (2, 3))
    assert told == f"{ended['ended']}; going on from {begun['from']} with 1 worker"
    assert ended["step"] == node.step and ended["ended"].endswith(f" at step {node.step + 1}")


def test_steps_that_were_repeated_are_equal_to_the_last_digit_and_close_with_fewer_workers(
    course: tuple[Course, list[Recovery]],
) -> None:
    run, recoveries = course
    attempts = [{line["step"]: line for line in run.lines() if line["attempt"] == attempt} for attempt in (1, 2, 3)]
    for before, after, limit in zip(attempts, attempts[1:], (0.0, chaos.CLOSE), strict=False):
        again = before.keys() & after.keys()
        assert again
        for step in again:
            for name in ("counts", "fed", "tokens", "rate"):
                assert after[step][name] == before[step][name]
            for name, loss in before[step]["losses"].items():
                assert after[step]["losses"][name] == pytest.approx(loss, rel=limit, abs=0)
    assert [each.repeated > 0 for each in recoveries] == [True, True]


def test_every_position_is_stepped_and_every_record_accounted_for(course: tuple[Course, list[Recovery]]) -> None:
    run, _ = course
    assert {line["step"] for line in run.lines()} == set(range(1, STEPS + 1))
    table, sound = audit.table(audit.Scheduled.of(run.run, Place(root=run.root)))
    assert sound, table


def test_a_run_that_begins_nothing_by_itself_ends_in_a_line_and_too_few_nodes_do(
    nodes: Nodes, course: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    training = toys.training(steps=4, save_every=2, saves="between", restarts=0)
    rows = Deadly(batch=4, deadly=3, journal=tmp_path / "metrics.jsonl")
    monkeypatch.setattr(train, "NODE_PATIENCE", 0.1)
    ray.init(nodes.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with pytest.raises(ValueError, match=r"2 ranks need 2 CPUs, the Ray cluster has 1: start fewer workers"):
            train.fit(training, tmp_path, rows, workers=2, ray_address=nodes.address)
        with pytest.raises(RuntimeError, match=r"^rank 0 was killed at step 4, .*\.restarts=0 .* same command"):
            train.fit(training, tmp_path, rows, workers=1, ray_address=nodes.address)
        assert [attempt.note(folder)["step"] for folder in attempt.folders(tmp_path)] == [3]

        few = replace(training, execution=replace(training.execution, least_workers=2))
        with pytest.raises(RuntimeError, match=r"room for 1 workers, execution\.least_workers=2: once there are nodes"):
            train.fit(few, tmp_path, rows, workers=2, ray_address=nodes.address)
        with pytest.raises(ValueError, match=r"execution\.least_workers=2 of 1 workers"):
            train.fit(few, tmp_path, rows, workers=1, ray_address=nodes.address)
    finally:
        ray.shutdown()


def mishap(run: Path, what: str, step: int | None, *, saved: int | None = None, after: str = "") -> str:
    """An attempt that told of its steps up to one, saved a checkpoint, and was killed."""
    attempt.begin(run, 2, after=after)
    number = len(attempt.folders(run))
    if step is not None:
        with (run / "metrics.jsonl").open("a") as lines:
            lines.write(json.dumps({"step": step, "attempt": number}) + "\n")
    if saved is not None:
        (run / "checkpoints" / f"step-{saved:06d}").mkdir(parents=True)
    return attempt.end(run, attempt.Ended(what=what))


def test_the_same_mishap_at_the_same_step_ends_a_run_unless_it_came_further(tmp_path: Path) -> None:
    line = mishap(tmp_path, "rank 1 was killed", 11, saved=10)
    assert line == "rank 1 was killed at step 12" and attempt.enough(tmp_path, 3, since=0) == ""
    mishap(tmp_path, "rank 0 was killed", 11, after=line)
    assert attempt.enough(tmp_path, 3, since=0) == ""
    mishap(tmp_path, "rank 0 was killed", 12, after=line)
    assert attempt.enough(tmp_path, 4, since=0) == ""
    mishap(tmp_path, "rank 0 was killed", 12, after=line)
    assert attempt.enough(tmp_path, 4, since=0).startswith("as in the attempt before: memory, perhaps; see ")
    mishap(tmp_path, "rank 0 was killed", 12, saved=20, after=line)
    assert attempt.enough(tmp_path, 4, since=0) == ""


def test_restarts_are_counted_from_the_newest_checkpoint_and_from_the_command(tmp_path: Path) -> None:
    line = mishap(tmp_path, "rank 0 was killed", None)
    assert line == "rank 0 was killed before its first step"
    mishap(tmp_path, "rank 1 was killed", None, after=line)
    assert attempt.enough(tmp_path, 2, since=0) == ""
    mishap(tmp_path, "rank 0 was killed", None, after=line)
    assert attempt.enough(tmp_path, 2, since=0).startswith("with no new checkpoint in execution.restarts=2 attempts")
    assert attempt.enough(tmp_path, 3, since=0) == ""
    since = attempt.note(attempt.folders(tmp_path)[-1])["began"]
    assert attempt.enough(tmp_path, 2, since=since) == ""
    mishap(tmp_path, "rank 1 was killed", None, saved=5, after=line)
    assert attempt.enough(tmp_path, 2, since=0) == "" != attempt.enough(tmp_path, 0, since=0)


def test_a_rank_that_its_watchdog_ended_is_quoted(tmp_path: Path) -> None:
    attempt.begin(tmp_path, 2)
    (attempt.folders(tmp_path)[-1] / "stuck.txt").write_text("no rank went on for 9 s: rank 1 waits\nrank 1 waits\n")
    line = attempt.end(tmp_path, attempt.Ended(what="ranks 0, 1 were killed"))
    assert line == "no rank went on for 9 s: rank 1 waits before its first step"
    why = attempt.begin(tmp_path, 1, after=line)
    assert why == f"{line}; going on from the start with 1 worker"
