"""DICOM films for tests, written by pydicom: a valid film in which a test changes elements."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset, FileDataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

DX = "1.2.840.10008.5.1.4.1.1.1.1"
CHEST = {
    "SOPClassUID": DX,
    "SOPInstanceUID": "1.2.3.4",
    "Modality": "DX",
    "PresentationIntentType": "FOR PRESENTATION",
    "StudyDate": "20240102",
    "PatientAge": "005Y",
    "PatientSex": "F",
    "BodyPartExamined": "CHEST",
    "ViewPosition": "PA",
    "PatientOrientation": ["L", "F"],
    "PhotometricInterpretation": "MONOCHROME2",
    "SamplesPerPixel": 1,
    "BurnedInAnnotation": "NO",
}


def ramp(rows: int = 256, columns: int = 256, top: int = 4095, dtype: str = "uint16") -> np.ndarray:
    """Return values from 0 to ``top`` that increase along the rows, then the columns."""
    return (np.arange(rows * columns).reshape(rows, columns) * (top + 1) // (rows * columns)).astype(dtype)


def film(
    pixels: np.ndarray | None = None, *, bits: int = 12, syntax: str = ExplicitVRLittleEndian, **elements: Any
) -> bytes:
    """Return the bytes of a DX chest film. An element of value None is omitted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tests use malformed values
        return to_bytes(dataset(pixels, bits=bits, syntax=syntax, **elements))


def dataset(
    pixels: np.ndarray | None = None, *, bits: int = 12, syntax: str = ExplicitVRLittleEndian, **elements: Any
) -> FileDataset:
    pixels = ramp(top=(1 << bits) - 1) if pixels is None else pixels
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = syntax, DX, "1.2.3.4"
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    layout = {
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": pixels.itemsize * 8,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes(),
    }
    for keyword, value in (CHEST | layout | elements).items():
        if value is not None:
            setattr(ds, keyword, value)
    if "PixelData" in ds:
        ds["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    return ds


def to_bytes(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    if ds.file_meta.TransferSyntaxUID.is_little_endian:
        dcmwrite(buffer, ds, enforce_file_format=True)
    else:
        dcmwrite(buffer, ds, implicit_vr=False, little_endian=False, force_encoding=True)
    return buffer.getvalue()


def sequence(**elements: Any) -> list[Dataset]:
    """Return a sequence of one item."""
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return [item]


def table(
    first: int, bits: int, data: list[int], *, length: int | None = None, form: str = "<u2", vr: str = "OW"
) -> list[Dataset]:
    """Return a modality or VOI LUT sequence of one item."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(data) if length is None else length, first, bits])
    item.add_new("LUTData", vr, np.asarray(data, form).tobytes() if vr == "OW" else data)
    return [item]


def jpeg_film(image: Image.Image, cut: int = 0, **elements: Any) -> bytes:
    """Return an 8-bit film in JPEG baseline without the last ``cut`` bytes of its stream."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    stream = buffer.getvalue()
    ds = dataset(np.asarray(image), bits=8, syntax=JPEGBaseline8Bit, **elements)
    ds.PixelData = encapsulate([stream[: len(stream) - cut]])
    ds["PixelData"].is_undefined_length = True
    return to_bytes(ds)
