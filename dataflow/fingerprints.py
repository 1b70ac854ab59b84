"""What tells records and pictures apart: hashes of bytes, of looks and of words, as measures beside a corpus.

Sha256      every picture's bytes; the words of the record             the same, byte for byte
Perceptual  every picture's looks, 64 bits                             the same at another size or JPEG quality
WordGrams   every run of 13 words                                      the same sentence inside other text
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from dataflow.measures import Ready
from dataflow.media import Corrupt, decoded
from dataflow.record import Media, Record, Text

_DIGEST = pa.binary(32)
_REDUCED = (32, 32)  # what imagehash's pHash reduces a picture to before its cosine transform
_FLAT = 8  # of 255 greys: less between the darkest and the brightest spot is a blank, whose looks are noise
_LEAST = 8  # words; GPT-3 compares no shorter runs (arXiv:2005.14165, appendix C)


@dataclass(frozen=True, kw_only=True)
class Sha256:
    """pictures: of each picture's bytes, as the shard holds them. text: of all words, by who says them."""

    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()
    gpus: ClassVar[float] = 0

    @property
    def name(self) -> str:
        return "sha256"

    @property
    def columns(self) -> pa.Schema:
        return pa.schema([("pictures", pa.list_(_DIGEST)), ("text", _DIGEST)])

    def ready(self) -> Ready:
        return _sha256


@dataclass(frozen=True, kw_only=True)
class Perceptual:
    """pictures: imagehash's pHash of each picture decoded in full, 64 bits, two of which are far apart when the
    pictures look different; null for a blank, and for what does not decode.

    The same everywhere that has the same versions and kind of CPU: the cosine transform is in floats, and where a
    drawing is symmetric their last digit decides a bit.
    """

    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("imagehash", "pillow", "scipy")
    gpus: ClassVar[float] = 0

    @property
    def name(self) -> str:
        return "perceptual"

    @property
    def columns(self) -> pa.Schema:
        return pa.schema([("pictures", pa.list_(pa.uint64()))])

    def ready(self) -> Ready:
        return lambda records: {"pictures": [[_looks(media) for media in record.media] for record in records]}


@dataclass(frozen=True, kw_only=True)
class WordGrams:
    """grams: a hash of every run of so many words in each text of a record; of a shorter text, from 8 words, the whole.

    Words are as in GPT-3's check (arXiv:2005.14165, appendix C): lower case, without punctuation, between spaces.
    Languages that write without spaces give few words, so little is found of them.

    Raises:
        ValueError: runs of under 8 words, which texts share by chance.
    """

    words: int = 13
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()
    gpus: ClassVar[float] = 0

    def __post_init__(self) -> None:
        if self.words < _LEAST:
            raise ValueError(f"words={self.words}: texts share shorter runs by chance; use {_LEAST} or more")

    @property
    def name(self) -> str:
        return f"grams{self.words}"

    @property
    def columns(self) -> pa.Schema:
        return pa.schema([("grams", pa.list_(pa.uint64()))])

    def ready(self) -> Ready:
        return lambda records: {"grams": [self.of(record) for record in records]}

    def of(self, record: Record) -> list[int]:
        """The hashes of a record's runs of words, each once, in order of size."""
        return sorted({gram for text in _texts(record) for gram in self._grams(re.findall(r"\w+", normalised(text)))})

    def _grams(self, words: Sequence[str]) -> Iterator[int]:
        if len(words) >= _LEAST:
            for first in range(max(1, len(words) - self.words + 1)):
                run = " ".join(words[first : first + self.words])
                yield int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little")


def normalised(text: str) -> str:
    """Text without what differs between copies of it: kind of letter, case, spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _texts(record: Record) -> list[str]:
    return [part.text for message in record.messages for part in message.parts if isinstance(part, Text)]


def _sha256(records: Sequence[Record]) -> Mapping[str, Sequence[Any]]:
    return {
        "pictures": [[hashlib.sha256(media.data).digest() for media in record.media] for record in records],
        "text": [hashlib.sha256("\n".join(_lines(record)).encode()).digest() for record in records],
    }


def _lines(record: Record) -> Iterator[str]:
    """What each turn says, wherever its pictures stand."""
    for role, parts in record.turns:
        yield f"{role}: {normalised(' '.join(part for part in parts if isinstance(part, str)))}"


def _looks(media: Media) -> int | None:
    import imagehash
    from PIL import Image

    try:
        image = decoded(media).convert("L")
    except Corrupt:
        return None
    if np.ptp(np.asarray(image.resize(_REDUCED, Image.Resampling.LANCZOS))) < _FLAT:
        return None
    return int.from_bytes(np.packbits(imagehash.phash(image).hash).tobytes(), "big")
