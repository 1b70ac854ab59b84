"""HowTo100M: narrated instructional videos, of which frames alone are used, or frames and what is said.

URL      www.di.ens.fr/willow/research/howto100m
Licence  none stated; the videos are YouTube's, many are gone
Layout   HowTo100M_v1.csv, 1,238,911 rows; caption.json or raw_caption.json (one object for all videos; the first
         without stop words) or captions/<id>.csv (start,end,text); videos/<id>.mp4, .webm or .mkv
Row      video_id,category_1,category_2,rank,task_id
         nVbIUDjzWY4,Cars & Other Vehicles,Motorcycles,27,52907
         or {"__key__": "nVbIUDjzWY4", "text": ["so today", ...], "start": [9.26, ...], "end": [12.5, ...]}
Traps    ids begin with - or _; a list may have a column path or video_path; segments overlap, end before they begin or
         say nothing (an empty cell, NaN); the three lists of a caption need not be equally long
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar

from dataflow import frame_prediction, video
from dataflow.draw import draw
from dataflow.media import Corrupt, Missing
from dataflow.readers import text
from dataflow.record import Candidate
from dataflow.sources import Read, matching, named, over_zero

_ENDINGS = ("mp4", "webm", "mkv")
_SHORTEST = 1.0  # s of a segment that frames can come from
_SPEECH = 300  # most characters quoted; a segment is a line of subtitles
_QUOTES = (
    'Someone says: "{}"',
    'Heard meanwhile: "{}"',
    'The narrator: "{}"',
)


@dataclass(frozen=True, slots=True)
class Segment:
    """What is said from start to end, in seconds."""

    start: float
    end: float
    said: str


@dataclass(frozen=True, kw_only=True)
class HowTo100M:
    """Each row becomes frame_prediction: a question that a part of its video asks of itself.

    The part is what a segment of the narration covers, if there is one, and the question quotes it in half of the rows;
    else a part is drawn. listing: the files that hold them, `HowTo100M_v1.csv` or a caption document. frames: most of
    question and answer together. seconds: most of a video that they come from. side: of a frame's longer side, in px.
    """

    name: str = "howto100m"
    listing: tuple[str, ...] = ("HowTo100M_v1.csv",)
    frames: int = frame_prediction.FRAMES
    seconds: float = 30.0
    side: int = video.SIDE
    seed: int = 0  # of the choice of parts and questions
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("av",)

    def __post_init__(self) -> None:
        over_zero(self, "frames", "seconds", "side")

    def files(self, folder: Path) -> list[str]:
        """The list of videos, or the caption document."""
        return matching(folder, *self.listing)

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        path = named(value.get("path")) or named(value.get("video_path"))
        name = named(value.get("video_id")) or named(value.get("__key__")) or PurePosixPath(path).stem
        if not path and (not name or "/" in name):
            raise Corrupt(f"video_id {name!r} names no video")
        segments = list(_told(value) if "text" in value else _written(name, read))
        with _video(path, name, read) as stream:
            part, about = self._part(stream, segments, key)
            yield frame_prediction.ask(part, key, seed=self.seed, most=self.frames, about=about)

    def _part(self, stream: BinaryIO, segments: Sequence[Segment], key: str) -> tuple[video.Stretch, str]:
        """The part of the video that a question is about, and what is quoted of it."""
        length = video.claimed(stream)
        last = math.inf if length is None else length
        usable = [each for each in segments if each.end - each.start >= _SHORTEST and each.end <= last]
        if usable:
            segment = usable[draw(key, "segment", len(usable), seed=self.seed)]
            seconds = min(self.seconds, segment.end - segment.start)
            try:
                part = video.stretch(stream, start=segment.start, seconds=seconds, side=self.side)
                return part, self._quote(segment, key)
            except Corrupt:
                if length is not None:
                    raise
                # It may be shorter than its narration: any part will do.
        spare = max(0, int((length or 0.0) - self.seconds))
        start = float(draw(key, "start", spare + 1, seed=self.seed))
        return video.stretch(stream, start=start, seconds=self.seconds, side=self.side), ""

    def _quote(self, segment: Segment, key: str) -> str:
        if draw(key, "quoted", 2, seed=self.seed):
            return ""
        return _QUOTES[draw(key, "quote", len(_QUOTES), seed=self.seed)].format(segment.said)


def _video(path: str, name: str, read: Read) -> BinaryIO:
    places = (path, f"videos/{path}") if path else tuple(f"videos/{name}.{ending}" for ending in _ENDINGS)
    for place in places:
        try:
            return read.open(place)
        except Missing:
            continue
    raise Missing(f"video is not there, neither as {' nor as '.join(map(repr, places))}")


def _told(value: dict[str, Any]) -> Iterator[Segment]:
    """The segments of a caption document's row: three lists side by side."""
    columns = [value.get(column) for column in ("start", "end", "text")]
    if not all(isinstance(column, list) for column in columns):
        raise Corrupt("text, start and end are not lists")
    for start, end, said in zip(*columns, strict=False):
        yield from _segment(start, end, said)


def _written(name: str, read: Read) -> Iterator[Segment]:
    """The segments of a video's own CSV, none where it has no such file."""
    if not name or "/" in name:
        return
    try:
        data = read(f"captions/{name}.csv")
    except Missing:
        return
    try:
        for row in csv.DictReader(io.StringIO(data.decode("utf-8-sig", errors="replace"), newline="")):
            yield from _segment(row.get("start"), row.get("end"), row.get("text"))
    except csv.Error as error:
        raise Corrupt(f"'captions/{name}.csv' does not parse: {error}") from None


def _segment(start: Any, end: Any, said: Any) -> Iterator[Segment]:
    """The segment, if it says something and lies at a time."""
    try:
        begins, ends = float(text(start)), float(text(end))
    except ValueError:  # Corrupt is one
        return
    said = " ".join(text(said).split())[:_SPEECH] if isinstance(said, str) else ""
    if said and 0 <= begins < ends < math.inf:
        yield Segment(begins, ends, said)
