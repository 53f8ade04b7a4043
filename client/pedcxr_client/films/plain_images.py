"""Convert PNG, JPEG and other image files, Pillow images and arrays to 8-bit pixels without metadata."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from pedcxr_client.errors import InputError
from pedcxr_client.films.decoders import INSTALL
from pedcxr_client.films.files import MAX_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

# Excluded: EPS, which runs a program, and formats whose decoder truncates 16 bits to 8 silently.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
# A JPEG followed by previews or gain maps (CIPA DC-007), which Pillow reads as this format.
_PHONE_JPEG = "MPO"
_ORIENTATION = 0x0112  # EXIF tag
_PHOTOMETRIC = 262  # TIFF tag; 0 means that the least value is white
_DEEP_TILE = re.compile(r";1[0-9]")
_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N")

# Chunks that a decoder needs or that hold numbers only. Excluded: text, EXIF, dates (tIME), profiles, which have a
# name (iCCP), transparency (tRNS) and animation (acTL).
_PNG_CLEAN = frozenset({b"IHDR", b"IDAT", b"IEND", b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"sBIT", b"bKGD"})
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Quantisation and Huffman tables, frames that Pillow decodes (baseline, extended, progressive), restart interval.
_JPEG_CLEAN = frozenset({0xDB, 0xC4, 0xC0, 0xC1, 0xC2, 0xDD})
_EOI, _SOS, _JFIF, _ADOBE = 0xD9, 0xDA, 0xE0, 0xEE
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def from_bytes(data: bytes, name: str) -> tuple[Image, bytes | None, list[str]]:
    """Decode an image file.

    Return the pixels, upright; the bytes of the file if they can be sent unchanged, else None; notes on each step.
    """
    opened = _open(data, name)
    deep = opened.mode in _DEEP_GREY
    white_is_zero = deep and _is_white_zero(opened)
    pixels, rotation = _decode_upright(opened, name, deep=deep)
    if deep:
        grey, stretch = from_16_bits(_array(pixels, name), name, white_is_zero=white_is_zero)
        return grey, None, ["re-encoded as 8-bit grey PNG without metadata", *rotation, *stretch]
    if pixels.mode in ("L", "RGB") and (is_bare_png(data) or is_bare_jpeg(data)):
        return pixels, data, ["original bytes"]
    grey, more = to_grey(pixels, name)
    return grey, None, ["re-encoded as 8-bit grey PNG without metadata", *rotation, *more]


def from_pillow(image: Image, name: str) -> tuple[Image, None, list[str]]:
    """Convert a Pillow image. Return the same as `from_bytes`."""
    deep = image.mode in _DEEP_GREY
    pixels, rotation = _decode_upright(image, name, deep=deep)
    grey, more = from_16_bits(_array(pixels, name), name) if deep else to_grey(pixels, name)
    return grey, None, ["encoded as 8-bit grey PNG from a Pillow image", *rotation, *more]


def from_array(array: Any, name: str) -> tuple[Image, None, list[str]]:
    """Convert a numpy array: uint8 of shape (rows, columns) or (rows, columns, 3), or uint16 or int16 of shape
    (rows, columns). Return the same as `from_bytes`.

    The least value is black. The array of a MONOCHROME1 film is therefore a negative, which cannot be detected.
    """
    from PIL import Image

    kind, shape = str(array.dtype.name), tuple(array.shape)
    if not (len(shape) in (2, 3) and shape[2:] in ((), (3,)) and min(shape) > 0):
        raise InputError(f"{name}: an array of shape {shape} is not a film; give shape (rows, columns)")
    if shape[0] * shape[1] > MAX_PIXELS:
        raise _too_large(name)
    encoded = f"encoded as 8-bit grey PNG from an array of {kind}"
    if kind == "uint8":
        grey, more = to_grey(Image.fromarray(array), name)
        return grey, None, [encoded, *more]
    if kind in ("uint16", "int16") and len(shape) == 2:
        grey, more = from_16_bits(array, name)
        return grey, None, [encoded, *more]
    raise InputError(f"{name}: an array of {kind} has no defined grey scale; give uint8, or 16-bit grey")


def from_16_bits(array: Any, name: str, *, white_is_zero: bool = False) -> tuple[Image, list[str]]:
    """Stretch percentiles 1-99 of 16-bit grey inside constant borders to 0-255, as for DICOM without a window."""
    import numpy as np
    from PIL import Image

    from pedcxr_client.films import grayscale

    signed = array.dtype.kind == "i"
    cells = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).view(np.uint16)
    pixel_format = grayscale.PixelFormat(bits_allocated=16, bits_stored=16, high_bit=15, signed=signed)
    parameters = grayscale.DisplayParameters(pixel_format=pixel_format, inverted=white_is_zero)
    grey, notes = grayscale.render(cells, parameters)
    return Image.fromarray(grey), [f"16 bits per pixel; {notes[0]}", *notes[1:]]


def to_grey(image: Image, name: str) -> tuple[Image, list[str]]:
    """Convert an image to 8-bit grey without metadata, with notes on what was removed."""
    from PIL import Image

    notes, pixels = [], image
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        if pixels.getchannel("A").getextrema() != (255, 255):
            raise InputError(f"{name}: is partly transparent; export it without an alpha channel")
        notes.append("opaque alpha channel removed")
    if pixels.mode != "L":
        notes.append(f"{image.mode} converted to grey")
        pixels = pixels.convert("RGB").convert("L")
    clean = Image.new("L", pixels.size)  # a copy would keep `info`, and PNG would write its profile and text
    clean.paste(pixels)
    return clean, notes


def is_bare_png(data: bytes) -> bool:
    """Return whether a PNG is 8-bit grey or RGB and holds nothing but pixels, to its last byte."""
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
    """Return whether a JPEG holds nothing but pixels and what their decoding needs, to its last byte."""
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
    # JFIF without a thumbnail, or Adobe, which states the colour transform.
    if marker == _JFIF:
        return length == 16 and body.startswith(b"JFIF\x00")
    return marker == _ADOBE and length == 14 and body.startswith(b"Adobe")


def _array(image: Image, name: str) -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise InputError(f"{name}: has 16 bits per pixel, which needs numpy: {INSTALL}") from error
    return np.asarray(image)


def _is_white_zero(image: Image) -> bool:
    # Pillow inverts an 8-bit TIFF with this tag, but not a 16-bit TIFF.
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0


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
    except Exception as error:  # Pillow's readers raise ValueError, SyntaxError, struct.error and others
        raise _damaged(name) from error


def _decode_upright(image: Image, name: str, *, deep: bool) -> tuple[Image, list[str]]:
    from PIL import ImageOps

    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name)
    more_than_8_bits = image.mode.startswith(("I", "F")) or any(
        _DEEP_TILE.search(str(tile)) for tile in getattr(image, "tile", ())
    )
    if more_than_8_bits and not deep:
        raise InputError(
            f"{name}: has more than 8 bits per sample and is not 16-bit grey, which is not supported, because "
            "truncation to 8 bits would damage it; export it as 8-bit PNG with its window applied"
        )
    notes = []
    try:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format == _PHONE_JPEG and not image.tell():
            notes, frames = [f"first of {frames} pictures of a phone's JPEG (MPO)"], 1
        rotated = image.getexif().get(_ORIENTATION) in range(2, 9)  # before load(), which rotates a TIFF itself
        image.load()
        upright = ImageOps.exif_transpose(image) if rotated else image
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise ValueError, SyntaxError, struct.error and others
        raise _damaged(name) from error
    if frames > 1:
        raise InputError(f"{name}: has several frames; give a film with one frame")
    return upright, [*notes, "rotated upright by EXIF orientation"] if rotated else notes


def _too_large(name: str) -> InputError:
    return InputError(f"{name}: has more than {MAX_PIXELS // 10**6} million pixels; export it smaller")


def _damaged(name: str) -> InputError:
    return InputError(f"{name}: is damaged or cut short; export or copy the film again")
