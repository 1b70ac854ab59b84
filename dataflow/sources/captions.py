"""Pictures with one caption each: CC12M, BLIP3o, Shutterstock-style sets, and what img2dataset obtained.

URL      hf.co/datasets/pixparse/cc12m-wds, hf.co/datasets/BLIP3o/BLIP3o-Pretrain-Long-Caption (-Short-Caption,
         -JourneyDB); Shutterstock's pairs (Transfusion, LMFusion) are not public
Licence  CC12M: free use, attribution welcome; BLIP3o: see the cards; the pictures are the web's
Layout   *.tar and *.parquet, at the top or one folder deep
         CC12M: cc12m-train-0000.tar ... cc12m-train-2175.tar, 10,968,539 samples; members .jpg, .txt, perhaps .json
         BLIP3o: *.tar, members .jpg and .txt
         img2dataset: 00000.tar, 00000.parquet, 00000_stats.json; as parquet: no tar, pictures in a column jpg
Row      tar: 000000017.jpg, 000000017.txt "a red bus in the rain"
         parquet: {"jpg": {"bytes": ..., "path": null}, "txt": "a red bus in the rain"}
         a caption in the json member: {"caption": "a red bus in the rain", "width": 512, ...}
Traps    a caption may stand in several places: `keys` says which is taken; .txt is empty where the caption was null;
         the parquet beside an img2dataset tar holds URLs, not pictures, and is not read; a shard without _stats.json
         is not finished and is refused; in img2dataset's own parquet form a failed download is a row without a picture
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from dataflow import folders
from dataflow.draw import draw
from dataflow.media import Corrupt, Missing
from dataflow.record import Candidate, Image, Media, Message, Text
from dataflow.sources import Read, cell, matching, parsed, words

_PICTURES = ("jpg", "jpeg", "png", "webp", "image")  # members and columns that hold one


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Each sample becomes text_to_image (the raw caption asks, the picture answers) or caption_pair (both are said).

    Raises:
        ValueError: a task it cannot make, or a share outside 0..100.
    """

    name: str = "captions"
    task: Literal["text_to_image", "caption_pair"] = "text_to_image"
    caption_first: int = 80  # of 100 caption_pair; the others begin with the picture. LMFusion 4.1, as Transfusion
    keys: tuple[str, ...] = ("txt", "caption", "text")  # first with words: members or columns, then fields of the json
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.task not in ("text_to_image", "caption_pair"):
            raise ValueError(f"task {self.task!r} of {self.name}: a caption becomes text_to_image or caption_pair")
        if not 0 <= self.caption_first <= 100:
            raise ValueError(f"caption_first={self.caption_first} of {self.name}: it is of 100, so 0 to 100")

    def files(self, folder: Path) -> list[str]:
        """The tars and the parquet files that hold pictures."""
        return finished(folder, "*.tar", "*/*.tar", "*.parquet", "*/*.parquet")

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        """One candidate per sample."""
        image = _image(value)
        caption = self._caption(value)
        if self.task == "text_to_image":
            yield asked(caption, image)
        else:
            said = (Text(caption), Image(0))
            parts = said if draw(key, "caption first", 100) < self.caption_first else said[::-1]
            yield Candidate(task=self.task, messages=(Message("assistant", parts),), media=(image,))

    def _caption(self, value: dict[str, Any]) -> str:
        caption = self._first(value)
        fields = None if caption else value.get("json")  # of a large set, so it is parsed only when it is needed
        if isinstance(fields, bytes | str):  # a tar's member, a column of text; HF's conversions make it an object
            fields = parsed(fields, "the json member")
        if isinstance(fields, dict):
            caption = self._first(fields)
        if not caption:
            raise Corrupt(f"no caption: {', '.join(self.keys)} are empty or missing")
        return caption

    def _first(self, held: dict[str, Any]) -> str:
        return next(filter(None, (words(held.get(key)).strip() for key in self.keys)), "")


def asked(caption: str, image: Media) -> Candidate:
    """A text_to_image candidate: the caption asks, the picture answers."""
    return Candidate(
        task="text_to_image",
        messages=(Message("user", (Text(caption),)), Message("assistant", (Image(0),))),
        media=(image,),
    )


def finished(folder: Path, *patterns: str) -> list[str]:
    """Matching tars and parquet files that hold samples, every one of them whole.

    img2dataset opens 00000.tar and 00000.parquet together, the second for a list of all URLs, and writes
    00000_stats.json when both are closed. So a folder is its output when it holds such a pair or any _stats.json.

    Raises:
        ValueError: no file matches, or img2dataset has not finished one.
    """
    found = matching(folder, *patterns)
    tars = {file.removesuffix(".tar") for file in found if file.endswith(".tar")}
    held = [PurePosixPath(file) for file in found if file.removesuffix(".parquet") not in tars]
    beside = {home: set(folders.names(folder / home)) for home in {path.parent for path in held}}
    counted = {home for home, names in beside.items() if any(name.endswith("_stats.json") for name in names)}
    unfinished = [
        path.as_posix()
        for path in held
        if f"{path.stem}_stats.json" not in beside[path.parent]
        and (path.parent in counted or (path.suffix == ".tar" and f"{path.stem}.parquet" in beside[path.parent]))
    ]
    if unfinished:
        shown = ", ".join(unfinished[:5]) + (", ..." if len(unfinished) > 5 else "")
        raise ValueError(
            f"{folder}: img2dataset has not finished {len(unfinished)} of {len(held)} shards, no _stats.json is beside "
            f"them: {shown}; run it again until it is, or move these shards away"
        )
    return [path.as_posix() for path in held]


def _image(value: dict[str, Any]) -> Media:
    held = [name for name in _PICTURES if value.get(name) is not None]
    if len(held) == 1:
        return cell(value[held[0]], held[0])
    status = value.get("status")  # img2dataset's: success, failed_to_download, failed_to_resize
    if not held and isinstance(status, str) and status.startswith("failed"):
        raise Missing(f"the picture was never obtained: {status}")
    names = ", ".join(sorted(name for name in value if name != "__key__"))
    raise Corrupt(f"{len(held)} pictures for one caption, a sample has one of {', '.join(_PICTURES)}; it has {names}")
