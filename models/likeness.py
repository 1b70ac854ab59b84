"""How alike captions are to each other, and pictures, by a CLIP or SigLIP of open_clip's: cosines for curation.

# n pictures or captions of one record
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.scorers import Scorer


class Likeness(Scorer):
    """Cosines, -1..1, in float32; on a GPU where this process sees one. A record's are computed apart from others'."""

    @torch.inference_mode()
    def captions(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """How alike captions are: float32[n, n]."""
        words = self.tokens(list(captions)).to(self.device)
        return _cosines(self.network.encode_text(words, normalize=True))

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        """How alike pictures are, in RGB: float32[n, n]."""
        pixels = torch.stack([self.prepared(picture) for picture in pictures]).to(self.device)
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return _cosines(self.network.encode_image(pixels, normalize=True))


def _cosines(features: Tensor) -> NDArray[np.float32]:
    if not features.isfinite().all():
        raise ValueError("features are no numbers: the weights are damaged, or not of this model")
    return (features @ features.T).float().cpu().numpy()
