"""A DICOM Basic Text SR (PS3.3 A.35.1): PARTIAL, UNVERIFIED, preliminary. Needs the extra ``pedcxr[dicom]``.

Whose film it was stands in it only if the caller passes that film's own DICOM file; it is read here and goes nowhere
but into the document. Otherwise patient and study are empty, and the study is a new one.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from pedcxr_client.errors import ConfigurationError, InputError
from pedcxr_client.films.dicom import INSTALL
from pedcxr_client.films.log_silencer import quiet
from pedcxr_client.reports import sr_content
from pedcxr_client.reports.report import DEMO_NOTICE, Report
from pedcxr_client.types import __version__

if TYPE_CHECKING:
    from pydicom import Dataset

BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"

_PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
_STUDY = ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
_MAY_BE_ABSENT = ("IssuerOfPatientID",)  # type 3; the others are type 2 and stay, empty
_OFFSET = re.compile(r"([+-])(\d\d)(\d\d)")


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """Patient and study of a film, as its header has them; made by :func:`identity_of`, shown nowhere."""

    values: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "<Identity>"


def identity_of(source: str | os.PathLike[str] | bytes) -> Identity:
    """Whose film this is, from its own DICOM file, for :func:`to_sr`.

    Args:
        source: path or bytes of the very film that the report is about. Nothing checks that it is.

    Raises:
        InputError: if it is no DICOM file, or lacks the numbers that name it; values are not repeated.
        ConfigurationError: if pydicom is not installed.
    """
    needed()
    from pydicom import dcmread
    from pydicom.uid import UID

    try:
        with quiet():
            header = dcmread(io.BytesIO(source) if isinstance(source, bytes) else source, stop_before_pixels=True)
            names = (*_PATIENT, *_STUDY, *_UIDS, "TimezoneOffsetFromUTC")
            found = [header[name] for name in names if name in header]
            values = {element.keyword: str(element.value or "") for element in found}
            several = [element.keyword for element in found if element.VM > 1]
    except OSError as error:
        raise InputError(f"source of the identity: {error.strerror or 'cannot be read'}") from None
    except Exception:
        # pydicom raises whatever a damaged header leads to, and its words may quote that header.
        raise InputError("source of the identity: is no DICOM file that can be read") from None
    wrong = several + [name for name in _UIDS if not UID(values.get(name, "")).is_valid]
    if wrong:
        raise InputError(f"source of the identity: {wrong[0]} is absent or malformed")
    return Identity(values)


def to_sr(report: Report, *, identity: Identity | None = None) -> bytes:
    """The document as a DICOM file (explicit VR little endian, UTF-8), with new UIDs each time.

    Args:
        identity: patient, study and film it belongs to; None leaves all of that empty.

    Raises:
        ConfigurationError: if pydicom is not installed.
        InputError: if a value of the identity cannot be written.
    """
    needed()
    from pydicom import dcmwrite

    buffer = io.BytesIO()
    try:
        with quiet():
            dcmwrite(buffer, _document(report, identity), enforce_file_format=True)
    except Exception:
        if identity is None:
            raise
        raise InputError("source of the identity: holds a value that cannot be written again") from None
    return buffer.getvalue()


def needed() -> None:
    """Raise unless pydicom is there.

    Raises:
        ConfigurationError: with the line that installs it.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f"DICOM SR needs pydicom: {INSTALL}") from error


def _document(report: Report, identity: Identity | None) -> Dataset:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    known = {} if identity is None else identity.values
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SOPClassUID, made.SOPInstanceUID = BASIC_TEXT_SR, generate_uid(prefix=None)
    for name in (*_PATIENT, *_STUDY):
        if known.get(name) or name not in _MAY_BE_ABSENT:
            setattr(made, name, known.get(name, ""))
    made.StudyInstanceUID = known.get("StudyInstanceUID") or generate_uid(prefix=None)
    made.Modality, made.SeriesNumber, made.InstanceNumber = "SR", 1, 1
    made.SeriesInstanceUID = generate_uid(prefix=None)
    made.SeriesDescription = "AI-generated draft, not for diagnosis"
    made.ReferencedPerformedProcedureStepSequence, made.PerformedProcedureCodeSequence = [], []
    made.Manufacturer, made.SoftwareVersions = "pedcxr", __version__
    made.ManufacturerModelName = _short(report.model)
    _say_when(made, report.created, known.get("TimezoneOffsetFromUTC", ""), local=identity is not None)
    made.CompletionFlag, made.VerificationFlag, made.PreliminaryFlag = "PARTIAL", "UNVERIFIED", "PRELIMINARY"
    made.CompletionFlagDescription = _short(DEMO_NOTICE if report.demo else "AI-generated draft. Research use only.")
    if identity is not None:
        made.CurrentRequestedProcedureEvidenceSequence = [_evidence(known)]
    made.ValueType, made.ContinuityOfContent = "CONTAINER", "SEPARATE"
    made.ConceptNameCodeSequence = [sr_content.code(sr_content.REPORT)]
    from uuid import NAMESPACE_URL, uuid5

    device = uuid5(NAMESPACE_URL, f"pedcxr:{report.model}@{report.model_revision or ''}")  # the same each time
    film = (known["SOPClassUID"], known["SOPInstanceUID"]) if identity is not None else None
    made.ContentSequence = sr_content.items(report, f"2.25.{device.int}", film)
    return made


def _say_when(made: Dataset, created: datetime, offset: str, *, local: bool) -> None:
    """The time of the document, in the film's time zone: one offset holds for all times of a data set."""
    found = _OFFSET.fullmatch(offset)
    if found:
        ahead = timedelta(hours=int(found[2]), minutes=int(found[3]))
        created = created.astimezone(timezone(-ahead if found[1] == "-" else ahead))
        made.TimezoneOffsetFromUTC = offset
    elif local:
        created = created.astimezone()
    else:
        made.TimezoneOffsetFromUTC = "+0000"
    made.ContentDate, made.ContentTime = created.strftime("%Y%m%d"), created.strftime("%H%M%S")


def _evidence(known: dict[str, str]) -> Dataset:
    from pydicom import Dataset

    film, series, study = Dataset(), Dataset(), Dataset()
    film.ReferencedSOPClassUID, film.ReferencedSOPInstanceUID = known["SOPClassUID"], known["SOPInstanceUID"]
    series.SeriesInstanceUID, series.ReferencedSOPSequence = known["SeriesInstanceUID"], [film]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = known["StudyInstanceUID"], [series]
    return study


def _short(text: str) -> str:
    """A text fit for a value of VR LO: 64 characters, and no backslash, which would make it two values."""
    return "".join(letter if letter.isprintable() and letter != "\\" else " " for letter in text)[:64]
