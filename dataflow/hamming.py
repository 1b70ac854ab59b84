"""64-bit hashes that are a few bits apart, found among millions without comparing each with each.

Pigeonhole: cut 64 bits into distance + 3 bands; hashes that differ in no more than `distance` bits agree in at least
3 whole bands. So for every choice of 3 bands, sort by these and compare only hashes that agree in them:

    distance 2    5 bands, 10 choices of 3, about 38 bits agree
    distance 4    7 bands, 35 choices of 3, about 27 bits agree: a million hashes are compared with 0.01 others each
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

_AGREE = 3  # bands
MOST_APART = 8  # bits: beyond, 165 choices of bands are no longer enough to be quick, nor pictures twins
CROWD = 256  # distinct hashes that agree in 3 bands: more are not compared with each other
_CHUNK = 1 << 22  # pairs compared at a time

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Two places each, first < second: those within the distance, and links through crowds."""

    near: Places  # int64[n, 2]
    crowded: Places  # int64[m, 2]


def checked(distance: int | None) -> None:
    """Raises: ValueError: bits apart that are not looked for."""
    if distance is not None and not 0 <= distance <= MOST_APART:
        raise ValueError(f"distance={distance}: bits of 64; use 0 to {MOST_APART}, or None for the same bytes alone")


def pairs(hashes: Hashes, distance: int) -> Pairs:
    """Every two of these hashes that are at most so many bits apart.

    Work is bounded whatever the hashes are: of n, at most n * CROWD / 2 pairs are compared per choice of bands. More
    than CROWD that agree in 3 bands are a crowd: they are not compared, but linked in a row, for whoever must not
    miss one.

    Args:  hashes: uint64[n], all different.
    """
    count = len(hashes)
    near, crowded = [np.empty((0, 2), np.int64)], [np.empty((0, 2), np.int64)]
    for mask in _masks(distance) if distance and count else ():
        order = np.argsort(hashes & mask)
        kept = (hashes & mask)[order]
        starts = np.append(0, np.flatnonzero(kept[1:] != kept[:-1]) + 1)
        sizes = np.diff(starts, append=count)
        ends, crowd = np.repeat(starts + sizes, sizes), np.repeat(sizes > CROWD, sizes)
        places = np.flatnonzero(crowd & (np.arange(count) + 1 < ends))
        crowded.append(np.stack([order[places], order[places + 1]], 1))
        places, step = np.flatnonzero(~crowd), 1
        while len(places := places[places + step < ends[places]]):
            one, other = order[places], order[places + step]
            close = np.bitwise_count(hashes[one] ^ hashes[other]) <= distance
            near.append(np.stack([one[close], other[close]], 1))
            step += 1
    return Pairs(near=_unique(near, count), crowded=_unique(crowded, count))


def matches(asked: Hashes, held: Hashes, distance: int) -> tuple[Places, Places, NDArray[np.uint8]]:
    """Every hash that is asked for with every one that is held at most so many bits from it; none is missed.

    Work: per choice of bands, as many comparisons as pairs that agree in them.

    Args:     asked, held: uint64[n] and uint64[m], each of them all different.
    Returns:  places in asked, places in held, bits apart; in order of these places.
    """
    found = [np.empty(0, np.int64)]
    for mask in _masks(distance):
        order = np.argsort(held & mask)
        kept, wanted = (held & mask)[order], asked & mask
        first = np.searchsorted(kept, wanted, "left")
        counts = np.searchsorted(kept, wanted, "right") - first
        for some in _chunks(counts):
            one = np.repeat(some, counts[some])
            step = np.arange(len(one)) - np.repeat(np.cumsum(counts[some]) - counts[some], counts[some])
            other = order[first[one] + step]
            close = np.bitwise_count(asked[one] ^ held[other]) <= distance
            found.append(one[close] * len(held) + other[close])
    one, other = np.divmod(np.unique(np.concatenate(found)), max(1, len(held)))
    return one, other, np.bitwise_count(asked[one] ^ held[other])


def _masks(distance: int) -> Iterator[np.uint64]:
    """Every choice of 3 of distance + 3 bands, as the bits that it keeps."""
    bounds = [64 * band // (distance + _AGREE) for band in range(distance + _AGREE + 1)]
    bands = [(1 << end) - (1 << first) for first, end in pairwise(bounds)]
    for chosen in combinations(bands, _AGREE):
        yield np.uint64(sum(chosen))


def _unique(found: list[Places], count: int) -> Places:
    """Pairs of places below `count`, each once, the lower place first."""
    every = np.sort(np.concatenate(found), axis=1)
    return np.stack(np.divmod(np.unique(every[:, 0] * count + every[:, 1]), max(1, count)), 1)


def _chunks(counts: NDArray[np.int64]) -> Iterator[Places]:
    """Places in a row whose counts come to about a chunk."""
    if len(counts):
        parts = np.cumsum(counts) // _CHUNK
        yield from np.split(np.arange(len(counts)), np.flatnonzero(np.diff(parts)) + 1)
