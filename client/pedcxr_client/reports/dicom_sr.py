"""DICOM Basic Text SR document (PS3.3 A.35.1) with the flags PARTIAL, UNVERIFIED and PRELIMINARY.

Requires the extra ``pedcxr[dicom]``. The document identifies the patient and the study only if the caller passes the
DICOM file of the film. This module writes those values to the document and nowhere else. Without the file, patient and
study attributes are empty and the document belongs to a new study.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, NamedTuple

from pedcxr_client.errors import ConfigurationError, InputError
from pedcxr_client.films.decoders import INSTALL
from pedcxr_client.films.header import silence_pydicom
from pedcxr_client.reports import provenance
from pedcxr_client.reports.report import DEMO_NOTICE, Report
from pedcxr_client.reports.sections import preface
from pedcxr_client.types import __version__

if TYPE_CHECKING:
    from pydicom import Dataset

BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"  # SOP class UID of the document

_PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
_STUDY = ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
_TYPE_3 = ("IssuerOfPatientID",)  # omitted if unknown; the other attributes are type 2 and written empty


class _Code(NamedTuple):
    """A coded concept (PS3.3 section 8.8)."""

    value: str
    scheme: str
    meaning: str


_DOCUMENT_TITLE = _Code("18748-4", "LN", "Diagnostic Imaging Report")  # TID 2000
_LANGUAGE = _Code("121049", "DCM", "Language of Content Item and Descendants")  # TID 1204
_ENGLISH = _Code("en", "RFC5646", "English")
_OBSERVER_TYPE = _Code("121005", "DCM", "Observer Type")  # TID 1002
_DEVICE = _Code("121007", "DCM", "Device")
_OBSERVER_UID = _Code("121012", "DCM", "Device Observer UID")  # TID 1004
_OBSERVER_NAME = _Code("121013", "DCM", "Device Observer Name")
_OBSERVER_MODEL = _Code("121015", "DCM", "Device Observer Model Name")
_FINDINGS = _Code("59776-5", "LN", "Findings")  # section headings, CID 7001
_IMPRESSIONS = _Code("19005-8", "LN", "Impressions")
_SUMMARY = _Code("55112-7", "LN", "Summary")
_FINDING = _Code("121071", "DCM", "Finding")  # section contents, CID 7002
_IMPRESSION = _Code("121073", "DCM", "Impression")
_COMMENT = _Code("121106", "DCM", "Comment")

_UNSUPPORTED_BREAK = re.compile("[\v\x85]")  # PS3.5 section 6.1.3 allows TAB, LF, FF and CR only
_OFFSET = re.compile(r"([+-])(\d\d)(\d\d)")


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """Patient and study attributes of a film, as read by `identity_of`. Its ``repr`` shows none of them."""

    values: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "<Identity>"


def identity_of(source: str | os.PathLike[str] | bytes) -> Identity:
    """Read the patient and study attributes of a film from its DICOM file, for `to_sr`.

    Args:
        source: path or bytes of the DICOM file of the film that the report describes. This match is not checked.

    Raises:
        InputError: the file is not DICOM, or a UID is absent or invalid. The message contains no value of the file.
        ConfigurationError: pydicom is not installed.
    """
    require_pydicom()
    from pydicom import dcmread
    from pydicom.uid import UID

    try:
        with silence_pydicom():
            header = dcmread(io.BytesIO(source) if isinstance(source, bytes) else source, stop_before_pixels=True)
            names = (*_PATIENT, *_STUDY, *_UIDS, "TimezoneOffsetFromUTC")
            elements = [header[name] for name in names if name in header]
            values = {element.keyword: str(element.value or "") for element in elements}
            multivalued = [element.keyword for element in elements if element.VM > 1]
    except OSError as error:
        raise InputError(f"identity source: {error.strerror or 'cannot be read'}; check the path") from None
    except Exception:
        # A damaged header can make pydicom raise any exception, and its message may quote values of the header.
        raise InputError("identity source: not a readable DICOM file; pass the DICOM file of the film") from None
    invalid = multivalued + [name for name in _UIDS if not UID(values.get(name, "")).is_valid]
    if invalid:
        raise InputError(f"identity source: {invalid[0]} is absent or malformed; pass the DICOM file of the film")
    return Identity(values)


def to_sr(report: Report, *, identity: Identity | None = None) -> bytes:
    """Return the report as a DICOM file (explicit VR little endian, UTF-8). Each call generates new UIDs.

    Args:
        identity: patient, study and film of the report. None leaves these attributes empty.

    Raises:
        ConfigurationError: pydicom is not installed.
        InputError: a value of the identity cannot be encoded.
    """
    require_pydicom()
    from pydicom import dcmwrite

    buffer = io.BytesIO()
    try:
        with silence_pydicom():
            dcmwrite(buffer, _document(report, identity), enforce_file_format=True)
    except Exception:
        if identity is None:
            raise
        raise InputError("identity source: contains a value that DICOM cannot encode; correct the header") from None
    return buffer.getvalue()


def require_pydicom() -> None:
    """Raise ConfigurationError, with the command that installs pydicom, if it is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f"DICOM SR requires pydicom: {INSTALL}") from error


def _document(report: Report, identity: Identity | None) -> Dataset:
    from uuid import NAMESPACE_URL, uuid5

    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    patient = {} if identity is None else identity.values
    document = Dataset()
    document.file_meta = FileMetaDataset()
    document.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    document.SpecificCharacterSet = "ISO_IR 192"
    document.SOPClassUID, document.SOPInstanceUID = BASIC_TEXT_SR, generate_uid(prefix=None)
    for name in (*_PATIENT, *_STUDY):
        if patient.get(name) or name not in _TYPE_3:
            setattr(document, name, patient.get(name, ""))
    document.StudyInstanceUID = patient.get("StudyInstanceUID") or generate_uid(prefix=None)
    document.Modality, document.SeriesNumber, document.InstanceNumber = "SR", 1, 1
    document.SeriesInstanceUID = generate_uid(prefix=None)
    document.SeriesDescription = "AI-generated draft, not for diagnosis"
    document.ReferencedPerformedProcedureStepSequence, document.PerformedProcedureCodeSequence = [], []
    document.Manufacturer, document.SoftwareVersions = "pedcxr", __version__
    document.ManufacturerModelName = _long_string(report.model)
    _set_content_time(document, report.created, patient.get("TimezoneOffsetFromUTC", ""), local=identity is not None)
    document.CompletionFlag = "PARTIAL"
    document.VerificationFlag = "UNVERIFIED"
    document.PreliminaryFlag = "PRELIMINARY"
    notice = DEMO_NOTICE if report.demo else "AI-generated draft. Research use only."
    document.CompletionFlagDescription = _long_string(notice)
    if identity is not None:
        document.CurrentRequestedProcedureEvidenceSequence = [_evidence(patient)]
    document.ValueType, document.ContinuityOfContent = "CONTAINER", "SEPARATE"
    document.ConceptNameCodeSequence = [_code_item(_DOCUMENT_TITLE)]
    device = uuid5(NAMESPACE_URL, f"pedcxr:{report.model}@{report.model_revision or ''}")  # stable across documents
    film = (patient["SOPClassUID"], patient["SOPInstanceUID"]) if identity is not None else None
    document.ContentSequence = _content(report, f"2.25.{device.int}", film)
    return document


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


def _evidence(identity: dict[str, str]) -> Dataset:
    from pydicom import Dataset

    film, series, study = Dataset(), Dataset(), Dataset()
    film.ReferencedSOPClassUID, film.ReferencedSOPInstanceUID = identity["SOPClassUID"], identity["SOPInstanceUID"]
    series.SeriesInstanceUID, series.ReferencedSOPSequence = identity["SeriesInstanceUID"], [film]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = identity["StudyInstanceUID"], [series]
    return study


def _long_string(text: str) -> str:
    """Return the text as one value of VR LO: at most 64 characters, and no backslash, which separates values."""
    return "".join(letter if letter.isprintable() and letter != "\\" else " " for letter in text)[:64]


def _content(report: Report, device_uid: str, film: tuple[str, str] | None) -> list[Dataset]:
    # The children of the root (PS3.3 C.17.3). `film` is its SOP class UID and SOP instance UID.
    context = [
        _item("HAS CONCEPT MOD", "CODE", _LANGUAGE, _ENGLISH),
        _item("HAS OBS CONTEXT", "CODE", _OBSERVER_TYPE, _DEVICE),
        _item("HAS OBS CONTEXT", "UIDREF", _OBSERVER_UID, device_uid),
        _item("HAS OBS CONTEXT", "TEXT", _OBSERVER_NAME, f"{report.model} (pedcxr)"),
        _item("HAS OBS CONTEXT", "TEXT", _OBSERVER_MODEL, _model_and_revision(report)),
    ]
    content = [_text_item(_COMMENT, remark) for remark in (*report.notices, *provenance.remarks(report))]
    before = preface(report.text)
    if before is not None:
        content.append(_section_item(_SUMMARY, _COMMENT, before))
    if report.findings is not None:
        content.append(_section_item(_FINDINGS, _FINDING, report.findings))
    if report.impression is not None:
        content.append(_section_item(_IMPRESSIONS, _IMPRESSION, report.impression))
    if film is not None:
        content.append(_image_item(*film))
    origin = "\n".join(f"{label}: {value}" for label, value in provenance.lines(report))
    return [*context, *content, _text_item(_COMMENT, origin)]


def _code_item(concept: _Code) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = concept
    return item


def _model_and_revision(report: Report) -> str:
    return report.model if report.model_revision is None else f"{report.model}, revision {report.model_revision}"


def _item(relation: str, kind: str, concept: _Code, value: str | _Code | Iterable[Dataset]) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.RelationshipType, item.ValueType, item.ConceptNameCodeSequence = relation, kind, [_code_item(concept)]
    if isinstance(value, _Code):
        item.ConceptCodeSequence = [_code_item(value)]
    elif kind == "UIDREF":
        item.UID = value
    elif isinstance(value, str):
        item.TextValue = _UNSUPPORTED_BREAK.sub("\n", value)
    else:
        item.ContinuityOfContent, item.ContentSequence = "SEPARATE", list(value)
    return item


def _text_item(concept: _Code, text: str) -> Dataset:
    return _item("CONTAINS", "TEXT", concept, text)


def _section_item(heading: _Code, element: _Code, text: str) -> Dataset:
    return _item("CONTAINS", "CONTAINER", heading, [_text_item(element, text)])


def _image_item(sop_class: str, sop_instance: str) -> Dataset:
    from pydicom import Dataset

    film, item = Dataset(), Dataset()
    film.ReferencedSOPClassUID, film.ReferencedSOPInstanceUID = sop_class, sop_instance
    item.RelationshipType, item.ValueType, item.ReferencedSOPSequence = "CONTAINS", "IMAGE", [film]
    return item
