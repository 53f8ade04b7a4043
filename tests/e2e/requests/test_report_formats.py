"""Reports of the demo checkpoint in every format, and the profile ``training``, through a real server."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path

import pydicom
import pytest
from fhir.resources.R4B.diagnosticreport import DiagnosticReport

from pedcxr_client import Client, ReportError
from pedcxr_client.cli.main import main
from pedcxr_client.reports.report import DEMO_NOTICE, DISCLAIMER
from pedcxr_client.request import prompts
from pedcxr_serve.demo import drawing, expected_report
from pedcxr_serve.demo.findings import sample
from tests.support.servers.local_server import LocalServer

pytestmark = pytest.mark.slow

CASE = sample(9_000_000)
RIGHT = expected_report.text(CASE)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.png"
    path.write_bytes(drawing.encode_png(drawing.render(CASE, 9_000_000)))
    return path


def rendered_report(running: LocalServer, film: Path, form: str) -> bytes:
    target = film.with_name(f"report.{form}")
    text = [] if CASE.age is None else ["--age", str(CASE.age)]
    text += [] if CASE.sex is None else ["--sex", CASE.sex]
    assert main(["report", str(film), *text, "--format", form, "-o", str(target), "--url", running.url]) == 0
    return target.read_bytes()


def test_each_format_names_the_demo_model(running: LocalServer, film: Path) -> None:
    with Client(running.url) as client:
        revision = client.model().revision
    assert revision
    fhir = rendered_report(running, film, "fhir").decode()
    DiagnosticReport.model_validate_json(fhir)
    presented = base64.b64decode(json.loads(fhir)["presentedForm"][0]["data"]).decode()
    sr = pydicom.dcmread(io.BytesIO(rendered_report(running, film, "sr")))
    forms = {
        "text": rendered_report(running, film, "text").decode(),
        "json": json.dumps(json.loads(rendered_report(running, film, "json"))),
        "csv": rendered_report(running, film, "csv").decode(),
        "fhir": fhir + presented,
        "sr": "\n".join(str(element.value) for element in sr.iterall()),
    }
    for name, text in forms.items():
        for required in (DISCLAIMER, DEMO_NOTICE, revision, prompts.CARD.sha256):
            assert required in text, (name, required)
    assert json.loads(forms["json"])["text"] == RIGHT
    assert f"\n{RIGHT}\n" in forms["text"]
    assert f"\n{RIGHT}\n" in presented
    head, row = csv.reader(io.StringIO(forms["csv"], newline=""))
    assert dict(zip(head, row, strict=True))["text"] == RIGHT
    assert expected_report.labels(RIGHT) == expected_report.labels(forms["sr"])


def test_the_server_accepts_the_training_prompt_with_an_indication(running: LocalServer, film: Path) -> None:
    profile = prompts.training("You are an expert paediatric radiologist. Describe what the film shows.")
    with Client(running.url) as client:
        assert text_of(client, film, profile)


def text_of(client: Client, film: Path, profile: prompts.Profile) -> str:
    """Return the model's text, valid report or not: the demo checkpoint was trained on the card prompt only."""
    try:
        report = client.report(film, age="5y", sex="F", prompt_profile=profile, indication="fever and cough")
    except ReportError as error:
        print(type(error).__name__)
        return error.text
    return report.text
