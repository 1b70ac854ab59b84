"""Scores of networks as measures: the values that a recipe holds. The networks are in `models/scorers.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from dataflow.measures import Ready
from dataflow.media import Corrupt, decoded
from dataflow.record import TASKS, Record, Text
from models.parts import OpenClip


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """How well a record's caption names its picture: the cosine of a CLIP or SigLIP, -1..1.

    score: float32, null with a reason for a record of another task, without a caption, with more pictures than one, or
    whose picture does not decode. The caption is what the assistant says, else what the user says.
    tasks: of the records that are scored. A worker has a GPU of its own where the cluster has any.
    The same numbers everywhere but for rounding, 1e-5: keep a threshold's digits few.
    """

    weights: OpenClip
    tasks: tuple[str, ...] = ("text_to_image", "caption_pair")
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("open_clip_torch", "pillow", "torch", "torchvision")
    gpus: ClassVar[float] = 1

    def __post_init__(self) -> None:
        if strange := sorted(set(self.tasks) - TASKS):
            raise ValueError(f"tasks={self.tasks}: {strange[0]!r} is none; they are {', '.join(sorted(TASKS))}")

    @property
    def name(self) -> str:
        """Names the folder."""
        return "clip_score"

    @property
    def columns(self) -> pa.Schema:
        """score, and why there is none."""
        return pa.schema([("score", pa.float32()), ("reason", pa.string())])

    def there(self) -> None:
        """ValueError where the weights are neither here nor to be had."""
        from models import openclip

        openclip.there(self.weights)

    def ready(self) -> Ready:
        """Load the network."""
        from models.scorers import Scorer  # torch, which a recipe does without

        scorer = Scorer(self.weights)

        def measured(records: Sequence[Record]) -> Mapping[str, Sequence[Any]]:
            scores: list[float | None] = [None] * len(records)
            reasons = [""] * len(records)
            places, pictures, captions = [], [], []
            for place, record in enumerate(records):
                try:
                    caption = self._caption(record)
                    pictures.append(decoded(record.media[0]))
                except (_Unscored, Corrupt) as why:
                    reasons[place] = str(why)
                else:
                    places.append(place)
                    captions.append(caption)
            for place, score in zip(places, scorer(pictures, captions), strict=True):
                scores[place] = score
            return {"score": scores, "reason": reasons}

        return measured

    def _caption(self, record: Record) -> str:
        if record.task not in self.tasks:
            raise _Unscored(f"task {record.task} is not scored")
        if len(record.media) != 1:
            raise _Unscored(f"{len(record.media)} pictures")
        for role in ("assistant", "user"):
            said = [
                part.text
                for message in record.messages
                if message.role == role
                for part in message.parts
                if isinstance(part, Text)
            ]
            if caption := " ".join(said).strip():
                return caption
        raise _Unscored("no caption")


class _Unscored(Exception):
    """Why a record has no score."""
