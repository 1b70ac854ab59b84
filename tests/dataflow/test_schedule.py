"""Schedules: exact shares at every point, one order for everybody, every record once per epoch."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataflow.mixture import Group, Member, Mixture
from dataflow.schedule import Schedule, Use, shuffled, turns

MIXTURE = Mixture(
    groups=(
        Group(name="understanding", share=70, members=(Member(corpus=None), Member(corpus=None))),
        Group(name="generation", share=20, members=(Member(corpus=None),)),
        Group(name="other", share=10, members=(Member(corpus=None, share=1), Member(corpus=None, share=3))),
    ),
    seed=7,
)
ROWS = (50, 23, 11, 5, 40)
SCHEDULE = Schedule(mixture=MIXTURE, names=tuple("abcde"), digests=tuple("vwxyz"), rows=ROWS, batch=8, positions=60)


def uses(schedule: Schedule) -> list[Use]:
    return [use for number in range(schedule.positions) for use in schedule.position(number)]


def by_the_definition(shares: list[int], count: int) -> list[int]:
    """Largest deficit, written out: whoever is furthest behind share * t / total goes, the first of equals."""
    had, order = [0] * len(shares), []
    for t in range(1, count + 1):
        behind = [share * t - sum(shares) * turns for share, turns in zip(shares, had, strict=True)]
        order.append(behind.index(max(behind)))
        had[order[-1]] += 1
    return order


SHARES = [
    [1],
    [1, 1],
    [1, 2],
    [70, 30],
    [999, 1],
    [70, 20, 10],
    [1, 1, 1],
    [3, 3, 2],
    [7, 5, 3, 1],
    [50, 20, 11, 9, 6, 4],
]


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_turns_go_to_the_largest_deficit(shares: list[int]) -> None:
    for count in (0, 1, 2, 7, 100, 1001):
        assert turns(shares, count).tolist() == by_the_definition(shares, count)


def test_turns_of_two_with_odd_and_even_totals_are_those_of_the_definition() -> None:
    for first in range(1, 30):
        for second in range(1, 30):
            assert turns([first, second], 70).tolist() == by_the_definition([first, second], 70)


def test_turns_do_not_overflow() -> None:
    huge = [3 << 61, 1 << 61]
    assert turns(huge, 8).tolist() == by_the_definition([3, 1], 8)
    odd = [(1 << 61) + 1, (1 << 60) - 7]
    assert turns(odd, 50).tolist() == by_the_definition(odd, 50)


@pytest.mark.parametrize(("parties", "within"), [(2, 0.5), (3, 1), (4, 1), (8, 1.3), (20, 1.4)])
def test_every_prefix_has_every_share_to_within_a_turn_or_little_more(parties: int, within: float) -> None:
    draw = random.Random(parties)
    for _ in range(20):
        shares = [draw.choice([draw.randint(1, 1000), draw.randint(1, 5)]) for _ in range(parties)]
        order = turns(shares, 2000)
        had = np.cumsum(order[:, None] == np.arange(parties), axis=0)
        due = np.arange(1, 2001)[:, None] * np.array(shares) / sum(shares)
        assert np.abs(had - due).max() <= within


def test_groups_have_their_shares_within_one_turn_at_every_prefix() -> None:
    group = {0: 0, 1: 0, 2: 1, 3: 2, 4: 2}
    had: Counter[int] = Counter()
    for t, use in enumerate(uses(SCHEDULE), 1):
        had[group[use.member]] += 1
        for number, share in enumerate((70, 20, 10)):
            assert abs(had[number] - share * t / 100) <= 1


def test_members_share_their_group_s_turns_within_one_turn_at_every_prefix() -> None:
    had: Counter[int] = Counter()
    for use in uses(SCHEDULE):
        had[use.member] += 1
        for first, second, weights in ((0, 1, (50, 23)), (3, 4, (1, 3))):
            of_group = had[first] + had[second]
            assert abs(had[first] - of_group * weights[0] / sum(weights)) <= 0.5


def test_the_order_is_the_same_from_wherever_it_is_asked() -> None:
    forwards = [SCHEDULE.position(number) for number in range(SCHEDULE.positions)]
    fresh = replace(SCHEDULE)
    backwards = [fresh.position(number) for number in reversed(range(SCHEDULE.positions))]
    assert backwards[::-1] == forwards
    draw = random.Random(0)
    for number in [draw.randrange(SCHEDULE.positions) for _ in range(40)]:
        assert replace(SCHEDULE).position(number) == forwards[number]


def test_asking_in_any_order_holds_only_a_few_epochs_in_memory() -> None:
    schedule = replace(SCHEDULE, positions=400)
    for number in (*range(400), *reversed(range(400)), 5, 300, 17):
        schedule.position(number)
        assert all(sum(member == known for known, _ in schedule._orders) <= 3 for member in range(5))


def test_every_record_comes_once_per_epoch() -> None:
    seen: dict[tuple[int, int], list[int]] = {}
    for use in uses(SCHEDULE):
        seen.setdefault((use.member, use.epoch), []).append(use.row)
    complete = 0
    for (member, epoch), rows in seen.items():
        assert len(set(rows)) == len(rows)
        if (member, epoch + 1) in seen:
            assert sorted(rows) == list(range(ROWS[member]))
            complete += 1
    assert complete >= 10
    assert all((member, epoch - 1) in seen for member, epoch in seen if epoch)


def test_epochs_members_and_seeds_have_orders_of_their_own() -> None:
    orders = [shuffled(50, *which).tolist() for which in ((7, "a", 0), (7, "a", 1), (7, "b", 0), (8, "a", 0))]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_a_shuffle_is_the_documented_hash_in_whole_numbers_of_python() -> None:
    start = int.from_bytes(hashlib.sha256(b"7/a/3").digest()[:8], "little")

    def mixed(row: int) -> int:
        x = (row + start + 0x9E3779B97F4A7C15) * 0x9E3779B97F4A7C15 % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    assert shuffled(500, 7, "a", 3).tolist() == sorted(range(500), key=mixed)


def test_a_shuffle_is_even() -> None:
    """Each place of the order is as likely to hold an early row as a late one: mean within 4 standard errors."""
    rows = np.array([shuffled(100, seed, "a", 0) for seed in range(400)])
    assert np.abs(rows.mean(axis=0) - 49.5).max() < 4 * 28.87 / 400**0.5
    assert np.abs(np.diff(rows, axis=1) == 1).mean() < 0.02  # neighbours stay neighbours once in a hundred


@pytest.mark.parametrize("count", [0, 1, 2])
def test_small_shuffles_are_permutations(count: int) -> None:
    assert sorted(shuffled(count, 0, "a", 0).tolist()) == list(range(count))


def test_a_longer_schedule_begins_like_the_shorter_one() -> None:
    longer = replace(SCHEDULE, positions=90)
    assert longer.digest == SCHEDULE.digest
    assert uses(longer)[: len(uses(SCHEDULE))] == uses(SCHEDULE)


def test_whatever_changes_the_order_changes_the_digest() -> None:
    other = {
        "seed": replace(SCHEDULE, mixture=replace(MIXTURE, seed=8)),
        "share": replace(
            SCHEDULE, mixture=replace(MIXTURE, groups=(replace(MIXTURE.groups[0], share=71), *MIXTURE.groups[1:]))
        ),
        "names": replace(SCHEDULE, names=tuple("abcdf")),
        "digests": replace(SCHEDULE, digests=tuple("vwxyy")),
        "rows": replace(SCHEDULE, rows=(50, 23, 11, 5, 41)),
        "batch": replace(SCHEDULE, batch=9),
    }
    assert len({SCHEDULE.digest, *(schedule.digest for schedule in other.values())}) == len(other) + 1


def test_counts_are_the_turns_of_each_member() -> None:
    assert SCHEDULE.counts() == [sum(use.member == member for use in uses(SCHEDULE)) for member in range(5)]
    first = [use for number in range(9) for use in SCHEDULE.position(number)]
    assert SCHEDULE.counts(9) == [sum(use.member == member for use in first) for member in range(5)]
    assert SCHEDULE.counts(0) == [0] * 5


def listing(schedule: Schedule) -> str:
    return hashlib.sha256(
        " ".join(f"{use.member}/{use.row}/{use.epoch}" for use in uses(schedule)).encode()
    ).hexdigest()


# What this schedule was on the day it was made. It must be so on every machine and under every numpy.
PINNED_DIGEST = "19e7323e89e384062056659709370e63731c9e00a4bfd63ab9ac8df9a33e279e"
PINNED_ORDER = "9ed6399d1d13113c4ebe1279c8705714d0c08716c83199b2396080587f36415d"
PINNED_START = [  # (member, row)
    [(0, 24), (1, 20), (2, 4), (0, 15), (0, 25), (4, 27), (1, 15), (0, 16)],
    [(2, 1), (0, 35), (1, 3), (0, 6), (2, 5), (0, 5), (0, 11), (3, 0)],
    [(1, 7), (0, 28), (2, 10), (0, 14), (1, 21), (0, 22), (2, 6), (0, 12)],
]


def test_a_small_schedule_is_this_one_on_every_machine() -> None:
    assert [[(use.member, use.row) for use in SCHEDULE.position(number)] for number in range(3)] == PINNED_START
    assert (SCHEDULE.digest, listing(SCHEDULE)) == (PINNED_DIGEST, PINNED_ORDER)


def test_another_process_makes_the_same_schedule() -> None:
    folder = Path(__file__).parent
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; from test_schedule import SCHEDULE, listing; print(listing(SCHEDULE))"
    )
    command = [sys.executable, "-c", code, str(folder), str(folder.parents[1])]
    told = subprocess.run(command, env={"PYTHONHASHSEED": "3"}, cwd="/", capture_output=True, check=True)
    assert told.stdout.decode().strip() == listing(SCHEDULE)


@pytest.mark.parametrize("number", [-1, 60, 10**9])
def test_a_position_outside_the_schedule_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"position {number}: the schedule has positions 0 to 59"):
        SCHEDULE.position(number)


def test_a_mixture_that_cannot_be_met_has_no_schedule() -> None:
    dry = replace(SCHEDULE, rows=(50, 23, 0, 5, 40))
    for use in (lambda: dry.position(0), lambda: dry.digest, lambda: dry.counts(0)):
        with pytest.raises(ValueError, match="c gives 0 records but group 'generation' counts on it"):
            use()


def test_a_schedule_needs_one_of_each_per_member() -> None:
    with pytest.raises(
        ValueError, match="4 names, 5 digests and 5 row counts for a mixture of 5 members: give one of each"
    ):
        replace(SCHEDULE, names=tuple("abcd"))
    with pytest.raises(ValueError, match="batch=0, positions=60: give 1 or more"):
        replace(SCHEDULE, batch=0)


def test_a_schedule_of_a_paper_s_size_is_made_in_seconds() -> None:
    large = replace(SCHEDULE, rows=(7_067_000, 1_055_000, 5_000_000, 313_000, 169_000), batch=2048, positions=1000)
    assert sum(large.counts()) == 2_048_000
    assert len({(use.member, use.row) for use in large.position(999)}) == 2048
