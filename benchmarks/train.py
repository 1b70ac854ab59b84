"""Seconds of a step of our loop beside a bare DeepSpeed loop, and what waiting, saving, padding and encoding cost it.

The training is `loops.py`'s: MetaMorph under ZeRO on two gloo ranks of this machine, packed rows of miniature corpora.
Loops take turns in one pair of processes, on the same positions from the same first weights; every other round goes
through them backwards. A step lasts from the end of the one before, so that nothing is left out but the first of a
turn. Medians of seconds; saves, which are rare, by means.

    bare      deepspeed.initialize and three lines, on batches made beforehand       --only loop
    reads     the same, while a thread reads the records of the next position        --only loop
    ours      the loop of `interlace train`, its reader beside it                     in all but start
    saves     ours, with a checkpoint every few steps                                --only saves
    padded    the same records, each in a row of its own, all of a rank in one pass  --only padded
    stored    the frozen encoder's features read from the disk                       --only stored

Losses must be the same to the last digit in bare, reads, ours, saves, and but for rounding in padded and stored. Then
seconds from the start of a process to its first step (--only start): `interlace train` on a private Ray cluster, and a
script of Ray Train's around the bare loop, to which batches are handed ready.

Exit 1 where an aim is missed: a step of ours at most 1.02 x that of the bare loop that reads what it trains on, at most
1 % of it waiting for data, and a save every 100 steps at most 5 % of them. Run: make bench-train
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import loops
from loops import BEGIN, Turn
from turns import HOUSE

from dataflow import mini
from dataflow.roots import Roots
from pipelines import features, plan, runs, train
from pipelines.batching import RecordBatches
from pipelines.step import Place, cluster
from pipelines.training import Training

ROWS = mini.Sizes(**{**dict.fromkeys(mini.SOURCES, 0), "cambrian": 600, "metaclip": 200, "instruct_pix2pix": 100})
LOOPS = {
    "loop": ("bare", "reads", "ours"),
    "saves": ("ours", "saves"),
    "padded": ("ours", "padded"),
    "stored": ("ours", "stored"),
}
SLOWER, WAITING, PAUSE = 1.02, 0.01, 0.05  # the aims
PER = 100  # steps to a save, of the aim
ROUNDING = {"padded": 1e-3, "stored": 1e-3}  # of losses, relative; of other loops none

Aim = tuple[str, bool]
"""What was found and should be, and whether it is."""


def main() -> None:
    """Build the corpora, let the loops take turns, print the tables and what became of the aims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--stage", type=int, choices=range(4), default=2, help="of ZeRO")
    parser.add_argument("--only", nargs="+", choices=(*LOOPS, "start"), default=(*LOOPS, "start"))
    given = parser.parse_args()
    names = [
        name for name in ("bare", "reads", *loops.EXECUTIONS) if any(name in LOOPS.get(part, ()) for part in given.only)
    ]
    aims: list[Aim] = []
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        mini.write(folder / "data", rows=ROWS)
        place = Place(root=folder / "root", roots=Roots.parse([str(folder / "data")]), workers=2)
        training, batches = _made(place, given.stage, "stored" in names)
        (folder / "training.pickle").write_bytes(pickle.dumps((training, batches)))
        if names:
            turns = list(_taken(folder, place.root / "trainings", names, given.rounds))
            _agree(turns)
            aims += _told(turns)
        if "start" in given.only:
            _starts(folder, place, training, given.starts)
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("\n".join(f"{'reached' if met else 'MISSED'}: {aim}" for aim, met in aims))
    sys.exit(0 if all(met for _, met in aims) else 1)


def _made(place: Place, stage: int, stored: bool) -> tuple[Training, RecordBatches]:
    """The training over corpora that are built and measured for it, and its batches."""
    training = loops.training()
    training = replace(training, execution=replace(training.execution, zero_stage=stage))
    with contextlib.redirect_stdout(sys.stderr), cluster(place):
        plan.build(training.mixture, place)
        opened, schedule, training, _ = runs.located(training, place)
        if stored:
            features.measure(training, place)
    return training, runs.batches_of(training, schedule, opened)


def _taken(folder: Path, trainings: Path, names: Sequence[str], rounds: int) -> Iterator[Turn]:
    """The turns of all loops, as a pair of processes takes them."""
    order = []
    for number in range(rounds):
        for name in names[:: -1 if number % 2 else 1]:
            run = trainings / f"{name}-{number}"
            train.prepare(run, {"recipe": "benchmarks/loops.py:training", "value": {}})
            order.append((name, str(run)))
    (folder / "turns.json").write_text(json.dumps(order))
    environment = {
        **os.environ,
        "PYTHONPATH": str(HOUSE),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, str(HOUSE / "benchmarks/loops.py"), "ranks", str(folder)]
    with (folder / "said.txt").open("w+") as said:
        pair = [
            subprocess.Popen([*command, str(rank)], stdout=out, stderr=said, text=True, env=environment)
            for rank, out in enumerate((subprocess.PIPE, said))
        ]
        threading.Thread(target=_ended_with, args=pair, daemon=True).start()
        try:
            assert pair[0].stdout is not None
            for line in pair[0].stdout:
                if line.startswith('{"loop"'):  # not what gloo has to say
                    turn = Turn(**json.loads(line))
                    step = f"{statistics.median(turn.seconds):.3f} s a step"
                    print(f"  turn of {turn.loop}: {step}", file=sys.stderr, flush=True)
                    order.pop(0)
                    yield turn
        finally:
            for process in pair:
                if order:
                    process.kill()
                process.wait()
        said.seek(0)
        if order:
            raise RuntimeError(f"the turn of {order[0][0]} failed:\n{said.read()[-4000:]}")


def _ended_with(first: subprocess.Popen[str], second: subprocess.Popen[str]) -> None:
    """Kill the first when the second fails, for which it may wait half an hour."""
    if second.wait():
        first.kill()


def _agree(turns: Sequence[Turn]) -> None:
    """Every loop learned the same as the first one."""
    for turn in turns:
        for step, (mine, first) in enumerate(zip(turn.losses, turns[0].losses, strict=True), 1):
            for name, loss in first.items():
                told = f"{turn.loop}, step {step}: {name} is {mine[name]}, in {turns[0].loop} it is {loss}"
                assert _same(mine[name], loss, ROUNDING.get(turn.loop, 0.0)), told


def _same(one: float | None, other: float | None, error: float) -> bool:
    return one == other if one is None or other is None else abs(one - other) <= error * abs(other)


def _told(turns: Sequence[Turn]) -> list[Aim]:
    """Print a row a loop and what they are beside each other; returns the aims."""
    of: dict[str, list[Turn]] = {}
    for turn in turns:
        of.setdefault(turn.loop, []).append(turn)
    seconds = {name: [second for turn in taken for second in turn.seconds] for name, taken in of.items()}
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    whole = {name: statistics.fmean(taken) for name, taken in seconds.items()}
    lines = [line for turn in of["ours"] for line in turn.steps[BEGIN - 1 :]]
    tokens = statistics.fmean(sum(line["tokens"].values()) for line in lines)
    print(f"{len(seconds['ours'])} steps of each loop, {tokens:,.0f} tokens a step")
    print(f"{'':10}{'s a step':>10}{'from-to':>14}{'mean':>8}{'x ours':>8}{'tokens/s':>10}{'padding':>9}")
    for name, taken in seconds.items():
        span = f"{min(taken):.2f}-{max(taken):.2f}"
        columns = f"{whole[name]:>8.3f}{middle[name] / middle['ours']:>8.3f}{tokens / whole[name]:>10,.0f}"
        padding = 1 - statistics.fmean(turn.filled for turn in of[name])
        print(f"{name:10}{middle[name]:>10.3f}{span:>14}{columns}{padding:>9.1%}")
    waited = sum(line["data_seconds"] for line in lines) / sum(line["seconds"] for line in lines)
    aims = [(f"ours waits {waited:.2%} of a step for data (aim: at most {WAITING:.0%})", waited <= WAITING)]
    if "reads" in of:
        slower = middle["ours"] / middle["reads"]
        told = f"a step of ours takes {slower:.3f} x that of the bare loop that reads (aim: at most {SLOWER})"
        aims.append((told, slower <= SLOWER))
    if "saves" in of:
        aims.append(_pause(of["saves"], whole["ours"], whole["saves"]))
    if "padded" in of:
        print(f"packed rows give {whole['padded'] / whole['ours']:.2f} x the tokens/s of padded ones")
    if "stored" in of:
        print(f"stored features give {whole['ours'] / whole['stored']:.2f} x the tokens/s of the encoder that runs")
    return aims


def _pause(taken: Sequence[Turn], step: float, with_saves: float) -> Aim:
    """What a save adds to the steps, to those beside which it is written, too.

    Args: step, with_saves: mean seconds of a step without saves, and with.
    """
    stood = [line["save_seconds"] for turn in taken for line in turn.steps[BEGIN - 1 :] if line["save_seconds"]]
    added = (with_saves - step) * sum(len(turn.seconds) for turn in taken) / len(stood)
    share = added / (PER * step)
    told = (
        f"a save adds {added:.2f} s, {share:.2%} of {PER} steps, which stand still for {statistics.median(stood):.2f} s"
    )
    return f"{told} (aim: at most {PAUSE:.0%})", share <= PAUSE


def _starts(folder: Path, place: Place, training: Training, times: int) -> None:
    """Seconds from the start of a process to its first step, ours and plain Ray Train's in turns."""
    spent: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(times):
        words = ["train", HOUSE / "benchmarks/loops.py:training", "--data", folder / "data", "--root", place.root]
        fields = {"name": f"start-{number}", "steps": 1, "execution.zero_stage": training.execution.zero_stage}
        words += [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
        command = [sys.executable, "-m", "pipelines", *words, "--workers", "2"]
        spent["ours"].append(_first(command, place.root / "trainings", f"start-{number}-*/metrics.jsonl", folder))
        command = [sys.executable, HOUSE / "benchmarks/loops.py", "plain", folder, folder / f"first-{number}"]
        spent["plain"].append(_first(command, folder, f"first-{number}", folder))
        took = ", ".join(f"{name} {taken[-1]:.1f} s" for name, taken in spent.items())
        print(f"  start {number + 1}: {took}", file=sys.stderr, flush=True)
    ours, plain = (statistics.median(taken) for taken in spent.values())
    print(f"start to first step: ours {ours:.1f} s, Ray Train's script {plain:.1f} s: {ours / plain:.2f} x")


def _first(command: Sequence[str | Path], where: Path, pattern: str, folder: Path) -> float:
    """Seconds until a file of this name holds something. RuntimeError: the command ends without that, or fails."""
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "said.txt").open("w+") as said:
        began, took = time.perf_counter(), None
        process = subprocess.Popen(list(map(str, command)), stdout=said, stderr=said, env=environment)
        while process.poll() is None:
            if took is None and any(path.stat().st_size for path in where.glob(pattern)):
                took = time.perf_counter() - began
            time.sleep(0.01)
        if process.returncode or took is None:
            raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{_end(said)}")
    return took


def _end(said: IO[str]) -> str:
    said.seek(0)
    return said.read()[-4000:]


if __name__ == "__main__":
    main()
