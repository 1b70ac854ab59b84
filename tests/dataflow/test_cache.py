"""The cache of a store's shards: bounded, shared by processes and threads, and never wrong about a byte."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dataflow import cache, folders, stores
from dataflow.cache import Cache, Part
from dataflow.stores import StoreError

Put = Callable[[str, bytes], Part]


@pytest.fixture
def put() -> Put:
    """Puts an object into a store of this process; returns it as a part."""
    store = folders.folder(f"memory://{secrets.token_hex(6)}/corpus")

    def made(name: str, data: bytes) -> Part:
        stores.write(store / name, data)
        return Part(path=store / name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))

    return made


def held(kept: Cache) -> dict[str, int]:
    """What lies in a cache, by name, less the lock that makes room."""
    return {path.name: path.stat().st_size for path in kept.folder.iterdir() if path.name != ".room"}


def test_a_part_is_brought_once_and_read_from_disk_afterwards(tmp_path: Path, put: Put) -> None:
    kept, part = Cache(folder=tmp_path / "new/cache", limit=100), put("00000.tar", b"some bytes")
    with kept.opened(part) as stream:
        assert stream.read() == b"some bytes"
    stores.remove([part.path])
    with kept.opened(part) as stream:
        assert stream.read() == b"some bytes"
    assert held(kept) == {part.sha256: 10}


def test_what_was_used_longest_ago_goes_and_a_reader_keeps_what_it_has_open(tmp_path: Path, put: Put) -> None:
    kept = Cache(folder=tmp_path, limit=100)
    one, two, three = (put(name, name.encode() * 40) for name in "abc")
    kept.bring(one)
    kept.bring(two)
    for number, part in enumerate((one, two)):
        os.utime(tmp_path / part.sha256, ns=(number, number))
    with kept.opened(one) as stream:  # used now: two is older
        kept.bring(three)
        assert held(kept) == {one.sha256: 40, three.sha256: 40}
        os.utime(tmp_path / one.sha256, ns=(1, 1))
        kept.bring(two)
        assert held(kept) == {two.sha256: 40, three.sha256: 40}
        assert stream.read() == b"a" * 40


def test_other_bytes_than_were_promised_are_an_error_that_names_the_part_and_leave_nothing(
    tmp_path: Path, put: Put
) -> None:
    kept, part = Cache(folder=tmp_path), put("00003.tar", b"what was built")
    stores.write(part.path, b"what was Built")
    with pytest.raises(StoreError, match=rf"{part.path} is not the bytes that were built .*: run interlace verify"):
        kept.bring(part)
    stores.remove([part.path])
    with pytest.raises(StoreError, match=rf"{part.path} is gone from its corpus: run interlace verify"):
        kept.bring(part)
    with pytest.raises(StoreError, match="is gone from its corpus"):
        kept.bring(Part(path=part.path, sha256=part.sha256))
    assert held(kept) == {}


def test_a_part_that_a_crash_cut_short_is_brought_again(tmp_path: Path, put: Put) -> None:
    kept, part = Cache(folder=tmp_path), put("00000.tar", b"some bytes")
    (tmp_path / part.sha256).write_bytes(b"some")
    with kept.opened(part) as stream:
        assert stream.read() == b"some bytes"


def test_a_manifest_that_lies_about_a_part_is_an_error_and_writes_nothing_elsewhere(tmp_path: Path, put: Put) -> None:
    kept, part = Cache(folder=tmp_path), put("00000.tar", b"some bytes")
    with pytest.raises(StoreError, match="is not the bytes that were built"):
        kept.bring(replace(part, size=9))
    with pytest.raises(StoreError, match=r"'\.\./elsewhere' is no sha256: its manifest is damaged"):
        replace(part, sha256="../elsewhere")


def test_a_part_larger_than_all_of_the_cache_is_an_error_with_a_cure(tmp_path: Path, put: Put) -> None:
    with pytest.raises(OSError, match=r"is 10 bytes, this cache of shards holds 9: give it a larger limit"):
        Cache(folder=tmp_path, limit=9).bring(put("00000.tar", b"some bytes"))
    with pytest.raises(ValueError, match="limit=0: bytes that a cache of shards may hold"):
        Cache(limit=0)


def test_a_full_disk_names_the_cache_and_says_how_to_place_it_elsewhere(tmp_path: Path, put: Put) -> None:
    part = put("00000.tar", b"some bytes")
    (tmp_path / f".{part.sha256}.10").symlink_to("/dev/full")  # the kernel's own ENOSPC
    with pytest.raises(OSError, match=r"No space left on device .*XDG_CACHE_HOME places them elsewhere") as told:
        Cache(folder=tmp_path).bring(part)
    assert str(told.value.filename).startswith(str(tmp_path))
    assert held(Cache(folder=tmp_path)) == {}


def test_what_a_killed_process_was_bringing_makes_no_room_scarce(tmp_path: Path, put: Put) -> None:
    (tmp_path / f".{'0' * 64}.90").write_bytes(b"half of it")
    kept, part = Cache(folder=tmp_path, limit=20), put("00000.tar", b"some bytes")
    kept.bring(part)
    assert held(kept) == {part.sha256: 10}


def test_threads_that_want_the_same_part_at_once_bring_it_once(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, part = Cache(folder=tmp_path), put("00000.tar", b"some bytes")
    brought, bring, wanted = [], folders.get, threading.Barrier(4)

    def counted(path: Path, to: Path) -> None:
        brought.append(path)
        bring(path, to)

    def ask() -> None:
        wanted.wait()
        kept.bring(part)

    monkeypatch.setattr(cache.folders, "get", counted)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert brought == [part.path]
    assert held(kept) == {part.sha256: 10}


RACE = """
import hashlib, sys
from pathlib import Path
from dataflow import folders, stores
from dataflow.cache import Cache, Part

kept = Cache(folder=Path(sys.argv[1]), limit=100)
store = folders.folder("memory://race")
parts = []
for number in range(12):
    data = bytes([number]) * 30
    stores.write(store / str(number), data)
    parts.append(Part(path=store / str(number), sha256=hashlib.sha256(data).hexdigest(), size=30))
for turn in range(10):
    for number in range(turn, turn + 12):
        with kept.opened(parts[number % 12]) as stream:
            assert stream.read() == bytes([number % 12]) * 30
"""


def test_processes_that_evict_each_other_s_parts_read_all_of_them_and_keep_to_the_limit(tmp_path: Path) -> None:
    house = Path(__file__).resolve().parents[2]
    racers = [subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path)], cwd=house) for _ in range(3)]
    assert [racer.wait(60) for racer in racers] == [0, 0, 0]
    assert sum(held(Cache(folder=tmp_path)).values()) <= 100


def test_the_cache_lies_where_the_user_s_caches_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache().folder == tmp_path / "interlace/shards"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # the specification says to ignore it
    assert Cache().folder == Path.home() / ".cache/interlace/shards"
