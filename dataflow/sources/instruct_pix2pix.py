"""InstructPix2Pix: pairs of generated pictures and the instruction that leads from one to the other.

URL      hf.co/datasets/timbrooks/instructpix2pix-clip-filtered (parquet); instruct-pix2pix.eecs.berkeley.edu (folders)
Licence  not stated on the card; repository MIT, Stable Diffusion's terms
Layout   parquet: data/train-?????-of-00262-<16 hex>.parquet, 313,010 rows
         folders: seeds.json, 0000000/prompt.json, 0000000/{seed}_0.jpg (before), 0000000/{seed}_1.jpg (after)
Row      parquet: original_prompt, original_image {bytes, path}, edit_prompt, edited_prompt, edited_image {bytes, path}
         seeds.json: ["0000000", ["1259306393", "428914137"]], an item per prompt
         prompt.json: {"caption": "a cat on a rug", "edit": "make it snow", "output": "a cat on a rug, in snow"}
Traps    up to 4 pairs share one prompt; a picture may be null, or a path without bytes; `caption` of prompt.json is
         `input` in the prompts that people wrote (neither is used); seeds are text; folders of prompts that kept no
         pair are not in seeds.json
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow.media import Corrupt
from dataflow.record import Candidate, Image, Media, Message, Text
from dataflow.sources import Read, cell, either, opened, parsed, words


@dataclass(frozen=True, kw_only=True)
class InstructPix2Pix:
    """Each pair becomes image_editing: picture and instruction ask, the edited picture answers."""

    name: str = "instruct_pix2pix"
    version: ClassVar[int] = 2

    def files(self, folder: Path) -> list[str]:
        """The parquet files of the training split, or the list of prompts and seeds."""
        return either(folder, "data/train-*.parquet", "seeds.json")

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate | Corrupt]:
        """One candidate per parquet row, one per seed of a prompt."""
        if "value" in value:
            yield from _pairs(value["value"], read)
            return
        instruction = words(value.get("edit_prompt")).strip()
        if not instruction:
            raise Corrupt("edit_prompt is empty")
        before = cell(value.get("original_image"), "original_image")
        yield edit(before, instruction, cell(value.get("edited_image"), "edited_image"))


def edit(before: Media, instruction: str, after: Media) -> Candidate:
    """An image_editing candidate: picture and instruction ask, the edited picture answers."""
    return Candidate(
        task="image_editing",
        messages=(Message("user", (Image(0), Text(instruction))), Message("assistant", (Image(1),))),
        media=(before, after),
    )


def _pairs(item: Any, read: Read) -> Iterator[Candidate | Corrupt]:
    """The pairs of an item of seeds.json; one without its pictures does not harm the others."""
    if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], list) or not item[1]:
        raise Corrupt("the item is not [prompt id, [seed, ...]]")
    prompt, seeds = _digits(item[0], "prompt id"), item[1]
    name = f"{prompt}/prompt.json"
    fields = parsed(read(name), name)
    instruction = words(fields.get("edit") if isinstance(fields, dict) else None).strip()
    if not instruction:
        raise Corrupt(f"{name} has no edit")
    for place, seed in enumerate(seeds):
        try:
            if seed in seeds[:place]:
                raise Corrupt(f"seed {seed!r} comes twice")
            pair = f"{prompt}/{_digits(seed, 'seed')}"
            yield edit(opened(read, f"{pair}_0.jpg"), instruction, opened(read, f"{pair}_1.jpg"))
        except Corrupt as problem:
            yield problem


def _digits(name: Any, what: str) -> str:
    """A part of a path, once it can be nothing but a number."""
    if not isinstance(name, str) or not (name.isascii() and name.isdigit()):
        raise Corrupt(f"{what} {name!r:.50} is not digits in quotes")
    return name
