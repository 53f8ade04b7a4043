"""Read and render DICOM films as a viewer shows them (PS3.3 C.11). The header never leaves the client.

Needs the extra ``pedcxr[dicom]``. The header is checked before anything is decoded. The steps follow the order of
the standard: padding, modality LUT or rescale, VOI LUT or window, inversion, padding and display shutters to black,
pixel aspect ratio.
"""

from __future__ import annotations

import io
import sys
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pedcxr_client.errors import InputError, MissingResource
from pedcxr_client.films import decoders, files
from pedcxr_client.films.decoders import INSTALL
from pedcxr_client.films.files import MAX_PIXELS
from pedcxr_client.films.header.elements import attempt, silence_pydicom, text
from pedcxr_client.films.header.facts import PLAIN, Facts, overlay_note, read_header, study_digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pedcxr_client.films.geometry import Profile
    from pedcxr_client.films.grayscale import PixelFormat

_HEAD_BYTES = 16 * 1024  # longer than the file meta information
_DICOMDIR = "1.2.840.10008.1.3.10"
_FIRST_ELEMENTS = (b"\x08\0\0\0", b"\x08\0\x05\0", b"\x08\0\x08\0", b"\x08\0\x16\0", b"\x02\0\0\0")


_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"  # ends a sequence of undefined length (PS3.5 section 7.5)


@dataclass(frozen=True, slots=True, repr=False)
class DicomFile:
    """A DICOM file whose header was read and whose pixels are not decoded."""

    facts: Facts
    _name: str
    _dataset: Any
    _notes: tuple[str, ...] = ()

    @property
    def compressed(self) -> bool:
        """Whether the pixels need a decoder written in C."""
        return decoders.is_compressed(self._dataset)

    def __repr__(self) -> str:
        return "<DicomFile>"


def is_dicom(data: bytes) -> bool:
    """Return whether the bytes are a DICOM file (PS3.10 section 7.1), or a bare data set as old devices write it."""
    return data[128:132] == b"DICM" or data[:4] in _FIRST_ELEMENTS


def is_dataset(source: object) -> bool:
    """Return whether the object is a ``pydicom.Dataset``, without importing pydicom."""
    module = sys.modules.get("pydicom.dataset")
    return module is not None and isinstance(source, module.Dataset)


def read(source: Any, name: str = "the film") -> DicomFile:
    """Read the header of a file's bytes or of a ``pydicom.Dataset``, which is copied. A DICOMDIR is refused."""
    try:
        decoders.import_packages()
    except ImportError as error:
        raise MissingResource(f"{name}: is DICOM, which needs pydicom: {INSTALL}") from error
    except InputError as error:
        raise type(error)(f"{name}: {error}") from None
    damaged = f"{name}: is DICOM, but damaged or cut short; export or copy the film again"
    with silence_pydicom():
        if isinstance(source, bytes):
            decoders.check_inflated_size(source, name)
            dataset, notes = attempt(lambda: _parse(source), damaged)
        else:
            dataset, notes = attempt(lambda: _copy(source), f"{name}: the Dataset cannot be copied; give a file")
        facts = attempt(lambda: read_header(dataset), damaged)
        if attempt(lambda: dataset.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR, damaged):
            raise InputError(f"{name}: is a DICOMDIR, an index of films; give one of the films that it lists")
        attempt(lambda: _set_missing_syntax(dataset), damaged)
    return DicomFile(facts, name, dataset, notes)


def read_facts(path: str, name: str = "the film") -> Facts:
    """Return the facts of a file, which may be a plain image. The pixels of a DICOM film are not read from the disk."""
    from pydicom import dcmread

    files.check(path, name)
    with files.report_memory_errors(name), files.report_os_errors(name), open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
        if not is_dicom(head):
            return PLAIN
        if not decoders.may_be_deflated(head):
            file.seek(0)
            with silence_pydicom():
                damaged = f"{name}: is DICOM, but damaged or cut short; export or copy the film again"
                return attempt(lambda: read_header(dcmread(file, force=True, stop_before_pixels=True)), damaged)
    return read(files.read(path, name), name).facts


def read_study(data: bytes) -> str:
    """Return `Facts.study` of a file, ``""`` for a plain image and for a header that cannot be read."""
    if not is_dicom(data):
        return ""
    try:
        decoders.check_inflated_size(data, "")
        with silence_pydicom():
            return attempt(lambda: study_digest(_read_element(data, "StudyInstanceUID")), "damaged")
    except (ImportError, InputError, MemoryError):
        return ""


def render(film: DicomFile, profile: Profile) -> tuple[NDArray[np.uint8], float, list[str]]:
    """Decode a film.

    Return its 8-bit grey of shape (rows, columns), the height of a pixel divided by its width, and notes on each step.
    """
    from pedcxr_client.films import grayscale

    dataset, name = film._dataset, film._name
    try:
        with silence_pydicom():
            pixel_format = _check_pixel_elements(dataset)
            aspect = grayscale.pixel_aspect(dataset)
            cells, unusual = decoders.decode(dataset, pixel_format)
            if profile == "ped-train":
                grey, notes = grayscale.render_as_trained(cells, pixel_format)
            else:
                parameters, unused = grayscale.display_parameters(dataset, pixel_format)
                hidden, covered = _shutter(dataset, cells.shape, aspect)
                grey, notes = grayscale.render(cells, parameters, hidden)
                notes = [*unused, *covered, *notes]
            photometric = text(dataset, "PhotometricInterpretation")
            first = f"DICOM {photometric} of {pixel_format.bits_stored} bits rendered as 8-bit grey"
            notes = [first, *film._notes, *unusual, *notes, *overlay_note(dataset)]
    except InputError as error:
        raise type(error)(f"{name}: {error}") from None
    except grayscale.OnlyPadding:
        raise InputError(f"{name}: every pixel is padding; send a film that has an image") from None
    return grey, aspect, notes


def _read_element(data: bytes, keyword: str) -> Any:
    from pydicom import dcmread

    return dcmread(io.BytesIO(data), force=True, stop_before_pixels=True, specific_tags=[keyword])


def _parse(data: bytes) -> tuple[Any, tuple[str, ...]]:
    """Parse the bytes of a file, and return the data set and notes.

    pydicom 3.0.2 returns an empty data set if the pixels of undefined length have no sequence delimiter at their end.
    """
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(data), force=True)
    if len(dataset):
        return dataset, ()
    dataset = dcmread(io.BytesIO(data + _DELIMITER), force=True)
    if "PixelData" not in dataset:
        raise EOFError
    return dataset, ("the missing sequence delimiter after the pixels added",)


def _copy(dataset: Any) -> tuple[Any, tuple[str, ...]]:
    """Copy a Dataset with its elements, so that neither the caller's changes nor ours reach the other. No notes."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset

    copied = Dataset()
    for tag in dataset.keys():  # noqa: SIM118  (iteration converts each element)
        copied[tag] = deepcopy(dataset.get_item(tag))
    implicit, little = dataset.original_encoding
    copied.set_original_encoding(implicit, little, dataset.original_character_set)
    copied.file_meta = deepcopy(getattr(dataset, "file_meta", None)) or FileMetaDataset()
    return copied, ()


def _shutter(dataset: Any, size: tuple[int, ...], aspect: float) -> tuple[NDArray[np.bool_] | None, list[str]]:
    if "ShutterShape" not in dataset:
        return None, []
    from pedcxr_client.films import shutter

    return shutter.read(dataset, size[0], size[1], aspect)


def _set_missing_syntax(dataset: Any) -> None:
    # A bare data set has no file meta information. pydicom detects its transfer syntax, and knows none for a Dataset
    # that a program made.
    if "TransferSyntaxUID" not in dataset.file_meta:
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

        implicit, little = dataset.original_encoding
        explicit = ExplicitVRBigEndian if little is False else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _check_pixel_elements(dataset: Any) -> PixelFormat:
    from pedcxr_client.films import grayscale

    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise InputError("the pixels are floats, which CR and DX images never are; export the film as CR or DX")
    if "PixelData" not in dataset:
        if "Rows" in dataset:
            raise InputError("holds no pixels, but states Rows; it may be cut short: export or copy the film again")
        raise InputError("holds no pixels; give the image, not a report or an index")
    _check_photometric(dataset)
    rows, columns = grayscale.integer(dataset, "Rows"), grayscale.integer(dataset, "Columns")
    frames = grayscale.integer(dataset, "NumberOfFrames", 1)
    if rows < 1 or columns < 1 or grayscale.integer(dataset, "SamplesPerPixel", 1) != 1:
        raise InputError("Rows, Columns or SamplesPerPixel are not those of a film; export the film again")
    if rows * columns * max(frames, 1) > MAX_PIXELS:
        raise InputError(f"has more than {MAX_PIXELS // 10**6} million pixels; export it smaller")
    if frames > 1:
        raise InputError(f"NumberOfFrames (0028,0008) is {frames}; give a film with one frame")
    return grayscale.pixel_format(dataset)


def _check_photometric(dataset: Any) -> None:
    if not (photometric := text(dataset, "PhotometricInterpretation")):
        raise InputError(
            "PhotometricInterpretation (0028,0004) is absent or empty, so that black and white cannot be told apart; "
            "export the film again"
        )
    if photometric.upper() not in ("MONOCHROME1", "MONOCHROME2"):
        label = photometric if photometric in ("RGB", "PALETTE COLOR") or photometric[:3] == "YBR" else "not grey"
        raise InputError(f"PhotometricInterpretation (0028,0004) is {label}; a film is MONOCHROME1 or MONOCHROME2")
    if photometric != photometric.upper():
        dataset.PhotometricInterpretation = photometric.upper()
