"""Packed rows on a real cluster: the same batches on any ranks, after any kill, beside records that cannot be read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from driver import MIXTURE

from dataflow.index import BuiltCorpus
from dataflow.packing import Packing
from dataflow.reader import read_events
from dataflow.roots import Roots
from dataflow.windows import Windows
from models.configs import Transfusion
from models.parts import LinearCoder, Llama, Pixels
from pipelines import audit, plan, runs
from pipelines.batching import RecordBatches
from pipelines.step import Place, cluster
from pipelines.training import AdamW, Execution, Training

TRAINING = Training(
    name="packed",
    architecture=Transfusion(
        backbone=Llama(width=32, layers=1, heads=2, kv_heads=1, ffn=64, max_positions=1024),
        canvas=Pixels(side=16),
        coder=LinearCoder(patch=4),
    ),
    mixture=MIXTURE,
    optimizer=AdamW(learning_rate=1e-3),
    batch=5,
    steps=4,
    sequence_length=500,
    packing=Packing(fill=920),
    execution=Execution(micro_batch=2, save_every=2),
)


@pytest.fixture(scope="module")
def place(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(root=tmp_path_factory.mktemp("packed"), roots=Roots.parse([str(world)]), workers=2)
    with cluster(place):
        plan.build(TRAINING.mixture, place)
        yield place


def batches(place: Place, training: Training = TRAINING) -> RecordBatches:
    opened, schedule, whole, _ = runs.located(training, place)
    return runs.batches_of(whole, schedule, opened)


def drawn(held: RecordBatches, position: int, rank: int, world: int, micro_batch: int) -> tuple[dict[int, str], int]:
    """By number a digest of each of a rank's rows: tokens, pictures and their noise; and its micro-batches."""
    micros = held(position, rank, world, micro_batch)
    numbers, found = iter(held.deal(position, rank, world)), {}
    for micro in micros:
        for row in range(len(micro.batch.ids)):
            number, used = next(numbers, -1), int((micro.batch.document[row] > 0).sum())
            assert (number < 0) == (used == 0)
            pictures = (micro.batch.drawn.row == row).nonzero()[:, 0].tolist()
            noise = [torch.rand(3, generator=micro.draw("noise", index)).tolist() for index in pictures]
            told = repr((micro.batch.ids[row, :used].tolist(), micro.batch.document[row, :used].tolist(), noise))
            pixels = micro.batch.drawn.pixels[pictures].numpy().tobytes()
            found[number] = hashlib.sha256(told.encode() + pixels).hexdigest()
    found.pop(-1, None)
    return found, len(micros)


@pytest.mark.parametrize("micro", [1, 2])
def test_rows_are_the_same_and_drawn_alike_on_any_number_of_ranks(place: Place, micro: int) -> None:
    for position in (0, 3):
        wanted, _ = drawn(batches(place), position, 0, 1, 5)
        assert sorted(wanted) == [0, 1, 2, 3, 4]
        for world in (2, 3, 7):
            parts = [drawn(batches(place), position, rank, world, micro) for rank in range(world)]
            assert len({count for _, count in parts}) == 1
            assert {number: told for rows, _ in parts for number, told in rows.items()} == wanted
            assert sum(len(rows) for rows, _ in parts) == 5


def test_rows_are_nearly_full_and_lengths_are_those_that_were_measured(place: Place) -> None:
    held = batches(place)
    assert isinstance(held.schedule, Windows)
    (micro,) = held(0, 0, 1, 5)
    assert micro.batch.ids.shape[1] <= 500
    assert int((micro.batch.document > 0).sum()) == sum(micro.tokens) > 0.85 * 5 * 500
    assert int(micro.batch.document.max()) > 1
    other = held.schedule.lengths[0]
    wrong = replace(
        held,
        schedule=replace(held.schedule, lengths=(replace(other, tokens=other.tokens + 1), *held.schedule.lengths[1:])),
    )
    with pytest.raises(RuntimeError, match=r"takes \d+ tokens, \d+ were measured: what lays it out changed"):
        wrong(0, 0, 1, 5)


def test_a_plan_tells_what_each_source_gives_in_samples_and_in_tokens(place: Place) -> None:
    told = list(plan.page(TRAINING, place))
    held = batches(place).schedule
    assert isinstance(held, Windows)
    captions = next(line for line in told if "metaclip" in line).replace(",", "").split()
    assert captions[:2] == ["generation", "metaclip"]
    assert [int(captions[3]), int(captions[6])] == [held.counts()[0], held.tokens()[0]]
    assert abs(float(captions[5]) - 100 * 2 / 3) < 1
    assert any(line.startswith("rows of 500 tokens filled to 92 %") for line in told)
    other = replace(TRAINING.mixture, groups=(replace(TRAINING.mixture.groups[0], share=9), TRAINING.mixture.groups[1]))
    told = list(plan.page(replace(TRAINING, mixture=other), place))
    assert abs(float(next(line for line in told if "metaclip" in line).split()[5]) - 90) < 1


def lines(run: Path) -> list[dict[str, Any]]:
    """What each step was fed, and its losses."""
    told = {line["step"]: line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
    return [{name: told[step][name] for name in ("fed", "tokens", "counts", "losses")} for step in sorted(told)]


@pytest.fixture(scope="module")
def damaged(place: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, list[str]]:
    """A root in which three captioned pictures of the first positions are no pictures any more, and their keys."""
    root = tmp_path_factory.mktemp("damaged")
    held = batches(place)  # which measures lengths
    for room in ("corpora", "measures"):
        shutil.copytree(place.root / room, root / room)
    uses = [use for pack in held.schedule.packs(1) for use in pack if use.member == 0][:3]
    corpus = BuiltCorpus(next((root / "corpora").glob("metaclip-*")))
    keys = []
    for use in uses:
        record = corpus.record(use.row)
        keys.append(record.key)
        shard = corpus.folder / f"{corpus.table['shard'][use.row].as_py():05d}.tar"
        data = shard.read_bytes()
        shard.write_bytes(data.replace(record.media[0].data, b"\0" * len(record.media[0].data)))
    return Place(root=root, workers=2), keys


def test_a_run_replaces_what_cannot_be_read_tells_it_and_repeats_itself(damaged: tuple[Place, list[str]]) -> None:
    place, keys = damaged
    run = runs.train(TRAINING, place, recipe_name="test:packed")
    first = lines(run)
    events = read_events(run / "events.jsonl")
    assert {event.key for event in events} == set(keys)
    assert all(event.source == "metaclip" and event.by and "picture does not decode" in event.why for event in events)
    held = audit.Scheduled.of(run, place)
    told, sound = audit.table(held)
    assert sound and any(line.split()[-2:] == [str(len(events)), "0"] for line in told)
    assert any(f"in place of {keys[0]}" in line for line in audit.at_position(held, 1))
    assert any(f"{events[0].by} in its place" in line for line in audit.of_record(held, events[0].key))

    for gone in ("done.json", "checkpoints/step-000004"):  # as if it had been killed after its third step
        path = run / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    mended = Place(root=place.root, workers=1)
    assert runs.train(TRAINING, mended, recipe_name="test:packed") == run
    again = lines(run)
    assert read_events(run / "events.jsonl") == events
    for one, other in zip(first, again, strict=True):
        assert {k: one[k] for k in ("fed", "tokens", "counts")} == {k: other[k] for k in ("fed", "tokens", "counts")}
        for name, loss in one["losses"].items():
            assert loss == pytest.approx(other["losses"][name], rel=1e-4)

    told = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(told.partition("\n")[2])
    for gone in ("done.json", "checkpoints/step-000004"):
        path = run / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=r"events.jsonl does not tell what was replaced up to position 2"):
        runs.train(TRAINING, place, recipe_name="test:packed")
    (run / "events.jsonl").write_text(told)


def test_a_run_stops_when_too_many_records_of_a_source_cannot_be_read(damaged: tuple[Place, list[str]]) -> None:
    place, _ = damaged
    strict = replace(TRAINING, name="strict", execution=replace(TRAINING.execution, max_replaced=1))
    with pytest.raises(ValueError, match=r"\d records of metaclip could not be read, over execution.max_replaced=1"):
        runs.train(strict, place, recipe_name="test:packed")


def test_a_record_counts_once_however_often_it_was_replaced(
    damaged: tuple[Place, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    place, keys = damaged
    exact = replace(TRAINING, name="exact", execution=replace(TRAINING.execution, max_replaced=len(keys)))
    run = runs.train(exact, place, recipe_name="test:packed")
    events = read_events(run / "events.jsonl")
    assert len(events) > len({event.key for event in events}) == len(keys)
    assert f"{len(events)} records replaced ({run / 'events.jsonl'})" in capsys.readouterr().out


def test_a_training_that_asks_for_it_checks_shards_and_ends_at_one_that_is_not_what_was_built(
    damaged: tuple[Place, list[str]],
) -> None:
    place, _ = damaged
    careful = replace(TRAINING, name="careful", execution=replace(TRAINING.execution, shards="checked"))
    with pytest.raises(RuntimeError, match=r"NotAsBuilt: \S+\.tar is not the bytes .*: run interlace verify") as told:
        runs.train(careful, place, recipe_name="test:packed")
    assert "\n" not in str(told.value)
    (run,) = (place.root / "trainings").glob("careful-*")
    assert read_events(run / "events.jsonl") == []


def test_a_trace_answers_for_records_that_cannot_be_read(damaged: tuple[Place, list[str]], tmp_path: Path) -> None:
    place, _ = damaged
    run = next((place.root / "trainings").glob("packed-*"))
    held = audit.Scheduled.of(run, place)
    sound = list(audit.at_position(held, 0))
    corpus = held.corpora[0]
    away = tmp_path / "shards"
    away.mkdir()
    for shard in corpus.folder.glob("*.tar"):
        shard.rename(away / shard.name)
    try:
        held = audit.Scheduled.of(run, place)
        told = list(audit.at_position(held, 0))
        assert [line.split()[:3] for line in told] == [line.split()[:3] for line in sound]
        assert any("cannot be read from" in line and "No such file" in line for line in told)
        key = corpus.key(next(use.row for use in held.schedule.packs(0)[0] if use.member == 0))
        first, *places = audit.of_record(held, key)
        assert "No such file" in first and any(line.startswith("  position 0, row 0") for line in places)
    finally:
        for shard in away.iterdir():
            shard.rename(corpus.folder / shard.name)


def test_an_audit_finds_what_was_not_fed_as_planned(damaged: tuple[Place, list[str]]) -> None:
    place, _ = damaged
    run = next((place.root / "trainings").glob("packed-*"))
    path = run / "metrics.jsonl"
    told = path.read_text()
    held = audit.Scheduled.of(run, place)
    wrong = [json.loads(line) for line in told.splitlines()]
    wrong[0]["fed"]["metaclip"] += 1
    path.write_text("".join(json.dumps(line) + "\n" for line in wrong))
    lines_, sound = audit.table(held)
    assert not sound and any("metaclip" in line and line.endswith("NOT AS PLANNED") for line in lines_)
    path.write_text(told.partition("\n")[2])
    with pytest.raises(ValueError, match="does not tell of every step"):
        audit.table(held)
    path.write_text(told)
