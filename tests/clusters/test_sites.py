"""Sites: what a TOML file may say, and that what it may not is refused by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from clusters import network, sites
from clusters.job import Job, Site
from clusters.local import Local


@dataclass(frozen=True, kw_only=True)
class Everything(Local):
    """A kind with a field of every type that a site can say."""

    kind: ClassVar[str] = "everything"

    image: Path | None = None
    retries: int = 1
    exclusive: bool = False
    share: float = 0.5
    how: Literal["one", "two"] = "one"
    mounts: tuple[str, ...] = ()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with no sites, and one more kind."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setitem(sites.KINDS, "everything", f"{__name__}:Everything")


def _file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


FULL = """
kind = "everything"
root = "/shared/runs"
gpu_memory = 80
image = "images/ours.sif"
exclusive = true
share = 0.25
how = "two"
mounts = ["/data:/data", "/scratch"]
[environment]
HF_HOME = "/shared/huggingface"
"""


def test_a_file_says_every_field_and_its_paths_lie_beside_it(tmp_path: Path) -> None:
    found = sites.site(str(_file(tmp_path / "here" / "big.toml", FULL)))
    assert found == Everything(
        root="/shared/runs",
        gpu_memory=80,
        image=tmp_path / "here" / "images" / "ours.sif",
        exclusive=True,
        share=0.25,
        how="two",
        mounts=("/data:/data", "/scratch"),
        environment={"HF_HOME": "/shared/huggingface"},
    )
    assert sites.of(json.loads(json.dumps(sites.told(found)))) == found


def test_a_path_that_begins_at_the_top_or_at_home_is_that_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    said = {"kind": "everything", "image": "/images/ours.sif"}
    assert getattr(sites.of(said, tmp_path), "image") == Path("/images/ours.sif")  # noqa: B009
    assert getattr(sites.of({**said, "image": "~/ours.sif"}, tmp_path), "image") == tmp_path / "me" / "ours.sif"  # noqa: B009


def test_a_name_is_a_file_of_the_users_and_a_kind_where_there_is_none(tmp_path: Path) -> None:
    assert sites.site("local") == Local()
    _file(tmp_path / "config" / "interlace" / "clusters" / "local.toml", 'kind = "local"\ngpu_memory = 24\n')
    _file(tmp_path / "config" / "interlace" / "clusters" / "uni.toml", 'kind = "local"\ngpu_memory = 40\n')
    assert sites.site("local") == Local(gpu_memory=24)
    assert sites.site("uni") == Local(gpu_memory=40)
    with pytest.raises(ValueError, match="did you mean uni"):
        sites.site("unj")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('kind = "slrum"', "kind = 'slrum' must be one of local, ray, slurm, kuberay"),
        ("gpu_memory = 80", "says no kind: it must be one of"),
        ('kind = "local"\ngpu_memmory = 80', "a local site has no field 'gpu_memmory'; did you mean gpu_memory?"),
        ('kind = "local"\nqqq = 80', "has no field 'qqq'; there are environment, root, gpu_memory"),
        ('kind = "local"\ngpu_memory = "80"', "gpu_memory = '80' must be a whole number"),
        ('kind = "local"\ngpu_memory = true', "gpu_memory = True must be a whole number"),
        ('kind = "local"\nroot = 3', "root = 3 must be a text"),
        ('kind = "local"\n[environment]\nA = 1', "environment = {'A': 1} must be a table of texts"),
        ('kind = "everything"\nhow = "three"', "how = 'three' must be 'one' or 'two'"),
        ('kind = "everything"\nmounts = "/data"', "mounts = '/data' must be a list of texts"),
        ('kind = "everything"\nimage = 1', "image = 1 must be a path or left out"),
        ("kind = local", "does not read as TOML"),
    ],
)
def test_what_a_site_cannot_say_is_refused_in_one_line_that_names_the_file(
    tmp_path: Path, text: str, told: str
) -> None:
    path = _file(tmp_path / "big.toml", text)
    with pytest.raises(ValueError) as refused:
        sites.site(str(path))
    assert told in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("slrum", "and no kind of that name; did you mean slurm?"),
        ("no/such.toml", "No such file"),
        ("no/such", "No such file"),
    ],
)
def test_a_word_that_is_no_site_is_refused(word: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        sites.site(word)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    path.write_bytes(b"kind = '\xff'")
    with pytest.raises(ValueError, match="does not read as TOML"):
        sites.site(str(path))


def test_a_site_overrides_what_we_say_of_the_network_and_a_job_overrides_both() -> None:
    asked = Job(
        name="try",
        command=("true",),
        folder=Path("/a"),
        desk=Path("/b"),
        code=Path("/c"),
        nodes=2,
        gpus=1,
        environment={"NCCL_DEBUG": "INFO", "MINE": "1"},
    )
    site = Site(environment={"NCCL_DEBUG": "TRACE", "NCCL_SOCKET_IFNAME": "ib0"})
    found = network.environment(asked, site)
    assert (found["NCCL_DEBUG"], found["NCCL_SOCKET_IFNAME"], found["MINE"]) == ("INFO", "ib0", "1")
    assert found["RAY_health_check_period_ms"] == "2000"
    assert [*found] == sorted(found)


def test_what_concerns_nobody_is_not_said() -> None:
    one = Job(name="try", command=("true",), folder=Path("/a"), desk=Path("/b"), code=Path("/c"), gpus=8)
    assert network.environment(one, Site()) == {}
