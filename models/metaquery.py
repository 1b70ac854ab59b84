"""MetaQuery: learned queries in a frozen vision-language model's input, whose states a diffusion decoder paints from.

# B rows, N tokens of a row, P drawn pictures, R = max(P, 1), Q queries of a picture, T places of a condition,
# D width of the language model, C of the condition, S tokens of read pictures, [F, h, w] a canvas

    pictures of the user ─ vision tower (frozen) ─┐
    ids ───────────────── embedding (frozen) ─────┼─ language model (frozen) ─ states of the queries ─ connector ─┐
    queries ──────────────────────────────────────┘                                                    condition ─┤
    pictures of the assistant ─ (autoencoder, frozen) ─ canvas + noise ─────────────────────────────────── decoder ─┴─
Nothing of a text is learned: what the model understands and says is what it was published with, bit by bit.
Source: arXiv:2504.06256 section 3; models/ and dataset.py of facebookresearch/metaquery.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from models import lora, pretrained
from models.apart import gaussian, gaussians, joined
from models.configs import MetaQuery
from models.connector import ConnectorModule
from models.decoders import Decoder, DeepCanvas, canvas_encoder, decoder
from models.diffusion import TIMESTEPS, at_least_one, normal, starting_noise, timesteps
from models.interface import Answered, Asked, Batch, Care, Draw, Features, Losses, Measured, Parts, Pictures
from models.layout import Document, MetaQueryLayout, Slot, Turns
from models.multimodal import LanguageModel, Tower, model_of, parts_of, places
from models.parts import Pixels, Pretrained, QwenVL
from models.sequence import batched, blocks, mask, picture_places, prompted, sides
from models.transformer import evaluating, roomy
from models.views import Cut
from models.vision import CanvasEncoder, Gaussian, Leaf


class Encoded(NamedTuple):
    """What the leaf encoders make of a batch.

    seen    float32[S, D]  tokens of the read pictures, in order of `picture_places(batch.seen)`
    black   float32[S, D]  those of black pictures in their places
    canvas  what the canvas of each drawn picture is drawn from
    states  of each drawn picture, where the language model ran beforehand: what the connector reads, float[T, D],
            for each that `taken` may say; then nothing was read
    """

    seen: Tensor
    black: Tensor
    canvas: Gaussian
    states: Sequence[Features] | None = None


class MetaQueryEncoder(Leaf):
    """The vision tower, and pictures <-> the canvas that is noised and painted."""

    def __init__(self, tower: Tower, canvas: CanvasEncoder | DeepCanvas) -> None:
        super().__init__()
        self.tower = tower
        self.canvas = canvas
        self.freeze()

    def forward(self, batch: Batch) -> Encoded:
        """See `Encoded`."""
        return Encoded(self.tower(batch.seen), self.tower.black(batch.seen), self.canvas(batch.drawn.pixels))


class Reading(Leaf):
    """All that the states depend on which the connector reads, where nothing of it learns."""

    def __init__(self, encoder: MetaQueryEncoder, module: MetaQueryModule) -> None:
        super().__init__()
        self.encoder = encoder
        self.backbone = module.backbone
        self.rows = nn.ParameterList([module.queries, module.marks])


class MetaQueryModule(nn.Module):
    """What learns, and the language model through which it does."""

    def __init__(self, config: MetaQuery, backbone: LanguageModel, head: nn.Linear, *, tokenizer_size: int) -> None:
        super().__init__()
        self.config = config
        self.tokenizer_size = tokenizer_size
        self.turns_in_space = isinstance(config.sizes, QwenVL)
        self.backbone = backbone
        self.head = head  # for answers in text
        rows = backbone.embed_tokens.weight.detach()[:tokenizer_size]
        count = 1 if config.condition == "last_layer" else config.queries
        self.queries = nn.Parameter(started(rows, count, config.start))
        self.marks = nn.Parameter(started(rows, 2, config.start))
        self.decoder: Decoder = decoder(config.decoder)
        self.connector = ConnectorModule(
            config.connector, width=rows.shape[1], condition=self.decoder.width, gain=config.decoder.gain
        )
        self.requires_grad_(False)
        self.connector.requires_grad_(True)
        self.backbone.requires_grad_(config.trained in ("language_model", "all"))
        self.decoder.requires_grad_(config.trained in ("decoder", "all"))
        for rows in (self.queries, self.marks):
            rows.requires_grad_(config.condition == "queries")

    def forward(self, batch: Batch, features: Encoded, draw: Draw) -> Losses:
        """The sum over answers of the mean squared error of what the decoder predicts.

        The decoder cannot run on no pictures: then one phantom of zeros goes through it, and counts nothing.

        Args:  draw: "noise", "timestep" and "latent" of each picture, "condition" of a document's first.
        """
        count = len(batch.drawn)
        hiding, blacked = dropped(batch, draw, self.config.condition_dropout)
        condition, present = self.condition(batch, features, hiding, blacked)

        mean, std = features.canvas
        canvas = at_least_one(mean + std * normal(std, "latent", draw))
        noise = at_least_one(normal(mean, "noise", draw))
        timestep = at_least_one(timesteps([TIMESTEPS] * count, draw)).to(canvas.device)
        noised, wanted = self.decoder.noised(canvas, noise, timestep)
        predicted = self.decoder(noised, timestep, condition, present)
        error = (predicted - wanted).square().mean(dim=(1, 2, 3))
        return Losses.of(batch, picture=(error[:count], (batch.drawn.row, batch.drawn.start)))

    def condition(self, batch: Batch, features: Encoded, hiding: Tensor, blacked: Tensor) -> tuple[Tensor, Tensor]:
        """What each drawn picture is painted from, of a phantom where there is none.

        Args:     hiding: bool[B, N], tokens that are not seen. blacked: bool[], read pictures that are shown black.
        Returns:  float[R, T, C], and which places are present: bool[R, T].
        """
        chosen, present = self.states(batch, features, hiding, blacked)
        return self.connector(chosen, present), present

    def states(self, batch: Batch, features: Encoded, hiding: Tensor, blacked: Tensor) -> tuple[Tensor, Tensor]:
        """What the connector reads, float[R, T, D], and which places are present: bool[R, T]."""
        if features.states is not None:
            said = [states[name] for states, name in zip(features.states, taken(batch, hiding, blacked), strict=True)]
            return padded([each.to(self.queries) for each in said] or [torch.zeros_like(self.queries[:1])])
        black = blacked.repeat_interleave(batch.seen.tokens)[:, None]
        inputs = self.embedded(batch, torch.where(black, features.black, features.seen))
        sight = mask(self.backbone, batch.document, blocks(batch, whole=False), hiding)
        return self.chosen(self.run(inputs, sight, self.places(batch)), batch, hiding)

    def embedded(self, batch: Batch, seen: Tensor) -> Tensor:
        """The language model's inputs: float[B, N, D]. seen: float32[S, D]."""
        ids, size = batch.ids, self.tokenizer_size
        words = self.backbone.embed_tokens(ids.clamp(max=size - 1))
        marks = (ids >= size).nonzero(as_tuple=True)
        inputs = words.index_put(marks, self.marks[ids[marks] - size])
        inputs = inputs.index_put(picture_places(batch.seen), seen.to(inputs.dtype))
        return inputs.index_put(picture_places(batch.drawn), self.queries.repeat(len(batch.drawn), 1))

    def places(self, batch: Batch) -> Tensor:
        """Positions as the language model counts them: int64[B, N], of Qwen2.5-VL int64[3, B, N]."""
        return places(batch) if self.turns_in_space else batch.position

    def run(self, inputs: Tensor, sight: Tensor | None, position: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """The language model with its last norm: float[B, N, D] -> the same."""
        return self.backbone(
            inputs_embeds=inputs,
            attention_mask=sight,
            position_ids=position,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def chosen(self, states: Tensor, batch: Batch, hiding: Tensor) -> tuple[Tensor, Tensor]:
        """The states that the connector reads: float[R, T, D], and which are present: bool[R, T]."""
        drawn = batch.drawn
        if len(drawn) == 0:
            phantom = states[:1, :1].expand(1, self.config.queries, -1)
            return phantom, torch.ones_like(phantom[..., 0], dtype=torch.bool)
        if self.config.condition != "last_layer":
            of_queries = rearrange(states[picture_places(drawn)], "(p q) d -> p q d", p=len(drawn))
            return of_queries, torch.ones_like(of_queries[..., 0], dtype=torch.bool)
        place = torch.arange(states.shape[1], device=states.device)
        said = []
        for row, start in zip(drawn.row.tolist(), drawn.start.tolist(), strict=True):
            here = (batch.document[row] == batch.document[row, start]) & (place < start - 1)  # before the mark
            said.append(states[row, here & ~hiding[row]])
        return padded(said)


def padded(said: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """States of one length and which are present: R times float[T, D] -> float[R, T, D], bool[R, T]."""
    lengths = torch.tensor([len(one) for one in said], device=said[0].device)
    states = pad_sequence(list(said), batch_first=True)
    return states, torch.arange(states.shape[1], device=states.device) < lengths[:, None]


def started(rows: Tensor, count: int, start: str) -> Tensor:
    """Rows to begin with: at random, as long as OpenUni's, or all at the mean. float[V, D] -> float[count, D]."""
    if start == "mean":
        return rows.mean(dim=0, keepdim=True).repeat(count, 1)
    return torch.randn(count, rows.shape[1]) / rows.shape[1] ** 0.5


def dropped(batch: Batch, draw: Draw, rate: float) -> tuple[Tensor, Tensor]:
    """What condition dropout takes away: words are hidden, pictures shown black.

    A number of a document's first answer decides. At a rate of 0.1, of a caption 0.1; of pictures whose request may
    not be hidden 0.1; of both together 0.1 the caption alone, 0.1 both, 0.1 the pictures alone.

    Returns:  bool[B, N], hidden tokens; bool[] of the read pictures, black.
    Source:   dataset.py of facebookresearch/metaquery.
    """
    hiding = torch.zeros_like(batch.condition)
    blacked = torch.zeros_like(batch.seen.answer)
    owner = batch.document[batch.seen.row, batch.seen.start]
    decided: set[tuple[int, int]] = set()
    for index in range(len(batch.drawn)) if rate > 0 else ():
        row = int(batch.drawn.row[index])
        document = int(batch.document[row, batch.drawn.start[index]])
        if (row, document) in decided:
            continue
        decided.add((row, document))
        generator = draw("condition", index)
        chance = float(torch.rand((), generator=generator, device=generator.device))
        words = batch.condition[row] & (batch.document[row] == document)
        shown = (batch.seen.row == row) & (owner == document)
        both = bool(words.any()) and bool(shown.any())
        if chance < (2 * rate if both else rate):
            hiding[row] |= words
        if (rate <= chance < 3 * rate) if both else chance < rate:
            blacked |= shown
    return hiding, blacked


def taken(batch: Batch, hiding: Tensor, blacked: Tensor) -> list[str]:
    """What `dropped` took away from the document of each drawn picture: "nothing", "words", "pictures" or "both"."""
    drawn, seen = batch.drawn, batch.seen
    document = batch.document[drawn.row, drawn.start]
    words = (hiding[drawn.row] & (batch.document[drawn.row] == document[:, None])).any(dim=1)
    shown = (seen.row == drawn.row[:, None]) & (batch.document[seen.row, seen.start] == document[:, None])
    pictures = (shown & blacked).any(dim=1)
    names = {(False, False): "nothing", (True, False): "words", (False, True): "pictures", (True, True): "both"}
    return [names[pair] for pair in zip(words.tolist(), pictures.tolist(), strict=True)]


BLACK = 64  # sizes of pictures whose black tokens are kept at hand


class MetaQueryArchitecture:
    """The `Architecture` of `configs.MetaQuery`."""

    def __init__(self, config: MetaQuery, *, encoder: MetaQueryEncoder, module: MetaQueryModule) -> None:
        self.config = config
        self.encoder = encoder
        self.module = module
        self.latent = not isinstance(config.decoder.canvas, Pixels)
        reads = (module.queries, module.marks, *module.backbone.parameters())
        self.still = not any(parameter.requires_grad for parameter in reads)  # what the connector reads never changes
        self._black: dict[tuple[int, int], Tensor] = {}

    def encode(self, batch: Batch) -> Encoded:
        """What was read, and what the canvas of each drawn picture is drawn from."""
        return self.encoder(batch)

    @property
    def measured(self) -> Measured:
        """Latents, and tokens; where what reads them never learns, the states that it makes of them instead."""
        config, module = self.config, self.module
        settings: dict[str, Any] = {
            "backbone": config.backbone,
            "canvas": config.decoder.canvas,
            "reconstruction": config.reconstruction,
        }
        pixels = () if self.latent else ("drawn",)
        if not self.still:
            views = ("seen", "drawn") if self.latent else ("seen",)
            return Measured(network=self.encoder, settings=settings, views=views, pixels=pixels)
        for name in ("condition", "queries", "system", "caption_tokens", "pixels"):
            settings[name] = getattr(config, name)
        settings["dropout"] = config.condition_dropout > 0
        return Measured(network=Reading(self.encoder, module), settings=settings, views=("drawn",), pixels=pixels)

    def apart(self, batch: Batch) -> Parts:
        """Tokens of each picture that is read, or states of each drawn one, and what its canvas is drawn from."""
        if self.still:
            features = self.encode(batch)
            latents = gaussians(features.canvas) if self.latent else [{}] * len(batch.drawn)
            states = self._states(batch, features)
            return {"drawn": [{**latent, **one} for latent, one in zip(latents, states, strict=True)]}
        read = self.encoder.tower(batch.seen).split(batch.seen.tokens.tolist())
        drawn: Parts = {"drawn": gaussians(self.encoder.canvas(batch.drawn.pixels))} if self.latent else {}
        return {"seen": [{"tokens": tokens} for tokens in read], **drawn}

    def together(self, parts: Parts, batch: Batch) -> Encoded:
        """The inverse of `apart`; a canvas of pixels is made of them."""
        seen, drawn, device = parts.get("seen"), parts.get("drawn"), batch.ids.device
        canvas = gaussian(drawn, device) if drawn and self.latent else self.encoder.canvas(batch.drawn.pixels)
        nothing = torch.zeros(0, self.encoder.tower.width, device=device)
        if self.still:
            return Encoded(nothing, nothing, canvas, drawn)
        read = joined(seen, "tokens", device) if seen else nothing
        return Encoded(read, self._shown_black(batch.seen) if self.config.condition_dropout else read, canvas)

    def _states(self, batch: Batch, features: Encoded) -> list[dict[str, Tensor]]:
        """What the connector reads of each drawn picture, for all that condition dropout may take away."""
        none, nobody = torch.zeros_like(batch.condition), torch.zeros_like(batch.seen.answer)
        takes = [(none, nobody)]
        if self.config.condition_dropout:
            takes += [(batch.condition, nobody), (none, ~nobody), (batch.condition, ~nobody)]
        found: list[dict[str, Tensor]] = [{} for _ in range(len(batch.drawn))]
        with torch.no_grad(), evaluating(self.module):
            for hiding, blacked in takes if found else ():
                states, present = self.module.states(batch, features, hiding, blacked)
                for index, name in enumerate(taken(batch, hiding, blacked)):
                    found[index].setdefault(name, states[index, present[index]])
        return found

    def _shown_black(self, seen: Pictures) -> Tensor:
        """Tokens of black pictures in the places of these, float32[S, D]: read once for each of the last sizes."""
        tokens = [seen.pixels.new_zeros(0, self.encoder.tower.width)]
        for index, (rows, columns) in enumerate(seen.grid.tolist()):
            if (rows, columns) not in self._black:
                if len(self._black) == BLACK:
                    del self._black[next(iter(self._black))]
                one = {field.name: getattr(seen, field.name)[index : index + 1] for field in fields(seen)}
                self._black[rows, columns] = self.encoder.tower.black(Pictures(**one))
            tokens.append(self._black[rows, columns])
        return torch.cat(tokens)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Pictures of answers: each counts once, whatever its size."""
        return {"picture": len(batch.drawn)}

    def care(self, name: str) -> Care:
        """All alike; no decay on queries and marks, which are rows of an embedding."""
        return Care(decay=name not in ("queries", "marks"))

    @property
    def weights(self) -> Mapping[str, float]:
        """The only loss."""
        return {"picture": 1.0}

    def answer(self, turns: Turns, pictures: Sequence[Image.Image], asked: Asked, *, task: str, key: str) -> Answered:
        """See `interface.Architecture`. "free" is a picture for the tasks that it learns, and text for all others."""
        layout = self.config.layout()
        paints = asked.answer == "picture" or (asked.answer == "free" and task in self.config.tasks)
        kind = "picture" if paints else "text"
        sizes = [picture.size for picture in pictures]
        document = layout.prompt(turns, task=task, key=key, answer=kind, sizes=sizes)
        asked = roomy(asked, len(document), self.module.backbone)
        with torch.no_grad(), evaluating(self.module):
            if paints:
                return Answered(parts=(self.painted(document, pictures, asked),))
            return Answered(parts=(self.said(document, pictures, layout, asked.max_tokens),))

    def painted(self, document: Document, pictures: Sequence[Image.Image], asked: Asked) -> Tensor:
        """The picture that a prompt ends with: float32[3, H, W] in 0..1 on the CPU.

        Every condition that guidance compares is a row: of nothing, of the pictures alone, of all.
        """
        shown = any(slot.view == "seen" for slot in document.slots)
        takes = guided_by(asked, shown=shown)
        batch = self._rows(document, pictures, len(takes))
        words, black = (torch.tensor(values, device=batch.ids.device) for values in zip(*takes, strict=True))
        features = self.encode(batch)
        condition, present = self.module.condition(
            batch, features, batch.condition & words[:, None], black[batch.seen.row]
        )
        each = len(batch.drawn) // len(takes)
        condition, present = condition[each - 1 :: each], present[each - 1 :: each]

        def predict(canvas: Tensor, timestep: Tensor) -> Tensor:
            several = canvas.expand(len(takes), -1, -1, -1)
            predicted = self.module.decoder(several, timestep.expand(len(takes)), condition, present)
            return guided(predicted, asked.guidance, asked.image_guidance)

        noise = starting_noise(self.encoder.canvas.shape, asked.seed, 0)[None].to(condition.device)
        bounded = self.encoder.canvas.vae is None
        canvas = self.module.decoder.painted(predict, noise, asked.steps, bounded=bounded)
        return self.encoder.canvas.pictures(canvas)[0].cpu()

    def said(
        self, document: Document, pictures: Sequence[Image.Image], layout: MetaQueryLayout, max_tokens: int
    ) -> str:
        """What the vision-language model itself answers, likeliest token by token."""
        module = self.module
        batch = prompted(document, pictures, self.config.seen, self.config.drawn).to(module.queries.device)
        position = module.places(batch)
        cache = DynamicCache(config=module.backbone.config)
        states = module.run(module.embedded(batch, self.encoder.tower(batch.seen)), None, position, cache)
        position = position[..., -1:] + 1
        said: list[int] = []
        for _ in range(max_tokens):
            token = int(module.head(states[0, -1])[: module.tokenizer_size].argmax())
            if token == layout.end_of_turn:
                break
            said.append(token)
            word = module.backbone.embed_tokens(torch.tensor([[token]], device=position.device))
            states = module.run(word, None, position, cache)
            position = position + 1
        return layout.tokenizer.decode(said)

    def _rows(self, document: Document, pictures: Sequence[Image.Image], count: int) -> Batch:
        """A prompt several times; the picture to come, and those of earlier answers, are blank."""
        config = self.config
        blank = Image.new("RGB", (config.drawn.side, config.drawn.side))

        def picture(row: int, number: int, slot: Slot) -> tuple[Cut, tuple[int, int]]:
            if slot.view == "drawn":
                return config.drawn.cut(blank), blank.size
            image = pictures[slot.picture].convert("RGB")
            return config.seen.cut(image), image.size

        batch, _ = batched([[document]] * count, picture, sides=sides(config.seen, config.drawn))
        return batch.to(self.module.queries.device)


def guided_by(asked: Asked, *, shown: bool) -> list[tuple[bool, bool]]:
    """The conditions that guidance compares: (are the words hidden, are the pictures black), the whole one last."""
    if shown and (asked.guidance != 1.0 or asked.image_guidance != 1.0):
        return [(True, True), (True, False), (False, False)]
    if not shown and asked.guidance != 1.0:
        return [(True, False), (False, False)]
    return [(False, False)]


def guided(predicted: Tensor, words: float, pictures: float) -> Tensor:
    """What is predicted under guidance: float32[1 to 3, F, h, w], of `guided_by`'s conditions -> float32[1, F, h, w].

    u + words (c - u), with pictures u + pictures (t - u) + words (c - t).
    Source: models/metaquery.py of facebookresearch/metaquery; InstructPix2Pix, equation 3, arXiv:2211.09800.
    """
    if len(predicted) == 1:
        return predicted
    if len(predicted) == 2:
        nothing, all_ = predicted.split(1)
        return nothing + words * (all_ - nothing)
    nothing, shown, all_ = predicted.split(1)
    return nothing + pictures * (shown - nothing) + words * (all_ - shown)


def build(config: MetaQuery) -> MetaQueryArchitecture:
    """The modules, on CPU, float32; what starts at random is a function of `config.seed`.

    Raises:
        ValueError: weights that cannot be had, or that do not agree with the sizes that were spelled out.
    """
    tower, backbone, head = parts_of(model_of(config.backbone))
    ids = ids_of(config)
    if head.out_features < ids:
        raise ValueError(
            f"the backbone has {head.out_features} rows for a tokenizer whose last id is {ids - 1}: "
            "every id needs a row, use the tokenizer.json that was published with the weights"
        )
    encoder = MetaQueryEncoder(tower, canvas_encoder(config.decoder.canvas))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        module = MetaQueryModule(config, backbone, head, tokenizer_size=ids)
    lora.inject(module, config.lora, config.seed)
    return MetaQueryArchitecture(config, encoder=encoder, module=module)


def ids_of(config: MetaQuery) -> int:
    """Ids of the tokenizer; on the meta device, where it is not at hand, rows of the embedding."""
    if isinstance(config.backbone, Pretrained) and pretrained.planned(config.backbone) is not None:
        rows = config.sizes.text.vocabulary
        assert rows is not None
        return rows
    return config.layout().tokenizer.size
