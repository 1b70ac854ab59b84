"""The mathematics of one optimizer step over all ranks: what it holds, forward and backward, the means of its losses.

The loss of a step is sum over modalities of weight * (sum over everything) / (count over everything), so how rows are
dealt to micro-batches and ranks does not show in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed

from models.interface import Architecture, Each
from pipelines import zero
from pipelines.batching import Kind, Micro


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One optimizer step. Means and counts over all ranks and micro-batches; None: nothing of it was in the step.

    by: "source", "task", "group" -> name -> modality -> the mean loss of this step's targets of that name; what has no
    targets in this step is absent.
    """

    losses: dict[str, float | None]
    total: float
    counts: dict[str, int]
    fed: dict[str, int]  # records each source gave
    tokens: dict[str, int]  # and their tokens
    drawn: dict[str, int]  # of these, tokens of pictures that are answers
    places: int  # that rows had for tokens, empty rows included
    norm: float  # of the gradient, before clipping
    by: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What the targets of a step lost. L modalities, K kinds of records.

    sums  float64[L]
    kinds float64[K, L, 2]  of each kind: what its targets lost, and how many they are
    """

    sums: Tensor
    kinds: Tensor

    def everywhere(self) -> Learned:
        """The same over all ranks. Collective: one all-reduce."""
        both = torch.cat([self.sums, self.kinds.flatten()])
        distributed.all_reduce(both)
        return Learned(sums=both[: len(self.sums)], kinds=both[len(self.sums) :].view_as(self.kinds))

    def by(self, kinds: Sequence[Kind], modalities: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
        """`Outcome.by`: what `kinds` holds, added up over all records of a source, of a task and of a group."""
        lost: dict[tuple[str, str, str], list[float]] = {}
        for kind, numbers in zip(kinds, self.kinds.tolist(), strict=True):
            for modality, (loss, count) in zip(modalities, numbers, strict=True):
                for what, name in kind._asdict().items() if count else ():
                    before = lost.get((what, name, modality), (0.0, 0.0))
                    lost[what, name, modality] = [before[0] + loss, before[1] + count]
        found: dict[str, dict[str, dict[str, float]]] = {what: {} for what in Kind._fields}
        for (what, name, modality), (loss, count) in lost.items():
            found[what].setdefault(name, {})[modality] = loss / count
        return found


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a position holds over all ranks and micro-batches; fed, tokens, drawn: of each source, as `Micro` has them.

    items: micro-batches. places: that their rows have for tokens. unread: records that could not be read.
    counts: targets of each modality. leaving: whether any rank was told to leave after this step.
    """

    items: int
    places: int
    unread: int
    leaving: bool
    counts: dict[str, int]
    fed: list[int]
    tokens: list[int]
    drawn: list[int]


def everywhere(
    architecture: Architecture, items: list[Micro], sources: int, device: torch.device, *, leaving: bool = False
) -> Held:
    """What all ranks hold together, in one all-reduce. Collective; ranks may disagree in how many items they have."""
    names = list(architecture.weights)
    counts = [architecture.counts(item.batch) for item in items]
    learned = [sum(count[name] for count in counts) for name in names]
    given = [sum(item.fed[place] for item in items) for place in range(sources)]
    taken = [sum(item.tokens[place] for item in items if item.tokens) for place in range(sources)]
    drawn = [sum(item.drawn[place] for item in items if item.drawn) for place in range(sources)]
    places = sum(item.batch.ids.numel() for item in items)
    replaced = sum(len(item.replaced) for item in items)
    table = torch.tensor([len(items), places, replaced, int(leaving), *learned, *given, *taken, *drawn], device=device)
    distributed.all_reduce(table)
    number, places, unread, wishes, *told = table.tolist()
    shared, of_sources = told[: len(names)], told[len(names) :]
    fed, tokens, answers = (of_sources[place * sources : (place + 1) * sources] for place in range(3))
    return Held(
        items=number,
        places=places,
        unread=unread,
        leaving=wishes > 0,
        counts=dict(zip(names, shared, strict=True)),
        fed=fed,
        tokens=tokens,
        drawn=answers,
    )


def learn(
    engine: zero.Engine, architecture: Architecture, items: list[Micro], counts: dict[str, int], kinds: int = 0
) -> Learned:
    """Forward and backward over this rank's micro-batches: the gradients of a whole step. Collective.

    DeepSpeed averages gradients over ranks: hence `world`.

    Args:     counts: targets of each modality over all ranks and micro-batches of the step; 0 is safe.
              kinds: of records, that losses are told apart by; 0: they are not.
    Returns:  what this rank's targets lost, modalities in the order of `counts`.
    """
    world, device, weights = distributed.get_world_size(), engine.device, architecture.weights
    factors = {name: weights[name] * world / max(count, 1) for name, count in counts.items()}
    sums = torch.zeros(len(counts), dtype=torch.float64, device=device)
    told = torch.zeros(kinds, len(counts), 2, dtype=torch.float64, device=device)
    zero.begin(engine)
    for index, item in enumerate(items):
        there = item.batch.to(device)
        with torch.no_grad():
            given = architecture.encode(there) if item.parts is None else architecture.together(item.parts, there)
        losses, each = engine(there, given, item.draw)
        total = sum(losses[name].float() * factor for name, factor in factors.items())
        assert isinstance(total, Tensor)
        zero.backward(engine, total, last=index == len(items) - 1)
        sums += torch.stack([losses[name].detach().double() for name in counts])
        if kinds and item.kinds is not None:
            _tell(told, item.kinds.to(device), [each.get(name) for name in counts])
    return Learned(sums=sums, kinds=told)


def _tell(told: Tensor, kinds: Tensor, losses: Sequence[Each | None]) -> None:
    """Add to float64[K, L, 2] what the targets of each modality lost. kinds: int64[B, D], as `Micro` has them."""
    for modality, each in enumerate(losses):
        if each is not None:
            lost = each.loss.double()
            pairs = torch.stack([lost, torch.ones_like(lost)], dim=1)
            told[:, modality].index_add_(0, kinds[each.row, each.document - 1], pairs)


def by_source(sources: tuple[str, ...], fed: list[int]) -> dict[str, int]:
    """Records by source; a source may stand in a mixture twice."""
    return {source: sum(n for name, n in zip(sources, fed, strict=True) if name == source) for source in sources}
