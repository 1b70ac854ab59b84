"""Foreign tars as shards: not copied, read by their source, verified, and refused when they break the rules."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import here
import pytest
from upstream import Build, file, jpeg, metaclip_json, photo, tar
from webdataset import compat

from dataflow import adopt, index, readers
from dataflow.index import BuiltCorpus
from dataflow.media import Corrupt
from dataflow.record import Lineage
from dataflow.roots import Roots
from dataflow.sources.metaclip import MetaClip

STEP = {"shards": "adopted", "source": {"is": "dataflow.sources.metaclip:MetaClip", "name": "metaclip"}}


def pairs(count: int, *, first: int = 0) -> list[tuple[str, bytes]]:
    members = []
    for number in range(first, first + count):
        uuid, fields = metaclip_json(f"http://example.com/{number}.jpg", f"a cat {number}", f"cat {number}, 猫")
        members += [(f"{uuid}.jpeg", jpeg(64 + number, 48)), (f"{uuid}.json", fields)]
    return members


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tars of MetaCLIP: four pairs of which one has no text and one a palette picture, and three pairs."""
    folder = tmp_path / "data/metaclip"
    (folder / "0").mkdir(parents=True)
    odd = [metaclip_json(f"http://example.com/{name}.png", *texts) for name, texts in (("no", ()), ("pal", ("cat",)))]
    palette = file(photo().quantize(16), "PNG")
    members = [*pairs(2), (f"{odd[0][0]}.jpeg", jpeg()), (f"{odd[0][0]}.json", odd[0][1])]
    members += [(f"{odd[1][0]}.jpeg", palette), (f"{odd[1][0]}.json", odd[1][1])]
    (folder / "0/0.tar").write_bytes(tar(*members))
    (folder / "0/100.tar").write_bytes(tar(*pairs(3, first=10)))
    return tmp_path / "data"


def adopted(data: Path, folder: Path) -> BuiltCorpus:
    step = {**STEP, "source": {**STEP["source"], "version": MetaClip.version}}  # type: ignore[dict-item]
    return here.build(MetaClip(), Roots(base=data), folder, adopted=True, step=step)


def test_an_adopted_corpus_holds_the_records_that_a_built_one_does(data: Path, tmp_path: Path, build: Build) -> None:
    corpus = adopted(data, tmp_path / "adopted")
    built = build(MetaClip(), rows=10_000)
    assert [corpus.record(place) for place in range(len(corpus))] == [
        built.record(place) for place in range(len(built))
    ]
    assert len(corpus) == 6
    assert corpus.manifest["counts"] == built.manifest["counts"]
    assert corpus.record(2).media[0].extension == "png"  # the palette picture, made RGB as ever
    assert corpus.record(5).lineage == Lineage(file="0/100.tar", row=2)


def test_no_media_are_copied_and_webdataset_reads_the_links(data: Path, tmp_path: Path) -> None:
    folder = adopted(data, tmp_path / "adopted").folder
    assert not (folder / ".nv-meta").exists()  # Energon would find samples there, and not our records
    assert (folder / "00000.tar").is_symlink()
    assert (folder / "00000.tar").resolve() == data / "metaclip/0/0.tar"
    urls = [str(folder / name) for name in ("00000.tar", "00001.tar")]
    assert sum(1 for _ in compat.WebDataset(urls, shardshuffle=False)) == 7


def test_the_idx_cuts_every_sample(data: Path, tmp_path: Path) -> None:
    folder = adopted(data, tmp_path / "adopted").folder
    offsets = memoryview((folder / "00000.tar.idx").read_bytes()).cast("Q").tolist()
    whole = (folder / "00000.tar").read_bytes()
    assert len(offsets) == 5
    for first, end in itertools.pairwise(offsets):
        assert len(list(compat.WebDataset([_piece(tmp_path, whole[first:end])], shardshuffle=False))) == 1


def _piece(folder: Path, data: bytes) -> str:
    (folder / "piece.tar").write_bytes(data + bytes(1024))
    return str(folder / "piece.tar")


def test_verify_sees_what_happens_to_the_tar(data: Path, tmp_path: Path) -> None:
    folder = adopted(data, tmp_path / "adopted").folder
    assert not [problem for _, problem in index.verify(folder) if problem]
    path = data / "metaclip/0/100.tar"
    whole = bytearray(path.read_bytes())
    whole[600] ^= 1
    path.write_bytes(whole)
    assert [name for name, problem in index.verify(folder) if problem] == ["00001.tar"]
    path.unlink()
    assert dict(index.verify(folder))["00001.tar"] == "is missing"
    with pytest.raises(OSError, match=r"record metaclip_000010000 cannot be read from .*: run interlace verify"):
        BuiltCorpus(folder).record(3)


def test_a_tar_that_is_cut_off_or_empty_is_not_adopted(tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(tar(*pairs(3))[:9000])
    with pytest.raises(
        ValueError, match=r"cut.tar cannot be adopted: archive is cut off or broken.*; leave it out, or"
    ):
        adopt.plan(Roots(named={"metaclip": tmp_path}), "cut.tar", MetaClip())
    (tmp_path / "empty.tar").write_bytes(tar())
    with pytest.raises(ValueError, match=r"empty.tar cannot be adopted: it must hold 1 to 10000 samples"):
        adopt.plan(Roots(named={"metaclip": tmp_path}), "empty.tar", MetaClip())
    with pytest.raises(
        ValueError, match=r"rows.jsonl: only tars are adopted; build this corpus without shards=adopted"
    ):
        adopt.plan(Roots(named={"metaclip": tmp_path}), "rows.jsonl", MetaClip())


def test_a_tar_of_too_many_samples_is_not_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopt, "MOST", 2)
    (tmp_path / "a.tar").write_bytes(tar(*pairs(3)))
    with pytest.raises(ValueError, match=r"it must hold 1 to 2 samples"):
        adopt.plan(Roots(named={"metaclip": tmp_path}), "a.tar", MetaClip())


def test_the_source_of_an_adopted_corpus_must_be_the_one_it_was() -> None:
    made = adopt.source({"is": "dataflow.sources.metaclip:MetaClip", "version": MetaClip.version, "name": "x"})
    assert made == MetaClip(name="x")
    with pytest.raises(ValueError, match=r"was version 99, this code has"):
        adopt.source({"is": "dataflow.sources.metaclip:MetaClip", "version": 99})
    with pytest.raises(ValueError, match=r"is no source of dataflow.sources"):
        adopt.source({"is": "os:system", "version": 1})
    with pytest.raises(ValueError, match=r"cannot be made again"):
        adopt.source({"is": "dataflow.sources.metaclip:Gone", "version": 1})


def test_a_source_from_elsewhere_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Mine(MetaClip):
        pass

    (tmp_path / "a.tar").write_bytes(tar(*pairs(3)))
    with pytest.raises(ValueError, match=r"test_adopt:.*Mine is no source of dataflow.sources.*without shards=adopted"):
        adopt.plan(Roots(named={"metaclip": tmp_path}), "a.tar", Mine())


def test_pictures_that_another_library_would_encode_otherwise_are_told(data: Path, tmp_path: Path) -> None:
    folder = adopted(data, tmp_path / "adopted").folder
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "encoder": "Pillow 1.0, png level 6"}))
    with pytest.raises(ValueError, match=r"was adopted with Pillow 1\.0, png level 6, this is Pillow .*: build"):
        BuiltCorpus(folder)


def test_bytes_that_are_another_sample_are_refused() -> None:
    other = tar(("a.jpeg", jpeg()), end=False)
    with pytest.raises(Corrupt, match=r"sample has members \['jpeg'\], needs jpeg and json"):
        adopt.read(other, "metaclip_000000000", Lineage(file="a", row=0), MetaClip())
    with pytest.raises(ValueError, match=r"archive ends inside member 'a.jpeg'"):
        adopt.read(other[:900], "metaclip_000000000", Lineage(file="a", row=0), MetaClip())


def test_a_sample_s_span_reads_as_it_does_in_its_tar(data: Path) -> None:
    home = data / "metaclip"
    last = None
    for split in readers.splits(home, "0/0.tar", 1):
        whole = (home / "0/0.tar").read_bytes()[split.offset : split.end]
        alone = readers.Split(file="0/0.tar", first=split.first, rows=1, offset=0, end=len(whole))
        (last,) = readers.rows(home, split)[1]
        assert list(readers.samples(io.BytesIO(whole), alone, len(whole))) == [last]
    assert last and json.loads(last.value["json"])["texts"] == [["alt", "cat"]]
