"""What lies under a root and in which state: finished, being made now, interrupted, failed. Reads, writes nothing.

A folder is finished once it has its last file (manifest.json, done.json). Whoever makes one holds its lock, a kernel's
lock that ends with the process; the lock file says by which command, and how that failed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dataflow import stores
from dataflow.build import received
from dataflow.folders import is_remote
from pipelines.corpus import lock_of, planned
from pipelines.step import Place, last_holder

State = Literal["finished", "running", "interrupted", "failed"]
_TAIL = 1 << 16  # bytes from the end of metrics.jsonl: many steps
_COUNTED = ("measure", "selection", "curation")  # many and small: finished ones are counted, not named


@dataclass(frozen=True, kw_only=True)
class Work:
    """One folder under a root.

    kind: corpus, rows (derived), measure, curation, selection or training. told: how far, how much. who: process and
    host that holds or held it. goes_on: the command that does. failed: its error; origin: what that was about.
    """

    kind: str
    folder: Path
    state: State
    told: str
    who: str = ""
    goes_on: str = ""
    failed: str = ""
    origin: tuple[str, ...] = ()


def works(root: Path, store: Path | None = None) -> Iterator[Work]:
    """Everything under a root, kind by kind; the corpora in a store first.

    Raises:
        ValueError: there is no such folder.
    """
    if store is None and not root.is_dir():
        raise ValueError(f"no folder {root}: give --root as for the command that you ask about")
    if store is not None:
        yield from _corpora(Place(root=root, store=store))
    yield from _corpora(Place(root=root))
    for kind, where in (("rows", "derived"), ("measure", "measures"), ("selection", "selections")):
        for folder in _folders(root / where):
            yield _table(kind, folder)
        for work in _folders(root / where / ".building"):
            yield _unfinished(kind, work, lock_of(work), f"{len(list(work.glob('*.tar')))} shards")
    for run in _folders(root / "trainings"):
        if (run / "recipe.json").is_file():
            yield _training(run)


def _corpora(place: Place) -> Iterator[Work]:
    folders = _folders(place.corpora)
    manifests = stores.at_once(lambda folder: _read(folder / "manifest.json"), folders)
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest is not None:
            counts = manifest.get("counts", {})
            told = f"{counts.get('rows')} rows, {counts.get('kept')} records, {len(manifest.get('shards', ()))} shards"
            yield Work(kind="corpus", folder=folder, state="finished", told=told)
    for begun in _folders(place.corpora / ".building"):
        lock = lock_of(place.locks / begun.name)
        elsewhere = "" if lock.exists() or not is_remote(begun) else ", begun under another root, perhaps still at it"
        yield _unfinished("corpus", begun, lock, f"{_shards_done(begun)}{elsewhere}")


def lines(found: Sequence[Work]) -> Iterator[str]:
    """A line a folder, and what one wants to know of those that are not finished."""
    shown = [work for work in found if work.kind not in _COUNTED or work.state != "finished"]
    width = max((len(work.folder.name) for work in shown), default=0)
    for work in shown:
        yield f"{work.state:11}  {work.kind:9}  {work.folder.name:{width}}  {work.told}"
        if work.state == "running":
            yield f"{'':13}{work.who}"
        if work.state == "failed":
            yield f"{'':13}{work.failed}"
            for line in work.origin:
                yield f"{'':13}({line})"
        if work.goes_on and work.state in ("interrupted", "failed"):
            yield f"{'':13}goes on with: {work.goes_on}"
    small = Counter(work.kind for work in found if work.kind in _COUNTED and work.state == "finished")
    if small:
        counted = ", ".join(f"{count} {kind}{'s' * (count != 1)}" for kind, count in sorted(small.items()))
        yield f"finished     {counted}"
    states = Counter(work.state for work in found)
    yield ", ".join(f"{states[state]} {state}" for state in ("finished", "running", "interrupted", "failed"))


def _unfinished(kind: str, folder: Path, lock: Path, told: str) -> Work:
    holder = last_holder(lock)
    if holder is None:
        return Work(kind=kind, folder=folder, state="interrupted", told=told)
    state: State = "running" if holder.held else "failed" if holder.failed else "interrupted"
    return Work(
        kind=kind,
        folder=folder,
        state=state,
        told=told,
        who=holder.who,
        goes_on=holder.command,
        failed=holder.failed or "",
        origin=holder.origin,
    )


def _shards_done(work: Path) -> str:
    plan = planned(work)
    if plan is None:
        return "its splits are being planned"
    return f"{len(received(work))} of {len(plan)} shards"


def _table(kind: str, folder: Path) -> Work:
    manifest = _read(folder / "manifest.json")
    lock = folder.with_name(f".{folder.name}.lock")
    if manifest is None:
        return _unfinished(kind, folder, lock, f"{len(list(folder.glob('.[0-9]*')))} parts")
    step, counts = manifest.get("step", {}), manifest.get("counts", {})
    if "curation" in step:
        used = sum(each["used"] for each in counts.values())
        told = f"{used} of {sum(each['records'] for each in counts.values())} records used"
        return Work(kind="curation", folder=folder, state="finished", told=told)
    told = f"{counts['selected']} of {counts['records']} records" if "selected" in counts else ""
    return Work(kind=kind, folder=folder, state="finished", told=told or f"{manifest.get('records')} records")


def _training(run: Path) -> Work:
    plan = _read(run / "plan.json") or {}
    steps = plan.get("positions", "?")
    told = f"step {_last_step(run / 'metrics.jsonl')} of {steps}"
    if (run / "done.json").is_file():
        return Work(kind="training", folder=run, state="finished", told=f"{steps} steps")
    saved = sorted(path.name for path in _folders(run / "checkpoints"))
    kept = f", checkpoint {saved[-1]}" if saved else ", no checkpoint yet"
    return _unfinished("training", run, run / "lock", f"{told}{kept}")


def _last_step(metrics: Path) -> int:
    """The step of the last whole line, 0 before the first."""
    if not metrics.is_file():
        return 0
    with metrics.open("rb") as stream:
        stream.seek(max(0, metrics.stat().st_size - _TAIL))
        written = stream.read()
    for line in reversed(written.split(b"\n")[:-1]):
        try:
            return int(json.loads(line)["step"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            continue
    return 0


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, hidden ones left out; none where it is not there."""
    held = stores.entries(folder)
    return [each.path for each in held if each.is_folder and not each.path.name.startswith(".")]


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON file of ours, None where it is not there; one that is damaged says nothing."""
    try:
        held = json.loads(stores.read(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return held if isinstance(held, dict) else {}
