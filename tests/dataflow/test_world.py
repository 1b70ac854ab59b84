"""The small world: what its corpora hold, that they come out the same, and that the judge's pictures are in none."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from dataflow.mini.drawings import COLORS
from dataflow.mini.world import KINDS, SIDE, held_out, write


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def test_every_kind_is_drawn_named_and_asked_about_and_the_bytes_repeat(tmp_path: Path) -> None:
    counts = write(tmp_path / "once")
    assert counts == {"world_pictures": 3578, "world_questions": 35541} == write(tmp_path / "once")
    write(tmp_path / "again")
    assert digest(tmp_path / "once") == digest(tmp_path / "again")
    captions = Counter[str]()
    for path in sorted((tmp_path / "once/world_pictures").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".txt"):
                    content = tar.extractfile(member)
                    assert content is not None
                    captions[content.read().decode()] += 1
    assert set(captions) == {f"a {color} {shape}" for shape, color in KINDS} and min(captions.values()) > 100
    rows = json.loads((tmp_path / "once/world_questions/world.json").read_text())
    answers = Counter(row["conversations"][1]["value"] for row in rows)
    assert set(answers) == {"yes", "no", "circle", "rectangle", "triangle", *COLORS}


def test_held_out_pictures_are_cut_to_the_shape_and_stand_in_no_corpus(tmp_path: Path) -> None:
    write(tmp_path)
    stored = set[bytes]()
    for path in (tmp_path / "world_questions/pictures").iterdir():
        with Image.open(path) as picture:
            stored.add(picture.tobytes())
    found = list(held_out())
    assert len(found) == 888 and {(shape, color) for _, shape, color in found} == set(KINDS)
    for image, _, color in found[::20]:
        assert image.size == (SIDE, SIDE)
        away = np.abs(np.asarray(image).astype(int) - COLORS[color]).max(axis=-1)
        assert (away < 40).mean() > 0.15  # the shape fills what is left
    assert not {image.tobytes() for image, _, _ in found} & stored
