"""Rows per second and core: our sources beside the bare readers of Python on the same files.

    bare   json.loads of every line (json.load of a document, pyarrow's to_pylist of every batch), and the bytes of the
           picture file that the row names
    ours   dataflow.readers.rows with its sha256 of the input, then the source's candidates: pictures checked, passed
           through; nothing is written

A core's second is process_time, so that pyarrow's threads count. Both take turns on files that the page cache holds;
the medians are printed. Run: make bench-sources
"""

from __future__ import annotations

import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from skimage import data

from dataflow import readers
from dataflow.record import Candidate, key
from dataflow.roots import Roots
from dataflow.sources import Source
from dataflow.sources.cambrian import Cambrian
from dataflow.sources.instruct_pix2pix import InstructPix2Pix
from dataflow.sources.llava import Llava

TURNS = 7  # readings of each by each reader
SHARD = 1000  # input rows, a corpus' default
PHOTOGRAPHS = (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
SENTENCE = "If Jungkook is in 5th place, then 4 people crossed the finish line before him. "


@dataclass(frozen=True, kw_only=True)
class Case:
    """Files of one upstream layout, the source that reads them, and what reads them without us."""

    name: str
    source: Source
    rows: int
    bare: Callable[[Path], int]


def main() -> None:
    """Make the files, read them in turns, print the table."""
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        roots = Roots(base=base)
        print(f"{'rows per second and core':52}{'bare':>12}{'ours':>12}{'ours/bare':>11}")
        for case in _cases(base):
            bare, ours = (case.rows / seconds for seconds in _measured(case, roots))
            print(f"{case.name:52}{bare:>10,.0f}/s{ours:>10,.0f}/s{ours / bare:>11.2f}", flush=True)


def _measured(case: Case, roots: Roots) -> tuple[float, float]:
    """Median seconds of a core that the bare reader and ours take for all rows."""
    folder = roots.source(case.source.name)
    plan = [split for file in case.source.files(folder) for split in readers.splits(folder, file, SHARD)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + TURNS):
        for reader, taken in zip((lambda: case.bare(folder), lambda: _ours(case, roots, plan)), seconds, strict=True):
            start = time.process_time()
            count = reader()
            taken.append(time.process_time() - start)
            assert count == case.rows, f"{count} of the {case.rows} rows of {case.name} were read"
    bare, ours = (statistics.median(taken[1:]) for taken in seconds)  # the first fills the page cache
    return bare, ours


def _ours(case: Case, roots: Roots, plan: list[readers.Split]) -> int:
    """Every candidate of every row, as a build makes them; returns how many."""
    source = case.source
    folder, read = roots.source(source.name), roots.files(source.name)
    count = 0
    for number, split in enumerate(plan):
        _, rows = readers.rows(folder, split)
        for row in rows:
            name = key(source.name, number, row.number - split.first)
            for candidate in source.candidates(row.value, name, read):
                count += isinstance(candidate, Candidate)
    return count


def _cases(base: Path) -> Iterator[Case]:
    """Each with its files, made when it is reached."""
    texts = [_text(number) for number in range(20_000)]
    _jsonl(base / "text" / "jsons" / "a.jsonl", texts)
    yield Case(name="JSONL, text (Cambrian)", source=Cambrian(name="text"), rows=len(texts), bare=_bare_jsonl)

    (base / "document").mkdir()
    (base / "document" / "a.json").write_text(json.dumps(texts))
    yield Case(name="JSON document, text (LLaVA)", source=Llava(name="document"), rows=len(texts), bare=_bare_document)

    shown, weight = [], 0
    for number in range(1000):
        file = base / "shown" / "coco" / f"{number:012d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        weight += file.write_bytes(_jpeg(number, side=(320, 384, 448)[number % 3]))
        shown.append(_chat(number, f"coco/{file.name}"))
    _jsonl(base / "shown" / "jsons" / "a.jsonl", shown * 4)
    name = f"JSONL, a JPEG of {weight / len(shown) / 1000:.0f} kB a row (Cambrian)"
    yield Case(name=name, source=Cambrian(name="shown"), rows=4 * len(shown), bare=_bare_jsonl)

    edits, weight = [], 0
    for number in range(500):
        pair = [_jpeg(2 * number + side, side=512) for side in (0, 1)]
        weight += sum(map(len, pair))
        edits.append(
            {
                "original_prompt": "a cat on a rug",
                "original_image": {"bytes": pair[0], "path": None},
                "edit_prompt": "make it winter",
                "edited_prompt": "a cat on a rug, in winter",
                "edited_image": {"bytes": pair[1], "path": None},
            }
        )
    file = base / "edits" / "data" / "train-00000-of-00262-0123456789abcdef.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(edits), file, row_group_size=100)
    name = f"parquet, two JPEGs of {weight / len(edits) / 2000:.0f} kB a row (InstructPix2Pix)"
    yield Case(name=name, source=InstructPix2Pix(name="edits"), rows=len(edits), bare=_bare_parquet)


def _bare_jsonl(folder: Path) -> int:
    count = 0
    with (folder / "jsons" / "a.jsonl").open("rb") as stream:
        for line in stream:
            row = json.loads(line)
            if "image" in row:
                (folder / row["image"]).read_bytes()
            count += 1
    return count


def _bare_document(folder: Path) -> int:
    with (folder / "a.json").open("rb") as stream:
        return len(json.load(stream))


def _bare_parquet(folder: Path) -> int:
    count = 0
    for file in (folder / "data").iterdir():
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(64):
                count += len(batch.to_pylist())
    return count


def _text(number: int) -> dict[str, Any]:
    """A row without a picture, of Cambrian's average length: 0.93 kB."""
    asked, said = {"from": "human", "value": SENTENCE * 3}, {"from": "gpt", "value": SENTENCE * 7}
    return {"id": f"orca_math_{number}", "conversations": [asked, said], "source": "orca_math_200k.json"}


def _chat(number: int, image: str) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
        {"from": "gpt", "value": "The bus in the image is white and red."},
        {"from": "human", "value": "What feature can be seen on the back of the bus?"},
        {"from": "gpt", "value": "The back of the bus features an advertisement."},
        {"from": "human", "value": "Is the bus driving down the street or pulled off to the side?"},
        {"from": "gpt", "value": "The bus is driving down the street, which is crowded with people and vehicles."},
    ]
    return {"id": f"{number:012d}", "image": image, "conversations": turns, "source": "llava_150k.json"}


def _jpeg(number: int, *, side: int) -> bytes:
    """A real photograph, cropped by its number and scaled to a square."""
    with Image.fromarray(PHOTOGRAPHS[number % 4]) as photograph:
        margin = number // 4 % 64
        crop = photograph.crop((margin, margin, margin + 230, margin + 230))
        buffer = io.BytesIO()
        crop.resize((side, side), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()


def _jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
