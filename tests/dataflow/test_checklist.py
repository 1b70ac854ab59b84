"""The checklist of every trap seen in public corpora, each through the source that it concerns, line by line.

A line is: what is wrong, the files as upstream has them, and what the ledger says of each row: the task of what was
kept, or the outcome and its reason. Sound rows stand beside the odd ones, for one bad row never costs another.

The checklist is section 10 of reference/corpora.md; rows are from where test_sources, test_clips, test_editing and
test_visual_thinking have theirs. Outside the declared folders lies a sound picture that no row may reach.
"""

from __future__ import annotations

import io
import json
import re
import stat
import tarfile
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clips import BIKES, clip, scene, sound, which
from PIL import Image, ImageCms
from upstream import BUS, ORCA, PHOTOS, Build, chunk, file, jpeg, jsonl, metaclip_json, photo, png_header, tar

from dataflow.index import verify
from dataflow.media import boxed, decoded
from dataflow.record import Media
from dataflow.sources.aurora import Aurora
from dataflow.sources.cambrian import Cambrian
from dataflow.sources.captions import Captions
from dataflow.sources.howto100m import HowTo100M
from dataflow.sources.instruct_pix2pix import InstructPix2Pix
from dataflow.sources.llava import Llava
from dataflow.sources.metaclip import MetaClip
from dataflow.sources.mmc4 import Mmc4
from dataflow.sources.sharegpt4video import ShareGpt4Video
from dataflow.sources.sharegptvideo import ShareGptVideo
from dataflow.sources.something_something import SomethingSomething
from dataflow.sources.text import TextDocuments
from dataflow.sources.videostar import VideoStar
from dataflow.sources.visual_cot import VisualCot
from dataflow.sources.vstar import VStar

ORIENTATION = 0x0112  # EXIF tag
CAT, CAT_PNG = jpeg(), file(photo(), "PNG")
SECRET = PHOTOS / "rocket.jpg"  # sound, and outside the declared folders; beside them a copy of it is in secret/
AWAY = "leaves the declared folders: admit it by --data NAME="
INSIDE = f"{AWAY}the folder it ends in"  # what is said of a path that is not absolute

Shown = bytes | int | Image.Image
"""A picture of a record: its very bytes, the number of its scene, or its pixels."""


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    to: str


Files = dict[str, bytes | Link | None]
"""What lies in the source's folder; None is a folder without files."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the checklist: what becomes of each row, and what the first record shows and says, if that matters."""

    of: Any
    given: Files
    becomes: list[str]
    shows: list[Shown] | None = None
    says: list[str] | None = None


# --- files as upstream has them, a sound row last


def cambrian(*rows: dict[str, Any] | bytes, cat: bytes | Link = CAT) -> Files:
    """Its JSONL, as it is, and the published row's picture."""
    return {"jsons/Cambrian7M_withsystemprompt.jsonl": jsonl(*rows), str(BUS["image"]): cat}


def bus(data: bytes | Link) -> Files:
    """Cambrian's published row and its picture."""
    return cambrian(BUS, ORCA, cat=data)


def chat(*turns: tuple[str, Any], **more: Any) -> Files:
    """A row of Cambrian's; its picture is the published row's if it has one."""
    row = {"id": "1", "conversations": [{"from": speaker, "value": value} for speaker, value in turns], **more}
    return cambrian(row, ORCA)


def llava(image: Any, asked: str) -> Files:
    """A row of LLaVA's list, and pictures 1.jpg and 2.jpg."""
    answer = {"from": "gpt", "value": "The second one is a PNG."}
    row = {"id": 7, "image": image, "conversations": [{"from": "human", "value": asked}, answer]}
    return {"llava_v1_5_mix665k.json": json.dumps([row, ORCA]).encode(), "1.jpg": CAT, "2.jpg": CAT_PNG}


UUID, TEXTS = metaclip_json("http://example.com/bus.jpg", "a red bus in the rain")
LAST_UUID, LAST_TEXTS = metaclip_json("http://example.com/cat.jpg", "a cat")
LAST = ((f"{LAST_UUID}.jpeg", CAT), (f"{LAST_UUID}.json", LAST_TEXTS))


def metaclip(*members: tuple[str, bytes] | tarfile.TarInfo) -> Files:
    return {"17/317.tar": tar(*members, *LAST)}


def link_in_tar(to: str, kind: bytes = tarfile.SYMTYPE) -> Files:
    header = tarfile.TarInfo(f"{UUID}.jpeg")
    header.type, header.linkname = kind, to
    return metaclip(header, (f"{UUID}.json", TEXTS))


def cc12m(caption: bytes) -> Files:
    members = (("000000000.jpg", CAT), ("000000000.txt", caption), ("000000001.jpg", CAT), ("000000001.txt", b"a cat"))
    return {"cc12m-train-0000.tar": tar(*members)}


def pix2pix(before: bytes) -> Files:
    """Rows of InstructPix2Pix' parquet, as many columns as its source reads."""
    rows = [
        {
            "original_image": {"bytes": data, "path": None},
            "edit_prompt": "make it snow",
            "edited_image": {"bytes": CAT_PNG, "path": None},
        }
        for data in (before, CAT)
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return {"data/train-00000-of-00262-9ad7bf0e60e1a0b4.parquet": buffer.getvalue()}


CHARADES = {
    "instruction": "move the towel to the left",
    "input": "data/ag/images/1K0SU.mp4_4_left.png",
    "output": "data/ag/images/1K0SU.mp4_4_right.png",
}


def aurora(document: bytes, before: bytes | Link = CAT_PNG) -> Files:
    return {"data/ag/train.json": document, str(CHARADES["input"]): before, str(CHARADES["output"]): CAT_PNG}


def kinetics(data: bytes | Link | None, name: str = "Kinetics700/JDKf63ARWuY_000017_000027.mp4") -> Files:
    """A row of VideoStar's, with its clip."""
    turns = [
        {"from": "human", "value": "<video>\nWhat is the man doing?"},
        {"from": "gpt", "value": "He is abseiling down a cliff."},
    ]
    rows = [{"video": video, "conversations": turns} for video in (name, "FineDiving/17_8.mp4")]
    held = {"ft_json/kinetics700_tune_.json": json.dumps(rows).encode(), "FineDiving/17_8.mp4": STILL}
    return {**held, name: data} if data is not None else {**held}


STILL = clip(1)
LONG = clip(40, format="webm", codec="libvpx")
WAVING = clip(12, rate=12, format="webm", codec="libvpx")  # as Something-Something's, shorter


def something_something(data: bytes | Link, name: str = "78687") -> Files:
    rows = [
        {"id": name, "template": "Holding [something] next to [something]", "placeholders": ["potato", "bottle"]},
        {"id": "36585", "template": "[Something] falling like a feather or paper", "placeholders": ["plastic"]},
    ]
    videos = "20bn-something-something-v2"
    held: Files = {"labels/train.json": json.dumps(rows).encode(), f"{videos}/36585.webm": WAVING}
    return {**held, f"{videos}/78687.webm": data}


NARRATED = clip(30)  # 3 s
FRAMES = {f"train_300k/v_2/c01_{number:04d}.jpeg": CAT for number in (1, 2)}


def howto100m(captions: bytes | Link, data: bytes | Link = NARRATED) -> Files:
    rows = b"nVbIUDjzWY4,Cars & Other Vehicles,Motorcycles,27,52907\n-_-zsRs2k3U,Food,Bread,1,7\n"
    return {
        "HowTo100M_v1.csv": b"video_id,category_1,category_2,rank,task_id\n" + rows,
        "videos/nVbIUDjzWY4.webm": data,
        "videos/-_-zsRs2k3U.mp4": NARRATED,
        "captions/nVbIUDjzWY4.csv": captions,
    }


def sharegptvideo(video: str, frames: Files) -> Files:
    turns = [
        {"from": "human", "value": "<video>\nWhat does the dog do?"},
        {"from": "gpt", "value": "It jumps over the fence."},
    ]
    rows = [{"id": f"{name}__0", "video": name, "conversations": turns} for name in (video, "v_2")]
    return {"video_instruction/train/sft/video_240k_caption_15k.jsonl": jsonl(*rows), **FRAMES, **frames}


def sharegpt4video(change: dict[str, Any], files: Files) -> Files:
    row = {
        "video_id": "e8b3",
        "video_path": "panda/e8b3.mp4",
        "timestamp": ["00:00:00.000", "00:00:02.000"],
        "captions": [{"idx": "0", "content": "A horse."}, {"idx": "-1", "content": "A horse turns its head."}],
        "zip_folder": "panda_videos_1.zip",
    }
    sound_row = {**row, "video_path": "panda/2.mp4"}
    return {"sharegpt4video_40k.jsonl": jsonl({**row, **change}, sound_row), "panda/2.mp4": STILL, **files}


def link_in_zip(name: str, to: str) -> bytes:
    """A zip as `zip --symlinks` makes it: what the link leads to is the member's content."""
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return zipped(member, to.encode())


def zipped(name: str | zipfile.ZipInfo, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def visual_cot(box: str, data: bytes | Link = CAT, path: str = "cot/gqa/2316539.jpg") -> Files:
    """The published row with another box, in a picture of 64x48; the sound row has the box of the one published."""
    asked = "<image>\nWhat are the tree branches in front of? Please provide the bounding box coordinate of the region"
    turns = [("human", asked), ("gpt", "[0.542, 0.686, 0.592, 0.786]"), ("human", "<image>"), ("gpt", "window")]
    conversations = [{"from": speaker, "value": value} for speaker, value in turns]
    rows = [
        {"dataset": "gqa", "image": [name, f"{name}###{pixels}"], "conversations": conversations}
        for name, pixels in ((path, box), ("cot/gqa/2.jpg", "[217, 343, 242, 393]"))
    ]
    large = jpeg(391, 500)
    return {"viscot_363k.json": json.dumps(rows).encode(), "cot/gqa/2316539.jpg": data, "cot/gqa/2.jpg": large}


CUP = "Additional visual information to focus on: <object>.\nWhat color is the cup?"


def vstar(bbox: Any, data: bytes | Link = CAT_PNG, path: str = "gqa/images/2368326.jpg") -> Files:
    turns = [
        {"from": "human", "value": f"<image>\n{CUP}"},
        {"from": "gpt", "value": "The color of the cup is white."},
    ]
    rows = [
        {"image": name, "target_instances": [{"name": "cup", "bbox": box}], "conversations": turns}
        for name, box in ((path, bbox), ("gqa/images/2.jpg", [4, 4, 20, 20]))
    ]
    return {"GQA_data.json": json.dumps(rows).encode(), "gqa/images/2368326.jpg": data, "gqa/images/2.jpg": CAT}


def mmc4(data: bytes | Link, name: str = "b9040a0dbb22.jpg") -> Files:
    """Two pages of one picture each."""
    info = {"image_name": name, "raw_url": "http://example.com/1.jpg", "matched_text_index": 0, "matched_sim": 0.28}
    row = {"image_info": [info], "text_list": ["A cat."], "similarity_matrix": [[0.28]], "url": "http://example.com"}
    sound_row = {**row, "image_info": [{**info, "image_name": "2.jpg"}]}
    held: Files = {"docs_no_face_shard_7_v3.jsonl": jsonl(row, sound_row), "images/7/2.jpg": CAT}
    return {**held, f"images/7/{name}": data} if "/" not in name else held


# --- pictures and texts of the lines


def solid(colour: Any, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (16, 8), colour)


def animation(format: str) -> bytes:
    """Red, then blue."""
    return file(solid("red"), format, save_all=True, append_images=[solid("blue")], duration=100, lossless=True)


def glass(mode: str, *clear: int) -> bytes:
    """A picture whose left half nobody sees."""
    image = Image.new(mode, (16, 8), (200,) * len(mode[:-1]) + (255,))
    image.paste((*clear, 0), (0, 0, 8, 8))
    return file(image, "PNG")


def half_white(*colour: int) -> Image.Image:
    image = solid(colour)
    image.paste((255, 255, 255), (0, 0, 8, 8))
    return image


def turned(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def pixels(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def rateless() -> bytes:
    """An AVI whose headers claim 0 frames a second."""
    data = bytearray(clip(12, format="avi", codec="mpeg4"))
    streams, main = data.index(b"strh") + 8, data.index(b"avih") + 8
    data[streams + 20 : streams + 28] = bytes(8)  # scale and rate
    data[main : main + 4] = bytes(4)  # microseconds a frame
    return bytes(data)


DEEP = PHOTOS / "chessboard_RGB.png"  # of 16 bits per channel
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_16 = np.arange(0, 65536, 512, dtype=np.uint16).reshape(8, 16)
BOMB = CAT_PNG[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20))) + CAT_PNG[33:]
HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>"
TURNED = file(photo(), "JPEG", quality=95, exif=turned(6))  # stored lying; upright it is 48x64
CLOCKWISE = Image.Transpose.ROTATE_270
REGION = (8, 4, 40, 30)
NOVEL = "It was a dark and stormy night. " * 60_000  # 1.9 MB
TAR = tar((f"{UUID}.jpeg", CAT), (f"{UUID}.json", TEXTS), *LAST)
ASKED, ANSWERED = ("human", "?"), ("gpt", "!")
PHOTO = str(BUS["image"])
LIST = json.dumps([CHARADES, CHARADES]).encode()

QA = "image_qa"
WORDS = "text_qa"  # what becomes of ORCA, the sound row of Cambrian and LLaVA
VIDEO = "video_qa"
DRAWN = "text_to_image"
EDIT = "image_editing"
LOOK = "visual_thinking"
NEXT = "frame_prediction"

PAGE = "interleaved_document"

CHECKLIST: dict[str, Line] = {
    # pictures: what is broken
    "truncated JPEG": Line(
        of=Cambrian(),
        given=bus(CAT[:-400]),
        becomes=["corrupt: picture does not decode: image file is truncated (... bytes not processed)", WORDS],
    ),
    "truncated JPEG in a tar": Line(
        of=MetaClip(),
        given=metaclip((f"{UUID}.jpeg", CAT[: len(CAT) // 3]), (f"{UUID}.json", TEXTS)),
        becomes=["corrupt: jpeg: picture does not decode: image file is truncated (... bytes not processed)", DRAWN],
    ),
    "zero byte": Line(of=Cambrian(), given=bus(b""), becomes=["corrupt: picture is 0 bytes", WORDS]),
    "zero byte in a tar": Line(
        of=MetaClip(),
        given=metaclip((f"{UUID}.jpeg", b""), (f"{UUID}.json", TEXTS)),
        becomes=["corrupt: jpeg: picture is 0 bytes", DRAWN],
    ),
    "zero byte in parquet": Line(
        of=InstructPix2Pix(), given=pix2pix(b""), becomes=["corrupt: original_image: picture is 0 bytes", EDIT]
    ),
    "HTML saved as .jpg": Line(
        of=Cambrian(), given=bus(HTML), becomes=["corrupt: picture is a web page or XML, not pixels", WORDS]
    ),
    "HTML on a page": Line(
        of=Mmc4(),
        given=mmc4(HTML),
        becomes=[
            "corrupt: picture 0: images/7/b9040a0dbb22.jpg: picture is a web page or XML, not pixels",
            PAGE,
        ],
    ),
    "link out of a page's pictures": Line(
        of=Mmc4(),
        given=mmc4(Link("../../../../secret/1.jpg")),
        becomes=[f"corrupt: picture 0: path 'images/7/b9040a0dbb22.jpg' {INSIDE}", PAGE],
    ),
    "path out of a page's pictures": Line(
        of=Mmc4(),
        given=mmc4(b"", "../../../../secret/1.jpg"),
        becomes=["corrupt: picture 0: image_name '../../../../secret/1.jpg' is no name of a file", PAGE],
    ),
    "HTML in parquet": Line(
        of=InstructPix2Pix(),
        given=pix2pix(HTML),
        becomes=["corrupt: original_image: picture is a web page or XML, not pixels", EDIT],
    ),
    "decompression bomb": Line(
        of=Cambrian(),
        given=bus(png_header(100_000, 100_000)),
        becomes=[
            "corrupt: picture does not open: Image size (10000000000 pixels) exceeds limit of 178956970 pixels, could "
            "be decompression bomb DOS attack.",
            WORDS,
        ],
    ),
    # pictures: what is odd
    "PNG text bomb": Line(of=Cambrian(), given=bus(BOMB), becomes=[QA, WORDS], shows=[CAT_PNG]),
    "PNG named .jpg": Line(of=Cambrian(), given=bus(CAT_PNG), becomes=[QA, WORDS], shows=[CAT_PNG]),
    "CMYK JPEG": Line(
        of=Cambrian(),
        given=bus(file(photo().convert("CMYK"), "JPEG", quality=95)),
        becomes=[QA, WORDS],
        shows=[photo()],
    ),
    "palette PNG": Line(
        of=Cambrian(),
        given=bus(file(photo().convert("P"), "PNG")),
        becomes=[QA, WORDS],
        shows=[photo().convert("P").convert("RGB")],
    ),
    "LA PNG": Line(of=Cambrian(), given=bus(glass("LA", 7)), becomes=[QA, WORDS], shows=[half_white(200, 200, 200)]),
    "RGBA PNG": Line(
        of=Aurora(),
        given=aurora(LIST, glass("RGBA", 90, 7, 0)),
        becomes=[EDIT, EDIT],
        shows=[half_white(200, 200, 200), CAT_PNG],
    ),
    "16-bit PNG": Line(
        of=Cambrian(),
        given=bus(file(Image.fromarray(GREY_16), "PNG")),
        becomes=[QA, WORDS],
        shows=[Image.fromarray((GREY_16 >> 8).astype(np.uint8)).convert("RGB")],
    ),
    "16-bit PNG of colours": Line(
        of=Cambrian(), given=bus(DEEP.read_bytes()), becomes=[QA, WORDS], shows=[pixels(DEEP.read_bytes())]
    ),
    "animated GIF": Line(of=Cambrian(), given=bus(animation("GIF")), becomes=[QA, WORDS], shows=[solid("red")]),
    "animated WebP": Line(of=Cambrian(), given=bus(animation("WEBP")), becomes=[QA, WORDS], shows=[solid("red")]),
    "APNG": Line(of=Cambrian(), given=bus(animation("PNG")), becomes=[QA, WORDS], shows=[solid("red")]),
    "EXIF orientation": Line(
        of=Cambrian(), given=bus(TURNED), becomes=[QA, WORDS], shows=[pixels(TURNED).transpose(CLOCKWISE)]
    ),
    "EXIF orientation and a box: it is of the stored pixels": Line(
        of=VisualCot(),
        given=visual_cot(str(list(REGION)), TURNED),
        becomes=[LOOK, LOOK],
        shows=[pixels(TURNED).transpose(CLOCKWISE), pixels(TURNED).crop(REGION).transpose(CLOCKWISE)],
    ),
    "1x1": Line(of=Cambrian(), given=bus(jpeg(1, 1)), becomes=[QA, WORDS], shows=[jpeg(1, 1)]),
    "1x5000": Line(of=Cambrian(), given=bus(jpeg(1, 5000)), becomes=[QA, WORDS], shows=[jpeg(1, 5000)]),
    "ICC": Line(
        of=Cambrian(),
        given=bus(file(photo(), "JPEG", icc_profile=PROFILE)),
        becomes=[QA, WORDS],
        shows=[file(photo(), "JPEG", icc_profile=PROFILE)],
    ),
    # text
    "non-UTF-8 caption": Line(
        of=Captions(), given=cc12m(b"a caf\xe9 in the rain"), becomes=["corrupt: text is not UTF-8: byte 5", DRAWN]
    ),
    "NUL in a caption": Line(
        of=Captions(), given=cc12m(b"a cat\0"), becomes=["corrupt: text holds a NUL, at character 5", DRAWN]
    ),
    "NUL in an answer": Line(
        of=Cambrian(),
        given=chat(ASKED, ("gpt", "a\0cat")),
        becomes=["corrupt: text holds a NUL, at character 1", WORDS],
    ),
    "half a surrogate pair": Line(
        of=Cambrian(),
        given=chat(ASKED, ("gpt", "a cat \ud83d")),
        becomes=[r"corrupt: text holds half a surrogate pair, '\ud83d', at character 6", WORDS],
    ),
    "very long text": Line(
        of=TextDocuments(),
        given={"books.jsonl": jsonl({"text": NOVEL}, {"text": "The end."})},
        becomes=["text_document", "text_document"],
        says=[NOVEL],
    ),
    "very long caption": Line(of=Captions(), given=cc12m(NOVEL.encode()), becomes=[DRAWN, DRAWN], says=[NOVEL.strip()]),
    # ids and pictures of a row
    "duplicate ids": Line(of=Cambrian(), given=cambrian(BUS, BUS, ORCA), becomes=[QA, QA, WORDS]),
    "int id": Line(of=Cambrian(), given=cambrian({**BUS, "id": 33471}, ORCA), becomes=[QA, WORDS], shows=[CAT]),
    "missing, None, '', 'nan' image": Line(
        of=Cambrian(),
        given=cambrian(ORCA, *({**ORCA, "image": no} for no in (None, "", "nan", "None", float("nan")))),
        becomes=[WORDS] * 6,
        shows=[],
    ),
    "missing, None, '', 'nan' image with a tag": Line(
        of=Cambrian(),
        given=cambrian(*({**BUS, "image": no} for no in (None, "", "nan")), ORCA),
        becomes=["corrupt: 0 pictures but 1 <image> in the text"] * 3 + [WORDS],
    ),
    "image that is not there": Line(
        of=Cambrian(),
        given=cambrian({**BUS, "image": "coco/train2017/7.jpg"}, BUS),
        becomes=["missing: file 'coco/train2017/7.jpg' is not there", QA],
    ),
    "image with no <image>": Line(
        of=Cambrian(),
        given=chat(ASKED, ANSWERED, image=PHOTO),
        becomes=["corrupt: 1 picture but 0 <image> in the text", WORDS],
    ),
    "<image> without image": Line(
        of=Cambrian(),
        given=chat(("human", "<image>\n?"), ANSWERED),
        becomes=["corrupt: 0 pictures but 1 <image> in the text", WORDS],
    ),
    "more pictures than tags": Line(
        of=Llava(),
        given=llava(["1.jpg", "2.jpg"], "<image>\nWhich is a PNG?"),
        becomes=["corrupt: 2 pictures but 1 <image> in the text", WORDS],
    ),
    "more tags than pictures": Line(
        of=Llava(),
        given=llava("1.jpg", "<image> or <image>: which is a PNG?"),
        becomes=["corrupt: 1 picture but 2 <image> in the text", WORDS],
    ),
    "as many tags as pictures": Line(
        of=Llava(),
        given=llava(["1.jpg", "2.jpg"], "<image> or <image>: which is a PNG?"),
        becomes=[QA, WORDS],
        shows=[CAT, CAT_PNG],
    ),
    # turns
    "gpt first": Line(
        of=Cambrian(),
        given=chat(ANSWERED, ASKED, ANSWERED),
        becomes=[
            "corrupt: turns are assistant, user, assistant: they must be user, assistant, user, assistant, ...",
            WORDS,
        ],
    ),
    "system turn": Line(
        of=Cambrian(),
        given=chat(("system", "Be brief."), ASKED, ANSWERED),
        becomes=[WORDS, WORDS],
        says=["Be brief.", "?", "!"],
    ),
    "same role twice": Line(
        of=Cambrian(),
        given=chat(ASKED, ANSWERED, ANSWERED),
        becomes=[
            "corrupt: turns are user, assistant, assistant: they must be user, assistant, user, assistant, ...",
            WORDS,
        ],
    ),
    "empty gpt value": Line(
        of=Cambrian(), given=chat(ASKED, ("gpt", "")), becomes=["corrupt: an empty gpt turn", WORDS]
    ),
    "null gpt value": Line(
        of=Cambrian(), given=chat(ASKED, ("gpt", None)), becomes=["corrupt: an empty gpt turn", WORDS]
    ),
    "literal <image> in an answer": Line(
        of=Cambrian(),
        given=chat(("human", "What is the tag?"), ("gpt", "It is <image>."), image=PHOTO),
        becomes=["corrupt: <image> in an answer: it would become a picture to learn", WORDS],
    ),
    "literal <image> in an answer, without a picture": Line(
        of=Cambrian(),
        given=chat(ASKED, ("gpt", "Write <image> there.")),
        becomes=["corrupt: 0 pictures but 1 <image> in the text", WORDS],
    ),
    "literal <video> in an answer": Line(
        of=VideoStar(),
        given={
            **kinetics(STILL),
            "ft_json/kinetics700_tune_.json": json.dumps(
                [
                    {"video": "FineDiving/17_8.mp4", "conversations": [{"from": "human", "value": "?"}, turn]}
                    for turn in ({"from": "gpt", "value": "<video>"}, {"from": "gpt", "value": "A dive."})
                ]
            ).encode(),
        },
        becomes=["corrupt: <video> in a turn that is not human: a clip belongs to a question", VIDEO],
    ),
    # paths and links that lead out
    "path traversal": Line(
        of=Cambrian(),
        given=cambrian({**BUS, "image": "../../secret/1.jpg"}, BUS),
        becomes=[f"corrupt: path '../../secret/1.jpg' {INSIDE}", QA],
    ),
    "path traversal through a folder": Line(
        of=Cambrian(),
        given=cambrian({**BUS, "image": "coco/../../../secret/1.jpg"}, BUS),
        becomes=[f"corrupt: path 'coco/../../../secret/1.jpg' {INSIDE}", QA],
    ),
    "absolute path": Line(
        of=Cambrian(),
        given=cambrian({**BUS, "image": str(SECRET)}, BUS),
        becomes=[f"corrupt: path '{SECRET}' {AWAY}{SECRET.parent}", QA],
    ),
    "symlink out": Line(
        of=Cambrian(),
        given=cambrian({**BUS, "image": "1.jpg"}, BUS) | {"1.jpg": Link("../../secret/1.jpg")},
        becomes=[f"corrupt: path '1.jpg' {INSIDE}", QA],
    ),
    "absolute symlink out": Line(
        of=Cambrian(),
        given=cambrian({**BUS, "image": "1.jpg"}, BUS) | {"1.jpg": Link(str(SECRET))},
        becomes=[f"corrupt: path '1.jpg' {INSIDE}", QA],
    ),
    "symlink in a circle": Line(
        of=Cambrian(),
        given=cambrian({**BUS, "image": "1.jpg"}, BUS) | {"1.jpg": Link("1.jpg")},
        becomes=["corrupt: path '1.jpg' cannot be followed: Too many levels of symbolic links", QA],
    ),
    "path traversal in LLaVA's list": Line(
        of=Llava(),
        given=llava(["1.jpg", "../../secret/1.jpg"], "<image><image>?"),
        becomes=[f"corrupt: path '../../secret/1.jpg' {INSIDE}", WORDS],
    ),
    "path traversal in Visual CoT": Line(
        of=VisualCot(),
        given=visual_cot(str(list(REGION)), path="cot/../../../secret/1.jpg"),
        becomes=[f"corrupt: path 'cot/../../../secret/1.jpg' {INSIDE}", LOOK],
    ),
    "path traversal in V*": Line(
        of=VStar(),
        given=vstar([4, 4, 9, 9], path="../../secret/1.jpg"),
        becomes=[f"corrupt: path '../../secret/1.jpg' {INSIDE}", LOOK],
    ),
    "path traversal in AURORA": Line(
        of=Aurora(),
        given=aurora(json.dumps([{**CHARADES, "input": "../../secret/1.jpg"}, CHARADES]).encode()),
        becomes=[f"corrupt: path '../../secret/1.jpg' {INSIDE}", EDIT],
    ),
    "path traversal in seeds.json": Line(
        of=InstructPix2Pix(),
        given={
            "seeds.json": json.dumps(
                [["../../secret", ["1"]], ["0000000", ["../../../secret/1", "1259306393"]]]
            ).encode(),
            "0000000/prompt.json": b'{"caption": "a cat", "edit": "make it snow", "output": "a cat in snow"}',
            "0000000/1259306393_0.jpg": CAT,
            "0000000/1259306393_1.jpg": CAT,
        },
        becomes=[
            "corrupt: prompt id '../../secret' is not digits in quotes",
            f"{EDIT}: candidate 0: seed '../../../secret/1' is not digits in quotes",
        ],
    ),
    "path traversal in a clip's path": Line(
        of=VideoStar(),
        given=kinetics(None, "../../secret/1.mp4"),
        becomes=[f"corrupt: path '../../secret/1.mp4' {INSIDE}", VIDEO],
    ),
    "path traversal in a clip's id": Line(
        of=SomethingSomething(),
        given=something_something(WAVING, "../../../secret/1"),
        becomes=["corrupt: id '../../../secret/1' names no clip", NEXT],
    ),
    "symlink in place of a clip": Line(
        of=SomethingSomething(),
        given=something_something(Link("../../../secret/1.mp4")),
        becomes=[f"corrupt: path '20bn-something-something-v2/78687.webm' {INSIDE}", NEXT],
    ),
    "symlink in place of a narration": Line(
        of=HowTo100M(),
        given=howto100m(Link("../../../secret/1.csv")),
        becomes=[f"corrupt: path 'captions/nVbIUDjzWY4.csv' {INSIDE}", NEXT],
    ),
    "path traversal in a list of videos": Line(
        of=HowTo100M(),
        given={
            "HowTo100M_v1.csv": b"video_id,rank,path\n1,27,../../secret/1.mp4\n-_-zsRs2k3U,1,\n",
            "videos/-_-zsRs2k3U.mp4": NARRATED,
        },
        becomes=[f"corrupt: path '../../secret/1.mp4' {INSIDE}", NEXT],
    ),
    "path traversal in a folder of frames": Line(
        of=ShareGptVideo(),
        given=sharegptvideo("../../../secret", {}),
        becomes=[f"corrupt: path 'train_300k/../../../secret' {INSIDE}", VIDEO],
    ),
    "symlink in place of a folder of frames": Line(
        of=ShareGptVideo(),
        given=sharegptvideo("v_1", {"train_300k/v_1": Link("../../../secret")}),
        becomes=[f"corrupt: path 'train_300k/v_1' {INSIDE}", VIDEO],
    ),
    "symlink in place of a frame": Line(
        of=ShareGptVideo(),
        given=sharegptvideo("v_1", {"train_300k/v_1/c01_0001.jpeg": Link("../../../../secret/1.jpg")}),
        becomes=[f"corrupt: path 'train_300k/v_1/c01_0001.jpeg' {INSIDE}", VIDEO],
    ),
    # archives
    "path traversal in a tar: a name is no place": Line(
        of=MetaClip(),
        given=metaclip((f"../../{UUID}.jpeg", CAT), (f"../../{UUID}.json", TEXTS)),
        becomes=[DRAWN, DRAWN],
        shows=[CAT],
        says=["a red bus in the rain"],
    ),
    "absolute members of a tar": Line(
        of=MetaClip(),
        given=metaclip((f"/tmp/{UUID}.jpeg", CAT), (f"/tmp/{UUID}.json", TEXTS)),
        becomes=[DRAWN, DRAWN],
        shows=[CAT],
    ),
    "symlink in a tar": Line(
        of=MetaClip(),
        given=link_in_tar("../../../secret/1.jpg"),
        becomes=[f"corrupt: member '{UUID}.jpeg' is a link or folder, not a plain file", DRAWN],
    ),
    "absolute symlink in a tar": Line(
        of=MetaClip(),
        given=link_in_tar(str(SECRET)),
        becomes=[f"corrupt: member '{UUID}.jpeg' is a link or folder, not a plain file", DRAWN],
    ),
    "hard link in a tar": Line(
        of=MetaClip(),
        given=link_in_tar(f"{LAST_UUID}.jpeg", tarfile.LNKTYPE),
        becomes=[f"corrupt: member '{UUID}.jpeg' is a link or folder, not a plain file", DRAWN],
    ),
    "symlink in a zip": Line(
        of=ShareGpt4Video(),
        given=sharegpt4video(
            {}, {"zip_folder/panda/panda_videos_1.zip": link_in_zip("panda/e8b3.mp4", "../../../../secret/1.mp4")}
        ),
        becomes=["corrupt: video does not open: Invalid data found when processing input", VIDEO],
    ),
    "path traversal in a zip: a name is no place": Line(
        of=ShareGpt4Video(),
        given=sharegpt4video(
            {"video_path": "panda/../e8b3.mp4"},
            {"zip_folder/panda/panda_videos_1.zip": zipped("panda/../e8b3.mp4", STILL)},
        ),
        becomes=[VIDEO, VIDEO],
        shows=[0],
    ),
    "path traversal beside a zip": Line(
        of=ShareGpt4Video(),
        given=sharegpt4video({"video_path": "../../secret/1.mp4"}, {}),
        becomes=[f"corrupt: path '../../secret/1.mp4' {INSIDE}", VIDEO],
    ),
    "path traversal in the name of a zip": Line(
        of=ShareGpt4Video(),
        given=sharegpt4video({"zip_folder": "../../../../secret/1.zip"}, {}),
        becomes=["missing: file 'zip_folder/1.zip/1.zip' is not there", VIDEO],
    ),
    "symlink in place of a zip": Line(
        of=ShareGpt4Video(),
        given=sharegpt4video({}, {"zip_folder/panda/panda_videos_1.zip": Link("../../../../secret/1.zip")}),
        becomes=[f"corrupt: path 'zip_folder/panda/panda_videos_1.zip' {INSIDE}", VIDEO],
    ),
    "zip that is cut off": Line(
        of=ShareGpt4Video(),
        given=sharegpt4video({}, {"zip_folder/panda/panda_videos_1.zip": zipped("panda/e8b3.mp4", STILL)[:-30]}),
        becomes=[
            "corrupt: archive 'zip_folder/panda/panda_videos_1.zip' does not open: File is not a zip file",
            VIDEO,
        ],
    ),
    "tar truncated in a member": Line(
        of=MetaClip(),
        given={"17/317.tar": TAR[: TAR.rindex(CAT) + 700]},
        becomes=[
            DRAWN,
            f"corrupt: archive ends inside member '{LAST_UUID}.jpeg'",
            "corrupt: archive is cut off or broken: unexpected end of data",
        ],
    ),
    "tar truncated between samples": Line(
        of=MetaClip(),
        given={"17/317.tar": TAR[: TAR.rindex(CAT) - 512]},
        becomes=[
            DRAWN,
            f"corrupt: archive has no end mark at byte {TAR.rindex(CAT) - 512}: it is cut off or broken, rows after it "
            "are missing",
        ],
    ),
    # lines and documents
    "JSONL with a blank last line": Line(
        of=Cambrian(), given=cambrian(BUS, ORCA, b"", b" "), becomes=[QA, WORDS], shows=[CAT]
    ),
    "JSONL with a BOM": Line(
        of=Cambrian(), given=cambrian(b"\xef\xbb\xbf" + json.dumps(BUS).encode(), ORCA), becomes=[QA, WORDS]
    ),
    "JSONL with CRLF": Line(
        of=Cambrian(),
        given=cambrian(json.dumps(BUS).encode() + b"\r", json.dumps(ORCA).encode() + b"\r", b"\r"),
        becomes=[QA, WORDS],
    ),
    "JSONL with bad lines": Line(
        of=Cambrian(),
        given=cambrian(json.dumps(BUS).encode()[:-9], b'{"id": "caf\xe9"}', b'["a", "list"]', b"\0" * 9, BUS),
        becomes=[
            "corrupt: line is not JSON: Unterminated string starting at (character 405)",
            "corrupt: line is not UTF-8: byte 11",
            "corrupt: line holds list, a row is an object",
            "corrupt: line is not JSON: Expecting value (character 0)",
            QA,
        ],
    ),
    "JSON document cut off": Line(
        of=Aurora(),
        given=aurora(LIST[:-20]),
        becomes=[
            EDIT,
            "corrupt: document is cut off or broken: its end is missing, and with it what comes after the last whole "
            "row",
        ],
    ),
    "JSON document with NaN": Line(
        of=Llava(),
        given=llava(float("nan"), "?"),
        becomes=[WORDS, WORDS],
        shows=[],
    ),
    "JSON lines named .json": Line(
        of=Aurora(),
        given=aurora(jsonl(CHARADES, CHARADES)),
        becomes=[EDIT, EDIT],
    ),
    "Git LFS pointer": Line(
        of=Aurora(),
        given=aurora(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        becomes=["corrupt: file is a Git LFS pointer, not the file itself: fetch it, with git lfs pull, say"],
    ),
    "JSON document of 0 bytes": Line(of=Aurora(), given=aurora(b""), becomes=["corrupt: document is 0 bytes"]),
    # video
    "0 frames": Line(
        of=VideoStar(),
        given=kinetics(clip(0, format="avi", codec="mpeg4")),
        becomes=["corrupt: video has 0 frames", VIDEO],
    ),
    "0 bytes of video": Line(of=VideoStar(), given=kinetics(b""), becomes=["corrupt: video is 0 bytes", VIDEO]),
    "1 frame": Line(of=VideoStar(), given=kinetics(STILL), becomes=[VIDEO, VIDEO], shows=[0]),
    "1 frame, to be predicted from": Line(
        of=SomethingSomething(),
        given=something_something(clip(1, format="webm", codec="libvpx")),
        becomes=[
            "corrupt: clip holds 1 frame in 0.00 s: no 2 of them are an even step apart that a question could name",
            NEXT,
        ],
    ),
    "VFR": Line(
        of=VideoStar(),
        given=kinetics(clip(6, pts=[0, 1, 2, 25, 26, 41])),
        becomes=[VIDEO, VIDEO],
        shows=[0, 2, 4],
    ),
    "fps=0": Line(
        of=VideoStar(),
        given=kinetics(rateless(), "Kinetics700/JDKf63ARWuY_000017_000027.avi"),
        becomes=[VIDEO, VIDEO],
        shows=[0],
    ),
    "audio only": Line(
        of=VideoStar(), given=kinetics(sound()), becomes=["corrupt: file holds no video, only audio", VIDEO]
    ),
    "rotated": Line(
        of=VideoStar(),
        given=kinetics(clip(1, turn=90, crf="1")),
        becomes=[VIDEO, VIDEO],
        shows=[scene(0).transpose(Image.Transpose.ROTATE_90)],
    ),
    "webm without a duration": Line(
        of=VideoStar(),
        given=kinetics(clip(25, format="webm", codec="libvpx", live="1"), "Kinetics700/JDKf63ARWuY_000017_000027.webm"),
        becomes=[VIDEO, VIDEO],
        shows=[0, 10, 20],
    ),
    "clip cut before its index": Line(
        of=VideoStar(),
        given=kinetics(NARRATED[: len(NARRATED) // 2]),
        becomes=["corrupt: video does not open: Invalid data found when processing input", VIDEO],
    ),
    "clip cut in its first half": Line(
        of=SomethingSomething(),
        given=something_something(LONG[: LONG.index(b"\x81" + (1000).to_bytes(2, "big"))]),  # before the frame at 1 s
        becomes=["corrupt: video breaks off: it holds 1.0 s of the 4.0 s it claims", NEXT],
    ),
    "not a video": Line(
        of=VideoStar(),
        given=kinetics(HTML),
        becomes=["corrupt: video does not open: Invalid data found when processing input", VIDEO],
    ),
    "a picture named .mp4": Line(
        of=VideoStar(),
        given=kinetics(CAT),
        becomes=["corrupt: video does not open: no clip of a kind that is read here (mp4, webm, mkv, avi, ...)", VIDEO],
    ),
    "a playlist named .mp4": Line(
        of=VideoStar(),
        given=kinetics(f"ffconcat version 1.0\nfile '{BIKES}'\n".encode()),
        becomes=["corrupt: video does not open: no clip of a kind that is read here (mp4, webm, mkv, avi, ...)", VIDEO],
    ),
    "video that is not there": Line(
        of=VideoStar(),
        given=kinetics(None),
        becomes=["missing: file 'Kinetics700/JDKf63ARWuY_000017_000027.mp4' is not there", VIDEO],
    ),
    "frame dir empty": Line(
        of=ShareGptVideo(),
        given=sharegptvideo("v_1", {"train_300k/v_1": None}),
        becomes=["corrupt: clip 'train_300k/v_1' is a folder without frames", VIDEO],
    ),
    "frame dir missing": Line(
        of=ShareGptVideo(),
        given=sharegptvideo("v_1", {}),
        becomes=["missing: frames of clip 'v_1' are not there, neither in train_300k nor in train_600k", VIDEO],
    ),
    "frame of 0 bytes": Line(
        of=ShareGptVideo(),
        given=sharegptvideo("v_1", {"train_600k/v_1/c01_0001.jpeg": b""}),
        becomes=["corrupt: train_600k/v_1/c01_0001.jpeg: picture is 0 bytes", VIDEO],
    ),
    "narration beyond the end": Line(
        of=HowTo100M(),
        given=howto100m(b"start,end,text\n50.0,60.0,after the end\n"),
        becomes=[NEXT, NEXT],
    ),
    "time stamps beyond the end": Line(
        of=ShareGpt4Video(),
        given=sharegpt4video({"timestamp": ["00:00:00.000", "00:01:00.000"]}, {"panda/e8b3.mp4": NARRATED}),
        becomes=[VIDEO, VIDEO],
        shows=[0, 10, 20],
    ),
    # boxes
    "degenerate box": Line(
        of=VisualCot(),
        given=visual_cot("[20, 10, 20, 30]"),
        becomes=["corrupt: box [20, 10, 20, 30] has no area", LOOK],
    ),
    "box from right to left": Line(
        of=VisualCot(),
        given=visual_cot("[40, 10, 20, 30]"),
        becomes=["corrupt: box [40, 10, 20, 30] has no area", LOOK],
    ),
    "negative box": Line(
        of=VisualCot(),
        given=visual_cot("[-5, -5.5, 20, 30]", CAT),
        becomes=[LOOK, LOOK],
        shows=[CAT, pixels(CAT).crop((0, 0, 20, 30))],
    ),
    "box beyond the picture": Line(
        of=VisualCot(),
        given=visual_cot("[40, 10, 90, 30]"),
        becomes=[LOOK, LOOK],
        shows=[CAT, pixels(CAT).crop((40, 10, 64, 30))],
    ),
    "box outside the picture": Line(
        of=VisualCot(),
        given=visual_cot("[217, 343, 242, 393]"),
        becomes=["corrupt: box [217, 343, 242, 393] is outside the picture of 64x48", LOOK],
    ),
    "box that is none": Line(
        of=VisualCot(),
        given=visual_cot("[217, NaN, 242, 393]"),
        becomes=["corrupt: box [217, nan, 242, 393] is not four numbers in pixels", LOOK],
    ),
    "degenerate box of V*": Line(
        of=VStar(), given=vstar([20, 10, 0, 30]), becomes=["corrupt: box [20, 10, 20, 40] has no area", LOOK]
    ),
    "negative box of V*": Line(
        of=VStar(), given=vstar([20, 10, -9, 30]), becomes=["corrupt: box [20, 10, 11, 40] has no area", LOOK]
    ),
    "box of V* beyond the picture": Line(
        of=VStar(),
        given=vstar([-6, 20, 30.5, 60]),
        becomes=[LOOK, LOOK],
        shows=[CAT_PNG, decoded(boxed(CAT_PNG, [(0, 20, 25, 48)], ["cup"]))],
    ),
    "box of V* outside the picture": Line(
        of=VStar(),
        given=vstar([217, 343, 25, 50]),
        becomes=["corrupt: box [217, 343, 242, 393] is outside the picture of 64x48", LOOK],
    ),
    "box of V* that is none": Line(
        of=VStar(),
        given=vstar(None),
        becomes=["corrupt: box None is not four numbers in pixels", LOOK],
    ),
}


# --- the tests


@pytest.fixture
def outside(tmp_path: Path) -> bytes:
    """A folder beside the declared ones that holds a sound file of every kind. Returns what no shard may hold."""
    folder = tmp_path / "secret"
    folder.mkdir()
    secret = SECRET.read_bytes()
    for name, data in {
        "1.jpg": secret,
        "1.mp4": BIKES.read_bytes(),
        "1.csv": b"start,end,text\n0.0,3.0,a secret\n",
        "1.zip": zipped("panda/e8b3.mp4", STILL),
        "c01_0001.jpeg": secret,
        "prompt.json": b'{"edit": "a secret"}',
        "1_0.jpg": secret,
        "1_1.jpg": secret,
    }.items():
        (folder / name).write_bytes(data)
    return secret


@pytest.mark.parametrize("line", CHECKLIST)
def test_the_ledger_says_what_becomes_of_it(line: str, build: Build, tmp_path: Path, outside: bytes) -> None:
    case = CHECKLIST[line]
    lay(tmp_path / "data" / case.of.name, case.given)
    before = sorted(tmp_path.rglob("*"))
    corpus = build(case.of)

    rows = pq.read_table(corpus.folder / "ledger.parquet").to_pylist()
    records = [corpus.record(place) for place in range(len(corpus))]
    tasks: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for record in records:
        tasks[record.lineage.file, record.lineage.row].append(record.task)
    assert [verdict(row, tasks[row["file"], row["row"]]) for row in rows] == case.becomes

    counts = corpus.manifest["counts"]
    outcomes = ("kept", "filtered", "duplicate", "corrupt", "missing")
    for row in (*rows, counts):
        assert row["candidates"] == sum(row[outcome] for outcome in outcomes)
    assert (counts["rows"], counts["kept"]) == (len(case.becomes), len(records))
    assert all(row[row["outcome"]] for row in rows)
    assert not any(str(tmp_path) in row["reason"] for row in rows)
    assert len(set(corpus.keys)) == len(records)
    assert all(wrong is None for _, wrong in verify(corpus.folder))

    for record in records:
        for media in record.media:
            assert_plain(media)
    if case.shows is not None:
        assert len(records[0].media) == len(case.shows)
        for media, shown in zip(records[0].media, case.shows, strict=True):
            assert looks_like(media, shown)
    if case.says is not None:
        assert [part for _, parts in records[0].turns for part in parts if isinstance(part, str)] == case.says

    stored = b"".join(path.read_bytes() for path in corpus.folder.glob("*.tar"))
    assert outside not in stored
    assert b"a secret" not in stored
    built = corpus.folder.parent
    assert sorted(path for path in tmp_path.rglob("*") if path != built and built not in path.parents) == before


def test_a_tar_without_its_stats_json_is_refused_before_a_row_is_read(tmp_path: Path, build: Build) -> None:
    names = ("000000000.jpg", CAT), ("000000000.txt", b"a cat")
    whole = {"00000.tar": tar(*names), "00000_stats.json": b'{"count": 1, "successes": 1}', "00001.tar": tar(*names)}
    for source in (Captions(), MetaClip()):
        lay(tmp_path / "data" / source.name, dict(whole))
        with pytest.raises(ValueError, match=r"no _stats\.json is beside them: 00001\.tar; run it again until it is"):
            build(source)
        lay(tmp_path / "data" / source.name, {"00001_stats.json": b"{}"})
        assert len(build(source, folder=tmp_path / "built" / f"{source.name} whole")) == 2


@pytest.mark.parametrize("narration", ["after the end", "lift the wheel"])
def test_what_is_said_after_the_end_is_never_quoted(narration: str, build: Build, tmp_path: Path) -> None:
    """The second narration lies in the clip: the quote is there where it may be."""
    start, end = (50, 60) if narration == "after the end" else (0, 3)
    told = {f"video{number}": {"text": [narration], "start": [start], "end": [end]} for number in range(9)}
    files: Files = {f"videos/{name}.mp4": NARRATED for name in told}
    lay(tmp_path / "data/howto100m", {"raw_caption.json": json.dumps(told).encode(), **files})
    corpus = build(HowTo100M(listing=("raw_caption.json",)))
    assert corpus.tasks == {"frame_prediction": 9}
    quoted = any(narration in str(corpus.record(place).turns) for place in range(9))
    assert quoted == (narration != "after the end")


def lay(folder: Path, given: Files) -> None:
    for name, held in given.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if held is None:
            place.mkdir()
        elif isinstance(held, Link):
            place.symlink_to(held.to)
        else:
            place.write_bytes(held)


def verdict(row: dict[str, Any], tasks: list[str]) -> str:
    """A ledger row in words: the tasks of what was kept, or the outcome; and the reason, if there is one."""
    said = " + ".join(tasks) if row["outcome"] == "kept" else row["outcome"]
    reason = re.sub(r"\d+ (bytes not processed)", r"... \1", row["reason"])  # another number in another libjpeg
    return f"{said}: {reason}" if reason else said


def assert_plain(media: Media) -> None:
    """A stored picture is what its name and size say, upright, of one frame, and RGB or grey of 8 bits."""
    with Image.open(io.BytesIO(media.data)) as image:
        assert image.format == {"jpg": "JPEG", "png": "PNG"}[media.extension]
        assert image.size == (media.width, media.height)
        assert image.mode in ("RGB", "L")
        assert getattr(image, "n_frames", 1) == 1
        assert image.getexif().get(ORIENTATION, 1) == 1
        assert media.extension == "jpg" or media.data[24] == 8  # bits per channel


def looks_like(media: Media, shown: Shown) -> bool:
    if isinstance(shown, bytes):
        return media.data == shown
    if isinstance(shown, int):
        return which(media) == shown
    image = decoded(media)
    far = (
        np.abs(np.asarray(image, dtype=np.int16) - np.asarray(shown, dtype=np.int16))
        if image.size == shown.size
        else 255
    )
    return bool(np.mean(far) < 5)  # of 255: what JPEG and H.264 take away from a picture
