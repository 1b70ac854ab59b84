"""Licence profiles: what a corpus is under, as docs/corpora.md says, and mixtures without the others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from dataflow.curation import Held, Verdicts
from dataflow.licences import PUBLISHED, Licence, Licensed

PAGE = (Path(__file__).parents[2] / "docs/corpora.md").read_text()


def held(name: str) -> Held:
    keys = [f"{name}_{number:09d}" for number in range(3)]
    return Held(
        name=name,
        index=pa.table({"key": keys}),
        used=np.array([True, False, True]),
        clusters=pa.array(keys),
        measures={},
        corpus=cast(Any, None),
    )


def used(rule: Licensed, *names: str) -> list[Verdicts]:
    return rule([held(name) for name in names])


def test_licences_are_those_of_the_page_of_corpora() -> None:
    rows = re.findall(r"^\| \[`(\w+)`.*?\]\(#\w+\) \|(?:[^|]*\|){3} ([^|]*) \|", PAGE, re.MULTILINE)
    assert dict(rows) == {licence.source: licence.named for licence in PUBLISHED}
    assert len(rows) > 15


def test_corpora_under_other_licences_are_out_of_use_and_say_so() -> None:
    kept, out = used(Licensed(allowed=("apache-2.0", "MIT")), "videostar", "sharegpt4video")
    assert kept.used.tolist() == [True, False, True] and set(kept.reasons.to_pylist()) == {""}
    assert out.used.tolist() == [False, False, False]
    reason = "sharegpt4video is under 'CC-BY-NC-4.0', not under 'apache-2.0' or 'MIT'"
    assert out.reasons.to_pylist() == [reason, "", reason]


def test_what_one_brings_oneself_is_stated_and_the_last_word_counts() -> None:
    stated = (*PUBLISHED, Licence(source="captions", named="CC0"), Licence(source="ours", named="CC0"))
    rule = Licensed(allowed=("CC0",), stated=stated)
    assert [each.used.any() for each in used(rule, "captions", "ours", "text", "theirs")] == [True, True, False, False]
    assert used(rule, "theirs")[0].reasons[0].as_py() == "theirs is of no stated licence, not under 'CC0'"


def test_a_licence_that_no_source_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'apache-2\.0'"):
        Licensed(allowed=("Apache 2.0",))
