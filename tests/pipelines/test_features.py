"""Features once: side tars that repeat to the byte, and trainings that read them instead of pictures."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataflow.index import BuiltCorpus
from dataflow.mixture import Group, Member, Mixture
from dataflow.roots import Roots
from dataflow.sides import Sides
from models.configs import LLaVAFusion, MetaMorph, MetaQuery, Transfusion
from models.parts import (
    Clip,
    Connector,
    Latents,
    LinearCoder,
    Llama,
    LlavaNext,
    Pixels,
    QwenVision,
    QwenVL,
    Siglip,
    StableUNet,
    UNet,
    Vae,
)
from pipelines import features, plan, runs
from pipelines.batching import RecordBatches
from pipelines.recipes import corpora
from pipelines.step import Place, cluster
from pipelines.training import AdamW, Execution, Training

Interlace = Callable[..., subprocess.CompletedProcess[str]]

METACLIP = replace(corpora.metaclip(), rows_per_shard=25)
EDITS = replace(corpora.instruct_pix2pix(), rows_per_shard=25)
LLAMA = Llama(width=32, layers=2, heads=4, kv_heads=2, ffn=48, max_positions=1024)
SIGLIP = Siglip(picture=32, patch=8, width=16, layers=1, heads=2, ffn=32)
VAE = Vae(channels=(8, 8), latent_channels=4, layers_per_block=1, groups=4, scale=0.5)
LATENTS = Latents(vae=VAE, side=32, factor=2)
METAMORPH = MetaMorph(backbone=LLAMA, vision=SIGLIP, grid=2)
LLAVAFUSION = LLaVAFusion(
    backbone=LlavaNext(
        vision=Clip(picture=16, patch=4, width=16, layers=2, heads=2, ffn=24),
        text=LLAMA,
        pinpoints=((16, 32), (32, 16), (32, 32)),
    ),
    canvas=LATENTS,
    coder=LinearCoder(patch=4),
    system="",
)
LAST_LAYER = MetaQuery(
    backbone=QwenVL(
        vision=QwenVision(patch=4, merge=2, window=16, width=16, layers=2, heads=2, ffn=24, whole=(1,)),
        text=Llama(width=32, layers=2, heads=2, kv_heads=1, ffn=48, family="qwen2", max_positions=1024),
        sections=(2, 3, 3),
    ),
    decoder=StableUNet(
        canvas=LATENTS,
        network=UNet(
            picture=16, channels=(8, 16), attends=(False, True), layers_per_block=1, condition_width=16, heads=2
        ),
    ),
    connector=Connector(layers=2, head_width=16),
    queries=5,
    pixels=(64 * 4, 64 * 12),
    system="",
    condition="last_layer",
    trained="connector",
    condition_dropout=0.3,
)
CONFIGS = {"metamorph": METAMORPH, "llavafusion": LLAVAFUSION, "metaquery, last layer": LAST_LAYER}


def training(architecture: Any, *, steps: int = 3, **execution: Any) -> Training:
    return Training(
        name="read",
        architecture=architecture,
        mixture=Mixture(
            groups=(
                Group(name="generation", share=2, members=(Member(corpus=METACLIP),)),
                Group(name="other", share=1, members=(Member(corpus=EDITS),)),
            )
        ),
        optimizer=AdamW(learning_rate=1e-3),
        batch=6,
        steps=steps,
        sequence_length=1024,
        execution=Execution(micro_batch=2, **execution),
    )


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cluster(Place(root=tmp_path_factory.mktemp("unused"), workers=2)):
        yield


@pytest.fixture(scope="module")
def built(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with two corpora of 4 and 2 shards, and nothing measured."""
    place = Place(root=tmp_path_factory.mktemp("built"), roots=Roots.parse([str(world)]))
    plan.build(training(METAMORPH).mixture, place)
    return place.root


@pytest.fixture(scope="module")
def place(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A root in which 3 steps are measured of every architecture in float32, of MetaMorph by two actors."""
    place = Place(root=copied(built, tmp_path_factory.mktemp("measured")))
    features.measure(training(METAMORPH), place)
    for config in CONFIGS.values():
        measured_here(training(config), place)
    return place


def measured_here(asked: Training, place: Place, dtype: features.Dtype = "float32") -> None:
    """What `features.measure` leaves, one shard after the other in this process."""
    encoder = features.Encoder(config=asked.architecture, earlier=None, dtype=dtype)
    named = features.naming(asked.architecture, asked.architecture.build().measured)
    encode = features.ready((encoder, named))
    for work in features.works(asked, place, named, dtype):
        if len(work.rows):
            for task in work.tasks(0):
                encode(task)
            work.finish({**named, "dtype": dtype})


def copied(built: Path, root: Path) -> Path:
    shutil.copytree(built / "corpora", root / "corpora")
    return root


def batches(asked: Training, place: Place) -> RecordBatches:
    opened, schedule, whole, _ = runs.located(asked, place)
    return runs.batches_of(whole, schedule, opened)


def family(config: Any, place: Place) -> str:
    corpus = BuiltCorpus(next((place.root / "corpora").glob("metaclip-*")))
    return features.name_of(features.naming(config, config.build().measured), "float32", corpus)


def bytes_of(folders: list[Path]) -> dict[str, str]:
    return {
        f"{folder.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted(folder.iterdir())
    }


def told(said: str) -> dict[str, list[str]]:
    """Records and pictures by source, of the table that a measure prints."""
    lines = [line.split() for line in said.splitlines() if line.startswith(("metaclip-", "instruct_pix2pix-"))]
    return {name.partition("-")[0]: numbers[:2] for name, *numbers in lines}


@pytest.mark.parametrize("name", CONFIGS)
def test_batches_from_the_store_equal_those_that_are_computed(name: str, place: Place) -> None:
    config = CONFIGS[name]
    architecture = config.build()
    computed = batches(training(config), place)
    stored = features.stored(computed, architecture, "r")
    for position, rank in ((0, 0), (0, 1), (1, 0), (2, 1)):
        for micro, given in zip(computed(position, rank, 2, 2), stored(position, rank, 2, 2), strict=True):
            assert given.parts is not None
            assert len(given.batch.seen.pixels) == len(given.batch.drawn.pixels) == 0
            for field in ("ids", "document", "position", "target", "condition"):
                assert torch.equal(getattr(micro.batch, field), getattr(given.batch, field))
            for field in ("grid", "size", "row", "start", "tokens", "answer", "followed"):
                assert torch.equal(getattr(micro.batch.seen, field), getattr(given.batch.seen, field))
            with torch.no_grad():
                own = architecture.module(micro.batch, architecture.encode(micro.batch), micro.draw).sums
                read = architecture.together(given.parts, given.batch)
                for kind, value in architecture.module(given.batch, read, given.draw).sums.items():
                    torch.testing.assert_close(value, own[kind], rtol=1e-5, atol=1e-5)


def test_a_training_on_two_ranks_reaches_the_losses_that_it_reaches_on_pictures(place: Place) -> None:
    found = []
    for kind in ("computed", "stored"):
        run = runs.train(training(METAMORPH, features=kind), place, recipe_name="test:read")
        found.append([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])
        assert json.loads((run / "recipe.json").read_text())["value"]["execution"]["features"] == kind
        shutil.rmtree(run)  # how it is executed does not name it
    for one, other in zip(*found, strict=True):
        assert one["counts"] == other["counts"] and one["fed"] == other["fed"]
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)
        assert one["norm"] == pytest.approx(other["norm"], rel=1e-4)


def test_a_side_tar_is_a_tar_with_the_keys_of_its_shard(place: Place) -> None:
    (folder,) = (place.root / "measures").glob(f"{family(METAMORPH, place)}-*")
    corpus = BuiltCorpus(next((place.root / "corpora").glob("metaclip-*")))
    keys = corpus.table.filter(np.asarray(corpus.table["shard"]) == 2)["key"].to_pylist()
    with tarfile.open(folder / "00002.tar") as tar:
        names = [member.name for member in tar]
    assert names and all(name.endswith(".safetensors") for name in names)
    held = [name.partition(".")[0] for name in names]
    assert held == [key for key in keys if key in set(held)]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["records"] == manifest["pictures"] == 12  # three steps of four
    tars = sorted(path.name for path in folder.iterdir() if path.suffix == ".tar")
    assert tars == [shard["name"] for shard in manifest["shards"]]


def test_the_command_measures_with_one_worker_to_the_same_bytes_and_then_there_is_nothing_to_do(
    built: Path, place: Place, tmp_path: Path, interlace: Interlace, capsys: pytest.CaptureFixture[str]
) -> None:
    root, recipe = copied(built, tmp_path / "root"), tmp_path / "lab.py"
    value = f"pickle.loads({pickle.dumps(training(METAMORPH))!r})"
    recipe.write_text(f'import pickle\n\n\ndef read():\n    """Read."""\n    return {value}\n')
    said = interlace("measure", f"{recipe}:read", "--root", root, "--workers", "1").stdout
    assert "6 shards encoded in float32 by encoder" in said
    assert "\ncorpus " in said and told(said) == {"metaclip": ["12", "12"], "instruct_pix2pix": ["6", "12"]}
    here = sorted((root / "measures").glob("features-*"))
    assert bytes_of(here) == bytes_of([place.root / "measures" / folder.name for folder in here])
    capsys.readouterr()
    assert sorted(features.measure(training(METAMORPH), Place(root=root))) == here
    assert capsys.readouterr().out.count("all pictures are encoded, nothing to do") == 2


def test_a_measure_cut_off_goes_on_from_the_shards_that_are_there(built: Path, place: Place, tmp_path: Path) -> None:
    here = Place(root=copied(built, tmp_path))
    encoder = features.Encoder(config=METAMORPH, earlier=None, dtype="float32")
    named = features.naming(METAMORPH, METAMORPH.build().measured)
    work = next(each for each in features.works(training(METAMORPH), here, named, "float32") if len(each.shards) == 4)
    features.ready((encoder, named))(work.tasks(0)[1])
    (work.building / "00002.tar").write_bytes(b"half of a tar whose actor was killed")
    (work.building / ".4711-00003.tar").write_bytes(b"a temporary file of one")
    done = (work.building / "00001.tar").stat().st_mtime_ns
    measured_here(training(METAMORPH), here)
    assert (work.folder / "00001.tar").stat().st_mtime_ns == done
    assert bytes_of([work.folder]) == bytes_of([place.root / "measures" / work.folder.name])


def test_a_longer_training_encodes_only_what_is_new(built: Path, place: Place, tmp_path: Path) -> None:
    here, longer = Place(root=copied(built, tmp_path)), training(METAMORPH, steps=5)
    measures = here.root / "measures"
    shutil.copytree(place.root / "measures", measures)
    before = bytes_of(sorted(measures.glob("features-*")))
    measured_here(longer, here)
    after = bytes_of(sorted(measures.glob("features-*")))
    assert {name: after[name] for name in before} == before
    corpus = BuiltCorpus(next((here.root / "corpora").glob("metaclip-*")))
    found = features.folders(measures, family(METAMORPH, here))
    records = [json.loads((folder / "manifest.json").read_text())["records"] for folder in found]
    assert sorted(records) == [8, 12]
    assert len(Sides(found, len(corpus)).lacking(np.arange(len(corpus)))) == len(corpus) - 20
    assert features.stored(batches(longer, here), METAMORPH.build(), "r").stored is not None


def test_what_is_not_stored_of_this_encoder_is_refused_with_the_cure(built: Path, place: Place, tmp_path: Path) -> None:
    cure = r": run interlace measure lab\.py:read, or train with execution\.features=computed$"
    other = replace(METAMORPH, vision=replace(SIGLIP, seed=1))
    why = rf"^features of metaclip-\w+ are stored of encoder \w+, this training has \w+{cure}"
    with pytest.raises(ValueError, match=why):
        features.stored(batches(training(other), place), other.build(), "lab.py:read")
    longer = batches(training(METAMORPH, steps=5), place)
    with pytest.raises(ValueError, match=rf"^features of 8 of 20 records of metaclip-\w+ are not stored{cure}"):
        features.stored(longer, METAMORPH.build(), "lab.py:read")
    bare = batches(training(METAMORPH), Place(root=copied(built, tmp_path)))
    with pytest.raises(ValueError, match=rf"^features of 12 of 12 records of metaclip-\w+ are not stored{cure}"):
        features.stored(bare, METAMORPH.build(), "lab.py:read")


def test_a_training_on_features_that_nobody_stored_ends_before_anything_starts_with_the_command(
    built: Path, place: Place, tmp_path: Path
) -> None:
    asked = training(METAMORPH, features="stored")
    bare, command = Place(root=copied(built, tmp_path)), "interlace measure lab.py:read --root here"
    why = rf"^features of 12 of 12 records of metaclip-\w+ are not stored: run {command}, or train with --set execution"
    with pytest.raises(ValueError, match=why):
        runs.train(asked, bare, recipe_name="lab.py:read", measuring=command)
    assert not (bare.root / "trainings").exists()
    members = [member.open() for member in plan.locate(asked.mixture, place)]
    _, schedule, *_ = runs.located(asked, place)
    features.there(members, schedule.used(), command)
    with pytest.raises(ValueError, match="features of 8 of 20 records"):
        _, schedule, *_ = runs.located(training(METAMORPH, steps=5), place)
        features.there(members, schedule.used(), command)


def test_settings_that_change_features_change_their_name(place: Place) -> None:
    named = {
        family(config, place)
        for config in (
            METAMORPH,
            replace(METAMORPH, grid=4),
            replace(METAMORPH, vision=replace(SIGLIP, heads=4)),
            replace(METAMORPH, vision=replace(SIGLIP, seed=1)),
            LAST_LAYER,
            replace(LAST_LAYER, system="Look."),
            replace(LAST_LAYER, condition_dropout=0.0),
            replace(LAST_LAYER, condition="queries"),
        )
    }
    assert len(named) == 8
    assert family(replace(METAMORPH, seed=1, trained="adapter"), place) == family(METAMORPH, place)


def test_bfloat16_is_near_and_the_finest_type_that_is_there_of_all_is_read(place: Place, tmp_path: Path) -> None:
    here, asked, architecture = Place(root=copied(place.root, tmp_path)), training(METAMORPH), METAMORPH.build()
    measured_here(asked, here, "bfloat16")
    found = []
    for each in (here, place):
        (micro,) = features.stored(batches(asked, each), architecture, "r")(0, 0, 3, 2)
        assert micro.parts is not None
        found.append([picture["tokens"] for picture in micro.parts["seen"]])
    for half, whole in zip(*found, strict=True):
        assert (half.dtype, whole.dtype) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(half.float(), whole, rtol=2**-8, atol=1e-6)
    for steps, finest in ((1, "bfloat16"), (3, "float32")):  # float32 of a part, then of all
        measured_here(replace(asked, steps=steps), here, "float32")
        again = features.stored(batches(asked, here), architecture, "r").stored
        assert again is not None
        assert json.loads((again.folders[0][0] / "manifest.json").read_text())["step"]["dtype"] == finest


def test_what_a_float_type_cannot_hold_is_refused() -> None:
    assert features.kept(torch.tensor([1e5]), "bfloat16", "cats_000000000").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="cats_000000000: features are not finite in float16: store float32 or bfloat"):
        features.kept(torch.tensor([1e5]), "float16", "cats_000000000")


def test_pixels_have_nothing_to_store(place: Place) -> None:
    asked = training(Transfusion(backbone=LLAMA, canvas=Pixels(side=16), coder=LinearCoder(patch=4)))
    with pytest.raises(ValueError, match="Transfusion over a canvas of pixels has no features to store"):
        features.measure(asked, place)
    with pytest.raises(ValueError, match="Transfusion over a canvas of pixels has no features to store"):
        features.stored(batches(asked, place), asked.architecture.build(), "r")
