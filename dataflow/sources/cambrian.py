"""Cambrian-7M / 10M: instruction tuning with pictures, from many public sets in one JSONL.

URL      hf.co/datasets/nyu-visionx/Cambrian-10M
Licence  apache-2.0 on the card; subsets vary
Layout   jsons/*.jsonl, picture folders beside it (coco/, gqa/, ...: one tar.gz each upstream)
Row      {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
          "conversations": [{"from": "human", "value": "<image>\\nWhat colour is the bus?"},
                            {"from": "gpt", "value": "White and red."}], "source": "..."}
Traps    text-only rows have no `image`, or null, '', 'None', 'none', 'nan'; integer ids; a first turn that is not
         human; several <image> for one picture; paths that differ in case from the disk
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow.media import Corrupt, picture
from dataflow.readers import text
from dataflow.record import Candidate, Image, Message, Text
from dataflow.sources import Read, matching

_NO_PICTURE = ("", "none", "nan", "null")  # cambrian/train/train_fsdp.py _has_image, cases folded
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True, kw_only=True)
class Cambrian:
    """Rows with a picture become image_qa, rows without become text_qa."""

    name: str = "cambrian"
    jsonl: str = "jsons/*.jsonl"  # which files of the layout; the full set ships several overlapping ones
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        """The JSONL files."""
        return matching(folder, self.jsonl)

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        image = value.get("image")
        if isinstance(image, list):
            raise Corrupt(f"{len(image)} pictures in a list: Cambrian rows hold one")
        path = text(image).strip()
        media = () if path.lower() in _NO_PICTURE else (picture(read(path)),)
        messages = conversation(value.get("conversations"), pictures=len(media))
        if any(isinstance(part, Image) for turn in messages if turn.role == "assistant" for part in turn.parts):
            raise Corrupt("<image> in an answer: it would become a picture to learn")
        yield Candidate(task="image_qa" if media else "text_qa", messages=messages, media=media)


def conversation(turns: Any, *, pictures: int) -> tuple[Message, ...]:
    """LLaVA's `conversations` as messages; each `<image>` is replaced by the next picture, where it stands.

    Raises:
        Corrupt: not a chat that alternates and ends with an answer, or as many <image> as pictures are missing.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Corrupt("conversations is not a list of turns")
    messages: list[Message] = []
    used = 0
    for turn in turns:
        speaker = text(turn.get("from"))
        if speaker not in _ROLES:
            raise Corrupt(f"turn from {speaker!r}: only human, gpt and system speak")
        parts: list[Text | Image] = []
        for index, piece in enumerate(text(turn.get("value")).split("<image>")):
            if index:
                parts.append(Image(used))
                used += 1
            if words := piece.strip():
                parts.append(Text(words))
        if not parts:
            raise Corrupt(f"an empty {speaker} turn")
        messages.append(Message(_ROLES[speaker], tuple(parts)))  # type: ignore[arg-type]
    if used != pictures:
        raise Corrupt(f"{pictures} pictures but {used} <image> in the text")
    spoken = [message.role for message in messages if message.role != "system"]
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise Corrupt(f"turns are {', '.join(spoken) or 'none'}: they must be user, assistant, user, assistant, ...")
    return tuple(messages)
