"""What a forward and a backward pass take, before anything is trained: the passes themselves, run on shapes alone.

A module on torch's meta device has no values, yet each of its operations says how large its result is. All of encoder,
forward and backward run in their order, and what they make is counted for as long as something holds it: the most that
is held at once is what a pass takes beside parameters, their gradients and the optimizer.

    ids, places, masks, timesteps    small and known: computed, so that what branches on them does
    pictures, states, weights        shapes

Attention counts as fused kernels have it: the mask, but no scores of N x N. What kernels take for themselves and what
an allocator loses between blocks is not in it. Within 15 % of what is measured on a CPU (tests/pipelines/test_memory).
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from dataflow.record import GROUPS, TASKS
from models.interface import Architecture, Batch, Pictures
from models.layout import Document, Layout, Slot, Turns, ViewName
from models.parts import Llama, Pretrained
from models.sequence import batched, sides
from models.views import Cut, Patches, Tiles, View
from pipelines import zero
from pipelines.batching import VIEWS, of_view
from pipelines.training import Execution, Training

KNOWN = 1 << 22  # elements: no more of them, of known values, are computed; more are shapes
ATEN = torch.ops.aten
INDEXED = (
    ATEN.index.Tensor,
    ATEN.index_put.default,
    ATEN.index_put_.default,
    ATEN._index_put_impl_.default,
    ATEN._unsafe_index.Tensor,
)
SEVERAL = ("video_qa", "frame_prediction", "subject_driven", "interleaved_document")  # a record may show many pictures
KEY = "planned_000000000"


class Untold(ValueError):
    """Passes of an architecture that do not run on shapes."""


# ---- what is held


class Held(TorchDispatchMode):
    """Within it, what operations make is counted in bytes: `now`, and the `most` so far.

    there: tensors that count nothing. Where a tensor is on the meta device, so is all that depends on it.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._shapes: dict[Any, Any] = {}  # of results that were made before: layers are alike
        self.hold(there, counted=False)

    def hold(self, tensors: Iterable[Any], *, counted: bool = True) -> None:
        """Count these, for as long as somebody holds them; twice is once."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self._storages:
                    self._added(storage, storage.nbytes() if counted else 0)

    def _added(self, storage: Any, size: int) -> None:
        number = id(storage)

        def gone(_: Any) -> None:
            del self._storages[number]
            self.now -= size

        self._storages[number] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = self._made(func, args, dict(kwargs or {}))
        self.hold(tree_leaves(made))
        return made

    def _made(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation's result: of values where all that it depends on has some and is small, else a shape."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not given:
            made = func(*args, **kwargs)
            whole = isinstance(made, Tensor) and made.is_meta and not made.dtype.is_floating_point
            return func(*args, **{**kwargs, "device": "cpu"}) if whole and made.numel() <= KNOWN else made
        kwargs.pop("device", None)  # results are where what they depend on is
        if func in INDEXED:
            args = (args[0], _places(args[1]), *args[2:])
        if not any(tensor.is_meta or tensor.numel() > KNOWN for tensor in given) and _spread(func, given) <= KNOWN:
            return func(*args, **kwargs)
        args, kwargs = tree_map(_shape, args), tree_map(_shape, kwargs)
        if any(each.alias_info is not None for each in (*func._schema.arguments, *func._schema.returns)):
            return func(*args, **kwargs)
        leaves, form = tree_flatten((args, kwargs))
        asked = (func, form, *map(_signature, leaves))
        if asked not in self._shapes:
            self._shapes[asked] = tree_map(_signature, func(*args, **kwargs))
        return tree_map(_of_signature, self._shapes[asked], is_leaf=lambda leaf: isinstance(leaf, Signature))


class Signature(NamedTuple):
    """What decides the shape of a result."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def _signature(value: Any) -> Any:
    """Of a tensor; all else is its own. Numbers of different types are different."""
    if isinstance(value, Tensor):
        return Signature(value.shape, value.stride(), value.dtype)
    return (type(value), value) if isinstance(value, int | float) else value


def _of_signature(value: Any) -> Any:
    if not isinstance(value, Signature):
        return value
    return torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device="meta")


def _places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same, with places for masks: of a shape it could not be told how many a mask chooses."""
    found: list[Tensor | None] = []
    for index in indices:
        masks = index is not None and index.dtype == torch.bool and not index.is_meta
        found += index.nonzero(as_tuple=True) if masks and index is not None else (index,)
    return found


def _spread(func: Any, given: Sequence[Tensor]) -> int:
    """Elements of what operands are spread over."""
    if torch.Tag.pointwise not in func.tags:
        return 0
    return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in given)))


def _shape(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


class Fused(TorchFunctionMode):
    """Attention by a fused kernel, as on a GPU and on a CPU; numbers that code brings along have values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor):
            kwargs.pop("device", None)
        if func is F.scaled_dot_product_attention:
            return _attended(*args, **kwargs)
        return func(*args, **kwargs)


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """float[B, H, N, E] as query. Every kernel keeps the same for its backward: what it was given and the sums."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # it is added to the scores
        nothing = torch.zeros((), dtype=query.dtype)
        attn_mask = torch.where(attn_mask, nothing, nothing - math.inf)
    fused = ATEN._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


# ---- the passes


def learned(architecture: Architecture, batch: Batch, features: Any) -> None:
    """Forward and backward over one micro-batch, as `learning.learn` has them. A gradient goes as soon as it is there.

    Where gradients are kept they count as such, not here.
    """
    module = architecture.module
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(_forget) for parameter in trained]
    try:
        sums = module(batch, features, _draw).sums
        total = torch.stack([sums[name].float() * weight for name, weight in architecture.weights.items()]).sum()
        total.backward()
    finally:
        for hook in hooks:
            hook.remove()


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


def _draw(purpose: str, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(index)


def set_up(architecture: Architecture, execution: Execution) -> None:
    """The module as an engine of this execution runs it: its type, and whether layers run again."""
    module = architecture.module
    module.train()
    for parameter in module.parameters():  # and no buffers, as DeepSpeed
        parameter.data = parameter.data.to(zero.DTYPES[execution.dtype])
    for part in module.modules():
        if hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing = False  # pyright: ignore[reportArgumentType]
    if execution.recompute == "layers":
        zero.recompute(module)
        for part in module.modules():
            if hasattr(part, "gradient_checkpointing"):  # backward does not know of `Fused`
                func: Any = part._gradient_checkpointing_func
                again: Any = functools.partial(func, context_fn=lambda: (contextlib.nullcontext(), Fused()))
                part._gradient_checkpointing_func = again


def peak(architecture: Architecture, batch: Batch, *, stored: bool = False) -> int:
    """Bytes at the peak of one micro-batch on a rank: the batch, what encoders, forward and backward hold.

    Args:   architecture: on the meta device. batch: its pixels, too. stored: features of pictures are read, not made.
    Raises: Untold: it asks for values that there are none of.
    """
    try:
        return _peak(architecture, batch, stored=stored)
    except RuntimeError as error:  # NotImplementedError is one, too
        kind, (reason, *_) = type(architecture.module).__name__, str(error).split("\n")
        raise Untold(f"{kind} does not run on shapes alone: {reason}") from error


def _peak(architecture: Architecture, batch: Batch, *, stored: bool) -> int:
    there = [*_tensors(architecture.module), *_tensors(architecture.encoder), *_held_by(batch)]
    size = sum(tensor.nbytes for tensor in _held_by(batch))
    with Fused():
        features, encoding = _features(architecture, batch, there, stored=stored)
        with Held(there) as held:
            held.hold(tree_leaves(features))
            learned(architecture, batch, features)
    return size + max(encoding, held.most)


def _features(architecture: Architecture, batch: Batch, there: list[Tensor], *, stored: bool) -> tuple[Any, int]:
    """What encoders make of a batch, and the most that they hold at once.

    They run on a picture of each view, of all there are as many times as much: pictures are alike here.
    """
    counts = {view: len(of_view(batch, view)) for view in VIEWS}
    ones, most, made = [], 0, 0
    for view in VIEWS:
        one = replace(batch, **{other: _first(of_view(batch, other), int(other == view)) for other in VIEWS})
        with Held(there) as held, torch.no_grad():
            features = architecture.apart(one) if stored else architecture.encode(one)
            ones.append(features)
        if counts[view] and not stored:
            most = max(most, made + counts[view] * held.most)
            made += counts[view] * held.now
    if stored:
        parts: Any = {view: [*one[view]] * counts[view] for view, one in zip(counts, ones, strict=True) if view in one}
        with Held(there) as held, torch.no_grad():
            return architecture.together(parts, batch), held.most
    whole = tree_map(lambda *of_views: _repeated(of_views, tuple(counts.values())), *ones)
    return whole, most


def _repeated(of_views: tuple[Any, ...], counts: tuple[int, ...]) -> Any:
    """Features of all pictures, from those of one of each view."""
    if not isinstance(of_views[0], Tensor):
        return of_views[0]
    length = sum(len(tensor) * count for tensor, count in zip(of_views, counts, strict=True))
    longest = max(of_views, key=len)
    return torch.empty(length, *longest.shape[1:], dtype=longest.dtype, device="meta")


def _first(pictures: Pictures, count: int) -> Pictures:
    """The first pictures of a view."""
    cut = {field.name: getattr(pictures, field.name)[:count] for field in fields(pictures)}
    return Pictures(**{**cut, "pixels": pictures.pixels[: int(pictures.tiles[:count].sum())]})


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _held_by(batch: Batch) -> list[Tensor]:
    of_pictures = [
        getattr(pictures, field.name) for pictures in (batch.seen, batch.drawn) for field in fields(Pictures)
    ]
    return [batch.ids, batch.document, batch.position, batch.target, batch.condition, *of_pictures]


# ---- what rows may hold


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one row of a micro-batch holds: records of one task.

    size: width and height of their pictures in pixels. width: tokens of the row.
    """

    task: str
    documents: tuple[Document, ...]
    size: tuple[int, int]
    width: int

    @property
    def holds(self) -> tuple[int, int, int, int]:
        """Its width, ids that are learned, tokens of pictures that are read, pictures that are drawn."""
        slots = [slot for document in self.documents for slot in document.slots]
        learned = sum(sum(document.targets) for document in self.documents)
        read = sum(slot.tokens for slot in slots if slot.view == "seen")
        return self.width, learned, read, sum(slot.view == "drawn" for slot in slots)


def rows(training: Training, tokens: int) -> tuple[list[Row], list[Row]]:
    """What rows of a training hold at least and at most, of each task that its mixture's groups may have.

    Where several records share a row it is full in any case: of short ones, or of a long one.

    Args:     tokens: ids of the tokenizer, whose words are a token each here.
    Returns:  light ones, and heavy ones without those than which another holds more of everything.
    Raises:   ValueError: no record fits in a row.
    """
    config, length = training.architecture, training.sequence_length
    layout = _layout(config, tokens)
    light, heavy = [], []
    for task in _tasks(training):
        smallest, *_ = sizes = _sizes(config)
        short = _document(layout, task, 1, 1, smallest)
        if len(short) > length:
            continue
        light.append(Row(task=task, documents=(short,), size=smallest, width=len(short)))
        if training.packing is not None:
            long = _document(layout, task, 1, 1 + length - len(short), smallest)
            for documents in ((short,) * (length // len(short)), (long,)):
                heavy.append(Row(task=task, documents=documents, size=smallest, width=length))
            continue
        size = [size for size in sizes if len(_document(layout, task, 1, 1, size)) <= length][-1]
        pictures = _shown(layout, task, size, length)
        left = length - len(_document(layout, task, pictures, 1, size))
        document = _document(layout, task, pictures, 1 + left, size)
        heavy.append(Row(task=task, documents=(document,), size=size, width=len(document)))
    if not light:
        raise ValueError(f"sequence_length={length}: no record fits into a row of it; raise it")
    heaviest = _heaviest(heavy)
    lightest = min(light, key=lambda row: (row.holds[3], row.holds[2], row.width))
    return heaviest if training.packing is not None else [lightest], heaviest


def _heaviest(heavy: list[Row]) -> list[Row]:
    """Those of which no other holds as much of everything, or nearly: a sixteenth of the tokens is nothing here."""
    kept: list[Row] = []
    for row in sorted(heavy, key=lambda row: row.holds, reverse=True):
        few = row.width // 16
        least = [count - slack for count, slack in zip(row.holds, (few, few, few, 0), strict=True)]
        if not any(all(more >= less for more, less in zip(other.holds, least, strict=True)) for other in kept):
            kept.append(row)
    return kept


def batch_of(config: Any, row: Row, count: int, *, device: str = "meta") -> Batch:
    """A micro-batch of so many such rows; pixels are zeros on the device.

    Args:  config: an architecture's.
    """
    views: dict[ViewName, View | None] = {"seen": config.seen, "drawn": config.drawn}

    def picture(_: int, number: int, slot: Slot) -> tuple[Cut, tuple[int, int]]:
        view = views[slot.view]
        assert view is not None
        return Cut(np.zeros((0, view.side, view.side, 3), np.uint8), view.grid(row.size)), row.size

    both = sides(config.seen, config.drawn)
    batch, _ = batched([row.documents] * count, picture, sides=both, length=row.width)

    def with_pixels(pictures: Pictures, view: View | None) -> Pictures:
        if view is None:
            return pictures
        tiles = len(view.cut(Image.new("RGB", row.size)).tiles)
        pixels = torch.zeros(tiles * len(pictures), 3, view.side, view.side, device=device)
        return replace(pictures, pixels=pixels, tiles=torch.full_like(pictures.tiles, tiles))

    return replace(batch, seen=with_pixels(batch.seen, views["seen"]), drawn=with_pixels(batch.drawn, views["drawn"]))


class Words:
    """A tokenizer of so many ids that takes any word for one of them: the model's own may lie elsewhere."""

    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, text: str) -> list[int]:
        """An id for each word, or for the space where there is nothing else."""
        return [1] * (len(text.split()) or min(1, len(text)))

    def decode(self, ids: Sequence[int]) -> str:
        """As many words."""
        return " ".join("a" for _ in ids)

    def control(self, name: str) -> int:
        """An id."""
        return 0


def _tasks(training: Training) -> list[str]:
    """The tasks of a mixture: of its groups, by their names where all are the house's."""
    names = [group.name for group in training.mixture.groups]
    known = all(name in GROUPS for name in names)
    told = {task for name in names for task in GROUPS[name]} if known else TASKS
    return [task for task in training.architecture.tasks if task in told] or list(training.architecture.tasks)


def _layout(config: Any, tokens: int) -> Layout:
    """An architecture's layout over `Words`; nothing is read from disk or hub."""
    if not hasattr(config, "backbone"):
        return config.layout()
    backbone = config.backbone.sizes if isinstance(config.backbone, Pretrained) else config.backbone
    if isinstance(backbone, Llama):
        backbone = replace(backbone, tokenizer=None)
    layout = replace(config, backbone=backbone).layout()
    return replace(layout, tokenizer=Words(tokens))


def _document(layout: Layout, task: str, pictures: int, words: int, size: tuple[int, int]) -> Document:
    turns = _chat(task, list(range(pictures)), " ".join(["a"] * words))
    return layout.lay_out(turns, task=task, key=KEY, sizes=[size] * (pictures + 1))


def _chat(task: str, shown: list[int], words: str) -> Turns:
    """What is said under a task, around pictures that are shown."""
    match task:
        case "text_qa":
            return [("user", ["a"]), ("assistant", [words])]
        case "text_document":
            return [("assistant", [words])]
        case "text_to_image":
            return [("user", [words]), ("assistant", [0])]
        case "caption_pair":
            return [("assistant", [words, 0])]
        case "interleaved_document":
            return [("assistant", [words, *shown])]
        case "image_qa" | "video_qa":
            return [("user", [*shown, "a"]), ("assistant", [words])]
        case "visual_thinking":
            return [("user", [*shown, "a"]), ("assistant", [words, len(shown), "a"])]
        case _:  # the picture that is asked for comes last
            return [("user", [*shown, words]), ("assistant", [len(shown)])]


def _sizes(config: Any) -> list[tuple[int, int]]:
    """Pictures that rows are filled with, by how much they take."""
    if isinstance(config.seen, Tiles):
        return sorted(((width, height) for height, width in config.seen.pinpoints), key=config.seen.tokens)
    if isinstance(config.seen, Patches):
        view, tile = config.seen, config.seen.side
        least, most = math.ceil(view.fewest**0.5 / tile), int(view.most**0.5 / tile)
        return [(side * tile, side * tile) for side in range(least, max(least, most) + 1)]
    side = (config.seen or config.drawn).side
    return [(side, side)]


def _shown(layout: Layout, task: str, size: tuple[int, int], length: int) -> int:
    """How many pictures of a size a record may show in a row."""
    one, two = (len(_document(layout, task, pictures, 1, size)) for pictures in (1, 2))
    return 1 + (length - one) // (two - one) if task in SEVERAL and two > one else 1


def vocabulary(module: nn.Module) -> int:
    """Ids of the tokenizer that a module was built for; of one without text, any."""
    return getattr(module, "tokenizer_size", 2)


def positions(module: nn.Module) -> int | None:
    """Places that the language model of a module was made for; None where it has none."""
    backbone = getattr(module, "backbone", None)
    return None if backbone is None else backbone.config.max_position_embeddings
