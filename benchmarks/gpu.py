"""What no CPU can show: attention in FlexAttention's blocks, bfloat16 under ZeRO over NCCL, tokens/s, bytes of a card.

    attention   in blocks it equals dense attention, its gradients too: alone, and through a whole model in float32
    stages      at ZeRO 1, 2 and 3 a model in bfloat16 goes over one packed batch: every loss is finite, and they fall;
                with it tokens/s, and what a card keeps between steps and holds at most, each beside what is planned

Two ranks where there are two cards, else one. Transfusion, whose pictures see all of themselves, over captions and
pictures of noise. Exit 1 where something of this does not hold, 2 where there is no GPU. Run: make gpu-check
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import ProcessExitedException, spawn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from dataflow.mixture import Mixture
from models.configs import Transfusion
from models.interface import Batch
from models.layout import Slot
from models.parts import LinearCoder, Llama, Pixels
from models.sequence import batched, blocks, sees, sees_in_blocks
from models.views import Cut
from pipelines import learning, memory, parameters, zero
from pipelines.batching import Micro
from pipelines.training import AdamW, Execution, Training

TOLERANCE = 1e-3  # of float32, relative to the largest number; what is wrong is over 1e-1
CAPTION = 252  # ids: with marks, begin and end a document has as much text as picture
WARM = 3  # steps that compile and allocate

# Transfusion's smallest size, over bytes: 0.1 B parameters, a step of a second at most
LARGE = Llama(width=768, layers=16, heads=12, kv_heads=12, ffn=2048, max_positions=2048)


def training(backbone: Llama, rows: int) -> Training:
    """Transfusion over straight pixels, 256 tokens a picture, `rows` rows of a rank."""
    return Training(
        name="gpu-check",
        architecture=Transfusion(backbone=backbone, canvas=Pixels(side=64), coder=LinearCoder(patch=4)),
        mixture=Mixture(groups=()),
        optimizer=AdamW(learning_rate=3e-4, betas=(0.9, 0.95)),
        batch=rows,
        steps=12,
        sequence_length=backbone.max_positions,
        execution=Execution(micro_batch=rows, dtype="bfloat16"),
    )


def main() -> None:
    """Start a rank a card; each checks all, the first one says what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4, help="of 2,048 tokens, of a card")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-check: torch sees no GPU on this machine, nothing was checked", file=sys.stderr)
        sys.exit(2)
    world = min(2, torch.cuda.device_count())
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(_rank, (world, folder, training(LARGE, given.rows), "cuda"), nprocs=world)
        except ProcessExitedException:  # it has said why
            sys.exit(1)


def _rank(rank: int, world: int, folder: str, training: Training, kind: str) -> None:
    """All checks on one rank. kind: of device; "cpu" leaves out what a CPU cannot do."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    zero.library()
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    batch, activations = _batch(training), _activations(training)
    batch = batch.to(device)
    checks = [*_attention(batch), *(_model(training, batch) if kind == "cuda" else ())]
    if rank == 0:
        name = torch.cuda.get_device_name(device) if kind == "cuda" else kind
        print(f"{world} x {name}, {backend}, {len(batch.ids)} x {batch.ids.shape[1]} tokens of a rank")
        columns = "".join(f"{name:>12}" for name in ("tokens/s", "kept GB", "planned", "at most GB", "planned"))
        print(f"{'':10}{'losses':>18}{columns}", flush=True)
    for stage in (1, 2, 3):
        checks.append(_stage(training, batch, stage, activations))
    distributed.barrier()
    distributed.destroy_process_group()
    if rank == 0:
        print("\n".join(f"{'holds' if holds else 'DOES NOT HOLD'}: {what}" for what, holds in checks), flush=True)
    sys.exit(0 if all(holds for _, holds in checks) else 1)


def _attention(batch: Batch) -> Iterator[tuple[str, bool]]:
    """The same numbers by both; on a CPU blocks have no backward."""
    card = batch.ids.is_cuda
    generator = torch.Generator(batch.ids.device).manual_seed(0)
    shape = (len(batch.ids), 4, batch.ids.shape[1], 64)
    query, key, value = inputs = [
        torch.randn(shape, generator=generator, device=batch.ids.device, requires_grad=card) for _ in range(3)
    ]
    hidden = (batch.position < 5) & (batch.document % 2 == 0)
    about = (batch.document, blocks(batch, whole=True), hidden)
    in_blocks = torch.compile(flex_attention) if card else flex_attention
    outputs = (
        scaled_dot_product_attention(query, key, value, attn_mask=sees(*about)),
        in_blocks(query, key, value, block_mask=sees_in_blocks(*about)),
    )
    yield _alike("attention in blocks, forward", *outputs)
    if card:
        weights = torch.randn(shape, generator=generator, device=batch.ids.device)
        gradients = [torch.autograd.grad((output * weights).sum(), inputs) for output in outputs]
        for name, dense, found in zip(("query", "key", "value"), *gradients, strict=True):
            yield _alike(f"attention in blocks, gradient of {name}", dense, found)


def _model(training: Training, batch: Batch) -> Iterator[tuple[str, bool]]:
    """The gradients of attention in the first layer of a whole model, float32, in which all later ones have a part."""
    dense, in_blocks = (_gradients(training.architecture, batch, kind) for kind in ("sdpa", "flex_attention"))
    for name, gradient in dense.items():
        if ".layers.0.self_attn." in name:
            yield _alike(f"a model whose attention is in blocks, gradient of {name}", gradient, in_blocks[name])


def _gradients(config: Transfusion, batch: Batch, attention: str) -> dict[str, Tensor]:
    """Of the pictures' loss, by parameter: other masks change it by a quarter, where the text's would hide that."""
    architecture = config.build()
    architecture.encoder.to(batch.ids.device)
    module: Any = architecture.module.to(batch.ids.device).train()
    module.backbone.set_attn_implementation(attention)
    module(batch, architecture.encode(batch), _draw).sums["picture"].backward()
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def _alike(what: str, dense: Tensor, found: Tensor) -> tuple[str, bool]:
    """What was compared and how far it is off, and whether that is rounding."""
    error = float((found - dense).abs().max() / dense.abs().max())
    return f"{what}, is {error:.1e} off dense attention (at most {TOLERANCE:g})", error <= TOLERANCE


def _activations(training: Training) -> int:
    """Bytes that the plan has for a pass over the batch: pixels, what forward and backward hold."""
    built, batch = parameters.built(training), _batch(training)
    memory.set_up(built, training.execution)
    pictures = {view: getattr(batch, view) for view in ("seen", "drawn")}
    shapes = {view: replace(held, pixels=held.pixels.to("meta")) for view, held in pictures.items()}
    return memory.peak(built, replace(batch, **shapes))


def _stage(training: Training, batch: Batch, stage: Any, activations: int) -> tuple[str, bool]:
    """Train at one stage, print its row; returns whether losses are finite and fall.

    Args:  activations: bytes, as they are planned.
    """
    rank, world, device, steps = distributed.get_rank(), distributed.get_world_size(), batch.ids.device, training.steps
    execution = replace(training.execution, zero_stage=stage)
    gc.collect()  # what came before is in circles
    architecture = training.architecture.build()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        architecture.module.backbone.set_attn_implementation("flex_attention")
    module, encoder = (
        parameters.parts(part, architecture.care, "")[0] for part in (architecture.module, architecture.encoder)
    )
    planned = parameters.bytes_of_a_rank(module, encoder, ranks=world, stage=stage, dtype=execution.dtype)
    engine = zero.engine(
        architecture.module,
        training.optimizer,
        execution,
        care=architecture.care,
        rows_per_rank_micro=execution.micro_batch,
        accumulation=1,
    )
    architecture.encoder.to(device)
    items = [Micro(batch=batch, draw=_draw, fed=(len(batch.ids),))]
    losses, seconds = [], []
    for _ in range(steps or 0):
        began = time.perf_counter()
        counts = learning.everywhere(architecture, items, 1, device).counts
        sums = learning.learn(engine, architecture, items, counts).everywhere().sums.tolist()
        zero.step(engine, training.optimizer.learning_rate)
        weighted = zip(sums, counts.items(), strict=True)
        losses.append(sum(architecture.weights[name] * lost / count for lost, (name, count) in weighted))
        seconds.append(time.perf_counter() - began)  # the sums have come from the card, and a norm after the step
    kept, most = _memory(device)
    engine.destroy()
    if rank == 0:
        rate = world * int((batch.document > 0).sum()) / statistics.median(seconds[WARM:])
        sizes = "".join(f"{size / 1e9:>12.2f}" for size in (kept, planned.kept, most, planned.total + activations))
        print(f"{f'stage {stage}':10}{f'{losses[0]:.3f} to {losses[-1]:.3f}':>18}{rate:>12,.0f}{sizes}", flush=True)
    told = f"stage {stage}, {len(losses)} losses are finite and fall: {', '.join(f'{loss:.3f}' for loss in losses)}"
    return told, all(map(math.isfinite, losses)) and statistics.fmean(losses[-3:]) < statistics.fmean(losses[:3])


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes of tensors now, and when they were most; none of a CPU's."""
    if device.type != "cuda":
        return 0, 0
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()


def _draw(purpose: str, index: int) -> torch.Generator:
    """The same in every step, so that a batch can be learned by heart."""
    return torch.Generator().manual_seed(len(purpose) * 100 + index)


def _batch(training: Training) -> Batch:
    """Full rows of captions and pictures of noise, in either order, and one row that ends in padding."""
    config = training.architecture
    layout = config.layout()
    document = layout.lay_out([("assistant", ["a" * CAPTION, 0])], task="caption_pair", key="k")
    each = training.sequence_length // len(document)
    rows = [[document] * each for _ in range(training.execution.micro_batch)]
    rows[-1].pop()
    pixels = np.random.default_rng(0)

    def picture(row: int, number: int, slot: Slot) -> tuple[Cut, tuple[int, int]]:
        side = config.canvas.side
        return Cut(pixels.integers(0, 256, (1, side, side, 3), dtype=np.uint8), (1, 1)), (side, side)

    return batched(rows, picture, sides={"seen": 0, "drawn": config.canvas.side}, length=training.sequence_length)[0]


if __name__ == "__main__":
    main()
