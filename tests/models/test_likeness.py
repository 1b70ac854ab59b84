"""How alike captions and pictures are, by a tiny CLIP and a tiny SigLIP: open_clip's cosines of each two alone."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from skimage import data
from tiny_clip import KINDS, save

from models.likeness import Likeness

CAPTIONS = ["a cat", "a cat", "a rocket on its launch pad"]


@pytest.mark.parametrize("kind", KINDS)
def test_cosines_are_those_that_open_clip_gives_for_each_two_alone(tmp_path: Path, kind: str) -> None:
    weights = save(tmp_path, kind)
    pictures = [Image.fromarray(pixels).resize((48, 40)) for pixels in (data.cat(), data.coffee(), data.rocket())]
    opened: Any = open_clip.create_model_from_pretrained(weights.model)
    model, prepared = opened
    words = open_clip.get_tokenizer(weights.model)
    with torch.no_grad():
        read = [model.encode_text(words([caption]), normalize=True)[0] for caption in CAPTIONS]
        seen = [model.encode_image(prepared(picture)[None], normalize=True)[0] for picture in pictures]
    likeness = Likeness(weights)
    for found, features in ((likeness.captions(CAPTIONS), read), (likeness.pictures(pictures), seen)):
        assert found.shape == (3, 3)
        assert found.dtype == np.float32
        for one, other in product(range(3), repeat=2):
            assert found[one, other] == pytest.approx(float(features[one] @ features[other]), abs=1e-5)
    assert likeness.captions(CAPTIONS)[0, 1] == pytest.approx(1, abs=1e-5)
