"""Tiny parts that the tests of several architectures are put together from."""

from __future__ import annotations

from models.parts import (
    Clip,
    Connector,
    LinearCoder,
    Llama,
    LlavaNext,
    LlavaOneVision,
    Pixels,
    QwenVision,
    QwenVL,
    Sana,
    SanaTransformer,
    Siglip,
    StableUNet,
    UNet,
    UNetCoder,
)

LLAMA = Llama(width=32, layers=2, heads=4, kv_heads=2, ffn=48)
QWEN2 = Llama(width=32, layers=2, heads=4, kv_heads=2, ffn=48, family="qwen2", tied=True)
SIGLIP = Siglip(picture=32, patch=8, width=16, layers=1, heads=2, ffn=32)
PIXELS = Pixels(side=16)
UNET_CODER = UNetCoder(
    channels=(8, 16, 16, 16), attends=(False, False, False, True), layers_per_block=1, head_width=8, groups=4
)
LINEAR_CODER = LinearCoder(patch=4)
STABLE = StableUNet(
    canvas=PIXELS,
    network=UNet(picture=16, channels=(8, 16), attends=(False, True), layers_per_block=1, condition_width=16, heads=2),
)
LLAVA_NEXT = LlavaNext(
    vision=Clip(picture=16, patch=4, width=16, layers=2, heads=2, ffn=24),
    text=LLAMA,
    pinpoints=((16, 32), (32, 16), (32, 32)),
)
QWEN = QwenVL(
    vision=QwenVision(patch=4, merge=2, window=16, width=16, layers=2, heads=2, ffn=24, whole=(1,)),
    text=Llama(width=32, layers=2, heads=2, kv_heads=1, ffn=48, family="qwen2", max_positions=1024),
    sections=(2, 3, 3),
)
LLAVA_ONEVISION = LlavaOneVision(vision=SIGLIP, text=QWEN.text)
SANA = Sana(
    canvas=PIXELS,
    network=SanaTransformer(layers=2, heads=2, head_width=8, cross_heads=2, condition_width=16, patch=2),
)
CONNECTOR = Connector(layers=2, head_width=16)
