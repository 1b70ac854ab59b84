"""The operator's own schema as a judge of manifests: a custom resource's openAPIV3Schema, as the API server reads it.

Where the two files are found: $KUBERAY_CRDS (a checkout of ray-project/kuberay, or a folder that holds them), else
../shared/kuberay beside this repository. They are not ours to copy.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

_FILES = {"RayJob": "ray.io_rayjobs.yaml", "RayCluster": "ray.io_rayclusters.yaml"}
_BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "kuberay"
_AS_THEY_ARE = ("enum", "pattern", "minimum", "maxLength", "minLength", "required")
_INT32 = {"minimum": -(2**31), "maximum": 2**31 - 1}


def folder() -> Path | None:
    """Where both files lie, None if nowhere."""
    said = os.environ.get("KUBERAY_CRDS")
    places = [Path(said), Path(said) / "ray-operator" / "config" / "crd" / "bases"] if said else [_BESIDE]
    return next((place for place in places if all((place / name).is_file() for name in _FILES.values())), None)


def lacking() -> str:
    """What a test says that cannot be run without them."""
    names = " and ".join(_FILES.values())
    return (
        f"manifests are NOT checked against the operator's schema: {names} are not in "
        f"{os.environ.get('KUBERAY_CRDS') or _BESIDE}; set KUBERAY_CRDS to a checkout of ray-project/kuberay"
    )


def errors(kind: str, manifest: Mapping[str, Any], place: Path) -> list[str]:
    """What the API server would say against a manifest, each as path and message; nothing if it takes it.

    Args:  kind: RayJob or RayCluster. place: the folder of `folder`.
    """
    schema = _schema(kind, place)
    whole = _filled(schema, copy.deepcopy(dict(manifest)))
    found = sorted(_validator(kind, place).iter_errors(whole), key=lambda error: list(map(str, error.absolute_path)))
    said = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]
    return [*said, *_twins(schema, whole, "")]


@functools.cache
def _schema(kind: str, place: Path) -> dict[str, Any]:
    told = yaml.load((place / _FILES[kind]).read_bytes(), Loader=yaml.CSafeLoader)
    assert told["spec"]["names"]["kind"] == kind
    (version,) = (each for each in told["spec"]["versions"] if each["name"] == "v1" and each["served"])
    return version["schema"]["openAPIV3Schema"]


@functools.cache
def _validator(kind: str, place: Path) -> Draft202012Validator:
    return Draft202012Validator(_strict(_schema(kind, place)))


def _strict(node: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON schema: a field that is not named is refused, as by kubectl's strict validation; null where it may be."""
    made = {name: node[name] for name in _AS_THEY_ARE if name in node}
    if node.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string", **made}]}
    if "type" in node:
        made["type"] = [node["type"], "null"] if node.get("nullable") else node["type"]
    if node.get("format") == "int32":
        made = {**_INT32, **made}
    if "items" in node:
        made["items"] = _strict(node["items"])
    if "properties" in node:
        made["properties"] = {name: _strict(inner) for name, inner in node["properties"].items()}
        made["additionalProperties"] = bool(node.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(node.get("additionalProperties"), dict):
        made["additionalProperties"] = _strict(node["additionalProperties"])
    return made


def _filled(node: Mapping[str, Any], value: Any) -> Any:
    """With the defaults that the server fills in before it asks what is required."""
    if isinstance(value, dict):
        for name, inner in node.get("properties", {}).items():
            if "default" in inner and name not in value:
                value[name] = copy.deepcopy(inner["default"])
        for name in value:
            inner = node.get("properties", {}).get(name, node.get("additionalProperties"))
            if isinstance(inner, dict):
                value[name] = _filled(inner, value[name])
    if isinstance(value, list) and "items" in node:
        return [_filled(node["items"], item) for item in value]
    return value


def _twins(node: Mapping[str, Any], value: Any, path: str) -> Iterator[str]:
    """Items of one key in lists that are maps to the server."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _twins(node.get("properties", {}).get(name, {}), inner, f"{path}.{name}".lstrip("."))
    if isinstance(value, list):
        if node.get("x-kubernetes-list-type") == "map":
            keys = [str([item.get(key) for key in node["x-kubernetes-list-map-keys"]]) for item in value]
            yield from (f"{path}: {key} is there twice" for key in sorted(set(keys)) if keys.count(key) > 1)
        for number, item in enumerate(value):
            yield from _twins(node.get("items", {}), item, f"{path}.{number}")
