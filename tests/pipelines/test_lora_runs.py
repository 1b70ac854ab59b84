"""Runs with LoRA: they start from runs without it, are sampled with what they started from, and are planned."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import lora
from models.configs import MetaMorph
from models.parts import LLAMA_LAYERS, Llama, Lora, Siglip
from pipelines import checkpoint, parameters, recipe, sample
from pipelines.recipes import metamorph
from pipelines.training import Training

FULL = MetaMorph(
    backbone=Llama(width=32, layers=2, heads=4, kv_heads=2, ffn=48),
    vision=Siglip(picture=32, patch=8, width=16, layers=1, heads=2, ffn=32),
    grid=2,
)
WITH = replace(FULL, lora=(Lora(part="backbone", rank=3, alpha=6.0, targets=LLAMA_LAYERS),))
QUERY = "backbone.model.layers.0.self_attn.q_proj"


def stirred(module: nn.Module, seed: int) -> nn.Module:
    """The same module; all that learns in it has other weights, B of LoRA too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=generator)
    return module


def run(folder: Path, architecture: MetaMorph, module: nn.Module, *, begun: Path | None = None) -> Path:
    """A run's folder as training leaves it: recipe, what it started from, and a checkpoint of what learns."""
    training = Training(**{**vars(metamorph.tiny()), "architecture": architecture})
    learned = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    shapes = {name: tuple(parameter.shape) for name, parameter in learned.items()}
    values: Iterable[Tensor] = learned.values()
    checkpoint.write(folder / "checkpoints" / "step-000005", shapes, values)
    (folder / "recipe.json").write_text(json.dumps({"value": recipe.describe(training), "file": None}))
    if begun is not None:
        (folder / "start.json").write_text(json.dumps({"run": str(begun)}))
    return folder


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return run(tmp_path / "full", FULL, stirred(FULL.build().module, 1))


def test_a_run_with_lora_starts_from_one_without(full: Path) -> None:
    module = WITH.build().module
    told, taken = checkpoint.start_from(full, module)
    weights = checkpoint.weights(full / "checkpoints" / "step-000005")
    assert torch.equal(module.get_parameter(f"{QUERY}.base_layer.weight"), weights[f"{QUERY}.weight"])
    assert torch.equal(module.get_parameter("backbone.model.norm.weight"), weights["backbone.model.norm.weight"])
    matrices = sum("lora_" in name for name, _ in module.named_parameters())
    assert f"{len(weights)} weights taken, {matrices} trained ones begin anew" in told
    assert taken <= module.state_dict().keys()


def test_a_first_stage_that_trained_the_adapter_alone_is_taken_too(tmp_path: Path) -> None:
    first = replace(FULL, trained="adapter")
    earlier = run(tmp_path / "adapter", first, stirred(first.build().module, 2))
    module = WITH.build().module
    checkpoint.start_from(earlier, module)
    weights = checkpoint.weights(earlier / "checkpoints" / "step-000005")
    assert weights.keys() == {"adapter.0.weight", "adapter.0.bias", "adapter.2.weight", "adapter.2.bias", "marks_in"}
    assert all(torch.equal(module.get_parameter(name), tensor) for name, tensor in weights.items())


def test_a_run_with_lora_is_sampled_and_gone_on_from_over_what_it_started_from(tmp_path: Path, full: Path) -> None:
    module = WITH.build().module
    checkpoint.start_from(full, module)
    second = run(tmp_path / "second", WITH, stirred(module, 3), begun=full)
    held = checkpoint.weights(second / "checkpoints" / "step-000005")
    assert not any("base_layer" in name or name.endswith("norm.weight") for name in held)  # what is frozen is not kept

    sampled, later = sample.Run(second).architecture.module, WITH.build().module
    checkpoint.start_from(second, later)
    for name, tensor in module.state_dict().items():
        assert torch.equal(sampled.state_dict()[name], tensor), name
        assert torch.equal(later.state_dict()[name], tensor), name

    lora.merge(sampled)
    low = held[f"{QUERY}.lora_B.default.weight"] @ held[f"{QUERY}.lora_A.default.weight"]
    before = checkpoint.weights(full / "checkpoints" / "step-000005")[f"{QUERY}.weight"]
    torch.testing.assert_close(sampled.get_parameter(f"{QUERY}.weight"), before + 6.0 / 3 * low)


def test_a_run_without_lora_does_not_start_from_one_with_it(tmp_path: Path) -> None:
    earlier = run(tmp_path / "with", WITH, stirred(WITH.build().module, 3))
    with pytest.raises(ValueError, match=r"do not fit this architecture, first .*lora_A"):
        checkpoint.start_from(earlier, FULL.build().module)


def test_the_plan_counts_the_matrices_alone_as_trained() -> None:
    training = metamorph.vpit_lora(rank=128)
    architecture = parameters.built(training)
    table = {part.name: part for part in parameters.parts(architecture.module, architecture.care, "module")}
    of_a_layer = 128 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))  # of q, o; k, v; the MLP
    assert table["backbone"].trained == table["backbone"].decayed == 32 * of_a_layer
    assert table["backbone"].total - table["backbone"].trained == 8_030_261_248  # as published
    assert table["adapter"].trained == table["adapter"].total
