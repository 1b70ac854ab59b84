"""Choices that a name alone decides: the same on every machine and in every run, whatever is read before or beside."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def draw(key: str, purpose: str, below: int, *, seed: int = 0) -> int:
    """A number in [0, below): 64 bits of a hash of seed, purpose and key."""
    name = f"{seed}/{purpose}/{key}" if seed else f"{purpose}/{key}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % below


def shuffled(items: Sequence[Item], key: str, purpose: str, *, seed: int = 0) -> list[Item]:
    """The items in an order that seed, purpose and key decide."""
    places = sorted(range(len(items)), key=lambda place: (draw(key, f"{purpose}/{place}", 1 << 64, seed=seed), place))
    return [items[place] for place in places]
