"""Encoded pictures: is it one, is it whole, and its size. Sound JPEG and PNG pass through as their original bytes.

Soundness is a format parse (PNG: every chunk and its checksum; JPEG: headers and end marker), not a full decode; for
that there is `intact`, and the filter that asks it. What is whole but not a plain RGB or grey JPEG/PNG (WebP, GIF,
palette, alpha, CMYK, 16 bit, turned by EXIF) is decoded, its first frame taken, and stored as PNG with fixed settings.

Boxes are in the frame they were drawn for: the pixels as stored, before EXIF turns them, for the upstream code that
drew them never does. What `region` and `boxed` make of them is upright, as every picture here is.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import PIL
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import MAX_TEXT_CHUNK, MAX_TEXT_MEMORY

from dataflow.record import Media

POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched
MAX_PIXELS = 178_956_970  # Pillow's own bomb limit: 0.5 GB of RGB
# What pictures of public corpora come as. Pillow knows more, but some of its readers start programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
_PLAIN = ("RGB", "L")
_PNG_LEVEL = 6  # zlib level of re-encoded pictures; part of the bytes, so part of ENCODER
ENCODER = f"Pillow {PIL.__version__}, png level {_PNG_LEVEL}"  # what re-encoded bytes depend on
# What Pillow raises on bytes that lie about themselves; they are in memory, so an OSError is never the disk's.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION = 0x0112  # EXIF tag: 1 is upright, 2 to 8 say how to turn it, others mean nothing
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_RED = (255, 0, 0)
_LINE = 5  # pixels; MetaMorph's process_vstar draws boxes as wide
_FAR = 1 << 31  # beyond any picture's side, and within what a float counts exactly
# The segments of a JPEG that say nothing a decoder of pixels would need Pillow for. Not APP1: it may turn the picture.
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_TABLES = (0xC4, 0xDD)  # Huffman, restart interval
_QUANTIZATION, _QUANTIZATION_BYTES = 0xDB, 65  # of a table with 8 bits a number
_NOTES = (0xE0, 0xE2, 0xED, 0xEE, 0xFE)  # JFIF, colour profile, Photoshop, Adobe, comment
_SCAN = 0xDA
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks of a PNG that hold text or pack what Pillow unpacks like text

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the stored picture; the last two just outside."""


class Corrupt(ValueError):
    """What cannot become a record; the message is the ledger's reason."""


def summary(error: BaseException) -> str:
    """What a library says of bad bytes, as one short line, without the path that system errors and FFmpeg's name."""
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(said.split())[:200] or type(error).__name__


class Missing(Corrupt):
    """A file that a row names is not there: of a corpus that was obtained in part, say."""


class LeftOut(Corrupt):
    """A sound row that the recipe told its source to leave out: the ledger counts it as filtered."""


def picture(data: bytes) -> Media:
    """The picture in these bytes, original bytes kept when they are sound and plain.

    Raises:
        Corrupt: no picture, cut off, or larger than `MAX_PIXELS`; the message says which.
    """
    size = _plain_jpeg(data)
    if size is not None:
        return Media(data=data, extension="jpg", width=size[0], height=size[1])
    try:
        with _opened(data) as image:
            if _passes_through(image, data):
                extension = "jpg" if image.format == "JPEG" else "png"
                return Media(data=data, extension=extension, width=image.width, height=image.height)
            return encoded(_upright(image))
    except Corrupt:
        bare = _without_text(data)
        if bare == data:
            raise
    return picture(bare)  # what was wrong with it may have been the text beside the pixels


def region(data: bytes, box: Box) -> Media:
    """What a box holds of the picture in these bytes, as PNG; what of it lies outside is cut off.

    Raises:
        Corrupt: no picture; or a box without area, or outside the picture.
    """
    with _opened(data) as image:
        return encoded(_upright(image).crop(_place(box, image)))


def boxed(data: bytes, boxes: Sequence[Box], names: Sequence[str]) -> Media:
    """The picture in these bytes with boxes drawn in red and their names beside them, as PNG.

    Raises:
        Corrupt: no picture; or a box without area, or outside the picture.
    """
    with _opened(data) as image:
        canvas = _upright(image)
        places = [_place(box, image) for box in boxes]
        drawing = ImageDraw.Draw(canvas)
        for left, top, right, bottom in places:
            drawing.rectangle((left, top, right - 1, bottom - 1), outline=_RED, width=_LINE)
        for (left, top, _, _), name in zip(places, names, strict=True):
            _label(drawing, name, left, top)
        return encoded(canvas)


def coordinates(value: Any) -> Box:
    """The four numbers of a row's box, whatever they mean.

    Raises:
        Corrupt: not four numbers that a picture could hold.
    """
    if (
        not isinstance(value, list | tuple)
        or len(value) != 4
        or not all(isinstance(number, int | float) and -_FAR < number < _FAR for number in value)
    ):
        raise Corrupt(f"box {str(value)[:80]} is not four numbers in pixels")
    left, top, right, bottom = value
    return left, top, right, bottom


def encoded(image: Image.Image) -> Media:
    """An RGB picture as PNG, in bytes that depend only on its pixels and `ENCODER`."""
    buffer = io.BytesIO()
    bare = image.copy()
    bare.info = {}  # else Pillow would write the colour profile, which need not be one of RGB
    bare.save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return Media(data=buffer.getvalue(), extension="png", width=image.width, height=image.height)


def decoded(media: Media) -> Image.Image:
    """The pixels of a stored picture, as RGB.

    Raises:
        Corrupt: it does not decode.
    """
    try:
        with Image.open(
            io.BytesIO(media.data), formats=("JPEG", "PNG")
        ) as image:  # warnings are no threads' to silence
            return image.convert("RGB")
    except UnidentifiedImageError:  # which tells where the bytes lie in memory
        raise Corrupt(f"picture does not decode: it starts with {media.data[:8]!r}") from None
    except _BROKEN as error:
        raise Corrupt(f"picture does not decode: {summary(error)}") from None


def intact(media: Media) -> None:
    """Decode a stored picture in full.

    Pillow fills what is missing inside a JPEG with grey and says nothing, so its scan is read by FFmpeg's decoder too.

    Raises:
        Corrupt: it does not decode, or not all of it is there.
    """
    decoded(media)
    if media.extension == "jpg":
        import av  # takes a tenth of a second, and most recipes never ask
        from av.error import FFmpegError, InvalidDataError

        decoder = av.CodecContext.create("mjpeg", "r")
        decoder.options = {"err_detect": "explode"}
        decoder.thread_count = 1
        try:
            decoder.decode(av.Packet(media.data))
        except InvalidDataError:  # what FFmpeg does not know (arithmetic coding) is no damage
            raise Corrupt("picture does not decode: its pixels are damaged or cut short") from None
        except FFmpegError:
            pass


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The picture in these bytes, not decoded yet; what its decoder raises inside the block becomes Corrupt."""
    if not data:
        raise Corrupt("picture is 0 bytes")
    if data.startswith(POINTER):
        raise Corrupt("picture is a Git LFS pointer, not the file itself: fetch it, with git lfs pull, say")
    if data[:64].lstrip()[:1] == b"<":
        raise Corrupt("picture is a web page or XML, not pixels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of size, checked below, and of broken EXIF
        try:
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise Corrupt(f"picture format is not known, it starts with {data[:8]!r}") from None
        except _BROKEN as error:
            raise Corrupt(f"picture does not open: {summary(error)}") from None
        with opened as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Corrupt(f"picture is {width}x{height}, over {MAX_PIXELS} pixels")
            try:
                yield image
            except Corrupt:
                raise
            except _BROKEN as error:
                raise Corrupt(f"picture does not decode: {summary(error)}") from None


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Width and height of a whole, plain JPEG; None where Pillow must look, which takes ten times as long."""
    if not data.startswith(b"\xff\xd8\xff") or not _ends(data):
        return None
    place, size = 2, None
    try:
        while data[place] == 0xFF:
            kind = data[place + 1]
            (length,) = struct.unpack_from(">H", data, place + 2)
            if kind == _SCAN:
                return size if place + 2 + length <= len(data) else None
            if kind in _FRAMES:
                bits, height, width, components = struct.unpack_from(">BHHB", data, place + 4)
                if bits != 8 or components not in (1, 3) or length != 8 + 3 * components:
                    return None
                if not 0 < width * height <= MAX_PIXELS:
                    return None
                size = width, height
            elif kind == _QUANTIZATION:
                tables = data[place + 4 : place + 2 + length : _QUANTIZATION_BYTES]
                if (length - 2) % _QUANTIZATION_BYTES or max(tables, default=0) > 15:  # above: of 16 bits a number
                    return None
            elif (kind not in _TABLES and kind not in _NOTES) or data.startswith(b"MPF\0", place + 4):
                return None  # MPF: several pictures in one file
            place += 2 + length
    except (IndexError, struct.error):
        pass
    return None


def _ends(jpeg: bytes) -> bool:
    return jpeg.rstrip(b"\0\r\n ").endswith(b"\xff\xd9")  # cameras pad after the end marker


def _passes_through(image: Image.Image, data: bytes) -> bool:
    if image.mode not in _PLAIN or getattr(image, "is_animated", False) or "transparency" in image.info:
        return False
    if image.format == "JPEG":
        whole = _ends(data)
    elif image.format == "PNG":
        whole = data[24] < 16 and _whole_png(data, image)  # byte 24: bits per channel
    else:
        return False
    return whole and _orientation(image) not in _UPRIGHT


def _whole_png(data: bytes, image: Image.Image) -> bool:
    """Whether the chunks of a PNG follow each other, each with its right checksum, up to IEND and no further.

    Nor may its text unpack to more than Pillow reads; of that before the pixels it has made sure.
    """
    view, place, text, behind = memoryview(data), 8, 0, False
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data) or zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return False
        if kind == b"IDAT":
            behind = True
        elif behind and kind in _TEXT:
            unpacked = _unpacked(kind, data[place + 8 : end - 4])
            text += unpacked
            if unpacked > MAX_TEXT_CHUNK or text > MAX_TEXT_MEMORY:
                return False
        if kind == b"eXIf":  # Pillow has not seen it when it comes after the pixels
            image.info["exif"] = b"Exif\0\0" + data[place + 8 : end - 4]
        if kind == b"IEND":
            return end == len(data)
        place = end
    return False


def _unpacked(kind: bytes, chunk: bytes) -> int:
    """Bytes of text in such a chunk of a PNG, at most one more than Pillow reads."""
    if kind == b"tEXt":
        return len(chunk)
    packed = chunk.partition(b"\0")[2][1:]  # a name, then the method; in iTXt whether, then the method
    if kind == b"iTXt":
        if chunk.partition(b"\0")[2][:1] != b"\1":
            return len(chunk)
        packed = packed[1:].partition(b"\0")[2].partition(b"\0")[2]  # a language and the name in it
    try:
        return len(zlib.decompressobj().decompress(packed, MAX_TEXT_CHUNK + 1))
    except zlib.error:  # Pillow takes it for empty
        return 0


def _without_text(data: bytes) -> bytes:
    """A PNG without its texts, and without a colour profile larger than Pillow reads; anything else as it is."""
    if not data.startswith(_PNG):
        return data
    kept, place = [_PNG], 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        if kind not in _TEXT or (kind == b"iCCP" and _unpacked(kind, body) <= MAX_TEXT_CHUNK):
            kept.append(data[place : place + 12 + length])
        place += 12 + length
    return b"".join(kept) + data[place:]


def _upright(image: Image.Image) -> Image.Image:
    """The pixels as RGB, turned as EXIF says."""
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    return _rgb(image if turn is None else image.transpose(turn))


def _place(box: Box, image: Image.Image) -> tuple[int, int, int, int]:
    """Where a box of the stored pixels lies once they are upright, cut to the picture and to whole pixels around it."""
    left, top, right, bottom = box
    shown = ", ".join(f"{number:g}" for number in box)
    if left >= right or top >= bottom:
        raise Corrupt(f"box [{shown}] has no area")
    width, height = image.size
    left, top = max(0, math.floor(left)), max(0, math.floor(top))
    right, bottom = min(width, math.ceil(right)), min(height, math.ceil(bottom))
    if left >= right or top >= bottom:
        raise Corrupt(f"box [{shown}] is outside the picture of {width}x{height}")
    orientation = _orientation(image)
    if orientation in (5, 6, 7, 8):
        left, top, right, bottom, width, height = top, left, bottom, right, height, width
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    if orientation in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def _label(drawing: ImageDraw.ImageDraw, name: str, left: int, top: int) -> None:
    """Write a name above a box, or in it where the picture ends; in a font of Pillow's own that no system changes."""
    font = _font()
    words = " ".join(name.split()).encode("latin-1", "replace").decode("latin-1")[: drawing.im.size[0]]
    _, _, width, height = font.getbbox(words)
    x = max(0, min(left, drawing.im.size[0] - math.ceil(width)))
    y = top - height if top >= height else top + _LINE
    drawing.text((x, y), words, fill=_RED, font=font)


@cache
def _font() -> ImageFont.ImageFont:
    return ImageFont.load_default_imagefont()


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 when there is none that can be read."""
    try:
        # Image's own, for PNG's decodes the whole picture first
        return Image.Image.getexif(image).get(_ORIENTATION, 1)
    except _BROKEN:
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """Alpha goes over white, 16 bit is scaled to 8, everything else converts."""
    if image.mode.startswith("I"):  # I;16, I;16B, I: 16 bits of grey, the last in 32
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
