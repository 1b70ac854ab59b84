"""Clips -> frames: when a stretch of a video shows a new frame, and those frames as encoded pictures.

A stretch is read twice: once for its times, which needs no decoding, and once for the frames that were chosen. Only
what those depend on is decoded, a few frames are held at a time, and nothing after the last of them is read. Frames
are turned as the video says, scaled to square pixels and stored as PNG with fixed settings: the same bytes every time.
Times are seconds on the clip's own clock, which need not start at 0; rates that a header claims are not believed.
"""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import av
import av.error
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from PIL import Image

from dataflow.media import Corrupt, encoded, summary
from dataflow.record import Media

SIDE = 448  # px of a frame's longer side: SigLIP reads 384
SECONDS = 45  # frames of a clip at one a second: MetaMorph's cutoff, metamorph/train/train.py
_MAX_PIXELS = 7680 * 4320  # of a frame: 8K; a decoder holds some twenty of them
_MAX_STRETCH = 4  # of a pixel, wide or high: beyond, its shape is a lie
_EPSILON = 1e-6  # s: times are floats of exact fractions
# What clips of public corpora come as. FFmpeg reads more; playlists among it (HLS, concat) open the files they name.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpeg,mpegts,ogg,gif"
_SCALER = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
_TURNED = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
# What PyAV raises on bytes that lie about themselves; some of FFmpeg's are OSErrors too. An OSError that is not
# FFmpeg's was raised by the stream: it is the disk's and passes.
_BROKEN = (av.error.FFmpegError, ValueError, OverflowError)


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of a clip: the times, rising, at which it shows a new frame; at least one."""

    times: tuple[float, ...]
    _keys: tuple[float, ...] = field(repr=False)  # of frames that decode without earlier ones; one is not after times
    _stream: BinaryIO = field(repr=False)
    _seek: float  # seconds after the clip's first frame: where reading starts, where the stretch does
    _start: float
    _side: int

    @property
    def length(self) -> float:
        """Seconds from its first frame to its last."""
        return self.times[-1] - self.times[0]

    def pictures(self, places: Sequence[int]) -> list[Media]:
        """The frames at these places of `times`, which rise: as many different ones, in order.

        Raises:
            Corrupt: one of them does not decode, or is damaged.
        """
        found: list[Media] = []
        with _opened(self._stream, self._seek) as (container, video):
            reel = _Reel(container, video)
            last = None
            for place in places:
                time = self.times[place]
                frame = reel.at(time, key=self._keys[bisect_right(self._keys, time) - 1])
                if frame is None or frame is last or frame.is_corrupt:
                    since = time - self.times[0] + self._start
                    raise Corrupt(f"video is broken: its frame at {since:.2f} s does not decode whole")
                found.append(_media(frame, video, self._side))
                last = frame
        return found


def stretch(stream: BinaryIO, *, seconds: float, start: float = 0.0, side: int = SIDE) -> Stretch:
    """What a clip shows from `start`, in seconds after its first frame, for `seconds`; frames up to `side` px long.

    Raises:
        Corrupt: no video that can be read, no frame there, or a clip that breaks off in its first half.
        OSError: the disk fails.
    """
    for seek in (start, 0.0) if start else (0.0,):  # a clip without an index may have to be read from its front
        times, keys = _times(stream, seek, start, seconds)
        if times:
            return Stretch(times=times, _keys=keys, _stream=stream, _seek=seek, _start=start, _side=side)
    if start:
        raise Corrupt(f"video shows no frame from {start:g} s to {start + seconds:g} s")
    raise Corrupt("video has 0 frames")


def _times(stream: BinaryIO, seek: float, start: float, seconds: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Times of the frames of a stretch, and of the keyframes up to its end, read from the last one before `seek`.

    None of either where reading could only begin after the start.
    """
    times: set[float] = set()
    keys: set[float] = set()
    entry = None  # time of the first keyframe: what is shown before lacks what it depends on
    end = 0.0
    with _opened(stream, seek) as (container, video):
        first = _seconds(video.start_time or 0, video) + start if start else math.inf
        for packet in container.demux(video):
            time = _time(packet, video)
            if time is None or not packet.size or packet.is_corrupt:
                continue
            if packet.is_keyframe:
                keys.add(time)
                entry = time if entry is None else entry
                if seek and entry > first:
                    return (), ()
            if entry is None or time < entry or packet.is_discard:  # discarded: an edit list hides it
                continue
            times.add(time)
            first = first if start else min(first, time)
            decoded = time if packet.dts is None else min(time, _seconds(packet.dts, video))
            if decoded >= first + seconds:
                break  # what follows is shown later still
            end = max(end, time + _seconds(packet.duration or 0, video) - first)
        else:
            length = _claimed(container, video)
            if not start and length is not None and 2 * end + 1 < length:  # sound may outlast the pictures, but not so
                raise Corrupt(f"video breaks off: it holds {end:.1f} s of the {length:.1f} s it claims")
    return tuple(sorted(time for time in times if first <= time < first + seconds)), tuple(sorted(keys))


def each_second(stream: BinaryIO, *, most: int = SECONDS, side: int = SIDE) -> list[Media]:
    """The frames a clip shows at its first instant and every second after, at least 1 and up to `most`; none twice.

    Raises:
        Corrupt: no video that can be read, or one of the frames does not decode.
        OSError: the disk fails.
    """
    part = stretch(stream, seconds=most, side=side)
    seconds = range(min(most, int(part.length + _EPSILON) + 1))
    return part.pictures(sorted({bisect_right(part.times, part.times[0] + k + _EPSILON) - 1 for k in seconds}))


def claimed(stream: BinaryIO) -> float | None:
    """Seconds that the header of a clip claims, None where it claims nothing (a webm that was streamed).

    Raises:
        Corrupt: no video that can be read.
        OSError: the disk fails.
    """
    with _opened(stream, 0.0) as (container, video):
        return _claimed(container, video)


class _Reel:
    """The frames of a clip as it shows them, forward only; a few are held at a time."""

    def __init__(self, container: InputContainer, video: VideoStream) -> None:
        self._packets = container.demux(video)
        self._video = video
        self._waiting: deque[tuple[float, VideoFrame]] = deque()  # decoded, with their times, which rise
        self._shown: VideoFrame | None = None
        self._latest = self._key = -math.inf  # time of the last frame decoded, of the last keyframe fed

    def at(self, time: float, *, key: float) -> VideoFrame | None:
        """The frame shown at a time, None if there is none; `key` is the time of the last keyframe up to there."""
        skipping = key > self._key
        if skipping:  # what lies before that keyframe is read, but not decoded
            self._waiting.clear()
            self._shown = None
            self._video.codec_context.flush_buffers()
        while not self._waiting or self._waiting[0][0] <= time:
            if self._waiting:
                when, self._shown = self._waiting.popleft()
                if when == time:
                    break
                continue
            packet = next(self._packets, None)
            if packet is None:
                break
            when = _time(packet, self._video)
            if skipping and not (packet.is_keyframe and when is not None and when >= key):
                continue
            skipping = False
            if packet.is_keyframe and when is not None:
                self._key = max(self._key, when)
            self._feed(packet)
        return self._shown

    def _feed(self, packet: Packet[VideoStream]) -> None:
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            return  # what it would have shown is missed when it is asked for
        for frame in frames:
            when = _time(frame, self._video)
            if when is not None and when > self._latest:  # else it has no time, or one that runs backwards
                self._latest = when
                self._waiting.append((when, frame))


@contextmanager
def _opened(stream: BinaryIO, start: float) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A clip and its video, to be read from the last keyframe before `start`; whatever breaks in here is Corrupt."""
    doing = "open"
    try:
        if not stream.seek(0, io.SEEK_END):
            raise Corrupt("video is 0 bytes")
        stream.seek(0)
        with av.open(
            stream,
            mode="r",
            metadata_errors="replace",
            options={"max_pixels": str(_MAX_PIXELS)},  # for the decoders that look for what the header lacks
            container_options={"format_whitelist": _FORMATS, "protocol_whitelist": "none"},
        ) as container:
            doing = "read"
            video = next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)
            if video is None:
                kinds = ", ".join(other.type for other in container.streams)
                raise Corrupt(f"file holds no video, only {kinds or 'nothing'}")
            if not video.codec_context or not video.time_base:
                raise Corrupt("video is of a kind that FFmpeg cannot decode")
            if not 0 < video.width * video.height <= _MAX_PIXELS:  # FFmpeg's probe leaves 0 where a size is over it
                raise Corrupt(f"video has no size, or one over {_MAX_PIXELS} pixels")
            video.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}
            video.codec_context.flags |= Flags.bitexact
            video.codec_context.thread_count = 1  # the build's workers fill the cores
            if start:
                container.seek((video.start_time or 0) + math.floor(start / video.time_base), stream=video)
            yield container, video
    except Corrupt:
        raise
    except _BROKEN as error:
        # FFmpeg answers with an ArgumentError to `_FORMATS`.
        foreign = isinstance(error, av.error.ArgumentError)
        said = "no clip of a kind that is read here (mp4, webm, mkv, avi, ...)" if foreign else summary(error)
        raise Corrupt(f"video does not {doing}: {said}") from None


def _media(frame: VideoFrame, video: VideoStream, side: int) -> Media:
    """A decoded frame upright, with square pixels, its longer side at most `side`, as PNG."""
    shape = float(video.sample_aspect_ratio or 1)
    if not 1 / _MAX_STRETCH <= shape <= _MAX_STRETCH:
        shape = 1.0
    scale = min(1.0, side / max(frame.width * shape, frame.height))
    image = frame.reformat(
        width=max(1, round(frame.width * shape * scale)),
        height=max(1, round(frame.height * scale)),
        format="rgb24",
        interpolation=_SCALER,
        threads=1,
    ).to_image()
    turn = _TURNED.get(frame.rotation % 360)
    return encoded(image if turn is None else image.transpose(turn))


def _time(timed: Packet[VideoStream] | VideoFrame, video: VideoStream) -> float | None:
    """When a packet or frame is shown, in seconds on the clip's clock."""
    moment = timed.dts if timed.pts is None else timed.pts
    return None if moment is None else _seconds(moment, video)


def _seconds(ticks: int, video: VideoStream) -> float:
    """Ticks of the clip's clock in seconds."""
    assert video.time_base is not None  # `_opened` looked
    return ticks * video.time_base.numerator / video.time_base.denominator


def _claimed(container: InputContainer, video: VideoStream) -> float | None:
    if video.duration:
        return _seconds(video.duration, video)
    return container.duration / av.time_base if container.duration else None
