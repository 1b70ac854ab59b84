"""LMFusion: beside a frozen language model a tower of the same shape for pictures; the two meet in attention alone.

# B rows, N tokens of a row, M tokens of one kind in all rows, D width, E width of a head

    text     ─ norm ─ q k v ─┐                 ┌─ o ─ norm ─ FFN ─ ... ─ norm ─ logits
                             ├─ attention, N ──┤
    pictures ─ norm ─ q k v ─┘                 └─ o ─ norm ─ FFN ─ ... ─ norm ─ coder up

Every token runs through one tower, so a step costs what the dense one costs. A tower runs on no tokens, too: its
weights then get gradients of zero. All else is Transfusion's.
Source: arXiv:2412.15188 sections 3.1 and 4.1.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from models import coders, transfusion
from models.configs import LMFusion
from models.transformer import LanguageModel
from models.transfusion import TransfusionArchitecture, TransfusionModule

Separation = Literal["deep", "shallow", "none"]

# Parts of a layer, by the names that the Llama family gives them, and those that pictures have of their own.
PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
OWN: dict[Separation, tuple[str, ...]] = {"deep": PARTS, "shallow": PARTS[2:], "none": ()}


class LMFusionModule(TransfusionModule):
    """What learns: the tower of pictures, coder, and the rows of BOI and EOI; the backbone at `text_rate`."""

    def __init__(
        self, backbone: LanguageModel, coder: coders.Linear | coders.UNet, config: LMFusion, *, size: int
    ) -> None:
        super().__init__(backbone, coder, config, size=size)
        self.tower = PictureTower(backbone, config.separation)

    def run(
        self, inputs: Tensor, picture: Tensor, sight: Tensor, position: Tensor, cache: DynamicCache | None = None
    ) -> Tensor:
        """Both towers with their last norms. See `TransfusionModule.run`."""
        model = self.backbone.model
        route = Route.of(picture)
        angles = model.rotary_emb(inputs, position_ids=position)
        text, pictures = route.apart(inputs)
        for beside, layer in zip(model.layers, self.tower.layers, strict=True):
            text, pictures = layer(text, pictures, beside, route, angles, sight, cache)
        return route.together(model.norm(text), getattr(self.tower, "norm", model.norm)(pictures))


class PictureTower(nn.Module):
    """What pictures have of their own. It starts as a copy of the text's, norms included.

    The paper copies attention and FFN and is silent on norms.
    """

    def __init__(self, text: LanguageModel, separation: Separation) -> None:
        super().__init__()
        own = OWN[separation]
        self.layers = nn.ModuleList(PictureLayer(layer, own) for layer in text.model.layers)
        if own:
            self.norm = copy.deepcopy(text.model.norm)


class PictureLayer(GradientCheckpointingLayer):
    """One layer of both towers. It holds the own parts of pictures; what is missing is the text's."""

    def __init__(self, text: nn.Module, own: tuple[str, ...]) -> None:
        super().__init__()
        for part in own:
            self.add_module(part, copy.deepcopy(getattr(text, part)))

    def forward(
        self,
        text: Tensor,
        pictures: Tensor,
        beside: nn.Module,
        route: Route,
        angles: tuple[Tensor, Tensor],
        sight: Any,
        cache: DynamicCache | None,
    ) -> tuple[Tensor, Tensor]:
        """One attention over all tokens; all else apart.

        Args:  text, pictures: float[M, D]. beside: the text's layer. angles: cosines and sines, float[B, N, E].
        """
        of_text, of_pictures = Parts.of(beside, beside), Parts.of(self, beside)
        projected = route.together(of_text.projected(text), of_pictures.projected(pictures))
        mixed = route.apart(attention(of_text.attention, projected, angles, sight, cache))
        return of_text.finished(text, mixed[0]), of_pictures.finished(pictures, mixed[1])


class Parts(NamedTuple):
    """The parts of a layer through which tokens of one kind run, in the order of PARTS."""

    first_norm: Any
    attention: Any
    second_norm: Any
    ffn: Any

    @classmethod
    def of(cls, own: nn.Module, shared: nn.Module) -> Parts:
        """A layer's own parts, and those that it shares where it has none."""
        return cls(*(getattr(own, part, getattr(shared, part)) for part in PARTS))

    def projected(self, states: Tensor) -> Tensor:
        """Queries, keys and values, one after the other: float[M, D] -> float[M, heads * E]."""
        normed = self.first_norm(states)
        projections = (self.attention.q_proj, self.attention.k_proj, self.attention.v_proj)
        return torch.cat([project(normed) for project in projections], dim=-1)

    def finished(self, states: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output: float[M, D]."""
        states = states + self.attention.o_proj(mixed)
        return states + self.ffn(self.second_norm(states))


class Route(NamedTuple):
    """Which tower each token runs through: places among all B * N, and where each of these stands in text + pictures.

    picture  0 0 1 1 0   ->   text 0 1 4   pictures 2 3   order 0 1 3 4 2
    """

    text: Tensor
    pictures: Tensor
    order: Tensor
    rows: int

    @classmethod
    def of(cls, picture: Tensor) -> Route:
        """By bool[B, N]."""
        text, pictures = ((kind.flatten().nonzero()[:, 0]) for kind in (~picture, picture))
        return cls(text, pictures, torch.cat([text, pictures]).argsort(), len(picture))

    def apart(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, N, ...] -> of text and of pictures, float[M, ...]."""
        flat = states.flatten(0, 1)
        return flat.index_select(0, self.text), flat.index_select(0, self.pictures)

    def together(self, text: Tensor, pictures: Tensor) -> Tensor:
        """The inverse of `apart`."""
        return torch.cat([text, pictures]).index_select(0, self.order).unflatten(0, (self.rows, -1))


def attention(of: Any, projected: Tensor, angles: tuple[Tensor, Tensor], sight: Any, cache: Any) -> Tensor:
    """The backbone's own attention over queries, keys and values of all tokens: float[B, N, heads * E] -> [B, N, D]."""
    sizes = of.config
    counts = (sizes.num_attention_heads, sizes.num_key_value_heads, sizes.num_key_value_heads)
    heads = rearrange(projected, "b n (h e) -> b h n e", e=of.head_dim)
    queries, keys, values = heads.split(counts, dim=1)
    queries, keys = apply_rotary_pos_emb(queries, keys, *angles)
    if cache is not None:
        keys, values = cache.update(keys, values, of.layer_idx)
    attend = ALL_ATTENTION_FUNCTIONS[sizes._attn_implementation]
    mixed, _ = attend(of, queries, keys, values, sight, dropout=0.0, scaling=of.scaling)
    return rearrange(mixed, "b n h e -> b n (h e)")


def build(config: LMFusion) -> TransfusionArchitecture:
    """See `transfusion.build`."""
    return transfusion.build(config, LMFusionModule)
