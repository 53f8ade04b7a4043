"""Read and render DICOM films as a viewer shows them (PS3.3 C.11). The header never leaves the client.

Needs the extra ``pedcxr[dicom]``. The header is checked before anything is decoded. The steps follow the order of
the standard: padding, modality LUT or rescale, VOI LUT or window, inversion, padding and display shutters to black,
pixel aspect ratio.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pedcxr_client.errors import InputError
from pedcxr_client.films import decoders, header
from pedcxr_client.films.decoders import INSTALL
from pedcxr_client.films.files import MAX_PIXELS
from pedcxr_client.films.header import Facts, attempt, silence_pydicom

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pedcxr_client.films.geometry import Profile
    from pedcxr_client.films.grayscale import PixelFormat

_DICOMDIR = "1.2.840.10008.1.3.10"
_FIRST_ELEMENTS = (b"\x08\0\0\0", b"\x08\0\x05\0", b"\x08\0\x08\0", b"\x08\0\x16\0", b"\x02\0\0\0")


@dataclass(frozen=True, slots=True, repr=False)
class DicomFile:
    """A DICOM file whose header was read and whose pixels are not decoded."""

    facts: Facts
    _name: str
    _dataset: Any

    @property
    def compressed(self) -> bool:
        """Whether the pixels need a decoder written in C."""
        return decoders.is_compressed(self._dataset)

    def __repr__(self) -> str:
        return "<DicomFile>"


def is_dicom(data: bytes) -> bool:
    """Return whether the bytes are a DICOM file (PS3.10 section 7.1), or a bare data set as old devices write it."""
    return data[128:132] == b"DICM" or data[:4] in _FIRST_ELEMENTS


def read(data: bytes, name: str = "the film") -> DicomFile:
    """Read the header. A DICOMDIR is refused."""
    try:
        import numpy  # noqa: F401
        from pydicom import dcmread
    except ImportError as error:
        raise InputError(f"{name}: is DICOM, which needs pydicom: {INSTALL}") from error
    decoders.check_inflated_size(data, name)
    damaged = f"{name}: is DICOM, but damaged or cut short; export or copy the film again"
    with silence_pydicom():
        dataset = attempt(lambda: dcmread(io.BytesIO(data), force=True), damaged)
        facts = attempt(lambda: header.read(dataset), damaged)
        if attempt(lambda: dataset.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR, damaged):
            raise InputError(f"{name}: is a DICOMDIR, an index of films; give one of the films that it lists")
        attempt(lambda: _set_missing_syntax(dataset), damaged)
    return DicomFile(facts, name, dataset)


def render(film: DicomFile, profile: Profile) -> tuple[NDArray[np.uint8], float, list[str]]:
    """Decode a film.

    Return its 8-bit grey of shape (rows, columns), the height of a pixel divided by its width, and notes on each step.
    """
    from pedcxr_client.films import grayscale

    dataset, name = film._dataset, film._name
    try:
        # silence_pydicom() filters the loggers that exist, so the decoders' loggers are created first.
        import pydicom.pixels  # noqa: F401

        with silence_pydicom():
            pixel_format = _check_pixel_elements(dataset)
            aspect = grayscale.pixel_aspect(dataset)
            cells = decoders.decode(dataset, pixel_format)
            if profile == "ped-train":
                grey, notes = grayscale.render_as_trained(cells, pixel_format)
            else:
                parameters, unused = grayscale.display_parameters(dataset, pixel_format)
                hidden, covered = _shutter(dataset, cells.shape, aspect)
                grey, notes = grayscale.render(cells, parameters, hidden)
                notes = [*unused, *covered, *notes]
            photometric = header.text(dataset, "PhotometricInterpretation")
            notes.insert(0, f"DICOM {photometric} of {pixel_format.bits_stored} bits rendered as 8-bit grey")
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except grayscale.OnlyPadding:
        raise InputError(f"{name}: every pixel is padding; send a film that has an image") from None
    return grey, aspect, notes


def _shutter(dataset: Any, size: tuple[int, ...], aspect: float) -> tuple[NDArray[np.bool_] | None, list[str]]:
    if "ShutterShape" not in dataset:
        return None, []
    from pedcxr_client.films import shutter

    return shutter.read(dataset, size[0], size[1], aspect)


def _set_missing_syntax(dataset: Any) -> None:
    # A bare data set has no file meta information. pydicom detects its transfer syntax.
    if "TransferSyntaxUID" not in dataset.file_meta:
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _check_pixel_elements(dataset: Any) -> PixelFormat:
    from pedcxr_client.films import grayscale

    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise InputError("the pixels are floats, which CR and DX images never are; export the film as CR or DX")
    if "PixelData" not in dataset:
        raise InputError("holds no pixels; give the image, not a report or an index")
    if (photometric := header.text(dataset, "PhotometricInterpretation")) not in ("MONOCHROME1", "MONOCHROME2"):
        label = photometric if photometric in ("RGB", "PALETTE COLOR") or photometric[:3] == "YBR" else "not grey"
        raise InputError(f"PhotometricInterpretation (0028,0004) is {label}; a film is MONOCHROME1 or MONOCHROME2")
    rows, columns = grayscale.integer(dataset, "Rows"), grayscale.integer(dataset, "Columns")
    frames = grayscale.integer(dataset, "NumberOfFrames", 1)
    if rows < 1 or columns < 1 or grayscale.integer(dataset, "SamplesPerPixel", 1) != 1:
        raise InputError("Rows, Columns or SamplesPerPixel are not those of a film; export the film again")
    if rows * columns * max(frames, 1) > MAX_PIXELS:
        raise InputError(f"has more than {MAX_PIXELS // 10**6} million pixels; export it smaller")
    if frames > 1:
        raise InputError(f"NumberOfFrames (0028,0008) is {frames}; give a film with one frame")
    return grayscale.pixel_format(dataset)
