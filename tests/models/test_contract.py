"""What holds for every architecture: one test each, over all of them, tiny and on the CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import tiny_parts as parts
import torch
from PIL import Image
from torch import Tensor

from models.configs import LLaVAFusion, LMFusion, MetaMorph, MetaQuery, Transfusion, Visualizer
from models.interface import Architecture, Asked, Batch, Draw
from models.layout import Slot
from models.parts import Lora
from models.sequence import batched, sides
from models.views import Cut

Chat = tuple[list[tuple[str, list[str | int]]], str]

MIXTURES: dict[str, list[list[Chat]]] = {
    "understanding": [[([("user", [0, "What?"]), ("assistant", ["A dog"])], "image_qa")]],
    "generation": [[([("user", ["a cat"]), ("assistant", [1])], "text_to_image")]],
    "text": [[([("user", ["Hi"]), ("assistant", ["Hello"])], "text_qa")]],
    "editing": [[([("user", [0, "redder"]), ("assistant", [1])], "image_editing")]],
    "mixed": [
        [
            ([("user", [0, "What?"]), ("assistant", ["A dog"])], "image_qa"),
            ([("user", ["a cat"]), ("assistant", [1])], "text_to_image"),
        ],
        [([("user", [2, "redder"]), ("assistant", [3])], "image_editing")],
    ],
    "nothing": [[]],
}
IMAGES = [
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)) for number in range(4)
]


@dataclass(frozen=True)
class Case:
    """An architecture's config, and the patterns of whose tasks it learns nothing: a mixture of them is refused."""

    config: Any
    deaf: tuple[str, ...] = ()


CASES = {
    "metamorph": Case(MetaMorph(backbone=parts.LLAMA, vision=parts.SIGLIP, grid=2)),
    "visualizer": Case(
        Visualizer(vision=parts.SIGLIP, decoder=parts.STABLE, grid=2, projector_width=16, condition_dropout=0.0),
        deaf=("text",),
    ),
    "transfusion": Case(
        Transfusion(backbone=parts.LLAMA, canvas=parts.PIXELS, coder=parts.UNET_CODER, condition_dropout=0.0)
    ),
    "lmfusion": Case(
        LMFusion(backbone=parts.LLAMA, canvas=parts.PIXELS, coder=parts.UNET_CODER, condition_dropout=0.0)
    ),
    "lmfusion with LoRA": Case(
        LMFusion(
            backbone=parts.LLAMA,
            canvas=parts.PIXELS,
            coder=parts.UNET_CODER,
            condition_dropout=0.0,
            text_rate=0.1,
            lora=tuple(
                Lora(part=part, rank=2, alpha=4.0, targets=("q_proj", "down_proj")) for part in ("backbone", "tower")
            ),
        )
    ),
    "llavafusion": Case(
        LLaVAFusion(backbone=parts.LLAVA_NEXT, canvas=parts.PIXELS, coder=parts.UNET_CODER, condition_dropout=0.0)
    ),
    "metaquery": Case(
        MetaQuery(
            backbone=parts.QWEN,
            decoder=parts.SANA,
            connector=parts.CONNECTOR,
            queries=5,
            condition_dropout=0.0,
            pixels=(64 * 4, 64 * 12),
            system="",
        ),
        deaf=("understanding", "text"),
    ),
    # the same of a second family: whatever takes `inputs_embeds`, whatever reads `encoder_hidden_states`
    "metamorph of qwen2": Case(MetaMorph(backbone=parts.QWEN2, vision=parts.SIGLIP, grid=2, head="mlp")),
    "transfusion of qwen2": Case(
        Transfusion(backbone=parts.QWEN2, canvas=parts.PIXELS, coder=parts.LINEAR_CODER, condition_dropout=0.0)
    ),
    "metaquery of llava": Case(
        MetaQuery(
            backbone=parts.LLAVA_ONEVISION,
            decoder=parts.STABLE,
            connector=parts.CONNECTOR,
            queries=5,
            condition_dropout=0.0,
            system="",
        ),
        deaf=("understanding", "text"),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def batch_of(config: Any, rows: list[list[Chat]]) -> Batch:
    layout = config.layout()
    sizes = [image.size for image in IMAGES]
    laid = [[layout.lay_out(chat, task=task, key="k", sizes=sizes) for chat, task in row] for row in rows]

    def picture(row: int, number: int, slot: Slot) -> tuple[Cut, tuple[int, int]]:
        image = IMAGES[slot.picture]
        return {"seen": config.seen, "drawn": config.drawn}[slot.view].cut(image), image.size

    return batched(laid, picture, sides=sides(config.seen, config.drawn), length=4)[0]


def keyed(offset: int = 0) -> Draw:
    """A generator per purpose and picture; `offset` pictures come before."""

    def draw(purpose: str, index: int) -> torch.Generator:
        digest = hashlib.sha256(f"{purpose}/{index + offset}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    return draw


def sums(architecture: Architecture, batch: Batch, draw: Draw | None = None) -> dict[str, Tensor]:
    return dict(architecture.module(batch, architecture.encode(batch), draw or keyed()).sums)


@pytest.mark.parametrize(
    ("case", "pattern"),
    [(name, pattern) for name, case in CASES.items() for pattern in MIXTURES if pattern not in case.deaf],
    indirect=["case"],
)
def test_losses_are_finite_and_every_trained_parameter_gets_a_gradient(case: Case, pattern: str) -> None:
    architecture = case.config.build()
    batch = batch_of(case.config, MIXTURES[pattern])
    found, counts = sums(architecture, batch), architecture.counts(batch)
    assert found.keys() == counts.keys() == dict(architecture.weights).keys()
    assert all(value.isfinite() and (counts[name] > 0 or value == 0) for name, value in found.items())
    torch.stack(list(found.values())).sum().backward()
    for name, parameter in architecture.module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name


def test_frozen_bytes_never_change_under_weight_decay_and_trained_ones_do(case: Case) -> None:
    architecture = case.config.build()
    batch = batch_of(case.config, MIXTURES["mixed"])
    before = {name: parameter.detach().clone() for name, parameter in architecture.module.named_parameters()}
    leaf = {name: tensor.clone() for name, tensor in architecture.encoder.state_dict().items()}
    trained = [parameter for parameter in architecture.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack(list(sums(architecture, batch).values())).sum().backward()
        optimizer.step()
    for name, parameter in architecture.module.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    for name, tensor in architecture.encoder.state_dict().items():
        assert torch.equal(tensor, leaf[name]), name


def test_two_records_in_a_row_learn_as_they_do_apart(case: Case) -> None:
    architecture = case.config.build()
    chats = [MIXTURES["generation"][0][0], MIXTURES["editing"][0][0]]
    together = sums(architecture, batch_of(case.config, [chats]))
    before, apart = 0, []
    for chat in chats:
        batch = batch_of(case.config, [[chat]])
        apart.append(sums(architecture, batch, keyed(before)))
        before += len(batch.drawn)
    for name, value in together.items():
        torch.testing.assert_close(value, apart[0][name] + apart[1][name], rtol=1e-4, atol=1e-4)


def test_what_every_target_lost_adds_up_and_is_told_of_its_own_document(case: Case) -> None:
    architecture = case.config.build()
    rows = MIXTURES["mixed"]
    batch = batch_of(case.config, rows)
    losses, counts = architecture.module(batch, architecture.encode(batch), keyed()), architecture.counts(batch)
    assert losses.each.keys() == losses.sums.keys()
    for name, each in losses.each.items():
        assert len(each.loss) == len(each.row) == len(each.document) == counts[name] > 0
        assert each.loss.dtype == torch.float32 and not each.loss.requires_grad
        torch.testing.assert_close(each.loss.sum(), losses.sums[name].detach())
    before = 0
    for row, chats in enumerate(rows):
        for number, chat in enumerate(chats, start=1):
            alone = batch_of(case.config, [[chat]])
            for name, value in sums(architecture, alone, keyed(before)).items():
                each = losses.each[name]
                own = each.loss[(each.row == row) & (each.document == number)].sum()
                torch.testing.assert_close(own, value.detach(), rtol=1e-4, atol=1e-4)
            before += len(alone.drawn)


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if "text" not in case.deaf], indirect=True)
def test_what_draws_is_left_out_where_no_rank_has_a_picture_and_text_is_learned_as_beside_a_phantom(case: Case) -> None:
    architecture = case.config.build()
    batch = batch_of(case.config, MIXTURES["text"])
    trained = {name: p for name, p in architecture.module.named_parameters() if p.requires_grad}
    losses, gradients = [], []
    for draws in (True, False):
        found = sums(architecture, replace(batch, draws=draws))
        torch.stack(list(found.values())).sum().backward()
        losses.append(found)
        gradients.append({name: p.grad for name, p in trained.items() if p.grad is not None})
        architecture.module.zero_grad(set_to_none=True)
    left_out = gradients[0].keys() - gradients[1].keys()
    assert left_out >= {name for name in trained if name.startswith(("coder.", "tower."))}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1].get(name, torch.zeros_like(gradient)), gradient, rtol=1e-4, atol=1e-5)
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value, rtol=1e-4, atol=1e-4)


def test_losses_do_not_depend_on_padding(case: Case) -> None:
    architecture = case.config.build()
    chat = MIXTURES["generation"][0]
    alone, beside = (batch_of(case.config, rows) for rows in ([chat], [chat, []]))
    for name, value in sums(architecture, alone).items():
        torch.testing.assert_close(value, sums(architecture, beside)[name], rtol=1e-4, atol=1e-4)


def test_a_saved_state_gives_equal_outputs(case: Case) -> None:
    first = case.config.build()
    other = replace(case.config, seed=1).build()
    batch = batch_of(case.config, MIXTURES["mixed"])
    other.module.load_state_dict(first.module.state_dict())
    found, again = sums(first, batch), sums(other, batch)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_a_build_is_a_function_of_its_config_and_leaves_the_global_generator_alone(case: Case) -> None:
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    first, second = case.config.build(), case.config.build()
    assert torch.rand(()) == expected
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name


def test_pictures_are_reproducible_from_a_seed(case: Case) -> None:
    if isinstance(case.config, Visualizer):
        with pytest.raises(ValueError, match="answers no prompts"):
            case.config.build().answer([], [], Asked(), task="text_to_image", key="k")
        return
    architecture = case.config.build()
    asked = Asked(answer="picture", steps=3, guidance=2.0, seed=7)
    turns = [("user", (0, "redder"))]
    first, again = (
        architecture.answer(turns, IMAGES[:1], asked, task="image_editing", key="k").parts[0] for _ in range(2)
    )
    assert isinstance(first, Tensor) and first.isfinite().all() and torch.equal(first, again)
    if not isinstance(case.config, MetaMorph):  # it predicts tokens greedily
        other = architecture.answer(turns, IMAGES[:1], replace(asked, seed=8), task="image_editing", key="k").parts[0]
        assert not torch.equal(first, other)


def test_it_builds_on_the_meta_device(case: Case) -> None:
    with torch.device("meta"):
        architecture = case.config.build()
    assert all(parameter.is_meta for parameter in architecture.module.parameters())
    learned: Callable[[str], Any] = architecture.care
    assert all(learned(name).rate > 0 for name, p in architecture.module.named_parameters() if p.requires_grad)
