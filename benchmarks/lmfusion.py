"""A step of LMFusion beside a step of the dense model with the same backbone: what two towers cost.

    dense          Transfusion, every weight learns
    towers         LMFusion, every weight of both towers learns: each token still has one matrix of each kind to run
                   through, forward and backward, so what differs from dense is the routing
    frozen text    LMFusion as it is trained: no gradients of the text tower's weights

The shape is SmolLM2-135M's with random weights, rows of 1,024 tokens, half of them pictures'; a step is forward and
backward of both losses without the optimizer. The models take turns; medians, and the ratio of counted FLOPs. On a CPU
the seconds are one core's (process_time, one thread), so that what else runs there disturbs little.
Run: make bench-lmfusion
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import lmfusion, transfusion
from models.configs import LMFusion, Transfusion
from models.interface import Batch
from models.layout import Slot
from models.parts import LinearCoder, Llama, Pixels
from models.sequence import batched
from models.transfusion import TransfusionArchitecture
from models.views import Cut

SMOLLM2 = Llama(
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    ffn=1536,
    vocabulary=49152,
    rope_theta=100_000.0,
    max_positions=8192,
    tied=True,
)
CANVAS = Pixels(side=64)
CODER = LinearCoder(patch=4)  # 256 tokens of a picture
PAIRS = 2  # of caption and picture in a row
CAPTION = 252  # ids, so that with marks, begin and end a document has 256 of text


def main() -> None:
    """Build the three, let them take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"backbone": SMOLLM2, "canvas": CANVAS, "coder": CODER}
    models = {
        "dense": transfusion.build(Transfusion(**parts)),
        "towers": lmfusion.build(LMFusion(**parts, text_rate=1.0)),
        "frozen text": lmfusion.build(LMFusion(**parts)),
    }
    steps: dict[str, Callable[[], None]] = {}
    for name, architecture in models.items():
        architecture.module.to(given.device, getattr(torch, given.dtype))
        steps[name] = _step(architecture, _batch(architecture.config, given.rows).to(given.device))
    flops = {name: _flops(step) for name, step in steps.items()}  # warms up, too
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(given.turns):
        for name, step in steps.items():
            seconds[name].append(_seconds(step, given.device))
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    print(f"{given.rows} x {PAIRS * 512} tokens, {given.dtype}, {given.device}, {given.turns} turns")
    print(f"{'':14}{'seconds':>10}{'of dense':>10}{'TFLOP':>10}{'of dense':>10}")
    for name in steps:
        time_ratio, flop_ratio = medians[name] / medians["dense"], flops[name] / flops["dense"]
        print(f"{name:14}{medians[name]:>10.3f}{time_ratio:>10.3f}{flops[name] / 1e12:>10.3f}{flop_ratio:>10.3f}")


def _step(architecture: TransfusionArchitecture, batch: Batch) -> Callable[[], None]:
    module, features = architecture.module.train(), architecture.encode(batch)

    def draw(purpose: str, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(len(purpose) * 100 + index)

    def step() -> None:
        module.zero_grad(set_to_none=True)
        torch.stack(list(module(batch, features, draw).sums.values())).sum().backward()

    return step


def _seconds(step: Callable[[], None], device: str) -> float:
    """Of a core, or of a card."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def _flops(step: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _batch(config: Transfusion, rows: int) -> Batch:
    """Rows of captions and pictures of noise, captions first."""
    layout = config.layout()
    document = layout.lay_out([("assistant", ["a" * CAPTION, 0])], task="caption_pair", key="k")
    pixels = np.random.default_rng(0).integers(0, 256, (1, CANVAS.side, CANVAS.side, 3), dtype=np.uint8)

    def picture(row: int, number: int, slot: Slot) -> tuple[Cut, tuple[int, int]]:
        return Cut(pixels, (1, 1)), (CANVAS.side, CANVAS.side)

    batch, _ = batched([[document] * PAIRS] * rows, picture, sides={"seen": 0, "drawn": CANVAS.side})
    drawn = int(batch.drawn.tokens.sum())
    assert batch.ids.numel() == 2 * drawn == rows * PAIRS * 512, "half of the tokens are pictures'"
    return batch


if __name__ == "__main__":
    main()
