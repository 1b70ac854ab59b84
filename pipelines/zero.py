"""A module and an AdamW become a DeepSpeed engine of any ZeRO stage; a step of it, and the rate of that step.

Modules are written for one device (models/interface.py); what is distributed about a training starts here. Three rules:
- every default that DeepSpeed has changed or may change is said aloud (0.19 alone: clipping at 1.0 when unset, #8068);
- nothing is compiled at run time: a kill -9 during DeepSpeed's C++ build leaves a lock that hangs every later start;
- the caller owns the accumulation boundary and the scale of the loss: `backward` divides by nothing.

Works where a process group exists (Ray Train, torchrun, spawned ranks) and in a lone process.
Source: DeepSpeed 0.19.8 (runtime/engine.py, runtime/zero), read and run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn
from torch._C._distributed_c10d import HashStore
from torch.utils.checkpoint import checkpoint

from models.interface import Batch, Care, Draw, Each, Losses
from pipelines.training import AdamW, Execution

PERSISTENT = 100_000  # elements: at stage 3, smaller parameters stay whole on every rank
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine(Protocol):
    """What is used of a deepspeed.DeepSpeedEngine; the library's own annotations do not hold."""

    module: nn.Module
    optimizer: Any
    device: torch.device

    def __call__(self, batch: Batch, features: Tensor, draw: Draw) -> tuple[dict[str, Tensor], dict[str, Each]]: ...
    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None: ...
    def backward(self, loss: Tensor, *, scale_wrt_gas: bool) -> Tensor: ...
    def step(self) -> None: ...
    def get_global_grad_norm(self) -> float | Tensor | None: ...
    def zero_optimization_stage(self) -> int: ...
    def destroy(self) -> None: ...


def engine(
    module: nn.Module,
    optimizer: AdamW,
    execution: Execution,
    *,
    care: Callable[[str], Care],
    rows_per_rank_micro: int,
    accumulation: int,
) -> Engine:
    """The module under ZeRO. From here on `engine(batch, features, draw)` gives `Losses.sums` and `Losses.each`.

    Collective: every rank calls it with the same module; rank 0's weights win. The module is changed in place.

    Args:    care: of each parameter, by its name: parameters that are treated alike share an optimizer group.
             rows_per_rank_micro: rows of one forward pass on one rank.
             accumulation: forward passes of one optimizer step on one rank; the real boundary is `backward`'s `last`.
    Raises:  ValueError when nothing in the module is trained, or a trained parameter has the rate 0.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(
            f"{type(module).__name__} has no parameter with requires_grad: an optimizer needs one; "
            "unfreeze a part in the architecture's config"
        )
    deepspeed = library()
    join()
    if execution.recompute == "layers":
        recompute(module)
    module.register_forward_hook(_opened)  # before DeepSpeed's own hooks, so that these see what is inside
    adamw = torch.optim.AdamW(
        _groups(module, optimizer, care),
        lr=optimizer.learning_rate,
        betas=optimizer.betas,
        eps=optimizer.eps,
        foreach=False,
    )
    told = settings(optimizer, execution, trained, rows_per_rank_micro, accumulation)
    with contextlib.redirect_stdout(io.StringIO()):  # its BF16_Optimizer prints a page of memory figures
        built, *_ = deepspeed.initialize(model=module, optimizer=adamw, config=told)
    built.train()
    return built


def recompute(module: nn.Module) -> None:
    """Layers keep their inputs alone and run again in the backward pass; ValueError where there are none that can.

    transformers' layers and diffusers' networks ask the same two attributes.
    """
    again = functools.partial(checkpoint, use_reentrant=False)
    layers: list[Any] = [part for part in module.modules() if hasattr(part, "gradient_checkpointing")]
    if not layers:
        raise ValueError(f"execution.recompute=layers: {type(module).__name__} has no layers that can: use none")
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = again


def _groups(module: nn.Module, optimizer: AdamW, care: Callable[[str], Care]) -> list[dict[str, Any]]:
    """The optimizer's groups: what is trained, by its care. `factor` is of the learning rate."""
    groups: dict[Care, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            treated = care(name)
            if treated.rate <= 0:
                raise ValueError(f"{name} is trained at the rate 0: freeze it (its weights would still decay)")
            groups.setdefault(treated, []).append(parameter)
    return [
        {
            "params": parameters,
            "factor": treated.rate,
            "weight_decay": optimizer.weight_decay if treated.decay else 0.0,
        }
        for treated, parameters in groups.items()
    ]


def begin(engine: Engine) -> None:
    """Before the first forward pass of a step. What no backward of it reaches has the gradient zero, and is stepped.

    At stages 0 to 2 a gradient that is missing is zero to DeepSpeed. At stage 3 it would be that of the last step that
    had one: its buffer, in which a step's first micro-batch overwrites what it reaches and the others add, is cleared.
    """
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.grad_partitions_flat_buffer.zero_()


def backward(engine: Engine, total: Tensor, *, last: bool) -> None:
    """Gradients of one micro-batch, summed over the step's micro-batches and averaged over ranks.

    Args:  total: float32[], already divided by the counts of the whole step and multiplied by the ranks.
           last: this is the step's last micro-batch.
    """
    engine.set_gradient_accumulation_boundary(last)
    engine.backward(total, scale_wrt_gas=False)


def step(engine: Engine, rate: float) -> float:
    """One optimizer step at this rate. Returns the global gradient norm before clipping; inf when it was not finite."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    if isinstance(engine.optimizer, torch.optim.Optimizer):  # stage 0 in float32: DeepSpeed clips and keeps no norm
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        engine.step()
    else:
        engine.step()
        norm = float(engine.get_global_grad_norm() or 0.0)
    return norm if math.isfinite(norm) else math.inf


def rate(optimizer: AdamW, step: int, steps: int) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine. A function of the step, so nothing is resumed.

    Step 0 already learns (learning_rate / warmup_steps), the step after the warm-up has the full rate, and
    `minimum_rate` would be reached at step `steps`.

    Args:  step: 0-based. steps: optimizer steps of the whole training.
    """
    if step < optimizer.warmup_steps:
        return optimizer.learning_rate * (step + 1) / optimizer.warmup_steps
    done = (step - optimizer.warmup_steps) / max(1, steps - optimizer.warmup_steps)
    fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return optimizer.minimum_rate + (optimizer.learning_rate - optimizer.minimum_rate) * fall


def library() -> ModuleType:
    """DeepSpeed, imported quietly, with its run-time C++ builds switched off on CPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime import compiler

    # Whatever the optimizer, DeepSpeed imports Muon, whose kernels start torch.compile at import: 1.5 s of CPU a rank
    original, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = original
    logger = logging.getLogger("DeepSpeed")
    for quiet in (logger, *logger.handlers):
        quiet.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)  # of calls DeepSpeed makes
    if not torch.cuda.is_available():
        # init_distributed would compile a shared-memory op (25-40 s on two cores); there is no setting for it: #7625
        deepspeed.ops.__dict__["__compatible_ops__"] = {"deepspeed_shm_comm": False}
    return deepspeed


def join() -> None:
    """A group of one where nobody made a larger one: DeepSpeed would look for MPI."""
    if distributed.is_initialized() or "RANK" in os.environ:
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")


def _opened(module: nn.Module, inputs: tuple[Any, ...], losses: Losses) -> tuple[dict[str, Tensor], dict[str, Each]]:
    """DeepSpeed hangs its backward hooks on tensors in tuples, lists and dicts; it does not see into Losses or Each.

    Of an Each it should not: at stage 3 it counts on a gradient for every tensor that it finds.
    """
    return dict(losses.sums), dict(losses.each)


def settings(
    optimizer: AdamW, execution: Execution, trained: list[nn.Parameter], rows: int, accumulation: int
) -> dict[str, Any]:
    """DeepSpeed's JSON. The reduce bucket is allocated whole, so it is never larger than what is trained."""
    bucket = min(500_000_000, sum(parameter.numel() for parameter in trained))  # elements
    half = execution.dtype == "bfloat16"
    told: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": accumulation,
        "managed_gradient_accumulation": True,
        "gradient_clipping": optimizer.clip,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "gradient_allreduce_op": "mean",
        "steps_per_print": sys.maxsize,
        "wall_clock_breakdown": False,
        "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": False},
        "bf16": {"enabled": half, "check_grad_overflow": False},  # `step` reports inf, nothing is skipped in silence
        "zero_optimization": {
            "stage": execution.zero_stage,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": bucket,
            "allgather_partitions": True,
            "allgather_bucket_size": 500_000_000,  # elements; must be even, only slices
            "overlap_comm": execution.zero_stage == 3 and torch.cuda.is_available(),
            "round_robin_gradients": False,
            "compute_grad_norm": True,
            "ignore_unused_parameters": True,
            "stage3_prefetch_bucket_size": 50_000_000,  # elements
            "stage3_param_persistence_threshold": PERSISTENT,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
        },
    }
    if half and execution.zero_stage > 0:  # at stage 0 DeepSpeed accumulates in the weights' type only
        told["data_types"] = {"grad_accum_dtype": "fp32"}
    return told
