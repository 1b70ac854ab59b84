"""What a corpus of pairs is made from, as measures of a corpus of pages: how alike pictures are, what leads to which.

    mmc4 ═► Similarity ═► Instructions ═► rows of records and replies ─ Mmc4Pairs ─► mmc4_pairs

The groups, targets and templates are in dataflow/pairs.py, the networks in models/likeness.py and models/writer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from dataflow import pairs
from dataflow.measures import Ready
from dataflow.media import Corrupt, decoded
from dataflow.pairs import Rule
from dataflow.record import Media, Record
from models.parts import OpenClip, Pretrained

Write = Callable[[Sequence[Media], Sequence[str]], str]
"""(pictures of a group, their captions), the target's last -> a reply that holds the prompt in square brackets."""

SIGLIP = OpenClip(model="ViT-L-16-SigLIP-256", pretrained="webli")  # google/siglip-large-patch16-256, of the code

# Ours; what is asked of the prompt is in MetaQuery's appendix A.
_SYSTEM = "You write short instructions for a program that paints a new picture after pictures it is shown."
_TASK = (
    "The last picture is the one to be painted; the program sees only the ones before it and your instruction. "
    "Think first: name one thing in general terms that the target shares with the pictures before it, such as the "
    "subject or the style, and then everything that only the target has. Write an instruction that asks for a picture "
    "in which the shared thing is kept and all of these differences are named. Speak of the shared thing vaguely, as "
    '"the same subject" or "this style", so that nobody could paint the target who has not seen the pictures '
    "before it. Do not mention captions or that there is a target. Reply with a thought of one or two sentences and "
    "then the instruction alone in square brackets, as in [The same place on a winter night, with snow on the roofs.]"
)


class WriterOf(Protocol):
    """A frozen dataclass: who writes the instructions."""

    version: ClassVar[int]

    def there(self) -> None: ...

    def ready(self) -> Write: ...


@dataclass(frozen=True, kw_only=True)
class Template:
    """Nobody: a fixed wording around the target's caption, for a corpus without a model and for the miniature ones."""

    version: ClassVar[int] = 1

    def there(self) -> None:
        """Nothing is needed."""

    def ready(self) -> Write:
        """Nothing to load."""
        return lambda pictures, captions: pairs.template(captions)


@dataclass(frozen=True, kw_only=True)
class QwenWriter:
    """A Qwen2.5-VL (the paper: 3B) or a Qwen2-VL (its code: 7B), by hub id or folder, greedily.

    tokens: most of a reply. pixels: most of a picture.
    """

    weights: Pretrained
    tokens: int = 256
    pixels: int = 768 * 28 * 28  # both as upstream's curate_dataset.py
    version: ClassVar[int] = 1

    def there(self) -> None:
        """ValueError where the weights are neither here nor to be had."""
        from models import pretrained

        pretrained.there(self.weights)

    def ready(self) -> Write:
        """Load the network."""
        from models.writer import Writer  # torch, which a recipe does without

        writer = Writer(self.weights, tokens=self.tokens, pixels=self.pixels)

        def written(pictures: Sequence[Media], captions: Sequence[str]) -> str:
            names = [f"Picture {place}" for place in range(1, len(captions))] + ["Target picture"]
            parts: list[Any] = []
            for name, media, caption in zip(names, pictures, captions, strict=True):
                parts += (f"{name}: ", decoded(media), f"\nIts caption: {caption}\n\n")
            return writer(_SYSTEM, (*parts, _TASK))

        return written


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How alike the captioned pictures of a record are, by their captions and by themselves: cosines of a SigLIP.

    media: index of each captioned picture that decodes. captions, pictures: n rows of n, one after the other; empty
    where a record has fewer than two.
    """

    weights: OpenClip = SIGLIP
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("open_clip_torch", "pillow", "torch", "torchvision")
    gpus: ClassVar[float] = 1

    @property
    def name(self) -> str:
        """Names the folder."""
        return "similarity"

    @property
    def columns(self) -> pa.Schema:
        """See the class."""
        numbers = pa.list_(pa.float32())
        return pa.schema([("media", pa.list_(pa.int32())), ("captions", numbers), ("pictures", numbers)])

    def there(self) -> None:
        """ValueError where the weights are neither here nor to be had."""
        from models import openclip

        openclip.there(self.weights)

    def ready(self) -> Ready:
        """Load the network."""
        from models.likeness import Likeness

        likeness = Likeness(self.weights)

        def measured(records: Sequence[Record]) -> Mapping[str, Sequence[Any]]:
            columns: dict[str, list[Any]] = {"media": [], "captions": [], "pictures": []}
            for record in records:
                media, captions, pictures = [], [], []
                for index, caption in pairs.captioned(record):
                    try:
                        pictures.append(decoded(record.media[index]))
                    except Corrupt:
                        continue
                    media.append(index)
                    captions.append(caption)
                several = len(media) > 1
                columns["media"].append(media)
                columns["captions"].append(likeness.captions(captions).ravel().tolist() if several else [])
                columns["pictures"].append(likeness.pictures(pictures).ravel().tolist() if several else [])
            return columns

        return measured


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """Groups of a record's pictures, and for each what is written of the way from the others to its target.

    groups: indices into the record's media, the target's last. replies: a text per group, the prompt in brackets.
    threshold: least cosine of any two captions of a group. most: pictures of a group. target: which picture is least
    like the others (`pairs.target`). side: pictures whose shorter side is under it, in px, take no part.
    Source: MetaQuery, section 4: 6 and 0.5, by average; its code: cos > about 0.54, by minimum, 256 px.
    """

    similarity: Similarity = Similarity()
    writer: WriterOf = Template()
    threshold: float = 0.5
    most: int = 6
    target: Rule = "average"
    side: int = 256
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("pillow", "tokenizers", "torch", "transformers")
    gpus: ClassVar[float] = 1

    def __post_init__(self) -> None:
        if self.most < 2:
            raise ValueError(f"most={self.most}: a group has a source and a target at least")
        if self.target not in ("average", "minimum"):
            raise ValueError(f"target={self.target!r}: a target is least alike by average or by minimum")
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold}: a cosine is from -1 to 1")

    @property
    def name(self) -> str:
        """Names the folder, and the column of a row that a source reads."""
        return "instructions"

    @property
    def columns(self) -> pa.Schema:
        """See the class."""
        return pa.schema([("groups", pa.list_(pa.list_(pa.int32()))), ("replies", pa.list_(pa.string()))])

    @property
    def measures(self) -> tuple[Similarity, ...]:
        """What it is made of."""
        return (self.similarity,)

    def there(self) -> None:
        """ValueError where the writer's weights are neither here nor to be had."""
        self.writer.there()

    def ready(self) -> Callable[..., Mapping[str, Sequence[Any]]]:
        """Make the writer ready."""
        write = self.writer.ready()

        def measured(
            records: Sequence[Record], rows: Mapping[str, Sequence[Mapping[str, Any]]]
        ) -> Mapping[str, Sequence[Any]]:
            groups, replies = [], []
            for record, alike in zip(records, rows[self.similarity.name], strict=True):
                captions = dict(pairs.captioned(record))
                found = self.groups(record, alike)
                groups.append(found)
                replies.append([write([record.media[i] for i in each], [captions[i] for i in each]) for each in found])
            return {"groups": groups, "replies": replies}

        return measured

    def groups(self, record: Record, alike: Mapping[str, Sequence[Any]]) -> list[list[int]]:
        """The groups of a record by its row of `Similarity`, indices into its media, the target's last."""
        held = len(alike["media"])
        if not alike["captions"]:
            return []
        large = [
            place
            for place, index in enumerate(alike["media"])
            if min(record.media[index].width, record.media[index].height) >= self.side
        ]
        kept = np.ix_(large, large)
        captions, pictures = (
            np.asarray(alike[name], np.float32).reshape(held, held)[kept] for name in ("captions", "pictures")
        )
        found = []
        for group in pairs.grouped(captions, threshold=self.threshold, most=self.most):
            last = group.pop(pairs.target(pictures[np.ix_(group, group)], rule=self.target))
            found.append([alike["media"][large[place]] for place in (*group, last)])
        return found
