"""How much of what: groups first, sources inside. A value; `schedule.py` turns it into an order.

    Mixture(groups=(Group(name="understanding", share=70, members=(Member(corpus=cambrian()),)), ...))

Two ways to say how much, and one mix of them:
    shares    groups 70/20/10, and inside a group members in proportion to what they hold, or to shares of their own:
              relative, without an end
    amounts   every member a Count or a number of Passes: absolute, through when they are used up
    both      groups 70/20/10, and the members of ONE group have amounts: "70/20/10, one pass over understanding"
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class Share:
    """So much of its group, in proportion to the shares of the other members."""

    of: int

    def __post_init__(self) -> None:
        if not _whole(self.of):
            raise ValueError(f"{self}: a share is a whole number from 1; write 70 and 30, not 0.7 and 0.3")


@dataclass(frozen=True, kw_only=True)
class Count:
    """So many records: distinct ones as far as the source has them, then again from the start."""

    records: int

    def __post_init__(self) -> None:
        if not _whole(self.records):
            raise ValueError(f"{self}: a count is a whole number of records from 1")


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Every record so many times; half a pass is half of the records."""

    times: float

    def __post_init__(self) -> None:
        if not _positive(self.times):
            raise ValueError(f"{self}: a number of passes is over 0")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One corpus of a group, through a selection.

    corpus: the workflow step that builds it; `select`: the step that chooses its records, None for all of them.
    amount: None is in proportion to what it holds, beside the other members of its group.
    """

    corpus: Any
    select: Any = None
    amount: Share | Count | Passes | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Members that share one part of the mixture: `share`, or None for the sum of their amounts.

    Raises: ValueError: a share that is no whole number, no members, members that say how much in different ways.
    """

    name: str
    share: int | None = None
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        if self.share is not None and not _whole(self.share):
            raise ValueError(
                f"group {self.name!r} has share {self.share!r}: a whole number from 1; write 70 and 30, not 0.7 and 0.3"
            )
        if not self.members:
            raise ValueError(f"group {self.name!r} has no members: drop it")
        kinds = {Share: "a Share", Count: "an amount", Passes: "an amount", type(None): "nothing"}
        said = sorted({kinds[type(member.amount)] for member in self.members})
        if len(said) > 1:
            raise ValueError(
                f"group {self.name!r} has members with {' and with '.join(said)}: "
                "give all of them a Share, all of them a Count or Passes, or all of them nothing"
            )
        if self.share is None and not self.counted:
            raise ValueError(f"group {self.name!r} has no share: give it one, or give its members a Count or Passes")

    @property
    def counted(self) -> bool:
        """Whether its members have amounts with an end."""
        return all(isinstance(member.amount, Count | Passes) for member in self.members)


@dataclass(frozen=True, kw_only=True)
class Change:
    """From this position on the groups have these shares, in their order: understanding first, drawing later, say."""

    position: int
    shares: tuple[int, ...]

    def __post_init__(self) -> None:
        if not _whole(self.position) or not all(map(_whole, self.shares)):
            raise ValueError(f"{self}: the position and the shares are whole numbers from 1")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Groups with shares, counted in samples or in tokens, or groups of counted members. `seed` shuffles each source.

    max_passes: how often a record may be read, None for as often as it takes.
    changes: of the groups' shares in the course of a training, in packed rows.
    curation: what is decided over all corpora together, one after the other, before the members' selections
    (`curation.Curation`).

    Raises: ValueError: a share for some groups only, two groups of one name, a unit that is not there, changes that
        are out of order or change nothing that is a share.
    """

    groups: tuple[Group, ...]
    unit: Literal["samples", "tokens"] = "samples"
    max_passes: float | None = None
    seed: int = 0
    changes: tuple[Change, ...] = ()
    curation: tuple[Any, ...] = ()
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.unit not in ("samples", "tokens"):
            raise ValueError(f"unit={self.unit!r}: shares are counted in samples or in tokens")
        if self.max_passes is not None and not _positive(self.max_passes):
            raise ValueError(f"max_passes={self.max_passes!r}: a number over 0, or None for no bound")
        names = [group.name for group in self.groups]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two groups are called {twice[0]!r}: give each a name of its own")
        bare = [group.name for group in self.groups if group.share is None]
        if 0 < len(bare) < len(self.groups):
            raise ValueError(f"group {bare[0]!r} has no share and others have one: give one to every group or to none")
        for before, change in itertools.pairwise((None, *self.changes)):
            assert change is not None
            if len(change.shares) != len(self.groups):
                raise ValueError(f"{change}: {len(change.shares)} shares for {len(self.groups)} groups: give each one")
            if before is not None and before.position >= change.position:
                raise ValueError(f"{change} comes after position {before.position}: give changes in their order")
        if self.changes and (bare or any(group.counted for group in self.groups)):
            raise ValueError("shares change, and a group has amounts: amounts have an end of their own, so use shares")

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, group after group: the order in which the schedule numbers them."""
        return tuple(member for group in self.groups for member in group.members)

    @property
    def corpora(self) -> tuple[Any, ...]:
        """All corpora that must be built for it: its members', then those that its curations compare them with."""
        beside = [corpus for rule in self.curation for corpus in getattr(rule, "against", ())]
        return (*(member.corpus for member in self.members), *beside)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A mixture on given corpora, in whole numbers.

    groups: the weight of each group. members: of each member inside its group.
    amounts: the records each member gives until it is used up; None: it has no amount.
    caps: the most records that each member may give, by `max_passes`; None: no bound.
    """

    groups: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]
    amounts: tuple[int | None, ...]
    caps: tuple[int | None, ...]


def weights(
    mixture: Mixture,
    rows: Sequence[int],
    names: Sequence[str],
    size: Callable[[int, int], int],
) -> Weights:
    """What the shares and amounts of a mixture come to.

    Args:
        rows: selected records of each member, in the order of `mixture.members`.
        names: their names, for the error.
        size: (member, records) -> the first so many records of its order, in the mixture's unit.
    Raises:
        ValueError: a member without records, an amount of no record, amounts that contradict the shares.
    """
    amounts: list[int | None] = []
    inside: list[tuple[int, ...]] = []
    for group in mixture.groups:
        made = []
        for member in group.members:
            place = len(amounts)
            if rows[place] == 0:
                raise ValueError(
                    f"{names[place]} gives 0 records but group {group.name!r} counts on it: "
                    "look at its ledger for why, or take it out of the mixture"
                )
            amounts.append(_records(member.amount, rows[place], names[place]))
            if isinstance(member.amount, Share):
                made.append(member.amount.of)
            else:
                given = amounts[place]
                made.append(size(place, rows[place] if given is None else given))
        inside.append(tuple(made))
    shares = tuple(
        sum(made) if group.share is None else group.share for group, made in zip(mixture.groups, inside, strict=True)
    )
    _agree(mixture, shares, inside, names)
    caps = tuple(None if mixture.max_passes is None else _times(mixture.max_passes, held) for held in rows)
    return Weights(groups=shares, members=tuple(inside), amounts=tuple(amounts), caps=caps)


def _agree(mixture: Mixture, shares: Sequence[int], inside: Sequence[tuple[int, ...]], names: Sequence[str]) -> None:
    """Shares say how groups stand to each other; amounts of two groups would say it again, and otherwise."""
    counted = [place for place, group in enumerate(mixture.groups) if group.counted and group.share is not None]
    if len(counted) < 2:
        return
    lasts = {place: sum(inside[place]) * sum(shares) // shares[place] for place in counted}
    short, long = min(lasts, key=lambda place: lasts[place]), max(lasts, key=lambda place: lasts[place])
    first = sum(len(group.members) for group in mixture.groups[:short])
    dry = " and ".join(names[first : first + len(mixture.groups[short].members)])
    raise ValueError(
        f"groups {mixture.groups[short].name!r} and {mixture.groups[long].name!r} have shares and amounts too: {dry} "
        f"would run dry after {lasts[short]} {mixture.unit} of the mixture, the other lasts for {lasts[long]}; "
        "drop the amounts of one, or all shares"
    )


def _records(amount: Share | Count | Passes | None, rows: int, name: str) -> int | None:
    """The records of an amount that has an end."""
    if isinstance(amount, Count):
        return amount.records
    if isinstance(amount, Passes):
        if not (records := _times(amount.times, rows)):
            raise ValueError(f"{name} has {rows} records, of which {amount} is none: give a Count, or more passes")
        return records
    return None


def _times(times: float, rows: int) -> int:
    """Whole records of a number of passes, by the decimal digits one wrote: 0.29 of 100 is 29."""
    return math.floor(Fraction(str(times)) * rows)


def _whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


def _positive(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number) and number > 0
