"""Checkpoints that any ZeRO stage and any number of ranks can load: whole parameters, one safetensors file per kind.

    checkpoints/step-000050/
      parameters.safetensors   float32 masters of what is trained, and the module's persistent buffers
      exp_avg.safetensors      AdamW's first moments, float32
      exp_avg_sq.safetensors   AdamW's second moments, float32
      average.safetensors      the running mean of what is trained, where the training keeps one
      state.json               written last: the caller's state, AdamW's step, sha256 and size of every file

Frozen parameters are not in it: they come from where the architecture takes them, and the caller keeps their digest in
the state. A folder appears by one rename, whole; without a sound state.json it is no checkpoint. Nothing is pickled.
Rank 0 alone touches the disk, one parameter at a time unless it writes a copy beside the steps that follow (`Saver`).
Source: DeepSpeed's own checkpoints load only where they were saved, its universal ones drop what is frozen (0.19.8).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dataflow.build import sync, write_atomically
from models import lora
from pipelines.training import Execution
from pipelines.zero import Engine

if TYPE_CHECKING:
    from pipelines.average import Average

FORMAT = 1
MOMENTS = ("exp_avg", "exp_avg_sq")
AVERAGE = "average"
SAFETENSORS = {  # https://github.com/huggingface/safetensors#format
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Saver:
    """Writes the checkpoints of a run, a thread of rank 0 beside the steps that follow or, told so, between steps.

    Beside: what is written is copied first, whole, into the memory of rank 0's host.
    """

    def __init__(self, checkpoints: Path, engine: Engine, average: Average | None, execution: Execution) -> None:
        self._checkpoints, self._engine, self._average, self._execution = checkpoints, engine, average, execution
        self._pool = ThreadPoolExecutor(1, "save")
        self._writing: tuple[Path, Future[None]] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """The checkpoint after this many steps. Collective; at once, but for a write that is still going on.

        Args:   state: JSON values, given back by `load`.
        Raises: RuntimeError, on rank 0, when it or the one before could not be written.
        """
        self.wait()
        folder = self._checkpoints / f"step-{step:06d}"
        _create_moments(self._engine)
        taken, contents = _steps_taken(self._engine), _contents(self._engine, self._average)
        if torch.distributed.get_rank() > 0:
            _walk(contents)
            return
        if self._execution.saves == "beside":
            contents = [(kind, layout, [_copied(tensor) for tensor in tensors]) for kind, layout, tensors in contents]
        self._writing = folder, self._pool.submit(self._written, folder, contents, taken, state)
        if self._execution.saves == "between":
            self.wait()

    def wait(self) -> None:
        """Until what was begun is on the disk. Raises: RuntimeError when it could not be written."""
        if self._writing is not None:
            folder, future = self._writing
            self._writing = None
            try:
                future.result()
            except OSError as error:
                raise RuntimeError(
                    f"{folder} could not be written ({error}): earlier checkpoints are whole; make room, and the same "
                    "command goes on from the newest"
                ) from None

    def look(self) -> None:
        """Raises what `wait` does, as soon as it is known; never waits."""
        if self._writing is not None and self._writing[1].done():
            self.wait()

    def close(self) -> None:
        """Wait for what is being written, whatever becomes of it."""
        self._pool.shutdown()

    def _written(self, folder: Path, contents: Iterable[Content], taken: int, state: dict[str, Any]) -> None:
        _put(folder, contents, taken, state)
        prune(folder.parent, self._execution.keep, self._execution.keep_every)


def save(folder: Path, engine: Engine, *, state: dict[str, Any], average: Average | None = None) -> None:
    """Write one checkpoint, all of it or nothing. Collective: every rank calls it after the same step.

    Args:  folder: checkpoints/step-000050. state: JSON values, given back by `load`. average: written too.
    """
    _create_moments(engine)
    contents = _contents(engine, average)
    if torch.distributed.get_rank() == 0:
        _put(folder, contents, _steps_taken(engine), state)
    else:
        _walk(contents)


def load(folder: Path, engine: Engine, *, average: Average | None = None) -> dict[str, Any]:
    """Put a checkpoint into an engine of any stage and world size. Collective; only rank 0 reads the folder.

    Args:     average: of this engine; it takes the checkpoint's.
    Returns:  the state that `save` was given.
    Raises:   ValueError, on every rank and before anything is taken, when a file is not what was written, or a
              parameter is missing, unexpected or of another shape.
    """
    answer: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            answer[0] = _check(folder, engine, _kinds(average))
        except ValueError as error:
            answer[1] = str(error)
    torch.distributed.broadcast_object_list(answer, src=0, device=engine.device)
    record, refusal = answer
    if refusal is not None:
        raise ValueError(refusal)
    _create_moments(engine)
    if average is not None:  # through the masters, which are set for good afterwards
        _take(engine, AVERAGE, _read(folder, engine, AVERAGE))
        average.begin()
    for kind in _kinds(None):
        _take(engine, kind, _read(folder, engine, kind))
    for moments in _moments(engine):
        moments["step"].fill_(record["optimizer_step"])
    return record["state"]


def weights(folder: Path) -> dict[str, Tensor]:
    """What is trained, whole and float32, its running mean where there is one, and the persistent buffers: for use.

    Raises:  ValueError when the folder is no checkpoint of this format or the file is not what was written.
    """
    names = ["parameters.safetensors"]
    if f"{AVERAGE}.safetensors" in _sound_record(folder, *names)["files"]:
        names.append(f"{AVERAGE}.safetensors")
        _sound_record(folder, names[-1])
    taken: dict[str, Tensor] = {}
    for name in names:
        try:
            taken |= load_file(folder / name)
        except SafetensorError as error:
            raise ValueError(f"{folder / name} does not read ({error}): take another step's folder") from None
    return taken


def write(folder: Path, tensors: Mapping[str, tuple[int, ...]], values: Iterable[Tensor]) -> str:
    """A checkpoint of weights alone, float32, that no optimizer goes on from. Returns the sha256 of the weights.

    Args:  tensors: name -> shape, in the order of `values`, which are written one by one.
    """
    folder.mkdir(parents=True)
    path = folder / "parameters.safetensors"
    digest = _write(path, {name: (torch.float32, shape) for name, shape in tensors.items()}, values)
    files = {path.name: {"sha256": digest, "bytes": path.stat().st_size}}
    record = {"format": FORMAT, "optimizer_step": 0, "files": files, "state": {"step": 0, "position": 0}}
    write_atomically(folder / "state.json", json.dumps(record, indent=1, sort_keys=True).encode())
    return digest


def digest(run: Path) -> str:
    """The sha256 of a run's last weights, as they were written.

    Raises:  ValueError when it has no checkpoint.
    """
    record = _record(_newest(run))
    assert record is not None
    files = record["files"]
    return files.get(f"{AVERAGE}.safetensors", files["parameters.safetensors"])["sha256"]


def names(run: Path) -> tuple[str, ...]:
    """What a run's last weights are called. ValueError when it has no checkpoint."""
    with safe_open(_newest(run) / "parameters.safetensors", framework="pt") as file:
        return tuple(file.keys())


def by_part(names: Iterable[str]) -> str:
    """Names of weights by the part that they are of, in words: "backbone 20, adapter 4"."""
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{part} {count}" for part, count in counts.items())


def begin(run: Path, module: nn.Module) -> tuple[str, frozenset[str]]:
    """Put what a run starts from, if anything, into a module that is not under an engine yet.

    Returns: what to tell about it ("" where it starts from nothing), and the names of what was taken.
    Raises:  ValueError when what it starts from is gone, is not what it was, or does not fit.
    """
    if not (run / "start.json").is_file():
        return "", frozenset()
    try:
        begun = json.loads((run / "start.json").read_bytes())
        earlier = Path(begun["run"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{run / 'start.json'} is damaged ({error!r}): restore it") from None
    if earlier.resolve() == run.resolve():
        raise ValueError(f"{run / 'start.json'} says that the run starts from itself: restore it")
    if not earlier.is_dir():
        raise ValueError(f"{run.name} starts from {earlier}, which is gone: put it back, or name it in start.json")
    if "weights" in begun and digest(earlier) != begun["weights"]:
        raise ValueError(
            f"{run.name} starts from weights {begun['weights'][:12]}, {earlier} has {digest(earlier)[:12]} now: "
            "restore them, or begin another run"
        )
    return start_from(earlier, module)


def start_from(run: Path, module: nn.Module) -> tuple[str, frozenset[str]]:
    """Put the last weights of another run, over those that it started from, into a module under no engine yet.

    Returns: what to tell about it, and the names of what was taken.
    Raises:  ValueError when that run has no checkpoint, or one of its weights does not fit.
    """
    newest = _newest(run)
    _, before = begin(run, module)
    taken = lora.placed(weights(newest), module)
    here = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    wrong = [name for name, tensor in taken.items() if here.get(name) != tuple(tensor.shape)]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(taken)} weights of {newest} do not fit this architecture, first {wrong[0]}: "
            "start from a training of the same parts"
        )
    module.load_state_dict(taken, strict=False)
    names = before | taken.keys()
    anew = [name for name, parameter in module.named_parameters() if parameter.requires_grad and name not in names]
    return f"started from {newest}: {len(names)} weights taken, {len(anew)} trained ones begin anew", names


def _newest(run: Path) -> Path:
    newest = latest(run / "checkpoints")
    if newest is None:
        raise ValueError(f"{run} has no checkpoint to start from: train it again")
    return newest


def latest(checkpoints: Path) -> Path | None:
    """The newest checkpoint with a sound state.json, or None; says which newer ones are damaged and passed over."""
    newest = max(_sound(checkpoints), key=_number, default=None)
    for folder in sorted(checkpoints.glob("step-*")):
        newer = newest is None or (folder.name.removeprefix("step-").isdecimal() and _number(folder) > _number(newest))
        if newer:
            print(
                f"{folder} is damaged (state.json, or a file's size) and passed over: restore or remove it", flush=True
            )
    return newest


def prune(checkpoints: Path, keep: int, every: int = 0) -> None:
    """Remove all but the newest `keep` checkpoints and those at multiples of `every` steps. One process calls it.

    Raises:  ValueError when none would be kept.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: at least one checkpoint must stay; set execution.keep to 1 or more")
    for folder in sorted(_sound(checkpoints), key=_number)[:-keep]:
        if every and _number(folder) % every == 0:
            continue
        folder.rename(checkpoints / f".old-{folder.name}")
    _sweep(checkpoints)


# ---- a checkpoint's files, as they are written

Content = tuple[str, dict[str, tuple[torch.dtype, tuple[int, ...]]], Iterable[Tensor]]
"""A file: its kind, type and shape of each tensor, the tensors in that order."""


def _contents(engine: Engine, average: Average | None) -> Iterator[Content]:
    """The files of a checkpoint, one after the other. Collective: every rank walks each to its end."""
    for kind in _kinds(average):
        with average.swapped() if average is not None and kind == AVERAGE else contextlib.nullcontext():
            yield kind, _layout(engine, kind), _tensors(engine, kind)


def _walk(contents: Iterable[Content]) -> None:
    """What ranks do that write nothing."""
    for *_, tensors in contents:
        for _ in tensors:
            pass


def _copied(tensor: Tensor) -> Tensor:
    """On the host, and no longer the engine's."""
    return tensor.detach().to("cpu", copy=True)


def _put(folder: Path, contents: Iterable[Content], taken: int, state: dict[str, Any]) -> None:
    """Write a checkpoint's folder. taken: steps of the optimizer."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    draft = folder.parent / f".saving-{folder.name}"
    draft.mkdir()
    files = {}
    for kind, layout, tensors in contents:
        path = draft / f"{kind}.safetensors"
        digest = _write(path, layout, tensors)
        files[path.name] = {"sha256": digest, "bytes": path.stat().st_size}
    record = {"format": FORMAT, "optimizer_step": taken, "files": files, "state": state}
    write_atomically(draft / "state.json", json.dumps(record, indent=1, sort_keys=True).encode())
    if folder.exists():
        folder.rename(folder.parent / f".old-{folder.name}")
    draft.rename(folder)
    sync(folder.parent)
    _sweep(folder.parent)


# ---- what an engine holds: names are the module's own, values whole and float32


def _kinds(average: Average | None) -> tuple[str, ...]:
    """The files of a checkpoint."""
    return ("parameters", *MOMENTS, *(() if average is None else (AVERAGE,)))


def _trained(engine: Engine) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad}


def _buffers(engine: Engine) -> dict[str, Tensor]:
    """Persistent buffers only: what is not persistent is computed anew from the config."""
    found = {}
    for prefix, module in engine.module.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def _layout(engine: Engine, kind: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of every tensor of a file, in the order they are written."""
    layout = {
        name: (torch.float32, tuple(getattr(parameter, "ds_shape", parameter.shape)))  # ds_shape: whole, at stage 3
        for name, parameter in _trained(engine).items()
    }
    if kind == "parameters":
        layout |= {name: (buffer.dtype, tuple(buffer.shape)) for name, buffer in _buffers(engine).items()}
    return layout


def _tensors(engine: Engine, kind: str) -> Iterator[Tensor]:
    """The tensors of a file in the order of `_layout`. Collective: every rank walks it to its end."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    masters = _masters(engine)
    for name, parameter in _trained(engine).items():
        if masters is not None:
            own = masters[name]
            whole = _inner(engine).state[own][kind] if kind in MOMENTS else own.detach()
        elif kind not in MOMENTS:
            whole = safe_get_full_fp32_param(parameter)
        else:
            whole = safe_get_full_optimizer_state(parameter, kind)
        assert whole is not None, f"DeepSpeed does not hold {name}"
        yield whole
    if kind == "parameters":
        yield from _buffers(engine).values()


def _take(engine: Engine, kind: str, values: Iterable[tuple[str, Tensor]]) -> None:
    """Set a file's tensors: masters, and for parameters the model's own copies, or its first forward would be stale."""
    from deepspeed import utils
    from deepspeed.runtime.zero import GatheredParameters

    trained, buffers, masters = _trained(engine), _buffers(engine), _masters(engine)
    split = engine.zero_optimization_stage() == 3
    for name, value in values:
        if name in buffers:
            buffers[name].copy_(value)
        elif kind not in MOMENTS:
            parameter = trained[name]
            if masters is not None:
                masters[name].detach().copy_(value)
            elif split:
                utils.safe_set_local_fp32_param(parameter, _share(parameter, value))
            else:
                utils.safe_set_full_fp32_param(parameter, value)
            with GatheredParameters([parameter], modifier_rank=0, enabled=split):
                parameter.data.copy_(value)
        elif masters is not None:
            _inner(engine).state[masters[name]][kind].copy_(value)
        elif split:
            utils.safe_set_local_optimizer_state(trained[name], _share(trained[name], value), kind)
        else:
            utils.safe_set_full_optimizer_state(trained[name], value, kind)


def _share(parameter: Any, value: Tensor) -> Tensor:
    """This rank's part at stage 3: DeepSpeed's safe_set_full_* fail where ranks do not divide a parameter (0.19.8)."""
    size, rank = int(parameter.partition_numel()), torch.distributed.get_rank()  # of stage 3's parameters
    padded = value.new_zeros(size * torch.distributed.get_world_size())
    padded[: value.numel()] = value.flatten()
    return padded[size * rank : size * (rank + 1)]


def _masters(engine: Engine) -> dict[str, Tensor] | None:
    """Stage 0: whole float32 tensors by name (in float32 the parameters themselves). None: they are partitioned."""
    if engine.zero_optimization_stage() > 0:
        return None
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        return dict(_trained(engine))
    owner = {}
    for parameters, masters in zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True):
        owner |= {id(parameter): master for parameter, master in zip(parameters, masters, strict=True)}
    return {name: owner[id(parameter)] for name, parameter in _trained(engine).items()}


def _inner(engine: Engine) -> torch.optim.Optimizer:
    """The torch.optim.AdamW under DeepSpeed's wrapper."""
    wrapper = engine.optimizer
    return wrapper if isinstance(wrapper, torch.optim.Optimizer) else wrapper.optimizer


def stepped(engine: Engine) -> list[Tensor]:
    """The tensors AdamW keeps a state for on this rank: whole masters at stage 0, flat partitions above."""
    masters = _masters(engine)
    if masters is not None:
        return list(masters.values())
    for attribute in (
        "fp32_partitioned_groups_flat",  # stage 3
        "single_partition_of_fp32_groups",  # stages 1 and 2
        "fp32_groups_flat_partition",  # stage 1 in bfloat16 with float32 accumulation
    ):
        if hasattr(engine.optimizer, attribute):
            return list(getattr(engine.optimizer, attribute))
    raise TypeError(
        f"DeepSpeed wraps AdamW in {type(engine.optimizer).__name__}: its float32 partitions are unknown here"
    )


def _moments(engine: Engine) -> list[dict[str, Tensor]]:
    return [_inner(engine).state[tensor] for tensor in stepped(engine)]


def _create_moments(engine: Engine) -> None:
    """What AdamW creates at its first step, so that there is something to read, or to write into, before it."""
    for tensor in stepped(engine):
        moments = _inner(engine).state[tensor]
        if not moments:
            moments["step"] = torch.tensor(0.0)
            for name in MOMENTS:
                moments[name] = torch.zeros_like(tensor)
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)  # stages 1 and 2 link them by name
    if link is not None:
        # DeepSpeed 0.19.8 links after the first group's first step, when the other groups have no moments yet
        engine.optimizer._hp_optimizer_states_linked = False
        link()


def _steps_taken(engine: Engine) -> int:
    return int(_moments(engine)[0]["step"])


# ---- the disk


def _write(path: Path, layout: dict[str, tuple[torch.dtype, tuple[int, ...]]], tensors: Iterable[Tensor]) -> str:
    """A safetensors file, tensor by tensor, and its sha256 from the same pass."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            file.write(piece)
            digest.update(piece)
        for tensor in tensors:
            piece = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _read(folder: Path, engine: Engine, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a file on every rank; rank 0 reads, the others are told."""
    first = torch.distributed.get_rank() == 0
    file = safe_open(folder / f"{kind}.safetensors", framework="pt") if first else None
    for name, (dtype, shape) in _layout(engine, kind).items():
        if file is not None:
            value = file.get_tensor(name).to(engine.device)
        else:
            value = torch.empty(shape, dtype=dtype, device=engine.device)
        torch.distributed.broadcast(value, src=0)
        yield name, value


def _check(folder: Path, engine: Engine, kinds: Iterable[str]) -> dict[str, Any]:
    """The whole state.json, after every file proved to be what was written and what this model needs."""
    record = _sound_record(folder)
    for kind in kinds:
        with safe_open(folder / f"{kind}.safetensors", framework="pt") as file:
            held = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        _compare(folder / f"{kind}.safetensors", held, _layout(engine, kind))
    return record


def _sound_record(folder: Path, *names: str) -> dict[str, Any]:
    """The whole state.json, after these files, all of them by default, proved to be what was written."""
    record = _record(folder)
    if record is None:
        raise ValueError(f"{folder} has no sound state.json, so it is no checkpoint; take another step's folder")
    if record["format"] != FORMAT:
        raise ValueError(
            f"{folder} has format {record.get('format')}, this code reads {FORMAT}; load it with its own version"
        )
    for name in names or record["files"]:
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        written = str(record["files"].get(name, {}).get("sha256"))
        if found != written:
            raise ValueError(
                f"{folder / name} has sha256 {found[:12]}, {written[:12]} was written: the file is damaged; "
                "remove this step's folder to go on from the one before"
            )
    return record


def _compare(
    path: Path, held: dict[str, tuple[int, ...]], needed: dict[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    missing = [name for name in needed if name not in held]
    unexpected = [name for name in held if name not in needed]
    reshaped = [
        f"{name} ({list(held[name])} in the file, {list(shape)} in the model)"
        for name, (_, shape) in needed.items()
        if name in held and held[name] != shape
    ]
    for fault, names in (("lacks", missing), ("has unexpected", unexpected), ("has other shapes:", reshaped)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"{path} {fault} {', '.join(names[:3])}{more}: a checkpoint resumes the model that wrote it, parameter "
                "by parameter; use the recipe of that run, or begin a new run"
            )


def _record(folder: Path) -> dict[str, Any] | None:
    """state.json where it is whole and its files have their sizes, else None."""
    try:
        record = json.loads((folder / "state.json").read_text())
        sizes = all((folder / name).stat().st_size == file["bytes"] for name, file in record["files"].items())
        whole = sizes and {"format", "optimizer_step", "files", "state"} <= record.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if whole else None


def _sound(checkpoints: Path) -> list[Path]:
    return [
        folder
        for folder in checkpoints.glob("step-*")
        if re.fullmatch(r"step-\d+", folder.name) and _record(folder) is not None
    ]


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _sweep(checkpoints: Path) -> None:
    """Remove what a killed save or prune left behind; hidden names are never checkpoints."""
    for pattern in (".saving-*", ".old-*"):
        for folder in checkpoints.glob(pattern):
            shutil.rmtree(folder)
