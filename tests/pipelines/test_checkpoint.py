"""A checkpoint of any ZeRO stage and world size goes on under any other; a damaged or foreign one is refused.

Run as a script this file is one of two ranks, or the lone process that loads what the two saved, and is killed at last.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import checkpoint

SAVED, STEPS = 3, 5  # steps before the save, steps in all
SAME = [(stage, dtype) for stage in range(4) for dtype in ("float32", "bfloat16")]
MEANS = [(0, "float32"), (1, "bfloat16"), (2, "float32"), (3, "bfloat16")]
MOVES = [(2, 3), (2, 0), (3, 1), (0, 2)]  # stage saved under by two ranks, stage loaded under


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks, then one, have left their checkpoints and results."""
    folder = tmp_path_factory.mktemp("checkpoint")
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[2]), OMP_NUM_THREADS="1")
    kind = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, "pair", str(folder)],
            env=dict(environment, RANK=str(rank), LOCAL_RANK=str(rank)),
            **kind,
        )
        for rank in range(2)
    ]
    lone = subprocess.Popen([sys.executable, __file__, "lone", str(folder)], env=environment, **kind)
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    said.append(lone.communicate("the two are done\n", timeout=120)[0])
    assert (folder / "pair.json").exists() and (folder / "lone.json").exists(), "\n".join(said)
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> dict:
    return json.loads((folder / "pair.json").read_text())


@pytest.fixture(scope="module")
def lone(folder: Path) -> dict:
    return json.loads((folder / "lone.json").read_text())


@pytest.mark.parametrize(("stage", "dtype"), SAME)
def test_the_same_stage_goes_on_to_the_last_bit(pair: dict, stage: int, dtype: str) -> None:
    found = pair[f"same {stage} {dtype}"]
    assert found["resumed"] == found["unbroken"]
    assert found["state"] == {"step": SAVED, "note": "as given"}


@pytest.mark.parametrize(("saved", "loaded"), MOVES)
def test_two_ranks_go_on_under_another_stage(pair: dict, saved: int, loaded: int) -> None:
    assert_equal_losses(pair[f"move {saved} {loaded}"], pair["same 2 float32"]["unbroken"])


@pytest.mark.parametrize(("stage", "dtype"), MEANS)
def test_the_running_mean_is_that_of_all_steps_and_goes_on_under_another_stage(
    folder: Path, pair: dict, stage: int, dtype: str
) -> None:
    from safetensors.numpy import load_file

    found = pair[f"mean {stage} {dtype}"]
    place = folder / f"mean-{stage}-{dtype}" / f"step-{STEPS:06d}"
    saved, taken = load_file(place / "average.safetensors"), checkpoint.weights(place)
    for name, mean in found["by hand"].items():
        assert saved[name].flatten() == pytest.approx(mean, rel=1e-5, abs=1e-7)
        assert taken[name].flatten().tolist() == saved[name].flatten().tolist()
    assert found["masters"] == found["untouched"]  # a save with a mean leaves the masters as they were
    elsewhere = load_file(folder / f"mean-{stage}-{dtype}" / "elsewhere" / "average.safetensors")
    close = 1e-6 if dtype == "float32" else 1e-2  # sums of another order
    assert max(float(abs(elsewhere[name] - saved[name]).max()) for name in saved) < close
    assert found["far"] > 1e-3  # it is not what the last step left


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_one_rank_goes_on_from_two(pair: dict, lone: dict, stage: int) -> None:
    assert_equal_losses(lone[f"alone {stage}"], pair["same 2 float32"]["unbroken"])


@pytest.mark.parametrize("stage", [2, 3])
def test_lora_goes_on_from_a_checkpoint_that_holds_its_matrices_and_not_what_they_stand_beside(
    folder: Path, pair: dict, stage: int
) -> None:
    from safetensors.numpy import load_file

    found = pair["lora"]
    assert_equal_losses(found[f"resumed {stage}"], found["unbroken"])
    assert found["beside"][0] == found["beside"][1]
    names = load_file(folder / "lora" / f"step-{SAVED:06d}" / "parameters.safetensors").keys()
    learned = {f"picture.0.lora_{matrix}.default.weight" for matrix in "AB"}
    assert {name for name in names if name.startswith("picture.")} == learned
    assert all(any(found["unbroken"]["weights"][name]) for name in learned)


def test_bfloat16_keeps_its_masters_under_another_stage(pair: dict) -> None:
    assert pair["masters 1 to 3"] == pair["masters 1"]


def test_nothing_is_pickled_and_other_tools_read_it(folder: Path) -> None:
    from safetensors.numpy import load_file

    saved = folder / "2-float32" / f"step-{SAVED:06d}"
    assert sorted(path.name for path in saved.iterdir()) == [
        "exp_avg.safetensors",
        "exp_avg_sq.safetensors",
        "parameters.safetensors",
        "state.json",
    ]
    held = load_file(saved / "parameters.safetensors")
    assert held["words.weight"].shape == (11, 7)
    assert int(held["calls"]) == SAVED * 2  # a persistent buffer: two micro-batches a step on rank 0
    assert "tower.weight" not in held  # frozen
    state = json.loads((saved / "state.json").read_text())
    assert (state["optimizer_step"], state["format"]) == (SAVED, 1)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("damaged", ["parameters.safetensors has sha256", "damaged", "remove this step's folder"]),
        ("extra", ["parameters.safetensors lacks extra", "begin a new run"]),
        ("less", ["parameters.safetensors has unexpected extra"]),
        ("wider", ["words.weight ([11, 7] in the file, [11, 9] in the model)", "and 1 more"]),
        ("headless", ["no sound state.json"]),
        ("younger", ["format 2, this code reads 1"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_on_every_rank(pair: dict, case: str, words: list[str]) -> None:
    for refusal in pair[f"refused {case}"]:
        assert "\n" not in refusal
        assert all(word in refusal for word in words), refusal
    assert pair[f"untouched {case}"]


def test_a_save_cleans_up_after_a_killed_one(folder: Path) -> None:
    assert not list((folder / "2-float32").glob(".*"))  # the script had left a draft there before it saved


def test_a_killed_save_is_no_checkpoint(folder: Path) -> None:
    drafts = [path.name for path in (folder / "killed").glob(".*")]
    assert drafts == ["." + f"saving-step-{STEPS:06d}"]
    assert checkpoint.latest(folder / "killed") == folder / "killed" / f"step-{SAVED:06d}"


def test_the_latest_is_the_newest_sound_one(folder: Path, tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nowhere") is None
    saved = folder / "2-float32" / f"step-{SAVED:06d}"
    for step in (9, 10, 11, 12):
        shutil.copytree(saved, tmp_path / f"step-{step:06d}")
    (tmp_path / "step-000012" / "state.json").unlink()
    (tmp_path / "step-000011" / "exp_avg.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000010"
    (tmp_path / "step-000010" / "state.json").write_text("{")
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000009"


def test_pruning_keeps_the_newest_sound_ones(folder: Path, tmp_path: Path) -> None:
    for step in (8, 9, 10, 100):
        shutil.copytree(folder / "2-float32" / f"step-{SAVED:06d}", tmp_path / f"step-{step:06d}")
    (tmp_path / "step-000100" / "state.json").unlink()
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000009", "step-000010", "step-000100"]
    with pytest.raises(ValueError, match="keep=0"):
        checkpoint.prune(tmp_path, keep=0)


def assert_equal_losses(found: dict, expected: dict) -> None:
    assert len(found["losses"]) == STEPS - SAVED
    for mine, theirs in zip(found["losses"], expected["losses"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)


# ---- the processes


def prepared(
    folder: Path, stage: int, dtype: str = "float32", **toy
):  # -> (training, built, engine, checkpoint folder)
    import toys

    training = toys.training(steps=STEPS, zero_stage=stage, micro_batch=2, dtype=dtype, toy=toys.Toy(**toy))
    built = training.architecture.build()
    return training, built, toys.engine(built, training), folder / f"{stage}-{dtype}" / f"step-{SAVED:06d}"


def go_on(training, built, engine) -> dict:
    """The steps after the save: losses, and the weights at the end, to the last digit."""
    import toys

    losses, norms = toys.advance(engine, built, training, range(SAVED, STEPS))
    weights = {name: value.flatten().tolist() for name, value in toys.weights(engine).items()}
    engine.destroy()
    return {"losses": losses, "norms": norms, "weights": weights, "calls": int(built.module.calls)}


def pair_of_ranks(folder: Path) -> None:
    import torch
    import toys
    from torch import distributed

    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results = {}
    if rank == 0:
        (folder / "2-float32" / ".saving-step-000001").mkdir(parents=True)
    for stage, dtype in SAME:
        training, built, engine, place = prepared(folder, stage, dtype)
        toys.advance(engine, built, training, range(SAVED))
        checkpoint.save(place, engine, state={"step": SAVED, "note": "as given"})
        unbroken = go_on(training, built, engine)
        distributed.barrier()
        training, built, engine, place = prepared(folder, stage, dtype)
        state = checkpoint.load(place, engine)
        results[f"same {stage} {dtype}"] = {
            "unbroken": unbroken,
            "resumed": go_on(training, built, engine),
            "state": state,
        }
    for saved, loaded in MOVES:
        training, built, engine, _ = prepared(folder, loaded)
        checkpoint.load(folder / f"{saved}-float32" / f"step-{SAVED:06d}", engine)
        results[f"move {saved} {loaded}"] = go_on(training, built, engine)

    for stage, dtype in MEANS:
        results[f"mean {stage} {dtype}"] = means(folder / f"mean-{stage}-{dtype}", folder, stage, dtype)

    training, built, engine, _ = prepared(folder, 2, lora=True)
    beside = built.module.get_parameter("picture.0.base_layer.weight")
    before = beside.flatten().tolist()
    toys.advance(engine, built, training, range(SAVED))
    checkpoint.save(folder / "lora" / f"step-{SAVED:06d}", engine, state={})
    results["lora"] = {"unbroken": go_on(training, built, engine), "beside": [before, beside.flatten().tolist()]}
    distributed.barrier()
    for stage in (2, 3):
        training, built, engine, _ = prepared(folder, stage, lora=True)
        checkpoint.load(folder / "lora" / f"step-{SAVED:06d}", engine)
        results["lora"][f"resumed {stage}"] = go_on(training, built, engine)

    _, _, engine, _ = prepared(folder, 3, "bfloat16")
    checkpoint.load(folder / "1-bfloat16" / f"step-{SAVED:06d}", engine)
    checkpoint.save(folder / "1-to-3" / f"step-{SAVED:06d}", engine, state={})
    engine.destroy()
    distributed.barrier()
    for name, place in (("masters 1", "1-bfloat16"), ("masters 1 to 3", "1-to-3")):
        state = json.loads((folder / place / f"step-{SAVED:06d}" / "state.json").read_text())
        results[name] = [state["files"], state["optimizer_step"]]

    refusals(folder, results)
    if rank == 0:
        (folder / "pair.json").write_text(json.dumps(results))
    distributed.barrier()


def masters(engine) -> dict:
    """What is trained, whole and float32, by name."""
    names = checkpoint._layout(engine, checkpoint.AVERAGE)
    return {
        name: held.clone() for name, held in zip(names, checkpoint._tensors(engine, checkpoint.AVERAGE), strict=True)
    }


def means(place: Path, folder: Path, stage: int, dtype: str) -> dict:
    """A running mean beside one by hand, saved in the middle and at the end; from the middle on at another stage."""
    import toys
    from torch import distributed

    from pipelines.average import Average

    training, built, engine, _ = prepared(folder, stage, dtype)
    average = Average(engine, 0.8)
    by_hand = {name: value.clone() for name, value in masters(engine).items()}
    for step in range(1, STEPS + 1):
        toys.advance(engine, built, training, range(step - 1, step))
        average.update(step)
        decay = min(0.8, (1 + step) / (10 + step))
        for name, value in masters(engine).items():
            by_hand[name] = decay * by_hand[name] + (1 - decay) * value
        if step == SAVED:
            checkpoint.save(place / f"step-{SAVED:06d}", engine, state={}, average=average)
    before = {name: value.flatten().tolist() for name, value in masters(engine).items()}
    checkpoint.save(place / f"step-{STEPS:06d}", engine, state={}, average=average)
    after = masters(engine)
    far = max(float((after[name] - by_hand[name]).abs().max()) for name in by_hand)
    engine.destroy()
    distributed.barrier()

    training, built, engine, _ = prepared(folder, (stage + 2) % 4, dtype)
    average = Average(engine, 0.8)
    checkpoint.load(place / f"step-{SAVED:06d}", engine, average=average)
    for step in range(SAVED + 1, STEPS + 1):
        toys.advance(engine, built, training, range(step - 1, step))
        average.update(step)
    checkpoint.save(place / "elsewhere", engine, state={}, average=average)
    engine.destroy()
    distributed.barrier()
    return {
        "by hand": {name: value.flatten().tolist() for name, value in by_hand.items()},
        "masters": before,
        "untouched": {name: value.flatten().tolist() for name, value in after.items()},
        "far": far,
    }


def refusals(folder: Path, results: dict) -> None:
    """Spoiled copies of one checkpoint, and models it was not made for."""
    import toys
    from torch import distributed

    source, spoiled = folder / "2-float32" / f"step-{SAVED:06d}", folder / "spoiled"
    if distributed.get_rank() == 0:
        for name in ("damaged", "headless", "younger"):
            shutil.copytree(source, spoiled / name)
        path = spoiled / "damaged" / "parameters.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        (spoiled / "headless" / "state.json").unlink()
        path = spoiled / "younger" / "state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    _, _, engine, _ = prepared(folder, 2, extra=True)
    checkpoint.save(spoiled / "less", engine, state={})
    engine.destroy()
    distributed.barrier()
    cases: list[tuple[str, Path, dict[str, Any]]] = [
        ("damaged", spoiled / "damaged", {}),
        ("extra", source, {"extra": True}),
        ("less", spoiled / "less", {}),
        ("wider", source, {"width": 9}),
        ("headless", spoiled / "headless", {}),
        ("younger", spoiled / "younger", {}),
    ]
    for case, place, toy in cases:
        _, _, engine, _ = prepared(folder, 3, **toy)
        before = toys.weights(engine)
        refusal = "nothing was refused"
        try:
            checkpoint.load(place, engine)
        except ValueError as error:
            refusal = str(error)
        heard: list[Any] = [None, None]
        distributed.all_gather_object(heard, refusal)
        results[f"refused {case}"] = heard
        after = toys.weights(engine)
        results[f"untouched {case}"] = all(bool((after[name] == before[name]).all()) for name in before)
        engine.destroy()


def lone_process(folder: Path) -> None:
    """One rank loads what two saved; then it is killed in the middle of a save."""
    import torch

    from pipelines import zero

    torch.set_num_threads(1)
    zero.library()
    assert sys.stdin.readline()  # the two ranks are done
    zero.join()
    results = {}
    for stage in (0, 2, 3):
        training, built, engine, _ = prepared(folder, stage)
        checkpoint.load(folder / "2-float32" / f"step-{SAVED:06d}", engine)
        results[f"alone {stage}"] = go_on(training, built, engine)
    _, _, engine, _ = prepared(folder, 2)
    checkpoint.save(folder / "killed" / f"step-{SAVED:06d}", engine, state={})
    (folder / "lone.json").write_text(json.dumps(results))
    checkpoint.save(folder / "killed" / f"step-{STEPS:06d}", engine, state=Bomb(step=STEPS))


class Bomb(dict):
    """A state that kills the process when it is written: all tensors are on disk by then, state.json is not."""

    def items(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    {"pair": pair_of_ranks, "lone": lone_process}[sys.argv[1]](Path(sys.argv[2]))
    os._exit(0)  # gloo sometimes aborts in its destructors after all is said
