"""Commands as jobs: what is handed over, what is refused before, what of a job lies in the run that it trains."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from clusters import jobs, sites
from pipelines import recipe, submit
from pipelines.__main__ import main
from pipelines.sweep import points

Interlace = Callable[..., subprocess.CompletedProcess[str]]

LAB = """
from dataclasses import replace

from beside import SIDE
from pipelines.recipes import corpora


def pictures():
    return replace(corpora.metaclip(), rows_per_shard=SIDE)
"""


def order(root: Path, name: str = "metamorph:tiny", *words: str) -> submit.Order:
    return submit.Order(
        verb="train", recipe=name, value=recipe.load(name), words=words, typed="interlace train", root=root
    )


def test_the_same_command_runs_there_on_the_ray_of_its_nodes(tmp_path: Path) -> None:
    asked, wanted = order(tmp_path, "metamorph:tiny", "--set", "steps=2"), submit.Wanted(nodes=2)
    told = asked.job(sites.site("local"), wanted)
    assert re.fullmatch(r"train-metamorph-tiny-1-[0-9a-f]{4}", told.name)
    assert told.command[1:5] == ("-m", "pipelines", "train", "metamorph:tiny")
    assert told.command[5:] == ("--set", "steps=2", "--root", str(tmp_path), "--ray-address", "auto")
    alone = asked.job(sites.site("local"), submit.Wanted())
    assert "--ray-address" not in alone.command


def test_a_site_says_where_its_root_is(tmp_path: Path) -> None:
    (tmp_path / "there.toml").write_text('kind = "ray"\nroot = "/mnt/runs"\n')
    told = order(tmp_path).job(sites.site(str(tmp_path / "there.toml")), submit.Wanted())
    assert told.command[-4:] == ("--root", "/mnt/runs", "--ray-address", "auto")
    assert told.desk == tmp_path / "jobs" / told.name


def test_data_words_are_found_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data", "coco=pictures/coco", "s3://bucket/a=b", "gqa=s3://bucket/gqa", "/with=sign/in"]
    assert submit.absolute(words) == [
        f"{tmp_path}/data",
        f"coco={tmp_path}/pictures/coco",
        "s3://bucket/a=b",
        "gqa=s3://bucket/gqa",
        "/with=sign/in",
    ]


def test_a_recipe_file_travels_with_what_lies_beside_it_and_later_edits_do_not(
    world: Path, tmp_path: Path, interlace: Interlace
) -> None:
    lab = tmp_path / "lab"
    lab.mkdir()
    (lab / "lab.py").write_text(LAB)
    (lab / "beside.py").write_text("SIDE = 50\n")
    root = tmp_path / "runs"
    words = ("build", "lab.py:pictures", "--data", world, "--root", root, "--cluster", "local", "--follow")
    said = interlace(*words, cwd=lab)
    assert "100 records kept" in said.stdout
    assert "2 shards built" in said.stdout
    submitted = jobs.find(root, "build-lab-py-pictures-1")
    assert submitted.state().name == "done"
    assert submitted.job.command[4] == "outside/lab.py:pictures"
    assert "SIDE = 50" in (submitted.job.code / "outside" / "beside.py").read_text()
    told = json.loads((submitted.job.code / "job" / "recipe.json").read_text())
    assert told["value"]["rows_per_shard"] == 50
    assert (submitted.job.code / "code.txt").read_text().startswith(("commit ", "no git"))
    listed = interlace("jobs", "--root", root).stdout.splitlines()
    assert listed[1].startswith(f"{submitted.job.name}  done ")
    assert "2 shards built" in interlace("logs", "build-lab", "--root", root).stdout
    assert "is over: done" in interlace("stop", "build-lab", "--root", root).stdout


def test_the_exit_code_is_the_jobs(tmp_path: Path, world: Path, interlace: Interlace) -> None:
    root = tmp_path / "runs"
    words = ("build", "corpora:cambrian", "--data", world, "--root", root, "--set", "max_dropped=0")
    said = interlace(*words, "--cluster", "local", "--follow", expect=2)
    assert "of its rows" in said.stdout or "max_dropped" in said.stdout, said
    assert said.stderr.splitlines()[-1].startswith("build-corpora-cambrian-1-")
    assert ": failed" in said.stderr.splitlines()[-1]


def test_what_cannot_fit_is_refused_before_anything_is_submitted(tmp_path: Path, interlace: Interlace) -> None:
    (tmp_path / "small.toml").write_text('kind = "slurm"\ngpu_memory = 24\n')
    words = ("train", "metaquery:xl_sana", "--nodes", "1", "--gpus", "8", "--set", "execution.zero_stage=0")
    said = interlace(*words, "--root", tmp_path / "runs", "--cluster", tmp_path / "small.toml", expect=1).stdout
    assert said.splitlines()[-1].startswith("refused: ")
    assert not (tmp_path / "runs").exists()


def test_corpora_that_are_not_built_refuse_a_training_where_this_machine_sees_them(
    tmp_path: Path, world: Path, interlace: Interlace
) -> None:
    words = ("train", "metamorph:tiny", "--data", world, "--root", tmp_path / "runs", "--cluster", "local")
    assert "is not built" in interlace(*words, expect=2).stderr
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_prints_all_that_would_be_stored_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["train", "metamorph:tiny", "--root", str(root), "--cluster", "local", "--nodes", "2", "--dry-run"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    heads = [line for line in said.splitlines() if line.startswith(f"# {root}")]
    assert [Path(head[2:]).name for head in heads] == ["code.txt", "recipe.json", "job.json", "job.sh"]
    handed = json.loads(said.partition("job.json\n")[2].partition("\n# ")[0])
    assert handed["command"][1:5] == ["-m", "pipelines", "train", "metamorph:tiny"]
    assert not {"--cluster", "--dry-run"} & set(handed["command"])
    assert not root.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["train", "metamorph:tiny", "--cluster", "moon"],
            "there are kuberay, local, ray, slurm",
        ),
        (["train", "metamorph:tiny", "--cluster", "slrum"], "did you mean slurm?"),
        (["run", "metamorph:tiny", "--from", "train", "--to", "build"], "stages go build, measure, train"),
        (["sweep", "metamorph:tiny"], "give --grid FIELD=VALUE"),
        (["sweep", "metamorph:tiny", "--grid", "steps"], "write path.to.field=value"),
        (["sweep", "metamorph:tiny", "--grid", "steps=1", "--grid", "steps=1"], "is given twice"),
        (["sweep", "metamorph:tiny", "--grid", "stesp=1"], "did you mean steps?"),
        (["logs", "nothing"], "no job is called so"),
    ],
)
def test_words_that_cannot_work_are_one_line(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--root", str(tmp_path / "runs")])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert told in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_grid_is_every_combination_of_its_fields_values() -> None:
    assert points(["a=1", "a=2", "b=3"]) == [("a=1", "b=3"), ("a=2", "b=3")]
    assert points(["a=1", "b=3", "a=2", "b=4"]) == [
        ("a=1", "b=3"),
        ("a=1", "b=4"),
        ("a=2", "b=3"),
        ("a=2", "b=4"),
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "metamorph:tiny", "--nodes", "3"], "--nodes is said of a job"),
        (["train", "metamorph:tiny", "--minutes", "5"], "--minutes is said of a job"),
        (["build", "mixtures:mini", "--gpus", "2"], "--gpus is said of a job"),
        (["run", "metamorph:tiny", "--follow"], "--follow is said of a job"),
        (["train", "metamorph:tiny", "--cluster", "local", "--nodes", "3"], "would have no rank; give --workers 3"),
        (["train", "metamorph:tiny", "--cluster", "local", "--ray-address", "auto"], "give one of them"),
        (["run", "metamorph:tiny", "--cluster", "local", "--from", "train"], "is not built"),
    ],
)
def test_what_is_said_of_a_job_without_one_or_twice_is_refused(
    words: list[str], told: str, tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--root", str(tmp_path / "runs"), "--data", str(world)])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_more_gpus_than_there_are_begin_no_training_on_cpus(tmp_path: Path, world: Path, interlace: Interlace) -> None:
    words = ("--data", world, "--root", tmp_path, "--set", "steps=1")
    interlace("run", "metamorph:tiny", *words, "--to", "build")
    said = interlace("train", "metamorph:tiny", *words, "--gpus", "2", expect=2).stderr
    assert "are 2 GPUs, and there are 0" in said
