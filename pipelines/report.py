"""One page about corpora and runs, whole in itself: it opens from disk with no network. Every caption is escaped.

Several runs stand in common plots, each in a colour of its own; those of each are in `compared.py`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment
from PIL import Image

from dataflow import curation, index
from dataflow.build import write_atomically
from dataflow.folders import is_file
from dataflow.index import BuiltCorpus
from dataflow.media import decoded
from dataflow.record import Record
from pipelines import compared, watched
from pipelines.compared import Told

Shown = TypeVar("Shown")

_THUMBNAIL = 96  # pixels of the longer side
_EXAMPLES = 8  # records shown of each corpus
_KINDS = {".png": "png", ".jpg": "jpeg"}
_TIMES = 10  # steps at which answers to a prompt are shown, evenly spread, the first and the last among them


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
    corpora, runs, curations = [], list[Path](), []
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
            runs.append(folder)
        else:
            raise ValueError(
                f"{folder} is neither a built corpus nor a run, nor a curation: "
                "it has no manifest.json, recipe.json or verdicts.parquet"
            )
    shown = [{"caption": caption, "uri": _uri(path.read_bytes(), "png")} for caption, path in pictures]
    held = {"corpora": corpora, "curations": curations, "pictures": shown}
    return render(page, "report.html", **held, **_side_by_side(list(dict.fromkeys(runs))))


def render(page: Path, template: str, **held: Any) -> Path:
    """Write a page from a template beside this file; returns its path. Whatever is held is escaped."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(Path(__file__).with_name(template).read_text()).render(**held)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, html.encode())
    return page


def _undamaged(about: Callable[[Path], Shown], folder: Path) -> Shown:
    """What the function tells about a folder of ours; a file in it that is not what we write is one clear error."""
    try:
        return about(folder)
    except (KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"a file in {folder} is damaged ({type(error).__name__}: {error}): restore it") from None


def _side_by_side(folders: Sequence[Path]) -> dict[str, Any]:
    """What the page shows of all runs together, and of each."""
    named = enumerate(zip(compared.names(folders), folders, strict=True))
    told = [_undamaged(partial(compared.read, number, name), folder) for number, (name, folder) in named]
    return {
        "told": told,
        "last": compared.LAST,
        "table": compared.table(told),
        "shares": compared.shares(told),
        "differences": compared.differences(told, in_words),
        "plots": compared.plots(told),
        "watched": _watched(told),
        "runs": [_undamaged(partial(_run, run), run.folder) for run in told],
    }


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


def _run(run: Told, folder: Path) -> dict[str, Any]:
    total = run.fed.total()
    mixture = [
        {**row, "fed": run.fed[row["source"]], "fed_share": run.fed[row["source"]] / total if total else 0.0}
        for row in run.planned
    ]
    return {
        "name": run.name,
        "number": run.number,
        "settings": _settings(folder),
        "evaluation": _evaluated(folder),
        "done": (folder / "done.json").is_file(),
        "steps": len(run.steps),
        "seconds": run.total("seconds") or 0.0,
        "waiting": run.total("data_seconds") or 0.0,
        "mixture": mixture,
        "attempts": [
            {**json.loads(path.read_bytes()), "name": path.parent.name}
            for path in sorted((folder / "ray").glob("attempt-*/attempt.json"))
        ],
        "samples": _samples(folder),
    }


def _watched(runs: Sequence[Told]) -> list[dict[str, Any]]:
    """For each prompt that was answered while runs trained: of each run its answers, step by step."""
    prompts: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        answers: dict[str, dict[int, list[dict[str, Any]]]] = {}
        for step, lines in _undamaged(watched.kept, run.folder).items():
            for line in lines:
                answers.setdefault(line["prompt"], {}).setdefault(step, []).extend(line["parts"])
        for prompt, steps in answers.items():
            at = list(steps)
            shown = [at[place] for place in sorted({(len(at) - 1) * n // max(1, _TIMES - 1) for n in range(_TIMES)})]
            cells = [{"step": step, "parts": [_part(run.folder, step, part) for part in steps[step]]} for step in shown]
            prompts.setdefault(prompt, []).append({"run": run, "cells": cells})
    return [{"prompt": prompt, "rows": rows} for prompt, rows in prompts.items()]


def _part(run: Path, step: int, part: dict[str, Any]) -> dict[str, Any]:
    """Text as it is, a picture small."""
    if "picture" not in part:
        return part
    file = watched.folder(run, step) / Path(part["picture"]).name
    with Image.open(file) as image:
        if max(image.size) <= _THUMBNAIL:
            return {"uri": _uri(file.read_bytes(), _KINDS[file.suffix])}
        return {"uri": _small(image.convert("RGB"))}


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


def _spread(count: int, wanted: int) -> list[int]:
    return [place * count // wanted for place in range(wanted)] if count > wanted else list(range(count))


def _thumbnail(record: Record, picture: int) -> str:
    return _small(decoded(record.media[picture]))


def _small(image: Image.Image) -> str:
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return _uri(buffer.getvalue(), "jpeg")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
