"""open_clip's SigLIP as a vision encoder: its tower alone, by the names that `open_clip.create_model` takes.

A tower is timm's vision transformer, `visual.trunk` in open_clip's checkpoints. What it is stands in a JSON of the
installed package, or of the folder that is named, so sizes need neither torch nor network.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from models import pretrained
from models.parts import OpenClip, Pretrained

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from torch import Tensor

TRUNK = "visual.trunk."  # before the names of what is read; text side and head stay on the disk
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
Colors = tuple[float, float, float]


class Tower(NamedTuple):
    """A trunk whose output is that of its last block, and what its pictures are normed with, by color."""

    trunk: VisionTransformer
    mean: Colors
    std: Colors


def picture(weights: OpenClip) -> int:
    """Pixels a side that it reads. ValueError where it is no SigLIP, or there is no such model or folder."""
    return int(_vision(weights)["image_size"])


def tower(weights: OpenClip) -> Tower:
    """The vision tower without last norm and pooling, float32; on the meta device without weights.

    Raises:
        ValueError: no SigLIP, no such model, tag or folder, or weights that cannot be had or do not fit.
    """
    import timm
    import torch

    with torch.device("meta"):
        trunk: Any = timm.create_model(_vision(weights)["timm_model_name"], num_classes=0)
    if not pretrained.planning():
        place = checkpoint(weights)
        tensors = _tensors(place)
        wanted = {name: tensor.shape for name, tensor in trunk.state_dict().items()}
        wrong = [name for name in (*wanted, *tensors) if name not in tensors or tensors[name].shape != wanted.get(name)]
        if wrong:
            raise ValueError(
                f"{place}: {len(wrong)} weights are not those of {weights.model}, first {TRUNK}{wrong[0]}: "
                "name the model that was trained, or download it again"
            )
        trunk.load_state_dict(tensors, assign=True)
    trunk.reset_classifier(0, global_pool="")  # and with it the pooling by attention
    trunk.norm = torch.nn.Identity()
    mean, std = _colors(weights)
    return Tower(trunk.float(), mean, std)


def source(weights: OpenClip) -> Path:
    """Where its weights lie: a folder in open_clip's layout, or a checkpoint alone. ValueError where there is none."""
    file = checkpoint(weights)
    return file.parent if (file.parent / "open_clip_config.json").is_file() else file


def _vision(weights: OpenClip) -> dict[str, Any]:
    """open_clip's `vision_cfg`. ValueError if it is no SigLIP's."""
    config = described(weights)
    vision = config.get("model_cfg", config).get("vision_cfg", {})
    trunk = vision.get("timm_model_name") or "a transformer of open_clip's own"
    if "siglip" not in trunk or vision.get("timm_pool") != "map":
        raise ValueError(f"{weights.model} sees with {trunk}, not with a SigLIP: choose one with SigLIP in its name")
    return vision


def described(weights: OpenClip) -> dict[str, Any]:
    """The JSON that says what it is, of the package or of the folder.

    Raises:
        ValueError: no such model or folder.
    """
    if weights.folder is not None:
        file = Path(weights.folder) / "open_clip_config.json"
        try:
            return json.loads(file.read_bytes())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} does not read: give a folder in open_clip's layout") from error
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.origin is not None
    known = {file.stem: file for file in (Path(package.origin).parent / "model_configs").glob("*.json")}
    if weights.model not in known:
        near = " or ".join(difflib.get_close_matches(weights.model, known, n=3))
        raise ValueError(f"open_clip has no model {weights.model!r}: name {near or 'one of open_clip.list_models()'}")
    return json.loads(known[weights.model].read_bytes())


def published(weights: OpenClip) -> dict[str, Any]:
    """What open_clip knows of a tag; of a file's model, what it knows of its first tag.

    Raises:
        ValueError: neither a tag of the model nor a file.
    """
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(weights.model)
    assert weights.pretrained is not None
    if found := get_pretrained_cfg(weights.model, weights.pretrained):
        return found
    if not tags or not Path(weights.pretrained).is_file():
        raise ValueError(f"{weights.pretrained!r} is no file here and no tag of {weights.model} ({', '.join(tags)})")
    return get_pretrained_cfg(weights.model, tags[0])


def _colors(weights: OpenClip) -> tuple[Colors, Colors]:
    """Mean and deviation of each color in 0..1, as the model was trained with."""
    known = published(weights) if weights.folder is None else described(weights).get("preprocess_cfg", {})
    try:
        mean, std = ((float(r), float(g), float(b)) for r, g, b in (known["mean"], known["std"]))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{weights.model}: preprocess_cfg has no mean and std of three colors: add them") from None
    return mean, std


def checkpoint(weights: OpenClip) -> Path:
    """The file of its weights; that of a tag is downloaded (or found in the hub's cache) first.

    Raises:
        ValueError: there is none.
    """
    if weights.folder is None:
        known = published(weights)
        assert weights.pretrained is not None
        if (file := Path(weights.pretrained)).is_file():
            return file
        folder = pretrained.folder(Pretrained(path=known["hf_hub"].strip("/"), revision=weights.revision))
    else:
        folder = Path(weights.folder)
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} holds none of {', '.join(FILES)}: give a folder in open_clip's layout")


def there(weights: OpenClip) -> None:
    """Whether its weights are here or can be had, before anything is loaded or downloaded.

    Raises:
        ValueError: neither.
    """
    if weights.folder is not None or (weights.pretrained is not None and Path(weights.pretrained).is_file()):
        checkpoint(weights)
        return
    pretrained.there(Pretrained(path=published(weights)["hf_hub"].strip("/"), revision=weights.revision))


def _tensors(file: Path) -> dict[str, Tensor]:
    """The trunk's weights by the trunk's own names. What is pickled is read if it is tensors and plain values alone."""
    import pickle

    import torch
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".safetensors":
            pretrained.floats(file)
            with safe_open(file, framework="pt") as opened:
                names = [name for name in opened.keys() if name.startswith(TRUNK)]  # noqa: SIM118
                return {name.removeprefix(TRUNK): opened.get_tensor(name) for name in names}
        held = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{file} is no checkpoint of tensors alone ({reason}): save it as safetensors") from error
    held = {name.removeprefix("module."): tensor for name, tensor in held.get("state_dict", held).items()}
    return {name.removeprefix(TRUNK): tensor for name, tensor in held.items() if name.startswith(TRUNK)}
