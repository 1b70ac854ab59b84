"""LLaVAFusion: LMFusion beside a frozen LLaVA-NeXT, which reads pictures as it did and learns to draw.

# B rows, N tokens of a row, S tokens of read pictures, K their tiles, G patches of a tile a side, D width, C of CLIP

    pictures of the user ─ tiles ─ CLIP ─ projector (all frozen) ─ tokens like those of a text ─┐
    ids ───────────────────────────────────────────────────────────────────────── embedding ──┼─ the text's tower
    pictures of the assistant ─ canvas + noise ─ coder down ────────────────────────────────────┴─ the pictures' tower
Nothing that reads learns, so of a chat without a drawn picture every score of the vocabulary stays as it was, bit by
bit. All else is LMFusion's.
Source: arXiv:2412.15188 table 2; LLaVA-NeXT, as transformers' LlavaNextModel has it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from models import coders, lora, pretrained
from models.apart import joined
from models.configs import LLaVAFusion
from models.interface import Batch, Measured, Parts, Pictures
from models.lmfusion import LMFusionModule
from models.parts import Canvas, Clip, LlavaNext, Pretrained, vocabulary
from models.sequence import picture_places
from models.transformer import random_language_model
from models.transfusion import TransfusionArchitecture
from models.views import Tiles
from models.vision import CanvasEncoder, Gaussian


class Encoded(NamedTuple):
    """What the leaf encoders make of a batch.

    seen    float32[S, D]  tokens of the read pictures, in order of `picture_places(batch.seen)`
    canvas  what the canvas of each drawn picture is drawn from
    """

    seen: Tensor
    canvas: Gaussian


class LlavaEncoder(CanvasEncoder):
    """Tiles -> tokens of LLaVA-NeXT, and pictures <-> the canvas that is noised and painted."""

    def __init__(self, llava: LlavaNextForConditionalGeneration, tiles: Tiles, canvas: Canvas) -> None:
        super().__init__(canvas)
        self.tiles = tiles
        self.clip = llava.model.vision_tower
        self.projector = llava.model.multi_modal_projector
        self.newline = llava.model.image_newline
        self.freeze()

    @torch.no_grad()
    def read(self, seen: Pictures) -> Tensor:
        """Tokens of pictures, picture after picture: of the whole, then of the grid, a token at the end of its rows.

        Returns:  float32[S, D]; no pictures run no network.
        """
        if len(seen) == 0:
            return seen.pixels.new_zeros(0, len(self.newline))
        mean, std = (seen.pixels.new_tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        pixels = ((seen.pixels - mean) / std).to(self.clip.dtype)
        layers = self.clip(pixels, output_hidden_states=True).hidden_states
        tokens = self.projector(layers[-2][:, 1:]).float()  # the last layer but one, without the class token
        shapes = zip(seen.grid.tolist(), seen.size.tolist(), strict=True)
        pictures = zip(tokens.split(seen.tiles.tolist()), shapes, strict=True)
        return torch.cat([self.packed(tiles, grid, size) for tiles, (grid, size) in pictures])

    def packed(self, tiles: Tensor, grid: list[int], size: list[int]) -> Tensor:
        """The tokens of one picture, without those of the black around it: float32[k, G * G, D] -> float32[s, D]."""
        side = self.tiles.side // self.tiles.patch
        whole, (rows, columns) = tiles[0], grid
        fine = rearrange(tiles[1:], "(r c) (h w) d -> (r h) (c w) d", r=rows, c=columns, h=side)
        above, left = self.tiles.margins((size[0], size[1]))
        fine = fine[above : len(fine) - above, left : fine.shape[1] - left]
        ends = self.newline.float().expand(len(fine), 1, -1)
        return torch.cat([whole, torch.cat([fine, ends], dim=1).flatten(0, 1)])


class LLaVAFusionModule(LMFusionModule):
    """What learns: as in LMFusion. Read pictures come as tokens and run through the text's tower."""

    def canvas(self, features: Encoded) -> Gaussian:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What the canvas of each drawn picture is drawn from."""
        return features.canvas

    def placed(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batch: Batch, features: Encoded, tokens: Tensor
    ) -> Tensor:
        """See `TransfusionModule.placed`; where pictures are read, what they were read as."""
        inputs = super().placed(batch, features.canvas, tokens)
        return inputs.index_put(picture_places(batch.seen), features.seen.to(inputs.dtype))


class LLaVAFusionArchitecture(TransfusionArchitecture):
    """The `Architecture` of `configs.LLaVAFusion`."""

    encoder: LlavaEncoder
    module: LLaVAFusionModule

    def encode(self, batch: Batch) -> Encoded:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What was read, and what the canvas of each drawn picture is drawn from."""
        return Encoded(self.encoder.read(batch.seen), self.encoder(batch.drawn.pixels))

    @property
    def measured(self) -> Measured:
        """Tokens, and latents where the canvas has any."""
        canvas = super().measured
        settings = {"backbone": self.config.backbone, **canvas.settings}
        return replace(canvas, settings=settings, views=("seen", *canvas.views))

    def apart(self, batch: Batch) -> Parts:
        """The tokens of each picture that is read, and what each canvas is drawn from."""
        read = self.encoder.read(batch.seen).split(batch.seen.tokens.tolist())
        return {"seen": [{"tokens": tokens} for tokens in read], **super().apart(batch)}

    def together(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, parts: Parts, batch: Batch
    ) -> Encoded:
        """The inverse of `apart`."""
        seen = parts["seen"]
        tokens = joined(seen, "tokens", batch.ids.device) if seen else self.encoder.read(batch.seen)
        return Encoded(tokens, super().together(parts, batch))


def build(config: LLaVAFusion) -> LLaVAFusionArchitecture:
    """The modules, on CPU, float32; what starts at random is a function of `config.seed`.

    Raises:
        ValueError: weights that cannot be had, or that do not agree with the sizes that were spelled out.
    """
    sizes = config.backbone if isinstance(config.backbone, LlavaNext) else pretrained.planned(config.backbone)
    if isinstance(sizes, LlavaNext):
        llava, ids = random_llava_next(sizes), vocabulary(sizes.text)
    else:
        assert isinstance(config.backbone, Pretrained)
        llava, ids = loaded(config.backbone), vocabulary(config.backbone)
    encoder = LlavaEncoder(llava, config.seen, config.canvas)
    backbone = language_model(llava)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        coder = coders.built(
            config.coder,
            channels=config.canvas.channels,
            cells=config.canvas.cells,
            width=backbone.config.hidden_size,
        )
        module = LLaVAFusionModule(backbone, coder, config, size=ids)
    if config.text_rate == 0:
        module.backbone.requires_grad_(False)
    lora.inject(module, config.lora, config.seed)
    return LLaVAFusionArchitecture(config, encoder=encoder, module=module)


def language_model(llava: LlavaNextForConditionalGeneration) -> LlamaForCausalLM:
    """The language model inside, as one of its own; the modules are shared, not copied."""
    with torch.device("meta"):
        alone = LlamaForCausalLM(llava.model.language_model.config)
    alone.model = llava.model.language_model
    alone.lm_head = llava.lm_head
    return alone


def loaded(weights: Pretrained) -> LlavaNextForConditionalGeneration:
    """Published weights. ValueError if they have fewer rows than their tokenizer has ids."""
    llava = pretrained.llava_next(weights)
    rows, ids = llava.model.language_model.config.vocab_size, vocabulary(weights)
    if rows < ids:
        raise ValueError(
            f"{weights.path} has {rows} rows for a tokenizer whose last id is {ids - 1}: "
            "every id needs a row, use the tokenizer.json that was published with the weights"
        )
    return llava


def random_llava_next(sizes: LlavaNext) -> LlavaNextForConditionalGeneration:
    """A LLaVA-NeXT whose weights are a function of `sizes.seed`; the global generator is left as it was."""
    config = llava_next_config(sizes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(sizes.seed)
        return LlavaNextForConditionalGeneration._from_config(config, attn_implementation="sdpa")


def llava_next_config(sizes: LlavaNext) -> LlavaNextConfig:
    """LLaVA-NeXT of these sizes."""
    with torch.device("meta"):
        text = random_language_model(sizes.text).config
    return LlavaNextConfig(
        vision_config=clip_config(sizes.vision),
        text_config=text,
        image_token_index=text.vocab_size - 1,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        multimodal_projector_bias=True,
        tie_word_embeddings=sizes.text.tied,
        image_grid_pinpoints=[list(pinpoint) for pinpoint in sizes.pinpoints],
        image_seq_length=(sizes.vision.picture // sizes.vision.patch) ** 2,
    )


def clip_config(sizes: Clip) -> CLIPVisionConfig:
    """CLIP's vision side of these sizes; what else it has is the same in all that were published."""
    return CLIPVisionConfig(
        image_size=sizes.picture,
        patch_size=sizes.patch,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.ffn,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )
