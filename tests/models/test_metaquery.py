"""MetaQuery: it reads as transformers' models do, leaves them as they are, and paints from what its queries gather.

# B rows, N tokens, P pictures, Q = 5 queries of a drawn picture
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from models.configs import MetaQuery
from models.connector import ConnectorModule
from models.decoders import SanaDecoder, decoder, flowed, random_deep_vae, random_stable_unet, sana
from models.interface import Asked, Batch, Draw
from models.layout import CHATML, LLAMA3, ByteTokenizer, MetaQueryLayout, Slot
from models.metaquery import MetaQueryArchitecture, build, dropped, guided, guided_by
from models.multimodal import places, random_model
from models.parts import (
    Connector,
    DeepLatents,
    DeepVae,
    Latents,
    Llama,
    LlavaOneVision,
    Pixels,
    Pretrained,
    QwenVision,
    QwenVL,
    Sana,
    SanaTransformer,
    Siglip,
    StableUNet,
    UNet,
    Vae,
)
from models.sequence import batched, sides
from models.views import Cut, Patches
from models.vision import random_vae

TEXT = Llama(width=32, layers=2, heads=2, kv_heads=1, ffn=48, family="qwen2", max_positions=1024)
QWEN = QwenVL(
    vision=QwenVision(patch=4, merge=2, window=16, width=16, layers=2, heads=2, ffn=24, whole=(1,)),
    text=TEXT,
    sections=(2, 3, 3),
)
LLAVA = LlavaOneVision(vision=Siglip(picture=16, patch=4, width=16, layers=2, heads=2, ffn=24), text=TEXT)
TRANSFORMER = SanaTransformer(layers=2, heads=2, head_width=8, cross_heads=2, condition_width=16, patch=2)
UNET = UNet(picture=16, channels=(8, 16), attends=(False, True), layers_per_block=1, condition_width=16, heads=2)
DEEP = DeepVae(
    channels=(8, 16),
    attends=(False, False),
    latent_channels=4,
    encoder_layers=(1, 1),
    decoder_layers=(1, 1),
    scale=0.5,
)
SANA = Sana(canvas=DeepLatents(vae=DEEP, side=16, factor=2, channels=4), network=TRANSFORMER)
STABLE = StableUNet(canvas=Pixels(side=16), network=UNET)
TINY = MetaQuery(
    backbone=QWEN,
    decoder=SANA,
    connector=Connector(layers=2, head_width=16),
    queries=5,
    condition_dropout=0.0,
    pixels=(64 * 4, 64 * 12),
    system="",
    seed=1,
)
KINDS = {
    "qwen, sana": TINY,
    "llava, sana": replace(TINY, backbone=LLAVA),
    "qwen, unet": replace(TINY, decoder=STABLE),
    "llava, unet": replace(TINY, backbone=LLAVA, decoder=STABLE),
}
SIZES = [(40, 30), (30, 40), (16, 16), (90, 11), (7, 100), (33, 64), (500, 375), (13, 12), (28, 28), (56, 84)]
PICTURES = [(40, 30), (20, 61), (32, 32), (64, 9)]
ASKED = ([("user", ["a cat"]), ("assistant", [2])], "text_to_image")
EDIT = ([("user", [3, "redder"]), ("assistant", [2])], "image_editing")
SUBJECT = ([("user", [0, 1, "both at sea"]), ("assistant", [2])], "subject_driven")
FRAMES = ([("user", [0, 1, "then?"]), ("assistant", [2, 3])], "frame_prediction")
GENERATION, EDITING, INSTRUCT, EMPTY = [[ASKED]], [[EDIT], [FRAMES]], [[SUBJECT]], [[], []]
MIXED = [[ASKED], [EDIT], [SUBJECT, FRAMES]]

Chat = tuple[list[tuple[str, list[str | int]]], str]
Rows = list[list[Chat]]


@pytest.fixture(params=KINDS)
def config(request: pytest.FixtureRequest) -> MetaQuery:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def architecture() -> MetaQueryArchitecture:
    return build(TINY)


def images() -> list[Image.Image]:
    noise = np.random.default_rng(3)
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in PICTURES]


def batch_of(rows: Rows, config: MetaQuery = TINY, padding: int = 1) -> Batch:
    layout, shown = config.layout(), images()
    laid = [[layout.lay_out(chat, task=task, key="k", sizes=PICTURES) for chat, task in row] for row in rows]
    views = {"seen": config.seen, "drawn": config.drawn}

    def picture(row: int, number: int, slot: Slot) -> tuple[Cut, tuple[int, int]]:
        return views[slot.view].cut(shown[slot.picture]), PICTURES[slot.picture]

    longest = max(sum(map(len, row)) for row in laid)
    return batched(laid, picture, sides=sides(config.seen, config.drawn), length=longest + padding)[0]


def picture_sum(architecture: MetaQueryArchitecture, batch: Batch, draw: Draw) -> Tensor:
    return architecture.module(batch, architecture.encode(batch), draw).sums["picture"]


def stepped(architecture: MetaQueryArchitecture, batch: Batch, draw: Draw, *, decay: float = 0.1) -> None:
    """Two steps of AdamW that decays all that learns and may decay."""
    learning = [(name, p) for name, p in architecture.module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in learning if architecture.care(name).decay is kept], "weight_decay": decay * kept}
        for kept in (True, False)
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        picture_sum(architecture, batch, draw).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "rows", [GENERATION, EDITING, INSTRUCT, MIXED, EMPTY], ids=["captions", "edits", "instruct", "mixed", "empty"]
)
def test_every_parameter_gets_a_gradient_whatever_a_micro_batch_lacks(
    config: MetaQuery, rows: Rows, draw: Draw
) -> None:
    architecture = build(replace(config, condition_dropout=0.3))
    batch = batch_of(rows, config)
    found, counts = picture_sum(architecture, batch, draw), architecture.counts(batch)
    assert found.isfinite() and (counts["picture"] > 0 or found == 0)
    found.backward()
    for name, parameter in architecture.module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name
    if counts["picture"]:
        assert architecture.module.queries.grad is not None
        assert (architecture.module.queries.grad != 0).any(dim=1).all()  # through the frozen language model


@pytest.mark.parametrize("trained", ["connector", "decoder", "language_model", "all"])
@pytest.mark.parametrize("condition", ["queries", "random_queries", "last_layer"])
def test_what_learns_is_what_was_asked_for_and_nothing_else_changes(trained: Any, condition: Any, draw: Draw) -> None:
    config = replace(TINY, trained=trained, condition=condition)
    architecture = build(config)
    before = {name: p.clone() for name, p in architecture.module.named_parameters()}
    leaf = architecture.encoder.digest()
    stepped(architecture, batch_of(MIXED, config), draw)
    changed = {name for name, p in architecture.module.named_parameters() if not torch.equal(p, before[name])}
    learning = {"connector"}
    learning |= {"queries", "marks"} if condition == "queries" else set()
    learning |= {"decoder"} if trained in ("decoder", "all") else set()
    learning |= {"backbone"} if trained in ("language_model", "all") else set()
    assert {name.partition(".")[0] for name in changed} == learning
    assert changed == {name for name in before if name.partition(".")[0] in learning}
    assert architecture.encoder.digest() == leaf
    empty = architecture.module(batch_of(EMPTY, config), architecture.encode(batch_of(EMPTY, config)), draw)
    empty.sums["picture"].backward()


def test_queries_and_marks_do_not_decay(draw: Draw) -> None:
    architecture = build(TINY)
    assert not any(architecture.care(name).decay for name in ("queries", "marks"))
    assert architecture.care("connector.norm.weight").decay
    before = architecture.module.queries.detach().clone()
    optimizer = torch.optim.AdamW(
        [{"params": [architecture.module.queries], "weight_decay": 0.1 * architecture.care("queries").decay}], lr=0.1
    )
    picture_sum(architecture, batch_of(EMPTY), draw).backward()  # gradients of zero: what is left is decay
    optimizer.step()
    assert torch.equal(architecture.module.queries, before)


def test_documents_packed_in_one_row_learn_as_they_do_apart(config: MetaQuery) -> None:
    architecture = build(replace(config, condition_dropout=0.2))
    chats = [EDIT, ASKED, SUBJECT, FRAMES]

    def keyed(offset: int) -> Draw:
        return lambda purpose, index: torch.Generator().manual_seed(len(purpose) * 100 + index + offset)

    packed = picture_sum(architecture, batch_of([chats], config, padding=3), keyed(0))
    apart, before = [], 0
    for chat in chats:
        batch = batch_of([[chat]], config)
        apart.append(picture_sum(architecture, batch, keyed(before)))
        before += len(batch.drawn)
    torch.testing.assert_close(packed, torch.stack(apart).sum())


@pytest.mark.parametrize("fewest, most", [(56 * 56, 28 * 28 * 1280), (256 * 28 * 28, 1280 * 28 * 28), (784, 784 * 4)])
def test_patches_are_counted_as_transformers_processor_counts_them(fewest: int, most: int) -> None:
    view = Patches(side=28, fewest=fewest, most=most)
    for width, height in SIZES:
        high, wide = smart_resize(height, width, 28, fewest, most)
        assert view.grid((width, height)) == (high // 28, wide // 28), (width, height)


def test_read_pictures_are_the_features_of_transformers_qwen(architecture: MetaQueryArchitecture) -> None:
    model: Any = random_model(QWEN).eval()
    processor: Any = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, min_pixels=TINY.pixels[0], max_pixels=TINY.pixels[1]
    )
    made = processor(images()[:2], return_tensors="pt")
    with torch.no_grad():
        expected = torch.cat(list(model.model.get_image_features(made["pixel_values"], made["image_grid_thw"])[1]))
    found = architecture.encoder.tower(batch_of([[SUBJECT]]).seen)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)  # the processor rounds otherwise


def test_read_pictures_are_the_features_of_transformers_llava() -> None:
    config = KINDS["llava, sana"]
    model: Any = random_model(LLAVA).eval()
    seen = batch_of([[SUBJECT]], config).seen
    with torch.no_grad():
        features = model.model.get_image_features(
            ((seen.pixels - 0.5) / 0.5)[:, None], torch.tensor([[16, 16]] * 2), batch_num_images=torch.tensor([2])
        ).pooler_output
    torch.testing.assert_close(build(config).encoder.tower(seen), torch.cat(list(features)))


def test_places_are_those_that_transformers_qwen_counts_in_every_document_alone() -> None:
    model: Any = random_model(QWEN)
    apart: Chat = ([("user", [0, "and", 1, "both at sea"]), ("assistant", [2])], "subject_driven")
    packed = batch_of([[apart, EDIT]], padding=3)
    found, first = places(packed), 0
    for chat in (apart, EDIT):
        alone = batch_of([[chat]], padding=0)
        kind = torch.zeros_like(alone.ids)
        for start, tokens in zip(alone.seen.start.tolist(), alone.seen.tokens.tolist(), strict=True):
            kind[0, start : start + tokens] = 1
        grid = torch.cat([torch.ones(len(alone.seen), 1, dtype=torch.int64), alone.seen.grid * 2], dim=1)
        expected, _ = model.model.get_rope_index(alone.ids, kind, image_grid_thw=grid)
        length = alone.ids.shape[1]
        assert torch.equal(found[:, 0, first : first + length], expected[:, 0])
        first += length


def test_the_states_are_those_of_transformers_model(architecture: MetaQueryArchitecture) -> None:
    model: Any = random_model(QWEN).eval()
    batch = batch_of([[EDIT]], padding=0)
    module = architecture.module
    with torch.no_grad():
        inputs = module.embedded(batch, architecture.encoder.tower(batch.seen))
        expected = model.model.language_model(inputs_embeds=inputs, position_ids=places(batch)).last_hidden_state
        features = architecture.encode(batch)
        hiding, black = torch.zeros_like(batch.condition), torch.zeros_like(batch.seen.answer)
        condition, _ = module.condition(batch, features, hiding, black)
        start = int(batch.drawn.start[0])
        states = expected[:, start : start + 5]
        torch.testing.assert_close(condition, module.connector(states, torch.ones(1, 5, dtype=torch.bool)))


def test_a_black_picture_takes_the_place_of_one_of_its_size(architecture: MetaQueryArchitecture) -> None:
    batch = batch_of([[EDIT], [SUBJECT], [EDIT]])
    encoded = architecture.encode(batch)
    black = replace(batch.seen, pixels=torch.zeros_like(batch.seen.pixels))
    assert encoded.black.shape == encoded.seen.shape
    torch.testing.assert_close(encoded.black, architecture.encoder.tower(black))


def fixed(value: float) -> Draw:
    """Generators whose first number is about this one."""
    seeds = {round(float(torch.rand((), generator=torch.Generator().manual_seed(s))), 2): s for s in range(2000)}
    return lambda purpose, index: torch.Generator().manual_seed(seeds[value])


@pytest.mark.parametrize(
    "chat, value, words, pictures",
    [
        (ASKED, 0.05, True, False),
        (ASKED, 0.15, False, False),
        (EDIT, 0.05, False, True),
        (EDIT, 0.15, False, False),
        (SUBJECT, 0.05, True, False),
        (SUBJECT, 0.15, True, True),
        (SUBJECT, 0.25, False, True),
        (SUBJECT, 0.35, False, False),
    ],
)
def test_condition_dropout_is_that_of_the_official_code(chat: Chat, value: float, words: bool, pictures: bool) -> None:
    batch = batch_of([[chat]])
    hiding, black = dropped(batch, fixed(value), 0.1)
    said = str(chat[0][0][1][-1])
    assert int(hiding.sum()) == (len(said) if words else 0)
    assert black.tolist() == [pictures] * len(batch.seen)


def test_condition_dropout_takes_only_what_is_of_its_document(architecture: MetaQueryArchitecture) -> None:
    batch = batch_of([[ASKED, SUBJECT], [EDIT]])
    chances = {0: 0.95, 1: 0.15, 2: 0.95}

    def draw(purpose: str, index: int) -> torch.Generator:
        return fixed(chances[index])(purpose, index)

    hiding, black = dropped(batch, draw, 0.1)
    assert batch.document[hiding].unique().tolist() == [2] and not hiding[1].any()
    assert black.tolist() == [True, True, False]


def test_hidden_words_change_nothing_and_others_do(architecture: MetaQueryArchitecture) -> None:
    other = ([("user", ["a dog"]), ("assistant", [2])], "text_to_image")
    found = []
    for chat in (ASKED, other):
        batch = batch_of([[chat]])
        for hiding in (batch.condition, torch.zeros_like(batch.condition)):
            with torch.no_grad():
                encoded = architecture.encode(batch)
                found.append(architecture.module.condition(batch, encoded, hiding, batch.seen.answer)[0])
    torch.testing.assert_close(found[0], found[2])
    assert not torch.allclose(found[1], found[3])


def test_hidden_words_are_no_part_of_a_condition_of_what_was_said() -> None:
    config = replace(TINY, condition="last_layer")
    architecture, batch = build(config), batch_of([[ASKED], [SUBJECT]], config)
    encoded, none = architecture.encode(batch), torch.zeros_like(batch.condition)
    before = batch.drawn.start - 1  # without the mark
    with torch.no_grad():
        for hiding in (none, batch.condition):
            _, present = architecture.module.condition(batch, encoded, hiding, batch.seen.answer)
            assert torch.equal(present.sum(dim=1), before - hiding.sum(dim=1))


def test_without_guidance_towards_words_or_pictures_they_do_not_matter(architecture: MetaQueryArchitecture) -> None:
    shown = images()
    other = [Image.eval(image, lambda value: 255 - value) for image in shown]

    def painted(words: str, pictures: list[Image.Image], image_guidance: float) -> Tensor:
        asked = Asked(answer="picture", steps=2, guidance=0.0, image_guidance=image_guidance)
        (part,) = architecture.answer([("user", (0, words))], pictures, asked, task="image_editing", key="k").parts
        assert isinstance(part, Tensor)
        return part

    torch.testing.assert_close(painted("redder", shown, 0.0), painted("bluer!", other, 0.0))
    torch.testing.assert_close(painted("redder", shown, 1.0), painted("bluer!", shown, 1.0))
    assert not torch.allclose(painted("redder", shown, 1.0), painted("redder", other, 1.0))


def written(layout: MetaQueryLayout, ids: tuple[int, ...]) -> str:
    names = {layout.image_start: "<begin>", layout.image_end: "<end>", 0: "."}
    names |= {ByteTokenizer().control(name): name for name in LLAMA3.controls}
    return "".join(names.get(i, chr(i)) for i in ids)


def test_a_laid_out_chat_reads_as_the_official_one() -> None:
    layout = MetaQueryLayout(
        tokenizer=ByteTokenizer(), patches=2, queries=3, template=LLAMA3, lead="", system="Say it."
    )
    document = layout.lay_out(SUBJECT[0], task=SUBJECT[1], key="k", sizes=PICTURES)
    assert written(layout, document.ids) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\nSay it.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n....both at sea<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n<begin>...<end><|eot_id|>"
    )
    assert not any(document.targets)
    hidden = [i for i, marked in zip(document.ids, document.condition, strict=True) if marked]
    assert bytes(hidden) == b"both at sea"
    assert [(slot.view, slot.answer, slot.tokens) for slot in document.slots] == [
        ("seen", False, 2),
        ("seen", False, 2),
        ("drawn", True, 3),
    ]


def test_every_answer_has_queries_of_its_own_in_order() -> None:
    document = TINY.layout().lay_out(FRAMES[0], task=FRAMES[1], key="k", sizes=PICTURES)
    drawn = [(slot.picture, slot.tokens) for slot in document.slots if slot.view == "drawn"]
    assert drawn == [(2, 5), (3, 5)] and not any(document.condition)


def test_a_share_of_captions_is_laid_out_as_reconstruction() -> None:
    layout = replace(TINY, reconstruction=0.25).layout()
    laid = [layout.lay_out(ASKED[0], task=ASKED[1], key=str(key), sizes=PICTURES) for key in range(400)]
    again = [document for document in laid if len(document.slots) == 2]
    assert 70 < len(again) < 130
    assert [(slot.picture, slot.view) for slot in again[0].slots] == [(2, "seen"), (2, "drawn")]
    assert not any(again[0].condition) and b"a cat" not in bytes(i for i in again[0].ids if i < 256)
    edits = [layout.lay_out(EDIT[0], task=EDIT[1], key=str(key), sizes=PICTURES) for key in range(20)]
    assert len({document.ids for document in edits}) == 1


def test_a_long_caption_is_cut() -> None:
    layout = replace(TINY, caption_tokens=4).layout()
    long = ([("user", ["a cat and a dog"]), ("assistant", [2])], "text_to_image")
    document = layout.lay_out(long[0], task=long[1], key="k", sizes=PICTURES)
    assert sum(document.condition) == 4


def test_a_prompt_is_what_training_shows_with_the_picture_to_come() -> None:
    layout = TINY.layout()
    whole = layout.lay_out(SUBJECT[0], task=SUBJECT[1], key="k", sizes=PICTURES)
    asked = layout.prompt(SUBJECT[0][:1], task=SUBJECT[1], key="k", answer="picture", sizes=PICTURES)
    assert (asked.ids, asked.condition) == (whole.ids, whole.condition)
    assert asked.slots[-1].picture == len(PICTURES)


def test_guidance_is_the_formula_of_the_paper() -> None:
    nothing, shown, whole = (torch.full((1, 1, 1, 1), value) for value in (1.0, 3.0, 7.0))
    assert float(guided(whole, 9.0, 9.0)) == 7.0
    assert float(guided(torch.cat([nothing, whole]), 3.0, 9.0)) == 1.0 + 3.0 * 6.0
    assert float(guided(torch.cat([nothing, shown, whole]), 3.0, 1.5)) == 1.0 + 1.5 * 2.0 + 3.0 * 4.0
    assert guided_by(Asked(guidance=3.0), shown=False) == [(True, False), (False, False)]
    assert guided_by(Asked(guidance=3.0), shown=True) == [(True, True), (True, False), (False, False)]
    assert guided_by(Asked(guidance=1.0, image_guidance=1.0), shown=True) == [(False, False)]


@pytest.mark.parametrize("order, layers, millions", [
    ("proj_enc", 6, 517), ("proj_enc", 24, 2046), ("enc_proj", 6, 84), ("enc_proj", 24, 316),
])  # fmt: skip
def test_connectors_have_the_sizes_of_table_3(order: Any, layers: int, millions: int) -> None:
    with torch.device("meta"):
        connector = ConnectorModule(Connector(order=order, layers=layers), width=896, condition=2304, gain=1.0)
    assert int(sum(p.numel() for p in connector.parameters()) / 1e6 + 0.5) in (millions, millions + 1)


@pytest.mark.parametrize("width, expected", [(896, 0.3158e9), (2048, 1.62e9), (3584, 4.95e9)])
def test_connectors_have_the_sizes_of_the_code(width: int, expected: float) -> None:
    with torch.device("meta"):
        connector = ConnectorModule(Connector(), width=width, condition=2304, gain=1.0)
    assert sum(p.numel() for p in connector.parameters()) == pytest.approx(expected, rel=2e-3)


def test_the_connector_starts_as_the_code_says_and_sees_both_ways() -> None:
    torch.manual_seed(0)
    connector = ConnectorModule(Connector(layers=2), width=128, condition=64, gain=5.5**0.5)
    first: Any = connector.encoder.layers[0]
    assert float(first.mlp.gate_proj.weight.detach().std()) == pytest.approx(0.014, rel=0.05)
    states, present = torch.randn(1, 6, 128), torch.ones(1, 6, dtype=torch.bool)
    with torch.no_grad():
        found = connector(states, present)
        assert float(found.square().mean()) == pytest.approx(5.5, rel=0.01)
        states[0, 5] += 1
        assert (connector(states, present) != found).any(dim=-1).all()
        without = connector(states, present.clone().index_fill_(1, torch.tensor([5]), False))
        torch.testing.assert_close(without[:, :5], connector(states[:, :5], present[:, :5]))


def test_the_flow_runs_straight_from_the_canvas_to_the_noise() -> None:
    sana_type = decoder(SANA)
    assert isinstance(sana_type, SanaDecoder)
    canvas, noise = torch.ones(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    noised, wanted = sana_type.noised(canvas, noise, torch.tensor([999, 249]))
    torch.testing.assert_close(noised[:, 0, 0, 0], torch.tensor([0.0, 0.75]))
    assert (wanted == -1).all()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sampling_along_the_true_flow_ends_at_the_canvas(shift: float) -> None:
    goal, noise = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    times: list[float] = []

    def predict(canvas: Tensor, timestep: Tensor) -> Tensor:
        times.append(float(timestep))
        return (canvas - goal) / (timestep / 1000)

    torch.testing.assert_close(flowed(predict, noise, shift=shift, steps=8), goal, atol=5e-3, rtol=0)
    middle = times[4] / 1000
    assert 990 < times[0] <= 1000 and (middle > 0.7 if shift == 3.0 else middle == pytest.approx(0.5, abs=0.02))


def test_pictures_are_the_same_for_the_same_seed(config: MetaQuery) -> None:
    architecture, shown = build(config), images()[:2]
    asked = Asked(answer="picture", steps=3, guidance=2.0, image_guidance=1.5, seed=4)

    def drawn(asked: Asked, shown: list[Image.Image]) -> Tensor:
        turns = [("user", (1, "redder"))]
        (part,) = architecture.answer(turns, shown, asked, task="image_editing", key="k").parts
        assert isinstance(part, Tensor) and part.shape == (3, 16, 16) and part.isfinite().all()
        return part

    assert torch.equal(drawn(asked, shown), drawn(asked, shown))
    assert not torch.equal(drawn(asked, shown), drawn(replace(asked, seed=5), shown))
    (part,) = architecture.answer([("user", ("a cat",))], [], replace(asked, answer="free"), task="text_to_image",
                                  key="k").parts  # fmt: skip
    assert isinstance(part, Tensor)


@pytest.mark.parametrize("kind", ["qwen, sana", "llava, sana"])
def test_a_text_answer_is_what_transformers_model_says(kind: str) -> None:
    config = KINDS[kind]
    architecture, layout = build(config), config.layout()
    model: Any = random_model(config.sizes).eval()
    turns = [("user", (0, "What?"))]
    prompt = layout.prompt(turns, task="image_qa", key="k", answer="text", sizes=PICTURES)
    slot = prompt.slots[0]
    seen = batch_of([[([("user", [0]), ("assistant", [1])], "image_editing")]], config).seen
    ids, said = list(prompt.ids), []
    grid = torch.tensor([[1, *(2 * int(side) for side in seen.grid[0])]])
    with torch.no_grad():
        read = architecture.encoder.tower(seen)
        for _ in range(12):
            inputs = model.get_input_embeddings()(torch.tensor([ids]))
            inputs[0, slot.start : slot.start + slot.tokens] = read
            kinds = torch.zeros(1, len(ids), dtype=torch.int64)
            kinds[0, slot.start : slot.start + slot.tokens] = 1
            extra = {}
            if config.backbone is QWEN:
                extra = {"position_ids": model.model.get_rope_index(torch.tensor([ids]), kinds, image_grid_thw=grid)[0]}
            states = model.model.language_model(inputs_embeds=inputs, **extra).last_hidden_state
            token = int(model.lm_head(states)[0, -1].argmax())
            if token == layout.end_of_turn:
                break
            said.append(token)
            ids.append(token)
    asked = Asked(answer="free", max_tokens=12)
    found = architecture.answer(turns, images(), asked, task="image_qa", key="k").parts
    assert found == (layout.tokenizer.decode(said),)


def test_what_the_model_says_stays_while_it_learns_to_paint(draw: Draw) -> None:
    architecture = build(TINY)
    asked, turns = Asked(answer="text", max_tokens=8), [("user", (0, "What?"))]
    before = architecture.answer(turns, images(), asked, task="image_qa", key="k").parts
    stepped(architecture, batch_of(MIXED), draw)
    assert architecture.answer(turns, images(), asked, task="image_qa", key="k").parts == before


@pytest.fixture
def hub(tmp_path: Path, save_tokenizer: Callable[..., None]) -> Path:
    """Tiny random models in the hub's layout."""
    marks = ("<|vision_start|>", "<|vision_end|>")
    for name, sizes in (("qwen", QWEN), ("llava", LLAVA)):
        text = replace(TEXT, vocabulary=256 + 3 + 2)
        random_model(replace(sizes, text=text)).save_pretrained(tmp_path / name)
        save_tokenizer(tmp_path / name, (*CHATML.controls, *marks))
    sana(SANA).save_pretrained(tmp_path / "sana" / "transformer")
    random_deep_vae(DEEP).save_pretrained(tmp_path / "sana" / "vae")
    random_stable_unet(replace(UNET, picture=8), 4).save_pretrained(tmp_path / "sd" / "unet")
    vae = Vae(channels=(8, 8), latent_channels=4, layers_per_block=1, scale=0.5, groups=4)
    random_vae(vae).save_pretrained(tmp_path / "sd" / "vae")
    return tmp_path


def published(hub: Path, name: str, painter: str) -> MetaQuery:
    sana_path, sd_path = str(hub / "sana"), str(hub / "sd")
    decoders = {
        "sana": Sana(
            canvas=DeepLatents(vae=Pretrained(path=sana_path, sizes=DEEP), side=16, factor=2, channels=4),
            network=Pretrained(path=sana_path, sizes=TRANSFORMER),
        ),
        "sd": StableUNet(
            canvas=Latents(vae=Pretrained(path=sd_path), side=16, factor=2, channels=4, subfolder="vae"),
            network=Pretrained(path=sd_path, sizes=replace(UNET, picture=8)),
        ),
    }
    return replace(TINY, backbone=Pretrained(path=str(hub / name)), decoder=decoders[painter])


@pytest.mark.parametrize("name, painter", [("qwen", "sana"), ("llava", "sd")])
def test_published_weights_are_read_as_they_lie(hub: Path, name: str, painter: str, draw: Draw) -> None:
    config = published(hub, name, painter)
    sizes = {"qwen": QWEN, "llava": LLAVA}[name]
    assert config.sizes == replace(sizes, text=replace(TEXT, vocabulary=261))
    architecture = build(config)
    expected: Any = random_model(config.sizes)
    for key, tensor in expected.model.language_model.state_dict().items():
        assert torch.equal(architecture.module.backbone.state_dict()[key], tensor), key
    assert picture_sum(architecture, batch_of(MIXED, config), draw).isfinite()
    layout = config.layout()
    document = layout.lay_out(EDIT[0], task=EDIT[1], key="k", sizes=PICTURES)
    first = document.slots[0]
    before = document.ids[first.start - 1]
    assert before == (
        layout.tokenizer.control("<|vision_start|>") if name == "qwen" else layout.tokenizer.encode(" ")[0]
    )


def test_weights_that_lack_something_or_are_of_another_kind_are_refused(hub: Path) -> None:
    from safetensors.torch import load_file, save_file

    config = published(hub, "llava", "sana")
    with pytest.raises(ValueError, match=r"correct Pretrained\.sizes"):
        build(replace(config, backbone=Pretrained(path=str(hub / "llava"), sizes=LLAVA)))
    other = replace(config.decoder, network=Pretrained(path=str(hub / "sana"), sizes=replace(TRANSFORMER, layers=3)))
    with pytest.raises(ValueError, match=r"correct Pretrained\.sizes"):
        build(replace(config, decoder=other))
    file = hub / "llava" / "model.safetensors"
    weights = load_file(file)
    (newline,) = [name for name in weights if name.endswith("image_newline")]
    save_file({name: value for name, value in weights.items() if name != newline}, file)
    with pytest.raises(ValueError, match="image_newline"):
        build(config)
    place = hub / "llava" / "config.json"
    stored = json.loads(place.read_bytes())
    place.write_text(json.dumps({**stored, "vision_feature_layer": -2}))
    with pytest.raises(ValueError, match="last layer"):
        build(config)
    place.write_text(json.dumps({**stored, "model_type": "llava"}))
    with pytest.raises(ValueError, match="not a vision-language model"):
        build(config)


@pytest.mark.parametrize(
    "recipe, frozen, learned",
    [
        ("base_sana", 0.49e9, 1.92e9),
        ("large_sd15", 3.09e9 + 0.86e9, 1.6e9),
        ("xl_sana", 7.6e9, 6.55e9),
        ("ablation", 0.49e9 + 0.59e9, 0.316e9),
    ],
)
def test_models_of_the_paper_build_on_the_meta_device(recipe: str, frozen: float, learned: float) -> None:
    from pipelines.recipes import metaquery

    with torch.device("meta"):
        architecture = getattr(metaquery, recipe)().architecture.build()
    assert all(parameter.is_meta for parameter in architecture.module.parameters())
    sums = dict.fromkeys((True, False), 0)
    for parameter in architecture.module.parameters():
        sums[parameter.requires_grad] += parameter.numel()
    assert sums[False] == pytest.approx(frozen, rel=0.02)
    assert sums[True] == pytest.approx(learned, rel=0.02)


def test_every_recipe_can_be_described() -> None:
    from pipelines.recipes import metaquery

    for name in ("base_sd15", "large_sana", "xl_sd15", "edit", "frames", "onegpu", "tiny"):
        assert getattr(metaquery, name)().name == f"metaquery-{name.replace('_', '-')}"
