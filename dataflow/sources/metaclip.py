"""MetaCLIP image-text pairs: a picture and the texts that the web gave it, or pairs that img2dataset obtained.

URL      github.com/facebookresearch/MetaCLIP (the pairs themselves are not public; users bring CC12M or their own)
Licence  CC-BY-NC-4.0 for the code; the pictures are the web's
Layout   MetaCLIP: {shard_id % 100}/{shard_id}.tar, members alternating {uuid}.jpeg, {uuid}.json
         img2dataset: 00000.tar (members {key}.jpg or .png or .webp, {key}.json, {key}.txt), 00000.parquet,
         00000_stats.json
Row      {"uuid": "9f86d081884c7d659a2feaa0", "url": "http://...", "texts": [["alt", "a red bus in the rain"], ...]}
         img2dataset: 000000017.jpg, 000000017.txt "a red bus in the rain", and a json of what the download was like
Traps    the extension is .jpeg, not .jpg; there is no .txt; one picture has several texts, and its own loader draws one
         of them at each epoch: here one is drawn by key, so that a picture stays one record
         img2dataset: a shard without _stats.json is not finished and is refused; its parquet lists every URL, also
         those that failed and are in no tar, so keys have gaps; a caption of null is an empty .txt; without
         --caption_col there is no .txt at all; `exif` in the json is JSON in a string
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow import folders
from dataflow.draw import draw
from dataflow.media import Corrupt
from dataflow.record import Candidate
from dataflow.sources import Read, cell, parsed, words
from dataflow.sources.captions import asked, finished

_OBTAINED = ("jpg", "png", "webp")  # img2dataset's --encode_format


@dataclass(frozen=True, kw_only=True)
class MetaClip:
    """Each sample becomes text_to_image: the raw caption asks, the picture answers."""

    name: str = "metaclip"
    version: ClassVar[int] = 2

    def files(self, folder: Path) -> list[str]:
        """The tars: one folder deep (MetaCLIP), and at the top (img2dataset)."""
        top = ("*.tar",) if next(folders.glob(folder, "*.tar"), None) else ()
        return finished(folder, "*/*.tar", *top)

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per sample."""
        obtained = [extension for extension in _OBTAINED if extension in value]
        if "jpeg" in value and "json" in value:
            captions, image = _texts(value["json"]), "jpeg"
        elif "txt" in value and len(obtained) == 1:
            captions, (image,) = [words(value["txt"]).strip()], obtained
        else:
            members = sorted(set(value) - {"__key__"})
            raise Corrupt(
                f"sample has members {members}, needs jpeg and json, or txt and one of {', '.join(_OBTAINED)}"
            )
        captions = [caption for caption in captions if caption]
        if not captions:
            raise Corrupt("no text for the picture")
        yield asked(captions[draw(key, "caption", len(captions))], cell(value[image], image))


def _texts(data: bytes) -> list[str]:
    fields = parsed(data, "the json member")
    entries = fields.get("texts") if isinstance(fields, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, list) and len(entry) >= 2 for entry in entries):
        raise Corrupt("texts is not a list of [kind, text]")
    return [words(entry[1]).strip() for entry in entries]
