"""Mixtures: groups, members, integer weights, and those that cannot be met."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dataflow.mixture import Group, Member, Mixture, weights


def mixture(*groups: tuple[int, Sequence[int | None]]) -> Mixture:
    return Mixture(
        groups=tuple(
            Group(name=f"group{place}", share=share, members=tuple(Member(corpus=None, share=own) for own in members))
            for place, (share, members) in enumerate(groups)
        )
    )


def test_members_are_numbered_group_after_group() -> None:
    mixed = mixture((70, [1, 2]), (30, [3]))
    assert [member.share for member in mixed.members] == [1, 2, 3]


def test_members_without_shares_weigh_as_many_as_their_rows() -> None:
    assert weights(mixture((70, [None, None]), (30, [None])), (500, 20, 7), "abc") == ((500, 20), (7,))


def test_members_with_shares_weigh_their_shares() -> None:
    assert weights(mixture((70, [3, 1]), (30, [None])), (500, 20, 7), "abc") == ((3, 1), (7,))


@pytest.mark.parametrize(
    ("mixed", "rows", "says"),
    [
        (
            mixture((70, [None]), (30, [None])),
            (5, 0),
            r"b gives 0 records but group 'group1' counts on it: look at its",
        ),
        (mixture((0, [None])), (5,), "group 'group0' has share 0 and 1 members: drop it"),
        (mixture((-1, [None])), (5,), "group 'group0' has share -1 and 1 members"),
        (mixture((70, [])), (), "group 'group0' has share 70 and 0 members: drop it"),
        (mixture((70, [1, 0])), (5, 5), "b has share 0 in group 'group0': must be 1 or more"),
        (
            mixture((70, [1, None])),
            (5, 5),
            "group 'group0' mixes members with and without a share: give all of them one",
        ),
        (mixture((0.7, [None])), (5,), "group 'group0' has a share that is no integer: write 70 and 30"),  # type: ignore[arg-type]
        (mixture((70, [0.5, 0.5])), (5, 5), "has a share that is no integer"),  # type: ignore[list-item]
        (mixture((True, [None])), (5,), "has a share that is no integer"),
    ],
)
def test_a_mixture_that_cannot_be_met_says_which_member_and_why(
    mixed: Mixture, rows: tuple[int, ...], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        weights(mixed, rows, "abc")
