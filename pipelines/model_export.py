"""A run as folders that transformers and diffusers open without us, and one file for what no library has.

    OUT/language_model/ ...       a folder per part (models/published.py): config, float32 safetensors, tokenizer
    OUT/interlace.safetensors     what is in no folder, float32, under its names in the architecture's module
    OUT/interlace.json            last: the architecture, each folder's class and what it holds, the tensors' shapes

A part that nothing was trained in is its source's files, byte for byte: weights as hard links where the disk allows,
so whoever changes one changes the other. LoRA's matrices are merged into the weights they stand beside. Everything
appears at once, by one rename.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from dataflow.build import sync, write_atomically
from models import lora, published
from pipelines import recipe, sample
from pipelines.step import alone

FORMAT = 1
SHARD = "5GB"  # of a file of weights at most, as hubs like it
_SAFE = re.compile(r"((diffusion_pytorch_)?model(-\d+-of-\d+)?|open_clip_(pytorch_)?model)\.safetensors")
_PICKLED = re.compile(r"((diffusion_)?pytorch_model(-\d+-of-\d+)?|open_clip_pytorch_model)\.bin")
_BESIDE = {  # what a tokenizer and a processor are, and may be used under
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
}
_TERMS = re.compile(r"(LICENSE|LICENCE|NOTICE|USE_POLICY)(\.\w+)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Written:
    """One part on the disk. source: whose files it is; None where it was saved from the run."""

    name: str
    opens: str
    parameters: int
    size: int  # bytes
    source: Path | None


def export(folder: Path, out: Path) -> list[Written]:
    """Write a run's newest weights for other libraries; returns what was written.

    Raises:
        ValueError: no run or no checkpoint there, an architecture whose parts are unknown, or OUT is there already.
    """
    if os.path.lexists(out):
        raise ValueError(f"--out {out} is there already: give another folder, or remove it first")
    run = sample.Run(folder)
    module = run.architecture.module
    changed = run.taken | {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    lora.merge(module)
    parts = published.parts(run.architecture)
    draft = out.with_name(f".{out.name}-draft")
    with alone(out.with_name(f".{out.name}-lock"), f"the export {out}"):
        shutil.rmtree(draft, ignore_errors=True)  # of an export that was killed
        draft.mkdir(parents=True)
        try:
            written = [_part(part, changed, draft / part.name) for part in parts]
            written += _rest(run, parts, draft, written)
            for path in [path for path in draft.rglob("*") if path.is_file()]:
                sync(path)
            draft.rename(out)  # onto what appeared there meanwhile: refused by the system unless that is empty
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        sync(out.parent)
    return written


def table(written: Sequence[Written]) -> Iterator[str]:
    """The lines that `interlace export-model` prints."""
    name, opens = (max(len(getattr(each, field)) for each in written) + 2 for field in ("name", "opens"))
    yield f"{'part':{name}}{'opened by':{opens}}{'parameters':>16}{'bytes':>18}  from"
    for each in written:
        origin = "the run" if each.source is None else str(each.source)
        yield f"{each.name:{name}}{each.opens:{opens}}{each.parameters:>16,}{each.size:>18,}  {origin}"


def _part(part: published.Part, changed: frozenset[str], place: Path) -> Written:
    """A folder: copied where it is as its source published it, else saved.

    Args:  changed: names in the module whose weights may be others than those that were published.
    """
    held = tuple(at.removeprefix("module.") for at in part.holds if at.startswith("module."))
    source = None if any(name.startswith(held) for name in changed) else part.source
    place.mkdir()
    if source is not None:
        for file in [source] if source.is_file() else _published(source):
            _copy(file, place / file.name, link=_is_weights(file))
    else:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            # a progress bar, and what DeepSpeed says when accelerate imports it
            part.model.save_pretrained(place, **({"max_shard_size": SHARD} if part.parameters else {}))
        for file in () if part.beside is None else sorted(part.beside.iterdir()):
            if file.is_file() and (file.name in _BESIDE or _TERMS.fullmatch(file.name)):
                _copy(file, place / file.name, link=False)
    return Written(name=part.name, opens=part.opens, parameters=part.parameters, size=_size(place), source=source)


def _rest(run: sample.Run, parts: Sequence[published.Part], draft: Path, written: Sequence[Written]) -> list[Written]:
    """interlace.safetensors and interlace.json."""
    held = tuple(at.removeprefix("module.") for part in parts for at in part.holds if at.startswith("module."))
    state = run.architecture.module.state_dict()
    tensors = {name: value.contiguous() for name, value in state.items() if not name.startswith(held)}
    file = draft / "interlace.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    folders: dict[str, Any] = {
        each.name: {
            "opens": each.opens,
            "from": "the run" if each.source is None else str(each.source),
            "holds": dict(part.holds),
            "parameters": each.parameters,
            "bytes": each.size,
        }
        for part, each in zip(parts, written, strict=True)
    }
    told = {
        "format": FORMAT,
        "run": run.folder.name,
        "step": run.step,
        "architecture": recipe.describe(run.config),
        "folders": folders,
        "files": {file.name: {name: list(tensor.shape) for name, tensor in tensors.items()}},
    }
    write_atomically(draft / "interlace.json", (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    count = sum(tensor.numel() for tensor in tensors.values())
    return [Written(name=file.name, opens="safetensors", parameters=count, size=file.stat().st_size, source=None)]


def _published(source: Path) -> list[Path]:
    """The files of a folder in the hub's layout that make up the part: no twins in other types or forms.

    Raises:
        ValueError: it holds no weights.
    """
    files = sorted(path for path in source.iterdir() if path.is_file())
    safe = [path for path in files if _SAFE.fullmatch(path.name)]
    weights = safe or [path for path in files if _PICKLED.fullmatch(path.name)]
    if not weights:
        raise ValueError(
            f"{source} holds no weights under the hub's names, so they cannot be copied: download it again"
        )
    others = [
        path
        for path in files
        if (path.suffix == ".json" and not (safe and path.name.endswith(".bin.index.json")))
        or path.name in _BESIDE
        or _TERMS.fullmatch(path.name)
    ]
    return [*weights, *others]


def _is_weights(file: Path) -> bool:
    return file.suffix in (".safetensors", ".bin")


def _copy(file: Path, target: Path, *, link: bool) -> None:
    """The same bytes at another place; a link of the file itself, should it be reached through one."""
    if link:
        try:
            os.link(file.resolve(), target)
            return
        except OSError:  # another disk, or one without links
            target.unlink(missing_ok=True)
    shutil.copyfile(file, target)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
