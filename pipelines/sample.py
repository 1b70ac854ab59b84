"""A trained run answers: text, pictures, or both. Pictures are predicted as vision tokens; another run paints them.

<run>/samples/0000.png ...   one file per painted picture
<run>/samples/samples.jsonl  a line per answer: prompt, parts, files, step, settings
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from dataflow import media
from models.configs import MetaMorph, Visualizer
from models.interface import Asked
from models.visualizer import VisualizerEncoder, paint
from pipelines import checkpoint, recipe
from pipelines.training import Training


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One answer: its parts in order, text or the file of a painted picture."""

    prompt: str
    parts: tuple[str | Path, ...]

    def line(self) -> str:
        """For the terminal."""
        return " ".join(f"{self.prompt} -> {' '.join(str(part) for part in self.parts)}".split())


class Run:
    """A run's folder with the architecture of its recipe and the weights of a checkpoint, on one device.

    step: of which checkpoint; None: of the newest.
    taken: names in the module of what comes from a checkpoint; all else is as its part was published.

    Raises:
        ValueError: no run there, no checkpoint yet, or weights that are not of this architecture.
    """

    def __init__(self, folder: Path, step: int | None = None) -> None:
        self.folder = folder
        self.training = read_training(folder)
        self.config = self.training.architecture
        kept = folder / "checkpoints"
        origin = checkpoint.latest(kept) if step is None else kept / f"step-{step:06d}"
        if origin is None:
            raise ValueError(f"{folder} has no checkpoint yet: train it first")
        self.step = int(origin.name.rpartition("-")[2])
        self.architecture: Any = self.config.build()
        module, weights = self.architecture.module, checkpoint.weights(origin)
        begun: frozenset[str] = frozenset()
        if any(name not in weights for name, _ in module.named_parameters()):  # what is frozen may come from there
            _, begun = checkpoint.begin(folder, module)
        _take(module, weights, origin, whole=not (folder / "import.json").is_file())
        self.taken = begun | weights.keys()
        module.eval()
        self.device = next(self.architecture.module.parameters()).device

    @cached_property
    def vision(self) -> str:
        """Digest of the frozen encoder: tokens of one run mean something only to runs with the same."""
        encoder = self.architecture.encoder
        return (encoder.vision if isinstance(encoder, VisualizerEncoder) else encoder).digest()


def _take(module: torch.nn.Module, weights: dict[str, torch.Tensor], origin: Path, *, whole: bool) -> None:
    """Put weights into a module: of a `whole` run all that is trained, of an imported one what was there."""
    needed = [name for name, parameter in module.named_parameters() if parameter.requires_grad] if whole else []
    known = module.state_dict()
    wrong = [name for name, tensor in weights.items() if name not in known or known[name].shape != tensor.shape]
    wrong += [name for name in needed if name not in weights]
    if wrong:
        raise ValueError(f"{origin} does not fit the architecture of its recipe: {', '.join(sorted(wrong)[:3])} differ")
    for name, tensor in weights.items():
        if not tensor.is_floating_point() and known[name].is_floating_point():
            raise ValueError(f"{origin}: {name} holds {tensor.dtype}, not weights: take another checkpoint")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{origin}: {name} holds numbers that are not finite: take an earlier checkpoint")
    module.load_state_dict(weights, strict=False)


def read_training(folder: Path) -> Training:
    """A run's recipe, nothing built.

    Raises:
        ValueError: no run there.
    """
    stored = _stored(folder)
    try:
        training = recipe.rebuild(stored["value"], stored["file"])
    except TypeError as error:
        raise ValueError(f"{folder / 'recipe.json'} is damaged ({error}): restore it") from None
    if not isinstance(training, Training):
        raise ValueError(f"{folder / 'recipe.json'} is no recipe of a run: restore it")
    return training


def _stored(folder: Path) -> dict[str, Any]:
    """A run's recipe.json."""
    try:
        stored = json.loads((folder / "recipe.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} is no run: it has no recipe.json; give a folder under ROOT/trainings") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{folder / 'recipe.json'} is damaged ({error}): restore it") from None
    if not isinstance(stored, dict) or not {"value", "file"} <= stored.keys():
        raise ValueError(f"{folder / 'recipe.json'} is no recipe of a run: restore it")
    return stored


def answers(
    folder: Path, prompts: Sequence[str], images: Sequence[Path], settings: Asked, *, visualizer: Path | None = None
) -> Iterator[Sampled]:
    """Answer each prompt, shown the same pictures; every answer is saved before it is given.

    Args:
        visualizer: the run that paints MetaMorph's tokens; by default one beside it with the same vision encoder.
    Raises:
        ValueError: a run that cannot answer, a picture that does not open, no run to paint with.
    """
    yield from answered(Run(folder), prompts, images, settings, folder / "samples", visualizer=visualizer)


def answered(
    run: Run,
    prompts: Sequence[str],
    images: Sequence[Path],
    settings: Asked,
    into: Path,
    *,
    visualizer: Path | None = None,
) -> Iterator[Sampled]:
    """The same of a run that is open, saved in the folder `into`."""
    painter: Run | None = None
    shown = [_shown(path) for path in images]
    for prompt in prompts:
        turns = [("user", (*range(len(shown)), prompt))]
        # a bare request is phrased as in training; a question about a picture is left as it is
        task = "text_to_image" if settings.answer == "picture" and not shown else "image_qa"
        said = run.architecture.answer(turns, shown, settings, task=task, key=prompt)
        parts: list[str | Path] = []
        for part in said.parts:
            if isinstance(part, str):
                parts.append(part)
                continue
            if not isinstance(run.config, MetaMorph):
                parts.append(_save(into, part))
                continue
            painter = painter or Run(visualizer or find_visualizer(run))
            if painter.vision != run.vision:
                raise ValueError(f"{painter.folder.name} was trained on another vision encoder than {run.folder.name}")
            parts.append(_save(into, painted(painter, part[None], settings)[0]))
        sampled = Sampled(prompt=prompt, parts=tuple(parts))
        _record(run, sampled, images, settings, into)
        yield sampled


def repaint(visualizer: Run, pictures: Sequence[Image.Image], settings: Asked) -> torch.Tensor:
    """Pictures through encoder and paint: what the visualizer alone can do. Returns float32[K, 3, h, w] in 0..1."""
    tiles = np.concatenate([visualizer.config.drawn.cut(picture).tiles for picture in pictures])
    with torch.inference_mode():
        seen = rearrange(torch.from_numpy(tiles), "k h w c -> k c h w").float() / 255
        tokens = visualizer.architecture.encoder.vision(seen)
    return painted(visualizer, tokens, settings)


def find_visualizer(run: Run) -> Path:
    """The newest finished visualizer run beside this one that reads the same vision tokens; says which it took.

    Runs of a recipe file that is not this run's are passed over: to look at one would be to run its file.

    Raises:
        ValueError: there is none.
    """
    trusted = (None, _stored(run.folder)["file"])
    for done in sorted(run.folder.parent.glob("*/done.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            if _stored(done.parent)["file"] not in trusted:
                continue
            config = read_training(done.parent).architecture
        except ValueError as error:
            print(f"{done.parent.name} is passed over: {error}", flush=True)
            continue
        if isinstance(config, Visualizer) and config.vision == run.config.vision and config.grid == run.config.grid:
            print(f"painting with {done.parent.name}", flush=True)
            return done.parent
    raise ValueError(
        f"no finished visualizer beside {run.folder} reads its tokens: train one, or give --visualizer RUN"
    )


def save_png(picture: torch.Tensor, path: Path) -> Path:
    """Write float32[3, H, W] in 0..1 as PNG."""
    array = rearrange(picture.mul(255).round().to(torch.uint8), "c h w -> h w c").numpy()
    Image.fromarray(array).save(path)
    return path


def painted(visualizer: Run, tokens: torch.Tensor, settings: Asked) -> torch.Tensor:
    with torch.inference_mode():
        return paint(
            visualizer.architecture, tokens, seed=settings.seed, steps=settings.steps, guidance=settings.guidance
        )


def _shown(path: Path) -> Image.Image:
    try:
        picture = media.picture(path.read_bytes())
        media.intact(picture)
        return media.decoded(picture)
    except media.Corrupt as problem:
        raise ValueError(f"--image {path}: {problem}") from None


def _save(folder: Path, picture: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    taken = [int(path.stem) for path in folder.glob("*.png") if path.stem.isdigit()]
    return save_png(picture, folder / f"{max(taken, default=-1) + 1:04d}.png")


def _copy(picture: Path, folder: Path) -> str:
    """Keep what was shown, under a name of its content; returns the name."""
    folder.mkdir(exist_ok=True)
    data = picture.read_bytes()
    stored = media.picture(data)
    name = f"{hashlib.sha256(data).hexdigest()[:16]}.{stored.extension}"
    (folder / name).write_bytes(stored.data)
    return name


def _record(run: Run, sampled: Sampled, images: Sequence[Path], settings: Asked, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    parts = [{"picture": part.name} if isinstance(part, Path) else {"text": part} for part in sampled.parts]
    shown = [{"file": path.name, "copy": _copy(path, folder / "shown")} for path in images]
    line = {"prompt": sampled.prompt, "shown": shown, "parts": parts, "step": run.step, "settings": asdict(settings)}
    with (folder / "samples.jsonl").open("a") as stream:
        stream.write(json.dumps(line, ensure_ascii=False) + "\n")
