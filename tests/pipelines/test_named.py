"""Folders under a root by the beginning of their names, as every command that takes one finds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import named
from pipelines.__main__ import main

TRAININGS = (
    "metamorph-tiny-0123456789ab",
    "metamorph-tiny-visualizer-0123456789ab",
    "sweep-111111111111",
    "sweep-222222222222",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in TRAININGS:
        (tmp_path / "trainings" / name).mkdir(parents=True)
    (tmp_path / "corpora" / "cambrian-0123456789ab").mkdir(parents=True)
    (tmp_path / "corpora" / "cambrian-0123456789ab-ba9876543210").mkdir()
    (tmp_path / "corpora" / "cambrian_alignment-0123456789ab").mkdir()
    (tmp_path / "corpora" / ".building").mkdir()
    (tmp_path / "selections" / "8ff2be9ca9c1").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("metamorph-tiny", TRAININGS[0]),  # a whole name and its key, though another begins so
        ("metamorph-tiny-v", TRAININGS[1]),
        ("sweep-1", TRAININGS[2]),
        ("cambrian_", "cambrian_alignment-0123456789ab"),
        ("cambrian-0123456789ab", "cambrian-0123456789ab"),
        ("8ff", "8ff2be9ca9c1"),
    ],
)
def test_the_beginning_of_one_name_is_enough(word: str, name: str, root: Path) -> None:
    assert named.folder(word, root, "trainings", "corpora", "selections").name == name


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("sweep", "begins 2 names under .*: sweep-111111111111, sweep-222222222222; give more"),
        ("cambrian", "begins 2 names under .*: cambrian-0123456789ab, cambrian-0123456789ab-ba9876543210; give more"),
        ("m", "begins 2 names"),
        ("nothing", "no name under .* begins so: give a path, or the --root"),
    ],
)
def test_several_names_are_listed_and_none_is_said(word: str, told: str, root: Path) -> None:
    with pytest.raises(ValueError, match=told):
        named.folder(word, root, "trainings", "corpora")


@pytest.mark.parametrize("word", [".", "..", "here/sweep", "/sweep", "", "there"])
def test_paths_and_what_is_there_stay_paths(
    word: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert named.folder(word, root, "trainings") == Path(word).absolute()


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "sweep", "hi"],
        ["evaluate", "sweep"],
        ["export-model", "sweep"],
        ["report", "sweep"],
        ["verify", "cambrian"],
        ["diff", "cambrian", "cambrian"],
        ["export-corpus", "cambrian", "--format", "metamorph-jsonl"],
    ],
)
def test_every_command_that_takes_a_folder_takes_its_name(
    words: list[str], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*words, "--root", str(root)])
    said = capsys.readouterr().err
    assert left.value.code == 2 and "begins 2 names" in said and said.count("\n") == 1
