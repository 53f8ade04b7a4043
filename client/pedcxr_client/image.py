"""Films: from a file, bytes or a Pillow image to what is sent. Only pixels leave the client."""

from __future__ import annotations

import io
import os
import re
import stat
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ._containers import is_bare_jpeg, is_bare_png
from ._errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Film: TypeAlias = "str | os.PathLike[str] | bytes | Image | EncodedImage"
"""A path, the bytes of an image file, a Pillow image, or what :func:`encode` made of one before."""

MAX_PIXELS = 50_000_000
"""Most pixels an image may have: the largest detectors make about 20 million."""

MAX_BYTES = 100 * 1024 * 1024
"""Largest file that is read, in bytes."""

# No format that can run a program (EPS), and none whose decoder cuts 16 bits to 8 without a sign.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
_ORIENTATION = 0x0112  # of EXIF
_DEEP_TILE = re.compile(r";1[0-9]")


@dataclass(frozen=True, slots=True, repr=False)
class Radiograph:
    """A film ready to be encoded.

    Attributes:
        pixels: 8-bit grey, or the RGB of an original that is sent as it is.
        original: the file's own bytes where they can be sent as they are, else None.
        mime: of the original, else ``"image/png"``.
        how: short notes on what was done to the film.
    """

    pixels: Image
    original: bytes | None
    mime: str
    how: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Radiograph {self.pixels.width}x{self.pixels.height}>"


@dataclass(frozen=True, slots=True, repr=False)
class EncodedImage:
    """An image as it goes on the wire.

    Attributes:
        mime: ``"image/png"`` or ``"image/jpeg"``.
        base64: the image file in base64.
        sha256: digest of the image file, not of the base64.
        width, height: in pixels.
        how: short notes on how it was made.
    """

    mime: str
    base64: bytes
    sha256: str
    width: int
    height: int
    how: tuple[str, ...]

    @property
    def data_url(self) -> str:
        """The ``data:`` URL that an OpenAI message carries."""
        return f"data:{self.mime};base64,{self.base64.decode()}"

    def __repr__(self) -> str:
        return f"<EncodedImage {self.mime} {self.width}x{self.height}>"


def load(film: str | os.PathLike[str] | bytes | Image) -> Radiograph:
    """Read a film and make it safe to send.

    An 8-bit grey or RGB PNG or JPEG that holds nothing but pixels keeps its bytes; anything else Pillow reads becomes
    8-bit grey, upright as its EXIF says, and ``how`` says so.

    Raises:
        InputError: if it is missing, empty, damaged or no image; 16-bit, transparent or of several frames;
            DICOM; or larger than :data:`MAX_PIXELS` or :data:`MAX_BYTES`.
    """
    if isinstance(film, bytes):
        return _from_bytes(film, "the film")
    if isinstance(film, (str, os.PathLike)):
        return _from_bytes(_read(film), os.fspath(film))
    return _from_pillow(film)


def encode(radiograph: Radiograph) -> EncodedImage:
    """Encode a film for the wire: its original bytes, or a PNG without metadata."""
    data = radiograph.original
    if data is None:
        buffer = io.BytesIO()
        # Level 1: six times as fast as Pillow's default for a fifth more bytes.
        radiograph.pixels.save(buffer, "PNG", compress_level=1)
        data = buffer.getvalue()
    width, height = radiograph.pixels.size
    return EncodedImage(radiograph.mime, b64encode(data), sha256(data).hexdigest(), width, height, radiograph.how)


def prepare(film: Film) -> EncodedImage:
    """:func:`load` and :func:`encode`; what is encoded already passes through.

    Raises:
        InputError: as :func:`load` does.
    """
    return film if isinstance(film, EncodedImage) else encode(load(film))


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise InputError(f"{os.fspath(path)}: is a folder; give one image file")
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{os.fspath(path)}: is not a regular file; give one image file")
        if found.st_size > MAX_BYTES:
            raise InputError(f"{os.fspath(path)}: larger than {MAX_BYTES >> 20} MiB; save it as PNG or JPEG")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "cannot be opened"
        raise InputError(f"{os.fspath(path)}: {reason}; check the path and its permissions") from error


def _from_bytes(data: bytes, name: str) -> Radiograph:
    if not data:
        raise InputError(f"{name}: is empty; export the film again")
    if data[128:132] == b"DICM":
        raise InputError(f"{name}: is DICOM, which this version does not read; export it as 8-bit PNG from a viewer")
    pixels, notes = _decode(_open(data, name), name)
    bare = pixels.mode in ("L", "RGB") and (is_bare_png(data) or is_bare_jpeg(data))
    if bare:
        mime = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
        return Radiograph(pixels, data, mime, ("original bytes",))
    grey, more = _grey(pixels, name)
    return Radiograph(grey, None, "image/png", ("re-encoded as 8-bit grey PNG without metadata", *notes, *more))


def _from_pillow(image: Image) -> Radiograph:
    from PIL.Image import Image as PillowImage

    if not isinstance(image, PillowImage):
        raise InputError(f"the film: {type(image).__name__} is not a path, bytes or a Pillow image")
    pixels, notes = _decode(image, "the film")
    grey, more = _grey(pixels, "the film")
    return Radiograph(grey, None, "image/png", ("encoded as 8-bit grey PNG from a Pillow image", *notes, *more))


def _open(data: bytes, name: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: is not an image that can be read; give {', '.join(_FORMATS)}") from error
    except Exception as error:  # Pillow's readers let ValueError, SyntaxError, struct.error and others through
        raise _damaged(name) from error


def _decode(image: Image, name: str) -> tuple[Image, list[str]]:
    """Decode the pixels, after what the header alone decides, and turn them upright."""
    from PIL import ImageOps

    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name)
    if image.mode.startswith(("I", "F")) or any(_DEEP_TILE.search(str(tile)) for tile in getattr(image, "tile", ())):
        raise InputError(
            f"{name}: has more than 8 bits a pixel, which this version does not send, since cutting them off spoils a "
            "film; export it as 8-bit PNG with its window applied"
        )
    try:
        frames = getattr(image, "n_frames", 1)
        turned = image.getexif().get(_ORIENTATION) in range(2, 9)  # read first: a TIFF turns itself on loading
        image.load()
        upright = ImageOps.exif_transpose(image) if turned else image
    except Exception as error:  # as in _open
        raise _damaged(name) from error
    if frames > 1:
        raise InputError(f"{name}: has several frames; give one film, one frame")
    return upright, ["turned upright as EXIF says"] if turned else []


def _grey(image: Image, name: str) -> tuple[Image, list[str]]:
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


def _too_large(name: str) -> InputError:
    return InputError(f"{name}: has more than {MAX_PIXELS // 10**6} million pixels; export it smaller")


def _damaged(name: str) -> InputError:
    return InputError(f"{name}: is damaged or cut short; export or copy the film again")
