"""Who sees whom against its definition, in every form; what condition dropout hides; where a batch puts things.

# B rows, N tokens of a row, P pictures of a view, K tiles
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from models.interface import Batch, Draw, Pictures
from models.layout import Document, Slot, ViewName
from models.sequence import (
    batched,
    blocks,
    drawing,
    hidden,
    mask,
    picture_places,
    prompted,
    sees,
    sees_in_blocks,
    sides,
)
from models.views import Cut, Square, Tiles

Rows = Sequence[Sequence[Document]]
SIDE = 2  # pixels of a tile
GIVEN: tuple[Any, ...] = (("text", 2), ("seen", 3), ("drawn", 2, False), ("text", 1))


def document(*parts: tuple[Any, ...], condition: int = 0) -> Document:
    """("text", tokens), ("seen", tokens) and ("drawn", tokens, answer) end to end; so many first tokens a condition."""
    ids: list[int] = []
    slots: list[Slot] = []
    for kind, tokens, *answer in parts:
        if kind != "text":
            slots.append(Slot(len(ids), len(slots), bool(answer and answer[0]), tokens, kind, False))
        ids += [len(ids) + 1 if kind == "text" else 0 for _ in range(tokens)]
    count = len(ids)
    return Document(
        tuple(ids),
        tuple(place % 3 == 0 for place in range(count)),
        tuple(slots),
        tuple(place < condition for place in range(count)),
    )


def made_up(chance: random.Random, tokens: int) -> Document:
    """Text, read and drawn pictures in any order; up to so many tokens a part."""
    parts: list[tuple[Any, ...]] = []
    for _ in range(chance.randint(1, 5)):
        kind = chance.choice(("text", "seen", "drawn"))
        parts.append((kind, chance.randint(1, tokens), *([chance.random() < 0.7] if kind == "drawn" else [])))
    return document(*parts, condition=chance.randint(0, sum(part[1] for part in parts)))


def packed(rows: Rows, length: int = 1) -> Batch:
    """The batch of these rows."""
    return placed(rows, length)[0]


def placed(rows: Rows, length: int = 1) -> tuple[Batch, dict[ViewName, list[tuple[int, int, int]]]]:
    """The same, and who owns the pictures. A picture has a tile per token, as bright as its row and document say."""

    def picture(row: int, number: int, slot: Slot) -> tuple[Cut, tuple[int, int]]:
        tiles = np.full((slot.tokens, SIDE, SIDE, 3), 10 * (row % 20) + number, dtype=np.uint8)
        return Cut(tiles, (1, slot.tokens)), (7 + slot.picture, 9)

    return batched(rows, picture, sides={"seen": SIDE, "drawn": SIDE}, length=length)


def seen_by_hand(rows: Rows, length: int, hiding: Tensor, *, whole: bool) -> Tensor:
    """Token by token, read off the documents: bool[B, N, N]."""
    result = torch.zeros(len(rows), length, length, dtype=torch.bool)
    for row, documents in enumerate(rows):
        of, picture = [-1] * length, list(range(1000, 1000 + length))  # padding belongs together; text to no picture
        first = 0
        for number, laid in enumerate(documents):
            for place in range(first, first + len(laid)):
                of[place] = number
            for slot in laid.slots:
                for place in range(first + slot.start, first + slot.start + slot.tokens):
                    if slot.view == "drawn":
                        picture[place] = 100 * number + slot.picture
            first += len(laid)
        for query in range(length):
            for key in range(length):
                back = key <= query or (whole and picture[query] == picture[key])
                open_ = bool(hiding[row, query]) or not bool(hiding[row, key])
                result[row, query, key] = of[query] == of[key] and back and open_
    return result


def some(seed: int, tokens: int = 5, length: int = 1) -> tuple[Rows, Batch, Tensor]:
    """Rows of documents, some empty; their batch with padding; and any tokens hidden."""
    chance = random.Random(seed)
    rows = [[made_up(chance, tokens) for _ in range(chance.randint(0, 3))] for _ in range(3)]
    batch = packed(rows, max(length, *(sum(map(len, row)) for row in rows)) + chance.randint(0, 4))
    hiding = torch.rand(batch.ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    return rows, batch, hiding


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_the_mask_equals_its_definition_on_any_layout(seed: int, whole: bool) -> None:
    rows, batch, hiding = some(seed)
    found = sees(batch.document, blocks(batch, whole=whole), hiding)
    assert torch.equal(found[:, 0], seen_by_hand(rows, batch.ids.shape[1], hiding, whole=whole))
    assert found.diagonal(dim1=2, dim2=3).all()  # no row is empty, so no attention is undefined


def test_blocks_never_decrease_and_a_drawn_picture_alone_is_one() -> None:
    batch = packed([[document(("text", 1), ("seen", 2), ("drawn", 3, True), ("drawn", 2, False), ("text", 1))]])
    assert blocks(batch, whole=True).tolist() == [[0, 1, 2, 3, 3, 3, 6, 6, 8]]
    assert blocks(batch, whole=False).tolist() == [list(range(9))]
    for seed in range(5):
        assert all(
            before <= after for row in blocks(some(seed)[1], whole=True).tolist() for before, after in pairwise(row)
        )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("seed", range(3))
def test_attention_in_blocks_equals_dense_attention(seed: int) -> None:
    _, batch, hiding = some(seed, tokens=40, length=200)  # several blocks of 128
    block = blocks(batch, whole=True)
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(3, 2, batch.ids.shape[1], 16, generator=generator) for _ in range(3))
    dense = F.scaled_dot_product_attention(query, key, value, attn_mask=sees(batch.document, block, hiding))
    found = flex_attention(query, key, value, block_mask=sees_in_blocks(batch.document, block, hiding))
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, dense)


def test_a_mask_has_the_form_that_the_backbones_attention_takes() -> None:
    _, batch, hiding = some(0)
    block = blocks(batch, whole=True)
    kinds = {
        name: mask(SimpleNamespace(config=SimpleNamespace(_attn_implementation=name)), batch.document, block, hiding)  # pyright: ignore[reportArgumentType]
        for name in ("sdpa", "flex_attention")
    }
    assert torch.equal(kinds["sdpa"], sees(batch.document, block, hiding))
    assert isinstance(kinds["flex_attention"], BlockMask)


def test_a_drawing_shows_two_documents_a_picture_and_what_is_hidden() -> None:
    batch = packed(
        [[document(("text", 2), ("drawn", 3, True), ("text", 1), condition=1), document(("text", 2))]], length=9
    )
    block = blocks(batch, whole=True)
    labels = ["red", "<boi>", "p", "p", "p", "<eoi>", "a", "b", ""]
    shown = drawing(sees(batch.document, block, torch.zeros_like(batch.condition))[0, 0], labels)
    hiding = drawing(sees(batch.document, block, batch.condition)[0, 0], labels)
    assert shown.splitlines() == [
        "red    #........",
        "<boi>  ##.......",
        "p      #####....",
        "p      #####....",
        "p      #####....",
        "<eoi>  ######...",
        "a      ......#..",
        "b      ......##.",
        "       ........#",
    ]
    assert hiding.splitlines()[:6] == [
        "red    #........",
        "<boi>  .#.......",
        "p      .####....",
        "p      .####....",
        "p      .####....",
        "<eoi>  .#####...",
    ]
    assert hiding.splitlines()[6:] == shown.splitlines()[6:]


def never(purpose: str, index: int) -> torch.Generator:
    raise AssertionError(f"drew {purpose} {index}")


TWO = document(("text", 3), ("drawn", 2, True), ("drawn", 2, True), condition=3)
GIVES = document(("drawn", 2, False), ("text", 1), ("drawn", 1, True), condition=3)
READS = document(*GIVEN, condition=5)  # no answer is drawn


def test_what_is_hidden_is_the_whole_condition_of_documents_that_draw(draw: Draw) -> None:
    batch = packed([[READS, TWO], [], [GIVES, READS, TWO]], length=40)
    dropped = hidden(batch, draw, 1.0)
    places = {(0, len(READS) + place) for place in range(3)} | {(2, place) for place in range(3)}
    places |= {(2, len(GIVES) + len(READS) + place) for place in range(3)}
    assert set(map(tuple, dropped.nonzero().tolist())) == places


def test_the_first_drawn_answer_of_a_document_decides(draw: Draw) -> None:
    batch = packed([[READS, TWO], [GIVES]])
    asked: list[tuple[str, int]] = []

    def noted(purpose: str, index: int) -> torch.Generator:
        asked.append((purpose, index))
        return draw(purpose, index)

    dropped = hidden(batch, noted, 0.5)
    # pictures of the view "drawn": 0 given in READS, 1 and 2 in TWO, 3 given and 4 in GIVES
    assert asked == [("condition", 1), ("condition", 4)]
    for index, row in ((1, 0), (4, 1)):
        assert bool(dropped[row].any()) == (float(torch.rand((), generator=draw("condition", index))) < 0.5)


def test_nothing_is_hidden_and_nothing_drawn_at_the_rate_0_or_without_answers() -> None:
    assert not hidden(packed([[TWO]]), never, 0.0).any()
    assert not hidden(packed([[READS], []]), never, 1.0).any()


def test_a_condition_is_hidden_as_often_as_asked_and_each_for_itself(draw: Draw) -> None:
    batch = packed([[TWO, TWO] for _ in range(600)])
    dropped = hidden(batch, draw, 0.3)
    first, second = dropped[:, :3], dropped[:, len(TWO) : len(TWO) + 3]
    for part in (first, second):
        assert (part.all(dim=1) == part.any(dim=1)).all()  # the whole of it or nothing
        assert 0.25 < part.float().mean() < 0.35
    both = (first[:, 0] & second[:, 0]).float().mean()
    assert 0.06 < both < 0.12
    assert not (dropped & ~batch.condition).any()


def test_a_batch_puts_documents_end_to_end_and_pictures_where_they_stand() -> None:
    batch, owners = placed([[READS, TWO], [], [GIVES]], length=20)
    assert batch.ids.shape == (3, 20)
    end = len(READS) + len(TWO)
    assert batch.ids[0].tolist() == [*READS.ids, *TWO.ids] + [0] * (20 - end)
    assert batch.target[0].tolist() == [*READS.targets, *TWO.targets] + [False] * (20 - end)
    assert batch.condition[0].tolist() == [*READS.condition, *TWO.condition] + [False] * (20 - end)
    assert batch.document[0].tolist() == [1] * len(READS) + [2] * len(TWO) + [0] * (20 - end)
    assert batch.position[0].tolist() == [*range(len(READS)), *range(len(TWO))] + [0] * (20 - end)
    for name in ("ids", "document", "position", "target", "condition"):
        assert not getattr(batch, name)[1].any()
    assert owners == {"seen": [(0, 0, 0)], "drawn": [(0, 0, 1), (0, 1, 0), (0, 1, 1), (2, 0, 0), (2, 0, 1)]}
    assert (batch.seen.row.tolist(), batch.seen.start.tolist(), batch.seen.tokens.tolist()) == ([0], [2], [3])
    drawn = batch.drawn
    assert drawn.row.tolist() == [0, 0, 0, 2, 2]
    assert drawn.start.tolist() == [5, len(READS) + 3, len(READS) + 5, 0, 3]
    assert drawn.tokens.tolist() == drawn.tiles.tolist() == [2, 2, 2, 2, 1]
    assert drawn.grid.tolist() == [[1, 2], [1, 2], [1, 2], [1, 2], [1, 1]]
    assert drawn.size.tolist() == [[8, 9], [7, 9], [8, 9], [7, 9], [8, 9]]
    assert drawn.answer.tolist() == [False, True, True, False, True]
    assert (drawn.pixels[:, 0, 0, 0] * 255).round().tolist() == [0, 0, 1, 1, 1, 1, 20, 20, 20]
    assert drawn.pixels.shape == (9, 3, SIDE, SIDE)


def test_a_batch_is_as_wide_as_its_widest_row_and_may_hold_nothing() -> None:
    assert packed([[TWO], [READS, TWO]]).ids.shape == (2, len(READS) + len(TWO))
    for rows in ([], [[]]):
        batch = packed(rows, length=3)
        assert batch.ids.shape == (len(rows), 3)
        assert len(batch.seen) == len(batch.drawn) == 0
        assert batch.drawn.pixels.shape == (0, 3, SIDE, SIDE) and batch.drawn.size.shape == (0, 2)
        assert [len(places) for places in picture_places(batch.drawn)] == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_picture_places_are_those_of_the_slots(seed: int) -> None:
    rows, batch, _ = some(seed)
    for view in ("seen", "drawn"):
        expected = []
        for row, documents in enumerate(rows):
            first = 0
            for laid in documents:
                for slot in laid.slots:
                    inside = range(first + slot.start, first + slot.start + slot.tokens)
                    expected += [(row, place) for place in inside] if slot.view == view else []
                first += len(laid)
        pictures: Pictures = getattr(batch, view)
        assert [tuple(pair) for pair in torch.stack(picture_places(pictures), dim=1).tolist()] == expected


def test_a_prompt_cuts_each_picture_for_its_view() -> None:
    laid = document(("seen", 3), ("drawn", 1, False), ("text", 2))
    seen, drawn = Tiles(side=4, patch=2, pinpoints=((4, 8),)), Square(side=6)
    red, grey = Image.new("RGBA", (16, 8), (255, 0, 0, 255)), Image.new("L", (5, 6), 51)
    batch = prompted(laid, [red, grey], seen, drawn)
    assert sides(seen, None) == {"seen": 4, "drawn": 0} and sides(None, drawn) == {"seen": 0, "drawn": 6}
    assert batch.seen.pixels.shape == (3, 3, 4, 4) and batch.seen.tiles.tolist() == [3]
    assert batch.seen.grid.tolist() == [[1, 2]] and batch.seen.size.tolist() == [[16, 8]]
    assert torch.equal(batch.seen.pixels, torch.tensor([1.0, 0, 0])[None, :, None, None].expand(3, 3, 4, 4))
    torch.testing.assert_close(batch.drawn.pixels, torch.full((1, 3, 6, 6), 0.2))
    assert batch.ids.shape == (1, len(laid))
