"""Input files as numbered rows: every row once, whatever the split size, and a bad row is a row."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import random
import re
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from upstream import edits, jpeg, jsonl, tar

from dataflow import readers
from dataflow.media import Corrupt
from dataflow.readers import Row, rows, share, splits, text

SIZES = (1, 2, 3, 7, 1000)


def read(folder: Path, file: str, size: int) -> list[Row]:
    return [row for split in splits(folder, file, size) for row in rows(folder, split)[1]]


def problems(found: list[Row]) -> dict[int, str]:
    return {row.number: row.problem for row in found if row.problem is not None}


def same_at_every_size(folder: Path, file: str) -> list[Row]:
    """The rows, once it is sure that the size of splits does not change them."""
    whole = read(folder, file, 1000)
    for size in SIZES:
        plan = list(splits(folder, file, size))
        assert all(split.rows <= size for split in plan)
        assert [split.first for split in plan] == sorted({split.first for split in plan})
        assert read(folder, file, size) == whole
    return whole


# --- JSON lines

BAD_LINES = (
    b'{"row": 0}',
    b'{"row": 1',
    b"\xff\xfe{}",
    b"[1, 2]",
    b"",
    b'{"row": 5}\r',
    b" \t\r",
    b'"text"',
    b"{'row': 8}",
    b"\xef\xbb\xbf" + b'{"row": 9}',
    b"[" * 100_000,
    b'{"row": ' + b"9" * 5000 + b"}",
    b'{"text": "\xed\xa0\xbd"}',
    '{"row": 13}'.encode("utf-16-le"),
    b"null",
    b'{"row": 15} {"row": 16}',
    b'{"row": NaN}',
)


def test_every_line_is_a_row_and_a_bad_one_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(BAD_LINES) + b"\n")
    found = same_at_every_size(tmp_path, "a.jsonl")
    assert [row.number for row in found] == [n for n in range(len(BAD_LINES)) if n not in (4, 6)]  # 4 and 6 are blank
    assert [row.value for row in found if row.number in (0, 5, 9)] == [{"row": 0}, {"row": 5}, {"row": 9}]
    says = problems(found)
    assert says[1].startswith("line is not JSON: Expecting ',' delimiter (character 9)")
    assert says[2] == "line is not UTF-8: byte 0"
    assert says[3] == "line holds list, a row is an object"
    assert says[7] == "line holds str, a row is an object"
    assert says[8].startswith("line is not JSON: Expecting property name")
    assert says[10] == "line is not JSON we read: nested too deeply"
    assert says[11] == "line is not JSON we read: a number of over 4,300 digits"
    assert says[12] == "line is not UTF-8: byte 10"
    assert says[13].startswith("line is not JSON")
    assert says[14] == "line holds NoneType, a row is an object"
    assert says[15].startswith("line is not JSON: Extra data")
    assert set(says) == {1, 2, 3, 7, 8, 10, 11, 12, 13, 14, 15}


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n\n"])
def test_the_last_line_counts_with_or_without_its_end(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 0}\n{"n": 1}\n{"n": 2}' + end)
    assert [row.value for row in same_at_every_size(tmp_path, "a.jsonl")] == [{"n": 0}, {"n": 1}, {"n": 2}]
    for size in SIZES:
        assert sum(split.rows for split in splits(tmp_path, "a.jsonl", size)) == max(3, 2 + end.count(b"\n"))


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n\n"])
def test_a_file_without_rows_gives_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    assert same_at_every_size(tmp_path, "a.jsonl") == []


def test_lines_longer_than_a_read_are_found(tmp_path: Path) -> None:
    long = [{"n": n, "text": "x" * length} for n, length in enumerate((10, 3 << 20, (1 << 20) - 24, 1, 1 << 20))]
    (tmp_path / "a.jsonl").write_bytes(jsonl(*long))
    assert [row.value for row in same_at_every_size(tmp_path, "a.jsonl")] == long


def test_a_changed_line_changes_the_digest_of_its_split_alone(tmp_path: Path) -> None:
    lines = [{"n": n} for n in range(10)]
    (tmp_path / "a.jsonl").write_bytes(jsonl(*lines))
    before = [rows(tmp_path, split)[0] for split in splits(tmp_path, "a.jsonl", 3)]
    lines[4] = {"n": 9}
    (tmp_path / "a.jsonl").write_bytes(jsonl(*lines))
    after = [rows(tmp_path, split)[0] for split in splits(tmp_path, "a.jsonl", 3)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True, True]


def test_a_file_cut_after_it_was_planned_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl({"n": 0}, {"n": 1}))
    (plan,) = splits(tmp_path, "a.jsonl", 10)
    (tmp_path / "a.jsonl").write_bytes(jsonl({"n": 0}))
    with pytest.raises(ValueError, match="shorter than when its splits were planned: build again"):
        rows(tmp_path, plan)


# --- parquet

CAT = jpeg()


@pytest.mark.parametrize("row_group", [1, 10, 80, 1000])  # rows are decoded 64 at a time
def test_parquet_rows_come_once_across_row_groups_and_splits(tmp_path: Path, row_group: int) -> None:
    table = pa.table({"n": list(range(203)), "cell": [{"bytes": b"%d" % n} for n in range(203)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=row_group)
    found = same_at_every_size(tmp_path, "a.parquet")
    assert [(row.number, row.value["n"], row.value["cell"]["bytes"]) for row in found] == [
        (n, n, b"%d" % n) for n in range(203)
    ]


def test_null_cells_of_parquet_are_none(tmp_path: Path) -> None:
    edits(tmp_path / "a.parquet", [(CAT, "make it snow", CAT), (None, None, None), (CAT, None, CAT)], row_group_size=2)
    found = same_at_every_size(tmp_path, "a.parquet")
    assert [(row.value["original_image"], row.value["edit_prompt"]) for row in found[1:]] == [
        (None, None),
        ({"bytes": CAT, "path": None}, None),
    ]


@pytest.mark.parametrize("data", [b"", b"no parquet at all, by far", b"PAR1" + bytes(100) + b"\xff\xff\xff\xffPAR1"])
def test_a_file_that_is_no_parquet_is_one_row_that_says_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    (row,) = same_at_every_size(tmp_path, "a.parquet")
    assert row.problem is not None
    assert row.problem.startswith("file is not parquet: ")
    assert str(tmp_path) not in row.problem  # else the ledger's bytes would depend on where the data lies


def test_a_cut_parquet_file_is_one_row_that_says_so(tmp_path: Path) -> None:
    edits(tmp_path / "a.parquet", [(CAT, "x", CAT)] * 5)
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    (row,) = read(tmp_path, "a.parquet", 2)
    assert row.problem is not None


def test_a_broken_row_group_loses_its_own_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = [f"{n} of some rows" * 20 for n in range(30)]
    pq.write_table(pa.table({"text": values}), path, row_group_size=10, compression="zstd", use_dictionary=False)
    column = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    begin = column.data_page_offset
    data[begin + 30 : begin + column.total_compressed_size] = bytes(column.total_compressed_size - 30)
    path.write_bytes(bytes(data))
    found = same_at_every_size(tmp_path, "a.parquet")
    assert [row.number for row in found] == list(range(30))
    assert set(problems(found)) == set(range(10, 20))
    assert all(problem.startswith("parquet does not read: ") for problem in problems(found).values())
    assert [row.value["text"] for row in found if row.problem is None] == values[:10] + values[20:]


def test_a_cell_that_is_not_utf8_loses_its_own_row_only(tmp_path: Path) -> None:
    data = [b"fine", b"caf\xe9", b"fine too"]
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 4, 8, 16)))
    column = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"".join(data))])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    found = same_at_every_size(tmp_path, "a.parquet")
    assert [row.value and row.value["text"] for row in found] == ["fine", None, "fine too"]
    assert problems(found)[1].startswith("row does not convert: UnicodeDecodeError: ")


def test_the_digest_of_parquet_rows_changes_with_them_and_not_with_the_process(tmp_path: Path) -> None:
    def digests(path: Path) -> list[str]:
        return [rows(tmp_path, split)[0] for split in splits(tmp_path, path.name, 10)]

    table = {"n": list(range(40)), "text": [f"row {n}" for n in range(40)]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=10)
    table["text"][17] = "another"
    pq.write_table(pa.table(table), tmp_path / "b.parquet", row_group_size=10)
    a, b = digests(tmp_path / "a.parquet"), digests(tmp_path / "b.parquet")
    assert [old == new for old, new in zip(a, b, strict=True)] == [True, False, True, True]
    pq.write_table(pa.table({"m": table["n"], "text": table["text"]}), tmp_path / "c.parquet", row_group_size=10)
    assert set(digests(tmp_path / "c.parquet")).isdisjoint(b)  # a renamed column is another row
    code = (
        "import sys, pathlib; from dataflow.readers import rows, splits; folder = pathlib.Path(sys.argv[1]);"
        "print(*[rows(folder, split)[0] for split in splits(folder, 'a.parquet', 10)])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, check=True)
    assert done.stdout.decode().split() == a


# --- tars of samples

PAIRS = [(f"{n:03d}.{extension}", f"{n} {extension}".encode()) for n in range(9) for extension in ("jpeg", "json")]


def test_tar_samples_come_once_at_every_split_size(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(*PAIRS))
    found = same_at_every_size(tmp_path, "a.tar")
    assert [row.value for row in found] == [
        {"__key__": f"{n:03d}", "jpeg": f"{n} jpeg".encode(), "json": f"{n} json".encode()} for n in range(9)
    ]
    assert problems(found) == {}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_group_as_webdataset_groups_them(tmp_path: Path, format: int) -> None:
    names = [
        "a.b/v1.0_1.jpg",
        "a.b/v1.json",
        "dir/ü 猫.jpg",
        "dir/ü 猫.cls",
        "x" * 80 + "/" + "y" * 90 + ".jpg",
        "z.JPG",
    ]
    (tmp_path / "a.tar").write_bytes(tar(*[(name, name.encode()) for name in names], format=format))
    found = same_at_every_size(tmp_path, "a.tar")
    theirs = list(wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))  # type: ignore[attr-defined]
    assert [row.value for row in found] == [
        {key: value for key, value in sample.items() if key not in ("__url__", "__local_path__")} for sample in theirs
    ]


def test_a_tar_cut_in_a_body_keeps_what_came_before(tmp_path: Path) -> None:
    data = tar(("a.jpeg", b"A" * 600), ("a.json", b"{}"), ("b.jpeg", b"B" * 600), ("b.json", b"{}"))
    body_of_b = data.index(b"B" * 100)
    (tmp_path / "a.tar").write_bytes(data[: body_of_b + 300])
    found = same_at_every_size(tmp_path, "a.tar")
    assert found[0].value == {"__key__": "a", "jpeg": b"A" * 600, "json": b"{}"}
    assert problems(found) == {
        1: "archive ends inside member 'b.jpeg'",
        2: "archive is cut off or broken: unexpected end of data",
    }


def test_a_tar_cut_in_a_header_keeps_what_came_before(tmp_path: Path) -> None:
    data = tar(("a.jpeg", b"A" * 600), ("b.jpeg", b"B" * 600))
    (tmp_path / "a.tar").write_bytes(data[: data.index(b"b.jpeg") + 100])
    found = same_at_every_size(tmp_path, "a.tar")
    assert found[0].value["jpeg"] == b"A" * 600
    assert problems(found) == {
        1: "archive has no end mark at byte 1536: it is cut off or broken, rows after it are missing"
    }


def test_a_tar_without_its_end_mark_keeps_all_samples_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(*PAIRS, end=False))
    found = same_at_every_size(tmp_path, "a.tar")
    assert len(found) == 10
    assert list(problems(found)) == [9]


def test_a_tar_cut_anywhere_loses_no_row_before_the_cut_and_says_that_it_is_cut(tmp_path: Path) -> None:
    data = tar(*PAIRS)
    end_mark = len(tar(*PAIRS, end=False))
    for cut in range(1, end_mark + 512, 217):
        (tmp_path / "a.tar").write_bytes(data[:cut])
        found = read(tmp_path, "a.tar", 4)
        whole = cut // 2048  # a sample is two members of two blocks
        assert [row.value["__key__"] for row in found[:whole]] == [f"{n:03d}" for n in range(whole)]
        assert problems(found), cut
        assert [row.number for row in found] == list(range(len(found)))


def test_a_damaged_header_in_the_middle_is_named(tmp_path: Path) -> None:
    data = bytearray(tar(*PAIRS))
    data[4 * 2048] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(bytes(data))
    found = same_at_every_size(tmp_path, "a.tar")
    assert len(found) == 5
    assert "rows after it are missing" in problems(found)[4]


@pytest.mark.parametrize("size", [-1, -512, -(1 << 40), 1 << 40, (1 << 62) + 5, 1 << 80])
def test_a_header_that_lies_about_its_size_ends_the_archive(tmp_path: Path, size: int) -> None:
    header = bytearray(tarfile.TarInfo("b.jpeg").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (size % (1 << 88) | (0xFF if size < 0 else 0x80) << 88).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(tar(("a.jpeg", b"A"), end=False) + bytes(header) + tar(("c.jpeg", b"C")))
    found = read(tmp_path, "a.tar", 10)
    assert found[0].value == {"__key__": "a", "jpeg": b"A"}
    assert len(problems(found)) >= 1
    assert len(found) <= 3


@pytest.mark.parametrize(
    "data", [b"", b"no tar" * 200, b"\x89PNG\r\n", gzip.compress(tar(("a.jpeg", b"A"))), b"\xff" * 2048]
)
def test_a_file_that_is_no_tar_is_one_row_that_says_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    (row,) = same_at_every_size(tmp_path, "a.tar")
    assert row.problem is not None
    assert row.problem.startswith("archive is cut off or broken: ")


def test_an_empty_tar_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar())
    assert read(tmp_path, "a.tar", 10) == []


def test_links_and_folders_and_nameless_members_are_rows_with_a_problem(tmp_path: Path) -> None:
    link, folder, hard = tarfile.TarInfo("b.jpeg"), tarfile.TarInfo("c"), tarfile.TarInfo("d.jpeg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    folder.type = tarfile.DIRTYPE
    hard.type, hard.linkname = tarfile.LNKTYPE, "a.jpeg"
    members = (("a.jpeg", b"A"), link, ("b.json", b"{}"), folder, hard, ("README", b"?"), ("e.jpeg", b"E"))
    (tmp_path / "a.tar").write_bytes(tar(*members))
    found = same_at_every_size(tmp_path, "a.tar")
    assert problems(found) == {
        1: "member 'b.jpeg' is a link or folder, not a plain file",
        2: "member 'c' is a link or folder, not a plain file",
        3: "member 'd.jpeg' is a link or folder, not a plain file",
        4: "member 'README' has no extension",
    }
    assert [found[place].value["jpeg"] for place in (0, 5)] == [b"A", b"E"]


def test_two_members_of_one_name_are_a_problem_of_their_sample(tmp_path: Path) -> None:
    members = [
        ("a.jpeg", b"1"),
        ("a.jpeg", b"2"),
        ("b.jpeg", b"3"),
        ("b.JPEG", b"4"),
        ("c.__key__", b"5"),
        ("d.jpeg", b""),
    ]
    (tmp_path / "a.tar").write_bytes(tar(*members))
    found = same_at_every_size(tmp_path, "a.tar")
    assert problems(found) == {
        0: "two members 'a.jpeg' in one sample",
        1: "two members 'b.JPEG' in one sample",
        2: "two members 'c.__key__' in one sample",
    }


def test_a_key_that_comes_again_later_is_another_sample(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(("a.jpeg", b"1"), ("b.jpeg", b"2"), ("a.jpeg", b"3")))
    assert [row.value["jpeg"] for row in same_at_every_size(tmp_path, "a.tar")] == [b"1", b"2", b"3"]


def test_a_tar_replaced_after_it_was_planned_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(*PAIRS))
    (plan,) = splits(tmp_path, "a.tar", 10)
    (tmp_path / "a.tar").write_bytes(tar(*PAIRS[:4]) + bytes(20_000))
    with pytest.raises(ValueError, match="is not what it was when its splits were planned: build again"):
        list(rows(tmp_path, plan)[1])


def test_a_member_is_never_read_beyond_its_split(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(*PAIRS))
    second = list(splits(tmp_path, "a.tar", 4))[1]
    assert [row.value["__key__"] for row in rows(tmp_path, second)[1]] == ["004", "005", "006", "007"]


def test_a_footer_that_would_end_the_process_is_a_row_that_says_so(tmp_path: Path) -> None:
    table = pa.table({"pictures": [[b"a", b"b"], [b"c"], []], "text": ["x", None, "y"]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    whole = path.read_bytes()
    footer = range(len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), len(whole) - 8)
    found = False
    for place in footer:
        path.write_bytes(whole[:place] + bytes([(whole[place] + 0x20) % 256]) + whole[place + 1 :])
        plan = list(splits(tmp_path, "a.parquet", 10))
        if plan[0].problem == "file is not parquet that can be read: its footer is damaged":
            assert problems(read(tmp_path, "a.parquet", 10)) == {0: plan[0].problem}
            found = True
            break
    assert found


# --- JSON documents

CHAT = {"id": 7, "conversations": [{"from": "human", "value": 'a "quoted" [bracket], {brace} \\ and \\"'}]}


@pytest.mark.parametrize(
    ("document", "values"),
    [
        ([CHAT, {"a": []}, {}], [CHAT, {"a": []}, {}]),
        ([], []),
        ({}, []),
        ([["0000000", ["123", "456"]], "text, text", None, 1.5], None),
        ({"train": [CHAT, {"a": 1}], "empty": [], "val": [{"b": "],["}]}, [CHAT, {"a": 1}, {"b": "],["}]),
        ({"x-1": {"text": ["a", "b"]}, "_y": {"text": []}}, None),
        ({"version": "1.0", "info": {"year": 1}, "data": [CHAT, CHAT], "count": 2}, None),
    ],
)
@pytest.mark.parametrize("indent", [None, 1, 70])
def test_a_document_s_items_are_its_rows(tmp_path: Path, document: Any, values: Any, indent: int | None) -> None:
    if values is None and isinstance(document, list):
        values = [{"value": item} for item in document]
    elif values is None:
        values = []
        for name, held in document.items():
            if isinstance(held, list):
                values += held
            else:
                values.append({**held, "__key__": name} if isinstance(held, dict) else {"__key__": name, "value": held})
    (tmp_path / "a.json").write_text("\ufeff \n" + json.dumps(document, indent=indent) + "\n")
    assert same_at_every_size(tmp_path, "a.json") == [Row(number, value) for number, value in enumerate(values)]


def test_one_bad_item_harms_no_other(tmp_path: Path) -> None:
    items = [b'{"n": 0}', b'{"n": NaN}', b'{"n": "\xff"}', b"{'n': 3}", b'{"n": "\\ud83d"}', b"1 2", b'{"n": 6}']
    (tmp_path / "a.json").write_bytes(b"[" + b",\n".join(items) + b"]")
    found = same_at_every_size(tmp_path, "a.json")
    assert problems(found) == {
        2: "item is not UTF-8: byte 7",
        3: "item is not JSON: Expecting property name enclosed in double quotes (character 1)",
        5: "item is not JSON: Extra data (character 2)",
    }
    assert found[6].value == {"n": 6}


@pytest.mark.parametrize(
    ("data", "whole", "says"),
    [
        (b"", 0, "document is 0 bytes"),
        (b"hello", 0, "document is neither a list nor an object"),
        (b"<html>[1, 2]</html>", 0, "document is neither a list nor an object"),
        (b'[{"a": 1}, {"a": 2}', 1, "document is cut off or broken"),
        (b'[{"a": 1}, {"a": "2', 1, "document is cut off or broken"),
        (b'{"a": [{"b": 1}, {"c": 2}', 1, "document is cut off or broken"),
        (
            b'[{"a": 1}] [2]',
            1,
            "document ends at byte 10 and b'[2]' follows: it is broken, two files in one, or JSON lines",
        ),
        (
            b'[{"a": 1}] x',
            1,
            "document ends at byte 10 and b'x' follows: it is broken, two files in one, or JSON lines",
        ),
    ],
)
def test_a_broken_document_gives_what_is_whole_and_then_says_so(
    tmp_path: Path, data: bytes, whole: int, says: str
) -> None:
    (tmp_path / "a.json").write_bytes(data)
    found = same_at_every_size(tmp_path, "a.json")
    assert [row.number for row in found] == list(range(whole + 1))
    assert says in (found[-1].problem or "")
    assert not any(row.problem for row in found[:-1])


def test_json_lines_are_lines_whatever_the_file_is_called(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\n{"a"\n{"a": 4}')
    found = same_at_every_size(tmp_path, "a.json")
    assert [row.value for row in found if row.problem is None] == [{"a": 1}, {"a": 2}, {"a": 4}]
    assert list(problems(found)) == [2]


def test_a_document_is_planned_without_being_held(tmp_path: Path) -> None:
    item = json.dumps({"text": "x" * 1000}).encode()
    (tmp_path / "a.json").write_bytes(b"[" + b", ".join([item] * 20_000) + b"]")
    tracemalloc.start()
    assert sum(split.rows for split in splits(tmp_path, "a.json", 1000)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


# --- tables and text

VIDEOS = (
    b"\xef\xbb\xbfvideo_id,category_1,rank\r\n"
    b'nVbIUDjzWY4,"Cars & Other, Vehicles",27\r\n'
    b"-7up_x,NaN,007\r\n"
    b"\r\n"
    b'short,"no end,1\r\n'
    b"one,two\r\n"
    b"\xff,x,1\r\n"
    b"last,Food,1"
)


def test_a_table_s_lines_are_rows_of_text_under_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(VIDEOS)
    found = same_at_every_size(tmp_path, "a.csv")
    assert found[0] == Row(1, {"video_id": "nVbIUDjzWY4", "category_1": "Cars & Other, Vehicles", "rank": "27"})
    assert found[1] == Row(2, {"video_id": "-7up_x", "category_1": "NaN", "rank": "007"})
    assert [row.number for row in found] == [1, 2, 4, 5, 6, 7]
    assert problems(found) == {
        4: "line is no row of a table: unexpected end of data",
        5: "line has 2 fields under a header of 3",
        6: "line is not UTF-8: byte 0",
    }


def test_a_table_of_tabs_and_one_with_a_column_twice(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"a\tb\n1,2\t3\n")
    assert read(tmp_path, "a.tsv", 5) == [Row(1, {"a": "1,2", "b": "3"})]
    (tmp_path / "b.csv").write_bytes(b"a,a\n1,2\n")
    assert problems(read(tmp_path, "b.csv", 5)) == {1: "header line has a column twice"}


def test_another_header_makes_other_rows(tmp_path: Path) -> None:
    digests = []
    for header in (b"a,b\n", b"b,a\n"):
        (tmp_path / "a.csv").write_bytes(header + b"1,2\n")
        (split,) = splits(tmp_path, "a.csv", 5)
        digests.append(rows(tmp_path, split)[0])
    assert digests[0] != digests[1]


def test_a_text_file_is_a_document_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("One.\r\n\n  Two 猫\n".encode() + b"\xff\nlast")
    found = same_at_every_size(tmp_path, "a.txt")
    assert [row.value for row in found if row.problem is None] == [
        {"text": "One."},
        {"text": "  Two 猫"},
        {"text": "last"},
    ]
    assert problems(found) == {3: "line is not UTF-8: byte 0"}


# --- all kinds


@pytest.mark.parametrize(
    ("file", "data"),
    [("a.jsonl", b'{"a": 1}\n' * 8), ("a.json", b"[" + b"{}," * 7 + b"{}]"), ("a.csv", b"a\n" + b"1\n" * 8)],
)
def test_what_the_beginning_tells_of_the_whole(tmp_path: Path, file: str, data: bytes) -> None:
    (tmp_path / file).write_bytes(data)
    found = [share(tmp_path, split) for split in splits(tmp_path, file, 4)]
    assert found[0] == pytest.approx(0.5, abs=0.06)
    assert found[1] == pytest.approx(1, abs=0.06)


def test_a_file_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.xls: cannot read \*\.xls; sources list \.jsonl, \.json, \.csv, "):
        splits(tmp_path, "a.xls", 10)


def test_splits_of_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows_per_split=0: a split holds at least one row"):
        splits(tmp_path, "a.jsonl", 0)


def test_a_missing_file_is_the_disk_s_failure_and_no_row(tmp_path: Path) -> None:
    for file in ("a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.tar", "a.zip"):
        with pytest.raises(FileNotFoundError):
            list(splits(tmp_path, file, 10))


@pytest.mark.parametrize(
    ("value", "spelled"),
    [(None, ""), (float("nan"), ""), ("", ""), (" a ", " a "), (7, "7"), (1.5, "1.5"), (True, "True")],
)
def test_a_field_as_text(value: Any, spelled: str) -> None:
    assert text(value) == spelled


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a", ("a",)])
def test_what_is_no_text_is_not_printed_into_training_data(value: Any) -> None:
    with pytest.raises(Corrupt, match=f"a field holds {type(value).__name__} where text belongs"):
        text(value)


def test_json_of_nested_values_comes_through(tmp_path: Path) -> None:
    row = {"a": [1, 2.5, None, True, {"b": "猫\u2028"}]}
    (tmp_path / "a.jsonl").write_bytes(json.dumps(row, ensure_ascii=False).encode())
    assert read(tmp_path, "a.jsonl", 1) == [Row(0, row)]


def test_reading_a_tar_split_holds_one_sample_at_a_time(tmp_path: Path) -> None:
    big = [(f"{n:03d}.jpeg", bytes([n]) * (1 << 20)) for n in range(32)]
    (tmp_path / "a.tar").write_bytes(tar(*big))
    (plan,) = splits(tmp_path, "a.tar", 100)
    _, found = rows(tmp_path, plan)
    tracemalloc.start()
    for row in found:
        assert len(row.value["jpeg"]) == 1 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("claimed", [0, 10, 39, 41, -1, 2**31, 2**62])
def test_a_footer_that_miscounts_its_rows_loses_none_unseen(tmp_path: Path, claimed: int) -> None:
    """The count is a zigzag varint in the footer: 40 is one byte, another count has as many as it takes."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"document {number}" for number in range(40)]}), path, row_group_size=20)
    whole = path.read_bytes()
    size = int.from_bytes(whole[-8:-4], "little")
    footer = whole[-8 - size : -8]
    zigzag, digits = (claimed << 1) ^ (claimed >> 63), b""
    while True:
        zigzag, low = zigzag >> 7, zigzag & 0x7F
        digits += bytes([low | (0x80 if zigzag else 0)])
        if not zigzag:
            break
    place = footer.index(b"\x16\x50")  # field of type i64, 40
    changed = footer[: place + 1] + digits + footer[place + 2 :]
    path.write_bytes(whole[: -8 - size] + changed + len(changed).to_bytes(4, "little") + b"PAR1")
    found = read(tmp_path, "a.parquet", 1000)
    assert list(problems(found)) == [0]
    assert share(tmp_path, next(splits(tmp_path, "a.parquet", 5))) == 1.0


# --- what attackers tried


def test_key_and_extension_are_webdataset_s_in_linear_time() -> None:
    rule = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
    for length in range(7):
        for letters in itertools.product("a./", repeat=length):
            name = "".join(letters)
            match = rule.match(name)
            assert readers._sample(name) == (match and (match[1], match[2])), name
    assert readers._sample("/" * 1_000_000) is None  # the expression would take hours


def header(kind: bytes, name: str, size: int) -> bytes:
    """A tar header that says what it likes of what follows."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "damage",
    [
        header(tarfile.GNUTYPE_LONGNAME, "././@LongLink", 1 << 50),
        header(tarfile.XHDTYPE, "x", 1 << 50),
        header(tarfile.GNUTYPE_LONGNAME, "././@LongLink", 512) * 2 * 3000,
    ],
)
def test_a_header_that_lies_costs_what_follows_it_and_no_more(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(tar(("a.jpeg", b"1"), end=False) + damage + bytes(1024))
    found = same_at_every_size(tmp_path, "a.tar")
    assert found[0].value == {"__key__": "a", "jpeg": b"1"}
    assert len(found) == 2
    assert "archive is cut off or broken" in (found[1].problem or "")


def test_a_sparse_header_that_goes_on_after_the_end_is_named(tmp_path: Path) -> None:
    sparse = bytearray(header(tarfile.GNUTYPE_SPARSE, "s.jpeg", 0))
    sparse[482] = 1  # isextended: another block follows, and there is none
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    (tmp_path / "a.tar").write_bytes(tar(("a.jpeg", b"1"), end=False) + bytes(sparse))
    found = same_at_every_size(tmp_path, "a.tar")
    assert found[0].value == {"__key__": "a", "jpeg": b"1"}
    assert "archive is cut off or broken" in (found[-1].problem or "")


def test_a_global_header_renames_no_member(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "evil.jpeg"}
    ) as archive:
        info = tarfile.TarInfo("b.jpeg")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"2"))
    (tmp_path / "a.tar").write_bytes(tar(("a.jpeg", b"1"), end=False) + buffer.getvalue())
    found = same_at_every_size(tmp_path, "a.tar")
    assert [row.value for row in found] == [{"__key__": "a", "jpeg": b"1"}, None]
    assert found[1].problem == "archive has a global header that renames its members: rows after it are not read"


def test_joined_tars_say_that_the_second_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(("a.jpeg", b"1")) + tar(("b.jpeg", b"2")))
    found = same_at_every_size(tmp_path, "a.tar")
    assert found[0].value == {"__key__": "a", "jpeg": b"1"}
    assert found[1].problem == "archive goes on after its end mark, as joined archives do: rows after it are not read"


def test_a_second_document_is_told_however_far_behind_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"a": 1}]' + b" " * 5000 + b'[{"a": 2}]')
    found = same_at_every_size(tmp_path, "a.json")
    assert "document ends at byte 10 and b'[{\"a\": 2}]' follows" in (found[-1].problem or "")


@pytest.mark.parametrize("file", ["a.jsonl", "a.json"])
def test_a_row_too_long_to_hold_is_a_row_and_splits_stay_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setattr(readers, "_MOST", 100)
    rows_ = [json.dumps({"n": number, "text": "x" * (200 if number in (3, 9) else 20)}) for number in range(10)]
    (tmp_path / file).write_text("\n".join(rows_) if file == "a.jsonl" else "[" + ",\n".join(rows_) + "]")
    found = same_at_every_size(tmp_path, file)
    assert [row.number for row in found] == list(range(10))
    assert list(problems(found)) == [3, 9]
    assert "bytes, over 100" in (found[3].problem or "")
    assert all(split.end - split.offset <= 200 for split in splits(tmp_path, file, 1000))


# --- a zip of lines


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return path.read_bytes()


def test_lines_in_a_zip_are_the_rows_they_are_unpacked(tmp_path: Path) -> None:
    lines = b"\n".join(BAD_LINES) + b'\n{"row": 11}'
    (tmp_path / "a.jsonl").write_bytes(lines)
    archive(tmp_path / "a.jsonl.zip", {"__MACOSX/._a.jsonl": b"x", "readme.txt": b"x", "a.jsonl": lines})
    assert same_at_every_size(tmp_path, "a.jsonl.zip") == same_at_every_size(tmp_path, "a.jsonl")
    for kind in ("a.jsonl", "a.jsonl.zip"):
        found = list(splits(tmp_path, kind, 5))
        assert [rows(tmp_path, split)[0] for split in found] == [
            rows(tmp_path, split)[0] for split in splits(tmp_path, "a.jsonl", 5)
        ]
        assert share(tmp_path, found[-1]) == 1


@pytest.mark.parametrize(
    ("members", "method", "said"),
    [
        ({"a.txt": b"{}"}, zipfile.ZIP_DEFLATED, "it holds 0 *.jsonl, and rows are those of one"),
        ({"a.jsonl": b"{}", "b.jsonl": b"{}"}, zipfile.ZIP_DEFLATED, "it holds 2 *.jsonl, and rows are those of one"),
        ({"a.jsonl": b"{}"}, zipfile.ZIP_LZMA, "it is packed by other means than deflate: unpack it"),
    ],
)
def test_a_zip_that_is_not_of_lines_is_one_row_that_says_so(
    tmp_path: Path, members: dict[str, bytes], method: int, said: str
) -> None:
    archive(tmp_path / "a.zip", members, method)
    assert problems(same_at_every_size(tmp_path, "a.zip")) == {0: f"archive does not read: {said}"}
    (tmp_path / "a.zip").write_bytes(b"<!DOCTYPE html>")
    assert problems(same_at_every_size(tmp_path, "a.zip")) == {0: "archive does not read: File is not a zip file"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_zip_gives_the_lines_before_the_damage_and_says_so(tmp_path: Path, method: int) -> None:
    whole = b"".join(
        b'{"row": %d, "text": "%s"}\n' % (n, random.Random(n).randbytes(3000).hex().encode()) for n in range(900)
    )
    data = bytearray(archive(tmp_path / "a.zip", {"a.jsonl": whole}, method))
    at = len(data) * 3 // 4
    data[at : at + 2000] = bytes(2000)
    (tmp_path / "a.zip").write_bytes(data)
    found = read(tmp_path, "a.zip", 100)
    *sound, last = found
    assert last.problem is not None
    assert last.problem.startswith("archive does not read: ")
    assert [row.number for row in found] == list(range(len(found)))
    before = 900 * 3 // 4 - 10  # what is damaged may unpack to something else, until the checksum tells
    assert [row.value for row in sound[:before]] == [json.loads(line) for line in whole.splitlines()[:before]][
        : len(sound)
    ]
    assert len(sound) > 300


def test_a_line_that_a_wrong_checksum_cuts_is_part_of_the_rest(tmp_path: Path) -> None:
    whole = b"".join(b'{"row": %d, "text": "%s"}\n' % (n, b"x" * 9000) for n in range(400))
    data = bytearray(archive(tmp_path / "a.zip", {"a.jsonl": whole}))
    data[data.index(b"PK\x01\x02") + 16] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    *sound, last = same_at_every_size(tmp_path, "a.zip")
    assert 200 < len(sound) < 400
    assert [row.value for row in sound] == [json.loads(line) for line in whole.splitlines()[: len(sound)]]
    assert (last.number, last.problem) == (len(sound), "archive does not read: Bad CRC-32 for file 'a.jsonl'")
