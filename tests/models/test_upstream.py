"""Upstream's names at the papers' sizes: every tensor of ours has its place in theirs. Shapes alone, offline."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from models import upstream
from models.configs import MetaMorph, MetaQuery
from models.parts import (
    LLAMA31_8B,
    LLAMA32_1B,
    SIGLIP_SO400M,
    Connector,
    DeepLatents,
    DeepVae,
    Llama,
    Pretrained,
    QwenVision,
    QwenVL,
    Sana,
    SanaTransformer,
)
from models.transformer import random_language_model
from models.upstream import Piece

EYES = Pretrained(path="/no/siglip", sizes=SIGLIP_SO400M)
Shapes = dict[str, tuple[int, ...]]


def shapes(at: str, module: nn.Module) -> Shapes:
    return {f"{at}{name}": tuple(value.shape) for name, value in module.state_dict().items()}


def ours(config: MetaMorph | MetaQuery) -> Shapes:
    with torch.device("meta"):
        built = config.build()
    named = {f"module.{name}": tuple(value.shape) for name, value in built.module.named_parameters()}
    return named | shapes("encoder.", built.encoder)


def metamorph(sizes: Llama, channels: int = 1152) -> Shapes:
    """As transformers names a Llama with two more rows, and LLaVA's code an adapter."""
    assert sizes.vocabulary is not None
    with torch.device("meta"):
        made = shapes("", random_language_model(replace(sizes, vocabulary=sizes.vocabulary + 2)))
    if sizes.tied:
        del made["lm_head.weight"]
    width = sizes.width
    made |= {"model.mm_projector.0.weight": (width, channels), "model.mm_projector.0.bias": (width,)}
    made |= {"model.mm_projector.2.weight": (width, width), "model.mm_projector.2.bias": (width,)}
    return made | {"vision_head.weight": (channels, width), "vision_head.bias": (channels,)}


@pytest.mark.parametrize("sizes", [LLAMA31_8B, LLAMA32_1B])
def test_metamorph_at_the_papers_size(sizes: Llama) -> None:
    config = MetaMorph(backbone=Pretrained(path="/no/llama", sizes=sizes), vision=EYES)
    theirs = metamorph(sizes)
    plan = upstream.planned("metamorph", config, theirs, ours(config), ids=128256, added={})
    assert not plan.kept and not plan.left_out
    assert plan.taken["module.marks_in"] == Piece(name="model.embed_tokens.weight", rows=range(128256, 128258))
    source = "model.embed_tokens.weight" if sizes.tied else "lm_head.weight"
    assert plan.taken["module.marks_out"] == Piece(name=source, rows=range(128256, 128258))
    assert {piece.name for piece in plan.taken.values()} == theirs.keys()
    assert upstream.recognised(list(theirs)) == "metamorph"


def test_metaquery_at_the_papers_size() -> None:
    text = Llama(width=2048, layers=36, heads=16, kv_heads=2, ffn=11008, family="qwen2", vocabulary=151936, tied=True)
    eyes = QwenVision(patch=14, merge=2, window=112, width=1280, layers=32, heads=16, ffn=3420, whole=(7, 15, 23, 31))
    deep = DeepVae(
        channels=(128, 256, 512, 512, 1024, 1024),
        attends=(False, False, False, True, True, True),
        latent_channels=32,
        encoder_layers=(2, 2, 2, 3, 3, 3),
        decoder_layers=(3, 3, 3, 3, 3, 3),
        scale=0.41407,
    )
    sana = SanaTransformer(layers=20, heads=70, head_width=32, cross_heads=20, condition_width=2304)
    config = MetaQuery(
        backbone=Pretrained(path="/no/qwen", sizes=QwenVL(vision=eyes, text=text, sections=(16, 24, 24))),
        decoder=Sana(
            canvas=DeepLatents(vae=Pretrained(path="/no/sana", sizes=deep), side=512),
            network=Pretrained(path="/no/sana", sizes=sana),
        ),
        connector=Connector(layers=24),
    )
    held = ours(config)
    theirs: Shapes = {}
    for name, shape in held.items():
        if name.startswith("module.backbone."):
            theirs[name.replace("module.backbone.", "model.mllm_backbone.model.")] = shape
        elif name.startswith("module.decoder.network."):
            theirs[name.replace("module.decoder.network.", "model.transformer.")] = shape
        elif name.startswith("encoder.tower.network."):
            theirs[name.replace("encoder.tower.network.", "model.mllm_backbone.visual.")] = shape
        elif name.startswith("encoder.canvas.vae."):
            theirs[name.replace("encoder.canvas.", "")] = shape
    theirs["model.mllm_backbone.model.embed_tokens.weight"] = (151936 + 2 + 256, 2048)
    theirs |= {"model.connector.1.weight": (2304, 2048), "model.connector.1.bias": (2304,)}
    theirs |= {"model.connector.3.weight": (2304, 2304), "model.connector.3.bias": (2304,)}
    theirs["model.connector.4.weight"] = (2304,)
    for number in range(24):
        at = f"model.connector.0.layers.{number}"
        for part in ("q", "k", "v"):
            theirs |= {f"{at}.self_attn.{part}_proj.weight": (2048, 2048), f"{at}.self_attn.{part}_proj.bias": (2048,)}
        theirs |= {f"{at}.self_attn.{part}_norm.weight": (64,) for part in ("q", "k")}
        theirs[f"{at}.self_attn.o_proj.weight"] = (2048, 2048)
        theirs |= {f"{at}.{norm}_layernorm.weight": (2048,) for norm in ("input", "post_attention")}
        theirs |= {f"{at}.mlp.{part}_proj.weight": (8192, 2048) for part in ("gate", "up")}
        theirs[f"{at}.mlp.down_proj.weight"] = (2048, 8192)

    plan = upstream.planned("metaquery", config, theirs, held, ids=151665, added={})
    assert not plan.kept and not plan.left_out
    rows = "model.mllm_backbone.model.embed_tokens.weight"
    assert plan.taken["module.marks"] == Piece(name=rows, rows=range(151936, 151938))
    assert plan.taken["module.queries"] == Piece(name=rows, rows=range(151938, 152194))
    assert plan.taken.keys() == {name for name in held if name.startswith("module.")}
    assert plan.compared.keys() == {name for name in held if name.startswith("encoder.")}
    assert upstream.recognised(list(theirs)) == "metaquery"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["model.mm_projector.0.weight", "model.layers.0.mlp.up_proj.weight"], "metamorph"),
        (["model.mm_projector.0.weight", "model.embed_tokens.weight"], "llava"),
        (["meta_queries", "connector.layers.0.mlp.up_proj.weight"], "openuni"),
        (["model.mllm_backbone.visual.merger.ln_q.weight"], "metaquery"),
    ],
)
def test_the_names_of_tensors_tell_the_trainer(names: list[str], kind: str) -> None:
    assert upstream.recognised(names) == kind


@pytest.mark.parametrize("names", [[], ["lm_head.weight"], ["metaquery", "llava"]])
def test_other_names_tell_nothing(names: list[str]) -> None:
    with pytest.raises(ValueError, match="are of no trainer that is known here"):
        upstream.recognised(names)
