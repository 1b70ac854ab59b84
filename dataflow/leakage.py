"""The leakage gate: pictures and texts of evaluation sets that stand in a mixture, and what is done about it.

    against=(Corpus(source=Llava(name="mmbench", ...)), ...)   built like any corpus, placed by --data mmbench=DIR

Texts are compared as GPT-3's were (arXiv:2005.14165, appendix C, which datatrove and NeMo Curator follow): a run of 13
words of one text in the other, unless it is a phrase that stands in more than 10 places of the mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataflow import hamming
from dataflow.curation import Held, Judgement, Verdicts
from dataflow.duplicates import Seen, flat, lengths, see
from dataflow.fingerprints import Perceptual, Sha256, WordGrams
from dataflow.measures import Measure

_NAMED = 3  # records in the message that stops a build

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """Records of the mixture that hold a picture or a run of words of an evaluation set.

    against: the sets, as corpora; each is named after its source. then: `report` leaves the records in use and says so
    in the ledger, `drop` takes them out, `stop` ends the build while there are any.
    distance: bits by which the perceptual hashes of two pictures may differ; None compares bytes. Wider than
    `Duplicates`: here a picture too many costs less than one too few. A blank is nobody's picture.
    words: of a run that two texts share; texts of 8 to 12 words are compared whole, shorter ones not at all.
    common: a run in more places of the mixture than this is a phrase and no leak; a cluster is one place.

    Raises:
        ValueError: no set to compare with; and, told to `stop`, records that leak, counted by set.
    """

    against: tuple[Any, ...]
    then: Literal["report", "drop", "stop"] = "stop"
    distance: int | None = 4
    words: int = 13
    common: int = 10
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not self.against:
            raise ValueError("Leakage(against=()): name the corpora that the mixture is compared with")
        if self.then not in ("report", "drop", "stop"):
            raise ValueError(f"then={self.then!r}: leaks are for report, drop or stop")
        if self.common < 1:
            raise ValueError(f"common={self.common}: places of the mixture that a phrase may stand in, from 1")
        hamming.checked(self.distance)
        WordGrams(words=self.words)

    @property
    def measures(self) -> tuple[Measure, ...]:
        looks = () if self.distance is None else (Perceptual(),)
        return (Sha256(), *looks, WordGrams(words=self.words))

    def __call__(self, held: Sequence[Held], against: Sequence[Held]) -> Judgement:
        every = (*held, *against)
        seen = see(every, self.distance)
        end = sum(one.index.num_rows for one in held)  # from there on records are the sets'
        pictures = _Pictures.of(seen, end, self.distance)
        words = _Words.of(every, seen, end, WordGrams(words=self.words).name, self.common)
        remarks, table = np.full(len(seen.used), "", object), []
        for one, theirs in zip(against, seen.places[len(held) :], strict=True):
            shown, said = pictures.leaks(theirs), words.leaks(theirs)
            for row, remark in chain(shown.remarks.items(), said.remarks.items()):
                remarks[row] += f"{'; ' if remarks[row] else ''}{one.name}: {remark}"
            table.append(
                {
                    "set": one.name,
                    "records": len(theirs),
                    "found": len(shown.found | said.found),
                    "in records of the mixture": len(shown.remarks.keys() | said.remarks.keys()),
                    "by picture": len(shown.remarks),
                    "by words": len(said.remarks),
                }
            )
        if self.then == "stop" and (remarks != "").any():
            raise ValueError(_stopped(seen, remarks, table))
        verdicts = [
            Verdicts(
                used=one.used & (remarks[places] == "") if self.then == "drop" else one.used,
                reasons=pa.array(remarks[places], pa.string()),
                clusters=one.clusters,
            )
            for one, places in zip(held, seen.places, strict=False)
        ]
        return Judgement(verdicts=verdicts, table=tuple(table))


@dataclass(frozen=True, kw_only=True)
class _Leaks:
    """What the mixture shares with one set. remarks: on records of ours. found: records of the set."""

    remarks: dict[int, str]
    found: set[int]


@dataclass(frozen=True, kw_only=True)
class _Pictures:
    """Pictures of the mixture, and which of the sets' nodes are near theirs.

    ours: int[p], places of pictures of records in use. owners: int[m], the record of every picture. links: int[k, 3], a
    node of ours, a node of a set's, bits apart.
    """

    seen: Seen
    ours: Ints
    owners: Ints
    links: Ints

    @classmethod
    def of(cls, seen: Seen, end: int, distance: int | None) -> _Pictures:
        owners = np.repeat(np.arange(len(seen.used)), seen.counts)
        told = np.ones(len(owners), bool) if distance is None else seen.nodes < len(seen.looks)
        pictures = np.flatnonzero((owners < end) & seen.used[owners] & told)
        mixture = np.unique(seen.nodes[pictures])
        sets = np.unique(seen.nodes[(owners >= end) & told])
        if distance is None:
            same = np.intersect1d(mixture, sets)
            links = np.stack([same, same, np.zeros_like(same)], 1)
        else:
            one, other, bits = hamming.matches(seen.looks[mixture], seen.looks[sets], distance)
            links = np.stack([mixture[one], sets[other], bits.astype(np.int64)], 1)
        return cls(seen=seen, ours=pictures, owners=owners, links=links)

    def leaks(self, theirs: Ints) -> _Leaks:
        """Of each record of ours the first picture that one of theirs is like, with the one that is most like it."""
        pictures = np.flatnonzero(np.isin(self.owners, theirs))
        nodes, first = np.unique(self.seen.nodes[pictures], return_index=True)
        links = self.links[np.isin(self.links[:, 1], nodes)]
        their = pictures[first][np.searchsorted(nodes, links[:, 1])]
        order = np.lexsort([their, links[:, 2], links[:, 0]])
        ours, best = np.unique(links[order, 0], return_index=True)
        shown = self.ours[np.isin(self.seen.nodes[self.ours], ours)]
        rows, at = np.unique(self.owners[shown], return_index=True)
        remarks = {}
        for row, picture in zip(rows.tolist(), shown[at].tolist(), strict=True):
            link = order[best[np.searchsorted(ours, self.seen.nodes[picture])]]
            remarks[row] = self._remark(row, picture, int(their[link]), int(links[link, 2]))
        found = np.unique(self.owners[pictures[np.isin(self.seen.nodes[pictures], links[:, 1])]])
        return _Leaks(remarks=remarks, found=set(found.tolist()))

    def _remark(self, row: int, ours: int, theirs: int, bits: int) -> str:
        key = self.seen.keys[int(self.owners[theirs])].as_py()
        same = self.seen.bytes[ours] == self.seen.bytes[theirs]
        place = ours - int(self.seen.first[row])
        return f"picture {place} is that of {key}" if same else f"picture {place} is a twin of {key}, {bits} bits apart"


@dataclass(frozen=True, kw_only=True)
class _Words:
    """Runs of words that the mixture and the sets share: int[k] each, a run's hash as a number and a record with it."""

    keys: pa.Array
    our_runs: Ints
    our_rows: Ints
    their_runs: Ints
    their_rows: Ints

    @classmethod
    def of(cls, every: Sequence[Held], seen: Seen, end: int, name: str, common: int) -> _Words:
        runs = pa.chunked_array([one.measures[name]["grams"].combine_chunks() for one in every])
        rows = np.repeat(np.arange(len(seen.used)), lengths(runs))
        hashes = flat(runs).to_numpy()
        mixture, sets = (rows < end) & seen.used[rows], rows >= end
        known, their_runs = np.unique(hashes[sets], return_inverse=True)
        shared = np.flatnonzero(mixture)[np.isin(hashes[mixture], known)]
        our_runs, our_rows = np.searchsorted(known, hashes[shared]), rows[shared]
        places = np.unique(np.stack([our_runs, seen.before[our_rows]], 1), axis=0)
        rare = np.bincount(places[:, 0], minlength=len(known)) <= common
        kept = rare[our_runs]
        return cls(
            keys=seen.keys,
            our_runs=our_runs[kept],
            our_rows=our_rows[kept],
            their_runs=their_runs,
            their_rows=rows[sets],
        )

    def leaks(self, theirs: Ints) -> _Leaks:
        """Of each record of ours the first of theirs that it shares a run with."""
        inside = np.isin(self.their_rows, theirs)
        runs, first = np.unique(self.their_runs[inside], return_index=True)
        shared = np.isin(self.our_runs, runs)
        with_it = self.their_rows[inside][first][np.searchsorted(runs, self.our_runs[shared])]
        order = np.lexsort([with_it, self.our_rows[shared]])
        rows, at = np.unique(self.our_rows[shared][order], return_index=True)
        named = self.keys.take(pa.array(with_it[order][at])).to_pylist()
        found = np.unique(self.their_rows[inside & np.isin(self.their_runs, self.our_runs)])
        remarks = {row: f"a run of words as in {key}" for row, key in zip(rows.tolist(), named, strict=True)}
        return _Leaks(remarks=remarks, found=set(found.tolist()))


def _stopped(seen: Seen, remarks: NDArray[np.object_], table: Sequence[dict[str, Any]]) -> str:
    rows = np.flatnonzero(remarks != "")
    sets = ", ".join(
        f"{row['set']} ({row['found']} of its {row['records']} records; {row['by picture']} by picture, "
        f"{row['by words']} by words)"
        for row in table
        if row["found"]
    )
    first = ", ".join(f"{seen.keys[int(row)].as_py()} ({remarks[row]})" for row in rows[:_NAMED])
    return (
        f"{len(rows)} records of the mixture hold what is in {sets}; first {first}; "
        "take them out with then='drop', or mend their corpora"
    )
