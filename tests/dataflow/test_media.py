"""Pictures: sound ones keep their bytes, odd ones become PNG, broken ones are named."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from upstream import PHOTOS, chunk, file, jpeg, photo, png_header

from dataflow.media import MAX_PIXELS, Corrupt, boxed, coordinates, decoded, intact, picture, region
from dataflow.record import Media

_TURNED = {  # EXIF orientation -> how a camera that writes it has turned the picture
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def pixels(media: Media) -> NDArray[np.int16]:
    return np.asarray(decoded(media)).astype(np.int16)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("name", ["rocket.jpg", "retina.jpg", "hubble_deep_field.jpg", "chelsea.png", "camera.png"])
def test_a_sound_photograph_keeps_its_bytes(name: str) -> None:
    data = (PHOTOS / name).read_bytes()
    with Image.open(PHOTOS / name) as image:
        assert picture(data) == Media(data=data, extension=name[-3:], width=image.width, height=image.height)  # type: ignore[arg-type]


def test_progressive_and_grey_jpeg_keep_their_bytes() -> None:
    for data in (file(photo(), "JPEG", progressive=True), file(photo().convert("L"), "JPEG")):
        assert picture(data).data == data


def test_a_camera_s_padding_after_the_end_marker_is_no_damage() -> None:
    data = jpeg() + b"\0\0\r\n"
    assert picture(data).data == data


@pytest.mark.parametrize("mode", ["P", "1", "L", "LA", "RGBA"])
def test_every_png_mode_becomes_the_same_cat(mode: str) -> None:
    image = photo().convert(mode)
    held = picture(file(image, "PNG"))
    assert held.extension == "png"
    assert (held.width, held.height) == (64, 48)
    assert np.array_equal(pixels(held), np.asarray(image.convert("RGB")))


def test_what_is_transparent_becomes_white() -> None:
    image = photo()
    image.putalpha(0)
    for data in (file(image, "PNG"), file(image, "WEBP", lossless=True)):
        assert (pixels(picture(data)) == 255).all()
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert (pixels(picture(file(half, "PNG"))) == 127).all()


def test_a_transparent_colour_of_rgb_and_palette_becomes_white() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert (pixels(picture(file(red, "PNG", transparency=(255, 0, 0)))) == 255).all()
    assert (pixels(picture(file(red.convert("P"), "PNG", transparency=red.convert("P").getpixel((0, 0))))) == 255).all()


def test_cmyk_jpeg_is_not_inverted() -> None:
    held = picture(file(photo().convert("CMYK"), "JPEG", quality=95))
    assert held.extension == "png"
    assert np.abs(pixels(held) - np.asarray(photo()).astype(np.int16)).mean() < 5


def test_ycck_jpeg_of_photoshop_is_not_inverted() -> None:
    inverse = Image.fromarray(255 - np.asarray(photo())).convert("YCbCr")
    stored = [band.point(lambda value: 255 - value) for band in inverse.split()]  # Pillow inverts what it writes
    inks = Image.merge("CMYK", (*stored, Image.new("L", inverse.size, 0)))
    data = bytearray(file(inks, "JPEG", quality=95, subsampling=0))
    data[data.index(b"Adobe") + 11] = 2  # how the inks are coded: YCCK
    held = picture(bytes(data))
    assert held.extension == "png"
    assert np.abs(pixels(held) - np.asarray(photo()).astype(np.int16)).mean() < 5


def test_sixteen_bits_of_grey_are_scaled_not_clipped() -> None:
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    held = picture(file(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(pixels(held)[..., 0], ramp >> 8)


def test_sixteen_bits_of_colour_become_eight() -> None:
    data = (PHOTOS / "chessboard_RGB.png").read_bytes()  # a 16-bit RGB PNG
    held = picture(data)
    assert held.data != data
    assert held.data[24] == 8
    with Image.open(PHOTOS / "chessboard_RGB.png") as image:
        assert np.array_equal(pixels(held), np.asarray(image))


def test_sixteen_bits_with_alpha_become_eight_over_white() -> None:
    rows = np.zeros((1, 4, 4), ">u2")
    rows[..., 0], rows[..., 3] = 0x8000, [0, 0xFFFF, 0xFFFF, 0xFFFF]
    header = struct.pack(">IIBBBBB", 4, 1, 16, 6, 0, 0, 0)
    body = zlib.compress(b"\0" + rows.tobytes())
    held = picture(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    assert pixels(held).tolist() == [[[255, 255, 255], [128, 0, 0], [128, 0, 0], [128, 0, 0]]]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_pictures_of_odd_shapes_are_sound_and_a_filter_s_business(size: tuple[int, int]) -> None:
    for format in ("JPEG", "PNG"):
        data = file(Image.new("RGB", size, "red"), format)
        held = picture(data)
        assert (held.data, held.width, held.height) == (data, *size)


def test_a_colour_profile_is_no_reason_to_encode_again() -> None:
    for format in ("JPEG", "PNG"):
        data = file(photo(), format, icc_profile=b"a wide gamut, say" * 9)
        assert picture(data).data == data


def test_several_pictures_in_one_jpeg_give_the_first() -> None:
    data = file(photo(), "MPO", save_all=True, append_images=[photo().rotate(180)], quality=95)
    held = picture(data)
    assert held.extension == "png"
    assert np.abs(pixels(held) - np.asarray(photo()).astype(np.int16)).mean() < 5


_TOO_MUCH = b"a word " * (200 << 10)  # over the 1 MB of a text that Pillow unpacks
_PACKED = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(_TOO_MUCH)),
    "iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(_TOO_MUCH)),
    "iCCP": chunk(b"iCCP", b"a profile\0\0" + zlib.compress(_TOO_MUCH)),
    "many": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 20))) * 65,  # each within, together beyond
}


@pytest.mark.parametrize("bomb", _PACKED)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_text_bomb_in_a_png_is_left_out_and_the_pixels_stay_as_they_were(bomb: str, place: str) -> None:
    plain = file(photo(), "PNG")
    at = 33 if place == "before" else len(plain) - 12  # behind IHDR, before IEND
    data = plain[:at] + _PACKED[bomb] + plain[at:]
    held = picture(data)
    assert held.data == plain
    assert np.array_equal(pixels(held), np.asarray(photo()))


def test_ordinary_text_in_a_png_is_no_reason_to_touch_it() -> None:
    plain = file(photo(), "PNG")
    notes = chunk(b"tEXt", b"Comment\0a cat") + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a cat" * 9000))
    notes += chunk(b"iTXt", b"Comment\0\0\0\0\0" + b"a cat" * 99) + chunk(b"zTXt", b"no text at all")
    for at in (33, len(plain) - 12):
        data = plain[:at] + notes + plain[at:]
        assert picture(data).data == data


@pytest.mark.parametrize("orientation", _TURNED)
def test_what_exif_turned_is_stored_upright(orientation: int) -> None:
    held = picture(file(photo().transpose(_TURNED[orientation]), "PNG", exif=exif(orientation)))
    assert (held.width, held.height) == (64, 48)
    assert np.array_equal(pixels(held), np.asarray(photo()))


def test_exif_after_the_pixels_of_a_png_counts_too() -> None:
    plain, turned = file(photo(), "PNG"), exif(6).tobytes().removeprefix(b"Exif\0\0")
    held = picture(plain[:-12] + chunk(b"eXIf", turned) + plain[-12:])
    assert (held.width, held.height) == (48, 64)


def test_a_turned_jpeg_is_stored_upright_and_without_its_turn() -> None:
    held = picture(file(photo(), "JPEG", exif=exif(6)))
    assert (held.extension, held.width, held.height) == ("png", 48, 64)
    assert picture(held.data) == held


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_an_orientation_that_turns_nothing_keeps_the_bytes(orientation: int) -> None:
    for format in ("JPEG", "PNG"):
        data = file(photo(), format, exif=exif(orientation))
        assert picture(data).data == data


def test_broken_exif_does_not_lose_a_sound_picture() -> None:
    data = file(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert picture(data).data == data


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_kept(format: str) -> None:
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue")]
    data = file(frames[0], format, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    held = picture(data)
    assert (held.extension, held.width, held.height) == ("png", 16, 8)
    assert np.abs(pixels(held) - np.array([255, 0, 0])).max() <= 2
    with Image.open(io.BytesIO(held.data)) as image:
        assert getattr(image, "n_frames", 1) == 1


@pytest.mark.parametrize("format", ["WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_other_formats_of_the_web_become_png(format: str) -> None:
    held = picture(file(photo(), format))
    assert (held.extension, held.width, held.height) == ("png", 64, 48)
    assert np.abs(pixels(held) - np.asarray(photo()).astype(np.int16)).mean() < 30


def test_reencoded_bytes_depend_on_the_pixels_alone() -> None:
    bare = file(photo().convert("CMYK"), "TIFF")
    dressed = file(photo().convert("CMYK"), "TIFF", icc_profile=b"a profile of four inks" * 9, dpi=(300, 300))
    assert bare != dressed
    assert picture(bare) == picture(dressed) == picture(bare)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "picture is 0 bytes"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\n  <?xml version='1.0'?><svg/>", "web page or XML"),
        (b"\x00\x01\x02 no picture at all", r"format is not known, it starts with b'\\x00\\x01\\x02 no p'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n", "format is not known"),
        (png_header(100_000, 100_000), "picture does not open: Image size .* exceeds limit"),
        (png_header(1, MAX_PIXELS + 1), "exceeds limit|over 178956970 pixels"),
        (png_header(0, 10), "format is not known|does not open"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, says: str) -> None:
    with pytest.raises(Corrupt, match=says):
        picture(data)


def test_the_limit_of_pixels_holds_where_pillow_s_own_was_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(Corrupt, match="picture is 100000x100000, over 178956970 pixels"):
        picture(png_header(100_000, 100_000))


def test_what_follows_the_end_of_a_png_is_not_kept() -> None:
    data = file(photo(), "PNG")
    held = picture(data + b"an archive, say")
    assert b"an archive, say" not in held.data
    assert np.array_equal(pixels(held), np.asarray(photo()))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_picture_cut_anywhere_is_never_taken_for_whole(format: str) -> None:
    data = file(photo(), format)
    for end in range(1, len(data), max(1, len(data) // 60)):
        try:
            assert picture(data[:end]).data != data[:end]
        except Corrupt as problem:
            assert "\n" not in str(problem)


def test_a_cut_jpeg_and_a_cut_png_are_corrupt() -> None:
    for data in (jpeg(), file(photo(), "PNG")):
        with pytest.raises(Corrupt, match="picture does not decode: "):
            picture(data[: len(data) // 2])


def test_a_png_with_its_end_but_damaged_pixels_is_corrupt() -> None:
    data = bytearray(file(photo(), "PNG"))
    data[len(data) // 2] ^= 0x55
    with pytest.raises(Corrupt, match="picture does not decode"):
        picture(bytes(data))


def test_a_png_is_not_decoded_to_be_passed_through() -> None:
    filtered_by_nothing_known = zlib.compress(b"\xee" + bytes(3 * 64))  # rows that no decoder accepts
    header = struct.pack(">IIBBBBB", 64, 1, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", filtered_by_nothing_known) + chunk(b"IEND", b"")
    )
    held = picture(data)
    assert held.data == data  # a format parse, as documented; the reader finds it
    with pytest.raises(Corrupt, match="does not decode"):
        decoded(held)


def test_damaged_bytes_give_a_picture_or_corrupt_and_nothing_else() -> None:
    draw = random.Random(0)
    seeds = [file(photo(), format) for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "JPEG2000")]
    seeds.append(file(photo(), "JPEG", exif=exif(6)))
    for _ in range(1200):
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(min(len(data), draw.choice((40, 200, len(data)))))] = draw.randrange(256)
        try:
            picture(bytes(data[: draw.choice((len(data), draw.randrange(len(data))))]))
        except Corrupt as problem:
            assert str(problem).isprintable()


def test_a_stored_picture_that_no_longer_decodes_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="does not decode"):
        decoded(Media(data=b"nothing", extension="jpg", width=1, height=1))


def test_what_passes_as_a_jpeg_opens_as_one_of_that_size() -> None:
    draw = random.Random(1)
    seeds = [jpeg(), file(photo(), "JPEG", progressive=True), file(photo().convert("L"), "JPEG", comment=b"a cat")]
    seeds.append(file(photo(), "JPEG", icc_profile=b"wide" * 30_000, restart_marker_rows=1))
    passed = 0
    for _ in range(3000):
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.randint(0, 3)):
            data[draw.randrange(min(len(data), 700))] = draw.randrange(256)
        try:
            held = picture(bytes(data))
        except Corrupt:
            continue
        if held.data == data:
            passed += 1
            with Image.open(io.BytesIO(data)) as image:
                assert (image.format, image.size) == ("JPEG", (held.width, held.height))
                assert image.mode in ("RGB", "L")
                assert not getattr(image, "is_animated", False)
                assert Image.Image.getexif(image).get(0x0112, 1) not in _TURNED
    assert passed > 500


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}])
def test_a_jpeg_that_lost_its_middle_is_not_intact(options: dict[str, object]) -> None:
    data = file(photo(640, 480), "JPEG", quality=90, **options)
    intact(picture(data))
    cut = picture(data[: len(data) // 2] + data[len(data) * 3 // 5 :])
    decoded(cut)  # Pillow says nothing
    with pytest.raises(Corrupt, match="its pixels are damaged or cut short"):
        intact(cut)


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (300, 200)])
def test_sound_pictures_of_every_coding_are_intact(size: tuple[int, int]) -> None:
    for options in ({}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 3}, {"keep_rgb": True}):
        for subsampling in [0] if "keep_rgb" in options else [0, 1, 2, "4:1:1"]:
            intact(picture(file(photo(*size), "JPEG", subsampling=subsampling, **options)))
    intact(picture(file(photo(*size).convert("L"), "JPEG") + b"\0\0"))
    intact(picture(file(photo(*size), "PNG")))


def test_a_png_with_pixels_that_no_decoder_takes_is_not_intact() -> None:
    header = struct.pack(">IIBBBBB", 64, 1, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\xee" + bytes(3 * 64))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    with pytest.raises(Corrupt, match="does not decode"):
        intact(picture(data))


# --- boxes


def test_a_region_is_what_the_box_holds() -> None:
    data = file(photo(), "PNG")
    held = region(data, (10, 5, 30, 40))
    assert (held.extension, held.width, held.height) == ("png", 20, 35)
    assert np.array_equal(pixels(held), np.asarray(photo())[5:40, 10:30])
    assert held == region(data, (10, 5, 30, 40))


@pytest.mark.parametrize(
    ("box", "as_if"),
    [
        ((10.9, 5.1, 29.2, 39.5), (10, 5, 30, 40)),  # a pixel in part is in it
        ((-5, -9, 9, 9), (0, 0, 9, 9)),
        ((60, 40, 1e9, 1e9), (60, 40, 64, 48)),
        ((63.5, 47.5, 63.6, 47.6), (63, 47, 64, 48)),
    ],
)
def test_a_box_is_widened_to_whole_pixels_and_cut_to_the_picture(
    box: tuple[float, ...], as_if: tuple[int, ...]
) -> None:
    data = file(photo(), "PNG")
    assert region(data, box) == region(data, as_if)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ((9, 9, 9, 20), r"box \[9, 9, 9, 20\] has no area"),
        ((9, 20, 12, 10), r"box \[9, 20, 12, 10\] has no area"),
        ((64, 0, 70, 9), r"box \[64, 0, 70, 9\] is outside the picture of 64x48"),
        ((-9, -9, -0.5, 9), r"box \[-9, -9, -0\.5, 9\] is outside the picture of 64x48"),
    ],
)
def test_a_box_that_holds_nothing_is_corrupt(box: tuple[float, float, float, float], says: str) -> None:
    with pytest.raises(Corrupt, match=says):
        region(jpeg(), box)
    with pytest.raises(Corrupt, match=says):
        boxed(jpeg(), [(1, 1, 2, 2), box], ["a", "b"])


@pytest.mark.parametrize("orientation", _TURNED)
def test_a_box_is_of_the_stored_pixels_and_its_region_comes_out_upright(orientation: int) -> None:
    marked = photo()
    marked.paste((0, 0, 255), (10, 5, 30, 40))
    stored = marked.transpose(_TURNED[orientation])
    blue = (np.asarray(stored) == (0, 0, 255)).all(axis=-1)
    (rows,), (columns,) = blue.any(axis=1).nonzero(), blue.any(axis=0).nonzero()
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    data = file(stored, "PNG", exif=exif(orientation))
    held = region(data, box)
    assert (held.width, held.height) == (20, 35)
    assert (pixels(held) == (0, 0, 255)).all()
    shown = pixels(boxed(data, [box], [""]))
    assert shown.shape == (48, 64, 3)
    assert (shown[5:10, 10:30] == (255, 0, 0)).all()
    assert (shown[10:35, 15:25] == (0, 0, 255)).all()


def test_a_box_is_drawn_with_its_name_and_nothing_else_changes() -> None:
    data = file(photo(200, 150), "PNG")
    named, bare = (pixels(boxed(data, [(40, 50, 120, 110)], [name])) for name in ("cat", ""))
    (rows, columns) = (named != bare).any(axis=-1).nonzero()
    assert 38 <= rows.min() <= rows.max() < 50  # above the box
    assert 40 <= columns.min() <= columns.max() < 60
    outside = np.ones(bare.shape[:2], bool)
    outside[50:110, 40:120] = False
    assert np.array_equal(bare[outside], np.asarray(photo(200, 150))[outside])


@pytest.mark.parametrize("name", ["猫", "un\nchat", "x" * 100_000, "\ud83d", ""])
@pytest.mark.parametrize("box", [(0, 0, 9, 9), (60, 40, 64, 48), (0, 0, 64, 48)])
def test_any_name_can_be_drawn_anywhere(name: str, box: tuple[float, float, float, float]) -> None:
    assert boxed(jpeg(), [box], [name]) == boxed(jpeg(), [box], [name])


def test_what_is_no_picture_has_no_region() -> None:
    for data in (b"", b"<html>", jpeg()[:300]):
        with pytest.raises(Corrupt, match="picture"):
            region(data, (0, 0, 9, 9))


@pytest.mark.parametrize("value", [None, [1, 2, 3], "1234", [1, 2, 3, "4"], [1, 2, 3, float("nan")], [1, 2, 3, 10**30]])
def test_a_box_is_four_numbers_of_pixels(value: object) -> None:
    assert coordinates([1, 2.5, -3, 4]) == (1, 2.5, -3, 4)
    with pytest.raises(Corrupt, match="is not four numbers in pixels"):
        coordinates(value)
