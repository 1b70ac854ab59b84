"""This machine as a cluster: what is rendered is what runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clusters.job import Job
from clusters.local import Local


def _job(folder: Path, code: str, **fields: object) -> Job:
    return Job(name="try", command=(sys.executable, "-c", code), folder=folder, **fields)  # type: ignore[arg-type]


def test_a_job_runs_in_its_folder_with_its_environment(tmp_path: Path) -> None:
    job = _job(tmp_path, "import os; open('said', 'w').write(os.environ['WORD'])", environment={"WORD": "a b'c"})
    assert Local().run(job) == 0
    assert (tmp_path / "said").read_text() == "a b'c"


def test_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    assert Local().run(_job(tmp_path, "raise SystemExit(7)")) == 7


def test_the_rendered_line_does_what_the_job_does_in_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "a folder; with 'quotes'"
    folder.mkdir()
    job = _job(folder, "import os; print(os.getcwd(), os.environ['WORD'])", environment={"WORD": "$HOME `id`"})
    said = subprocess.run(["bash", "-c", Local().render(job)], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == f"{folder} $HOME `id`"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "Bad Name"}, "job name"),
        ({"command": ()}, "no command"),
        ({"environment": {"A=B; rm": "x"}}, "environment variable"),
        ({"nodes": 0}, "cannot be"),
        ({"nodes": 2}, "one machine"),
    ],
)
def test_a_job_that_cannot_be_is_refused_in_one_line(tmp_path: Path, fields: dict, told: str) -> None:
    job = Job(**{"name": "try", "command": ("true",), "folder": tmp_path, **fields})
    with pytest.raises(ValueError, match=told) as refused:
        Local().render(job)
    assert "\n" not in str(refused.value)
