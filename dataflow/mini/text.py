"""Sentences of every miniature corpus: facts, sums, prose of our own; and the text corpus made of them.

FACTS, SUMS, PROSE, captions of VIEWS and SCENES -> text -> text/part-00000.{jsonl, parquet, txt}

text/part-00000.jsonl      {"text": "..."} per line; a half of the documents
text/part-00001.parquet    a column `text`; a third
text/part-00002.txt        a document per line; a sixth
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflow.mini.clips import EVENTS, SCENES
from dataflow.mini.files import choose, conversations, jsonl, parquet, put
from dataflow.mini.material import Corpus, Material
from dataflow.mini.photographs import VIEWS

FACTS = (
    ("How many sides does a triangle have?", "A triangle has three sides."),
    ("What color do you get when you mix blue and yellow paint?", "Green."),
    (
        "What is a circle?",
        "A circle is the set of all points in a plane that lie at the same distance from its center.",
    ),
    (
        "What does the aperture of a camera do?",
        "It sets how wide the opening of the lens is, and so how much light enters.",
    ),
    ("How many corners does a rectangle have?", "Four, and each of them is a right angle."),
    ("Is teal closer to green or to red?", "Teal is a dark blue-green, so it is closer to green."),
    (
        "What happens to a photograph when the shutter stays open too long?",
        "Too much light is collected, and it becomes too bright.",
    ),
    ("What do the angles of a triangle add up to?", "They add up to 180 degrees."),
    ("Which three colors of light does a screen mix?", "Red, green and blue."),
    (
        "What is the difference between a square and a rectangle?",
        "All sides of a square are equally long; a rectangle may be longer than it is wide.",
    ),
    (
        "Why is a tripod used for photographs at night?",
        "The exposure is long, and a tripod keeps the camera still so that the picture is not blurred.",
    ),
    ("What is black in the RGB color model?", "Black has the value 0 in all three channels."),
    ("How many sides does a circle have?", "A circle has no straight sides."),
    (
        "What is a grayscale picture?",
        "A picture that holds only brightness, from black over gray to white, and no color.",
    ),
    (
        "What is the diameter of a circle?",
        "It is the length of a straight line through the center from edge to edge, twice the radius.",
    ),
    ("Which colors are called primary in painting?", "Traditionally red, yellow and blue."),
    ("What is a pixel?", "The smallest element of a digital picture: one point with one color."),
    ("What is an equilateral triangle?", "A triangle whose three sides are equally long."),
    ("What color do you get when you mix red and yellow paint?", "Orange."),
    ("What is the area of a triangle?", "Half of its base times its height."),
    ("What is a mirror image?", "A picture with left and right exchanged, as seen in a mirror."),
    ("How many diagonals does a rectangle have?", "Two, and they are equally long."),
    ("What is yellow in the RGB color model?", "Yellow is full red and full green with no blue: (255, 255, 0)."),
    (
        "Why do photographs of stars need a long exposure?",
        "Stars are faint, so light has to be collected for a longer time.",
    ),
    (
        "Can a triangle have two right angles?",
        "No. Two right angles already make 180 degrees, which leaves nothing for the third angle.",
    ),
    ("What is a negative in photography?", "A picture in which bright and dark are exchanged."),
    ("What color do you get when you mix black and white paint?", "Gray."),
    ("What is a right triangle?", "A triangle with one angle of 90 degrees."),
    ("What does a zoom lens change?", "Its focal length, and so how large things appear in the picture."),
    ("Is every square a rectangle?", "Yes, a square is a rectangle whose sides are equally long."),
)

_SUMS: tuple[Callable[[int, int], tuple[str, str]], ...] = (
    lambda a, b: (f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."),
    lambda a, b: (f"What is {a + b} minus {b}?", f"{a + b} minus {b} is {a}."),
    lambda a, b: (f"What is {a} times {b % 12 + 2}?", f"{a} times {b % 12 + 2} is {a * (b % 12 + 2)}."),
    lambda a, b: (
        f"A rectangle is {a} cm long and {b} cm wide. How long is its perimeter?",
        f"Twice {a} cm plus twice {b} cm, which is {2 * (a + b)} cm.",
    ),
    lambda a, b: (
        f"A rectangle is {a} cm long and {b % 12 + 2} cm wide. What is its area?",
        f"{a} cm times {b % 12 + 2} cm, which is {a * (b % 12 + 2)} square centimeters.",
    ),
    lambda a, b: (f"Which number is larger, {a} or {a + b}?", f"{a + b} is larger."),
    lambda a, b: (f"How many corners do {a} triangles have together?", f"Each has three, so together {3 * a}."),
    lambda a, b: (f"Is {a} even or odd?", f"{a} is {'odd' if a % 2 else 'even'}."),
)


def _sum(name: str) -> tuple[str, str]:
    """A question with two numbers, and its answer."""
    numbers = (choose(name, purpose, 400) + 2 for purpose in ("a", "b"))
    return _SUMS[choose(name, "sum", len(_SUMS))](*numbers)


def text_row(number: int) -> dict[str, Any]:
    """Each fact once, between sums and shapes; one row in six has two turns. Four ways to have no picture, in turn."""
    name = f"interlace_text_{number}"

    chat = [FACTS[number // 5] if number % 5 == 0 and number // 5 < len(FACTS) else _sum(f"{name}/0")]
    if number % 6 == 5:
        chat.append(_sum(f"{name}/1"))
    absent: dict[str, Any] = ({}, {"image": None}, {"image": ""}, {"image": "nan"})[number % 4]
    return {"id": name, **absent, "conversations": conversations(chat), "source": "interlace_text_6k.json"}


def sentence(said: str) -> str:
    """A caption as a sentence."""
    return f"{said[0].upper()}{said[1:]}."


# --------------------------------------------------------------------------------------------------- documents

PROSE = (
    (
        "A camera is a dark box with a small opening. "
        "Light that comes through the opening draws a picture on the far side."
    ),
    "Hold the camera still and press the button gently. Most blurred pictures are not out of focus; the hand moved.",
    (
        "To photograph the moon, use a tripod and a short exposure. "
        "The moon is lit by the sun, so it is as bright as a street by day."
    ),
    "A triangle is the stiffest of all shapes. That is why bridges and roofs are made of many of them.",
    (
        "A circle has no corners, so a wheel rolls without a bump. "
        "A square wheel would lift its cart four times in each turn."
    ),
    (
        "Cats see well in the dark because the back of their eyes reflects light. "
        "In a photograph with flash their eyes glow."
    ),
    (
        "Coffee is brewed from the roasted seeds of a small tree. "
        "The beans are green before they are roasted and brown afterwards."
    ),
    "A rocket carries its own oxygen, because there is none to burn fuel with above the air.",
    "Astronauts wear orange suits at launch and landing. Orange is easy to see in the sea.",
    "The Hubble telescope looked for ten days at a patch of sky that seemed empty, and found three thousand galaxies.",
    "A video is a row of still pictures. Shown at twenty-five in a second, they look like motion.",
    "The first frame of a clip often says where it happens, and the last one says what came of it.",
    "A burrow is a hole that an animal has dug to live in. Rabbits dig theirs into hills, with more than one way out.",
    "A bicycle stays upright more easily when it rolls. Standing still, it has to be leaned on a wall or a fence.",
    "Taxis carry a sign on the roof. When it is lit, the taxi is free.",
    (
        "A bus is longer than a car and carries many people. "
        "Seen from above it is a white rectangle that moves along the road."
    ),
    "Mixing paint is not like mixing light. Red and green light make yellow, red and green paint make brown.",
    "Teal is named after a small duck that has a stripe of this color beside its eye.",
    "Gray is what is left of a color when only its brightness is kept.",
    "A pixel has no size of its own. It becomes large or small when the picture is shown on a screen.",
    "A picture file begins with a few bytes that say what kind of file it is. A name that ends in .jpg proves nothing.",
    "PNG keeps every pixel as it was. JPEG keeps what the eye would miss, and so its files are smaller.",
    (
        "A caption should name what can be seen, not what the writer knows. "
        "Who cannot see the picture should be able to draw it."
    ),
    "Count what you read and count what you write. If the numbers differ, find out why before you go on.",
    "A good label is short and true. A long one that is half true is worth less than none.",
    "When a row is dropped, write down the reason. The next reader will ask.",
    (
        "The same input should give the same output, today and next year. "
        "A program that looks at the clock cannot promise that."
    ),
    (
        "To shuffle a deck fairly, every order must be equally likely. "
        "To shuffle it twice the same way, remember the seed."
    ),
    "An editor changes what was asked for and leaves the rest alone. That is harder than it sounds.",
    "A mirror swaps near and far, not left and right. We say left and right because we imagine walking around it.",
    "Rotate a square by a quarter turn and nothing has changed. Rotate a triangle and everyone will notice.",
    "The shadow of a ball is always round. The shadow of a box depends on where the light stands.",
    "Coins were struck by hand for two thousand years. No two of the old ones are quite the same.",
    "A microscope shows what is too small for the eye. Tissue is stained with dyes, because cells are almost clear.",
    "The back of the eye is the only place where a doctor can see blood vessels without a cut.",
    "The engine of a motorcycle is cooled by the wind. The thin plates on its side give the heat more room to leave.",
    "Books are printed on large sheets, which are folded and cut. That is why pages come in eights and sixteens.",
    "A fence divides a street into two parts: here one walks, there one drives.",
    "The man in the back of the car talks, and the trees pass by behind him. One moves and the other seems to.",
    "Somebody asked how many sides a circle has. The short answer is none; the long answer fills a book.",
)
_TABLE = pa.schema([("text", pa.string())])


def _documents() -> Iterator[str]:
    """Prose, facts, what the pictures and the clips show, in turn; then sums, two to a document."""
    views = (" ".join([sentence(view.caption), *itertools.chain.from_iterable(view.chat)]) for view in VIEWS)
    scenes = (" ".join([sentence(scene.caption), *itertools.chain.from_iterable(scene.chat)]) for scene in SCENES)
    films = (" ".join(sentence(said) for _, _, said in events) for events in EVENTS.values())
    facts = (f"{question} {answer}" for question, answer in FACTS)
    turns = itertools.zip_longest(PROSE, facts, views, itertools.chain(scenes, films))
    yield from (found for turn in turns for found in turn if found is not None)
    for number in itertools.count():
        yield " ".join(itertools.chain.from_iterable(_sum(f"text/{number}/{part}") for part in range(2)))


def _write_text(folder: Path, rows: int, material: Material) -> None:
    documents = _documents()
    half, third = rows - rows // 2, rows // 3
    jsonl(folder / "part-00000.jsonl", [{"text": said} for said in itertools.islice(documents, half)])
    held = [{"text": said} for said in itertools.islice(documents, third)]
    parquet(folder / "part-00001.parquet", held, _TABLE)
    lines = itertools.islice(documents, rows - half - third)
    put(folder / "part-00002.txt", "".join(f"{said}\n" for said in lines).encode())


TEXT = Corpus(write=_write_text, limit=lambda material: 10_000)  # beyond that too many sums would come twice
