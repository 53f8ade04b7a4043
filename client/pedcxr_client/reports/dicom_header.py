"""What the DICOM documents of a report share: patient and study, UIDs, time, equipment and the file.

Requires the extra ``pedcxr[dicom]``. A document identifies the patient and the study only if the caller passes the
DICOM file of the film. This module writes those values to the document and nowhere else. Without the file, patient and
study attributes are empty and the document belongs to a study of its own.

UIDs are derived: documents of the same film, model revision, prompt and image belong to one series, and equal
documents have equal UIDs. Sending a document twice therefore changes nothing in an archive.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID, uuid4, uuid5

from pedcxr_client.errors import ConfigurationError, InputError
from pedcxr_client.films.decoders import INSTALL
from pedcxr_client.films.dicom import is_dicom
from pedcxr_client.films.header.elements import silence_pydicom
from pedcxr_client.reports import provenance
from pedcxr_client.reports.report import DEMO_NOTICE, Report
from pedcxr_client.types import __version__

if TYPE_CHECKING:
    from pydicom import Dataset


class Code(NamedTuple):
    """A coded concept (PS3.3 section 8.8)."""

    value: str
    scheme: str
    meaning: str


DOCUMENT_TITLE = Code("18748-4", "LN", "Diagnostic Imaging Report")  # TID 2000

_PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
_STUDY = ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
_TYPE_3 = ("IssuerOfPatientID",)  # omitted if unknown; the other attributes are type 2 and written empty

_OFFSET = re.compile(r"([+-])(\d\d)(\d\d)")
_PATIENT_NAME = re.compile(r"[^\\\x00-\x1f\x7f-\x9f\ufffd]{1,64}")  # PS3.5 section 6.2, VR PN
_DEFAULT_SETS = ("", "ISO_IR 6", "ISO 2022 IR 6")  # ASCII
_HEAD_BYTES = 132  # preamble and "DICM"
_ESCAPE = b"\x1b"


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """Patient and study attributes of a film, as read by `identity_of`. Its ``repr`` shows none of them."""

    values: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "<Identity>"


def identity_of(source: str | os.PathLike[str] | bytes, *, patient_name: str | None = None) -> Identity:
    """Read the patient and study attributes of a film from its DICOM file, for `to_sr`, `to_dicom_pdf` and `to_fhir`.

    Text is decoded strictly. A document with a name in the wrong letters would not be found under the patient.

    Args:
        source: path or bytes of the DICOM file of the film that the report describes. This match is not checked.
        patient_name: written instead of the name in the header, in DICOM's form ``Family^Given``.

    Raises:
        InputError: the file is not DICOM, a UID is absent or invalid, or the patient's name or number cannot be decoded
            with the character set of the header. The message contains no value of the file.
        ConfigurationError: pydicom is not installed, or ``patient_name`` is invalid.
    """
    require_pydicom()
    from pydicom.uid import UID as DicomUID

    if patient_name is not None and not _PATIENT_NAME.fullmatch(patient_name):
        raise ConfigurationError("patient name: must be 1 to 64 characters without backslash and control characters")
    values, multivalued = _read_values(source)
    if patient_name is not None:
        values["PatientName"] = patient_name
        multivalued = [name for name in multivalued if name != "PatientName"]
    invalid = multivalued + [name for name in _UIDS if not DicomUID(values.get(name) or "").is_valid]
    if invalid:
        raise InputError(f"identity source: {invalid[0]} is absent or malformed; pass the DICOM file of the film")
    undecoded = [name for name, value in values.items() if value is None and name != "ReferringPhysicianName"]
    if undecoded:
        advice = "give the patient's name (--patient-name), or correct" if undecoded == ["PatientName"] else "correct"
        raise InputError(
            f"identity source: {undecoded[0]} does not fit SpecificCharacterSet (0008,0005); {advice} the header"
        )
    return Identity({name: value or "" for name, value in values.items()})


def _read_values(source: str | os.PathLike[str] | bytes) -> tuple[dict[str, str | None], list[str]]:
    """Return the values, with None for text that cannot be decoded, and the names that have several values."""
    from pydicom import dcmread

    try:
        with silence_pydicom():
            with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
                if not is_dicom(file.read(_HEAD_BYTES)):
                    raise ValueError
                file.seek(0)
                header = dcmread(file, stop_before_pixels=True, force=True)  # force: a bare data set has no preamble
            names = (*_PATIENT, *_STUDY, *_UIDS, "TimezoneOffsetFromUTC")
            values = {name: _decoded(header, name) for name in names if name in header}
            return values, [name for name in values if header[name].VM > 1]
    except OSError as error:
        raise InputError(f"identity source: {error.strerror or 'cannot be read'}; check the path") from None
    except Exception:
        # A damaged header can make pydicom raise any exception, and its message may quote values of the header.
        raise InputError("identity source: not a readable DICOM file; pass the DICOM file of the film") from None


def _decoded(header: Dataset, name: str) -> str | None:
    """Return the value of a text attribute, or None if its bytes do not fit the character set of the header."""
    from pydicom import charset
    from pydicom.datadict import tag_for_keyword

    raw: Any = header.get_item(tag_for_keyword(name) or 0)
    data = raw.value
    if not isinstance(data, bytes):
        return str(data or "")
    if data.isascii() and _ESCAPE not in data:
        return data.decode().strip(" \0")
    sets = header.get("SpecificCharacterSet") or ""
    sets = [sets] if isinstance(sets, str) else list(sets)
    if any(each not in charset.python_encoding for each in sets):
        return None
    first = sets[0] if sets else ""
    if first in _DEFAULT_SETS and not data.split(_ESCAPE)[0].isascii():
        return None
    text = charset.decode_bytes(data, charset.convert_encodings(sets), {0x5E, 0x3D, 0x5C}).strip(" \0")
    return None if "\ufffd" in text or any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in text) else text


def require_pydicom() -> None:
    """Raise ConfigurationError, with the command that installs pydicom, if it is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f"DICOM documents require pydicom: {INSTALL}") from error


def document(report: Report, identity: Identity | None, sop_class: str, modality: str, *, new: bool = False) -> Dataset:
    """Return a data set with the modules that all documents share (PS3.3 C.7.1.1, C.7.2.1, C.7.5.1, C.12.1).

    Args:
        modality: ``"SR"`` or ``"DOC"``. Each has its own series.
        new: use random instead of derived UIDs.
    """
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    patient = {} if identity is None else identity.values
    document = Dataset()
    document.file_meta = FileMetaDataset()
    document.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    document.SpecificCharacterSet = "ISO_IR 192"
    document.SOPClassUID = sop_class
    for name in (*_PATIENT, *_STUDY):
        if patient.get(name) or name not in _TYPE_3:
            setattr(document, name, patient.get(name, ""))
    seed = (
        uuid4()
        if new
        else uuid5(provenance.NAMESPACE, "\0".join((patient.get("SOPInstanceUID", ""), *provenance.origin(report))))
    )
    document.StudyInstanceUID = patient.get("StudyInstanceUID") or _uid(uuid5(seed, "study"))
    document.Modality, document.InstanceNumber = modality, 1
    # Numbers that no film of the same study has. A viewer sorts series by them.
    document.SeriesNumber = 9801 if modality == "SR" else 9802
    document.SeriesInstanceUID = _uid(uuid5(seed, modality))
    document.SeriesDescription = "AI-generated draft, not for diagnosis"
    document.Manufacturer, document.SoftwareVersions = "pedcxr", __version__
    document.ManufacturerModelName = long_string(report.model)
    _set_content_time(document, report.created, patient.get("TimezoneOffsetFromUTC", ""), local=identity is not None)
    return document


def device_uid(report: Report) -> str:
    """Return the UID of the model, the same for all documents of the same model and revision."""
    from uuid import NAMESPACE_URL

    return _uid(uuid5(NAMESPACE_URL, f"pedcxr:{report.model}@{report.model_revision or ''}"))


def film_reference(identity: Identity) -> Dataset:
    """Return an item that references the film (PS3.3 Table 10-11)."""
    from pydicom import Dataset

    film = Dataset()
    film.ReferencedSOPClassUID = identity.values["SOPClassUID"]
    film.ReferencedSOPInstanceUID = identity.values["SOPInstanceUID"]
    return film


def code_item(concept: Code) -> Dataset:
    """Return an item of a code sequence."""
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = concept
    return item


def notice(report: Report) -> str:
    """Return the shortest notice, for attributes of 64 characters."""
    return long_string(DEMO_NOTICE if report.demo else "AI-generated draft. Research use only.")


def long_string(text: str) -> str:
    """Return the text as one value of VR LO: at most 64 characters, and no backslash, which separates values."""
    return "".join(letter if letter.isprintable() and letter != "\\" else " " for letter in text)[:64]


def to_bytes(document: Dataset, *, has_identity: bool) -> bytes:
    """Return the document as a DICOM file. Its SOP Instance UID is derived from its series and content.

    Raises:
        InputError: a value of the identity cannot be encoded.
    """
    from pydicom import dcmwrite

    buffer, content = io.BytesIO(), io.BytesIO()
    try:
        with silence_pydicom():
            document.SOPInstanceUID = document.SeriesInstanceUID
            dcmwrite(content, document, enforce_file_format=True)
            document.SOPInstanceUID = _uid(uuid5(provenance.NAMESPACE, sha256(content.getvalue()).hexdigest()))
            document.file_meta.MediaStorageSOPInstanceUID = document.SOPInstanceUID
            dcmwrite(buffer, document, enforce_file_format=True)
    except Exception:
        if not has_identity:
            raise
        raise InputError("identity source: contains a value that DICOM cannot encode; correct the header") from None
    return buffer.getvalue()


def _uid(uuid: UUID) -> str:
    """Return the UID of a UUID (PS3.5 section B.2)."""
    return f"2.25.{uuid.int}"


def _set_content_time(document: Dataset, created: datetime, offset: str, *, local: bool) -> None:
    """Write the time in the time zone of the film, because one offset applies to all times of a data set."""
    match = _OFFSET.fullmatch(offset)
    if match:
        difference = timedelta(hours=int(match[2]), minutes=int(match[3]))
        created = created.astimezone(timezone(-difference if match[1] == "-" else difference))
        document.TimezoneOffsetFromUTC = offset
    elif local:
        created = created.astimezone()
    else:
        document.TimezoneOffsetFromUTC = "+0000"
    document.ContentDate, document.ContentTime = created.strftime("%Y%m%d"), created.strftime("%H%M%S")
