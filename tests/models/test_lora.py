"""LoRA in every architecture: nothing changes at first, then its matrices alone learn in their part; merging them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny_parts as parts
import torch
from test_contract import CASES, MIXTURES, batch_of, sums
from torch import Tensor

from models import lora
from models.interface import Architecture
from models.parts import LLAMA_LAYERS, Lora

TARGETS = {  # part -> the ends of the paths of its layers
    "backbone": LLAMA_LAYERS,
    "tower": ("q_proj", "o_proj", "down_proj"),
    "tower.layers.1": ("down_proj",),
    "coder": ("to_q", "conv1"),
    "decoder": ("to_q", "to_k", "to_v", "to_out.0"),
    "decoder.network": ("conv1", "attn2.to_q"),
    "connector": ("queries", "gate_proj"),
    "adapter": ("0", "2"),
}
PLACES = [
    ("metamorph", {}, ("backbone",)),
    ("metamorph", {"trained": "adapter"}, ("adapter",)),
    ("visualizer", {}, ("decoder.network",)),
    ("transfusion", {"text_rate": 0.5}, ("backbone", "coder")),
    ("lmfusion", {}, ("tower",)),
    ("lmfusion", {"text_rate": 0.1, "separation": "shallow"}, ("backbone", "tower.layers.1")),
    ("llavafusion", {}, ("tower",)),
    ("metaquery", {"trained": "all"}, ("backbone", "decoder", "connector")),
]


def loras(*names: str) -> tuple[Lora, ...]:
    """One of rank 3 for each of these parts."""
    return tuple(Lora(part=name, rank=3, alpha=6.0, targets=TARGETS[name]) for name in names)


def trained(architecture: Architecture, config: Any, steps: int = 3) -> None:
    """Some steps of AdamW with weight decay."""
    batch = batch_of(config, MIXTURES["mixed"])
    learning = [parameter for parameter in architecture.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack(list(sums(architecture, batch).values())).sum().backward()
        optimizer.step()


def held(architecture: Architecture) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in architecture.module.state_dict().items()}


@pytest.mark.parametrize(("name", "changed", "names"), PLACES)
def test_it_changes_nothing_at_first_then_its_matrices_alone_learn_and_merged_they_are_the_model(
    name: str, changed: dict[str, Any], names: tuple[str, ...]
) -> None:
    without = replace(CASES[name].config, **changed)
    config = replace(without, lora=loras(*names))
    plain, architecture = without.build(), config.build()
    batch = batch_of(config, MIXTURES["mixed"])
    first = sums(architecture, batch)
    for modality, value in sums(plain, batch).items():
        assert torch.equal(value, first[modality])

    before = held(architecture)
    trained(architecture, config)
    for path, parameter in architecture.module.named_parameters():
        inside = any(path.startswith(f"{part}.") for part in names)
        if inside:
            assert parameter.requires_grad == ("lora_" in path), path
        else:
            assert parameter.requires_grad == plain.module.get_parameter(path).requires_grad, path
        assert torch.equal(parameter, before[path]) != parameter.requires_grad, path

    learned = sums(architecture, batch)
    lora.merge(architecture.module)
    assert held(architecture).keys() == held(plain).keys()
    for modality, value in sums(architecture, batch).items():
        torch.testing.assert_close(value, learned[modality], rtol=1e-4, atol=1e-4)
    assert max(abs(float((value - first[modality]).detach())) for modality, value in learned.items()) > 1e-2
    plain.module.load_state_dict(architecture.module.state_dict())  # the same names and shapes


def test_matrices_have_the_rate_of_what_they_stand_for_and_decay_as_it_does() -> None:
    config = replace(CASES["transfusion"].config, text_rate=0.25, lora=loras("backbone"))
    architecture = config.build()
    cares = {
        architecture.care(name)
        for name, parameter in architecture.module.named_parameters()
        if "lora_" in name and parameter.requires_grad
    }
    assert [(care.rate, care.decay) for care in cares] == [(0.25, True)]


def test_matrices_are_a_function_of_seed_and_part() -> None:
    config = replace(CASES["lmfusion"].config, text_rate=0.1, lora=loras("tower"))
    name = "tower.layers.0.self_attn.q_proj.lora_A.default.weight"
    alone = config.build()
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    both = replace(config, lora=loras("backbone", "tower")).build()
    assert torch.rand(()) == expected
    other = replace(config, seed=1).build()
    assert torch.equal(alone.module.get_parameter(name), both.module.get_parameter(name))
    assert not torch.equal(alone.module.get_parameter(name), other.module.get_parameter(name))


def test_weights_without_lora_find_their_places_in_a_module_with_it() -> None:
    without = CASES["metamorph"].config
    full, begun = replace(without, seed=1).build(), replace(without, lora=loras("backbone")).build()
    found = lora.placed(full.module.state_dict(), begun.module)
    assert begun.module.load_state_dict(found, strict=False).unexpected_keys == []
    batch = batch_of(without, MIXTURES["mixed"])
    expected = sums(full, batch)
    assert all(torch.equal(value, expected[name]) for name, value in sums(begun, batch).items())
    assert lora.placed(begun.module.state_dict(), begun.module).keys() == begun.module.state_dict().keys()


def test_a_part_of_a_part_may_have_one_and_the_rest_of_it_learns_as_before() -> None:
    config = replace(
        CASES["metamorph"].config,
        lora=(Lora(part="backbone.model.layers.1.mlp", rank=2, alpha=2.0, targets=("up_proj",)),),
    )
    module = config.build().module
    learning = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert "backbone.model.layers.1.self_attn.q_proj.weight" in learning
    assert {name.removeprefix("backbone.model.layers.1.mlp.") for name in learning if ".1.mlp." in name} == {
        "up_proj.lora_A.default.weight",
        "up_proj.lora_B.default.weight",
    }


@pytest.mark.parametrize(
    ("name", "changed", "refused", "words"),
    [
        ("metamorph", {}, [("tongue", "q_proj")], "no part 'tongue' for a LoRA: name one of backbone, adapter, head"),
        ("metamorph", {"trained": "adapter"}, [("backbone", "q_proj")], "'backbone' does not learn"),
        ("lmfusion", {}, [("backbone", "q_proj")], "'backbone' does not learn"),
        ("lmfusion", {"separation": "none"}, [("tower", "q_proj")], "'tower' does not learn"),
        ("metaquery", {}, [("backbone", "q_proj")], "'backbone' does not learn"),
        ("metamorph", {}, [("backbone", "q_prj")], "'backbone' has no layer 'q_prj'"),
        ("metamorph", {}, [("backbone", "proj")], "'backbone' has no layer 'proj'"),
        ("metamorph", {}, [("head", "head")], "'head' has no layer 'head'"),
        ("metamorph", {}, [("backbone", "embed_tokens")], r"backbone\.model\.embed_tokens is a Embedding: .* linear"),
        ("metamorph", {}, [("backbone", "self_attn")], r"self_attn is a LlamaAttention: .* linear layers and conv"),
        ("metamorph", {"backbone": replace(parts.LLAMA, tied=True)}, [("backbone", "lm_head")], "shares its weights"),
        ("metamorph", {}, [("backbone", "q_proj"), ("backbone", "k_proj")], "'backbone' has two LoRAs"),
        ("metamorph", {}, [("backbone", "q_proj"), ("backbone.model", "k_proj")], "'backbone' has two LoRAs"),
        ("metamorph", {}, [("backbone.model", "q_proj"), ("backbone", "k_proj")], "'backbone.model' has two LoRAs"),
    ],
)
def test_a_lora_that_fits_nowhere_is_refused(
    name: str, changed: dict[str, Any], refused: list[tuple[str, str]], words: str
) -> None:
    given = tuple(Lora(part=part, rank=2, alpha=2.0, targets=(target,)) for part, target in refused)
    config = replace(CASES[name].config, **changed, lora=given)
    with pytest.raises(ValueError, match=words) as caught, torch.device("meta"):
        config.build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"alpha": 0.0}, {"alpha": -1.0}, {"part": ""}, {"targets": ()}, {"targets": ("q_proj", "")}]
)
def test_a_lora_of_nothing_is_refused_when_it_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Lora\.(rank|alpha)=.* must be|name the part"):
        Lora(**{"part": "backbone", "rank": 2, "alpha": 2.0, "targets": ("q_proj",)} | wrong)
