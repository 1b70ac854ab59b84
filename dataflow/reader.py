"""A schedule and the corpora it speaks of -> packs of records, position by position. Ask for any position.

    reader = Reader(schedule, corpora, decode=decode)
    for position in range(start, schedule.positions):
        for pack in reader.packs(position, range(schedule.batch)): ...

A record that cannot be read is replaced by an extra use of another one of its source and task that fits its slot; its
own turn and everything after it stay. What was replaced is told in `reader.fresh`; told to another reader as `known`
it is done again without a look at the disk, so that a run repeats itself whatever became of the data since.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataflow.index import BuiltCorpus
from dataflow.media import summary
from dataflow.record import Record
from dataflow.schedule import Use

Decoded = TypeVar("Decoded")
Made = TypeVar("Made")
Place = tuple[int, int, int]
"""Position, pack in it, slot in the pack: where a record stands."""

_SPARES = 128  # records looked at for one that may take the place of another
_TRIED = 16  # of them that are read at most
_FAR = 8  # positions whose shards are on their way from a store before they are read
_BRINGING = 4  # shards at a time: one alone waits for the store more than for the line


class Order(Protocol):
    """A schedule: `schedule.Schedule` or `windows.Windows`."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def digests(self) -> tuple[str, ...]: ...
    @property
    def positions(self) -> int: ...

    def packs(self, position: int) -> list[tuple[Use, ...]]: ...

    def fitting(self, pack: Sequence[Use], slot: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of its member's rows that fit in this slot, the most like its record first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """A record that could not be read, and which row of its member took its place; None: nothing did."""

    position: int
    pack: int
    slot: int
    source: str
    key: str
    why: str
    row: int | None
    by: str | None  # key

    @property
    def place(self) -> Place:
        """Where it stands."""
        return self.position, self.pack, self.slot

    def line(self) -> str:
        """For people."""
        instead = f"{self.by} took its place" if self.by else "nothing took its place"
        return f"position {self.position}: {self.key} cannot be read ({self.why}); {instead}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A position that a run passes over: nothing is learned from its records. `why`: what was wrong with its step."""

    position: int
    why: str

    def line(self) -> str:
        """For people."""
        return f"position {self.position} is passed over: {self.why}"


@dataclass(frozen=True, slots=True)
class Slot(Generic[Decoded]):
    """A record where it is trained: its place in the pack, its turn in the schedule, and what was decoded of it."""

    number: int
    use: Use
    value: Decoded


class Reader(Generic[Decoded]):
    """Reads scheduled records from opened corpora, one per member of the mixture, in its order.

    Args:
        decode: (use, record) -> what becomes of it; a ValueError says that it never can, and the record is replaced.
            An OSError is the disk's: it is raised.
        known:  what was replaced before, by place.
        threads: that call `decode`, several at a time; 0: it is called where packs are asked for. What comes of it, its
            order and what is replaced are the same. Reading itself is never shared by threads.
    Raises:
        ValueError: a corpus is not the one that the schedule was made for.
    """

    def __init__(
        self,
        schedule: Order,
        corpora: Sequence[BuiltCorpus],
        *,
        decode: Callable[[Use, Record], Decoded],
        known: Mapping[Place, Replaced] | None = None,
        threads: int = 0,
    ) -> None:
        if len(corpora) != len(schedule.names):
            raise ValueError(f"{len(corpora)} corpora for a schedule of {len(schedule.names)}: give one per member")
        for name, promised, corpus in zip(schedule.names, schedule.digests, corpora, strict=True):
            if corpus.digest != promised:
                raise ValueError(f"{name} is not the corpus of this schedule (its records differ): plan again")
        self.schedule = schedule
        self.corpora = tuple(corpora)
        self.fresh: list[Replaced] = []
        self._decode = decode
        self._known = dict(known or {})
        self._tasks: dict[int, NDArray[Any]] = {}
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "decode") if threads else None
        self._bringing: ThreadPoolExecutor | None = None
        self._ahead = 0  # positions before this one were asked of their store

    def packs(self, position: int, which: Iterable[int]) -> list[list[Slot[Decoded]]]:
        """These packs of a position, in this order; -1 is an empty one."""
        return self.begin(position, which)()

    def begin(self, position: int, which: Iterable[int]) -> Callable[[], list[list[Slot[Decoded]]]]:
        """What gives these packs: until it is called threads decode them, and those of positions begun after it."""
        scheduled = self.schedule.packs(position)
        chosen = [(number, scheduled[number] if number >= 0 else ()) for number in which]
        places = [((position, number, slot), use) for number, pack in chosen for slot, use in enumerate(pack)]
        values = iter(self._begun(places))
        begun = [(number, pack, list(islice(values, len(pack)))) for number, pack in chosen]
        return lambda: [self._pack(position, number, pack, given) for number, pack, given in begun]

    def bring(self, position: int, deal: Callable[[int], Iterable[int]]) -> None:
        """Let shards of a store be on their way before they are read, those of the next positions; returns at once.

        Call it for every position before its packs are read. What fails here fails again, and is told, when it is read.

        Args: deal: position -> the packs that are wanted of it.
        """
        if not any(corpus.remote for corpus in self.corpora):
            return
        self._bringing = self._bringing or ThreadPoolExecutor(_BRINGING, "bring")
        for coming in range(max(self._ahead, position), min(position + _FAR, self.schedule.positions)):
            scheduled = self.schedule.packs(coming)
            uses = (use for number in deal(coming) if number >= 0 for use in scheduled[number])
            wanted = dict.fromkeys((use.member, self.corpora[use.member].shard(use.row)) for use in uses)
            room = {member: self.corpora[member].cache.limit // (2 * _FAR) for member, _ in wanted}
            for member, shard in wanted:  # no more than what stays until it is read
                room[member] -= self.corpora[member].part(shard).size or 0
                if room[member] >= 0:
                    self._bringing.submit(self.corpora[member].bring, shard)
            self._ahead = coming + 1

    def take(self) -> list[Replaced]:
        """What was replaced since the last call."""
        fresh, self.fresh = self.fresh, []
        return fresh

    def _begun(self, places: Sequence[tuple[Place, Use]]) -> list[Callable[[], Decoded] | None]:
        """What gives the decoded record of each place, or ValueError; None: it is known to be replaced."""
        if self._pool is None:
            return [None if place in self._known else partial(self._read, use) for place, use in places]
        size = max(1, len(places) // self._threads)  # a task for each thread: more of them wait for each other
        values: list[Callable[[], Decoded] | None] = []
        for first in range(0, len(places), size):
            part = [(place in self._known, use) for place, use in places[first : first + size]]
            tasks = self._pool.submit(self._decoded, [self._taken(use) for known, use in part if not known])
            numbers = count()
            values += [None if known else partial(_given, tasks, next(numbers)) for known, _ in part]
        return values

    def _taken(self, use: Use) -> tuple[Use, Record | ValueError]:
        try:
            return use, self.corpora[use.member].record(use.row)
        except ValueError as error:
            return use, error

    def _decoded(self, taken: Sequence[tuple[Use, Record | ValueError]]) -> list[Decoded | ValueError]:
        """For any thread."""
        found: list[Decoded | ValueError] = []
        for use, record in taken:
            try:
                found.append(record if isinstance(record, ValueError) else self._decode(use, record))
            except ValueError as error:
                found.append(error)
        return found

    def _pack(
        self, position: int, number: int, pack: Sequence[Use], values: Sequence[Callable[[], Decoded] | None]
    ) -> list[Slot[Decoded]]:
        found = []
        for slot, (use, value) in enumerate(zip(pack, values, strict=True)):
            if value is None:
                known = self._known[position, number, slot]
            else:
                try:
                    found.append(Slot(slot, use, value()))
                    continue
                except ValueError as error:
                    known = self._replaced((position, number, slot), pack, summary(error))
                    self._known[known.place] = known
                    self.fresh.append(known)
            if known.row is not None:
                spare = Use(use.member, known.row, use.epoch)
                found.append(Slot(slot, spare, self._read(spare)))
        return found

    def _read(self, use: Use) -> Decoded:
        return self._decode(use, self.corpora[use.member].record(use.row))

    def _replaced(self, place: Place, pack: Sequence[Use], why: str) -> Replaced:
        """A function of the slot and of which records cannot be read: never of ranks, threads or time."""
        position, number, slot = place
        use = pack[slot]
        corpus = self.corpora[use.member]
        row = None
        fits = self.schedule.fitting(pack, slot, self._spares(place, use))
        for spare in fits[:_TRIED].tolist():
            try:
                self._read(Use(use.member, spare, use.epoch))
            except ValueError:
                continue
            row = spare
            break
        return Replaced(
            position=position,
            pack=number,
            slot=slot,
            source=self.schedule.names[use.member],
            key=corpus.key(use.row),
            why=why,
            row=row,
            by=None if row is None else corpus.key(row),
        )

    def _spares(self, place: Place, use: Use) -> NDArray[np.int64]:
        """Rows of the same task, from one that is hashed from the slot."""
        if use.member not in self._tasks:
            tasks = self.corpora[use.member].task
            self._tasks[use.member] = pc.dictionary_encode(tasks).indices.to_numpy(zero_copy_only=False)  # pyright: ignore
        tasks = self._tasks[use.member]
        count = len(tasks)
        first = int.from_bytes(hashlib.sha256(repr(place).encode()).digest()[:8], "little") % count
        rows = (first + np.arange(min(_SPARES, count), dtype=np.int64)) % count
        return rows[(tasks[rows] == tasks[use.row]) & (rows != use.row)]


def _given(tasks: Future[list[Decoded | ValueError]], number: int) -> Decoded:
    value = tasks.result()[number]
    if isinstance(value, ValueError):
        raise value
    return value


def fed(
    reader: Reader[Decoded], positions: range, deal: Callable[[int], Sequence[int]], *, ahead: int = 2
) -> Iterator[tuple[int, list[list[Slot[Decoded]]]]]:
    """(position, its packs) in order, read and decoded up to `ahead` positions before they are asked for.

    Args: deal: position -> the packs that are wanted of it: `packing.dealt(...)[rank]`.
    """

    def begin(position: int) -> Callable[[], list[list[Slot[Decoded]]]]:
        reader.bring(position, deal)
        return reader.begin(position, deal(position))

    return zip(positions, made_ahead(begin, positions, ahead=ahead), strict=True)


def made_ahead(begin: Callable[[int], Callable[[], Made]], positions: Iterable[int], *, ahead: int) -> Generator[Made]:
    """What is made of each position, in order, by one thread of its own up to `ahead` positions before it is asked for.

    The next position is begun before one is finished, so that threads which it begins have something to do. One thread
    keeps the order in which records are replaced. When the iterator is closed, what is being made is waited for.

    Args: begin: position -> what makes it.
    """
    pool, rest = ThreadPoolExecutor(1, "ahead"), iter(positions)
    begun, coming = deque[Future[Callable[[], Made]]](), deque[Future[Made]]()

    def finish() -> None:
        made = begun.popleft()
        coming.append(pool.submit(lambda: made.result()()))

    try:
        while True:
            while len(coming) <= ahead and (position := next(rest, None)) is not None:
                begun.append(pool.submit(begin, position))
                if len(begun) > 1:
                    finish()
            if not coming and begun:
                finish()
            if not coming:
                return
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_events(path: Path) -> list[Replaced]:
    """What a run replaced, as its events.jsonl says; half a line at its end is what a kill left, and is not read.

    Raises: ValueError: a line that is none.
    """
    return [event for event in _events(path) if isinstance(event, Replaced)]


def read_skips(path: Path) -> list[Skipped]:
    """What a run passes over, as its events.jsonl says. See `read_events`."""
    return [event for event in _events(path) if isinstance(event, Skipped)]


def _events(path: Path) -> list[Replaced | Skipped]:
    if not path.is_file():
        return []
    data, found = path.read_bytes(), []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            told = json.loads(line)
            kind = Replaced if "pack" in told else Skipped
            found.append(kind(**{field.name: told[field.name] for field in fields(kind)}))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is no event ({error}): restore the file") from None
    return found


def event_line(event: Replaced | Skipped) -> str:
    """As a line of events.jsonl."""
    return json.dumps(asdict(event)) + "\n"


def events_digest(events: Iterable[Replaced | Skipped], positions: int) -> str:
    """Names what was replaced and passed over before this position, in whatever order it was written."""
    lines = sorted(event_line(event) for event in events if event.position < positions)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
