"""Published weights -> modules: one path for a hub id and for a folder in the hub's layout. Only this file downloads.

`folder` needs no torch, so a layout finds its tokenizer with it; the loaders import their library when they are called.
All loads in float32 on the CPU, and a weight that the files lack is an error: libraries fill it at random and go on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.configs import Pretrained, StableDiffusion

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

# What a snapshot needs: no .pth or .bin twins; of Stable Diffusion neither the text side nor the single-file copies.
MODEL_FILES = ("*.json", "*.safetensors")
DIFFUSION_FILES = tuple(f"{part}/{name}" for part in ("unet", "vae") for name in ("*.json", "*_model.safetensors"))


def folder(weights: Pretrained | StableDiffusion) -> Path:
    """Where the weights lie on this machine; a hub id is downloaded (or found in the hub's cache) first.

    Raises:
        ValueError: neither a folder here nor a repository that can be had.
    """
    local = Path(weights.path)
    if local.is_dir():
        return local
    if local.is_absolute() or weights.path.startswith(".") or len(local.parts) != 2:
        raise ValueError(f"{weights.path!r} is no folder here and no hub id (`org/name`): correct the path")
    import huggingface_hub

    files = DIFFUSION_FILES if isinstance(weights, StableDiffusion) else MODEL_FILES
    try:
        return Path(huggingface_hub.snapshot_download(weights.path, revision=weights.revision, allow_patterns=[*files]))
    except Exception as error:  # the hub's errors share no ancestor: HTTP, cache, offline, revision, transfer
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        revision = f" at revision {weights.revision!r}" if weights.revision else ""
        raise ValueError(
            f"{weights.path!r}{revision} is no folder here and could not be had from the hub ({reason}): "
            "give a local folder, or download it first with `hf download`"
        ) from error


def vision_config(weights: Pretrained) -> SiglipVisionConfig:
    """The sizes of a SigLIP vision encoder, of its own or inside a full SigLIP. ValueError if it is neither."""
    from transformers import SiglipVisionConfig

    place = _typed(weights, ("siglip", "siglip_vision_model"), "a SigLIP encoder")
    return SiglipVisionConfig.from_pretrained(place, vision_use_head=False)


def vision_model(weights: Pretrained) -> SiglipVisionModel:
    """A SigLIP vision encoder without its pooling head. ValueError if it is none, or if weights are missing."""
    from transformers import SiglipVisionModel

    config, place = vision_config(weights), folder(weights)
    return _loaded(SiglipVisionModel, place, config=config, dtype="float32", attn_implementation="sdpa")


def language_model(weights: Pretrained) -> LlamaForCausalLM:
    """A Llama-type language model. ValueError if it is none, or if weights are missing."""
    from transformers import LlamaForCausalLM

    place = _typed(weights, ("llama",), "a Llama-type model")
    return _loaded(LlamaForCausalLM, place, dtype="float32", attn_implementation="sdpa")


def unet(weights: StableDiffusion) -> UNet2DConditionModel:
    """The UNet in a diffusers folder. ValueError if it is missing or incomplete."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return _loaded(UNet2DConditionModel, folder(weights), subfolder="unet", low_cpu_mem_usage=False).float()


def vae(weights: StableDiffusion) -> AutoencoderKL:
    """The VAE in a diffusers folder. ValueError if it is missing or incomplete."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return _loaded(AutoencoderKL, folder(weights), subfolder="vae", low_cpu_mem_usage=False).float()


def _typed(weights: Pretrained, types: tuple[str, ...], wanted: str) -> Path:
    """The folder, if its `model_type` is one of these: transformers only warns and fills another model at random."""
    place = folder(weights)
    try:
        found = json.loads((place / "config.json").read_bytes()).get("model_type")
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{place} holds no readable config.json: give a folder in the hub's layout") from error
    if found not in types:
        raise ValueError(f"{place} holds a model of type {found!r}, not {wanted} ({', '.join(types)}): choose another")
    return place


def _loaded(kind: Any, place: Path, **options: Any) -> Any:
    """`kind.from_pretrained`, strict about what is missing."""
    try:
        model, report = kind.from_pretrained(place, output_loading_info=True, **options)
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{place} holds no weights for {kind.__name__} ({reason}): download it again") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{place} lacks {len(missing)} weights of {kind.__name__}, first {missing[0]}: download it again"
        )
    return model
