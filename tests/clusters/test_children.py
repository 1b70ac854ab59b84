"""Whoever starts processes ends them all, and hears every signal in turn."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from desks import HOUSE, processes

_STUBBORN = """# eight processes in sessions of their own
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
print(os.getpid(), flush=True)
time.sleep(1000)
"""
_CARELESS = """# twenty grandchildren that nobody waits for
import os, time
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.1)
        os._exit(0)
    os.wait()
time.sleep(1)
"""


def _run(folder: Path, program: str) -> list[str]:
    """The lines that a program says which has children; they are found by this test's folder."""
    head = (
        "import os, signal, sys, time\nfrom pathlib import Path\nfrom clusters.children import Children\n"
        f"ours, folder = Children(), Path({str(folder)!r})\n"
        "def begin(program, **said):\n"
        "    return ours.begin([sys.executable, '-c', program], folder=folder, environment=os.environ, **said)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "HERE": str(folder)}
    words = [sys.executable, "-c", head + textwrap.dedent(program)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_does_not_hear_sigterm_is_killed_however_deep_it_hides(tmp_path: Path) -> None:
    said = _run(
        tmp_path,
        f"""
        child = begin({_STUBBORN!r}, output=(folder / "said").open("wb"))
        while len((folder / "said").read_text().split()) < 8: time.sleep(0.02)
        began = time.monotonic()
        ours.end_all(0.3)
        print(0.3 < time.monotonic() - began < 10, child.returncode)
        """,
    )
    assert said == ["True -9"]
    assert not processes(tmp_path)


def test_what_children_leave_behind_does_not_pile_up(tmp_path: Path) -> None:
    said = _run(
        tmp_path,
        f"""
        print(ours.attend(begin({_CARELESS!r}), grace=1))
        print(sum(f") Z {{os.getpid()}} " in path.read_text() for path in Path("/proc").glob("[0-9]*/stat")))
        """,
    )
    assert said == ["0", "0"]


def test_a_child_that_is_told_to_leave_before_it_is_ready_has_left(tmp_path: Path) -> None:
    said = _run(
        tmp_path,
        """
        os.kill(os.getpid(), signal.SIGUSR1)
        print(ours.attend(begin("import time; time.sleep(1000)"), grace=1))
        """,
    )
    assert said == ["75"]


def test_the_deaf_and_theirs_do_not_hear_sigusr1(tmp_path: Path) -> None:
    inner = "import os, signal; os.kill(os.getpid(), signal.SIGUSR1); print('alive', flush=True)"
    said = _run(
        tmp_path,
        f"""
        child = begin({f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"!r}, deaf=True)
        print(ours.attend(child, grace=1))
        """,
    )
    assert said == ["alive", "0"]


def test_a_child_hears_what_we_keep_back(tmp_path: Path) -> None:
    said = _run(
        tmp_path,
        """
        child = begin("import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []), flush=True)")
        print(ours.attend(child, grace=1))
        """,
    )
    assert said == ["set()", "0"]
