"""The visualizer: its loss against the definition, its draws, its sampler, and Stable Diffusion's folder.

# P pictures, T = 4 tokens of a picture, C channels, K painted pictures
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from models.configs import Visualizer
from models.interface import Batch, Draw, Pictures
from models.parts import Latents, Pixels, Pretrained, Siglip, StableUNet, UNet
from models.visualizer import VisualizerArchitecture, build, paint

TINY = Visualizer(
    vision=Siglip(picture=32, patch=8, width=16, layers=1, heads=2, ffn=32),
    decoder=StableUNet(
        canvas=Pixels(side=16),
        network=UNet(
            picture=16, channels=(8, 16), attends=(True, False), layers_per_block=1, condition_width=12, heads=2
        ),
    ),
    grid=2,
    projector_width=24,
    condition_dropout=0.5,
)

Collate = Callable[..., Batch]


@pytest.fixture(scope="module")
def architecture() -> VisualizerArchitecture:
    return build(TINY)


@pytest.fixture
def batch(collate: Collate, pictures: Tensor) -> Batch:
    """Eight pictures of 16 pixels in two rows."""
    layout = TINY.layout()
    rows = [[layout.lay_out([("user", [i, i + 1])], task="image_qa", key="k")] for i in (0, 2, 4, 6)]
    return collate([rows[0] + rows[1], rows[2] + rows[3]], pictures[:, :, ::2, ::2])


def only(batch: Batch, keep: list[int]) -> Batch:
    """The same batch with some of its pictures."""
    return replace(batch, drawn=Pictures(**{name: value[keep] for name, value in vars(batch.drawn).items()}))


def shown(batch: Batch, pixels: Tensor) -> Batch:
    """The same batch with other pixels of its pictures."""
    return replace(batch, drawn=replace(batch.drawn, pixels=pixels))


def loss(architecture: VisualizerArchitecture, batch: Batch, draw: Draw) -> Tensor:
    return architecture.module(batch, architecture.encode(batch), draw).sums["picture"]


def alphas() -> Tensor:
    """Share of the signal's variance at each timestep, SD 1.5: betas whose roots are evenly spaced."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return (1 - betas).cumprod(dim=0)


def condition_by_hand(architecture: VisualizerArchitecture, tokens: Tensor) -> Tensor:
    """Linear, LayerNorm, ReLU, Linear, LayerNorm."""
    first_w, first_b, norm_w, norm_b, second_w, second_b, last_w, last_b = architecture.module.projector.parameters()
    hidden = F.layer_norm(F.linear(tokens, first_w, first_b), (24,), norm_w, norm_b)
    return F.layer_norm(F.linear(hidden.clamp(min=0), second_w, second_b), (12,), last_w, last_b)


def loss_by_hand(architecture: VisualizerArchitecture, pictures: Tensor, draw: Draw) -> Tensor:
    """Picture by picture, over diffusers' own forward."""
    total = torch.zeros(())
    for index, picture in enumerate(pictures):
        timestep = torch.randint(1000, (), generator=draw("timestep", index))
        condition = condition_by_hand(architecture, architecture.encoder.vision(picture[None]))
        if torch.rand((), generator=draw("condition", index)) < architecture.config.condition_dropout:
            condition = 0 * condition
        share = alphas()[timestep]
        canvas = 2 * F.interpolate(picture[None], (16, 16), mode="bilinear", antialias=True)[0] - 1
        noise = torch.randn(canvas.shape, generator=draw("noise", index))
        noised = share.sqrt() * canvas + (1 - share).sqrt() * noise
        predicted = architecture.module.decoder.network(noised[None], timestep, condition).sample[0]
        velocity = cast(UNet, architecture.config.decoder.network).prediction == "v_prediction"
        sought = share.sqrt() * noise - (1 - share).sqrt() * canvas if velocity else noise
        total = total + ((predicted - sought) ** 2).mean()
    return total


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("pixels", [16, 24])
def test_the_loss_equals_its_definition(batch: Batch, draw: Draw, prediction: str, pixels: int) -> None:
    """Pictures larger than the paint are seen by the encoder as they are, and painted smaller."""
    decoder = replace(TINY.decoder, network=replace(cast(UNet, TINY.decoder.network), prediction=prediction))
    architecture = build(replace(TINY, decoder=decoder))
    batch = shown(batch, F.interpolate(batch.drawn.pixels, (pixels, pixels), mode="bilinear"))
    torch.testing.assert_close(loss(architecture, batch, draw), loss_by_hand(architecture, batch.drawn.pixels, draw))


def test_each_picture_counts_once(architecture: VisualizerArchitecture, batch: Batch) -> None:
    assert architecture.counts(batch) == {"picture": 8}
    assert dict(architecture.weights) == {"picture": 1.0}


def test_draws_belong_to_pictures_so_a_split_batch_has_the_same_loss(
    architecture: VisualizerArchitecture, batch: Batch, draw: Draw
) -> None:
    first = loss(architecture, only(batch, [0, 1, 2]), draw)
    second = loss(architecture, only(batch, [3, 4, 5, 6, 7]), lambda purpose, index: draw(purpose, index + 3))
    torch.testing.assert_close(first + second, loss(architecture, batch, draw))


def test_nothing_is_drawn_from_the_global_generator(
    architecture: VisualizerArchitecture, batch: Batch, draw: Draw
) -> None:
    before = torch.get_rng_state()
    loss(architecture, batch, draw)
    paint(architecture, architecture.encoder.vision(batch.drawn.pixels[:1]), seed=0, steps=1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_dropped_condition_tells_nothing_of_the_picture(batch: Batch, draw: Draw) -> None:
    always, never = build(replace(TINY, condition_dropout=1.0)), build(replace(TINY, condition_dropout=0.0))
    features = always.encoder(batch.drawn.pixels)
    swapped = features._replace(tokens=features.tokens.flip(0))
    for architecture, differs in ((always, False), (never, True)):
        one = architecture.module(batch, features, draw).sums["picture"]
        two = architecture.module(batch, swapped, draw).sums["picture"]
        assert bool(one != two) == differs


def test_the_condition_is_dropped_as_often_as_asked(batch: Batch, draw: Draw) -> None:
    architecture = build(replace(TINY, condition_dropout=0.7))
    dropped: list[Tensor] = []
    architecture.module.decoder.register_forward_pre_hook(
        lambda _, given: dropped.append((given[2] == 0).all(dim=(1, 2)))  # pyright: ignore[reportArgumentType]
    )
    with torch.no_grad():
        loss(architecture, only(batch, [0] * 300), draw)
    assert 0.6 < dropped[0].float().mean() < 0.8


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_every_parameter_gets_a_gradient_with_or_without_pictures(
    batch: Batch, draw: Draw, count: int, dropout: float
) -> None:
    architecture = build(replace(TINY, condition_dropout=dropout))
    total = loss(architecture, only(batch, list(range(count))), draw)
    total.backward()
    gradients = {name: parameter.grad for name, parameter in architecture.module.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)
    if count == 0:
        assert total == 0 and not any(gradient.any() for gradient in gradients.values() if gradient is not None)


def test_the_loss_is_float32_when_the_weights_are_bfloat16(batch: Batch, draw: Draw) -> None:
    architecture = build(TINY)
    exact = loss(architecture, batch, draw)
    architecture.module.to(torch.bfloat16)
    rough = loss(architecture, batch, draw)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=2e-2, atol=0)


def test_the_encoder_is_outside_the_module_and_never_moves(batch: Batch, draw: Draw) -> None:
    architecture = build(TINY)
    before = architecture.encoder.digest()
    optimizer = torch.optim.AdamW(architecture.module.parameters(), lr=0.1)
    loss(architecture, batch, draw).backward()
    optimizer.step()
    assert architecture.encoder.digest() == before
    inside = {id(parameter) for parameter in architecture.module.parameters()}
    assert not inside & {id(parameter) for parameter in architecture.encoder.parameters()}


def test_a_build_is_a_function_of_its_config() -> None:
    first, second, other = TINY.build(), build(TINY), build(replace(TINY, seed=1))
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name
    name = "decoder.network.conv_in.weight"
    assert not torch.equal(first.module.get_parameter(name), other.module.get_parameter(name))


def test_the_noise_in_eight_pictures_is_learned(batch: Batch, draw: Draw) -> None:
    architecture = build(replace(TINY, condition_dropout=0.0))
    features = architecture.encoder(batch.drawn.pixels)
    optimizer = torch.optim.AdamW(architecture.module.parameters(), lr=5e-3)
    errors = []
    for step in range(40):
        drawn = architecture.module(batch, features, lambda purpose, i, step=step: draw(f"{step}/{purpose}", i)).sums
        optimizer.zero_grad()
        (drawn["picture"] / 8).backward()
        optimizer.step()
        errors.append(float(drawn["picture"].detach()) / 8)
    assert sum(errors[:3]) / 3 > 0.9  # noise of variance 1, not predicted at all
    assert sum(errors[-10:]) / 10 < 0.45


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_painting_equals_ddim_by_hand(architecture: VisualizerArchitecture, batch: Batch, guidance: float) -> None:
    tokens = architecture.encoder.vision(batch.drawn.pixels[:2])
    found = paint(architecture, tokens, seed=3, steps=4, guidance=guidance)

    condition = condition_by_hand(architecture, tokens)
    canvas = []
    for index in range(2):
        digest = hashlib.sha256(f"paint/3/{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        canvas.append(torch.randn(3, 16, 16, generator=generator))
    state = torch.stack(canvas)
    for timestep in (751, 501, 251, 1):
        here, there = alphas()[timestep], alphas()[max(timestep - 250, 0)]
        given = architecture.module.decoder.network(state, timestep, condition).sample
        free = architecture.module.decoder.network(state, timestep, torch.zeros_like(condition)).sample
        noise = free + guidance * (given - free)
        clean = ((state - (1 - here).sqrt() * noise) / here.sqrt()).clamp(-1, 1)
        state = there.sqrt() * clean + (1 - there).sqrt() * noise
    torch.testing.assert_close(found, ((state + 1) / 2).clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_painting_is_reproducible_and_follows_its_seed(architecture: VisualizerArchitecture, batch: Batch) -> None:
    tokens = architecture.encoder.vision(batch.drawn.pixels[:2])
    first = paint(architecture, tokens, seed=1, steps=3)
    assert first.shape == (2, 3, 16, 16) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, paint(architecture, tokens, seed=1, steps=3))
    assert not torch.allclose(first, paint(architecture, tokens, seed=2, steps=3), atol=0.01)


def test_a_painted_picture_does_not_depend_on_its_batch_mates(
    architecture: VisualizerArchitecture, batch: Batch
) -> None:
    tokens = architecture.encoder.vision(batch.drawn.pixels[:4])
    together = paint(architecture, tokens, seed=1, steps=5)
    torch.testing.assert_close(together[:1], paint(architecture, tokens[:1], seed=1, steps=5), rtol=0, atol=1e-4)
    others = torch.cat([tokens[:1], tokens[1:].flip(0)])
    torch.testing.assert_close(together[:1], paint(architecture, others, seed=1, steps=5)[:1], rtol=0, atol=1e-4)


def test_no_tokens_paint_no_pictures(architecture: VisualizerArchitecture) -> None:
    assert paint(architecture, torch.zeros(0, 4, 16), seed=0).shape == (0, 3, 16, 16)


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> VisualizerArchitecture:
    """A visualizer over a tiny random UNet and VAE in diffusers' folder layout."""
    folder: Path = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=2,
    ).save_pretrained(folder / "unet")
    sizes: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (4, 4, 4, 4),  # three halvings: 8 pixels a latent
    }
    AutoencoderKL(**sizes, norm_num_groups=2, latent_channels=4, scaling_factor=0.18215).save_pretrained(folder / "vae")
    published = Pretrained(path=str(folder))
    decoder = StableUNet(canvas=Latents(vae=published, side=512, subfolder="vae"), network=published)
    return build(replace(TINY, decoder=decoder, condition_dropout=0.0))


def test_stable_diffusions_leaf_gives_tokens_and_the_latents_gaussian(
    stable_diffusion: VisualizerArchitecture, pictures: Tensor
) -> None:
    leaf = stable_diffusion.encoder
    seen = leaf.train()(pictures)
    assert seen.tokens.shape == (8, 4, 16) and seen.canvas.mean.shape == (8, 4, 64, 64)
    assert leaf.canvas.vae is not None
    painted = F.interpolate(pictures, (512, 512), mode="bilinear", antialias=True)
    gaussian = leaf.canvas.vae.encode(2 * painted - 1, return_dict=False)[0]
    torch.testing.assert_close(seen.canvas.mean, gaussian.mean * 0.18215)
    torch.testing.assert_close(seen.canvas.std, gaussian.std * 0.18215)
    assert not any(parameter.requires_grad for parameter in leaf.parameters())
    assert not any(module.training for module in leaf.modules())
    none = leaf(pictures[:0])
    assert [len(part) for part in (none.tokens, *none.canvas)] == [0, 0, 0]


def test_stable_diffusion_is_tuned_in_its_latents(
    stable_diffusion: VisualizerArchitecture, batch: Batch, pictures: Tensor, draw: Draw
) -> None:
    batch = only(shown(batch, pictures), [0, 1])
    (tokens, (mean, std)), share = stable_diffusion.encoder(batch.drawn.pixels), alphas()
    total = torch.zeros(())
    for index in range(2):
        noise, spread = (torch.randn(4, 64, 64, generator=draw(purpose, index)) for purpose in ("noise", "latent"))
        timestep = torch.randint(1000, (), generator=draw("timestep", index))
        latent = mean[index] + std[index] * spread
        noised = share[timestep].sqrt() * latent + (1 - share[timestep]).sqrt() * noise
        condition = torch.zeros(1, 77, 12)
        condition[:, :4] = condition_by_hand(stable_diffusion, tokens[index][None])
        predicted = stable_diffusion.module.decoder.network(noised[None], timestep, condition).sample[0]
        total = total + ((predicted - noise) ** 2).mean()
    torch.testing.assert_close(loss(stable_diffusion, batch, draw), total)


@pytest.mark.parametrize("count", [0, 2])
def test_stable_diffusion_trains_with_or_without_pictures(
    stable_diffusion: VisualizerArchitecture, batch: Batch, pictures: Tensor, draw: Draw, count: int
) -> None:
    batch = only(shown(batch, pictures), list(range(count)))
    stable_diffusion.module.zero_grad(set_to_none=True)
    loss(stable_diffusion, batch, draw).backward()
    gradients = [parameter.grad for parameter in stable_diffusion.module.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_stable_diffusion_paints_through_its_vae(stable_diffusion: VisualizerArchitecture) -> None:
    tokens = F.normalize(torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    painted = paint(stable_diffusion, tokens, seed=0, steps=1)
    assert painted.shape == (1, 3, 512, 512) and painted.isfinite().all()


def test_more_tokens_than_stable_diffusions_condition_has_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="grid 9 gives 81 tokens, over 77"):
        vision = replace(cast(Siglip, TINY.vision), picture=72)
        published = replace(TINY.decoder, network=Pretrained(path=str(tmp_path)))
        replace(TINY, grid=9, vision=vision, decoder=published).build()
