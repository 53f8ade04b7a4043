"""The content tree of the SR document: items of PS3.3 C.17.3, as pydicom data sets. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from pedcxr_client.reports import provenance
from pedcxr_client.reports.report import Report
from pedcxr_client.reports.sections import preface

if TYPE_CHECKING:
    from pydicom import Dataset


class Code(NamedTuple):
    """A coded concept: value, coding scheme, meaning."""

    value: str
    scheme: str
    meaning: str


REPORT = Code("18748-4", "LN", "Diagnostic Imaging Report")  # TID 2000
LANGUAGE = Code("121049", "DCM", "Language of Content Item and Descendants")  # TID 1204
ENGLISH = Code("en", "RFC5646", "English")
OBSERVER_TYPE = Code("121005", "DCM", "Observer Type")  # TID 1002
DEVICE = Code("121007", "DCM", "Device")
OBSERVER_UID = Code("121012", "DCM", "Device Observer UID")  # TID 1004
OBSERVER_NAME = Code("121013", "DCM", "Device Observer Name")
OBSERVER_MODEL = Code("121015", "DCM", "Device Observer Model Name")
FINDINGS = Code("59776-5", "LN", "Findings")  # CID 7001, headings
IMPRESSIONS = Code("19005-8", "LN", "Impressions")
SUMMARY = Code("55112-7", "LN", "Summary")
FINDING = Code("121071", "DCM", "Finding")  # CID 7002, their elements
IMPRESSION = Code("121073", "DCM", "Impression")
COMMENT = Code("121106", "DCM", "Comment")

_CONTROL = re.compile("[\v\x85]")  # laid out a text; PS3.5 section 6.1.3 knows TAB, LF, FF and CR only


def items(report: Report, device_uid: str, film: tuple[str, str] | None) -> list[Dataset]:
    """The children of the root: language, observer, notices, sections, the film, the origin.

    Args:
        device_uid: names the model and its revision.
        film: SOP class and instance of the film, where the caller's source named them.
    """
    context = [
        _item("HAS CONCEPT MOD", "CODE", LANGUAGE, ENGLISH),
        _item("HAS OBS CONTEXT", "CODE", OBSERVER_TYPE, DEVICE),
        _item("HAS OBS CONTEXT", "UIDREF", OBSERVER_UID, device_uid),
        _item("HAS OBS CONTEXT", "TEXT", OBSERVER_NAME, f"{report.model} (pedcxr)"),
        _item("HAS OBS CONTEXT", "TEXT", OBSERVER_MODEL, _model(report)),
    ]
    words = [_text(COMMENT, notice) for notice in report.notices]
    before = preface(report.text)
    if before is not None:
        words.append(_section(SUMMARY, COMMENT, before))
    if report.findings is not None:
        words.append(_section(FINDINGS, FINDING, report.findings))
    if report.impression is not None:
        words.append(_section(IMPRESSIONS, IMPRESSION, report.impression))
    if film is not None:
        words.append(_image(*film))
    about = "\n".join(f"{label}: {value}" for label, value in provenance.lines(report))
    return [*context, *words, _text(COMMENT, about)]


def code(concept: Code) -> Dataset:
    """A code as a sequence's item."""
    from pydicom import Dataset

    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = concept
    return made


def _model(report: Report) -> str:
    return report.model if report.model_revision is None else f"{report.model}, revision {report.model_revision}"


def _item(relation: str, kind: str, concept: Code, value: str | Code | Iterable[Dataset]) -> Dataset:
    from pydicom import Dataset

    made = Dataset()
    made.RelationshipType, made.ValueType, made.ConceptNameCodeSequence = relation, kind, [code(concept)]
    if isinstance(value, Code):
        made.ConceptCodeSequence = [code(value)]
    elif kind == "UIDREF":
        made.UID = value
    elif isinstance(value, str):
        made.TextValue = _CONTROL.sub("\n", value)
    else:
        made.ContinuityOfContent, made.ContentSequence = "SEPARATE", list(value)
    return made


def _text(concept: Code, text: str) -> Dataset:
    return _item("CONTAINS", "TEXT", concept, text)


def _section(heading: Code, element: Code, text: str) -> Dataset:
    return _item("CONTAINS", "CONTAINER", heading, [_text(element, text)])


def _image(sop_class: str, sop_instance: str) -> Dataset:
    from pydicom import Dataset

    film, made = Dataset(), Dataset()
    film.ReferencedSOPClassUID, film.ReferencedSOPInstanceUID = sop_class, sop_instance
    made.RelationshipType, made.ValueType, made.ReferencedSOPSequence = "CONTAINS", "IMAGE", [film]
    return made
