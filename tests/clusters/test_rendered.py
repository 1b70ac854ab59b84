"""What every kind of cluster renders, as files to read: two jobs through each site file of docs/sites.

    rendered/kuberay-training.yaml      <site>-<job>.<ending of what is rendered>

`python tests/clusters/test_rendered.py` writes them anew; what changed is then in the diff.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOUSE))  # as a script

from clusters import sites  # noqa: E402
from clusters.job import Cluster, Job  # noqa: E402

SITES = HOUSE / "docs" / "sites"
RENDERED = Path(__file__).resolve().parent / "rendered"
INSTALLED = "/house/.venv/bin/python"  # for the interpreter that runs this, wherever that is


JOBS = {  # a build on processors and a training on GPUs, with words that a shell would take apart
    "build": {
        "command": ("build", "mixtures:mini", "--data", "coco=/shared/my data/coco"),
        "nodes": 2,
        "cpus": 16,
        "memory": 64,
        "minutes": 240,
    },
    "training": {
        "command": ("train", "metamorph:vpit", "--set", "lines=it's $(5)"),
        "nodes": 4,
        "gpus": 8,
        "cpus": 64,
        "memory": 900,
        "minutes": 1440,
        "environment": {"WANDB_MODE": "offline"},
    },
}


def _job(name: str, cluster: Cluster) -> Job:
    """As a command makes it, under fixed paths."""
    desk = Path("/shared/runs/jobs") / f"{name}-1"
    made = Job(**{"name": desk.name, "folder": desk / "code", "desk": desk, "code": desk / "code", **JOBS[name]})
    words = (*made.command, "--root", cluster.site.root or "/shared/runs")
    words = (*words, "--ray-address", "auto") if cluster.joins(made) else words
    return replace(made, command=(cluster.python, "-m", "pipelines", *words))


def _written() -> dict[str, str]:
    """All files of RENDERED by name."""
    made: dict[str, str] = {}
    for path in sorted(SITES.glob("*.toml")):
        cluster = sites.site(str(path))
        for name in JOBS:
            for file, text in cluster.render(_job(name, cluster)).items():
                file = f"{path.stem}-{name}{Path(file).suffix}"
                assert file not in made, f"two files of {path.stem} end alike: {file}"
                made[file] = re.sub(re.escape(sys.executable) + r"\b", INSTALLED, text)
    return made


def test_each_kind_has_a_site_file_to_begin_with() -> None:
    kinds = {sites.site(str(path)).kind for path in SITES.glob("*.toml")}
    assert kinds == set(sites.KINDS)


@pytest.mark.parametrize("path", sorted(SITES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_site_file_is_told_and_read_again_as_it_was(path: Path) -> None:
    cluster = sites.site(str(path))
    assert sites.of(sites.told(cluster)) == cluster


def test_what_is_rendered_is_what_was_looked_at() -> None:
    made = _written()
    assert sorted(made) == sorted(path.name for path in RENDERED.iterdir())
    for name, text in made.items():
        assert text == (RENDERED / name).read_text(), f"{name} changed: python {Path(__file__).name} writes it anew"


if __name__ == "__main__":
    RENDERED.mkdir(exist_ok=True)
    for name in {path.name for path in RENDERED.iterdir()} - set(_written()):
        (RENDERED / name).unlink()
    for name, text in _written().items():
        (RENDERED / name).write_text(text)
