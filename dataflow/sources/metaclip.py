"""MetaCLIP image-text pairs: a picture and the texts that the web gave it.

URL      github.com/facebookresearch/MetaCLIP (the pairs themselves are not public; users bring CC12M or their own)
Licence  CC-BY-NC-4.0 for the code; the pictures are the web's
Layout   {shard_id % 100}/{shard_id}.tar, members alternating {uuid}.jpeg, {uuid}.json
Row      {"uuid": "9f86d081884c7d659a2feaa0", "url": "http://...", "texts": [["alt", "a red bus in the rain"], ...]}
Traps    the extension is .jpeg, not .jpg; there is no .txt; one picture has several texts, and its own loader draws one
         of them at each epoch: here one is drawn by key, so that a picture stays one record
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow.media import Corrupt, picture
from dataflow.readers import text
from dataflow.record import Candidate, Image, Message, Text
from dataflow.sources import Read, matching


@dataclass(frozen=True, kw_only=True)
class MetaClip:
    """Each sample becomes text_to_image: the raw caption asks, the picture answers."""

    name: str = "metaclip"
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        """The tars, one folder deep."""
        return matching(folder, "*/*.tar")

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per sample."""
        if "jpeg" not in value or "json" not in value:
            raise Corrupt(f"sample has members {sorted(set(value) - {'__key__'})}, needs jpeg and json")
        captions = [words for words in _texts(value["json"]) if words]
        if not captions:
            raise Corrupt("no text for the picture")
        draw = int.from_bytes(hashlib.sha256(f"caption/{key}".encode()).digest()[:8], "big")
        caption = captions[draw % len(captions)]
        yield Candidate(
            task="text_to_image",
            messages=(Message("user", (Text(caption),)), Message("assistant", (Image(0),))),
            media=(picture(value["jpeg"]),),
        )


def _texts(data: bytes) -> list[str]:
    try:
        fields = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise Corrupt(f"the json member does not parse: {type(error).__name__}") from None
    entries = fields.get("texts") if isinstance(fields, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, list) and len(entry) >= 2 for entry in entries):
        raise Corrupt("texts is not a list of [kind, text]")
    return [text(entry[1]).strip() for entry in entries]
