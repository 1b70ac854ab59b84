"""Selections: which records of a corpus are used, as a table beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from upstream import ORCA, Build, jsonl

from dataflow import selection
from dataflow.index import BuiltCorpus
from dataflow.selection import All, Part, Portion
from dataflow.sources.cambrian import Cambrian

KEYS = [f"cambrian_{number:09d}" for number in range(20_000)]


@pytest.fixture
def corpus(tmp_path: Path, build: Build) -> BuiltCorpus:
    home = tmp_path / "data/cambrian/jsons"
    home.mkdir(parents=True)
    (home / "a.jsonl").write_bytes(jsonl(*[ORCA] * 60))
    return build(Cambrian(), rows=25)


def test_train_and_validation_share_nothing_and_leave_nothing_out() -> None:
    train, validation = Part(part="train")(KEYS), Part(part="validation")(KEYS)
    assert np.array_equal(train, ~validation)
    assert 0.017 < validation.mean() < 0.023  # 20 of 1,000


@pytest.mark.parametrize(("validation", "held_out"), [(0, 0), (1000, 20_000)])
def test_the_ends_of_the_scale_hold_out_nothing_or_all(validation: int, held_out: int) -> None:
    assert Part(part="validation", validation=validation)(KEYS).sum() == held_out


def test_a_record_stays_in_its_part_whatever_else_the_corpus_holds() -> None:
    whole = dict(zip(KEYS, Part(part="validation")(KEYS), strict=True))
    some = KEYS[::-7]
    assert Part(part="validation")(some).tolist() == [whole[key] for key in some]


def test_a_larger_validation_part_holds_the_smaller_one() -> None:
    small, large = (Part(part="validation", validation=count)(KEYS) for count in (20, 50))
    assert (large | small).sum() == large.sum() > small.sum()


def test_the_parts_are_these_on_every_machine() -> None:
    assert np.flatnonzero(Part(part="validation")(KEYS[:300])).tolist() == PINNED


PINNED = [12, 19, 49, 89, 106, 159, 160, 223, 226]


def test_portions_that_do_not_overlap_share_no_record_and_together_leave_none_out() -> None:
    portions = [Portion(end=100), Portion(first=100, end=900), Portion(first=900)]
    used = np.array([portion(KEYS) for portion in portions])
    assert (used.sum(axis=0) == 1).all()
    assert np.abs(used.mean(axis=1) - [0.1, 0.8, 0.1]).max() < 0.01
    assert Portion()(KEYS).all()


def test_a_portion_is_independent_of_the_part() -> None:
    """A tenth of the validation part too; the draws of `Part` would put all of it into the first portion."""
    validation = [key for key, used in zip(KEYS, Part(part="validation", validation=200)(KEYS), strict=True) if used]
    assert abs(Portion(first=900)(validation).mean() - 0.1) < 0.02
    assert abs(Portion(end=100)(validation).mean() - 0.1) < 0.02


def test_the_portions_are_these_on_every_machine() -> None:
    assert np.flatnonzero(Portion(first=980)(KEYS[:300])).tolist() == PINNED_PORTION


PINNED_PORTION = [2, 69, 196, 279]


def test_all_rules_must_agree() -> None:
    train, tenth = Part(part="train", validation=500), Portion(first=900)
    assert np.array_equal(All(rules=(train, tenth))(KEYS), train(KEYS) & tenth(KEYS))
    assert np.array_equal(All(rules=(train,))(KEYS), train(KEYS))
    with pytest.raises(ValueError, match=r"without a rule there is nothing to obey; leave the selection out"):
        All(rules=())


@pytest.mark.parametrize(("first", "end"), [(-1, 10), (0, 1001), (5, 5), (6, 5), (1000, 1000)])
def test_a_portion_of_nothing_or_beyond_the_scale_is_refused(first: int, end: int) -> None:
    with pytest.raises(ValueError, match=rf"first={first}, end={end}: places of 1,000; use 0 <= first < end <= 1000"):
        Portion(first=first, end=end)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"part": "val"}, "part='val': a corpus has the parts train and validation"),
        ({"part": "train", "validation": 1001}, "validation=1001: it counts records of 1,000; use 0 to 1000"),
        ({"part": "train", "validation": -1}, "use 0 to 1000"),
    ],
)
def test_a_part_that_does_not_exist_is_refused_and_not_taken_for_train(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Part(**fields)


def test_a_written_selection_is_read_back_as_index_rows(corpus: BuiltCorpus, tmp_path: Path) -> None:
    rule = Part(part="train", validation=300)
    selection.write(tmp_path / "chosen", corpus, rule, step={"any": "step"})
    rows = selection.read(tmp_path / "chosen")
    assert rows.dtype == np.int64
    assert rows.tolist() == np.flatnonzero(rule(corpus.keys)).tolist()
    table = pq.read_table(tmp_path / "chosen/selection.parquet")
    assert table["key"].to_pylist() == [corpus.keys[row] for row in rows] == BuiltCorpus(corpus.folder, rows).keys


def test_a_selection_of_a_selection_still_names_index_rows(corpus: BuiltCorpus, tmp_path: Path) -> None:
    part = BuiltCorpus(corpus.folder, np.arange(10, 60, 2))
    rule = Part(part="train", validation=500)
    selection.write(tmp_path / "chosen", part, rule, step={})
    chosen = BuiltCorpus(corpus.folder, selection.read(tmp_path / "chosen"))
    assert chosen.keys == [key for key in part.keys if rule([key])[0]]
    assert 0 < len(chosen) < len(part)


def test_the_same_selection_is_the_same_bytes(corpus: BuiltCorpus, tmp_path: Path) -> None:
    for name in "ab":
        selection.write(tmp_path / name, corpus, Part(part="validation"), step={})
    for file in ("selection.parquet", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_empty_selection_is_a_selection(corpus: BuiltCorpus, tmp_path: Path) -> None:
    selection.write(tmp_path / "chosen", corpus, Part(part="validation", validation=0), step={})
    assert selection.read(tmp_path / "chosen").tolist() == []


def test_an_unfinished_or_damaged_selection_is_refused(corpus: BuiltCorpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no finished selection: it has no manifest\.json"):
        selection.read(tmp_path / "nowhere")
    folder = tmp_path / "chosen"
    selection.write(folder, corpus, Part(part="train"), step={})
    table = (folder / "selection.parquet").read_bytes()
    (folder / "selection.parquet").write_bytes(table + b"?")
    with pytest.raises(
        ValueError, match=r"selection\.parquet changed since it was written: remove the folder, build again"
    ):
        selection.read(folder)
    (folder / "selection.parquet").unlink()
    with pytest.raises(ValueError, match="changed since it was written"):
        selection.read(folder)
    (folder / "manifest.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"manifest\.json does not parse"):
        selection.read(folder)


@pytest.mark.parametrize("answer", [[True], [3, 5, 7], ["yes"] * 60])
def test_a_rule_that_does_not_answer_for_every_key_is_refused(corpus: BuiltCorpus, tmp_path: Path, answer: Any) -> None:
    class Rule:
        version: ClassVar[int] = 1

        def __call__(self, keys: Sequence[str]) -> NDArray[np.bool_]:
            return answer

    with pytest.raises(ValueError, match=r"for 60 keys of cambrian: a rule answers with one bool per key"):
        selection.write(tmp_path / "chosen", corpus, Rule(), step={})
    assert not (tmp_path / "chosen/manifest.json").exists()
