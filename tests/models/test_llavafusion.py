"""LLaVAFusion: it reads as transformers' LLaVA-NeXT does, goes on to do so bit by bit, and learns to draw.

# B rows, N tokens, P pictures, S tokens of read pictures, T = 4 tokens of a drawn picture
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from models.configs import LLaVAFusion
from models.interface import Asked, Batch, Draw
from models.layout import LLAVA_SYSTEM, ByteTokenizer, Slot
from models.llavafusion import LLaVAFusionArchitecture, build, random_llava_next
from models.parts import Clip, LinearCoder, Llama, LlavaNext, Pixels, Pretrained
from models.sequence import batched, blocks, hidden, sees, sides
from models.transfusion import picture_tokens
from models.views import Cut, Tiles

LLAVA = LlavaNext(
    vision=Clip(picture=16, patch=4, width=16, layers=2, heads=2, ffn=24),
    text=Llama(width=32, layers=2, heads=4, kv_heads=2, ffn=48),
    pinpoints=((16, 32), (32, 16), (32, 32), (48, 16), (16, 48)),
)
TINY = LLaVAFusion(
    backbone=LLAVA, canvas=Pixels(side=16), coder=LinearCoder(patch=8), condition_dropout=0.0, system="", seed=1
)
SIZES = [(40, 30), (30, 40), (16, 16), (90, 11), (7, 100), (33, 64), (500, 375), (3, 2), (1, 300), (301, 1)]
PICTURES = [(40, 30), (20, 61), (32, 32), (64, 9)]
READ = ([("user", [0, "What?"]), ("assistant", ["A dog"])], "image_qa")
FRAMES = ([("user", [0, 1, "Why?"]), ("assistant", ["So"]), ("user", ["?"]), ("assistant", ["!"])], "video_qa")
ASKED = ([("user", ["a cat"]), ("assistant", [2])], "text_to_image")
EDIT = ([("user", [3, "redder"]), ("assistant", [2])], "image_editing")
THOUGHT = ([("user", [1, "Where?"]), ("assistant", ["Look:", 3, "there"])], "visual_thinking")
PAIR = ([("assistant", [2, "a cat"])], "caption_pair")
PLAIN = ([("user", ["Hi"]), ("assistant", ["Hello"])], "text_qa")
UNDERSTANDING, GENERATION, EMPTY = [[READ], [FRAMES]], [[ASKED], [PAIR]], [[], []]
MIXED = [[READ], [EDIT], [THOUGHT], [PLAIN]]

Chat = tuple[list[tuple[str, list[str | int]]], str]
Rows = list[list[Chat]]


@pytest.fixture(scope="module")
def architecture() -> LLaVAFusionArchitecture:
    return build(TINY)


def images() -> list[Image.Image]:
    noise = np.random.default_rng(3)
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in PICTURES]


def batch_of(rows: Rows, config: LLaVAFusion = TINY, padding: int = 0) -> Batch:
    layout, shown = config.layout(), images()
    laid = [[layout.lay_out(chat, task=task, key="k", sizes=PICTURES) for chat, task in row] for row in rows]
    views = {"seen": config.seen, "drawn": config.drawn}

    def picture(row: int, number: int, slot: Slot) -> tuple[Cut, tuple[int, int]]:
        return views[slot.view].cut(shown[slot.picture]), PICTURES[slot.picture]

    longest = max(sum(map(len, row)) for row in laid)
    return batched(laid, picture, sides=sides(config.seen, config.drawn), length=longest + padding)[0]


def sums(architecture: LLaVAFusionArchitecture, batch: Batch, draw: Draw) -> dict[str, Tensor]:
    return dict(architecture.module(batch, architecture.encode(batch), draw).sums)


@torch.no_grad()
def states(architecture: LLaVAFusionArchitecture, batch: Batch, changed: tuple[int, int] | None = None) -> Tensor:
    """Of clean pictures: float[B, N, D]; where `changed`, the input at this row and place is another."""
    module, features = architecture.module, architecture.encode(batch)
    canvas = torch.cat([module.canvas(features).mean, torch.zeros(1, *architecture.canvas.shape)])
    tokens, _ = module.coder.down(canvas, torch.zeros(len(canvas), dtype=torch.int64))
    inputs = module.placed(batch, features, tokens)
    if changed is not None:
        inputs[changed] += 1
    sight = sees(batch.document, blocks(batch, whole=True), torch.zeros_like(batch.condition))
    return module.run(inputs, picture_tokens(batch), sight, batch.position)


def trained(architecture: LLaVAFusionArchitecture, batch: Batch, draw: Draw, steps: int = 3) -> None:
    learning = [parameter for parameter in architecture.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack(list(sums(architecture, batch, draw).values())).sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "view",
    [
        TINY.seen,
        Tiles(side=336, patch=14, pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))),
        Tiles(side=16, patch=16, pinpoints=((16, 16), (32, 48))),
    ],
    ids=["tiny", "llava-next", "one patch"],
)
def test_a_picture_takes_as_many_tokens_as_in_transformers_processor(view: Tiles) -> None:
    processor: Any = LlavaNextProcessor.__new__(LlavaNextProcessor)
    processor.patch_size, processor.num_additional_image_tokens = view.patch, 1
    pinpoints = [list(pinpoint) for pinpoint in view.pinpoints]
    processor.image_processor = SimpleNamespace(image_grid_pinpoints=pinpoints)
    for width, height in SIZES:
        expected = processor._get_number_of_features(height, width, view.side, view.side) - 1  # the class token
        assert view.tokens((width, height)) == expected, (width, height)


def test_tiles_are_those_of_transformers_processor_pixel_by_pixel() -> None:
    view = TINY.seen
    processor = LlavaNextImageProcessorPil(
        image_grid_pinpoints=[list(pinpoint) for pinpoint in view.pinpoints],
        size={"shortest_edge": view.side},
        crop_size={"height": view.side, "width": view.side},
        do_normalize=False,
        do_rescale=False,
    )
    for image in images():
        tiles, (rows, columns) = view.cut(image)
        expected = processor.preprocess(image, return_tensors="np")["pixel_values"][0].transpose(0, 2, 3, 1)
        assert len(tiles) == 1 + rows * columns
        np.testing.assert_array_equal(tiles, expected.astype(np.uint8))


def test_read_pictures_are_the_features_of_transformers_model(architecture: LLaVAFusionArchitecture) -> None:
    from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    llava = random_llava_next(LLAVA).eval()
    everything: Chat = ([("user", [0, 1, 2, 3, "?"]), ("assistant", ["!"])], "video_qa")
    seen = batch_of([[everything]]).seen
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    with torch.no_grad():
        features: Any = llava.model.get_image_features((seen.pixels - mean) / std, seen.size.flip(1))
    found = architecture.encoder.read(seen)
    assert [len(picture) for picture in features.pooler_output] == seen.tokens.tolist()
    torch.testing.assert_close(found, torch.cat(features.pooler_output))


def test_a_chat_about_a_picture_has_the_scores_that_transformers_model_gives_it(
    architecture: LLaVAFusionArchitecture,
) -> None:
    llava = random_llava_next(LLAVA).eval()
    batch = batch_of([[FRAMES]])
    with torch.no_grad():
        inputs = llava.get_input_embeddings()(batch.ids)
        inputs[0, batch.ids[0] == 0] = architecture.encoder.read(batch.seen)  # no byte of the chat is 0
        expected = llava(inputs_embeds=inputs).logits
    found = architecture.module.logits(states(architecture, batch))[..., : expected.shape[-1]]
    torch.testing.assert_close(found, expected)


def test_what_it_understood_stays_bit_by_bit_while_it_learns_to_draw(draw: Draw) -> None:
    architecture = build(TINY)
    vocabulary = architecture.module.tokenizer_size
    batches = [batch_of([[READ]]), batch_of(UNDERSTANDING), batch_of([[READ, ASKED, FRAMES]], padding=2)]
    apart = batches[2].document[0] != 2  # of the packed row all but what draws

    def scores() -> list[Tensor]:
        with torch.no_grad():
            every = [architecture.module.logits(states(architecture, batch))[..., :vocabulary] for batch in batches]
        return [*every[:2], every[2][:, apart]]

    frozen = {name: p.clone() for name, p in architecture.module.named_parameters() if not p.requires_grad}
    learned = {name: p.clone() for name, p in architecture.module.named_parameters() if p.requires_grad}
    leaf, before = architecture.encoder.digest(), scores()
    trained(architecture, batch_of(MIXED), draw)
    assert all(torch.equal(one, other) for one, other in zip(before, scores(), strict=True))
    now = dict(architecture.module.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in frozen.items())
    assert all(name.startswith("backbone.") for name in frozen) and architecture.encoder.digest() == leaf
    assert not [name for name, tensor in learned.items() if torch.equal(now[name], tensor)]


@pytest.mark.parametrize(
    "rows", [UNDERSTANDING, GENERATION, MIXED, EMPTY, [[PLAIN]]], ids=["read", "drawn", "mixed", "empty", "text"]
)
def test_every_parameter_gets_a_gradient_whatever_a_micro_batch_lacks(rows: Rows, draw: Draw) -> None:
    architecture = build(TINY)
    batch = batch_of(rows, padding=2)
    found, counts = sums(architecture, batch, draw), architecture.counts(batch)
    assert all(value.isfinite() and (counts[name] > 0 or value == 0) for name, value in found.items())
    torch.stack(list(found.values())).sum().backward()
    learning = {name: p.grad for name, p in architecture.module.named_parameters() if p.requires_grad}
    assert not [name for name, gradient in learning.items() if gradient is None or not gradient.isfinite().all()]
    assert not [
        name for name, p in architecture.module.named_parameters() if not p.requires_grad and p.grad is not None
    ]


def test_documents_packed_in_one_row_learn_as_they_do_apart(architecture: LLaVAFusionArchitecture) -> None:
    chats = [READ, EDIT, ASKED, FRAMES, THOUGHT, PAIR]

    def keyed(offset: int) -> Draw:
        return lambda purpose, index: torch.Generator().manual_seed(len(purpose) * 100 + index + offset)

    packed = sums(architecture, batch_of([chats], padding=3), keyed(0))
    apart, before = [], 0
    for chat in chats:
        batch = batch_of([[chat]])
        apart.append(sums(architecture, batch, keyed(before)))
        before += len(batch.drawn)
    for modality in ("text", "picture"):
        torch.testing.assert_close(packed[modality], torch.stack([one[modality] for one in apart]).sum())


def test_read_pictures_are_seen_as_text_is_and_drawn_ones_see_all_of_themselves(
    architecture: LLaVAFusionArchitecture,
) -> None:
    batch = batch_of([[EDIT]])
    same = states(architecture, batch)

    def touched(place: int) -> list[int]:
        return (states(architecture, batch, (0, place)) != same).any(dim=-1)[0].nonzero()[:, 0].tolist()

    seen, drawn = int(batch.seen.start[0]), int(batch.drawn.start[0])
    length = batch.ids.shape[1]
    assert touched(seen + 5) == list(range(seen + 5, length))
    assert touched(drawn + 3) == list(range(drawn, length))


def test_condition_dropout_hides_the_read_picture_and_the_words_of_an_edit(draw: Draw) -> None:
    batch = batch_of([[EDIT], [READ]])
    hiding = hidden(batch, draw, 1.0)
    seen, tokens = int(batch.seen.start[0]), int(batch.seen.tokens[0])
    assert hiding[0, seen : seen + tokens].all() and int(hiding[0].sum()) == tokens + len("\nredder")
    assert not hiding[1].any()


def test_a_chat_is_laid_out_as_llava_next_writes_it() -> None:
    layout = replace(TINY, system=LLAVA_SYSTEM).layout()
    document = layout.lay_out(THOUGHT[0], task=THOUGHT[1], key="k", sizes=PICTURES)
    controls = {layout.tokenizer.control(name): name for name in layout.template.controls}
    controls |= {layout.image_start: "<boi>", layout.image_end: "<eoi>", 0: "."}
    written = "".join(controls.get(number, chr(number)) for number in document.ids)
    read = "." * layout.tiles.tokens(PICTURES[1])
    assert written == (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{LLAVA_SYSTEM}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{read}\nWhere?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nLook:<boi>....<eoi>there<|eot_id|>"
    )
    said = "".join(controls.get(i, chr(i)) for i, target in zip(document.ids, document.targets, strict=True) if target)
    assert said == "Look:<boi>there<|eot_id|>"
    assert [(slot.view, slot.answer, slot.followed) for slot in document.slots] == [
        ("seen", False, True),
        ("drawn", True, True),
    ]


def test_a_caption_that_comes_first_is_a_request_and_one_that_comes_last_is_said() -> None:
    layout = TINY.layout()
    first, last = ([("assistant", parts)] for parts in (["a cat", 2], [2, "a cat"]))
    asked = layout.lay_out(first, task="caption_pair", key="k", sizes=PICTURES)
    assert asked == layout.lay_out(ASKED[0], task=ASKED[1], key="k", sizes=PICTURES)
    assert any(asked.condition) and not asked.slots[0].followed
    said = layout.lay_out(last, task="caption_pair", key="k", sizes=PICTURES)
    assert said.slots[0].followed and not any(said.condition)
    assert bytes(i for i, target in zip(said.ids, said.targets, strict=True) if target and i < 256) == b"a cat"


def test_a_prompt_is_what_training_shows_before_the_answer() -> None:
    layout = TINY.layout()
    whole = layout.lay_out(EDIT[0], task=EDIT[1], key="k", sizes=PICTURES)
    asked = layout.prompt(EDIT[0][:1], task=EDIT[1], key="k", answer="picture", sizes=PICTURES)
    assert asked.ids == whole.ids[: len(asked)] and len(asked) == whole.slots[1].start
    assert asked.condition == whole.condition[: len(asked)]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_answers_in_text_and_pictures_are_the_same_for_the_same_seed(
    architecture: LLaVAFusionArchitecture, guidance: float
) -> None:
    shown = images()[:2]
    asked = Asked(answer="picture", steps=3, guidance=guidance, seed=4)

    def drawn(asked: Asked, shown: list[Image.Image]) -> Tensor:
        (part,) = architecture.answer([("user", (1, "redder"))], shown, asked, task="image_editing", key="k").parts
        assert isinstance(part, Tensor) and part.shape == (3, 16, 16)
        return part

    assert torch.equal(drawn(asked, shown), drawn(asked, shown))
    assert not torch.equal(drawn(asked, shown), drawn(replace(asked, seed=5), shown))
    assert not torch.equal(drawn(asked, shown), drawn(asked, [shown[1], shown[0]]))


def test_a_text_answer_is_what_transformers_model_says(architecture: LLaVAFusionArchitecture) -> None:
    llava = random_llava_next(LLAVA).eval()
    layout = TINY.layout()
    turns = [("user", (0, "What?"))]
    prompt = layout.prompt(turns, task="image_qa", key="k", answer="text", sizes=PICTURES)
    read = architecture.encoder.read(batch_of([[READ]]).seen)
    with torch.no_grad():
        inputs = llava.get_input_embeddings()(torch.tensor([prompt.ids]))
        inputs[0, torch.tensor(prompt.ids) == 0] = read
        said: list[int] = []
        while len(said) < 20:
            token = int(llava(inputs_embeds=inputs).logits[0, -1].argmax())
            if token == layout.end_of_turn:
                break
            said.append(token)
            inputs = torch.cat([inputs, llava.get_input_embeddings()(torch.tensor([[token]]))], dim=1)
    asked = Asked(answer="text", max_tokens=20)
    found = architecture.answer(turns, images(), asked, task="image_qa", key="k").parts
    assert "".join(part for part in found if isinstance(part, str)) == layout.tokenizer.decode(said)


@pytest.fixture
def hub(tmp_path: Path, save_tokenizer: Callable[..., None]) -> Path:
    """The tiny random model in the hub's layout."""
    random_llava_next(LLAVA).save_pretrained(tmp_path / "llava")
    save_tokenizer(tmp_path / "llava")
    return tmp_path / "llava"


def test_published_weights_are_read_as_they_lie(hub: Path, draw: Draw, architecture: LLaVAFusionArchitecture) -> None:
    config = replace(TINY, backbone=Pretrained(path=str(hub)))
    assert config.seen == TINY.seen
    loaded = build(config)
    assert loaded.encoder.digest() == architecture.encoder.digest()
    learned = dict(build(TINY).module.named_parameters())
    assert all(torch.equal(found, learned[name]) for name, found in loaded.module.named_parameters())
    assert all(value.isfinite() for value in sums(loaded, batch_of(MIXED, config), draw).values())


def test_sizes_that_are_not_those_of_the_weights_are_refused(hub: Path) -> None:
    spelled = replace(LLAVA, text=replace(LLAVA.text, vocabulary=ByteTokenizer.size))
    config = replace(TINY, backbone=Pretrained(path=str(hub), sizes=spelled))
    assert build(config).encoder.tiles == TINY.seen
    for other in (replace(spelled, pinpoints=((16, 32),)), replace(spelled, vision=replace(spelled.vision, patch=8))):
        with pytest.raises(ValueError, match="in the recipe"):
            build(replace(TINY, backbone=Pretrained(path=str(hub), sizes=other)))


def test_weights_that_lack_something_or_are_of_another_kind_are_refused(hub: Path) -> None:
    from safetensors.torch import load_file, save_file

    config = replace(TINY, backbone=Pretrained(path=str(hub)))
    weights = load_file(hub / "model.safetensors")
    (newline,) = [name for name in weights if name.endswith("image_newline")]
    save_file({name: value for name, value in weights.items() if name != newline}, hub / "model.safetensors")
    with pytest.raises(ValueError, match="image_newline"):
        build(config)
    stored = json.loads((hub / "config.json").read_bytes())
    (hub / "config.json").write_text(json.dumps({**stored, "vision_feature_layer": -1}))
    with pytest.raises(ValueError, match="last layer but one"):
        build(config)
    (hub / "config.json").write_text(json.dumps({**stored, "model_type": "llava"}))
    with pytest.raises(ValueError, match="not a LLaVA-NeXT"):
        build(config)


def test_the_model_of_the_paper_builds_on_the_meta_device() -> None:
    from pipelines.recipes.llavafusion import paper

    with torch.device("meta"):
        architecture = paper().architecture.build()
    assert all(parameter.is_meta for parameter in architecture.module.parameters())
    frozen = sum(p.numel() for p in architecture.module.parameters() if not p.requires_grad)
    assert 8.03e9 < frozen < 8.04e9  # Llama-3 8B, and rows for <image> and padding
    assert 303e6 < sum(p.numel() for p in architecture.encoder.clip.parameters()) < 305e6  # CLIP ViT-L/14 at 336 px
