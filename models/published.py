"""An architecture as folders that transformers and diffusers open alone: which of its modules is which class there.

A folder is `saved` from the modules, or copied from the `source` that published it where nothing in it was changed.

    MetaMorph      language_model  vision
    Visualizer     unet  vision  vae  scheduler
    Transfusion    language_model  vae  scheduler
    LMFusion       language_model  picture_tower  vae  scheduler
    LLaVAFusion    vision_language  picture_tower  vae  scheduler
    MetaQuery      vision_language  transformer or unet  vae  scheduler

What no library has a class for (adapter, head, marks, queries, connector, coders) is in no folder. The marks' rows are
rows of no embedding: the folders have the vocabulary that was published.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
)

from models import openclip, pretrained
from models.configs import LLaVAFusion, LMFusion, MetaMorph, MetaQuery, Transfusion, Visualizer
from models.decoders import Decoder, DeepCanvas, SanaDecoder, flow_sampler
from models.interface import Architecture
from models.llavafusion import LlavaEncoder, LLaVAFusionModule, llava_next_config
from models.lmfusion import PARTS, LMFusionModule
from models.metamorph import MetaMorphModule
from models.metaquery import MetaQueryEncoder, MetaQueryModule
from models.multimodal import LlavaTower, QwenTower, llava_config, qwen_config
from models.parts import (
    DeepLatents,
    Latents,
    Llama,
    LlavaNext,
    OpenClip,
    Pixels,
    Pretrained,
    QwenVL,
    Sana,
    Siglip,
    StableUNet,
)
from models.transformer import LanguageModel
from models.transfusion import TransfusionModule
from models.vision import CanvasEncoder, VisionEncoder
from models.visualizer import VisualizerEncoder, VisualizerModule


@dataclass(frozen=True, kw_only=True)
class Part:
    """One folder.

    model: of transformers or diffusers, with `save_pretrained`; a scheduler has no weights.
    holds: beginnings of names in the architecture (`module.backbone.`, `encoder.vae.`) -> what stands there in `model`.
    source: the folder, or the one file, that published it; None for random weights. beside: where its tokenizer and
    processor lie. opener: what opens it, where that is not the class of `model`.
    """

    name: str
    model: Any
    holds: Mapping[str, str]
    source: Path | None = None
    beside: Path | None = None
    opener: str = ""

    @property
    def parameters(self) -> int:
        """How many; 0 of a scheduler."""
        return sum(each.numel() for each in self.model.parameters()) if isinstance(self.model, nn.Module) else 0

    @property
    def opens(self) -> str:
        """The class that opens it, `transformers.LlamaForCausalLM`."""
        kind = type(self.model)
        return self.opener or f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def parts(architecture: Architecture) -> tuple[Part, ...]:
    """The folders of a built architecture; tensors are shared with it, not copied.

    Raises:
        ValueError: an architecture that is not of this house.
    """
    config: Any = getattr(architecture, "config", None)
    module, encoder = architecture.module, architecture.encoder
    if isinstance(config, MetaMorph):
        assert isinstance(module, MetaMorphModule) and isinstance(encoder, VisionEncoder)
        return _language_model(config.backbone, module.backbone), _vision(config.vision, encoder, "encoder.")
    if isinstance(config, Visualizer):
        assert isinstance(module, VisualizerModule)
        assert isinstance(encoder, VisualizerEncoder)
        canvas = _canvas(config.decoder.canvas, encoder.canvas, "encoder.canvas.")
        vision = _vision(config.vision, encoder.vision, "encoder.vision.")
        return *_decoder(config.decoder, module.decoder), vision, *canvas
    if isinstance(config, LLaVAFusion):
        assert isinstance(module, LLaVAFusionModule) and isinstance(encoder, LlavaEncoder)
        read = _llava_next(config, module, encoder)
        return read, *_tower(module), *_canvas(config.canvas, encoder, "encoder."), _scheduler(module.noising)
    if isinstance(config, Transfusion):
        assert isinstance(module, TransfusionModule) and isinstance(encoder, CanvasEncoder)
        text = _language_model(config.backbone, module.backbone)
        towers = _tower(module) if isinstance(config, LMFusion) and isinstance(module, LMFusionModule) else ()
        return text, *towers, *_canvas(config.canvas, encoder, "encoder."), _scheduler(module.noising)
    if isinstance(config, MetaQuery):
        assert isinstance(module, MetaQueryModule) and isinstance(encoder, MetaQueryEncoder)
        canvas = _canvas(config.decoder.canvas, encoder.canvas, "encoder.canvas.")
        return _vision_language(config, module, encoder), *_decoder(config.decoder, module.decoder), *canvas
    raise ValueError(
        f"{type(config).__name__} is no architecture of this house: its parts in transformers and diffusers are unknown"
    )


def _language_model(backbone: Llama | Pretrained, model: LanguageModel) -> Part:
    source = pretrained.folder(backbone) if isinstance(backbone, Pretrained) else None
    beside = source
    if isinstance(backbone, Llama) and backbone.tokenizer is not None:
        beside = pretrained.tokenizer(backbone.tokenizer)
    return Part(name="language_model", model=model, holds={"module.backbone.": ""}, source=source, beside=beside)


def _vision(vision: Siglip | Pretrained | OpenClip, encoder: VisionEncoder, at: str) -> Part:
    if isinstance(vision, OpenClip):  # only its trunk is built here, so its files are all there is to give
        trunk = {f"{at}network.": openclip.TRUNK}
        return Part(
            name="vision",
            model=encoder.network,
            holds=trunk,
            source=openclip.source(vision),
            opener="open_clip.create_model",
        )
    source = pretrained.folder(vision) if isinstance(vision, Pretrained) else None
    return Part(name="vision", model=encoder.network, holds={f"{at}network.": ""}, source=source, beside=source)


def _scheduler(model: Any) -> Part:
    return Part(name="scheduler", model=model, holds={})


def _canvas(canvas: Pixels | Latents | DeepLatents, encoder: CanvasEncoder | DeepCanvas, at: str) -> tuple[Part, ...]:
    """The autoencoder of a canvas; none of pixels."""
    if isinstance(canvas, Pixels):
        return ()
    source = None
    if isinstance(canvas.vae, Pretrained):
        source = pretrained.folder(canvas.vae, canvas.subfolder) / (canvas.subfolder or "")
    return (Part(name="vae", model=encoder.vae, holds={f"{at}vae.": ""}, source=source),)


def _tower(module: LMFusionModule) -> tuple[Part, ...]:
    """What pictures run through, as a transformer of its own; none where they share all.

    No library opens one without an embedding, so it has one of a single row of zeros: it reads the coder's tokens, as
    `inputs_embeds`. Parts that pictures share with the text are repeated in it.
    """
    if not hasattr(module.tower, "norm"):
        return ()
    text = module.backbone.model
    config = copy.deepcopy(text.config)
    config.vocab_size = 1
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    held: dict[str, nn.Module | Tensor] = {"embed_tokens.weight": torch.zeros(1, config.hidden_size)}
    held["norm."] = module.tower.norm
    for number, (own, beside) in enumerate(zip(module.tower.layers, text.layers, strict=True)):
        held |= {f"layers.{number}.{part}.": getattr(own, part, getattr(beside, part)) for part in PARTS}
    tower = _assembled(type(text), config, held)
    return (Part(name="picture_tower", model=tower, holds={"module.tower.": ""}),)


def _llava_next(config: LLaVAFusion, module: LLaVAFusionModule, encoder: LlavaEncoder) -> Part:
    backbone, source = config.backbone, None
    if isinstance(backbone, LlavaNext):
        sizes = llava_next_config(backbone)
    else:
        sizes, source = pretrained.llava_next_config(backbone), pretrained.folder(backbone)
    at = {
        "module.backbone.model.": "model.language_model.",
        "module.backbone.lm_head.": "lm_head.",
        "encoder.clip.": "model.vision_tower.",
        "encoder.projector.": "model.multi_modal_projector.",
        "encoder.newline": "model.image_newline",
    }
    model = _assembled(LlavaNextForConditionalGeneration, sizes, _held(at, module, encoder))
    return Part(name="vision_language", model=model, holds=at, source=source, beside=source)


def _vision_language(config: MetaQuery, module: MetaQueryModule, encoder: MetaQueryEncoder) -> Part:
    backbone, source = config.backbone, None
    if isinstance(backbone, Pretrained):
        source = pretrained.folder(backbone)
        sizes: Any = AutoConfig.from_pretrained(source)
    else:
        sizes = qwen_config(backbone) if isinstance(backbone, QwenVL) else llava_config(backbone)
    at = {"module.backbone.": "model.language_model.", "module.head.": "lm_head."}
    if isinstance(encoder.tower, QwenTower):
        kind: Any = Qwen2_5_VLForConditionalGeneration
        at["encoder.tower.network."] = "model.visual."
    else:
        assert isinstance(encoder.tower, LlavaTower)
        kind = LlavaOnevisionForConditionalGeneration
        at["encoder.tower.network."] = "model.vision_tower."
        at["encoder.tower.projector."] = "model.multi_modal_projector."
        at["encoder.tower.newline"] = "model.image_newline"
    model = _assembled(kind, sizes, _held(at, module, encoder))
    return Part(name="vision_language", model=model, holds=at, source=source, beside=source)


def _decoder(sizes: Sana | StableUNet, decoder: Decoder) -> tuple[Part, Part]:
    """What paints, and its scheduler."""
    name = "transformer" if isinstance(decoder, SanaDecoder) else "unet"
    source = pretrained.folder(sizes.network, name) / name if isinstance(sizes.network, Pretrained) else None
    painter = Part(name=name, model=decoder.network, holds={"module.decoder.network.": ""}, source=source)
    return painter, _scheduler(flow_sampler(decoder.shift) if isinstance(decoder, SanaDecoder) else decoder.noising)


def _held(at: Mapping[str, str], module: nn.Module, encoder: nn.Module) -> dict[str, nn.Module | Tensor]:
    """What stands at our names, by theirs."""
    roots = {"module": module, "encoder": encoder}
    found = {}
    for ours, theirs in at.items():
        root, _, path = ours.partition(".")
        held = roots[root]
        for name in path.rstrip(".").split("."):
            held = getattr(held, name)
        found[theirs] = held
    return found


def _assembled(kind: Any, config: Any, held: Mapping[str, nn.Module | Tensor]) -> Any:
    """A library's model around these modules' tensors, by the beginnings of their names there; every one is given."""
    with torch.device("meta"):
        model = kind(config)
    state: dict[str, Tensor] = {}
    for at, value in held.items():
        if isinstance(value, Tensor):
            state[at] = value
        else:
            state |= {f"{at}{name}": tensor for name, tensor in value.state_dict().items()}
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    return model
