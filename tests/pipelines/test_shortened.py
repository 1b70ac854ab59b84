"""Records longer than a row, shortened to it: the plan tells it, and what was measured is what is trained, anywhere."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dataflow.mixture import Group, Member, Mixture
from dataflow.packing import Packing
from dataflow.record import Record
from dataflow.roots import Roots
from dataflow.shortening import shortened
from dataflow.sources.sharegptvideo import ShareGptVideo
from dataflow.sources.something_something import SomethingSomething
from dataflow.sources.text import TextDocuments
from dataflow.windows import Windows
from models.configs import Transfusion
from models.parts import LinearCoder, Llama, Pixels
from pipelines import audit, evaluate, features, lengths, look, plan, recipe, runs
from pipelines.batching import RecordBatches
from pipelines.corpus import Corpus
from pipelines.step import Place, cluster
from pipelines.training import AdamW, Execution, Training

ROW = 115
CLIPS = Corpus(source=ShareGptVideo())
FRAMES = Corpus(source=SomethingSomething())
TEXTS = Corpus(source=TextDocuments())
TRAINING = Training(
    name="shortened",
    architecture=Transfusion(
        backbone=Llama(width=32, layers=1, heads=2, kv_heads=1, ffn=64, max_positions=256),
        canvas=Pixels(side=16),
        coder=LinearCoder(patch=4),
    ),
    mixture=Mixture(
        groups=(
            Group(name="understanding", share=1, members=(Member(corpus=CLIPS),)),
            Group(name="other", share=1, members=(Member(corpus=FRAMES),)),
            Group(name="text", share=1, members=(Member(corpus=TEXTS),)),
        )
    ),
    optimizer=AdamW(learning_rate=1e-3),
    batch=6,
    steps=2,
    sequence_length=ROW,
    packing=Packing(too_long="shorten", fill=875),
    execution=Execution(micro_batch=2, save_every=2),
)


def long(number: int) -> bool:
    return number % 2 == 0


@pytest.fixture(scope="module")
def place(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Clips of which some have a frame too many, and documents of which every other one is longer than a row."""
    data = tmp_path_factory.mktemp("texts")
    documents = [f"{number} is a number. " * (40 if long(number) else 1) for number in range(200)]
    (data / "part.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    roots = Roots.parse([str(world), f"text={data}"])
    place = Place(root=tmp_path_factory.mktemp("shortened"), roots=roots, workers=2)
    with cluster(place):
        plan.build(TRAINING.mixture, place)
        yield place


@pytest.fixture(scope="module")
def run(place: Place) -> Path:
    return runs.train(TRAINING, replace(place, workers=1), recipe_name="test:shortened")


def batches(place: Place, training: Training = TRAINING) -> RecordBatches:
    opened, schedule, whole, _ = runs.located(training, place)
    return runs.batches_of(whole, schedule, opened)


def tokens(record: Record) -> int:
    layout = TRAINING.architecture.layout()
    return len(layout.lay_out(record.turns, task=record.task, key=record.key, sizes=record.sizes))


def rows(held: RecordBatches, position: int, ranks: int) -> Counter[str]:
    """A digest of each row of a position, its tokens and pictures, from all ranks."""
    found = Counter[str]()
    for rank in range(ranks):
        for micro in held(position, rank, ranks, 2):
            for row, used in enumerate((micro.batch.document > 0).sum(dim=1).tolist()):
                pixels = micro.batch.drawn.pixels[micro.batch.drawn.row == row].numpy().tobytes()
                told = repr((micro.batch.ids[row, :used].tolist(), micro.batch.document[row, :used].tolist()))
                found.update([hashlib.sha256(told.encode() + pixels).hexdigest()] if used else [])
    return found


def test_a_plan_tells_how_many_are_shortened_and_how_many_left_out(place: Place) -> None:
    told = list(plan.page(TRAINING, place))
    whole = [[corpus.record(row) for row in range(len(corpus))] for corpus in batches(place).reader.corpora]
    clips, frames, texts = (sum(tokens(record) > ROW for record in member) for member in whole)
    assert clips and frames and texts == 100
    assert [line for line in told if "longer than a row" in line] == [
        f"sharegptvideo: {clips} of 9 records are longer than a row and shortened to it",
        f"something_something: {frames} of 8 records are longer than a row and left out",
        "text: 100 of 200 records are longer than a row and shortened to it",
    ]


def test_what_was_measured_is_what_is_left_of_each_record(place: Place) -> None:
    held = batches(place)
    assert isinstance(held.schedule, Windows)
    for corpus, known in zip(held.reader.corpora, held.schedule.lengths, strict=True):
        assert known.shortened is not None
        for row in range(len(corpus)):
            record = corpus.record(row)
            part = shortened(record, most=ROW, length=tokens)
            assert known.tokens[row] == tokens(part or record)
            assert known.shortened[row] == (part is not None and part is not record)
            assert (part is None) == (record.task == "frame_prediction" and tokens(record) > ROW)


def test_rows_hold_what_was_planned_on_one_rank_and_on_two(place: Place) -> None:
    held = replace(batches(place), schedule=replace(batches(place).schedule, positions=20))
    cut, frames = 0, 0
    for position in range(20):
        uses = [use for pack in held.schedule.packs(position) for use in pack]
        micros = held(position, 0, 1, 2)
        assert sum(sum(micro.tokens) for micro in micros) == sum(held.schedule.tokens_of(use) or 0 for use in uses)
        assert all(micro.batch.ids.shape[1] <= ROW for micro in micros)
        assert rows(held, position, 1) == rows(held, position, 2)
        for pack in held.reader.packs(position, range(held.schedule.batch)):
            for slot in pack:
                whole = held.reader.corpora[slot.use.member].record(slot.use.row)
                assert len(slot.value.document) == tokens(slot.value.record) <= ROW
                assert (tokens(whole) > ROW) == (slot.value.record != whole)
                cut += slot.value.record != whole
                frames += len(slot.value.record.media) < len(whole.media)
    assert cut > 10 and frames > 0


def test_other_trainings_leave_records_whole_and_their_measures_keep_their_names(place: Place) -> None:
    for packing in (Packing(too_long="drop", fill=875), Packing(too_long="shorten", fill=875)):
        schedule = batches(place, replace(TRAINING, packing=packing)).schedule
        assert isinstance(schedule, Windows)
        drops = packing.too_long == "drop"
        assert (sum(schedule.shortened) == 0) == drops and (schedule.dropped[2] == 100) == drops
    with pytest.raises(ValueError, match=r"longer than a row of 115 tokens, .*packing.too_long to shorten or drop"):
        batches(place, replace(TRAINING, packing=Packing()))
    told = recipe.describe(lengths.LaidOut(architecture=None))
    assert told == {"is": "pipelines.lengths:LaidOut", "version": 1, "architecture": None}


def test_a_run_its_audit_its_pages_and_its_evaluation_know_shortened_records(
    run: Path, place: Place, tmp_path: Path
) -> None:
    held = audit.Scheduled.of(run, place)
    _, sound = audit.table(held)
    assert sound
    lines = [line for position in range(2) for line in audit.at_position(held, position)]
    assert isinstance(held.schedule, Windows)
    uses = [use for position in range(2) for pack in held.schedule.packs(position) for use in pack]
    assert [", shortened" in line for line in lines] == [held.schedule.shortens(use) for use in uses]
    assert any(map(held.schedule.shortens, uses))
    told = look.page(TRAINING, batches(place), 0, tmp_path / "look.html").read_text()
    assert " is a number. " in told
    found = evaluate.evaluate(run, place, records=9, questions=2)
    assert found["text_document"].records == 4  # of 200 that are held out two are long


def test_stored_features_are_of_whole_records_so_both_together_are_refused(place: Place) -> None:
    with pytest.raises(ValueError, match=r"features=stored: they are of whole records, .*: use .*too_long=drop"):
        replace(TRAINING, execution=Execution(features="stored"))
    with pytest.raises(ValueError, match=r"features=stored: they are of whole records"):
        features.measure(TRAINING, place)
