"""Scores of a tiny CLIP and a tiny SigLIP of open_clip's: the cosine as open_clip computes it, pair by pair.

# P = 4 pictures and captions
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data
from tiny_clip import KINDS, save

from models.parts import OpenClip
from models.scorers import Scorer

CAPTIONS = ["a cat", "an astronaut in an orange suit", "a cup of coffee on a table", "a rocket"]


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Of four sizes and shapes."""
    return [
        Image.fromarray(pixels).resize(size)
        for pixels, size in (
            (data.cat(), (64, 48)),
            (data.astronaut(), (40, 40)),
            (data.coffee(), (90, 60)),
            (data.rocket(), (32, 32)),
        )
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_the_cosine_that_open_clip_gives_for_the_pair_alone(
    tmp_path: Path, photographs: list[Image.Image], kind: str
) -> None:
    weights = save(tmp_path, kind)
    loaded: Any = open_clip.create_model_from_pretrained(weights.model)
    model, prepared = loaded
    words: Any = open_clip.get_tokenizer(weights.model)
    expected = []
    with torch.no_grad():
        for picture, caption in zip(photographs, CAPTIONS, strict=True):
            seen = model.encode_image(prepared(picture)[None])[0]
            read = model.encode_text(words([caption]))[0]
            expected.append(float(seen @ read / seen.norm() / read.norm()))
    scorer = Scorer(weights)
    scores = scorer(photographs, CAPTIONS)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert max(scores) - min(scores) > 0.01  # it does look at them
    assert scorer(photographs[::-1], CAPTIONS[::-1]) == pytest.approx(scores[::-1], abs=1e-5)
    assert scorer([], []) == []


def test_a_caption_longer_than_the_model_reads_is_cut_off(tmp_path: Path, photographs: list[Image.Image]) -> None:
    scorer, pair = Scorer(save(tmp_path, "clip")), photographs[:1] * 2
    one, other = scorer(pair, ["a cat " * 40, "a cat " * 40 + "and a dog"])
    assert one == other


def test_damaged_weights_are_refused(tmp_path: Path, photographs: list[Image.Image]) -> None:
    weights, file = save(tmp_path, "clip"), tmp_path / "open_clip_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "text_projection": tensors["text_projection"] * math.nan}, file)
    with pytest.raises(ValueError, match="scores are no numbers"):
        Scorer(weights)(photographs[:1], CAPTIONS[:1])
    save_file({name: tensor for name, tensor in tensors.items() if name != "text_projection"}, file)
    with pytest.raises(ValueError, match="does not fill the model with tensors alone"):
        Scorer(weights)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="does not fill the model with tensors alone"):
        Scorer(weights)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    weights = save(tmp_path, "clip")
    torch.save({"state_dict": load_file(tmp_path / "open_clip_model.safetensors"), "args": print}, tmp_path / "x.bin")
    (tmp_path / "open_clip_model.safetensors").unlink()
    (tmp_path / "x.bin").rename(tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="does not fill the model with tensors alone"):
        Scorer(weights)


def test_a_tag_that_was_trained_with_another_gelu_is_refused() -> None:
    with pytest.raises(ValueError, match="add -quickgelu"):
        Scorer(OpenClip(model="ViT-B-32", pretrained="openai"))
