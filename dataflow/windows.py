"""The schedule of packed rows: which records share a row, and when. Windows in closed form, nothing carried.

A window is a fixed number of packs, and a quota of tokens. Which records it holds is a range of every member's own
shuffled order, from one record boundary to the next: the boundaries are those nearest to the member's share of what
all windows so far hold. So any window can be had alone, and resuming is asking for a position.

    windows   0        1        2
    member a  |--------|-------|---------      J(n) = boundary nearest to share * quota * n
    member b  |---|---|--|
    packs     [a a b] [a b] ... P of them, then positions of `batch` packs
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dataflow.mixture import Mixture, Weights, weights
from dataflow.packing import Packing, evened, packed
from dataflow.permutation import Permutation
from dataflow.schedule import Use

_BLOCK = 8192  # records whose lengths are summed at a time
_BLOCKS = 4  # of each member whose sums are held in full
_PACKS, _LONG, _PACKS_LONG = 256, 16384, 64  # packs of a window at least; so many are enough where rows are long
_BOUNDS = 4096  # windows whose boundaries are remembered
_PILOT = 64  # windows that are packed to choose a fill
_FILLS = (990, 985, 980, 975, 970, 960, 950, 940, 920, 900, 875, 850, 800, 750, 700, 600, 500)  # of 1,000 places


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What laying out told of every record of a member.

    tokens: int32[rows]. drawn: int32[rows], tokens of pictures that are answers, 0 for a record without.
    shortened: bool[rows], of which a part alone is laid out; None: of no record.
    """

    tokens: NDArray[np.int32]
    drawn: NDArray[np.int32]
    shortened: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The packs of one window, in the order of their positions, and the records that found no room in any."""

    packs: tuple[tuple[Use, ...], ...]
    left: tuple[Use, ...]


class Stream:
    """A member's records in its own shuffled order, epoch after epoch, and the tokens that the first of them take."""

    def __init__(self, tokens: NDArray[np.int32], *, longest: int, seed: int, name: str) -> None:
        fits = np.flatnonzero(tokens <= longest)
        self._rows = fits if len(fits) < len(tokens) else None  # None: all of them
        self._tokens = tokens if self._rows is None else tokens[fits]
        self._seed, self._name = seed, name
        self.rows = len(self._tokens)
        self.total = int(self._tokens.sum(dtype=np.int64))
        self.longest = int(self._tokens.max(initial=0))
        self._epochs: OrderedDict[int, tuple[Permutation, list[int]]] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()

    def tokens(self, count: int) -> int:
        """Of the first `count` records."""
        epoch, place = divmod(count, self.rows)
        block, inside = divmod(place, _BLOCK)
        before = epoch * self.total
        if not place:
            return before
        before += self._sums(epoch, block)[block]
        return before + (int(self._block(epoch, block)[inside - 1]) if inside else 0)

    def boundary(self, tokens: Fraction) -> int:
        """The number of records whose tokens are nearest to so many; the lower of two that are as near."""
        epoch, before = divmod(tokens, self.total)
        sums = self._sums(epoch, 1)
        while sums[-1] < before:  # they are made as far as they are asked for
            sums = self._sums(epoch, len(sums))
        block = max(0, bisect_left(sums, before) - 1)
        held, left = self._block(epoch, block), before - sums[block]
        inside = int(np.searchsorted(held, int(left), "right"))  # as many are whole within it
        under = int(held[inside - 1]) if inside else 0
        if inside < len(held) and int(held[inside]) - left < left - under:
            inside += 1
        return epoch * self.rows + block * _BLOCK + inside

    def uses(self, first: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of its records `first` to `end`, and the epoch of each: two int64[n]."""
        places = np.arange(first, end, dtype=np.int64)
        epochs, places = np.divmod(places, self.rows)
        rows = np.empty_like(places)
        for epoch in range(first // self.rows, (end - 1) // self.rows + 1 if end > first else 0):
            these = epochs == epoch
            rows[these] = self._epoch(epoch)[0](places[these])
        return (rows if self._rows is None else self._rows[rows]), epochs

    def turn(self, row: int, epoch: int) -> int | None:
        """The place of a row among all its records, passes before included; None for one that is left out."""
        if self._rows is not None:
            found = int(np.searchsorted(self._rows, row))
            if found == len(self._rows) or self._rows[found] != row:
                return None
            row = found
        return epoch * self.rows + self._epoch(epoch)[0].place(row)

    def read(self, count: int) -> NDArray[np.int64]:
        """The rows among its first `count` records, in order."""
        if count < self.rows:
            return np.sort(self.uses(0, count)[0])
        return np.arange(self.rows) if self._rows is None else self._rows

    def _epoch(self, epoch: int) -> tuple[Permutation, list[int]]:
        """Its order, and sums of tokens before each block as far as they were asked for."""
        if epoch not in self._epochs:
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
            self._epochs[epoch] = Permutation(self.rows, seed=self._seed, name=self._name, epoch=epoch), [0]
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]

    def _sums(self, epoch: int, block: int) -> list[int]:
        """Tokens of an epoch before each block, up to this block or to the epoch's end."""
        sums = self._epoch(epoch)[1]
        while len(sums) <= min(block, -(-self.rows // _BLOCK)):
            sums.append(sums[-1] + int(self._block(epoch, len(sums) - 1)[-1]))
        return sums

    def _block(self, epoch: int, block: int) -> NDArray[np.int64]:
        """int64[up to _BLOCK]: sums of tokens within a block, each record's own included."""
        if (epoch, block) not in self._blocks:
            if len(self._blocks) >= _BLOCKS:
                self._blocks.popitem(last=False)
            places = np.arange(block * _BLOCK, min(self.rows, (block + 1) * _BLOCK), dtype=np.int64)
            rows = self._epoch(epoch)[0](places)
            self._blocks[epoch, block] = np.cumsum(self._tokens[rows], dtype=np.int64)
        self._blocks.move_to_end((epoch, block))
        return self._blocks[epoch, block]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The order of one training in packed rows.

    Shares hold at every window's end, which is a step's when a batch is a window: in tokens each member is within half
    its longest record of its share of the quotas so far, in samples within half a record of its share of the records;
    a group within the sum of its members' halves. A record is read once per pass over its member, but for the rare
    ones that found no room in their window: `Window.left`.

    names, digests, rows: of each member, as in `Schedule`.
    batch: packs of a position. length: tokens of a pack. positions: how many there are.
    lengths: of each member, for every record.
    """

    mixture: Mixture
    packing: Packing
    names: tuple[str, ...]
    digests: tuple[str, ...]
    rows: tuple[int, ...]
    batch: int
    length: int
    positions: int
    lengths: tuple[Lengths, ...] = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch < 1 or self.length < 1 or self.positions < 0:
            raise ValueError(f"batch={self.batch}, length={self.length}: both are whole numbers from 1")
        for name, rows, held in zip(self.names, self.rows, self.lengths, strict=True):
            assert len(held.tokens) == len(held.drawn) == rows
            if rows and int(held.tokens.min()) < 1:
                raise ValueError(f"record {int(held.tokens.argmin())} of {name} takes no tokens: must be 1 or more")
            if self.packing.too_long == "refuse" and rows and int(held.tokens.max()) > self.length:
                long = int((held.tokens > self.length).sum())
                raise ValueError(
                    f"{long} of {rows} records of {name} are longer than a row of {self.length} tokens, the longest "
                    f"{held.tokens.max()}: raise sequence_length, set packing.too_long to shorten or drop, or select "
                    "shorter ones"
                )

    @cached_property
    def packs_per_window(self) -> int:
        """The smallest multiple of a batch with room to pack well in."""
        least = _PACKS_LONG if self.length >= _LONG else _PACKS
        return -(-least // self.batch) * self.batch

    @property
    def positions_per_window(self) -> int:
        """A window is so many global batches."""
        return self.packs_per_window // self.batch

    @cached_property
    def fill(self) -> int:
        """Of 1,000 places of a window, how many are planned to be used.

        The largest with which the first windows leave nothing over, and one lower.

        Raises: ValueError: no fill does, or packs cannot have the targets that were asked for.
        """
        if self.packing.fill is not None:
            return self.packing.fill
        for number, fill in enumerate(_FILLS[:-1]):
            if not any(window.left for window in self._first(fill)):
                return _FILLS[number + 1]
        raise ValueError(
            f"rows of {self.length} tokens cannot be filled to {_FILLS[-2] / 10:g} % with records of up to "
            f"{max(stream.longest for stream in self._streams)}: raise sequence_length, or set packing.fill"
        )

    def _first(self, fill: int) -> Iterator[Window]:
        trial = _Filled(self, fill)
        windows = _PILOT if trial.end is None else min(_PILOT, trial.end)
        return (trial.window(number) for number in range(windows))

    @cached_property
    def digest(self) -> str:
        """Names this order: equal digests give equal packs at every position both have."""
        made = self._weights
        fields = [
            "packed",
            self.packing.version,
            self.mixture.version,
            self.mixture.seed,
            self.mixture.unit,
            made.groups,
            made.members,
            [[change.position, change.shares] for change in self.mixture.changes],
            self.names,
            self.digests,
            self.rows,
            [self.batch, self.length, self.fill, self.packing.target_every],
        ]
        content = hashlib.sha256(json.dumps(fields).encode())
        for each in self.lengths:
            content.update(np.ascontiguousarray(each.tokens, "<i4").tobytes())
            if self.packing.target_every is not None:
                content.update(np.ascontiguousarray(each.drawn, "<i4").tobytes())
        return content.hexdigest()

    @cached_property
    def ends(self) -> int | None:
        """Positions until all amounts are used up, the last window's rest included; None: it lasts for ever."""
        filled = self._filled
        if filled.end is None:
            return None
        rest = len(self.window(filled.end - 1).packs)
        return (filled.end - 1) * self.positions_per_window + rest // self.batch

    @cached_property
    def _filled(self) -> _Filled:
        return _Filled(self, self.fill)

    @cached_property
    def _streams(self) -> tuple[Stream, ...]:
        return tuple(
            Stream(each.tokens, longest=self.length, seed=self.mixture.seed, name=name)
            for name, each in zip(self.names, self.lengths, strict=True)
        )

    @cached_property
    def _weights(self) -> Weights:
        def size(member: int, records: int) -> int:
            return records if self.mixture.unit == "samples" else self._streams[member].tokens(records)

        return weights(self.mixture, tuple(stream.rows for stream in self._streams), self.names, size)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Of each member, the records that are left out because they are longer than a row."""
        return tuple(rows - stream.rows for rows, stream in zip(self.rows, self._streams, strict=True))

    @property
    def shortened(self) -> tuple[int, ...]:
        """Of each member, the records of which a part alone is trained, because they are longer than a row."""
        return tuple(0 if each.shortened is None else int(each.shortened.sum()) for each in self.lengths)

    @cached_property
    def _held(self) -> OrderedDict[int, Window]:
        return OrderedDict()

    def window(self, number: int) -> Window:
        """The packs of a window: a function of its number alone. The last ones asked for are remembered."""
        if number not in self._held:
            while len(self._held) > 1:
                self._held.popitem(last=False)
            self._held[number] = self._filled.window(number)
        return self._held[number]

    def packs(self, position: int) -> list[tuple[Use, ...]]:
        """The packs of one global batch.

        Raises: ValueError: a position outside the schedule, or a member that runs dry before it.
        """
        if not 0 <= position < self.positions:
            raise ValueError(f"position {position}: the schedule has positions 0 to {self.positions - 1}")
        number, place = divmod(position, self.positions_per_window)
        return list(self.window(number).packs[place * self.batch : (place + 1) * self.batch])

    def where(self, member: int, row: int) -> list[tuple[int, int, int]]:
        """(position, pack, slot) of every use of a record, in order."""
        per_window, windows = self.positions_per_window, self._filled.windows(self.positions)
        given, found = self._filled.boundaries(windows)[member], []
        for epoch in range(-(-given // max(1, self._streams[member].rows))):
            turn = self._streams[member].turn(row, epoch)
            if turn is None or turn >= given:
                continue
            number = _first(lambda n, turn=turn: self._filled.boundaries(n)[member] > turn, windows) - 1
            use = Use(member, row, epoch)
            for place, pack in enumerate(self.window(number).packs):
                position = number * per_window + place // self.batch
                if use in pack and position < self.positions:
                    found.append((position, place % self.batch, pack.index(use)))
        return sorted(found)

    def weight(self, pack: tuple[Use, ...]) -> int:
        """How much work a pack is to encoders beside its tokens, which are as many in all: its drawn tokens."""
        return sum(map(self.drawn_of, pack))

    @property
    def together(self) -> int:
        """Packs that share a target and so stay on one rank."""
        return self.packing.target_every or 1

    def tokens_of(self, use: Use) -> int:
        """What was measured of a record."""
        return int(self.lengths[use.member].tokens[use.row])

    def drawn_of(self, use: Use) -> int:
        """Of these tokens, those of pictures that are answers."""
        return int(self.lengths[use.member].drawn[use.row])

    def shortens(self, use: Use) -> bool:
        """Whether a part of a record alone is trained."""
        shortened = self.lengths[use.member].shortened
        return shortened is not None and bool(shortened[use.row])

    def fitting(self, pack: Sequence[Use], slot: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of its member's rows those that fit where a record of a pack stands, and are drawn if it is; nearest in
        length first."""
        held = self.lengths[pack[slot].member]
        mine, drawn = self.tokens_of(pack[slot]), int(held.drawn[pack[slot].row]) > 0
        most = self.length - sum(map(self.tokens_of, pack)) + mine
        rows = rows[(held.tokens[rows] <= most) & ((held.drawn[rows] > 0) == drawn)]
        return rows[np.argsort(np.abs(held.tokens[rows].astype(np.int64) - mine), kind="stable")]

    def check(self) -> None:
        """ValueError: a member runs dry before the last position, or shares change inside a window."""
        self._filled.check(self.positions)

    def counts(self, positions: int | None = None) -> list[int]:
        """Records of each member in the first `positions` positions, all of them by default."""
        return [count for count, _ in self._had(self.positions if positions is None else positions)]

    def sizes(self, positions: int | None = None) -> list[int]:
        """What each member gives in them, in the mixture's unit: its records, or their tokens."""
        unit = int(self.mixture.unit == "tokens")
        return [pair[unit] for pair in self._had(self.positions if positions is None else positions)]

    def tokens(self, positions: int | None = None) -> list[int]:
        """Tokens of each member in them."""
        return [tokens for _, tokens in self._had(self.positions if positions is None else positions)]

    def _had(self, positions: int) -> list[tuple[int, int]]:
        """(records, tokens) of each member: of whole windows by their boundaries, of the last one by its packs.

        Records that found no room count as had where their window is whole.
        """
        number, place = divmod(positions, self.positions_per_window)
        if self._filled.end is not None and number >= self._filled.end:
            number, place = self._filled.end, 0
        counts = list(self._filled.boundaries(number))
        tokens = [stream.tokens(count) for stream, count in zip(self._streams, counts, strict=True)]
        for pack in self.window(number).packs[: place * self.batch] if place else ():
            for use in pack:
                counts[use.member] += 1
                tokens[use.member] += int(self.lengths[use.member].tokens[use.row])
        return list(zip(counts, tokens, strict=True))

    def used(self) -> list[NDArray[np.int64]]:
        """The rows of each member that are read at some position, in order."""
        counts = self._filled.boundaries(self._filled.windows(self.positions))
        return [stream.read(count) for stream, count in zip(self._streams, counts, strict=True)]


class _Filled:
    """The windows of a schedule at one fill."""

    def __init__(self, plan: Windows, fill: int) -> None:
        self.plan = plan
        self.quota = plan.packs_per_window * plan.length * fill // 1000  # tokens of a window
        self.streams = plan._streams
        self.fill = fill
        made = plan._weights
        self.parties = [(group, place) for group, inside in enumerate(made.members) for place in range(len(inside))]
        self.stages = self._stages()
        self._clocks: dict[int, Fraction] = {0: Fraction(0)}
        self._bounds: dict[int, tuple[int, ...]] = {}

    def _stages(self) -> list[tuple[int, list[Fraction]]]:
        """(first window, part of all that each member gets) of every stage."""
        made, mixture = self.plan._weights, self.plan.mixture
        per_window = self.plan.positions_per_window
        found = [(0, made.groups)]
        for change in mixture.changes:
            window, rest = divmod(change.position, per_window)
            if rest:
                raise ValueError(
                    f"shares change at position {change.position}, inside a window of {per_window} positions: "
                    f"use {window * per_window} or {(window + 1) * per_window}"
                )
            found.append((window, change.shares))
        return [
            (
                window,
                [
                    Fraction(groups[group] * made.members[group][place], sum(groups) * sum(made.members[group]))
                    for group, place in self.parties
                ],
            )
            for window, groups in found
        ]

    @cached_property
    def end(self) -> int | None:
        """The windows until all amounts are used up; the last one holds what is left. None: there is no end."""
        clock = self.last_clock
        if clock is None:
            return None
        if self.plan.mixture.unit == "tokens":
            return max(1, -(-clock // self.quota).__ceil__())
        tokens = sum(s.tokens(c) for s, c in zip(self.streams, self._at(clock, 1), strict=True))
        return max(1, -(-tokens // self.quota))

    @cached_property
    def last_clock(self) -> Fraction | None:
        """What all members have had, in the mixture's unit, when the amounts are used up."""
        amounts = self.plan._weights.amounts
        counted = [member for member, amount in enumerate(amounts) if amount is not None]
        if not counted:
            return None
        samples = self.plan.mixture.unit == "samples"
        _, parts = self.stages[0]
        given = sum(
            amount if samples else self.streams[member].tokens(amount)
            for member, amount in enumerate(amounts)
            if amount is not None
        )
        return Fraction(given) / sum((parts[member] for member in counted), Fraction(0))

    def windows(self, positions: int) -> int:
        """How many windows so many positions begin."""
        begun = -(-positions // self.plan.positions_per_window)
        return begun if self.end is None else min(begun, self.end)

    def boundaries(self, number: int) -> tuple[int, ...]:
        """How many records each member has given before window `number`."""
        if number not in self._bounds:
            if len(self._bounds) > _BOUNDS:
                self._bounds.clear()
            self._bounds[number] = self._at(self._clock(number), self._begun(number))
        return self._bounds[number]

    def _begun(self, number: int) -> int:
        """The stages that begin before a window; the first one always has."""
        return max(1, sum(window < number for window, _ in self.stages))

    def _clock(self, number: int) -> Fraction:
        """What all together have given before window `number`, in the mixture's unit: as much as its quotas hold."""
        tokens, last = number * self.quota, self.last_clock
        if self.plan.mixture.unit == "tokens":
            return Fraction(tokens) if last is None else min(Fraction(tokens), last)
        if number not in self._clocks:
            if len(self._clocks) > _BOUNDS:
                self._clocks = {0: Fraction(0)}
            found = last if last is not None and number >= (self.end or 0) else self._records(number, tokens)
            self._clocks[number] = found if last is None else min(found, last)
        return self._clocks[number]

    def _records(self, number: int, tokens: int) -> Fraction:
        """The most records of which all members' shares hold no more tokens."""
        stages = self._begun(number)

        def held(clock: int) -> int:
            counts = self._at(Fraction(clock), stages)
            return sum(stream.tokens(count) for stream, count in zip(self.streams, counts, strict=True))

        mean = max(1, sum(s.total for s in self.streams) // max(1, sum(s.rows for s in self.streams)))
        low, high = 0, max(1, tokens // mean)
        if number - 1 in self._clocks:
            low = int(self._clocks[number - 1])
            high = low + max(1, self.quota // mean)
        while held(high) <= tokens:
            low, high = high, high + max(1, high - low) * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if held(middle) <= tokens else (low, middle)
        return Fraction(low)

    def _at(self, clock: Fraction, stages: int) -> tuple[int, ...]:
        """How many records each member has given when all together have given `clock`; by the first so many stages."""
        had = [Fraction(0)] * len(self.parties)
        for place, (window, parts) in enumerate(self.stages[:stages]):
            ends = clock if place + 1 == stages else self._clock(self.stages[place + 1][0])
            span = ends - self._clock(window)
            had = [so_far + part * span for so_far, part in zip(had, parts, strict=True)]
        if self.plan.mixture.unit == "samples":
            return tuple(int(share + Fraction(1, 2)) for share in had)
        return tuple(stream.boundary(share) for stream, share in zip(self.streams, had, strict=True))

    def window(self, number: int) -> Window:
        """Its packs, in the order of their positions."""
        plan = self.plan
        first, end = self.boundaries(number), self.boundaries(number + 1)
        held = [stream.uses(*span) for stream, span in zip(self.streams, zip(first, end, strict=True), strict=True)]
        members = np.concatenate([np.full(len(rows), member) for member, (rows, _) in enumerate(held)])
        rows = np.concatenate([rows for rows, _ in held])
        epochs = np.concatenate([epochs for _, epochs in held])
        tokens = np.concatenate([plan.lengths[m].tokens[rows] for m, (rows, _) in enumerate(held)]).astype(np.int64)
        packs = plan.packs_per_window
        if self.end is not None and number == self.end - 1:  # what is left may need fewer
            needed = -(-int(tokens.sum()) * 1000 // (self.fill * plan.length))
            packs = max(plan.batch, -(-needed // plan.batch) * plan.batch)
        seeds: list[int] = []
        if plan.packing.target_every is not None:
            drawn = np.concatenate([plan.lengths[m].drawn[rows] for m, (rows, _) in enumerate(held)])
            seeds = self._seeds(tokens, drawn, packs // plan.packing.target_every, number)
        where = packed(tokens, packs, plan.length, seeds)
        uses = [Use(*each) for each in zip(members.tolist(), rows.tolist(), epochs.tolist(), strict=True)]
        made: list[list[Use]] = [[] for _ in range(packs)]
        for use, pack in zip(uses, where.tolist(), strict=True):
            if pack >= 0:
                made[pack].append(use)
        order = self._order(tokens, members, where, packs) if packs > plan.batch else range(packs)
        return Window(
            packs=tuple(tuple(made[pack]) for pack in order),
            left=tuple(use for use, pack in zip(uses, where.tolist(), strict=True) if pack < 0),
        )

    def _seeds(self, tokens: NDArray[np.int64], drawn: NDArray[np.int32], wanted: int, number: int) -> list[int]:
        """The shortest records with a picture to be drawn, one to every so many packs."""
        every = self.plan.packing.target_every
        if self.plan.batch % (every or 1):
            raise ValueError(f"packing.target_every={every} does not divide the batch of {self.plan.batch} rows")
        have = np.flatnonzero(drawn)
        if len(have) < wanted:
            raise ValueError(
                f"packing.target_every={every} wants {wanted} records with a picture to be drawn in window {number}, "
                f"which has {len(have)}: give generation a larger share, or let more rows share one"
            )
        chosen = have[np.argsort(tokens[have], kind="stable")[:wanted]]
        others = np.delete(tokens, chosen)
        if len(others) and int(others.max()) + int(tokens[chosen].max()) > self.plan.length:
            raise ValueError(
                f"packing.target_every={every}: the longest other record takes {int(others.max())} tokens, a picture "
                f"to be drawn {int(tokens[chosen].max())}, a row has {self.plan.length}: raise sequence_length"
            )
        return chosen.tolist()

    def _order(
        self, tokens: NDArray[np.int64], members: NDArray[np.int64], where: NDArray[np.int64], packs: int
    ) -> list[int]:
        """Packs so that every position holds about the same of every group; those that share a target stay together."""
        groups = np.array([group for group, _ in self.parties])[members]
        held = np.zeros((packs, max(groups, default=0) + 1), np.int64)
        placed = where >= 0
        np.add.at(held, (where[placed], groups[placed]), tokens[placed])
        every = self.plan.packing.target_every or 1
        hands = evened(held.reshape(packs // every, every, -1).sum(axis=1))
        return [hand * every + place for hand in hands.tolist() for place in range(every)]

    def check(self, positions: int) -> None:
        """ValueError: a member runs dry before so many positions, in which one of them."""
        per_window = self.plan.positions_per_window
        made = self.plan._weights
        ends = self.plan.ends
        if ends is not None and positions > ends:
            raise ValueError(
                f"the amounts of the mixture last for {ends} positions, {positions} are planned: "
                "plan fewer steps, or raise them"
            )
        windows = self.windows(positions)
        for member, cap in enumerate(made.caps):
            if cap is None or self.boundaries(windows)[member] <= cap:
                continue
            dry = _first(lambda number, member=member, cap=cap: self.boundaries(number)[member] > cap, windows)
            raise ValueError(
                f"{self.plan.names[member]} runs dry at position {(dry - 1) * per_window} of {positions}: "
                f"{self.streams[member].rows} records read {self.plan.mixture.max_passes} times (max_passes) are "
                f"{cap}; "
                "raise max_passes, take less of it, or give it more records"
            )


def _first(holds: Callable[[int], bool], last: int) -> int:
    """The first number for which it holds; it holds for `last`, and after the first for all."""
    low, high = 0, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
