"""What a reader makes of shards and tables that are not what was built: a record replaced, or an end that names why."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from upstream import Build, jpeg, metaclip_json, tar

from dataflow import folders, index, stores
from dataflow.cache import Cache
from dataflow.index import BuiltCorpus, NotAsBuilt
from dataflow.media import decoded
from dataflow.mixture import Group, Member, Mixture
from dataflow.reader import Reader, Replaced
from dataflow.record import Record
from dataflow.schedule import Schedule, Use
from dataflow.sources.metaclip import MetaClip

FIRST = "metaclip_000000000"


@pytest.fixture
def corpus(tmp_path: Path, build: Build) -> Path:
    """Twelve captioned pictures in three shards."""
    return pictures(tmp_path, build, "cat")


def pictures(tmp_path: Path, build: Build, name: str) -> Path:
    folder = tmp_path / "data/metaclip/0"
    folder.mkdir(parents=True, exist_ok=True)
    members = []
    for number in range(12):
        uuid, fields = metaclip_json(f"http://example.com/{number}", f"{name} {number}")
        members += [(f"{uuid}.jpeg", jpeg(64 + number, 64)), (f"{uuid}.json", fields)]
    (folder / "0.tar").write_bytes(tar(*members))
    return build(MetaClip(), rows=4, folder=tmp_path / "built" / name).folder


def passed(corpus: BuiltCorpus, positions: int = 3) -> list[Replaced]:
    """Read all of it, pictures decoded; what was replaced."""
    schedule = Schedule(
        mixture=Mixture(groups=(Group(name="pictures", share=1, members=(Member(corpus=None),)),)),
        names=("metaclip",),
        digests=(corpus.digest,),
        rows=(len(corpus),),
        batch=4,
        positions=positions,
    )

    def decode(use: Use, record: Record) -> str:
        decoded(record.media[0])
        return record.key

    reader = Reader(schedule, [corpus], decode=decode)
    read = [slot.value for position in range(positions) for pack in reader.packs(position, range(4)) for slot in pack]
    told = reader.take()
    assert len(read) == len(corpus) and {event.by for event in told} <= set(read)  # each in place of one
    return told


def changed(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change a file in place; its size stays."""
    data = bytearray(path.read_bytes())
    size = len(data)
    change(data)
    assert len(data) == size
    path.write_bytes(data)


def header(data: bytearray) -> None:
    data[5] ^= 1


def start_of_picture(data: bytearray) -> None:
    data[512:520] = bytes(8)


def json_member(data: bytearray) -> None:
    place = data.find(b'{"')
    data[place : place + 2] = b"}}"


def pixels(data: bytearray) -> None:
    """A picture of other colours: a JPEG has no checksum, nothing in the record tells."""
    place = data.find(b"\xff\xda") + 60
    data[place : place + 4] = bytes(byte ^ 0x15 for byte in data[place : place + 4])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (header, r"record metaclip_000000000 cannot be read from .*00000\.tar \(no header of ours at byte 0"),
        (json_member, r"record metaclip_000000000 cannot be read from .*00000\.tar \(Expecting value"),
        (start_of_picture, r"picture does not decode: it starts with b'\\x00"),
    ],
)
def test_a_damaged_record_is_replaced_and_its_event_says_why(
    corpus: Path, change: Callable[[bytearray], None], why: str
) -> None:
    changed(corpus / "00000.tar", change)
    (event,) = passed(BuiltCorpus(corpus))
    assert (event.source, event.key) == ("metaclip", FIRST) and event.by
    assert re.search(why, event.why)


def test_records_beyond_the_end_of_a_shard_that_was_cut_are_replaced(corpus: Path) -> None:
    ends = BuiltCorpus(corpus).table["offset"].to_pylist()
    os.truncate(corpus / "00001.tar", ends[5] + 600)  # in the second record of the second shard
    told = passed(BuiltCorpus(corpus))
    assert {event.key for event in told} == {f"metaclip_00001000{number}" for number in (1, 2, 3)}
    assert all("(the shard ends before it does)" in event.why for event in told)


def test_a_shard_that_is_no_file_any_more_stops_the_reader(corpus: Path) -> None:
    (corpus / "00001.tar").unlink()
    (corpus / "00001.tar").mkdir()
    with pytest.raises(OSError, match=r"cannot be read from .*/00001\.tar \(Is a directory\): run interlace verify"):
        passed(BuiltCorpus(corpus))


@pytest.mark.parametrize("change", [header, start_of_picture, pixels])
def test_checked_shards_that_changed_stop_the_reader_whatever_changed(
    corpus: Path, change: Callable[[bytearray], None]
) -> None:
    shard = corpus / "00002.tar"
    changed(shard, change)
    told = rf"{shard} is not the bytes that were built \(sha256 \w{{12}} for \w{{12}}\): run interlace verify {corpus}"
    with pytest.raises(NotAsBuilt, match=f"^{told}, remove that folder and build it again$"):
        passed(BuiltCorpus(corpus, shards_are="checked"))


def test_trusted_shards_are_read_as_they_are_and_checked_ones_that_are_sound_too(corpus: Path) -> None:
    assert passed(BuiltCorpus(corpus, shards_are="checked")) == []
    changed(corpus / "00000.tar", pixels)
    assert passed(BuiltCorpus(corpus)) == []


def test_a_process_hashes_a_shard_once_and_again_when_its_file_changed(corpus: Path) -> None:
    shard, before = corpus / "00000.tar", (corpus / "00000.tar").stat()
    assert BuiltCorpus(corpus, shards_are="checked").record(0).key == FIRST
    changed(shard, pixels)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same file for all that it tells
    assert BuiltCorpus(corpus, shards_are="checked").record(0).key == FIRST
    os.utime(shard)
    with pytest.raises(NotAsBuilt, match=r"00000\.tar is not the bytes"):
        BuiltCorpus(corpus, shards_are="checked").record(0)


def test_the_index_of_another_corpus_is_refused_though_it_has_as_many_rows(
    corpus: Path, tmp_path: Path, build: Build
) -> None:
    other = pictures(tmp_path, build, "dog")
    assert index.read_manifest(other)["counts"] == index.read_manifest(corpus)["counts"]
    shutil.copyfile(other / "index.parquet", corpus / "index.parquet")
    with pytest.raises(ValueError, match=rf"{corpus}/index\.parquet is not the bytes that were built .*build it again"):
        passed(BuiltCorpus(corpus))


@pytest.mark.parametrize(
    ("entry", "why"), [({"sha256": "0"}, "is no sha256: its manifest is damaged"), ({"file": "../x"}, "elsewhere")]
)
def test_a_manifest_that_is_wrong_about_a_shard_stops_the_reader(corpus: Path, entry: dict[str, str], why: str) -> None:
    opened = BuiltCorpus(corpus)
    opened.manifest["shards"][1].update(entry)
    with pytest.raises(NotAsBuilt, match=why):
        passed(opened)


# --- shards of a store


@pytest.fixture
def store(corpus: Path) -> Path:
    """The corpus, in a store of this process."""
    there = folders.folder(f"memory://{secrets.token_hex(6)}") / corpus.name
    for file in filter(Path.is_file, corpus.iterdir()):
        stores.put(file, there / file.name)
    return there


def test_a_shard_of_a_store_that_is_other_or_gone_stops_the_reader(store: Path, tmp_path: Path) -> None:
    data = bytearray(stores.read(store / "00001.tar"))
    pixels(data)
    stores.write(store / "00001.tar", bytes(data))
    with pytest.raises(NotAsBuilt, match=rf"{store}/00001\.tar is not the bytes that were built .*verify {store}"):
        passed(BuiltCorpus(store, cache=Cache(folder=tmp_path / "cache")))
    stores.remove([store / "00001.tar"])
    with pytest.raises(NotAsBuilt, match=rf"{store}/00001\.tar is gone from its corpus: run interlace verify {store}"):
        passed(BuiltCorpus(store, cache=Cache(folder=tmp_path / "cache")))


def test_a_cache_on_a_full_disk_stops_the_reader_and_says_where_to_place_it(store: Path, tmp_path: Path) -> None:
    opened = BuiltCorpus(store, cache=Cache(folder=tmp_path / "cache"))
    assert len(opened.table) == 12  # is brought before the disk is full
    for shard in opened.manifest["shards"]:
        (tmp_path / "cache" / f".{shard['sha256']}.{shard['size']}").symlink_to("/dev/full")  # the kernel's own ENOSPC
    with pytest.raises(OSError, match=r"No space left on device .*XDG_CACHE_HOME places them elsewhere"):
        passed(opened)


def test_a_cache_that_cannot_be_a_folder_stops_the_reader_and_says_where_to_place_it(
    store: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"Not a directory .*XDG_CACHE_HOME places them elsewhere"):
        passed(BuiltCorpus(store, cache=Cache(folder=tmp_path / "file/cache")))
