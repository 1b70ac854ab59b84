"""What a root survives and tells of itself: kills at exact points, disks that fail, explain, status, gc, diff."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kill
import pytest
from kill import Bench, Point, content
from ray import cloudpickle

from dataflow import index
from dataflow.filters import MinSide
from dataflow.index import BuiltCorpus
from dataflow.mixture import Group, Member, Mixture
from dataflow.record import Candidate
from dataflow.roots import Roots
from dataflow.selection import Part
from dataflow.sources import Read
from dataflow.sources.cambrian import Cambrian
from pipelines import corpus, diff, explain, gc, plan, recipe, status
from pipelines.corpus import Corpus
from pipelines.recipes import corpora
from pipelines.step import Place, alone, cluster, last_holder, one_line

Interlace = Callable[..., subprocess.CompletedProcess[str]]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One private cluster for the module."""
    with cluster(Place(root=tmp_path_factory.mktemp("unused"), workers=2)):
        yield


@pytest.fixture
def data(world: Path, tmp_path: Path) -> Path:
    """Two sources of the small world, to be changed."""
    for name in ("cambrian", "metaclip"):
        shutil.copytree(world / name, tmp_path / "data" / name)
    return tmp_path / "data"


@pytest.fixture
def place(tmp_path: Path, data: Path) -> Place:
    return Place(root=tmp_path / "root", roots=Roots.parse([str(data)]))


def cambrian(**changed: Any) -> Corpus:
    return replace(corpora.cambrian(), rows_per_shard=50, **changed)


def metaclip() -> Corpus:
    return replace(corpora.metaclip(), rows_per_shard=50)


def mixture(*members: Corpus, validation: int = 100) -> Mixture:
    part = Part(part="train", validation=validation)
    return Mixture(
        groups=(Group(name="all", share=1, members=tuple(Member(corpus=each, select=part) for each in members)),)
    )


def jsonl(data: Path) -> Path:
    return next((data / "cambrian" / "jsons").glob("*.jsonl"))


def change_row(data: Path, number: int) -> None:
    lines = jsonl(data).read_text().splitlines()
    row = json.loads(lines[number])
    row["conversations"][-1]["value"] = "something else altogether"
    lines[number] = json.dumps(row)
    jsonl(data).write_text("\n".join(lines) + "\n")


def tree(folder: Path) -> dict[str, int]:
    """Every path under a folder and when it was changed."""
    return {str(path): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


# --- killed, and gone on


@pytest.fixture(scope="module")
def bench(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, dict[str, str], str]:
    """A mixture of three corpora and a curation; what an unbroken build of it leaves; its first corpus' name."""
    folder = tmp_path_factory.mktemp("bench")
    made = Bench.at(folder, world)
    opened = plan.build(recipe.load(made.recipe), Place(root=folder / "whole", roots=Roots(base=world)))
    return made, content(folder / "whole"), opened[0].corpus.name


@pytest.mark.parametrize(
    ("label", "after", "victim", "code"),
    [
        ("rename corpora/.building/NAME/00003.tar", True, "worker", 0),
        ("rename corpora/.building/NAME/.00003.receipt.json", True, "group", -9),
        ("rename corpora/.building/NAME/manifest.json", True, "driver", -9),
    ],
)
def test_a_build_killed_at_any_point_goes_on_to_the_same_bytes(
    bench: tuple[Bench, dict[str, str], str], label: str, after: bool, victim: Any, code: int
) -> None:
    """`make kill-test` has twenty such points."""
    made, whole, name = bench
    root = made.folder / victim
    point = Point(label=label.replace("NAME", name), after=after, victim=victim)
    killed = made.build(root, point)
    assert killed.returncode == code, killed.stdout
    assert any(each.label == point.label for each in made.points(root))
    if code:
        assert content(root) != whole
        plan.build(recipe.load(made.recipe), Place(root=root, roots=Roots(base=made.data)))
    assert content(root) == whole
    assert not list(root.glob("*/.building/*/"))


def test_the_points_of_the_long_test_are_those_of_a_build(bench: tuple[Bench, dict[str, str], str]) -> None:
    made, _, _ = bench
    points = made.points(made.folder / "worker")
    assert len(kill.boundaries(points)) >= 15
    assert len(kill.faults(points)) == 2
    assert kill.drawn(points, 5, seed=3) == kill.drawn(points, 5, seed=3) != kill.drawn(points, 5, seed=4)


# --- disks that fail


def test_a_full_disk_is_one_line_with_a_cure_and_the_same_command_goes_on(place: Place) -> None:
    whole = corpus.build(cambrian(), replace(place, root=place.root.with_name("whole")))
    work = corpus.work_folder(cambrian(), place, corpus.inputs(cambrian(), place))
    work.mkdir(parents=True)
    (work / "index.parquet").symlink_to("/dev/full")  # the kernel's own ENOSPC
    with pytest.raises(OSError, match="No space left") as told:
        corpus.build(cambrian(), place)
    said = one_line(told.value)
    assert said.startswith(f"{work / 'index.parquet'}: No space left on device; free some space") and "\n" not in said
    assert not list(place.root.glob("corpora/cambrian-*"))
    (failed,) = status.works(place.root)
    assert (failed.state, failed.told, failed.failed) == ("failed", "6 of 6 shards", said)
    (work / "index.parquet").unlink()
    shards = {path: path.stat().st_mtime_ns for path in work.glob("*.tar")}
    built = corpus.build(cambrian(), place)
    assert {work / path.name: path.stat().st_mtime_ns for path in built.glob("*.tar")} == shards
    assert index.read_manifest(built)["root_digest"] == index.read_manifest(whole)["root_digest"]
    assert [work.state for work in status.works(place.root)] == ["finished"]


def test_a_root_that_may_not_be_written_is_one_line_with_a_cure(place: Place) -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made) / "root"
        root.mkdir()
        root.chmod(0o555)
        Path(made).chmod(0o755)
        nobody = os.geteuid() == 0  # root may write everywhere
        if nobody:
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError) as told:
                with alone(root / "corpora" / "any.lock", "any"):
                    pass
        finally:
            if nobody:
                os.seteuid(0)
        assert one_line(told.value).startswith(f"{root / 'corpora'}: Permission denied; give this user the right to it")
        assert not list(root.iterdir())
        root.chmod(0o755)
        assert corpus.build(cambrian(), replace(place, root=root)).is_dir()


def test_an_error_of_the_disk_keeps_its_file_on_the_way_from_a_worker() -> None:
    error = OSError(5, "Input/output error")
    error.filename = "/some/file"
    back = pickle.loads(pickle.dumps(error))
    assert one_line(back).startswith("/some/file: Input/output error; the disk fails")


# --- what a build would do


def test_explain_says_what_a_build_then_does(place: Place, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(wanted: Corpus) -> str:
        before = tree(place.root.parent)
        line = explain.explain(wanted, place).line()
        assert tree(place.root.parent) == before  # it writes nothing
        return line

    assert asked(cambrian()).endswith(f"would build 6 shards, link 0: never built under {place.root}")
    first = corpus.build(cambrian(), place)
    assert asked(cambrian()) == f"{first.name}: nothing to do: index files have the names, sizes and times they had"
    change_row(data, 120)
    assert ": would build 1 shard, link 5: changed or new: rows 100 to 149 of jsons/" in asked(cambrian())
    capsys.readouterr()
    second = corpus.build(cambrian(), place)
    assert "1 shards built, 5 linked" in capsys.readouterr().out
    os.utime(jsonl(data), (1, 1))
    assert ": would build 0 shards, link 6: other size or time: jsons/" in asked(cambrian())
    larger = cambrian(filters=(MinSide(pixels=33), *cambrian().filters[1:]))
    told = asked(larger)
    assert f"would build 6 shards, link 0: recipe differs from {second.name}'s: filters.0.pixels is 33, was 32" in told


def test_explain_leaves_files_with_pictures_alone_and_says_so(place: Place, data: Path) -> None:
    corpus.build(metaclip(), place)
    newest = sorted((data / "metaclip").rglob("*.tar"))[-1]
    shutil.copyfile(newest, newest.with_name("99999.tar"))
    told = explain.explain(metaclip(), place)
    held = len(list((data / "metaclip").rglob("*.tar")))
    assert (told.build, told.unread) == (0, 1)
    assert told.link >= held - 1
    assert "and the shards of 1 file that only a build reads: new: 0/99999.tar" in told.line()


def test_explain_of_an_interrupted_build_says_how_far_it_is(place: Place) -> None:
    found = corpus.inputs(cambrian(), place)
    work = corpus.work_folder(cambrian(), place, found)
    work.mkdir(parents=True)
    (work / "index.parquet").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        corpus.build(cambrian(), place)
    assert "a build of it was interrupted, 6 of 6 shards are done and stay" in explain.explain(cambrian(), place).line()


def test_a_threshold_makes_a_new_selection_and_a_new_source_touches_no_other_corpus(place: Place) -> None:
    plan.build(mixture(metaclip()), place)
    built = tree(place.root / "corpora")
    wanted = mixture(metaclip(), validation=300)
    told = list(explain.lines(wanted, place, rehash=False))
    assert "selection of metaclip: would be made: none of this Part on this corpus" in told
    assert "1 of 1 corpora are built; 0 shards to build, 0 to link" in told
    plan.build(wanted, place)
    assert tree(place.root / "corpora") == built
    assert len(list((place.root / "selections").iterdir())) == 4  # two, and their locks
    both = mixture(metaclip(), cambrian(), validation=300)
    told = list(explain.lines(both, place, rehash=False))
    assert "selection of metaclip: nothing to do" in told
    assert "selection of cambrian: would be made: its corpus is not built" in told
    folder = plan.build(both, place)[0].corpus
    now = tree(place.root / "corpora")
    assert {path: now[path] for path in built if path.startswith(str(folder))} == {
        path: time for path, time in built.items() if path.startswith(str(folder))
    }


def test_explain_is_a_flag_of_build(place: Place, data: Path, interlace: Interlace) -> None:
    words = ("build", "corpora:cambrian", "--data", data, "--root", place.root, "--explain")
    said = interlace(*words).stdout
    assert f"would build 1 shard, link 0: never built under {place.root}" in said
    assert not place.root.exists()


def test_a_build_with_nothing_to_do_starts_no_ray_and_reads_no_index(place: Place, data: Path) -> None:
    (place.root.parent / "made.py").write_text(
        "from dataclasses import replace\n"
        "from dataflow.mixture import Group, Member, Mixture\n"
        "from dataflow.selection import Part\n"
        "from pipelines.recipes import corpora\n"
        "def mixture() -> Mixture:\n"
        "    member = Member(corpus=replace(corpora.metaclip(), rows_per_shard=50), select=Part(part='train'))\n"
        "    return Mixture(groups=(Group(name='all', share=1, members=(member,)),))\n"
    )
    name = f"{place.root.parent / 'made.py'}:mixture"
    built = plan.build(recipe.load(name), place)[0].corpus
    (built / "index.parquet").write_bytes(b"")
    code = (
        "import sys\n"
        "from pipelines.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    print(end.code, 'ray' in sys.modules)"
    )
    words = ["build", name, "--data", str(data), "--root", str(place.root)]
    said = subprocess.run([sys.executable, "-c", code, *words], cwd=kill.HOUSE, capture_output=True, text=True)
    assert said.stdout.splitlines()[-1] == "0 False", said.stderr
    assert f"{built.name}: already built, nothing to do" in said.stdout


# --- states


@dataclass(frozen=True, kw_only=True)
class Broken(Cambrian):
    """A source with a bug: in one of its records nobody says anything worth learning."""

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        for candidate in super().candidates(value, key, read):
            if key.endswith("20007"):
                yield replace(candidate, messages=candidate.messages[:1])
            else:
                yield candidate


def test_status_tells_what_is_finished_running_interrupted_and_failed_and_why(
    place: Place, interlace: Interlace
) -> None:
    root = place.root
    plan.build(mixture(metaclip()), place)
    with pytest.raises(ValueError, match="no assistant turn"):
        corpus.build(replace(cambrian(), source=Broken()), place)
    begun = root / "corpora/.building/llava-0123456789ab"
    begun.mkdir()
    held = root / "trainings/metamorph-tiny-0123456789ab"
    (held / "checkpoints/step-000050").mkdir(parents=True)
    (held / "recipe.json").write_text("{}")
    (held / "plan.json").write_text('{"positions": 120, "mixture": []}')
    (held / "metrics.jsonl").write_text('{"step": 61}\n{"step": 62}\n{"step": 6')
    with alone(held / "lock", held.name):
        found = {work.folder.name.split("-")[0]: work for work in status.works(root)}
        assert found["metamorph"].state == "running"
        assert found["metamorph"].told == "step 62 of 120, checkpoint step-000050"
        assert found["metamorph"].who.startswith(f"pid {os.getpid()} on ")
    said = interlace("status", "--root", root, expect=1).stdout
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "finished 1 selection" in lines
    assert "2 finished, 0 running, 2 interrupted, 1 failed" in lines
    assert "interrupted corpus llava-0123456789ab its splits are being planned" in lines
    assert any(line.startswith("interrupted training metamorph-tiny-0123456789ab step 62 of 120") for line in lines)
    (failed,) = [place for place, line in enumerate(lines) if line.startswith("failed corpus cambrian-")]
    assert "of 6 shards" in lines[failed]
    assert lines[failed + 1] == "cambrian_000020007: no assistant turn, so nothing to learn from"
    assert lines[failed + 2] == f"(Broken, row 107 of jsons/{jsonl(place.root.parent / 'data').name})"
    assert lines[failed + 3].startswith("goes on with: cd ")
    shutil.rmtree(root / "corpora/.building")
    interlace("status", "--root", root)
    assert "no folder" in interlace("status", "--root", root / "none", expect=2).stderr


def test_a_lock_file_tells_of_its_holder_and_of_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert last_holder(path) is None
    path.write_text("pid 1 on an older version")
    told = last_holder(path)
    assert told is not None
    assert (told.held, told.who, told.failed) == (False, "pid 1 on an older version", None)
    with pytest.raises(RuntimeError), alone(path, "it"):
        raise RuntimeError("many\nlines")
    told = last_holder(path)
    assert told is not None
    assert (told.held, told.failed) == (False, "many lines")
    with alone(path, "it"):
        told = last_holder(path)
        assert told is not None
        assert (told.held, told.failed) == (True, None)


def test_a_lock_that_gc_removes_meanwhile_is_not_held_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flock, removed = tmp_path / "lock", fcntl.flock, []

    def after_a_removal(stream: Any, how: int) -> None:
        if not removed:  # between opening the file and locking it
            removed.append(path.unlink())
        flock(stream, how)

    monkeypatch.setattr(fcntl, "flock", after_a_removal)
    with alone(path, "it"):
        assert removed
        with pytest.raises(ValueError, match="it is being written by pid"), alone(path, "it"):
            pass


# --- what nothing refers to


def test_gc_names_and_removes_only_what_was_superseded(place: Place, data: Path, interlace: Interlace) -> None:
    first = plan.build(mixture(cambrian()), place)[0]
    change_row(data, 120)
    second = plan.build(mixture(cambrian()), place)[0]
    plan.build(mixture(metaclip()), place)
    before = tree(place.root)
    said = interlace("gc", "--root", place.root).stdout.splitlines()
    assert tree(place.root) == before
    assert said[0].startswith(f"corpora/{first.corpus.name} ") and f"superseded by {second.corpus.name}" in said[0]
    assert first.selection is not None and said[1].startswith(f"selections/{first.selection.name} ")
    assert said[2].startswith("2 unreferenced under ") and "are links to files that stay" in said[2]
    assert said[3] == "nothing was touched: --delete removes them"
    freed = gc.freed(gc.unreferenced(place.root))
    disk = sum({path.lstat().st_ino: path.lstat().st_size for path in place.root.rglob("*") if path.is_file()}.values())
    interlace("gc", "--root", place.root, "--delete")
    left = sum({path.lstat().st_ino: path.lstat().st_size for path in place.root.rglob("*") if path.is_file()}.values())
    assert not first.corpus.exists() and not first.selection.exists()
    assert 0 <= disk - left - freed < 10_000  # locks, and the note of the input
    assert all(problem is None for _, problem in index.verify(second.corpus))
    assert gc.unreferenced(place.root) == []
    assert plan.locate(mixture(cambrian()), place)[0] == second


def test_gc_keeps_what_a_training_was_made_of_and_input_that_is_there_again(place: Place, data: Path) -> None:
    rows, times = jsonl(data).read_bytes(), jsonl(data).stat().st_mtime_ns
    first = plan.build(mixture(cambrian()), place)[0]
    change_row(data, 120)
    plan.build(mixture(cambrian()), place)
    assert first.selection is not None
    run = place.root / "trainings/some-run"
    run.mkdir(parents=True)
    (run / "recipe.json").write_text("{}")
    assert gc.unreferenced(place.root) == []  # it does not say yet what it is made of
    (run / "plan.json").write_text('{"mixture": [{"source": "cambrian"}]}')
    assert gc.unreferenced(place.root) == []  # made before plans named corpora
    named = {"mixture": [], "corpora": [first.corpus.name], "selections": [first.selection.name]}
    (run / "plan.json").write_text(json.dumps(named))
    assert gc.unreferenced(place.root) == []
    (run / "plan.json").write_text(json.dumps({**named, "corpora": [], "selections": []}))
    assert [each.path for each in gc.unreferenced(place.root)] == [first.corpus, first.selection]
    jsonl(data).write_bytes(rows)
    os.utime(jsonl(data), ns=(times, times))
    assert gc.unreferenced(place.root) == []  # a build would find it built


def test_gc_removes_nothing_while_somebody_builds(place: Place, data: Path) -> None:
    corpus.build(cambrian(), place)
    change_row(data, 120)
    corpus.build(cambrian(), place)
    found = gc.unreferenced(place.root)
    assert len(found) == 1
    with alone(place.root / "corpora/.building/metaclip-0.lock", "metaclip-0"):
        with pytest.raises(ValueError, match=r"metaclip-0 is being made by pid \d+ on .*: wait for it"):
            gc.delete(found, place.root)
    assert found[0].path.is_dir()


def test_gc_finishes_what_a_killed_gc_began(place: Place, data: Path) -> None:
    first = corpus.build(cambrian(), place)
    first.rename(first.with_name(f".removed-{first.name}"))
    (found,) = gc.unreferenced(place.root)
    gc.delete([found], place.root)
    assert not found.path.exists()


# --- two corpora compared


def test_diff_tells_added_removed_and_changed_records_and_outcomes(
    place: Place, data: Path, interlace: Interlace, tmp_path: Path
) -> None:
    before = corpus.build(cambrian(), place)
    change_row(data, 120)
    lines = jsonl(data).read_text().splitlines()
    lines[130] = "{broken <script>"
    new = {"id": "new", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
    jsonl(data).write_text("\n".join([*lines, json.dumps(new)]) + "\n")
    after = corpus.build(cambrian(), place)
    found = diff.compare(before, after)
    assert BuiltCorpus(after).keys[found.added[0]] == "cambrian_000060000"
    assert [BuiltCorpus(before).keys[place] for place in found.removed] == ["cambrian_000020030"]
    assert [BuiltCorpus(after).keys[place] for place in found.changed[1]] == ["cambrian_000020020"]
    assert found.same == len(BuiltCorpus(before)) - 2
    assert {pair: count for pair, (count, _) in found.outcomes.items()} == {("kept", "corrupt"): 1}
    assert found.rows == (300, 0, 1)
    said = interlace("diff", before, after, "--page", tmp_path / "page.html", expect=1).stdout
    assert f"records: 1 added, 1 removed, 1 changed, {found.same} the same" in said
    assert "1 kept -> corrupt: jsons/" in said and "row 130, line is not JSON" in said
    assert f"input: jsons/{jsonl(data).name} changed" in said
    tasks = {row["task"]: row for row in diff.tasks(found)}
    assert sum(row["after"] for row in tasks.values()) == len(BuiltCorpus(after))
    assert sum(row["shift"] for row in tasks.values()) == pytest.approx(0)
    page = (tmp_path / "page.html").read_text()
    assert "something else altogether" in page and "http://" not in page and "<script>" not in page
    assert diff.compare(after, before).same == found.same


def test_diff_of_the_same_is_equal_and_of_selections_goes_by_what_they_choose(
    place: Place, interlace: Interlace
) -> None:
    (one,), (other,) = (plan.build(mixture(metaclip(), validation=share), place) for share in (100, 300))
    assert one.selection is not None and other.selection is not None
    assert "the same 100 records" in interlace("diff", one.corpus, one.corpus).stdout
    found = diff.compare(one.selection, other.selection)
    assert len(found.added) == 0 < len(found.removed)
    assert found.same == len(other.open())
    assert list(diff.lines(found))[1].startswith(f"records: 0 added, {len(found.removed)} removed, 0 changed")
    with pytest.raises(ValueError, match="is no built corpus"):
        diff.compare(one.corpus, place.root)
