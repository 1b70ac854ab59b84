"""The architectures, as frozen values: no torch here, so recipes list and describe in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from models.bounds import SEED, SIDE, refused, whole, within
from models.layout import (
    CHATML,
    LLAMA3,
    LLAVA_SYSTEM,
    QUERY_SYSTEM,
    ChatLayout,
    FileTokenizer,
    LlavaLayout,
    MetaQueryLayout,
    PictureLayout,
    PlainLayout,
)
from models.parts import (
    Canvas,
    Coder,
    Connector,
    Llama,
    LlavaNext,
    LlavaOneVision,
    Lora,
    OpenClip,
    Pretrained,
    QwenVL,
    Sana,
    Siglip,
    StableUNet,
    VisionLanguage,
    template_of,
    tokenizer_of,
)
from models.views import Patches, Square, Tiles, View

if TYPE_CHECKING:
    from models.interface import Architecture

COEFFICIENT = 1e6  # of a loss or a rate beside another: beyond it float32 forgets the other
PIXELS = SIDE**2  # of a picture


@dataclass(frozen=True, kw_only=True)
class MetaMorph:
    """Visual-predictive instruction tuning: a language model that reads and writes SigLIP tokens.

    Source: arXiv:2412.14164 section 2; facebookresearch/metamorph at 0b13deb where the paper is silent.
    """

    backbone: Llama | Pretrained
    vision: Siglip | Pretrained | OpenClip
    grid: int = 8  # picture tokens a side: 8 x 8 = 64, section 3
    head: Literal["linear", "mlp"] = "linear"  # "a projection layer", section 2.1; the released scripts use mlp
    vision_coefficient: float = 1.0  # of the cosine loss, metamorph_llama.py
    trained: Literal["all", "adapter"] = "all"  # stage 1: the adapter and the marks' input rows, stage 2: all
    lora: tuple[Lora, ...] = ()
    seed: int = 0  # of the weights that start at random

    def __post_init__(self) -> None:
        _check_grid(self)
        within(self, 0, COEFFICIENT, "vision_coefficient")
        whole(self, "seed", least=0, most=SEED)

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
        return ChatLayout(
            tokenizer=tokenizer_of(self.backbone),
            picture_tokens=self.grid**2,
            template=template_of(self.backbone),
        )

    @property
    def seen(self) -> Square:
        """Every picture as SigLIP's processor cuts it: the whole, its shape not kept."""
        return Square(side=vision_pixels(self.vision))

    drawn: ClassVar[None] = None
    whole_pictures: ClassVar[bool] = False  # causal everywhere

    def build(self) -> Architecture:
        """The modules, on CPU, float32."""
        from models.metamorph import build

        return build(self)


@dataclass(frozen=True, kw_only=True)
class Visualizer:
    """The diffusion autoencoder that turns SigLIP tokens back into pixels; trained on its own.

    Source: arXiv:2412.14164 section 2.3; visualization/train.py at 0b13deb.
    """

    vision: Siglip | Pretrained | OpenClip
    decoder: StableUNet  # of published weights the condition has 77 places, else one per token
    grid: int = 8
    projector_width: int = 2048  # hidden width of the two-layer projector
    condition_dropout: float = 0.7  # whole condition replaced by zeros, appendix A
    lora: tuple[Lora, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _check_grid(self)
        whole(self, "projector_width")
        within(self, 0, 1, "condition_dropout")
        whole(self, "seed", least=0, most=SEED)

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

    seen: ClassVar[None] = None
    whole_pictures: ClassVar[bool] = False

    @property
    def drawn(self) -> Square:
        """Large enough for the encoder, which must see what it sees elsewhere."""
        return Square(side=max(self.decoder.canvas.side, vision_pixels(self.vision)))

    def build(self) -> Architecture:
        """The modules, on CPU, float32."""
        from models.visualizer import build

        return build(self)


@dataclass(frozen=True, kw_only=True)
class Transfusion:
    """One transformer over text and noised pictures: next tokens by cross-entropy, noise by its squared error.

    A backbone with published weights makes it the dense fine-tuning of section 5.1 of LMFusion.
    Source: arXiv:2408.11039 sections 3 and 4.1.
    """

    backbone: Llama | Pretrained
    canvas: Canvas
    coder: Coder
    picture_coefficient: float = 5.0  # lambda of equation 4
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"  # section 3
    whole_pictures: bool = True  # a picture sees all of itself; False: plain causal attention, table 5
    noise_cap: int = 500  # timesteps of 1,000 for a picture that text follows, section 4.3.4
    condition_dropout: float = 0.1  # not stated in the paper; classifier-free guidance needs some
    text_rate: float = 1.0  # of the language model's learning rate to the coders'; 0 freezes it
    lora: tuple[Lora, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_diffusion(self)

    version: ClassVar[int] = 1
    tasks: ClassVar[tuple[str, ...]] = (
        "image_qa",
        "video_qa",
        "text_qa",
        "text_to_image",
        "caption_pair",
        "frame_prediction",
        "visual_thinking",
        "image_editing",
        "subject_driven",
        "text_document",
        "interleaved_document",
    )

    @property
    def drawing(self) -> tuple[str, ...]:
        """The tasks whose documents may have drawn pictures: pictures that are given are drawn, too."""
        return tuple(task for task in self.tasks if task not in ("text_qa", "text_document"))

    @property
    def seen(self) -> View | None:
        """Nothing: pictures that are given are drawn, too, without noise."""
        return None

    @property
    def drawn(self) -> Square:
        """The middle square of every picture, section 4.1."""
        return Square(side=self.canvas.side, fit="crop")

    def layout(self) -> PlainLayout:
        """Documents without headers over the backbone's tokenizer."""
        return PlainLayout(
            tokenizer=tokenizer_of(self.backbone),
            picture_tokens=(self.canvas.cells // self.coder.patch) ** 2,
            template=template_of(self.backbone),
        )

    def build(self) -> Architecture:
        """The modules, on CPU, float32."""
        from models.transfusion import build

        return build(self)


@dataclass(frozen=True, kw_only=True)
class LMFusion(Transfusion):
    """Transfusion with a tower for pictures beside a language model that stays as it was published.

    What the paper leaves open is as in Transfusion: picture_coefficient, noise_cap, condition_dropout.
    Source: arXiv:2412.15188 sections 3 and 4.1.
    """

    separation: Literal["deep", "shallow", "none"] = "deep"  # attention and FFN apart, FFN alone, nothing: section 5.1
    text_rate: float = 0.0  # eta_text, section 4.1

    version: ClassVar[int] = 1

    def build(self) -> Architecture:
        """The modules, on CPU, float32."""
        from models.lmfusion import build

        return build(self)


@dataclass(frozen=True, kw_only=True)
class LLaVAFusion(LMFusion):
    """LMFusion beside a LLaVA-NeXT, which goes on to understand as it did: pictures of the user are read by its CLIP.

    Source: arXiv:2412.15188 table 2.
    """

    backbone: LlavaNext | Pretrained  # pyright: ignore[reportIncompatibleVariableOverride]
    system: str = LLAVA_SYSTEM  # what every chat begins with

    version: ClassVar[int] = 1
    tasks: ClassVar[tuple[str, ...]] = (
        "image_qa",
        "video_qa",
        "text_qa",
        "text_to_image",
        "caption_pair",
        "frame_prediction",
        "visual_thinking",
        "image_editing",
        "subject_driven",
    )

    @property
    def drawing(self) -> tuple[str, ...]:
        """The tasks whose documents may have drawn pictures: those of the assistant."""
        return tuple(task for task in self.tasks if task not in ("image_qa", "video_qa", "text_qa"))

    @property
    def seen(self) -> Tiles:
        """Every picture of the user, as LLaVA-NeXT's processor cuts it."""
        return tiles(self.backbone)

    def layout(self) -> LlavaLayout:
        """Chats as LLaVA-NeXT was tuned on, over its tokenizer."""
        return LlavaLayout(
            tokenizer=tokenizer_of(self.backbone.text if isinstance(self.backbone, LlavaNext) else self.backbone),
            picture_tokens=(self.canvas.cells // self.coder.patch) ** 2,
            tiles=self.seen,
            system=self.system,
        )

    def build(self) -> Architecture:
        """The modules, on CPU, float32."""
        from models.llavafusion import build

        return build(self)


@dataclass(frozen=True, kw_only=True)
class MetaQuery:
    """Learned queries in the input of a frozen vision-language model, whose states a diffusion decoder paints from.

    condition: what it paints from: states of learned queries, of random ones that stay, or of what was said (table 1).
    trained: besides the queries and the connector nothing, the decoder, the language model, or both (table 2).
    start: of the queries, as the paper says or all at the mean of the embedding, as its code has it.
    Source: arXiv:2504.06256 section 3; facebookresearch/metaquery where the paper is silent.
    """

    backbone: VisionLanguage | Pretrained
    decoder: Sana | StableUNet
    connector: Connector
    queries: int = 256  # of the final models; 64 in ablations, 77 under Stable Diffusion 1.5
    condition: Literal["queries", "random_queries", "last_layer"] = "queries"
    start: Literal["random", "mean"] = "random"
    trained: Literal["connector", "decoder", "language_model", "all"] = "decoder"
    reconstruction: float = 0.0  # share of captioned pictures that are shown and painted again, table 10
    condition_dropout: float = 0.1  # of a caption or the pictures; of both, where there are both: dataset.py
    pixels: tuple[int, int] = (256 * 28 * 28, 1280 * 28 * 28)  # of a picture that Qwen2.5-VL reads, models/model.py
    caption_tokens: int = 256  # dataset.py
    system: str = QUERY_SYSTEM
    lora: tuple[Lora, ...] = ()
    seed: int = 0  # of the weights that start at random

    def __post_init__(self) -> None:
        whole(self, "queries", "caption_tokens")
        within(self, 0, 1 / 3, "condition_dropout")  # it is used three times
        within(self, 0, 1, "reconstruction")
        whole(self, "pixels", most=PIXELS)
        if self.pixels[0] > self.pixels[1]:
            raise refused(self, "pixels", "must be the fewest, then the most")
        whole(self, "seed", least=0, most=SEED)

    version: ClassVar[int] = 1
    tasks: ClassVar[tuple[str, ...]] = ("text_to_image", "frame_prediction", "image_editing", "subject_driven")
    whole_pictures: ClassVar[bool] = False  # the language model's own causal attention, section 3.1

    def layout(self) -> MetaQueryLayout:
        """The chat layout over the backbone's tokenizer."""
        qwen = isinstance(self.sizes, QwenVL)
        around = ("<|vision_start|>", "<|vision_end|>") if qwen else None
        if isinstance(self.backbone, Pretrained):
            from models.pretrained import folder

            template = CHATML if qwen else replace(CHATML, gap=" ", after="")  # chat_template.json of either
            tokenizer = FileTokenizer(folder(self.backbone), (*template.controls, *(around or ())))
        else:
            template, tokenizer, around = LLAMA3, tokenizer_of(self.backbone.text), None
        return MetaQueryLayout(
            tokenizer=tokenizer,
            patches=self.seen if isinstance(self.seen, Patches) else self.seen_tokens,
            queries=1 if self.condition == "last_layer" else self.queries,  # a place that says where, never read
            template=template,
            around=around,
            lead="" if qwen else "\n",
            system=self.system,
            chat_system="You are a helpful assistant." if qwen else "",
            reconstruction=self.reconstruction,
            caption_tokens=self.caption_tokens,
        )

    @property
    def sizes(self) -> VisionLanguage:
        """Of the vision-language model."""
        if not isinstance(self.backbone, Pretrained):
            return self.backbone
        if isinstance(self.backbone.sizes, QwenVL | LlavaOneVision):
            return self.backbone.sizes
        from models.pretrained import vision_language_sizes

        return vision_language_sizes(self.backbone)

    @property
    def seen(self) -> Patches | Square:
        """Every picture of the user: whole, in Qwen2.5-VL's patches; of LLaVA-OneVision the middle, as dataset.py."""
        sizes = self.sizes
        if isinstance(sizes, QwenVL):
            return Patches(side=sizes.vision.tile, fewest=self.pixels[0], most=self.pixels[1])
        return Square(side=sizes.vision.picture, fit="crop")

    @property
    def seen_tokens(self) -> int:
        """Tokens of a picture that LLaVA-OneVision reads as one tile: its patches and the end of a row."""
        vision = self.sizes.vision
        assert isinstance(vision, Siglip)
        return (vision.picture // vision.patch) ** 2 + 1

    @property
    def drawn(self) -> Square:
        """The middle square of every picture, dataset.py."""
        return Square(side=self.decoder.canvas.side, fit="crop")

    def build(self) -> Architecture:
        """The modules, on CPU, float32."""
        from models.metaquery import build

        return build(self)


def _check_grid(config: MetaMorph | Visualizer) -> None:
    """Tokens are made fewer, never more; a pretrained encoder's own grid is not known before it is loaded."""
    vision = config.vision.sizes if isinstance(config.vision, Pretrained) else config.vision
    whole(config, "grid", most=vision.picture // vision.patch if isinstance(vision, Siglip) else SIDE)


def vision_pixels(vision: Siglip | Pretrained | OpenClip) -> int:
    """Pixels a side that the vision encoder reads."""
    if isinstance(vision, Siglip):
        return vision.picture
    if isinstance(vision, OpenClip):
        from models.openclip import picture

        return picture(vision)
    if isinstance(vision.sizes, Siglip):
        return vision.sizes.picture
    from models.pretrained import vision_config

    pixels = vision_config(vision).image_size
    assert isinstance(pixels, int)  # SigLIP reads squares
    return pixels


def tiles(backbone: LlavaNext | Pretrained) -> Tiles:
    """How a LLaVA-NeXT wants its pictures cut."""
    sizes = backbone if isinstance(backbone, LlavaNext) else backbone.sizes
    if isinstance(sizes, LlavaNext):
        return Tiles(side=sizes.vision.picture, patch=sizes.vision.patch, pinpoints=sizes.pinpoints)
    assert isinstance(backbone, Pretrained)
    from models.pretrained import llava_next_config, tiles_of

    return tiles_of(llava_next_config(backbone))


def check_diffusion(config: Transfusion) -> None:
    """What configs that noise a canvas share."""
    if config.canvas.cells % config.coder.patch:
        raise ValueError(f"a canvas of {config.canvas.cells} cells a side has no whole patches of {config.coder.patch}")
    within(config, 0, 1, "condition_dropout")
    whole(config, "noise_cap", most=1000)  # timesteps
    within(config, 0, COEFFICIENT, "picture_coefficient", "text_rate")
    whole(config, "seed", least=0, most=SEED)
