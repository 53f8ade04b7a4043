"""Report formats: content, validity for their readers, and escaping."""

from __future__ import annotations

import csv
import io
import json
from base64 import b64decode
from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest
from fhir.resources.R4B.diagnosticreport import DiagnosticReport
from hypothesis import given
from hypothesis import strategies as some

from pedcxr_client import DISCLAIMER, Age, Check, ConfigurationError, Report, Timing, Usage
from pedcxr_client.reports import (
    COLUMNS,
    Context,
    Identity,
    context_of,
    to_csv,
    to_fhir,
    to_json,
    to_jsonl,
    to_pdf,
    to_sr,
    to_text,
)
from pedcxr_client.reports.provenance import PRIOR
from pedcxr_client.reports.report import DEMO_NOTICE
from pedcxr_client.request.prompts import CARD

TEXT = "FINDINGS: The lungs are clear.\r\nCœur < normal & \u2028 fine.\x85\nIMPRESSION: Normal chest."
REPORT = Report(
    text=TEXT,
    finish_reason="stop",
    model="medgemma-4b-it-ped",
    model_revision="3f2a1b",
    demo=False,
    age=Age(5, "Y"),
    sex="M",
    view="PA",
    prompt="Generate a radiology report for this chest X-ray of a 5-year-old male.",
    prompt_profile="card",
    prompt_version=1,
    prompt_sha256=CARD.sha256,
    indication_sha256=None,
    image_sha256="ab" * 32,
    image_how=("original bytes",),
    image_profile="display",
    checks=(Check("view", "warn", "lateral"), Check("modality", "block", "it is CT", allowed=True)),
    max_tokens=500,
    usage=Usage(300, 41),
    timing=Timing(scheduled=1.0, encoded=1.1, sent=1.2, first=1.5, last=2.5, done=2.6, completion_tokens=41),
    request_id="req-7",
    attempts=1,
    created=datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC),
)
DEMO = replace(REPORT, demo=True, model="pedcxr-demo")
UNKNOWN = replace(
    REPORT, model_revision=None, age=None, sex=None, view=None, usage=None, request_id=None, checks=(),
    text="Clear lungs.", timing=Timing(scheduled=0.0),
)  # fmt: skip


def everything(report: Report) -> dict[str, str]:
    """Return the content of each format as searchable text, with base64 decoded and DICOM values listed."""
    import pydicom

    fhir = json.loads(to_fhir(report))
    document = pydicom.dcmread(io.BytesIO(to_sr(report)))
    values = "\n".join(str(element.value) for element in document.iterall())
    return {
        "text": to_text(report),
        "json": json.dumps(json.loads(to_json(report)), ensure_ascii=False),
        "jsonl": json.dumps(json.loads(to_jsonl(report)), ensure_ascii=False),
        "csv": to_csv(report),
        "pdf": to_pdf(report).decode("latin-1").replace(") Tj T*\n(", " ").replace("\\226", "\u2013"),
        "fhir": json.dumps(fhir, ensure_ascii=False) + b64decode(fhir["presentedForm"][0]["data"]).decode(),
        "sr": values,
    }


@pytest.mark.parametrize("report", [REPORT, DEMO, UNKNOWN], ids=["report", "demo", "unknown"])
def test_each_format_contains_the_notices_and_the_provenance(report):
    for name, content in everything(report).items():
        for value in (DISCLAIMER, report.model, report.prompt_profile, CARD.sha256, report.image_profile):
            assert value in content, (name, value)
        assert report.image_sha256 in content
        assert "original bytes" in content, name
        assert (DEMO_NOTICE in content) is report.demo, name
        assert report.model_revision is None or report.model_revision in content, name
        assert "2026-11-24T01:02:03" in content, name
        assert report.request_id is None or report.request_id in content, name
        assert "Clear lungs" in content or "The lungs are clear." in content, name


def test_each_format_contains_the_overridden_checks_and_the_warnings_of_the_header():
    plain = Check("human", "warn", "a plain image has no header", from_header=False)
    for name, content in everything(replace(REPORT, checks=(*REPORT.checks, plain))).items():
        assert "it is CT" in content, name
        assert "lateral" in content, name
        assert ("has no header" in content) is (name in ("json", "jsonl", "csv")), name


def test_each_format_flags_a_comparison_with_an_earlier_film():
    prior = everything(replace(UNKNOWN, text="The effusion is unchanged."))
    none = everything(UNKNOWN)
    for name in ("text", "fhir", "sr", "pdf"):
        assert PRIOR in prior[name] and PRIOR not in none[name], name
    for name in ("json", "jsonl"):
        assert json.loads(prior[name])["mentions_prior"] is True
        assert json.loads(none[name])["mentions_prior"] is False
    assert [rows(table["csv"])[1][COLUMNS.index("mentions_prior")] for table in (prior, none)] == ["true", "false"]


def test_each_format_contains_the_digest_of_the_indication():
    report = replace(REPORT, indication_sha256="cd" * 32)
    assert all("cd" * 32 in content for content in everything(report).values())


# Text


def test_text_format_contains_the_text_byte_for_byte():
    assert f"\n{TEXT}\n" in to_text(REPORT)
    assert to_text(DEMO).startswith(f"{DEMO_NOTICE}\n{DISCLAIMER}\nwarning: view: lateral\n")
    assert to_text(UNKNOWN).startswith(f"{DISCLAIMER}\n---")


# JSON


def test_json_keys():
    record = json.loads(to_json(REPORT, film_id="film 7"))
    assert list(record) == [
        "schema", "id", "text", "findings", "impression", "language", "mentions_prior", "disclaimer", "demo", "notices",
        "model", "model_revision", "created", "finish_reason", "request_id", "age", "sex", "view", "prompt", "image",
        "checks", "parameters", "usage", "attempts", "timing",
    ]  # fmt: skip
    assert (record["schema"], record["id"], record["age"]) == ("pedcxr-report/1", "film 7", "5y")
    assert set(record["prompt"]) == {
        "profile", "version", "sha256", "text", "indication_given", "indication_sha256",
    }  # fmt: skip
    assert record["text"] == TEXT
    assert json.loads(to_json(UNKNOWN))["id"] is None


@given(some.text(some.characters(exclude_categories=["Cs"])))
def test_json_line_is_one_line_for_any_text(text):
    line = to_jsonl(replace(REPORT, text=text), film_id=text)
    assert len(line.splitlines()) == 1
    assert line.endswith("}\n")
    record = json.loads(line)
    assert (record["text"], record["id"]) == (text, text)


# CSV


def rows(table: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(table, newline="")))


def unescaped(cell: str) -> str:
    return cell.removeprefix("'")


def test_csv_columns():
    head, row = rows(to_csv(REPORT, film_id="7"))
    assert tuple(head) == COLUMNS
    cells = dict(zip(head, row, strict=True))
    expected = {
        "id": "7", "age": "5y", "sex": "M", "view": "PA", "impression": "Normal chest.", "text": TEXT,
        "warnings": "view warn: lateral | modality allowed: it is CT", "prompt_profile": "card", "demo": "false",
        "prompt_tokens": "300", "ttft_s": "0.300000", "tpot_s": "0.025000", "notices": DISCLAIMER, "temperature": "0",
    }  # fmt: skip
    assert {name: cells[name] for name in expected} == expected
    empty = dict(zip(COLUMNS, rows(to_csv(UNKNOWN))[1], strict=True))
    assert [name for name, cell in empty.items() if not cell] == [
        "id", "age", "sex", "view", "impression", "warnings", "indication_sha256", "model_revision", "prompt_tokens",
        "completion_tokens", "ttft_s", "tpot_s", "e2e_s", "request_id",
    ]  # fmt: skip
    assert to_csv(REPORT, header=False) == to_csv(REPORT).partition("\r\n")[2]


def test_csv_for_excel_starts_with_a_byte_order_mark():
    assert to_csv(REPORT, excel=True) == "\ufeff" + to_csv(REPORT)
    assert to_csv(REPORT, excel=True, header=False) == to_csv(REPORT, header=False)


@given(some.text(some.characters(exclude_categories=["Cs"]), max_size=40))
def test_csv_restores_any_text(text):
    cells = dict(zip(COLUMNS, rows(to_csv(replace(REPORT, text=text), film_id=text))[1], strict=True))
    assert unescaped(cells["text"]) == unescaped(cells["id"]) == text


@given(some.sampled_from(["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", " =", "\u00a0@"]), some.text(max_size=9))
def test_no_csv_cell_starts_like_a_formula(first, rest):
    text = first + rest.encode(errors="ignore").decode()
    for cell in rows(to_csv(replace(REPORT, text=text, model=text), film_id=text))[1]:
        assert not cell.lstrip().startswith(("=", "+", "-", "@", "\uff1d"))


# FHIR


@pytest.mark.parametrize("report", [REPORT, DEMO, UNKNOWN, replace(REPORT, text="IMPRESSION: Normal.")])
def test_fhir_is_valid(report):
    document = to_fhir(report, subject="Patient/7")
    DiagnosticReport.model_validate_json(document)
    resource = json.loads(document)
    text = ElementTree.fromstring(resource["text"]["div"])  # the schema does not validate XHTML
    assert text.tag == "{http://www.w3.org/1999/xhtml}div"
    check_invariants(resource)


def check_invariants(resource: dict) -> None:
    """Check the R4 invariants that fhir.resources does not check."""
    assert "performer" not in resource, "in R4 a device cannot be the performer of a report"
    for inner in resource["contained"]:
        assert f'"reference": "#{inner["id"]}"' in json.dumps(resource), "dom-3: contained resources are referenced"
    assert not any("meta" in inner or "contained" in inner for inner in resource["contained"]), "dom-2, dom-4"
    assert resource["text"]["div"].strip(), "txt-2"
    observation = next(inner for inner in resource["contained"] if inner["resourceType"] == "Observation")
    assert ("valueString" in observation) is not ("dataAbsentReason" in observation), "obs-6"
    assert resource["issued"].endswith("+00:00"), "an instant requires a time zone"


def test_fhir_content():
    resource = json.loads(to_fhir(REPORT))
    assert resource["status"] == "partial"
    assert resource["category"][0]["coding"][0]["code"] == "RAD"
    assert resource["code"]["coding"][0] == {
        "system": "http://loinc.org", "code": "18748-4", "display": "Diagnostic imaging study",
    }  # fmt: skip
    assert "text" not in resource["code"], "a title would change what the code means"
    assert "Not for diagnosis" in resource["presentedForm"][0]["title"]
    assert resource["language"] == resource["presentedForm"][0]["language"] == "en"
    assert not resource.keys() & {"subject", "basedOn", "imagingStudy", "effectiveDateTime"}
    assert resource["conclusion"] == "Normal chest."
    assert b64decode(resource["presentedForm"][0]["data"]).decode() == to_text(REPORT)
    assert "subject" not in resource
    device, observation = resource["contained"]
    assert device["deviceName"][0]["name"] == REPORT.model
    assert {"type": {"text": "model revision"}, "value": "3f2a1b"} in device["version"]
    assert observation["device"] == {"reference": f"#{device['id']}"}
    assert resource["result"] == [{"reference": f"#{observation['id']}"}]


def test_fhir_without_an_impression_has_no_conclusion():
    resource = json.loads(to_fhir(UNKNOWN))
    assert "conclusion" not in resource
    assert resource["contained"][1]["valueString"] == "Clear lungs."


def test_fhir_status_is_preliminary_on_request_and_never_final():
    assert json.loads(to_fhir(REPORT, preliminary=True))["status"] == "preliminary"
    assert "final" not in to_fhir(DEMO, preliminary=True)


def test_fhir_security_labels_mark_a_demo():
    codes = [label["code"] for label in json.loads(to_fhir(DEMO))["meta"]["security"]]
    assert codes == ["AIAST", "HRESCH", "HTEST"]
    assert "HTEST" not in to_fhir(REPORT)


@pytest.mark.parametrize(
    "subject", ["Patient/7", "https://ehr.example/fhir/Patient/a-7.b", "urn:uuid:1b4e28ba-2fa1-11d2-883f-0016d3cca427"]
)
def test_fhir_subject(subject):
    resource = json.loads(to_fhir(REPORT, subject=subject))
    DiagnosticReport.model_validate(resource)
    assert resource["subject"] == resource["contained"][1]["subject"] == {"reference": subject}


@pytest.mark.parametrize("subject", ["", "Popescu", "Practitioner/7", "Patient/", "Patient/7\n", "Patient/7?x=1"])
def test_fhir_rejects_an_invalid_subject(subject):
    with pytest.raises(ConfigurationError, match="must be Patient/ID") as caught:
        to_fhir(REPORT, subject=subject)
    assert not subject or subject not in str(caught.value).replace("Patient/ID", "")


def test_fhir_identifier_is_that_of_the_report():
    def identifier(report: Report) -> str:
        return json.loads(to_fhir(report))["identifier"][0]["value"]

    assert identifier(REPORT) == identifier(replace(REPORT))
    assert identifier(REPORT).startswith("urn:uuid:")
    others = [replace(REPORT, text="Clear."), replace(REPORT, image_sha256="cd" * 32), replace(REPORT, model="other")]
    assert len({identifier(report) for report in (REPORT, *others)}) == 4


def test_fhir_context():
    context = Context(
        subject="Patient/7", based_on="ServiceRequest/3", imaging_study="1.2.840.3", accession="A-1",
        effective="2026-11-24T01:02:03+02:00",
    )  # fmt: skip
    resource = json.loads(to_fhir(REPORT, context=context))
    DiagnosticReport.model_validate(resource)
    order, accession = resource["basedOn"]
    assert order == {"reference": "ServiceRequest/3"}
    assert (accession["identifier"]["value"], accession["identifier"]["type"]["coding"][0]["code"]) == ("A-1", "ACSN")
    assert resource["imagingStudy"][0]["identifier"] == {"system": "urn:dicom:uid", "value": "urn:oid:1.2.840.3"}
    assert resource["effectiveDateTime"] == resource["contained"][1]["effectiveDateTime"] == context.effective
    resource = json.loads(to_fhir(REPORT, context=Context(imaging_study="https://ehr.example/ImagingStudy/9")))
    assert resource["imagingStudy"] == [{"reference": "https://ehr.example/ImagingStudy/9"}]
    assert "A-1" not in repr(context)


@pytest.mark.parametrize(
    "values",
    [
        {"based_on": "Patient/7"},
        {"based_on": "ServiceRequest/ "},
        {"imaging_study": "1.2.x"},
        {"imaging_study": "1." * 33 + "1"},
        {"accession": ""},
        {"accession": "A\\B"},
        {"accession": "1234567890ABCDEFG"},
        {"effective": "24.11.2026"},
        {"effective": "2026-13-01"},
        {"effective": "2026-11-24T01:02:09"},
    ],
)
def test_fhir_rejects_an_invalid_context(values):
    (value,) = values.values()
    with pytest.raises(ConfigurationError, match="FHIR") as caught:
        Context(**values)
    assert not value or value not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "effective"),
    [
        (
            {"StudyDate": "20240102", "StudyTime": "101112.5", "TimezoneOffsetFromUTC": "-0330"},
            "2024-01-02T10:11:12-03:30",
        ),
        ({"StudyDate": "20240102", "StudyTime": "101112"}, "2024-01-02"),
        ({"StudyDate": "20249902"}, None),
        ({"StudyDate": "2024"}, None),
        ({}, None),
    ],
)
def test_fhir_context_of_a_film(header, effective):
    identity = Identity({"StudyInstanceUID": "1.2.3", "AccessionNumber": "A-1", **header})
    context = context_of(identity)
    assert (context.imaging_study, context.accession, context.effective) == ("1.2.3", "A-1", effective)
    assert context_of(identity, Context(accession="B", effective="2020")).effective == "2020"
    assert context_of(Identity({"StudyInstanceUID": "1.2.3", "AccessionNumber": "x" * 17})).accession is None


@given(some.text(some.characters(exclude_categories=["Cs"]), max_size=60))
def test_fhir_accepts_any_text(text):
    report = replace(REPORT, text=f"Lungs {text}")
    resource = json.loads(to_fhir(report))
    DiagnosticReport.model_validate(resource)
    ElementTree.fromstring(resource["text"]["div"])
    assert f"\n{report.text}\n" in b64decode(resource["presentedForm"][0]["data"]).decode()
