"""How a picture is cut into what a network reads. No torch: a layout counts tokens with it, batching prepares pixels.

# K tiles of one picture, h = w pixels of a tile
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Cut(NamedTuple):
    """One picture as a network reads it: tiles uint8[K, h, w, 3], and their rows and columns where they form a grid."""

    tiles: NDArray[np.uint8]
    grid: tuple[int, int]


class View(Protocol):
    """What an architecture wants to be given of a picture. `side`: pixels of a tile, the same for every picture."""

    @property
    def side(self) -> int: ...

    def cut(self, image: Image.Image) -> Cut:
        """The tiles of an RGB picture of any size."""
        ...

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """`Cut.grid` of a picture of this width and height."""
        ...


@dataclass(frozen=True, kw_only=True)
class Square:
    """The whole picture as one square tile. `crop` keeps its shape and cuts the middle out, `stretch` cuts nothing."""

    side: int  # pixels
    fit: Literal["stretch", "crop"] = "stretch"

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"{self}: a side has 1 pixel or more")

    def cut(self, image: Image.Image) -> Cut:
        """One tile."""
        if self.fit == "crop":
            image = middle(image)
        return Cut(np.asarray(scaled(image, self.side, self.side))[None], self.grid(image.size))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """One tile."""
        return 1, 1


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The whole picture as one square tile, and once more, larger, as the grid of tiles that suits its shape best.

        +---+      +---+---+   In the grid its shape is kept, black at two sides makes up for it; patches that lie in
        | 0 |      | 1 | 2 |   the black are no tokens. A token ends every row of the grid's patches.
        +---+      +---+---+

    side, patch: pixels. pinpoints: height and width in pixels of the grids to choose from.
    Source: LLaVA-NeXT's "anyres" with "spatial_unpad"; transformers' LlavaNextProcessor and LlavaNextModel.
    """

    side: int
    patch: int
    pinpoints: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if min(self.side, self.patch) < 1 or self.side % self.patch:
            raise ValueError(f"{self}: sizes are 1 or more, and patch divides side")
        lengths = [length for pinpoint in self.pinpoints for length in pinpoint]
        if not lengths or any(length < 1 or length % self.side for length in lengths):
            raise ValueError(f"{self}: pinpoints are multiples of side, one at least")

    def cut(self, image: Image.Image) -> Cut:
        """The whole, then the grid row after row."""
        rows, columns = self.grid(image.size)
        height, width = rows * self.side, columns * self.side
        inner = _fitted(image.size, width, height)
        canvas = Image.new("RGB", (width, height))
        canvas.paste(scaled(image, *inner), ((width - inner[0]) // 2, (height - inner[1]) // 2))
        grid = np.asarray(canvas).reshape(rows, self.side, columns, self.side, 3).swapaxes(1, 2)
        whole = np.asarray(scaled(image, self.side, self.side))[None]
        return Cut(np.concatenate([whole, grid.reshape(-1, self.side, self.side, 3)]), (rows, columns))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tiles for a picture of this width and height: most of its pixels, least of black."""
        width, height = size

        def suits(pinpoint: tuple[int, int]) -> tuple[int, int]:
            scale = min(pinpoint[1] / width, pinpoint[0] / height)
            pixels = min(int(width * scale) * int(height * scale), width * height)
            return pixels, -pinpoint[0] * pinpoint[1]

        rows, columns = max(self.pinpoints, key=suits)
        return rows // self.side, columns // self.side

    def margins(self, size: tuple[int, int]) -> tuple[int, int]:
        """Patches of the grid in the black at each end: rows above and below, columns left and right."""
        width, height = size
        rows, columns = self._patches(size)
        if width / height > columns / rows:
            return (rows - int(round(height * (columns / width), 7))) // 2, 0
        return 0, (columns - int(round(width * (rows / height), 7))) // 2

    def tokens(self, size: tuple[int, int]) -> int:
        """What a picture of this width and height takes."""
        (rows, columns), (above, left) = self._patches(size), self.margins(size)
        return (self.side // self.patch) ** 2 + (rows - 2 * above) * (columns - 2 * left + 1)

    def _patches(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the grid's patches."""
        rows, columns = self.grid(size)
        return rows * (self.side // self.patch), columns * (self.side // self.patch)


@dataclass(frozen=True, kw_only=True)
class Patches:
    """A picture near its own size and shape, in square tiles of one token each.

        +--+--+--+
        |0 |1 |2 |   Width and height are rounded to whole tiles; a picture with fewer pixels than `fewest` is made
        +--+--+--+   larger, one with more than `most` smaller.
        |3 |4 |5 |
        +--+--+--+

    side: pixels of a tile. fewest, most: pixels of a picture.
    Source: Qwen2-VL's processor in transformers, whose patches of 14 px are merged two by two.
    """

    side: int
    fewest: int
    most: int

    def __post_init__(self) -> None:
        if min(self.side, self.fewest) < 1 or max(self.side**2, self.fewest) > self.most:
            raise ValueError(f"{self}: sizes are 1 or more, and most is not under fewest or a tile")

    def cut(self, image: Image.Image) -> Cut:
        """The tiles, row after row."""
        rows, columns = self.grid(image.size)
        pixels = np.asarray(scaled(image, columns * self.side, rows * self.side))
        tiles = pixels.reshape(rows, self.side, columns, self.side, 3).swapaxes(1, 2)
        return Cut(tiles.reshape(-1, self.side, self.side, 3), (rows, columns))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tiles for a picture of this width and height."""
        width, height = size
        rows, columns = round(height / self.side), round(width / self.side)
        area = rows * columns * self.side**2
        if area > self.most:
            shrink = math.sqrt(height * width / self.most)
            return max(1, math.floor(height / shrink / self.side)), max(1, math.floor(width / shrink / self.side))
        if area < self.fewest:
            grow = math.sqrt(self.fewest / (height * width))
            return math.ceil(height * grow / self.side), math.ceil(width * grow / self.side)
        return rows, columns

    def tokens(self, size: tuple[int, int]) -> int:
        """What a picture of this width and height takes."""
        rows, columns = self.grid(size)
        return rows * columns


def _fitted(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """Width and height of a picture that fills a frame and keeps its shape."""
    wide, high = width / size[0], height / size[1]
    if wide < high:
        return width, min(math.ceil(size[1] * wide), height)
    return min(math.ceil(size[0] * high), width), height


def middle(image: Image.Image) -> Image.Image:
    """The largest square in the middle of a picture."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def scaled(image: Image.Image, width: int, height: int) -> Image.Image:
    """A picture at another size, smoothed where it shrinks."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)
