"""What the numbers of a config may be: an error that names field, value and rule, before anything is built of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SIZE = 1_000_000  # more than a network has of anything: a slip of the keyboard, or not for this earth
SIDE = 16_384  # pixels, or cells: of a picture that one machine can hold
SEED = 2**63 - 1  # the largest that a generator takes


def whole(config: Any, *names: str, least: int = 1, most: int = SIZE) -> None:
    """ValueError unless these fields, and what is in those that are tuples, are whole numbers of `least` to `most`."""
    for name, value in _values(config, names):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(_told(config, name, f"must be a whole number from {least} to {most:,}"))


def over_zero(config: Any, *names: str) -> None:
    """ValueError unless these fields are numbers over 0, and finite."""
    for name, value in _values(config, names):
        if not (_is_number(value) and 0 < value < float("inf")):
            raise ValueError(_told(config, name, "must be over 0 and finite"))


def within(config: Any, low: float, high: float, *names: str) -> None:
    """ValueError unless these fields are numbers of `low` to `high`, both allowed."""
    for name, value in _values(config, names):
        if not (_is_number(value) and low <= value <= high):
            raise ValueError(_told(config, name, f"must be from {low:g} to {high:g}"))


def divides(config: Any, part: str, whole_: str) -> None:
    """ValueError unless one field divides another, or all of another's items. Both are whole numbers from 1."""
    divisor = getattr(config, part)
    for _, value in _values(config, (whole_,)):
        if value % divisor:
            raise ValueError(_told(config, part, f"must divide {whole_}={getattr(config, whole_)!r}"))


def refused(config: Any, name: str, rule: str) -> ValueError:
    """The error about a field that breaks a rule of its own."""
    return ValueError(_told(config, name, rule))


def _values(config: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name in names:
        value = getattr(config, name)
        for item in value if isinstance(value, tuple) else (value,):
            yield name, item


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _told(config: Any, name: str, rule: str) -> str:
    return f"{type(config).__name__}.{name}={getattr(config, name)!r} {rule}"
