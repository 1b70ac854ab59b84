"""Noise: how it is put on a canvas in training, and how it is taken off again.

# P pictures, R = max(P, 1), [F, h, w] a canvas: [3, H, W] pixels in -1..1, or a VAE's latents

Every draw comes from a generator of its own, keyed by the caller; diffusers' schedulers hold the formulas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from models.interface import Draw

TIMESTEPS = 1000

Prediction = Literal["epsilon", "v_prediction"]

# Stable Diffusion 1.5, scheduler/scheduler_config.json
STABLE_DIFFUSION: dict[str, Any] = {
    "num_train_timesteps": TIMESTEPS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
# Nichol & Dhariwal, arXiv:2102.09672: what Transfusion (section 3) and LMFusion (section 2.2) train with
COSINE: dict[str, Any] = {"num_train_timesteps": TIMESTEPS, "beta_schedule": "squaredcos_cap_v2"}


def noising(schedule: dict[str, Any], prediction: Prediction) -> DDPMScheduler:
    """What noises a canvas and says what is to be predicted: "epsilon" or "v_prediction" (arXiv:2202.00512)."""
    return DDPMScheduler(**schedule, prediction_type=prediction)


def sought(noising: DDPMScheduler, canvas: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """What is to be predicted of a noised canvas: float32[R, F, h, w]."""
    if noising.config["prediction_type"] == "epsilon":
        return noise
    return noising.get_velocity(canvas, noise, timestep)  # pyright: ignore[reportArgumentType]


def normal(like: Tensor, purpose: str, draw: Draw) -> Tensor:
    """Standard normal noise, each picture's from its own generator: float32[P, F, h, w]."""
    noise = torch.zeros_like(like)
    for index, picture in enumerate(noise):
        generator = draw(purpose, index)
        picture.copy_(torch.randn(picture.shape, generator=generator, device=generator.device))
    return noise


def timesteps(limits: list[int], draw: Draw) -> Tensor:
    """A timestep of each picture, uniform below its limit: int64[P] on the CPU; 0 where the limit is 0 (no noise)."""
    drawn = []
    for index, limit in enumerate(limits):
        generator = draw("timestep", index)
        drawn.append(int(torch.randint(max(limit, 1), (), generator=generator, device=generator.device)))
    return torch.tensor(drawn, dtype=torch.int64)


def chances(count: int, purpose: str, draw: Draw) -> Tensor:
    """A number in 0..1 of each picture: float32[P] on the CPU."""
    drawn = []
    for index in range(count):
        generator = draw(purpose, index)
        drawn.append(float(torch.rand((), generator=generator, device=generator.device)))
    return torch.tensor(drawn)


def at_least_one(pictures: Tensor) -> Tensor:
    """The same, or one phantom of zeros where there is none: [P, ...] -> [R, ...]."""
    return pictures if len(pictures) else pictures.new_zeros(1, *pictures.shape[1:])


def starting_noise(shape: tuple[int, ...], seed: int, index: int) -> Tensor:
    """Where picture `index` starts: float32[F, h, w], the same on every machine."""
    return torch.randn(shape, generator=sampling(seed, index, "paint"))


def sampling(seed: int, index: int, purpose: str) -> torch.Generator:
    """The generator of one draw of sampling picture `index`; on the CPU, so the same on every machine."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def ancestral(
    predict: Callable[[Tensor, Tensor], Tensor],
    canvas: Tensor,
    *,
    schedule: dict[str, Any],
    prediction: Prediction,
    steps: int,
    bound: float,
    generator: torch.Generator,
) -> Tensor:
    """A canvas of noise, freed of it by DDPM, which puts fresh noise on after each step: float32[1, F, h, w].

    What errors of an early step leave behind is noise to the next one; DDIM would carry it to the end.

    Args:
        predict: (canvas, timestep int64[]) -> what the model predicts, guidance included, like the canvas.
        steps:   1 to 1000; the papers take 250.
        bound:   the estimate of the clean canvas is kept within it: at the cosine schedule's end it has none.
    """
    sampler = DDPMScheduler(**schedule, prediction_type=prediction, clip_sample=True, clip_sample_range=bound)
    sampler.set_timesteps(steps)
    for timestep in sampler.timesteps:
        predicted = predict(canvas, timestep.to(canvas.device))
        canvas = sampler.step(predicted, int(timestep), canvas, generator=generator, return_dict=False)[0]
    return canvas


def denoised(
    predict: Callable[[Tensor, Tensor], Tensor],
    canvas: Tensor,
    *,
    schedule: dict[str, Any],
    prediction: Prediction,
    steps: int,
    bound: float | None,
) -> Tensor:
    """A canvas of noise, freed of it by DDIM in evenly spaced steps: float32[K, F, h, w].

    Args:
        predict: (canvas, timestep int64[]) -> what the model predicts, guidance included, like the canvas.
        steps:   1 to 1000.
        bound:   the estimate of the clean canvas is kept within it: 1 for pixels; None for latents without bounds.
    """
    sampler = DDIMScheduler(
        **schedule,
        prediction_type=prediction,
        clip_sample=bound is not None,
        clip_sample_range=bound or 1.0,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    sampler.set_timesteps(steps)
    for timestep in sampler.timesteps:
        predicted = predict(canvas, timestep.to(canvas.device))
        canvas = sampler.step(predicted, int(timestep), canvas, return_dict=False)[0]
    return canvas
