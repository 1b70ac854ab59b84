"""The reader: scheduled records from real shards, whatever part a rank asks for; what cannot be read is replaced."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upstream import ORCA, Build, jpeg, jsonl, metaclip_json, tar

from dataflow import folders
from dataflow.cache import Cache
from dataflow.index import BuiltCorpus
from dataflow.mixture import Change, Group, Member, Mixture
from dataflow.packing import Packing, dealt
from dataflow.reader import Reader, event_line, events_digest, fed, read_events
from dataflow.record import Record
from dataflow.schedule import Schedule, Use
from dataflow.sources.cambrian import Cambrian
from dataflow.sources.metaclip import MetaClip
from dataflow.windows import Lengths, Windows


@pytest.fixture
def corpora(tmp_path: Path, build: Build) -> list[BuiltCorpus]:
    data = tmp_path / "data"
    (data / "cambrian/jsons").mkdir(parents=True)
    (data / "cambrian/jsons/a.jsonl").write_bytes(jsonl(*[ORCA] * 21))
    (data / "metaclip/0").mkdir(parents=True)
    members = []
    for number in range(13):
        uuid, fields = metaclip_json(f"http://example.com/{number}", f"cat {number}")
        members += [(f"{uuid}.jpeg", jpeg(16 + number, 16)), (f"{uuid}.json", fields)]
    (data / "metaclip/0/0.tar").write_bytes(tar(*members))
    talks = build(Cambrian(), rows=5)
    return [BuiltCorpus(talks.folder, np.arange(20, 0, -2)), build(MetaClip(), rows=4)]


@pytest.fixture
def schedule(corpora: list[BuiltCorpus]) -> Schedule:
    groups = tuple(
        Group(name=name, share=share, members=(Member(corpus=None),))
        for name, share in (("text", 60), ("pictures", 40))
    )
    return Schedule(
        mixture=Mixture(groups=groups, seed=1),
        names=("cambrian", "metaclip"),
        digests=tuple(corpus.digest for corpus in corpora),
        rows=tuple(len(corpus) for corpus in corpora),
        batch=6,
        positions=10,
    )


def keyed(use: Use, record: Record) -> tuple[Use, str]:
    """Decoding for these tests: what was asked for, and what came."""
    return use, record.key


def read(reader: Reader[tuple[Use, str]], position: int, which: Sequence[int] | None = None) -> list[list[Any]]:
    """The values of a position's packs, all of them by default."""
    numbers = range(len(reader.schedule.packs(position))) if which is None else which
    return [[slot.value for slot in pack] for pack in reader.packs(position, numbers)]


def packed(corpora: list[BuiltCorpus], changes: tuple[Change, ...] = ()) -> Windows:
    """Several records to a row; lengths are made up."""
    draw = np.random.default_rng(4)
    groups = tuple(
        Group(name=name, share=share, members=(Member(corpus=None),))
        for name, share in (("text", 60), ("pictures", 40))
    )
    return Windows(
        mixture=Mixture(groups=groups, seed=1, changes=changes),
        packing=Packing(fill=900),
        names=("cambrian", "metaclip"),
        digests=tuple(corpus.digest for corpus in corpora),
        rows=tuple(len(corpus) for corpus in corpora),
        batch=16,
        length=100,
        positions=24,
        lengths=tuple(
            Lengths(
                tokens=draw.integers(5, 40, len(corpus)).astype(np.int32), drawn=np.full(len(corpus), kind, np.int32)
            )
            for kind, corpus in enumerate(corpora)
        ),
    )


def test_a_position_gives_the_scheduled_records_in_order(schedule: Schedule, corpora: list[BuiltCorpus]) -> None:
    for order in (schedule, packed(corpora)):
        reader = Reader(order, corpora, decode=keyed)
        for number in range(order.positions):
            assert read(reader, number) == [
                [(use, corpora[use.member].keys[use.row]) for use in pack] for pack in order.packs(number)
            ]
        assert reader.take() == []


def test_an_epoch_reads_every_selected_record_once(schedule: Schedule, corpora: list[BuiltCorpus]) -> None:
    reader = Reader(schedule, corpora, decode=keyed)
    held = [pair for number in range(schedule.positions) for (pair,) in read(reader, number)]
    for member, corpus in enumerate(corpora):
        first_epoch = [key for use, key in held if (use.member, use.epoch) == (member, 0)]
        assert sorted(first_epoch) == sorted(corpus.keys)


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def damaged(*keys: str) -> Callable[[Use, Record], tuple[Use, str]]:
    """Decoding that these records do not survive."""

    def decode(use: Use, record: Record) -> tuple[Use, str]:
        if record.key in keys:
            raise ValueError("picture does not decode")
        return use, record.key

    return decode


CHANGED = (Change(position=16, shares=(20, 80)),)
BAD = ("metaclip_000000001", "metaclip_000010002", "cambrian_000010003")


@pytest.mark.parametrize("bad", [(), BAD], ids=["all sound", "three unreadable"])
@pytest.mark.parametrize("changes", [(), CHANGED], ids=["one mixture", "shares change"])
@pytest.mark.parametrize("start", [0, 9])
@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_batches_are_the_same_for_any_ranks_threads_look_ahead_and_resumption(
    corpora: list[BuiltCorpus], ranks: int, threads: int, start: int, changes: tuple[Change, ...], bad: tuple[str, ...]
) -> None:
    plan = packed(corpora, changes)
    alone = Reader(plan, corpora, decode=damaged(*bad))
    wanted = [digest(read(alone, position)) for position in range(start, plan.positions)]
    replaced = alone.take()
    assert bool(replaced) == bool(bad)
    if changes:
        assert wanted[-1] != digest(read(Reader(packed(corpora), corpora, decode=damaged(*bad)), plan.positions - 1))

    found: list[dict[int, Any]] = [{} for _ in range(plan.positions)]
    told = []
    for rank in range(ranks):
        mine = [BuiltCorpus(corpus.folder, corpus.rows) for corpus in corpora]
        reader = Reader(replace(plan), mine, decode=damaged(*bad), threads=threads)

        def deal(position: int, rank: int = rank) -> list[int]:
            return dealt([plan.weight(pack) for pack in plan.packs(position)], ranks)[rank]

        for position, packs in fed(reader, range(start, plan.positions), deal, ahead=threads):
            for number, pack in zip(deal(position), packs, strict=True):
                if number >= 0:
                    found[position][number] = [slot.value for slot in pack]
        told += reader.take()
    joined = [[packs[number] for number in sorted(packs)] for packs in found[start:]]
    assert [digest(position) for position in joined] == wanted
    assert sorted(told, key=lambda event: event.place) == replaced


def test_what_takes_a_record_s_place_is_of_its_source_and_fits(corpora: list[BuiltCorpus]) -> None:
    plan = packed(corpora)
    reader = Reader(plan, corpora, decode=damaged(*BAD))
    sound = Reader(plan, corpora, decode=keyed)
    for position in range(plan.positions):
        for before, after, number in zip(read(sound, position), read(reader, position), range(16), strict=True):
            assert len(before) == len(after)
            assert sum(plan.tokens_of(use) for use, _ in after) <= plan.length
            events = {event.slot: event for event in reader.fresh if event.place[:2] == (position, number)}
            for slot, (old, new) in enumerate(zip(before, after, strict=True)):
                assert (old != new) == (slot in events)  # everything else stays
                if slot in events:
                    assert events[slot].key == old[1] in BAD and events[slot].by == new[1] not in BAD
                    assert events[slot].why == "picture does not decode"
                    assert new[0].member == old[0].member
    assert all(key not in BAD for position in range(24) for pack in read(reader, position) for _, key in pack)


def test_what_was_replaced_stays_so_whatever_the_disk_says_now(corpora: list[BuiltCorpus], tmp_path: Path) -> None:
    plan = packed(corpora)
    first = Reader(plan, corpora, decode=damaged(*BAD))
    before = [read(first, position) for position in range(24)]
    told = first.take()
    path = tmp_path / "events.jsonl"
    path.write_text("".join(map(event_line, told)) + '{"position": 3, "pa')  # a kill left half a line
    assert read_events(path) == told
    again = Reader(plan, corpora, decode=keyed, known={event.place: event for event in read_events(path)})
    assert [read(again, position) for position in range(24)] == before
    assert again.take() == []
    early = [event for event in told if event.position < 12]
    assert (
        events_digest(told[::-1], 24) == events_digest(told, 24) != events_digest(told, 12) == events_digest(early, 24)
    )
    path.write_text('{"position": 3}\n')
    with pytest.raises(ValueError, match=r"events.jsonl, line 1 is no event"):
        read_events(path)


def test_a_record_that_nothing_can_stand_in_for_leaves_its_slot_empty(corpora: list[BuiltCorpus]) -> None:
    reader = Reader(packed(corpora), corpora, decode=damaged(*corpora[1].keys))
    held = read(reader, 0)
    assert all(use.member == 0 for pack in held for use, _ in pack)
    assert {event.by for event in reader.take()} == {None}


def test_a_failing_disk_stops_the_reader_and_replaces_nothing(corpora: list[BuiltCorpus]) -> None:
    def failing(use: Use, record: Record) -> None:
        raise OSError(5, "Input/output error")

    reader = Reader(packed(corpora), corpora, decode=failing)
    with pytest.raises(OSError, match="Input/output"):
        reader.packs(0, [0])
    assert reader.take() == []
    (corpora[1].folder / "00000.tar").rename(corpora[1].folder / "away.tar")
    lost = Reader(packed(corpora), [BuiltCorpus(c.folder, c.rows) for c in corpora], decode=keyed)
    with pytest.raises(OSError, match=r"cannot be read from .*00000\.tar .*No such file"):
        for position in range(24):
            read(lost, position)


def test_corpora_of_another_schedule_are_refused(schedule: Schedule, corpora: list[BuiltCorpus]) -> None:
    other = [BuiltCorpus(corpora[0].folder, np.arange(10)), corpora[1]]
    with pytest.raises(ValueError, match=r"cambrian is not the corpus of this schedule .* plan again"):
        Reader(schedule, other, decode=keyed)
    with pytest.raises(ValueError, match="1 corpora for a schedule of 2: give one per member"):
        Reader(schedule, corpora[:1], decode=keyed)


def test_a_shard_that_changed_gives_replacements_that_name_it(schedule: Schedule, corpora: list[BuiltCorpus]) -> None:
    path = corpora[1].folder / "00000.tar"
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(bytes(size))
    reader = Reader(schedule, [corpora[0], BuiltCorpus(corpora[1].folder)], decode=keyed)
    for number in range(10):
        read(reader, number)
    told = reader.take()
    assert {event.source for event in told} == {"metaclip"}
    assert all(f"cannot be read from {path} (" in event.why for event in told), told
    assert {event.key[-5] for event in told} == {"0"}  # of the first shard alone


def test_shards_of_a_store_are_here_before_they_are_read_and_no_more_than_the_cache_keeps(
    corpora: list[BuiltCorpus], tmp_path: Path
) -> None:
    store = folders.folder(f"memory://{secrets.token_hex(6)}")
    for corpus in corpora:
        for file in filter(Path.is_file, corpus.folder.iterdir()):
            (store / corpus.name / file.name).write_bytes(file.read_bytes())
    plan = packed(corpora)
    few = (4, 1)
    touched = {(use.member, use.row) for position in range(8) for number in few for use in plan.packs(position)[number]}

    def brought(cache: Cache) -> tuple[set[str], set[str]]:
        mine = [BuiltCorpus(store / corpus.name, corpus.rows, cache=cache) for corpus in corpora]
        reader = Reader(plan, mine, decode=keyed)
        for corpus in mine:
            assert len(corpus.table)  # the index is read when a schedule is made
        before = {path.name for path in cache.folder.iterdir()}
        for position in range(2):
            reader.bring(position, lambda _: few)
        assert reader._bringing is not None
        reader._bringing.shutdown()
        wanted = {mine[member].part(mine[member].shard(row)).sha256 for member, row in touched}
        return wanted, {path.name for path in cache.folder.iterdir()} - before - {".room"}

    wanted, there = brought(Cache(folder=tmp_path / "all"))
    assert wanted == there
    assert len(wanted) > 1
    largest = max(shard["size"] for corpus in corpora for shard in corpus.manifest["shards"])
    assert brought(Cache(folder=tmp_path / "few", limit=2 * largest))[1] == set()  # each would push another one out
