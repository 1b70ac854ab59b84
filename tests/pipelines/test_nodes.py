"""A build on three raylets of one machine: the same bytes while one is killed; no work before each sees our folders."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import here
import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster
from ray.util import placement_group, remove_placement_group

from dataflow import index
from dataflow.index import BuiltCorpus
from dataflow.roots import Roots
from pipelines import corpus, recipe
from pipelines.recipe import describe
from pipelines.recipes import corpora
from pipelines.step import Place, Progress, cluster, each, each_ready, left

SLOW = '''
"""Cambrian, whose rows from the fourth shard on wait for a word: a build that is in its middle as long as it takes."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataflow.record import Candidate
from dataflow.sources import Read
from dataflow.sources.cambrian import Cambrian
from pipelines.corpus import Corpus
from pipelines.recipes import corpora


@dataclass(frozen=True, kw_only=True)
class Waiting(Cambrian):
    word: str = ""

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        if self.word and key >= "cambrian_00003":
            Path(f"{self.word}-{os.getpid()}").touch()
            while not Path(self.word).exists():
                time.sleep(0.01)
        yield from super().candidates(value, key, read)


def slow(word: str = "") -> Corpus:
    return replace(corpora.cambrian(), source=Waiting(word=word), rows_per_shard=50)
'''


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Three raylets with a CPU each; a driver connects to the first."""
    assert not ray.is_initialized()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture
def place(nodes: Cluster, world: Path, tmp_path: Path) -> Place:
    return Place(root=tmp_path / "root", roots=Roots(base=world), ray_address=nodes.address)


def test_a_root_that_a_node_does_not_see_is_refused_before_any_work(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = Path("/proc/self/cwd/out")  # for every process the folder that it runs in
    with pytest.raises(
        ValueError, match=r"^node .+ \(\S+\) does not see what was written to /proc/self/cwd/out .*share"
    ):
        corpus.build(corpora.metaclip(), replace(place, root=elsewhere))
    assert list(tmp_path.rglob("*.tar")) == list((tmp_path / "out").glob(".nonce*")) == []


def test_a_data_folder_that_a_node_does_not_see_is_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    roots = Roots.parse([str(tmp_path / "data")])
    (tmp_path / "data").rmdir()
    with pytest.raises(ValueError, match=rf"^node .* has no folder {tmp_path / 'data'}: --data must be seen by all"):
        with cluster(replace(place, roots=roots)):
            raise AssertionError("work began")


def _short(shared: object, item: int) -> int:
    """A task that lasts about as long as a shard of some rows."""
    ended = time.monotonic() + 0.1
    while time.monotonic() < ended:
        time.sleep(0.01)
    return item


def _shortly(shared: object) -> Callable[[int], int]:
    return partial(_short, shared)


@pytest.mark.parametrize("work", [partial(each, _short), partial(each_ready, _shortly)], ids=["tasks", "actors"])
def test_a_training_gets_its_room_while_a_build_goes_on(place: Place, work: Callable[..., Iterator[int]]) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with cluster(place):
        assert left().cpus == 3
        results = work(None, list(range(200)), Progress("work", 200, "items"))
        done = [next(results) for _ in range(5)]
        group = placement_group([{"CPU": 1}] * 2, strategy="SPREAD")  # as Ray Train reserves two ranks
        for result in results:
            done.append(result)
            if group.wait(0):
                break
        assert len(done) < 100  # as soon as what ran had ended
        assert left().cpus == 1
        more = [next(results) for _ in range(10)]  # on what is left
        remove_placement_group(group)
        assert sorted([*done, *more, *results]) == list(range(200))


def test_a_node_killed_in_the_middle_changes_no_byte(nodes: Cluster, place: Place, world: Path, tmp_path: Path) -> None:
    (tmp_path / "slow_cambrian.py").write_text(SLOW)
    word = tmp_path / "go on"
    wanted = recipe.load(f"{tmp_path / 'slow_cambrian.py'}:slow(word={str(word)!r})")
    third = next(iter(nodes.worker_nodes))

    def kill() -> None:
        while len(list(tmp_path.glob("go on-*"))) < 3:  # until a shard is begun on every node
            time.sleep(0.01)
        nodes.remove_node(third, allow_graceful=False)
        word.touch()

    watcher = threading.Thread(target=kill, daemon=True)
    watcher.start()
    built = corpus.build(wanted, place)
    watcher.join(60)
    assert third not in nodes.worker_nodes
    one = here.build(
        wanted.source,
        Roots(base=world),
        tmp_path / "one",
        filters=wanted.filters,
        rows=50,
        recipe_key=wanted.recipe_key(),
        step=describe(wanted),
    )
    assert BuiltCorpus(built).manifest == one.manifest
    assert all(problem is None for _, problem in index.verify(built))
