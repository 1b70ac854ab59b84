"""Curation on a real Ray cluster: measures that survive anything, decisions over a mixture, splits by cluster."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from ray import cloudpickle

from dataflow import curation, measures
from dataflow.balancing import MetaClipBalance, WordNet
from dataflow.curation import Held, Verdicts
from dataflow.fingerprints import Perceptual, Sha256
from dataflow.index import BuiltCorpus
from dataflow.measures import Ready
from dataflow.mixture import Mixture
from dataflow.record import Record
from dataflow.roots import Roots
from dataflow.thresholds import Above
from models.parts import OpenClip
from pipelines import corpus, plan, recipe, report
from pipelines.__main__ import main
from pipelines.curate import curate, measure, select
from pipelines.scores import ClipScore
from pipelines.step import Place, cluster

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests

_skimage = importlib.util.find_spec("skimage")
assert _skimage is not None
assert _skimage.origin is not None
FOLDER = Path(_skimage.origin).parent / "data"
PHOTOGRAPHS = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "hubble_deep_field.jpg")
PHOTOGRAPHS += ("moon.png", "rocket.jpg", "page.png", "ihc.png")
LAB = '''
"""Two corpora of captioned photographs, the second partly edits of the first, and a set that nobody may learn."""

from dataflow.duplicates import Duplicates
from dataflow.leakage import Leakage
from dataflow.mixture import Group, Member, Mixture
from dataflow.selection import Part
from dataflow.sources.captions import Captions
from pipelines.corpus import Corpus


def corpus(name="ours") -> Corpus:
    return Corpus(source=Captions(name=name), rows_per_shard=4)


def mixture() -> Mixture:
    train = Part(part="train", validation=400)
    members = tuple(Member(corpus=corpus(name), select=train) for name in ("ours", "theirs"))
    return Mixture(
        groups=(Group(name="generation", share=1, members=members),),
        curation=(Duplicates(), Leakage(against=(corpus("bench"),), then="drop")),
    )
'''


def photograph(name: str, *, width: int = 200, quality: int = 95) -> bytes:
    image = Image.open(FOLDER / name).convert("RGB")
    image = image.resize((width, width * image.height // image.width))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write(folder: Path, rows: Sequence[tuple[str, bytes]]) -> None:
    """Captioned pictures as img2dataset leaves them."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, (caption, picture) in enumerate(rows):
            for extension, content in (("jpg", picture), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:05d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (folder / "00000_stats.json").write_text("{}")


@dataclass(frozen=True)
class Lab:
    """A recipe file, its data, and where it is built."""

    file: Path
    place: Place

    @property
    def mixture(self) -> Mixture:
        return recipe.load(f"{self.file}:mixture")

    def built(self, name: str) -> BuiltCorpus:
        made = recipe.load(f"{self.file}:corpus(name={name!r})")
        return BuiltCorpus(corpus.build(made, self.place))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """10 photographs; 4 of them smaller, the others with other captions; one of them in the set. One Ray cluster."""
    folder = tmp_path_factory.mktemp("lab")
    write(folder / "data/ours", [(f"this is {name}", photograph(name)) for name in PHOTOGRAPHS])
    edits = [(f"this is {name}", photograph(name, width=120, quality=40)) for name in PHOTOGRAPHS[:4]]
    again = [(f"once more {name}", photograph(name, width=150)) for name in PHOTOGRAPHS[4:]]
    write(folder / "data/theirs", [*edits, *again, ("a motorcycle", photograph("motorcycle_left.png"))])
    write(
        folder / "data/bench", [("what is it?", photograph("moon.png", width=90)), ("a cell", photograph("cell.png"))]
    )
    (folder / "lab.py").write_text(LAB)
    place = Place(root=folder / "runs", roots=Roots.parse([str(folder / "data")]), workers=2)
    with cluster(place):
        yield Lab(file=folder / "lab.py", place=place)


def run(*words: str | Path) -> int:
    """The command, in this process and so on the module's cluster."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    signal.signal(signal.SIGTERM, before)
    assert isinstance(ended.value.code, int)
    return ended.value.code


# --- a mixture


def test_building_a_mixture_says_what_its_curation_did(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("build", f"{lab.file}:mixture", "--data", lab.file.parent / "data", "--root", lab.place.root)
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "bench-" in said  # what it is compared with is built too
    assert ": Duplicates: 4 of 21 records taken out (" in said
    assert "  4 out: picture 0 is a twin of ours_000000000, " in said
    assert "  clusters of several 10, records in them 20, largest 2, its name ours_000000000, " in said
    assert ": Leakage: 2 of 17 records taken out (" in said
    assert "  2 out: bench: picture 0 is " in said
    assert "  set bench, records 2, found 1, in records of the mixture 2, by picture 2, by words 0" in said
    folders = sorted((lab.place.root / "measures").iterdir())
    assert run(*words) == 0
    assert "taken out" not in capsys.readouterr().out  # nothing was decided anew
    assert sorted((lab.place.root / "measures").iterdir()) == folders


def ledger(lab: Lab, kind: str) -> tuple[dict[str, Any], pa.Table]:
    """The manifest and the verdicts of the newest curation of this kind."""
    found = []
    for folder in (lab.place.root / "selections").iterdir():
        if (folder / "verdicts.parquet").is_file():
            manifest = curation.read_manifest(folder)
            if manifest["step"]["curation"]["is"] == kind:
                found.append((manifest, pq.read_table(folder / "verdicts.parquet")))
    (only,) = found
    return only


def test_every_record_has_a_verdict_and_the_counts_add_up(lab: Lab) -> None:
    plan.build(lab.mixture, lab.place)
    for kind in ("dataflow.duplicates:Duplicates", "dataflow.leakage:Leakage"):
        manifest, table = ledger(lab, kind)
        assert table.num_rows == 21
        for name, counts in manifest["counts"].items():
            rows = table.filter(pa.array(np.array(table["corpus"].to_pylist()) == name)).to_pylist()
            corpus = BuiltCorpus(lab.place.root / "corpora" / name)
            assert [row["key"] for row in rows] == corpus.keys
            assert [row["row"] for row in rows] == list(range(len(corpus)))
            assert counts["records"] == len(rows)
            assert counts["used"] == sum(row["used"] for row in rows) == counts["before"] - counts["taken_out"]
            said = [row for row in rows if row["reason"] and not row["used"]]
            assert counts["taken_out"] == len(said)
        assert sum(reason["records"] for reason in manifest["reasons"]) == sum(
            bool(r) for r in table["reason"].to_pylist()
        )


def test_members_offer_what_the_curation_left_and_parts_share_no_picture(lab: Lab) -> None:
    train = [opened.open() for opened in plan.build(lab.mixture, lab.place)]
    validation = [opened.open() for opened in plan.held_out(lab.mixture, lab.place)]
    offered = [key for corpus in (*train, *validation) for key in corpus.keys]
    assert len(offered) == len(set(offered))
    whole = replace(lab.mixture, groups=tuple(_whole(group) for group in lab.mixture.groups))
    every = [key for opened in plan.locate(whole, lab.place) for key in opened.open().keys]
    assert len(every) == 15
    assert {f"theirs_{place:05d}{row:04d}" for place, row in ((0, 0), (0, 1), (0, 2), (0, 3))}.isdisjoint(every)
    names = dict(
        zip(*(ledger(lab, "dataflow.leakage:Leakage")[1][name].to_pylist() for name in ("key", "cluster")), strict=True)
    )
    parts = [{names[key] for corpus in part for key in corpus.keys} for part in (train, validation)]
    assert not parts[0] & parts[1]
    assert len(train[0]) < 9 > len(validation[0])


def _whole(group: Any) -> Any:
    return replace(group, members=tuple(replace(member, select=None) for member in group.members))


def test_a_cluster_is_drawn_together_in_both_corpora(lab: Lab) -> None:
    """The six photographs with two captions each are in one part in `ours` and in `theirs`."""
    train = [opened.open() for opened in plan.build(lab.mixture, lab.place)]
    table = ledger(lab, "dataflow.leakage:Leakage")[1].to_pylist()
    drawn = {key for corpus in train for key in corpus.keys}
    pairs = [
        (one["key"] in drawn, other["key"] in drawn)
        for one in table
        for other in table
        if one["cluster"] == other["cluster"] and one["key"] < other["key"] and one["used"] and other["used"]
    ]
    assert len(pairs) == 5  # six, and the moon leaked
    assert all(one == other for one, other in pairs)


def test_a_gate_told_to_stop_ends_the_build_in_one_line_and_leaves_no_decision(lab: Lab) -> None:
    plan.build(lab.mixture, lab.place)
    first, gate = lab.mixture.curation
    before = sorted((lab.place.root / "selections").glob("*/manifest.json"))
    strict = replace(lab.mixture, curation=(first, replace(gate, then="stop")))
    with pytest.raises(
        ValueError, match=r"2 records of the mixture hold what is in bench \(1 of its 2 records"
    ) as told:
        plan.build(strict, lab.place)
    assert "\n" not in str(told.value)
    assert sorted((lab.place.root / "selections").glob("*/manifest.json")) == before


def test_another_threshold_is_another_decision_and_measures_nothing(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.build(lab.mixture, lab.place)
    capsys.readouterr()
    plan.locate(recipe.override(lab.mixture, ["curation.0.distance=0"]), lab.place)
    said = capsys.readouterr().out
    assert "Duplicates: " in said
    assert "measured" not in said


def test_show_and_check_speak_of_the_sets_that_it_is_compared_with(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("show", f"{lab.file}:mixture") == 0
    assert '"bench": ' in capsys.readouterr().out
    assert run("check", f"{lab.file}:mixture", "--data", lab.file.parent / "data") == 0
    assert "bench: 2 rows read: 2 kept" in capsys.readouterr().out


def test_the_report_page_shows_each_decision_with_records_it_speaks_of(lab: Lab, tmp_path: Path) -> None:
    plan.build(lab.mixture, lab.place)
    folders = [path.parent for path in (lab.place.root / "selections").glob("*/verdicts.parquet")]
    page = report.write(tmp_path / "page.html", folders).read_text()
    assert "picture 0 is a twin of ours_000000000" in page
    assert "records taken out by Duplicates (" in page and "dataflow." not in page
    assert "<td>bench</td><td>2</td><td>1</td><td>2</td><td>2</td><td>0</td>" in page
    assert "theirs_000000000, out: picture 0 is a twin of ours_000000000" in page


@pytest.mark.parametrize(
    ("curation", "told"),
    [
        (MetaClipBalance(entries=WordNet(folder="/no/wordnet")), "/no/wordnet/data.noun: no entries there"),
        (
            Above(measure=ClipScore(weights=OpenClip(model="local-dir:/no/clip")), column="score", at_least=0.3),
            "/no/clip",
        ),
    ],
)
def test_what_a_curation_lacks_is_known_before_anything_is_built(
    curation: Any, told: str, lab: Lab, tmp_path: Path
) -> None:
    place = replace(lab.place, root=tmp_path / "runs")
    with pytest.raises(ValueError, match=told):
        plan.build(replace(lab.mixture, curation=(*lab.mixture.curation, curation)), place)
    assert not place.root.exists()
    with pytest.raises(ValueError, match=told):  # built, so the next thing would be to measure
        plan.build(replace(lab.mixture, curation=(curation,)), lab.place)


# --- measures


@dataclass(frozen=True, kw_only=True)
class Length:
    """Characters of each record; what `trouble` names happens over the record of that key, once."""

    marks: str = ""  # a folder that remembers what happened, and who was measured
    trouble: str = ""
    at: str = ""
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()
    gpus: ClassVar[float] = 0

    @property
    def name(self) -> str:
        return "length"

    @property
    def columns(self) -> pa.Schema:
        return pa.schema([("length", pa.int64())])

    def ready(self) -> Ready:
        return lambda records: {"length": [self._of(record) for record in records]}

    def _of(self, record: Record) -> int:
        mark = Path(self.marks) / self.trouble
        if record.key == self.at and not mark.exists():
            mark.touch()
            if self.trouble == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("the disk is full")
        if self.marks:
            with (Path(self.marks) / f"measured-{record.key}").open("a") as stream:
                stream.write("x")
        return record.text_length


def expected(corpus: BuiltCorpus) -> list[int]:
    return [corpus.record(place).text_length for place in range(len(corpus))]


def test_a_worker_killed_over_a_record_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    ours = lab.built("ours")
    folder = measure(Length(marks=str(tmp_path), trouble="killed", at=ours.keys[5]), ours, lab.place)
    assert (tmp_path / "killed").exists()
    assert measures.read(folder)["length"].to_pylist() == expected(ours)
    assert [path.name for path in sorted(folder.iterdir())] == ["manifest.json", "measure.parquet"]


def test_a_measure_goes_on_from_the_shards_that_are_there(lab: Lab, tmp_path: Path) -> None:
    ours = lab.built("ours")
    rule = Length(marks=str(tmp_path), trouble="failed", at=ours.keys[-1])
    with pytest.raises(ValueError, match="the disk is full"):
        measure(rule, ours, lab.place)
    (folder,) = {path.parent for path in (lab.place.root / "measures").glob("length-*/.0*.parquet")}
    done = [
        key
        for shard, key in zip(ours.table["shard"].to_pylist(), ours.keys, strict=True)
        if measures.part_path(folder, shard).is_file()
    ]
    assert 0 < len(done) < len(ours)
    assert measure(rule, ours, lab.place) == folder
    assert measures.read(folder)["length"].to_pylist() == expected(ours)
    assert all((tmp_path / f"measured-{key}").read_text() == "x" for key in done)


def test_a_measure_is_the_same_bytes_from_many_workers_and_from_one_process(lab: Lab, tmp_path: Path) -> None:
    ours = lab.built("ours")
    for rule in (Sha256(), Perceptual()):
        folder = measure(rule, ours, lab.place)
        alone, ready = tmp_path / rule.name, rule.ready()
        alone.mkdir()
        for shard in reversed(range(len(ours.manifest["shards"]))):
            measures.write_part(alone, shard, ours, rule, ready)
        measures.commit(alone, ours, rule, step={})
        assert (alone / "measure.parquet").read_bytes() == (folder / "measure.parquet").read_bytes()


def test_another_version_of_a_library_is_another_measure(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Length, "libraries", ("eyeglass",))
    folders = []
    for version in ("1.0", "1.1", "1.0"):
        for old in tmp_path.glob("*.dist-info/METADATA"):
            old.unlink()
            old.parent.rmdir()
        (tmp_path / f"eyeglass-{version}.dist-info").mkdir()
        (tmp_path / f"eyeglass-{version}.dist-info/METADATA").write_text(f"Name: eyeglass\nVersion: {version}\n")
        folders.append(measure(Length(), lab.built("theirs"), lab.place))
    assert folders[0] == folders[2] != folders[1]
    monkeypatch.setattr(Length, "libraries", ())
    monkeypatch.setattr(Length, "version", 2)
    assert measure(Length(), lab.built("theirs"), lab.place) not in folders


@dataclass(frozen=True, kw_only=True)
class TooFew(Length):
    """Answers for all records but one."""

    @property
    def name(self) -> str:
        return "too_few"

    def ready(self) -> Ready:
        return lambda records: {"length": [1] * (len(records) - 1)}


def test_a_measure_that_does_not_answer_for_every_record_is_refused(lab: Lab) -> None:
    with pytest.raises(ValueError, match=r"too_few gave \{'length': 1\} for 2 records: one value of each column"):
        measure(TooFew(), lab.built("bench"), lab.place)


def test_a_damaged_measure_is_refused(lab: Lab) -> None:
    folder = measure(Length(marks=""), lab.built("bench"), lab.place)
    (folder / "measure.parquet").write_bytes(b"?")
    with pytest.raises(ValueError, match=r"measure\.parquet changed since it was written: remove the folder"):
        measures.read(folder)


# --- curations


@dataclass(frozen=True, kw_only=True)
class Revive:
    """Puts everything back into use, or answers for too few."""

    short: int = 0
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    @property
    def measures(self) -> tuple[Any, ...]:
        return ()

    def __call__(self, held: Sequence[Held]) -> Sequence[Verdicts]:
        return [replace(curation.unmoved(one), used=np.ones(len(one.used) - self.short, bool)) for one in held]


@dataclass(frozen=True, kw_only=True)
class Odd(Revive):
    """Takes every other record out."""

    def __call__(self, held: Sequence[Held]) -> Sequence[Verdicts]:
        made = []
        for one in held:
            used = one.used & (np.arange(len(one.used)) % 2 == 1)
            said = np.where(one.used & ~used, "even", "")
            made.append(Verdicts(used=used, reasons=pa.array(said.tolist()), clusters=one.clusters))
        return made


def test_a_curation_that_brings_records_back_is_caught_by_name(lab: Lab) -> None:
    bench = lab.built("bench")
    with pytest.raises(ValueError, match=r"Revive brings 1 records of bench back, bench_000000000 first"):
        curate((Odd(), Revive()), [bench], lab.place)
    (verdicts,) = curate((Odd(), Odd()), [bench], lab.place)
    assert verdicts.used.tolist() == [False, True]


def test_a_curation_answers_for_every_record(lab: Lab) -> None:
    with pytest.raises(ValueError, match=r"Revive gave \[1, 2\] verdicts on 2 records of bench: one for each"):
        curate((Revive(short=1),), [lab.built("bench")], lab.place)


def test_the_order_of_curations_and_of_corpora_is_part_of_the_decision(lab: Lab) -> None:
    first = lab.mixture.curation[0]
    opened = [lab.built("ours"), lab.built("theirs")]
    (ours, theirs), (theirs_first, ours_last) = (
        curate((first,), opened, lab.place),
        curate((first,), opened[::-1], lab.place),
    )
    assert ours.used.all()
    assert theirs.used.tolist() == [False] * 4 + [True] * 7
    assert theirs_first.used.all()
    assert ours_last.used.tolist() == [False] * 4 + [True] * 6


def test_a_selection_of_other_clusters_is_another_selection(lab: Lab) -> None:
    bench = lab.built("bench")
    rule = recipe.load(f"{lab.file}:mixture").members[0].select
    alone = Verdicts(used=np.ones(2, bool), reasons=pa.repeat("", 2), clusters=pa.array(bench.keys))
    together = replace(alone, clusters=pa.repeat(bench.keys[0], 2))
    assert select(rule, bench, lab.place, alone) != select(rule, bench, lab.place, together)
