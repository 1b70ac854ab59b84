"""The rank-symmetry guard: do all ranks call the same modules and make the same gradients in the same order?

ZeRO puts gradients into buckets in the order in which they arrive and reduces the buckets of all ranks together: ranks
that run different branches mix them, without an error where sizes agree. So the order of module calls is compared after
every forward pass and that of gradients after the last backward one, each as a number of 8 bytes. Hooks are there in
the steps that are looked at alone: the first ones, then one in a hundred.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, nn
from torch.utils.hooks import RemovableHandle

FIRST = 3  # steps of an attempt that are looked at
EVERY = 100  # steps; one of so many is looked at after these


class Symmetry:
    """Of one rank's module. Collective where it compares: all ranks look at the same steps.

    Args:   holds: position -> what this rank reads there, for the error.
    """

    def __init__(self, module: nn.Module, device: torch.device, holds: Callable[[int], str]) -> None:
        self._module, self._device, self._holds = module, device, holds
        self._calls: list[str] = []
        self._gradients: list[str] = []
        self._handles: list[RemovableHandle] = []
        self._taken = 0
        self._position = 0

    def begin(self, position: int) -> None:
        """Before a step's first forward pass."""
        self._position = position
        if self._taken < FIRST or self._taken % EVERY == 0:
            self._hook()
        self._taken += 1

    def end(self) -> None:
        """After its last backward pass, before the optimizer's step.

        Raises: ValueError: a gradient arrived on one rank where another arrived on the other.
        """
        if self._handles:
            self._compare("made the gradient of", self._gradients)
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._calls.clear()
            self._gradients.clear()

    def _hook(self) -> None:
        def called(name: str) -> Callable[..., None]:
            return lambda *_: self._calls.append(name)

        def arrived(name: str) -> Callable[[Any], None]:
            return lambda _: self._gradients.append(name)

        for name, part in self._module.named_modules():
            self._handles.append(part.register_forward_pre_hook(called(name or "module")))
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(arrived(name)))
        self._handles.append(self._module.register_forward_hook(lambda *_: self._compare("called", self._calls)))

    def _compare(self, did: str, names: list[str]) -> None:
        mine = torch.tensor(_hash(names), device=self._device)
        heard = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
        distributed.all_gather(heard, mine)
        if len({int(number) for number in heard}) > 1:
            told: list[Any] = [None] * len(heard)
            distributed.all_gather_object(told, (names, self._holds(self._position)))
            raise ValueError(_difference(self._position, did, told))


def _hash(names: list[str]) -> int:
    """63 bits of names in their order."""
    return int.from_bytes(hashlib.blake2b("\n".join(names).encode(), digest_size=8).digest(), "big") >> 1


def _difference(position: int, did: str, told: list[tuple[list[str], str]]) -> str:
    """Where the first rank that differs from rank 0 parts from it.

    Args:  told: of each rank its names in their order, and what it read.
    """
    first = told[0][0]
    rank, names = next((rank, names) for rank, (names, _) in enumerate(told) if names != first)
    place = next(
        (place for place, (one, other) in enumerate(zip(first, names, strict=False)) if one != other),
        min(len(first), len(names)),
    )

    def at(names: list[str]) -> str:
        return f"{did} {names[place]}" if place < len(names) else "was done"

    branch = next(part for many in (names, first) for part in many[place : place + 1]).partition(".")[0]
    return (
        f"position {position}: rank {rank} {at(names)} where rank 0 {at(first)} ({place + 1}. in order, "
        f"branch {branch}): ZeRO would mix their gradients; run every branch on every rank in one order. "
        f"Rank {rank} read {told[rank][1]}; rank 0 {told[0][1]}"
    )
