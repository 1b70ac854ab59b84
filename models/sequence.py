"""Documents -> Batch, and who may look at whom in it. One rule, three forms: dense, FlexAttention's blocks, a picture.

# B rows, N tokens of a row, P pictures of a view, S picture tokens in all, K tiles

    document  1 1 1 1 1 1 2 2 0      a token sees its own document alone, of it
    block     0 1 2 2 2 5 6 7 8      its own and earlier blocks: text is causal, a picture sees all of itself,
    hidden      x                    and nothing that was hidden, unless it is hidden itself
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from PIL.Image import Image
from torch import Tensor

from models.interface import Batch, Draw, Pictures
from models.layout import Document, Slot, ViewName
from models.views import Cut, View

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel


def batched(
    rows: Sequence[Sequence[Document]],
    picture: Callable[[int, int, Slot], tuple[Cut, tuple[int, int]]],
    *,
    sides: Mapping[ViewName, int],
    length: int = 1,
) -> tuple[Batch, dict[ViewName, list[tuple[int, int, int]]]]:
    """Laid-out documents as a batch; rows are as wide as the widest, `length` at least.

    Args:
        picture: (row, document in the row, slot) -> the picture cut for the slot's view, its width and height before.
        sides:   pixels of a tile of each view; 0 for a view the architecture does not have.
    Returns: the batch, and (row, document in the row, index in the record) of each picture of each view.
    """
    size = (len(rows), max(length, *(sum(map(len, row)) for row in rows)) if rows else length)
    ids, which, position = (torch.zeros(size, dtype=torch.int64) for _ in range(3))
    target, condition = (torch.zeros(size, dtype=torch.bool) for _ in range(2))
    views: dict[ViewName, _View] = {name: _View(sides[name]) for name in ("seen", "drawn")}
    for row, documents in enumerate(rows):
        first = 0
        for number, document in enumerate(documents):
            here = slice(first, first + len(document))
            ids[row, here] = torch.tensor(document.ids, dtype=torch.int64)
            target[row, here] = torch.tensor(document.targets, dtype=torch.bool)
            condition[row, here] = torch.tensor(document.condition, dtype=torch.bool)
            which[row, here] = number + 1
            position[row, here] = torch.arange(len(document))
            for slot in document.slots:
                views[slot.view].add(picture(row, number, slot), row, first, slot)
                views[slot.view].owners.append((row, number, slot.picture))
            first += len(document)
    batch = Batch(
        ids=ids,
        document=which,
        position=position,
        target=target,
        condition=condition,
        seen=views["seen"].pictures(),
        drawn=views["drawn"].pictures(),
    )
    return batch, {name: view.owners for name, view in views.items()}


def prompted(document: Document, pictures: Sequence[Image], seen: View | None, drawn: View | None) -> Batch:
    """One document as a batch of one row. pictures: what its slots count into."""
    views = {"seen": seen, "drawn": drawn}

    def picture(row: int, number: int, slot: Slot) -> tuple[Cut, tuple[int, int]]:
        view = views[slot.view]
        assert view is not None
        image = pictures[slot.picture].convert("RGB")
        return view.cut(image), image.size

    return batched([[document]], picture, sides=sides(seen, drawn))[0]


def sides(seen: View | None, drawn: View | None) -> dict[ViewName, int]:
    """Pixels of a tile of each view; 0 for one that an architecture does not have."""
    return {"seen": seen.side if seen else 0, "drawn": drawn.side if drawn else 0}


class _View:
    """The pictures of one view, collected."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.pixels: list[Tensor] = []
        self.numbers: list[tuple[int, ...]] = []
        self.owners: list[tuple[int, int, int]] = []

    def add(self, cut: tuple[Cut, tuple[int, int]], row: int, first: int, slot: Slot) -> None:
        (tiles, grid), size = cut
        self.pixels.append(rearrange(torch.from_numpy(tiles.copy()), "k h w c -> k c h w").float() / 255)
        start = first + slot.start
        self.numbers.append((len(tiles), *grid, *size, row, start, slot.tokens, slot.answer, slot.followed))

    def pictures(self) -> Pictures:
        numbers = torch.tensor(self.numbers, dtype=torch.int64).reshape(-1, 10)
        return Pictures(
            pixels=torch.cat(self.pixels) if self.pixels else torch.zeros(0, 3, self.side, self.side),
            tiles=numbers[:, 0],
            grid=numbers[:, 1:3],
            size=numbers[:, 3:5],
            row=numbers[:, 5],
            start=numbers[:, 6],
            tokens=numbers[:, 7],
            answer=numbers[:, 8].bool(),
            followed=numbers[:, 9].bool(),
        )


def picture_places(pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Row and place of every picture token, picture after picture: two int64[S]."""
    row = pictures.row.repeat_interleave(pictures.tokens)
    first = pictures.tokens.cumsum(0) - pictures.tokens
    inside = torch.arange(len(row), device=row.device) - first.repeat_interleave(pictures.tokens)
    return row, pictures.start.repeat_interleave(pictures.tokens) + inside


def blocks(batch: Batch, *, whole: bool) -> Tensor:
    """The block of every token: int64[B, N], never decreasing along N.

    Args:  whole: a drawn picture is one block; otherwise each of its tokens is one, as in a text.
    """
    block = torch.arange(batch.ids.shape[1], device=batch.ids.device).repeat(len(batch.ids), 1)
    if whole:
        rows, places = picture_places(batch.drawn)
        block = block.index_put((rows, places), batch.drawn.start.repeat_interleave(batch.drawn.tokens))
    return block


def hidden(batch: Batch, draw: Draw, rate: float) -> Tensor:
    """What condition dropout hides: bool[B, N], the whole condition of a document or nothing of it.

    The draw "condition" of a document's first drawn answer decides, at this rate.
    """
    dropped = torch.zeros_like(batch.condition)
    decided: set[tuple[int, int]] = set()
    answers = batch.drawn.answer.nonzero()[:, 0].tolist() if rate > 0 else []
    for index in answers:
        row = int(batch.drawn.row[index])
        document = int(batch.document[row, batch.drawn.start[index]])
        if (row, document) in decided:
            continue
        decided.add((row, document))
        generator = draw("condition", index)
        if float(torch.rand((), generator=generator, device=generator.device)) < rate:
            dropped[row] |= batch.condition[row] & (batch.document[row] == document)
    return dropped


def sees(document: Tensor, block: Tensor, hidden: Tensor) -> Tensor:
    """Who may look at whom: text looks back, a picture looks back and at all of itself.

        text text  pic pic pic  text
    block  0    1    2   2   2     5     ->  a picture token's row: 1 1 1 1 1 0

    Args:     document, block: int64[B, N]; hidden: bool[B, N]. Padding is a document of its own: no row is empty.
    Returns:  bool[B, 1, N, N], True where the row may attend to the column; the 1 stands for the heads.
    Source:   Transfusion, section 3, arXiv:2408.11039.
    """
    same = document[:, :, None] == document[:, None, :]
    back = block[:, :, None] >= block[:, None, :]
    open_ = hidden[:, :, None] | ~hidden[:, None, :]
    return (same & back & open_)[:, None]


def sees_in_blocks(document: Tensor, block: Tensor, hidden: Tensor) -> BlockMask:
    """The same as FlexAttention's BlockMask, which never holds N x N values. For GPUs: it has no backward on CPU."""
    from torch.nn.attention.flex_attention import create_block_mask

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = document[row, query] == document[row, key]
        back = block[row, query] >= block[row, key]
        return same & back & (hidden[row, query] | ~hidden[row, key])

    rows, length = document.shape
    return create_block_mask(rule, rows, None, length, length, device=document.device)


def mask(backbone: PreTrainedModel, document: Tensor, block: Tensor, hidden: Tensor) -> Any:
    """Who may look at whom, in the form that the backbone's attention takes."""
    if backbone.config._attn_implementation == "flex_attention":
        return sees_in_blocks(document, block, hidden)
    return sees(document, block, hidden)


def drawing(mask: Tensor, labels: Sequence[str]) -> str:
    """A mask for people: a line per token, its label, `#` where it looks and `.` where it may not.

    Args:  mask: bool[N, N]. labels: one per token.
    """
    width = max(map(len, labels), default=0)
    lines = (
        f"{label:{width}}  {''.join('#' if seen else '.' for seen in row)}"
        for label, row in zip(labels, mask.tolist(), strict=True)
    )
    return "\n".join(lines)
