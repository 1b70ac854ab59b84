"""Clips in miniature: Video-STaR, ShareGPTVideo, ShareGPT4Video with questions; Something-Something and HowTo100M.

    Clips -> videostar, sharegptvideo, sharegpt4video, something_something, howto100m -> folders of the same names

    videostar/ft_json/kinetics700_tune_.json, starb_tune_.json    a list; an object of lists. Clips in videostar/
        {Kinetics700, STAR-benchmark}/{video}_{start}_{end}.mp4
    sharegptvideo/video_instruction/train/sft/video_240k_caption_15k.jsonl    frames in sharegptvideo/
        train_300k/{video}/c01_0001.jpeg, two a second, 336 px wide
    sharegpt4video/sharegpt4video_40k.jsonl    clips in zip_folder/{site}/{site}_videos_1.zip
    something_something/labels/{train, validation, labels}.json    clips in 20bn-something-something-v2/{id}.webm
    howto100m/HowTo100M_v1.csv, captions/{video}.csv    clips in videos/{video}.{mp4, webm, mkv}

Three rows of the first two ask about the same clip; in the others every row has its own. No two clips are cut alike.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataflow.mini.clips import FRAMES_PER_SECOND, SCENES, Cut, cut
from dataflow.mini.files import choose, conversations, document, jpeg, jsonl, put, zipped
from dataflow.mini.material import Corpus, Material, dirt
from dataflow.mini.text import sentence

ASKED = 3  # rows about the same clip
CUTS = 8  # of a scene, per source: more of them would look alike
SITES = ("mixkit", "pexels")
_VALIDATION = 8  # one clip of Something-Something in so many is in validation.json
_UNHEARD = 6  # one video of HowTo100M in so many has no captions
_LATER = 8  # one id in so many begins with a dash, as YouTube's do


def _id(name: str, number: int) -> str:
    """Eleven letters, as YouTube names its videos."""
    found = base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode()[:11]
    return f"-{found[1:]}" if number % _LATER == 3 else found


# -------------------------------------------------------------------------------------------------- Video-STaR


def _write_videostar(folder: Path, rows: int, material: Material) -> None:
    """Two thirds of the rows in one list; the others in an object of two."""
    listed = math.ceil(rows * 2 / 3)
    written = [_videostar_row(folder, row, rows, "STAR" if row >= listed else "k700", material) for row in range(rows)]
    document(folder / "ft_json/kinetics700_tune_.json", written[:listed])
    kinds = {kind: [row for row in written[listed:] if row["qa_type"] == kind] for kind in ("cot", "qa")}
    document(folder / "ft_json/starb_tune_.json", kinds)


def _videostar_row(folder: Path, row: int, rows: int, part: str, material: Material) -> dict[str, Any]:
    """The question whose turn it is; what is known of a video is an object in one part, a list in the other."""
    of = f"videostar/{part}/{row // ASKED}"
    clip = cut(row // ASKED, of)
    home = {"k700": "Kinetics700", "STAR": "STAR-benchmark"}[part]
    path = f"{home}/{_id(of, row // ASKED)}_{round(clip.start * 100):06d}_{round(clip.end * 100):06d}.mp4"
    if dirt("videostar", row, rows) == "clip cut":
        path = path.replace(".mp4", "_cut.mp4")
        data = material.clips.encoded(clip, "mp4")
        put(folder / path, data[: len(data) // 2])
    elif not (folder / path).exists():
        put(folder / path, material.clips.encoded(clip, "mp4"))
    question, answer = clip.scene.questions[row % ASKED]
    return {
        "id": f"{part}_{row}",
        "video": path,
        "conversations": conversations([(f"<video>\n{question}", answer)]),
        "label": {"action": clip.scene.caption} if part == "k700" else [clip.scene.caption],
        "label_type": ["action"],
        "qa_type": "cot" if row % ASKED == 0 else "qa",
        "rationale": False,
        "cls_correct": True,
    }


# ----------------------------------------------------------------------------------------------- ShareGPTVideo


def _write_sharegptvideo(folder: Path, rows: int, material: Material) -> None:
    written = []
    for row in range(rows):
        number = row // ASKED
        of = f"sharegptvideo/{number}"
        clip, video = cut(number + 1, of), f"v_{_id(of, number)}"
        if dirt("sharegptvideo", row, rows) == "no frames":
            video += "-Scene-002"
            (folder / "train_300k" / video).mkdir(parents=True)
        elif not (folder / "train_300k" / video).exists():
            for place, frame in enumerate(material.clips.pictures(clip, per_second=2), start=1):
                put(folder / f"train_300k/{video}/c01_{place:04d}.jpeg", jpeg(frame))
        question, answer = clip.scene.questions[(row + 1) % len(clip.scene.questions)]
        turns = conversations([(f"<video>\n{question}", answer)])
        written.append({"id": f"{video}__{row % ASKED}", "video": video, "conversations": turns})
    jsonl(folder / "video_instruction/train/sft/video_240k_caption_15k.jsonl", written)


# ---------------------------------------------------------------------------------------------- ShareGPT4Video


def _write_sharegpt4video(folder: Path, rows: int, material: Material) -> None:
    written, held = [], {site: dict[str, bytes]() for site in SITES}
    for row in range(rows):
        of, site = f"sharegpt4video/{row}", SITES[row % len(SITES)]
        clip, path = cut(row + 2, of), f"{site}/{_id(of, row)}.mp4"
        held[site][path] = material.clips.encoded(clip, "mp4")
        said = [sentence(text) for _, _, text in clip.events]
        captions = [{"idx": f"{place}", "content": text} for place, text in enumerate(said)]
        moments = [*(start for start, _, _ in clip.events), clip.events[-1][1]]
        written.append(
            {
                "video_id": Path(path).stem,
                "video_path": path,
                "timestamp": moments,
                "keyframe": [round(moment * FRAMES_PER_SECOND) for moment in moments],
                "captions": [*captions, {"idx": "-1", "content": " ".join(said)}],
                "zip_folder": f"{site}_videos_1.zip",
            }
        )
    for site, members in held.items():
        if members:
            zipped(folder / f"zip_folder/{site}/{site}_videos_1.zip", members)
    jsonl(folder / "sharegpt4video_40k.jsonl", written)


# ----------------------------------------------------------------------------------------- Something-Something


def _write_something_something(folder: Path, rows: int, material: Material) -> None:
    """Labels are the templates without their brackets, numbered by the alphabet, as strings."""
    written = []
    for row in range(rows):
        clip, number = cut(row, f"something_something/{row}"), f"{1000 + 37 * row}"
        put(folder / f"20bn-something-something-v2/{number}.webm", material.clips.encoded(clip, "webm"))
        scene = clip.scene
        written.append(
            {"id": number, "label": scene.label, "template": scene.template, "placeholders": list(scene.things)}
        )
    trained = rows - rows // _VALIDATION
    document(folder / "labels/train.json", written[:trained])
    document(folder / "labels/validation.json", written[trained:])
    templates = sorted({scene.template.replace("[", "").replace("]", "") for scene in SCENES})
    document(folder / "labels/labels.json", {template: f"{number}" for number, template in enumerate(templates)})


# --------------------------------------------------------------------------------------------------- HowTo100M


def _write_howto100m(folder: Path, rows: int, material: Material) -> None:
    listed = []
    for row in range(rows):
        of = f"howto100m/{row}"
        clip, video = cut(row + 3, of), _id(of, row)
        kind = ("mp4", "webm", "mkv")[row % 3]
        if dirt("howto100m", row, rows) != "video missing":
            put(folder / f"videos/{video}.{kind}", material.clips.encoded(clip, kind))
        if row % _UNHEARD != 4:
            put(folder / f"captions/{video}.csv", _table([("start", "end", "text"), *clip.events]))
        listed.append((video, *_category(clip), 1 + choose(of, "rank", 200), 1000 + choose(of, "task", 100_000)))
    header = ("video_id", "category_1", "category_2", "rank", "task_id")
    put(folder / "HowTo100M_v1.csv", _table([header, *listed]))


def _category(clip: Cut) -> tuple[str, str]:
    return {
        "bigbuckbunny.mp4": ("Pets and Animals", "Rabbits"),
        "bikes.mp4": ("Cars & Other Vehicles", "Bicycles"),
        "carphone_pristine.mp4": ("Cars & Other Vehicles", "Driving, and Riding Along"),
    }[clip.file]


def _table(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


VIDEOSTAR = Corpus(write=_write_videostar, limit=lambda material: ASKED * CUTS * len(SCENES))
SHAREGPTVIDEO = Corpus(write=_write_sharegptvideo, limit=lambda material: ASKED * CUTS * len(SCENES))
SHAREGPT4VIDEO = Corpus(write=_write_sharegpt4video, limit=lambda material: CUTS * len(SCENES))
SOMETHING_SOMETHING = Corpus(write=_write_something_something, limit=lambda material: CUTS * len(SCENES))
HOWTO100M = Corpus(write=_write_howto100m, limit=lambda material: CUTS * len(SCENES))
