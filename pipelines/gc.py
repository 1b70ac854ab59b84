"""What under a root nothing refers to any more, and its removal. Trainings are never touched.

    corpus      superseded: a newer one was built by the same recipe from the same folder, and the files it was built
                from are no longer what lies there; or it is of a schema that this code does not read
    work folder interrupted, and the corpus was finished since from newer input; of a store also the parts of a corpus
                that nobody builds any more
    rows, measure, selection, curation     of a corpus that is gone or goes

Kept is what a training's plan.json names; a training that names no corpora keeps all of its sources. Where it is not
known what a folder was made from it stays.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflow import folders, index, stores
from dataflow.folders import is_remote
from pipelines.corpus import Remembered, lock_of, remembered, stores_of
from pipelines.step import Place, alone, finished, last_holder

_NAME = re.compile(r"[a-z][a-z0-9_]*(-[0-9a-f]{12}){1,2}")  # of a corpus
_REMOVED = ".removed-"  # what a folder is called while it is being removed: half of one must not look whole


@dataclass(frozen=True, kw_only=True)
class Unreferenced:
    """A folder or file that nothing refers to. size: bytes of what is in it. lock: of whoever would write it."""

    path: Path
    why: str
    size: int
    lock: Path | None


@dataclass(frozen=True, kw_only=True)
class _Built:
    """A finished corpus: what its manifest and the note of its input say."""

    folder: Path
    digest: str
    recipe_key: str
    schema: Any
    input: Remembered | None


def unreferenced(root: Path, store: Path | None = None) -> list[Unreferenced]:
    """What could go, corpora first.

    Args:  store: where corpora are kept, too: what could go of them, and what was made of them stays.
    Raises:
        ValueError: there is no such folder, or it has tables of corpora that are kept elsewhere.
    """
    if store is None and not root.is_dir():
        raise ValueError(f"no folder {root}: give --root as for the command that wrote it")
    for other in stores_of(root):
        if str(other) != str(store):  # paths of one place differ when their clients were told otherwise
            raise ValueError(
                f"{root} holds what was made of corpora in {other}: give --corpora {other}, to tell what is in use"
            )
    named, sources, selections, all_selections = _trained_on(root)
    found: list[Unreferenced] = []
    digests: set[str] = set()
    for place in [Place(root=root)] if store is None else [Place(root=root), Place(root=root, store=store)]:
        corpora = stores.at_once(_built, finished(stores.inside(place.corpora, "[a-z]*-*")))
        for number, one in enumerate(corpora):
            kept = one.folder.name in named or one.folder.name.split("-")[0] in sources or None in sources
            why = None if kept else _superseded(one, corpora[number + 1 :])
            if why:
                found.append(_of(one.folder, why, lock_of(place.locks / _work_of(one.folder))))
        gone = {each.path for each in found}
        digests |= {one.digest for one in corpora if one.folder not in gone}
        found += _left_over(place, corpora)
    for where in ("derived", "measures", "selections"):
        for folder in finished((root / where).glob("[!.]*")):
            kept = where == "selections" and (all_selections or folder.name in selections)
            lost = [] if kept else [name for name, digest in _made_of(folder) if digest not in digests]
            if lost:
                lock = folder.with_name(f".{folder.name}.lock")
                found.append(_of(folder, f"made of {lost[0] or 'a corpus'}, which is gone or goes", lock))
    for where in ("", "corpora", "derived", "measures", "selections"):
        left = [*(root / where).glob(f"{_REMOVED}*"), *(root / where).glob(".nonce-*")]
        found += [_of(path, "left by a command that was killed", None) for path in sorted(left)]
    return found


def _left_over(place: Place, corpora: Sequence[_Built]) -> Iterator[Unreferenced]:
    """What builds began and nobody goes on with."""
    held = [each.path for each in stores.entries(place.corpora / ".building") if each.is_folder]
    begun = {work.name: work for work in held if not work.name.startswith(".")}
    whole = {one.folder.name for one in corpora}
    over = {name: why for name, work in begun.items() if (why := _overtaken(work, corpora))}
    if is_remote(place.corpora):
        over |= dict.fromkeys(begun.keys() & whole, "left by a build that was killed when it had finished")
    for name, why in sorted(over.items()):
        yield _of(begun[name], why, lock_of(place.locks / name))
    if not is_remote(place.corpora):
        return
    for each in stores.entries(place.corpora):
        name = each.path.name
        if name.startswith(".nonce-"):
            yield _of(each.path, "left by a command that was killed", None)
        elif each.is_folder and _NAME.fullmatch(name) and name not in whole and (name not in begun or name in over):
            yield _of(each.path, "parts of a corpus that nobody builds any more", lock_of(place.locks / name))


def freed(found: list[Unreferenced]) -> int:
    """The bytes that the disk gets back: a file with a link that stays gives none, one with several is counted once."""
    links: Counter[tuple[int, int]] = Counter()
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for each in found:
        for status in () if is_remote(each.path) else _statuses(each.path):
            name = status.st_dev, status.st_ino
            links[name] += 1
            sizes[name] = status.st_nlink, status.st_size
    stored = sum(each.size for each in found if is_remote(each.path))
    return stored + sum(size for name, (held, size) in sizes.items() if links[name] >= held)


def delete(found: list[Unreferenced], root: Path, store: Path | None = None) -> None:
    """Remove these.

    Args:  store: as for `unreferenced`.
    Raises:
        ValueError: somebody builds, measures or selects under the root.
    """
    building = {Place(root=root, store=store).locks, Place(root=root).locks, root / "measures" / ".building"}
    locks = [lock for folder in sorted(building) for lock in folder.glob("*.lock")]
    for where in ("derived", "measures", "selections"):
        locks += (root / where).glob(".*.lock")
    for lock in locks:
        if (holder := last_holder(lock)) and holder.held:
            raise ValueError(f"{lock.name.removesuffix('.lock')} is being made by {holder.who}: wait for it to end")
    for each in found:
        with ExitStack() as stack:
            if each.lock is not None:
                stack.enter_context(alone(each.lock, each.path.name))
            _remove(each.path)
            if each.lock is not None:
                each.lock.unlink()
    for corpora in (root / "corpora", *(() if store is None else (store,))):
        there = [*stores.entries(corpora), *stores.entries(corpora / ".building")]
        names = {_work_of(each.path) for each in there if each.is_folder}
        notes = stores.inside(corpora / ".inputs", "*.json")
        stores.remove([note for note in notes if note.stem not in names])


def lines(found: list[Unreferenced], root: Path) -> Iterator[str]:
    """What could go, with its size and why, and what the disk would get back."""
    names = [str(each.path.relative_to(root) if each.path.is_relative_to(root) else each.path) for each in found]
    width = max(map(len, names), default=0)
    for name, each in zip(names, found, strict=True):
        yield f"{name:{width}}  {_bytes(each.size):>9}  {each.why}"
    kept = sum(each.size for each in found) - (back := freed(found))
    shared = f"; {_bytes(kept)} of them are links to files that stay" if kept else ""
    yield f"{len(found)} unreferenced under {root}, {_bytes(back)} for the disk{shared}"


def _built(folder: Path) -> _Built:
    manifest = index.any_manifest(folder)
    return _Built(
        folder=folder,
        digest=manifest.get("root_digest", ""),
        recipe_key=manifest.get("recipe_key", ""),
        schema=manifest.get("schema"),
        input=remembered(folder.parent, folder.name),
    )


def _superseded(one: _Built, later: list[_Built]) -> str | None:
    """Why a corpus is not used again, None where it may be."""
    if one.schema != index.SCHEMA:
        return f"of schema {one.schema}, which this code does not read"
    if one.input is None:
        return None
    newer = [
        each for each in later if each.input and _same(each.input, one.input) and each.recipe_key == one.recipe_key
    ]
    again = any(each.input and each.input.files == one.input.files for each in newer)  # a rehash of the same input
    if newer and (again or not _lies_there(one.input)):
        return f"superseded by {newer[-1].folder.name}, of the same recipe and folder"
    return None


def _same(one: Remembered, other: Remembered) -> bool:
    return one.folder == other.folder and one.recipe_key == other.recipe_key


def _lies_there(noted: Remembered) -> bool:
    """Whether the files are those that were noted, so that a build would find its corpus built."""
    folder = folders.folder(noted.folder)
    if is_remote(folder):
        return folders.stamps(folder, list(noted.files)) == noted.files
    for file, stamp in noted.files.items():
        try:
            status = (folder / file).stat()
        except OSError:
            return False
        if (status.st_size, status.st_mtime_ns) != stamp:
            return False
    return True


def _overtaken(work: Path, corpora: Sequence[_Built]) -> str | None:
    noted = remembered(work.parent.parent, work.name)
    if noted is None or _lies_there(noted):
        return None
    begun = stores.changed(work / ".plan.json") if is_remote(work) else work.stat().st_mtime_ns
    for one in corpora:
        finished_then = stores.changed(one.folder / "manifest.json") or 0
        if one.input and _same(one.input, noted) and finished_then > (begun or 0):
            return f"interrupted; {one.folder.name} was finished since, of the same recipe and folder"
    return None


def _trained_on(root: Path) -> tuple[set[str], set[str | None], set[str], bool]:
    """What trainings refer to: corpora by name; sources of those that name none, None for all of them; selections by
    name, and whether all of these stay."""
    corpora: set[str] = set()
    sources: set[str | None] = set()
    selections: set[str] = set()
    unsaid = False
    for recipe in (root / "trainings").glob("*/recipe.json"):
        plan = _read(recipe.with_name("plan.json"))
        if "corpora" in plan:
            corpora |= set(plan["corpora"])
            selections |= set(plan["selections"])
        else:
            unsaid = True
            sources |= {row["source"] for row in plan["mixture"]} if "mixture" in plan else {None}
    return corpora, sources, selections, unsaid


def _made_of(folder: Path) -> list[tuple[str, str]]:
    """Names and root digests of the corpora that a table was made of; none where it does not say."""
    manifest = _read(folder / "manifest.json")
    step = manifest.get("step", {})
    if "curation" in step:
        return [(name, digest) for name, digest in (*step.get("corpora", ()), *step.get("against", ()))]
    digest = manifest.get("corpus_digest") or step.get("corpus")
    return [(manifest.get("corpus", ""), digest)] if digest else []


def _remove(path: Path) -> None:
    """First the name goes, at once, then what is in it; of a corpus in a store first what makes it one."""
    if is_remote(path):
        stores.remove([path / "manifest.json"])
        stores.remove([each.path for each in stores.under(path)])
        return
    if path.name.startswith(_REMOVED) or not path.is_dir():
        away = path
    else:
        away = path.with_name(f"{_REMOVED}{path.name}")
        path.rename(away)
    if away.is_dir():
        shutil.rmtree(away)
    else:
        away.unlink()


def _of(path: Path, why: str, lock: Path | None) -> Unreferenced:
    sizes = [each.size for each in stores.under(path)] if is_remote(path) else [s.st_size for s in _statuses(path)]
    return Unreferenced(path=path, why=why, size=sum(sizes), lock=lock)


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """Of the files in a folder, or of a file; links to elsewhere are not followed."""
    if not path.is_dir():
        yield path.lstat()
        return
    for file in path.rglob("*"):
        if not file.is_dir() or file.is_symlink():
            yield file.lstat()


def _work_of(folder: Path) -> str:
    """Name of the work folder that a corpus was built in."""
    return "-".join(folder.name.split("-")[:2])


def _read(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return held if isinstance(held, dict) else {}


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
