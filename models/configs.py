"""What each architecture is made of, as frozen values: no torch here, so recipes list and describe in milliseconds.

A part is either spelled out (`Llama`, `Siglip`: transformers' own classes with random weights of a fixed seed) or
`Pretrained`: a hub id or a folder in the hub's layout. Library defaults are not the papers', so every field is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from models.layout import ByteTokenizer, ChatLayout, FileTokenizer, PictureLayout

if TYPE_CHECKING:
    from models.interface import Architecture


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Published weights: a hub id (`org/name`) or a folder in the hub's layout. `revision` pins a hub id."""

    path: str
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Llama:
    """A Llama-type decoder with random weights and the byte tokenizer. Sizes in units; `ffn` is the SwiGLU width."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    max_positions: int = 4096
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.kv_heads, self.ffn) < 1:
            raise ValueError(f"{self}: sizes are 1 or more")
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError(f"{self}: heads must divide width, and kv_heads divide heads")


@dataclass(frozen=True, kw_only=True)
class Siglip:
    """A SigLIP-type vision transformer with random weights. `picture` and `patch` in pixels."""

    picture: int
    patch: int
    width: int
    layers: int
    heads: int
    ffn: int
    seed: int = 0  # the frozen weights are a function of it, so that every rank and run sees the same features

    def __post_init__(self) -> None:
        if min(self.picture, self.patch, self.width, self.layers, self.heads, self.ffn) < 1:
            raise ValueError(f"{self}: sizes are 1 or more")
        # patch need not divide picture: SigLIP so400m reads 384 px by 14 and leaves the rest out
        if self.picture < self.patch or self.width % self.heads:
            raise ValueError(f"{self}: a picture holds a patch at least, and heads divide width")


@dataclass(frozen=True, kw_only=True)
class UNet:
    """A diffusers UNet2DConditionModel with random weights, in pixel space. `picture` in pixels.

    channels: of each scale, finest first. attends: whether a scale has self- and cross-attention; its cost grows with
    the fourth power of the scale's side, so fine scales go without.
    """

    picture: int
    channels: tuple[int, ...]
    attends: tuple[bool, ...]
    layers_per_block: int
    condition_width: int  # of the cross-attention
    heads: int
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"  # Stable Diffusion 1.5 predicts epsilon

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.attends) or self.picture % 2 ** (len(self.channels) - 1):
            raise ValueError(f"{self}: attends has a value per scale, and every scale but the first halves the picture")


@dataclass(frozen=True, kw_only=True)
class StableDiffusion:
    """SD-1.5-type weights in diffusers' folder layout: the UNet is tuned, the VAE (f8c4) stays frozen."""

    path: str
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class MetaMorph:
    """Visual-predictive instruction tuning: a language model that reads and writes SigLIP tokens.

    Source: arXiv:2412.14164 section 2; facebookresearch/metamorph at 0b13deb where the paper is silent.
    """

    backbone: Llama | Pretrained
    vision: Siglip | Pretrained
    grid: int = 8  # picture tokens a side: 8 x 8 = 64, section 3
    head: Literal["linear", "mlp"] = "linear"  # "a projection layer", section 2.1; the released scripts use mlp
    vision_coefficient: float = 1.0  # of the cosine loss, metamorph_llama.py
    seed: int = 0  # of the weights that start at random

    def __post_init__(self) -> None:
        _check_grid(self.grid, self.vision)

    version: ClassVar[int] = 1
    tasks: ClassVar[tuple[str, ...]] = (
        "image_qa",
        "video_qa",
        "text_qa",
        "text_to_image",
        "frame_prediction",
        "visual_thinking",
        "image_editing",
        "subject_driven",
    )

    def layout(self) -> ChatLayout:
        """The chat layout over the backbone's tokenizer."""
        if isinstance(self.backbone, Pretrained):
            from models.pretrained import folder

            tokenizer = FileTokenizer(folder(self.backbone))
        else:
            tokenizer = ByteTokenizer()
        return ChatLayout(tokenizer=tokenizer, picture_tokens=self.grid**2)

    @property
    def picture(self) -> int:
        """Pixels a side of the pictures in a Batch."""
        return vision_pixels(self.vision)

    def build(self) -> Architecture:
        """The modules, on CPU, float32."""
        from models.metamorph import build

        return build(self)


@dataclass(frozen=True, kw_only=True)
class Visualizer:
    """The diffusion autoencoder that turns SigLIP tokens back into pixels; trained on its own.

    Source: arXiv:2412.14164 section 2.3; visualization/train.py at 0b13deb.
    """

    vision: Siglip | Pretrained
    decoder: UNet | StableDiffusion
    grid: int = 8
    projector_width: int = 2048  # hidden width of the two-layer projector
    condition_dropout: float = 0.7  # whole condition replaced by zeros, appendix A
    seed: int = 0

    def __post_init__(self) -> None:
        _check_grid(self.grid, self.vision)
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"condition_dropout={self.condition_dropout}: a probability is 0 to 1")

    version: ClassVar[int] = 1
    tasks: ClassVar[tuple[str, ...]] = (
        "image_qa",
        "video_qa",
        "text_to_image",
        "frame_prediction",
        "visual_thinking",
        "image_editing",
        "subject_driven",
    )

    def layout(self) -> PictureLayout:
        """One token per picture, no text."""
        return PictureLayout()

    @property
    def picture(self) -> int:
        """Pixels a side of the pictures in a Batch: enough for the encoder, which must see what it sees elsewhere."""
        return max(self.painted, vision_pixels(self.vision))

    @property
    def painted(self) -> int:
        """Pixels a side of the pictures that come out."""
        return self.decoder.picture if isinstance(self.decoder, UNet) else 512  # Stable Diffusion 1.5's size

    def build(self) -> Architecture:
        """The modules, on CPU, float32."""
        from models.visualizer import build

        return build(self)


def _check_grid(grid: int, vision: Siglip | Pretrained) -> None:
    """Tokens are made fewer, never more; a pretrained encoder's own grid is not known before it is loaded."""
    if grid < 1 or (isinstance(vision, Siglip) and grid > vision.picture // vision.patch):
        raise ValueError(f"grid={grid}: use 1 to the encoder's patches a side")


def vision_pixels(vision: Siglip | Pretrained) -> int:
    """Pixels a side that the vision encoder reads."""
    if isinstance(vision, Siglip):
        return vision.picture
    from models.pretrained import vision_config

    pixels = vision_config(vision).image_size
    assert isinstance(pixels, int)  # SigLIP reads squares
    return pixels
