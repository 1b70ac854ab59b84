"""Mixtures: shares, counts, passes; what they weigh on given corpora; those that contradict themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from dataflow.mixture import Count, Group, Member, Mixture, Passes, Share, Weights, weights

Amount = Share | Count | Passes | None


def group(name: str, share: int | None, *amounts: Amount) -> Group:
    return Group(name=name, share=share, members=tuple(Member(corpus=None, amount=amount) for amount in amounts))


def mixture(*groups: Group, max_passes: float | None = None) -> Mixture:
    return Mixture(groups=groups, max_passes=max_passes)


def samples(mixed: Mixture, rows: Sequence[int]) -> Weights:
    return weights(mixed, rows, "abcd", lambda member, records: records)


def test_members_are_numbered_group_after_group() -> None:
    mixed = mixture(group("x", 70, Share(of=1), Share(of=2)), group("y", 30, Share(of=3)))
    assert [member.amount for member in mixed.members] == [Share(of=1), Share(of=2), Share(of=3)]


def test_members_that_say_nothing_weigh_as_many_as_their_rows() -> None:
    found = samples(mixture(group("x", 70, None, None), group("y", 30, None)), (500, 20, 7))
    assert (found.groups, found.members) == ((70, 30), ((500, 20), (7,)))
    assert found.amounts == found.caps == (None, None, None)


def test_members_with_shares_weigh_their_shares() -> None:
    found = samples(mixture(group("x", 70, Share(of=3), Share(of=1)), group("y", 30, None)), (500, 20, 7))
    assert found.members == ((3, 1), (7,))


def test_counts_and_passes_are_records_and_a_group_of_them_weighs_their_sum() -> None:
    mixed = mixture(group("x", None, Count(records=90), Passes(times=0.5)), group("y", None, Passes(times=3)))
    found = samples(mixed, (500, 21, 7))
    assert found.amounts == (90, 10, 21)
    assert (found.groups, found.members) == ((100, 21), ((90, 10), (21,)))


def test_a_share_beside_amounts_decides_what_the_group_weighs() -> None:
    found = samples(mixture(group("x", 70, Passes(times=1), Passes(times=1)), group("y", 30, None)), (500, 20, 7))
    assert (found.groups, found.members) == ((70, 30), ((500, 20), (7,)))
    assert found.amounts == (500, 20, None)


def test_in_tokens_a_member_weighs_what_its_records_weigh() -> None:
    mixed = mixture(group("x", 1, None, None), group("y", 1, Count(records=2)))
    found = weights(mixed, (5, 2, 9), "abc", lambda member, records: records * (100, 1, 7)[member])
    assert (found.groups, found.members) == ((1, 1), ((500, 2), (14,)))


@pytest.mark.parametrize(("times", "rows", "records"), [(0.29, 100, 29), (1.1, 540, 594), (0.7, 10, 7), (2, 5, 10)])
def test_passes_mean_the_decimal_digits_that_were_written(times: float, rows: int, records: int) -> None:
    assert samples(mixture(group("x", None, Passes(times=times))), (rows,)).amounts == (records,)
    assert samples(mixture(group("x", 1, None), max_passes=times), (rows,)).caps == (records,)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Share(of=0), r"Share\(of=0\): a share is a whole number from 1"),
        (lambda: Share(of=0.5), "write 70 and 30, not 0.7 and 0.3"),  # type: ignore[arg-type]
        (lambda: Share(of=True), "a share is a whole number"),
        (lambda: Count(records=0), r"Count\(records=0\): a count is a whole number of records from 1"),
        (lambda: Count(records=1e6), "a count is a whole number"),  # type: ignore[arg-type]
        (lambda: Passes(times=0), r"Passes\(times=0\): a number of passes is over 0"),
        (lambda: Passes(times=float("nan")), "over 0"),
        (lambda: Passes(times=float("inf")), "over 0"),
        (lambda: group("x", 0, None), "group 'x' has share 0: a whole number from 1"),
        (lambda: group("x", 0.7, None), "group 'x' has share 0.7: .* write 70 and 30"),  # type: ignore[arg-type]
        (lambda: group("x", True, None), "group 'x' has share True"),
        (lambda: group("x", 1), "group 'x' has no members: drop it"),
        (lambda: group("x", None, None), "group 'x' has no share: give it one, or give its members a Count or Passes"),
        (lambda: group("x", None, Share(of=1)), "group 'x' has no share"),
        (lambda: group("x", 1, Share(of=1), None), "'x' has members with a Share and with nothing: give all of them"),
        (lambda: group("x", 1, Share(of=1), Count(records=1)), "with a Share and with an amount"),
        (lambda: group("x", 1, Passes(times=1), None), "with an amount and with nothing"),
        (
            lambda: mixture(group("x", 1, None), group("y", None, Count(records=1))),
            "group 'y' has no share and others have one: give one to every group or to none",
        ),
        (lambda: mixture(group("x", 1, None), group("x", 2, None)), "two groups are called 'x'"),
        (lambda: Mixture(groups=(), unit="bytes"), "unit='bytes': shares are counted in samples or"),  # type: ignore[arg-type]
        (lambda: mixture(max_passes=0), "max_passes=0: a number over 0, or None for no bound"),
    ],
)
def test_what_has_no_sense_is_refused_where_it_is_made(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        make()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("mixed", "rows", "says"),
    [
        (
            mixture(group("x", 70, None), group("y", 30, None)),
            (5, 0),
            "^b gives 0 records but group 'y' counts on it: look at its ledger for why, or take it out of the mixture$",
        ),
        (
            mixture(group("x", None, Passes(times=0.1))),
            (5,),
            r"^a has 5 records, of which Passes\(times=0.1\) is none: give a Count, or more passes$",
        ),
        (
            mixture(group("x", 70, Passes(times=1)), group("y", 30, Count(records=20), Count(records=40))),
            (700, 50, 50),
            r"^groups 'y' and 'x' have shares and amounts too: b and c would run dry after 200 samples of the mixture, "
            "the other lasts for 1000; drop the amounts of one, or all shares$",
        ),
    ],
)
def test_a_mixture_that_cannot_be_met_says_which_member_and_why(
    mixed: Mixture, rows: tuple[int, ...], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        samples(mixed, rows)
