"""Every corpus of the house from its upstream layout: built, verified, read by webdataset, the same bytes again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import webdataset as wds

from dataflow import index, mini, readers
from dataflow.build import ShardJob, read_receipt, receipt_path
from dataflow.index import BuiltCorpus
from dataflow.record import GROUPS
from dataflow.roots import Roots
from pipelines import recipe
from pipelines.corpus import Corpus
from pipelines.recipe import describe
from pipelines.recipes import corpora

# Root digests of the small world at 50 rows a shard; not of what a clip decoder had a hand in, here or in the world.
GOLDEN = Path(__file__).parent / "corpora.json"
NAMES = [name for name, _ in recipe.listing() if name.startswith("corpora:")]


def built(corpus: Corpus, data: Path, folder: Path, *, rows: int = 50) -> BuiltCorpus:
    """A corpus in this process, without Ray."""
    folder.mkdir(parents=True)
    roots = Roots(base=data)
    job = ShardJob(
        source=corpus.source, filters=corpus.filters, roots=roots, recipe_key=corpus.recipe_key(), earlier={}
    )
    home = roots.source(corpus.source.name)
    plan = [split for file in corpus.source.files(home) for split in readers.splits(home, file, rows)]
    for number, split in enumerate(plan):
        job.build(split, number, folder)
    receipts = [read_receipt(receipt_path(folder, number)) for number in range(len(plan))]
    limits = {"max_dropped": corpus.max_dropped, "max_missing": corpus.max_missing}
    index.commit(folder, receipts, step=describe(corpus), recipe_key=corpus.recipe_key(), **limits)
    for leftover in folder.glob(".*"):
        leftover.unlink()
    return BuiltCorpus(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_is_built_verified_and_read_by_webdataset(name: str, world: Path, tmp_path: Path) -> None:
    corpus = recipe.load(name)
    made = built(corpus, world, tmp_path / "a")
    counts = made.manifest["counts"]
    outcomes = ("kept", "filtered", "duplicate", "corrupt", "missing")
    assert counts["candidates"] == sum(counts[outcome] for outcome in outcomes)
    assert counts["kept"] >= 0.9 * counts["rows"] > 0
    assert not [problem for _, problem in index.verify(made.folder) if problem]

    urls = [str(path) for path in sorted(made.folder.glob("*.tar"))]
    samples = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False))  # type: ignore[attr-defined]
    records = [made.record(place) for place in range(len(made))]
    assert [sample["__key__"] for sample in samples] == [record.key for record in records]
    for sample, record in zip(samples, records, strict=True):
        pictures = {f"{place}.{media.extension}": media.data for place, media in enumerate(record.media)}
        assert {name: data for name, data in sample.items() if name[0].isdigit()} == pictures
        assert json.loads(sample["json"])["task"] == record.task

    again = built(corpus, world, tmp_path / "b")
    assert again.manifest["root_digest"] == made.manifest["root_digest"]
    digests = json.loads(GOLDEN.read_text())
    if name in digests:
        assert made.manifest["root_digest"] == digests[name], "bytes changed: raise the version of what changed them"


def test_every_source_of_the_miniature_corpora_has_a_recipe_and_every_task_a_source(
    world: Path, tmp_path: Path
) -> None:
    assert {recipe.load(name).source.name for name in NAMES} == set(mini.SOURCES)
    tasks: set[str] = set()
    for name in NAMES:
        corpus = recipe.load(name)
        home = Roots(base=world).source(corpus.source.name)
        job = ShardJob(source=corpus.source, filters=(), roots=Roots(base=world), recipe_key="", earlier={})
        for file in corpus.source.files(home):
            records, _ = job.preview(next(readers.splits(home, file, 12)), 0)
            tasks |= {record.task for record in records}
    assert tasks == {task for held in GROUPS.values() for task in held}


def test_the_alias_is_the_corpus_itself() -> None:
    assert corpora.visualization_of_thought() == corpora.visual_cot()
    assert corpora.visualization_of_thought().recipe_key() == corpora.visual_cot().recipe_key()
