"""Groups and targets as computed by hand, replies, and a corpus whose rows are the records of another one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upstream import Build, file, jpeg, jsonl, photo

from dataflow import derived, pairs
from dataflow.index import BuiltCorpus
from dataflow.record import Image, Message, Record, Text
from dataflow.roots import Roots
from dataflow.sources.mmc4 import Mmc4
from dataflow.sources.mmc4_pairs import Mmc4Pairs


def table(text: str) -> np.ndarray:
    """A symmetric table from its lower half."""
    rows = [[float(number) for number in line.split()] for line in text.strip().splitlines()]
    made = np.eye(len(rows) + 1)
    for place, row in enumerate(rows, 1):
        made[place, :place] = made[:place, place] = row
    return made


FIVE = table(
    """
    .9
    .6 .5
    .4 .8 .7
    .1 .2 .1 .95
    """
)


def test_groups_grow_from_the_most_alike_and_hold_together_pairwise() -> None:
    """3 and 4 are most alike, 0 and 1 next; 2 is .5 to both of these, and 3 and 4 want nobody: .1, .2."""
    assert pairs.grouped(FIVE, threshold=0.5, most=6) == [[0, 1, 2], [3, 4]]
    assert pairs.grouped(FIVE, threshold=0.51, most=6) == [[0, 1], [3, 4]]
    assert pairs.grouped(FIVE, threshold=0.92, most=6) == [[3, 4]]
    assert pairs.grouped(FIVE, threshold=0.96, most=6) == []
    assert pairs.grouped(np.ones((1, 1)), threshold=0.5, most=6) == []
    assert pairs.grouped(np.ones((0, 0)), threshold=0.5, most=6) == []


@pytest.mark.parametrize(
    ("count", "sizes"), [(6, [6]), (7, [5, 2]), (8, [6, 2]), (12, [6, 6]), (13, [6, 5, 2]), (2, [2])]
)
def test_a_large_group_is_cut_in_order_and_nobody_is_left_alone(count: int, sizes: list[int]) -> None:
    found = pairs.grouped(np.ones((count, count)), threshold=0.5, most=6)
    assert [len(group) for group in found] == sizes
    assert [place for group in found for place in group] == list(range(count))


def test_the_target_is_least_alike_on_average_or_the_first_of_the_least_alike_two() -> None:
    """To the others on average: 0 .6, 1 .4167, 2 .4833, 3 .4. Least alike are 1 and 2, .15 to each other."""
    alike = table(
        """
        .7
        .8 .15
        .3 .4 .5
        """
    )
    assert pairs.target(alike, rule="average") == 3
    assert pairs.target(alike, rule="minimum") == 1
    assert pairs.target(np.ones((3, 3)), rule="average") == pairs.target(np.ones((3, 3)), rule="minimum") == 0


def test_a_caption_is_the_first_line_after_its_pictures() -> None:
    parts = (Text("Welcome"), Image(0), Image(1), Text('"Two cats"\nwho live here'), Image(2), Image(3))
    record = Record(
        key="mmc4_000000000",
        source="mmc4",
        task="interleaved_document",
        messages=(Message("assistant", parts),),
        media=(),
        lineage=None,  # type: ignore[arg-type]
    )
    assert pairs.captioned(record) == [(0, "Two cats"), (1, "Two cats")]


@pytest.mark.parametrize(
    ("reply", "prompt"),
    [
        ("Both are cats. [The same animal,\n asleep.]", "The same animal, asleep."),
        ("[a] or rather [b]", "b"),
        ("Show the same animal.", ""),
        ("[]", ""),
        ("[cut off", ""),
    ],
)
def test_the_prompt_is_what_stands_in_the_last_brackets(reply: str, prompt: str) -> None:
    assert pairs.prompt(reply) == prompt


def test_a_template_speaks_of_what_is_shown_and_what_comes() -> None:
    assert pairs.prompt(pairs.template(["a cat", "a dog [asleep]."])) == "In keeping with the picture: a dog (asleep)."
    assert pairs.prompt(pairs.template(["a", "b", "c"])) == "In keeping with these 2 pictures: c."


# --- a corpus of records

CAT, PNG = jpeg(), file(photo(48, 48), "PNG")


def page(*captions: str) -> dict[str, object]:
    infos = [
        {"image_name": f"{place}.jpg", "raw_url": "http://x/", "matched_text_index": place, "matched_sim": 0.3}
        for place in range(len(captions))
    ]
    return {"image_info": infos, "text_list": list(captions), "similarity_matrix": [], "url": "http://x/"}


def derive(pages: BuiltCorpus, instructions: list[dict[str, object]], tmp_path: Path, build: Build) -> BuiltCorpus:
    """The pairs of a corpus of pages, by what was written of each."""
    schema = pa.schema([("groups", pa.list_(pa.list_(pa.int32()))), ("replies", pa.list_(pa.string()))])
    rows = tmp_path / "rows"
    derived.write(rows, pages, {"instructions": pa.Table.from_pylist(instructions, schema)}, step={})
    roots = Roots(named={"mmc4_pairs": rows, derived.RECORDS: pages.folder})
    return build(Mmc4Pairs(), roots=roots)


def test_every_record_is_one_row_of_the_ledger_and_every_group_a_candidate(tmp_path: Path, build: Build) -> None:
    data = tmp_path / "data/mmc4"
    for place in range(4):
        (data / "images/0").mkdir(parents=True, exist_ok=True)
        (data / f"images/0/{place}.jpg").write_bytes(CAT if place % 2 else PNG)
    lines = jsonl(page("a", "b", "c", "d"), page("e"), page("f", "g"), b"no row", page("h", "i"))
    (data / "docs_no_face_shard_0_v3.jsonl").write_bytes(lines)
    pages = build(Mmc4(), rows=3)
    assert len(pages) == 4
    written: list[dict[str, object]] = [
        {"groups": [[2, 0], [1, 3]], "replies": ["no brackets", "[The same, later.]"]},
        {"groups": [], "replies": []},
        {"groups": [[1, 0]], "replies": ["Both. [Another one.]"]},
        {"groups": [[0, 1]], "replies": ["?"]},
    ]
    made = derive(pages, written, tmp_path, build)

    ledger = pq.read_table(made.folder / "ledger.parquet").to_pylist()
    assert [(row["file"], row["row"]) for row in ledger] == [
        ("00000.jsonl", 0),
        ("00000.jsonl", 1),
        ("00000.jsonl", 2),
        ("00001.jsonl", 0),
    ]
    assert [row["outcome"] for row in ledger] == ["kept", "filtered", "kept", "corrupt"]
    assert ledger[0]["reason"] == "candidate 0: the writer's reply has no prompt in brackets: 'no brackets'"
    assert ledger[1]["reason"] == "no two of its pictures have captions that are alike"
    counts = made.manifest["counts"]
    assert (counts["rows"], counts["candidates"], counts["kept"]) == (len(pages), 5, 2)
    assert counts["candidates"] == counts["kept"] + counts["filtered"] + counts["corrupt"]

    first, second = made.record(0), made.record(1)
    assert first.task == "subject_driven"
    assert first.turns == (("user", (0, "The same, later.")), ("assistant", (1,)))
    assert [media.data for media in first.media] == [CAT, CAT]
    assert second.turns == (("user", (0, "Another one.")), ("assistant", (1,)))
    assert [media.data for media in second.media] == [CAT, PNG]
    assert (first.key, second.key) == ("mmc4_pairs_000000000-1", "mmc4_pairs_000000002")


def test_rows_change_where_a_record_or_its_measure_does(tmp_path: Path, build: Build) -> None:
    """So a shard is built anew when either changes, and only then."""
    data = tmp_path / "data/mmc4"
    (data / "images/0").mkdir(parents=True)
    (data / "docs_no_face_shard_0_v3.jsonl").write_bytes(jsonl(page("a"), page("b")))
    (data / "images/0/0.jpg").write_bytes(CAT)
    rows = []
    other = CAT[:2] + b"\xff\xfe\x00\x03b" + CAT[2:]  # with a comment of one letter
    cat = other.replace(b"\x03b", b"\x03a", 1)
    for name, picture, says in (("x", cat, "1"), ("same", cat, "1"), ("reply", cat, "2"), ("picture", other, "1")):
        (data / "images/0/0.jpg").write_bytes(picture)
        pages = build(Mmc4(), rows=1, folder=tmp_path / name)
        derived.write(tmp_path / f"{name}-rows", pages, {"told": pa.table({"says": [says, "0"]})}, step={})
        rows.append([(tmp_path / f"{name}-rows/0000{shard}.jsonl").read_bytes() for shard in (0, 1)])
    original, same, reply, picture = rows
    assert same == original
    assert reply[0] != original[0]
    assert reply[1] == original[1]
    assert picture[0] != original[0]
    assert json.loads(original[1])["told"] == {"says": "0"}
