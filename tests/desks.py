"""Jobs as tests submit them to this machine, and processes found by what they were given."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusters import jobs
from clusters.job import Job
from clusters.local import Local

HOUSE = Path(__file__).resolve().parent.parent


def job(root: Path, program: str, **fields: Any) -> Job:
    """A job under a root, in the folder `work` there, that runs a Python program."""
    (root / "work").mkdir(parents=True, exist_ok=True)
    name = fields.pop("name", "") or jobs.name(root, "try")
    path = root / f"{name}.py"
    path.write_text(program)
    told = {
        "command": (sys.executable, str(path)),
        "folder": root / "work",
        "desk": root / "jobs" / name,
        "code": HOUSE,
        **fields,
    }
    return Job(name=name, **told)


def submit(asked: Job) -> jobs.Submitted:
    """Hand it to this machine."""
    return jobs.submit(asked, Local(), "interlace try", lambda desk: None)


def said(submitted: jobs.Submitted) -> str:
    """All that it says, once it is over."""
    return b"".join(submitted.follow(every=0.05)).decode()


def until(true: Callable[[], Any], what: str, *, within: float = 180.0) -> Any:
    """What becomes true; fails by name where it does not."""
    end = time.monotonic() + within
    while not (found := true()):
        if time.monotonic() > end:
            pytest.fail(f"not within {within:g} s: {what}")
        time.sleep(0.05)
    return found


def processes(word: Path | str) -> dict[int, str]:
    """Command lines of running processes in whose command line or environment a word stands."""
    found = {}
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or int(path.name) == os.getpid():
            continue
        try:
            line, given = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if str(word).encode() in line + given:
            found[int(path.name)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found
