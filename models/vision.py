"""Leaf encoders: frozen networks that turn pictures into features, outside the engine.

# P pictures, H = W their pixels, S patches a side, G = grid tokens a side, T = G * G tokens of a picture, C channels
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from models import openclip, pretrained
from models.parts import Canvas, Latents, OpenClip, Pixels, Pretrained, Siglip, Vae

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


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

    Tokens are the last encoder layer's output, before the norm after it, brought to the grid and only then normalised.
    Source: metamorph/model/multimodal_encoder/siglip_encoder.py at 0b13deb.
    """

    def __init__(self, vision: Siglip | Pretrained | OpenClip, *, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.mean = self.std = (0.5, 0.5, 0.5)  # of SigLIP's processor
        if isinstance(vision, OpenClip):
            self.network, self.mean, self.std = openclip.tower(vision)
            embedding = self.network.patch_embed
            pixels, patch, self.channels = embedding.img_size[0], embedding.patch_size[0], self.network.embed_dim
        else:
            self.network = siglip(vision)
            found = self.network.config
            pixels, patch, self.channels = found.image_size, found.patch_size, found.hidden_size
        assert isinstance(pixels, int) and isinstance(patch, int)
        self.pixels = pixels
        self.side = pixels // patch  # the patch convolution leaves out what is over
        self.freeze()

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Picture tokens in raster order.

        Args:     pictures: float32[P, 3, H, W], RGB in 0..1, any H.
        Returns:  float32[P, T, C], each token of length 1; P = 0 runs no network.
        """
        if len(pictures) == 0:
            return torch.zeros(0, self.grid**2, self.channels, device=pictures.device)
        mean, std = (pictures.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        layers = self.layers((resized(pictures, self.pixels) - mean) / std)
        fine = rearrange(layers.float(), "p (h w) c -> p c h w", h=self.side)
        coarse = F.interpolate(fine, size=(self.grid, self.grid), mode="bilinear", align_corners=False)
        return F.normalize(rearrange(coarse, "p c h w -> p (h w) c"), dim=-1)

    def layers(self, pixels: Tensor) -> Tensor:
        """The last layer's states: float32[P, 3, H, W] -> float[P, S * S, C]."""
        pixels = pixels.to(next(self.network.parameters()).dtype)
        if isinstance(self.network, SiglipVisionModel):
            patches = self.network.embeddings(pixels)
            return self.network.encoder(inputs_embeds=patches).last_hidden_state  # hidden_states[-1] of the whole model
        return self.network.forward_features(pixels)


class Gaussian(NamedTuple):
    """What a canvas is drawn from: mean and standard deviation, float32[P, F, h, w]; no deviation for pixels."""

    mean: Tensor
    std: Tensor


class CanvasEncoder(Leaf):
    """Pictures <-> the canvas that is noised and painted: pixels in -1..1, or latents of a VAE of unit variance."""

    def __init__(self, canvas: Canvas) -> None:
        super().__init__()
        self.shape = (canvas.channels, canvas.cells, canvas.cells)
        self.vae = None if isinstance(canvas, Pixels) else _vae(canvas)
        self.freeze()

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Gaussian:
        """float32[P, 3, H, W] in 0..1, H as the canvas wants it; P = 0 runs no network."""
        if len(pictures) == 0:
            none = pictures.new_zeros(0, *self.shape)
            return Gaussian(none, none)
        pixels = 2 * pictures - 1
        if self.vae is None:
            return Gaussian(pixels, torch.zeros_like(pixels))
        latents = self.vae.encode(pixels.to(self.vae.dtype), return_dict=False)[0]
        scale, shift = self.vae.config["scaling_factor"], self.vae.config["shift_factor"] or 0.0
        return Gaussian((latents.mean.float() - shift) * scale, latents.std.float() * scale)

    @torch.no_grad()
    def pictures(self, canvas: Tensor) -> Tensor:
        """float32[K, F, h, w] -> float32[K, 3, H, W] in 0..1."""
        if self.vae is not None and len(canvas):
            scale, shift = self.vae.config["scaling_factor"], self.vae.config["shift_factor"] or 0.0
            canvas = self.vae.decode((canvas / scale + shift).to(self.vae.dtype), return_dict=False)[0].float()
        return ((canvas + 1) / 2).clamp(0, 1)


def _vae(latents: Latents) -> AutoencoderKL:
    """The VAE of a canvas; ValueError where its latents are not what the config says."""
    sizes = latents.vae if isinstance(latents.vae, Vae) else pretrained.planned(latents.vae)
    if isinstance(sizes, Vae):
        vae = random_vae(sizes)
    else:
        assert isinstance(latents.vae, Pretrained)
        vae = pretrained.vae(latents.vae, latents.subfolder)
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    found = (vae.config["latent_channels"], factor)
    if found != (latents.channels, latents.factor):
        raise ValueError(
            f"{latents.vae}: its latents have {found[0]} channels and {factor} pixels a cell, "
            f"not {latents.channels} and {latents.factor}: set channels and factor"
        )
    return vae


def random_vae(sizes: Vae) -> AutoencoderKL:
    """A VAE whose weights are a function of `sizes.seed`; the global generator is left as it was."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    scales = len(sizes.channels)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(sizes.seed)
        return AutoencoderKL(
            latent_channels=sizes.latent_channels,
            block_out_channels=sizes.channels,  # pyright: ignore[reportArgumentType]
            down_block_types=("DownEncoderBlock2D",) * scales,  # pyright: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * scales,  # pyright: ignore[reportArgumentType]
            layers_per_block=sizes.layers_per_block,
            norm_num_groups=sizes.groups,
            scaling_factor=sizes.scale,
        )


def resized(pictures: Tensor, side: int) -> Tensor:
    """Pictures at another size, smoothed first when they shrink: float32[P, 3, H, W] -> float32[P, 3, side, side]."""
    if tuple(pictures.shape[-2:]) == (side, side):
        return pictures
    return F.interpolate(pictures, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def siglip(vision: Siglip | Pretrained) -> SiglipVisionModel:
    """The SigLIP encoder of a config. ValueError for weights that cannot be had or are of other sizes."""
    sizes = vision if isinstance(vision, Siglip) else pretrained.planned(vision)
    if isinstance(sizes, Siglip):
        return random_siglip(sizes)
    assert isinstance(vision, Pretrained)
    return pretrained.vision_model(vision)


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
