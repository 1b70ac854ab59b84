"""Every corpus from its upstream layout: built, verified, read by webdataset, the same bytes again from a store."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import fsspec
import here
import pytest
import webdataset as wds

from dataflow import folders, index, mini, readers
from dataflow.build import ShardJob
from dataflow.index import BuiltCorpus
from dataflow.record import GROUPS
from dataflow.roots import Roots
from pipelines import recipe
from pipelines.corpus import Corpus
from pipelines.derived import Derived
from pipelines.recipe import describe
from pipelines.recipes import corpora

# Root digests of the small world at 50 rows a shard; not of what a clip decoder had a hand in, here or in the world.
GOLDEN = Path(__file__).parent / "corpora.json"
DECODED = {
    f"corpora:{name}"
    for name in ("videostar", "sharegptvideo", "sharegpt4video", "something_something", "howto100m", "aurora")
}
NAMES = [
    name for name, _ in recipe.listing() if name.startswith("corpora:") and not isinstance(recipe.load(name), Derived)
]


def built(corpus: Corpus, data: Path, folder: Path) -> BuiltCorpus:
    return here.build(
        corpus.source,
        Roots(base=data),
        folder,
        filters=corpus.filters,
        rows=50,
        recipe_key=corpus.recipe_key(),
        step=describe(corpus),
        max_dropped=corpus.max_dropped,
        max_missing=corpus.max_missing,
    )


def in_memory(source: Path) -> Path:
    """A folder of a store that holds a source's folder."""
    folder = folders.folder(f"memory://{secrets.token_hex(6)}")
    client, home = fsspec.filesystem("memory"), folders.stored(folder).path
    for path in source.rglob("*"):
        if path.is_file():
            client.pipe_file(f"{home}/{path.relative_to(source.parent).as_posix()}", path.read_bytes())
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_is_built_verified_and_read_by_webdataset_and_the_same_from_a_store(
    name: str, world: Path, tmp_path: Path
) -> None:
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

    again = built(corpus, in_memory(world / corpus.source.name), tmp_path / "b")
    assert again.manifest["root_digest"] == made.manifest["root_digest"]
    digests = json.loads(GOLDEN.read_text())
    assert set(digests) == set(NAMES) - DECODED
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
