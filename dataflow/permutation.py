"""A shuffled order of which any part can be had alone: no array of it is ever made.

A Feistel network over pairs (place // b, place % b), its rounds read from hashed tables of about sqrt(count) entries;
places beyond the count walk on until they come back. Integers alone, so it is the same on every machine.
"""

from __future__ import annotations

import hashlib
from math import isqrt

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6  # three for each half: neighbours and strides leave no trace then


class Permutation:
    """0..count-1 in an order named by `seed`, `name` and `epoch`. permutation(places) are the numbers there."""

    def __init__(self, count: int, *, seed: int, name: str, epoch: int) -> None:
        self.count = count
        self._b = isqrt(max(0, count - 1)) + 1
        self._a = -(-count // self._b)
        key = int.from_bytes(hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()[:8], "little")
        halves = (self._a, self._b)
        self._tables = [_table(key, turn, halves[turn % 2], halves[1 - turn % 2]) for turn in range(_ROUNDS)]

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[n] -> int64[n], both in 0..count-1."""
        numbers = self._round(places)
        outside = np.flatnonzero(numbers >= self.count)
        while len(outside):
            numbers[outside] = self._round(numbers[outside])
            outside = outside[numbers[outside] >= self.count]
        return numbers

    def place(self, number: int) -> int:
        """Where a number stands: the inverse."""
        while True:
            high, low = divmod(number, self._b)
            for turn, table in reversed(list(enumerate(self._tables))):
                if turn % 2:
                    high = (high - int(table[low])) % self._a
                else:
                    low = (low - int(table[high])) % self._b
            number = high * self._b + low
            if number < self.count:
                return number

    def _round(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        high, low = (half.astype(np.int32) for half in np.divmod(places, self._b))
        for turn, table in enumerate(self._tables):
            if turn % 2:
                high += table[low]
                high -= (high >= self._a) * np.int32(self._a)
            else:
                low += table[high]
                low -= (low >= self._b) * np.int32(self._b)
        return high.astype(np.int64) * self._b + low


def _table(key: int, turn: int, size: int, values: int) -> NDArray[np.int32]:
    """int32[size]: a hash of each entry of the half that is read, below the size of the one that it is added to."""
    x = np.arange(size, dtype=np.uint64) + np.uint64((key + turn * 0x9E3779B97F4A7C15) % (1 << 64))
    with np.errstate(over="ignore"):  # splitmix64's finalizer, doi:10.1145/2660193.2660195
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x % np.uint64(values)).astype(np.int32)
