"""Duplicates over all corpora of a mixture: which records say and show what an earlier one does, and which share a
picture.

    dropped   a record whose pictures, and words if `same` says so, are those of ONE record that stays: the winner
    cluster   records that share any picture, through others too: one name, so that a split never parts them

An edit shares its source picture with other edits of it: one cluster, and no duplicates, for their answers differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dataflow import hamming
from dataflow.curation import Held, Judgement, Verdicts
from dataflow.fingerprints import Perceptual, Sha256
from dataflow.measures import Measure

_LOOKED_AT = 1000  # earlier records that one is compared with at most

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Of records that are the same, the first stays: by the order of corpora in the mixture, then by key.

    same: `record` compares words and pictures, `pictures` these alone (captions of one photograph); a record without
    pictures is always compared by its words, and a record only with those of its task and number of pictures.
    distance: bits by which perceptual hashes of 64 may differ, each picture's from the winner's picture in its place:
    what is like something that is like the winner is not dropped for it. None compares bytes. Of scikit-image's 13
    photographs JPEG at quality 30 and half the size are within 2, a sixth more light within 2 but for two (4); the two
    lenses of a stereo camera are 4 apart, crops by a twentieth of each side 8 or more, other photographs 20 or more.
    tasks: whose records may be dropped; none named, all. Clusters are made over all of them.

    Clusters are transitive: a chain of pictures, each like the next, is one. A picture without a perceptual hash, a
    blank, joins none. Distinct hashes too many to compare (`hamming.CROWD`) are one cluster too, and none is dropped.
    A record that could be like more than 1,000 earlier ones is compared with the first 1,000 of them.
    """

    same: Literal["record", "pictures"] = "record"
    distance: int | None = 2
    tasks: tuple[str, ...] = ()
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.same not in ("record", "pictures"):
            raise ValueError(f"same={self.same!r}: what makes a duplicate is the record or its pictures")
        hamming.checked(self.distance)

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (Sha256(),) if self.distance is None else (Sha256(), Perceptual())

    def __call__(self, held: Sequence[Held]) -> Judgement:
        seen = see(held, self.distance)
        pairs = hamming.pairs(seen.looks, self.distance or 0)
        winners = self._winners(seen, pairs.near)
        clusters = _clusters(seen, pairs, by_bytes=self.distance is None)
        used = seen.used & (winners == np.arange(len(winners)))
        reasons = np.full(len(winners), "", object)
        out = np.flatnonzero(seen.used & ~used)
        reasons[out] = self._reasons(seen, out, winners[out])
        verdicts = [
            Verdicts(
                used=used[places],
                reasons=pa.array(reasons[places], pa.string()),
                clusters=seen.keys.take(pa.array(clusters[places])),
            )
            for places in seen.places
        ]
        return Judgement(verdicts=verdicts, table=(_told(seen, clusters, pairs),))

    def _winners(self, seen: Seen, near: Ints) -> Ints:
        """Of every record the one that stays for it: an earlier one, or itself."""
        rows = np.flatnonzero(seen.used & seen.of(self.tasks))
        words = seen.words if self.same == "record" else np.where(seen.counts == 0, seen.words, -1)
        kinds = _joined(_joined(seen.task[rows], seen.counts[rows]), words[rows])
        ids = kinds.copy()
        for picture in range(int(seen.counts[rows].max(initial=0))):
            longer = np.flatnonzero(seen.counts[rows] > picture)
            nodes = seen.nodes[seen.first[rows[longer]] + picture]
            ids[longer] = _joined(ids[longer], nodes)  # records of other numbers of pictures are of another kind
        _, first, group = np.unique(_joined(kinds, ids), return_index=True, return_inverse=True)
        winners = np.arange(len(seen.used))
        winners[rows] = rows[first][group]
        for record, leader in self._alike(seen, near, rows[np.sort(first)], kinds[np.sort(first)]):
            winners[record] = leader
        return winners[winners]  # what is the same as one that goes to another goes there too

    def _alike(self, seen: Seen, near: Ints, rows: Ints, kinds: Ints) -> Iterator[tuple[int, int]]:
        """Records, no two the same, that are within the distance of one before them that stays, and that one."""
        beside: dict[int, list[int]] = {}
        for one, other in near.tolist():
            beside.setdefault(one, [one]).append(other)
            beside.setdefault(other, [other]).append(one)
        paired = np.zeros(len(seen.nodes) + 1, np.int64)
        paired[1:] = np.cumsum(np.isin(seen.nodes, np.unique(near)))
        some = paired[seen.first[rows] + seen.counts[rows]] > paired[seen.first[rows]]
        stay: dict[tuple[int, int, int], list[int]] = {}  # kind, place of a picture, its node -> records
        for row, kind in zip(rows[some].tolist(), kinds[some].tolist(), strict=True):
            nodes = seen.nodes_of(row)
            options = [
                [record for like in beside.get(node, [node]) for record in stay.get((kind, place, like), ())]
                for place, node in enumerate(nodes)
            ]
            for record in sorted(min(options, key=len))[:_LOOKED_AT]:
                if all(map(self._within, nodes, seen.nodes_of(record), repeat(seen))):
                    yield row, record
                    break
            else:
                for place, node in enumerate(nodes):
                    stay.setdefault((kind, place, node), []).append(row)

    def _within(self, one: int, other: int, seen: Seen) -> bool:
        bits = seen.apart(one, other)
        return bits is not None and bits <= (self.distance or 0)

    def _reasons(self, seen: Seen, rows: Ints, winners: Ints) -> list[str]:
        """What each of these records shares with the one that stays for it."""
        counts = seen.counts[rows]
        starts = np.cumsum(counts) - counts
        record, place = np.repeat(np.arange(len(rows)), counts), np.arange(counts.sum()) - np.repeat(starts, counts)
        ours, theirs = seen.first[rows][record] + place, seen.first[winners][record] + place
        apart = np.zeros(len(ours), np.int64)
        shown = np.flatnonzero(seen.nodes[ours] < len(seen.looks))  # the others are the same bytes
        apart[shown] = np.bitwise_count(seen.looks[seen.nodes[ours[shown]]] ^ seen.looks[seen.nodes[theirs[shown]]])
        differs = np.bincount(record, seen.bytes[ours] != seen.bytes[theirs], len(rows)) > 0
        farthest = np.lexsort([place, -apart, record])[starts * (counts > 0)] if len(ours) else starts
        same = f"the same pictures{' and words' if self.same == 'record' else ''} as"
        said = []
        keys = seen.keys.take(pa.array(winners)).to_pylist()
        for key, count, other, at in zip(keys, counts.tolist(), differs.tolist(), farthest.tolist(), strict=True):
            if not count:
                said.append(f"the same words as {key}")
            elif not other:
                said.append(f"{same} {key}")
            else:
                said.append(f"picture {place[at]} is a twin of {key}, {apart[at]} bits apart")
        return said


@dataclass(frozen=True, kw_only=True)
class Seen:
    """All records of all corpora in the order of preference, n of them, and their m pictures one after the other.

    keys: string[n]. used: bool[n]. task, words: int[n], the same number for the same. before: int[n], likewise, of the
    clusters so far. counts, first: int[n], pictures of a record and the place of its first. nodes: int[m], the same
    number for the same looks, a place in `looks`; from len(looks) on for the same bytes, where there are no looks.
    bytes: int[m]. places: per corpus, where its records are.
    """

    keys: pa.Array
    tasks: tuple[str, ...]
    used: NDArray[np.bool_]
    task: Ints
    words: Ints
    before: Ints
    counts: Ints
    first: Ints
    nodes: Ints
    bytes: Ints
    looks: NDArray[np.uint64]
    places: tuple[Ints, ...]

    def of(self, tasks: tuple[str, ...]) -> NDArray[np.bool_]:
        """bool[n]: records of these tasks; of none named, all."""
        return np.isin(self.task, [place for place, task in enumerate(self.tasks) if not tasks or task in tasks])

    def nodes_of(self, row: int) -> list[int]:
        return self.nodes[self.first[row] : self.first[row] + self.counts[row]].tolist()

    def apart(self, one: int, other: int) -> int | None:
        """Bits between two nodes, None where one has no looks and they are not the same."""
        if one == other:
            return 0
        if max(one, other) >= len(self.looks):
            return None
        return (int(self.looks[one]) ^ int(self.looks[other])).bit_count()


def see(held: Sequence[Held], distance: int | None) -> Seen:
    """All records of these corpora with their pictures, told apart by looks, or by bytes where `distance` is None."""
    hashed = pa.concat_tables([Sha256().columns.empty_table(), *(one.measures["sha256"] for one in held)])
    keys = _column(pa.concat_tables([one.index.select(["key", "task"]) for one in held]), "key")
    tasks = _column(pa.concat_tables([one.index.select(["key", "task"]) for one in held]), "task").dictionary_encode()
    before = pa.chunked_array([pa.array([], pa.string()), *(one.clusters for one in held)])
    counts = lengths(hashed["pictures"]).astype(np.int64)
    same_bytes = codes(flat(hashed["pictures"]))
    looks, nodes = np.empty(0, np.uint64), same_bytes
    if distance is not None:
        seen = pa.concat_tables([Perceptual().columns.empty_table(), *(one.measures["perceptual"] for one in held)])
        looks, nodes = _nodes(flat(seen["pictures"]), same_bytes)
    bounds = np.cumsum([0, *(one.index.num_rows for one in held)])
    return Seen(
        keys=keys,
        tasks=tuple(tasks.dictionary.to_pylist()),
        used=np.concatenate([np.empty(0, bool), *(one.used for one in held)]),
        task=tasks.indices.to_numpy().astype(np.int64),
        words=codes(hashed["text"]),
        before=codes(before),
        counts=counts,
        first=np.cumsum(counts) - counts,
        nodes=nodes,
        bytes=same_bytes,
        looks=looks,
        places=tuple(np.arange(start, end) for start, end in pairwise(bounds)),
    )


def lengths(lists: pa.ChunkedArray) -> Ints:
    """How many values each list has."""
    return np.concatenate([np.empty(0, np.int64), *(np.diff(chunk.offsets.to_numpy()) for chunk in lists.chunks)])


def flat(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of all lists, one after the other."""
    return pa.chunked_array([chunk.flatten() for chunk in lists.chunks], lists.type.value_type)


def codes(values: pa.ChunkedArray) -> Ints:
    """A number for each value, the same for the same."""
    return _whole(values.dictionary_encode()).indices.to_numpy().astype(np.int64)


def _nodes(looks: pa.ChunkedArray, same_bytes: Ints) -> tuple[NDArray[np.uint64], Ints]:
    """All distinct looks; of each picture the place of its own there or, where it has none, of its bytes after them."""
    there = looks.is_valid().to_numpy(zero_copy_only=False)
    distinct, place = np.unique(looks.drop_null().to_numpy(), return_inverse=True)
    nodes = len(distinct) + same_bytes
    nodes[there] = place
    return distinct.astype(np.uint64), nodes


def _joined(one: Ints, other: Ints) -> Ints:
    """A number for each two numbers, the same for the same two."""
    low = int(other.min(initial=0))
    wide = int(other.max(initial=0)) - low + 1
    return np.unique(one * wide + other - low, return_inverse=True)[1]


def _clusters(seen: Seen, pairs: hamming.Pairs, *, by_bytes: bool) -> Ints:
    """Of every record the first of those that it is linked to, in however many steps, by pictures or as a duplicate."""
    count = len(seen.keys)
    pictures = count + int(seen.before.max(initial=-1)) + 1  # records, then clusters so far, then nodes, then words
    words = pictures + int(seen.nodes.max(initial=-1)) + 1
    owners = np.repeat(np.arange(count), seen.counts)
    shown = seen.used[owners] & (by_bytes | (seen.nodes < len(seen.looks)))
    bare = np.flatnonzero(seen.used & (seen.counts == 0))
    links = np.concatenate(
        [
            np.stack([np.arange(count), count + seen.before], 1),
            np.stack([owners[shown], pictures + seen.nodes[shown]], 1),
            np.stack([bare, words + seen.words[bare]], 1),
            pictures + pairs.near,
            pictures + pairs.crowded,
        ]
    )
    size = words + int(seen.words.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(size, size))
    labels = connected_components(graph, directed=False)[1][:count]
    _, first, place = np.unique(labels, return_index=True, return_inverse=True)
    return first[place]


def _told(seen: Seen, clusters: Ints, pairs: hamming.Pairs) -> dict[str, Any]:
    """What the ledger does not say at a glance: how records hang together, and whether something was not compared."""
    names, sizes = np.unique(clusters[seen.used], return_counts=True)
    several = sizes > 1
    largest = int(sizes.argmax()) if len(sizes) else None
    return {
        "clusters of several": int(several.sum()),
        "records in them": int(sizes[several].sum()),
        "largest": 0 if largest is None else int(sizes[largest]),
        "its name": "" if largest is None else seen.keys[int(names[largest])].as_py(),
        "hashes not compared": len(np.unique(pairs.crowded)),
    }


def _column(table: pa.Table, name: str) -> Any:
    return _whole(table[name])


def _whole(values: pa.ChunkedArray) -> Any:
    """One array of the chunks, whose dictionaries, if any, are one."""
    return values.unify_dictionaries().combine_chunks()
