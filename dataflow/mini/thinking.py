"""Pictures that want to be looked at in one place, in miniature: Visual CoT and V*.

boards of cards on photographs -> visual_cot, vstar -> folders of the same names

visual_cot/viscot_363k.json      one list; four turns; pictures in cot/easy_vqa, boxes are corners in pixels
vstar/{GQA, negative}_data.json  lists; pictures in gqa/images, boxes are left, top, width, height in pixels; a few rows
                                 of either have no targets
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataflow.mini.boards import Board, Card, cards, lay, view
from dataflow.mini.drawings import COLORS, SHAPES
from dataflow.mini.files import choose, conversations, document, jpeg, put
from dataflow.mini.material import Corpus, Material, dirt
from dataflow.mini.photographs import Box

# Both are upstream's own words, by which its readers find what they need.
WHERE = "Please provide the bounding box coordinate of the region that can help you answer the question better."
FOCUS = "Additional visual information to focus on: "
_NEGATIVE = 8  # one row of V* in so many is in negative_data.json
_ABSENT = 4  # one of those in so many names no target
_WHOLE = 12  # one of the others in so many names none either: its question is about the picture as a whole


def _board(source: str, row: int, material: Material) -> tuple[list[Card], Board]:
    """Two or three cards on the photograph whose turn it is."""
    name = f"{source}/{row}"
    found = cards(2 + choose(name, "cards", 2), name, material)
    return found, lay(found, material.photographs.crop(view(row), name), name, material)


# -------------------------------------------------------------------------------------------------- Visual CoT


def _write_visual_cot(folder: Path, rows: int, material: Material) -> None:
    written = []
    for row in range(rows):
        found, board = _board("visual_cot", row, material)
        path = f"cot/easy_vqa/{row:07d}.jpg"
        put(folder / path, jpeg(board.image))
        question, answer = _about(found[0], f"visual_cot/{row}")
        left, top, right, bottom = board.boxes[0]
        if dirt("visual_cot", row, rows) == "box without area":
            right = left
        side = max(board.image.size)
        beside, above = ((side - length) // 2 for length in board.image.size)  # of the picture in its square
        share = [(left + beside) / side, (top + above) / side, (right + beside) / side, (bottom + above) / side]
        written.append(
            {
                "dataset": "easy_vqa",
                "split": "train",
                "question_id": row,
                "image": [path, f"{path}###[{left}, {top}, {right}, {bottom}]"],
                "conversations": conversations(
                    [
                        (f"<image>\n{question} {WHERE}", f"[{', '.join(f'{value:.3f}' for value in share)}]"),
                        ("<image>", answer),
                    ]
                ),
            }
        )
    document(folder / "viscot_363k.json", written)


def _about(card: Card, name: str) -> tuple[str, str]:
    """A question that the card answers."""
    other = sorted(COLORS, key=lambda color: choose(name, f"asked {color}", 2**64))[0]
    questions = (
        (f"What color is the {card.shape}?", card.color),
        (f"Which shape is {card.color}?", card.shape),
        (f"Is the {card.shape} {other}?", "yes" if other == card.color else "no"),
        (f"Is the {card.shape} {card.color}?", "yes"),
    )
    return questions[choose(name, "question", len(questions))]


# ---------------------------------------------------------------------------------------------------------- V*


def _write_vstar(folder: Path, rows: int, material: Material) -> None:
    positive = rows - rows // _NEGATIVE
    written = [_vstar_row(folder, row, rows, row >= positive, material) for row in range(rows)]
    document(folder / "GQA_data.json", written[:positive])
    document(folder / "negative_data.json", written[positive:])


def _vstar_row(folder: Path, row: int, rows: int, negative: bool, material: Material) -> dict[str, Any]:
    found, board = _board("vstar", row, material)
    path = f"gqa/images/{row:07d}.jpg"
    put(folder / path, jpeg(board.image))
    boxes = board.boxes
    if dirt("vstar", row, rows) == "box outside":
        boxes = [
            (left + board.image.width, top, right + board.image.width, bottom) for left, top, right, bottom in boxes
        ]
    targets: list[dict[str, Any]] = [
        {"name": card.shape, "bbox": [left, top, right - left, bottom - top]}
        for card, (left, top, right, bottom) in zip(found, boxes, strict=True)
    ]
    name = f"vstar/{row}"
    if negative and row % _ABSENT == 0:
        missing = [color for color in COLORS if color not in {card.color for card in found}]
        shape, color = SHAPES[choose(name, "shape", 3)], missing[choose(name, "missing", len(missing))]
        question, answer = f"Where is the {color} {shape}?", f"There is no {color} {shape} in the picture."
        return {"image": path, "conversations": conversations([(f"<image>\n{question}", answer)])}
    if not negative and row % _WHOLE == 5:
        question, answer = "How many cards lie on the photograph?", f"There are {len(found)}."
        return {"image": path, "conversations": conversations([(f"<image>\n{question}", answer)])}
    if negative:
        missing = [color for color in COLORS if color != found[0].color]
        asked = missing[choose(name, "missing", len(missing))]
        question, answer = f"Is the {found[0].shape} {asked}?", f"No, the {found[0].shape} is {found[0].color}."
        targets = targets[:1]
    else:
        targets = targets[: 1 + choose(name, "targets", 2)]
        question, answer = _of_targets(found, board.boxes, len(targets))
    focus = FOCUS + "; ".join(["<object>"] * len(targets))
    return {
        "image": path,
        "search": True,
        "target_instances": targets,
        "conversations": conversations([(f"<image>\n{focus}.\n{question}", answer)]),
    }


def _of_targets(found: list[Card], boxes: list[Box], targets: int) -> tuple[str, str]:
    """The color of one, or how two lie to each other: along the axis on which they are further apart."""
    first, second = found[:2]
    if targets == 1:
        return f"Which color is the {first.shape}?", f"The {first.shape} is {first.color}."
    middles = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in boxes]
    across, down = (middles[0][axis] - middles[1][axis] for axis in (0, 1))
    if abs(across) >= abs(down):
        question, said = "left or right", "right" if across > 0 else "left"
        return (
            f"Is the {first.shape} {question} of the {second.shape}?",
            f"The {first.shape} is {said} of the {second.shape}.",
        )
    said = "below" if down > 0 else "above"
    return (
        f"Is the {first.shape} above or below the {second.shape}?",
        f"The {first.shape} is {said} the {second.shape}.",
    )


VISUAL_COT = Corpus(write=_write_visual_cot, limit=lambda material: len(material.drawings.shapes))
VSTAR = Corpus(write=_write_vstar, limit=lambda material: len(material.drawings.shapes))
