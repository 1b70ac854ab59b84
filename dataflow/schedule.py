"""Which record is trained when: a pure function of (digests, rows, lengths, mixture, batch). Data, not state.

Groups take turns by their deficit in integers, members of a group likewise, counted in samples or in tokens; the k-th
turn of a member is the k-th record of its own shuffled order, epoch after epoch. Resuming is asking for a position.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd

import numpy as np
from numpy.typing import NDArray

from dataflow.mixture import Mixture, Weights, weights


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


def turns_by_length(
    shares: Sequence[int], streams: Sequence[Iterator[tuple[int, int]]], longest: int
) -> Iterator[tuple[int, int]]:
    """Who goes next so that lengths add up to the shares: Tijdeman's chairman assignment, with lengths.

    Of those whose next record keeps them less than `longest` ahead of their share, the one that would otherwise be the
    first to lag so far behind. After every turn each of k parties is within (1 - 1/(2k - 2)) * longest of its share
    of the total: never ahead of it by the rule, never behind by measurement over random shares and lengths.

    Args:
        shares: positive integers.
        streams: of each party its (member, length) in its own order; lengths from 1. One that ends takes no more turns:
            it has had its share of the whole, if its share is the sum of its lengths.
        longest: the largest of the lengths.
    Returns: what the parties' streams gave, in the order of their turns, until all have ended.
    """
    if len(streams) == 1:
        yield from streams[0]
        return
    scale = 2 * len(shares) - 2
    bound = sum(shares) * (scale - 1) * longest
    shares = [share * scale for share in shares]
    total = sum(shares)
    lag = [0] * len(shares)  # share * tokens of all - total * tokens of its own
    coming = {place: turn for place, stream in enumerate(streams) if (turn := next(stream, None))}
    while coming:
        chosen, ahead, room, rate = -1, True, 0, 1  # its room gets less by `rate` with every token of the others
        for place, turn in coming.items():
            share = shares[place]
            early, left = (total - share) * turn[1] - lag[place] > bound, bound - lag[place]
            if chosen < 0 or early < ahead or (early == ahead and left * rate < room * share):
                chosen, ahead, room, rate = place, early, left, share
        turn = coming[chosen]
        for place, share in enumerate(shares):
            lag[place] += share * turn[1]
        lag[chosen] -= total * turn[1]
        if following := next(streams[chosen], None):
            coming[chosen] = following
        else:
            del coming[chosen]
        yield turn


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The order of one training.

    names, digests, rows: of each member, in the order of `mixture.members`: its corpus' name, the digest of what it is
    (root digest and selection), and how many records it has after its selection.
    batch: records at a position. positions: how many there are.
    lengths: of each member int[rows], the tokens of every record; for a mixture that is counted in tokens.
    """

    mixture: Mixture
    names: tuple[str, ...]
    digests: tuple[str, ...]
    rows: tuple[int, ...]
    batch: int
    positions: int
    lengths: tuple[NDArray[np.int32], ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        held = len(self.mixture.members)
        if not len(self.names) == len(self.digests) == len(self.rows) == held:
            raise ValueError(
                f"{len(self.names)} names, {len(self.digests)} digests and {len(self.rows)} row counts "
                f"for a mixture of {held} members: give one of each per member"
            )
        if self.mixture.changes:
            raise ValueError("shares change in the course of packed rows only: give the training a packing")
        if self.batch < 1 or self.positions < 0:
            raise ValueError(f"batch={self.batch}, positions={self.positions}: give 1 or more and 0 or more")
        if tuple(len(each) for each in self.lengths) != (self.rows if self.mixture.unit == "tokens" else ()):
            raise ValueError(
                f"lengths of {[len(each) for each in self.lengths]} records for members of {list(self.rows)}: "
                "a mixture in tokens needs the tokens of every record, one in samples none"
            )
        for name, each in zip(self.names, self.lengths, strict=False):
            if len(each) and each.min() < 1:
                raise ValueError(f"record {int(each.argmin())} of {name} takes {each.min()} tokens: must be 1 or more")

    @cached_property
    def digest(self) -> str:
        """Names this order: equal digests give equal records at every position both have."""
        fields = [
            self.mixture.version,
            self.mixture.seed,
            self._weights.groups,
            self._weights.members,
            self.names,
            self.digests,
            self.rows,
            self.batch,
            *([] if self.mixture.unit == "samples" else [self.mixture.unit]),
        ]
        content = hashlib.sha256(json.dumps(fields).encode())
        for each in self.lengths:
            content.update(np.ascontiguousarray(each, "<i4").tobytes())
        return content.hexdigest()

    @property
    def ends(self) -> int | None:
        """Positions until all amounts are used up; None: it has none, and lasts for ever.

        Raises: ValueError: they are less than one position.
        """
        if (records := self.lasts) is None:
            return None
        if records < self.batch:
            raise ValueError(
                f"the mixture lasts for {records} records, a batch has {self.batch}: "
                "give it more, or make the batch smaller"
            )
        return records // self.batch

    def check(self) -> None:
        """ValueError: the mixture cannot be met for so many positions."""
        self.counts()

    @cached_property
    def lasts(self) -> int | None:
        """Turns until all amounts are used up; None: it has none, and lasts for ever."""
        amounts = [amount for amount in self._weights.amounts if amount is not None]
        if len(amounts) in (0, len(self.rows)):
            return sum(amounts) or None
        if self.mixture.unit == "tokens":
            return sum(1 for _ in self._walk())
        shares = self._weights.groups
        counted = next(place for place, group in enumerate(self.mixture.groups) if group.counted)
        # A group lags by less than a turn for each of the others.
        order = turns(shares, (sum(amounts) + len(shares)) * sum(shares) // shares[counted])
        return int(np.flatnonzero(order == counted)[sum(amounts) - 1]) + 1

    @cached_property
    def _weights(self) -> Weights:
        return weights(self.mixture, self.rows, self.names, self._size)

    def _size(self, member: int, records: int) -> int:
        """The first so many records of a member's order, in the mixture's unit."""
        if self.mixture.unit == "samples":
            return records
        epochs, rest = divmod(records, self.rows[member])
        whole = epochs * int(self.lengths[member].sum(dtype=np.int64))
        if not rest:
            return whole
        return whole + int(self.lengths[member][self._order(member, epochs)[:rest]].sum(dtype=np.int64))

    def _order(self, member: int, epoch: int) -> NDArray[np.int64]:
        return shuffled(self.rows[member], self.mixture.seed, self.names[member], epoch)

    def _walk(self) -> Iterator[tuple[int, int]]:
        """(member, tokens of its record) of every turn of a mixture in tokens, until its amounts are used up."""
        made, groups, longest = self._weights, [], []
        for inside in made.members:
            members = range(len(longest), len(longest) + len(inside))
            longest += [int(self.lengths[member].max()) for member in members]
            streams = [itertools.islice(self._stream(member), made.amounts[member]) for member in members]
            groups.append(turns_by_length(inside, streams, max(longest[members.start :])))
        left = sum(amount for amount in made.amounts if amount is not None)
        for turn in turns_by_length(made.groups, groups, max(longest)):
            yield turn
            if made.amounts[turn[0]] is not None:
                left -= 1
                if not left:
                    return

    def _stream(self, member: int) -> Iterator[tuple[int, int]]:
        for epoch in itertools.count():
            for length in self.lengths[member][self._order(member, epoch)].tolist():
                yield member, length

    @cached_property
    def _members(self) -> NDArray[np.int32]:
        """int32[positions * batch]: the member of every turn.

        Raises: ValueError: one is used up before its last turn.
        """
        count = self.positions * self.batch
        if self.mixture.unit == "tokens":
            members = np.fromiter((member for member, _ in itertools.islice(self._walk(), count)), np.int32)
        else:
            groups = turns(self._weights.groups, count)
            members, first = np.empty_like(groups), 0
            for index, inside in enumerate(self._weights.members):
                places = np.flatnonzero(groups == index)
                members[places] = turns(inside, len(places)) + first
                first += len(inside)
        dry = [(place, member) for member in range(len(self.rows)) for place in self._beyond(member, members)]
        if len(members) < count:
            dry.append((len(members), int(members[-1])))
        if dry:
            place, member = min(dry)
            raise ValueError(
                f"{self.names[member]} runs dry at position {place // self.batch} of {self.positions}: "
                f"{self._why(member)}"
            )
        return members

    def _beyond(self, member: int, members: NDArray[np.int32]) -> list[int]:
        """The first turn that a member cannot take, if there is one."""
        bounds = [each for each in (self._weights.amounts[member], self._weights.caps[member]) if each is not None]
        return np.flatnonzero(members == member)[min(bounds) :][:1].tolist() if bounds else []

    def _why(self, member: int) -> str:
        amount, cap = self._weights.amounts[member], self._weights.caps[member]
        if cap is not None and (amount is None or cap < amount):
            return (
                f"{self.rows[member]} records read {self.mixture.max_passes} times (max_passes) are {cap}; "
                "raise max_passes, take less of it, or give it more records"
            )
        return f"its amount is {amount} records; plan fewer steps or raise its amount"

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
            self._orders[member, epoch] = self._order(member, epoch)
        return Use(member, int(self._orders[member, epoch][place]), epoch)

    def position(self, number: int) -> list[Use]:
        """The records of one global batch.

        Raises: ValueError: a position outside the schedule.
        """
        if not 0 <= number < self.positions:
            raise ValueError(f"position {number}: the schedule has positions 0 to {self.positions - 1}")
        places = range(number * self.batch, (number + 1) * self.batch)
        return [self._row(int(self._members[place]), int(self._use[place])) for place in places]

    def packs(self, position: int) -> list[tuple[Use, ...]]:
        """The same as rows of one record each."""
        return [(use,) for use in self.position(position)]

    def where(self, member: int, row: int) -> list[tuple[int, int, int]]:
        """(position, row of it, 0) of every use of a record, in order."""
        turns_of, found = np.flatnonzero(self._members == member), []
        for epoch in range(-(-len(turns_of) // self.rows[member])):
            use = epoch * self.rows[member] + int(np.flatnonzero(self._order(member, epoch) == row)[0])
            if use < len(turns_of):
                position, place = divmod(int(turns_of[use]), self.batch)
                found.append((position, place, 0))
        return found

    def weight(self, pack: tuple[Use, ...]) -> int:
        """All rows are taken to be alike."""
        return 1

    together = 1  # rows that stay on one rank

    def tokens_of(self, use: Use) -> int | None:
        """What was measured of a record; None where nothing was."""
        return int(self.lengths[use.member][use.row]) if self.lengths else None

    def fitting(self, pack: Sequence[Use], slot: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Any record has room in a row of its own; where lengths are known, those most alike come first."""
        if not self.lengths:
            return rows
        use, held = pack[slot], self.lengths[pack[slot].member]
        return rows[np.argsort(np.abs(held[rows].astype(np.int64) - int(held[use.row])), kind="stable")]

    def counts(self, positions: int | None = None) -> list[int]:
        """Turns of each member in the first `positions` positions, all of them by default.

        Raises: ValueError: the mixture cannot be met.
        """
        end = self.batch * (self.positions if positions is None else positions)
        return np.bincount(self._members[:end], minlength=len(self.rows)).tolist()

    def used(self) -> list[NDArray[np.int64]]:
        """The rows of each member that are read at some position, in order.

        Raises: ValueError: the mixture cannot be met.
        """
        return [
            np.sort(self._order(member, 0)[:count]) if count < self.rows[member] else np.arange(self.rows[member])
            for member, count in enumerate(self.counts())
        ]

    def sizes(self) -> list[int]:
        """What each member gives in all positions, in the mixture's unit: its turns, or their tokens.

        Raises: ValueError: the mixture cannot be met.
        """
        return [self._size(member, count) for member, count in enumerate(self.counts())]
