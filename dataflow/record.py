"""The one type of the data side: a chat whose assistant may answer with pictures.

    source row -> Candidate -> (filters) -> Record -> tar members key.json, key.0.jpg, key.1.png, ...

Everything the assistant says is a target, nothing else is. A record is immutable and holds encoded bytes, never pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SCHEMA = 1  # of the JSON member; raise it when its fields change

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = ("system", "user", "assistant")

# group -> tasks (DESIGN: what the user says and what the assistant answers)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "understanding": ("image_qa", "video_qa", "text_qa"),
    "generation": ("text_to_image", "caption_pair"),
    "other": ("frame_prediction", "visual_thinking", "image_editing", "subject_driven"),
    "text": ("text_document", "interleaved_document"),
}
TASKS: frozenset[str] = frozenset(task for tasks in GROUPS.values() for task in tasks)

_quoted = json.JSONEncoder(ensure_ascii=False).encode  # of a string
_parsed = json.JSONDecoder().decode  # of a text; json.loads would look for its encoding first, which is ours
_KEY = re.compile(r"[a-z][a-z0-9_]*_[0-9]{9}(-[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Text:
    """Words of a message, as the corpus has them."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture of a message: `index` into the record's media."""

    index: int


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the chat."""

    role: Role
    parts: tuple[Text | Image, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """One encoded picture and what its header says: width and height in pixels."""

    data: bytes
    extension: Literal["jpg", "png"]
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a record came from: the input file, relative to its source's folder, and its row there, counted from 0."""

    file: str
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What a source makes of an input row, before filters and before it has a key."""

    task: str
    messages: tuple[Message, ...]
    media: tuple[Media, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One chat of one corpus.

    Raises:
        ValueError: from `checked()`, when key, task, roles or picture indices break the contract.
    """

    key: str
    source: str
    task: str
    messages: tuple[Message, ...]
    media: tuple[Media, ...]
    lineage: Lineage

    def checked(self) -> Record:
        """This record, once every rule of the contract holds for it."""
        if not _KEY.fullmatch(self.key):
            raise ValueError(
                f"key {self.key!r}: must be <source>_<9 digits>, optionally -<candidate>; "
                "a source's name is a lower case letter, then lower case letters, digits and underscores"
            )
        if self.task not in TASKS:
            raise ValueError(f"task {self.task!r} of {self.key}: must be one of {', '.join(sorted(TASKS))}")
        for message in self.messages:
            if message.role not in ROLES:
                raise ValueError(f"role {message.role!r} in {self.key}: must be one of {', '.join(ROLES)}")
        if not any(message.role == "assistant" and message.parts for message in self.messages):
            raise ValueError(f"{self.key}: no assistant turn, so nothing to learn from")
        used = {part.index for message in self.messages for part in message.parts if isinstance(part, Image)}
        if used != set(range(len(self.media))):
            raise ValueError(f"{self.key}: the messages use pictures {sorted(used)} but {len(self.media)} are held")
        return self

    @property
    def turns(self) -> tuple[tuple[str, tuple[str | int, ...]], ...]:
        """The chat in plain values: per turn its role and its parts, a `str` for text, an `int` for a picture."""
        return tuple(
            (message.role, tuple(part.text if isinstance(part, Text) else part.index for part in message.parts))
            for message in self.messages
        )

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each picture, as its header says."""
        return tuple((media.width, media.height) for media in self.media)

    @property
    def text_length(self) -> int:
        """Characters of text in all turns."""
        return sum([len(part.text) for message in self.messages for part in message.parts if isinstance(part, Text)])


def key(source: str, split: int, row: int, candidate: int = 0) -> str:
    """The name of a record: source, split of the corpus, row in the split counted before any filter.

    A row that gives several candidates names the later ones `-1`, `-2`, ...
    """
    if not 0 <= split < 10**5:
        raise ValueError(f"split {split} of {source}: a key holds 5 digits of split; raise rows_per_shard")
    if not 0 <= row < 10**4:
        raise ValueError(f"row {row} of a split of {source}: a key holds 4 digits of row; lower rows_per_shard")
    return f"{source}_{split:05d}{row:04d}" + (f"-{candidate}" if candidate else "")


def to_json(record: Record) -> bytes:
    """The record's JSON member: everything but the media bytes, in one stable byte form.

    Put together here: the library's encoder would take twice as long, an eighth of the time of writing a shard.

    Raises:
        ValueError: text that UTF-8 cannot hold (half a surrogate pair).
    """
    messages = ",".join(
        [
            f'{{"role":{_quoted(message.role)},"content":[{",".join([_part(part) for part in message.parts])}]}}'
            for message in record.messages
        ]
    )
    media = ",".join(
        [f'{{"extension":{_quoted(m.extension)},"width":{m.width},"height":{m.height}}}' for m in record.media]
    )
    return (
        f'{{"schema":{SCHEMA},"source":{_quoted(record.source)},"task":{_quoted(record.task)},'
        f'"messages":[{messages}],"media":[{media}],'
        f'"lineage":{{"file":{_quoted(record.lineage.file)},"row":{record.lineage.row}}}}}'
    ).encode()


def _part(part: Text | Image) -> str:
    if isinstance(part, Text):
        return f'{{"type":"text","text":{_quoted(part.text)}}}'
    return f'{{"type":"image","index":{part.index}}}'


def from_json(record_key: str, data: bytes, media: Mapping[str, bytes]) -> Record:
    """A record from its tar members.

    Args:
        record_key: the members' common name.
        data: the JSON member.
        media: the other members by extension, `0.jpg`, `1.png`, ...
    Raises:
        ValueError: an unknown schema, a missing picture, or a broken contract.
    """
    fields: Any = _parsed(data.decode())
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        found = fields.get("schema") if isinstance(fields, dict) else None
        raise ValueError(f"{record_key}: schema {found!r}, this code reads {SCHEMA}; rebuild the corpus")
    pictures = []
    for index, entry in enumerate(fields["media"]):
        name = f"{index}.{entry['extension']}"
        if name not in media:
            raise ValueError(f"{record_key}: member {name} is missing")
        pictures.append(Media(data=media[name], **entry))
    messages = tuple(
        [
            Message(
                turn["role"],
                tuple([Text(p["text"]) if p["type"] == "text" else Image(p["index"]) for p in turn["content"]]),
            )
            for turn in fields["messages"]
        ]
    )
    return Record(
        key=record_key,
        source=fields["source"],
        task=fields["task"],
        messages=messages,
        media=tuple(pictures),
        lineage=Lineage(**fields["lineage"]),
    ).checked()
