"""Numbers over steps as a page draws them: several runs in one plot, in its pixels, with ticks that people read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

_POINTS = 150  # of a line at most: more steps are drawn as means of several
_LOGARITHMIC = 20.0  # times the lowest is the highest from which on a scale is logarithmic
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 22  # pixels around the axes

Series = Mapping[int, float]
"""Values by step, in the order of steps."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A value on an axis: where it is, in pixels, and how it is written."""

    place: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run in a plot. run: its number. points, band: "x,y x,y ..." of the means, and around the least and the most.

    dot: where the only value is, of a line that has but one. over: lines before it in the plot that it would cover.
    marks: x of steps that are pointed out.
    """

    run: int
    points: str
    band: str
    dot: tuple[float, float] | None
    over: int
    marks: tuple[float, ...]
    last: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Lines over a common axis of steps. box: left, top, right, bottom of where they are drawn."""

    title: str
    width: int
    height: int
    box: tuple[float, float, float, float]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    lines: tuple[Line, ...]
    logarithmic: bool


def plot(
    title: str,
    series: Mapping[int, Series],
    *,
    width: int,
    height: int,
    marks: Mapping[int, Sequence[int]] | None = None,
) -> Plot | None:
    """The series of some runs, by their numbers, as one plot; None where there is no finite value in any.

    Args:
        marks: steps of each run that are pointed out.
    """
    known = {run: {step: value for step, value in each.items() if math.isfinite(value)} for run, each in series.items()}
    known = {run: each for run, each in known.items() if each}
    if not known:
        return None
    first, last = min(map(min, known.values())), max(map(max, known.values()))
    grouped = {run: _grouped(each, 1 + (last - first) // _POINTS) for run, each in known.items()}
    means = [group.mean for groups in grouped.values() for group in groups]
    low, high = min(means), max(means)
    logarithmic = low > 0 and high / low >= _LOGARITHMIC
    left, top, right, bottom = float(_LEFT), float(_TOP), float(width - _RIGHT), float(height - _BOTTOM)

    def along(step: float) -> float:
        return left + (right - left) * (step - first) / max(1, last - first)

    def scaled(value: float) -> float:
        return math.log10(max(value, low)) if logarithmic else value  # below the lowest mean a band is cut

    floor, ceiling = scaled(low), scaled(high)
    room = 0.06 * (ceiling - floor) or 0.05 * abs(ceiling) or 0.5
    floor, ceiling = floor - room, ceiling + room

    def upward(value: float) -> float:
        share = (scaled(value) - floor) / (ceiling - floor)
        return min(max(bottom - (bottom - top) * share, top), bottom)

    lines: list[Line] = []
    for run, groups in grouped.items():
        points = [(along(group.step), upward(group.mean)) for group in groups]
        above = [(along(group.step), upward(group.most)) for group in groups]
        below = [(along(group.step), upward(group.least)) for group in reversed(groups)]
        several = any(group.least < group.most for group in groups)
        pointed = (marks or {}).get(run, ())
        lines.append(
            Line(
                run=run,
                points=_pixels(points),
                over=sum(line.points == _pixels(points) for line in lines),
                band=_pixels([*above, *below]) if several else "",
                dot=points[0] if len(points) == 1 else None,
                marks=tuple(round(along(step), 1) for step in pointed if first <= step <= last),
                last=written(next(reversed(known[run].values()))),
            )
        )
    values = _decades(floor, ceiling) if logarithmic else _round(floor, ceiling, 4)
    up = tuple(Tick(place=round(upward(value), 1), text=written(value)) for value in values)
    steps = sorted({first, *(int(step) for step in _round(first, last, 4) if step >= first), last})
    across = tuple(Tick(place=round(along(step), 1), text=f"{step:,}") for step in _apart(steps, along, 40.0))
    return Plot(
        title=title,
        width=width,
        height=height,
        box=(left, top, right, bottom),
        across=across,
        up=up,
        lines=tuple(lines),
        logarithmic=logarithmic,
    )


def written(value: float) -> str:
    """A number in as few letters as tell it: three digits that count."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{float(f'{value:.3g}'):,.10g}"


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Some neighbouring values of a series. step: their mean."""

    step: float
    mean: float
    least: float
    most: float


def _grouped(series: Series, steps: int) -> list[_Group]:
    """The values of every so many steps together."""
    held: dict[int, list[tuple[int, float]]] = {}
    for step, value in series.items():
        held.setdefault(step // steps, []).append((step, value))
    groups = []
    for each in held.values():
        values = [value for _, value in each]
        mean = sum(values) / len(values)
        groups.append(
            _Group(step=sum(step for step, _ in each) / len(each), mean=mean, least=min(values), most=max(values))
        )
    return groups


def _pixels(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _round(low: float, high: float, about: int) -> list[float]:
    """About so many round values from low to high."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    width = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
    return [width * place for place in range(math.ceil(low / width), math.floor(high / width) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Values whose logarithms are from low to high: 1, 2 and 5 of every power of ten, or powers alone if many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    digits = (1, 2, 5) if high - low < 2.5 else (1,)
    return [
        digit * 10.0**power for power in powers for digit in digits if low <= math.log10(digit * 10.0**power) <= high
    ]


def _apart(steps: Sequence[int], along: Callable[[float], float], least: float) -> list[int]:
    """The first and the last step, and those between with so many pixels around them."""
    kept = [steps[0]]
    for step in steps[1:-1]:
        if along(step) - along(kept[-1]) >= least and along(steps[-1]) - along(step) >= least:
            kept.append(step)
    return kept if len(steps) == 1 else [*kept, steps[-1]]
