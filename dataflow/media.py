"""Encoded pictures: is it one, is it whole, and its size. Sound JPEG and PNG pass through as their original bytes.

Soundness is a format parse (PNG: every chunk and its checksum; JPEG: headers and end marker), not a full decode. What
is whole but not a plain RGB or grey JPEG/PNG (WebP, GIF, palette, alpha, CMYK, 16 bit, turned by EXIF) is decoded, its
first frame taken, and stored as PNG with fixed settings.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import PIL
from PIL import Image, UnidentifiedImageError

from dataflow.record import Media

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


class Corrupt(ValueError):
    """What cannot become a record; the message is the ledger's reason."""


class Missing(Corrupt):
    """A file that a row names is not there: of a corpus that was obtained in part, say."""


def picture(data: bytes) -> Media:
    """The picture in these bytes, original bytes kept when they are sound and plain.

    Raises:
        Corrupt: no picture, cut off, or larger than `MAX_PIXELS`; the message says which.
    """
    if not data:
        raise Corrupt("picture is 0 bytes")
    if data[:64].lstrip()[:1] == b"<":
        raise Corrupt("picture is a web page or XML, not pixels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of size, checked below, and of broken EXIF
        try:
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise Corrupt(f"picture format is not known, it starts with {data[:8]!r}") from None
        except _BROKEN as error:
            raise Corrupt(f"picture does not open: {_line(error)}") from None
        with opened as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Corrupt(f"picture is {width}x{height}, over {MAX_PIXELS} pixels")
            try:
                if _passes_through(image, data):
                    extension = "jpg" if image.format == "JPEG" else "png"
                    return Media(data=data, extension=extension, width=width, height=height)
                image.load()
                turn = _UPRIGHT.get(_orientation(image))
                return encoded(_rgb(image if turn is None else image.transpose(turn)))
            except _BROKEN as error:
                raise Corrupt(f"picture does not decode: {_line(error)}") from None


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `picture` let it in
            with Image.open(io.BytesIO(media.data), formats=("JPEG", "PNG")) as image:
                return image.convert("RGB")
    except _BROKEN as error:
        raise Corrupt(f"picture does not decode: {_line(error)}") from None


def _passes_through(image: Image.Image, data: bytes) -> bool:
    if image.mode not in _PLAIN or getattr(image, "is_animated", False) or "transparency" in image.info:
        return False
    if image.format == "JPEG":
        whole = data.rstrip(b"\0\r\n ").endswith(b"\xff\xd9")  # cameras pad after the end marker
    elif image.format == "PNG":
        whole = data[24] < 16 and _whole_png(data, image)  # byte 24: bits per channel
    else:
        return False
    return whole and _orientation(image) not in _UPRIGHT


def _whole_png(data: bytes, image: Image.Image) -> bool:
    """Whether the chunks of a PNG follow each other, each with its right checksum, up to IEND and no further."""
    view, place = memoryview(data), 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data) or zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return False
        if kind == b"eXIf":  # Pillow has not seen it when it comes after the pixels
            image.info["exif"] = b"Exif\0\0" + data[place + 8 : end - 4]
        if kind == b"IEND":
            return end == len(data)
        place = end
    return False


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


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
