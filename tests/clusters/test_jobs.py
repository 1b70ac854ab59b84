"""Jobs of a root, from the word to the end: their desks, their names, how they are found again."""

from __future__ import annotations

import json
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from desks import job, processes, said, submit, until

from clusters import jobs
from clusters.job import LEFT, NAME, Job, State
from clusters.local import Local

_WAITS = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(CODE))
print("ready")
signal.pause()
"""


@dataclass(frozen=True, kw_only=True)
class Refusing(Local):
    """This machine, which takes no job."""

    kind: ClassVar[str] = "local"

    def submit(self, job: Job) -> str:
        assert (job.desk / "job.sh").exists()
        raise ValueError("the queue is closed")


def test_a_job_is_submitted_followed_done_and_listed(tmp_path: Path) -> None:
    asked = job(tmp_path, "print(open(__import__('sys').argv[1]).read())")
    asked = replace(asked, command=(*asked.command, str(asked.desk / "snapshot" / "word")))

    def fill(desk: Path) -> None:
        (desk / "snapshot").mkdir()
        (desk / "snapshot" / "word").write_text("as it was submitted")

    submitted = jobs.submit(asked, Local(gpu_memory=8), "interlace try --set a='b c'", fill)
    assert stat.S_IMODE(asked.desk.stat().st_mode) == 0o700
    assert said(submitted) == "as it was submitted\n"
    assert submitted.state() == State(name="done", code=0)
    (found,) = jobs.listing(tmp_path)
    assert found == submitted
    assert (found.words, found.cluster) == ("interlace try --set a='b c'", Local(gpu_memory=8))
    assert (asked.desk / "job.sh").read_text() == Local().render(asked)["job.sh"]


def test_how_it_ended_is_remembered_when_the_cluster_has_forgotten(tmp_path: Path) -> None:
    submitted = submit(job(tmp_path, f"raise SystemExit({LEFT})"))
    said(submitted)
    state = submitted.state()
    (submitted.job.desk / "ended.json").unlink()
    assert Local().state(submitted.job, submitted.there).name == "lost"
    assert jobs.read(submitted.job.desk).state() == state


def test_a_job_that_is_stopped_is_so_whatever_its_code(tmp_path: Path) -> None:
    program = (
        "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\nprint('ready')\nsignal.pause()"
    )
    submitted = submit(job(tmp_path, program))
    until(submitted.log, "the command is there")
    assert submitted.stop()
    said(submitted)
    assert submitted.state() == State(name="stopped", code=3)
    assert not submitted.stop()


def test_a_job_that_was_done_before_it_was_stopped_is_done(tmp_path: Path) -> None:
    program = (
        "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nprint('ready')\nsignal.pause()"
    )
    submitted = submit(job(tmp_path, program))
    until(submitted.log, "the command is there")
    submitted.stop()
    said(submitted)
    assert submitted.state() == State(name="done", code=0)


def test_a_job_that_the_cluster_refuses_leaves_no_desk(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the queue is closed"):
        jobs.submit(job(tmp_path, ""), Refusing(), "", lambda desk: None)
    assert not [*(tmp_path / "jobs").iterdir()]
    assert not processes(tmp_path / "jobs")


def test_a_job_whose_desk_cannot_be_filled_leaves_none_and_is_not_run(tmp_path: Path) -> None:
    def fill(desk: Path) -> None:
        (desk / "half").touch()
        raise KeyboardInterrupt

    asked = job(tmp_path, "open('ran', 'w')")
    with pytest.raises(KeyboardInterrupt):
        jobs.submit(asked, Local(), "", fill)
    assert not asked.desk.exists()
    assert not (asked.folder / "ran").exists()


def test_a_desk_of_the_same_name_is_not_taken_over(tmp_path: Path) -> None:
    first = submit(job(tmp_path, "print('first')"))
    with pytest.raises(ValueError, match=r"try-1-\w{4} was submitted by another command"):
        submit(first.job)
    assert said(first) == "first\n"


def test_a_job_of_which_only_its_desk_is_known_is_lost(tmp_path: Path) -> None:
    submitted = submit(job(tmp_path, ""))
    said(submitted)
    for each in ("there.json", "state.json"):
        (submitted.job.desk / each).unlink()
    found = jobs.read(submitted.job.desk)
    assert (found.there, found.state().name, found.log()) == ("", "lost", b"")


def test_what_is_no_job_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no job: `interlace jobs`"):
        jobs.read(tmp_path)
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(ValueError, match=r"job\.json does not read \('job'\)"):
        jobs.read(tmp_path)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("train-metamorph:tiny", "train-metamorph-tiny-1"),
        ("Train ../../x.py:Fn", "train-x-py-fn-1"),
        ("42", "job-42-1"),
        ("", "job-1"),
        ("ü:é", "job-1"),
        ("a" * 36 + "-b" * 20, "a" * 36 + "-1"),
        ("9" * 60, f"job-{'9' * 33}-1"),
    ],
)
def test_names_are_of_letters_that_every_kind_takes(tmp_path: Path, stem: str, name: str) -> None:
    found = jobs.name(tmp_path, stem)
    assert re.fullmatch(rf"{name}-[0-9a-f]{{4}}", found)
    assert NAME.fullmatch(found)


def test_a_name_is_the_next_that_is_free(tmp_path: Path) -> None:
    for taken in ("try-1-00aa", "try-9-0a0a", "try-x", "try-mine-30-00aa"):
        (tmp_path / "jobs" / taken).mkdir(parents=True)
    assert jobs.name(tmp_path, "try").startswith("try-10-")


def test_a_job_is_found_by_its_name_without_its_mark_and_by_its_beginning(tmp_path: Path) -> None:
    for name in ("try-1-00aa", "try-10-00bb", "other-1-00cc"):
        desk = tmp_path / "jobs" / name
        desk.mkdir(parents=True)
        asked = {"job": _plain(name=name).told(), "cluster": {"kind": "local"}, "words": "", "since": 0}
        (desk / "job.json").write_text(json.dumps(asked))
    for word, name in (("try-1", "try-1-00aa"), ("try-10-00bb", "try-10-00bb"), ("other", "other-1-00cc")):
        assert jobs.find(tmp_path, word).job.name == name
    with pytest.raises(ValueError, match="'try': 2 jobs begin so: try-1-00aa, try-10-00bb; `interlace jobs"):
        jobs.find(tmp_path, "try")
    with pytest.raises(ValueError, match="'nobody': no job is called so"):
        jobs.find(tmp_path, "nobody")


def _plain(**fields: Any) -> Job:
    told = {"name": "try", "command": ("true",), "folder": Path("/a"), "desk": Path("/b"), "code": Path("/c")}
    return Job(**{**told, **fields})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "Bad Name"}, "job name 'Bad Name': use lower case"),
        ({"name": "ends-"}, "job name"),
        ({"name": "a" * 48}, "47 at most"),
        ({"command": ()}, "has no command"),
        ({"nodes": 0}, "0 nodes with 0 GPUs"),
        ({"memory": -1}, "-1 GB"),
        ({"desk": Path("runs/jobs/try")}, "runs/jobs/try must be an absolute path"),
        ({"environment": {"A=B; rm": "x"}}, "'A=B; rm' is no name of an environment variable"),
        ({"environment": {"HF_TOKEN": "hf_x"}}, "HF_TOKEN looks like a secret"),
        ({"environment": {"aws_secret_access_key": "x"}}, "aws_secret_access_key looks like a secret"),
        ({"environment": {"WANDB_API_KEY": "x"}}, "WANDB_API_KEY looks like a secret"),
        ({"environment": {"A": "b\nexport C=d"}}, "holds a control character"),
        ({"command": ("true", "\x1b[2J")}, "holds a control character"),
        ({"folder": Path("/a\nb")}, "holds a control character"),
    ],
)
def test_a_job_that_cannot_be_rendered_safely_is_refused_in_one_line(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as refused:
        _plain(**fields).checked()
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "hf_x" not in str(refused.value)


def test_a_job_told_as_json_is_the_same_job() -> None:
    asked = _plain(nodes=3, gpus=8, cpus=4, memory=64, minutes=90, environment={"A": "ü 'b'"}, command=("x", "a b"))
    assert asked.checked() is asked
    assert Job.of(json.loads(json.dumps(asked.told()))) == asked


def test_a_log_that_was_cut_short_goes_on_where_it_was(tmp_path: Path) -> None:
    submitted = submit(job(tmp_path, "print('one')\nprint('two')"))
    said(submitted)
    assert [submitted.log(0), submitted.log(4), submitted.log(8)] == [b"one\ntwo\n", b"two\n", b""]
