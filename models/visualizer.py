"""The visualizer: a diffusion model that paints pictures from SigLIP tokens. Trained on its own, on pictures alone.

# P pictures, R = max(P, 1), T tokens of a picture, C their channels, W width of the condition, K pictures to paint
# [F, h, w] the canvas that is noised: [3, H, W] pixels in -1..1, or a VAE's [4, H / 8, W / 8] latents

    picture ─┬─ SigLIP (frozen) ─ tokens ─ projector ─ condition ─┐
             └─ (VAE, frozen) ─ canvas ─ + noise at timestep ─── UNet -> noise

Source: arXiv:2412.14164 section 2.3; visualization/train.py at 0b13deb.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL.Image import Image
from torch import Tensor, nn

from models import pretrained
from models.configs import Visualizer
from models.decoders import random_stable_unet
from models.diffusion import (
    STABLE_DIFFUSION,
    TIMESTEPS,
    at_least_one,
    chances,
    denoised,
    noising,
    normal,
    sought,
    starting_noise,
    timesteps,
)
from models.interface import Answered, Asked, Batch, Care, Draw, Losses
from models.layout import Turns
from models.parts import StableDiffusion, UNet
from models.vision import Leaf, VisionEncoder, resized

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

SD_CONDITION = 77  # places of Stable Diffusion's condition; what the tokens leave free is zero, visualization/train.py


class Seen(NamedTuple):
    """What the leaf of a latent visualizer gives: tokens, and the Gaussian of the latents in the UNet's scale.

    tokens float32[P, T, C], mean float32[P, 4, h, w], std float32[P, 4, h, w]
    """

    tokens: Tensor
    mean: Tensor
    std: Tensor


class LatentEncoder(Leaf):
    """SigLIP and a VAE side by side, both frozen: Stable Diffusion's leaf. Over pixels the leaf is a VisionEncoder."""

    def __init__(self, vision: VisionEncoder, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vision = vision
        self.vae = vae
        self.freeze()

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Seen:
        """float32[P, 3, H, W] in 0..1, H a multiple of 8 -> tokens and latents; P = 0 runs no network."""
        tokens = self.vision(pictures)
        if len(pictures) == 0:
            none = pictures.new_zeros(0, self.vae.config["latent_channels"], *(s // 8 for s in pictures.shape[-2:]))
            return Seen(tokens, none, none)
        latents = self.vae.encode((2 * pictures - 1).to(self.vae.dtype), return_dict=False)[0]
        scale = self.vae.config["scaling_factor"]
        return Seen(tokens, latents.mean.float() * scale, latents.std.float() * scale)

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """float32[K, 4, h, w] -> float32[K, 3, H, W] in -1..1."""
        return self.vae.decode(latents.to(self.vae.dtype) / self.vae.config["scaling_factor"], return_dict=False)[
            0
        ].float()


class VisualizerModule(nn.Module):
    """What learns: the projector and the UNet."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        *,
        channels: int,
        hidden: int,
        places: int,
        side: int,
        dropout: float,
        prediction: Literal["epsilon", "v_prediction"],
    ) -> None:
        super().__init__()
        width = unet.config["cross_attention_dim"]
        self.unet = unet
        self.projector = nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, width), nn.LayerNorm(width)
        )
        self.places = places  # of the condition
        self.side = side  # pixels of a painted picture
        self.dropout = dropout
        self.noising = noising(STABLE_DIFFUSION, prediction)

    def forward(self, batch: Batch, features: Tensor | Seen, draw: Draw) -> Losses:
        """The sum over pictures of the mean squared error of what the UNet predicts.

        diffusers cannot run on no pictures: then one phantom of zeros goes through, its error is left out of the sum.

        Args:     features: of the leaf, for every picture of the batch.
                  draw:     "noise", "timestep" and "condition" of each picture; "latent" too where there is a VAE.
        """
        count = len(batch.drawn)
        tokens, canvas = at_least_one(tokens_of(features)), at_least_one(canvas_of(batch, features, self.side, draw))
        noise = at_least_one(normal(canvas[:count], "noise", draw))
        timestep = at_least_one(timesteps([TIMESTEPS] * count, draw)).to(canvas.device)
        dropped = at_least_one(chances(count, "condition", draw) < self.dropout).to(canvas.device)

        condition = self.condition(tokens)
        condition = torch.where(dropped[:, None, None], torch.zeros_like(condition), condition)
        noised = self.noising.add_noise(canvas, noise, timestep)  # pyright: ignore[reportArgumentType]
        predicted = self.unet(noised.to(condition.dtype), timestep, condition).sample
        error = (predicted.float() - sought(self.noising, canvas, noise, timestep)).square().mean(dim=(1, 2, 3))
        return Losses(sums={"picture": error[:count].sum()})

    def condition(self, tokens: Tensor) -> Tensor:
        """Tokens as the UNet's condition: float[R, T, C] -> float[R, places, W], zeros after the tokens."""
        projected = self.projector(tokens.to(self.unet.dtype))
        return F.pad(projected, (0, 0, 0, self.places - projected.shape[1]))


def tokens_of(features: Tensor | Seen) -> Tensor:
    """The condition's tokens: float32[P, T, C]."""
    return features.tokens if isinstance(features, Seen) else features


def canvas_of(batch: Batch, features: Tensor | Seen, side: int, draw: Draw) -> Tensor:
    """What is noised: pixels in -1..1, or latents drawn from the VAE's Gaussian: float32[P, F, h, w]."""
    if isinstance(features, Seen):
        return features.mean + features.std * normal(features.mean, "latent", draw)
    return 2 * resized(batch.drawn.pixels, side) - 1


class VisualizerArchitecture:
    """The `Architecture` of `configs.Visualizer`."""

    def __init__(self, config: Visualizer, *, encoder: VisionEncoder | LatentEncoder, module: VisualizerModule) -> None:
        self.config = config
        self.encoder = encoder
        self.module = module

    def encode(self, batch: Batch) -> Tensor | Seen:
        """Tokens of every picture, with the Gaussian of its latents where there is a VAE."""
        return self.encoder(batch.drawn.pixels)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Pictures: each counts once, whatever its size."""
        return {"picture": len(batch.drawn)}

    def care(self, name: str) -> Care:
        """All alike."""
        return Care()

    @property
    def weights(self) -> Mapping[str, float]:
        """The only loss."""
        return {"picture": 1.0}

    def answer(self, turns: Turns, pictures: Sequence[Image], asked: Asked, *, task: str, key: str) -> Answered:
        """It paints what another run predicts. ValueError always."""
        raise ValueError("a visualizer answers no prompts: sample the run whose tokens it paints")


def build(config: Visualizer) -> VisualizerArchitecture:
    """The modules, on CPU, float32; what starts at random is a function of `config.seed`.

    Raises:
        ValueError: weights that cannot be had, or more tokens than Stable Diffusion's condition has places.
    """
    vision = VisionEncoder(config.vision, grid=config.grid)
    tokens = config.grid**2
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        if isinstance(config.decoder, StableDiffusion):
            if tokens > SD_CONDITION:
                raise ValueError(f"grid {config.grid} gives {tokens} tokens, over {SD_CONDITION}: use a grid up to 8")
            encoder = LatentEncoder(vision, pretrained.vae(config.decoder))
            unet, places = pretrained.unet(config.decoder), SD_CONDITION
        else:
            encoder, unet, places = vision, random_stable_unet(config.decoder, 3), tokens
        module = VisualizerModule(
            unet,
            channels=vision.channels,
            hidden=config.projector_width,
            places=places,
            side=config.painted,
            prediction=config.decoder.prediction if isinstance(config.decoder, UNet) else "epsilon",
            dropout=config.condition_dropout,
        )
    return VisualizerArchitecture(config, encoder=encoder, module=module)


@torch.no_grad()
def paint(
    architecture: VisualizerArchitecture, tokens: Tensor, *, seed: int, steps: int = 50, guidance: float = 7.5
) -> Tensor:
    """Pictures from tokens, by DDIM with classifier-free guidance against a condition of zeros.

    A picture depends on its tokens, `seed` and its index k alone, not on the others (to rounding).

    Args:
        tokens:   float32[K, T, C], unit-norm: of a VisionEncoder, or predicted by MetaMorph.
        steps:    of the sampler, 1 to 1000.
        guidance: 1.0 is none; the released demo uses 6.0 to 12.5.
    Returns:      float32[K, 3, H, W], RGB in 0..1, on the CPU.
    """
    module, size = architecture.module, architecture.module.side
    if len(tokens) == 0:
        return torch.zeros(0, 3, size, size)
    latent = isinstance(architecture.encoder, LatentEncoder)
    condition = module.condition(tokens.to(module.unet.device))
    both = torch.cat([condition, torch.zeros_like(condition)])
    side = size // 8 if latent else size
    shape = (module.unet.config["in_channels"], side, side)
    noise = torch.stack([starting_noise(shape, seed, index) for index in range(len(tokens))]).to(condition.device)

    def predict(canvas: Tensor, timestep: Tensor) -> Tensor:
        twice = torch.cat([canvas, canvas]).to(condition.dtype)
        given, free = module.unet(twice, timestep, both).sample.float().chunk(2)
        return free + guidance * (given - free)

    canvas = denoised(
        predict,
        noise,
        schedule=STABLE_DIFFUSION,
        prediction=module.noising.config["prediction_type"],
        steps=steps,
        bound=None if latent else 1.0,  # latents have no bounds
    )
    painted = architecture.encoder.pictures(canvas) if isinstance(architecture.encoder, LatentEncoder) else canvas
    return ((painted + 1) / 2).clamp(0, 1).cpu()
