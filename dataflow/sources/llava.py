"""LLaVA-style picture chats: LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision, and anybody's own file in that shape.

URL      hf.co/datasets/liuhaotian/LLaVA-Instruct-150K, file llava_v1_5_mix665k.json;
         hf.co/datasets/lmms-lab/LLaVA-OneVision-Data
Licence  CC-BY-4.0 (LLaVA-1.5, unverified), apache-2.0 on OneVision's card; pictures are third parties'
Layout   a JSON list or JSONL with picture folders beside it (coco/train2017, gqa/images, ...); or parquet, a folder per
         part, pictures inside; or a YAML of parts: `datasets: [{json_path: a.json, sampling_strategy: all}, ...]`
Row      {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
          "conversations": [{"from": "human", "value": "<image>\\nWhat colour is the bus?"},
                            {"from": "gpt", "value": "White and red."}]}
         `image` may be a list, in parquet {bytes, path} or a list of those; `images` is another spelling of it
Traps    text-only rows have no `image`, and "model": ""; 72,140 ids are integers; ShareGPT rows that begin with an
         answer; `video` rows; names of OneVision's parts hold brackets and commas
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import yaml

from dataflow import folders
from dataflow.media import Corrupt, Media, picture, summary
from dataflow.readers import text
from dataflow.record import Candidate, Image, Message, Role, Text
from dataflow.sources import Read, matching, named, words

_MOST = 70  # pictures of a row: MetaMorph's trainer skips rows of more
_LISTING = 1 << 20  # bytes of a YAML of parts
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True, kw_only=True)
class Llava:
    """Rows with pictures become image_qa, rows without become text_qa.

    listing: which files, as globs: `*.json`, `*.jsonl`, `*/*.parquet`; or YAML files that list them.
    """

    name: str = "llava"
    listing: tuple[str, ...] = ("*.json",)
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        """The files of the listing; in place of a YAML those it lists, in its order.

        Raises:
            ValueError: nothing matches, or a YAML asks for other than whole files of this folder, each once.
        """
        made: list[str] = []
        for file in matching(folder, *self.listing):
            made += _parts(folder, file) if PurePosixPath(file).suffix in (".yaml", ".yml") else [file]
        if twice := next((file for file in made if made.count(file) > 1), None):
            raise ValueError(
                f"{twice} is listed {made.count(twice)} times: a corpus holds each file once; "
                "list it once and give it more passes in the mixture"
            )
        return made

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        if video := named(value.get("video")):
            raise Corrupt(f"video {video!r}: rows of videos are read by the sources VideoStar and ShareGptVideo")
        media = tuple(_pictures(value.get("image"), read) or _pictures(value.get("images"), read))
        messages = conversation(value.get("conversations"), pictures=len(media))
        yield Candidate(task="image_qa" if media else "text_qa", messages=messages, media=media)


def conversation(turns: Any, *, pictures: int) -> tuple[Message, ...]:
    """LLaVA's `conversations` as messages; each `<image>` is replaced by the next picture, where it stands.

    Raises:
        Corrupt: not a chat that alternates and ends with an answer, more or fewer <image> than pictures, or one of
            them in an answer, where it would become a picture to learn.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Corrupt("conversations is not a list of turns")
    messages: list[Message] = []
    used = 0
    for turn in turns:
        speaker = text(turn.get("from"))
        role = _ROLES.get(speaker)
        if role is None:
            raise Corrupt(f"turn from {speaker!r}: only human, gpt and system speak")
        parts: list[Text | Image] = []
        first, *others = words(turn.get("value")).split("<image>")
        if said := first.strip():
            parts.append(Text(said))
        for piece in others:
            parts.append(Image(used))
            used += 1
            if said := piece.strip():
                parts.append(Text(said))
        if not parts:
            raise Corrupt(f"an empty {speaker} turn")
        messages.append(Message(role, tuple(parts)))
    if used != pictures:
        raise Corrupt(f"{pictures} picture{'s' * (pictures != 1)} but {used} <image> in the text")
    spoken = [message.role for message in messages if message.role != "system"]
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise Corrupt(f"turns are {', '.join(spoken) or 'none'}: they must be user, assistant, user, assistant, ...")
    if used and any(isinstance(part, Image) for turn in messages if turn.role == "assistant" for part in turn.parts):
        raise Corrupt("<image> in an answer: it would become a picture to learn")
    return tuple(messages)


def _pictures(field: Any, read: Read) -> list[Media]:
    """The pictures of `image` or `images`: none, one, or a list; each a path, or parquet's {bytes, path}."""
    if not isinstance(field, list):
        data = _data(field, read)
        return [] if data is None else [picture(data)]
    if len(field) > _MOST:
        raise Corrupt(f"{len(field)} pictures in a row: over {_MOST}")
    held = []
    for index, cell in enumerate(field):
        data = _data(cell, read)
        if data is None:
            raise Corrupt(f"picture {index} of {len(field)} is {cell!r}: neither a path nor bytes")
        try:
            held.append(picture(data))
        except Corrupt as problem:
            raise Corrupt(f"picture {index} of {len(field)}: {problem}") from None
    return held


def _data(cell: Any, read: Read) -> bytes | None:
    if isinstance(cell, dict):
        data = cell.get("bytes")
        if isinstance(data, bytes):
            return data
        if data is not None:
            raise Corrupt(f"bytes of a picture hold {type(data).__name__}")
        cell = cell.get("path")
    path = named(cell)
    return read(path) if path else None


def _parts(folder: Path, file: str) -> Iterator[str]:
    """The files that a YAML of parts lists, relative to the folder."""
    path = folder / file
    if not folders.is_file(path) or folders.size(path) > _LISTING:
        raise ValueError(f"{file} is no file of at most {_LISTING} bytes: a list of parts is short")
    try:
        with folders.opened(path) as stream:
            text = stream.read().decode()
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it has aliases, which a list of parts does not need")
        listed = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is not YAML that can be read: {summary(error)}") from None
    parts = listed.get("datasets") if isinstance(listed, dict) else None
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and isinstance(part.get("json_path"), str) for part in parts
    ):
        raise ValueError(f"{file} lists no parts: it needs `datasets:`, a list of entries with json_path")
    for part in parts:
        path, strategy = part["json_path"], str(part.get("sampling_strategy", "all"))
        if strategy != "all":
            raise ValueError(
                f"{file} takes {strategy!r} of {path}: a corpus holds whole files; make this part a corpus of its own "
                f"and give it an amount in the mixture"
            )
        place = PurePosixPath(path)
        if place.is_absolute() and place.is_relative_to(str(folder)):
            place = place.relative_to(str(folder))
        if place.is_absolute() or ".." in place.parts or not folders.is_file(folder / str(place)):
            raise ValueError(f"{file} lists {path}: no file of {folder}; write its path from there")
        yield place.as_posix()
