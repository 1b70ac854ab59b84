"""Transfusion, arXiv:2408.11039: one transformer from scratch over text and noised pictures; dense fine-tuning, too."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from dataflow.packing import Packing
from models.configs import Transfusion
from models.parts import LLAMA3_8B, Latents, Llama, Pixels, Pretrained, UNetCoder, Vae
from pipelines.recipes import mixtures
from pipelines.training import AdamW, Execution, Training

Size = Literal["0.16b", "0.37b", "0.76b", "1.4b", "7b"]

# Layers, width, heads: table 2. The width of the FFN is not stated: Llama's, two thirds of 4 widths in whole 256s.
_SIZES: dict[Size, tuple[int, int, int, int]] = {
    "0.16b": (16, 768, 12, 2048),
    "0.37b": (24, 1024, 16, 2816),
    "0.76b": (24, 1536, 24, 4096),
    "1.4b": (24, 2048, 16, 5632),
    "7b": (32, 4096, 32, 11008),
}

# The same in all sizes but for the matrices to the transformer's width: 263 to 271 M weights, both halves, 16 x 16
# tokens. The paper says 0.27 B and no more (section 4.3.3).
_CODER = UNetCoder(channels=(448, 1216), attends=(True, True), layers_per_block=2, head_width=64)

# The paper's own VAE, 86 M weights and 32 x 32 x 8 latents (section 4.1), was not published. Lay one of that form into
# this folder in diffusers' layout, or: --set architecture.canvas.vae.path=DIR
_CANVAS = Latents(
    vae=Pretrained(
        path="./transfusion-vae",
        sizes=Vae(channels=(128, 256, 512, 512), latent_channels=8, layers_per_block=2, scale=1.0),
    ),
    side=256,
    factor=8,
    channels=8,
)


def tiny() -> Training:
    """Transfusion in miniature: 1.5 M parameters, 64 tokens a picture in straight pixels, two CPU workers under ZeRO-2.

    Run:     interlace train transfusion:tiny
    Cost:    25 s of steps and 12 s of start on two cores (make mini, 2026-11-25)
    Expect:  both losses fall, the picture's under 0.3; colours and shapes take longer (world:transfusion learns them)
    """
    return Training(
        name="transfusion-tiny",
        architecture=Transfusion(
            backbone=Llama(width=128, layers=4, heads=4, kv_heads=4, ffn=344, max_positions=320),
            canvas=Pixels(side=32),
            coder=UNetCoder(
                channels=(32, 32, 64), attends=(False, False, True), layers_per_block=1, head_width=16, groups=8
            ),
        ),
        mixture=mixtures.mini_transfusion(),
        optimizer=AdamW(learning_rate=2e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_steps=8, minimum_rate=1e-4),
        batch=8,
        steps=40,
        sequence_length=320,  # its longest document has 284 tokens
        packing=Packing(),
        execution=Execution(zero_stage=2, micro_batch=4, save_every=20),
    )


def paper(size: Size = "7b") -> Training:
    """Transfusion from scratch on 0.5 T tokens, half of them text: the five sizes of table 2.

    Run:     interlace train 'transfusion:paper(size="7b")' --cluster slurm --nodes 32
    Cost:    not measured yet
    Expect:  of 7b C4 perplexity 7.72, CIDEr 33.7, FID 16.0 without guidance; FID of 0.16b 18.8, 0.37b 18.1, 0.76b 16.7,
             1.4b 16.6 (tables 3 and 7)
    """
    layers, width, heads, ffn = _SIZES[size]
    return Training(
        name=f"transfusion-{size}",
        architecture=Transfusion(
            backbone=Llama(
                width=width,
                layers=layers,
                heads=heads,
                kv_heads=heads,
                ffn=ffn,
                max_positions=4096,
                vocabulary=32_000,
                tokenizer=Pretrained(path="meta-llama/Llama-2-7b-hf", template="llama2"),
            ),
            canvas=_CANVAS,
            coder=_CODER,
        ),
        mixture=mixtures.transfusion(),
        optimizer=AdamW(  # section 4.1
            learning_rate=3e-4,
            betas=(0.9, 0.95),
            eps=1e-8,
            weight_decay=0.1,
            warmup_steps=4000,
            minimum_rate=1.5e-5,
            clip=1.0,
        ),
        batch=500,  # 2 M tokens
        steps=250_000,
        sequence_length=4096,
        packing=Packing(),
        execution=Execution(zero_stage=3, micro_batch=2, dtype="bfloat16", save_every=500),
    )


def dense(text_rate: float = 1.0) -> Training:
    """Dense fine-tuning of Llama-3-8B, which LMFusion compares itself with: at the rates 1, 0.1 and 0 of the text's.

    Run:     interlace train 'transfusion:dense(text_rate=0.1)' --cluster slurm --nodes 16
    Cost:    not measured yet
    Expect:  at 1 text is soon worse than Llama-3's, at 0 it stays and pictures are poor; 0.1 lies between
             (LMFusion, section 5.1, arXiv:2412.15188)
    """
    scratch = paper()
    return replace(
        scratch,
        name=f"transfusion-dense-{text_rate:g}",
        architecture=replace(
            scratch.architecture,
            backbone=Pretrained(path="meta-llama/Meta-Llama-3-8B", sizes=LLAMA3_8B),
            text_rate=text_rate,
        ),
        mixture=mixtures.lmfusion(),
        optimizer=replace(scratch.optimizer, learning_rate=1e-4),  # eta_img: LMFusion, section 4.1
        batch=72,  # 250 K picture tokens, of some 3,500 in a row: LMFusion, section 5.1
        steps=100_000,  # not stated
    )


def onegpu() -> Training:
    """The smallest of the paper's sizes on one card of 80 GB, in smaller batches.

    Run:     interlace train transfusion:onegpu
    Cost:    not measured yet
    Expect:  both losses still fall at the end: it sees a fortieth of the paper's tokens
    """
    small = paper(size="0.16b")
    return replace(
        small,
        name="transfusion-onegpu",
        optimizer=replace(small.optimizer, warmup_steps=1000),
        batch=32,
        steps=100_000,
        execution=Execution(zero_stage=1, micro_batch=2, dtype="bfloat16", save_every=500),
    )
