"""Instruction pairs from pages to records: measured on Ray, built, found again, the same bytes in one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import here
import pyarrow.parquet as pq
import pytest
import tiny_clip
import tiny_qwen

from dataflow import index, measures, pairs
from dataflow.index import BuiltCorpus
from dataflow.media import decoded
from dataflow.roots import Roots
from dataflow.sources.mmc4_pairs import Mmc4Pairs
from models.likeness import Likeness
from pipelines import corpus, recipe
from pipelines.corpus import Corpus, Unbuilt
from pipelines.curate import measured
from pipelines.derived import Derived
from pipelines.pairs import Instructions, QwenWriter, Similarity
from pipelines.recipes import corpora
from pipelines.step import Place, cluster

ALIKE = 0.5  # of captions, by a network that knows nothing


@dataclass(frozen=True)
class Lab:
    """Twelve miniature pages, and the pairs of them by a tiny SigLIP."""

    made: Derived
    place: Place

    @property
    def pages(self) -> BuiltCorpus:
        return BuiltCorpus(corpus.locate(self.made.of, self.place))


def by(made: Derived, **instructions: object) -> Derived:
    """The pairs by other instructions."""
    return replace(made, measures=(replace(made.measures[0], **instructions),))


@pytest.fixture(scope="module")
def lab(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("pairs")
    made = corpora.mmc4_pairs()
    rules = Instructions(
        similarity=Similarity(weights=tiny_clip.save(folder / "siglip", "siglip")), threshold=ALIKE, side=32
    )
    made = replace(made, of=replace(made.of, rows_per_shard=5), measures=(rules,), rows_per_shard=4)
    place = Place(root=folder / "runs", roots=Roots(base=world), workers=1)
    with cluster(place):
        yield Lab(made=made, place=place)


def test_nothing_is_found_before_it_is_built_and_the_error_says_what_to_build(world: Path, tmp_path: Path) -> None:
    made = corpora.mmc4_pairs()
    place = Place(root=tmp_path, roots=Roots(base=world))
    assert not corpus.is_built(made, place)
    with pytest.raises(Unbuilt, match=f"mmc4 is not built under {tmp_path}: run interlace build"):
        corpus.locate(made, place)
    with pytest.raises(Unbuilt, match=f"mmc4_pairs is not built under {tmp_path}: run interlace build .* and --data"):
        corpus.locate(made, replace(place, roots=Roots()))
    with pytest.raises(ValueError, match="where is mmc4"):
        corpus.build(made, replace(place, roots=Roots()))


def test_pages_become_pairs_and_every_page_is_a_row_of_the_ledger(lab: Lab, capfd: pytest.CaptureFixture[str]) -> None:
    folder = corpus.build(lab.made, lab.place)
    pages, made = lab.pages, BuiltCorpus(folder)
    assert not [problem for _, problem in index.verify(folder) if problem]
    ledger = pq.read_table(folder / "ledger.parquet").to_pylist()
    assert len(ledger) == len(pages) == 12
    counts = made.manifest["counts"]
    assert counts["rows"] == 12
    assert counts["candidates"] == counts["kept"] + counts["filtered"]
    assert set(made.tasks) == {"subject_driven"}

    likeness = Likeness(lab.made.measures[0].similarity.weights)
    expected = []
    for number in range(len(pages)):
        page = pages.record(number)
        captioned = pairs.captioned(page)
        pictures = likeness.pictures([decoded(page.media[place]) for place, _ in captioned])
        alike = likeness.captions([caption for _, caption in captioned])
        for group in pairs.grouped(alike, threshold=ALIKE, most=6):
            last = group.pop(pairs.target(pictures[group][:, group], rule="average"))
            caption = captioned[last][1]
            expected.append(([page.media[captioned[place][0]].data for place in (*group, last)], caption))
    assert len(expected) > 6
    records = [made.record(number) for number in range(len(made))]
    assert [[media.data for media in record.media] for record in records] == [held for held, _ in expected]
    for record, (held, caption) in zip(records, expected, strict=True):
        (asker, (*shown, prompt)), (answerer, drawn) = record.turns
        assert (asker, answerer, shown, drawn) == ("user", "assistant", [*range(len(held) - 1)], (len(held) - 1,))
        assert str(prompt).endswith(f": {caption}")

    capfd.readouterr()
    assert corpus.is_built(lab.made, lab.place)
    assert corpus.build(lab.made, lab.place) == folder
    assert f"{folder.name}: already built, nothing to do" in capfd.readouterr().out
    undeclared = replace(lab.place, roots=Roots())
    assert corpus.locate(lab.made, lab.place) == corpus.locate(lab.made, undeclared) == folder


def test_one_process_writes_the_bytes_that_workers_write(lab: Lab, tmp_path: Path) -> None:
    folder = corpus.build(lab.made, lab.place)
    roots = lab.made.found(lab.place).roots
    alone = here.build(Mmc4Pairs(), roots, tmp_path / "alone", filters=lab.made.filters, rows=4)
    assert alone.manifest["root_digest"] == BuiltCorpus(folder).manifest["root_digest"]


def test_another_rule_is_another_corpus_for_which_no_likeness_is_measured_again(lab: Lab) -> None:
    corpus.build(lab.made, lab.place)
    other = by(lab.made, target="minimum")
    assert not corpus.is_built(other, lab.place)
    (rules,) = other.measures
    assert measured(rules, lab.pages, lab.place) is None
    assert measured(rules.similarity, lab.pages, lab.place) is not None
    with pytest.raises(Unbuilt, match="mmc4_pairs is made of mmc4, which is not measured yet: run interlace build"):
        corpus.locate(other, lab.place)


def test_a_pairs_corpus_is_found_without_what_it_was_made_of(lab: Lab, tmp_path: Path) -> None:
    """As on a cluster to which it alone was copied."""
    folder = corpus.build(lab.made, lab.place)
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / folder.name).symlink_to(folder)
    assert corpus.locate(lab.made, Place(root=tmp_path)) == tmp_path / "corpora" / folder.name


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen2_vl"])
def test_a_qwen_writes_of_the_pictures_and_captions_of_a_group(lab: Lab, tmp_path: Path, kind: str) -> None:
    """Its weights are random and it knows no brackets: the replies are kept, the ledger says what they lack."""
    corpus.build(lab.made, lab.place)
    rules = by(lab.made, writer=QwenWriter(weights=tiny_qwen.save(tmp_path, kind), tokens=8, pixels=32 * 32)).measures[
        0
    ]
    similarity = measured(rules.similarity, lab.pages, lab.place)
    assert similarity is not None
    rows = measures.read(similarity).slice(0, 3).to_pylist()
    pages = [lab.pages.record(number) for number in range(3)]
    write = rules.ready()
    found = write(pages, {"similarity": rows})
    assert found["groups"] == [rules.groups(page, row) for page, row in zip(pages, rows, strict=True)]
    replies = [reply for held in found["replies"] for reply in held]
    assert len(replies) > 2
    assert len(set(replies)) == len(replies)
    assert all(reply.isascii() and len(reply) == 8 for reply in replies)
    assert write(pages[1:2], {"similarity": rows[1:2]})["replies"] == found["replies"][1:2]


def test_its_limits_and_those_of_the_pages_do_not_decide_which_corpus_it_is(lab: Lab) -> None:
    looser = replace(lab.made, max_dropped=0.5, of=replace(lab.made.of, max_missing=1.0))
    assert looser.recipe_key() == lab.made.recipe_key()
    for other in (
        by(lab.made, threshold=0.6),
        by(lab.made, target="minimum"),
        replace(lab.made, of=replace(lab.made.of, rows_per_shard=6)),
    ):
        assert other.recipe_key() != lab.made.recipe_key()
    assert recipe.rebuild(recipe.describe(lab.made)) == lab.made


def test_what_makes_no_sense_is_refused_where_it_is_said() -> None:
    made = corpora.mmc4_pairs()
    with pytest.raises(ValueError, match="shards='adopted' of mmc4_pairs: there are no tars of it yet"):
        replace(made, shards="adopted")
    with pytest.raises(ValueError, match="give it a name of its own"):
        replace(made, of=Corpus(source=Mmc4Pairs()))
    with pytest.raises(ValueError, match="most=1: a group has a source and a target at least"):
        Instructions(most=1)
    with pytest.raises(ValueError, match="threshold=50: a cosine is from -1 to 1"):
        Instructions(threshold=50)
    with pytest.raises(ValueError, match="target='mean'"):
        Instructions(target="mean")  # type: ignore[arg-type]
