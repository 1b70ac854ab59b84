"""Pictures of one page -> groups that belong together, and in each the one that the others lead to.

record (interleaved_document) -> captioned -> grouped (by captions) -> target_last (by pictures) -> Written -> a pair

Source: MetaQuery, arXiv:2504.06256 section 4 and appendix A, and facebookresearch/metaquery curate_dataset.py, which
differ; what we take of either is said at each function.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dataflow.record import Image, Record, Text

Rule = Literal["average", "minimum"]
_PROMPT = re.compile(r"\[([^\[\]]*)\]")
_LONGEST = 300  # characters of a caption: a sentence that runs on is no caption


def captioned(record: Record) -> list[tuple[int, str]]:
    """The pictures of a page and their captions: the first line that is said after them, by whoever says it.

    Returns:  (index into the media, caption), in the order of the page; a picture that nothing follows has none.
    """
    found: list[tuple[int, str]] = []
    for message in record.messages:
        waiting: list[int] = []
        for part in message.parts:
            if isinstance(part, Image):
                waiting.append(part.index)
            elif waiting and (caption := _caption(part)):
                found += ((index, caption) for index in waiting)
                waiting = []
    return found


def _caption(said: Text) -> str:
    """Upstream's code strips captions of line ends, tabs, spaces and quotes."""
    return said.text.strip().partition("\n")[0].strip(' \t"')[:_LONGEST]


def grouped(alike: NDArray[np.floating], *, threshold: float, most: int) -> list[list[int]]:
    """Groups of pictures whose captions are alike, every two of them at least by `threshold`; no picture in two groups.

    The two that are most alike begin a group, and what is most alike to it joins it, as long as anything is alike
    enough. (Upstream's code takes the largest clique there is; of these there may be many.) A group of more than `most`
    is cut in the order of the page, so that one is never left alone: 13 are 6, 5 and 2, as in upstream's code.

    Args:     alike: float[n, n], symmetric. threshold: of it. most: pictures of one group.
    Returns:  places, rising in a group; groups by their first.
    """
    left = list(range(len(alike)))
    found: list[list[int]] = []
    while len(left) > 1:
        # the first of the best, so that ties always fall the same way
        pairs = [(alike[one, other], -one, -other) for place, one in enumerate(left) for other in left[place + 1 :]]
        best, one, other = max(pairs)
        if best < threshold:
            break
        group = [-one, -other]
        while joining := [place for place in left if place not in group]:
            worst, place = max((min(alike[place, held] for held in group), -place) for place in joining)
            if worst < threshold:
                break
            group.append(-place)
        left = [place for place in left if place not in group]
        found += _cut(sorted(group), most)
    return sorted(found)


def _cut(group: list[int], most: int) -> list[list[int]]:
    last = group[-2:] if len(group) > most and len(group) % most == 1 else []
    rest = group[: len(group) - len(last)]
    cut = [rest[first : first + most] for first in range(0, len(rest), most)]
    return [part for part in (*cut, last) if len(part) > 1]


def target(alike: NDArray[np.floating], *, rule: Rule) -> int:
    """Which picture of a group is least like the others: where the others lead to.

    average: the one whose similarity to the others is least on average, as the paper says. minimum: one of the two that
    are least alike, the first of them, as the code has it.

    Args:     alike: float[n, n] of one group, symmetric, n at least 2.
    """
    off = np.where(np.eye(len(alike), dtype=bool), np.nan, np.asarray(alike, float))
    scores = np.nanmean(off, axis=1) if rule == "average" else np.nanmin(off, axis=1)
    return int(np.argmin(scores))


def prompt(reply: str) -> str:
    """What a writer's reply gives as the prompt: the last text in square brackets; "" where there is none."""
    found = _PROMPT.findall(reply)
    return " ".join(found[-1].split()) if found else ""


def template(captions: Sequence[str]) -> str:
    """A reply without a writer, of a group's captions, the target's last: it says how many are shown and what comes.

    It says what the target shows and not what it has in common with the others: to see that takes a model.
    """
    shown = len(captions) - 1
    what = "the picture" if shown == 1 else f"these {shown} pictures"
    coming = captions[-1].rstrip(".").replace("[", "(").replace("]", ")")
    return f"[In keeping with {what}: {coming}.]"
