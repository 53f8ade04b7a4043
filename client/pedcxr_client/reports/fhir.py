"""FHIR R4 DiagnosticReport (hl7.org/fhir/R4/diagnosticreport.html), without extensions.

In R4 a device cannot be the performer of a DiagnosticReport. The model is therefore the device of the contained
Observation, which holds the findings. ``conclusion`` is present only if the model wrote an impression.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode

from pedcxr_client.errors import ConfigurationError
from pedcxr_client.reports import provenance
from pedcxr_client.reports.plain_text import to_text
from pedcxr_client.reports.report import Report

TITLE = "AI-generated draft report of a chest film. Research use only. Not for diagnosis."

_SUBJECT = re.compile(r"((https?://[^\s?#]+/)?Patient/[A-Za-z0-9.-]{1,64}|urn:uuid:[0-9a-f-]{36})")
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2
_OTHER_SPACE = re.compile(r"[^\S \r\n\t]")  # a FHIR string allows four white-space characters


def to_fhir(report: Report, *, subject: str | None = None, preliminary: bool = False) -> str:
    """Return the resource as JSON on one line, without a trailing line break.

    Args:
        subject: reference to the patient: ``Patient/ID``, a URL that ends in it, or ``urn:uuid:...``. None leaves the
            subject out.
        preliminary: set the status ``preliminary`` instead of ``partial``. Neither is final.

    Raises:
        ConfigurationError: ``subject`` is not such a reference.
    """
    check_subject(subject)
    patient = {} if subject is None else {"subject": {"reference": subject}}
    resource: dict[str, object] = {
        "resourceType": "DiagnosticReport",
        "meta": {"security": _security_labels(report)},
        "text": {"status": "generated", "div": _narrative(report)},
        "contained": [_device(report), _observation(report) | patient],
        "status": "preliminary" if preliminary else "partial",
        "category": [_coded("http://terminology.hl7.org/CodeSystem/v2-0074", "RAD", "Radiology")],
        "code": _coded("http://loinc.org", "18748-4", "Diagnostic imaging study") | {"text": TITLE},
        **patient,
        "issued": provenance.created_utc(report),
        "result": [{"reference": "#findings"}],
        "presentedForm": [
            {
                "contentType": "text/plain; charset=utf-8",
                "language": "en",
                "data": b64encode(to_text(report).encode()).decode(),
                "title": TITLE,
                "creation": provenance.created_utc(report),
            }
        ],
    }
    if report.impression is not None:
        resource["conclusion"] = _string(report.impression)
    return json.dumps(resource, ensure_ascii=False)


def check_subject(subject: str | None) -> None:
    """Check a reference to a patient, or None. The error message does not contain it."""
    if subject is not None and not _SUBJECT.fullmatch(subject):
        raise ConfigurationError("FHIR subject must be Patient/ID, a URL that ends in Patient/ID, or urn:uuid:...")


def _coded(system: str, code: str, display: str) -> dict[str, object]:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def _security_labels(report: Report) -> list[dict[str, str]]:
    system = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
    research = {"system": system, "code": "HRESCH", "display": "healthcare research"}
    return [research, {"system": system, "code": "HTEST", "display": "test health data"}] if report.demo else [research]


def _device(report: Report) -> dict[str, object]:
    versions = [
        ("prompt profile", f"{report.prompt_profile}/{report.prompt_version}"),
        ("prompt profile sha256", report.prompt_sha256),
        ("image profile", report.image_profile),
    ]
    if report.model_revision is not None:
        versions.insert(0, ("model revision", report.model_revision))
    return {
        "resourceType": "Device",
        "id": "model",
        "deviceName": [{"name": _string(report.model), "type": "model-name"}],
        "type": {"text": "Vision-language model that drafts reports"},
        "version": [{"type": {"text": label}, "value": _string(value)} for label, value in versions],
        "note": [{"text": notice} for notice in report.notices],
    }


def _observation(report: Report) -> dict[str, object]:
    observation: dict[str, object] = {
        "resourceType": "Observation",
        "id": "findings",
        "status": "preliminary",
        "code": _coded("http://loinc.org", "59776-5", "Procedure findings Narrative"),
        "device": {"reference": "#model"},
        "note": [{"text": _string(remark)} for remark in (*report.notices, *provenance.remarks(report))],
    }
    if report.findings is not None:
        return observation | {"valueString": _string(report.findings)}
    absent = _coded("http://terminology.hl7.org/CodeSystem/data-absent-reason", "unknown", "Unknown")
    return observation | {"dataAbsentReason": absent | {"text": "The model wrote an impression alone."}}


def _narrative(report: Report) -> str:
    from html import escape

    remarks = [*report.notices, *provenance.remarks(report)]
    notices = "".join(f"<p><b>{escape(_NOT_XML.sub(' ', remark))}</b></p>" for remark in remarks)
    text = escape(_NOT_XML.sub(" ", report.text)).replace("\r\n", "\n").replace("\r", "\n").replace("\n", "<br/>")
    rows = "".join(
        f"<tr><td>{escape(label)}</td><td>{escape(_NOT_XML.sub(' ', value))}</td></tr>"
        for label, value in provenance.lines(report)
    )
    return f'<div xmlns="http://www.w3.org/1999/xhtml">{notices}<p>{text}</p><table>{rows}</table></div>'


def _string(text: str) -> str:
    return _OTHER_SPACE.sub(" ", text)
