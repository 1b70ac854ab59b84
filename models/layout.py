"""A record laid out for an architecture: chat -> token ids, which of them are learned, where pictures stand.

No torch: lengths, batching and sampling all call the same `lay_out`.

    <bos> <|start_header_id|>user<|end_header_id|>\\n <image_start> p p p p <image_end> What is it?<|eot_id|>
          <|start_header_id|>assistant<|end_header_id|>\\n A cat<|eot_id|>
    targets                                                ^^^^^^^^^^^^^
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from models.views import Patches, Tiles

Turns = Sequence[tuple[str, Sequence[str | int]]]
"""A chat in plain values: per turn its role and its parts, a `str` for text, an `int` for a picture of the record."""

Answer = Literal["picture", "text", "free"]

Size = tuple[int, int]
"""Width and height of a picture in pixels, as its header says."""

ViewName = Literal["seen", "drawn"]


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a family of language models writes chats and documents: names of its control tokens, and text between them.

    begin: of a document, None where the family has none; a chat then begins with its first turn.
    opens, closes: around a role; gap: text after it. ends: a turn; after: text behind that. stops: a document.
    """

    begin: str | None
    opens: str | None
    closes: str | None
    gap: str
    ends: str | None
    after: str
    stops: str

    @property
    def controls(self) -> tuple[str, ...]:
        """All its control tokens."""
        named = (self.begin, self.opens, self.closes, self.ends, self.stops)
        return tuple(dict.fromkeys(name for name in named if name is not None))


# MetaMorph's own form of Llama-3's: one newline after a header; metamorph/conversation.py conv_llama_3 at 0b13deb
LLAMA3 = Template(
    begin="<|begin_of_text|>",
    opens="<|start_header_id|>",
    closes="<|end_header_id|>",
    gap="\n",
    ends="<|eot_id|>",
    after="",
    stops="<|end_of_text|>",
)
# Qwen2 and SmolLM2, tokenizer_config.json
CHATML = Template(
    begin=None, opens="<|im_start|>", closes=None, gap="\n", ends="<|im_end|>", after="\n", stops="<|endoftext|>"
)
# Llama-2 as a base model: documents, no chats
LLAMA2 = Template(begin="<s>", opens=None, closes=None, gap="", ends=None, after="", stops="</s>")
TEMPLATES = {"llama3": LLAMA3, "chatml": CHATML, "llama2": LLAMA2}
TemplateName = Literal["llama3", "chatml", "llama2"]

# Llama-3-Instruct's own form, which LLaVA-NeXT keeps: two newlines after a header
LLAMA3_INSTRUCT = replace(LLAMA3, gap="\n\n")

CONTROL = LLAMA3.controls


@dataclass(frozen=True, slots=True)
class Slot:
    """A picture in a document.

    start: place of its first token. picture: index into the record's media. answer: said by the assistant.
    tokens: places it takes. view: whether it is read, or noised and painted. followed: content text comes after it.
    """

    start: int
    picture: int
    answer: bool
    tokens: int
    view: ViewName
    followed: bool


@dataclass(frozen=True, slots=True)
class Document:
    """One record as a sequence: ids int[N] (0 at picture tokens), targets bool[N], the pictures' places.

    condition bool[N]: what the answer's first picture is drawn from, and condition dropout may hide.
    """

    ids: tuple[int, ...]
    targets: tuple[bool, ...]
    slots: tuple[Slot, ...]
    condition: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.ids)


class Layout(Protocol):
    """What batching, lengths, sampling and looking ask of an architecture. names: of ids that are no text."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def names(self) -> Mapping[int, str]: ...

    def lay_out(self, turns: Turns, *, task: str, key: str, sizes: Sequence[Size] = ()) -> Document:
        """The document that trains on this chat; wording that varies is chosen by `key`. sizes: of its pictures."""
        ...

    def prompt(self, turns: Turns, *, task: str, key: str, answer: Answer, sizes: Sequence[Size] = ()) -> Document:
        """A chat up to where the assistant begins; `picture` also opens one, announced as in training."""
        ...


class Tokenizer(Protocol):
    """Text <-> ids under `size`. `control` names the template's own tokens, which no text can spell."""

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
        controls: names of the control tokens that will be asked for.
    Raises:
        ValueError: no such file, or a vocabulary that lacks one of the control tokens.
    """

    def __init__(self, path: Path, controls: Sequence[str] = CONTROL) -> None:
        import tokenizers

        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"no tokenizer at {file}: give a folder in the hub's layout")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        found = {name: self._tokenizer.token_to_id(name) for name in controls}
        self._control = {name: number for name, number in found.items() if number is not None}
        missing = [name for name in controls if name not in self._control]
        if missing:
            raise ValueError(f"{file} lacks {', '.join(missing)}: give weights of its family, or name their template")
        # a caption that spells "<|eot_id|>" must stay text
        self._tokenizer.encode_special_tokens = True
        spelled = [name for name in controls if self._control[name] in self.encode(name)]
        if spelled:
            raise ValueError(f"{file} does not mark {spelled[0]} as special, so that any text could spell it: mark it")
        # an id is a row of the embedding, so what counts is the last one: ids of a tokenizer may have gaps
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

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


def share(key: str, purpose: str) -> float:
    """A number in 0..1 drawn by the record's key: the same in every run, on every machine."""
    digest = hashlib.sha256(f"{purpose}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def requested(turns: Turns, *, task: str, key: str) -> list[tuple[str, list[str | int]]]:
    """The chat with a request around a raw caption."""
    worded = [(role, list(parts)) for role, parts in turns]
    if task == "text_to_image":
        request = choose(REQUESTS, key, "request")
        for role, parts in worded:
            if role == "user":
                parts[:] = [request.format(part) if isinstance(part, str) else part for part in parts]
    return worded


def phrased(turns: Turns, *, task: str, key: str) -> list[tuple[str, list[str | int]]]:
    """The chat with a request and an announcement around a raw caption or an edit instruction."""
    worded = requested(turns, task=task, key=key)
    if task in _ANNOUNCED:
        for role, parts in worded:
            if role == "assistant" and parts and isinstance(parts[0], int):
                parts.insert(0, choose(ANNOUNCEMENTS, key, "announcement"))
    return worded


class Marked:
    """What layouts share that put two marks around a picture: their ids are no ids of the tokenizer, they follow it."""

    tokenizer: Tokenizer
    template: Template

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
        assert self.template.ends is not None
        return self.tokenizer.control(self.template.ends)


@dataclass(frozen=True, kw_only=True)
class ChatLayout(Marked):
    """MetaMorph's chat: the family's headers, each picture between <image_start> and <image_end>.

    The two picture tokens are not in the tokenizer: their ids follow its last, their rows are the model's own.
    Source: metamorph/conversation.py conv_llama_3 and train.py preprocess_multimodal, read at 0b13deb.
    """

    tokenizer: Tokenizer
    picture_tokens: int  # tokens of one picture between its two marks
    template: Template = LLAMA3

    def __post_init__(self) -> None:
        if self.template.opens is None:
            raise ValueError("a chat needs the template of an instruct model: llama3 or chatml")

    @property
    def names(self) -> Mapping[int, str]:
        """Control tokens and the two marks."""
        marks = {self.image_start: "<image_start>", self.image_end: "<image_end>"}
        return control_names(self.tokenizer, self.template) | marks

    def lay_out(self, turns: Turns, *, task: str, key: str, sizes: Sequence[Size] = ()) -> Document:
        """Ids, targets and picture places of a whole chat. Everything the assistant says is a target."""
        writer = Writer(self.tokenizer, self.template)
        writer.begin()
        for role, parts in phrased(turns, task=task, key=key):
            writer.header(role)
            self._parts(writer, parts, target=role == "assistant")
            writer.end_turn(target=role == "assistant")
        return writer.document()

    def prompt(self, turns: Turns, *, task: str, key: str, answer: Answer, sizes: Sequence[Size] = ()) -> Document:
        """A chat up to where the assistant begins; `picture` also opens one, announced as in training."""
        writer = Writer(self.tokenizer, self.template)
        writer.begin()
        for role, parts in phrased(turns, task=task, key=key):
            writer.header(role)
            self._parts(writer, parts, target=False)
            writer.end_turn()
        writer.header("assistant")
        if answer == "picture":
            if task in _ANNOUNCED:
                writer.text(choose(ANNOUNCEMENTS, key, "announcement"))
            writer.say([self.image_start])
        return writer.prompt()

    def _parts(self, writer: Writer, parts: Sequence[str | int], *, target: bool) -> None:
        for part in parts:
            if isinstance(part, str):
                writer.text(part, target=target)
                continue
            writer.say([self.image_start], target=target, content=not target)
            writer.picture(part, answer=target, tokens=self.picture_tokens, view="seen")
            writer.say([self.image_end], target=target, content=not target)


@dataclass(frozen=True, kw_only=True)
class PlainLayout(Marked):
    """Transfusion's documents: what is said end to end, without headers; pictures between BOI and EOI, all drawn.

        <begin> a red cat <boi> p p p p <eoi> <stop>           caption_pair; targets: a red cat <boi> <stop>
        <begin> <boi> p p p p <eoi> What is it?\\n A cat <stop>  image_qa; targets: A cat <stop>

    Where the input is BOI nothing is learned of the text (footnote 8), and EOI is put, not said: the state before it
    belongs to a noised picture. The two marks are no ids of the tokenizer.
    Source: Transfusion, section 3, arXiv:2408.11039.
    """

    tokenizer: Tokenizer
    picture_tokens: int
    template: Template = LLAMA3

    @property
    def end_of_turn(self) -> int:
        """Id of what ends an answer."""
        return self.tokenizer.control(self.template.stops)

    @property
    def names(self) -> Mapping[int, str]:
        """Control tokens and the two marks."""
        return control_names(self.tokenizer, self.template) | {self.image_start: "<boi>", self.image_end: "<eoi>"}

    def lay_out(self, turns: Turns, *, task: str, key: str, sizes: Sequence[Size] = ()) -> Document:
        """Ids, targets and picture places. Everything the assistant says is a target."""
        writer = self._begun()
        for place, (role, parts) in enumerate(turns):
            answer = role == "assistant"
            self._parts(writer, parts, target=answer)
            if answer:
                writer.say([self.end_of_turn], target=True)
            else:
                following = turns[place + 1][1] if place + 1 < len(turns) else ()
                self._break(writer, text_follows=not following or isinstance(following[0], str))
        return writer.document()

    def prompt(self, turns: Turns, *, task: str, key: str, answer: Answer, sizes: Sequence[Size] = ()) -> Document:
        """What comes before the answer; `picture` also opens one."""
        writer = self._begun()
        for place, (role, parts) in enumerate(turns):
            self._parts(writer, parts, target=False)
            if role == "assistant":
                writer.say([self.end_of_turn])
            else:
                following = turns[place + 1][1] if place + 1 < len(turns) else ((0,) if answer == "picture" else ())
                self._break(writer, text_follows=not following or isinstance(following[0], str))
        if answer == "picture":
            writer.say([self.image_start])
        return writer.prompt()

    def _begun(self) -> Writer:
        writer = Writer(self.tokenizer, self.template)
        writer.say([self.tokenizer.control(self.template.begin or self.template.stops)])
        return writer

    def _break(self, writer: Writer, *, text_follows: bool) -> None:
        if text_follows:
            writer.say(self.tokenizer.encode("\n"))

    def _parts(self, writer: Writer, parts: Sequence[str | int], *, target: bool) -> None:
        for part in parts:
            if isinstance(part, str):
                writer.text(part, target=target)
                continue
            writer.say([self.image_start], target=target, content=not target)
            writer.picture(part, answer=target, tokens=self.picture_tokens, view="drawn")
            writer.say([self.image_end], content=not target)


# What LLaVA-NeXT's Llama-3 weights were tuned under, conv_llava_llama_3 in LLaVA-VL/LLaVA-NeXT
LLAVA_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True, kw_only=True)
class LlavaLayout(PlainLayout):
    """LLaVA-NeXT's chat: pictures of the user are read, without marks; those of the assistant are drawn.

        <begin> (system) <header user> p p p p p p \n What is it? <end> <header assistant> A cat <end>
        <begin> (system) <header user> Draw a cat <end> <header assistant> <boi> p p p p <eoi> <end>
        targets                                                             ^                   ^^^

    EOI is put, not said: the state before it belongs to a noised picture. The two marks are no ids of the tokenizer.
    A captioned picture (caption_pair) whose caption comes first is a request for it.
    system: what a chat begins with, unless it brings its own; "" is nothing.
    """

    tiles: Tiles
    system: str
    template: Template = LLAMA3_INSTRUCT

    @property
    def end_of_turn(self) -> int:
        """Id of the mark after a turn."""
        assert self.template.ends is not None
        return self.tokenizer.control(self.template.ends)

    def lay_out(self, turns: Turns, *, task: str, key: str, sizes: Sequence[Size] = ()) -> Document:
        """Ids, targets and picture places of a whole chat. Everything the assistant says is a target."""
        if task == "caption_pair" and turns and isinstance(turns[0][1][0], str):
            ((_, (caption, *drawn)),) = turns
            turns, task = [("user", [caption]), ("assistant", drawn)], "text_to_image"
        writer = self._opened(turns)
        for role, parts in requested(turns, task=task, key=key):
            self._turn(writer, role, parts, sizes, target=role == "assistant")
        return writer.document()

    def prompt(self, turns: Turns, *, task: str, key: str, answer: Answer, sizes: Sequence[Size] = ()) -> Document:
        """A chat up to where the assistant begins; `picture` also opens one."""
        writer = self._opened(turns)
        for role, parts in requested(turns, task=task, key=key):
            self._turn(writer, role, parts, sizes, target=False)
        writer.header("assistant")
        if answer == "picture":
            writer.say([self.image_start])
        return writer.prompt()

    def _opened(self, turns: Turns) -> Writer:
        writer = Writer(self.tokenizer, self.template)
        writer.begin()
        if self.system and not (turns and turns[0][0] == "system"):
            writer.header("system")
            writer.say(self.tokenizer.encode(self.system))
            writer.end_turn()
        return writer

    def _turn(
        self, writer: Writer, role: str, parts: Sequence[str | int], sizes: Sequence[Size], *, target: bool
    ) -> None:
        writer.header(role)
        for part in parts:
            if isinstance(part, str):
                writer.text(part, target=target)
            elif role == "assistant":
                writer.say([self.image_start], target=target, content=not target)
                writer.picture(part, answer=target, tokens=self.picture_tokens, view="drawn")
                writer.say([self.image_end], content=not target)
            else:
                writer.picture(part, answer=False, tokens=self.tiles.tokens(sizes[part]), view="seen")
                writer.say(self.tokenizer.encode("\n"), content=True)
        writer.end_turn(target=target)


def control_names(tokenizer: Tokenizer, template: Template) -> dict[int, str]:
    """The control tokens of a template by their ids."""
    return {tokenizer.control(name): name for name in template.controls}


# What MetaQuery's language model is told before it fills its queries: the sentence of facebookresearch/metaquery in
# words of our own. Weights that were trained under theirs want theirs: set `system`.
QUERY_SYSTEM = "A picture follows, or a caption of one. Describe in your own words, in detail, what the picture shows."

# Tasks whose request may be left out in training, dataset.py of facebookresearch/metaquery; that of an edit never is
_REQUEST_HIDES = ("text_to_image", "subject_driven")


@dataclass(frozen=True, kw_only=True)
class MetaQueryLayout(Marked):
    """MetaQuery's chat: what the user shows and says, and in the assistant's turn queries, once for every picture.

        (system) <header user> <mark> p p p p <mark> redder <end> <header assistant> \\n <begin> q q q q <end> <end>
        condition                                    ^^^^^^

    No text is learned. The tokens of an answer are queries, whose states its picture is painted from; the ids of the
    two marks around them follow the tokenizer's last. Of a reconstruction the user shows the picture and says nothing.

    patches: how pictures of the user become tokens, or how many each takes. queries: tokens of an answer.
    around: names of the control tokens before and after a picture of the user, if the model has them.
    lead: text before what is said. chat_system: what a chat about pictures, answered in text, begins with.
    reconstruction: share of the captioned pictures, chosen by key. caption_tokens: kept of what the user says.
    Source: dataset.py and models/model.py of facebookresearch/metaquery, section 3 of arXiv:2504.06256.
    """

    tokenizer: Tokenizer
    patches: Patches | int
    queries: int
    template: Template
    around: tuple[str, str] | None = None
    lead: str = ""
    system: str = QUERY_SYSTEM
    chat_system: str = ""
    reconstruction: float = 0.0
    caption_tokens: int = 256

    @property
    def names(self) -> Mapping[int, str]:
        """Control tokens, those around a picture of the user, and the two marks."""
        around = {self.tokenizer.control(name): name for name in self.around or ()}
        marks = {self.image_start: "<queries>", self.image_end: "</queries>"}
        return control_names(self.tokenizer, self.template) | around | marks

    def lay_out(self, turns: Turns, *, task: str, key: str, sizes: Sequence[Size] = ()) -> Document:
        """Ids and picture places of a whole chat."""
        if task == "text_to_image" and share(key, "reconstruction") < self.reconstruction:
            shown = [part for role, parts in turns if role == "assistant" for part in parts if isinstance(part, int)]
            turns = [("user", [*shown, ""]), ("assistant", shown)]
        return self._said(self._asked(turns, sizes), hides=task in _REQUEST_HIDES)

    def prompt(self, turns: Turns, *, task: str, key: str, answer: Answer, sizes: Sequence[Size] = ()) -> Document:
        """`picture`: the chat and the queries of one picture more, the one after `sizes`; otherwise the chat alone."""
        if answer == "picture":
            return self._said(self._asked([*turns, ("assistant", [len(sizes)])], sizes), hides=True)
        writer = self._opened(turns, self.chat_system)
        for role, parts in turns:
            self._turn(writer, role, parts, sizes, limit=None)
        self._header(writer)
        return writer.prompt()

    def _asked(self, turns: Turns, sizes: Sequence[Size]) -> Writer:
        """A chat whose assistant answers with queries."""
        writer = self._opened(turns, self.system)
        for role, parts in turns:
            if role == "assistant":
                self._answer(writer, parts)
            else:
                self._turn(writer, role, parts, sizes, limit=self.caption_tokens)
        return writer

    def _said(self, writer: Writer, *, hides: bool) -> Document:
        """What was said; of the condition the text alone, and that only where it may be hidden."""
        document = writer.document()
        condition = [hides and marked for marked in document.condition]
        for slot in document.slots:
            condition[slot.start : slot.start + slot.tokens] = [False] * slot.tokens
        return replace(document, condition=tuple(condition))

    def _opened(self, turns: Turns, system: str) -> Writer:
        writer = Writer(self.tokenizer, self.template)
        writer.begin()
        if system and not (turns and turns[0][0] == "system"):
            writer.header("system")
            writer.say(self.tokenizer.encode(self.lead + system))
            writer.end_turn()
        return writer

    def _turn(
        self, writer: Writer, role: str, parts: Sequence[str | int], sizes: Sequence[Size], *, limit: int | None
    ) -> None:
        writer.header(role)
        for part in parts:
            if isinstance(part, str):
                writer.say(self.tokenizer.encode(self.lead))
                writer.text(self._brief(part, limit))
                continue
            for mark in (self.around or ())[:1]:
                writer.control(mark)
            tokens = self.patches if isinstance(self.patches, int) else self.patches.tokens(sizes[part])
            writer.picture(part, answer=False, tokens=tokens, view="seen")
            for mark in (self.around or ())[1:]:
                writer.control(mark)
        writer.end_turn()

    def _answer(self, writer: Writer, parts: Sequence[str | int]) -> None:
        self._header(writer)
        for part in parts:
            writer.say(self.tokenizer.encode("\n"))
            if isinstance(part, str):
                writer.text(part)
                continue
            writer.say([self.image_start])
            writer.picture(part, answer=True, tokens=self.queries, view="drawn")
            writer.say([self.image_end])
        writer.end_turn()

    def _header(self, writer: Writer) -> None:
        """The begin of the assistant's turn, which ends in a newline in every family."""
        writer.control(self.template.opens)
        writer.say(self.tokenizer.encode("assistant"))
        writer.control(self.template.closes)
        writer.say(self.tokenizer.encode("\n"))

    def _brief(self, text: str, limit: int | None) -> str:
        ids = self.tokenizer.encode(text)
        return text if limit is None or len(ids) <= limit else self.tokenizer.decode(ids[:limit])


class Writer:
    """A document under construction: ids said one after the other, pictures among them."""

    def __init__(self, tokenizer: Tokenizer, template: Template) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.ids: list[int] = []
        self.targets: list[bool] = []
        self.content: list[bool] = []  # what the record says, not how it is framed
        self.slots: list[tuple[int, int, bool, int, ViewName]] = []
        self.text_end = 0  # place after the last content text

    def say(self, ids: Sequence[int], *, target: bool = False, content: bool = False) -> None:
        """Append ids."""
        self.ids.extend(ids)
        self.targets.extend([target] * len(ids))
        self.content.extend([content] * len(ids))

    def control(self, name: str | None, *, target: bool = False) -> None:
        """Append a control token, where the family has one."""
        if name is not None:
            self.say([self.tokenizer.control(name)], target=target)

    def begin(self) -> None:
        """The begin of a document, where the family has one."""
        self.control(self.template.begin)

    def header(self, role: str) -> None:
        """The begin of a turn."""
        self.control(self.template.opens)
        self.say(self.tokenizer.encode(role))
        self.control(self.template.closes)
        self.say(self.tokenizer.encode(self.template.gap))

    def end_turn(self, *, target: bool = False) -> None:
        """The end of a turn; the text behind it is never learned."""
        self.control(self.template.ends, target=target)
        self.say(self.tokenizer.encode(self.template.after))

    def text(self, text: str, *, target: bool = False) -> None:
        """Append words of the record."""
        self.say(self.tokenizer.encode(text), target=target, content=True)
        self.text_end = len(self.ids)

    def picture(self, picture: int, *, answer: bool, tokens: int, view: ViewName) -> None:
        """Append a picture: learned by the picture loss, not by cross-entropy."""
        self.slots.append((len(self.ids), picture, answer, tokens, view))
        self.say([0] * tokens, content=not answer)

    def document(self) -> Document:
        """What was said. A condition is what comes before an answer of pictures alone."""
        answers = [start for start, _, answer, _, _ in self.slots if answer]
        return self._made(answers[0] if answers and self.text_end <= answers[0] else 0)

    def prompt(self) -> Document:
        """What was said, as the condition of an answer that is still to come."""
        return self._made(len(self.ids))

    def _made(self, first: int) -> Document:
        return Document(
            ids=tuple(self.ids),
            targets=tuple(self.targets),
            slots=tuple(Slot(*slot, followed=slot[0] < self.text_end) for slot in self.slots),
            condition=tuple(content and place < first for place, content in enumerate(self.content)),
        )


@dataclass(frozen=True, kw_only=True)
class PictureLayout:
    """The visualizer's layout: one token per picture of the record, no text. Every picture is learned."""

    @property
    def names(self) -> Mapping[int, str]:
        """Nothing is said."""
        return {}

    @property
    def tokenizer(self) -> Tokenizer:
        """Of nothing that is said."""
        return ByteTokenizer()

    def lay_out(self, turns: Turns, *, task: str, key: str, sizes: Sequence[Size] = ()) -> Document:
        """As many tokens as the chat has pictures."""
        pictures = [part for _, parts in turns for part in parts if isinstance(part, int)]
        slots = tuple(Slot(place, picture, True, 1, "drawn", False) for place, picture in enumerate(pictures))
        return Document((0,) * len(pictures), (False,) * len(pictures), slots, (False,) * len(pictures))

    def prompt(self, turns: Turns, *, task: str, key: str, answer: Answer, sizes: Sequence[Size] = ()) -> Document:
        """It answers nothing. ValueError always."""
        raise ValueError("a visualizer answers no prompts: sample the run whose tokens it paints")
