"""Corpora of clips as upstream lays them: what each row becomes, and why it does not.

Rows are from: Video-STaR, videostar/data_generation.py and final_parser.py; ShareGPTVideo, its card; ShareGPT4Video,
its card and ml-energy/benchmark; Something-Something V2, its labels; HowTo100M, its site and the MIL-NCE loader.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from clips import BIKES, clip, which
from upstream import Build, jpeg, jsonl

from dataflow.media import Corrupt, Missing, picture
from dataflow.record import Candidate, Text
from dataflow.roots import Roots
from dataflow.sources.howto100m import HowTo100M
from dataflow.sources.sharegpt4video import ShareGpt4Video
from dataflow.sources.sharegptvideo import ShareGptVideo
from dataflow.sources.something_something import SomethingSomething
from dataflow.sources.videostar import VideoStar

CLIP = clip(30)  # 3 s
WEBM = clip(50, rate=12, format="webm", codec="libvpx-vp9")  # as Something-Something's
SOURCES = {
    source.name: source
    for source in (VideoStar(), ShareGptVideo(), ShareGpt4Video(), SomethingSomething(), HowTo100M())
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An empty folder per source."""
    for name in SOURCES:
        (tmp_path / "data" / name).mkdir(parents=True)
    return tmp_path / "data"


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def one(data: Path, source: Any, row: dict[str, Any], key: str | None = None) -> Candidate:
    """What a row becomes, its files read through the declared folders."""
    read = Roots(base=data).files(source.name)
    (candidate,) = source.candidates(row, key or f"{source.name}_000000000", read)
    assert isinstance(candidate, Candidate)
    return candidate


def turns(candidate: Candidate) -> list[tuple[str, list[str | int]]]:
    """The chat in plain values: text, and numbers of pictures."""
    return [
        (turn.role, [part.text if isinstance(part, Text) else part.index for part in turn.parts])
        for turn in candidate.messages
    ]


def refused(data: Path, source: Any, row: dict[str, Any]) -> str:
    with pytest.raises(Corrupt) as raised:
        one(data, source, row)
    return str(raised.value)


# --- VideoStar

KINETICS = {
    "question_id": "k700_JDKf63ARWuY_000017_000027_0",
    "video": "Kinetics700/JDKf63ARWuY_000017_000027.mp4",
    "question": "What is the man doing?",
    "label": {"action": "abseiling"},
    "label_type": ["action"],
    "conversations": [
        {"from": "human", "value": "<video>\nWhat is the man doing?"},
        {"from": "gpt", "value": "He is abseiling down a cliff."},
    ],
    "rationale": False,
    "cls_correct": True,
    "qa_type": "qa",
}


def test_a_videostar_row_is_its_clip_at_a_frame_a_second_and_a_question(data: Path) -> None:
    put(data / "videostar", {KINETICS["video"]: CLIP})  # type: ignore[dict-item]
    candidate = one(data, VideoStar(), KINETICS)
    assert candidate.task == "video_qa"
    assert turns(candidate) == [
        ("user", [0, 1, 2, "What is the man doing?"]),
        ("assistant", ["He is abseiling down a cliff."]),
    ]
    assert [which(media) for media in candidate.media] == [0, 10, 20]
    assert one(data, VideoStar(frames=2), KINETICS).media == candidate.media[:2]
    assert max(one(data, VideoStar(side=48), KINETICS).media[0].width, 0) == 48


@pytest.mark.parametrize("field", ["video", "video_path", "image"])
@pytest.mark.parametrize("held", ["c.mp4", ["c.mp4"]])
def test_a_clip_is_found_under_every_key_it_was_published_under(data: Path, field: str, held: Any) -> None:
    put(data / "videostar", {"c.mp4": clip(1)})
    row = {field: held, "conversations": KINETICS["conversations"]}
    assert turns(one(data, VideoStar(), row))[0] == ("user", [0, "What is the man doing?"])


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("What is it?", [0, 1, 2, "What is it?"]),
        ("<image>\nWhat is it?", [0, 1, 2, "What is it?"]),
        ("Watch <video> and say what it is.", ["Watch", 0, 1, 2, "and say what it is."]),
    ],
)
def test_frames_stand_where_the_clip_s_tag_stood_or_first(data: Path, asked: str, shown: list[Any]) -> None:
    put(data / "videostar", {"c.mp4": CLIP})
    row = {"video": "c.mp4", "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "A cat."}]}
    assert turns(one(data, VideoStar(), row))[0] == ("user", shown)


def chat(asked: Any, answered: Any = "A cat.") -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**chat("<video>?"), "video": "gone.mp4"}, "file 'gone.mp4' is not there"),
        (chat("<video>?"), "no clip in the row: video, video_path, image are empty"),
        ({**chat("<video>?"), "video": None, "image": "nan"}, "no clip in the row"),
        ({**chat("<video>?"), "video": ["a.mp4", "b.mp4"]}, "2 clips in video: a row here has one"),
        ({**chat("<video><video>?"), "video": "c.mp4"}, "2 <video> in the text for 1 clip"),
        ({**chat("<video> <image>?"), "video": "c.mp4"}, "1 picture but 2 <image> in the text"),
        ({**chat("?", "See <video>."), "video": "c.mp4"}, "<video> in a turn that is not human"),
        ({**chat("?", "See <image>."), "video": "c.mp4"}, "<image> in a turn that is not human"),
        ({**chat("?", None), "video": "c.mp4"}, "an empty gpt turn"),
        ({"video": "c.mp4"}, "conversations is not a list of turns"),
        ({"video": "c.mp4", "conversations": []}, "no human turn, which would show the clip"),
        ({**chat("<video>?"), "video": "/etc/passwd"}, "leaves the declared folders"),
        ({**chat("<video>?"), "video": "list.m3u8"}, "video does not open"),
        ({**chat("<video>?"), "video": "empty.mp4"}, "video is 0 bytes"),
        ({**chat("<video>?"), "video": {"path": "c.mp4"}}, "a field holds dict where text belongs"),
    ],
)
def test_a_videostar_row_that_cannot_be_used_says_why(data: Path, row: dict[str, Any], says: str) -> None:
    put(data / "videostar", {"c.mp4": CLIP, "empty.mp4": b"", "list.m3u8": b"#EXTM3U\n/etc/passwd\n"})
    reason = refused(data, VideoStar(), row)
    assert says in reason
    assert str(data) not in reason


def test_videostar_s_documents_are_built_and_every_row_is_in_the_ledger(data: Path, build: Build) -> None:
    gone = {**KINETICS, "video": "Kinetics700/removed_by_the_user.mp4"}
    files = {
        "ft_json/kinetics700_tune_.json": json.dumps([KINETICS, gone], indent=2).encode(),
        KINETICS["video"]: CLIP,
    }
    put(data / "videostar", files)  # type: ignore[arg-type]
    first, again = build(VideoStar()), build(VideoStar(), folder=data / "again")
    assert first.tasks == {"video_qa": 1}
    assert first.digest == again.digest


# --- ShareGPTVideo

DOG = {
    "id": "-_3wWbNbCG8__0",
    "video": "-_3wWbNbCG8",
    "conversations": [
        {"from": "human", "value": "<video>\nWhat does the dog do?"},
        {"from": "gpt", "value": "It jumps over the fence."},
    ],
}


def frames(folder: str, count: int) -> dict[str, bytes]:
    """A folder of JPEGs as ffmpeg writes them, each of another size."""
    return {f"{folder}/c01_{number + 1:04d}.jpeg": jpeg(64 + number, 48) for number in range(count)}


def test_every_second_frame_of_a_sharegptvideo_folder_is_taken_as_it_is(data: Path) -> None:
    put(data / "sharegptvideo", frames("train_300k/-_3wWbNbCG8", 7))
    candidate = one(data, ShareGptVideo(), DOG)
    assert candidate.task == "video_qa"
    assert turns(candidate) == [
        ("user", [0, 1, 2, 3, "What does the dog do?"]),
        ("assistant", ["It jumps over the fence."]),
    ]
    assert candidate.media == tuple(picture(jpeg(64 + number, 48)) for number in (0, 2, 4, 6))  # original bytes
    assert len(one(data, ShareGptVideo(frames=3), DOG).media) == 3


def test_frames_are_sorted_as_people_count_and_other_files_are_none(data: Path) -> None:
    folder = "train_600k/_x"
    names = {"c01_9999.jpeg": 1, "c01_10000.jpeg": 2, "c01_10001.jpeg": 3, "Thumbs.db": 0, ".c01_0001.jpeg": 0}
    put(data / "sharegptvideo", {f"{folder}/{name}": jpeg(60 + number, 48) for name, number in names.items()})
    candidate = one(data, ShareGptVideo(), {**DOG, "video": "_x.mp4"})
    assert [media.width for media in candidate.media] == [61, 63]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("gone", "frames of clip 'gone' are not there, neither in train_300k nor in train_600k"),
        ("empty", "clip 'train_300k/empty' is a folder without frames"),
        ("cut", "train_300k/cut/c01_0001.jpeg: picture does not"),
        ("file", "'train_300k/file' is no folder"),
        ("../../..", "leaves the declared folders"),
    ],
)
def test_a_sharegptvideo_row_without_frames_says_why(data: Path, path: str, says: str) -> None:
    put(data / "sharegptvideo", {"train_300k/cut/c01_0001.jpeg": jpeg()[:99], "train_300k/file": b""})
    put(data / "sharegptvideo", {"train_300k/empty/.hidden": b""})
    assert says in refused(data, ShareGptVideo(), {**DOG, "video": path})
    if path == "gone":
        with pytest.raises(Missing):
            one(data, ShareGptVideo(), {**DOG, "video": path})


def test_of_sharegptvideo_s_sets_the_two_of_the_paper_are_read(data: Path, build: Build) -> None:
    sft = "video_instruction/train/sft"
    rows = jsonl(DOG, {**DOG, "video": "never-packed"})
    names = ("video_240k_caption_15k", "video_caption_300k", "image_instruction_100k")
    put(data / "sharegptvideo", {f"{sft}/{name}.jsonl": rows for name in names})
    put(data / "sharegptvideo", frames("train_300k/-_3wWbNbCG8", 3))
    source = ShareGptVideo()
    assert source.files(data / "sharegptvideo") == [f"{sft}/{name}.jsonl" for name in names[:2]]
    corpus = build(source)
    assert corpus.tasks == {"video_qa": 2}
    assert [media.data for media in corpus.record(0).media] == [jpeg(64, 48), jpeg(66, 48)]


# --- ShareGPT4Video

HORSE = {
    "video_id": "e8b3",
    "video_path": "panda/e8b3.mp4",
    "timestamp": ["00:00:00.000", "00:00:02.000"],
    "keyframe": [0, 20],
    "captions": [
        {"idx": "0", "content": "A horse stands on a beach."},
        {"idx": "1", "content": "The horse has turned its head."},
        {"idx": "-1", "content": "A horse on a beach turns its head towards the sea."},
    ],
    "zip_folder": "panda_videos_1.zip",
}


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "files",
    [
        {"panda/e8b3.mp4": CLIP},
        {"zip_folder/panda/panda_videos_1.zip": zipped("panda/e8b3.mp4", CLIP)},
        {"zip_folder/panda/panda_videos_1.zip": zipped("e8b3.mp4", CLIP)},
    ],
)
def test_a_sharegpt4video_row_is_its_clip_and_the_caption_of_the_whole(data: Path, files: dict[str, bytes]) -> None:
    put(data / "sharegpt4video", files)
    candidate = one(data, ShareGpt4Video(), HORSE)
    assert candidate.task == "video_qa"
    assert turns(candidate) == [
        ("user", [0, 1, "Describe this video in detail."]),
        ("assistant", ["A horse on a beach turns its head towards the sea."]),
    ]
    assert [which(media) for media in candidate.media] == [0, 10]  # the third second is after what was captioned


@pytest.mark.parametrize(
    ("stamps", "taken"),
    [
        ([0, 1.2], 1),
        (["0.0", "2.0"], 2),
        ([["0:00", "0:01"], ["0:01", "0:02"]], 2),
        (["00:01:00.000", "00:01:02.500"], 2),
        (["00:00:00.000", "01:00:00.000"], 3),
        ([], 3),
        (None, 3),
        (["soon"], 3),
        ([{"from": 0}, None], 3),
        ([3, 1], 1),
    ],
)
def test_no_frame_is_taken_after_the_time_stamps_whatever_their_form(data: Path, stamps: Any, taken: int) -> None:
    put(data / "sharegpt4video", {"panda/e8b3.mp4": CLIP})
    assert len(one(data, ShareGpt4Video(), {**HORSE, "timestamp": stamps}).media) == taken


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"captions": HORSE["captions"][:2]}, "none of 2 captions is of the whole clip (idx -1)"),  # type: ignore[index]
        ({"captions": [{"idx": "-1", "content": " "}]}, "none of 1 captions is of the whole clip"),
        ({"captions": None}, "captions is not a list of captions"),
        ({"video_path": None}, "video_path is empty"),
        ({"zip_folder": None, "video_path": "panda/gone.mp4"}, "file 'panda/gone.mp4' is not there"),
        ({"video_path": "panda/gone.mp4"}, "member 'gone.mp4' of 'zip_folder/panda/panda_videos_1.zip' is not there"),
        (
            {"zip_folder": "mixkit_videos_9.zip", "video_path": "x.mp4"},
            "mixkit/mixkit_videos_9.zip' is not",
        ),
        ({"zip_folder": "../../x.zip", "video_path": "x.mp4"}, "is not there"),
    ],
)
def test_a_sharegpt4video_row_that_cannot_be_used_says_why(data: Path, change: dict[str, Any], says: str) -> None:
    archive = {"zip_folder/panda/panda_videos_1.zip": zipped("panda/e8b3.mp4", CLIP)}
    put(data / "sharegpt4video", {**archive, "zip_folder/x.zip/.keep": b""})
    assert says in refused(data, ShareGpt4Video(), {**HORSE, **change})


def test_an_idx_may_be_a_number_too(data: Path) -> None:
    put(data / "sharegpt4video", {"panda/e8b3.mp4": CLIP})
    row = {**HORSE, "captions": [{"idx": -1, "content": "A horse."}]}
    assert turns(one(data, ShareGpt4Video(), row))[1] == ("assistant", ["A horse."])


# --- Something-Something V2

POTATO = {
    "id": "78687",
    "label": "holding potato next to vicks vaporub bottle",
    "template": "Holding [something] next to [something]",
    "placeholders": ["potato", "vicks vaporub bottle"],
}
VIDEOS = "20bn-something-something-v2"


def test_a_something_something_clip_asks_about_its_frames(data: Path) -> None:
    put(data / "something_something", {f"{VIDEOS}/78687.webm": WEBM})
    candidate = one(data, SomethingSomething(), POTATO)
    assert candidate.task == "frame_prediction"
    assert turns(candidate) == [
        (
            "user",
            [0, 1, 2, 3, "Where does this lead? The 4 frames are 0.8 seconds apart; answer with the one that follows."],
        ),
        ("assistant", [4]),
    ]
    assert [which(media) for media in candidate.media] == [0, 10, 19, 29, 38]  # of 12 a second, the nearest
    assert (
        one(data, SomethingSomething(), {"id": 78687}, "something_something_000000000") == candidate
    )  # as in test.json
    assert one(data, SomethingSomething(seed=1), POTATO, "something_something_000000000") != candidate
    assert one(data, SomethingSomething(), POTATO, "something_something_000000001") != candidate


@pytest.mark.parametrize("older", ["", "something-something-v2-"])
def test_all_three_lists_are_read_and_the_table_of_classes_is_none(data: Path, older: str) -> None:
    put(data / "something_something", {f"labels/{older}{part}.json": b"[]" for part in ("train", "validation", "test")})
    put(
        data / "something_something", {f"labels/{older}labels.json": b"{}", "labels/test-answers.csv": b"1420;Throwing"}
    )
    put(data / "something_something", {"labels/something-something-v2-train.json": b"[]"})  # not twice
    assert SomethingSomething().files(data / "something_something") == [
        f"labels/{older}{part}.json" for part in ("test", "train", "validation")
    ]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"id": "1"}, "file '20bn-something-something-v2/1.webm' is not there"),
        ({"id": "../videos/1"}, "id '../videos/1' names no clip"),
        ({"id": None}, "id '' names no clip"),
        ({"value": "not a row"}, "id '' names no clip"),
        ({"id": "2"}, "clip holds 1 frame in 0.00 s"),
        ({"id": "3"}, "video does not open"),
    ],
)
def test_a_something_something_row_that_cannot_be_used_says_why(data: Path, row: dict[str, Any], says: str) -> None:
    webm = clip(1, format="webm", codec="libvpx-vp9")
    put(data / "something_something", {f"{VIDEOS}/2.webm": webm, f"{VIDEOS}/3.webm": b"<html>"})
    assert says in refused(data, SomethingSomething(), row)


def test_something_something_is_built_twice_to_the_same_bytes(data: Path, build: Build) -> None:
    put(data / "something_something", {"labels/train.json": json.dumps([POTATO, {"id": "1"}]).encode()})
    put(data / "something_something", {f"{VIDEOS}/78687.webm": WEBM})
    first = build(SomethingSomething())
    assert first.tasks == {"frame_prediction": 1}
    assert first.digest == build(SomethingSomething(), folder=data / "again").digest


# --- HowTo100M

CARS = {
    "video_id": "nVbIUDjzWY4",
    "category_1": "Cars & Other Vehicles",
    "category_2": "Motorcycles",
    "rank": "27",
    "task_id": "52907",
}
BIKE = BIKES.read_bytes()  # 10 s
FOLLOWS = [  # what the first row asks of it
    ("user", [0, 1, 2, 3, "4 frames, 0.4 seconds from each to the next. Which frame comes now?"]),
    ("assistant", [4]),
]


def seen(candidate: Candidate) -> str:
    """The question."""
    (text,) = [part.text for part in candidate.messages[0].parts if isinstance(part, Text)]
    return text


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("videos/nVbIUDjzWY4.mp4", {}),
        ("videos/nVbIUDjzWY4.webm", {}),
        ("videos/nVbIUDjzWY4.mkv", {}),
        ("part3/cars.mp4", {"path": "part3/cars.mp4"}),
        ("part3/cars.mp4", {"video_path": "part3/cars.mp4"}),
        ("videos/-_-zsRs2k3U.mp4", {"video_id": "-_-zsRs2k3U"}),
    ],
)
def test_a_howto100m_row_asks_about_frames_of_its_video(data: Path, place: str, change: dict[str, str]) -> None:
    put(data / "howto100m", {place: BIKE})
    candidate = one(data, HowTo100M(), {**CARS, **change})
    assert candidate.task == "frame_prediction"
    assert turns(candidate) == FOLLOWS


def test_a_list_of_file_names_finds_its_videos_and_their_narration(data: Path) -> None:
    """MIL-NCE's list: one column, video_path."""
    files = {"videos/nVbIUDjzWY4.mp4": clip(60), "captions/nVbIUDjzWY4.csv": b"start,end,text\n2.0,4.5,lift it\n"}
    put(data / "howto100m", files)
    keys = [f"howto100m_{number:09d}" for number in range(8)]
    said = [seen(one(data, HowTo100M(), {"video_path": "nVbIUDjzWY4.mp4"}, key)) for key in keys]
    assert said == [seen(one(data, HowTo100M(), CARS, key)) for key in keys]
    assert any("lift it" in words for words in said)


def test_what_is_said_chooses_where_frames_come_from_and_may_be_quoted(data: Path) -> None:
    """Segments overlap; some end before they begin, are too short, say nothing, or lie after the end."""
    put(data / "howto100m", {"videos/nVbIUDjzWY4.mp4": clip(60)})
    lines = (
        "start,end,text\n2.0,4.5,lift the front wheel\n2.0,4.5,\n4.0,3.0,backwards\n1.0,1.2,short\n"
        "nan,3.0,never\n,,\n50.0,60.0,after the end\n"
    )
    put(data / "howto100m", {"captions/nVbIUDjzWY4.csv": lines.encode()})
    document = {
        "__key__": "nVbIUDjzWY4",
        "text": ["lift the front wheel", float("nan"), "backwards", "short", None, "after the end", "no times"],
        "start": [2.0, 2.0, 4.0, 1.0, 3.0, 50.0],
        "end": [4.5, 4.5, 3.0, 1.2, 4.0, 60.0],
    }
    quoted = 0
    for number in range(20):
        key = f"howto100m_{number:09d}"
        candidate = one(data, HowTo100M(), CARS, key)
        assert one(data, HowTo100M(listing=("caption.json",)), document, key) == candidate
        assert all(20 <= which(media) < 45 for media in candidate.media)
        assert not re.search("backwards,|short|never|after the end", seen(candidate))
        quoted += "lift the front wheel" in seen(candidate)
    assert 4 < quoted < 16


@pytest.mark.parametrize("captions", [b"", b"start,end,text\n", b"\xff\xfe\x00", b"a,b\n1,2\n"])
def test_narration_of_no_use_leaves_the_video_usable(data: Path, captions: bytes) -> None:
    put(data / "howto100m", {"videos/nVbIUDjzWY4.mp4": BIKE, "captions/nVbIUDjzWY4.csv": captions})
    assert turns(one(data, HowTo100M(), CARS)) == FOLLOWS


def test_of_a_long_video_frames_come_from_a_part_anywhere_in_it(data: Path) -> None:
    put(data / "howto100m", {"videos/nVbIUDjzWY4.mkv": clip(60, rate=2, format="matroska", g="4")})  # 30 s
    found = [
        [which(media) / 2 for media in one(data, HowTo100M(seconds=5.0), CARS, f"howto100m_{number:09d}").media]
        for number in range(20)
    ]
    assert all(max(times) - min(times) < 5 for times in found)
    assert min(map(min, found)) < 8
    assert max(map(max, found)) > 20


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {**CARS, "video_id": "gone"},
            "video is not there, neither as 'videos/gone.mp4' nor as 'videos/gone.webm' nor",
        ),
        ({**CARS, "video_id": "../../x"}, "video_id '../../x' names no video"),
        ({**CARS, "video_id": ""}, "video_id '' names no video"),
        ({**CARS, "path": "../../../x.mp4"}, "leaves the declared folders"),
        ({"__key__": "nVbIUDjzWY4", "text": "one line"}, "text, start and end are not lists"),
        ({"__key__": "nVbIUDjzWY4", "text": [], "start": [], "end": None}, "text, start and end are not lists"),
        ({**CARS, "video_id": "one"}, "clip holds 1 frame in 0.00 s"),
    ],
)
def test_a_howto100m_row_that_cannot_be_used_says_why(data: Path, row: dict[str, Any], says: str) -> None:
    put(data / "howto100m", {"videos/nVbIUDjzWY4.mp4": BIKE, "videos/one.mp4": clip(1)})
    assert says in refused(data, HowTo100M(), row)


def test_howto100m_is_built_from_its_list_and_from_a_caption_document(data: Path, build: Build) -> None:
    header = "video_id,category_1,category_2,rank,task_id"
    rows = f"{header}\nnVbIUDjzWY4,Cars & Other Vehicles,Motorcycles,27,52907\ngone,,,,\n"
    silent: dict[str, Any] = {"text": [], "start": [], "end": []}
    told = {"nVbIUDjzWY4": {"text": ["lift it"], "start": [1.0], "end": [4.0]}, "gone": silent}
    files = {"HowTo100M_v1.csv": rows.encode(), "raw_caption.json": json.dumps(told).encode()}
    put(data / "howto100m", {**files, "videos/nVbIUDjzWY4.mp4": BIKE})
    assert build(HowTo100M()).tasks == {"frame_prediction": 1}
    assert build(HowTo100M(listing=("raw_caption.json",)), folder=data / "told").tasks == {"frame_prediction": 1}


# --- all


@pytest.mark.parametrize("name", SOURCES)
def test_a_folder_of_another_layout_is_refused(data: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"is this the corpus' own layout\?"):
        SOURCES[name].files(data / name)


def test_a_source_that_decodes_names_its_decoder() -> None:
    decoding = {name for name, source in SOURCES.items() if getattr(source, "libraries", ()) == ("av",)}
    assert decoding == set(SOURCES) - {"sharegptvideo"}


@pytest.mark.parametrize(
    ("kind", "field"),
    [(VideoStar, "frames"), (ShareGptVideo, "frames"), (ShareGpt4Video, "side"), (HowTo100M, "seconds")],
)
@pytest.mark.parametrize("number", [0, -1])
def test_numbers_without_sense_are_refused_where_a_source_is_made(kind: Any, field: str, number: int) -> None:
    with pytest.raises(ValueError, match=rf"{field}={number} of {kind.name}: it must be over 0"):
        kind(**{field: number})
