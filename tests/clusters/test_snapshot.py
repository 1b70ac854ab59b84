"""What of a checkout travels with a job: the code as it is, nothing else, the same bytes twice."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from clusters import snapshot

HOUSE = Path(__file__).resolve().parents[2]


def _git(folder: Path, *words: str) -> None:
    told = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", *told, *words], cwd=folder, check=True, capture_output=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small checkout with all that a checkout has."""
    folder = tmp_path / "house"
    for name in ("clusters/job.py", "dataflow/deep/er.py", "models/old.py", "pipelines/page.html", "pyproject.toml"):
        _write(folder / name, f"# {name}\n")
    for name in ("tests/test_all.py", "docs/page.md", "README.md"):
        _write(folder / name, "not run\n")
    _write(folder / ".gitignore", "__pycache__/\n.venv/\nruns/\n/data/\n*.pt\n")
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "all")
    for name in (
        ".venv/lib/x.py",
        "runs/log",
        "data/a.jpg",
        "models/__pycache__/old.pyc",
        "models/a.pt",
        ".env",
        "me.py",
    ):
        _write(folder / name, "stays\n")
    return folder


def test_edits_and_new_files_travel_and_what_does_not_run_stays(house: Path, tmp_path: Path) -> None:
    _write(house / "clusters/job.py", "edited\n")
    _write(house / "pipelines/new one.py", "new\n")
    (house / "models/old.py").unlink()
    snapshot.take(house, tmp_path / "code")
    assert _names(tmp_path / "code") == {
        "clusters/job.py",
        "code.txt",
        "dataflow/deep/er.py",
        "pipelines/new one.py",
        "pipelines/page.html",
        "pyproject.toml",
    }
    assert (tmp_path / "code/clusters/job.py").read_text() == "edited\n"


def test_the_code_in_words_holds_each_edit_and_a_snapshot_tells_the_same(house: Path, tmp_path: Path) -> None:
    _write(house / "clusters/job.py", "edited\n")
    _write(house / "pipelines/new one.py", "brand new\n")
    (house / "models/old.py").unlink()
    _write(house / "README.md", "not of the code\n")
    said = snapshot.commit(house)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=house, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"commit {head}")
    for line in ("+edited", "+brand new", "-# models/old.py"):
        assert line in said.splitlines()
    assert "not of the code" not in said
    snapshot.take(house, tmp_path / "code")
    snapshot.take(tmp_path / "code", house / "runs/again")  # in a house that ignores it: of a job that submits jobs
    assert snapshot.commit(tmp_path / "code") == snapshot.commit(house / "runs/again") == said
    assert _names(house / "runs/again") == _names(tmp_path / "code")


def test_without_git_all_but_caches_travels(house: Path, tmp_path: Path) -> None:
    (house / ".git").rename(tmp_path / "gone")
    snapshot.take(house, tmp_path / "code")
    assert "models/old.py" in _names(tmp_path / "code")
    assert not [name for name in _names(tmp_path / "code") if "__pycache__" in name or name.startswith((".", "tests"))]
    assert snapshot.commit(house).startswith("no git, version ")


def test_a_package_in_a_checkout_of_something_else_does_not_tell_its_commit(house: Path, tmp_path: Path) -> None:
    _write(house / ".venv/lib/clusters/job.py", "installed\n")
    snapshot.take(house / ".venv/lib", tmp_path / "code")
    assert (tmp_path / "code/clusters/job.py").read_text() == "installed\n"
    assert (tmp_path / "code/code.txt").read_text().startswith("no git, version ")


def _out(house: Path) -> None:
    (house / "models/link.py").symlink_to("/etc/hostname")


def _folder(house: Path) -> None:
    (house / "models/link").symlink_to("../docs")


def _dangling(house: Path) -> None:
    (house / "models/link.py").symlink_to("nothing.py")


def _large(house: Path) -> None:
    (house / "models/weights.bin").write_bytes(b"0" * 4_000_001)


def _repository(house: Path) -> None:
    _write(house / "models/inner/x.py", "")
    _git(house / "models/inner", "init", "-q")
    _git(house / "models/inner", "add", ".")
    _git(house / "models/inner", "commit", "-qm", "inner")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_out, "is a link to /etc/hostname"),
        (_folder, "is a link to ../docs"),
        (_dangling, "is a link to nothing.py"),
        (_large, "has 4.0 MB"),
        (_repository, "a repository of its own"),
    ],
)
def test_what_is_no_code_is_refused_in_one_line_and_nothing_is_written(
    house: Path, tmp_path: Path, spoil, told
) -> None:
    spoil(house)
    with pytest.raises(ValueError, match=told) as refused:
        snapshot.take(house, tmp_path / "code")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "code").exists()


def test_a_link_within_the_house_travels_as_the_file_it_means(house: Path, tmp_path: Path) -> None:
    (house / "models/same.py").symlink_to("old.py")
    snapshot.take(house, tmp_path / "code")
    assert not (tmp_path / "code/models/same.py").is_symlink()
    assert (tmp_path / "code/models/same.py").read_text() == "# models/old.py\n"


def test_an_archive_is_the_same_bytes_whenever_its_files_were_written(house: Path, tmp_path: Path) -> None:
    snapshot.take(house, tmp_path / "one")
    snapshot.take(house, tmp_path / "two")
    for path in (tmp_path / "two").rglob("*.py"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o700)
    packed = snapshot.archive(tmp_path / "one")
    assert packed == snapshot.archive(tmp_path / "two")
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert set(archive.namelist()) == _names(tmp_path / "one")
        assert archive.read("clusters/job.py") == b"# clusters/job.py\n"


def test_our_own_snapshot_is_small_and_runs(tmp_path: Path) -> None:
    snapshot.take(HOUSE, tmp_path / "code")
    (tmp_path / "code" / snapshot.TOLD).write_text("")  # as long as what is not committed
    assert sum(path.stat().st_size for path in (tmp_path / "code").rglob("*") if path.is_file()) < 2_000_000
    assert len(snapshot.archive(tmp_path / "code")) < 900_000  # a ConfigMap holds 1 MiB
    listed = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; sys.path.insert(0, '.'); import pipelines.__main__ as m; print(m)"],
        cwd=tmp_path / "code",
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path / "code") in listed.stdout
