"""Shards: the bytes are webdataset's, the offsets are the tar's, and any reader of WebDataset opens them."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import webdataset as wds
from upstream import PHOTOS, jpeg
from webdataset.writer import TarWriter

from dataflow import shards
from dataflow.record import Image, Lineage, Media, Message, Record, Text, key
from dataflow.shards import Shard


def record(number: int, *pictures: bytes, text: str = "a cat", source: str = "cats") -> Record:
    """A record with these bytes as its pictures; a shard does not look into them."""
    return Record(
        key=key(source, 0, number),
        source=source,
        task="text_to_image",
        messages=(
            Message("user", (Text(text),)),
            Message("assistant", (Text("here"), *(Image(index) for index in range(len(pictures))))),
        ),
        media=tuple(
            Media(data=data, extension="jpg" if index % 2 == 0 else "png", width=64, height=48)
            for index, data in enumerate(pictures)
        ),
        lineage=Lineage(file="0/0.tar", row=number),
    )


def webdataset_bytes(records: list[Record]) -> bytes:
    """The same samples through webdataset's own writer."""
    buffer = io.BytesIO()
    with TarWriter(buffer, mtime=0, encoder=False) as writer:
        for each in records:
            writer.write({"__key__": each.key, **shards.members(each)})
    return buffer.getvalue()


def written(records: list[Record], folder: Path) -> tuple[Shard, bytes]:
    path = folder / "00000.tar"
    return shards.write(iter(records), path, 0), path.read_bytes()


def json_of(size: int) -> Record:
    """A record whose JSON member has this many bytes."""
    bare = len(shards.members(record(0, text=""))["json"])
    return record(0, text="x" * (size - bare))


MANY = [record(number, *[jpeg(16 + number, 16)] * (number % 13)) for number in range(40)]
EDGES = [511, 512, 513, 1023, 1024, 1025]
# with its two headers, a record of this JSON size ends where a tar's 10,240-byte record does, end mark included or not
RECORD_EDGES = [10_240 - 512, 10_240 - 512 - 1024, 10_240 - 512 - 1024 + 1, 10_240 - 512 + 1, 2 * 10_240 - 512 - 1024]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(0)],
        [record(0, jpeg())],
        MANY,
        [record(0, b"", b"x")],
        [record(0, (PHOTOS / "retina.jpg").read_bytes())],
    ],
    ids=["none", "text", "picture", "many", "empty picture", "large"],
)
def test_a_shard_is_byte_for_byte_what_webdataset_writes(records: list[Record], tmp_path: Path) -> None:
    shard, data = written(records, tmp_path)
    assert data == webdataset_bytes(records)
    assert (shard.size, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("size", EDGES + RECORD_EDGES)
def test_sizes_at_the_edges_of_blocks_and_tar_records_are_padded_as_webdataset_pads(size: int, tmp_path: Path) -> None:
    assert len(shards.members(json_of(size))["json"]) == size
    assert written([json_of(size)], tmp_path)[1] == webdataset_bytes([json_of(size)])


def test_more_than_one_piece_of_the_writing_thread_keeps_its_order(tmp_path: Path) -> None:
    records = [record(number, bytes([number]) * 300_001) for number in range(17)]
    shard, data = written(records, tmp_path)
    assert data == webdataset_bytes(records)
    assert shard.sha256 == hashlib.sha256(data).hexdigest()


def test_writing_holds_a_few_records_in_memory_however_many_there_are(tmp_path: Path) -> None:
    tracemalloc.start()
    shards.write((record(number, bytes([number]) * (1 << 20)) for number in range(100)), tmp_path / "a.tar", 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_more_than_ten_pictures_are_sorted_as_webdataset_sorts_them(tmp_path: Path) -> None:
    many = record(0, *[b"%d" % number for number in range(12)])
    _, data = written([many], tmp_path)
    assert data == webdataset_bytes([many])
    assert shards.read(data[: shards.write([many], tmp_path / "b.tar", 0).entries[0].size], many.key) == many


def test_webdataset_s_own_reader_opens_our_shards(tmp_path: Path) -> None:
    written(MANY, tmp_path)
    samples = list(wds.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False))  # type: ignore[attr-defined]
    found = [
        {name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")}
        for sample in samples
    ]
    assert found == [{"__key__": each.key, **shards.members(each)} for each in MANY]


def test_the_idx_holds_each_record_s_offset_and_the_end_mark_s(tmp_path: Path) -> None:
    written(MANY, tmp_path)
    with tarfile.open(tmp_path / "00000.tar") as archive:
        first: dict[str, int] = {}
        for member in archive:
            first.setdefault(member.name.split(".")[0], member.offset)
        end = archive.offset  # type: ignore[attr-defined]
    idx = (tmp_path / "00000.tar.idx").read_bytes()
    assert list(struct.unpack(f"<{len(idx) // 8}Q", idx)) == [*first.values(), end]
    assert list(first) == [each.key for each in MANY]


def test_the_idx_of_an_empty_shard_holds_the_end_mark_alone(tmp_path: Path) -> None:
    shard, data = written([], tmp_path)
    assert (tmp_path / "00000.tar.idx").read_bytes() == bytes(8)
    assert data == bytes(10_240)
    assert shard.entries == ()


def test_index_rows_cut_exact_records(tmp_path: Path) -> None:
    shard, data = written(MANY, tmp_path)
    for entry, each in zip(shard.entries, MANY, strict=True):
        cut = data[entry.offset : entry.offset + entry.size]
        assert shards.read(cut, entry.key) == each
        assert entry.sha256 == hashlib.sha256(cut).hexdigest()
        assert (entry.key, entry.task, entry.shard) == (each.key, each.task, 0)
        assert entry.pictures == len(entry.widths) == len(entry.heights) == len(each.media)
        assert entry.bytes == sum(len(media.data) for media in each.media)
        assert entry.text_length == len("a cat") + len("here")
    assert [entry.offset for entry in shard.entries[1:]] == [entry.offset + entry.size for entry in shard.entries[:-1]]
    idx = (tmp_path / "00000.tar.idx").read_bytes()
    assert shard.idx_sha256 == hashlib.sha256(idx).hexdigest()


def test_bytes_that_are_not_the_record_of_the_index_are_refused(tmp_path: Path) -> None:
    shard, data = written([record(0, jpeg()), record(1, jpeg())], tmp_path)
    first, second = (data[entry.offset : entry.offset + entry.size] for entry in shard.entries)
    for wrong, says in (
        (second, "found cats_000000001.0.jpg where the index places cats_000000000"),
        (first[512:], "no header of ours at byte 0"),
        (first[:600], r"cats_000000000\.0\.jpg is cut off"),
        (first[:1024] + bytes(512), "is cut off|no header of ours"),
        (b"", "no json member"),
        (first + bytes(512), "no header of ours"),
        (bytes(len(first)), "no header of ours at byte 0"),
        (b"\xff" * len(first), "no header of ours at byte 0"),
    ):
        with pytest.raises(ValueError, match=says):
            shards.read(wrong, "cats_000000000")


def test_a_flipped_bit_in_any_header_byte_is_noticed(tmp_path: Path) -> None:
    shard, data = written([record(0, b"x")], tmp_path)
    assert shard.entries[0].size < len(data)
    for place in range(512):
        damaged = bytearray(data[: shard.entries[0].size])
        damaged[place] ^= 1
        with pytest.raises(ValueError, match="no header of ours"):
            shards.read(bytes(damaged), "cats_000000000")


def test_a_key_that_does_not_fit_a_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a shard holds names up to 100 and files under 8 GiB"):
        shards.write([record(0, source="c" * 90)], tmp_path / "a.tar", 0)


def test_a_generator_that_fails_fails_the_shard(tmp_path: Path) -> None:
    def records():
        yield from MANY[:3]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        shards.write(records(), tmp_path / "a.tar", 0)
    assert not (tmp_path / "a.tar.idx").exists()


@pytest.mark.parametrize("pictures", [0, 1, 4, 12])
def test_a_full_disk_fails_the_shard(pictures: int) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        shards.write([record(number, bytes(1 << 20)) for number in range(pictures)], Path("/dev/full"), 0)
    assert not Path("/dev/full.idx").exists()


def test_a_shard_s_number_is_its_name() -> None:
    assert [shards.name(number) for number in (0, 17, 99_999)] == ["00000.tar", "00017.tar", "99999.tar"]
