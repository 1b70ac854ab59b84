"""What upstream trainers saved -> a run's folder: sampled, evaluated, exported, and started from like one trained here.

    <root>/trainings/<recipe>-imported-<key>/
      recipe.json code.txt                       the recipe it was read as, less its LoRA and what that starts from
      import.json                                where it came from, what was taken, left out and kept
      checkpoints/step-000000/                   the weights that were taken, float32; no optimizer's state
      done.json                                  written last

A folder of another's is untrusted: names in an index stay in it, pickles with more than tensors are refused, a damaged
file is one line. Frozen weights that are as the recipe's sources have them are not stored again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dataflow.build import sync, write_atomically
from models import upstream
from models.interface import Architecture
from models.upstream import ENCODER, MODULE, Kind, Piece, Shape
from pipelines import checkpoint, recipe, runs
from pipelines.training import Training

_JSON = 64 << 20  # bytes of an index or a tokenizer at most
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin", "mm_projector.bin")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A run that was written, or found written.

    taken, kept: names of ours. left_out: reason -> names of theirs. compared: how many of the leaf encoders were equal.
    """

    run: Path
    kind: Kind
    taken: tuple[str, ...]
    changed: tuple[str, ...]  # of the taken ones frozen in the recipe, and not as its sources have them
    same: int  # frozen and as their sources have them, so not stored
    compared: int
    left_out: Mapping[str, list[str]]
    kept: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """For the terminal."""
        by_part = checkpoint.by_part
        yield f"read as {upstream.UPSTREAMS[self.kind].title}: {len(self.taken)} weights taken, {by_part(self.taken)}"
        if self.changed:
            yield f"  {len(self.changed)} of these are frozen, and others than its sources: {by_part(self.changed)}"
        if self.same or self.compared:
            yield f"  {self.same + self.compared} frozen ones are as the recipe's own sources have them"
        for reason, names in sorted(self.left_out.items()):
            yield f"  left out: {upstream.told(names)}, {reason}"
        if self.kept:
            yield f"  not in it, so as the recipe has them: {len(self.kept)} weights, {by_part(self.kept)}"
        yield str(self.run)


def imported(folder: Path, training: Training, root: Path, *, recipe_name: str, kind: Kind | None = None) -> Imported:
    """Write the run of an upstream folder under ROOT/trainings, or find it written.

    Args:
        training: its architecture is what the weights are read as. kind: None to see it from the names of the tensors.
    Raises:
        ValueError: no weights there, damaged ones, or such that do not fit the recipe.
    """
    files = _Files(folder)
    with _named(folder):
        found = kind or upstream.recognised(list(files.shapes))
        upstream.suited(found, training.architecture)
        added = _added(folder)
    alone = replace(training, architecture=replace(training.architecture, lora=()), start_from=None)
    architecture: Architecture = alone.architecture.build()
    module = architecture.module
    with _named(folder):
        plan = upstream.planned(
            found,
            alone.architecture,
            files.shapes,
            _shapes(architecture),
            ids=alone.architecture.layout().tokenizer.size,
            added=added,
        )
    _compare(files, plan.compared, architecture.encoder)
    pieces = {name.removeprefix(MODULE): piece for name, piece in plan.taken.items()}
    frozen = {name: parameter for name, parameter in module.named_parameters() if not parameter.requires_grad}
    same = {name for name in frozen.keys() & pieces.keys() if _equal(files, pieces[name], frozen[name])}
    taken = {name: parameter for name, parameter in module.named_parameters() if name in pieces.keys() - same}
    trainings = root / "trainings"
    trainings.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".importing-", dir=trainings))
    draft.chmod(0o755)  # as any run: mkdtemp lets its owner in alone
    try:
        values = (_value(files, pieces[name], parameter) for name, parameter in taken.items())
        shapes = {name: tuple(parameter.shape) for name, parameter in taken.items()}
        digest = checkpoint.write(draft / "checkpoints" / "step-000000", shapes, values)
        runs.described(draft, alone, recipe_name)
        key = hashlib.sha256(json.dumps([recipe.key(recipe.describe(alone)), found, digest]).encode()).hexdigest()
        done = Imported(
            run=trainings / f"{training.name}-imported-{key[:12]}",
            kind=found,
            taken=tuple(taken),
            changed=tuple(name for name in taken if name in frozen),
            same=len(same),
            compared=len(plan.compared),
            left_out=plan.left_out,
            kept=tuple(name.removeprefix(MODULE) for name in plan.kept),
        )
        _tell(draft, folder, files, done)
        if done.run.is_dir():
            print(f"{done.run.name}: already imported, nothing to do", flush=True)
        else:
            draft.rename(done.run)
            sync(trainings)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return done


def _tell(draft: Path, folder: Path, files: _Files, done: Imported) -> None:
    """import.json, and that the run has come to its end."""
    told = {
        "format": done.kind,
        "folder": str(folder),
        "files": files.sizes,
        "taken": done.taken,
        "changed": done.changed,
        "same": done.same + done.compared,
        "left_out": done.left_out,
        "kept": done.kept,
    }
    write_atomically(draft / "import.json", (json.dumps(told, indent=1) + "\n").encode())
    write_atomically(draft / "done.json", (json.dumps({"steps": 0, "losses": {}}, indent=1) + "\n").encode())


def _shapes(architecture: Architecture) -> dict[str, Shape]:
    """Ours: parameters of the module, shared ones once, and all that the leaf encoders hold."""
    module = {f"{MODULE}{name}": tuple(each.shape) for name, each in architecture.module.named_parameters()}
    return module | {f"{ENCODER}{name}": tuple(each.shape) for name, each in architecture.encoder.state_dict().items()}


def _compare(files: _Files, pieces: Mapping[str, Piece], encoder: nn.Module) -> None:
    """ValueError where a frozen encoder that came along is not the recipe's."""
    ours = encoder.state_dict()
    other = [piece.name for name, piece in pieces.items() if not _equal(files, piece, ours[name.removeprefix(ENCODER)])]
    if other:
        raise ValueError(
            f"{files.folder}: {upstream.told(other)} of its frozen encoders are others than the recipe's: "
            "name the weights it was trained beside in the recipe"
        )


def _equal(files: _Files, piece: Piece, ours: Tensor) -> bool:
    """Whether a tensor of theirs is ours, in the type that theirs is kept in."""
    found = files.read(piece)
    return torch.equal(found, ours.detach()[: len(found)].to(found.dtype) if found.ndim else ours.detach())


def _value(files: _Files, piece: Piece, ours: Tensor) -> Tensor:
    """float32, of our shape: rows beyond theirs stay as they are."""
    found = files.read(piece).float()
    if not found.isfinite().all():
        raise ValueError(f"{files.folder}: {piece.name} holds numbers that are not finite: download it again")
    if found.shape == ours.shape:
        return found
    return torch.cat([found, ours.detach()[len(found) :]])


def _added(folder: Path) -> dict[str, int]:
    """Ids of the tokens that were added to the tokenizer, where it came along."""
    listed = _json(folder / "added_tokens.json")
    if isinstance(listed, dict):
        pairs = listed.items()
    else:
        whole = _json(folder / "tokenizer.json")
        tokens = whole.get("added_tokens") if isinstance(whole, dict) else None
        pairs = [(each.get("content"), each.get("id")) for each in tokens or () if isinstance(each, dict)]
    return {name: number for name, number in pairs if isinstance(name, str) and type(number) is int}


def _json(path: Path) -> Any:
    """What a JSON file holds; None where there is none. ValueError if it is too large or damaged."""
    if not path.is_file():
        return None
    if path.stat().st_size > _JSON:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, over {_JSON}: it is no index and no tokenizer")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged ({error}): download it again") from None


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Which folder an error is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


class _Files:
    """The tensors of a folder, read one by one; nothing in it is run.

    shapes: name -> shape. sizes: bytes of every file of weights.
    Raises:
        ValueError: no weights there, or damaged ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: dict[str, Any] = {}
        self._place: dict[str, str] = {}
        self.shapes: dict[str, Shape] = {}
        self.sizes: dict[str, int] = {}
        with _named(folder):
            listed = _listed(folder)
            for file in dict.fromkeys(listed.values()) if isinstance(listed, dict) else listed:
                self._open(file, listed if isinstance(listed, dict) else None)
            if isinstance(listed, dict) and (gone := sorted(listed.keys() - self.shapes.keys())):
                raise ValueError(f"its index lists {upstream.told(gone)} that its files lack: download it again")

    def read(self, piece: Piece) -> Tensor:
        """A tensor of it, as it is stored. ValueError if it is damaged or holds no real numbers."""
        held = self._opened[self._place[piece.name]]
        try:
            found = held[piece.name] if isinstance(held, dict) else held.get_tensor(piece.name)
        except SafetensorError as error:
            raise ValueError(f"{self.folder}: {piece.name} cannot be read ({error}): download it again") from None
        if found.dtype not in _FLOATS or found.layout != torch.strided or found.is_meta:
            kind = "empty" if found.is_meta else f"{found.dtype} ({found.layout})"
            raise ValueError(f"{self.folder}: {piece.name} is {kind}: only unquantised dense floats are read")
        if isinstance(piece.rows, range):
            return found[piece.rows.start : piece.rows.stop]
        return found if piece.rows is None else found[torch.tensor(piece.rows)]

    def _open(self, file: str, listed: Mapping[str, str] | None) -> None:
        path = self.folder / file
        if not path.is_file():
            raise ValueError(f"{file} is missing: download it again")
        self.sizes[file] = path.stat().st_size
        held: Any = _safe(path) if path.suffix == ".safetensors" else _pickled(path)
        self._opened[file] = held
        for name in held.keys():  # noqa: SIM118  safe_open is no mapping
            if listed is not None and listed.get(name) != file:
                raise ValueError(f"{name} lies in {file}, where its index does not say so: download it again")
            self._place[name] = file
            self.shapes[name] = tuple(held[name].shape if isinstance(held, dict) else held.get_slice(name).get_shape())


def _listed(folder: Path) -> dict[str, str] | list[str]:
    """The files of weights: by an index each tensor's, else one file.

    Raises:
        ValueError: none, or an index that names files elsewhere.
    """
    if not folder.is_dir():
        raise ValueError("is no folder: give the one that the trainer wrote")
    for index in _INDEXES:
        stored = _json(folder / index)
        if stored is None:
            continue
        listed = stored.get("weight_map") if isinstance(stored, dict) else None
        if not isinstance(listed, dict) or not listed:
            raise ValueError(f"{index} has no weight_map: download it again")
        suffix = ".safetensors" if "safetensors" in index else ".bin"
        for name, file in listed.items():
            if not isinstance(file, str) or not re.fullmatch(rf"[\w-][\w.-]*{re.escape(suffix)}", file):
                raise ValueError(
                    f"{index} says that {name} lies in {str(file)[:80]!r}: it may name {suffix} files beside it alone"
                )
        return listed
    for whole in _WHOLE:
        if (folder / whole).is_file():
            return [whole]
    loose = sorted(path.name for path in folder.iterdir() if path.suffix in (".pth", ".pt") and path.is_file())
    if len(loose) == 1:
        return loose
    steps = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    newest = max(steps, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)
    cure = f"give {newest}" if newest else "give the folder that the trainer wrote"
    raise ValueError(f"holds no {', '.join((*_INDEXES, *_WHOLE))}, and {len(loose)} .pth files instead of one: {cure}")


def _safe(path: Path) -> Any:
    """A safetensors file, its header read. ValueError if it is damaged or cut short."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is damaged or cut short ({error}): download it again") from None


def _pickled(path: Path) -> dict[str, Tensor]:
    """A file of torch.save that holds tensors by name, in a "state_dict" or not. ValueError if it holds more."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path.name} pickles more than tensors, and whatever it holds would be run: "
            "save it again as safetensors where you trust it"
        ) from None
    except Exception as error:  # noqa: BLE001  torch's reader and the pickle in it fail in any way on a damaged file
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{path.name} is damaged or cut short ({reason}): download it again") from None
    if isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]
    if not isinstance(held, dict) or any(
        not isinstance(name, str) or not isinstance(value, Tensor) for name, value in held.items()
    ):
        raise ValueError(f"{path.name} holds other things than tensors by name: give the file of the model's weights")
    return held
