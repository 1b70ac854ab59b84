"""A command and what it needs, said once; each kind of cluster renders it its own way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

NAME = re.compile(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?")  # of a Kubernetes object with a label of it, the strictest
LEFT = 75  # exit code of a command that stopped where it was told to, to be run again: EX_TEMPFAIL
LOST = 70  # exit code of a gang that lost a node, or did not come together: EX_SOFTWARE

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(?i)token(?!iz|s\b)|secret|password|passwd|api_?key|access_key|credential")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One submitted command. It runs on the first of its nodes, in a Ray cluster of all of them (RAY_ADDRESS).

    name: of letters that every kind takes; no two jobs under a root share one. command: program and arguments, never
    a shell line. folder: where it runs. desk: the job's own folder, <root>/jobs/<name>, where its log and its end are
    written. code: the snapshot of the code, a folder; first on its PYTHONPATH.
    nodes: machines. gpus, cpus: per node, cpus 0 for all of them. memory: GB per node, 0 for what the cluster gives.
    minutes: after which it is ended, 0 for what the cluster gives. environment: variables set for the command.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    desk: Path
    code: Path
    nodes: int = 1
    gpus: int = 0
    cpus: int = 0
    memory: int = 0
    minutes: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)

    def checked(self) -> Job:
        """This job, once its fields can be rendered safely.

        Raises:
            ValueError: a name or a variable of other letters, a number out of range, an empty command, a control
                character, a secret among the variables.
        """
        if not NAME.fullmatch(self.name):
            raise ValueError(f"job name {self.name!r}: use lower case letters, digits and '-' inside, 47 at most")
        if not self.command:
            raise ValueError(f"job {self.name} has no command")
        if self.nodes < 1 or min(self.gpus, self.cpus, self.memory, self.minutes) < 0:
            raise ValueError(
                f"job {self.name}: {self.nodes} nodes with {self.gpus} GPUs, {self.cpus} CPUs and {self.memory} GB "
                f"for {self.minutes} minutes cannot be"
            )
        for path in (self.folder, self.desk, self.code):
            if not path.is_absolute():
                raise ValueError(f"job {self.name}: {path} must be an absolute path, the job begins elsewhere")
        for variable in self.environment:
            if not _VARIABLE.fullmatch(variable):
                raise ValueError(f"job {self.name}: {variable!r} is no name of an environment variable")
            if _SECRET.search(variable):
                raise ValueError(
                    f"job {self.name}: {variable} looks like a secret, and what is rendered can be read by others: "
                    "let the cluster set it, or put it in a file that only you read and name that file"
                )
        texts = (*self.command, *self.environment.values(), *map(str, (self.folder, self.desk, self.code)))
        for text in texts:
            if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
                raise ValueError(f"job {self.name}: {text[:60]!r} holds a control character: write it without")
        return self

    def said(self, seen: int) -> bytes:
        """What its log holds after the first `seen` bytes; of kinds that share the desk with us."""
        try:
            with (self.desk / "log.txt").open("rb") as stream:
                stream.seek(seen)
                return stream.read()
        except FileNotFoundError:
            return b""

    def told(self) -> dict[str, Any]:
        """As JSON values; `Job.of` makes it again."""
        return {
            **vars(self),
            "command": list(self.command),
            "environment": dict(self.environment),
            **{name: str(getattr(self, name)) for name in ("folder", "desk", "code")},
        }

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Job:
        """The job that `told` told of."""
        paths = {name: Path(told[name]) for name in ("folder", "desk", "code")}
        return cls(**{**told, **paths, "command": tuple(told["command"])})


@dataclass(frozen=True, kw_only=True)
class State:
    """How a job is doing.

    why: more about it in words: what it waits for, with which code it failed; "" where there is nothing to say.
    code: the exit code of its command, once that is known.
    """

    name: Literal["waiting", "running", "done", "failed", "stopped", "lost"]
    why: str = ""
    code: int | None = None

    @property
    def over(self) -> bool:
        """Whether it stays so."""
        return self.name not in ("waiting", "running")


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a site file may say for every kind of cluster.

    environment: variables set for every job. root: the folder for --root as it is seen there, where that is not the
    path it has here. gpu_memory: GB of one GPU there; what cannot fit is refused before it is submitted.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    root: str = ""
    gpu_memory: int = 0

    @property
    def site(self) -> Site:
        """What all kinds have: this."""
        return self


class Cluster(Protocol):
    """A kind of place; its values are sites. `render` is pure: what `--dry-run` prints is what is submitted.

    kind: its name in a site file. shared: whether paths of this machine are seen there, too, so that data can be
    planned here before anything is submitted, and the desk's log and end are read here.
    """

    kind: ClassVar[str]
    shared: ClassVar[bool]

    @property
    def site(self) -> Site:
        """What all kinds have."""
        ...

    @property
    def python(self) -> str:
        """The interpreter that a command there begins with."""
        ...

    def joins(self, job: Job) -> bool:
        """Whether the command finds a Ray cluster of its nodes at RAY_ADDRESS; else it starts one of its own."""
        ...

    def render(self, job: Job) -> dict[str, str]:
        """The job as this kind takes it: files by name, each whole. Raises ValueError where it cannot hold it."""
        ...

    def check(self, job: Job) -> None:
        """Ask the place, change nothing. ValueError: programs, partitions, addresses, nodes that are not there."""
        ...

    def submit(self, job: Job) -> str:
        """Hand it over, its desk and its code being there; returns its name there. ValueError: nothing is running."""
        ...

    def state(self, job: Job, there: str) -> State:
        """How it is doing. there: what `submit` returned. ValueError where the place does not answer."""
        ...

    def log(self, job: Job, there: str, seen: int) -> bytes:
        """What it has said after its first `seen` bytes; whoever follows it asks again."""
        ...

    def stop(self, job: Job, there: str) -> None:
        """End it, with all it started. Returns once that is asked for; of one that is over, nothing happens."""
        ...
