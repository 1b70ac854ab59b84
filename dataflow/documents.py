"""JSON documents as rows, without loading them: where each item lies, so that a split is a span of the document.

    [{...}, {...}]                   a list: its items
    {"train": [{...}], "val": [...]} an object of lists: the items of each, in order
    {"<name>": {...}, ...}           an object of anything else: {"__key__": name, **object}, or "value": what it holds

Only brackets, commas and strings are looked at; an item is parsed by itself, so one that is damaged harms no other. An
incremental parser was tried: it stops at the first NaN, half surrogate pair or bad byte and loses the rest.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataflow import folders

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.DOTALL)
_ENTRY = re.compile(rb'\s*("(?:[^"\\]++|\\.)*+")\s*:(.*)', re.DOTALL)
_QUOTE, _COMMA, _LIST = b'",['
_OPEN, _CLOSE = b"[{", b"]}"
_BOM = b"\xef\xbb\xbf"

_BLANK = re.compile(rb"\s*")


class Broken(ValueError):
    """A document that ends before its end, or is none; the message is the reason."""


def spans(path: Path) -> Iterator[tuple[int, int, int]]:
    """(first byte, byte after the last, number of its list) of each item; a comma parts two items of one list.

    Raises:
        Broken: after what could be read.
    """
    if folders.size(path) == 0:
        raise Broken("document is 0 bytes")
    with folders.mapped(path) as data:
        yield from _spans(data)


def _spans(data: mmap.mmap) -> Iterator[tuple[int, int, int]]:
    depth, start, root = 0, 0, None
    level, number = 1, 0  # the depth at which a comma parts two items; of the list
    for token in _TOKEN.finditer(data):
        at = token.start()
        byte = data[at]
        if byte == _QUOTE:
            if token.end() - at == 1:
                break  # a string without an end: so has the document
        elif byte == _COMMA:
            if depth == level:
                if not _blank(data, start, at):
                    yield start, at, number
                start = at + 1
        elif byte in _OPEN:
            depth += 1
            if depth == 1:
                if data[start:at].strip() not in (b"", _BOM):
                    break
                root, start = byte, at + 1
            elif depth == 2 and root != _LIST and byte == _LIST:
                level, number, start = 2, number + 1, at + 1
        else:
            if depth == level:
                if not _blank(data, start, at):
                    yield start, at, number
                start = at + 1
                if level == 2:
                    level, number = 1, number + 1
            depth -= 1
            if depth == 0:
                if not _blank(data, at + 1, len(data)):
                    begins = _BLANK.match(data, at + 1).end()  # type: ignore[union-attr]
                    rest = data[begins : begins + 20].strip()
                    follows = f"{rest!r} follows: it is broken, two files in one, or JSON lines to be named .jsonl"
                    raise Broken(f"document ends at byte {at + 1} and {follows}")
                return
    if root is None:
        raise Broken("document is neither a list nor an object")
    raise Broken("document is cut off or broken: its end is missing, and with it what comes after the last whole row")


def together(data: bytes, count: int) -> list[Any] | None:
    """The values of `count` items, given the bytes from the first to the last of them; None if any does not parse."""
    keyed = _ENTRY.match(data) is not None
    try:
        text = data.decode()
        held = json.loads(f"{{{text}}}" if keyed else f"[{text}]")
    except (ValueError, RecursionError):
        return None
    if len(held) != count:  # a name that comes twice
        return None
    return [_named(name, value) for name, value in held.items()] if keyed else [_object(value) for value in held]


def apart(data: bytes) -> Iterator[bytes]:
    """The same items one by one, so that those that do not parse can be told."""
    depth, start = 0, 0
    for token in _TOKEN.finditer(data):
        byte = data[token.start()]
        if byte == _COMMA and depth == 0:
            if not _blank(data, start, token.start()):
                yield data[start : token.start()].strip()
            start = token.end()
        elif byte in _OPEN:
            depth += 1
        elif byte in _CLOSE:
            depth -= 1
    if not _blank(data, start, len(data)):
        yield data[start:].strip()


def value(item: bytes) -> dict[str, Any]:
    """An item as a row's value.

    Raises: what `json.loads` and `bytes.decode` do.
    """
    entry = _ENTRY.match(item)
    if entry is None:
        return _object(json.loads(item.decode()))
    return _named(json.loads(entry[1].decode()), json.loads(entry[2].decode()))


def _object(held: Any) -> dict[str, Any]:
    return held if isinstance(held, dict) else {"value": held}


def _named(name: str, held: Any) -> dict[str, Any]:
    return {**_object(held), "__key__": name}


def _blank(data: bytes | mmap.mmap, start: int, end: int) -> bool:
    """Whether only white space lies there: in `[ ]`, or after a list in an object."""
    found = _BLANK.match(data, start, end)
    return found is not None and found.end() == end
