"""Folders under a root by the beginning of their names: `metamorph-tiny` is trainings/metamorph-tiny-9250fea73146.

A key is twelve hex digits that nobody types. What names a folder that is there is that folder; what holds a slash is a
path; anything else is the beginning of a name under the root.
"""

from __future__ import annotations

import re
from pathlib import Path

from dataflow import folders, stores

_KEYS = re.compile(r"(-[0-9a-f]{12}){1,2}")  # what follows a name; a corpus that --rehash found to differ has two
_SHOWN = 8  # names in an error


def folder(word: str, root: Path, *rooms: str, store: Path | None = None) -> Path:
    """The folder that a person means, absolute, or of an object store.

    Args:    rooms: folders of the root in which a name is looked for: "corpora", "selections", "trainings".
             store: where corpora are kept instead of <root>/corpora.
    Raises:  ValueError: several names begin so, none of them is the word and a key; or no name does.
    """
    if "://" in word:
        return folders.folder(word)
    path = Path(word).expanduser().absolute()
    if path.exists() or "/" in word or not word.strip("."):
        return path
    places = [store if store is not None and room == "corpora" else root / room for room in rooms]
    held = [each for place in places for each in stores.entries(place) if each.is_folder]
    names = [each.path for each in held if not each.path.name.startswith(".")]
    begun = [each for each in names if each.name.startswith(word)]
    same = [each for each in begun if each.name == word]
    found = same or [each for each in begun if _KEYS.fullmatch(each.name.removeprefix(word))] or begun
    if len(found) == 1:
        return found[0]
    looked = " or ".join(map(str, places))
    if not found:
        raise ValueError(
            f"{word!r} is no folder here, and no name under {looked} begins so: "
            f"give a path, or the --root; `interlace status --root {root}` lists what there is"
        )
    told = ", ".join(each.name for each in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise ValueError(f"{word!r} begins {len(found)} names under {looked}: {told}{more}; give more of the one you mean")
