"""Miniature corpora on disk, before any source reads them: real pictures and questions in upstream's own layouts.

    easy-vqa, scikit-image (PyPI) -> write() -> folder/{cambrian, metaclip, instruct_pix2pix} -> sources (not imported)

The pictures are the 64 px drawings of easy-vqa (MIT; one coloured shape on a light tint) and crops of the photographs
in scikit-image's data folder, captioned by hand. Nothing here is noise, nothing comes from a random generator: every
choice is a sha256 of the row's name, so the same package versions and sizes give the same bytes.

    cambrian/jsons/Cambrian7M_withsystemprompt.jsonl    a row per line; pictures in cambrian/{easy_vqa, photographs}
    metaclip/{shard % 100}/{shard}.tar      250 pairs each: {uuid}.jpeg, then {uuid}.json; uuid = sha224(url)[:24]
    instruct_pix2pix/data/train-0000?-of-00002-*.parquet    before, request, after; row groups of 100
    mini.begun                              this folder is ours and may be overwritten
    mini.json                               written last: sizes and versions of what stands here

One row of Cambrian:
    {"id": "easy_vqa_318_2", "image": "easy_vqa/318.png", "conversations": [{"from": "human", "value": "<image>\\nwhat
    shape is in the image?\\nAnswer the question using a single word or phrase."}, {"from": "gpt", "value":
    "rectangle"}], "source": "easy_vqa_train_38k.json"}
Of 20 rows 16 ask about a drawing, 1 about a photograph, and 3 are text only; those say that they have no picture in
the four ways upstream does, in turn: no key `image`, null, '', 'nan'.

The traps, as upstream has them: in `cambrian`, of 100 rows or more, exactly these (counted from 0, see DIRTY):
    row 11   names a picture file that does not exist
    row 31   names a PNG that ends in the middle
    row 51   says <image> twice for one picture
    row 71   is a line cut in the middle: not JSON
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import itertools
import json
import re
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

VERSION = 1  # raise it when the same sizes give other bytes

SOURCES = ("cambrian", "metaclip", "instruct_pix2pix")  # folders that write() owns, also the fields of Sizes
PACKAGES = ("easy-vqa", "scikit-image", "pillow", "pyarrow")  # whose versions decide the bytes

DIRTY: Mapping[int, str] = MappingProxyType(
    {11: "picture missing", 31: "picture truncated", 51: "two <image> for one picture", 71: "line cut"}
)
DIRTY_FROM = 100  # rows; smaller corpora are clean, so that a test of ten rows need not know of the traps

SHARD = 250  # pairs per tar: several shards already at 600 rows
ROW_GROUP = 100  # edits per row group: several groups per file already at 300 rows
PARQUETS = 2  # files the edits are laid into, in halves
JPEG_QUALITY = 90
CROP_SIDES = (96, 160)  # px; the shorter and the longer side of a crop stay between them
RATIOS = ((1, 1), (4, 3), (3, 4), (5, 3), (3, 5))  # width : height of crops

COLORS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {  # RGB of the drawings, measured: the fill of every shape is exactly one of these
        "black": (0, 0, 0),
        "blue": (0, 0, 255),
        "brown": (165, 42, 42),
        "gray": (128, 128, 128),
        "green": (0, 255, 0),
        "red": (255, 0, 0),
        "teal": (0, 128, 128),
        "yellow": (255, 255, 0),
    }
)
SHAPES = ("circle", "rectangle", "triangle")
SMALL, LARGE = 0.05, 0.10  # share of the picture's area that the shape covers; about a third of the drawings each side
BRIEFLY = "Answer the question using a single word or phrase."  # the prompt of Cambrian's "withsystemprompt" file


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Rows of each source; 0 leaves its folder out."""

    cambrian: int = 2000
    metaclip: int = 600
    instruct_pix2pix: int = 300

    def __post_init__(self) -> None:
        for source, rows in asdict(self).items():
            if rows < 0:
                raise ValueError(f"{source}={rows}: a number of rows is 0 or more; 0 leaves the source out")


MINI = Sizes()


def write(folder: Path, *, rows: Sizes = MINI) -> dict[str, int]:
    """Write the three corpora under `folder`, unless they stand there already.

    Args:
        folder: created if missing. Its folders `cambrian`, `metaclip` and `instruct_pix2pix` are replaced when an
            earlier, unfinished or different write made them; anything else in it is left alone.
        rows: how many rows of each source.
    Returns:
        Rows per source, as written now or before.
    Raises:
        ValueError: a package is missing, more rows are asked for than its pictures give, or one of the three folders
            exists and was not written here.
    """
    folder = Path(folder)
    easy_vqa, skimage = _package("easy_vqa", "easy-vqa"), _package("skimage", "scikit-image")
    counts = asdict(rows)
    state = {
        "version": VERSION,
        "rows": counts,
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
    begun, done = folder / "mini.begun", folder / "mini.json"
    if done.exists() and done.read_text() == _marker(state):
        return counts
    drawings, photographs = _Drawings.load(easy_vqa), _Photographs(skimage)
    _refuse_too_many(rows, drawings)
    foreign = [source for source in SOURCES if (folder / source).exists()]
    if foreign and not begun.exists() and not done.exists():
        raise ValueError(f"{folder / foreign[0]}: exists and was not written by dataflow.mini; give another folder")

    folder.mkdir(parents=True, exist_ok=True)
    begun.touch()
    done.unlink(missing_ok=True)
    for source in SOURCES:
        if (folder / source).exists():
            shutil.rmtree(folder / source)
    if rows.cambrian:
        _write_cambrian(folder / "cambrian", rows.cambrian, drawings, photographs)
    if rows.metaclip:
        _write_metaclip(folder / "metaclip", rows.metaclip, drawings, photographs)
    if rows.instruct_pix2pix:
        _write_instruct_pix2pix(folder / "instruct_pix2pix", rows.instruct_pix2pix, drawings, photographs)
    unfinished = folder / "mini.json.part"
    unfinished.write_text(_marker(state))
    unfinished.replace(done)
    return counts


def _marker(state: Mapping[str, Any]) -> str:
    return json.dumps(state, indent=2) + "\n"


def _package(package: str, distribution: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f'{distribution} is not installed, its pictures are needed; pip install "interlace[mini]"')
    return Path(spec.submodule_search_locations[0])


def _refuse_too_many(rows: Sizes, drawings: _Drawings) -> None:
    """Compare what is asked for with what easy-vqa holds; photographs can be cropped without end."""
    limits = {
        "cambrian": _limit(_cambrian_kind, len(drawings.chats)),
        "metaclip": _limit(_metaclip_kind, len(drawings.shapes)),
        "instruct_pix2pix": _limit(_edit_kind, len(drawings.shapes)),
    }
    for source, limit in limits.items():
        asked = getattr(rows, source)
        if asked > limit:
            raise ValueError(f"{source}={asked}: easy-vqa's pictures and questions fill {limit} rows; ask for no more")


def _limit(kind: Callable[[int], str], drawn: int) -> int:
    """Rows that `drawn` rows about drawings are enough for."""
    number_of_rows, left = 0, drawn
    while left or kind(number_of_rows) != "drawing":
        left -= kind(number_of_rows) == "drawing"
        number_of_rows += 1
    return number_of_rows


def _draw(name: str, purpose: str, below: int) -> int:
    """A number in [0, below) that only the row's name and what it is for decide."""
    return int.from_bytes(hashlib.sha256(f"{name}/{purpose}".encode()).digest()[:8]) % below


# ---------------------------------------------------------------------------------------------------- drawings


@dataclass(frozen=True, kw_only=True)
class _Drawings:
    """easy-vqa's training pictures: what is asked about them, and what they show."""

    folder: Path
    chats: list[tuple[str, int, list[tuple[str, str]]]]  # name, picture, its questions and answers; shuffled
    shapes: list[tuple[int, str, str]]  # picture, shape, color; the first 24 show every shape in every color

    @classmethod
    def load(cls, package: Path) -> _Drawings:
        questions = defaultdict[int, list[tuple[str, str]]](list)
        for question, answer, picture in json.loads((package / "data/train/questions.json").read_text()):
            questions[picture].append((question, answer))
        return cls(folder=package / "data/train/images", chats=_chats(questions), shapes=_shapes(questions))

    def path(self, picture: int) -> Path:
        return self.folder / f"{picture}.png"

    def open(self, picture: int) -> Image.Image:
        with Image.open(self.path(picture)) as image:
            return image.convert("RGB")


def _chats(questions: Mapping[int, list[tuple[str, str]]]) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """Every question once, one to a chat; one chat in sixteen has two, one in sixteen three about the same picture."""
    chats = []
    for picture in sorted(questions):
        rest = iter(sorted(questions[picture], key=lambda pair: _draw(f"easy_vqa_{picture}", pair[0], 2**64)))
        for number in itertools.count():
            turns = (1,) * 14 + (2, 3)
            name = f"easy_vqa_{picture}_{number}"
            chat = list(itertools.islice(rest, turns[_draw(name, "turns", len(turns))]))
            if not chat:
                break
            chats.append((name, picture, chat))
    return sorted(chats, key=lambda chat: _draw(chat[0], "order", 2**64))


def _shapes(questions: Mapping[int, list[tuple[str, str]]]) -> list[tuple[int, str, str]]:
    """Shape and color of the pictures whose questions give both away, as 3,578 of the 4,000 do.

    "what is the blue shape?" says blue, its answer the shape; "is there not a red shape?" "no" says red; a picture with
    neither circle nor rectangle holds a triangle. Compared with the pixels: true of all.
    """
    known = defaultdict[tuple[str, str], list[int]](list)
    for picture, pairs in questions.items():
        said = dict[bool, set[str]]({True: set(), False: set()})
        for question, answer in pairs:
            words = set(re.findall("[a-z]+", question))
            if answer in ("yes", "no"):
                said[(answer == "yes") != bool(words & {"no", "not"})] |= words
            else:
                said[True] |= words | {answer}
        shapes, colors = (
            [word for word in every if word in said[True]] or [word for word in every if word not in said[False]]
            for every in (SHAPES, tuple(COLORS))
        )
        if len(shapes) == len(colors) == 1:
            known[shapes[0], colors[0]].append(picture)
    ordered = [
        [
            (picture, shape, color)
            for picture in sorted(known[shape, color], key=lambda p: _draw(f"{p}", "order", 2**64))
        ]
        for shape, color in itertools.product(SHAPES, COLORS)
    ]
    turns = ([found for found in turn if found is not None] for turn in itertools.zip_longest(*ordered))
    return [found for turn in turns for found in sorted(turn, key=lambda found: _draw(f"{found[0]}", "turn", 2**64))]


def _cover(image: Image.Image, color: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much of each pixel is the shape: float[64, 64] in 0..1, soft at the edges; and the tint behind it, RGB."""
    colors = image.getcolors(image.width * image.height) or []
    tint = np.array(max(colors)[1], dtype=np.float64)
    way = np.array(COLORS[color], dtype=np.float64) - tint
    along = ((np.asarray(image, dtype=np.float64) - tint) * way).sum(axis=-1) / (way * way).sum()
    return along.clip(0, 1), tint


def _size(image: Image.Image, color: str) -> str:
    """small, medium or large: by the share of the picture that the shape covers."""
    share = float(_cover(image, color)[0].mean())
    return "small" if share < SMALL else "medium" if share < LARGE else "large"


def _recolor(image: Image.Image, old: str, new: str) -> Image.Image:
    """The same shape in another color, its soft edges kept."""
    cover, tint = _cover(image, old)
    pixels = tint + cover[..., None] * (np.array(COLORS[new], dtype=np.float64) - tint)
    return Image.fromarray(pixels.round().astype(np.uint8))


# ------------------------------------------------------------------------------------------------- photographs

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the photograph


@dataclass(frozen=True, kw_only=True)
class View:
    """Part of a photograph. What is said of it holds for every crop that contains `core` and stays inside `within`."""

    file: str  # in scikit-image's data folder
    core: Box
    within: Box
    caption: str
    chat: tuple[tuple[str, str], ...] = ()  # further questions and their answers


GRAY = frozenset({"camera.png", "coins.png", "moon.png", "page.png"})  # photographs without color

# Chosen and captioned by looking at them. Left out: drawings and renderings (color, horse, logo, phantom), what looks
# like noise when small (brick, grass, gravel), and what cannot be captioned from sight (cell, clock_motion,
# microaneurysms, text).
VIEWS = (
    View(
        file="astronaut.png",
        core=(20, 10, 460, 440),
        within=(0, 0, 512, 512),
        caption="an astronaut in an orange space suit",
        chat=(
            ("What stands behind the astronaut on the right?", "A model of a space shuttle."),
            ("Which color is the suit?", "Orange."),
            ("Is the astronaut smiling?", "Yes, she is smiling."),
        ),
    ),
    View(
        file="camera.png",
        core=(30, 60, 400, 500),
        within=(0, 0, 512, 512),
        caption="a man in a dark coat looking through a camera on a tripod",
        chat=(
            ("Is this photograph in color?", "No, it is black and white."),
            ("What does the camera stand on?", "It stands on a tripod."),
            ("What is the ground covered with?", "Grass."),
        ),
    ),
    View(
        file="chelsea.png",
        core=(110, 10, 370, 285),
        within=(0, 0, 451, 300),
        caption="the face of a tabby cat",
        chat=(
            ("Which animal is it?", "It is a cat."),
            ("Are its eyes open?", "Yes, both eyes are open."),
        ),
    ),
    View(
        file="coffee.png",
        core=(90, 20, 475, 385),
        within=(0, 0, 600, 400),
        caption="a cup of coffee and a spoon on a red saucer",
        chat=(
            ("What is the table made of?", "It is made of wood."),
            ("What lies beside the cup?", "A spoon lies on the saucer beside the cup."),
            ("Which color is the saucer?", "Red."),
        ),
    ),
    View(
        file="coins.png",
        core=(100, 80, 250, 230),
        within=(0, 0, 384, 303),
        caption="old coins laid out in rows on a dark background",
        chat=(
            ("Is the background darker than the coins?", "Yes, it is darker."),
            ("Is this photograph in color?", "No, it is black and white."),
        ),
    ),
    View(
        file="hubble_deep_field.jpg",
        core=(400, 380, 560, 480),
        within=(300, 280, 700, 640),
        caption="many distant galaxies in black space",
        chat=(("Was this photograph taken on the ground in daylight?", "No, it shows the darkness of space."),),
    ),
    View(
        file="motorcycle_left.png",
        core=(90, 100, 690, 460),
        within=(0, 0, 741, 500),
        caption="a red motorcycle in a garage",
        chat=(
            ("Which color is the motorcycle?", "Red."),
            ("How many wheels of the motorcycle can be seen?", "Two."),
            ("What is behind the motorcycle?", "A wooden bench and shelves with boxes."),
        ),
    ),
    View(
        file="rocket.jpg",
        core=(170, 110, 470, 420),
        within=(0, 0, 640, 427),
        caption="a white rocket on its launch pad under a dark blue sky",
        chat=(
            ("Are there lights on the ground?", "Yes, several bright lights."),
            ("What stands on both sides of the rocket?", "Tall towers of steel."),
        ),
    ),
    View(
        file="moon.png",
        core=(90, 55, 150, 120),
        within=(20, 0, 280, 240),
        caption="a crater on the gray surface of the moon",
        chat=(("Are there trees in the photograph?", "No, only bare ground with a crater."),),
    ),
    View(
        file="retina.jpg",
        core=(20, 20, 1390, 1390),
        within=(0, 0, 1411, 1411),
        caption="the back of an eye with its blood vessels",
        chat=(("Which color is most of it?", "Orange red."),),
    ),
    View(
        file="page.png",
        core=(30, 40, 270, 150),
        within=(0, 0, 384, 191),
        caption="a page of printed text",
        chat=(("Is the text printed or written by hand?", "It is printed."),),
    ),
    View(
        file="astronaut.png",
        core=(140, 5, 310, 200),
        within=(70, 0, 350, 270),
        caption="the face of a smiling woman with short hair",
        chat=(("Is her hair long or short?", "It is short."),),
    ),
    View(
        file="camera.png",
        core=(150, 60, 335, 230),
        within=(60, 20, 400, 300),
        caption="a man with dark hair looking through a camera",
        chat=(
            ("Which way does the man look, left or right?", "He looks to the right."),
            ("Is his hair dark?", "Yes, it is dark."),
        ),
    ),
    View(
        file="motorcycle_left.png",
        core=(330, 240, 480, 370),
        within=(240, 180, 520, 430),
        caption="the shiny metal engine of a red motorcycle",
    ),
    View(
        file="coffee.png",
        core=(170, 15, 410, 210),
        within=(100, 0, 480, 330),
        caption="a cup of coffee",
        chat=(("Which color is the inside of the cup?", "White."),),
    ),
    View(
        file="hubble_deep_field.jpg",
        core=(95, 370, 155, 430),
        within=(20, 330, 270, 520),
        caption="a bright spiral galaxy among smaller ones",
    ),
    View(
        file="rocket.jpg",
        core=(300, 120, 350, 230),
        within=(215, 60, 440, 345),
        caption="the upper part of a white rocket against a dark blue sky",
        chat=(("Is it day or night?", "The sky is dark, but still blue."),),
    ),
    View(
        file="ihc.png",
        core=(180, 180, 330, 330),
        within=(0, 0, 512, 512),
        caption="tissue stained brown and blue under a microscope",
        chat=(("Which colors does it have?", "Brown and blue on white."),),
    ),
    View(
        file="motorcycle_right.png",
        core=(45, 100, 635, 460),
        within=(0, 0, 741, 500),
        caption="a parked red motorcycle with a black seat",
        chat=(
            ("Which color is the seat?", "Black."),
            ("Is anybody riding the motorcycle?", "No, nobody is on it."),
        ),
    ),
    View(
        file="chelsea.png",
        core=(130, 80, 210, 150),
        within=(80, 40, 270, 220),
        caption="the eye of a tabby cat",
    ),
    View(
        file="astronaut.png",
        core=(285, 350, 500, 505),
        within=(220, 250, 512, 512),
        caption="an astronaut's helmet with a dark visor",
        chat=(("Can a face be seen in the helmet?", "No, the visor is dark."),),
    ),
    View(
        file="camera.png",
        core=(225, 290, 410, 505),
        within=(160, 260, 512, 512),
        caption="the legs of a tripod standing on grass",
        chat=(("What does the tripod stand on?", "It stands on grass."),),
    ),
    View(
        file="motorcycle_left.png",
        core=(505, 260, 690, 450),
        within=(480, 200, 741, 500),
        caption="the front wheel of a red motorcycle",
        chat=(("Which color is the mudguard?", "Red."),),
    ),
    View(
        file="retina.jpg",
        core=(115, 530, 320, 770),
        within=(20, 400, 620, 1000),
        caption="the bright optic disc at the back of an eye",
    ),
    View(
        file="moon.png",
        core=(90, 50, 400, 460),
        within=(0, 0, 512, 512),
        caption="the surface of the moon with craters and dark patches",
        chat=(("Is this photograph in color?", "No, it is shades of gray."),),
    ),
    View(
        file="astronaut.png",
        core=(125, 345, 215, 425),
        within=(30, 300, 270, 512),
        caption="a round patch on an orange space suit",
    ),
    View(
        file="hubble_deep_field.jpg",
        core=(715, 540, 790, 615),
        within=(640, 500, 860, 700),
        caption="a bright star with pointed rays among distant galaxies",
    ),
    View(
        file="motorcycle_right.png",
        core=(430, 115, 535, 195),
        within=(390, 80, 560, 260),
        caption="the round headlight of a motorcycle",
    ),
    View(
        file="coffee.png",
        core=(320, 245, 405, 325),
        within=(260, 225, 460, 380),
        caption="a shiny spoon on a red saucer",
    ),
    View(
        file="camera.png",
        core=(355, 115, 495, 275),
        within=(345, 40, 512, 320),
        caption="buildings on the horizon beyond a lawn",
        chat=(("Is this photograph in color?", "No, it is black and white."),),
    ),
    View(
        file="motorcycle_left.png",
        core=(120, 235, 285, 405),
        within=(60, 190, 330, 470),
        caption="the back wheel of a motorcycle",
    ),
    View(
        file="rocket.jpg",
        core=(10, 150, 90, 300),
        within=(0, 60, 170, 340),
        caption="a steel tower against a dark blue sky",
    ),
    View(
        file="astronaut.png",
        core=(355, 75, 460, 250),
        within=(305, 20, 512, 275),
        caption="a model of a space shuttle",
    ),
    View(
        file="chelsea.png",
        core=(225, 220, 300, 285),
        within=(150, 165, 380, 300),
        caption="the nose and mouth of a cat",
    ),
    View(
        file="motorcycle_left.png",
        core=(530, 28, 635, 102),
        within=(495, 0, 741, 118),
        caption="cardboard boxes on a shelf",
    ),
)


class _Photographs:
    """Crops of scikit-image's photographs; a photograph is decoded once, when it is first wanted."""

    def __init__(self, package: Path) -> None:
        self._folder = package / "data"
        self._images: dict[str, Image.Image] = {}
        for file in sorted({view.file for view in VIEWS}):
            if not (self._folder / file).exists():
                raise ValueError(f'scikit-image: {file} is not in its data folder; pip install "interlace[mini]"')

    def crop(self, view: View, name: str) -> Image.Image:
        """One crop of the view, its place, form and size drawn from `name`; sides within CROP_SIDES."""
        if view.file not in self._images:
            with Image.open(self._folder / view.file) as image:
                self._images[view.file] = image.convert("RGB")
        box, size = _crop_box(view, name)
        return self._images[view.file].resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _crop_box(view: View, name: str) -> tuple[Box, tuple[int, int]]:
    """Where to crop, and to what width and height: contains the core, stays within, at least 96 px of original."""
    shorter, longer = CROP_SIDES
    forms = []
    for wide, high in RATIOS:
        least = max(
            _ceil(view.core[2] - view.core[0], wide),
            _ceil(view.core[3] - view.core[1], high),
            _ceil(shorter, min(wide, high)),
        )
        most = min((view.within[2] - view.within[0]) // wide, (view.within[3] - view.within[1]) // high)
        if least <= most:
            forms.append((wide, high, least, most))
    assert forms, f"{view.file} {view.core}: no ratio fits between core and within"
    wide, high, least, most = forms[_draw(name, "form", len(forms))]
    scale = least + _draw(name, "scale", most - least + 1)
    left = _between(
        max(view.within[0], view.core[2] - wide * scale), min(view.core[0], view.within[2] - wide * scale), name, "left"
    )
    top = _between(
        max(view.within[1], view.core[3] - high * scale), min(view.core[1], view.within[3] - high * scale), name, "top"
    )
    unit = _between(_ceil(shorter, min(wide, high)), longer // max(wide, high), name, "unit")
    return (left, top, left + wide * scale, top + high * scale), (wide * unit, high * unit)


def _ceil(number: int, by: int) -> int:
    return -(-number // by)


def _between(low: int, high: int, name: str, purpose: str) -> int:
    return low + _draw(name, purpose, high - low + 1)


def _jpeg(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=JPEG_QUALITY)
    return data.getvalue()


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


# ---------------------------------------------------------------------------------------------------- Cambrian


def _cambrian_kind(row: int) -> str:
    """Of 20 rows 16 about drawings, 1 about a photograph, 3 text only; the places are spread, the order is fixed."""
    place = row % 20
    return "photograph" if place == 7 else "text" if place in (3, 9, 15) else "drawing"


def _write_cambrian(folder: Path, rows: int, drawings: _Drawings, photographs: _Photographs) -> None:
    for below in ("jsons", "easy_vqa", "photographs"):
        (folder / below).mkdir(parents=True)
    chats = iter(drawings.chats)
    seen = {"text": 0, "photograph": 0}
    copied = set[str]()
    with (folder / "jsons/Cambrian7M_withsystemprompt.jsonl").open("w", encoding="utf-8", newline="\n") as out:
        for row in range(rows):
            dirt = DIRTY.get(row) if rows >= DIRTY_FROM else None
            kind = _cambrian_kind(row)
            if kind == "text":
                fields = _text_row(seen[kind])
            elif kind == "photograph":
                fields = _photograph_row(folder, seen[kind], photographs)
            else:
                name, picture, chat = next(chats)
                path = drawings.path(picture)
                fields = _drawing_row(name, _place(folder, path, dirt, copied), chat)
            if kind in seen:
                seen[kind] += 1
            if dirt == "two <image> for one picture":
                fields["conversations"][0]["value"] = "<image>\n" + fields["conversations"][0]["value"]
            line = json.dumps(fields, ensure_ascii=False)
            out.write((line[: len(line) // 2] if dirt == "line cut" else line) + "\n")


def _place(folder: Path, path: Path, dirt: str | None, copied: set[str]) -> str:
    """Copy the drawing beside the rows and give its name; a dirty one has its own, so that clean rows stay clean."""
    if dirt == "picture missing":
        return f"easy_vqa/{path.stem}_missing.png"
    if dirt == "picture truncated":
        data = path.read_bytes()
        (folder / f"easy_vqa/{path.stem}_truncated.png").write_bytes(data[: len(data) // 2])
        return f"easy_vqa/{path.stem}_truncated.png"
    if path.name not in copied:
        shutil.copyfile(path, folder / "easy_vqa" / path.name)
        copied.add(path.name)
    return f"easy_vqa/{path.name}"


def _drawing_row(name: str, image: str, chat: list[tuple[str, str]]) -> dict[str, Any]:
    turns = _conversations(chat)
    turns[0]["value"] = f"<image>\n{turns[0]['value']}\n{BRIEFLY}"
    return {"id": name, "image": image, "conversations": turns, "source": "easy_vqa_train_38k.json"}


def _photograph_row(folder: Path, number: int, photographs: _Photographs) -> dict[str, Any]:
    """What is in it, a further question, or both as two turns, in turn."""
    view = VIEWS[number % len(VIEWS)]
    name = f"photographs/{Path(view.file).stem}_{number}"
    (folder / f"{name}.png").write_bytes(_png(photographs.crop(view, f"cambrian/{name}")))
    chat = [("What is in this photograph?", f"{view.caption[0].upper()}{view.caption[1:]}.")]
    if view.chat and number % 3:
        more = view.chat[_draw(f"cambrian/{name}", "question", len(view.chat))]
        chat = [more] if number % 3 == 1 else [*chat, more]
    turns = _conversations(chat)
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    return {
        "id": name.replace("/", "_"),
        "image": f"{name}.png",
        "conversations": turns,
        "source": "photographs_0k.json",
    }


def _conversations(chat: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"from": speaker, "value": value}
        for pair in chat
        for speaker, value in zip(("human", "gpt"), pair, strict=True)
    ]


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


def _text_row(number: int) -> dict[str, Any]:
    """Each fact once, between sums and shapes; one row in six has two turns. Four ways to have no picture, in turn."""
    name = f"interlace_text_{number}"

    def pair(turn: int) -> tuple[str, str]:
        numbers = (_draw(f"{name}/{turn}", purpose, 400) + 2 for purpose in ("a", "b"))
        return _SUMS[_draw(f"{name}/{turn}", "sum", len(_SUMS))](*numbers)

    chat = [FACTS[number // 5] if number % 5 == 0 and number // 5 < len(FACTS) else pair(0)]
    if number % 6 == 5:
        chat.append(pair(1))
    absent: dict[str, Any] = ({}, {"image": None}, {"image": ""}, {"image": "nan"})[number % 4]
    return {"id": name, **absent, "conversations": _conversations(chat), "source": "interlace_text_6k.json"}


# ---------------------------------------------------------------------------------------------------- MetaCLIP


def _metaclip_kind(row: int) -> str:
    """Of 5 rows one shows a photograph."""
    return "photograph" if row % 5 == 2 else "drawing"


def _write_metaclip(folder: Path, rows: int, drawings: _Drawings, photographs: _Photographs) -> None:
    pairs = _pairs(rows, drawings, photographs)
    for shard in range(_ceil(rows, SHARD)):
        path = folder / f"{shard % 100}" / f"{shard}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as out:
            for url, texts, jpeg in itertools.islice(pairs, SHARD):
                uuid = hashlib.sha224(url.encode()).hexdigest()[:24]
                fields = {"uuid": uuid, "url": url, "texts": [["alt", text] for text in texts]}
                _add(out, f"{uuid}.jpeg", jpeg)
                _add(out, f"{uuid}.json", json.dumps(fields, ensure_ascii=False).encode())


def _pairs(rows: int, drawings: _Drawings, photographs: _Photographs) -> Iterator[tuple[str, tuple[str, ...], bytes]]:
    """Url, texts and JPEG bytes of every row; one text mostly, two or three in half of the rows."""
    shapes = iter(drawings.shapes)
    for row in range(rows):
        if _metaclip_kind(row) == "photograph":
            view = VIEWS[row // 5 % len(VIEWS)]
            url = f"https://pypi.org/project/scikit-image/#skimage/data/{view.file}/{row}"
            jpeg = _jpeg(photographs.crop(view, url))
            texts = (view.caption, f"a photograph of {view.caption}")
        else:
            picture, shape, color = next(shapes)
            url = f"https://pypi.org/project/easy-vqa/#data/train/images/{picture}.png"
            image = drawings.open(picture)
            jpeg = _jpeg(image)
            caption = f"a {_size(image, color)} {color} {shape}"
            texts = (caption, f"{caption} on a light background", f"{color} {shape}")
        yield url, texts[: (1, 3, 1, 2)[row % 4]], jpeg


def _add(out: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member whose header depends on nothing but name and length: TarInfo's mtime and owner are 0."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    out.addfile(header, io.BytesIO(data))


# ---------------------------------------------------------------------------------------------- InstructPix2Pix


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What may be asked for, what the picture is afterwards, and how it is done."""

    requests: tuple[str, ...]
    after: str  # of the caption
    apply: Callable[[Image.Image], Image.Image]


def _sepia(image: Image.Image) -> Image.Image:
    return ImageOps.colorize(image.convert("L"), black=(30, 18, 8), mid=(150, 108, 72), white=(255, 240, 208))


_GRAYSCALE = Edit(
    requests=("make it black and white", "turn it into a grayscale picture", "remove the colors"),
    after="a black and white picture of {}",
    apply=lambda image: image.convert("L").convert("RGB"),
)
_MIRROR = Edit(
    requests=("mirror it", "flip the picture horizontally", "swap left and right"),
    after="a mirror image of {}",
    apply=ImageOps.mirror,
)
_ROTATE = Edit(
    requests=("rotate it a quarter turn to the left", "turn the picture a quarter turn counterclockwise"),
    after="{}, turned a quarter to the left",
    apply=lambda image: image.transpose(Image.Transpose.ROTATE_90),
)
_BRIGHTEN = Edit(
    requests=("make it brighter", "brighten the picture"),
    after="a very bright picture of {}",
    apply=lambda image: ImageEnhance.Brightness(image).enhance(1.6),
)
_DARKEN = Edit(
    requests=("make it darker", "darken the picture"),
    after="a dark picture of {}",
    apply=lambda image: ImageEnhance.Brightness(image).enhance(0.45),
)
_BLUR = Edit(
    requests=("blur it", "make the picture blurry", "put it out of focus"),
    after="a blurred picture of {}",
    apply=lambda image: image.filter(ImageFilter.GaussianBlur(3)),
)
_SEPIA = Edit(
    requests=("make it sepia", "make it look like an old brown photograph"),
    after="a sepia picture of {}",
    apply=_sepia,
)
_INVERT = Edit(
    requests=("invert the colors", "turn it into a negative"),
    after="a negative of {}",
    apply=ImageOps.invert,
)
OF_PHOTOGRAPHS = (_MIRROR, _ROTATE, _BRIGHTEN, _DARKEN, _BLUR, _SEPIA, _INVERT, _GRAYSCALE)
OF_DRAWINGS = (_DARKEN, _BLUR, _INVERT)  # the others can leave a shape on a light tint as it was


def _edit_kind(row: int) -> str:
    """Photographs and drawings take turns."""
    return "drawing" if row % 2 else "photograph"


_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMA = pa.schema(
    [
        ("original_prompt", pa.string()),
        ("original_image", _PICTURE),
        ("edit_prompt", pa.string()),
        ("edited_prompt", pa.string()),
        ("edited_image", _PICTURE),
    ]
)


def _write_instruct_pix2pix(folder: Path, rows: int, drawings: _Drawings, photographs: _Photographs) -> None:
    """Halves of the rows to two files, each named by what it holds."""
    (folder / "data").mkdir(parents=True)
    edits = _edits(rows, drawings, photographs)
    for number in range(PARQUETS):
        left = rows * (number + 1) // PARQUETS - rows * number // PARQUETS
        part = folder / f"data/{number}.part"
        with pq.ParquetWriter(part, _SCHEMA) as out:
            for group in range(_ceil(left, ROW_GROUP)):
                found = list(itertools.islice(edits, min(ROW_GROUP, left - group * ROW_GROUP)))
                out.write_table(pa.Table.from_pylist(found, schema=_SCHEMA), row_group_size=ROW_GROUP)
        with part.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()[:16]
        part.rename(folder / f"data/train-{number:05d}-of-{PARQUETS:05d}-{digest}.parquet")


def _edits(rows: int, drawings: _Drawings, photographs: _Photographs) -> Iterator[dict[str, Any]]:
    shapes = iter(drawings.shapes)
    for row in range(rows):
        name = f"instruct_pix2pix/{row}"
        if _edit_kind(row) == "photograph":
            yield _photograph_edit(name, VIEWS[row // 2 % len(VIEWS)], photographs)
        else:
            yield _drawing_edit(name, *next(shapes), drawings)


def _photograph_edit(name: str, view: View, photographs: _Photographs) -> dict[str, Any]:
    edits = tuple(edit for edit in OF_PHOTOGRAPHS if edit is not _GRAYSCALE or view.file not in GRAY)
    edit = edits[_draw(name, "edit", len(edits))]
    before = photographs.crop(view, name)
    request = edit.requests[_draw(name, "request", len(edit.requests))]
    return _edit_row(view.caption, _jpeg(before), request, edit.after.format(view.caption), _jpeg(edit.apply(before)))


def _drawing_edit(name: str, picture: int, shape: str, color: str, drawings: _Drawings) -> dict[str, Any]:
    """Three times in four the shape gets another color."""
    before = drawings.open(picture)
    size = _size(before, color)
    caption = f"a {size} {color} {shape}"
    if _draw(name, "edit", 4):
        others = [other for other in COLORS if other != color]
        new = others[_draw(name, "color", len(others))]
        requests = (
            f"make the {shape} {new}",
            f"turn the {color} {shape} {new}",
            f"change the color of the {shape} to {new}",
        )
        outcome, after = f"a {size} {new} {shape}", _recolor(before, color, new)
    else:
        edit = OF_DRAWINGS[_draw(name, "which", len(OF_DRAWINGS))]
        requests, outcome, after = edit.requests, edit.after.format(caption), edit.apply(before)
    request = requests[_draw(name, "request", len(requests))]
    return _edit_row(caption, drawings.path(picture).read_bytes(), request, outcome, _png(after))


def _edit_row(caption: str, before: bytes, request: str, outcome: str, after: bytes) -> dict[str, Any]:
    return {
        "original_prompt": caption,
        "original_image": {"bytes": before, "path": None},
        "edit_prompt": request,
        "edited_prompt": outcome,
        "edited_image": {"bytes": after, "path": None},
    }
