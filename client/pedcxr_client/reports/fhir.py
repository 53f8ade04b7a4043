"""FHIR R4 DiagnosticReport (hl7.org/fhir/R4/diagnosticreport.html), without extensions.

In R4 a device cannot be the performer of a DiagnosticReport. The model is therefore the device of the contained
Observation, which holds the findings. ``conclusion`` is present only if the model wrote an impression.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from dataclasses import dataclass, replace
from datetime import datetime

from pedcxr_client.errors import ConfigurationError
from pedcxr_client.reports import provenance
from pedcxr_client.reports.dicom_header import Identity
from pedcxr_client.reports.plain_text import to_text
from pedcxr_client.reports.report import Report

TITLE = "AI-generated draft report of a chest film. Research use only. Not for diagnosis."

_URN = r"urn:uuid:[0-9a-f-]{36}"
_DATE_TIME = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d))?)?)?")  # of R4, without fractions
_ACCESSION = re.compile(r"[^\\\x00-\x1f\x7f-\x9f]{1,16}")  # PS3.5 section 6.2, VR SH
_STUDY_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2
_OTHER_SPACE = re.compile(r"[^\S \r\n\t]")  # a FHIR string allows four white-space characters


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Context:
    """What a resource refers to. Its ``repr`` shows nothing.

    Args:
        subject: reference to the patient: ``Patient/ID``, a URL that ends in it, or ``urn:uuid:...``.
        based_on: reference to the order: ``ServiceRequest/ID``, a URL that ends in it, or ``urn:uuid:...``.
        imaging_study: reference to the study: ``ImagingStudy/ID``, a URL that ends in it, ``urn:uuid:...``, or the
            Study Instance UID.
        accession: accession number of the order, at most 16 characters.
        effective: the time of the film, as a FHIR dateTime such as ``2026-11-24`` or ``2026-11-24T01:02:03Z``.

    Raises:
        ConfigurationError: a value has another form. The message does not contain it.
    """

    subject: str | None = None
    based_on: str | None = None
    imaging_study: str | None = None
    accession: str | None = None
    effective: str | None = None

    def __post_init__(self) -> None:
        for name, kind in (("subject", "Patient"), ("based_on", "ServiceRequest"), ("imaging_study", "ImagingStudy")):
            value = getattr(self, name)
            if name == "imaging_study" and value is not None and len(value) <= 64 and _STUDY_UID.fullmatch(value):
                continue
            if value is not None and not re.fullmatch(
                rf"((https?://[^\s?#]+/)?{kind}/[A-Za-z0-9.-]{{1,64}}|{_URN})", value
            ):
                also = ", or a Study Instance UID" if name == "imaging_study" else ""
                label = name.replace("_", " ")
                raise ConfigurationError(
                    f"FHIR {label} must be {kind}/ID, a URL that ends in {kind}/ID, or urn:uuid:...{also}"
                )
        if self.accession is not None and not _ACCESSION.fullmatch(self.accession):
            raise ConfigurationError("FHIR accession must be 1 to 16 printable characters without backslash")
        if self.effective is not None and not _is_date_time(self.effective):
            raise ConfigurationError("FHIR effective must be a date, or a time with a time zone: 2026-11-24T01:02:03Z")

    def __repr__(self) -> str:
        return "<Context>"


NO_CONTEXT = Context()


def context_of(identity: Identity, context: Context = NO_CONTEXT) -> Context:
    """Return the context with the study, the accession number and the time of a film, where the caller gave none.

    A time without a time zone becomes a date. An accession number that is too long is left out.
    """
    values = identity.values
    accession = values.get("AccessionNumber", "")
    day, clock, offset = (values.get(name, "") for name in ("StudyDate", "StudyTime", "TimezoneOffsetFromUTC"))
    effective = f"{day[:4]}-{day[4:6]}-{day[6:]}"
    if re.fullmatch(r"\d{6}.*", clock) and re.fullmatch(r"[+-]\d{4}", offset):
        timed = f"{effective}T{clock[:2]}:{clock[2:4]}:{clock[4:6]}{offset[:3]}:{offset[3:]}"
        effective = timed if _is_date_time(timed) else effective
    return replace(
        context,
        imaging_study=context.imaging_study or values["StudyInstanceUID"],
        accession=context.accession or (accession if _ACCESSION.fullmatch(accession) else None),
        effective=context.effective or (effective if len(day) == 8 and _is_date_time(effective) else None),
    )


def _is_date_time(text: str) -> bool:
    if not _DATE_TIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text if len(text) >= 10 else f"{text}-01-01"[:10])
    except ValueError:
        return False
    return True


def to_fhir(
    report: Report, *, subject: str | None = None, context: Context = NO_CONTEXT, preliminary: bool = False
) -> str:
    """Return the resource as JSON on one line, without a trailing line break.

    The identifier is derived from the report. A server that receives the resource twice can recognise it.

    Args:
        subject: reference to the patient, as in `Context`.
        context: references to patient, order and study, and the time of the film. Unknown ones are left out.
        preliminary: set the status ``preliminary`` instead of ``partial``. Neither is final.

    Raises:
        ConfigurationError: ``subject`` is not such a reference.
    """
    context = context if subject is None else replace(context, subject=subject)
    patient = {} if context.subject is None else {"subject": {"reference": context.subject}}
    effective = {} if context.effective is None else {"effectiveDateTime": context.effective}
    created = provenance.created_utc(report)
    resource: dict[str, object] = {
        "resourceType": "DiagnosticReport",
        "meta": {"security": _security_labels(report)},
        "language": report.language,
        "text": {"status": "generated", "div": _narrative(report)},
        "contained": [_device(report), _observation(report) | patient | effective],
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{provenance.uuid(report)}"}],
        **_orders(context),
        "status": "preliminary" if preliminary else "partial",
        "category": [_coded("http://terminology.hl7.org/CodeSystem/v2-0074", "RAD", "Radiology")],
        "code": _coded("http://loinc.org", "18748-4", "Diagnostic imaging study"),
        **patient,
        **effective,
        "issued": created,
        "result": [{"reference": "#findings"}],
        **_study(context),
        "presentedForm": [
            {
                "contentType": "text/plain; charset=utf-8",
                "language": report.language,
                "data": b64encode(to_text(report).encode()).decode(),
                "title": TITLE,
                "creation": created,
            }
        ],
    }
    if report.impression is not None:
        resource["conclusion"] = _string(report.impression)
    return json.dumps(resource, ensure_ascii=False)


def _orders(context: Context) -> dict[str, object]:
    orders: list[dict[str, object]] = []
    if context.based_on is not None:
        orders.append({"reference": context.based_on})
    if context.accession is not None:
        system = "http://terminology.hl7.org/CodeSystem/v2-0203"
        identifier = {"type": _coded(system, "ACSN", "Accession ID"), "value": context.accession}
        orders.append({"type": "ServiceRequest", "identifier": identifier})
    return {"basedOn": orders} if orders else {}


def _study(context: Context) -> dict[str, object]:
    study = context.imaging_study
    if study is None:
        return {}
    if _STUDY_UID.fullmatch(study):
        identifier = {"system": "urn:dicom:uid", "value": f"urn:oid:{study}"}
        return {"imagingStudy": [{"type": "ImagingStudy", "identifier": identifier}]}
    return {"imagingStudy": [{"reference": study}]}


def _coded(system: str, code: str, display: str) -> dict[str, object]:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def _security_labels(report: Report) -> list[dict[str, str]]:
    terminology = "http://terminology.hl7.org/CodeSystem/"
    labels = [
        ("v3-ObservationValue", "AIAST", "Artificial Intelligence asserted"),
        ("v3-ActReason", "HRESCH", "healthcare research"),
        *([("v3-ActReason", "HTEST", "test health data")] if report.demo else []),
    ]
    return [{"system": terminology + name, "code": code, "display": display} for name, code, display in labels]


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
