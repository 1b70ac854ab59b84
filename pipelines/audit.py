"""What a run was planned to be fed, and what it was fed; where a record is trained, and what a position holds.

interlace audit RUN                  planned, fed and replaced by source; exit 1 where they differ
interlace trace RUN --position N     the records of a position, with the rows they come from
interlace trace RUN --record KEY     the positions at which a record is trained
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from dataflow.index import BuiltCorpus
from dataflow.reader import Replaced, Skipped, read_events, read_skips
from dataflow.schedule import Schedule, Use
from dataflow.windows import Windows
from pipelines import journal, runs, sample
from pipelines.step import Place, one_line
from pipelines.training import Training


@dataclass(frozen=True, kw_only=True)
class Scheduled:
    """A run with the schedule that it follows, and its opened corpora."""

    run: Path
    training: Training
    schedule: Schedule | Windows
    corpora: tuple[BuiltCorpus, ...]
    events: tuple[Replaced, ...]
    skipped: dict[int, Skipped]  # by position

    @staticmethod
    def of(run: Path, place: Place) -> Scheduled:
        """Of the run in a folder.

        Raises: ValueError: no run there, or corpora that are not those that it was begun on.
        """
        training = sample.read_training(run)
        opened, schedule, training, _ = runs.located(training, place)
        begun = json.loads((run / "plan.json").read_bytes())["schedule"]
        if begun != schedule.digest:
            raise ValueError(
                f"{run.name} follows schedule {begun[:12]}, what lies under {place.root} gives {schedule.digest[:12]}: "
                "name the root and the data that it was trained on"
            )
        return Scheduled(
            run=run,
            training=training,
            schedule=schedule,
            corpora=tuple(member.open() for member in opened),
            events=tuple(read_events(run / "events.jsonl")),
            skipped={event.position: event for event in read_skips(run / "events.jsonl")},
        )


@dataclass(frozen=True, kw_only=True)
class Line:
    """A source of a run up to its last step: records and tokens, planned and fed; records replaced and lost.

    drawn: of its tokens those of pictures that are answers. What is planned in tokens is known of packed rows.
    """

    group: str
    source: str
    planned: int
    fed: int
    planned_tokens: int | None
    fed_tokens: int
    planned_drawn: int | None
    fed_drawn: int
    replaced: int
    lost: int

    def amiss(self, slack: int) -> bool:
        """Whether it was fed other than planned: records but for those that nothing replaced, tokens but for slack."""
        if self.fed != self.planned - self.lost:
            return True
        pairs = ((self.planned_tokens, self.fed_tokens), (self.planned_drawn, self.fed_drawn))
        return any(planned is not None and abs(fed - planned) > slack for planned, fed in pairs)


def audit(held: Scheduled) -> tuple[int, list[Line]]:
    """Steps that the run has taken, and what each source was to give and gave in them.

    A source that stands in a mixture twice is one line: that is how a run counts.
    """
    taken = {told["step"]: told for told in journal.read(held.run)}  # one that was repeated after a kill counts once
    steps = max(taken, default=0)
    for position in held.skipped:
        taken.pop(position + 1, None)  # of an attempt before it was passed over
    if sorted(taken) != [step for step in range(1, steps + 1) if step - 1 not in held.skipped]:
        raise ValueError(f"{held.run / 'metrics.jsonl'} does not tell of every step up to {steps}: restore the file")
    fed, tokens, drawn = Counter[str](), Counter[str](), Counter[str]()
    for told in taken.values():
        fed.update(told["fed"])
        tokens.update(told["tokens"])
        drawn.update(told["drawn"])
    planned, known = _planned(held.schedule, steps, held.skipped), isinstance(held.schedule, Windows)
    groups = [group.name for group in held.training.mixture.groups for _ in group.members]
    events = [event for event in held.events if event.position < steps and event.position not in held.skipped]
    lines = []
    for source in dict.fromkeys(held.schedule.names):
        members = [number for number, name in enumerate(held.schedule.names) if name == source]
        mine = [event for event in events if event.source == source]
        records, tokens_planned, drawn_planned = (
            sum(planned[number][place] for number in members) for place in range(3)
        )
        lines.append(
            Line(
                group=groups[members[0]],
                source=source,
                planned=records,
                fed=fed[source],
                planned_tokens=tokens_planned if known else None,
                fed_tokens=tokens[source],
                planned_drawn=drawn_planned if known else None,
                fed_drawn=drawn[source],
                replaced=sum(event.row is not None for event in mine),
                lost=sum(event.row is None for event in mine),
            )
        )
    return steps, lines


def _planned(schedule: Schedule | Windows, steps: int, skipped: Collection[int]) -> list[tuple[int, int, int]]:
    """Records, tokens and drawn tokens of each member in the first steps; tokens are known of packed rows alone."""
    if isinstance(schedule, Schedule):
        counts = Counter(dict(enumerate(schedule.counts(steps))))
        for position in (position for position in skipped if position < steps):
            counts.subtract(use.member for pack in schedule.packs(position) for use in pack)
        return [(counts[member], 0, 0) for member in range(len(schedule.names))]
    held = [[0, 0, 0] for _ in schedule.names]
    for position in (position for position in range(steps) if position not in skipped):
        for use in (use for pack in schedule.packs(position) for use in pack):
            sums = held[use.member]
            sums[0] += 1
            sums[1] += schedule.tokens_of(use)
            sums[2] += schedule.drawn_of(use)
    return [(records, tokens, drawn) for records, tokens, drawn in held]


def table(held: Scheduled) -> tuple[list[str], bool]:
    """The lines of an audit for people, and whether all is as planned."""
    steps, lines = audit(held)
    tokens = sum(line.fed_tokens for line in lines)
    width = max(len(line.source) for line in lines)
    group = max(len(line.group) for line in lines)
    told = [
        f"{held.run.name}: {steps} of {held.schedule.positions} steps, {sum(line.fed for line in lines)} records, "
        f"{tokens} tokens",
        f"{'group':{group}}  {'source':{width}}  {'records planned':>15}  {'fed':>9}  {'tokens planned':>14}  "
        f"{'fed':>11}  {'%':>6}  {'drawn planned':>13}  {'fed':>11}  {'replaced':>8}  {'lost':>5}",
    ]
    row = held.training.sequence_length
    sound = True
    for line in lines:
        wrong = line.amiss(row * (1 + line.replaced + line.lost))
        sound &= not wrong
        planned, to_draw = ("-" if count is None else str(count) for count in (line.planned_tokens, line.planned_drawn))
        told.append(
            f"{line.group:{group}}  {line.source:{width}}  {line.planned:15}  {line.fed:9}  {planned:>14}  "
            f"{line.fed_tokens:11}  {100 * line.fed_tokens / max(1, tokens):6.2f}  {to_draw:>13}  {line.fed_drawn:11}  "
            f"{line.replaced:8}  {line.lost:5}" + ("  NOT AS PLANNED" if wrong else "")
        )
    told += [event.line() for position, event in sorted(held.skipped.items()) if position < steps]
    return told, sound


def at_position(held: Scheduled, position: int) -> Iterator[str]:
    """What a position holds, a line per record: row, slot, key, task, epoch, and the input row that it comes from.

    Raises: ValueError: a position that the run does not have.
    """
    replaced = {event.place: event for event in held.events}
    if position in held.skipped:
        yield held.skipped[position].line()
    for number, pack in enumerate(held.schedule.packs(position)):
        for slot, use in enumerate(pack):
            event = replaced.get((position, number, slot))
            if event is None:
                yield f"{number:4} {slot:3}  {_record(held, use)}"
            elif event.row is None:
                yield f"{number:4} {slot:3}  empty: {event.key} cannot be read ({event.why})"
            else:
                told = _record(held, Use(use.member, event.row, use.epoch))
                yield f"{number:4} {slot:3}  {told}  in place of {event.key} ({event.why})"


def _record(held: Scheduled, use: Use) -> str:
    tokens = held.schedule.tokens_of(use)
    length = "" if tokens is None else f"  {tokens} tokens"
    if isinstance(held.schedule, Windows) and held.schedule.shortens(use):
        length += ", shortened"
    try:
        record = held.corpora[use.member].record(use.row)
    except (ValueError, OSError) as error:  # today: it may have been sound when it was trained
        return f"{held.corpora[use.member].key(use.row)}  pass {use.epoch + 1}{length}  {one_line(error)}"
    origin = f"{record.source} {record.lineage.file}, row {record.lineage.row}"
    return f"{record.key}  {record.task}  pass {use.epoch + 1}{length}  from {origin}"


def of_record(held: Scheduled, key: str) -> Iterator[str]:
    """Where a record is trained, a line per time.

    Raises: ValueError: no corpus of the run offers it.
    """
    found, replaced = False, {event.place: event for event in held.events}
    for member, corpus in enumerate(held.corpora):
        for place in corpus.places(key):
            found = True
            try:
                record = corpus.record(place)
                yield f"{key}: {record.task} from {record.lineage.file}, row {record.lineage.row}"
            except (ValueError, OSError) as error:
                yield f"{key}: {one_line(error)}"
            uses = held.schedule.where(member, place)
            for position, number, slot in uses:
                event = replaced.get((position, number, slot))
                instead = "" if event is None else f": not read ({event.why}), {event.by or 'nothing'} in its place"
                instead = f": passed over ({held.skipped[position].why})" if position in held.skipped else instead
                yield f"  position {position}, row {number}, slot {slot}{instead}"
            stands = [event for event in held.events if event.by == key and event.row == place]
            for event in stands:
                yield f"  position {event.position}, row {event.pack}, slot {event.slot}: in place of {event.key}"
            if not uses and not stands:
                yield f"  in none of the {held.schedule.positions} positions"
    if not found:
        raise ValueError(f"no corpus of {held.run.name} offers a record {key!r}: its keys are as in index.parquet")
