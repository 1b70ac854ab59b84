"""MetaMorph: a language model that reads SigLIP tokens and predicts them, by next-token prediction alone.

# B rows, N tokens of a row, P pictures, A answer pictures among them, T tokens of a picture, C their channels,
# D width of the language model, V ids of the tokenizer (the two marks are ids V and V + 1), M target ids

    pictures ─ encoder (frozen) ─ features ─ adapter ─┐
    ids ───────────────────────── embedding ──────────┴─ causal backbone ─ hidden ─┬─ text logits    -> cross-entropy
                                                                                   └─ head: next feature -> -cosine
Source: arXiv:2412.14164 section 2; facebookresearch/metamorph at 0b13deb where the paper is silent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from models import pretrained
from models.configs import Llama, MetaMorph, Pretrained
from models.interface import Batch, Draw, Losses
from models.layout import Answer as Kind
from models.layout import ByteTokenizer, ChatLayout, Document
from models.vision import VisionEncoder


class MetaMorphModule(nn.Module):
    """What learns: backbone, adapter, head, and the rows of <image_start> and <image_end>.

    The marks' rows are no part of the backbone's matrices, which keep their published shape. Rows of those matrices
    beyond the tokenizer (padding of published models) are neither read nor predicted.
    """

    def __init__(self, backbone: LlamaForCausalLM, *, channels: int, tokenizer_size: int, head: str) -> None:
        super().__init__()
        width = backbone.config.hidden_size
        self.tokenizer_size = tokenizer_size
        self.backbone = backbone
        self.adapter = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))
        self.head = picture_head(head, width, channels)
        self.marks_in = mean_rows(backbone.model.embed_tokens.weight, tokenizer_size)
        self.marks_out = mean_rows(backbone.lm_head.weight, tokenizer_size)

    def forward(self, batch: Batch, features: Tensor, draw: Draw) -> Losses:
        """Sums of the text's cross-entropy and of -cosine over the answers' picture tokens. Draws nothing.

        Args:     features: float32[P, T, C], unit-norm, of every picture of the batch.
        """
        rows, places = picture_places(batch, features.shape[1])
        inputs = self.embedded(batch.ids).index_put((rows, places), self.adapted(features))
        hidden = self.backbone.model(
            inputs_embeds=inputs,
            attention_mask=attention_mask(batch.document),
            position_ids=batch.position,
            use_cache=False,
        ).last_hidden_state

        row, place = batch.target[:, 1:].nonzero(as_tuple=True)
        text = F.cross_entropy(self.logits(hidden[row, place]), batch.ids[row, place + 1], reduction="sum")

        before = hidden[rows[batch.answer], places[batch.answer] - 1]
        cosine = F.cosine_similarity(self.head(before).float(), features[batch.answer].float(), dim=-1)
        return Losses(sums={"text": text, "picture": -cosine.sum()})

    def embedded(self, ids: Tensor) -> Tensor:
        """Input rows of ids and marks: int64[B, N] -> float[B, N, D]."""
        words = self.backbone.model.embed_tokens(ids.clamp(max=self.tokenizer_size - 1))
        marks = (ids >= self.tokenizer_size).nonzero(as_tuple=True)
        return words.index_put(marks, self.marks_in[ids[marks] - self.tokenizer_size])

    def adapted(self, features: Tensor) -> Tensor:
        """Picture tokens as inputs: float[..., C] -> float[..., D]."""
        return self.adapter(features.to(self.marks_in.dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every id and the two marks: float[..., D] -> float32[..., V + 2]."""
        words = self.backbone.lm_head(hidden)[..., : self.tokenizer_size]
        return torch.cat([words, hidden @ self.marks_out.T], dim=-1).float()

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


def mean_rows(matrix: Tensor, size: int) -> nn.Parameter:
    """Two trainable rows at the mean of the tokenizer's rows: float[2, D], initialize_vision_tokenizer at 0b13deb."""
    return nn.Parameter(matrix.detach()[:size].mean(dim=0, keepdim=True).repeat(2, 1))


def picture_places(batch: Batch, tokens: int) -> tuple[Tensor, Tensor]:
    """Row and place of every picture token: two int64[P, T]."""
    places = batch.start[:, None] + torch.arange(tokens, device=batch.start.device)
    return batch.row[:, None].expand_as(places), places


def attention_mask(document: Tensor) -> Tensor:
    """Who may look at whom: back, inside the own document. Pictures are causal too.

    document  1 1 2 2 0 0  ->  1 . . . . .
                               1 1 . . . .
                               . . 1 . . .
                               . . 1 1 . .
                               . . . . 1 .    padding sees padding: no row is empty, so no softmax is NaN
                               . . . . 1 1

    Args:     document: int[B, N], 0 is padding.
    Returns:  bool[B, 1, N, N], True where the row may attend to the column.
    """
    same = document[:, None, :, None] == document[:, None, None, :]
    return same.tril()


class MetaMorphArchitecture:
    """The `Architecture` of `configs.MetaMorph`."""

    def __init__(self, config: MetaMorph, *, encoder: VisionEncoder, module: MetaMorphModule) -> None:
        self.config = config
        self.encoder = encoder
        self.module = module

    def counts(self, batch: Batch) -> dict[str, int]:
        """Target ids, and picture tokens of the answers."""
        return {"text": int(batch.target.sum()), "picture": int(batch.answer.sum()) * self.config.grid**2}

    @property
    def weights(self) -> Mapping[str, float]:
        """Cross-entropy counts once, the cosine by its coefficient."""
        return {"text": 1.0, "picture": self.config.vision_coefficient}


def build(config: MetaMorph) -> MetaMorphArchitecture:
    """The modules, on CPU, float32; what starts at random is a function of `config.seed`.

    Raises:
        ValueError: weights that cannot be had, or a vocabulary smaller than the tokenizer.
    """
    encoder = VisionEncoder(config.vision, grid=config.grid)
    tokenizer_size = config.layout().tokenizer.size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        if isinstance(config.backbone, Pretrained):
            backbone = pretrained.language_model(config.backbone)
        else:
            backbone = random_llama(config.backbone)
        if backbone.config.vocab_size < tokenizer_size:
            raise ValueError(
                f"the backbone has {backbone.config.vocab_size} rows for a tokenizer of {tokenizer_size} ids: "
                "every id needs a row, use the tokenizer.json that was published with the weights"
            )
        module = MetaMorphModule(backbone, channels=encoder.channels, tokenizer_size=tokenizer_size, head=config.head)
    return MetaMorphArchitecture(config, encoder=encoder, module=module)


def random_llama(sizes: Llama) -> LlamaForCausalLM:
    """A Llama-type decoder over the byte tokenizer, from the global generator."""
    config = LlamaConfig(
        vocab_size=ByteTokenizer.size,
        hidden_size=sizes.width,
        intermediate_size=sizes.ffn,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=sizes.max_positions,
        rms_norm_eps=sizes.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the assistant said, in order: text, and pictures as predicted unit-norm tokens float32[T, C] on the CPU."""

    parts: tuple[str | Tensor, ...]


@torch.no_grad()
def generate(
    architecture: MetaMorphArchitecture,
    layout: ChatLayout,
    document: Document,
    pictures: Tensor,
    *,
    answer: Kind,
    max_tokens: int,
    max_pictures: int = 4,
) -> Answer:
    """The greedy answer to a prompt; the same each time.

    After <image_start> come exactly T predicted tokens, then <image_end> by force: neither mark is ever part of a text.

    Args:
        document:     the prompt of `layout.prompt(..., answer=answer)`.
        pictures:     float32[*, 3, H, W] in 0..1, what the document's slots count into.
        answer:       "picture" ends after the picture that the prompt opened; "text" may open none; "free" may.
        max_tokens:   ids said at most, marks included; a picture that was opened is finished all the same.
        max_pictures: pictures of a free answer at most.
    """
    module = architecture.module
    speaker = _Speaker(module)
    with evaluating(module):
        hidden = speaker.prompt(document, architecture.encoder, pictures)
        if answer == "picture":
            return Answer(parts=(speaker.picture(hidden, layout.picture_tokens),))

        parts: list[str | Tensor] = []
        said: list[int] = []
        pictures_left = 0 if answer == "text" else max_pictures
        for _ in range(max_tokens):
            token = best(module.logits(hidden), layout, may_open=pictures_left > 0)
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
    return Answer(parts=tuple(part for part in parts if isinstance(part, Tensor) or part))


def best(scores: Tensor, layout: ChatLayout, *, may_open: bool) -> int:
    """The likeliest id of float32[V + 2], never <image_end>, and <image_start> only where a picture may be opened."""
    allowed = scores.clone()
    allowed[layout.image_end] = -torch.inf
    if not may_open:
        allowed[layout.image_start] = -torch.inf
    return int(allowed.argmax())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode, then the mode from before: in training mode, gradient checkpointing would switch the cache off."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)


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

    def prompt(self, document: Document, encoder: VisionEncoder, pictures: Tensor) -> Tensor:
        """The hidden state after the prompt."""
        inputs = self.module.embedded(torch.tensor([document.ids], device=self.device))
        shown = pictures[[slot.picture for slot in document.slots]].to(self.device)
        for slot, tokens in zip(document.slots, self.module.adapted(encoder(shown)), strict=True):
            inputs[0, slot.start : slot.start + len(tokens)] = tokens
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
