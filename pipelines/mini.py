"""`interlace mini`: the whole line in miniature, on real pictures, on one Ray cluster.

    miniature corpora -> built corpora -> every architecture trained with ZeRO -> pictures, answers -> report.html

Everything it calls is what the other commands call. What is done is skipped, and it says so.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path

from dataflow import mini as corpora
from dataflow.index import BuiltCorpus
from dataflow.media import decoded
from dataflow.record import Record
from dataflow.roots import Roots
from dataflow.selection import Part
from models.interface import Asked
from pipelines import plan, report, runs, sample
from pipelines.recipes import llavafusion, lmfusion, metamorph, metaquery, mixtures, transfusion
from pipelines.step import Place, cluster

PROMPTS = (
    "a small blue triangle",
    "a large red circle",
    "a medium green rectangle",
    "a large yellow triangle",
    "a small black circle",
    "a large teal rectangle",
)
FIGURES = (transfusion.tiny, lmfusion.tiny, llavafusion.tiny, metaquery.tiny)  # those that paint by themselves
_DRAWN = 3  # prompts that each of them draws
_STEPS = 20  # of their denoising: they are too young for more to show
_QUESTIONS = 12  # of the validation part, asked with their picture
_REPAINTED = 6  # real pictures shown beside what the visualizer makes of their tokens


def data(folder: Path) -> None:
    """Write the miniature corpora, or find them written."""
    counts = corpora.write(folder)
    print(f"{folder}: {sum(counts.values())} rows of {len(counts)} sources: {', '.join(counts)}", flush=True)


def run(place: Place) -> Path:
    """The whole line; returns the report's path and says where it is."""
    start = time.monotonic()
    upstream = place.root / "mini-data"
    data(upstream)
    place = Place(
        root=place.root,
        roots=Roots.parse([str(upstream)]),
        workers=place.workers,
        ray_address=place.ray_address,
    )
    visualizer, speaker = metamorph.tiny_visualizer(), metamorph.tiny()
    with cluster(place):
        opened = plan.build(mixtures.mini(), place)
        painting = runs.train(visualizer, place, recipe_name="metamorph:tiny_visualizer")
        speaking = runs.train(speaker, place, recipe_name="metamorph:tiny")
        drawing = []
        for figure in FIGURES:
            opened += plan.build(figure().mixture, place)
            name = f"{figure.__module__.rpartition('.')[2]}:{figure.__name__}"
            drawing.append(runs.train(figure(), place, recipe_name=name))
    pictures = _answer(speaking, painting, [member.corpus for member in opened])
    for trained in drawing:
        _draw(trained)
    page = report.write(
        place.root / "report.html", [speaking, painting, *drawing, *_corpora(opened)], pictures=pictures
    )
    print(f"report: {page}  (the whole line took {time.monotonic() - start:.0f} s)", flush=True)
    return page


def _answer(speaking: Path, painting: Path, folders: list[Path]) -> list[tuple[str, Path]]:
    """Pictures for prompts, answers to validation questions, real pictures repainted; kept beside the run's samples."""
    marker = speaking / "samples" / "mini.json"
    if marker.is_file():
        print(f"{speaking.name}: already sampled", flush=True)
    else:
        shutil.rmtree(speaking / "samples", ignore_errors=True)  # of a mini that was cut off while sampling
        drawn = Asked(answer="picture", guidance=1.0)  # its condition is too young to be exaggerated
        for answer in sample.answers(speaking, PROMPTS, [], drawn, visualizer=painting):
            print(answer.line(), flush=True)
        with tempfile.TemporaryDirectory() as asking:
            asked = _ask(speaking, _validation(folders, "image_qa", _QUESTIONS), Path(asking))
        shown = _repaint(painting, _validation(folders, "text_to_image", _REPAINTED), speaking / "samples")
        marker.write_text(json.dumps({"asked": asked, "pictures": shown}))
    stored = json.loads(marker.read_bytes())
    right, total = stored["asked"]
    print(f"{speaking.name}: {right} of {total} validation questions answered as the corpus does", flush=True)
    return [(caption, marker.parent / name) for caption, name in stored["pictures"]]


def _draw(trained: Path) -> None:
    """Pictures for some of the prompts, kept among the run's samples."""
    if (trained / "samples" / "samples.jsonl").is_file():
        print(f"{trained.name}: already sampled", flush=True)
        return
    drawn = Asked(answer="picture", guidance=1.0, steps=_STEPS)
    for answer in sample.answers(trained, PROMPTS[:_DRAWN], [], drawn):
        print(answer.line(), flush=True)


def _ask(speaking: Path, records: list[Record], folder: Path) -> tuple[int, int]:
    """How many first answers of records equal what the run says, and how many were asked."""
    right = 0
    for record in records:
        picture = folder / f"{record.key}.{record.media[0].extension}"
        picture.write_bytes(record.media[0].data)
        question = " ".join(part for part in record.turns[0][1] if isinstance(part, str))
        wanted = " ".join(part for part in record.turns[1][1] if isinstance(part, str))
        settings = Asked(answer="text", max_tokens=48)
        for answer in sample.answers(speaking, [question], [picture], settings):
            said = " ".join(str(part) for part in answer.parts)
            right += said.strip().lower() == wanted.strip().lower()
            print(f"{answer.line()}  (corpus: {wanted})", flush=True)
    return right, len(records)


def _repaint(painting: Path, records: list[Record], folder: Path) -> list[tuple[str, str]]:
    visualizer = sample.Run(painting)
    real = [decoded(record.media[-1]) for record in records]
    painted = sample.repaint(visualizer, real, Asked(guidance=1.0))
    made = []
    for record, before, after in zip(records, real, painted, strict=True):
        caption = " ".join(part for part in record.turns[0][1] if isinstance(part, str))
        for kind in ("real", "repainted"):
            made.append((f"{kind}: {caption}", f"{kind}-{record.key}.png"))
        before.save(folder / f"real-{record.key}.png")
        sample.save_png(after, folder / f"repainted-{record.key}.png")
    return made


def _validation(folders: list[Path], task: str, count: int) -> list[Record]:
    """The first records of a task that no training saw."""
    found: list[Record] = []
    for folder in folders:
        corpus = BuiltCorpus(folder)
        held_out = Part(part="validation")(corpus.keys)
        for place in held_out.nonzero()[0]:
            record = corpus.record(int(place))
            if record.task == task and len(found) < count:
                found.append(record)
    return found


def _corpora(opened: list[plan.Opened]) -> list[Path]:
    return list(dict.fromkeys(member.corpus for member in opened))
