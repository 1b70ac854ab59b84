"""LMFusion: the text is what it was, every token takes one tower, and with equal towers it is Transfusion.

# B rows, N tokens, T = 4 tokens of a picture
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.configs import LMFusion, Transfusion
from models.interface import Asked, Batch, Draw
from models.lmfusion import LMFusionModule
from models.parts import LinearCoder, Llama, Pixels, UNetCoder
from models.sequence import blocks, sees
from models.transfusion import TransfusionArchitecture, TransfusionModule, picture_tokens
from pipelines.recipes import lmfusion

TINY = LMFusion(
    backbone=Llama(width=32, layers=2, heads=4, kv_heads=2, ffn=48),
    canvas=Pixels(side=16),
    coder=LinearCoder(patch=8),
    condition_dropout=0.0,
)
QWEN = replace(TINY, backbone=Llama(width=32, layers=2, heads=4, kv_heads=2, ffn=48, family="qwen2", tied=True))
UNET = UNetCoder(channels=(8, 16), attends=(False, True), layers_per_block=1, head_width=8, groups=4)
PAIR = ([("assistant", ["a cat", 0])], "caption_pair")
REVERSED = ([("assistant", [1, "a dog"])], "caption_pair")
READ = ([("user", [2, "What?"]), ("assistant", ["A dog"])], "image_qa")
PLAIN = ([("assistant", ["Once upon a time"])], "text_document")

Collate = Callable[..., Batch]
Arguments = tuple[Tensor, Tensor, Tensor, Tensor]


def batch_of(config: Transfusion, collate: Collate, pictures: Tensor, *rows: list[tuple]) -> Batch:
    layout = config.layout()
    laid = [[layout.lay_out(chat, task=task, key="k") for chat, task in row] for row in rows]
    return collate(laid, F.interpolate(pictures, size=(config.drawn.side, config.drawn.side)), 2)


def built(config: Transfusion) -> TransfusionArchitecture:
    architecture = config.build()
    assert isinstance(architecture, TransfusionArchitecture)
    return architecture


def sums(architecture: TransfusionArchitecture, batch: Batch, draw: Draw) -> dict[str, Tensor]:
    return dict(architecture.module(batch, architecture.encode(batch), draw).sums)


def dense(config: LMFusion) -> Transfusion:
    """The same with one tower."""
    values = {field.name: getattr(config, field.name) for field in fields(Transfusion)}
    return Transfusion(**{**values, "text_rate": 1.0})


def arguments(module: TransfusionModule, batch: Batch) -> Arguments:
    """What `run` takes, with noise where pictures stand."""
    picture = picture_tokens(batch)
    inputs = module.embedded(batch.ids).detach()
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    sight = sees(batch.document, blocks(batch, whole=True), torch.zeros_like(picture))
    return torch.where(picture[..., None], noise, inputs), picture, sight, batch.position


def disturbed(module: nn.Module) -> None:
    """Weights that nothing else has, so that a copy is told from its origin."""
    for index, parameter in enumerate(module.parameters()):
        with torch.no_grad():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))


def digest(module: nn.Module) -> str:
    state = sorted(module.state_dict().items())
    return hashlib.sha256(
        b"".join(value.contiguous().view(torch.uint8).numpy().tobytes() for _, value in state)
    ).hexdigest()


@pytest.mark.parametrize("config", [TINY, QWEN], ids=["llama", "qwen2"])
def test_steps_change_no_bit_of_the_text_and_every_part_of_the_pictures(
    config: LMFusion, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    architecture = built(config)
    module = architecture.module
    batch = batch_of(config, collate, pictures, [PAIR, READ], [REVERSED])
    text = batch_of(config, collate, pictures, [PLAIN])

    @torch.no_grad()
    def logits() -> Tensor:
        return module.logits(module.run(*arguments(module, text)))[..., : module.tokenizer_size]

    before, bytes_before = logits(), digest(module.backbone)
    start = {name: value.detach().clone() for name, value in module.named_parameters()}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack(list(sums(architecture, batch, draw).values())).sum().backward()
        optimizer.step()
    assert torch.equal(logits(), before) and digest(module.backbone) == bytes_before
    same = [name for name, value in module.named_parameters() if torch.equal(value, start[name])]
    assert same == [name for name in start if name.startswith("backbone.")]


@pytest.mark.parametrize("config", [TINY, QWEN], ids=["llama", "qwen2"])
def test_text_alone_is_the_backbone_as_transformers_runs_it(
    config: LMFusion, collate: Collate, pictures: Tensor
) -> None:
    module = built(config).module
    disturbed(module.backbone)
    batch = batch_of(config, collate, pictures, [PLAIN])
    length = int((batch.document[0] == 1).sum())
    states = module.run(*arguments(module, batch))
    expected = module.backbone(input_ids=batch.ids[:, :length], use_cache=False).logits
    torch.testing.assert_close(module.logits(states)[:, :length, : module.tokenizer_size], expected)


@pytest.mark.parametrize("separation", ["deep", "shallow", "none"])
@pytest.mark.parametrize("config", [TINY, QWEN], ids=["llama", "qwen2"])
def test_before_training_it_is_dense_transfusion(
    config: LMFusion, separation: Any, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    batch = batch_of(config, collate, pictures, [PAIR, READ], [REVERSED, PLAIN])
    one = sums(built(replace(dense(config))), batch, draw)
    two = sums(built(replace(config, separation=separation)), batch, draw)
    torch.testing.assert_close(two, one)


def test_the_towers_differ_where_pictures_see_their_own(collate: Collate, pictures: Tensor) -> None:
    """What a picture's own part changes: pictures at once, text behind them, never text before."""
    for part in ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp", None):
        module = built(TINY).module
        assert isinstance(module, LMFusionModule)
        batch = batch_of(TINY, collate, pictures, [READ])
        before = module.run(*arguments(module, batch))
        disturbed(module.tower.layers[0].get_submodule(part) if part else module.tower.norm)
        changed = (module.run(*arguments(module, batch)) != before).any(dim=-1)[0]
        start, end = int(batch.drawn.start[0]), int(batch.drawn.start[0]) + 4
        length = int((batch.document[0] == 1).sum())
        assert not changed[:start].any() and changed[start:end].all()
        assert bool(changed[end:length].all()) == (part is not None)


def test_every_token_runs_through_one_tower_at_the_cost_of_the_dense_model(collate: Collate, pictures: Tensor) -> None:
    batch = batch_of(TINY, collate, pictures, [PAIR, READ], [REVERSED, PLAIN])
    counted = []
    for config in (TINY, dense(TINY)):
        module = built(config).module
        given = arguments(module, batch)
        with FlopCounterMode(display=False) as counter:
            module.run(*given)
        counted.append(counter.get_total_flops())
    assert counted[0] == pytest.approx(counted[1], rel=0.01)

    module = built(TINY).module
    rows: dict[str, int] = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and name.endswith("_proj"):
            part.register_forward_hook(lambda _, given, __, name=name: rows.update({name: len(given[0])}))
    module.run(*arguments(module, batch))
    drawn = int(picture_tokens(batch).sum())
    assert {rows[name] for name in rows if name.startswith("tower.")} == {drawn}
    assert {rows[name] for name in rows if name.startswith("backbone.")} == {batch.ids.numel() - drawn}
    assert len(rows) == 2 * 2 * 7  # towers, layers, matrices of a layer


def test_gradients_reach_the_first_layer_through_the_frozen_text(
    collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    """A caption after its picture teaches the pictures' tower by attention alone."""
    architecture = built(TINY)
    sums(architecture, batch_of(TINY, collate, pictures, [READ]), draw)["text"].backward()
    gradients = {name: parameter.grad for name, parameter in architecture.module.named_parameters()}
    for name in ("self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj", "input_layernorm"):
        gradient = gradients[f"tower.layers.0.{name}.weight"]
        assert gradient is not None and gradient.any(), name
    assert not [name for name in gradients if name.startswith("backbone.") and gradients[name] is not None]


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        QWEN,
        replace(TINY, separation="shallow", text_rate=0.1),
        replace(TINY, coder=UNET),
        replace(TINY, separation="none"),
    ],
    ids=["deep", "qwen2", "shallow", "u-net", "none"],
)
@pytest.mark.parametrize("rows", [[[READ]], [[PAIR]], [[PLAIN]], [[]]], ids=["read", "drawn", "text", "none"])
def test_every_trained_parameter_gets_a_gradient_whatever_a_micro_batch_lacks(
    config: LMFusion, rows: list, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    architecture = built(config)
    found = sums(architecture, batch_of(config, collate, pictures, *rows), draw)
    assert all(value.isfinite() for value in found.values())
    torch.stack(list(found.values())).sum().backward()
    for name, parameter in architecture.module.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_pictures_alone_leave_gradients_of_zero_in_a_text_that_learns() -> None:
    module = built(replace(TINY, text_rate=0.1)).module
    assert isinstance(module, LMFusionModule)
    everything = torch.ones(1, 4, dtype=torch.bool)
    sight = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    module.run(torch.randn(1, 4, 32), everything, sight, torch.arange(4)[None]).square().sum().backward()
    layers = module.backbone.model.layers
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in layers.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.tower.parameters())


def test_the_separations_train_different_parts_and_a_text_that_learns_does_so_at_its_rate() -> None:
    def trained(**changed: Any) -> set[str]:
        module = built(replace(TINY, **changed)).module
        return {name for name, parameter in module.named_parameters() if parameter.requires_grad}

    deep, shallow, none = (trained(separation=each) for each in ("deep", "shallow", "none"))
    assert none < shallow < deep
    assert {name.split(".")[0] for name in none} == {"coder", "marks_in", "marks_out"}
    of_layers = {name.split(".")[3] for name in shallow if name.startswith("tower.layers.")}
    assert of_layers == {"post_attention_layernorm", "mlp"} and "tower.norm.weight" in shallow
    assert {name.split(".")[3] for name in deep - shallow} == {"input_layernorm", "self_attn"}
    both = built(replace(TINY, text_rate=0.1))
    assert trained(text_rate=0.1) == set(dict(both.module.named_parameters()))
    assert both.care("backbone.lm_head.weight").rate == 0.1 and both.care("tower.norm.weight").rate == 1.0


@pytest.mark.parametrize("answer", ["picture", "free"])
def test_sampling_with_the_cache_is_running_all_of_it_anew(
    answer: Any, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = built(TINY)
    module = architecture.module
    assert isinstance(module, LMFusionModule)
    disturbed(module.tower)
    with torch.no_grad():
        module.marks_out.normal_(std=3.0, generator=torch.Generator().manual_seed(1))
    given = [Image.fromarray((pictures[0] * 255).byte().permute(1, 2, 0).numpy())]
    asked = Asked(answer=answer, steps=3, guidance=3.0, max_tokens=12)

    def parts() -> tuple[str | Tensor, ...]:
        return architecture.answer([("user", (0, "redder"))], given, asked, task="image_editing", key="k").parts

    cached = parts()
    kept: list[Arguments] = []
    run = module.run

    def anew(inputs: Tensor, picture: Tensor, sight: Tensor, position: Tensor, cache: Any) -> Tensor:
        before, count = int(position[0, 0]), inputs.shape[1]
        if kept:
            old = kept.pop()
            earlier = F.pad(old[2][:, :, :before, :before], (0, count))
            inputs = torch.cat([old[0][:, :before], inputs], dim=1)
            picture = torch.cat([old[1][:, :before], picture], dim=1)
            sight = torch.cat([earlier, sight], dim=2)
            position = torch.cat([old[3][:, :before], position], dim=1)
        kept.append((inputs, picture, sight, position))
        return run(inputs, picture, sight, position)[:, -count:]

    monkeypatch.setattr(module, "run", anew)
    again = parts()
    assert kept and len(cached) == len(again) and any(isinstance(part, Tensor) for part in cached)
    for one, other in zip(cached, again, strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other)
        else:
            assert one == other


@pytest.mark.parametrize("recipe", [lmfusion.half, lmfusion.full, lmfusion.edit])
def test_the_paper_s_model_builds_on_the_meta_device_in_its_sizes(recipe: Callable[[], Any]) -> None:
    with torch.device("meta"):
        module = recipe().architecture.build().module
    assert isinstance(module, LMFusionModule)
    counts = {name: sum(value.numel() for value in part.parameters()) / 1e9 for name, part in module.named_children()}
    assert counts["backbone"] == pytest.approx(8.03, abs=0.01)
    assert counts["tower"] == pytest.approx(8.03 - 2 * 0.525, abs=0.01)  # without embedding and output matrix
    assert counts["coder"] == pytest.approx(0.27, abs=0.005)  # section 4.1
    assert all(parameter.is_meta for parameter in module.parameters())
