"""Clips: which frames are taken, from sound ones and from every kind of broken one; and the questions they ask."""

from __future__ import annotations

import errno
import io
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest
from av.video.reformatter import Interpolation
from clips import BIKES, CARPHONE, HEIGHT, WIDTH, clip, scene, sound, which
from PIL import Image as Pillow
from upstream import jpeg

from dataflow import frame_prediction, video
from dataflow.media import Corrupt, decoded, encoded
from dataflow.record import Candidate, Image, Text

MOVING = clip(60)  # 6 s at 10 frames a second


def seconds(data: bytes, **how: Any) -> list[int]:
    """The scenes that a clip shows at each second."""
    return [which(media) for media in video.each_second(io.BytesIO(data), **how)]


def stretch(data: bytes, **how: Any) -> video.Stretch:
    return video.stretch(io.BytesIO(data), **{"seconds": 60.0, **how})


# --- one frame a second


def test_a_clip_gives_its_first_frame_and_one_every_second_after() -> None:
    assert seconds(MOVING) == [0, 10, 20, 30, 40, 50]


def test_no_more_frames_than_the_cap_are_taken_from_the_front() -> None:
    assert seconds(MOVING, most=3) == [0, 10, 20]


@pytest.mark.parametrize("frames", [1, 2, 10])
def test_a_clip_of_a_second_or_less_gives_one_frame(frames: int) -> None:
    assert seconds(clip(frames)) == [0]


def test_of_a_variable_rate_the_frame_shown_at_each_second_is_taken_once() -> None:
    assert seconds(clip(8, pts=[0, 1, 2, 25, 26, 40, 41, 70])) == [0, 2, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("format", "codec", "options"),
    [
        ("webm", "libvpx", {}),
        ("webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("webm", "libvpx-vp9", {}),
        ("matroska", "libx264", {}),
        ("avi", "mpeg4", {}),
        ("mpegts", "libx264", {}),  # its clock starts at 0.2 s, it has no index
        ("mpegts", "libx264", {"g": "7"}),
        ("flv", "flv", {}),
        ("asf", "wmv2", {}),
    ],
)
def test_every_container_of_the_corpora_is_read(format: str, codec: str, options: dict[str, Any]) -> None:
    data = clip(35, format=format, codec=codec, **options)
    assert seconds(data) == [0, 10, 20, 30]
    part = stretch(data, start=2.0, seconds=1.0)
    assert len(part.times) == 10
    assert [which(media) for media in part.pictures([0, 5])] == [20, 25]


def test_frames_out_of_order_in_a_container_without_times_to_show_them_at_are_shown_in_order() -> None:
    assert seconds(clip(35, format="avi", codec="mpeg4", bf="2")) == [0, 10, 20, 30]


def test_a_webm_that_was_streamed_claims_no_length_and_is_read_to_its_end() -> None:
    data = clip(30, format="webm", codec="libvpx", live="1")
    assert video.claimed(io.BytesIO(data)) is None
    assert video.claimed(io.BytesIO(clip(30, format="webm", codec="libvpx"))) == 3.0
    assert seconds(data) == [0, 10, 20]


def test_a_header_that_claims_no_frame_rate_does_no_harm() -> None:
    data = bytearray(clip(30, format="avi", codec="mpeg4"))
    streams, main = data.index(b"strh") + 8, data.index(b"avih") + 8
    assert data[streams + 20 : streams + 28] == b"\1\0\0\0\x0a\0\0\0"  # scale and rate
    data[streams + 20 : streams + 28] = bytes(8)
    data[main : main + 4] = bytes(4)  # microseconds a frame
    assert seconds(bytes(data)) == [0, 25]  # as FFmpeg plays it: 25 a second


@pytest.mark.parametrize(("turn", "transpose"), [(90, 2), (180, 3), (-90, 4)])
def test_a_turned_clip_is_upright(turn: int, transpose: int) -> None:
    data = clip(1, turn=turn)
    (media,) = video.each_second(io.BytesIO(data))
    upright = decoded(video.each_second(io.BytesIO(clip(1)))[0]).transpose(Pillow.Transpose(transpose))
    assert media.data == encoded(upright).data
    assert (media.width, media.height) == (upright.width, upright.height)


def test_frames_have_square_pixels_and_a_longest_side() -> None:
    with CARPHONE.open("rb") as stream:
        first, *_ = video.each_second(stream)
    assert (first.width, first.height) == (193, 144)  # 176 pixels, 12:11
    with BIKES.open("rb") as stream:
        first, *_ = video.each_second(stream)
        small, *_ = video.each_second(stream, side=100)
    assert (first.width, first.height, small.width, small.height) == (448, 190, 100, 42)


def test_colours_are_those_of_the_camera() -> None:
    shown = decoded(video.each_second(io.BytesIO(clip(1, crf="1")))[0])
    differences = [abs(a - b) for a, b in zip(shown.tobytes(), scene(0).tobytes(), strict=True)]
    assert sum(differences) / len(differences) < 4


def test_times_that_run_backwards_give_no_frame_twice_and_none_out_of_order() -> None:
    data = clip(30, format="webm", codec="libvpx")
    early, late = (b"\x81" + moment.to_bytes(2, "big") for moment in (500, 2000))
    assert data.count(early) == data.count(late) == 1
    swapped = data.replace(early, b"\x81....").replace(late, early).replace(b"\x81....", late)
    part = stretch(swapped)
    assert list(part.times) == sorted(set(part.times))
    assert seconds(swapped)[0] == 0
    with pytest.raises(Corrupt, match=r"video is broken: its frame at 0\.50 s does not decode whole"):
        part.pictures([4, 5])


def test_a_frame_is_never_taken_for_one_that_is_shown_before_it() -> None:
    """Frames 5 and 20 have changed their times, and the frame after the second does not decode."""
    data = clip(30, format="webm", codec="libvpx")
    early, late, broken = (b"\x81" + moment.to_bytes(2, "big") for moment in (500, 2000, 2100))
    swapped = data.replace(early, b"\x81....").replace(late, early).replace(b"\x81....", late)
    place = swapped.index(broken) + 4
    swapped = swapped[:place] + b"\xf1\xff\xff" + swapped[place + 3 :]  # a first partition longer than the frame
    with pytest.raises(Corrupt, match=r"its frame at 2\.10 s does not decode whole"):
        stretch(swapped).pictures([20, 21])


def test_frames_that_an_edit_list_hides_are_not_shown() -> None:
    """As in clips cut out of a video without encoding it again: they begin at a keyframe that is too early."""
    data = clip(30, hidden=5)
    assert seconds(data) == [5, 15, 25]
    assert len(stretch(data).times) == 25


def test_a_stream_that_was_joined_in_the_middle_begins_at_its_first_keyframe() -> None:
    """Two frames that are shown before it are stored after it, and lack one they depend on."""
    data = clip(60, rate=25, format="mpegts", codec="mpeg2video", bf="2", g="12")
    part = stretch(data[188 * 60 :])
    assert [which(media) for media in part.pictures(range(4))] == [24, 25, 26, 27]


def test_a_clip_that_is_cut_in_its_second_half_gives_what_is_there(tmp_path: Path) -> None:
    with av.open(str(BIKES)) as source, av.open(tmp_path / "c.mp4", "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = (tmp_path / "c.mp4").read_bytes()
    assert len(video.each_second(io.BytesIO(data))) == 10
    assert len(video.each_second(io.BytesIO(data[: len(data) * 6 // 10]))) == 6
    whole = stretch(data)
    for end in range(300_000, 306_000, 1500):  # in the middle of frames, the one shown last among them
        part = stretch(data[:end])
        assert part.pictures([len(part.times) - 1]) == whole.pictures([whole.times.index(part.times[-1])])
    with pytest.raises(Corrupt, match=r"video breaks off: it holds 3\.5 s of the 10\.0 s it claims"):
        video.each_second(io.BytesIO(data[: len(data) // 3]))


# --- what is refused


def claimed_size(side: int) -> bytes:
    """A clip whose header claims to be so wide and high."""
    data = bytearray(clip(5, format="avi", codec="rawvideo"))
    place = data.index(b"strf") + 12
    data[place : place + 8] = side.to_bytes(4, "little") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "video is 0 bytes"),
        (b"hello", "video does not open: Invalid data found"),
        (b"<html>" * 100, "video does not open: Invalid data found"),
        (jpeg(), "video does not open: no clip of a kind that is read here"),
        (sound(), "file holds no video, only audio"),
        (clip(0), "file holds no video, only nothing"),
        (clip(0, format="avi", codec="mpeg4"), "video has 0 frames"),
        (clip(0, format="webm", codec="libvpx"), "video does not open: End of file"),
        (MOVING[: len(MOVING) // 2], "video does not open: Invalid data found"),  # its index is at the end
        (clip(60, format="webm", codec="libvpx")[:4000], "video breaks off: it holds 0."),
        (claimed_size(10_000), "video has no size, or one over 33177600 pixels"),
        (claimed_size(30_000), "video has no size, or one over 33177600 pixels"),
        (clip(5, format="h264"), "video does not open: no clip of a kind that is read here"),  # a stream without times
    ],
)
def test_what_is_no_clip_says_why(data: bytes, says: str) -> None:
    with pytest.raises(Corrupt, match=re.escape(says)):
        video.each_second(io.BytesIO(data))


@pytest.mark.parametrize(
    "list", ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n", "ffconcat version 1.0\nfile {}\n"]
)
def test_a_playlist_opens_no_other_file(list: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.ts").write_bytes(clip(20, format="mpegts"))
    (tmp_path / "list.mp4").write_text(list.format("secret.ts"))
    monkeypatch.chdir(tmp_path)
    with open("list.mp4", "rb") as stream, pytest.raises(Corrupt, match="video does not open"):  # noqa: PTH123
        video.each_second(stream)


def test_bytes_damaged_at_any_place_are_read_or_refused_never_an_error() -> None:
    verdicts: Counter[str] = Counter()
    for place in range(0, len(MOVING), len(MOVING) // 80):
        data = bytearray(MOVING)
        data[place : place + 8] = bytes(number ^ 0x5A for number in data[place : place + 8])
        try:
            video.each_second(io.BytesIO(bytes(data)))
            verdicts["read"] += 1
        except Corrupt as problem:
            assert "\n" not in str(problem)
            verdicts["refused"] += 1
    assert verdicts["read"] > 5
    assert verdicts["refused"] > 5


def test_a_damaged_frame_is_not_taken() -> None:
    data = bytearray(MOVING)
    place = data.index(b"mdat") + len(MOVING) // 3
    data[place : place + 600] = bytes(600)
    with pytest.raises(Corrupt, match=r"video is broken: its frame at \d\.00 s does not decode whole"):
        video.each_second(io.BytesIO(bytes(data)))


class Failing(io.BytesIO):
    """A disk that fails after so many reads."""

    reads = 3

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads -= 1
        if self.reads < 0:
            raise OSError(errno.EIO, "disk")
        return super().read(size)


def test_an_error_of_the_disk_is_not_the_clip_s() -> None:
    with pytest.raises(OSError, match="disk") as raised:
        video.each_second(Failing(BIKES.read_bytes()))
    assert raised.value.errno == errno.EIO


# --- how much is read, and that it is the same


def test_frames_are_those_that_a_plain_decoder_gives() -> None:
    with av.open(str(BIKES)) as container:
        plain = list(container.decode(video=0))
    with BIKES.open("rb") as stream:
        part = video.stretch(stream, seconds=60, side=10_000)
        assert part.times == tuple(frame.time for frame in plain)
        places = [0, 1, 29, 31, 100, 140, 248, 249]  # within groups, across them, and the last two
        how = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
        how |= Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
        expected = [encoded(plain[place].to_image(interpolation=how, threads=1)).data for place in places]
        assert [media.data for media in part.pictures(places)] == expected


@pytest.mark.parametrize("path", [BIKES, CARPHONE])
def test_the_same_clip_gives_the_same_bytes(path: Path) -> None:
    with path.open("rb") as stream:
        assert video.each_second(stream, most=2) == video.each_second(io.BytesIO(path.read_bytes()), most=2)


class Counted(io.BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize("format", ["mp4", "matroska"])
def test_of_a_long_video_only_the_stretch_is_read(format: str) -> None:
    data = clip(600, rate=2, format=format, g="20", preset="ultrafast")
    stream = Counted(data)
    assert len(video.each_second(stream, most=5)) == 5
    part = video.stretch(stream, start=200.0, seconds=10.0)
    assert [time - 200 for time in part.times] == [step / 2 for step in range(20)]
    assert [which(media) for media in part.pictures([0, 19])] == [400 % 60, 419 % 60]
    assert stream.count < len(data)  # 4 openings, of which each reads the index


def test_a_stretch_after_the_end_says_so() -> None:
    with pytest.raises(Corrupt, match="video shows no frame from 30 s to 40 s"):
        stretch(MOVING, start=30.0, seconds=10.0)


# --- questions


def ask(data: bytes, key: str = "s_000000000", **how: Any) -> Candidate:
    return frame_prediction.ask(stretch(data), key, **how)


def asked(candidate: Candidate) -> tuple[str, list[int], list[int] | str]:
    """The question, the scenes it shows, and the scenes or the text of the answer."""
    user, assistant = candidate.messages
    scenes = [which(media) for media in candidate.media]
    *shown, question = user.parts
    assert isinstance(question, Text)
    frames = [scenes[part.index] for part in shown if isinstance(part, Image)]
    if isinstance(assistant.parts[0], Text):
        return question.text, frames, assistant.parts[0].text
    return question.text, frames, [scenes[part.index] for part in assistant.parts if isinstance(part, Image)]


KIND = {wording: kind for kind, all in frame_prediction._WORDING.items() for wording in all}
KIND.update(dict.fromkeys(frame_prediction._AHEAD, "future"))
SLOTS = {"n": r"(?P<n>\d+)", "t": r"(?P<t>[\d.]+) seconds?", "total": r"(?P<total>\d+)", "place": r"(?P<place>\d+)"}


def kind(question: str) -> tuple[str, dict[str, str]]:
    """Which kind of question this is, and the numbers it names."""
    for wording, name in KIND.items():
        pattern = re.escape(wording)
        for slot, form in SLOTS.items():
            pattern = pattern.replace(re.escape("{" + slot + "}"), form, 1)
        if match := re.fullmatch(pattern, question):
            return name, match.groupdict()
    raise AssertionError(question)


def test_questions_of_every_kind_are_true_of_their_clip() -> None:
    part = stretch(clip(30))  # scenes 0 to 29, a tenth of a second apart, all different
    kinds: Counter[str] = Counter()
    for number in range(120):
        candidate = frame_prediction.ask(part, f"s_{number:09d}")
        assert candidate.task == "frame_prediction"
        assert len(candidate.media) <= frame_prediction.FRAMES
        question, shown, answer = asked(candidate)
        name, said = kind(question)
        kinds[name] += 1
        if said.get("n"):
            assert int(said["n"]) == len(shown)
        if name == "interval":
            assert isinstance(answer, str)
            step = round(10 * float(answer.removesuffix("s").removesuffix(" second")))
        else:
            step = round(10 * float(said["t"]))
        assert 2 <= step <= 14  # two frames; half of 2.9 s
        if name == "order":
            assert isinstance(answer, str)
            assert shown != sorted(shown)
            filmed = [shown[int(place) - 1] for place in answer.split(", ")]
        elif name == "interval":
            filmed = shown
        elif name == "reversed":
            assert answer == shown[::-1]
            filmed = shown[::-1]
        else:
            assert isinstance(answer, list)
            (target,) = answer
            filmed = sorted([*shown, target])
            if name == "future":
                assert target > max(shown)
            else:
                assert min(shown) < target < max(shown)
                assert filmed.index(target) + 1 == int(said["place"])
        assert [b - a for a, b in pairwise(filmed)] == [step] * (len(filmed) - 1)
    assert set(kinds) == {"future", "missing", "reversed", "order", "interval"}


def test_a_question_depends_on_the_key_and_the_seed_alone() -> None:
    assert ask(MOVING) == ask(MOVING)
    assert len({asked(ask(MOVING, f"s_{number:09d}"))[0] for number in range(20)}) > 10
    assert len({asked(ask(MOVING, seed=seed))[0] for seed in range(20)}) > 10


def test_every_wording_is_one_of_its_own_and_fits_one_frame_or_more() -> None:
    assert len(KIND) == sum(map(len, frame_prediction._WORDING.values())) + len(frame_prediction._AHEAD)
    for wordings in frame_prediction._WORDING.values():
        assert len(wordings) >= 5


@pytest.mark.parametrize("frames", [3, 4])
def test_a_short_clip_is_asked_what_two_frames_can_answer(frames: int) -> None:
    found = {kind(asked(ask(clip(frames), f"s_{number:09d}"))[0])[0] for number in range(40)}
    assert found == {"future", "reversed", "interval"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (clip(1), "clip holds 1 frame in 0.00 s"),
        (clip(2), "clip holds 2 frames in 0.10 s"),
        (clip(30, still=True), "clip stands still"),
        (clip(4, pts=[0, 1, 90, 91]), "clip holds 4 frames in 9.10 s"),  # two of each moment, and a gap
    ],
)
def test_a_clip_that_holds_no_question_says_why(data: bytes, says: str) -> None:
    with pytest.raises(Corrupt, match=re.escape(says)):
        ask(data)


@pytest.mark.parametrize("pause", [range(24), range(36), range(12, 30), range(16, 48)])
def test_a_pause_costs_no_row_of_a_clip_that_moves_before_or_after(pause: range) -> None:
    part = stretch(clip(48, rate=12, codec="ffv1", format="avi", pause=pause))  # of 4 s, lossless
    for number in range(40):
        frames = frame_prediction.ask(part, f"s_{number:09d}").media
        assert len({frame.data for frame in frames}) == len(frames)


def test_a_clip_that_moves_in_its_last_frame_alone_gives_a_question_or_says_what_was_seen() -> None:
    part = stretch(clip(48, rate=12, codec="ffv1", format="avi", pause=range(47)))
    asked, reasons = 0, set[str]()
    for number in range(20):
        try:
            assert len(frame_prediction.ask(part, f"s_{number:09d}").media) == 2
            asked += 1
        except Corrupt as problem:
            reasons.add(re.sub("[0-9.]+ seconds?", "T", str(problem)))
    assert asked > 10
    assert reasons <= {
        "clip stands still, or nearly: frames that are T apart are the same picture, and no question fits elsewhere"
    }


def test_of_a_variable_rate_frames_are_named_apart_as_they_are() -> None:
    part = stretch(clip(40, pts=[*range(20), *range(60, 80)]))  # a gap of 4 s
    for number in range(60):
        candidate = frame_prediction.ask(part, f"s_{number:09d}")
        question, shown, answer = asked(candidate)
        name, said = kind(question)
        if name == "future":
            times = [part.times[place] for place in (*shown, *answer) if isinstance(place, int)]
            for earlier, later in pairwise(times):
                assert abs(later - earlier - float(said["t"])) <= float(said["t"]) / 2


def test_too_few_frames_for_a_question_are_refused_where_they_are_asked_for() -> None:
    with pytest.raises(ValueError, match="most=2 frames in a question: some kinds take 3; give more"):
        ask(MOVING, most=2)


def test_made_clips_are_what_these_tests_take_them_for() -> None:
    assert scene(0).size == (WIDTH, HEIGHT)
    assert len({scene(number).tobytes() for number in range(60)}) == 60
