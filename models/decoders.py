"""What paints from a condition: Sana by flow matching, Stable Diffusion's UNet by DDPM, and Sana's autoencoder.

# R pictures, [F, h, w] a canvas, T places of a condition, C its width

A decoder says how a canvas is noised, what is then to be predicted, and how noise becomes a canvas again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor, nn

from models import pretrained
from models.diffusion import STABLE_DIFFUSION, TIMESTEPS, Prediction, denoised, noising, sought
from models.parts import (
    DeepLatents,
    DeepVae,
    Latents,
    Pixels,
    Pretrained,
    Sana,
    SanaTransformer,
    StableUNet,
    UNet,
)
from models.vision import CanvasEncoder, Gaussian, Leaf

Predict = Callable[[Tensor, Tensor], Tensor]
"""(canvas float32[1, F, h, w], timestep float[]) -> what is predicted of it, guidance included."""


class SanaDecoder(nn.Module):
    """Sana: it predicts the way from the canvas to the noise, along the straight line between them.

    Timesteps are drawn from 1 to 1,000 of equal weight, without a shift: the scheduler that the official code loads
    for training does not read Sana's. In sampling it is read.
    Source: models/metaquery.py of facebookresearch/metaquery.
    """

    def __init__(self, sizes: Sana) -> None:
        super().__init__()
        self.network = sana(sizes)
        self.width: int = self.network.config["caption_channels"]
        self.shift = sizes.shift

    def noised(self, canvas: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """The canvas on its way to the noise, and the way: two float32[R, F, h, w]. timestep: int64[R], 0 to 999."""
        level = ((timestep + 1) / TIMESTEPS)[:, None, None, None]
        return (1 - level) * canvas + level * noise, noise - canvas

    def forward(self, canvas: Tensor, timestep: Tensor, condition: Tensor, present: Tensor) -> Tensor:
        """What is predicted, float32[R, F, h, w]. condition: float[R, T, C]; present: bool[R, T], its places."""
        return self.network(
            canvas.to(condition.dtype),
            encoder_hidden_states=condition,
            timestep=(timestep + 1).float(),  # bfloat16 cannot tell 997 from 1,000
            encoder_attention_mask=present.to(condition.dtype),
        ).sample.float()

    def painted(self, predict: Predict, canvas: Tensor, steps: int, *, bounded: bool) -> Tensor:
        """A canvas of noise, freed of it: float32[1, F, h, w]."""
        return flowed(lambda noised, time: predict(noised, time - 1), canvas, shift=self.shift, steps=steps)


class UNetDecoder(nn.Module):
    """Stable Diffusion's UNet: it predicts the noise, or "v"."""

    def __init__(self, sizes: StableUNet) -> None:
        super().__init__()
        self.network = stable_unet(sizes)
        self.width: int = self.network.config["cross_attention_dim"]
        self.prediction: Prediction = sizes.network.prediction if isinstance(sizes.network, UNet) else "epsilon"
        self.noising = noising(STABLE_DIFFUSION, self.prediction)

    def noised(self, canvas: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """The noised canvas, and what is to be predicted: two float32[R, F, h, w]. timestep: int64[R], 0 to 999."""
        noised = self.noising.add_noise(canvas, noise, timestep)  # pyright: ignore[reportArgumentType]
        return noised, sought(self.noising, canvas, noise, timestep)

    def forward(self, canvas: Tensor, timestep: Tensor, condition: Tensor, present: Tensor) -> Tensor:
        """What is predicted, float32[R, F, h, w]. condition: float[R, T, C]; present: bool[R, T], its places."""
        return self.network(
            canvas.to(condition.dtype),
            timestep,
            encoder_hidden_states=condition,
            encoder_attention_mask=present,
        ).sample.float()

    def painted(self, predict: Predict, canvas: Tensor, steps: int, *, bounded: bool) -> Tensor:
        """A canvas of noise, freed of it: float32[1, F, h, w]. bounded: a clean canvas lies in -1..1."""
        return denoised(
            predict,
            canvas,
            schedule=STABLE_DIFFUSION,
            prediction=self.prediction,
            steps=steps,
            bound=1.0 if bounded else None,
        )


Decoder = SanaDecoder | UNetDecoder


def decoder(sizes: Sana | StableUNet) -> Decoder:
    """The decoder of a config, float32; random weights come from the global generator."""
    return SanaDecoder(sizes) if isinstance(sizes, Sana) else UNetDecoder(sizes)


def flowed(predict: Predict, canvas: Tensor, *, shift: float, steps: int) -> Tensor:
    """A canvas of noise, freed of it by DPM-Solver++ along the flow: float32[1, F, h, w].

    Args:  predict: (canvas, timestep of 1 to 1,000). shift: of the noise levels towards noise; 1 is none.
    """
    sampler = flow_sampler(shift)
    sampler.set_timesteps(steps)
    for timestep in sampler.timesteps:
        predicted = predict(canvas, timestep.to(canvas.device))
        canvas = sampler.step(predicted, timestep, canvas, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
    return canvas


def flow_sampler(shift: float) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ along the flow, its noise levels shifted towards noise."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=TIMESTEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
    )


def sana(sizes: Sana) -> SanaTransformer2DModel:
    """Sana's transformer over the canvas of a config."""
    network, canvas = sizes.network, sizes.canvas
    spelled = network if isinstance(network, SanaTransformer) else pretrained.planned(network)
    if isinstance(spelled, SanaTransformer):
        return SanaTransformer2DModel(
            in_channels=canvas.channels,
            out_channels=canvas.channels,
            num_attention_heads=spelled.heads,
            attention_head_dim=spelled.head_width,
            num_layers=spelled.layers,
            num_cross_attention_heads=spelled.cross_heads,
            cross_attention_head_dim=spelled.heads * spelled.head_width // spelled.cross_heads,
            cross_attention_dim=spelled.heads * spelled.head_width,
            caption_channels=spelled.condition_width,
            mlp_ratio=spelled.ffn,
            sample_size=canvas.cells,
            patch_size=spelled.patch,
        )
    assert isinstance(network, Pretrained)
    return _painting(pretrained.sana_transformer(network), network, canvas.channels)


def stable_unet(sizes: StableUNet) -> UNet2DConditionModel:
    """Stable Diffusion's UNet over the canvas of a config."""
    network, canvas = sizes.network, sizes.canvas
    spelled = network if isinstance(network, UNet) else pretrained.planned(network)
    if isinstance(spelled, UNet):
        return random_stable_unet(spelled, canvas.channels)
    assert isinstance(network, Pretrained)
    return _painting(pretrained.stable_unet(network), network, canvas.channels)


def _painting(network: Any, weights: Pretrained, channels: int) -> Any:
    """The same. ValueError where it paints another canvas."""
    if network.config["in_channels"] != channels:
        raise ValueError(f"{weights.path} paints {network.config['in_channels']} channels, not {channels}: set canvas")
    return network


def random_stable_unet(sizes: UNet, channels: int) -> UNet2DConditionModel:
    """A UNet over a canvas of so many channels, from the global generator."""
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in sizes.attends)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(sizes.attends))
    return UNet2DConditionModel(
        sample_size=sizes.picture,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers_per_block,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=sizes.condition_width,
        attention_head_dim=sizes.heads,  # diffusers' name for the number of heads
        norm_num_groups=math.gcd(32, *sizes.channels),
    )


class DeepCanvas(Leaf):
    """Pictures <-> latents of Sana's autoencoder, frozen; the latents are numbers, not a distribution."""

    def __init__(self, canvas: DeepLatents) -> None:
        super().__init__()
        self.shape = (canvas.channels, canvas.cells, canvas.cells)
        self.vae = deep_vae(canvas)
        self.scale: float = self.vae.config["scaling_factor"]
        self.freeze()

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Gaussian:
        """float32[P, 3, H, W] in 0..1, H as the canvas wants it; P = 0 runs no network."""
        if len(pictures) == 0:
            none = pictures.new_zeros(0, *self.shape)
            return Gaussian(none, none)
        latents = self.vae.encode((2 * pictures - 1).to(self.vae.dtype), return_dict=False)[0].float() * self.scale
        return Gaussian(latents, torch.zeros_like(latents))

    @torch.no_grad()
    def pictures(self, canvas: Tensor) -> Tensor:
        """float32[K, F, h, w] -> float32[K, 3, H, W] in 0..1."""
        pixels = self.vae.decode((canvas / self.scale).to(self.vae.dtype), return_dict=False)[0].float()
        return ((pixels + 1) / 2).clamp(0, 1)


def canvas_encoder(canvas: Pixels | Latents | DeepLatents) -> CanvasEncoder | DeepCanvas:
    """The leaf of a canvas."""
    return DeepCanvas(canvas) if isinstance(canvas, DeepLatents) else CanvasEncoder(canvas)


def deep_vae(canvas: DeepLatents) -> AutoencoderDC:
    """The autoencoder of a canvas; ValueError where its latents are not what the config says."""
    sizes = canvas.vae if isinstance(canvas.vae, DeepVae) else pretrained.planned(canvas.vae)
    if isinstance(sizes, DeepVae):
        return random_deep_vae(sizes)
    assert isinstance(canvas.vae, Pretrained)
    vae = pretrained.deep_vae(canvas.vae, canvas.subfolder)
    found = (vae.config["latent_channels"], 2 ** (len(vae.config["encoder_block_out_channels"]) - 1))
    if found != (canvas.channels, canvas.factor):
        raise ValueError(f"{canvas.vae.path}: channels and factor of its latents are {found}: set them so")
    return vae


def random_deep_vae(sizes: DeepVae) -> AutoencoderDC:
    """An autoencoder whose weights are a function of `sizes.seed`; the global generator is left as it was."""
    blocks = tuple("EfficientViTBlock" if attends else "ResBlock" for attends in sizes.attends)
    scales = tuple((5,) if attends else () for attends in sizes.attends)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(sizes.seed)
        return AutoencoderDC(
            latent_channels=sizes.latent_channels,
            attention_head_dim=sizes.head_width,
            encoder_block_types=blocks,  # pyright: ignore[reportArgumentType]
            decoder_block_types=blocks,  # pyright: ignore[reportArgumentType]
            encoder_block_out_channels=sizes.channels,
            decoder_block_out_channels=sizes.channels,
            encoder_layers_per_block=sizes.encoder_layers,
            decoder_layers_per_block=sizes.decoder_layers,
            encoder_qkv_multiscales=scales,
            decoder_qkv_multiscales=scales,
            upsample_block_type="interpolate",
            downsample_block_type="conv",
            scaling_factor=sizes.scale,
        )
