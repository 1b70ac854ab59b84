"""How well a caption names a picture, by a CLIP or SigLIP of open_clip's: a number for curation, nothing is trained.

# P pictures and captions
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from models import openclip, pretrained
from models.parts import OpenClip

_PREPARED = ("mean", "std", "interpolation", "resize_mode")  # what a tag of open_clip's says of pictures


class Scorer:
    """Cosine of picture and caption, -1..1, in float32; on a GPU where this process sees one.

    Pictures are cut and captions cut off as the model was trained; a SigLIP's probability grows with the cosine, so it
    is the score of both kinds. What else is in a call changes a score by rounding alone (under 1e-5).

    Raises:
        ValueError: no such model, tag or folder, or weights that cannot be had, are pickled objects, or do not fit.
    """

    def __init__(self, weights: OpenClip) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = _network(weights)
        self.network = network.requires_grad_(False).eval().to(self.device)
        self.prepared: Any = image_transform_v2(PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)
        self.tokens: Any = open_clip.get_tokenizer(weights.model)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> list[float]:
        """Scores of P pairs, pictures in RGB.

        Raises:
            ValueError: a score that is no number, as damaged weights give.
        """
        if not pictures:
            return []
        pixels = torch.stack([self.prepared(picture) for picture in pictures]).to(self.device)
        words = self.tokens(list(captions)).to(self.device)
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            seen = self.network.encode_image(pixels, normalize=True)
            read = self.network.encode_text(words, normalize=True)
        scores = (seen * read).sum(-1)
        if not scores.isfinite().all():
            raise ValueError("scores are no numbers: the weights are damaged, or not of this model")
        return scores.tolist()


def _network(weights: OpenClip) -> Any:
    config = openclip.described(weights)
    known = {} if weights.folder is not None else openclip.published(weights)
    tag = None if weights.pretrained is None else get_pretrained_cfg(weights.model, weights.pretrained)
    if tag and tag.get("quick_gelu", False) != config.get("quick_gelu", False):
        raise ValueError(f"{weights.pretrained} was trained with another GELU than {weights.model}'s: add -quickgelu")
    file = openclip.checkpoint(weights)
    network: Any = open_clip.create_model(
        weights.model,
        load_weights=False,
        pretrained_text=False,
        force_preprocess_cfg={name: known[name] for name in _PREPARED if name in known},
    )
    _load(network, file)
    return network


def _load(network: Any, file: Path) -> None:
    """Fill a network with a checkpoint of tensors alone, all of it."""
    import pickle

    from safetensors import SafetensorError

    if file.suffix == ".safetensors":
        pretrained.floats(file)
    try:
        open_clip.load_checkpoint(network, str(file), weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, StopIteration) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{file} does not fill the model with tensors alone ({reason}): download it again") from error
