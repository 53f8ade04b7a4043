"""Read, render and encode a film: a path, bytes, an open file, a Dataset, a Pillow image or an array."""

from __future__ import annotations

import os
import struct
import zlib
from base64 import b64encode
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pedcxr_client.errors import InputError
from pedcxr_client.films import dicom, files, geometry, plain_images
from pedcxr_client.films.files import report_memory_errors
from pedcxr_client.films.geometry import DISPLAY, MODEL_SIZE, PixelStats, Preparation
from pedcxr_client.films.header.facts import PLAIN, Facts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from pydicom import Dataset

_FILTER_UP = 2  # PNG filter type 2: each byte minus the byte above


class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes."""


@dataclass(frozen=True, slots=True, repr=False)
class Film:
    """A rendered film, ready to be encoded.

    Attributes:
        pixels: 8-bit grey, or the RGB of an original that is sent unchanged.
        original: the bytes of the file if they can be sent unchanged, else None.
        mime: the type of the original, else ``"image/png"``.
        how: short notes on each step that changed the pixels.
        facts: the facts of the header; `pedcxr_client.films.header.facts.PLAIN` if there is no header.
        stats: measurements of the pixels.
        preparation: the tag of the `Preparation` that was applied, such as ``"display+square"``.
    """

    pixels: Image
    original: bytes | None
    mime: str
    how: tuple[str, ...]
    facts: Facts
    stats: PixelStats
    preparation: str = DISPLAY.tag

    def __repr__(self) -> str:
        return f"<Film {self.pixels.width}x{self.pixels.height}>"


@dataclass(frozen=True, slots=True, repr=False)
class EncodedImage:
    """An image as it is sent.

    Attributes:
        mime: ``"image/png"`` or ``"image/jpeg"``.
        base64: the image file in base64.
        sha256: digest of the image file (not of the base64), in hexadecimal.
        width, height: in pixels.
        how: short notes on each step that changed the pixels.
        facts, stats, preparation: as in `Film`; none is sent.
    """

    mime: str
    base64: bytes
    sha256: str
    width: int
    height: int
    how: tuple[str, ...]
    facts: Facts = PLAIN
    stats: PixelStats | None = None
    preparation: str = DISPLAY.tag

    @property
    def data_url(self) -> str:
        """The ``data:`` URL for an OpenAI message."""
        return f"data:{self.mime};base64,{self.base64.decode()}"

    def __repr__(self) -> str:
        return f"<EncodedImage {self.mime} {self.width}x{self.height}>"


if TYPE_CHECKING:
    FilmSource: TypeAlias = (
        str
        | os.PathLike[str]
        | bytes
        | bytearray
        | memoryview
        | Readable
        | Dataset
        | Image
        | NDArray[np.uint8]
        | NDArray[np.uint16]
        | NDArray[np.int16]
        | EncodedImage
    )
    """An accepted input: a path, the bytes of a film or an image, a file open for reading bytes, a
    ``pydicom.Dataset``, a Pillow image, an 8-bit or 16-bit array, or the result of `encode`.

    An array and a Pillow image have no header, so that 0 is black. The ``pixel_array`` of a MONOCHROME1 film is a
    negative, which cannot be detected. Give the Dataset instead of its ``pixel_array``.
    """
else:
    FilmSource = Any  # typing.get_type_hints() must not need pydicom, numpy or Pillow


@dataclass(frozen=True, slots=True, repr=False)
class UndecodedFilm:
    """A film whose header was read and whose pixels are not decoded. The checks of the header run on it."""

    facts: Facts
    _source: Any
    _name: str

    def render(self, preparation: Preparation = DISPLAY) -> Film:
        """Decode the pixels and prepare them for sending."""
        with report_memory_errors(self._name):
            if isinstance(self._source, dicom.DicomFile):
                film = _render_dicom(self._source, preparation)
            else:
                film = _render_plain(self._source, self._name, preparation)
        return replace(film, preparation=preparation.sized(MODEL_SIZE).tag)

    @property
    def compressed(self) -> bool:
        """Whether the film is DICOM whose pixels need a decoder written in C."""
        return isinstance(self._source, dicom.DicomFile) and self._source.compressed

    def __repr__(self) -> str:
        return f"<UndecodedFilm {self.facts.kind}>"


def read(source: FilmSource) -> UndecodedFilm:
    """Read a film's header without decoding the pixels. A ``pydicom.Dataset`` is copied and never changed."""
    name = "the film"
    if isinstance(source, (str, os.PathLike)):
        data: Any = files.read(source, name)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = files.copy_bytes(source)
    else:
        data = files.read_open_file(source) if callable(getattr(source, "read", None)) else source
    if isinstance(data, bytes) and not data:
        raise InputError(f"{name}: is empty; export the film again")
    if dicom.is_dataset(data) or (isinstance(data, bytes) and dicom.is_dicom(data)):
        with report_memory_errors(name):
            file = dicom.read(data, name)
        return UndecodedFilm(file.facts, file, name)
    return UndecodedFilm(PLAIN, data, name)


def load(source: FilmSource, preparation: Preparation = DISPLAY) -> Film:
    """Read and render a film. `pedcxr_client.checks.rules` decides whether the model is intended for it.

    An 8-bit grey or RGB PNG or JPEG without metadata keeps its bytes. Every other film becomes 8-bit grey, rotated
    upright by its EXIF orientation. 16-bit grey without a header is stretched from percentiles 1-99 to 0-255. DICOM is
    rendered by its header (PS3.3 C.11). ``how`` notes each step.

    Raises:
        InputError: if the film is missing, empty, damaged, not an image, of float pixels, partly transparent, of
            several frames, or larger than `files.MAX_PIXELS` or `files.MAX_BYTES`.
    """
    return read(source).render(preparation)


def encode(film: Film) -> EncodedImage:
    """Encode a film for sending: its original bytes, or a PNG without metadata."""
    data = film.original
    if data is None:
        data = encode_png(film.pixels)
    width, height = film.pixels.size
    digest = sha256(data).hexdigest()
    return EncodedImage(
        film.mime, b64encode(data), digest, width, height, film.how, film.facts, film.stats, film.preparation
    )


def prepare(source: FilmSource, preparation: Preparation = DISPLAY) -> EncodedImage:
    """Load and encode a film. An `EncodedImage` is returned unchanged."""
    return source if isinstance(source, EncodedImage) else encode(load(source, preparation))


def encode_png(grey: Image) -> bytes:
    """Encode an image of mode ``L`` as PNG without metadata.

    Pillow tries five filters on each row, which takes most of its 130 ms for a large film. Here every row has the same
    filter, which C code applies, and deflate searches for runs only: 35 ms, and 1/6 fewer bytes than Pillow's level 1.
    """
    width, height = grey.size
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    packed = packer.compress(_filtered_rows(grey)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", packed) + _png_chunk(b"IEND", b"")


def _render_dicom(file: dicom.DicomFile, preparation: Preparation) -> Film:
    from PIL import Image

    grey, aspect, notes = dicom.render(file, preparation.profile)
    pixels, stats, more = geometry.apply_preparation(Image.fromarray(grey), preparation, aspect, notes[1:])
    return Film(pixels, None, "image/png", (*notes, *more), file.facts, stats)


def _render_plain(source: Any, name: str, preparation: Preparation) -> Film:
    pixels, original, notes = _plain_pixels(source, name)
    steps = [note for note in notes if "percentiles" in note]
    if preparation == DISPLAY:
        mime = "image/jpeg" if original is not None and not original.startswith(b"\x89PNG") else "image/png"
        return Film(pixels, original, mime, tuple(notes), PLAIN, geometry.measure(pixels, steps))
    if original is not None:
        pixels, more = plain_images.to_grey(pixels, name)
        notes = ["re-encoded as 8-bit grey PNG without metadata", *more]
    if preparation.profile == "ped-train":
        pixels, more = geometry.stretch_as_trained(pixels)
        notes, steps = [*notes, *more], [*steps, *more]
    pixels, stats, more = geometry.apply_preparation(pixels, preparation, steps=steps)
    return Film(pixels, None, "image/png", (*notes, *more), PLAIN, stats)


def _plain_pixels(source: Any, name: str) -> tuple[Image, bytes | None, list[str]]:
    from PIL.Image import Image as PillowImage

    if isinstance(source, bytes):
        return plain_images.from_bytes(source, name)
    if isinstance(source, PillowImage):
        return plain_images.from_pillow(source, name)
    if hasattr(source, "dtype") and hasattr(source, "__array_interface__"):
        return plain_images.from_array(source, name)
    kinds = "a path, bytes, a file, a Dataset, a Pillow image or an array"
    raise InputError(f"{name}: {type(source).__name__} is not {kinds}")


def _filtered_rows(grey: Image) -> bytes:
    from PIL import Image, ImageChops

    width, height = grey.size
    above = Image.new("L", grey.size)
    above.paste(grey, (0, 1))
    rows = Image.new("L", (width + 1, height), _FILTER_UP)  # column 0 holds the filter type of the row
    rows.paste(ImageChops.subtract_modulo(grey, above), (1, 0))
    return rows.tobytes()


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
