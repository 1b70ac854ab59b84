"""A record laid out for an architecture: chat -> token ids, which of them are learned, where pictures stand.

No torch: lengths, batching and sampling all call the same `lay_out`.

    <bos> <|start_header_id|>user<|end_header_id|>\\n <image_start> p p p p <image_end> What is it?<|eot_id|>
          <|start_header_id|>assistant<|end_header_id|>\\n A cat<|eot_id|>
    targets                                                ^^^^^^^^^^^^^
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Turns = Sequence[tuple[str, Sequence[str | int]]]
"""A chat in plain values: per turn its role and its parts, a `str` for text, an `int` for a picture of the record."""

Answer = Literal["picture", "text", "free"]

CONTROL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")


@dataclass(frozen=True, slots=True)
class Slot:
    """A picture in a document: place of its first token, index into the record's media, and whether it is an answer."""

    start: int
    picture: int
    answer: bool


@dataclass(frozen=True, slots=True)
class Document:
    """One record as a sequence: ids int[N] (0 at picture tokens), targets bool[N], the pictures' places."""

    ids: tuple[int, ...]
    targets: tuple[bool, ...]
    slots: tuple[Slot, ...]

    def __len__(self) -> int:
        return len(self.ids)


class Layout(Protocol):
    """What batching, lengths and sampling ask of an architecture."""

    def lay_out(self, turns: Turns, *, task: str, key: str) -> Document:
        """The document that trains on this chat; wording that varies is chosen by `key`."""
        ...


class Tokenizer(Protocol):
    """Text <-> ids. `control` names the template's own tokens, which no text can spell."""

    @property
    def size(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def control(self, name: str) -> int: ...


class ByteTokenizer:
    """UTF-8 bytes 0..255, then the control tokens of the Llama-3 template. For tiny models; built in code, no file."""

    size = 256 + len(CONTROL)

    def encode(self, text: str) -> list[int]:
        """The bytes of the text; nothing in it can become a control token."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the bytes; control tokens are left out, broken UTF-8 shows as U+FFFD."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def control(self, name: str) -> int:
        """The id of a control token."""
        return 256 + CONTROL.index(name)


class FileTokenizer:
    """A pretrained tokenizer from its `tokenizer.json`.

    Args:
        path: the file, or the folder of a model in the hub's layout that holds it.
    Raises:
        ValueError: no such file, or a vocabulary without the control tokens of the Llama-3 template.
    """

    def __init__(self, path: Path) -> None:
        import tokenizers

        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"no tokenizer at {file}: give a folder in the hub's layout")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        found = {name: self._tokenizer.token_to_id(name) for name in CONTROL}
        self._control = {name: number for name, number in found.items() if number is not None}
        missing = [name for name in CONTROL if name not in self._control]
        if missing:
            raise ValueError(f"{file} lacks {', '.join(missing)}: use an instruct model of the Llama-3 family")
        # a caption that spells "<|eot_id|>" must stay text
        self._tokenizer.encode_special_tokens = True
        self.size = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no begin token is added, control tokens spelled in it stay text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def control(self, name: str) -> int:
        """The id of a control token."""
        return self._control[name]


# How a picture is asked for and announced, MetaMorph section 2.2; which pair is chosen by key.
REQUESTS = ("Generate an image of {}", "Draw {}", "Show me a picture of {}", "Create an image of {}")
ANNOUNCEMENTS = ("Here is an image based on your request: ",)
_ANNOUNCED = ("text_to_image", "image_editing")  # tasks whose answer is a picture and nothing else


def choose(options: Sequence[str], key: str, purpose: str) -> str:
    """One of the options, drawn by the record's key: the same in every run, on every machine."""
    digest = hashlib.sha256(f"{purpose}/{key}".encode()).digest()
    return options[int.from_bytes(digest[:8], "big") % len(options)]


def phrased(turns: Turns, *, task: str, key: str) -> list[tuple[str, list[str | int]]]:
    """The chat with a request and an announcement around a raw caption or an edit instruction."""
    worded = [(role, list(parts)) for role, parts in turns]
    if task == "text_to_image":
        request = choose(REQUESTS, key, "request")
        for role, parts in worded:
            if role == "user":
                parts[:] = [request.format(part) if isinstance(part, str) else part for part in parts]
    if task in _ANNOUNCED:
        for role, parts in worded:
            if role == "assistant" and parts and isinstance(parts[0], int):
                parts.insert(0, choose(ANNOUNCEMENTS, key, "announcement"))
    return worded


@dataclass(frozen=True, kw_only=True)
class ChatLayout:
    """MetaMorph's chat: Llama-3 headers with one newline, each picture between <image_start> and <image_end>.

    The two picture tokens are not in the tokenizer: their ids follow its last, their rows are the model's own.
    Source: metamorph/conversation.py conv_llama_3 and train.py preprocess_multimodal, read at 0b13deb.
    """

    tokenizer: Tokenizer
    picture_tokens: int  # tokens of one picture between its two marks

    @property
    def image_start(self) -> int:
        """Id of the mark before a picture."""
        return self.tokenizer.size

    @property
    def image_end(self) -> int:
        """Id of the mark after a picture."""
        return self.tokenizer.size + 1

    @property
    def end_of_turn(self) -> int:
        """Id of the mark after a turn."""
        return self.tokenizer.control("<|eot_id|>")

    def lay_out(self, turns: Turns, *, task: str, key: str) -> Document:
        """Ids, targets and picture places of a whole chat. Everything the assistant says is a target."""
        writer = _Writer(self)
        writer.say([self.tokenizer.control("<|begin_of_text|>")])
        for role, parts in phrased(turns, task=task, key=key):
            writer.header(role)
            writer.parts(parts, target=role == "assistant")
            writer.say([self.end_of_turn], target=role == "assistant")
        return writer.document()

    def prompt(self, turns: Turns, *, task: str, key: str, answer: Answer) -> Document:
        """A chat up to where the assistant begins; `picture` also opens one, announced as in training."""
        writer = _Writer(self)
        writer.say([self.tokenizer.control("<|begin_of_text|>")])
        for role, parts in phrased(turns, task=task, key=key):
            writer.header(role)
            writer.parts(parts, target=False)
            writer.say([self.end_of_turn])
        writer.header("assistant")
        if answer == "picture":
            if task in _ANNOUNCED:
                writer.say(self.tokenizer.encode(choose(ANNOUNCEMENTS, key, "announcement")))
            writer.say([self.image_start])
        return writer.document()


class _Writer:
    """Appends to a document under construction."""

    def __init__(self, layout: ChatLayout) -> None:
        self.layout = layout
        self.ids: list[int] = []
        self.targets: list[bool] = []
        self.slots: list[Slot] = []

    def say(self, ids: Sequence[int], *, target: bool = False) -> None:
        self.ids.extend(ids)
        self.targets.extend([target] * len(ids))

    def header(self, role: str) -> None:
        tokenizer = self.layout.tokenizer
        self.say([tokenizer.control("<|start_header_id|>"), *tokenizer.encode(role)])
        self.say([tokenizer.control("<|end_header_id|>"), *tokenizer.encode("\n")])

    def parts(self, parts: Sequence[str | int], *, target: bool) -> None:
        for part in parts:
            if isinstance(part, str):
                self.say(self.layout.tokenizer.encode(part), target=target)
                continue
            self.say([self.layout.image_start], target=target)
            self.slots.append(Slot(len(self.ids), part, target))
            self.say([0] * self.layout.picture_tokens)  # learned by the picture loss, not by cross-entropy
            self.say([self.layout.image_end], target=target)

    def document(self) -> Document:
        return Document(tuple(self.ids), tuple(self.targets), tuple(self.slots))


@dataclass(frozen=True, kw_only=True)
class PictureLayout:
    """The visualizer's layout: one token per picture of the record, no text. Every picture is learned."""

    def lay_out(self, turns: Turns, *, task: str, key: str) -> Document:
        """As many tokens as the chat has pictures."""
        pictures = [part for _, parts in turns for part in parts if isinstance(part, int)]
        slots = tuple(Slot(place, picture, True) for place, picture in enumerate(pictures))
        return Document((0,) * len(pictures), (False,) * len(pictures), slots)
