"""How a picture is cut: whole and stretched, or its middle square. LLaVA-NeXT's tiles are tested with its model."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models.views import Square


def striped(width: int, height: int) -> Image.Image:
    """Red grows to the right and green downwards, by one a pixel."""
    red, green = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=-1).astype(np.uint8))


def test_a_square_is_one_tile_of_its_side() -> None:
    for fit in ("stretch", "crop"):
        tiles, grid = Square(side=8, fit=fit).cut(striped(30, 20))
        assert tiles.shape == (1, 8, 8, 3) and tiles.dtype == np.uint8 and grid == (1, 1)


def test_a_stretched_square_holds_the_whole_picture_and_a_cropped_one_its_middle() -> None:
    wide = striped(40, 20)
    stretched, cropped = Square(side=20).cut(wide).tiles[0], Square(side=20, fit="crop").cut(wide).tiles[0]
    assert stretched[:, 0, 0].max() < 3 and stretched[:, -1, 0].min() > 36
    assert (cropped == np.asarray(wide)[:, 10:30]).all()
    tall = striped(20, 41)
    assert (Square(side=20, fit="crop").cut(tall).tiles[0] == np.asarray(tall)[10:30]).all()


def test_a_picture_of_the_right_size_keeps_its_bytes() -> None:
    picture = striped(16, 16)
    for fit in ("stretch", "crop"):
        assert (Square(side=16, fit=fit).cut(picture).tiles[0] == np.asarray(picture)).all()


def test_a_square_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="1 pixel or more"):
        Square(side=0)
