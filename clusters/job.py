"""A command and what it needs, said once; each kind of cluster renders it its own way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

_NAME = re.compile(r"[a-z][a-z0-9-]{0,46}")  # what a Kubernetes object, the strictest of them, may be called
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One submitted command.

    command: program and arguments, never a shell line. folder: where it runs.
    nodes: machines. gpus, cpus: per node, cpus 0 for all of them. environment: variables set for the command.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    nodes: int = 1
    gpus: int = 0
    cpus: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)

    def checked(self) -> Job:
        """This job, once its fields can be rendered safely.

        Raises:
            ValueError: a name or a variable of other letters, a number out of range, an empty command.
        """
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"job name {self.name!r}: use lower case letters, digits and '-', 47 at most")
        if not self.command:
            raise ValueError(f"job {self.name} has no command")
        if self.nodes < 1 or self.gpus < 0 or self.cpus < 0:
            raise ValueError(
                f"job {self.name}: {self.nodes} nodes with {self.gpus} GPUs and {self.cpus} CPUs cannot be"
            )
        for variable in self.environment:
            if not _VARIABLE.fullmatch(variable):
                raise ValueError(f"job {self.name}: {variable!r} is no name of an environment variable")
        return self


class Cluster(Protocol):
    """A kind of place. `render` is pure: what `--dry-run` prints is what `run` would do."""

    def render(self, job: Job) -> str: ...
    def run(self, job: Job) -> int: ...
