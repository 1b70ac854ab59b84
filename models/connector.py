"""MetaQuery's connector: states of a language model -> the condition of a diffusion decoder.

# R conditions, T places of one, D width of the language model, C of the condition, H heads, W width of a head

    enc_proj   states D ─ transformer of width D ─ Linear, GELU, Linear ─ norm ─ condition C
    proj_enc   states D ─ Linear, GELU, Linear ─ transformer of width C ─ norm ─ condition C
Every place sees every place. Queries and keys are normed after they are turned, so that no length survives.
Source: section 3.2 and table 3 of arXiv:2504.06256; transformer_encoder.py of facebookresearch/metaquery.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import Qwen2Config
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2MLP,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
    apply_rotary_pos_emb,
)

from models.parts import Connector

Turned = tuple[Tensor, Tensor]
"""Cosine and sine of the places: two float[1, T, W]."""


class ConnectorModule(nn.Module):
    """The transformer, the projection, and the norm whose gain is that of what the decoder was trained to read."""

    def __init__(self, sizes: Connector, *, width: int, condition: int, gain: float) -> None:
        super().__init__()
        self.order = sizes.order
        self.encoder = Encoder(sizes, width=width if sizes.order == "enc_proj" else condition)
        self.projection = nn.Sequential(
            nn.Linear(width, condition), nn.GELU(approximate="tanh"), nn.Linear(condition, condition)
        )
        self.norm = Qwen2RMSNorm(condition, eps=1e-5)
        nn.init.constant_(self.norm.weight, gain)

    def forward(self, states: Tensor, present: Tensor) -> Tensor:
        """float[R, T, D], bool[R, T] -> float[R, T, C]; a place that is not present is seen by none."""
        if self.order == "enc_proj":
            return self.norm(self.projection(self.encoder(states, present)))
        return self.norm(self.encoder(self.projection(states), present))


class Encoder(nn.Module):
    """Layers of Qwen2's kind without its last norm, in which every place sees every place."""

    def __init__(self, sizes: Connector, *, width: int) -> None:
        super().__init__()
        if width % sizes.head_width:
            raise ValueError(f"a connector of width {width} has no whole heads of {sizes.head_width}: set head_width")
        config = Qwen2Config(
            hidden_size=width, intermediate_size=4 * width, num_attention_heads=width // sizes.head_width
        )
        self.layers = nn.ModuleList(Layer(config) for _ in range(sizes.layers))
        self.rotary = Qwen2RotaryEmbedding(config)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=sizes.init)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, states: Tensor, present: Tensor) -> Tensor:
        """float[R, T, D], bool[R, T] -> float[R, T, D]."""
        turned = self.rotary(states, torch.arange(states.shape[1], device=states.device)[None])
        for layer in self.layers:
            states = layer(states, turned, present)
        return states


class Layer(GradientCheckpointingLayer):
    """Attention and a gated MLP, each behind a norm and beside a residual."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.attention_norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = Qwen2MLP(config)

    def forward(self, states: Tensor, turned: Turned, present: Tensor) -> Tensor:
        """float[R, T, D] -> the same."""
        states = states + self.attention(self.attention_norm(states), turned, present)
        return states + self.mlp(self.mlp_norm(states))


class Attention(nn.Module):
    """Every place looks at all that are present; each head norms its queries and keys after they are turned."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.queries, self.keys, self.values = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)
        self.query_norm, self.key_norm = (Qwen2RMSNorm(width // self.heads, eps=config.rms_norm_eps) for _ in range(2))

    def forward(self, states: Tensor, turned: Turned, present: Tensor) -> Tensor:
        """float[R, T, D] -> the same."""
        query, key, value = (
            rearrange(matrix(states), "r t (h w) -> r h t w", h=self.heads)
            for matrix in (self.queries, self.keys, self.values)
        )
        query, key = apply_rotary_pos_emb(query, key, *turned)
        seen = F.scaled_dot_product_attention(
            self.query_norm(query), self.key_norm(key), value, attn_mask=present[:, None, None]
        )
        return self.out(rearrange(seen, "r h t w -> r t (h w)"))
