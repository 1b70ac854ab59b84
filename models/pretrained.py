"""Published weights -> modules: one path for a hub id and for a folder in the hub's layout. Only this file downloads.

`folder` needs no torch, so a layout finds its tokenizer with it; the loaders import their library when they are called.
All loads in float32 on the CPU, and a weight that the files lack is an error: libraries fill it at random and go on.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import packages
from models.parts import (
    Clip,
    DeepVae,
    Llama,
    LlavaNext,
    LlavaOneVision,
    Pretrained,
    QwenVision,
    QwenVL,
    RopeScaling,
    SanaTransformer,
    Siglip,
    UNet,
    Vae,
    VisionLanguage,
)
from models.views import Tiles

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaOnevisionForConditionalGeneration,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLForConditionalGeneration,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    from models.transformer import LanguageModel

PACKAGE = "package:"  # before the name of an installed package that holds weights

# What a snapshot needs: no .pth or .bin twins; of a part of a diffusers folder no float16 or non-EMA ones either.
MODEL_FILES = ("*.json", "*.safetensors")
_FLOATS = ("BF16", "F16", "F32", "F64")  # safetensors' names of what weights are
_ANSWERS = 15.0  # seconds that the hub has to say whether it has something
_COUNTERS = ("position_ids", "num_batches_tracked", "relative_position_index")  # buffers that are whole numbers
PART_FILES = ("*.json", "*_model.safetensors", "*_model-*.safetensors")


def folder(weights: Pretrained, part: str | None = None) -> Path:
    """Where the weights lie on this machine; a hub id is downloaded (or found in the hub's cache) first.

    Args:  part: the one folder in it that is needed; None for all.
    Raises:
        ValueError: neither a folder here, an installed package, nor a repository that can be had.
    """
    return _had(weights, MODEL_FILES if part is None else tuple(f"{part}/{name}" for name in PART_FILES))


def tokenizer(weights: Pretrained) -> Path:
    """The folder that holds its tokenizer.json, without the weights. See `folder`."""
    return _had(weights, ("tokenizer.json",))


def there(weights: Pretrained) -> None:
    """Whether weights are on this machine, or a hub has them: nothing is loaded or downloaded.

    Raises:
        ValueError: neither.
    """
    if not _elsewhere(weights):
        folder(weights)
        return
    import huggingface_hub

    try:
        huggingface_hub.snapshot_download(weights.path, revision=weights.revision, local_files_only=True)
    except Exception:  # noqa: BLE001  it is not in the cache, or not whole
        try:
            huggingface_hub.HfApi().repo_info(weights.path, revision=weights.revision, timeout=_ANSWERS)
        except Exception as error:  # as in `_had`
            raise _unobtained(weights, error) from error


def _elsewhere(weights: Pretrained) -> bool:
    """Whether the path is a hub id."""
    local = Path(weights.path)
    named = local.is_absolute() or weights.path.startswith((".", PACKAGE))
    return not local.is_dir() and not named and len(local.parts) == 2


def _had(weights: Pretrained, files: tuple[str, ...]) -> Path:
    local = Path(weights.path)
    if local.is_dir():
        return local
    if weights.path.startswith(PACKAGE):
        return packages.folder(weights.path.removeprefix(PACKAGE))
    if not _elsewhere(weights):
        raise ValueError(f"{weights.path!r} is no folder here and no hub id (`org/name`): correct the path")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(weights.path, revision=weights.revision, allow_patterns=[*files]))
    except Exception as error:  # the hub's errors share no ancestor: HTTP, cache, offline, revision, transfer
        raise _unobtained(weights, error) from error


def _unobtained(weights: Pretrained, error: Exception) -> ValueError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    revision = f" at revision {weights.revision!r}" if weights.revision else ""
    return ValueError(
        f"{weights.path!r}{revision} is no folder here and could not be had from the hub ({reason}): "
        "give a local folder, or download it first with `hf download`"
    )


def vision_config(weights: Pretrained) -> SiglipVisionConfig:
    """The sizes of a SigLIP vision encoder, of its own or inside a full SigLIP. ValueError if it is neither."""
    from transformers import SiglipVisionConfig

    place, _ = _typed(weights, ("siglip", "siglip_vision_model"), "a SigLIP encoder")
    return SiglipVisionConfig.from_pretrained(place, vision_use_head=False)


def vision_model(weights: Pretrained) -> SiglipVisionModel:
    """A SigLIP vision encoder without its pooling head.

    Raises:
        ValueError: it is none, is of other sizes, or weights are missing.
    """
    from transformers import SiglipVisionModel

    config, place = vision_config(weights), folder(weights)
    _agreed(weights, _siglip(config))
    return _loaded(SiglipVisionModel, place, config=config, dtype="float32", attn_implementation="sdpa")


def language_model(weights: Pretrained) -> LanguageModel:
    """A decoder of the Llama family. ValueError if it is none, is of other sizes, or if weights are missing."""
    from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

    kinds = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM, "mistral": MistralForCausalLM}
    place, found = _typed(weights, tuple(kinds), "a decoder of the Llama family")
    if weights.sizes is not None:
        config: Any = kinds[found].config_class.from_pretrained(place)
        _agreed(weights, _decoder(config, config.tie_word_embeddings))
    return _loaded(kinds[found], place, dtype="float32", attn_implementation="sdpa")


def _decoder(config: Any, tied: bool) -> Llama:
    """The sizes of a language model. ValueError where they cannot be spelled out."""
    angles = config.rope_parameters
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if angles["rope_type"] not in ("default", "llama3") or head * config.num_attention_heads != config.hidden_size:
        raise ValueError(
            f"a {config.model_type} with angles of type {angles['rope_type']!r} and {config.num_attention_heads} heads "
            f"of {head} in a width of {config.hidden_size} cannot be spelled out: leave out Pretrained.sizes"
        )
    scaling = None
    if angles["rope_type"] == "llama3":
        scaling = RopeScaling(
            factor=angles["factor"],
            low=angles["low_freq_factor"],
            high=angles["high_freq_factor"],
            original=angles["original_max_position_embeddings"],
        )
    return Llama(
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        ffn=config.intermediate_size,
        max_positions=config.max_position_embeddings,
        rope_theta=angles["rope_theta"],
        norm_eps=config.rms_norm_eps,
        family=config.model_type,
        vocabulary=config.vocab_size,
        tied=tied,
        rope_scaling=scaling,
    )


def _siglip(config: Any) -> Siglip:
    """The sizes of a SigLIP's vision side."""
    return Siglip(
        picture=config.image_size,
        patch=config.patch_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        ffn=config.intermediate_size,
    )


def llava_next_config(weights: Pretrained) -> LlavaNextConfig:
    """The sizes of a LLaVA-NeXT. ValueError if it is none, or one put together in a way that is not read here."""
    from transformers import LlavaNextConfig

    place, _ = _typed(weights, ("llava_next",), "a LLaVA-NeXT")
    config = LlavaNextConfig.from_pretrained(place)
    vision: Any = config.vision_config
    text: Any = config.text_config
    found = (
        vision.model_type,
        text.model_type,
        config.vision_feature_layer,
        config.vision_feature_select_strategy,
    )
    if found != ("clip_vision_model", "llama", -2, "default"):
        raise ValueError(f"{place} is a LLaVA-NeXT of {found}, not of a CLIP whose last layer but one a Llama reads")
    return config


def tiles_of(config: LlavaNextConfig) -> Tiles:
    """How its processor cuts pictures."""
    vision: Any = config.vision_config
    pinpoints = tuple((height, width) for height, width in config.image_grid_pinpoints or ())
    return Tiles(side=vision.image_size, patch=vision.patch_size, pinpoints=pinpoints)


def llava_next(weights: Pretrained) -> LlavaNextForConditionalGeneration:
    """A LLaVA-NeXT: CLIP, projector and language model.

    Raises:
        ValueError: it is none, is of other sizes, or weights are missing.
    """
    from transformers import LlavaNextForConditionalGeneration

    config, place = llava_next_config(weights), folder(weights)
    if weights.sizes is not None:
        eyes: Any = config.vision_config
        clip = Clip(
            picture=eyes.image_size,
            patch=eyes.patch_size,
            width=eyes.hidden_size,
            layers=eyes.num_hidden_layers,
            heads=eyes.num_attention_heads,
            ffn=eyes.intermediate_size,
        )
        text = _decoder(config.text_config, config.tie_word_embeddings)
        _agreed(weights, LlavaNext(vision=clip, text=text, pinpoints=tiles_of(config).pinpoints))
    return _loaded(LlavaNextForConditionalGeneration, place, config=config, dtype="float32", attn_implementation="sdpa")


def qwen_writer(
    weights: Pretrained, dtype: str
) -> Qwen2VLForConditionalGeneration | Qwen2_5_VLForConditionalGeneration:
    """A Qwen2-VL or Qwen2.5-VL with its head, to write with. ValueError if it is neither, or if weights are missing."""
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

    kinds = {"qwen2_vl": Qwen2VLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}
    place, found = _typed(weights, tuple(kinds), "a vision-language model of Qwen's")
    return _loaded(kinds[found], place, dtype=dtype, attn_implementation="sdpa")


def vision_language_sizes(weights: Pretrained) -> VisionLanguage:
    """The sizes of a Qwen2.5-VL or a LLaVA-OneVision. ValueError if it is neither, or built as is not read here."""
    from transformers import LlavaOnevisionConfig, Qwen2_5_VLConfig

    place, found = _typed(weights, ("qwen2_5_vl", "llava_onevision"), "a vision-language model")
    if found == "qwen2_5_vl":
        qwen: Any = Qwen2_5_VLConfig.from_pretrained(place)
        eyes = qwen.vision_config
        vision = QwenVision(
            patch=eyes.patch_size,
            merge=eyes.spatial_merge_size,
            window=eyes.window_size,
            width=eyes.hidden_size,
            layers=eyes.depth,
            heads=eyes.num_heads,
            ffn=eyes.intermediate_size,
            whole=tuple(eyes.fullatt_block_indexes),
        )
        sections = tuple(qwen.text_config.rope_parameters["mrope_section"])
        text = replace(_decoder(qwen.text_config, qwen.tie_word_embeddings), family="qwen2")
        return QwenVL(vision=vision, text=text, sections=sections)
    llava: Any = LlavaOnevisionConfig.from_pretrained(place)
    kind = (
        llava.vision_config.model_type,
        llava.text_config.model_type,
        llava.vision_feature_layer,
        llava.vision_feature_select_strategy,
    )
    if kind != ("siglip_vision_model", "qwen2", -1, "full"):
        raise ValueError(f"{place} is a LLaVA-OneVision of {kind}, not of a SigLIP whose last layer a Qwen2 reads")
    text = _decoder(llava.text_config, llava.tie_word_embeddings)
    return LlavaOneVision(vision=_siglip(llava.vision_config), text=text)


def vision_language(
    weights: Pretrained,
) -> Qwen2_5_VLForConditionalGeneration | LlavaOnevisionForConditionalGeneration:
    """A Qwen2.5-VL or a LLaVA-OneVision. ValueError if it is neither, is of other sizes, or if weights are missing."""
    from transformers import LlavaOnevisionForConditionalGeneration, Qwen2_5_VLForConditionalGeneration

    found = vision_language_sizes(weights)
    _agreed(weights, found)
    kind = Qwen2_5_VLForConditionalGeneration if isinstance(found, QwenVL) else LlavaOnevisionForConditionalGeneration
    return _loaded(kind, folder(weights), dtype="float32", attn_implementation="sdpa")


def sana_transformer(weights: Pretrained) -> SanaTransformer2DModel:
    """The transformer in a Sana folder. ValueError if it is missing, incomplete, or of other sizes."""
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel

    place = folder(weights, "transformer")
    network = _loaded(SanaTransformer2DModel, place, subfolder="transformer", low_cpu_mem_usage=False).float()
    sizes = network.config
    found = SanaTransformer(
        layers=sizes["num_layers"],
        heads=sizes["num_attention_heads"],
        head_width=sizes["attention_head_dim"],
        cross_heads=sizes["num_cross_attention_heads"],
        condition_width=sizes["caption_channels"],
        ffn=sizes["mlp_ratio"],
        patch=sizes["patch_size"],
    )
    _agreed(weights, found)
    return network


def stable_unet(weights: Pretrained) -> UNet2DConditionModel:
    """The UNet of a Stable Diffusion 1.5. ValueError if it is missing, incomplete, or of other sizes."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    network = _loaded(UNet2DConditionModel, folder(weights, "unet"), subfolder="unet", low_cpu_mem_usage=False).float()
    if isinstance(weights.sizes, UNet):
        sizes, wanted = network.config, weights.sizes
        found = (sizes["sample_size"], tuple(sizes["block_out_channels"]), sizes["cross_attention_dim"])
        if found != (wanted.picture, wanted.channels, wanted.condition_width):
            raise ValueError(f"{weights.path} has cells, channels, condition {found}: correct the sizes in the recipe")
    return network


def deep_vae(weights: Pretrained, subfolder: str | None) -> AutoencoderDC:
    """Sana's autoencoder in a diffusers folder. ValueError if it is missing or incomplete."""
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

    where = {} if subfolder is None else {"subfolder": subfolder}
    network = _loaded(AutoencoderDC, folder(weights, subfolder), low_cpu_mem_usage=False, **where).float()
    sizes = network.config
    blocks = sizes["encoder_block_types"]
    scales = len(sizes["encoder_block_out_channels"])
    found = DeepVae(
        channels=tuple(sizes["encoder_block_out_channels"]),
        attends=tuple(block != "ResBlock" for block in ((blocks,) * scales if isinstance(blocks, str) else blocks)),
        latent_channels=sizes["latent_channels"],
        encoder_layers=tuple(sizes["encoder_layers_per_block"]),
        decoder_layers=tuple(sizes["decoder_layers_per_block"]),
        scale=sizes["scaling_factor"],
        head_width=sizes["attention_head_dim"],
    )
    _agreed(weights, found)
    return network


def _agreed(weights: Pretrained, found: Any) -> None:
    """ValueError where sizes are spelled out and the weights have others: the first that differs is named."""
    if weights.sizes is not None and (other := _difference(weights.sizes, found, "")):
        raise ValueError(f"{weights.path}: {other}; correct Pretrained.sizes in the recipe, or choose other weights")


def _difference(recipe: Any, found: Any, path: str) -> str | None:
    """Where two spelled sizes differ, in words; seeds and tokenizers are none of the weights'."""
    if type(recipe) is not type(found) and is_dataclass(found):
        return f"{path or 'it'} is a {type(found).__name__} there, in the recipe a {type(recipe).__name__}"
    for field in fields(found):
        if field.name in ("seed", "tokenizer"):
            continue
        there, here, name = getattr(found, field.name), getattr(recipe, field.name), f"{path}{field.name}"
        if is_dataclass(there):
            if inside := _difference(here, there, f"{name}."):
                return inside
        elif not _same(there, here):
            return f"{name} is {there!r} there, in the recipe {here!r}"
    return None


def _same(there: Any, here: Any) -> bool:
    """Equal, or numbers that float32 does not tell apart: a file may have kept 1e-5 as 9.99999975e-06."""
    numbers = all(isinstance(value, int | float) for value in (there, here))
    return math.isclose(there, here, rel_tol=1e-6) if numbers else there == here


def planning() -> bool:
    """Whether modules are built on torch's meta device: shapes alone, to count and to plan with."""
    import torch

    return torch.get_default_device().type == "meta"


def planned(
    weights: Pretrained,
) -> Llama | Siglip | LlavaNext | Vae | VisionLanguage | DeepVae | SanaTransformer | UNet | None:
    """The sizes that stand for weights on the meta device; None elsewhere. ValueError if they are not spelled out."""
    if not planning():
        return None
    if weights.sizes is None:
        raise ValueError(f"the sizes of {weights.path} are not spelled out in the recipe: give Pretrained(sizes=...)")
    return weights.sizes


def vae(weights: Pretrained, subfolder: str | None) -> AutoencoderKL:
    """The VAE in a diffusers folder. ValueError if it is missing or incomplete, or of other sizes."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    where = {} if subfolder is None else {"subfolder": subfolder}
    network = _loaded(AutoencoderKL, folder(weights, subfolder), low_cpu_mem_usage=False, **where).float()
    sizes = network.config
    found = Vae(
        channels=tuple(sizes["block_out_channels"]),
        latent_channels=sizes["latent_channels"],
        layers_per_block=sizes["layers_per_block"],
        scale=sizes["scaling_factor"],
        groups=sizes["norm_num_groups"],
    )
    _agreed(weights, found)
    return network


def _typed(weights: Pretrained, types: tuple[str, ...], wanted: str) -> tuple[Path, str]:
    """The folder and its `model_type`, if it is one of these: of another, transformers fills weights at random."""
    place = folder(weights)
    try:
        found = json.loads((place / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{place} holds no readable config.json: give a folder in the hub's layout") from error
    if found not in types:
        raise ValueError(f"{place} holds a model of type {found!r}, not {wanted} ({', '.join(types)}): choose another")
    return place, found


def _loaded(kind: Any, place: Path, **options: Any) -> Any:
    """`kind.from_pretrained`, strict about what is missing, what is too much, and where files lie."""
    _inside(place / options.get("subfolder", ""))
    for file in sorted((place / options.get("subfolder", "")).glob("*.safetensors")):
        floats(file)
    try:
        with _silent():
            model, report = kind.from_pretrained(place, output_loading_info=True, **options)
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{place} holds no weights for {kind.__name__} ({reason}): download it again") from error
    except (RuntimeError, ArithmeticError, LookupError, TypeError, AttributeError, ValueError) as error:
        # the libraries' own words for files that do not read, sizes that disagree, values that are none
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{place} holds no sound {kind.__name__} ({reason}): download it again") from error
    for fault, names in (("lacks", report["missing_keys"]), ("has other shapes for", report["mismatched_keys"])):
        if names:
            first = min(map(str, names))
            raise ValueError(
                f"{place} {fault} {len(names)} weights of {kind.__name__}, first {first}: download it again"
            )
    layers = [name for name in report["unexpected_keys"] if ".layers." in name and ".rotary_emb." not in name]
    if layers and kind.__name__.endswith("CausalLM"):
        beyond = f"{len(layers)} weights beyond its config.json, first {min(layers)}"
        raise ValueError(f"{place} holds {beyond}: it would be cut short; download it again")
    return model


@contextmanager
def _silent() -> Iterator[None]:
    """Without the libraries' own tables of missing and unexpected weights: what is wrong is said here in a line."""
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def floats(file: Path) -> None:
    """ValueError where a safetensors file holds other numbers than floats: libraries would cast them and go on.

    A file that does not read is left to its reader, who says so.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return
    wrong = [name for name, kind in kinds.items() if kind not in _FLOATS and not name.endswith(_COUNTERS)]
    if wrong:
        raise ValueError(
            f"{file} holds {kinds[wrong[0]]} for {len(wrong)} weights, first {wrong[0]}: weights are "
            f"{', '.join(_FLOATS)}; download the unquantized ones"
        )


def _inside(place: Path) -> None:
    """ValueError where an index of weights names a file elsewhere."""
    for index in place.glob("*.index.json"):
        try:
            files = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{index} does not read ({error!r}): download it again") from None
        for file in files:
            if not isinstance(file, str) or file != Path(file).name:
                raise ValueError(f"{index} names {str(file)[:80]!r}, a file elsewhere: download it again")
