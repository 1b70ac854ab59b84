"""Packing: nothing split, nothing over, little wasted; shuffled orders of which any part is had alone."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dataflow.packing import Packing, dealt, evened, packed
from dataflow.permutation import Permutation


def lengths(seed: int, count: int, most: int) -> np.ndarray:
    draw = random.Random(seed)
    return np.array([draw.randint(1, draw.choice([most // 8, most])) for _ in range(count)])


@pytest.mark.parametrize("seed", range(8))
def test_no_pack_holds_more_than_it_may_and_no_record_is_in_two(seed: int) -> None:
    records = lengths(seed, 200, 100)
    where = packed(records, 60, 100)
    used = np.bincount(where[where >= 0], records[where >= 0], minlength=60)
    assert used.max() <= 100
    left = np.flatnonzero(where < 0)
    room = 100 - used
    assert all(records[record] > room.max() for record in left)  # what is left fits nowhere


def test_packs_filled_to_98_of_100_leave_nothing_over() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        records = draw.integers(20, 1200, 600)
        records = records[: int(np.searchsorted(records.cumsum(), 64 * 4096 * 0.98))]
        assert packed(records, 64, 4096).min() >= 0


def test_where_even_packs_leave_one_over_the_fullest_are_used() -> None:
    # Each to the emptiest: 50 and 40 and 40 end as [50 30] [40 40], and 20 of 90 fit in neither.
    records = np.array([50, 40, 40, 30, 20])
    assert packed(records, 2, 90).min() >= 0


def test_seeds_have_packs_of_their_own() -> None:
    records = np.array([9, 9, 9, 9, 5, 5, 5, 5])
    where = packed(records, 8, 10, seeds=[4, 6])
    assert where[4] == 0 and where[6] == 4


def test_the_same_records_are_packed_the_same_way_whatever_ran_before() -> None:
    records = lengths(3, 300, 100)
    assert (packed(records, 100, 100) == packed(records.copy(), 100, 100)).all()


def test_every_beginning_of_evened_packs_holds_about_the_same_parts() -> None:
    draw = np.random.default_rng(1)
    tokens = np.zeros((256, 3), np.int64)
    for pack, group in enumerate(draw.choice(3, 256, p=[0.7, 0.2, 0.1])):
        tokens[pack, group] = 4000
    order = evened(tokens)
    assert sorted(order.tolist()) == list(range(256))
    had = tokens[order].cumsum(axis=0)
    due = np.arange(1, 257)[:, None] * tokens.sum(axis=0) / 256
    assert np.abs(had - due).max() <= 4000


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8, 64])
@pytest.mark.parametrize("together", [1, 2, 4])
def test_ranks_get_equally_many_packs_each_once(ranks: int, together: int) -> None:
    weights = [random.Random(pack).randint(0, 9) for pack in range(64)]
    hands = dealt(weights, ranks, together=together)
    assert len({len(hand) for hand in hands}) == 1
    given = [pack for hand in hands for pack in hand if pack >= 0]
    assert sorted(given) == list(range(64))
    for hand in hands:
        for first in range(0, len(hand), together):
            held = hand[first : first + together]
            assert held == [-1] * together or held == list(range(held[0], held[0] + together))


def test_ranks_get_about_the_same_work() -> None:
    draw = np.random.default_rng(2)
    weights = draw.poisson(7, 256).tolist()
    sums = [sum(weights[pack] for pack in hand) for hand in dealt(weights, 64)]
    assert max(sums) - min(sums) <= 3


@pytest.mark.parametrize("count", [1, 2, 3, 10, 100, 101, 4096, 99_991])
def test_a_permutation_has_every_number_once(count: int) -> None:
    numbers = Permutation(count, seed=0, name="a", epoch=0)(np.arange(count))
    assert (np.sort(numbers) == np.arange(count)).all()


def test_a_permutation_tells_where_a_number_stands() -> None:
    for count in (1, 7, 101, 4096):
        permutation = Permutation(count, seed=0, name="a", epoch=1)
        numbers = permutation(np.arange(count)).tolist()
        assert [permutation.place(number) for number in numbers] == list(range(count))


def test_any_part_of_a_permutation_is_had_alone() -> None:
    permutation = Permutation(5000, seed=3, name="cambrian", epoch=2)
    whole = permutation(np.arange(5000))
    places = np.array([4999, 0, 17, 17, 2500])
    assert (permutation(places) == whole[places]).all()
    assert whole[:6].tolist() == [1105, 4470, 3360, 2377, 570, 1644]  # on every machine


def test_a_permutation_leaves_no_trace_of_the_order_before() -> None:
    count = 100_000
    numbers = Permutation(count, seed=1, name="b", epoch=0)(np.arange(count))
    for step in (1, 2, 316, 317, 1000):
        assert abs(np.corrcoef(numbers[:-step], numbers[step:])[0, 1]) < 0.02
    counts = np.histogram(numbers[:10_000], bins=50, range=(0, count))[0]
    assert 8 < counts.std() < 20  # 13.4 by chance
    other = Permutation(count, seed=1, name="b", epoch=1)(np.arange(count))
    assert (numbers == other).sum() < 10


@pytest.mark.parametrize("value", [{"fill": 0}, {"fill": 1001}, {"target_every": 0}, {"too_long": "cut"}])
def test_a_packing_that_cannot_be_is_refused(value: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(value))):
        Packing(**value)
