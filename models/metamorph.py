"""MetaMorph: a language model that reads SigLIP tokens and predicts them, by next-token prediction alone.

# B rows, N tokens of a row, P pictures, A answer pictures among them, T tokens of a picture, C their channels,
# D width of the language model, V ids of the tokenizer (the two marks are ids V and V + 1), M target ids

    pictures ─ encoder (frozen) ─ features ─ adapter ─┐
    ids ───────────────────────── embedding ──────────┴─ causal backbone ─ hidden ─┬─ text logits    -> cross-entropy
                                                                                   └─ head: next feature -> -cosine
Source: arXiv:2412.14164 section 2; facebookresearch/metamorph at 0b13deb where the paper is silent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn
from transformers import DynamicCache

from models import lora
from models.apart import stacked
from models.configs import MetaMorph
from models.interface import Answered, Asked, Batch, Care, Draw, Losses, Measured, Parts
from models.layout import Answer as Kind
from models.layout import ChatLayout, Document, Turns
from models.parts import vocabulary
from models.sequence import blocks, mask, picture_places, prompted
from models.transformer import LanguageModel, Speaking, best, evaluating, language_model, roomy
from models.vision import VisionEncoder


class MetaMorphModule(Speaking):
    """What learns: backbone, adapter, head, and the rows of <image_start> and <image_end>."""

    def __init__(self, backbone: LanguageModel, *, channels: int, tokenizer_size: int, head: str) -> None:
        super().__init__(backbone, tokenizer_size=tokenizer_size)
        width = backbone.config.hidden_size
        self.adapter = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))
        self.head = picture_head(head, width, channels)

    def forward(self, batch: Batch, features: Tensor, draw: Draw) -> Losses:
        """Sums of the text's cross-entropy and of -cosine over the answers' picture tokens. Draws nothing.

        Args:     features: float32[P, T, C], unit-norm, of every picture of the batch.
        """
        rows, places = picture_places(batch.seen)
        inputs = self.embedded(batch.ids).index_put((rows, places), self.adapted(features).flatten(0, 1))
        states = self.backbone.model(
            inputs_embeds=inputs,
            attention_mask=mask(
                self.backbone, batch.document, blocks(batch, whole=False), torch.zeros_like(batch.target)
            ),
            position_ids=batch.position,
            use_cache=False,
        ).last_hidden_state

        answer = batch.seen.answer.repeat_interleave(batch.seen.tokens)
        before = states[rows[answer], places[answer] - 1]
        sought = features[batch.seen.answer].flatten(0, 1).float()
        cosine = F.cosine_similarity(self.head(before).float(), sought, dim=-1)
        picture = -cosine, (rows[answer], places[answer])
        return Losses.of(batch, text=self.text_loss(states, batch), picture=picture)

    def adapted(self, features: Tensor) -> Tensor:
        """Picture tokens as inputs: float[..., C] -> float[..., D]."""
        return self.adapter(features.to(self.marks_in.dtype))

    def predicted(self, hidden: Tensor) -> Tensor:
        """The next picture token, on the unit sphere: float[..., D] -> float32[..., C]."""
        return F.normalize(self.head(hidden).float(), dim=-1)


def picture_head(kind: str, width: int, channels: int) -> nn.Module:
    """From the language model's width to a picture token; `linear` is the paper's, `mlp` the released scripts'."""
    if kind == "linear":
        return nn.Linear(width, channels)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, channels))
    raise ValueError(f"head {kind!r} is unknown: use linear or mlp")


class MetaMorphArchitecture:
    """The `Architecture` of `configs.MetaMorph`."""

    def __init__(self, config: MetaMorph, *, encoder: VisionEncoder, module: MetaMorphModule) -> None:
        self.config = config
        self.encoder = encoder
        self.module = module

    def encode(self, batch: Batch) -> Tensor:
        """The tokens of every picture: float32[P, T, C]."""
        return self.encoder(batch.seen.pixels)

    @property
    def measured(self) -> Measured:
        """Tokens."""
        settings = {"vision": self.config.vision, "grid": self.config.grid}
        return Measured(network=self.encoder, settings=settings, views=("seen",))

    def apart(self, batch: Batch) -> Parts:
        """The tokens of each picture."""
        return {"seen": [{"tokens": tokens} for tokens in self.encode(batch)]}

    def together(self, parts: Parts, batch: Batch) -> Tensor:
        """The inverse of `apart`."""
        return stacked(parts["seen"], "tokens", batch.ids.device) if parts["seen"] else self.encode(batch)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Target ids, and picture tokens of the answers."""
        return {"text": int(batch.target.sum()), "picture": int(batch.seen.answer.sum()) * self.config.grid**2}

    def care(self, name: str) -> Care:
        """No decay on the marks, which are rows of an embedding."""
        return Care(decay=not name.startswith("marks_"))

    @property
    def weights(self) -> Mapping[str, float]:
        """Cross-entropy counts once, the cosine by its coefficient."""
        return {"text": 1.0, "picture": self.config.vision_coefficient}

    def answer(self, turns: Turns, pictures: Sequence[Image], asked: Asked, *, task: str, key: str) -> Answered:
        """See `interface.Architecture`; pictures are predicted tokens, which a visualizer's run paints."""
        layout = self.config.layout()
        document = layout.prompt(turns, task=task, key=key, answer=asked.answer)
        asked = roomy(asked, len(document), self.module.backbone)
        batch = prompted(document, pictures, self.config.seen, None).to(self.module.marks_in.device)
        return generate(self, layout, document, self.encode(batch), answer=asked.answer, max_tokens=asked.max_tokens)


def build(config: MetaMorph) -> MetaMorphArchitecture:
    """The modules, on CPU, float32; what starts at random is a function of `config.seed`.

    Raises:
        ValueError: weights that cannot be had, a vocabulary smaller than the tokenizer, or a LoRA that fits nowhere.
    """
    encoder = VisionEncoder(config.vision, grid=config.grid)
    size = vocabulary(config.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        backbone = language_model(config.backbone, size)
        module = MetaMorphModule(backbone, channels=encoder.channels, tokenizer_size=size, head=config.head)
    if config.trained == "adapter":
        module.requires_grad_(False)
        module.adapter.requires_grad_(True)
        module.marks_in.requires_grad_(True)
    lora.inject(module, config.lora, config.seed)
    return MetaMorphArchitecture(config, encoder=encoder, module=module)


@torch.no_grad()
def generate(
    architecture: MetaMorphArchitecture,
    layout: ChatLayout,
    document: Document,
    features: Tensor,
    *,
    answer: Kind,
    max_tokens: int,
    max_pictures: int = 4,
) -> Answered:
    """The greedy answer to a prompt; the same each time.

    After <image_start> come exactly T predicted tokens, then <image_end> by force: neither mark is ever part of a text.

    Args:
        document:     the prompt of `layout.prompt(..., answer=answer)`.
        features:     float32[P, T, C], of the document's pictures in the order of its slots.
        answer:       "picture" ends after the picture that the prompt opened; "text" may open none; "free" may.
        max_tokens:   ids said at most, marks included; a picture that was opened is finished all the same.
        max_pictures: pictures of a free answer at most.
    """
    module = architecture.module
    speaker = _Speaker(module)
    with evaluating(module):
        hidden = speaker.prompt(document, features)
        if answer == "picture":
            return Answered(parts=(speaker.picture(hidden, layout.picture_tokens),))

        parts: list[str | Tensor] = []
        said: list[int] = []
        pictures_left = 0 if answer == "text" else max_pictures
        for _ in range(max_tokens):
            token = best(module.logits(hidden), layout.tokenizer.size, may_open=pictures_left > 0)
            if token == layout.end_of_turn:
                break
            hidden = speaker.word(token)
            if token != layout.image_start:
                said.append(token)
                continue
            parts += [layout.tokenizer.decode(said), speaker.picture(hidden, layout.picture_tokens)]
            said = []
            pictures_left -= 1
            hidden = speaker.word(layout.image_end)
        parts.append(layout.tokenizer.decode(said))
    return Answered(parts=tuple(part for part in parts if isinstance(part, Tensor) or part))


class _Speaker:
    """The module reading one sequence piece by piece; keys and values of what it has read stay in a cache."""

    def __init__(self, module: MetaMorphModule) -> None:
        self.module = module
        self.device = module.marks_in.device
        self.cache = DynamicCache(config=module.backbone.config)

    def read(self, inputs: Tensor) -> Tensor:
        """The hidden state after more inputs: float[1, n, D] -> float[D]."""
        read = self.module.backbone.model(inputs_embeds=inputs, past_key_values=self.cache, use_cache=True)
        return read.last_hidden_state[0, -1]

    def prompt(self, document: Document, features: Tensor) -> Tensor:
        """The hidden state after the prompt."""
        inputs = self.module.embedded(torch.tensor([document.ids], device=self.device))
        for slot, tokens in zip(document.slots, self.module.adapted(features.to(self.device)), strict=True):
            inputs[0, slot.start : slot.start + slot.tokens] = tokens
        return self.read(inputs)

    def word(self, token: int) -> Tensor:
        """The hidden state after one id."""
        return self.read(self.module.embedded(torch.tensor([[token]], device=self.device)))

    def picture(self, hidden: Tensor, tokens: int) -> Tensor:
        """The picture that follows the state at <image_start>: float32[T, C]. All its tokens are read."""
        picture = []
        for _ in range(tokens):
            picture.append(self.module.predicted(hidden))
            hidden = self.read(self.module.adapted(picture[-1])[None, None])
        return torch.stack(picture).cpu()
