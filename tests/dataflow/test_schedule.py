"""Schedules: exact shares at every point, one order for everybody, every record once per epoch."""

from __future__ import annotations

import hashlib
import itertools
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from dataflow.mixture import Count, Group, Member, Mixture, Passes, Share, weights
from dataflow.schedule import Schedule, Use, shuffled, turns, turns_by_length

MIXTURE = Mixture(
    groups=(
        Group(name="understanding", share=70, members=(Member(corpus=None), Member(corpus=None))),
        Group(name="generation", share=20, members=(Member(corpus=None),)),
        Group(
            name="other",
            share=10,
            members=(Member(corpus=None, amount=Share(of=1)), Member(corpus=None, amount=Share(of=3))),
        ),
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
        for first, second, shares in ((0, 1, (50, 23)), (3, 4, (1, 3))):
            of_group = had[first] + had[second]
            assert abs(had[first] - of_group * shares[0] / sum(shares)) <= 0.5


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


def test_used_are_the_rows_that_some_position_reads() -> None:
    for positions in (3, 20, 60):
        schedule = replace(SCHEDULE, positions=positions)
        read = [sorted({use.row for use in uses(schedule) if use.member == member}) for member in range(len(ROWS))]
        assert [rows.tolist() for rows in schedule.used()] == read


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


# --- shares of tokens


def party(name: int, lengths: list[int]) -> Iterator[tuple[int, int]]:
    return ((name, length) for length in itertools.cycle(lengths))


LENGTHS = {  # of one party's records, before they repeat
    "equal": lambda draw, longest: [longest],
    "short": lambda draw, longest: [1],
    "even": lambda draw, longest: [draw.randint(1, longest) for _ in range(17)],
    "rarely long": lambda draw, longest: [draw.choice([1, 1, 1, longest]) for _ in range(13)],
}


@pytest.mark.parametrize("parties", [2, 3, 4, 7, 12])
def test_every_prefix_has_every_share_of_tokens_to_within_a_longest_record(parties: int) -> None:
    draw = random.Random(parties)
    for _ in range(40):
        shares = draw.choice(
            [
                [1] * parties,
                [90] + [5] * (parties - 1),  # whoever goes by the largest deficit alone is 1.2 records late here
                [2**place for place in range(parties)],
                [draw.randint(1, 1000) for _ in range(parties)],
            ]
        )
        draw.shuffle(shares)
        longest = draw.choice([1, 2, 10, 4096])
        held = [LENGTHS[draw.choice(list(LENGTHS))](draw, longest) for _ in range(parties)]
        longest = max(map(max, held))
        order = list(
            itertools.islice(turns_by_length(shares, [party(*each) for each in enumerate(held)], longest), 400)
        )
        members, lengths = np.array(order).T
        had = np.cumsum((members[:, None] == np.arange(parties)) * lengths[:, None], axis=0)
        due = np.cumsum(lengths)[:, None] * np.array(shares) / sum(shares)
        assert np.abs(had - due).max() <= (1 - 1 / (2 * parties - 2)) * longest + 1e-6
        for member, lengths_of_member in enumerate(held):
            given = [length for one, length in order if one == member]
            assert given == list(itertools.islice(itertools.cycle(lengths_of_member), len(given)))


TOKENS = replace(MIXTURE, unit="tokens")
HELD = tuple(
    np.array([mean + (row * row * 7919 + member) % (2 * mean) - mean // 2 for row in range(rows)], np.int32)
    for member, (rows, mean) in enumerate(zip(ROWS, (400, 1000, 100, 60, 3000), strict=True))
)
BY_TOKENS = replace(SCHEDULE, mixture=TOKENS, lengths=HELD)


def tokens(schedule: Schedule) -> list[tuple[int, int]]:
    """(member, tokens) of every turn, by the records that the positions name."""
    return [(use.member, int(schedule.lengths[use.member][use.row])) for use in uses(schedule)]


def test_groups_have_their_shares_of_tokens_within_a_longest_record_at_every_prefix() -> None:
    group, longest = {0: 0, 1: 0, 2: 1, 3: 2, 4: 2}, max(int(each.max()) for each in HELD)
    had, total = [0, 0, 0], 0
    for member, length in tokens(replace(BY_TOKENS, positions=200)):
        had[group[member]] += length
        total += length
        assert all(abs(had[place] - total * share / 100) < longest for place, share in enumerate((70, 20, 10)))
    assert total > 50 * longest


def test_members_share_their_group_s_tokens_within_half_a_longest_record_at_every_prefix() -> None:
    """Two that say nothing in proportion to the tokens they hold, so that passes are equal; two by their shares."""
    whole = [int(each.sum()) for each in HELD]
    for first, second, shares in ((0, 1, whole[:2]), (3, 4, (1, 3))):
        longest = max(int(HELD[first].max()), int(HELD[second].max()))
        had = Counter[int]()
        for member, length in tokens(replace(BY_TOKENS, positions=200)):
            had[member] += length
            of_group = had[first] + had[second]
            assert abs(had[first] - of_group * shares[0] / sum(shares)) <= longest / 2


def test_shares_of_samples_are_no_shares_of_tokens() -> None:
    """Why there are two units: by samples these records are far from 70/20/10 of the tokens."""
    members = SCHEDULE.counts()
    size = [count * float(each.mean()) for count, each in zip(members, HELD, strict=True)]
    assert size[2] / sum(size) < 0.1 < 0.25 < (size[3] + size[4]) / sum(size)


def test_every_record_comes_once_per_epoch_in_tokens_too() -> None:
    seen: dict[tuple[int, int], list[int]] = {}
    for use in uses(replace(BY_TOKENS, positions=200)):
        seen.setdefault((use.member, use.epoch), []).append(use.row)
    whole = [(member, epoch) for member, epoch in seen if (member, epoch + 1) in seen]
    assert len(whole) >= 10
    assert all(sorted(seen[member, epoch]) == list(range(ROWS[member])) for member, epoch in whole)


def test_sizes_are_the_tokens_of_the_turns() -> None:
    assert SCHEDULE.sizes() == SCHEDULE.counts()
    summed = Counter[int]()
    for member, length in tokens(BY_TOKENS):
        summed[member] += length
    assert BY_TOKENS.sizes() == [summed[member] for member in range(5)]


def test_a_longer_schedule_in_tokens_begins_like_the_shorter_one() -> None:
    longer = replace(BY_TOKENS, positions=90)
    assert longer.digest == BY_TOKENS.digest
    assert uses(longer)[: len(uses(BY_TOKENS))] == uses(BY_TOKENS)


def test_lengths_and_the_unit_change_the_digest() -> None:
    longer = (*HELD[:4], HELD[4] + np.eye(1, 40, 7, dtype=np.int32)[0])
    digests = {SCHEDULE.digest, BY_TOKENS.digest, replace(BY_TOKENS, lengths=longer).digest}
    assert len(digests) == 3


def test_a_small_schedule_in_tokens_is_this_one_on_every_machine() -> None:
    assert (BY_TOKENS.digest, listing(BY_TOKENS)) == PINNED_TOKENS


PINNED_TOKENS = (
    "2701beba08678fd640c156b7262e5ce207bc57f464eab323e5d6b4a0a9454cc2",
    "5808b1ad68a1417b3de1a4e413f99bb6409c54741039568ed1bc59b47bb56438",
)


@pytest.mark.parametrize(
    ("schedule", "lengths", "says"),
    [
        (BY_TOKENS, (), r"lengths of \[\] records for members of \[50, 23, 11, 5, 40\]: a mixture in tokens needs"),
        (BY_TOKENS, HELD[:4], "a mixture in tokens needs the tokens of every record"),
        (BY_TOKENS, (*HELD[:4], HELD[4][1:]), r"lengths of \[50, 23, 11, 5, 39\] records"),
        (SCHEDULE, HELD, "one in samples none"),
        (BY_TOKENS, (*HELD[:4], HELD[4] * 0), "record 0 of e takes 0 tokens: must be 1 or more"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(schedule: Schedule, lengths: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(schedule, lengths=lengths)


# --- amounts


def counted(*groups: tuple[int | None, Sequence[Share | Count | Passes | None]], **fields: object) -> Mixture:
    made = (
        Group(name=f"group{place}", share=share, members=tuple(Member(corpus=None, amount=each) for each in amounts))
        for place, (share, amounts) in enumerate(groups)
    )
    return Mixture(groups=tuple(made), **fields)  # type: ignore[arg-type]


def scheduled(mixture: Mixture, positions: int = 0, batch: int = 4) -> Schedule:
    lengths = HELD if mixture.unit == "tokens" else ()
    return replace(SCHEDULE, mixture=mixture, batch=batch, positions=positions, lengths=lengths)


ONE_PASS = counted((70, [Passes(times=1), Passes(times=1)]), (20, [None]), (10, [None, None]))
COUNTS = counted(
    (None, [Count(records=33), Passes(times=2)]), (None, [Count(records=30)]), (None, [Passes(times=0.5)] * 2)
)


@pytest.mark.parametrize(
    ("mixture", "lasts", "given"),
    [
        (ONE_PASS, 73 / 0.7, {0: 50, 1: 23}),
        (COUNTS, 33 + 46 + 30 + 2 + 20, {0: 33, 1: 46, 2: 30, 3: 2, 4: 20}),
        (counted((1, [None, None]), (3, [Count(records=9)]), (5, [None, None])), 27, {2: 9}),
        (counted((1, [None, None]), (1, [None]), (9, [Count(records=3), Count(records=4)])), 7 / 9 * 11, {3: 3, 4: 4}),
    ],
)
def test_a_mixture_lasts_until_its_amounts_are_used_up(mixture: Mixture, lasts: float, given: dict[int, int]) -> None:
    found = scheduled(mixture).lasts
    assert found is not None
    assert abs(found - lasts) <= 2
    through = scheduled(mixture, positions=found, batch=1)
    assert {member: through.counts()[member] for member in given} == given
    with pytest.raises(ValueError, match=r"runs dry at position \d+ of \d+: its amount is"):
        replace(through, positions=2 * found).counts()


def test_a_mixture_of_shares_lasts_for_ever() -> None:
    assert SCHEDULE.lasts is BY_TOKENS.lasts is None


@pytest.mark.parametrize("mixture", [ONE_PASS, COUNTS])
def test_amounts_are_met_to_the_record_in_tokens_too(mixture: Mixture) -> None:
    endless = scheduled(replace(mixture, unit="tokens"))
    assert endless.lasts is not None
    through = replace(endless, batch=1, positions=endless.lasts)
    wanted = weights(mixture, ROWS, "abcde", lambda member, records: records).amounts
    assert [count if amount else None for count, amount in zip(through.counts(), wanted, strict=True)] == list(wanted)
    last = "abcde"[through.position(endless.lasts - 1)[0].member]
    with pytest.raises(
        ValueError, match=f"^{last} runs dry at position {endless.lasts} of {endless.lasts + 1}: its am"
    ):
        replace(through, positions=endless.lasts + 1).counts()


def test_shares_hold_in_tokens_beside_amounts() -> None:
    endless = scheduled(replace(ONE_PASS, unit="tokens"))
    sizes = replace(endless, batch=1, positions=endless.lasts or 0).sizes()
    longest = max(int(each.max()) for each in HELD)
    groups = [sizes[0] + sizes[1], sizes[2], sizes[3] + sizes[4]]
    assert all(abs(size - sum(sizes) * share / 100) < longest for size, share in zip(groups, (70, 20, 10), strict=True))


def test_a_count_takes_distinct_records_and_a_smaller_one_is_the_beginning_of_a_larger() -> None:
    rows = {}
    for records in (20, 35, 120):
        mixture = counted((None, [Count(records=records)]))
        schedule = Schedule(mixture=mixture, names=("a",), digests=("v",), rows=(50,), batch=1, positions=records)
        rows[records] = [use.row for use in uses(schedule)]
    assert len(set(rows[35])) == 35
    assert rows[35][:20] == rows[20]
    assert rows[120][:35] == rows[35]
    assert {rows[120].count(row) for row in range(50)} == {2, 3}


CAPPED = counted(
    (None, [Passes(times=1)] * 2), (None, [Count(records=30)]), (None, [Passes(times=1)] * 2), max_passes=2
)


@pytest.mark.parametrize("unit", ["samples", "tokens"])
@pytest.mark.parametrize(
    ("mixture", "positions", "says"),
    [
        (
            ONE_PASS,
            60,
            r"^[ab] runs dry at position \d+ of 60: its amount is (50|23) records; plan fewer steps or raise",
        ),
        (
            replace(MIXTURE, max_passes=1.5),
            120,
            r"^[abce] runs dry at position \d+ of 120: (50|23|11|40) records read 1\.5 times \(max_passes\) are "
            r"(75|34|16|60); raise max_passes, take less of it, or give it more records$",
        ),
        (CAPPED, 36, r"^c runs dry at position \d+ of 36: 11 records read 2 times \(max_passes\) are 22; raise max"),
    ],
)
def test_the_source_that_runs_dry_first_is_named_with_where_and_why(
    mixture: Mixture, positions: int, says: str, unit: Literal["samples", "tokens"]
) -> None:
    dry = scheduled(replace(mixture, unit=unit), positions)
    for use in (lambda: dry.counts(), lambda: dry.position(0)):
        with pytest.raises(ValueError, match=says) as refused:
            use()
    position = int(str(refused.value).split("position ")[1].split()[0])
    replace(dry, positions=position).counts()  # up to there it can be met
    with pytest.raises(ValueError, match="runs dry"):
        replace(dry, positions=position + 1).counts()


def test_a_record_is_found_at_every_position_it_is_read_at() -> None:
    read: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for position in range(SCHEDULE.positions):
        for place, use in enumerate(SCHEDULE.position(position)):
            read.setdefault((use.member, use.row), []).append((position, place, 0))
    for member, rows in enumerate(ROWS):
        for row in range(rows):
            assert SCHEDULE.where(member, row) == read.get((member, row), [])
