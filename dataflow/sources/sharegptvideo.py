"""ShareGPTVideo, MetaMorph's "ShareVideo": captions of clips, and questions on them, as chats.

URL      hf.co/datasets/ShareGPTVideo/train_video_and_instruction
Licence  apache-2.0 tag on the card; clips of ActivityNet, VIDAL and WebVid
Layout   video_instruction/train/{pretrain,sft,dpo,qa}/*.jsonl; frames in train_300k/<video>/c01_0001.jpeg and
         train_600k/: chunk_*.tar.gz upstream, 336 px wide, 2 a second
Row      {"id": "v_-02DygXbn6w__0", "video": "v_-02DygXbn6w",
          "conversations": [{"from": "human", "value": "<video>\\nWhat happens?"}, {"from": "gpt", "value": "..."}]}
Traps    a video is a folder of frames; ids and folders begin with - or _; some folders are empty or were never
         packed; sft/ holds sets that overlap; the first 240,000 lines of video_240k_caption_15k are the questions, the
         other 15,000 captions: both files together are 555 k rows, MetaMorph counts 540 k
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from dataflow import video
from dataflow.media import Corrupt, Missing
from dataflow.record import Candidate, Media
from dataflow.sources import Read, matching, opened, over_zero
from dataflow.sources.videostar import chat, clip

_RATE = 2  # frames a second in the folders: llava_hound_dpo/inference/inference_utils.py
_FRAME = (".jpeg", ".jpg", ".png")
_CLIP = (".mp4", ".webm", ".mkv", ".avi", ".mov")  # a row may name the file that the frames were taken from


@dataclass(frozen=True, kw_only=True)
class ShareGptVideo:
    """Each row becomes video_qa: the clip at one frame a second, a question, the answer; frames keep their bytes.

    listing: which files; by default the two of LLaVA-Hound's and MetaMorph's training. frames: most of a clip, from its
    front.
    """

    name: str = "sharegptvideo"
    listing: tuple[str, ...] = (
        "video_instruction/train/sft/video_240k_caption_15k.jsonl",
        "video_instruction/train/sft/video_caption_300k.jsonl",
    )
    folders: tuple[str, ...] = ("train_300k", "train_600k")  # the first that holds the clip's frames is read
    frames: int = video.SECONDS
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        over_zero(self, "frames")

    def files(self, folder: Path) -> list[str]:
        """Those JSONL files that are there."""
        return matching(folder, *self.listing)

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per row."""
        turns = value.get("conversations")
        chat(turns, frames=1)  # what is wrong with it is known before the frames are read
        media = tuple(self._pictures(clip(value), read))
        yield Candidate(task="video_qa", messages=chat(turns, frames=len(media)), media=media)

    def _pictures(self, path: str, read: Read) -> Iterator[Media]:
        place = PurePosixPath(path)
        if place.suffix.lower() in _CLIP:
            place = place.with_suffix("")
        for parent in self.folders:
            folder = f"{parent}/{place}"
            try:
                names = [name for name in read.names(folder) if name.lower().endswith(_FRAME)]
            except Missing:
                continue
            if not names:
                raise Corrupt(f"clip {folder!r} is a folder without frames")
            for name in sorted(names, key=_number)[::_RATE][: self.frames]:
                yield opened(read, f"{folder}/{name}")
            return
        raise Missing(f"frames of clip {path!r} are not there, neither in {' nor in '.join(self.folders)}")


def _number(name: str) -> tuple[list[tuple[str, int]], str]:
    """Orders names as people count: c01_0002 before c01_0010 before c01_10000."""
    return [(words, int(digits)) for words, digits in re.findall(r"(\D*)(\d+)", name)], name
