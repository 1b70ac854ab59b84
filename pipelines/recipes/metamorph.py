"""MetaMorph, arXiv:2412.14164: a language model that reads and writes SigLIP tokens, and its visualizer."""

from __future__ import annotations

from models.configs import Llama, MetaMorph, Siglip, UNet, Visualizer
from pipelines.recipes import mixtures
from pipelines.training import AdamW, Execution, Training

# One frozen encoder for both trainings: the visualizer must see what the language model writes.
_TINY_VISION = Siglip(picture=64, patch=8, width=96, layers=2, heads=4, ffn=192)
_TINY_GRID = 4


def tiny() -> Training:
    """MetaMorph in miniature: 1 M parameters, 16 tokens a picture, two CPU workers under ZeRO-2.

    Run:     interlace train metamorph:tiny
    Cost:    90 s of steps and 15 s of start on two cores (make mini, 2026-11-25)
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
        batch=24,
        steps=200,
        sequence_length=640,  # 12 pictures, a reversed clip of 6 frames, and 400 letters
        execution=Execution(zero_stage=2, micro_batch=12, save_every=50),
    )


def tiny_visualizer() -> Training:
    """The visualizer in miniature: a small UNet paints 32 px pictures from 16 SigLIP tokens.

    Run:     interlace train metamorph:tiny_visualizer
    Cost:    105 s of steps and 15 s of start on two cores (make mini, 2026-11-22)
    Expect:  the loss falls under 0.1; light backgrounds with blobs of colour, shapes take far longer than this
    """
    return Training(
        name="metamorph-tiny-visualizer",
        architecture=Visualizer(
            vision=_TINY_VISION,
            decoder=UNet(
                picture=32,
                channels=(16, 32, 64),
                attends=(False, False, True),
                layers_per_block=1,
                condition_width=64,
                heads=4,
                prediction="v_prediction",  # finds light backgrounds in 100 steps; epsilon is noise after 200
            ),
            grid=_TINY_GRID,
            projector_width=256,
            condition_dropout=0.1,  # from scratch: the paper's 0.7 is for a UNet that can already paint
        ),
        mixture=mixtures.mini_pictures(),
        optimizer=AdamW(learning_rate=4e-3, warmup_steps=20, minimum_rate=2e-4),
        batch=16,
        steps=400,
        sequence_length=2,
        execution=Execution(zero_stage=2, micro_batch=8, save_every=100),
    )
