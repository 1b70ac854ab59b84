"""Instruction pairs as MetaQuery's: from pictures that stood on one page, a prompt that leads to another of them.

URL      made here, of a built mmc4 (or any corpus of pages); the recipe is MetaQuery's, arXiv:2504.06256 section 4
Licence  the corpus' own; the instructions are the writer's, a model of its own licence
Layout   rows of a built corpus, dataflow/derived.py: 00000.jsonl, ...
Row      {"key": "mmc4_000000000", "shard": "00000.tar", ...,
          "instructions": {"groups": [[0, 2, 1]], "replies": ["They show ... [The same harbour at night.]"]}}
Traps    the last of a group is its target; a reply is a model's and may hold no prompt in brackets
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow import derived, pairs
from dataflow.media import Corrupt, LeftOut
from dataflow.record import Candidate, Image, Message, Text
from dataflow.sources import Read, matching


@dataclass(frozen=True, kw_only=True)
class Mmc4Pairs:
    """Each group of a record's pictures becomes subject_driven: pictures and prompt ask, the target picture answers."""

    name: str = "mmc4_pairs"
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        """The rows of the built corpus, a file per shard."""
        return matching(folder, "*.jsonl")

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate | Corrupt]:
        """One candidate per group."""
        written = value["instructions"]
        if not written["groups"]:
            raise LeftOut("no two of its pictures have captions that are alike")
        media = derived.record(value, read).media
        for group, reply in zip(written["groups"], written["replies"], strict=True):
            prompt = pairs.prompt(reply)
            if not prompt:
                yield Corrupt(f"the writer's reply has no prompt in brackets: {reply[:100]!r}")
                continue
            asked = (*(Image(place) for place in range(len(group) - 1)), Text(prompt))
            yield Candidate(
                task="subject_driven",
                messages=(Message("user", asked), Message("assistant", (Image(len(group) - 1),))),
                media=tuple(media[index] for index in group),
            )
