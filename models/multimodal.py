"""Vision-language models as MetaQuery reads them: a frozen tower that turns pictures into tokens, a language model.

# P pictures, K tiles of them all, h = w pixels of a tile, S tokens of them all, D width, B rows, N tokens of a row

    tiles ─ vision transformer ─ projector ─ tokens float[S, D]         the tower: a leaf
    tokens among embedded text ─ language model ─ states float[B, N, D]  inside the engine, so that gradients pass
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from models import pretrained
from models.interface import Batch, Pictures
from models.layout import ByteTokenizer
from models.parts import Llama, LlavaOneVision, Pretrained, QwenVL, VisionLanguage
from models.transformer import random_language_model
from models.vision import Leaf

Model = Qwen2_5_VLForConditionalGeneration | LlavaOnevisionForConditionalGeneration
LanguageModel = Qwen2_5_VLTextModel | Qwen2Model


class Tower(Leaf):
    """What a vision-language model reads pictures with."""

    width: int  # of the language model

    def tokens(self, pixels: Tensor, tiles: Tensor, grid: Tensor) -> Tensor:
        """Tokens of pictures in raster order, picture after picture.

        Args:     pixels: float32[K, 3, h, w], RGB in 0..1; tiles: int64[P] of each picture; grid: int64[P, 2] of them.
        Returns:  float32[S, D].
        """
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, seen: Pictures) -> Tensor:
        """Tokens of the pictures in order of `picture_places(seen)`: float32[S, D]; no pictures run no network."""
        if len(seen) == 0:
            return seen.pixels.new_zeros(0, self.width)
        return self.tokens(seen.pixels, seen.tiles, seen.grid)

    @torch.no_grad()
    def black(self, seen: Pictures) -> Tensor:
        """Tokens of black pictures of the same sizes: float32[S, D]. Each size is read once."""
        if len(seen) == 0:
            return seen.pixels.new_zeros(0, self.width)
        grids, which = seen.grid.unique(dim=0, return_inverse=True)
        tiles = grids.prod(dim=1)
        pixels = seen.pixels.new_zeros(int(tiles.sum()), *seen.pixels.shape[1:])
        lengths = seen.tokens.new_zeros(len(grids)).scatter(0, which, seen.tokens)
        read = self.tokens(pixels, tiles, grids).split(lengths.tolist())
        return torch.cat([read[index] for index in which.tolist()])


class QwenTower(Tower):
    """Qwen2.5-VL's: a token for every tile, which is two by two patches."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        super().__init__()
        self.network = model.model.visual
        self.width = model.lm_head.in_features
        self.freeze()

    def tokens(self, pixels: Tensor, tiles: Tensor, grid: Tensor) -> Tensor:
        """See `Tower.tokens`. A picture is a film of two equal frames."""
        sizes = self.network.config
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        patches = repeat(
            (pixels - mean) / std,
            "k c (a p) (b q) -> (k a b) (c t p q)",
            a=sizes.spatial_merge_size,
            b=sizes.spatial_merge_size,
            t=sizes.temporal_patch_size,
        )
        shape = torch.cat([torch.ones_like(grid[:, :1]), grid * sizes.spatial_merge_size], dim=1)
        return self.network(patches.to(self.network.dtype), grid_thw=shape).pooler_output.float()


class LlavaTower(Tower):
    """LLaVA-OneVision's: a picture is one tile, whose tokens the learned end of a row closes."""

    def __init__(self, model: LlavaOnevisionForConditionalGeneration) -> None:
        super().__init__()
        self.network = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.newline = model.model.image_newline
        self.width = len(self.newline)
        self.freeze()

    def tokens(self, pixels: Tensor, tiles: Tensor, grid: Tensor) -> Tensor:
        """See `Tower.tokens`."""
        layers = self.network(((pixels - 0.5) / 0.5).to(self.network.dtype), output_hidden_states=True).hidden_states
        read = self.projector(layers[-1]).float()
        return rearrange(torch.cat([read, self.newline.float().expand(len(read), 1, -1)], dim=1), "p t d -> (p t) d")


def parts_of(model: Model) -> tuple[Tower, LanguageModel, nn.Linear]:
    """Tower, language model (states, no scores) and the matrix of its scores; the modules are shared, not copied."""
    if isinstance(model, Qwen2_5_VLForConditionalGeneration):
        return QwenTower(model), model.model.language_model, model.lm_head
    return LlavaTower(model), model.model.language_model, model.lm_head


def places(batch: Batch) -> Tensor:
    """Places in time, down and across, in each document alone, as Qwen2.5-VL counts: int64[3, B, N].

    Tokens of a picture share the place in time and have their row's and column's; what follows goes on after the
    longer side.
        text text  0 1 2  text          2 x 3 tokens
         0    1    3 4 5   5      time 2 2 2 2 2 2, down 2 2 2 3 3 3, across 2 3 4 2 3 4
    """
    place = batch.position.repeat(3, 1, 1)
    numbers = (batch.seen.row, batch.seen.start, batch.seen.tokens, batch.seen.grid)
    for row, start, tokens, (rows, columns) in zip(*(number.tolist() for number in numbers), strict=True):
        end = start + tokens
        first = int(place[0, row, start])
        inside = torch.arange(tokens, device=place.device)
        place[:, row, start:end] = first + torch.stack([inside * 0, inside // columns, inside % columns])
        after = batch.document[row, end:] == batch.document[row, start]
        place[:, row, end:] -= after * (tokens - max(rows, columns))
    return place


def model_of(backbone: VisionLanguage | Pretrained) -> Model:
    """The model of a config, float32. ValueError for weights that cannot be had or are of other sizes."""
    sizes = backbone if isinstance(backbone, VisionLanguage) else pretrained.planned(backbone)
    if sizes is None:
        assert isinstance(backbone, Pretrained)
        return pretrained.vision_language(backbone)
    if not isinstance(sizes, VisionLanguage):
        raise ValueError(f"{backbone}: the sizes of a vision-language model are a QwenVL or a LlavaOneVision")
    return random_model(sizes)


def random_model(sizes: VisionLanguage) -> Model:
    """A model whose weights are a function of `sizes.seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(sizes.seed)
        if isinstance(sizes, QwenVL):
            return Qwen2_5_VLForConditionalGeneration._from_config(qwen_config(sizes), attn_implementation="sdpa")
        return LlavaOnevisionForConditionalGeneration._from_config(llava_config(sizes), attn_implementation="sdpa")


def qwen_config(sizes: QwenVL) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL of these sizes; what else it has is the same in all that were published."""
    vision, text = sizes.vision, sizes.text
    return Qwen2_5_VLConfig(
        vision_config={
            "patch_size": vision.patch,
            "spatial_merge_size": vision.merge,
            "window_size": vision.window,
            "hidden_size": vision.width,
            "depth": vision.layers,
            "num_heads": vision.heads,
            "intermediate_size": vision.ffn,
            "fullatt_block_indexes": list(vision.whole),
            "out_hidden_size": text.width,
            "tokens_per_second": 2,
        },
        text_config={
            "vocab_size": rows(text),
            "hidden_size": text.width,
            "intermediate_size": text.ffn,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.kv_heads,
            "max_position_embeddings": text.max_positions,
            "rms_norm_eps": text.norm_eps,
            "tie_word_embeddings": text.tied,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_theta,
                "mrope_section": list(sizes.sections),
            },
            "bos_token_id": None,
            "eos_token_id": None,
        },
        tie_word_embeddings=text.tied,
        image_token_id=rows(text) - 1,
        video_token_id=rows(text) - 2,
        vision_start_token_id=rows(text) - 3,
        vision_end_token_id=rows(text) - 4,
    )


def llava_config(sizes: LlavaOneVision) -> LlavaOnevisionConfig:
    """LLaVA-OneVision of these sizes; what else it has is the same in all that were published."""
    vision = sizes.vision
    with torch.device("meta"):
        text = random_language_model(sizes.text).config
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            image_size=vision.picture,
            patch_size=vision.patch,
            hidden_size=vision.width,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            intermediate_size=vision.ffn,
            vision_use_head=False,
        ),
        text_config=text,
        image_token_index=text.vocab_size - 1,
        video_token_index=text.vocab_size - 2,
        tie_word_embeddings=sizes.text.tied,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
    )


def rows(text: Llama) -> int:
    """Rows of the embedding."""
    return ByteTokenizer.size if text.vocabulary is None else text.vocabulary
