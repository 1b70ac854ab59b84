"""MetaMorph: its losses against their definition, who sees whom, packing, and what it says.

# B rows, N tokens, D width, T = 4 tokens of a picture, C channels, V ids of the tokenizer
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from models.configs import MetaMorph
from models.interface import Batch, Draw
from models.layout import ByteTokenizer, ChatLayout, Document
from models.metamorph import MetaMorphArchitecture, build, generate
from models.parts import Llama, Pretrained, Siglip

TINY = MetaMorph(
    backbone=Llama(width=32, layers=2, heads=4, kv_heads=2, ffn=48),
    vision=Siglip(picture=32, patch=8, width=16, layers=1, heads=2, ffn=32),
    grid=2,
)
DRAWN = ([("user", ["a cat"]), ("assistant", ["Yes", 0, "and", 1])], "visual_thinking")
READ = ([("user", [2, "What?"]), ("assistant", ["A dog"])], "image_qa")
PLAIN = ([("user", ["Hi"]), ("assistant", ["Hello"])], "text_qa")

Collate = Callable[..., Batch]


@pytest.fixture(scope="module")
def architecture() -> MetaMorphArchitecture:
    built = build(TINY)
    # marks that differ, so that a test sees when one is taken for the other
    torch.nn.init.normal_(built.module.marks_in, generator=torch.Generator().manual_seed(3), std=0.02)
    torch.nn.init.normal_(built.module.marks_out, generator=torch.Generator().manual_seed(4), std=0.02)
    return built


@pytest.fixture(scope="module")
def layout() -> ChatLayout:
    return TINY.layout()


def document(layout: ChatLayout, chat: tuple[list, str]) -> Document:
    return layout.lay_out(chat[0], task=chat[1], key="k")


def sums(architecture: MetaMorphArchitecture, batch: Batch, draw: Draw) -> dict[str, Tensor]:
    return dict(architecture.module(batch, architecture.encode(batch), draw).sums)


def gradients(architecture: MetaMorphArchitecture, total: Tensor) -> dict[str, Tensor]:
    architecture.module.zero_grad(set_to_none=True)
    total.backward()
    missing = [name for name, parameter in architecture.module.named_parameters() if parameter.grad is None]
    assert not missing
    return {name: p.grad.clone() for name, p in architecture.module.named_parameters() if p.grad is not None}


def inputs_by_hand(architecture: MetaMorphArchitecture, ids: list[int], features: dict[int, Tensor]) -> Tensor:
    """Input rows, one place after the other: float32[1, N, D]. `features` holds the picture token of a place."""
    module, size = architecture.module, ByteTokenizer.size
    adapter = module.adapter
    rows = []
    for place, number in enumerate(ids):
        if place in features:
            rows.append(adapter[2](F.gelu(adapter[0](features[place]))))
        elif number >= size:
            rows.append(module.marks_in[number - size])
        else:
            rows.append(module.backbone.model.embed_tokens.weight[number])
    return torch.stack(rows)[None]


def picture_tokens(architecture: MetaMorphArchitecture, laid: Document, pictures: Tensor) -> dict[int, Tensor]:
    """Place -> encoder token, for every picture token of a document."""
    features = architecture.encoder(pictures)
    return {slot.start + i: features[slot.picture, i] for slot in laid.slots for i in range(4)}


def losses_by_hand(architecture: MetaMorphArchitecture, laid: Document, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and -cosine of one document, target by target, over transformers' own forward."""
    module = architecture.module
    tokens = picture_tokens(architecture, laid, pictures)
    output = module.backbone(
        inputs_embeds=inputs_by_hand(architecture, list(laid.ids), tokens), output_hidden_states=True, use_cache=False
    )
    hidden = output.hidden_states[-1][0]
    logits = torch.cat([output.logits[0], hidden @ module.marks_out.T], dim=-1)
    text, picture = torch.zeros(()), torch.zeros(())
    for place, target in enumerate(laid.targets):
        if target:
            text = text - logits[place - 1].log_softmax(dim=-1)[laid.ids[place]]
    for slot in laid.slots:
        for place in range(slot.start, slot.start + 4) if slot.answer else ():
            guess = module.head(hidden[place - 1])
            picture = picture - guess @ tokens[place] / (guess.norm() * tokens[place].norm())
    return text, picture


@pytest.mark.parametrize("chat", [DRAWN, READ, PLAIN])
def test_losses_equal_their_definition(
    architecture: MetaMorphArchitecture, layout: ChatLayout, collate: Collate, pictures: Tensor, draw: Draw, chat: tuple
) -> None:
    laid = document(layout, chat)
    batch = collate([[laid]], pictures)
    found = sums(architecture, batch, draw)
    text, picture = losses_by_hand(architecture, laid, pictures)
    torch.testing.assert_close(found["text"], text)
    torch.testing.assert_close(found["picture"], picture)


def test_gradients_equal_those_of_the_definition(
    architecture: MetaMorphArchitecture, layout: ChatLayout, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    laid = document(layout, DRAWN)
    found = gradients(
        architecture, sum(sums(architecture, collate([[laid]], pictures), draw).values(), torch.zeros(()))
    )
    expected = gradients(architecture, sum(losses_by_hand(architecture, laid, pictures), torch.zeros(())))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_counts_are_target_ids_and_answer_picture_tokens(
    architecture: MetaMorphArchitecture, layout: ChatLayout, collate: Collate, pictures: Tensor
) -> None:
    batch = collate([[document(layout, DRAWN), document(layout, PLAIN)], [document(layout, READ)]], pictures)
    drawn = len("Yes") + len("and") + 4 + 1  # two pairs of marks, the end of the turn
    assert architecture.counts(batch) == {"text": drawn + len("Hello") + 1 + len("A dog") + 1, "picture": 2 * 4}
    assert dict(architecture.weights) == {"text": 1.0, "picture": 1.0}
    assert dict(build(replace(TINY, vision_coefficient=0.5)).weights) == {"text": 1.0, "picture": 0.5}


def test_a_picture_of_the_user_is_read_but_not_learned(
    architecture: MetaMorphArchitecture, layout: ChatLayout, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    batch = collate([[document(layout, READ)]], pictures)
    found = sums(architecture, batch, draw)
    other = sums(architecture, replace(batch, seen=replace(batch.seen, pixels=pictures[:1])), draw)
    assert found["picture"] == 0 and found["text"] != other["text"]


def test_the_state_at_image_start_predicts_the_first_token_of_a_picture(
    collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    config = replace(TINY, grid=1)  # one token a picture: the first is all there is
    architecture, layout = build(config), config.layout()
    laid = layout.lay_out([("user", ["a"]), ("assistant", [0])], task="subject_driven", key="k")
    before = list(laid.ids[: laid.slots[0].start])
    assert before[-1] == layout.image_start
    inputs = inputs_by_hand(architecture, before, {})
    state = architecture.module.backbone.model(inputs_embeds=inputs).last_hidden_state[0, -1]
    token = architecture.encoder(pictures[:1])[0, 0]
    expected = -F.cosine_similarity(architecture.module.head(state), token, dim=0)
    torch.testing.assert_close(sums(architecture, collate([[laid]], pictures), draw)["picture"], expected)


def test_no_place_sees_a_later_one(
    architecture: MetaMorphArchitecture, layout: ChatLayout, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    batch = collate([[document(layout, DRAWN)]], pictures)
    places = batch.target[0].nonzero()[:, 0].tolist()
    for early, late in pairwise(places):
        only = torch.zeros_like(batch.target)
        only[0, early] = True
        changed = batch.ids.clone()
        changed[0, late] = 7
        before = sums(architecture, replace(batch, target=only), draw)["text"]
        after = sums(architecture, replace(batch, target=only, ids=changed), draw)["text"]
        torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_documents_packed_in_one_row_learn_as_they_do_apart(
    architecture: MetaMorphArchitecture, layout: ChatLayout, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    documents = [document(layout, chat) for chat in (DRAWN, READ, PLAIN)]
    packed = sums(architecture, collate([documents], pictures), draw)
    apart = [sums(architecture, collate([[laid]], pictures), draw) for laid in documents]
    for modality in ("text", "picture"):
        torch.testing.assert_close(packed[modality], torch.stack([one[modality] for one in apart]).sum())
    together = gradients(architecture, packed["text"] + packed["picture"])
    added = gradients(architecture, torch.stack([one[modality] for one in apart for modality in one]).sum())
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, added[name], rtol=1e-4, atol=1e-5, msg=name)


def test_padding_changes_nothing_and_is_finite(
    architecture: MetaMorphArchitecture, layout: ChatLayout, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    rows = [[document(layout, DRAWN)], [document(layout, PLAIN)]]
    short = sums(architecture, collate(rows, pictures), draw)
    long = sums(architecture, collate(rows, pictures, padding=13), draw)
    for modality in ("text", "picture"):
        torch.testing.assert_close(short[modality], long[modality])
    assert all(
        gradient.isfinite().all() for gradient in gradients(architecture, long["text"] + long["picture"]).values()
    )


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("lacking", ["pictures", "answer pictures", "text targets", "both", "everything"])
def test_every_parameter_gets_a_gradient_whatever_a_micro_batch_lacks(
    layout: ChatLayout, collate: Collate, pictures: Tensor, draw: Draw, head: Literal["linear", "mlp"], lacking: str
) -> None:
    architecture = build(replace(TINY, head=head))
    chat = {"pictures": PLAIN, "answer pictures": READ, "text targets": DRAWN, "both": READ, "everything": PLAIN}[
        lacking
    ]
    batch = collate([[document(layout, chat)]], pictures)
    if lacking in ("text targets", "both", "everything"):
        batch = replace(batch, target=torch.zeros_like(batch.target))
    if lacking == "everything":  # a phantom pack: nothing but padding
        batch = replace(batch, document=torch.zeros_like(batch.document), ids=torch.zeros_like(batch.ids))
    losses = architecture.module(batch, architecture.encode(batch), draw)
    counts = architecture.counts(batch)
    for modality, value in losses.sums.items():
        assert value.isfinite() and (counts[modality] > 0 or value == 0)
    found = gradients(architecture, sum(losses.sums.values(), torch.zeros(())))
    assert all(gradient.isfinite().all() for gradient in found.values())
    if lacking in ("both", "everything"):
        assert not any(gradient.any() for gradient in found.values())
    if lacking in ("pictures", "answer pictures"):
        assert not any(gradient.any() for name, gradient in found.items() if name.startswith("head"))


def test_losses_are_float32_when_the_weights_are_bfloat16(
    layout: ChatLayout, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    architecture = build(TINY)
    batch = collate([[document(layout, DRAWN), document(layout, READ)]], pictures)
    exact = sums(architecture, batch, draw)
    architecture.module.to(torch.bfloat16)
    for modality, value in sums(architecture, batch, draw).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[modality], rtol=1e-2, atol=0.05)


def test_the_encoder_is_outside_the_module_and_never_moves(
    layout: ChatLayout, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    architecture = build(TINY)
    before = architecture.encoder.digest()
    optimizer = torch.optim.AdamW(architecture.module.parameters(), lr=0.1)
    sum(sums(architecture, collate([[document(layout, DRAWN)]], pictures), draw).values(), torch.zeros(())).backward()
    optimizer.step()
    architecture.module.train()
    assert architecture.encoder.digest() == before
    assert not any("encoder" in name or "network" in name for name, _ in architecture.module.named_parameters())


def test_a_build_is_a_function_of_its_config() -> None:
    first, second, other = build(TINY), build(TINY), build(replace(TINY, seed=1))
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name
    assert not torch.equal(first.module.get_parameter("head.weight"), other.module.get_parameter("head.weight"))
    assert first.encoder.digest() == other.encoder.digest()


def test_the_marks_start_at_the_mean_row_and_stand_outside_the_backbones_matrices() -> None:
    module = build(TINY).module
    embedding = module.backbone.get_parameter("model.embed_tokens.weight")
    assert embedding.shape[0] == ByteTokenizer.size
    torch.testing.assert_close(module.marks_in, embedding.mean(dim=0).expand(2, -1))
    torch.testing.assert_close(module.marks_out, module.backbone.lm_head.weight.mean(dim=0).expand(2, -1))


def test_a_model_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        module = TINY.build().module
    assert all(parameter.is_meta for parameter in module.parameters())


def published_llama(folder: Path, rows: int) -> Pretrained:
    """A tiny random Llama in the hub's layout."""
    torch.manual_seed(0)
    sizes = LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,  # as Llama-3.2-1B
    )
    LlamaForCausalLM(sizes).save_pretrained(folder)
    return Pretrained(path=str(folder))


def published_siglip(folder: Path) -> Pretrained:
    SiglipVisionModel(
        SiglipVisionConfig(
            image_size=32,
            patch_size=8,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).save_pretrained(folder)
    return Pretrained(path=str(folder))


def test_published_weights_load_and_train_a_step(
    tmp_path: Path, save_tokenizer: Callable[..., None], collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    save_tokenizer(tmp_path / "llama")
    config = MetaMorph(
        backbone=published_llama(tmp_path / "llama", rows=300), vision=published_siglip(tmp_path / "siglip"), grid=2
    )
    architecture, layout = build(config), config.layout()
    original = LlamaForCausalLM.from_pretrained(tmp_path / "llama").state_dict()
    for name, tensor in architecture.module.backbone.state_dict().items():
        assert torch.equal(tensor, original[name]) and tensor.dtype == torch.float32

    # rows of the matrix beyond the tokenizer are neither the marks nor ever predicted
    assert architecture.module.logits(torch.zeros(32)).shape == (layout.tokenizer.size + 2,)
    batch = collate([[document(layout, DRAWN), document(layout, READ)]], pictures)
    optimizer = torch.optim.AdamW(architecture.module.parameters(), lr=1e-3)
    history = []
    for _ in range(2):
        found = sums(architecture, batch, draw)
        total = found["text"] + found["picture"]
        history.append(float(total.detach()))
        spare = gradients(architecture, total)["backbone.model.embed_tokens.weight"][layout.tokenizer.size :]
        assert not spare.any()
        optimizer.step()
    assert history[1] < history[0]


def test_a_vocabulary_smaller_than_its_tokenizer_is_refused(
    tmp_path: Path, save_tokenizer: Callable[..., None]
) -> None:
    save_tokenizer(tmp_path / "llama")
    config = replace(TINY, backbone=published_llama(tmp_path / "llama", rows=200))
    with pytest.raises(ValueError, match="200 rows for a tokenizer whose last id is 260"):
        config.build()


def answer_without_cache(
    architecture: MetaMorphArchitecture, layout: ChatLayout, prompt: Document, pictures: Tensor, said: int, limit: int
) -> list[int | Tensor]:
    """Greedy answer by running the whole sequence anew for each token: ids, and tokens of pictures one by one."""
    module, ids = architecture.module, list(prompt.ids)
    tokens = picture_tokens(architecture, prompt, pictures)
    answer: list[int | Tensor] = []

    def state() -> Tensor:
        inputs = inputs_by_hand(architecture, ids, tokens)
        return module.backbone.model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, -1]

    while said > 0:
        logits = torch.cat([module.backbone.lm_head(state()), module.marks_out @ state()])
        logits[layout.image_end] = -torch.inf
        if limit == 0:
            logits[layout.image_start] = -torch.inf
        number, said = int(logits.argmax()), said - 1
        if number == layout.end_of_turn:
            break
        ids.append(number)
        answer.append(number)
        if number == layout.image_start:
            limit -= 1
            for _ in range(4):
                guess = F.normalize(module.head(state()), dim=-1)
                tokens[len(ids)] = guess
                ids.append(0)
                answer.append(guess)
            ids.append(layout.image_end)
    return answer


@pytest.fixture
def eager() -> MetaMorphArchitecture:
    """A model of wide weights, whose free answer to READ is text, picture, text, picture, text, picture, text."""
    built = build(TINY)
    generator = torch.Generator().manual_seed(1)
    for parameter in built.module.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    built.module.marks_out.data *= 3
    return built


@pytest.mark.parametrize("limit", [1, 3])
@torch.no_grad()
def test_an_answer_with_the_cache_equals_one_computed_anew_for_each_token(
    eager: MetaMorphArchitecture, layout: ChatLayout, pictures: Tensor, limit: int
) -> None:
    prompt = layout.prompt(READ[0][:1], task="image_qa", key="k", answer="free")
    found = generate(
        eager, layout, prompt, eager.encoder(pictures[2:3]), answer="free", max_tokens=24, max_pictures=limit
    )
    expected = answer_without_cache(eager, layout, prompt, pictures, said=24, limit=limit)

    drawn = [part for part in found.parts if isinstance(part, Tensor)]
    tokens = torch.stack([part for part in expected if isinstance(part, Tensor)])
    assert len(drawn) == limit and isinstance(found.parts[0], str)  # so that the comparison covers both
    torch.testing.assert_close(torch.cat(drawn), tokens, rtol=0, atol=1e-4)  # wide weights enlarge rounding
    numbers = [part for part in expected if isinstance(part, int) and part != layout.image_start]
    assert len(numbers) == 24 - limit
    text = "".join(part for part in found.parts if isinstance(part, str))
    assert text == layout.tokenizer.decode(numbers)


def test_a_picture_has_exactly_its_tokens_each_of_length_one(
    eager: MetaMorphArchitecture, layout: ChatLayout, pictures: Tensor
) -> None:
    prompt = layout.prompt(READ[0][:1], task="image_qa", key="k", answer="free")
    found = generate(eager, layout, prompt, eager.encoder(pictures[2:3]), answer="free", max_tokens=24, max_pictures=2)
    drawn = [part for part in found.parts if isinstance(part, Tensor)]
    assert len(drawn) == 2
    for picture in drawn:
        assert picture.shape == (4, 16)
        torch.testing.assert_close(picture.norm(dim=-1), torch.ones(4))


def test_a_text_answer_opens_no_picture_even_when_one_is_likeliest(
    eager: MetaMorphArchitecture, layout: ChatLayout, pictures: Tensor
) -> None:
    prompt = layout.prompt(READ[0][:1], task="image_qa", key="k", answer="text")
    found = generate(eager, layout, prompt, eager.encoder(pictures[2:3]), answer="text", max_tokens=24)
    assert all(isinstance(part, str) for part in found.parts)


def test_a_picture_answer_is_one_picture(
    architecture: MetaMorphArchitecture, layout: ChatLayout, pictures: Tensor
) -> None:
    prompt = layout.prompt([("user", ["a cat"])], task="text_to_image", key="k", answer="picture")
    found = generate(architecture, layout, prompt, torch.zeros(0, 4, 16), answer="picture", max_tokens=8)
    (picture,) = found.parts
    assert isinstance(picture, Tensor) and picture.shape == (4, 16)


def test_an_answer_ends_at_the_end_of_the_turn(layout: ChatLayout, pictures: Tensor) -> None:
    architecture = build(TINY)
    prompt = layout.prompt(READ[0][:1], task="image_qa", key="k", answer="free")
    (likeliest,) = answer_without_cache(architecture, layout, prompt, pictures, said=1, limit=0)
    # the likeliest id changes places with the end of the turn
    rows = architecture.module.backbone.lm_head.weight.data
    rows[[likeliest, layout.end_of_turn]] = rows[[layout.end_of_turn, likeliest]]
    features = architecture.encoder(pictures[2:3])
    assert generate(architecture, layout, prompt, features, answer="text", max_tokens=8).parts == ()


def test_answers_are_reproducible_and_leave_the_module_in_its_mode(
    architecture: MetaMorphArchitecture, layout: ChatLayout, pictures: Tensor
) -> None:
    prompt = layout.prompt(READ[0][:1], task="image_qa", key="k", answer="text")
    features = architecture.encoder(pictures[2:3])
    architecture.module.train()
    architecture.module.backbone.activation_checkpointing_enable()  # in training mode it would switch the cache off
    first = generate(architecture, layout, prompt, features, answer="text", max_tokens=10)
    assert architecture.module.training
    architecture.module.backbone.activation_checkpointing_disable()
    assert generate(architecture, layout, prompt, features, answer="text", max_tokens=10) == first


def test_eight_captions_are_learned_as_eight_pictures(collate: Collate, pictures: Tensor, draw: Draw) -> None:
    config = replace(TINY, backbone=Llama(width=64, layers=2, heads=4, kv_heads=2, ffn=96))
    architecture, layout = build(config), config.layout()
    # one caption of one letter each; the pictures' common part is taken out, else a constant would do
    features = architecture.encoder(pictures)
    features = F.normalize(features - features.mean(dim=0), dim=-1)
    rows = [
        [layout.lay_out([("user", [letter]), ("assistant", [i])], task="text_to_image", key="k")]
        for i, letter in enumerate("abcdefgh")
    ]
    batch = collate(rows, pictures)
    optimizer = torch.optim.AdamW(architecture.module.parameters(), lr=3e-3)
    losses: dict[str, Tensor] = {}
    for _ in range(160):
        losses = dict(architecture.module(batch, features, draw).sums)
        counts = architecture.counts(batch)
        total = losses["text"] / counts["text"] + losses["picture"] / counts["picture"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    blind = features.mean(dim=0).norm(dim=-1).mean()  # the best mean cosine of an answer that ignores its caption
    assert blind < 0.3
    assert losses["picture"] / architecture.counts(batch)["picture"] < -0.9
    assert losses["text"] / architecture.counts(batch)["text"] < 0.1

    for i, letter in enumerate("abcdefgh"):
        prompt = layout.prompt([("user", [letter])], task="text_to_image", key="k", answer="picture")
        (picture,) = generate(architecture, layout, prompt, torch.zeros(0, 4, 16), answer="picture", max_tokens=1).parts
        assert isinstance(picture, Tensor)
        assert int((features * picture).sum(dim=-1).mean(dim=-1).argmax()) == i
