"""How much of what: groups first, sources inside. A value; `schedule.py` turns it into an order.

    Mixture(groups=(Group(name="understanding", share=70, members=(Member(corpus=cambrian()),)), ...))

Shares are integers of any common scale (70/20/10). Inside a group the members take turns in proportion to their rows,
unless they name shares of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Member:
    """One corpus of a group, through a selection.

    corpus: the workflow step that builds it; `select`: the step that chooses its records, None for all of them.
    share: its integer share of the group, or None for its number of selected rows.
    """

    corpus: Any
    select: Any = None
    share: int | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Members that share one integer share of the mixture."""

    name: str
    share: int
    members: tuple[Member, ...]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Groups with integer shares, counted in samples. `seed` shuffles each source."""

    groups: tuple[Group, ...]
    seed: int = 0
    version: ClassVar[int] = 1

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, group after group: the order in which the schedule numbers them."""
        return tuple(member for group in self.groups for member in group.members)


def weights(mixture: Mixture, rows: Sequence[int], names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The integer weight of each member inside its group.

    Args:
        rows: selected rows of each member, in the order of `mixture.members`.
        names: their names, for the error.
    Raises:
        ValueError: a share that is not positive, or a member that has nothing to give.
    """
    result, place = [], 0
    for group in mixture.groups:
        if not _whole(group.share) or any(not _whole(m.share) for m in group.members if m.share is not None):
            raise ValueError(f"group {group.name!r} has a share that is no integer: write 70 and 30, not 0.7 and 0.3")
        if group.share <= 0 or not group.members:
            raise ValueError(f"group {group.name!r} has share {group.share} and {len(group.members)} members: drop it")
        inside = []
        for member in group.members:
            if rows[place] == 0:
                raise ValueError(
                    f"{names[place]} gives 0 records but group {group.name!r} counts on it: "
                    "look at its ledger for why, or take it out of the mixture"
                )
            share = rows[place] if member.share is None else member.share
            if share <= 0:
                raise ValueError(f"{names[place]} has share {share} in group {group.name!r}: must be 1 or more")
            inside.append(share)
            place += 1
        if any(member.share is None for member in group.members) != all(m.share is None for m in group.members):
            raise ValueError(f"group {group.name!r} mixes members with and without a share: give all of them one")
        result.append(tuple(inside))
    return tuple(result)


def _whole(share: Any) -> bool:
    return isinstance(share, int) and not isinstance(share, bool)
