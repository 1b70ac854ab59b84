"""A world of three shapes in eight colors, learned whole on two cores; `make world` trains on it and judges.

`python benchmarks/world.py --data-only DIR` writes its two corpora: the drawings of easy-vqa (PyPI, MIT) cut to the
shape at 32 px, 3,578 with a caption, and 35,541 questions about them.
"""

from __future__ import annotations

from dataflow.mixture import Group, Member, Mixture
from dataflow.selection import Part
from dataflow.sources.captions import Captions
from dataflow.sources.llava import Llava
from models.configs import MetaMorph, Transfusion, Visualizer
from models.parts import LinearCoder, Llama, Pixels, Siglip, StableUNet, UNet
from pipelines.corpus import Corpus
from pipelines.training import AdamW, Execution, Training

_VISION = Siglip(picture=32, patch=8, width=96, layers=2, heads=4, ffn=192)
_GRID = 4
_TRAIN = Part(part="train")


def pictures() -> Corpus:
    """3,578 drawings, each asked for as in "a blue triangle".

    Run:     interlace build world:pictures --data DIR
    Cost:    1 s on two cores, and 5 s of Ray's start
    Expect:  every row kept
    """
    return Corpus(source=Captions(name="world_pictures"), rows_per_shard=500)


def questions() -> Corpus:
    """35,541 questions about them, answered by yes, no, a shape or a color.

    Run:     interlace build world:questions --data DIR
    Cost:    10 s on two cores, and 5 s of Ray's start
    Expect:  every row kept
    """
    return Corpus(source=Llava(name="world_questions"), rows_per_shard=4000)


def mixture(pictures_share: int = 70) -> Mixture:
    """Captions and questions, by share of the samples; one record in fifty is held back.

    Run:     interlace build 'world:mixture(pictures_share=70)' --data DIR
    Cost:    11 s on two cores, and 5 s of Ray's start
    Expect:  as many passes over the pictures as a training lasts
    """
    return Mixture(
        groups=(
            Group(name="generation", share=pictures_share, members=(Member(corpus=pictures(), select=_TRAIN),)),
            Group(
                name="understanding", share=100 - pictures_share, members=(Member(corpus=questions(), select=_TRAIN),)
            ),
        )
    )


def transfusion() -> Training:
    """Transfusion in straight pixels, 0.9 M parameters, learns to draw every shape in every color.

    Run:     make world   (or interlace train world:transfusion --data DIR)
    Cost:    11 min of steps on two cores (make world, 2026-11-29)
    Expect:  shape and color right in all of the drawn pictures, as a classifier of real ones sees them
    """
    return Training(
        name="world-transfusion",
        architecture=Transfusion(
            backbone=Llama(width=128, layers=4, heads=4, kv_heads=4, ffn=344, max_positions=256),
            canvas=Pixels(side=32),
            coder=LinearCoder(patch=4),
            prediction="v_prediction",  # clean shapes after 500 steps; by epsilon they are noise then
        ),
        mixture=mixture(pictures_share=90),
        optimizer=AdamW(learning_rate=2e-3, betas=(0.9, 0.95), weight_decay=0.01, warmup_steps=50, minimum_rate=1e-4),
        batch=64,
        steps=2000,
        sequence_length=192,
        execution=Execution(zero_stage=1, micro_batch=32, save_every=250),
    )


def metamorph() -> Training:
    """MetaMorph, 1 M parameters, answers the questions and predicts the pictures.

    Run:     make world   (or interlace train world:metamorph --data DIR)
    Cost:    14 min of steps on two cores (make world, 2026-11-29)
    Expect:  0.997 of 600 questions answered right; shape and color right in all that it predicts, once painted
    """
    return Training(
        name="world-metamorph",
        architecture=MetaMorph(
            backbone=Llama(width=128, layers=4, heads=4, kv_heads=4, ffn=344, max_positions=256),
            vision=_VISION,
            grid=_GRID,
        ),
        mixture=mixture(pictures_share=30),
        optimizer=AdamW(learning_rate=2e-3, betas=(0.9, 0.95), weight_decay=0.01, warmup_steps=50, minimum_rate=1e-4),
        batch=64,
        steps=2300,
        sequence_length=192,
        execution=Execution(zero_stage=1, micro_batch=32, save_every=500),
    )


def visualizer() -> Training:
    """Paints what world:metamorph predicts.

    Run:     make world   (or interlace train world:visualizer --data DIR)
    Cost:    15 min of steps on two cores (make world, 2026-11-29)
    Expect:  shape and color of all that world:metamorph predicts, as a classifier of real pictures sees them
    """
    return Training(
        name="world-visualizer",
        architecture=Visualizer(
            vision=_VISION,
            decoder=StableUNet(
                canvas=Pixels(side=32),
                network=UNet(
                    picture=32,
                    channels=(16, 32, 64, 96),
                    attends=(False, True, True, True),
                    layers_per_block=1,
                    condition_width=96,
                    heads=2,
                    prediction="v_prediction",
                ),
            ),
            grid=_GRID,
            projector_width=512,
            condition_dropout=0.0,  # from scratch: the paper's 0.7 is for a UNet that can already paint
        ),
        mixture=Mixture(
            groups=(Group(name="generation", members=(Member(corpus=pictures(), select=_TRAIN),), share=1),)
        ),
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=20, minimum_rate=2e-5),
        batch=16,
        steps=5000,
        sequence_length=2,
        execution=Execution(zero_stage=1, micro_batch=8, save_every=1000),
    )
