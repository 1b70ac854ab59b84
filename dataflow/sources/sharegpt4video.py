"""ShareGPT4Video: clips with a long caption of the whole, written by GPT-4V from key frames.

URL      hf.co/datasets/ShareGPT4Video/ShareGPT4Video
Licence  CC-BY-NC-4.0; clips of Panda-70M, Pexels, Pixabay, Mixkit, Ego4D, BDD100K
Layout   sharegpt4video_40k.jsonl, 40,145 rows; zip_folder/panda/panda_videos_1.zip, ...: read as they are, or the
         clips unpacked beside the rows
Row      {"video_id": "...", "video_path": "panda/....mp4", "timestamp": [...], "keyframe": [...],
          "captions": [{"idx": "0", "content": "..."}, ..., {"idx": "-1", "content": "..."}],
          "zip_folder": "panda_videos_1.zip"}
Traps    the caption of the whole has idx "-1", a string, and may be missing; the others tell what changed since the
         key frame before, so they do not stand alone; some clips run on after what the captions tell (upstream's
         issue 36), so no frame is taken after as many seconds as `timestamp` spans
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar

from dataflow import video
from dataflow.draw import draw
from dataflow.media import Corrupt, Missing
from dataflow.readers import text
from dataflow.record import Candidate, Image, Message, Text
from dataflow.sources import Read, matching, named, over_zero, words

_WHOLE = "-1"  # idx of the caption of the whole clip
_CLOCK = re.compile(r"(?:(\d+):)?(?:(\d+):)?(\d+(?:\.\d+)?)")  # 12.5, 0:12.5, 0:00:12.5
_REQUESTS = (
    "Describe this video in detail.",
    "What happens in this clip, from beginning to end?",
    "Tell me everything you see in the video.",
    "Write a thorough caption of this clip.",
    "Describe the scene, the people and things in it, and how it all changes.",
)


@dataclass(frozen=True, kw_only=True)
class ShareGpt4Video:
    """Each row becomes video_qa: the clip at one frame a second, a request of ours, the caption of the whole.

    frames: most of a clip, from its front. side: of a frame's longer side, in px.
    """

    name: str = "sharegpt4video"
    frames: int = video.SECONDS
    side: int = video.SIDE
    seed: int = 0  # of the request's wording
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("av",)

    def __post_init__(self) -> None:
        over_zero(self, "frames", "side")

    def files(self, folder: Path) -> list[str]:
        """The one file of rows."""
        return matching(folder, "sharegpt4video_40k.jsonl")

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        caption = _caption(value.get("captions"))
        most = min(self.frames, _span(value.get("timestamp")) or self.frames)
        with _clip(value, read) as stream:
            media = tuple(video.each_second(stream, most=most, side=self.side))
        request = _REQUESTS[draw(key, "request", len(_REQUESTS), seed=self.seed)]
        shown = tuple(Image(index) for index in range(len(media)))
        yield Candidate(
            task="video_qa",
            messages=(Message("user", (*shown, Text(request))), Message("assistant", (Text(caption),))),
            media=media,
        )


def _caption(captions: Any) -> str:
    if not isinstance(captions, list) or not all(isinstance(part, dict) for part in captions):
        raise Corrupt("captions is not a list of captions")
    for part in captions:
        if text(part.get("idx")) == _WHOLE and (caption := words(part.get("content")).strip()):
            return caption
    raise Corrupt(f"none of {len(captions)} captions is of the whole clip (idx {_WHOLE})")


def _span(stamps: Any) -> int | None:
    """Whole seconds from the first time stamp to the last, at least 1; None where they cannot be read."""
    parts = stamps if isinstance(stamps, list) else []
    cells = [cell for part in parts for cell in (part if isinstance(part, list) else [part])]
    times = []
    for cell in cells:
        clock = _CLOCK.fullmatch(str(cell))
        if clock is None:
            return None
        *above, seconds = (float(part) for part in clock.groups() if part is not None)
        times.append(seconds + sum(60 ** (place + 1) * part for place, part in enumerate(reversed(above))))
    return max(1, round(times[-1] - times[0])) if len(times) > 1 else None


def _clip(value: dict[str, Any], read: Read) -> BinaryIO:
    """The row's clip, unpacked or in its archive."""
    path = named(value.get("video_path"))
    if not path:
        raise Corrupt("video_path is empty")
    try:
        return read.open(path)
    except Missing:
        archive = named(value.get("zip_folder"))
        if not archive:
            raise
    name = PurePosixPath(archive).name
    place = f"zip_folder/{name.partition('_videos_')[0]}/{name}"
    try:
        return io.BytesIO(read.member(place, path))
    except Missing:
        return io.BytesIO(read.member(place, PurePosixPath(path).name))
