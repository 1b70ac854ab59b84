"""Corpus-wide thresholds: records whose measure is too low are taken out of use. Another limit touches no media."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from dataflow.curation import Held, Verdicts
from dataflow.measures import Measure


@dataclass(frozen=True, kw_only=True)
class Above:
    """Use the records whose value in a column of a measure is at least so high; those without a value stay in use.

    Raises:  ValueError: the measure has no such column, or it holds no numbers.
    """

    measure: Any
    column: str
    at_least: float
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        numbers = [field.name for field in self.measure.columns if _is_number(field.type)]
        if self.column not in numbers:
            raise ValueError(
                f"column={self.column!r}: the numbers of {self.measure.name} are in {', '.join(numbers) or 'no column'}"
            )

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The one that is looked at."""
        return (self.measure,)

    def __call__(self, held: Sequence[Held]) -> list[Verdicts]:
        """Verdicts, each corpus by itself."""
        return [self._verdicts(corpus) for corpus in held]

    def _verdicts(self, held: Held) -> Verdicts:
        column = held.measures[self.measure.name][self.column].combine_chunks()
        values = column.cast(pa.float64()).fill_null(np.inf).to_numpy()
        out = held.used & ~(values >= self.at_least)  # what is not a number is not high enough
        reasons = np.full(len(out), "", object)
        for place in np.flatnonzero(out):
            reasons[place] = f"{self.measure.name} {self.column} is {values[place]:.4g}, under {self.at_least:g}"
        return Verdicts(used=held.used & ~out, reasons=pa.array(reasons, pa.string()), clusters=held.clusters)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)
