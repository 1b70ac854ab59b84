"""Scores on a real Ray cluster with two made-up GPUs: actors hold them and load once, nothing else holds any."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import ray
from PIL import Image as Pillow
from ray import cloudpickle
from tiny_clip import save

from dataflow import measures
from dataflow.balancing import Listed, MetaClipBalance
from dataflow.index import BuiltCorpus
from dataflow.measures import Ready
from dataflow.media import decoded, encoded
from dataflow.record import Image, Lineage, Media, Message, Record, Text
from dataflow.roots import Roots
from dataflow.thresholds import Above
from models.parts import OpenClip
from models.scorers import Scorer
from pipelines import corpus
from pipelines.curate import curate, measure
from pipelines.recipe import describe, rebuild
from pipelines.recipes import corpora
from pipelines.scores import ClipScore
from pipelines.step import HOUSE, Place


def note(folder: str, event: str) -> None:
    """A line of the process' own: what happened, and the GPUs that Ray has given it."""
    held = ",".join(ray.get_runtime_context().get_accelerator_ids()["GPU"])
    with (Path(folder) / str(os.getpid())).open("a") as stream:
        stream.write(f"{event} {held}\n")


def notes(folder: Path) -> dict[str, list[str]]:
    """By process, its lines."""
    return {path.name: path.read_text().splitlines() for path in folder.iterdir()}


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A filter that keeps all, and notes where."""

    notes: str
    version: ClassVar[int] = 1

    def __call__(self, record: Record) -> str | None:
        note(self.notes, "filtered")
        return None


@dataclass(frozen=True, kw_only=True)
class WatchedScore(ClipScore):
    """The score, and notes of when it is made ready and used."""

    notes: str

    def ready(self) -> Ready:
        note(self.notes, "ready")
        ready = ClipScore(weights=self.weights, tasks=self.tasks).ready()

        def measured(records: Sequence[Record]) -> Mapping[str, Sequence[Any]]:
            note(self.notes, "measured")
            return ready(records)

        return measured


@pytest.fixture(scope="module", autouse=True)
def two_gpus() -> Iterator[None]:
    """A private cluster that believes in two GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{HOUSE}:{HOUSE / 'tests'}")  # inherited by its workers
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, **quiet)
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield
        ray.shutdown()


@dataclass(frozen=True, kw_only=True)
class Built:
    """A corpus of 100 captioned pictures in 10 shards, where it was built, and the notes of its workers."""

    corpus: BuiltCorpus
    place: Place
    notes: Path


@pytest.fixture(scope="module")
def built(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    place = Place(root=folder / "runs", roots=Roots.parse([str(world)]))
    (folder / "notes").mkdir()
    recipe = replace(corpora.metaclip(), rows_per_shard=10, filters=(Watched(notes=str(folder / "notes")),))
    return Built(corpus=BuiltCorpus(corpus.build(recipe, place)), place=place, notes=folder / "notes")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> OpenClip:
    return save(tmp_path_factory.mktemp("clip"), "clip")


def test_scoring_actors_hold_a_gpu_each_and_load_once_and_nothing_else_holds_one(
    tmp_path: Path, built: Built, weights: OpenClip
) -> None:
    rule = WatchedScore(weights=weights, notes=str(tmp_path))
    table = measures.read(measure(rule, built.corpus, built.place))
    seen = notes(tmp_path)
    assert sorted(lines[0] for lines in seen.values()) == ["ready 0", "ready 1"]
    for first, *later in seen.values():
        assert set(later) == {first.replace("ready", "measured")}
    assert sum(len(lines) - 1 for lines in seen.values()) == len(built.corpus.manifest["shards"]) == 10
    assert {line for lines in notes(built.notes).values() for line in lines} == {"filtered "}

    assert table.schema.equals(rule.columns)
    records = [built.corpus.record(row) for row in range(len(built.corpus))]
    pictures = [decoded(record.media[0]) for record in records]
    scores = table["score"].to_pylist()
    assert scores == pytest.approx(Scorer(weights)(pictures, [caption(record) for record in records]), abs=1e-5)

    median = float(np.median(scores))
    before = times(built.place.root)
    for limit, expected in ((median, [score >= median for score in scores]), (-1.0, [True] * 100)):
        (verdicts,) = curate((Above(measure=rule, column="score", at_least=limit),), (built.corpus,), built.place)
        assert verdicts.used.tolist() == expected
    assert times(built.place.root) == before  # two selections, and nothing else was touched


def caption(record: Record) -> str:
    (text,) = [part.text for message in record.messages for part in message.parts if isinstance(part, Text)]
    return text


def times(root: Path) -> dict[Path, int]:
    """When the files of corpora and measures were written."""
    return {
        path: path.stat().st_mtime_ns for part in ("corpora", "measures") for path in (root / part).rglob("*.[tp]*")
    }


def test_balancing_measures_once_whatever_its_threshold_and_its_ledger_adds_up(built: Built) -> None:
    entries = ("small", "blue", "green", "triangle", "circle", "photograph")
    (few,), (all_,) = (
        curate((MetaClipBalance(entries=Listed(entries=entries), threshold=most),), (built.corpus,), built.place)
        for most in (5, 1000)
    )
    said = [set(caption(built.corpus.record(row)).split()) for row in range(100)]
    assert all_.used.tolist() == [bool(words & set(entries)) for words in said]
    assert 5 <= few.used.sum() < all_.used.sum()
    assert not (few.used & ~all_.used).any()
    assert len(list((built.place.root / "measures").glob("entries-*"))) == 1
    for verdicts in (few, all_):
        assert [reason == "" for reason in verdicts.reasons.to_pylist()] == verdicts.used.tolist()


PICTURE = Media(data=b"no picture", extension="jpg", width=8, height=8)


@pytest.mark.parametrize(
    ("task", "messages", "media", "reason"),
    [
        ("image_qa", (("user", (Image(0), Text("what?"))), ("assistant", (Text("a cat"),))), 1, "task image_qa is"),
        ("caption_pair", (("assistant", (Image(0), Image(1), Text("a cat"))),), 2, "2 pictures"),
        ("text_to_image", (("user", (Text(" "),)), ("assistant", (Image(0),))), 1, "no caption"),
        ("text_to_image", (("user", (Text("a cat"),)), ("assistant", (Image(0),))), 1, "picture does not decode"),
    ],
)
def test_a_record_without_a_score_says_why(
    weights: OpenClip, task: str, messages: Any, media: int, reason: str
) -> None:
    record = Record(
        key="a_000000000",
        source="a",
        task=task,
        messages=tuple(Message(role, parts) for role, parts in messages),
        media=(PICTURE,) * media,
        lineage=Lineage(file="a", row=0),
    )
    measured = ClipScore(weights=weights).ready()([record])
    assert measured["score"] == [None]
    assert measured["reason"][0].startswith(reason)


def test_the_caption_is_what_the_assistant_says_else_the_user(weights: OpenClip) -> None:
    photograph = Pillow.effect_mandelbrot((48, 48), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    record = Record(
        key="a_000000000",
        source="a",
        task="image_qa",
        messages=(
            Message("user", (Image(0), Text("describe the picture"))),
            Message("assistant", (Text("a fractal"),)),
        ),
        media=(encoded(photograph),),
        lineage=Lineage(file="a", row=0),
    )
    asked = replace(record, messages=(Message("user", (Text("a fractal"),)), Message("assistant", (Image(0),))))
    measured = ClipScore(weights=weights, tasks=("image_qa",)).ready()([record, asked])
    assert measured["score"] == pytest.approx(Scorer(weights)([photograph] * 2, ["a fractal"] * 2), abs=1e-5)
    assert measured["reason"] == ["", ""]


def test_a_score_is_a_value_of_a_recipe(weights: OpenClip) -> None:
    rule = Above(measure=ClipScore(weights=weights), column="score", at_least=0.28)
    assert rebuild(describe(rule)) == rule
    with pytest.raises(ValueError, match="'caption' is none"):
        ClipScore(weights=weights, tasks=("caption",))
