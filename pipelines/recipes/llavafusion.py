"""LLaVAFusion, arXiv:2412.15188 table 2: LLaVA-NeXT goes on to understand as it did, and learns to draw."""

from __future__ import annotations

from dataclasses import replace

from dataflow.packing import Packing
from models.configs import LLaVAFusion
from models.parts import Clip, Llama, LlavaNext, Pixels, Pretrained, UNetCoder
from pipelines.recipes import lmfusion, mixtures
from pipelines.training import AdamW, Execution, Training


def tiny() -> Training:
    """LLaVAFusion in miniature: a random CLIP and towers of 1 M parameters, 64 tokens a drawn picture, two CPU workers.

    Run:     interlace train llavafusion:tiny
    Cost:    25 s of steps and 12 s of start on two cores (make mini, 2026-11-25)
    Expect:  the picture loss falls under 0.15 in 40 steps; the text's hardly, what reads is frozen and random
    """
    return Training(
        name="llavafusion-tiny",
        architecture=LLaVAFusion(
            backbone=LlavaNext(
                vision=Clip(picture=32, patch=8, width=96, layers=3, heads=4, ffn=192),
                text=Llama(width=128, layers=4, heads=4, kv_heads=2, ffn=384, max_positions=768),
                pinpoints=((32, 64), (64, 32), (64, 64)),  # at most 88 tokens a read picture
            ),
            canvas=Pixels(side=32),
            coder=UNetCoder(
                channels=(32, 32, 64), attends=(False, False, True), layers_per_block=1, head_width=16, groups=8
            ),
            system="",  # letter by letter it would be a third of a row, and random weights were not tuned under it
        ),
        mixture=mixtures.mini_llavafusion(),
        optimizer=AdamW(learning_rate=2e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_steps=8, minimum_rate=1e-4),
        batch=4,
        steps=40,
        sequence_length=768,
        packing=Packing(),
        execution=Execution(zero_stage=2, micro_batch=2, save_every=20),
    )


def paper() -> Training:
    """LLaVA-NeXT 8B learns to draw from LMFusion's captioned pictures, as Llama-3 does in lmfusion:half.

    How it was trained the paper does not say: all numbers are LMFusion's. A caption that comes first is put as the
    user's request, which is how the model will be asked.

    Run:     interlace train llavafusion:paper --cluster slurm --nodes 16
    Cost:    not measured yet
    Expect:  FID 8.2; MMMU 41.7, ChartQA 69.5, RealWorldQA 60.0, MME-P 1603.7 as LLaVA-NeXT itself (table 2)
    """
    beside = lmfusion.half()
    return replace(
        beside,
        name="llavafusion-paper",
        architecture=LLaVAFusion(
            backbone=Pretrained(
                path="llava-hf/llama3-llava-next-8b-hf",
                sizes=LlavaNext(
                    vision=Clip(picture=336, patch=14, width=1024, layers=24, heads=16, ffn=4096),
                    text=Llama(
                        width=4096,
                        layers=32,
                        heads=32,
                        kv_heads=8,
                        ffn=14336,
                        vocabulary=128320,  # Llama-3's, <image>, padding to 64
                        rope_theta=500_000.0,
                        max_positions=8192,
                    ),
                    pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
                ),
            ),
            canvas=beside.architecture.canvas,
            coder=beside.architecture.coder,
        ),
    )
