"""VideoStar, the data of Video-STaR (VSTaR-1M): questions on clips, answered with or without the reasoning.

URL      hf.co/datasets/orrzohar/Video-STaR
Licence  apache-2.0 on the card; the videos are not included: Kinetics-700, STAR-benchmark (Charades), FineDiving
Layout   ft_json/kinetics700_tune_.json, starb_tune_.json, finediving_tune_.json: documents, not lines; the videos
         beside it: Kinetics700/JDKf63ARWuY_000017_000027.mp4, FineDiving/17_8.mp4, ...
Row      {"question_id": ..., "video": "Kinetics700/JDKf63ARWuY_000017_000027.mp4", "label": {...}, "qa_type": "qa",
          "conversations": [{"from": "human", "value": "<video>\\nWhat is the man doing?"}, {"from": "gpt", ...}]}
Traps    the path is at `video`, `video_path` or `image`, and may be a list of one; <video> stands for the clip; `label`
         is an object of another shape in every row; many clips are gone from YouTube; MetaMorph knows a question on a
         video by k700 in its id, and makes frame prediction of all others
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataflow import video
from dataflow.media import Corrupt
from dataflow.record import Candidate
from dataflow.sources import Read, matching, named, over_zero, words
from dataflow.sources.llava import conversation

_PATHS = ("video", "video_path", "image")  # where rows name the clip: the trainer's, the generator's, MetaMorph's key
_CLIP, _PICTURE = "<video>", "<image>"


@dataclass(frozen=True, kw_only=True)
class VideoStar:
    """Each row becomes video_qa: the clip at one frame a second, a question, the answer.

    frames: most of a clip, from its front. side: of a frame's longer side, in px.
    """

    name: str = "videostar"
    frames: int = video.SECONDS
    side: int = video.SIDE
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("av",)

    def __post_init__(self) -> None:
        over_zero(self, "frames", "side")

    def files(self, folder: Path) -> list[str]:
        """The documents."""
        return matching(folder, "ft_json/*.json")

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        path = clip(value)
        turns = value.get("conversations")
        chat(turns, frames=1)  # what is wrong with it is known before the clip is decoded
        with read.open(path) as stream:
            media = tuple(video.each_second(stream, most=self.frames, side=self.side))
        yield Candidate(task="video_qa", messages=chat(turns, frames=len(media)), media=media)


def clip(value: dict[str, Any]) -> str:
    """The path of a row's one clip.

    Raises:
        Corrupt: the row names none, or several.
    """
    for field in _PATHS:
        held = value.get(field)
        paths = [path for cell in (held if isinstance(held, list) else [held]) if (path := named(cell))]
        if len(paths) > 1:
            raise Corrupt(f"{len(paths)} clips in {field}: a row here has one")
        if paths:
            return paths[0]
    raise Corrupt(f"no clip in the row: {', '.join(_PATHS)} are empty")


def chat(turns: Any, *, frames: int) -> Any:
    """LLaVA's `conversations` as messages, the frames of one clip where <video> stands.

    Where there is no <video> one <image> stands for the clip, as other trainers have it; without either the frames
    come first, as in MetaMorph.

    Raises:
        Corrupt: several tags for one clip, or no chat.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Corrupt("conversations is not a list of turns")
    said = [words(turn.get("value")) for turn in turns]
    tag = _CLIP if any(_CLIP in value for value in said) else _PICTURE
    if (tags := sum(value.count(tag) for value in said)) > 1:
        raise Corrupt(f"{tags} {tag} in the text for 1 clip")
    asked = [turn.get("from") in ("human", "user") for turn in turns]
    if any(tag in value and not asks for value, asks in zip(said, asked, strict=True)):
        raise Corrupt(f"{tag} in a turn that is not human: a clip belongs to a question")
    if not tags:
        if True not in asked:
            raise Corrupt("no human turn, which would show the clip")
        said[asked.index(True)] = tag + said[asked.index(True)]
    shown = _PICTURE * frames
    return conversation(
        [{**turn, "value": value.replace(tag, shown)} for turn, value in zip(turns, said, strict=True)],
        pictures=frames,
    )
