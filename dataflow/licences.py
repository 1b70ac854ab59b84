"""Under which licence a corpus is published, and mixtures of those alone that a profile allows."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from dataflow.curation import Held, Verdicts, unmoved


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What the card or the repository of a source says of the set; pictures in it may be others'."""

    source: str
    named: str


PUBLISHED = (  # the column of docs/corpora.md, which says where each is
    Licence(source="aurora", named="MIT, parts vary"),
    Licence(source="cambrian", named="apache-2.0, parts vary"),
    Licence(source="cambrian_alignment", named="apache-2.0, parts vary"),
    Licence(source="captions", named="the set's"),
    Licence(source="howto100m", named="none stated"),
    Licence(source="instruct_pix2pix", named="not stated; repository MIT"),
    Licence(source="llava", named="CC-BY-4.0 (unverified); apache-2.0"),
    Licence(source="metaclip", named="code CC-BY-NC-4.0"),
    Licence(source="metaquery_instruct", named="CC-BY-NC and ODC-BY"),
    Licence(source="mmc4", named="ODC-BY and Common Crawl's terms"),
    Licence(source="mmc4_pairs", named="the pages' and the writer's"),
    Licence(source="omniedit", named="MIT (unverified)"),
    Licence(source="sharegpt4video", named="CC-BY-NC-4.0"),
    Licence(source="sharegptvideo", named="apache-2.0"),
    Licence(source="something_something", named="Qualcomm's research licence"),
    Licence(source="text", named="the set's"),
    Licence(source="videostar", named="apache-2.0"),
    Licence(source="visual_cot", named="apache-2.0"),
    Licence(source="vstar", named="MIT"),
)


@dataclass(frozen=True, kw_only=True)
class Licensed:
    """A licence profile: corpora under other licences are out of use, and a mixture that counts on one stops.

    allowed: licences by the words of `stated`. stated: of every source, by its name; the last word on one counts, so
    what you brought yourself, "the set's", is `(*PUBLISHED, Licence(source="captions", named="CC0"))`. A source of
    which nothing is stated is out of use.

    Raises:  ValueError: a licence that no source has.
    """

    allowed: tuple[str, ...]
    stated: tuple[Licence, ...] = PUBLISHED
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        known = sorted({licence.named for licence in self.stated})
        for name in self.allowed:
            if name not in known:
                near = " or ".join(map(repr, difflib.get_close_matches(name, known, cutoff=0.4))) or f"one of {known}"
                raise ValueError(f"allowed: no source is under {name!r}; did you mean {near}?")

    @property
    def measures(self) -> tuple[()]:
        """None."""
        return ()

    def __call__(self, held: Sequence[Held]) -> list[Verdicts]:
        """Verdicts, a corpus whole."""
        stated = {licence.source: licence.named for licence in self.stated}
        return [self._verdicts(corpus, stated.get(corpus.name)) for corpus in held]

    def _verdicts(self, held: Held, licence: str | None) -> Verdicts:
        if licence in self.allowed:
            return unmoved(held)
        named = "of no stated licence" if licence is None else f"under {licence!r}"
        reason = f"{held.name} is {named}, not under {' or '.join(map(repr, self.allowed)) or 'any licence'}"
        reasons = np.where(held.used, reason, "")
        return Verdicts(
            used=np.zeros(len(held.used), bool), reasons=pa.array(reasons, pa.string()), clusters=held.clusters
        )
