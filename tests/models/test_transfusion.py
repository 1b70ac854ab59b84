"""Transfusion: its losses against their definition, who sees whom, what is noised, and what it says and draws.

# B rows, N tokens, P drawn pictures, T = 4 tokens of a picture
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image
from torch import Tensor

from models.configs import Transfusion
from models.interface import Asked, Batch, Draw
from models.layout import PlainLayout
from models.parts import Latents, LinearCoder, Llama, Pixels, UNetCoder, Vae
from models.transfusion import TransfusionArchitecture, build

TINY = Transfusion(
    backbone=Llama(width=32, layers=2, heads=4, kv_heads=2, ffn=48),
    canvas=Pixels(side=16),
    coder=LinearCoder(patch=8),
    condition_dropout=0.0,
)
UNET = UNetCoder(
    channels=(8, 16, 16, 16), attends=(False, False, False, True), layers_per_block=1, head_width=8, groups=4
)
VAE = Vae(channels=(8, 8, 8), latent_channels=4, layers_per_block=1, scale=0.5, groups=4)
PAIR = ([("assistant", ["a cat", 0])], "caption_pair")
REVERSED = ([("assistant", [1, "a dog"])], "caption_pair")
EDIT = ([("user", [2, "redder"]), ("assistant", [3])], "image_editing")
READ = ([("user", [2, "What?"]), ("assistant", ["A dog"])], "image_qa")
PLAIN = ([("assistant", ["Once upon a time"])], "text_document")

Collate = Callable[..., Batch]


@pytest.fixture(scope="module")
def architecture() -> TransfusionArchitecture:
    return build(TINY)


def batch_of(config: Transfusion, collate: Collate, pictures: Tensor, *rows: list[tuple], padding: int = 0) -> Batch:
    layout = config.layout()
    laid = [[layout.lay_out(chat, task=task, key="k") for chat, task in row] for row in rows]
    small = F.interpolate(pictures, size=(config.drawn.side, config.drawn.side))
    return collate(laid, small, padding)


def sums(architecture: TransfusionArchitecture, batch: Batch, draw: Draw) -> dict[str, Tensor]:
    return dict(architecture.module(batch, architecture.encode(batch), draw).sums)


def test_the_picture_loss_is_the_mean_squared_error_of_diffusers_ddpm_with_cosine_betas(
    architecture: TransfusionArchitecture, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    batch = batch_of(TINY, collate, pictures, [PAIR])
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    canvas = 2 * batch.drawn.pixels - 1
    noise = torch.randn(3, 16, 16, generator=draw("noise", 0))[None]
    timestep = torch.randint(1000, (), generator=draw("timestep", 0))[None]
    noised = scheduler.add_noise(canvas, noise, timestep)  # pyright: ignore[reportArgumentType]
    module = architecture.module
    tokens, passed = module.coder.down(noised, timestep)
    inputs = module.embedded(batch.ids)
    start = int(batch.drawn.start[0])
    inputs[0, start : start + 4] = tokens[0]
    length = batch.ids.shape[1]
    sight = torch.ones(length, length, dtype=torch.bool).tril()
    sight[start : start + 4, start : start + 4] = True
    states = module.backbone.model(inputs_embeds=inputs, attention_mask=sight[None, None], use_cache=False)
    predicted = module.coder.up(states.last_hidden_state[:, start : start + 4], timestep, passed)
    torch.testing.assert_close(sums(architecture, batch, draw)["picture"], F.mse_loss(predicted, noise))


def test_the_text_loss_is_cross_entropy_of_what_the_assistant_says(
    architecture: TransfusionArchitecture, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    batch = batch_of(TINY, collate, pictures, [PLAIN])
    output = architecture.module.backbone(input_ids=batch.ids, use_cache=False).logits[0]
    hidden = architecture.module.backbone.model(input_ids=batch.ids, use_cache=False).last_hidden_state[0]
    scores = torch.cat([output, hidden @ architecture.module.marks_out.T], dim=-1)
    expected = F.cross_entropy(scores[:-1], batch.ids[0, 1:], reduction="sum")
    torch.testing.assert_close(sums(architecture, batch, draw)["text"], expected)


def test_nothing_is_learned_where_the_input_is_boi_and_eoi_is_not_said(collate: Collate, pictures: Tensor) -> None:
    layout = TINY.layout()
    document = layout.lay_out(PAIR[0], task=PAIR[1], key="k")
    (slot,) = document.slots
    assert document.ids[slot.start - 1] == layout.image_start and document.targets[slot.start - 1]
    assert not any(document.targets[slot.start : slot.start + 5])
    assert document.ids[slot.start + 4] == layout.image_end
    assert document.ids[-1] == layout.end_of_turn and document.targets[-1]


def test_counts_are_target_ids_and_answer_pictures(
    architecture: TransfusionArchitecture, collate: Collate, pictures: Tensor
) -> None:
    batch = batch_of(TINY, collate, pictures, [PAIR, EDIT], [READ])
    text = len("a cat") + 2 + 2 + len("A dog") + 1  # BOI and the end of each answer
    assert architecture.counts(batch) == {"text": text, "picture": 2}
    assert dict(architecture.weights) == {"text": 1.0, "picture": 5.0}


def test_a_given_picture_is_clean_and_one_before_text_is_noised_up_to_the_cap(
    architecture: TransfusionArchitecture, collate: Collate, pictures: Tensor
) -> None:
    batch = batch_of(TINY, collate, pictures, [EDIT, REVERSED, PAIR])
    seen = {place: set[int]() for place in range(4)}
    for trial in range(300):
        draw = lambda purpose, index, trial=trial: torch.Generator().manual_seed(trial * 10 + index)  # noqa: E731
        for place, timestep in enumerate(architecture.module.timesteps(batch, draw).tolist()):
            seen[place].add(timestep)
    given, edited, before_text, after_text = seen.values()
    assert given == {0}
    assert max(edited) > 900 and max(after_text) > 900
    assert 400 < max(before_text) < 500


def test_a_picture_sees_all_of_itself_and_no_text_sees_later_text(
    architecture: TransfusionArchitecture, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    batch = batch_of(TINY, collate, pictures, [PAIR])
    start = int(batch.drawn.start[0])
    module = architecture.module
    inputs = torch.randn(1, batch.ids.shape[1], 32, generator=torch.Generator().manual_seed(0))
    from models.sequence import blocks, sees

    def states(whole: bool, changed: int) -> Tensor:
        other = inputs.clone()
        other[0, changed] += 1
        nothing = torch.zeros_like(batch.target)
        sight = sees(batch.document, blocks(batch, whole=whole), nothing)
        run = [module.run(i, nothing, sight, batch.position) for i in (inputs, other)]
        return (run[0] != run[1]).any(dim=-1)[0].nonzero()[:, 0]

    assert states(True, start + 3).tolist()[0] == start  # the first patch sees the last
    assert states(False, start + 3).tolist()[0] == start + 3
    assert states(True, 2).tolist()[0] == 2


def test_documents_packed_in_one_row_learn_as_they_do_apart(
    architecture: TransfusionArchitecture, collate: Collate, pictures: Tensor
) -> None:
    chats = [PAIR, READ, EDIT, PLAIN, REVERSED]

    def keyed(offset: int) -> Draw:
        return lambda purpose, index: torch.Generator().manual_seed(len(purpose) * 100 + index + offset)

    packed = sums(architecture, batch_of(TINY, collate, pictures, chats, padding=3), keyed(0))
    apart, before = [], 0
    for chat in chats:
        batch = batch_of(TINY, collate, pictures, [chat])
        apart.append(sums(architecture, batch, keyed(before)))
        before += len(batch.drawn)
    for modality in ("text", "picture"):
        torch.testing.assert_close(packed[modality], torch.stack([one[modality] for one in apart]).sum())


def test_a_hidden_condition_changes_nothing_of_the_picture(collate: Collate, pictures: Tensor, draw: Draw) -> None:
    dropped = build(replace(TINY, condition_dropout=1.0))
    said, other = ([("assistant", [caption, 0])] for caption in ("a cat", "a dog"))
    found = [
        sums(dropped, batch_of(TINY, collate, pictures, [(chat, "caption_pair")]), draw)["picture"]
        for chat in (said, other)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    kept = build(TINY)
    found = [
        sums(kept, batch_of(TINY, collate, pictures, [(chat, "caption_pair")]), draw)["picture"]
        for chat in (said, other)
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, coder=UNET),
        replace(TINY, canvas=Latents(vae=VAE, side=16, factor=4, channels=4), coder=LinearCoder(patch=2)),
        replace(TINY, whole_pictures=False, prediction="v_prediction"),
    ],
    ids=["linear", "u-net", "latents", "causal"],
)
@pytest.mark.parametrize("rows", [[[PAIR], [READ]], [[READ]], [[PLAIN]], [[]]], ids=["mixed", "read", "text", "none"])
def test_every_parameter_gets_a_gradient_whatever_a_micro_batch_lacks(
    config: Transfusion, rows: list, collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    architecture = build(config)
    batch = batch_of(config, collate, pictures, *rows, padding=2)
    found = sums(architecture, batch, draw)
    counts = architecture.counts(batch)
    assert all(value.isfinite() and (counts[name] > 0 or value == 0) for name, value in found.items())
    torch.stack(list(found.values())).sum().backward()
    gradients = {name: parameter.grad for name, parameter in architecture.module.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]


def test_a_frozen_language_model_is_outside_the_optimizer_and_gradients_flow_through_it(
    collate: Collate, pictures: Tensor, draw: Draw
) -> None:
    architecture = build(replace(TINY, text_rate=0.0))
    found = sums(architecture, batch_of(TINY, collate, pictures, [PAIR]), draw)
    found["picture"].backward()
    trained = {name for name, parameter in architecture.module.named_parameters() if parameter.requires_grad}
    assert trained and all(not name.startswith("backbone.") for name in trained)
    gradient = architecture.module.get_parameter("coder.inwards.weight").grad
    assert gradient is not None and gradient.any()
    assert build(replace(TINY, text_rate=0.1)).care("backbone.model.norm.weight").rate == 0.1
    assert not architecture.care("marks_in").decay


def shown(pictures: Tensor) -> list[Image.Image]:
    return [Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()) for picture in pictures]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("whole", [True, False])
def test_sampling_with_the_cache_equals_denoising_without_it(whole: bool, guidance: float, pictures: Tensor) -> None:
    config = replace(TINY, whole_pictures=whole)
    architecture, layout = build(config), config.layout()
    turns = [("user", (0, "redder"))]
    asked = Asked(answer="picture", steps=3, guidance=guidance, seed=4)
    (drawn,) = architecture.answer(turns, shown(pictures[:1]), asked, task="image_editing", key="k").parts
    assert isinstance(drawn, Tensor)
    torch.testing.assert_close(drawn, without_cache(architecture, layout, turns, shown(pictures[:1]), asked))
    again = architecture.answer(turns, shown(pictures[:1]), asked, task="image_editing", key="k").parts[0]
    assert isinstance(again, Tensor) and torch.equal(again, drawn)


def without_cache(
    architecture: TransfusionArchitecture, layout: PlainLayout, turns: list, given: list[Image.Image], asked: Asked
) -> Tensor:
    """The same picture by running the whole training-time document at each timestep, condition shown and hidden."""
    from models.diffusion import COSINE, ancestral, sampling, starting_noise
    from models.sequence import blocks, picture_places, prompted, sees
    from models.transfusion import picture_tokens

    config, module = architecture.config, architecture.module
    document = layout.lay_out([*turns, ("assistant", (0,))], task="image_editing", key="k")
    batch = prompted(document, given, None, config.drawn)

    @torch.no_grad()
    def predict(canvas: Tensor, timestep: Tensor) -> Tensor:
        clean = 2 * batch.drawn.pixels[:1] - 1
        times = torch.stack([torch.zeros_like(timestep), timestep])
        tokens, passed = module.coder.down(torch.cat([clean, canvas]), times)
        inputs = module.embedded(batch.ids).index_put(picture_places(batch.drawn), tokens.flatten(0, 1))
        outcome = []
        for hiding in (torch.zeros_like(batch.condition), batch.condition):
            sight = sees(batch.document, blocks(batch, whole=config.whole_pictures), hiding)
            states = module.run(inputs, picture_tokens(batch), sight, batch.position)
            pictures = states[picture_places(batch.drawn)].unflatten(0, (2, 4))
            outcome.append(module.coder.up(pictures, times, passed)[1:])
        return outcome[1] + asked.guidance * (outcome[0] - outcome[1])

    canvas = ancestral(
        predict,
        starting_noise((3, 16, 16), asked.seed, 0)[None],
        schedule=COSINE,
        prediction=config.prediction,
        steps=asked.steps,
        bound=1.0,
        generator=sampling(asked.seed, 0, "step"),
    )
    return ((canvas[0] + 1) / 2).clamp(0, 1)


def test_a_free_answer_may_hold_pictures_and_a_text_answer_none(pictures: Tensor) -> None:
    architecture = build(TINY)
    torch.nn.init.normal_(architecture.module.marks_out, std=3.0, generator=torch.Generator().manual_seed(1))
    asked = Asked(answer="free", steps=2, max_tokens=30)
    turns = [("user", (0, "go on"))]
    free = architecture.answer(turns, shown(pictures[:1]), asked, task="image_qa", key="k")
    text = architecture.answer(turns, shown(pictures[:1]), replace(asked, answer="text"), task="image_qa", key="k")
    drawn = [part for part in free.parts if isinstance(part, Tensor)]
    assert 0 < len(drawn) <= 4 and all(part.shape == (3, 16, 16) for part in drawn)
    assert all(isinstance(part, str) for part in text.parts)


def test_eight_captions_are_learned_as_eight_pictures(collate: Collate, pictures: Tensor) -> None:
    config = replace(
        TINY,
        backbone=Llama(width=64, layers=2, heads=4, kv_heads=4, ffn=128),
        canvas=Pixels(side=8),
        coder=UNetCoder(
            channels=(16, 32, 32), attends=(False, False, False), layers_per_block=1, head_width=16, groups=8
        ),
    )
    architecture = build(config)
    rows = [[([("user", [letter]), ("assistant", [i])], "text_to_image")] for i, letter in enumerate("abcdefgh")]
    batch = batch_of(config, collate, pictures, *8 * rows)  # eight timesteps of each at a step
    optimizer = torch.optim.AdamW(architecture.module.parameters(), lr=3e-3)
    steps = 250
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)

        def draw(purpose: str, index: int, step: int = step) -> torch.Generator:
            return torch.Generator().manual_seed(len(purpose) * 100_000 + step * 64 + index)

        found = sums(architecture, batch, draw)
        optimizer.zero_grad()
        (found["picture"] / 64).backward()
        optimizer.step()
    real = batch.drawn.pixels
    for i, letter in enumerate("abcdefgh"):
        asked = Asked(answer="picture", steps=50, guidance=1.0)
        (drawn,) = architecture.answer([("user", (letter,))], [], asked, task="text_to_image", key="k").parts
        assert isinstance(drawn, Tensor)
        assert (drawn - real[i]).square().mean() < 0.02  # an answer blind to its caption: 0.08 at best


def test_a_model_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        module = replace(TINY, coder=UNET).build().module
    assert all(parameter.is_meta for parameter in module.parameters())
