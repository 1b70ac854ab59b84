"""One page about corpora and runs, whole in itself: it opens from disk with no network. Every caption is escaped."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment

from dataflow import curation, index
from dataflow.build import write_atomically
from dataflow.folders import is_file
from dataflow.index import BuiltCorpus
from dataflow.media import decoded
from dataflow.record import Record

_THUMBNAIL = 96  # pixels of the longer side
_EXAMPLES = 8  # records shown of each corpus
_KINDS = {".png": "png", ".jpg": "jpeg"}
_WIDTH, _HEIGHT, _MARGIN = 420, 180, 40  # of a plot, in pixels


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One loss over steps, ready to draw: points in plot pixels and the values at its ends."""

    name: str
    points: str
    low: float
    high: float
    last: float
    steps: int


def write(
    page: Path,
    folders: Sequence[Path],
    *,
    pictures: Sequence[tuple[str, Path]] = (),
    store: Path | None = None,
) -> Path:
    """Write the page about these folders; returns its path.

    Args:
        folders: built corpora, runs, and curations (ROOT/selections/KEY).
        pictures: (caption, PNG) shown under a heading of their own.
        store: where the corpora that curations speak of lie, if not in <root>/corpora.
    Raises:
        ValueError: a folder that is none of these.
    """
    corpora, runs, curations = [], [], []
    for folder in folders:
        if is_file(folder / "verdicts.parquet"):
            curations.append(_undamaged(partial(_curation, store=store), folder))
        elif is_file(folder / "selection.parquet"):
            raise ValueError(
                f"{folder} is a member's selection, without reasons to show: `interlace diff` compares two"
            )
        elif is_file(folder / "manifest.json"):
            corpora.append(_undamaged(_corpus, folder))
        elif is_file(folder / "recipe.json"):
            runs.append(_undamaged(_run, folder))
        else:
            raise ValueError(
                f"{folder} is neither a built corpus nor a run, nor a curation: "
                "it has no manifest.json, recipe.json or verdicts.parquet"
            )
    shown = [{"caption": caption, "uri": _uri(path.read_bytes(), "png")} for caption, path in pictures]
    held = {"corpora": corpora, "runs": runs, "curations": curations, "pictures": shown}
    return render(page, "report.html", **held, width=_WIDTH, height=_HEIGHT, margin=_MARGIN)


def render(page: Path, template: str, **held: Any) -> Path:
    """Write a page from a template beside this file; returns its path. Whatever is held is escaped."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(Path(__file__).with_name(template).read_text()).render(**held)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, html.encode())
    return page


def _undamaged(about: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What the function tells about a folder of ours; a file in it that is not what we write is one clear error."""
    try:
        return about(folder)
    except (KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"a file in {folder} is damaged ({type(error).__name__}: {error}): restore it") from None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run, one per step, the last attempt's where one was repeated; a torn last line is left out."""
    steps: dict[int, dict[str, Any]] = {}
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            metrics = json.loads(line)
        except json.JSONDecodeError:
            continue
        steps[metrics["step"]] = metrics
    return [steps[step] for step in sorted(steps)]


def _corpus(folder: Path) -> dict[str, Any]:
    corpus = BuiltCorpus(folder)
    return {
        "name": corpus.name,
        "counts": corpus.manifest["counts"],
        "shards": len(corpus.manifest["shards"]),
        "megabytes": sum(shard["size"] for shard in corpus.manifest["shards"]) / 1e6,
        "digest": corpus.manifest["root_digest"],
        "tasks": corpus.tasks,
        "drops": index.drops(folder),
        "examples": [example(corpus.record(place)) for place in _spread(len(corpus), _EXAMPLES)],
    }


def _curation(folder: Path, store: Path | None) -> dict[str, Any]:
    """A curation with records that it speaks of, where their corpora lie beside it."""
    manifest = curation.read_manifest(folder)
    rule, examples = manifest["step"]["curation"], []
    for name, verdicts in curation.read(folder).items():
        corpus = (store or folder.parent.parent / "corpora") / name
        if not is_file(corpus / "manifest.json"):
            continue
        opened, reasons = BuiltCorpus(corpus), verdicts.reasons.to_pylist()
        said = [place for place, reason in enumerate(reasons) if reason]
        for place in (said[spot] for spot in _spread(len(said), _EXAMPLES)):
            now = "in use" if verdicts.used[place] else "out"
            examples.append({**example(opened.record(place)), "now": now, "reason": reasons[place]})
    return {
        "name": folder.name,
        "rule": in_words({**rule, "against": [each["source"]["name"] for each in rule.get("against", ())]}),
        "told": next(curation.lines(manifest)),
        "counts": manifest["counts"],
        "reasons": manifest["reasons"],
        "table": manifest["table"],
        "examples": examples,
    }


def in_words(description: Any) -> str:
    """A described value for people: its kind, and in brackets its fields by name, none that are empty.

    Duplicates (distance 2), Above (measure ClipScore (weights OpenClip (model ViT-B-32, ...)), column score)
    """
    if isinstance(description, list):
        return ", ".join(in_words(item) for item in description)
    if not isinstance(description, dict):
        return f"{description:g}" if isinstance(description, float) else str(description)
    told = [
        f"{name.replace('_', ' ')} {in_words(value)}"
        for name, value in description.items()
        if name not in ("is", "version") and value not in (None, [], "")
    ]
    kind = str(description["is"]).rpartition(":")[2]
    return f"{kind} ({', '.join(told)})" if told else kind


def _settings(run: Path) -> list[tuple[str, str]]:
    """What a run was asked to do, name and value in words."""
    stored = json.loads((run / "recipe.json").read_bytes())
    value = stored["value"]
    optimizer = {name: setting for name, setting in value["optimizer"].items() if name not in ("is", "version")}
    architecture = {name: part for name, part in value["architecture"].items() if name not in ("is", "version")}
    kind = str(value["architecture"]["is"]).rpartition(":")[2]
    plain = ("batch", "sequence_length", "steps", "seed", "packing", "execution")
    return [
        ("recipe", str(stored["recipe"])),
        ("architecture", kind),
        *((f"  {name}", in_words(part)) for name, part in architecture.items() if part not in (None, [], "")),
        *((name.replace("_", " "), in_words(value[name])) for name in plain if value.get(name) is not None),
        ("optimizer", ", ".join(f"{name.replace('_', ' ')} {in_words(each)}" for name, each in optimizer.items())),
    ]


def _evaluated(run: Path) -> dict[str, Any] | None:
    """The last evaluation of a run, if there was one."""
    path = run / "evaluation.json"
    return json.loads(path.read_bytes()) if path.is_file() else None


def example(record: Record) -> dict[str, Any]:
    """A record as a page shows it: key, task, turns, pictures small."""
    turns = []
    for role, parts in record.turns:
        shown = [{"uri": _thumbnail(record, part)} if isinstance(part, int) else {"text": part} for part in parts]
        turns.append({"role": role, "parts": shown})
    return {"key": record.key, "task": record.task, "turns": turns}


def _run(folder: Path) -> dict[str, Any]:
    metrics = read_metrics(folder)
    plan = json.loads((folder / "plan.json").read_bytes()) if (folder / "plan.json").is_file() else {"mixture": []}
    fed: dict[str, int] = {}
    for line in metrics:
        for source, count in line["fed"].items():
            fed[source] = fed.get(source, 0) + count
    total = sum(fed.values())
    mixture = [
        {**row, "fed": fed.get(row["source"], 0), "fed_share": fed.get(row["source"], 0) / total if total else 0.0}
        for row in plan["mixture"]
    ]
    names = sorted(metrics[0]["losses"]) if metrics else []
    return {
        "name": folder.name,
        "settings": _settings(folder),
        "evaluation": _evaluated(folder),
        "done": (folder / "done.json").is_file(),
        "steps": len(metrics),
        "seconds": sum(line["seconds"] for line in metrics),
        "waiting": sum(line["data_seconds"] for line in metrics),
        "mixture": mixture,
        "curves": [_curve(name, [line["losses"][name] for line in metrics], len(metrics)) for name in names],
        "samples": _samples(folder),
    }


def _samples(folder: Path) -> list[dict[str, Any]]:
    path = folder / "samples" / "samples.jsonl"
    found = []
    for line in islice(path.open() if path.is_file() else (), 60):
        sample = json.loads(line)
        parts = [
            {"uri": _kept(folder / "samples", part["picture"])} if "picture" in part else part
            for part in sample["parts"]
        ]
        shown = [{"uri": _kept(folder / "samples" / "shown", picture["copy"])} for picture in sample["shown"]]
        found.append({**sample, "parts": parts, "shown": shown})
    return found


def _kept(folder: Path, name: str) -> str:
    """A picture beside the samples; whatever the name says, none from elsewhere."""
    file = folder / Path(name).name
    return _uri(file.read_bytes(), _KINDS[file.suffix])


def _curve(name: str, values: Sequence[float | None], steps: int) -> Curve:
    """A step without targets of this kind has no value and no point."""
    known = [(step, value) for step, value in enumerate(values) if value is not None and math.isfinite(value)]
    low, high = min((value for _, value in known), default=0.0), max((value for _, value in known), default=1.0)
    across, up = (_WIDTH - 2 * _MARGIN) / max(1, steps - 1), (_HEIGHT - 2 * _MARGIN) / ((high - low) or 1.0)
    points = [f"{_MARGIN + step * across:.1f},{_HEIGHT - _MARGIN - (value - low) * up:.1f}" for step, value in known]
    last = known[-1][1] if known else math.nan
    return Curve(name=name, points=" ".join(points), low=low, high=high, last=last, steps=steps)


def _spread(count: int, wanted: int) -> list[int]:
    return [place * count // wanted for place in range(wanted)] if count > wanted else list(range(count))


def _thumbnail(record: Record, picture: int) -> str:
    image = decoded(record.media[picture])
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return _uri(buffer.getvalue(), "jpeg")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
