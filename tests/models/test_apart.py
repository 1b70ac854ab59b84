"""Features of single pictures, kept in any float type: put together they are the batch's own, without its pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import tiny_parts as parts
import torch
from test_contract import CASES, MIXTURES, batch_of, keyed
from torch import Tensor

from models.interface import Batch, Parts, Pictures
from models.layout import ViewName
from models.metaquery import Encoded
from models.parts import DeepLatents, DeepVae, Latents, Vae

LATENTS = Latents(
    vae=Vae(channels=(8, 8), latent_channels=4, layers_per_block=1, groups=4, scale=0.5), side=32, factor=2
)
DEEP = DeepLatents(
    vae=DeepVae(
        channels=(8, 16),
        attends=(False, False),
        latent_channels=4,
        encoder_layers=(1, 1),
        decoder_layers=(1, 1),
        scale=0.5,
    ),
    side=16,
    factor=2,
    channels=4,
)
METAQUERY = CASES["metaquery"].config
SANA = replace(parts.SANA, canvas=DEEP)
OVER_PIXELS = {name: case.config for name, case in CASES.items()}
OVER_LATENTS = {
    "transfusion": replace(OVER_PIXELS["transfusion"], canvas=LATENTS),
    "lmfusion": replace(OVER_PIXELS["lmfusion"], canvas=LATENTS),
    "llavafusion": replace(OVER_PIXELS["llavafusion"], canvas=LATENTS),
    "visualizer": replace(OVER_PIXELS["visualizer"], decoder=replace(parts.STABLE, canvas=LATENTS)),
    "metaquery": replace(METAQUERY, decoder=SANA),
}
STILL = {
    f"{condition}, {dropout}": replace(
        METAQUERY, decoder=SANA, condition=condition, trained="connector", condition_dropout=dropout
    )
    for condition in ("last_layer", "random_queries")
    for dropout in (0.0, 0.3)
}
CONFIGS = {
    **{f"{name} over pixels": config for name, config in OVER_PIXELS.items()},
    **{f"{name} over latents": config for name, config in OVER_LATENTS.items()},
    "metaquery with dropout": replace(OVER_LATENTS["metaquery"], condition_dropout=0.3),
    **{f"metaquery, {name}": config for name, config in STILL.items()},
}


def tensors(value: Any) -> Iterator[Tensor]:
    """All in a tuple of tuples; a sequence of features is none of the features that a module is given on-line."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors(item)


def without(batch: Batch, kept: tuple[ViewName, ...]) -> Batch:
    """The same batch as it comes where only the pixels of these views are decoded."""

    def bare(pictures: Pictures) -> Pictures:
        return replace(pictures, pixels=pictures.pixels[:0], tiles=torch.zeros_like(pictures.tiles))

    return replace(
        batch,
        seen=batch.seen if "seen" in kept else bare(batch.seen),
        drawn=batch.drawn if "drawn" in kept else bare(batch.drawn),
    )


def cast(kept: Parts, dtype: torch.dtype) -> Parts:
    return {
        view: [{name: value.to(dtype) for name, value in one.items()} for one in pictures]
        for view, pictures in kept.items()
    }


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> Any:
    return CONFIGS[request.param]


@pytest.mark.parametrize("pattern", ["mixed", "generation", "nothing"])
def test_features_put_together_are_the_batchs_own_and_give_its_losses(config: Any, pattern: str) -> None:
    architecture = config.build()
    batch = batch_of(config, MIXTURES[pattern])
    measured = architecture.measured
    kept = architecture.apart(batch)
    assert set(kept) == set(measured.views)
    bare = without(batch, measured.pixels)
    own, given = architecture.encode(batch), architecture.together(kept, bare)
    if isinstance(given, Encoded) and config.condition_dropout == 0:
        own = own._replace(black=own.seen)  # of which nobody asks
    if getattr(given, "states", None) is None:
        for one, other in zip(tensors(own), tensors(given), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        expected = architecture.module(batch, own, keyed()).sums
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
            given = architecture.together(cast(kept, dtype), bare)
            for name, value in architecture.module(bare, given, keyed()).sums.items():
                torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)


def test_all_that_condition_dropout_may_take_away_is_kept() -> None:
    """The states that a language model which never learns makes of what is left."""
    config = STILL["last_layer, 0.3"]
    architecture = config.build()
    batch = batch_of(config, MIXTURES["mixed"])
    kept = architecture.apart(batch)
    told = [sorted(set(one) - {"mean"}) for one in kept["drawn"]]
    assert told == [["nothing", "words"], ["nothing", "pictures"]]
    given, own = architecture.together(kept, without(batch, ())), architecture.encode(batch)
    nobody = torch.zeros_like(batch.seen.answer)
    found = {}
    for name, hiding, blacked in (
        ("nothing", torch.zeros_like(batch.condition), nobody),
        ("words", batch.condition, nobody),
        ("pictures", torch.zeros_like(batch.condition), ~nobody),
    ):
        found[name], present = architecture.module.states(batch, given, hiding, blacked)
        expected, there = architecture.module.states(batch, own, hiding, blacked)
        assert torch.equal(present, there)
        torch.testing.assert_close(found[name] * present[..., None], expected * there[..., None], rtol=1e-5, atol=1e-6)
    assert len(found["words"][0]) != len(found["nothing"][0]) or not torch.equal(found["words"][0], found["nothing"][0])


def test_black_pictures_are_read_once_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS["metaquery with dropout"]
    architecture = config.build()
    batch = batch_of(config, MIXTURES["editing"] * 3)
    kept, calls, black = architecture.apart(batch), [], architecture.encoder.tower.black

    def counted(seen: Pictures) -> Tensor:
        calls.append(seen.grid.tolist())
        return black(seen)

    monkeypatch.setattr(architecture.encoder.tower, "black", counted)
    for _ in range(2):
        given = architecture.together(kept, without(batch, ()))
        torch.testing.assert_close(given.black, black(batch.seen), rtol=1e-5, atol=1e-6)
    assert len(calls) == 1
