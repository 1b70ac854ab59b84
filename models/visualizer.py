"""The visualizer: a diffusion model that paints pictures from SigLIP tokens. Trained on its own, on pictures alone.

# P pictures, R = max(P, 1), T tokens of a picture, C their channels, W width of the condition, K pictures to paint
# [F, h, w] the canvas that is noised: pixels in -1..1, or a VAE's latents

    picture ─┬─ SigLIP (frozen) ─ tokens ─ projector ─ condition ─┐
             └─ (VAE, frozen) ─ canvas ─ + noise at timestep ─── UNet -> noise

Source: arXiv:2412.14164 section 2.3; visualization/train.py at 0b13deb.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from models import lora
from models.apart import gaussian, gaussians, stacked
from models.configs import Visualizer
from models.decoders import UNetDecoder
from models.diffusion import TIMESTEPS, at_least_one, chances, normal, starting_noise, timesteps
from models.interface import Answered, Asked, Batch, Care, Draw, Losses, Measured, Parts
from models.layout import Turns
from models.parts import Pretrained
from models.vision import CanvasEncoder, Gaussian, Leaf, VisionEncoder, resized

SD_CONDITION = 77  # places of Stable Diffusion's condition; what the tokens leave free is zero, visualization/train.py


class Encoded(NamedTuple):
    """What the leaf encoders make of pictures.

    tokens  float32[P, T, C]
    canvas  what the canvas of each is drawn from
    """

    tokens: Tensor
    canvas: Gaussian


class VisualizerEncoder(Leaf):
    """SigLIP, and pictures <-> the canvas, side by side."""

    def __init__(self, vision: VisionEncoder, canvas: CanvasEncoder, *, side: int) -> None:
        super().__init__()
        self.vision = vision
        self.canvas = canvas
        self.side = side  # pixels of a painted picture
        self.freeze()

    def forward(self, pictures: Tensor) -> Encoded:
        """float32[P, 3, H, W] in 0..1, any H."""
        return Encoded(self.vision(pictures), self.painted(pictures))

    def painted(self, pictures: Tensor) -> Gaussian:
        """What the canvas of each is drawn from."""
        return self.canvas(resized(pictures, self.side))


class VisualizerModule(nn.Module):
    """What learns: the projector and the decoder."""

    def __init__(self, decoder: UNetDecoder, config: Visualizer, *, channels: int, places: int) -> None:
        super().__init__()
        hidden, width = config.projector_width, decoder.width
        last = nn.LayerNorm(width)
        nn.init.constant_(last.weight, config.decoder.gain)
        self.decoder = decoder
        self.projector = nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, width), last
        )
        self.places = places  # of the condition
        self.dropout = config.condition_dropout

    def forward(self, batch: Batch, features: Encoded, draw: Draw) -> Losses:
        """The sum over pictures of the mean squared error of what the decoder predicts.

        The decoder cannot run on no pictures: then one phantom of zeros goes through it, and counts nothing.

        Args:     features: of the leaf, for every picture of the batch.
                  draw:     "noise", "timestep", "latent" and "condition" of each picture.
        """
        count = len(batch.drawn)
        mean, std = features.canvas
        canvas = at_least_one(mean + std * normal(std, "latent", draw))
        noise = at_least_one(normal(mean, "noise", draw))
        timestep = at_least_one(timesteps([TIMESTEPS] * count, draw)).to(canvas.device)
        dropped = at_least_one(chances(count, "condition", draw) < self.dropout).to(canvas.device)

        condition = self.condition(at_least_one(features.tokens))
        condition = torch.where(dropped[:, None, None], torch.zeros_like(condition), condition)
        noised, wanted = self.decoder.noised(canvas, noise, timestep)
        error = (self.predicted(noised, timestep, condition) - wanted).square().mean(dim=(1, 2, 3))
        return Losses.of(batch, picture=(error[:count], (batch.drawn.row, batch.drawn.start)))

    def condition(self, tokens: Tensor) -> Tensor:
        """Tokens as the decoder's condition: float[R, T, C] -> float[R, places, W], zeros after the tokens."""
        projected = self.projector(tokens.to(next(self.projector.parameters()).dtype))
        return F.pad(projected, (0, 0, 0, self.places - projected.shape[1]))

    def predicted(self, canvas: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """What the decoder predicts, float32[R, F, h, w]; it sees all places, those of zeros too."""
        return self.decoder(canvas, timestep, condition, torch.ones_like(condition[..., 0], dtype=torch.bool))


class VisualizerArchitecture:
    """The `Architecture` of `configs.Visualizer`."""

    def __init__(self, config: Visualizer, *, encoder: VisualizerEncoder, module: VisualizerModule) -> None:
        self.config = config
        self.encoder = encoder
        self.module = module

    def encode(self, batch: Batch) -> Encoded:
        """Tokens of every picture, and what its canvas is drawn from."""
        return self.encoder(batch.drawn.pixels)

    @property
    def measured(self) -> Measured:
        """Tokens, and latents where the canvas has any."""
        settings = {"vision": self.config.vision, "grid": self.config.grid, "canvas": self.config.decoder.canvas}
        pixels = () if self.encoder.canvas.vae else ("drawn",)
        return Measured(network=self.encoder, settings=settings, views=("drawn",), pixels=pixels)

    def apart(self, batch: Batch) -> Parts:
        """The tokens of each picture, and what its latents are drawn from."""
        tokens, canvas = self.encode(batch)
        latents = gaussians(canvas) if self.encoder.canvas.vae else [{}] * len(tokens)
        return {"drawn": [{"tokens": one, **latent} for one, latent in zip(tokens, latents, strict=True)]}

    def together(self, parts: Parts, batch: Batch) -> Encoded:
        """The inverse of `apart`; a canvas of pixels is made of them."""
        drawn, device = parts["drawn"], batch.ids.device
        if not drawn:
            return self.encode(batch)
        latent = self.encoder.canvas.vae is not None
        canvas = gaussian(drawn, device) if latent else self.encoder.painted(batch.drawn.pixels)
        return Encoded(stacked(drawn, "tokens", device), canvas)

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
    canvas = config.decoder.canvas
    tokens = config.grid**2
    published = isinstance(config.decoder.network, Pretrained)
    if published and tokens > SD_CONDITION:
        raise ValueError(f"grid {config.grid} gives {tokens} tokens, over {SD_CONDITION}: use a grid up to 8")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        places = SD_CONDITION if published else tokens
        module = VisualizerModule(UNetDecoder(config.decoder), config, channels=vision.channels, places=places)
    lora.inject(module, config.lora, config.seed)
    encoder = VisualizerEncoder(vision, CanvasEncoder(canvas), side=canvas.side)
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
    module, encoder = architecture.module, architecture.encoder
    if len(tokens) == 0:
        return torch.zeros(0, 3, encoder.side, encoder.side)
    condition = module.condition(tokens.to(next(module.parameters()).device))
    both = torch.cat([condition, torch.zeros_like(condition)])
    shape = encoder.canvas.shape
    noise = torch.stack([starting_noise(shape, seed, index) for index in range(len(tokens))]).to(condition.device)

    def predict(canvas: Tensor, timestep: Tensor) -> Tensor:
        twice = module.predicted(torch.cat([canvas, canvas]), timestep.expand(len(both)), both)
        given, free = twice.chunk(2)
        return free + guidance * (given - free)

    canvas = module.decoder.painted(predict, noise, steps, bounded=encoder.canvas.vae is None)
    return encoder.canvas.pictures(canvas).cpu()
