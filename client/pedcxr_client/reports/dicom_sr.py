"""DICOM Basic Text SR document (PS3.3 A.35.1) with the flags PARTIAL, UNVERIFIED and PRELIMINARY."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pedcxr_client.reports import dicom_header, provenance
from pedcxr_client.reports.dicom_header import DOCUMENT_TITLE, Code, Identity, code_item
from pedcxr_client.reports.report import Report
from pedcxr_client.reports.sections import preface
from pedcxr_client.reports.vocabulary import LANGUAGE_NAMES

if TYPE_CHECKING:
    from pydicom import Dataset

BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"  # SOP class UID of the document


_LANGUAGE = Code("121049", "DCM", "Language of Content Item and Descendants")  # TID 1204
_OBSERVER_TYPE = Code("121005", "DCM", "Observer Type")  # TID 1002
_DEVICE = Code("121007", "DCM", "Device")
_OBSERVER_UID = Code("121012", "DCM", "Device Observer UID")  # TID 1004
_OBSERVER_NAME = Code("121013", "DCM", "Device Observer Name")
_OBSERVER_MODEL = Code("121015", "DCM", "Device Observer Model Name")
_FINDINGS = Code("59776-5", "LN", "Findings")  # section headings, CID 7001
_IMPRESSIONS = Code("19005-8", "LN", "Impressions")
_SUMMARY = Code("55112-7", "LN", "Summary")
_FINDING = Code("121071", "DCM", "Finding")  # section contents, CID 7002
_IMPRESSION = Code("121073", "DCM", "Impression")
_COMMENT = Code("121106", "DCM", "Comment")

_UNSUPPORTED_BREAK = re.compile("[\v\x85]")  # PS3.5 section 6.1.3 allows TAB, LF, FF and CR only


def to_sr(report: Report, *, identity: Identity | None = None, new: bool = False) -> bytes:
    """Return the report as a DICOM file (explicit VR little endian, UTF-8). The same report gives the same bytes.

    Args:
        identity: patient, study and film of the report. None leaves these attributes empty.
        new: write another series instead of the same one again.

    Raises:
        ConfigurationError: pydicom is not installed.
        InputError: a value of the identity cannot be encoded.
    """
    dicom_header.require_pydicom()
    document = dicom_header.document(report, identity, BASIC_TEXT_SR, "SR", new=new)
    document.ReferencedPerformedProcedureStepSequence, document.PerformedProcedureCodeSequence = [], []
    document.CompletionFlag = "PARTIAL"
    document.VerificationFlag = "UNVERIFIED"
    document.PreliminaryFlag = "PRELIMINARY"
    document.CompletionFlagDescription = dicom_header.notice(report)
    if identity is not None:
        document.CurrentRequestedProcedureEvidenceSequence = [_evidence(identity)]
    document.ValueType, document.ContinuityOfContent = "CONTAINER", "SEPARATE"
    document.ConceptNameCodeSequence = [code_item(DOCUMENT_TITLE)]
    document.ContentSequence = _content(report, identity)
    return dicom_header.to_bytes(document, has_identity=identity is not None)


def _evidence(identity: Identity) -> Dataset:
    from pydicom import Dataset

    series, study = Dataset(), Dataset()
    series.SeriesInstanceUID = identity.values["SeriesInstanceUID"]
    series.ReferencedSOPSequence = [dicom_header.film_reference(identity)]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = identity.values["StudyInstanceUID"], [series]
    return study


def _content(report: Report, identity: Identity | None) -> list[Dataset]:
    # The children of the root (PS3.3 C.17.3).
    context = [
        _item("HAS CONCEPT MOD", "CODE", _LANGUAGE, _language(report)),
        _item("HAS OBS CONTEXT", "CODE", _OBSERVER_TYPE, _DEVICE),
        _item("HAS OBS CONTEXT", "UIDREF", _OBSERVER_UID, dicom_header.device_uid(report)),
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
    if identity is not None:
        content.append(_image_item(identity))
    origin = "\n".join(f"{label}: {value}" for label, value in provenance.lines(report))
    return [*context, *content, _text_item(_COMMENT, origin)]


def _model_and_revision(report: Report) -> str:
    return report.model if report.model_revision is None else f"{report.model}, revision {report.model_revision}"


def _item(relation: str, kind: str, concept: Code, value: str | Code | Iterable[Dataset]) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.RelationshipType, item.ValueType, item.ConceptNameCodeSequence = relation, kind, [code_item(concept)]
    if isinstance(value, Code):
        item.ConceptCodeSequence = [code_item(value)]
    elif kind == "UIDREF":
        item.UID = value
    elif isinstance(value, str):
        item.TextValue = _UNSUPPORTED_BREAK.sub("\n", value)
    else:
        item.ContinuityOfContent, item.ContentSequence = "SEPARATE", list(value)
    return item


def _text_item(concept: Code, text: str) -> Dataset:
    return _item("CONTAINS", "TEXT", concept, text)


def _section_item(heading: Code, element: Code, text: str) -> Dataset:
    return _item("CONTAINS", "CONTAINER", heading, [_text_item(element, text)])


def _image_item(identity: Identity) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "IMAGE"
    item.ReferencedSOPSequence = [dicom_header.film_reference(identity)]
    return item


def _language(report: Report) -> Code:
    tag = report.language
    return Code(tag, "RFC5646", LANGUAGE_NAMES.get(tag, "Undetermined"))
