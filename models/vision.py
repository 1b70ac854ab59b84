"""Leaf encoders: frozen networks that turn pictures into features, outside the engine.

# P pictures, H = W their pixels, S patches a side, G = grid tokens a side, T = G * G tokens of a picture, C channels
"""

from __future__ import annotations

import hashlib
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from models import pretrained
from models.configs import Pretrained, Siglip


class Leaf(nn.Module):
    """A network that never learns: always in eval mode, no gradients. Call `freeze` when its parts are in place."""

    def freeze(self) -> None:
        """No parameter learns from here on."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever the module around it is told."""
        return super().train(False)

    def digest(self) -> str:
        """sha256 over names and bytes of its state, sorted by name: equal on every rank, before and after training."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            total.update(f"{name}\0".encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return total.hexdigest()


class VisionEncoder(Leaf):
    """Pictures -> a grid of unit-norm SigLIP tokens: what MetaMorph reads, predicts, and the visualizer paints from.

    Tokens are the last encoder layer's output, before `post_layernorm`, brought to the grid and only then normalised.
    Source: metamorph/model/multimodal_encoder/siglip_encoder.py at 0b13deb.
    """

    def __init__(self, vision: Siglip | Pretrained, *, grid: int) -> None:
        super().__init__()
        self.network = pretrained.vision_model(vision) if isinstance(vision, Pretrained) else random_siglip(vision)
        sizes = self.network.config
        assert isinstance(sizes.image_size, int) and isinstance(sizes.patch_size, int)
        self.pixels = sizes.image_size
        self.side = sizes.image_size // sizes.patch_size  # the patch convolution leaves out what is over
        self.grid = grid
        self.channels = sizes.hidden_size
        self.freeze()

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Picture tokens in raster order.

        Args:     pictures: float32[P, 3, H, W], RGB in 0..1, any H.
        Returns:  float32[P, T, C], each token of length 1; P = 0 runs no network.
        """
        if len(pictures) == 0:
            return torch.zeros(0, self.grid**2, self.channels, device=pictures.device)
        pixels = (resized(pictures, self.pixels) - 0.5) / 0.5
        patches = self.network.embeddings(pixels.to(self.network.dtype))
        layers = self.network.encoder(inputs_embeds=patches).last_hidden_state  # hidden_states[-1] of the whole model
        fine = rearrange(layers.float(), "p (h w) c -> p c h w", h=self.side)
        coarse = F.interpolate(fine, size=(self.grid, self.grid), mode="bilinear", align_corners=False)
        return F.normalize(rearrange(coarse, "p c h w -> p (h w) c"), dim=-1)


def resized(pictures: Tensor, side: int) -> Tensor:
    """Pictures at another size, smoothed first when they shrink: float32[P, 3, H, W] -> float32[P, 3, side, side]."""
    if tuple(pictures.shape[-2:]) == (side, side):
        return pictures
    return F.interpolate(pictures, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def random_siglip(vision: Siglip) -> SiglipVisionModel:
    """A SigLIP encoder whose weights are a function of `vision.seed`; the global generator is left as it was."""
    sizes = SiglipVisionConfig(
        image_size=vision.picture,
        patch_size=vision.patch,
        hidden_size=vision.width,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
        intermediate_size=vision.ffn,
        vision_use_head=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(vision.seed)
        return SiglipVisionModel._from_config(sizes, attn_implementation="sdpa")
