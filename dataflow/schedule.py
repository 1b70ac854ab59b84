"""Which record is trained when: a pure function of (digests, rows, mixture, batch). Data, not state.

Groups take turns by largest deficit in integers, members of a group likewise; the k-th turn of a member is the k-th
record of its own shuffled order, epoch after epoch. Resuming is asking for another position.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np
from numpy.typing import NDArray

from dataflow.mixture import Mixture, weights


@dataclass(frozen=True, slots=True)
class Use:
    """One turn: `member` of the mixture, its `row` among the selected records, and the `epoch` this use belongs to."""

    member: int
    row: int
    epoch: int


def turns(shares: Sequence[int], count: int) -> NDArray[np.int32]:
    """Who goes at each of `count` turns: always the one that lags its share the most, ties to the first.

    After t turns each of k parties has had its share of t to within half a turn for k = 2, one for k up to 4,
    and a little over it for more (1.3 for 20; measured over random shares).

    Args:    shares: positive integers.
    Returns: int32[count], indices into `shares`.
    """
    unit = gcd(*shares)
    shares = [share // unit for share in shares]
    total = sum(shares)
    if len(shares) == 1:
        return np.zeros(count, np.int32)
    if len(shares) == 2 and 2 * total * (count + 1) < 1 << 63:
        # The loop below in closed form: the first party has had floor(share * t / total + 1/2) of the first t turns.
        had = (2 * shares[0] * np.arange(count + 1, dtype=np.int64) + total) // (2 * total)
        return 1 - np.diff(had).astype(np.int32)
    lag = [0] * len(shares)  # share * t - total * turns had; sums to zero
    order = np.empty(min(count, total), np.int32)  # after `total` turns nobody lags, and it begins again
    for t in range(len(order)):
        lag = [behind + share for behind, share in zip(lag, shares, strict=True)]
        chosen = lag.index(max(lag))
        lag[chosen] -= total
        order[t] = chosen
    return np.resize(order, count)


def shuffled(count: int, seed: int, name: str, epoch: int) -> NDArray[np.int64]:
    """A permutation of 0..count-1 that is the same on every machine: indices sorted by a 64-bit hash of each.

    No numpy random stream is involved, so it survives numpy's versions.
    """
    digest = hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()
    with np.errstate(over="ignore"):
        x = np.arange(count, dtype=np.uint64) + np.uint64(int.from_bytes(digest[:8], "little"))
        # splitmix64's finalizer, doi:10.1145/2660193.2660195
        x = (x + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.argsort(x, kind="stable").astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The order of one training.

    names, digests, rows: of each member, in the order of `mixture.members`: its corpus' name, the digest of what it is
    (root digest and selection), and how many records it has after its selection.
    batch: records at a position. positions: how many there are.
    """

    mixture: Mixture
    names: tuple[str, ...]
    digests: tuple[str, ...]
    rows: tuple[int, ...]
    batch: int
    positions: int

    def __post_init__(self) -> None:
        held = len(self.mixture.members)
        if not len(self.names) == len(self.digests) == len(self.rows) == held:
            raise ValueError(
                f"{len(self.names)} names, {len(self.digests)} digests and {len(self.rows)} row counts "
                f"for a mixture of {held} members: give one of each per member"
            )
        if self.batch < 1 or self.positions < 0:
            raise ValueError(f"batch={self.batch}, positions={self.positions}: give 1 or more and 0 or more")

    @cached_property
    def digest(self) -> str:
        """Names this order: equal digests give equal records at every position both have."""
        shares = [group.share for group in self.mixture.groups]
        fields = [
            self.mixture.version,
            self.mixture.seed,
            shares,
            self._weights,
            self.names,
            self.digests,
            self.rows,
            self.batch,
        ]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()

    @cached_property
    def _weights(self) -> tuple[tuple[int, ...], ...]:
        return weights(self.mixture, self.rows, self.names)

    @cached_property
    def _members(self) -> NDArray[np.int32]:
        """int32[positions * batch]: the member of every turn."""
        groups = turns([group.share for group in self.mixture.groups], self.positions * self.batch)
        members = np.empty_like(groups)
        first = 0
        for index, inside in enumerate(self._weights):
            places = np.flatnonzero(groups == index)
            members[places] = turns(inside, len(places)) + first
            first += len(inside)
        return members

    @cached_property
    def _use(self) -> NDArray[np.int64]:
        """int64[positions * batch]: how often the member of a turn had its turn before."""
        use = np.empty(len(self._members), np.int64)
        for member in range(len(self.rows)):
            places = np.flatnonzero(self._members == member)
            use[places] = np.arange(len(places))
        return use

    @cached_property
    def _orders(self) -> dict[tuple[int, int], NDArray[np.int64]]:
        return {}

    def _row(self, member: int, use: int) -> Use:
        epoch, place = divmod(use, self.rows[member])
        if (member, epoch) not in self._orders:
            for stale in [known for known in self._orders if known[0] == member and abs(known[1] - epoch) > 1]:
                del self._orders[stale]
            order = shuffled(self.rows[member], self.mixture.seed, self.names[member], epoch)
            self._orders[member, epoch] = order
        return Use(member, int(self._orders[member, epoch][place]), epoch)

    def position(self, number: int) -> list[Use]:
        """The records of one global batch.

        Raises: ValueError: a position outside the schedule.
        """
        if not 0 <= number < self.positions:
            raise ValueError(f"position {number}: the schedule has positions 0 to {self.positions - 1}")
        places = range(number * self.batch, (number + 1) * self.batch)
        return [self._row(int(self._members[place]), int(self._use[place])) for place in places]

    def counts(self, positions: int | None = None) -> list[int]:
        """Turns of each member in the first `positions` positions, all of them by default.

        Raises: ValueError: the mixture cannot be met.
        """
        end = self.batch * (self.positions if positions is None else positions)
        return np.bincount(self._members[:end], minlength=len(self.rows)).tolist()
