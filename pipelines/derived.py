"""A corpus made of a corpus: its input rows are the records of another one, with what was measured of them.

    of ═► measures ═► <root>/derived/<name>-<key>/00000.jsonl ... ─ source ─► a corpus as any other

One row, so one ledger row, per record of the other corpus; file 00017.jsonl, row 3: record 3 of its shard 00017.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataflow import derived, measures
from dataflow.index import BuiltCorpus
from dataflow.roots import Roots
from pipelines.corpus import Corpus, Unbuilt, build, is_built, is_declared, locate
from pipelines.curate import measure, measured, there
from pipelines.recipe import key
from pipelines.step import Place, alone

_SCHEMA = 1  # of the rows; raise it when their fields change


@dataclass(frozen=True, kw_only=True)
class Derived(Corpus):
    """A corpus whose source reads the records of `of` (dataflow/derived.py) and what `measures` say of each."""

    of: Corpus
    measures: tuple[Any, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shards == "adopted":
            raise ValueError(f"shards='adopted' of {self.name}: there are no tars of it yet; build it")
        if self.name in (self.of.name, derived.RECORDS):
            raise ValueError(f"source {self.name!r} reads records of {self.of.name!r}: give it a name of its own")

    @property
    def folder(self) -> str:
        """That of the other corpus."""
        return self.of.folder

    @property
    def parts(self) -> tuple[Any, ...]:
        """Those of a corpus, and all that it is measured by."""
        made_of = [other for each in self.measures for other in getattr(each, "measures", ())]
        return (*super().parts, *self.measures, *made_of)

    def deciding(self) -> dict[str, Any]:
        """As of any corpus; of the other one what decides its bytes."""
        return {**super().deciding(), "of": self.of.recipe_key()}

    def prepared(self, place: Place) -> Place:
        """Build the other corpus and measure it, where that is not done; then write the rows."""
        if not is_built(self.of, place):
            there(self.measures)
        corpus = BuiltCorpus(build(self.of, place))
        folders = [measure(each, corpus, place) for each in self.measures]
        step, rows = self._rows(corpus, folders, place)
        if not (rows / "manifest.json").is_file():
            with alone(rows.with_name(f".{rows.name}.lock"), rows.name):
                tables = {each.name: measures.read(folder) for each, folder in zip(self.measures, folders, strict=True)}
                derived.write(rows, corpus, tables, step=step)
        return self._placed(corpus, rows, place)

    def found(self, place: Place) -> Place:
        """Where the rows lie; nowhere, if it is not said which input is meant and they are not there.

        Raises: Unbuilt: the other corpus of the input that is meant is not built or not measured.
        """
        try:
            corpus = BuiltCorpus(locate(self.of, place))
            folders = [folder for each in self.measures if (folder := measured(each, corpus, place)) is not None]
            if len(folders) == len(self.measures):
                _, rows = self._rows(corpus, folders, place)
                if (rows / "manifest.json").is_file():
                    return self._placed(corpus, rows, place)
        except Unbuilt:
            if is_declared(self.of, place):
                raise
        if is_declared(self.of, place):
            raise Unbuilt(f"{self.name} is made of {self.of.name}, which is not measured yet: run interlace build")
        return replace(place, roots=Roots())

    def _rows(self, corpus: BuiltCorpus, folders: list[Path], place: Place) -> tuple[dict[str, Any], Path]:
        """What makes the rows, and the folder that is named by it."""
        told = {each.name: folder.name for each, folder in zip(self.measures, folders, strict=True)}
        step = {"schema": _SCHEMA, "corpus": corpus.manifest["root_digest"], "measures": told}
        return step, place.root / "derived" / f"{self.name}-{key(step)[:12]}"

    def _placed(self, corpus: BuiltCorpus, rows: Path, place: Place) -> Place:
        return replace(place, roots=Roots(named={self.name: rows, derived.RECORDS: corpus.folder}))
