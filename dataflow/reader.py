"""A schedule and the corpora it speaks of -> records, position by position. It holds no state: ask for any position.

reader = Reader(schedule, corpora)
for position in range(start, schedule.positions):
    for use, record in reader.position(position): ...
"""

from __future__ import annotations

from collections.abc import Sequence

from dataflow.index import BuiltCorpus
from dataflow.record import Record
from dataflow.schedule import Schedule, Use


class Reader:
    """Reads scheduled records from opened corpora, one per member of the mixture, in its order.

    Raises:
        ValueError: a corpus is not the one that the schedule was made for.
    """

    def __init__(self, schedule: Schedule, corpora: Sequence[BuiltCorpus]) -> None:
        if len(corpora) != len(schedule.names):
            raise ValueError(f"{len(corpora)} corpora for a schedule of {len(schedule.names)}: give one per member")
        for name, promised, corpus in zip(schedule.names, schedule.digests, corpora, strict=True):
            if corpus.digest != promised:
                raise ValueError(f"{name} is not the corpus of this schedule (its records differ): plan again")
        self.schedule = schedule
        self.corpora = tuple(corpora)

    def position(self, number: int, part: slice = slice(None)) -> list[tuple[Use, Record]]:
        """The records of a global batch, or of a part of it, in order."""
        return [(use, self.corpora[use.member].record(use.row)) for use in self.schedule.position(number)[part]]
