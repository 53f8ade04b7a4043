"""Films: from a file, bytes, a Pillow image or an array to what is sent. Only pixels leave the client."""

from __future__ import annotations

import os
import struct
import zlib
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pedcxr_client.errors import InputError
from pedcxr_client.films import dicom, files, geometry, plain_images
from pedcxr_client.films.files import MAX_BYTES, MAX_PIXELS, enough_memory
from pedcxr_client.films.geometry import DISPLAY, Preparation
from pedcxr_client.films.header import PLAIN, Facts
from pedcxr_client.films.pixel_stats import PixelStats, measure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["MAX_BYTES", "MAX_PIXELS", "EncodedImage", "Film", "FilmSource", "encode", "load", "prepare", "read"]

_FILTER_UP = 2  # of PNG's five filters: each row minus the one above


class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes."""


FilmSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | Readable | Image | NDArray[np.uint8] | NDArray[np.uint16] | EncodedImage"
)
"""A path, the bytes of a film or an image, a file open for reading bytes, a Pillow image, an 8-bit or 16-bit array, or
what :func:`encode` made of one before."""


@dataclass(frozen=True, slots=True, repr=False)
class Film:
    """A film ready to be encoded.

    Attributes:
        pixels: 8-bit grey, or the RGB of an original that is sent as it is.
        original: the file's own bytes where they can be sent as they are, else None.
        mime: of the original, else ``"image/png"``.
        how: short notes on what was done to the film.
        facts: what its header says; :data:`pedcxr_client.films.header.PLAIN` where it has none.
        stats: what was measured on its pixels.
    """

    pixels: Image
    original: bytes | None
    mime: str
    how: tuple[str, ...]
    facts: Facts
    stats: PixelStats

    def __repr__(self) -> str:
        return f"<Film {self.pixels.width}x{self.pixels.height}>"


@dataclass(frozen=True, slots=True, repr=False)
class EncodedImage:
    """An image as it goes on the wire.

    Attributes:
        mime: ``"image/png"`` or ``"image/jpeg"``.
        base64: the image file in base64.
        sha256: digest of the image file, not of the base64.
        width, height: in pixels.
        how: short notes on how it was made.
        facts, stats: as of the :class:`Film`; they stay on this machine.
    """

    mime: str
    base64: bytes
    sha256: str
    width: int
    height: int
    how: tuple[str, ...]
    facts: Facts = PLAIN
    stats: PixelStats | None = None

    @property
    def data_url(self) -> str:
        """The ``data:`` URL that an OpenAI message carries."""
        return f"data:{self.mime};base64,{self.base64.decode()}"

    def __repr__(self) -> str:
        return f"<EncodedImage {self.mime} {self.width}x{self.height}>"


@dataclass(frozen=True, slots=True, repr=False)
class UndecodedFilm:
    """A film whose header was read and whose pixels were not decoded: what the gate looks at first.

    Attributes:
        facts: what its header says.
    """

    facts: Facts
    _film: Any
    _name: str

    def develop(self, preparation: Preparation = DISPLAY) -> Film:
        """Decode the pixels and make them ready to be sent.

        Raises:
            InputError: as :func:`load` does.
        """
        with enough_memory(self._name):
            if isinstance(self._film, dicom.DicomFile):
                return _from_dicom(self._film, preparation)
            return _from_plain(self._film, self._name, preparation)

    @property
    def compressed(self) -> bool:
        """Whether it is DICOM whose pixels are compressed, which other people's C code decodes."""
        return isinstance(self._film, dicom.DicomFile) and self._film.compressed

    def __repr__(self) -> str:
        return f"<UndecodedFilm {self.facts.kind}>"


def read(film: str | os.PathLike[str] | bytes | Readable | Image | NDArray[Any]) -> UndecodedFilm:
    """Read a film's header, and decode nothing yet.

    Raises:
        InputError: if it is missing, empty or larger than :data:`MAX_BYTES`, or DICOM that cannot be read.
    """
    name = "the film"
    if isinstance(film, (str, os.PathLike)):
        name = files.shown(film)
        film = files.read(film, name)
    elif not isinstance(film, bytes) and callable(getattr(film, "read", None)):
        film = files.take(film)
    if isinstance(film, bytes):
        if not film:
            raise InputError(f"{name}: is empty; export the film again")
        if dicom.is_dicom(film):
            with enough_memory(name):
                opened = dicom.read(film, name)
            return UndecodedFilm(opened.facts, opened, name)
    return UndecodedFilm(PLAIN, film, name)


def load(
    film: str | os.PathLike[str] | bytes | Readable | Image | NDArray[Any], preparation: Preparation = DISPLAY
) -> Film:
    """Read a film and make it safe to send. Whether it is one that the model was made for, :mod:`.gate` says.

    An 8-bit grey or RGB PNG or JPEG that holds nothing but pixels keeps its bytes; anything else becomes 8-bit grey,
    upright as its EXIF says, and ``how`` says so. 16-bit grey without a header is shown by its percentiles 1-99, DICOM
    as its header says (PS3.3 C.11).

    Raises:
        InputError: if it is missing, empty, damaged or no image; float, transparent or of several frames; or larger
            than :data:`MAX_PIXELS` or :data:`MAX_BYTES`.
    """
    return read(film).develop(preparation)


def encode(radiograph: Film) -> EncodedImage:
    """Encode a film for the wire: its original bytes, or a PNG without metadata."""
    data = radiograph.original
    if data is None:
        data = encode_png(radiograph.pixels)
    width, height = radiograph.pixels.size
    digest = sha256(data).hexdigest()
    return EncodedImage(
        radiograph.mime, b64encode(data), digest, width, height, radiograph.how, radiograph.facts, radiograph.stats
    )


def prepare(film: FilmSource, preparation: Preparation = DISPLAY) -> EncodedImage:
    """:func:`load` and :func:`encode`; what is encoded already passes through.

    Raises:
        InputError: as :func:`load` does.
    """
    return film if isinstance(film, EncodedImage) else encode(load(film, preparation))


def encode_png(grey: Image) -> bytes:
    """Encode an image of mode ``L``, without metadata.

    Pillow tries five filters on each row, which costs most of its 130 ms for a large film. Here every row has the
    same filter, made in C, and deflate looks for runs only: 35 ms, and a sixth fewer bytes than Pillow's level 1.
    """
    width, height = grey.size
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    packed = packer.compress(_filtered_rows(grey)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", packed) + _png_chunk(b"IEND", b"")


def _from_dicom(film: dicom.DicomFile, preparation: Preparation) -> Film:
    from PIL import Image

    grey, aspect, notes = dicom.develop(film, preparation.profile)
    pixels, seen, more = geometry.finish(Image.fromarray(grey), preparation, aspect)
    return Film(pixels, None, "image/png", (*notes, *more), film.facts, seen)


def _from_plain(film: Any, name: str, preparation: Preparation) -> Film:
    pixels, original, notes = _plain_pixels(film, name)
    if preparation == DISPLAY:
        mime = "image/jpeg" if original is not None and not original.startswith(b"\x89PNG") else "image/png"
        return Film(pixels, original, mime, tuple(notes), PLAIN, measure(pixels))
    if original is not None:
        pixels, more = plain_images.to_grey(pixels, name)
        notes = ["re-encoded as 8-bit grey PNG without metadata", *more]
    if preparation.profile == "ped-train":
        pixels, more = geometry.stretch_as_trained(pixels)
        notes = [*notes, *more]
    pixels, seen, more = geometry.finish(pixels, preparation)
    return Film(pixels, None, "image/png", (*notes, *more), PLAIN, seen)


def _plain_pixels(film: Any, name: str) -> tuple[Image, bytes | None, list[str]]:
    from PIL.Image import Image as PillowImage

    if isinstance(film, bytes):
        return plain_images.from_bytes(film, name)
    if isinstance(film, PillowImage):
        return plain_images.from_pillow(film, name)
    if hasattr(film, "dtype") and hasattr(film, "__array_interface__"):
        return plain_images.from_array(film, name)
    raise InputError(f"{name}: {type(film).__name__} is not a path, bytes, a file, a Pillow image or an array")


def _filtered_rows(grey: Image) -> bytes:
    """The rows, each less the one above and led by the filter's number."""
    from PIL import Image, ImageChops

    width, height = grey.size
    above = Image.new("L", grey.size)
    above.paste(grey, (0, 1))
    rows = Image.new("L", (width + 1, height), _FILTER_UP)
    rows.paste(ImageChops.subtract_modulo(grey, above), (1, 0))
    return rows.tobytes()


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
