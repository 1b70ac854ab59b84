"""Records laid into packs: rows of fixed length that hold several whole records each. A function of lengths alone.

lengths 90 60 40 30 30 20 10, packs of 100  ->  [90 10] [60 40] [30 30 20] ...
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

_SHORT = 8  # parts of a pack: records of one part or less fill gaps, whatever is left


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Rows hold as many whole records as fit, instead of one.

    fill: of 1,000 places of a row, how many are planned to be used; None: as many as a pilot finds room for.
    target_every: of so many rows at least one holds a picture to be drawn; None: as it comes.
    too_long: what becomes of records that are longer than a row: the plan is refused, they are left out and counted, or
    they are shortened where that can be (dataflow/shortening.py), and left out where it cannot.
    """

    fill: int | None = None
    target_every: int | None = None
    too_long: Literal["refuse", "drop", "shorten"] = "refuse"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.fill is not None and not 1 <= self.fill <= 1000:
            raise ValueError(f"fill={self.fill}: places of 1,000; use 1 to 1000, or nothing for what fits")
        if self.target_every is not None and self.target_every < 1:
            raise ValueError(f"target_every={self.target_every}: one of so many rows; use 1 or more, or nothing")
        if self.too_long not in ("refuse", "drop", "shorten"):
            raise ValueError(f"too_long={self.too_long!r}: refuse, drop or shorten")


def packed(lengths: NDArray[np.int64], packs: int, length: int, seeds: Sequence[int] = ()) -> NDArray[np.int64]:
    """Which pack each record goes to: int64[n], -1 for one that found no room.

    The longest first, each to the emptiest pack, so that packs are alike; where that leaves one over, long ones each to
    the fullest that they fit, which wastes least; where that still does, all of them. Equal lengths go in the order
    they come.

    Args:
        lengths: int64[n], tokens of each record, none over `length`.
        packs:   how many there are; length: tokens each of them holds.
        seeds:   records that have packs of their own before any other goes anywhere: seeds[k] in pack k * m, m the
                 packs per seed.
    """
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    where = np.full(len(lengths), -1, np.int64)
    for short in (length, length // _SHORT, 0):
        used, where, sizes = _seeded(lengths, packs, seeds)
        cut = int((lengths > short).sum())
        _fullest(order[:cut].tolist(), sizes, used, where, length)
        _emptiest(order[cut:].tolist(), sizes, used, where, length)
        if where.min(initial=0) >= 0:
            break
    return where


def _seeded(
    lengths: NDArray[np.int64], packs: int, seeds: Sequence[int]
) -> tuple[list[int], NDArray[np.int64], list[int]]:
    """Tokens in each pack, where each record is (-1: nowhere yet), and the lengths as a list."""
    sizes, where = lengths.tolist(), np.full(len(lengths), -1, np.int64)
    used = [0] * packs
    for number, record in enumerate(seeds):
        pack = number * (packs // len(seeds))
        where[record], used[pack] = pack, used[pack] + sizes[record]
    return used, where, sizes


def _emptiest(
    records: Sequence[int], sizes: Sequence[int], used: list[int], where: NDArray[np.int64], length: int
) -> None:
    """Each record to the pack with most room; `used` and `where` are added to."""
    heap = [(tokens, pack) for pack, tokens in enumerate(used)]
    heapq.heapify(heap)
    placed = where.tolist()
    for record in records:
        if placed[record] >= 0:
            continue
        tokens, pack = heap[0]
        tokens += sizes[record]
        if tokens <= length:
            heapq.heapreplace(heap, (tokens, pack))
            placed[record] = pack
            used[pack] = tokens
    where[:] = placed


def _fullest(
    records: Sequence[int], sizes: Sequence[int], used: list[int], where: NDArray[np.int64], length: int
) -> None:
    """Each record to the pack with least room for it; `used` and `where` are added to."""
    room = sorted((length - tokens, pack) for pack, tokens in enumerate(used))
    placed = where.tolist()
    for record in records:
        if placed[record] >= 0:
            continue
        found = bisect_left(room, (sizes[record], -1))
        if found < len(room):
            left, pack = room.pop(found)
            insort(room, (left - sizes[record], pack))
            placed[record] = pack
            used[pack] += sizes[record]
    where[:] = placed


def evened(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Packs in an order in which every beginning holds about the same parts: int64[P].

    Args: tokens: int64[P, G], of each group in each pack.
    """
    packs, groups = tokens.shape
    if not packs:
        return np.zeros(0, np.int64)
    total, left = tokens.sum(axis=0), np.ones(packs, bool)
    had, order = np.zeros(groups, np.int64), np.empty(packs, np.int64)
    for turn in range(packs):
        off = np.abs((had + tokens) * packs - total * (turn + 1)).sum(axis=1)
        off[~left] = np.iinfo(np.int64).max
        chosen = int(off.argmin())
        left[chosen], order[turn] = False, chosen
        had += tokens[chosen]
    return order


def dealt(weights: Sequence[int], ranks: int, *, together: int = 1) -> list[list[int]]:
    """Packs of a position for each rank: the heaviest first, each to the rank that has least to do so far.

    Ranks get equally many; where that does not come out even, -1 stands for an empty pack.

    Args:
        weights:  of each pack, how much work it is.
        together: so many neighbours stay on one rank, in their order; it divides the packs.
    """
    hands = [list(range(first, first + together)) for first in range(0, len(weights), together)]
    work = [sum(weights[pack] for pack in hand) for hand in hands]
    most = -(-len(hands) // ranks)
    given: list[list[int]] = [[] for _ in range(ranks)]
    waiting = [(0, 0, rank) for rank in range(ranks)]  # work, hands, rank
    for hand in sorted(range(len(hands)), key=lambda hand: (-work[hand], hand)):
        done, count, rank = heapq.heappop(waiting)
        given[rank] += hands[hand]
        if count + 1 < most:
            heapq.heappush(waiting, (done + work[hand], count + 1, rank))
    return [packs + [-1] * (most * together - len(packs)) for packs in given]
