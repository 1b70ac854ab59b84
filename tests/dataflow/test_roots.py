"""Declared folders, and which paths of a row are followed. Every path in a corpus is untrusted."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from dataflow import roots as roots_module
from dataflow.media import Corrupt, Missing
from dataflow.roots import MAX_BYTES, Roots


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """data/{cambrian,metaclip}, and beside it a folder that nobody declared."""
    for place in ("data/cambrian/coco/1.jpg", "data/metaclip/2.jpg", "shared/train2017/3.jpg", "secret/4.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(place.encode())
    return tmp_path / "data"


@pytest.fixture
def roots(data: Path) -> Roots:
    return Roots(base=data, named={"shared": data.parent / "shared"})


def test_one_folder_for_all_sources_and_named_ones_are_told_apart(data: Path) -> None:
    roots = Roots.parse([str(data), f"coco={data.parent}/shared"])
    assert roots.base == data
    assert roots.named == {"coco": data.parent / "shared"}
    assert roots.source("cambrian") == data / "cambrian"
    assert roots.source("coco") == data.parent / "shared"


def test_a_named_folder_comes_before_the_one_of_all_sources(data: Path) -> None:
    assert Roots.parse([str(data), f"cambrian={data}/metaclip"]).source("cambrian") == data / "metaclip"


def test_a_folder_may_have_an_equals_sign_in_its_name(data: Path) -> None:
    odd = data / "a=b"
    odd.mkdir()
    assert Roots.parse([str(odd)]).base == odd
    assert Roots.parse([f"name={odd}"]).named == {"name": odd}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["{}/nowhere"], "--data .*/nowhere: no folder .*/nowhere; give an existing one"),
        (["a={}", "a={}"], "a is already .*; give each name once"),
        (["{}", "{}/cambrian"], "the folder of all sources is already .*; use NAME=DIR"),
        ([""], "--data '': give DIR or NAME=DIR, neither of them empty"),
        (["cambrian="], "--data 'cambrian=': give DIR or NAME=DIR"),  # an unset shell variable, not the present folder
        (["=/tmp"], "--data '=/tmp': give DIR or NAME=DIR"),
        (["~nobody-of-this-name/x"], "an unknown ~user"),
    ],
)
def test_a_data_flag_that_cannot_be_meant_is_refused(data: Path, values: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Roots.parse([value.format(data) for value in values])


def test_a_source_without_a_folder_says_which_flag_gives_it_one(data: Path) -> None:
    with pytest.raises(ValueError, match=r"where is cambrian\? give --data DIR .* or --data cambrian=DIR"):
        Roots().source("cambrian")
    with pytest.raises(ValueError, match=r"no folder .*/nothing: put nothing there or give --data nothing=DIR"):
        Roots(base=data).source("nothing")


@pytest.mark.parametrize(
    ("path", "ends_at"),
    [
        ("coco/1.jpg", "data/cambrian/coco/1.jpg"),
        ("./coco//1.jpg", "data/cambrian/coco/1.jpg"),
        ("coco/../coco/1.jpg", "data/cambrian/coco/1.jpg"),
        ("../metaclip/2.jpg", "data/metaclip/2.jpg"),  # all of the declared folder is
        ("shared/train2017/3.jpg", "shared/train2017/3.jpg"),
        ("./shared/train2017/3.jpg", "shared/train2017/3.jpg"),
    ],
)
def test_a_path_that_ends_inside_is_followed(roots: Roots, data: Path, path: str, ends_at: str) -> None:
    assert roots.files("cambrian")(path) == ends_at.encode()
    assert roots.find("cambrian", path) == data.parent / ends_at


def test_absolute_paths_are_followed_when_they_end_inside(roots: Roots, data: Path) -> None:
    assert roots.files("cambrian")(f"{data}/metaclip/2.jpg") == b"data/metaclip/2.jpg"
    assert roots.files("cambrian")(f"{data.parent}/shared/train2017/3.jpg") == b"shared/train2017/3.jpg"


def test_links_are_followed_when_they_end_inside(roots: Roots, data: Path) -> None:
    (data / "cambrian/link").symlink_to(data.parent / "shared/train2017")
    (data / "cambrian/one.jpg").symlink_to("../metaclip/2.jpg")
    assert roots.files("cambrian")("link/3.jpg") == b"shared/train2017/3.jpg"
    assert roots.files("cambrian")("one.jpg") == b"data/metaclip/2.jpg"


def test_a_declared_folder_may_itself_be_a_link(data: Path) -> None:
    (data.parent / "link").symlink_to(data)
    for roots in (Roots.parse([str(data.parent / "link")]), Roots(base=data.parent / "link")):
        assert roots.files("cambrian")("coco/1.jpg") == b"data/cambrian/coco/1.jpg"


@pytest.mark.parametrize(
    "path", ["../../secret/4.jpg", "coco/../../../secret/4.jpg", "shared/../secret/4.jpg", "/etc/passwd", "../..", "/"]
)
def test_a_path_that_leaves_by_dots_or_from_the_root_is_refused(roots: Roots, path: str) -> None:
    with pytest.raises(Corrupt, match="leaves the declared folders: admit it by --data NAME="):
        roots.files("cambrian")(path)


def test_an_absolute_path_is_told_the_flag_that_would_admit_it(roots: Roots, data: Path) -> None:
    with pytest.raises(Corrupt) as problem:
        roots.find("cambrian", f"{data.parent}/secret/4.jpg")
    assert str(problem.value).endswith(f"admit it by --data NAME={data.parent}/secret")
    admitted = Roots(base=data, named={"NAME": data.parent / "secret"})
    assert admitted.files("cambrian")(f"{data.parent}/secret/4.jpg") == b"secret/4.jpg"


def test_links_out_of_the_declared_folders_are_refused(roots: Roots, data: Path) -> None:
    (data / "cambrian/file.jpg").symlink_to(data.parent / "secret/4.jpg")
    (data / "cambrian/folder").symlink_to("../../secret")
    (data / "cambrian/chain").symlink_to("folder")
    for path in ("file.jpg", "folder/4.jpg", "chain/4.jpg", "folder/../secret/4.jpg"):
        with pytest.raises(Corrupt, match="leaves the declared folders"):
            roots.files("cambrian")(path)


def test_a_folder_whose_name_begins_like_a_declared_one_is_outside(data: Path) -> None:
    (data.parent / "data-private").mkdir()
    (data.parent / "data-private/5.jpg").write_bytes(b"")
    with pytest.raises(Corrupt, match="leaves the declared folders"):
        Roots(base=data).find("cambrian", "../../data-private/5.jpg")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("coco/9.jpg", "file 'coco/9.jpg' is not there"),
        ("coco/1.jpg/more", "is not there"),
        ("coco", "'coco' is no file"),
        ("pipe", "'pipe' is no file"),
        ("..", "'..' is no file"),
        ("", "path '' is no path"),
        ("  ", "is no path"),
        ("a\0b", r"path 'a\\x00b' is no path"),
        ("half \ud83d.jpg", r"path 'half \\ud83d.jpg' is no path"),
        ("circle", "cannot be followed: Too many levels of symbolic links"),
        ("x" * 5000, "cannot be followed: File name too long"),
        ("line\nend.jpg", r"file 'line\\nend.jpg' is not there"),
    ],
)
def test_what_is_no_file_is_named_in_one_short_printable_line(roots: Roots, data: Path, path: str, says: str) -> None:
    os.mkfifo(data / "cambrian/pipe")
    (data / "cambrian/circle").symlink_to("circle")
    with pytest.raises(Corrupt, match=says) as problem:
        roots.files("cambrian")(path)
    assert str(problem.value).isprintable()
    assert len(str(problem.value)) < 400


def test_a_reason_does_not_change_when_the_data_is_moved(data: Path) -> None:
    (data / "cambrian/out").symlink_to("../../secret")
    shutil.copytree(data.parent, data.parent.parent / "elsewhere", symlinks=True)

    def reasons(base: Path) -> list[str]:
        roots, told = Roots(base=base), []
        for path in ("coco/9.jpg", "../../secret/4.jpg", "out/4.jpg", "/etc/passwd"):
            with pytest.raises(Corrupt) as problem:
                roots.find("cambrian", path)
            told.append(str(problem.value))
        return told

    assert reasons(data) == reasons(data.parent.parent / "elsewhere/data")


def test_a_row_cannot_make_us_read_a_huge_file(roots: Roots, data: Path) -> None:
    with (data / "cambrian/all.jsonl").open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)  # sparse: takes no disk
    with pytest.raises(Corrupt, match=f"is {MAX_BYTES + 1} bytes, over {MAX_BYTES}"):
        roots.files("cambrian")("all.jsonl")


# --- what else a row may read


def zipped(path: Path, *members: tuple[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)


def test_a_folder_s_plain_files_are_named_in_order(roots: Roots, data: Path) -> None:
    frames = data / "cambrian/frames/-x_1"
    (frames / "deeper").mkdir(parents=True)
    for name in ("c01_0002.jpeg", "c01_0001.jpeg", ".c01_0003.jpeg"):
        (frames / name).write_bytes(b"")
    files = roots.files("cambrian")
    assert files.names("frames/-x_1") == ["c01_0001.jpeg", "c01_0002.jpeg"]
    with pytest.raises(Missing, match="file 'frames/gone' is not there"):
        files.names("frames/gone")
    with pytest.raises(Corrupt, match=r"'one.jpg' is no folder"):
        (data / "cambrian/one.jpg").write_bytes(b"")
        files.names("one.jpg")
    with pytest.raises(Corrupt, match="leaves the declared folders"):
        files.names("../../secret")


def test_a_stream_seeks_and_follows_the_same_rules(roots: Roots) -> None:
    with roots.files("cambrian").open("coco/1.jpg") as stream:
        assert stream.seek(5) == 5
        assert stream.read(5) == b"cambr"
    with pytest.raises(Corrupt, match="leaves the declared folders"):
        roots.files("cambrian").open("../../secret/4.jpg")


def test_a_zip_member_is_read_by_its_name_and_never_leaves_its_archive(roots: Roots, data: Path) -> None:
    zipped(data / "cambrian/a.zip", ("panda/x.mp4", b"clip"), ("../../secret/9.jpg", b"inside"))
    files = roots.files("cambrian")
    assert files.member("a.zip", "panda/x.mp4") == b"clip"
    assert files.member("a.zip", "../../secret/9.jpg") == b"inside"  # a name in the archive, no path on the disk
    with pytest.raises(Missing, match=re.escape("member 'y.mp4' of 'a.zip' is not there")):
        files.member("a.zip", "y.mp4")
    with pytest.raises(Missing, match=r"file 'b.zip' is not there"):
        files.member("b.zip", "y.mp4")


def test_zip_bombs_and_broken_zips_are_named(roots: Roots, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots_module, "MAX_BYTES", 1 << 20)
    zipped(data / "cambrian/bomb.zip", ("x.mp4", bytes(2 << 20)))
    whole = (data / "cambrian/bomb.zip").read_bytes()
    (data / "cambrian/cut.zip").write_bytes(whole[:-40])
    damaged = bytearray(whole)
    damaged[60] ^= 0xFF
    (data / "cambrian/damaged.zip").write_bytes(damaged)
    files = roots.files("cambrian")
    with pytest.raises(Corrupt, match=re.escape("member 'x.mp4' of 'bomb.zip' is over 1048576 bytes when unpacked")):
        files.member("bomb.zip", "x.mp4")
    with pytest.raises(Corrupt, match=r"archive 'cut.zip' does not open: File is not a zip file"):
        files.member("cut.zip", "x.mp4")
    with pytest.raises(Corrupt, match=r"of 'damaged.zip' (does not read|is over)"):
        files.member("damaged.zip", "x.mp4")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_whose_unpacking_nothing_bounds_is_refused(roots: Roots, data: Path, method: int) -> None:
    with zipfile.ZipFile(data / "cambrian/a.zip", "w", method) as archive:
        archive.writestr("x.mp4", bytes(1 << 20))
    with pytest.raises(Corrupt, match=r"packed by other means than deflate: pack the archive anew"):
        roots.files("cambrian").member("a.zip", "x.mp4")


def test_few_archives_are_open_at_a_time(roots: Roots, data: Path) -> None:
    for number in range(40):
        zipped(data / f"cambrian/{number}.zip", ("x.mp4", b"%d" % number))
    files = roots.files("cambrian")
    for number in (*range(40), 0):
        assert files.member(f"{number}.zip", "x.mp4") == b"%d" % number
    assert len(files._archives) <= 16


def test_a_link_in_circles_in_a_folder_of_frames_stops_nothing(roots: Roots, data: Path) -> None:
    (data / "cambrian/frames").mkdir()
    (data / "cambrian/frames/b.jpg").symlink_to(data / "cambrian/frames/b.jpg")
    (data / "cambrian/frames/a.jpg").write_bytes(b"")
    assert roots.files("cambrian").names("frames") == ["a.jpg"]
