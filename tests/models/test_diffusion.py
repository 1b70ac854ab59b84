"""Noise put on and taken off, against the papers' formulas; and that a draw is a function of its picture alone.

# P pictures, [F, h, w] a canvas
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from models.diffusion import (
    COSINE,
    STABLE_DIFFUSION,
    TIMESTEPS,
    Prediction,
    ancestral,
    at_least_one,
    chances,
    denoised,
    noising,
    normal,
    sampling,
    sought,
    starting_noise,
    timesteps,
)
from models.interface import Draw


def alphas(schedule: dict[str, Any]) -> Tensor:
    """The signal's share of the variance at each timestep: float64[1000], from the papers' betas."""
    if schedule is COSINE:  # Nichol & Dhariwal, equation 17
        level = [math.cos((step / TIMESTEPS + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(TIMESTEPS + 1)]
        betas = torch.tensor([min(1 - level[t + 1] / level[t], 0.999) for t in range(TIMESTEPS)], dtype=torch.float64)
    else:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(dim=0)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SCHEDULES = pytest.mark.parametrize("schedule", [COSINE, STABLE_DIFFUSION], ids=["cosine", "stable-diffusion"])
PREDICTIONS = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])


@SCHEDULES
@PREDICTIONS
def test_noise_is_added_and_sought_by_the_papers_formulas(schedule: dict[str, Any], prediction: Prediction) -> None:
    canvas, noise = random(6, 3, 4, 4, seed=0), random(6, 3, 4, 4, seed=1)
    timestep = torch.tensor([0, 1, 250, 500, 998, 999])
    share = alphas(schedule)[timestep][:, None, None, None]
    scheduler = noising(schedule, prediction)
    noised = scheduler.add_noise(canvas, noise, timestep)  # pyright: ignore[reportArgumentType]
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(noised, share.sqrt() * canvas + (1 - share).sqrt() * noise, **close)
    expected = noise if prediction == "epsilon" else share.sqrt() * noise - (1 - share).sqrt() * canvas
    torch.testing.assert_close(sought(scheduler, canvas, noise, timestep), expected, **close)


def test_the_cosine_schedule_is_diffusers_ddpm_with_cosine_betas() -> None:
    ours, theirs = noising(COSINE, "epsilon"), DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert ours.config["num_train_timesteps"] == theirs.config["num_train_timesteps"] == 1000


def test_timesteps_stay_below_their_limits_and_are_uniform(draw: Draw) -> None:
    limits = [0, 1, 10, 500, 1000] * 2000
    found = timesteps(limits, draw)
    assert found.dtype == torch.int64 and found.shape == (10_000,)
    none, one, few, half, whole = found.view(2000, 5).T
    assert not none.any() and not one.any()
    counts = torch.bincount(few, minlength=10)
    assert len(counts) == 10 and 140 < counts.min() <= counts.max() < 260
    for drawn, limit in ((half, 500), (whole, 1000)):
        assert drawn.max() < limit
        tenths = torch.bincount(drawn // (limit // 10), minlength=10)
        assert len(tenths) == 10 and 140 < tenths.min() <= tenths.max() < 260


def test_chances_are_uniform(draw: Draw) -> None:
    found = chances(4000, "condition", draw)
    assert found.dtype == torch.float32 and found.shape == (4000,)
    counts = torch.histc(found, bins=10, min=0, max=1)
    assert 320 < counts.min() <= counts.max() < 480 and counts.sum() == 4000


def test_noise_is_standard_normal_and_like_the_canvas(draw: Draw) -> None:
    noise = normal(torch.zeros(50, 3, 16, 16), "noise", draw)
    assert abs(float(noise.mean())) < 0.02 and 0.98 < float(noise.std()) < 1.02
    assert normal(torch.zeros(2, 4, 3, 3, dtype=torch.bfloat16), "noise", draw).dtype == torch.bfloat16


DRAWS: dict[str, Callable[[int, Draw], Tensor]] = {
    "normal": lambda count, draw: normal(torch.zeros(count, 3, 4, 4), "noise", draw),
    "timesteps": lambda count, draw: timesteps([1000] * count, draw),
    "chances": lambda count, draw: chances(count, "condition", draw),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_a_draw_depends_on_its_index_alone(kind: str, draw: Draw) -> None:
    asked: list[int] = []

    def shifted(purpose: str, index: int) -> torch.Generator:
        asked.append(index)
        return draw(purpose, index + 3)

    before = torch.get_rng_state()
    whole = DRAWS[kind](8, draw)
    assert torch.equal(DRAWS[kind](5, draw), whole[:5])
    assert torch.equal(DRAWS[kind](5, shifted), whole[3:])
    assert asked == list(range(5))
    assert len(whole.flatten(1).unique(dim=0) if whole.dim() > 1 else whole.unique()) > 6  # not one for all
    assert DRAWS[kind](0, draw).shape == (0, *whole.shape[1:])
    assert torch.equal(before, torch.get_rng_state())


def test_another_limit_changes_nothing_of_the_other_pictures(draw: Draw) -> None:
    assert timesteps([1000, 500, 1000], draw)[2] == timesteps([0, 0, 1000], draw)[2]


def test_where_there_is_none_there_is_one_phantom_of_zeros() -> None:
    assert torch.equal(at_least_one(torch.ones(0, 3, 2)), torch.zeros(1, 3, 2))
    some = torch.ones(2, 3)
    assert at_least_one(some) is some
    assert at_least_one(torch.zeros(0, dtype=torch.bool)).tolist() == [False]


def test_where_a_picture_starts_is_a_function_of_seed_and_index() -> None:
    first = starting_noise((3, 4, 4), 1, 0)
    assert torch.equal(first, starting_noise((3, 4, 4), 1, 0))
    assert not torch.equal(first, starting_noise((3, 4, 4), 1, 1))
    assert not torch.equal(first, starting_noise((3, 4, 4), 2, 0))
    seeds = {sampling(seed, index, purpose).initial_seed() for seed in (0, 1) for index in (0, 1) for purpose in "ab"}
    assert len(seeds) == 8
    assert sampling(3, 1, "paint").initial_seed() == 0x77E7220D097C60  # sha256 of paint/3/1, on every machine


def knows(clean: Tensor, schedule: dict[str, Any], prediction: Prediction) -> Callable[[Tensor, Tensor], Tensor]:
    """A predictor that knows the clean canvas, and tells the noise that stands between it and what it is shown."""
    share = alphas(schedule)

    def predict(canvas: Tensor, timestep: Tensor) -> Tensor:
        assert timestep.shape == () and timestep.dtype == torch.int64
        here = share[timestep]
        noise = (canvas - here.sqrt() * clean) / (1 - here).sqrt()
        return (noise if prediction == "epsilon" else here.sqrt() * noise - (1 - here).sqrt() * clean).float()

    return predict


@SCHEDULES
@PREDICTIONS
@pytest.mark.parametrize("bound", [None, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_denoising_by_ddim_keeps_to_the_line_between_canvas_and_noise(
    schedule: dict[str, Any], prediction: Prediction, bound: float | None, steps: int
) -> None:
    """Where `predict` tells the true noise, what is left of it is that of timestep 0, and the canvas is the one."""
    clean, noise = random(2, 3, 4, 4, seed=2).clamp(-1, 1), random(2, 3, 4, 4, seed=3)
    share = alphas(schedule)
    first = (steps - 1) * (TIMESTEPS // steps) + 1
    start = (share[first].sqrt() * clean + (1 - share[first]).sqrt() * noise).float()
    predict = knows(clean, schedule, prediction)
    found = denoised(predict, start, schedule=schedule, prediction=prediction, steps=steps, bound=bound)
    left = (share[0].sqrt() * clean + (1 - share[0]).sqrt() * noise).float()
    torch.testing.assert_close(found, left, rtol=0, atol=5e-3)
    assert (found - clean).abs().max() < 0.15  # at most 4 standard deviations of the noise at timestep 0


@PREDICTIONS
@pytest.mark.parametrize("steps", [2, 20])
def test_ancestral_sampling_finds_the_canvas_whatever_it_starts_from(prediction: Prediction, steps: int) -> None:
    clean = random(1, 3, 4, 4, seed=4).clamp(-1, 1)
    before = torch.get_rng_state()
    found = ancestral(
        knows(clean, COSINE, prediction),
        random(1, 3, 4, 4, seed=5),
        schedule=COSINE,
        prediction=prediction,
        steps=steps,
        bound=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(found, clean, rtol=0, atol=2e-3)
    assert torch.equal(before, torch.get_rng_state())


def test_ancestral_sampling_puts_on_noise_of_its_generator_and_stays_within_its_bound() -> None:
    def sampled(seed: int) -> Tensor:
        return ancestral(
            lambda canvas, timestep: 0.5 * canvas,
            random(1, 3, 4, 4, seed=6),
            schedule=COSINE,
            prediction="epsilon",
            steps=10,
            bound=0.25,
            generator=torch.Generator().manual_seed(seed),
        )

    assert torch.equal(sampled(0), sampled(0))
    assert not torch.allclose(sampled(0), sampled(1), atol=0.01)
    assert sampled(0).abs().max() <= 0.25
