"""A site: the TOML file that says where `--cluster NAME` runs a command. Recipes never know it.

    kind = "slurm"                  # local, ray, slurm, kuberay: the fields that follow are those of its class
    partition = "gpu"
    gpu_memory = 80
    [environment]
    HF_HOME = "/shared/huggingface"

NAME is ~/.config/interlace/clusters/NAME.toml ($XDG_CONFIG_HOME), else a kind with nothing said about it.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clusters.job import Cluster

KINDS = {
    "local": "clusters.local:Local",
    "ray": "clusters.ray_jobs:RayJobs",
    "slurm": "clusters.slurm:Slurm",
    "kuberay": "clusters.kuberay:KubeRay",
}


def site(word: str) -> Cluster:
    """The cluster that `--cluster WORD` means: a site file by path or name, or a kind by its name.

    Raises:
        ValueError: no such file or kind, TOML that does not read, a field of another name or type.
    """
    path = Path(word).expanduser()
    if path.suffix != ".toml" and "/" not in word:
        path = _sites() / f"{word}.toml"
        if word in KINDS and not path.is_file():
            return of({"kind": word})
        if not path.is_file():
            known = sorted({*KINDS, *(each.stem for each in _sites().glob("*.toml"))})
            raise ValueError(f"--cluster {word}: there is no {path}, and no kind of that name{_nearest(word, known)}")
    try:
        said = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"--cluster {word}: {path}: {error.strerror}; give a site file, or its name") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--cluster {word}: {path} does not read as TOML: {error}") from None
    try:
        return of(said, path.resolve().parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def of(said: Mapping[str, Any], beside: Path = Path("/")) -> Cluster:
    """The cluster of these fields. beside: the folder in which relative paths of files lie.

    Raises:
        ValueError: a kind, a field or a type that is not known; the nearest names are given.
    """
    fields = dict(said)
    kind = fields.pop("kind", None)
    if kind not in KINDS:
        said_so = "says no kind: it" if kind is None else f"kind = {kind!r}"
        raise ValueError(f"{said_so} must be one of {', '.join(KINDS)}")
    module, _, name = KINDS[kind].partition(":")
    made = getattr(importlib.import_module(module), name)
    hints = typing.get_type_hints(made)
    known = [field.name for field in dataclasses.fields(made)]
    for field, value in fields.items():
        if field not in known:
            raise ValueError(f"a {kind} site has no field {field!r}{_nearest(field, known)}")
        fields[field] = _fitted(hints[field], value, field, beside)
    cluster = made(**fields)
    if cluster.site.gpu_memory < 0:
        raise ValueError(f"gpu_memory = {cluster.site.gpu_memory} must be GB of one GPU, or left out")
    return cluster


def told(cluster: Cluster) -> dict[str, Any]:
    """A cluster as JSON values; `of` makes it again."""
    assert dataclasses.is_dataclass(cluster)
    fields = {field.name: getattr(cluster, field.name) for field in dataclasses.fields(cluster)}
    return {"kind": cluster.kind, **{name: _plain(value) for name, value in fields.items()}}


def _sites() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "interlace" / "clusters"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _fitted(wanted: Any, value: Any, field: str, beside: Path) -> Any:
    """A TOML value as a field's type; ValueError where it is none."""
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    for option in options:
        origin, inside = typing.get_origin(option), typing.get_args(option)
        if option is types.NoneType and value is None:
            return None
        if option in (str, int, bool, float) and type(value) is option:
            return value
        if option is Path and isinstance(value, str):
            return beside / Path(value).expanduser()
        if origin is typing.Literal and value in inside:
            return value
        if origin is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        if origin is Mapping and isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
            return dict(value)
    raise ValueError(f"{field} = {value!r} must be {' or '.join(map(_named, options))}")


def _named(wanted: Any) -> str:
    origin, inside = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Literal:
        return " or ".join(map(repr, inside))
    if origin is tuple:
        return "a list of texts"
    if origin is Mapping:
        return "a table of texts: numbers in quotes, too"
    names = {str: "a text", int: "a whole number", bool: "true or false", float: "a number", Path: "a path"}
    return names.get(wanted, "left out")


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(known)}"
