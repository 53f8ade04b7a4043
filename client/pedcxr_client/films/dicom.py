"""DICOM films: a header that is read and never sent, and pixels as a viewer shows them (PS3.3 C.11).

Needs the extra ``pedcxr[dicom]``. The order is that of the standard: the header is checked before anything is decoded,
then padding, modality LUT or rescaling, VOI LUT or window, one inversion, padding to black, pixel aspect, size.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pedcxr_client.errors import InputError
from pedcxr_client.films import decoders
from pedcxr_client.films import header as _header
from pedcxr_client.films.decoders import INSTALL as INSTALL
from pedcxr_client.films.files import MAX_PIXELS
from pedcxr_client.films.header import Facts
from pedcxr_client.films.log_silencer import attempt, quiet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pedcxr_client.films.geometry import Profile
    from pedcxr_client.films.grayscale import Stored

_DICOMDIR = "1.2.840.10008.1.3.10"
_FIRST_ELEMENTS = (
    b"\x08\x00\x00\x00",
    b"\x08\x00\x05\x00",
    b"\x08\x00\x08\x00",
    b"\x08\x00\x16\x00",
    b"\x02\x00\x00\x00",
)


@dataclass(frozen=True, slots=True, repr=False)
class DicomFile:
    """A DICOM object whose header was read and whose pixels were not decoded.

    Attributes:
        facts: what its header says that bears on its use.
    """

    facts: Facts
    _name: str
    _header: Any

    @property
    def compressed(self) -> bool:
        """Whether its transfer syntax is none of those that Python alone reads."""
        return decoders.is_compressed(self._header)

    def __repr__(self) -> str:
        return "<DicomFile>"


def is_dicom(data: bytes) -> bool:
    """Whether the bytes are a DICOM file (PS3.10 section 7.1), or the bare data set that old devices wrote."""
    return data[128:132] == b"DICM" or data[:4] in _FIRST_ELEMENTS


def read(data: bytes, name: str = "the film") -> DicomFile:
    """Read the header.

    Raises:
        InputError: if it is no DICOM that can be read, a DICOMDIR, or pydicom is not installed.
    """
    try:
        import numpy  # noqa: F401
        from pydicom import dcmread
    except ImportError as error:
        raise InputError(f"{name}: is DICOM, which needs pydicom: {INSTALL}") from error
    decoders.check_inflated_size(data, name)
    damaged = f"{name}: is DICOM, but damaged or cut short; export or copy the film again"
    with quiet():
        header = attempt(lambda: dcmread(io.BytesIO(data), force=True), damaged)
        found = attempt(lambda: _header.read(header), damaged)
        if attempt(lambda: header.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR, damaged):
            raise InputError(f"{name}: is a DICOMDIR, an index of films; give one of the films it lists")
        attempt(lambda: _name_syntax(header), damaged)
    return DicomFile(found, name, header)


def develop(film: DicomFile, profile: Profile) -> tuple[NDArray[np.uint8], float, list[str]]:
    """Decode and show a film.

    Returns:
        8-bit grey of shape (rows, columns); the height of a pixel by its width; notes on what was done.

    Raises:
        InputError: if it holds no film of one frame that can be decoded; the message names the element or the decoder.
    """
    from pedcxr_client.films import grayscale

    header, name = film._header, film._name
    try:
        import pydicom.pixels  # before quiet(), which knows the loggers there are  # noqa: F401

        with quiet():
            words = _check(header)
            aspect = grayscale.aspect(header)
            pixels = decoders.decode(header, words)
            if profile == "ped-train":
                grey, notes = grayscale.render_as_trained(pixels, words)
            else:
                how, unused = grayscale.rendering(header, words)
                grey, notes = grayscale.render(pixels, how)
                notes = unused + notes
            photometric = _header.text(header, "PhotometricInterpretation")
            notes.insert(0, f"DICOM {photometric} of {words.stored} bits shown as 8-bit grey")
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except grayscale.AllPadding:
        raise InputError(f"{name}: every pixel is padding; there is no picture in it") from None
    return grey, aspect, notes


def _name_syntax(header: Any) -> None:
    """A data set without a file's own elements is read as what it turned out to be."""
    if "TransferSyntaxUID" not in header.file_meta:
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

        implicit, little = header.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _check(header: Any) -> Stored:
    """All that can be wrong before decoding; returns how values are stored."""
    from pedcxr_client.films import grayscale

    if "FloatPixelData" in header or "DoubleFloatPixelData" in header:
        raise InputError("its pixels are floats, which no CR or DX image has; export the film as such")
    if "PixelData" not in header:
        raise InputError("holds no pixels; give the image, not a report or an index of it")
    if (photometric := _header.text(header, "PhotometricInterpretation")) not in ("MONOCHROME1", "MONOCHROME2"):
        shown = photometric if photometric in ("RGB", "PALETTE COLOR") or photometric[:3] == "YBR" else "not grey"
        raise InputError(f"PhotometricInterpretation (0028,0004) is {shown}; a film is MONOCHROME1 or MONOCHROME2")
    rows, columns = grayscale.whole(header, "Rows"), grayscale.whole(header, "Columns")
    frames = grayscale.whole(header, "NumberOfFrames", 1)
    if rows < 1 or columns < 1 or grayscale.whole(header, "SamplesPerPixel", 1) != 1:
        raise InputError("Rows, Columns or SamplesPerPixel are not those of a film; export it again")
    if rows * columns * max(frames, 1) > MAX_PIXELS:
        raise InputError(f"has more than {MAX_PIXELS // 10**6} million pixels; export it smaller")
    if frames > 1:
        raise InputError(f"NumberOfFrames (0028,0008) is {frames}; give one film, one frame")
    return grayscale.stored(header)
