"""Who sees whom, from outside: what comes later changes nothing before it, and a drawn picture sees all of itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny_parts as parts
import torch
from test_contract import CASES, Case, Chat, batch_of, keyed
from torch import Tensor, nn

from models.configs import LLaVAFusion, LMFusion, MetaQuery, Transfusion, Visualizer
from models.interface import Architecture, Batch
from models.parts import LinearCoder

CHAT: list[list[Chat]] = [[([("user", ["Say"]), ("assistant", ["Hello there"])], "text_qa")]]
READING = {name: case for name, case in CASES.items() if not isinstance(case.config, MetaQuery | Visualizer)}


def text_loss(architecture: Architecture, batch: Batch) -> Tensor:
    return architecture.module(batch, architecture.encode(batch), keyed()).sums["text"]


@pytest.mark.parametrize("case", READING.values(), ids=READING)
def test_no_text_sees_later_text(case: Case) -> None:
    architecture = case.config.build()
    batch = batch_of(case.config, CHAT)
    learned = batch.target[0].nonzero()[:, 0]
    early = torch.zeros_like(batch.target)
    early[0, learned[:4]] = True  # "Hell"; what follows is changed
    changed = batch.ids.clone()
    changed[0, learned[4:-1]] = batch.ids[0, learned[0]]
    first = text_loss(architecture, replace(batch, target=early))
    assert torch.equal(first, text_loss(architecture, replace(batch, target=early, ids=changed)))
    everything = text_loss(architecture, batch)
    assert not torch.equal(everything, text_loss(architecture, replace(batch, ids=changed)))


def states_of(module: nn.Module, run: Any) -> Tensor:
    """The last hidden states that a transformer gives while `run` runs."""
    held: list[Tensor] = []
    hook = module.register_forward_hook(lambda *given: held.append(given[-1].last_hidden_state))
    run()
    hook.remove()
    return held[0]


def test_no_query_sees_a_later_one_and_each_sees_the_text_before() -> None:
    config = CASES["metaquery"].config
    architecture: Any = config.build()
    batch = batch_of(config, [[([("user", ["a cat"]), ("assistant", [1])], "text_to_image")]])
    start, tokens = int(batch.drawn.start[0]), int(batch.drawn.tokens[0])
    features = architecture.encode(batch)

    def states() -> Tensor:
        return states_of(architecture.module.backbone, lambda: architecture.module(batch, features, keyed()))[0]

    before = states()
    with torch.no_grad():
        architecture.module.queries[-1] += 1
    after = states()
    last = start + tokens - 1
    assert torch.equal(before[:last], after[:last]) and not torch.equal(before[last], after[last])
    said = int((batch.ids[0] == ord("c")).nonzero()[-1])
    changed = batch.ids.clone()
    changed[0, said] = ord("r")
    batch = replace(batch, ids=changed)
    assert not torch.equal(states()[start], after[start])


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "causal"])
@pytest.mark.parametrize("kind", [Transfusion, LMFusion, LLaVAFusion])
def test_a_picture_s_first_token_sees_its_last_one_unless_attention_is_causal(kind: Any, whole: bool) -> None:
    backbone: Any = parts.LLAVA_NEXT if kind is LLaVAFusion else parts.LLAMA
    config = kind(backbone=backbone, canvas=parts.PIXELS, coder=LinearCoder(patch=8), whole_pictures=whole)
    architecture: Any = config.build()
    batch = batch_of(config, [[([("user", ["a cat"]), ("assistant", [1])], "text_to_image")]])
    held: list[Tensor] = []
    architecture.module.coder.up = lambda tokens, *rest: held.append(tokens) or torch.zeros(1, 3, 16, 16)
    for corner in (0.0, 1.0):
        pixels = batch.drawn.pixels.clone()
        pixels[..., 8:, 8:] = corner
        there = replace(batch, drawn=replace(batch.drawn, pixels=pixels))
        architecture.module(there, architecture.encode(there), keyed())
    assert torch.equal(held[0][0, 0], held[1][0, 0]) != whole
    assert not torch.equal(held[0][0, -1], held[1][0, -1])
