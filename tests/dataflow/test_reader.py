"""The reader: scheduled records from real shards, position by position, whatever part of it a rank asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from upstream import ORCA, Build, jpeg, jsonl, metaclip_json, tar

from dataflow.index import BuiltCorpus
from dataflow.mixture import Group, Member, Mixture
from dataflow.reader import Reader
from dataflow.schedule import Schedule
from dataflow.sources.cambrian import Cambrian
from dataflow.sources.metaclip import MetaClip


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


def test_a_position_gives_the_scheduled_records_in_order(schedule: Schedule, corpora: list[BuiltCorpus]) -> None:
    reader = Reader(schedule, corpora)
    for number in range(schedule.positions):
        read = reader.position(number)
        assert [use for use, _ in read] == schedule.position(number)
        assert [record.key for _, record in read] == [
            corpora[use.member].keys[use.row] for use in schedule.position(number)
        ]


def test_an_epoch_reads_every_selected_record_once(schedule: Schedule, corpora: list[BuiltCorpus]) -> None:
    reader = Reader(schedule, corpora)
    read = [pair for number in range(schedule.positions) for pair in reader.position(number)]
    for member, corpus in enumerate(corpora):
        first_epoch = [record.key for use, record in read if (use.member, use.epoch) == (member, 0)]
        assert sorted(first_epoch) == sorted(corpus.keys)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 7])
def test_ranks_together_read_what_one_reads(schedule: Schedule, corpora: list[BuiltCorpus], ranks: int) -> None:
    whole = Reader(schedule, corpora).position(3)
    readers = [Reader(schedule, [BuiltCorpus(each.folder, each.rows) for each in corpora]) for _ in range(ranks)]
    parts = [reader.position(3, slice(rank, None, ranks)) for rank, reader in enumerate(readers)]
    assert [parts[place % ranks][place // ranks] for place in range(6)] == whole
    assert sum(map(len, parts)) == 6


def test_reading_goes_on_from_any_position(schedule: Schedule, corpora: list[BuiltCorpus]) -> None:
    reader = Reader(schedule, corpora)
    unbroken = [reader.position(number) for number in range(10)]
    for start in (9, 4, 7):
        resumed = Reader(replace(schedule), corpora)
        assert [resumed.position(number) for number in range(start, 10)] == unbroken[start:]


def test_corpora_of_another_schedule_are_refused(schedule: Schedule, corpora: list[BuiltCorpus]) -> None:
    other = [BuiltCorpus(corpora[0].folder, np.arange(10)), corpora[1]]
    with pytest.raises(ValueError, match=r"cambrian is not the corpus of this schedule .* plan again"):
        Reader(schedule, other)
    with pytest.raises(ValueError, match="1 corpora for a schedule of 2: give one per member"):
        Reader(schedule, corpora[:1])


def test_a_damaged_record_is_named_when_its_turn_comes(schedule: Schedule, corpora: list[BuiltCorpus]) -> None:
    path = corpora[1].folder / "00000.tar"
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(bytes(size))
    reader = Reader(schedule, [corpora[0], BuiltCorpus(corpora[1].folder)])
    with pytest.raises(ValueError, match=r"record metaclip_00000000\d cannot be read from .*00000\.tar"):
        for number in range(10):
            reader.position(number)
