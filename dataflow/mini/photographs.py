"""The photographs of scikit-image in every miniature corpus: parts of them, chosen and captioned by looking at them.

scikit-image's data folder (PyPI) -> VIEWS -> Photographs.crop() -> cambrian, metaclip, aurora, ...
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dataflow.mini.files import between, ceil, choose

CROP_SIDES = (96, 160)  # px; the shorter and the longer side of a crop stay between them
RATIOS = ((1, 1), (4, 3), (3, 4), (5, 3), (3, 5))  # width : height of crops


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


class Photographs:
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
        box, size = crop_box(view, name)
        return self._images[view.file].resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def crop_box(view: View, name: str) -> tuple[Box, tuple[int, int]]:
    """Where to crop, and to what width and height: contains the core, stays within, at least 96 px of original."""
    shorter, longer = CROP_SIDES
    forms = []
    for wide, high in RATIOS:
        least = max(
            ceil(view.core[2] - view.core[0], wide),
            ceil(view.core[3] - view.core[1], high),
            ceil(shorter, min(wide, high)),
        )
        most = min((view.within[2] - view.within[0]) // wide, (view.within[3] - view.within[1]) // high)
        if least <= most:
            forms.append((wide, high, least, most))
    assert forms, f"{view.file} {view.core}: no ratio fits between core and within"
    wide, high, least, most = forms[choose(name, "form", len(forms))]
    scale = least + choose(name, "scale", most - least + 1)
    left = between(
        max(view.within[0], view.core[2] - wide * scale), min(view.core[0], view.within[2] - wide * scale), name, "left"
    )
    top = between(
        max(view.within[1], view.core[3] - high * scale), min(view.core[1], view.within[3] - high * scale), name, "top"
    )
    unit = between(ceil(shorter, min(wide, high)), longer // max(wide, high), name, "unit")
    return (left, top, left + wide * scale, top + high * scale), (wide * unit, high * unit)
