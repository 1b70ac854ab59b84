"""Language models that speak two more ids: <image_start> and <image_end>, whose rows are the architecture's own.

# B rows, N tokens, M learned ones, D width, V ids of the tokenizer (the two marks are ids V and V + 1)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from models import pretrained
from models.interface import Asked, Batch, Places
from models.layout import ByteTokenizer
from models.parts import Llama, Pretrained

LanguageModel = LlamaForCausalLM | Qwen2ForCausalLM | MistralForCausalLM


class Speaking(nn.Module):
    """A backbone, and the rows of the two marks.

    The marks' rows are no part of the backbone's matrices, which keep their published shape. Rows of those matrices
    beyond the tokenizer (padding of published models) are neither read nor predicted.
    """

    def __init__(self, backbone: LanguageModel, *, tokenizer_size: int) -> None:
        super().__init__()
        self.tokenizer_size = tokenizer_size
        self.backbone = backbone
        self.marks_in = mean_rows(backbone.model.embed_tokens.weight, tokenizer_size)
        self.marks_out = mean_rows(backbone.lm_head.weight, tokenizer_size)

    def embedded(self, ids: Tensor) -> Tensor:
        """Input rows of ids and marks: int64[B, N] -> float[B, N, D]."""
        words = self.backbone.model.embed_tokens(ids.clamp(max=self.tokenizer_size - 1))
        marks = (ids >= self.tokenizer_size).nonzero(as_tuple=True)
        return words.index_put(marks, self.marks_in[ids[marks] - self.tokenizer_size])

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every id and the two marks: float[..., D] -> float32[..., V + 2]."""
        words = self.backbone.lm_head(hidden)[..., : self.tokenizer_size]
        return torch.cat([words, hidden @ self.marks_out.T], dim=-1).float()

    def text_loss(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Places]:
        """The cross-entropy of every learned id, each read off the state before it: float32[M], and where it stands."""
        row, before = batch.target[:, 1:].nonzero(as_tuple=True)
        place = before + 1
        return F.cross_entropy(self.logits(hidden[row, before]), batch.ids[row, place], reduction="none"), (row, place)


def mean_rows(matrix: Tensor, size: int) -> nn.Parameter:
    """Two trainable rows at the mean of the tokenizer's rows: float[2, D], initialize_vision_tokenizer at 0b13deb."""
    return nn.Parameter(matrix.detach()[:size].mean(dim=0, keepdim=True).repeat(2, 1))


def roomy(asked: Asked, tokens: int, backbone: PreTrainedModel) -> Asked:
    """What is asked, with no more text than the model has positions for after a prompt of so many tokens.

    Raises: ValueError: the prompt alone takes them all.
    """
    positions = backbone.config.max_position_embeddings
    if tokens >= positions:
        raise ValueError(f"the prompt takes {tokens} tokens, the language model has {positions} positions: shorten it")
    return replace(asked, max_tokens=min(asked.max_tokens, positions - tokens))


def language_model(backbone: Llama | Pretrained, tokenizer_size: int) -> LanguageModel:
    """The backbone of a config, float32; random weights come from the global generator.

    Raises:
        ValueError: weights that cannot be had, or a vocabulary smaller than the tokenizer.
    """
    sizes = backbone if isinstance(backbone, Llama) else pretrained.planned(backbone)
    if sizes is None:
        assert isinstance(backbone, Pretrained)
        built = pretrained.language_model(backbone)
    elif isinstance(sizes, Llama):
        built = random_language_model(sizes)
    else:
        raise ValueError(f"{backbone}: a language model's sizes are a Llama")
    if built.config.vocab_size < tokenizer_size:
        raise ValueError(
            f"the backbone has {built.config.vocab_size} rows for a tokenizer whose last id is {tokenizer_size - 1}: "
            "every id needs a row, use the tokenizer.json that was published with the weights"
        )
    return built


def random_language_model(sizes: Llama) -> LanguageModel:
    """A decoder of these sizes, from the global generator."""
    kinds = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
    config_of, model_of = kinds[sizes.family]
    config = config_of(
        vocab_size=ByteTokenizer.size if sizes.vocabulary is None else sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.ffn,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=sizes.max_positions,
        rms_norm_eps=sizes.norm_eps,
        rope_parameters=_angles(sizes),
        tie_word_embeddings=sizes.tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    return model_of._from_config(config, attn_implementation="sdpa")


def _angles(sizes: Llama) -> dict[str, Any]:
    """The rotary angles in transformers' words."""
    scaling = sizes.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": sizes.rope_theta}
    return {
        "rope_type": "llama3",
        "rope_theta": sizes.rope_theta,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original,
    }


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode, then the mode from before: in training mode, gradient checkpointing would switch the cache off."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)


def best(scores: Tensor, tokenizer_size: int, *, may_open: bool) -> int:
    """The likeliest id of float32[V + 2], never <image_end>, and <image_start> only where a picture may be opened."""
    allowed = scores.clone()
    allowed[tokenizer_size + 1] = -torch.inf
    if not may_open:
        allowed[tokenizer_size] = -torch.inf
    return int(allowed.argmax())
