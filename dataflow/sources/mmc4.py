"""mmc4: web pages of text with pictures in it, each picture matched to the sentence it goes with.

URL      hf.co/datasets/jmhessel/mmc4-core-ff; the originals were deleted in February 2025, mirrors may be cut anew
Licence  ODC-BY and Common Crawl's terms of use; the pictures are the web's
Layout   docs_no_face_shard_{N}_v3.jsonl, or .jsonl.zip; 23,085 shards, 5.5 M documents, 22.4 M pictures
         pictures as upstream's download_images.py leaves them, images/{N}/{image_name}, or as img2dataset does of the
         addresses: images/00000.parquet with images/00000/000000000.jpg or images/00000.tar
Row      {"image_info": [{"face_detections": null, "image_name": "b9040a0dbb22.jpg", "matched_sim": 0.2769,
          "matched_text_index": 2, "raw_url": "http://..."}], "similarity_matrix": [[...]], "text_list": ["...", ...],
          "url": "...", "could_have_url_duplicate": 0}
Traps    one document in six has lost a picture (upstream's issue 14), so pictures are missing one by one; a name ends
         in .jpg whatever the bytes are; several pictures may go with one sentence (issue 11); icons, and banners of
         10:1; documents come twice (issue 10), 3 in 100 say so in could_have_url_duplicate
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataflow.media import Corrupt, LeftOut, Missing
from dataflow.record import Candidate, Image, Media, Message, Text
from dataflow.sources import Read, cell, matching, named, opened, over_zero, words

_SHARD = re.compile(r"shard_(\d+)")
_FORMS = ("jpg", "png", "webp")  # that img2dataset encodes pictures as
_BROKEN = (tarfile.TarError, ValueError, OverflowError)  # what tarfile raises on a tar that is cut off


@dataclass(frozen=True, kw_only=True)
class Mmc4:
    """Each document becomes interleaved_document: its text, pictures before the sentence they go with.

    What is said between two pictures is one text, a sentence a line, so that the first line after a picture is its own.
    A picture that is missing, broken or left out is a candidate that was dropped; the document goes on without it, and
    is one as long as it has a picture.

    pictures: the folder of pictures, or the name that `--data` gives one. side: the least of a picture's shorter side,
    in px. ratio: the most that it is longer one way than the other. twice: what to do with documents whose address
    could be another's too.
    """

    name: str = "mmc4"
    listing: tuple[str, ...] = ("*.jsonl", "*.jsonl.zip", "*/*.jsonl", "*/*.jsonl.zip")
    pictures: str = "images"
    side: int = 32
    ratio: float = 8.0
    twice: Literal["kept", "left out"] = "kept"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        over_zero(self, "side", "ratio")
        if self.twice not in ("kept", "left out"):
            raise ValueError(f"twice={self.twice!r} of {self.name}: such documents are kept or left out")

    def files(self, folder: Path) -> list[str]:
        """The shards of documents; of one that lies there packed and unpacked the latter."""
        found = matching(folder, *self.listing)
        packed = {f"{file}.zip" for file in found}
        return [file for file in found if file not in packed]

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate | Corrupt]:
        """The document, and every picture that it had to go without."""
        if self.twice == "left out" and value.get("could_have_url_duplicate"):
            raise LeftOut("its address could be that of another document too")
        sentences = [" ".join(words(said).split()) for said in _items(value, "text_list")]
        beside: defaultdict[int, list[Media]] = defaultdict(list)
        lost: list[Corrupt] = []
        for number, about in enumerate(_items(value, "image_info")):
            try:
                place, media = self._picture(about, sentences, read)
            except Corrupt as problem:
                lost.append(type(problem)(f"picture {number}: {problem}"))
            else:
                beside[place].append(media)
        if not beside and not lost:
            raise Corrupt("document without pictures: image_info is empty")
        if beside:
            yield _document(sentences, beside)
        yield from lost

    def _picture(self, about: Any, sentences: Sequence[str], read: Read) -> tuple[int, Media]:
        """A picture and the place of its sentence."""
        if not isinstance(about, dict):
            raise Corrupt("image_info holds no object for it")
        place = about.get("matched_text_index")
        if not isinstance(place, int) or not 0 <= place < len(sentences):
            raise Corrupt(f"matched_text_index {str(place)[:20]} is none of {len(sentences)} sentences")
        if not sentences[place]:
            raise Corrupt(f"sentence {place}, which it goes with, is empty")
        media = self._file(about, read)
        shorter, longer = sorted((media.width, media.height))
        if shorter < self.side:
            raise LeftOut(f"{media.width}x{media.height}, under {self.side} px")
        if longer > self.ratio * shorter:
            raise LeftOut(f"{media.width}x{media.height}, over {self.ratio}:1")
        return place, media

    def _file(self, about: dict[str, Any], read: Read) -> Media:
        obtained = _obtained(read, self.pictures)
        if obtained is not None:
            return obtained.picture(named(about.get("raw_url")), read)
        name, shard = named(about.get("image_name")), _SHARD.search(read.file)
        if not name or "/" in name:
            raise Corrupt(f"image_name {name!r} is no name of a file")
        return opened(read, f"{self.pictures}/{shard[1]}/{name}" if shard else f"{self.pictures}/{name}")


def _items(value: dict[str, Any], name: str) -> list[Any]:
    held = value.get(name)
    if not isinstance(held, list):
        raise Corrupt(f"{name} is not a list")
    return held


def _document(sentences: Sequence[str], beside: dict[int, list[Media]]) -> Candidate:
    parts: list[Text | Image] = []
    media: list[Media] = []
    said: list[str] = []
    for place, sentence in enumerate(sentences):
        if beside.get(place):
            if said:
                parts.append(Text("\n".join(said)))
            parts += (Image(len(media) + number) for number in range(len(beside[place])))
            media += beside[place]
            said = []
        if sentence:
            said.append(sentence)
    parts.append(Text("\n".join(said)))  # at least the sentence of the last picture
    return Candidate(task="interleaved_document", messages=(Message("assistant", tuple(parts)),), media=tuple(media))


# --- what img2dataset obtained


@dataclass(frozen=True, kw_only=True)
class _Obtained:
    """Where img2dataset put the picture of an address, as arrays in the order of hashes of these: a whole mmc4's are
    0.4 GB. An address that was asked for several times is there once, obtained if any time was.

    folder: of its output. shards: their names. digits: of a shard's keys. number, key: of a shard, and in it. failed:
    whether nothing was obtained.
    """

    folder: str
    shards: tuple[str, ...]
    digits: tuple[int, ...]
    packed: frozenset[str]  # shards that are tars
    hashes: NDArray[np.uint64]
    number: NDArray[np.int32]
    key: NDArray[np.int64]
    failed: NDArray[np.bool_]

    def picture(self, url: str, read: Read) -> Media:
        """The picture of an address."""
        wanted = _hash(url)
        place = int(np.searchsorted(self.hashes, wanted))
        if place == len(self.hashes) or self.hashes[place] != wanted:
            raise Missing("its address is none that img2dataset was given")
        if self.failed[place]:
            raise Missing("the picture was never obtained: img2dataset failed")
        number = int(self.number[place])
        shard, key = self.shards[number], f"{self.key[place]:0{self.digits[number]}d}"
        if shard in self.packed:
            members = _members(read, f"{self.folder}/{shard}.tar")
            for form in _FORMS:
                if f"{key}.{form}" in members:
                    first, size = members[f"{key}.{form}"]
                    with read.open(f"{self.folder}/{shard}.tar") as stream:
                        stream.seek(first)
                        return cell(stream.read(size), f"{shard}.tar/{key}.{form}")
        for form in _FORMS:
            try:
                return opened(read, f"{self.folder}/{shard}/{key}.{form}")
            except Missing:
                continue
        raise Missing(f"picture {key} of shard {shard} is not there, as {' or '.join(_FORMS)}")


@dataclass(frozen=True)
class _Output:
    """A folder of img2dataset's: as the disk calls its first file, and the names in it."""

    first: str
    names: tuple[str, ...]
    folder: str = field(compare=False)
    read: Read = field(compare=False)


@lru_cache(maxsize=1)
def _obtained(read: Read, folder: str) -> _Obtained | None:
    """What img2dataset obtained into a folder, None where it is no output of it; asked for every picture."""
    try:
        names = tuple(read.names(folder))
    except Missing:
        return None
    tables = [name for name in names if name.endswith(".parquet")]
    if not tables:
        return None
    with read.open(f"{folder}/{tables[0]}") as stream:
        return _looked_up(_Output(stream.name, names, folder, read))


@lru_cache(maxsize=1)
def _looked_up(output: _Output) -> _Obtained:
    """Reads all addresses: minutes for millions, so a process does it once."""
    stems = [name.removesuffix(".parquet") for name in output.names if name.endswith(".parquet")]
    hashes, numbers, keys, failed, digits = [], [], [], [], []
    for number, stem in enumerate(stems):
        with output.read.open(f"{output.folder}/{stem}.parquet") as stream:
            try:
                table = pq.read_table(stream, columns=["url", "key", "status"])
            except pa.ArrowException:
                table = None
        if table is None:  # that of a shard it has not finished
            digits.append(0)
            continue
        names = table["key"].to_pylist()
        hashes.append(np.array([_hash(url or "") for url in table["url"].to_pylist()], np.uint64))
        numbers.append(np.full(len(names), number, np.int32))
        keys.append(np.array([int(name) for name in names], np.int64))
        failed.append(np.array([status != "success" for status in table["status"].to_pylist()], bool))
        digits.append(len(names[0]) if names else 0)
    joined = [np.concatenate(column) if column else np.empty(0) for column in (hashes, numbers, keys, failed)]
    order = np.lexsort((joined[2], joined[1], joined[3], joined[0]))
    return _Obtained(
        folder=output.folder,
        shards=tuple(stems),
        digits=tuple(digits),
        packed=frozenset(stem for stem in stems if f"{stem}.tar" in output.names),
        hashes=joined[0][order].astype(np.uint64),
        number=joined[1][order].astype(np.int32),
        key=joined[2][order].astype(np.int64),
        failed=joined[3][order].astype(bool),
    )


def _hash(url: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(url.encode(errors="replace"), digest_size=8).digest(), "big"))


@lru_cache(maxsize=4)
def _members(read: Read, path: str) -> dict[str, tuple[int, int]]:
    """Where the members of a tar lie, by name: (first byte, size); of one that is cut off those before."""
    found: dict[str, tuple[int, int]] = {}
    with read.open(path) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    if member.isreg():
                        found[member.name] = (member.offset_data, member.size)
                    archive.members.clear()  # type: ignore[attr-defined] # else it remembers every header
        except _BROKEN:
            pass  # what follows is not there
    return found
