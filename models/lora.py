"""LoRA by peft: inside a part that would learn, low-rank matrices learn in its place, and may be merged into it.

    W x  becomes  W x + alpha / rank * B A x       W stays as it is; A is random, B zero, so nothing changes at first

peft wraps a layer: `q_proj.weight` is called `q_proj.base_layer.weight`, beside `q_proj.lora_A.default.weight`.
Source: arXiv:2106.09685; peft's inject_adapter_in_model.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from models.parts import Lora

WRAPPED = ".base_layer"  # what peft puts into the names of a wrapped layer's own weights


def inject(module: nn.Module, loras: tuple[Lora, ...], seed: int) -> None:
    """Freeze each part that has a LoRA, and put matrices beside its targets; the module is changed in place.

    The matrices are a function of seed and part. The global generator is left as it was.

    Raises:
        ValueError: a part that is not there, does not learn or has two, or targets that are no layers to put LoRA into.
    """
    for lora in loras:
        _check(module, lora, loras)
    for lora in loras:
        import peft

        sizes = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
            target_modules=[*lora.targets],
            lora_dropout=0.0,  # its masks would come from the global generator
            bias="none",
        )
        digest = hashlib.sha256(f"lora/{seed}/{lora.part}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
            peft.inject_adapter_in_model(sizes, module.get_submodule(lora.part))


def merge(module: nn.Module) -> None:
    """Add the matrices to the weights they stand beside, in place: names and shapes as without LoRA."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(module.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)  # refuses what is not finite
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, layer.get_base_layer())
    for part in module.modules():
        vars(part).pop("peft_config", None)


def placed(weights: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Weights of the same module without LoRA, under the names that they have in this one."""
    plain = {name.replace(WRAPPED, ""): name for name in module.state_dict()}
    return {plain.get(name, name): tensor for name, tensor in weights.items()}


def _check(module: nn.Module, lora: Lora, loras: tuple[Lora, ...]) -> None:
    """ValueError where a LoRA cannot be put into a module."""
    try:
        part = module.get_submodule(lora.part)
    except AttributeError:
        learning = [name for name, child in module.named_children() if _learns(child)]
        raise ValueError(f"there is no part {lora.part!r} for a LoRA: name one of {', '.join(learning)}") from None
    if not _learns(part):
        raise ValueError(f"{lora.part!r} does not learn, LoRA is a way to learn: unfreeze it, or leave its LoRA out")
    around = f"{lora.part}."
    if sum(f"{other.part}.".startswith(around) or around.startswith(f"{other.part}.") for other in loras) > 1:
        raise ValueError(f"{lora.part!r} has two LoRAs: give it one, with all its targets")
    shared = Counter(id(each) for _, each in module.named_parameters(remove_duplicate=False))
    for target in lora.targets:
        layers = {name: layer for name, layer in part.named_modules() if f".{name}".endswith(f".{target}")}
        if not layers:
            raise ValueError(f"{lora.part!r} has no layer {target!r} for its LoRA: name the ends of its layers' paths")
        for name, layer in layers.items():
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                kind = type(layer).__name__
                raise ValueError(f"{lora.part}.{name} is a {kind}: a LoRA's targets are linear layers and convolutions")
            if shared[id(layer.weight)] > 1:
                raise ValueError(f"{lora.part}.{name} shares its weights with another layer: leave it out of the LoRA")


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
