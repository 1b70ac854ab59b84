"""Thresholds on a measure: what is too low is out of use with its value, what has none stays."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pytest

from dataflow.curation import Held, Verdicts
from dataflow.measures import Ready
from dataflow.thresholds import Above

KEYS = [f"a_{number:09d}" for number in range(5)]


class Sharpness:
    """A measure of somebody's own."""

    name = "sharpness"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()
    gpus: ClassVar[float] = 0
    columns = pa.schema([("edge", pa.float32()), ("corners", pa.int64()), ("by", pa.string())])

    def ready(self) -> Ready:
        raise NotImplementedError


def verdicts(rule: Above, edges: list[float | None], used: list[bool]) -> Verdicts:
    table = pa.table({"edge": edges, "corners": [1] * 5, "by": [""] * 5}, Sharpness.columns)
    held = Held(
        name="a",
        index=pa.table({"key": KEYS}),
        used=np.array(used),
        clusters=pa.array(KEYS),
        measures={"sharpness": table},
        corpus=cast(Any, None),
    )
    return rule([held])[0]


def test_what_is_too_low_is_out_of_use_and_what_has_no_value_stays() -> None:
    rule = Above(measure=Sharpness(), column="edge", at_least=0.5)
    found = verdicts(rule, [0.5, 0.25, None, float("nan"), 0.125], [True, True, True, True, False])
    assert found.used.tolist() == [True, False, True, False, False]
    assert found.reasons.to_pylist() == [
        "",
        "sharpness edge is 0.25, under 0.5",
        "",
        "sharpness edge is nan, under 0.5",
        "",
    ]
    assert found.clusters.to_pylist() == KEYS


def test_a_column_that_holds_no_numbers_is_refused_with_those_that_do() -> None:
    for column in ("by", "edges"):
        with pytest.raises(ValueError, match="are in edge, corners"):
            Above(measure=Sharpness(), column=column, at_least=0)
