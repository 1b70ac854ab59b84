"""MetaQuery, arXiv:2504.06256: learned queries between a frozen vision-language model and a diffusion decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from dataflow.mixture import Group, Member, Mixture, Passes
from dataflow.selection import Part
from models.configs import MetaQuery
from models.parts import (
    SD15,
    Connector,
    DeepLatents,
    DeepVae,
    Llama,
    LlavaOneVision,
    Pixels,
    Pretrained,
    QwenVision,
    QwenVL,
    Sana,
    SanaTransformer,
    Siglip,
)
from pipelines.corpus import Corpus
from pipelines.recipes import corpora, mixtures
from pipelines.training import AdamW, Execution, Training

# Base, Large and XL of section 4; sizes as their config.json
_LLAVA = Pretrained(
    path="llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    template="chatml",
    sizes=LlavaOneVision(
        vision=Siglip(picture=384, patch=14, width=1152, layers=26, heads=16, ffn=4304),
        text=Llama(
            width=896,
            layers=24,
            heads=14,
            kv_heads=2,
            ffn=4864,
            max_positions=32768,
            rope_theta=1_000_000.0,
            norm_eps=1e-6,
            family="qwen2",
            vocabulary=152000,
            tied=True,
        ),
    ),
)
_QWEN_VISION = QwenVision(
    patch=14, merge=2, window=112, width=1280, layers=32, heads=16, ffn=3420, whole=(7, 15, 23, 31)
)
_QWEN_3B = Pretrained(
    path="Qwen/Qwen2.5-VL-3B-Instruct",
    template="chatml",
    sizes=QwenVL(
        vision=_QWEN_VISION,
        text=Llama(
            width=2048,
            layers=36,
            heads=16,
            kv_heads=2,
            ffn=11008,
            max_positions=128000,
            rope_theta=1_000_000.0,
            norm_eps=1e-6,
            family="qwen2",
            vocabulary=151936,
            tied=True,
        ),
        sections=(16, 24, 24),
    ),
)
_QWEN_7B = Pretrained(
    path="Qwen/Qwen2.5-VL-7B-Instruct",
    template="chatml",
    sizes=QwenVL(
        vision=_QWEN_VISION,
        text=Llama(
            width=3584,
            layers=28,
            heads=28,
            kv_heads=4,
            ffn=18944,
            max_positions=128000,
            rope_theta=1_000_000.0,
            norm_eps=1e-6,
            family="qwen2",
            vocabulary=152064,
            tied=False,
        ),
        sections=(16, 24, 24),
    ),
)
_DEEP = DeepVae(
    channels=(128, 256, 512, 512, 1024, 1024),
    attends=(False, False, False, True, True, True),
    latent_channels=32,
    encoder_layers=(2, 2, 2, 3, 3, 3),
    decoder_layers=(3, 3, 3, 3, 3, 3),
    scale=0.41407,
    head_width=32,
)


def _sana(path: str, sizes: SanaTransformer) -> Sana:
    return Sana(
        canvas=DeepLatents(vae=Pretrained(path=path, sizes=_DEEP), side=512, factor=32, channels=32, subfolder="vae"),
        network=Pretrained(path=path, sizes=sizes),
    )


_SANA_LARGE = _sana(
    "Efficient-Large-Model/Sana_1600M_512px_diffusers",
    SanaTransformer(layers=20, heads=70, head_width=32, cross_heads=20, condition_width=2304, ffn=2.5, patch=1),
)
_SANA_SMALL = _sana(
    "Efficient-Large-Model/Sana_600M_512px_diffusers",
    SanaTransformer(layers=28, heads=36, head_width=32, cross_heads=16, condition_width=2304, ffn=2.5, patch=1),
)


def tiny() -> Training:
    """MetaQuery in miniature: 16 queries, a random Qwen2.5-VL and a Sana of 1 M parameters over straight pixels.

    Run:     interlace train metaquery:tiny
    Cost:    25 s of steps and 12 s of start on two cores (make mini, 2026-11-25)
    Expect:  the picture loss falls to about 1.2 of 2; the language model is random, captions come through blurred
    """
    return Training(
        name="metaquery-tiny",
        architecture=MetaQuery(
            backbone=QwenVL(
                vision=QwenVision(patch=4, merge=2, window=16, width=64, layers=2, heads=4, ffn=128, whole=(1,)),
                text=Llama(width=128, layers=4, heads=4, kv_heads=2, ffn=384, max_positions=1024, family="qwen2"),
                sections=(4, 6, 6),
            ),
            decoder=Sana(
                canvas=Pixels(side=32),
                network=SanaTransformer(layers=4, heads=4, head_width=32, cross_heads=4, condition_width=128, patch=4),
            ),
            connector=Connector(layers=2, head_width=32),
            queries=16,
            pixels=(8 * 8 * 12, 8 * 8 * 24),  # 12 to 24 tokens
            caption_tokens=192,  # bytes
            system="",  # letter by letter it would be a third of a row, and random weights were not tuned under it
        ),
        mixture=mixtures.mini_metaquery(),
        optimizer=AdamW(
            learning_rate=2e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_steps=8, minimum_rate=1e-4, clip=0.5
        ),
        batch=16,
        steps=40,
        sequence_length=640,
        execution=Execution(zero_stage=2, micro_batch=8, save_every=20),
    )


def base_sana() -> Training:
    """MetaQuery-B learns to paint: LLaVA-OneVision 0.5B, 256 queries, Sana 1.6B at 512 px.

    Run:     interlace train metaquery:base_sana --cluster slurm --nodes 8
    Cost:    not measured yet
    Expect:  MJHQ FID 6.28, GenEval 0.74 of rewritten prompts, DPG 80.04, WISE 0.46 (tables 4 and 6)
    """
    return Training(
        name="metaquery-base-sana",
        architecture=MetaQuery(
            backbone=_LLAVA,
            decoder=_SANA_LARGE,
            connector=Connector(layers=24, order="enc_proj"),
            queries=256,
            trained="decoder",
        ),
        mixture=mixtures.metaquery_pretrain(),
        optimizer=AdamW(
            learning_rate=1e-4,  # this, the warm-up and the minimum: section 4
            betas=(0.9, 0.95),  # these, decay and clip: train.py and zero1.json of facebookresearch/metaquery
            eps=1e-8,
            weight_decay=0.1,
            clip=0.5,
            warmup_steps=4000,
            minimum_rate=1e-5,
        ),
        batch=4096,
        steps=None,  # the mixture's eight passes
        sequence_length=640,  # caption and queries, 256 each, and what frames them
        execution=Execution(zero_stage=2, micro_batch=32, dtype="bfloat16", save_every=500),
    )


def base_sd15() -> Training:
    """MetaQuery-B with Stable Diffusion 1.5 as its decoder, whose condition has 77 places.

    Run:     interlace train metaquery:base_sd15 --cluster slurm --nodes 8
    Cost:    not measured yet
    Expect:  COCO-30K FID 8.91 (table 4)
    """
    return _stable(base_sana(), "metaquery-base-sd15", micro_batch=32)


def large_sana() -> Training:
    """MetaQuery-L: Qwen2.5-VL 3B and a connector of 1.6 B parameters.

    Run:     interlace train metaquery:large_sana --cluster slurm --nodes 16
    Cost:    not measured yet
    Expect:  MJHQ FID 6.35, GenEval 0.78 of rewritten prompts, DPG 81.10, WISE 0.55 (tables 4 and 6)
    """
    return _grown(base_sana(), "metaquery-large-sana", _QWEN_3B, micro_batch=8)


def large_sd15() -> Training:
    """MetaQuery-L with Stable Diffusion 1.5 as its decoder.

    Run:     interlace train metaquery:large_sd15 --cluster slurm --nodes 16
    Cost:    not measured yet
    Expect:  COCO-30K FID 8.87 (table 4)
    """
    return _stable(large_sana(), "metaquery-large-sd15", micro_batch=8)


def xl_sana() -> Training:
    """MetaQuery-XL: Qwen2.5-VL 7B and a connector of 4.9 B parameters.

    Run:     interlace train metaquery:xl_sana --cluster slurm --nodes 32
    Cost:    not measured yet
    Expect:  MJHQ FID 6.02, GenEval 0.80 of rewritten prompts, DPG 82.05, WISE 0.55 (tables 4 and 6)
    """
    return _grown(base_sana(), "metaquery-xl-sana", _QWEN_7B, micro_batch=8)


def xl_sd15() -> Training:
    """MetaQuery-XL with Stable Diffusion 1.5 as its decoder.

    Run:     interlace train metaquery:xl_sd15 --cluster slurm --nodes 32
    Cost:    not measured yet
    Expect:  COCO-30K FID 8.69 (table 4)
    """
    return _stable(xl_sana(), "metaquery-xl-sd15", micro_batch=8)


def ablation() -> Training:
    """What the paper's ablations vary: 64 queries, a frozen Sana 0.6B, four passes instead of eight.

    Run:     interlace train metaquery:ablation --cluster slurm --nodes 4   (rows: --set architecture.condition=... and
             architecture.trained=..., architecture.connector.order=..., architecture.reconstruction=0.5)
    Cost:    not measured yet
    Expect:  MJHQ FID 7.43, GenEval 0.56, DPG 75.35; random queries 8.59, 0.35, 54.81; last layer 7.49, 0.55, 78.41
             (table 1); language_model 7.75, 0.58, 78.97; all 6.28, 0.61, 79.39; decoder 6.06, 0.61, 76.66 (table 2)
    """
    large = base_sana()
    (captions,) = large.mixture.groups
    four = replace(captions, members=tuple(replace(member, amount=Passes(times=4)) for member in captions.members))
    return replace(
        large,
        name="metaquery-ablation",
        architecture=replace(large.architecture, decoder=_SANA_SMALL, queries=64, trained="connector"),
        mixture=replace(large.mixture, groups=(four,)),
        sequence_length=448,
    )


def edit() -> Training:
    """MetaQuery-B learns to edit in a thousand steps (section 5.3).

    Run:     interlace train metaquery:edit --cluster slurm --nodes 4
    Cost:    not measured yet
    Expect:  edits that follow the instruction and keep the rest (figure 5: no numbers)
    """
    base = base_sana()
    return replace(
        base,
        name="metaquery-edit",
        mixture=_only(corpora.omniedit()),  # the corpus of dataset.py; the paper says public editing data
        optimizer=replace(base.optimizer, warmup_steps=0),  # of 1,000 steps; not stated
        batch=1024,  # not stated
        steps=1000,
        sequence_length=1408,  # a picture of 730 tokens
        start_from=base,
        execution=replace(base.execution, micro_batch=16),
    )


def instruct(size: Literal["base", "large", "xl"] = "base") -> Training:
    """MetaQuery learns from 2.4 M pairs of pictures whose instruction says what leads from some to another.

    Run:     interlace train metaquery:instruct --cluster slurm --nodes 8   ('metaquery:instruct(size="xl")': the paper
             tunes Base alone)
    Cost:    not measured yet
    Expect:  of Base DreamBench DINO 0.737, CLIP-I 0.852, CLIP-T 0.301 (table 7)
    """
    base = {"base": base_sana, "large": large_sana, "xl": xl_sana}[size]()
    return replace(
        base,
        name=base.name.replace("sana", "instruct"),
        mixture=mixtures.metaquery_instruct(),
        batch=2048,  # section 4
        steps=None,  # the mixture's three passes
        sequence_length=4352,  # five pictures of 730 tokens
        start_from=base,
        execution=replace(base.execution, micro_batch=base.execution.micro_batch // 4),
    )


def frames() -> Training:
    """MetaQuery-B learns to paint what a clip shows next or between; not in the paper, trained as edits are.

    Run:     interlace train metaquery:frames --cluster slurm --nodes 4
    Cost:    not measured yet
    Expect:  frames that keep place and people of those before
    """
    base = edit()
    return replace(
        base,
        name="metaquery-frames",
        mixture=_only(corpora.howto100m(), corpora.something_something()),
        sequence_length=8192,
        execution=replace(base.execution, micro_batch=4),
    )


def onegpu() -> Training:
    """MetaQuery-B on one card of 80 GB: Sana 0.6B, 64 queries, 0.9 B trained weights.

    Run:     interlace train metaquery:onegpu
    Cost:    not measured yet
    Expect:  pictures that follow simple captions after some ten thousand steps
    """
    small = ablation()
    return replace(
        small,
        name="metaquery-onegpu",
        architecture=replace(small.architecture, trained="decoder"),
        optimizer=replace(small.optimizer, warmup_steps=1000),
        batch=256,
        steps=50_000,
        execution=replace(small.execution, micro_batch=32),
    )


def _grown(base: Training, name: str, backbone: Pretrained, *, micro_batch: int) -> Training:
    return replace(
        base,
        name=name,
        architecture=replace(base.architecture, backbone=backbone),
        execution=replace(base.execution, micro_batch=micro_batch),
    )


def _stable(sana: Training, name: str, *, micro_batch: int) -> Training:
    # configs/*_sd.yaml leave the UNet frozen, the paper trains every decoder: --set architecture.trained=decoder
    stable = replace(sana.architecture, decoder=SD15, queries=77, trained="connector")
    return replace(
        sana,
        name=name,
        architecture=stable,
        sequence_length=448,
        execution=replace(sana.execution, micro_batch=micro_batch),
    )


def _only(*members: Corpus) -> Mixture:
    held = Part(part="train")
    return Mixture(
        groups=(Group(name="other", share=1, members=tuple(Member(corpus=one, select=held) for one in members)),)
    )
