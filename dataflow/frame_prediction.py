"""Questions that a clip asks of itself: which frame comes, which is missing, which order, how far apart.

A kind, an interval t, a number of frames and a place in the clip are drawn from the record's key; frames are taken at
steps of t. The wording is ours. Kinds and the range of t follow MetaMorph (arXiv:2412.14164, section 2.2 and
metamorph/train/train.py), whose own code could announce more frames than it gave.

    future     frames in order             -> the frame t after the last
    missing    frames with one left out    -> that frame
    reversed   frames, last one first      -> the frames as filmed
    order      frames, shuffled            -> their numbers as filmed
    interval   frames in order             -> the seconds from one to the next
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from dataflow.draw import draw, shuffled
from dataflow.media import Corrupt
from dataflow.record import Candidate, Image, Media, Message, Text
from dataflow.video import Stretch

FRAMES = 8  # most of one question; MetaMorph goes up to 45, at 64 tokens each in question and answer
_LEAST: Mapping[str, int] = {"future": 2, "missing": 3, "reversed": 2, "order": 3, "interval": 2}  # frames it takes
_SHORTEST, _LONGEST = 1, 100  # of t, in tenths of a second: MetaMorph's 0.1 s and 10 s
_EPSILON = 1e-6  # s
_LOOKS = 24  # frames of a part that tell where it pauses; all are decoded in one go

# {n} frames are shown, {t} is "0.5 seconds"
_AHEAD = (  # of one frame
    "This is one moment of a video. Show the scene {t} later.",
    "What does this look like after {t}? Answer with the frame.",
    "A camera saw this. What does it see {t} from now?",
    "Let {t} go by and show what has become of the scene.",
    "Give me the frame that comes {t} after this one.",
)
_WORDING: Mapping[str, tuple[str, ...]] = {
    "future": (
        "These {n} frames of a video follow each other at steps of {t}. Show the next one.",
        "You see {n} moments of a clip in order, {t} apart. What does the camera see one step on?",
        "Carry this row of {n} frames on by one; the step is {t}.",
        "{n} frames, {t} from each to the next. Which frame comes now?",
        "Where does this lead? The {n} frames are {t} apart; answer with the one that follows.",
    ),
    "missing": (
        "A row of {total} frames, {t} apart, has lost number {place}. Here are the other {n}. Show the lost one.",
        "Fill the gap: of {total} frames at steps of {t}, all but number {place} are here.",
        "{n} of {total} frames are shown, in order; they were taken {t} apart. What was frame {place}?",
        "Someone took frame {place} out of these {total}, which were {t} apart. Put it back.",
        "Frame {place} of {total} is not here. The step was {t}. Show what it held.",
    ),
    "reversed": (
        "These {n} frames run backwards, {t} apart. Show them as they were filmed.",
        "The clip was played from its end: {n} frames at steps of {t}. Turn it round.",
        "Last frame first, {t} from each to the next. Give the {n} frames in the right direction.",
        "Time runs the wrong way in these {n} frames, {t} apart. Set it right.",
        "Here is a video in reverse, {n} frames with {t} between them. Play it forwards.",
    ),
    "order": (
        "These {n} frames of one video, {t} apart, were shuffled. Number them from 1 as shown and list the numbers in "
        "the order of filming.",
        "In which order were these {n} frames filmed, {t} apart? Call the first one shown 1, and so on.",
        "Sort these {n} frames by time; neighbours are {t} apart. Answer with their places as shown, counted from 1.",
        "The frames 1 to {n} above are out of order, and {t} apart once sorted. Which order is right?",
        "Put {n} mixed-up frames in order; sorted, they are {t} apart. Say 1 for the first one shown, and so on.",
    ),
    "interval": (
        "These {n} frames of a video are in order and evenly spaced. How much time passes from one to the next?",
        "How many seconds lie between each of these {n} frames and the one after it?",
        "A camera took these {n} frames at one pace. What is the step between neighbours?",
        "Estimate the time from each of the {n} frames to the next; it is the same throughout.",
        "{n} frames of a clip, equally far apart. How far, in seconds?",
    ),
}


def ask(part: Stretch, key: str, *, seed: int = 0, most: int = FRAMES, about: str = "") -> Candidate:
    """One frame_prediction of a part of a clip.

    Args:
        part: where its frames come from.
        key: the record's key, which decides every choice, together with the seed.
        most: frames of question and answer together.
        about: words that go before the question, what is said meanwhile, say.
    Raises:
        Corrupt: the part holds too few frames for any kind, too few different ones, or does not decode.
    """
    if most < max(_LEAST.values()):
        raise ValueError(f"most={most} frames in a question: some kinds take {max(_LEAST.values())}; give more")
    still = None
    for kind, tenths, frames in _tries(part, key, seed, most):
        if len({frame.data for frame in frames}) == len(frames):
            return _candidate(kind, frames, tenths, key, seed, about)
        still = tenths if still is None else still
    if still is not None:
        raise Corrupt(
            f"clip stands still, or nearly: frames that are {_seconds(still)} apart are the same picture, "
            "and no question fits elsewhere"
        )
    count = len(part.times)
    raise Corrupt(
        f"clip holds {count} frame{'s' * (count != 1)} in {part.length:.2f} s: "
        f"no {min(_LEAST.values())} of them are an even step apart that a question could name"
    )


def _tries(part: Stretch, key: str, seed: int, most: int) -> Iterator[tuple[str, int, list[Media]]]:
    """A kind, its interval in tenths of a second and its frames, which may be the same picture: the clip may pause.

    The first is as drawn; the others are of every kind, where a look over the whole part promises different pictures.
    """
    kinds = shuffled(tuple(_LEAST), key, "kind", seed=seed)
    scenes: Sequence[int] = range(len(part.times))
    for kind in kinds:
        if found := _places(part.times, scenes, kind, key, seed, most):
            yield kind, found[0], part.pictures(found[1])
            break
    else:
        return
    scenes = _scenes(part)
    for kind in kinds:
        if found := _places(part.times, scenes, kind, key, seed, most):
            yield kind, found[0], part.pictures(found[1])


def _scenes(part: Stretch) -> list[int]:
    """By frame: the first frame that is known to show the same picture, itself where none is.

    Which frame ends a pause is not looked up: those between a picture that is seen twice and another count with it.
    """
    count = len(part.times)
    looks = sorted({look * (count - 1) // (_LOOKS - 1) for look in range(_LOOKS)})
    pictures = [picture.data for picture in part.pictures(looks)]
    seen, first = Counter(pictures), dict(zip(reversed(pictures), reversed(looks), strict=True))
    scenes = list(range(count))
    for (place, data), (end, later) in pairwise(zip(looks, pictures, strict=True)):
        held = data if seen[data] > 1 else later
        if seen[held] > 1:
            scenes[place + 1 : end] = [first[held]] * (end - place - 1)
    for place, data in zip(looks, pictures, strict=True):
        scenes[place] = first[data]
    return scenes


def _places(
    times: Sequence[float], scenes: Sequence[int], kind: str, key: str, seed: int, most: int
) -> tuple[int, list[int]] | None:
    """The interval in tenths of a second and the frames at its steps, no two of one scene.

    None if the clip is too short for the kind, or shows too few scenes.
    """
    length = times[-1] - times[0]
    if length <= 0:
        return None
    lowest = max(math.ceil(20 * length / (len(times) - 1) - _EPSILON), _SHORTEST)  # two frames at the mean rate
    highest = max(min(math.floor(5 * length + _EPSILON), _LONGEST), lowest)  # half the clip
    tenths = lowest + draw(key, f"{kind}/interval", highest - lowest + 1, seed=seed)
    holds = min(int(10 * length / tenths + _EPSILON) + 1, most)
    if holds < _LEAST[kind]:
        return None
    count = _LEAST[kind] + draw(key, f"{kind}/frames", holds - _LEAST[kind] + 1, seed=seed)
    start = draw(key, f"{kind}/start", len(times), seed=seed)
    for number in range(count, _LEAST[kind] - 1, -1):
        for first in (*range(start, len(times)), *range(start)):
            wanted = [times[first] + step * tenths / 10 for step in range(number)]
            if wanted[-1] > times[-1] + _EPSILON:
                continue
            places = [_nearest(times, time) for time in wanted]
            if len({scenes[place] for place in places}) < number:
                continue
            # A quarter of a step is half a frame or more: a steady rate always fits, a gap in the clip does not.
            if all(abs(times[p] - time) <= tenths / 40 + _EPSILON for p, time in zip(places, wanted, strict=True)):
                return tenths, places
    return None


def _nearest(times: Sequence[float], time: float) -> int:
    after = min(bisect_left(times, time), len(times) - 1)
    return after - 1 if after and time - times[after - 1] <= times[after] - time else after


def _candidate(kind: str, frames: list[Media], tenths: int, key: str, seed: int, about: str) -> Candidate:
    """The question and its answer; `frames` as filmed."""
    count = len(frames)
    shown = list(range(count))  # frames that the question shows, in its order
    answer: list[int] | str = _seconds(tenths)
    left_out = count - 1
    if kind == "missing":
        left_out = 1 + draw(key, "missing/place", count - 2, seed=seed)
    if kind in ("future", "missing"):
        shown.remove(left_out)
        answer = [left_out]
    elif kind == "reversed":
        shown.reverse()
        answer = list(range(count))
    elif kind == "order":
        shown = shuffled(shown, key, "order/frames", seed=seed)
        if shown == sorted(shown):
            shown = [*shown[1:], shown[0]]
        answer = ", ".join(str(shown.index(frame) + 1) for frame in range(count))
    order = [*shown, *(frame for frame in answer if isinstance(frame, int) and frame not in shown)]
    wording = _AHEAD if kind == "future" and len(shown) == 1 else _WORDING[kind]
    question = wording[draw(key, f"{kind}/wording", len(wording), seed=seed)].format(
        n=len(shown), t=_seconds(tenths), total=count, place=left_out + 1
    )
    if about:
        question = f"{about}\n{question}"
    said = (Text(answer),) if isinstance(answer, str) else tuple(Image(order.index(frame)) for frame in answer)
    return Candidate(
        task="frame_prediction",
        messages=(
            Message("user", (*(Image(index) for index in range(len(shown))), Text(question))),
            Message("assistant", said),
        ),
        media=tuple(frames[frame] for frame in order),
    )


def _seconds(tenths: int) -> str:
    return "1 second" if tenths == 10 else f"{tenths / 10:g} seconds"
