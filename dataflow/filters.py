"""Why to drop a record. A filter is a frozen dataclass you call: config, behaviour and provenance in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from dataflow.media import Corrupt, intact
from dataflow.record import Record


class Filter(Protocol):
    """Returns why to drop the record, or None to keep it. `version` is raised when its verdicts change."""

    version: ClassVar[int]

    def __call__(self, record: Record) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class MinSide:
    """Drop records that hold a picture whose shorter side is under `pixels`."""

    pixels: int
    version: ClassVar[int] = 1

    def __call__(self, record: Record) -> str | None:
        for index, media in enumerate(record.media):
            if min(media.width, media.height) < self.pixels:
                return f"picture {index} is {media.width}x{media.height}, under {self.pixels} px"
        return None


@dataclass(frozen=True, kw_only=True)
class MaxAspect:
    """Drop records that hold a picture longer than `ratio` times its width, either way round."""

    ratio: float
    version: ClassVar[int] = 1

    def __call__(self, record: Record) -> str | None:
        for index, media in enumerate(record.media):
            if max(media.width, media.height) > self.ratio * min(media.width, media.height):
                return f"picture {index} is {media.width}x{media.height}, over {self.ratio}:1"
        return None


@dataclass(frozen=True, kw_only=True)
class MaxText:
    """Drop records whose turns hold more than `characters` of text together."""

    characters: int
    version: ClassVar[int] = 1

    def __call__(self, record: Record) -> str | None:
        if record.text_length > self.characters:
            return f"{record.text_length} characters of text, over {self.characters}"
        return None


@dataclass(frozen=True, kw_only=True)
class Decodes:
    """Drop records that hold a picture whose pixels do not decode in full; costs milliseconds a picture."""

    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("av",)

    def __call__(self, record: Record) -> str | None:
        for index, media in enumerate(record.media):
            try:
                intact(media)
            except Corrupt as problem:
                return f"picture {index}: {problem}"
        return None
