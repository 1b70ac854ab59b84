"""Corpora as rows of MetaMorph's trainer, consumed by a reader that follows its documented rules."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import here
import pytest
from PIL import Image as Pixels
from skimage import data as photographs

from dataflow import index
from dataflow.index import BuiltCorpus
from dataflow.media import picture
from dataflow.record import Candidate, Image, Message, Text
from dataflow.roots import Roots
from models.layout import ByteTokenizer, ChatLayout
from pipelines import export

CAT, CUP = photographs.chelsea(), photographs.coffee()


def encoded(place: int, format: str = "JPEG") -> bytes:
    """A small real picture, another one for every place."""
    buffer = io.BytesIO()
    pixels = (CAT, CUP)[place % 2][place : place + 48, 2 * place : 2 * place + 64]
    Pixels.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Chats:
    """Rows that spell a record: {"task", "turns": [[role, part, ...]]}; a number is a picture, of its own file."""

    name: str = "chats"
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        return ["rows.jsonl"]

    def candidates(self, value: dict[str, Any], key: str, read: Any) -> Any:
        turns = [
            Message(role, tuple(Text(part) if isinstance(part, str) else Image(part) for part in parts))
            for role, *parts in value["turns"]
        ]
        pictures = 1 + max(
            [part for _, *parts in value["turns"] for part in parts if isinstance(part, int)], default=-1
        )
        media = [picture(encoded(place, "PNG" if place == 1 else "JPEG")) for place in range(pictures)]
        yield Candidate(task=value["task"], messages=tuple(turns), media=tuple(media))


def corpus(folder: Path, rows: list[dict[str, Any]], *, name: str = "chats", size: int = 3) -> Path:
    """A built corpus of these rows, `size` in a shard."""
    upstream = folder / "data" / name
    upstream.mkdir(parents=True)
    (upstream / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    built = folder / "corpora" / f"{name}-0123456789ab"
    here.build(Chats(name=name), Roots(base=folder / "data"), built, rows=size)
    return built


ROWS: list[dict[str, Any]] = [
    {"task": "image_qa", "turns": [["user", 0, "What is it?"], ["assistant", "A cat."]]},
    {"task": "text_qa", "turns": [["user", "2 + 2?"], ["assistant", "4"], ["user", "+ 1?"], ["assistant", "5"]]},
    {"task": "text_to_image", "turns": [["user", "a bus {in} the rain"], ["assistant", 0]]},
    {"task": "image_editing", "turns": [["user", 0, "make it a cup"], ["assistant", 1]]},
    {"task": "visual_thinking", "turns": [["user", 0, "Where?"], ["assistant", "Look closer: ", 1, "There."]]},
    {"task": "video_qa", "turns": [["user", 2, 0, 1, "In order?"], ["assistant", "No."]]},
    {"task": "image_qa", "turns": [["system", "Be brief."], ["user", 0, "Is \u2028 é?"], ["assistant", "Yes."]]},
    {"task": "text_document", "turns": [["assistant", "Once upon a time"]]},
    {"task": "caption_pair", "turns": [["assistant", "a cat", 0]]},
    {"task": "image_qa", "turns": [["user", 0, "What does <image> mean?"], ["assistant", "<image>, <|eot_id|>"]]},
    {"task": "text_qa", "turns": [["user", "a"], ["user", "b"], ["assistant", "c"]]},
]


def consumed(jsonl: Path) -> list[tuple[str, list[bytes], list[dict[str, str]]]]:
    """What the official trainer would train on, by its dispatch (reference/corpora.md, section 1).

    Each row as id, files of its pictures, and turns; what the trainer would skip or treat by rules of its own fails.
    """
    assert "metacliptar" not in str(jsonl)
    rows, offsets = [], [0]
    with jsonl.open("rb") as stream:
        while stream.readline():
            offsets.append(stream.tell())
    with jsonl.open("r", encoding="ascii") as stream:
        for offset in offsets[:-1]:
            stream.seek(offset)
            row = json.loads(stream.readline().strip())
            files: list[str] = []
            if "image" in row and row["image"] is not None:
                assert type(row["image"]) is list, "a str is tested for video endings, k700 and vstar"
                assert "visual_cot" not in row["image"][0], "it would be cropped"
                files = row["image"]
                for file in files:
                    assert Path(file).is_absolute()
                    with Pixels.open(file) as opened:
                        opened.convert("RGB")
            speakers = [turn["from"] for turn in row["conversations"]]
            assert speakers == ["human", "gpt"] * (len(speakers) // 2)
            values = [turn["value"] for turn in row["conversations"]]
            tags = sum(value.count("<image>") for value in values)
            assert tags == len(files), "Bugbugbug!"
            assert tags <= 70
            assert not re.search(r"<\|\w+\|>|<image_(start|end)>", "".join(values)), "a control token"
            rows.append((row["id"], [Path(file).read_bytes() for file in files], row["conversations"]))
    return rows


def test_the_official_trainer_finds_every_picture_tag_and_role(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = consumed(export.metamorph_jsonl(corpus(tmp_path, ROWS), tmp_path / "out"))
    photo = [encoded(0), encoded(1, "PNG"), encoded(2)]
    assert [(key, files) for key, files, _ in rows] == [
        ("chats_000000000", [photo[0]]),
        ("chats_000000001", []),
        ("chats_000000002", [photo[0]]),
        ("chats_000010000", [photo[0], photo[1]]),
        ("chats_000010001", [photo[0], photo[1]]),
        ("chats_000010002", [photo[2], photo[0], photo[1]]),
        ("chats_000020000", [photo[0]]),
        ("chats_000030000", [photo[0]]),
    ]
    said = [[turn["value"] for turn in turns] for *_, turns in rows]
    assert said[0] == ["<image>What is it?", "A cat."]
    assert said[1] == ["2 + 2?", "4", "+ 1?", "5"]
    assert "a bus {in} the rain" in said[2][0]
    assert said[2][0] != "a bus {in} the rain"
    assert said[2][1] == "Here is an image based on your request: <image>"
    assert said[3] == ["<image>make it a cup", "Here is an image based on your request: <image>"]
    assert said[4] == ["<image>Where?", "Look closer: <image>There."]
    assert said[5] == ["<image><image><image>In order?", "No."]
    assert said[6] == ["Be brief.\n<image>Is \u2028 é?", "Yes."]
    assert said[7] == ["<image>What does < image> mean?", "< image>, < |eot_id|>"]
    line = capsys.readouterr().out.splitlines()[-1]
    assert "8 rows, 11 pictures; left out 3 (1 whose turns do not alternate user, assistant, 2 without a user" in line
    assert "1 rows spell a mark such as <image>" in line


def test_the_trainer_sees_the_tokens_that_ours_would_see(tmp_path: Path) -> None:
    """Its template (one newline after a header) around a row gives the ids of `ChatLayout`."""
    built = corpus(tmp_path, ROWS[:6])
    tokenizer = ByteTokenizer()
    layout = ChatLayout(tokenizer=tokenizer, picture_tokens=1)
    names = {"human": "user", "gpt": "assistant"}
    for place, (key, _, turns) in enumerate(consumed(export.metamorph_jsonl(built, tmp_path / "out"))):
        ids = [tokenizer.control("<|begin_of_text|>")]
        for turn in turns:
            ids.append(tokenizer.control("<|start_header_id|>"))
            ids += tokenizer.encode(names[turn["from"]])
            ids.append(tokenizer.control("<|end_header_id|>"))
            text, *after = turn["value"].split("<image>")
            ids += tokenizer.encode("\n" + text)
            for text in after:
                ids += [layout.image_start, 0, layout.image_end, *tokenizer.encode(text)]
            ids.append(tokenizer.control("<|eot_id|>"))
        record = BuiltCorpus(built).record(place)
        assert tuple(ids) == layout.lay_out(record.turns, task=record.task, key=key).ids


def test_more_pictures_than_the_trainer_takes_leave_the_row_out_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    most = {"task": "video_qa", "turns": [["user", *range(70), "?"], ["assistant", "Yes."]]}
    over = {"task": "video_qa", "turns": [["user", *range(71), "?"], ["assistant", "Yes."]]}
    jsonl = export.metamorph_jsonl(corpus(tmp_path, [most, over]), tmp_path / "out")
    assert [(key, len(files)) for key, files, _ in consumed(jsonl)] == [("chats_000000000", 70)]
    assert "1 rows, 70 pictures; left out 1 (1 with over 70 pictures)" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "pictures").rglob("*.*"))) == 70


@pytest.mark.parametrize("name", ["visual_cot", "vstar", "k700", "metaclip"])
def test_no_name_of_a_source_is_taken_for_a_command(tmp_path: Path, name: str) -> None:
    built = corpus(tmp_path, ROWS[3:5], name=name)
    rows = consumed(export.metamorph_jsonl(built, export.beside(built)))
    assert [(key, len(files)) for key, files, _ in rows] == [(f"{name}_000000000", 2), (f"{name}_000000001", 2)]


def test_a_folder_whose_path_the_trainer_would_misread_is_refused(tmp_path: Path) -> None:
    built = corpus(tmp_path, ROWS[:1])
    with pytest.raises(ValueError, match="takes 'visual_cot' in a path for a command"):
        export.metamorph_jsonl(built, tmp_path / "my_visual_cot" / "out")
    with pytest.raises(ValueError, match="takes 'metacliptar' in a path"):
        export.metamorph_jsonl(built, tmp_path / "metacliptars")


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    built = corpus(tmp_path / "a", ROWS[:1])
    other = corpus(tmp_path / "b", ROWS[1:2])
    with pytest.raises(ValueError, match="which never changes"):
        export.metamorph_jsonl(built, built / "export")
    with pytest.raises(ValueError, match="holds other files"):
        export.metamorph_jsonl(built, other)
    export.metamorph_jsonl(other, tmp_path / "out")
    with pytest.raises(ValueError, match="the export of another corpus"):
        export.metamorph_jsonl(built, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is no folder"):
        export.metamorph_jsonl(built, tmp_path / "file")
    assert all(problem is None for folder in (built, other) for _, problem in index.verify(folder))


def test_a_corpus_of_documents_alone_is_refused_with_its_reasons(tmp_path: Path) -> None:
    built = corpus(tmp_path, ROWS[7:9])
    with pytest.raises(ValueError, match=r"none of its records can be a row .*left out 2 \(2 without a user turn\)"):
        export.metamorph_jsonl(built, tmp_path / "out")
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def _digests(out: Path) -> dict[str, str]:
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_an_export_is_found_again_and_a_moved_one_gets_new_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built, out = corpus(tmp_path, ROWS), tmp_path / "out"
    first = export.metamorph_jsonl(built, out)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}
    capsys.readouterr()
    assert export.metamorph_jsonl(built, out) == first
    assert "already exported from chats-0123456789ab, nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"} == written
    before = consumed(first)
    out.rename(tmp_path / "moved")
    assert consumed(export.metamorph_jsonl(built, tmp_path / "moved")) == before


def test_an_export_that_a_damaged_shard_stopped_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    built, out = corpus(tmp_path, ROWS), tmp_path / "out"
    whole = (built / "00001.tar").read_bytes()
    second = BuiltCorpus(built).table["offset"].to_pylist()[4]  # so that one record of the shard was written
    (built / "00001.tar").write_bytes(whole[:second] + b"\xff" * 512 + whole[second + 512 :])
    with pytest.raises(ValueError, match="chats_000010001 cannot be read"):
        export.metamorph_jsonl(built, out)
    assert not (out / "rows.jsonl").exists()
    assert [path.name for path in sorted((out / "pictures").iterdir())] == [".00001", "00000"]
    kept = (out / "pictures" / "00000").stat().st_mtime_ns
    (built / "00001.tar").write_bytes(whole)
    consumed(export.metamorph_jsonl(built, out))
    assert (out / "pictures" / "00000").stat().st_mtime_ns == kept
    resumed = _digests(out)
    shutil.rmtree(out)
    export.metamorph_jsonl(built, out)
    assert _digests(out) == resumed
