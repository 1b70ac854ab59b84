"""Transfusion: one transformer that predicts the next token of text and the noise of pictures.

# B rows, N tokens of a row, P drawn pictures, R = max(P, 1), T tokens of a picture, D width, [F, h, w] a canvas

    pictures ─ (VAE, frozen) ─ canvas ─ + noise at timestep ─ coder down ─ tokens ─┐               ┌─ logits
    ids ────────────────────────────────────────────────────────────── embedding ──┴─ transformer ─┤
                                                                                                   └─ coder up ─ noise
A picture of the user, or of an earlier turn, is clean: timestep 0, nothing is learned of it. With published weights as
the backbone this is the dense fine-tuning that LMFusion compares itself with.
Source: arXiv:2408.11039 sections 3 and 4; LMFusion, section 5.1, arXiv:2412.15188.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from PIL.Image import Image
from torch import Tensor
from transformers import DynamicCache

from models import coders, lora
from models.apart import gaussian, gaussians
from models.configs import Transfusion
from models.diffusion import (
    COSINE,
    TIMESTEPS,
    ancestral,
    at_least_one,
    noising,
    normal,
    sampling,
    sought,
    starting_noise,
    timesteps,
)
from models.interface import Answered, Asked, Batch, Care, Draw, Losses, Measured, Parts
from models.layout import PlainLayout, Turns
from models.parts import vocabulary
from models.sequence import blocks, hidden, mask, picture_places, prompted, sees
from models.transformer import LanguageModel, Speaking, best, evaluating, language_model, roomy
from models.vision import CanvasEncoder, Gaussian


class TransfusionModule(Speaking):
    """What learns: backbone, coder, and the rows of BOI and EOI."""

    def __init__(
        self, backbone: LanguageModel, coder: coders.Linear | coders.UNet, config: Transfusion, *, size: int
    ) -> None:
        super().__init__(backbone, tokenizer_size=size)
        self.coder = coder
        self.config = config
        self.noising = noising(COSINE, config.prediction)

    def forward(self, batch: Batch, features: Gaussian, draw: Draw) -> Losses:
        """Sums of the text's cross-entropy, and over answer pictures of the mean squared error of the noise.

        The coder cannot run on no pictures: then one phantom of zeros goes through it, and counts nothing. Where no
        rank has any, it is left out.

        Args:     features: of the canvas encoder, for every drawn picture.
                  draw:     "noise" and "timestep" of each picture, "condition" of a document; "latent" under a VAE.
        """
        if not batch.draws:
            return self.of_text(batch, features)
        drawn = batch.drawn
        mean, std = self.canvas(features)
        canvas = at_least_one(mean + std * normal(std, "latent", draw))
        noise = at_least_one(normal(mean, "noise", draw))
        timestep = at_least_one(self.timesteps(batch, draw))
        noised = self.noising.add_noise(canvas, noise, timestep)  # pyright: ignore[reportArgumentType]
        answer = at_least_one(drawn.answer)
        tokens, passed = self.coder.down(self.cast(torch.where(answer[:, None, None, None], noised, canvas)), timestep)

        inputs = self.placed(batch, features, tokens)
        hiding = hidden(batch, draw, self.config.condition_dropout)
        sight = mask(self.backbone, batch.document, blocks(batch, whole=self.config.whole_pictures), hiding)
        states = self.run(inputs, picture_tokens(batch), sight, batch.position)

        seen = rearrange(states[picture_places(drawn)], "(p t) d -> p t d", p=len(drawn)) if len(drawn) else tokens
        predicted = self.coder.up(seen, timestep, passed).float()
        error = (predicted - sought(self.noising, canvas, noise, timestep)).square().mean(dim=(1, 2, 3))
        picture = error[: len(drawn)][drawn.answer], (drawn.row[drawn.answer], drawn.start[drawn.answer])
        return Losses.of(batch, text=self.text_loss(states, batch), picture=picture)

    def of_text(self, batch: Batch, features: Gaussian) -> Losses:
        """The same without a drawn picture anywhere: the language model alone."""
        assert len(batch.drawn) == 0
        inputs = self.placed(batch, features, self.marks_in.new_zeros(0, 0, self.marks_in.shape[1]))
        sight = mask(self.backbone, batch.document, blocks(batch, whole=False), torch.zeros_like(batch.condition))
        states = self.alone(inputs, sight, batch.position)
        nothing = states[:0, 0, 0].float(), (batch.drawn.row, batch.drawn.start)
        return Losses.of(batch, text=self.text_loss(states, batch), picture=nothing)

    def canvas(self, features: Gaussian) -> Gaussian:
        """What the canvas of each drawn picture is drawn from."""
        return features

    def placed(self, batch: Batch, features: Gaussian, tokens: Tensor) -> Tensor:
        """The transformer's inputs: float[B, N, D], with the coder's tokens float[R, T, D] where pictures stand."""
        flat = rearrange(tokens[: len(batch.drawn)], "p t d -> (p t) d")
        return self.embedded(batch.ids).index_put(picture_places(batch.drawn), flat)

    def run(
        self, inputs: Tensor, picture: Tensor, sight: Tensor, position: Tensor, cache: DynamicCache | None = None
    ) -> Tensor:
        """The transformer with its last norm.

        Args:     inputs: float[B, N, D]; picture: bool[B, N], the tokens of drawn pictures; sight: who sees whom;
                  position: int64[B, N]; cache: of what stands before, and takes this up.
        Returns:  float[B, N, D].
        """
        return self.alone(inputs, sight, position, cache)

    def alone(self, inputs: Tensor, sight: Tensor, position: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """The language model with its last norm: float[B, N, D] -> the same."""
        return self.backbone.model(
            inputs_embeds=inputs,
            attention_mask=sight,
            position_ids=position,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def timesteps(self, batch: Batch, draw: Draw) -> Tensor:
        """Of each drawn picture: int64[P]; 0 for one that is given, under the cap where text follows."""
        drawn = batch.drawn
        limits = [
            (self.config.noise_cap if follows else TIMESTEPS) if answer else 0
            for answer, follows in zip(drawn.answer.tolist(), drawn.followed.tolist(), strict=True)
        ]
        return timesteps(limits, draw).to(batch.ids.device)

    def cast(self, canvas: Tensor) -> Tensor:
        """In the type of the weights."""
        return canvas.to(self.marks_in.dtype)


def picture_tokens(batch: Batch) -> Tensor:
    """Which tokens are of drawn pictures: bool[B, N]."""
    return torch.zeros_like(batch.target).index_put(picture_places(batch.drawn), batch.target.new_ones(()))


class TransfusionArchitecture:
    """The `Architecture` of `configs.Transfusion` and of those that differ from it in the transformer alone."""

    def __init__(self, config: Transfusion, *, encoder: CanvasEncoder, module: TransfusionModule) -> None:
        self.config = config
        self.encoder = encoder
        self.module = module

    def encode(self, batch: Batch) -> Gaussian:
        """What the canvas of each drawn picture is drawn from."""
        return self.encoder(batch.drawn.pixels)

    @property
    def measured(self) -> Measured:
        """Latents; of a canvas of pixels there is nothing to keep."""
        if self.encoder.vae is None:
            return Measured(network=self.encoder, settings={}, views=(), pixels=("drawn",))
        return Measured(network=self.encoder, settings={"canvas": self.config.canvas}, views=("drawn",))

    def apart(self, batch: Batch) -> Parts:
        """What each canvas is drawn from."""
        return {"drawn": gaussians(self.encoder(batch.drawn.pixels))} if self.encoder.vae else {}

    def together(self, parts: Parts, batch: Batch) -> Gaussian:
        """The inverse of `apart`; a canvas of pixels is made of them."""
        if drawn := parts.get("drawn"):
            return gaussian(drawn, batch.ids.device)
        return self.encoder(batch.drawn.pixels)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Target ids, and pictures of answers: each counts once, whatever its size."""
        return {"text": int(batch.target.sum()), "picture": int(batch.drawn.answer.sum())}

    def care(self, name: str) -> Care:
        """The language model's own weights by its rate; no decay on the marks, which are rows of an embedding."""
        if name.startswith("marks_"):
            return Care(decay=False)
        return Care(rate=self.config.text_rate if name.startswith("backbone.") else 1.0)

    @property
    def weights(self) -> Mapping[str, float]:
        """Equation 4."""
        return {"text": 1.0, "picture": self.config.picture_coefficient}

    def answer(self, turns: Turns, pictures: Sequence[Image], asked: Asked, *, task: str, key: str) -> Answered:
        """See `interface.Architecture`."""
        layout = self.config.layout()
        sizes = [picture.size for picture in pictures]
        document = layout.prompt(turns, task=task, key=key, answer=asked.answer, sizes=sizes)
        asked = roomy(asked, len(document), self.module.backbone)
        batch = prompted(document, pictures, self.config.seen, self.config.drawn).to(self.module.marks_in.device)
        with torch.no_grad(), evaluating(self.module):
            return _Teller(self, layout, asked).told(batch)

    @property
    def canvas(self) -> CanvasEncoder:
        """The encoder of what is noised and painted."""
        return self.encoder


class _Teller:
    """One answer: text greedily, pictures by denoising. What was read stays in a cache.

    Under guidance there are two rows, with the condition and without: in the second nobody outside the condition sees
    it, as in training.
    """

    def __init__(
        self, architecture: TransfusionArchitecture, layout: PlainLayout, asked: Asked, *, max_pictures: int = 4
    ) -> None:
        self.architecture, self.module, self.layout = architecture, architecture.module, layout
        self.asked = asked
        self.pictures_left = 0 if asked.answer == "text" else max_pictures
        self.drawn = 0
        self.rows = 1 if asked.guidance == 1.0 or asked.answer == "text" else 2
        self.cache = DynamicCache(config=self.module.backbone.config)
        self.device = self.module.marks_in.device
        self.hidden = torch.zeros(self.rows, 0, dtype=torch.bool, device=self.device)

    def told(self, batch: Batch) -> Answered:
        """The answer to the prompt that is this batch's only row."""
        state = self.read(batch)
        if self.asked.answer == "picture":
            return Answered(parts=(self.picture(),))
        parts: list[str | Tensor] = []
        said: list[int] = []
        for _ in range(self.asked.max_tokens):
            token = best(self.module.logits(state), self.layout.tokenizer.size, may_open=self.pictures_left > 0)
            if token == self.layout.end_of_turn:
                break
            state = self.word(token)
            if token == self.layout.image_start:
                parts += [self.layout.tokenizer.decode(said), self.picture()]
                said = []
                self.pictures_left -= 1
                state = self.word(self.layout.image_end)
            else:
                said.append(token)
        parts.append(self.layout.tokenizer.decode(said))
        return Answered(parts=tuple(part for part in parts if isinstance(part, Tensor) or part))

    def read(self, batch: Batch) -> Tensor:
        """The state after the prompt: float[D]."""
        module, features = self.module, self.architecture.encode(batch)
        canvas = at_least_one(module.canvas(features).mean)
        clean = torch.zeros(len(canvas), dtype=torch.int64, device=self.device)
        tokens, _ = module.coder.down(module.cast(canvas), clean)
        inputs = module.placed(batch, features, tokens)
        self.hidden = torch.cat([torch.zeros_like(batch.condition), batch.condition])[: self.rows]
        document, block = (
            value.expand(self.rows, -1) for value in (batch.document, blocks(batch, whole=module.config.whole_pictures))
        )
        return module.run(
            inputs.expand(self.rows, -1, -1),
            picture_tokens(batch).expand(self.rows, -1),
            sees(document, block, self.hidden),
            batch.position.expand(self.rows, -1),
            self.cache,
        )[0, -1]

    def more(self, inputs: Tensor, *, picture: bool) -> Tensor:
        """The states of more tokens that see each other and what was read: float[rows, n, D] -> the same."""
        count, before = inputs.shape[1], self.hidden.shape[1]
        shape = (self.rows, 1, count, before + count)
        open_ = torch.cat([~self.hidden, torch.ones_like(self.hidden[:, :1]).expand(-1, count)], dim=1)
        sight = open_[:, None, None].expand(shape)
        if picture and not self.module.config.whole_pictures:
            sight = sight & torch.ones(shape[2:], dtype=torch.bool, device=self.device).tril(before)
        position = torch.arange(before, before + count, device=self.device).expand(self.rows, -1)
        kind = torch.full((self.rows, count), picture, device=self.device)
        return self.module.run(inputs, kind, sight, position, self.cache)

    def word(self, token: int) -> Tensor:
        """The state after one id: float[D]."""
        inputs = self.module.embedded(torch.full((self.rows, 1), token, device=self.device))
        states = self.more(inputs, picture=False)
        self.hidden = torch.cat([self.hidden, torch.zeros_like(self.hidden[:, :1])], dim=1)
        return states[0, -1]

    def picture(self) -> Tensor:
        """The picture after BOI: float32[3, H, W] in 0..1 on the CPU. Its clean tokens are read."""
        before = self.hidden.shape[1]
        coder, rows = self.module.coder, self.rows

        def predict(canvas: Tensor, timestep: Tensor) -> Tensor:
            if self.cache.get_seq_length() > before:  # of the timestep before
                self.cache.crop(before - self.cache.get_seq_length())
            times = timestep.expand(rows)
            tokens, passed = coder.down(self.module.cast(canvas.expand(rows, -1, -1, -1)), times)
            predicted = coder.up(self.more(tokens, picture=True), times, passed).float()
            return predicted[:1] if rows == 1 else predicted[1:] + self.asked.guidance * (predicted[:1] - predicted[1:])

        noise = starting_noise(self.architecture.canvas.shape, self.asked.seed, self.drawn)[None].to(self.device)
        canvas = ancestral(
            predict,
            noise,
            schedule=COSINE,
            prediction=self.module.config.prediction,
            steps=self.asked.steps,
            bound=1.0 if self.architecture.canvas.vae is None else LATENT_BOUND,
            generator=sampling(self.asked.seed, self.drawn, "step"),
        )
        self.drawn += 1
        predict(canvas, torch.zeros((), dtype=torch.int64, device=self.device))  # what is read on is the clean picture
        count = self.module.coder.side**2
        self.hidden = torch.cat([self.hidden, torch.zeros_like(self.hidden[:, :1]).expand(-1, count)], dim=1)
        return self.architecture.canvas.pictures(canvas)[0].cpu()


LATENT_BOUND = 5.0  # standard deviations; at the cosine schedule's end an estimate of the canvas has no bounds


def build(config: Transfusion, kind: type[TransfusionModule] = TransfusionModule) -> TransfusionArchitecture:
    """The modules, on CPU, float32; what starts at random is a function of `config.seed`.

    Args:   kind: of the module, for those that differ in the transformer alone.
    Raises:
        ValueError: weights that cannot be had, or a LoRA that fits nowhere.
    """
    size = vocabulary(config.backbone)
    encoder = CanvasEncoder(config.canvas)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        backbone = language_model(config.backbone, size)
        coder = coders.built(
            config.coder,
            channels=config.canvas.channels,
            cells=config.canvas.cells,
            width=backbone.config.hidden_size,
        )
        module = kind(backbone, coder, config, size=size)
    if config.text_rate == 0:
        module.backbone.requires_grad_(False)
    lora.inject(module, config.lora, config.seed)
    return TransfusionArchitecture(config, encoder=encoder, module=module)
