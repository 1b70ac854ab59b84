"""A fixed sample of the gradient oracle, and of remedies that are known to be wrong; `make oracle` runs all."""

from __future__ import annotations

from collections.abc import Iterator

import oracle
import pytest
import remedies
from ranks import Failed, Hung, Ranks

# a stage for each architecture, and patterns: ranks that differ, with a second micro-batch, and nothing anywhere
STAGES: dict[str, remedies.Stage] = {
    "transfusion": 3,
    "lmfusion": 2,
    "llavafusion": 1,
    "metamorph": 3,
    "metaquery": 2,
    "visualizer": 1,
}
SAMPLE = [
    oracle.Case(kinds=(("drawn",), ("nothing",))),
    oracle.Case(kinds=(("nothing", "both"), ("drawn", "nothing"))),
    oracle.Case(kinds=(("nothing",), ("nothing",))),
]
OF_TEXT = [  # of architectures that learn from it; in the last one no rank draws, after steps in which some did
    oracle.Case(kinds=(("read", "drawn"), ("text", "both"))),
    oracle.Case(kinds=(("text", "text"), ("nothing", "text"))),
]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Two processes for all of this file."""
    made = Ranks()
    yield made
    made.end()


@pytest.mark.parametrize("name", oracle.ARCHITECTURES)
def test_two_ranks_under_zero_learn_what_one_process_learns(ranks: Ranks, name: str) -> None:
    chosen = [*SAMPLE, *(OF_TEXT if "text" in oracle.kinds(oracle.ARCHITECTURES[name]) else [])]
    for of_rank in ranks.ask(oracle.checked, name, STAGES[name], chosen, seconds=120):
        wrong = {str(case): error for case, error in zip(chosen, of_rank, strict=True) if error.size > oracle.TOLERANCE}
        assert not wrong


@pytest.mark.parametrize(("name", "stage"), [("lmfusion", 3), ("metaquery", 2), ("metaquery", 3), ("transfusion", 1)])
def test_layers_that_run_again_in_the_backward_pass_learn_the_same(
    ranks: Ranks, name: str, stage: remedies.Stage
) -> None:
    for of_rank in ranks.ask(oracle.checked, name, stage, SAMPLE, "layers", seconds=120):
        assert max(of_rank).size <= oracle.TOLERANCE


def test_every_pattern_of_kinds_is_a_case() -> None:
    assert len(oracle.cases(oracle.ARCHITECTURES["transfusion"])) == 2 * 5 * 5
    assert oracle.kinds(oracle.ARCHITECTURES["metaquery"]) == ["drawn", "both", "nothing"]
    assert {len(of_rank) for case in oracle.cases(oracle.ARCHITECTURES["visualizer"]) for of_rank in case.kinds} == {
        1,
        2,
    }


@pytest.mark.parametrize(
    ("way", "stage", "least", "most"),
    [
        ("bare", 0, 0.0, remedies.TOLERANCE),
        ("bare", 2, 0.1, 2.0),
        ("dummy", 1, 0.0, remedies.TOLERANCE),
        ("dummy", 2, 0.1, 2.0),
        ("fake", 0, 0.1, 2.0),
        ("ours", 2, 0.0, remedies.TOLERANCE),
    ],
)
def test_remedies_are_right_and_wrong_as_the_readme_says(
    ranks: Ranks, way: str, stage: remedies.Stage, least: float, most: float
) -> None:
    for error in ranks.ask(remedies.error, way, stage, "equal", ("text", "pictures"), seconds=60):
        assert least <= error <= most


def test_ranks_that_raise_or_hang_are_told_and_replaced(ranks: Ranks) -> None:
    with pytest.raises(Failed, match="KeyError: 'broken'"):
        ranks.ask(fails, seconds=60)
    with pytest.raises(Hung, match="no answer in 1 s"):
        ranks.ask(waits_for_the_other, seconds=1)
    assert ranks.ask(answers, seconds=60) == [0, 1]


def fails() -> None:
    raise KeyError("broken")


def waits_for_the_other() -> None:
    from torch import distributed

    if distributed.get_rank() == 0:
        distributed.barrier()


def answers() -> int:
    from torch import distributed

    return distributed.get_rank()
