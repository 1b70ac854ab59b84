"""Built corpora in the form that another trainer reads: MetaMorph's one merged JSONL, its pictures as files beside it.

    OUT/pictures/00017/cambrian-000170003.0.jpg   original bytes; a folder per shard, renamed into place when whole
    OUT/export.json                               which corpus this is, what was written, what was left out and why
    OUT/rows.jsonl                                last: {"id", "image": [absolute paths] or null, "conversations"}

Its trainer (facebookresearch/metamorph, metamorph/train/train.py `__getitem__`) tells corpora apart by substrings of
ids and paths, and goes on to the next row in silence when one does not suit it. A list of pictures is taken as it
stands, whatever the id, unless its first path holds "visual_cot"; so every row with pictures has a list. Requests and
announcements stand in the text, for it adds none. It cuts a row after 4,096 tokens; what is longer is not known here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from dataflow.build import sync, write_atomically
from dataflow.folders import is_remote
from dataflow.index import BuiltCorpus
from dataflow.record import Record
from models.layout import phrased
from pipelines.step import Progress, alone

VERSION = 1  # of the rows; raise it when they change
MAX_PICTURES = 70  # of a row; the trainer skips rows with more
# In the paths of pictures and in the JSONL's own: the first is cropped again, the second is read as tars.
_TRIGGERS = ("visual_cot", "metacliptar")
# The picture tag, and what the trainer's tokenizer would take for a control token. A space after < keeps it text.
_MARK = re.compile(r"<(?=image>|image_start>|image_end>|\|[a-z0-9_]+\|>)")
_WAITING = 16  # threads that wait for the disk: it commits their files together, one by one took five times as long
_SPEAKERS = {"user": "human", "assistant": "gpt"}


@dataclass(kw_only=True)
class Counts:
    """What an export came to: rows and picture files, rows with a mark respelled, records left out by reason."""

    rows: int = 0
    pictures: int = 0
    respelled: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """One line for the user."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        line = f"{self.rows} rows, {self.pictures} pictures; left out {self.left_out.total()}"
        line += f" ({reasons})" if reasons else ""
        if self.respelled:
            line += f"; {self.respelled} rows spell a mark such as <image> in a text, where it now reads < image>"
        return line


def beside(corpus: Path, root: Path | None = None) -> Path:
    """Where the export of a corpus goes unless told otherwise: ROOT/exports/, by a name that triggers nothing.

    Args:  root: for a corpus in a store; another lies in its root.
    """
    home = root if root is not None and is_remote(corpus) else corpus.parent.parent
    return home / "exports" / corpus.name.replace("_", "-")


def metamorph_jsonl(corpus: Path, out: Path) -> Path:
    """Write a corpus as MetaMorph's training rows, or find it written. Says what it does; returns the JSONL.

    The same corpus and folder give the same bytes. A run that was cut short goes on from the shards that are there.

    Args:
        corpus: a built corpus.
        out: absolute; the rows name it. New, empty, or of the same corpus.
    Raises:
        ValueError: no built corpus, a damaged record, a folder that cannot be used, or no record that can be a row.
        OSError: the disk fails.
    """
    opened = BuiltCorpus(corpus)
    claim = {"format": "metamorph-jsonl", "version": VERSION}
    claim |= {name: opened.manifest[name] for name in ("recipe_key", "root_digest")}
    _usable(corpus, out)
    _held(out, claim)  # before anything, a lock included, is written there
    with alone(out / ".lock", f"the export {out}"):
        held = _held(out, claim)
        rows = out / "rows.jsonl"
        if held is not None and held.get("folder") == str(out) and rows.is_file():
            print(f"{rows}: already exported from {opened.name}, nothing to do", flush=True)
            return rows
        rows.unlink(missing_ok=True)  # of a folder that was moved: its paths lead nowhere
        _write_json(out / "export.json", claim)
        progress = Progress(f"export {opened.name}", len(opened), "records")
        counts, digest = Counts(), hashlib.sha256()
        with (out / ".rows.jsonl").open("wb") as stream:
            for line in _lines(opened, out, counts, progress):
                stream.write(line)
                digest.update(line)
            stream.flush()
            os.fsync(stream.fileno())
        if not counts.rows:
            for file in (".rows.jsonl", "export.json"):
                (out / file).unlink()
            raise ValueError(f"{opened.name}: none of its records can be a row of MetaMorph's trainer: {counts.line()}")
        written = {"folder": str(out), "corpus": opened.name, "counts": vars(counts), "sha256": digest.hexdigest()}
        _write_json(out / "export.json", {**claim, **written})
        (out / ".rows.jsonl").rename(rows)
        sync(out)
        progress.close(counts.line())
    return rows


def _lines(opened: BuiltCorpus, out: Path, counts: Counts, progress: Progress) -> Iterator[bytes]:
    """The rows, in the order of the index; when a shard's have been taken, its pictures are on the disk."""
    shards = opened.table["shard"].to_numpy()
    for shard, places in groupby(range(len(opened)), key=lambda place: int(shards[place])):
        final = out / "pictures" / f"{shard:05d}"
        with _whole(final) as folder:
            for place in places:
                record = opened.record(place)
                progress.advance()
                if (reason := left_out(record)) is not None:
                    counts.left_out[reason] += 1
                    continue
                # no "_", so that no source's name can be a trigger
                names = [
                    f"{record.key.replace('_', '-')}.{index}.{media.extension}"
                    for index, media in enumerate(record.media)
                ]
                if folder is not None:
                    for name, media in zip(names, record.media, strict=True):
                        (folder / name).write_bytes(media.data)
                row, respelled = _row(record, [str(final / name) for name in names])
                counts.rows += 1
                counts.pictures += len(names)
                counts.respelled += respelled
                # ASCII, for the trainer opens the file in whatever encoding its machine prefers
                yield json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n"


def left_out(record: Record) -> str | None:
    """Why a record cannot be a row of the trainer's, or None."""
    roles = [message.role for message in record.messages]
    if "user" not in roles:
        return "without a user turn"
    while roles[0] == "system":
        del roles[0]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        return "whose turns do not alternate user, assistant"
    if sum(isinstance(part, int) for _, parts in record.turns for part in parts) > MAX_PICTURES:
        return f"with over {MAX_PICTURES} pictures"
    return None


def _row(record: Record, paths: list[str]) -> tuple[dict[str, Any], bool]:
    """The trainer's row, and whether a text in it had to be respelled.

    A value is the parts end to end, as `ChatLayout` lays them out; the tags and the list follow each other.
    """
    shown: list[str] = []
    before, conversations, respelled = [], [], False
    for role, parts in phrased(record.turns, task=record.task, key=record.key):
        if role == "system":
            before += [*parts, "\n"]  # it knows no system: in front of what the user says first
            continue
        value = ""
        for kind, run in groupby([*before, *parts], key=type):
            if kind is int:
                indices = list(run)
                shown += [paths[int(index)] for index in indices]
                value += "<image>" * len(indices)
            else:
                words, marks = _MARK.subn("< ", "".join(map(str, run)))
                respelled |= marks > 0
                value += words
        before = []
        conversations.append({"from": _SPEAKERS[role], "value": value})
    return {"id": record.key, "image": shown or None, "conversations": conversations}, respelled


@contextmanager
def _whole(final: Path) -> Iterator[Path | None]:
    """A folder to fill, which appears when the block ends well and left files in it; None when it is there already."""
    if final.is_dir():
        yield None
        return
    part = final.with_name(f".{final.name}")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was cut short
    part.mkdir(parents=True)
    yield part
    files = list(part.iterdir())
    with ThreadPoolExecutor(_WAITING) as waiting:
        list(waiting.map(sync, files))
    if not files:
        part.rmdir()
        return
    sync(part)
    part.rename(final)
    sync(final.parent)


def _usable(corpus: Path, out: Path) -> None:
    assert out.is_absolute()
    for trigger in _TRIGGERS:
        if trigger in str(out):
            raise ValueError(
                f"--out {out}: MetaMorph's trainer takes {trigger!r} in a path for a command: give a folder without it"
            )
    if not is_remote(corpus) and out.resolve().is_relative_to(corpus.resolve()):
        raise ValueError(f"--out {out} lies in the corpus {corpus.name}, which never changes: give a folder elsewhere")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is no folder: give a new or an empty one")


def _held(out: Path, claim: dict[str, Any]) -> dict[str, Any] | None:
    """The export that a folder holds, finished or not; None for a new or an empty folder.

    Raises: ValueError: something else lies there.
    """
    if not out.exists() or all(file.name.startswith(".") for file in out.iterdir()):  # hidden: lock, a cut run's
        return None
    try:
        held = json.loads((out / "export.json").read_bytes())
        same = all(held[name] == value for name, value in claim.items())
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        raise ValueError(f"--out {out} holds other files: give a new or an empty folder") from None
    if not same:
        raise ValueError(f"--out {out} holds the export of another corpus: give another folder, or remove it")
    return held


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())
