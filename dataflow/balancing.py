"""MetaCLIP's balancing: captions say some things much too often; of what a list of entries holds, each gives about t.

    caption -> entries it holds (a measure)    counts over all corpora    p = min(1, t / count)    one draw by the key

Source   arXiv:2309.16671, section 3 and algorithm 1. A pair is kept when a draw for any of its entries says so, so with
         P = 1 - (1 - p1)(1 - p2)...; one that holds no entry is not kept.
Differs  from facebookresearch/MetaCLIP f47f784: a mark in an entry ("ph.d.") can match; a pair with several kept texts
         stands once; a synset's name is not cut at its first dot; chance is a draw by the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataflow.curation import Held, Verdicts, unmoved
from dataflow.draw import draw
from dataflow.measures import Ready
from dataflow.record import TASKS, Record, Text

_SPACED = str.maketrans({**{mark: f" {mark} " for mark in ",.;:?!`"}, **dict.fromkeys("\t\n\r", " ")})
_ONE = 1 << 53  # of a draw: what a double holds exactly


class Entries(Protocol):
    """Where the list comes from: a frozen dataclass whose values name its content.

    read: the entries, each once; their places are their numbers in the measure.
    """

    def read(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Entries that stand in the recipe."""

    entries: tuple[str, ...]

    def read(self) -> tuple[str, ...]:
        """The entries.

        Raises: ValueError: none, or one of blanks.
        """
        return _checked(self.entries, "Listed(entries=...)")


@dataclass(frozen=True, kw_only=True)
class EntryFile:
    """Entries of a text file, one a line, or of a JSON list of text as MetaCLIP's metadata.json (500,000 entries).

    path: from the root, for workers run elsewhere; `str(Path(__file__).with_name("entries.txt"))` in a recipe's file.
    sha256: of the file, as `sha256sum` prints it, so that the recipe says which list it means.
    """

    path: str
    sha256: str

    def read(self) -> tuple[str, ...]:
        """The entries.

        Raises: ValueError: no such file, or another one than `sha256` names.
        """
        (data,) = _read([Path(self.path)], self.sha256, "sha256sum")
        try:
            held = json.loads(data) if self.path.endswith(".json") else data.decode().splitlines()
        except ValueError as error:
            raise ValueError(f"{self.path} does not read ({error}): UTF-8, an entry a line, or a JSON list") from None
        if not isinstance(held, list) or not all(isinstance(entry, str) for entry in held):
            raise ValueError(f"{self.path} is no JSON list of text")
        return _checked(held, self.path)


@dataclass(frozen=True, kw_only=True)
class WordNet:
    """The names of WordNet's synsets, lower case: 86,571 of WordNet 3.0 as Debian's `wordnet-base` installs it.

    folder: with data.noun, data.verb, data.adj, data.adv. sha256: of these four, one after the other.
    """

    folder: str = "/usr/share/wordnet"
    sha256: str = "9c33953116f661f96b2af6815ea87a505a54cd48e72994ba47bca5aad58840a6"  # wordnet-base 1:3.0-37

    def read(self) -> tuple[str, ...]:
        """The first word of each synset.

        Raises: ValueError: no such files, or others than `sha256` names.
        """
        files = [Path(self.folder) / f"data.{part}" for part in ("noun", "verb", "adj", "adv")]
        names = []
        for data in _read(files, self.sha256, "cat data.noun data.verb data.adj data.adv | sha256sum"):
            for line in data.decode().splitlines():
                if not line.startswith(" "):  # the licence
                    word = line.split(" ", 5)[4].partition("(")[0]  # galore(ip): where the adjective may stand
                    names.append(word.lower().replace("_", " "))
        return _checked(names, self.folder)


def _read(files: Sequence[Path], sha256: str, command: str) -> list[bytes]:
    try:
        held = [file.read_bytes() for file in files]
    except OSError as error:
        raise ValueError(f"{files[0]}: no entries there ({error.strerror}); give the path from the root") from None
    found = hashlib.sha256(b"".join(held)).hexdigest()
    if found != sha256:
        raise ValueError(f"{files[0]} has sha256 {found}, the recipe names {sha256!r}: write what {command} prints")
    return held


def _checked(entries: Iterable[str], told: str) -> tuple[str, ...]:
    once = tuple(dict.fromkeys(entries))
    if not once or not all(entry.strip() for entry in once):
        raise ValueError(f"{told}: entries are words, at least one; this list has none, or one of blanks")
    return once


def spaced(text: str) -> str:
    """Text between spaces, its marks (, . ; : ? ! `) between spaces too: an entry is in it as whole words or not.

    Case is kept; quotes, brackets and hyphens belong to their word.
    """
    return f" {text.translate(_SPACED)} "


class Matcher:
    """Which entries of a list a text holds, in one pass over the text."""

    def __init__(self, entries: Sequence[str]) -> None:
        from ahocorasick_rs import AhoCorasick

        self._automaton = AhoCorasick([spaced(entry) for entry in entries])

    def __call__(self, texts: Iterable[str]) -> list[int]:
        """Numbers of the entries that any of the texts holds, each once, ascending."""
        held: set[int] = set()
        for text in texts:
            held.update(found[0] for found in self._automaton.find_matches_as_indexes(spaced(text), overlapping=True))
        return sorted(held)


@dataclass(frozen=True, kw_only=True)
class EntryMatches:
    """Which entries the texts of a record hold, by number, ascending."""

    entries: Listed | EntryFile | WordNet
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("ahocorasick-rs",)
    gpus: ClassVar[float] = 0

    @property
    def name(self) -> str:
        """Names the folder."""
        return "entries"

    @property
    def columns(self) -> pa.Schema:
        """entries: numbers."""
        return pa.schema([("entries", pa.list_(pa.int32()))])

    def there(self) -> None:
        """ValueError where the list is not there, or is another one."""
        self.entries.read()

    def ready(self) -> Ready:
        """The automaton over all entries: 0.25 GB for 500,000."""
        matcher = Matcher(self.entries.read())

        def measured(records: Sequence[Record]) -> Mapping[str, Sequence[Any]]:
            return {"entries": [matcher(_texts(record)) for record in records]}

        return measured


def _texts(record: Record) -> list[str]:
    return [part.text for message in record.messages for part in message.parts if isinstance(part, Text)]


@dataclass(frozen=True, kw_only=True)
class MetaClipBalance:
    """Take captioned pictures out of use that say what more than about `threshold` others say, too.

    threshold: MetaCLIP's t, 20,000 for 400 M of 1.6 B pairs, 170,000 for 2.5 B; scale it with the corpora.
    tasks: of the records that are counted and balanced, over all corpora of the mixture; others stay as they are.
    Counted is what is still in use, so duplicates go first. A higher threshold keeps all that a lower one keeps.
    """

    entries: Listed | EntryFile | WordNet
    threshold: int = 20_000
    tasks: tuple[str, ...] = ("text_to_image", "caption_pair")
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: texts that an entry may give, from 1")
        if strange := sorted(set(self.tasks) - TASKS):
            raise ValueError(f"tasks={self.tasks}: {strange[0]!r} is none; they are {', '.join(sorted(TASKS))}")

    @property
    def measures(self) -> tuple[EntryMatches, ...]:
        """The entries of every record."""
        return (EntryMatches(entries=self.entries),)

    def __call__(self, held: Sequence[Held]) -> list[Verdicts]:
        """Verdicts over all corpora together."""
        entries = _entries(self.entries)
        found = [_Found.of(corpus, self.tasks) for corpus in held]
        counts = np.zeros(len(entries), np.int64)
        for each in found:
            counts += np.bincount(each.entries, minlength=len(entries))
        return [self._verdicts(corpus, each, counts, entries) for corpus, each in zip(held, found, strict=True)]

    def _verdicts(self, held: Held, found: _Found, counts: NDArray[np.int64], entries: Sequence[str]) -> Verdicts:
        if not found.subject.any():
            return unmoved(held)
        with np.errstate(divide="ignore"):  # an entry that nobody holds
            missed = 1 - np.minimum(1, self.threshold / counts)
        chance = np.ones(len(held.used))
        np.multiply.at(chance, found.rows, missed[found.entries])  # one after the other: the same product everywhere
        kept = ~found.subject | (chance == 0)
        drawn = np.flatnonzero(~kept & (chance < 1))
        keys = held.index["key"].take(pa.array(drawn)).to_pylist()
        kept[drawn] = np.fromiter((draw(key, "balance", _ONE) for key in keys), np.int64, len(keys)) < _ONE * (
            1 - chance[drawn]
        )
        return Verdicts(used=held.used & kept, reasons=_reasons(found, kept, counts, entries), clusters=held.clusters)


@lru_cache(maxsize=1)
def _entries(entries: Entries) -> tuple[str, ...]:
    return entries.read()


@dataclass(frozen=True, kw_only=True)
class _Found:
    """subject: bool[n], which records are counted and balanced. rows, entries: int[m], record and entry of a match."""

    subject: NDArray[np.bool_]
    rows: NDArray[np.int64]
    entries: NDArray[np.int32]

    @classmethod
    def of(cls, held: Held, tasks: Sequence[str]) -> _Found:
        table = held.measures["entries"]["entries"].combine_chunks()
        subject = held.used & np.isin(held.index["task"].to_numpy(), tasks)
        ends = table.offsets.to_numpy()
        rows = np.repeat(np.arange(len(subject)), np.diff(ends))
        entries = table.values.to_numpy()[ends[0] : ends[-1]]
        counted = subject[rows]
        return cls(subject=subject, rows=rows[counted], entries=entries[counted])


def _reasons(found: _Found, kept: NDArray[np.bool_], counts: NDArray[np.int64], entries: Sequence[str]) -> pa.Array:
    """Nothing where kept; else the rarest entry that a record holds, and how many texts hold it."""
    by_rarity = np.argsort(counts, kind="stable")
    rarity = np.empty(len(counts), np.int64)
    rarity[by_rarity] = np.arange(len(counts))
    rarest = np.full(len(kept), len(counts))
    np.minimum.at(rarest, found.rows, rarity[found.entries])
    ranks, places = np.unique(np.where(kept, -1, rarest), return_inverse=True)
    told = []
    for rank in ranks.tolist():
        if rank == -1:
            told.append("")
        elif rank == len(counts):
            told.append("holds no entry of the list")
        else:
            entry = int(by_rarity[rank])
            told.append(f"{entries[entry]!r}, its rarest entry, is in {counts[entry]} texts")
    return pa.array(told, pa.string()).take(pa.array(places))
