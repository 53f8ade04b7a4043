"""Plain images: PNG, JPEG and other files, Pillow images and arrays, to 8-bit pixels that hold nothing else."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from pedcxr_client.errors import InputError
from pedcxr_client.films.files import MAX_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

# No format that can run a program (EPS), and none whose decoder cuts 16 bits to 8 without a sign.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
_ORIENTATION, _PHOTOMETRIC = 0x0112, 262  # of EXIF; of TIFF, where 0 says that the least value is white
_DEEP_TILE = re.compile(r";1[0-9]")
_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N")
INSTALL = 'pip install "pedcxr[dicom]"'

# What a decoder may need, or what is a bare number. Not: text, EXIF, a date (tIME), a profile with a
# name in it (iCCP), transparency (tRNS), frames (acTL).
_PNG_CLEAN = frozenset({b"IHDR", b"IDAT", b"IEND", b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"sBIT", b"bKGD"})
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Quantisation, Huffman, frames that Pillow decodes (baseline, extended, progressive), restart interval.
_JPEG_CLEAN = frozenset({0xDB, 0xC4, 0xC0, 0xC1, 0xC2, 0xDD})
_SOI, _EOI, _SOS, _JFIF, _ADOBE = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def from_bytes(data: bytes, name: str) -> tuple[Image, bytes | None, list[str]]:
    """The pixels of an image file, upright; its own bytes where they may be sent; notes on what was done.

    Raises:
        InputError: if it is damaged, no image, transparent, of several frames, too large or too deep.
    """
    opened = _open(data, name)
    deep = opened.mode in _DEEP_GREY
    white_is_zero = deep and _is_white_zero(opened)
    pixels, turned = _decode(opened, name, deep=deep)
    if deep:
        grey, windowed = from_words(_array(pixels, name), name, white_is_zero=white_is_zero)
        return grey, None, ["re-encoded as 8-bit grey PNG without metadata", *turned, *windowed]
    if pixels.mode in ("L", "RGB") and (is_bare_png(data) or is_bare_jpeg(data)):
        return pixels, data, ["original bytes"]
    grey, more = to_grey(pixels, name)
    return grey, None, ["re-encoded as 8-bit grey PNG without metadata", *turned, *more]


def from_pillow(image: Image, name: str) -> tuple[Image, None, list[str]]:
    """As :func:`from_bytes`, of a Pillow image."""
    deep = image.mode in _DEEP_GREY
    pixels, turned = _decode(image, name, deep=deep)
    grey, more = from_words(_array(pixels, name), name) if deep else to_grey(pixels, name)
    return grey, None, ["encoded as 8-bit grey PNG from a Pillow image", *turned, *more]


def from_array(array: Any, name: str) -> tuple[Image, None, list[str]]:
    """As :func:`from_bytes`, of a numpy array: uint8 of shape (rows, columns) or (rows, columns, 3), or 16-bit grey.

    Raises:
        InputError: if it has another shape or type.
    """
    from PIL import Image

    kind, shape = str(array.dtype.name), tuple(array.shape)
    if not (len(shape) in (2, 3) and shape[2:] in ((), (3,)) and min(shape) > 0):
        raise InputError(f"{name}: an array of shape {shape} is no film; give (rows, columns)")
    if shape[0] * shape[1] > MAX_PIXELS:
        raise _too_large(name)
    encoded = f"encoded as 8-bit grey PNG from an array of {kind}"
    if kind == "uint8":
        grey, more = to_grey(Image.fromarray(array), name)
        return grey, None, [encoded, *more]
    if kind in ("uint16", "int16") and len(shape) == 2:
        grey, more = from_words(array, name)
        return grey, None, [encoded, *more]
    raise InputError(f"{name}: an array of {kind} is not sent, since nothing says what its values mean; give uint8")


def from_words(array: Any, name: str, *, white_is_zero: bool = False) -> tuple[Image, list[str]]:
    """Show 16-bit grey, which comes without a window: percentiles 1-99 become 0-255, as for DICOM without one."""
    import numpy as np
    from PIL import Image

    from pedcxr_client.films import grayscale

    signed = array.dtype.kind == "i"
    words = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).view(np.uint16)
    how = grayscale.Rendering(stored=grayscale.Stored(16, 16, 15, signed), inverted=white_is_zero)
    grey, notes = grayscale.render(words, how)
    return Image.fromarray(grey), [f"16 bits a pixel; {notes[0]}", *notes[1:]]


def to_grey(image: Image, name: str) -> tuple[Image, list[str]]:
    """Eight-bit grey and nothing else, and notes on what was left out.

    Raises:
        InputError: if it is partly transparent.
    """
    from PIL import Image

    notes, pixels = [], image
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        if pixels.getchannel("A").getextrema() != (255, 255):
            raise InputError(f"{name}: is partly transparent; export it without an alpha channel")
        notes.append("opaque alpha left out")
    if pixels.mode != "L":
        notes.append(f"{image.mode} turned to grey")
        pixels = pixels.convert("RGB").convert("L")
    clean = Image.new("L", pixels.size)  # a copy would keep info, and PNG would write its profile and text
    clean.paste(pixels)
    return clean, notes


def is_bare_png(data: bytes) -> bool:
    """Whether a PNG is 8-bit grey or RGB and holds nothing but pixels, to its last byte."""
    if data[:8] != _PNG_SIGNATURE or data[24:25] != b"\x08" or data[25:26] not in (b"\x00", b"\x02"):
        return False
    at = 8
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4])
        if kind not in _PNG_CLEAN:
            return False
        if kind == b"IEND":
            return at == len(data)
    return False


def is_bare_jpeg(data: bytes) -> bool:
    """Whether a JPEG holds nothing but pixels and what decoding them needs, to its last byte."""
    if data[:2] != b"\xff\xd8":
        return False
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, body = data[at + 1], data[at + 4 : at + 4 + 14]
        if marker == _EOI:
            break
        length = int.from_bytes(data[at + 2 : at + 4])
        if not (marker in _JPEG_CLEAN or marker == _SOS or _is_bare_header(marker, length, body)):
            return False
        at += 2 + length
        if marker == _SOS:
            following = _NEXT_MARKER.search(data, at)
            at = following.start() if following else len(data)
    return data[at:] == b"\xff\xd9"


def _is_bare_header(marker: int, length: int, body: bytes) -> bool:
    """JFIF without its thumbnail, or Adobe's, which says how the colours are coded."""
    if marker == _JFIF:
        return length == 16 and body.startswith(b"JFIF\x00")
    return marker == _ADOBE and length == 14 and body.startswith(b"Adobe")


def _array(image: Image, name: str) -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise InputError(f"{name}: has 16 bits a pixel, for which numpy is needed: {INSTALL}") from error
    return np.asarray(image)


def _is_white_zero(image: Image) -> bool:
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0  # Pillow inverts 8-bit TIFF for it, and 16-bit not


def _open(data: bytes, name: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: is not an image that can be read; give {', '.join(_FORMATS)} or DICOM") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers let ValueError, SyntaxError, struct.error and others through
        raise _damaged(name) from error


def _decode(image: Image, name: str, *, deep: bool) -> tuple[Image, list[str]]:
    """Decode the pixels, after what the header alone decides, and turn them upright."""
    from PIL import ImageOps

    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name)
    is_deeper = image.mode.startswith(("I", "F")) or any(
        _DEEP_TILE.search(str(tile)) for tile in getattr(image, "tile", ())
    )
    if is_deeper and not deep:
        raise InputError(
            f"{name}: has more than 8 bits a pixel and is not 16-bit grey, which this version does not send, since "
            "cutting them off spoils a film; export it as 8-bit PNG with its window applied"
        )
    try:
        frames = getattr(image, "n_frames", 1)
        turned = image.getexif().get(_ORIENTATION) in range(2, 9)  # read first: a TIFF turns itself on loading
        image.load()
        upright = ImageOps.exif_transpose(image) if turned else image
    except MemoryError:
        raise
    except Exception as error:  # as in _open
        raise _damaged(name) from error
    if frames > 1:
        raise InputError(f"{name}: has several frames; give one film, one frame")
    return upright, ["turned upright as EXIF says"] if turned else []


def _too_large(name: str) -> InputError:
    return InputError(f"{name}: has more than {MAX_PIXELS // 10**6} million pixels; export it smaller")


def _damaged(name: str) -> InputError:
    return InputError(f"{name}: is damaged or cut short; export or copy the film again")
