"""What a training is given at one position, for people: text, pictures and who sees whom, on one HTML page.

spelled(document)     the same of one document as a line: <begin>a red cat<boi>[drawn 0: 64]<eoi><stop>
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jinja2 import Environment
from PIL import Image
from torch import Tensor

from dataflow.build import write_atomically
from models.interface import Batch, Pictures
from models.layout import Document, Layout
from models.sequence import blocks, sees
from pipelines.batching import RecordBatches
from pipelines.training import Training

_TEMPLATE = Path(__file__).with_name("look.html")
_ROWS = 12  # of a position that are shown
_MASK = 240  # pixels a side of a drawn mask
_PICTURE = 96  # pixels of a picture's longer side


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of tokens of one kind, or a picture. kind: target, context, condition, padding; seen or drawn, answer."""

    kind: str
    text: str = ""
    picture: str = ""  # a data: URI
    tokens: int = 0

    @property
    def word(self) -> str:
        """Of a picture: what the architecture does with it."""
        return {"seen": "read", "drawn": "given"}.get(self.kind, "to be answered")


def spelled(document: Document, layout: Layout) -> str:
    """A document as a line: control tokens and marks by name, [view picture: tokens], targets between { and }."""
    slots = {slot.start: slot for slot in document.slots}
    inside = {slot.start + place for slot in document.slots for place in range(slot.tokens)}
    names, told, learning = layout.names, [], False
    for place, (number, target) in enumerate(zip(document.ids, document.targets, strict=True)):
        if place in slots:
            told.append(f"[{slots[place].view} {slots[place].picture}: {slots[place].tokens}]")
        if place in inside:
            continue
        if target != learning:
            told.append("{" if target else "}")
            learning = target
        told.append(names.get(number) or _Bytes(number))
    return "".join(_joined(told, layout)) + ("}" if learning else "")


@dataclass(frozen=True)
class _Bytes:
    """An id that is decoded together with its neighbours: letters may take several."""

    number: int


def _joined(told: list[Any], layout: Layout) -> Iterator[str]:
    for plain, items in groupby(told, key=lambda item: isinstance(item, _Bytes)):
        held = list(items)
        yield layout.tokenizer.decode([item.number for item in held]) if plain else "".join(held)


def page(training: Training, batches: RecordBatches, position: int, out: Path) -> Path:
    """Write the page of one position; returns its path.

    Raises:
        ValueError: a position that the training does not have, or a record that cannot be laid out.
    """
    if not 0 <= position < batches.schedule.positions:
        raise ValueError(f"position {position}: this training has 0 to {batches.schedule.positions - 1}")
    (micro, *_) = batches(position, 0, 1, min(training.batch, _ROWS))
    architecture, batch = training.architecture, micro.batch
    nothing = torch.zeros_like(batch.target)
    sight = sees(batch.document, blocks(batch, whole=architecture.whole_pictures), nothing)
    layout, lengths = architecture.layout(), (batch.document > 0).sum(dim=1).tolist()
    rows = [
        {
            "pieces": list(_pieces(batch, row, length, layout)),
            "tokens": length,
            "targets": int(batch.target[row].sum()),
            "mask": _mask(sight[row, 0], length),
        }
        for row, length in enumerate(lengths)
        if length
    ]
    template = Environment(autoescape=True).from_string(_TEMPLATE.read_text())
    fed = ", ".join(f"{name} {count}" for name, count in zip(batches.sources, micro.fed, strict=True) if count)
    told = template.render(name=training.name, position=position, rows=rows, fed=fed, batch=training.batch)
    write_atomically(out, told.encode())
    return out


def _pieces(batch: Batch, row: int, length: int, layout: Layout) -> Iterator[Piece]:
    """One row of so many tokens, from left to right."""
    names, pictures = layout.names, {}
    for view, name in ((batch.seen, "seen"), (batch.drawn, "drawn")):
        first = view.tiles.cumsum(0) - view.tiles
        for index in (view.row == row).nonzero()[:, 0].tolist():
            kind = f"{name} answer" if view.answer[index] else name
            pictures[int(view.start[index])] = Piece(
                kind=kind, picture=_shown(view, index, int(first[index])), tokens=int(view.tokens[index])
            )
    place = 0
    while place < length:
        if place in pictures:
            yield pictures[place]
            place += pictures[place].tokens
            continue
        kind, start = _kind(batch, row, place), place
        while place < length and place not in pictures and _kind(batch, row, place) == kind:
            place += 1
        numbers = batch.ids[row, start:place].tolist()
        told = [names.get(number) or _Bytes(number) for number in numbers]
        yield Piece(kind=kind, text="".join(_joined(told, layout)), tokens=place - start)


def _kind(batch: Batch, row: int, place: int) -> str:
    if batch.target[row, place]:
        return "target"
    return "condition" if batch.condition[row, place] else "context"


def _shown(view: Pictures, index: int, first: int) -> str:
    """The first tile of a picture as a data: URI; of tiles that form a grid, the grid."""
    tiles = view.pixels[first : first + int(view.tiles[index])]
    rows, columns = view.grid[index].tolist()
    grid = tiles[-rows * columns :]  # an overview, where there is one, comes before
    whole = rearrange(grid, "(r c) f h w -> (r h) (c w) f", r=rows)
    image = Image.fromarray((whole * 255).round().to(torch.uint8).numpy())
    image.thumbnail((_PICTURE, _PICTURE))
    return _uri(image)


def _mask(sight: Tensor, used: int) -> str:
    """Who sees whom in a row's used places, dark where it may: a data: URI. sight: bool[N, N]."""
    image = Image.fromarray(torch.where(sight[:used, :used], 40, 245).to(torch.uint8).numpy())
    return _uri(image.resize((_MASK, _MASK), Image.Resampling.NEAREST))


def _uri(image: Image.Image) -> str:
    data = BytesIO()
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
