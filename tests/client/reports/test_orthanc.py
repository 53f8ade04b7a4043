"""SR and PDF in a real archive: sent by C-STORE and STOW-RS, found by QIDO-RS, fetched by WADO-RS, read by others."""

from __future__ import annotations

import email.parser
import email.policy
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest

from pedcxr_client import DISCLAIMER
from pedcxr_client.reports import identity_of, to_dicom_pdf, to_sr
from tests.client.reports.test_formats import REPORT
from tests.support.films import dicom_maker
from tests.support.paths import ROOT
from tests.support.servers import orthanc_server
from tests.support.servers.fake_engine import TEXT, FakeEngine
from tests.support.servers.orthanc_server import Orthanc

pytestmark = [pytest.mark.slow, orthanc_server.needs_orthanc]
SCRIPT = ROOT / "deploy/orthanc/pedcxr_autoroute.py"
STUDY = "1.2.826.0.1.3680043.10.1"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Run one Orthanc for this module, with the recipe of deploy/orthanc if its plugin is installed."""
    settings = json.loads(
        "\n".join(
            line
            for line in (SCRIPT.parent / "orthanc.json").read_text().splitlines()
            if not line.strip().startswith("//")
        )
    )
    # The plugin's interpreter is Debian's. The path of this one is for the command alone.
    command = ["env", f"PYTHONPATH={os.pathsep.join(sys.path)}", sys.executable, "-m", "pedcxr_client"]
    with FakeEngine() as engine:
        settings |= {
            "PythonScript": str(SCRIPT), "StableAge": 1,
            "Pedcxr": {"Command": command, "Url": engine.url, "Arguments": []},
        }  # fmt: skip
        del settings["Plugins"]
        with orthanc_server.orthanc(tmp_path_factory.mktemp("orthanc"), **settings) as server:
            yield server


def film(study: str) -> bytes:
    return dicom_maker.film(
        PatientName="Popescu^Ștefan", SpecificCharacterSet="ISO_IR 192", PatientID="MRN-77", StudyInstanceUID=study,
        SeriesInstanceUID=f"{study}.1", SOPInstanceUID=f"{study}.1.1", WindowCenter=2048, WindowWidth=4096,
    )  # fmt: skip


@pytest.fixture
def documents(tmp_path) -> dict[str, bytes]:
    identity = identity_of(film(STUDY))
    return {"SR": to_sr(REPORT, identity=identity), "DOC": to_dicom_pdf(REPORT, identity=identity)}


def store(pacs: Orthanc, documents: dict[str, bytes], folder: Path) -> None:
    """Send documents by C-STORE."""
    if shutil.which("storescu") is None:
        pytest.skip("storescu is not on the PATH; Debian's package dcmtk has it")
    paths = []
    for name, data in documents.items():
        paths.append(folder / f"{name}.dcm")
        paths[-1].write_bytes(data)
    command = ["storescu", "-v", "-aec", orthanc_server.AET, "127.0.0.1", str(pacs.port), *map(str, paths)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert (completed.stdout + completed.stderr).count("Received Store Response (Success)") == len(documents)


def stow(pacs: Orthanc, documents: dict[str, bytes], _folder: Path) -> None:
    """Send documents by STOW-RS (PS3.18 section 10.5)."""
    parts = b"".join(
        b"--part\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n" for data in documents.values()
    )
    response = httpx.post(
        f"{pacs.url}/dicom-web/studies",
        content=parts + b"--part--\r\n",
        headers={
            "Content-Type": 'multipart/related; type="application/dicom"; boundary=part',
            "Accept": "application/dicom+json",
        },
        timeout=60,
    )
    assert response.status_code == 200, response.text
    answer = response.json()
    assert not answer.get("00081198", {}).get("Value"), "FailedSOPSequence"
    assert len(answer["00081199"]["Value"]) == len(documents)


def search(pacs: Orthanc, level: str, **query: str) -> list[dict[str, Any]]:
    """Search by QIDO-RS (PS3.18 section 10.6)."""
    found: list[dict[str, Any]] = pacs.get(f"/dicom-web/{level}", params=query)
    return found


def fetch(pacs: Orthanc, study: str, series: str, instance: str) -> bytes:
    """Retrieve an instance by WADO-RS (PS3.18 section 10.4)."""
    response = httpx.get(
        f"{pacs.url}/dicom-web/studies/{study}/series/{series}/instances/{instance}",
        headers={"Accept": 'multipart/related; type="application/dicom"'},
        timeout=60,
    ).raise_for_status()
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + response.content)
    (part,) = message.iter_parts()
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload


def test_documents_are_one_series_each_however_often_they_are_sent(pacs, documents, tmp_path):
    for send in (store, stow, store):
        send(pacs, documents, tmp_path)
    series = search(pacs, "series", StudyInstanceUID=STUDY)
    assert sorted(each["00080060"]["Value"][0] for each in series) == ["DOC", "SR"]
    instances = search(pacs, "instances", StudyInstanceUID=STUDY)
    assert len(instances) == 2
    (study,) = search(pacs, "studies", PatientID="MRN-77", StudyInstanceUID=STUDY)
    assert study["00100010"]["Value"][0]["Alphabetic"] == "Popescu^Ștefan"
    for each in instances:
        names = [each[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")]
        received = pydicom.dcmread(io.BytesIO(fetch(pacs, *names)))
        sent = pydicom.dcmread(io.BytesIO(documents[received.Modality]))
        assert received == sent


@pytest.mark.skipif(shutil.which("dsr2html") is None, reason="dsr2html is not on the PATH; Debian's package is dcmtk")
def test_sr_is_read_by_another_implementation(documents, tmp_path):
    path = tmp_path / "sr.dcm"
    path.write_bytes(documents["SR"])
    completed = subprocess.run(["dsr2html", "+U8", path], capture_output=True, check=False)
    page = completed.stdout.decode()
    assert completed.returncode == 0, completed.stderr
    for text in (DISCLAIMER, "warning: view: lateral", "The lungs are clear.", "Normal chest.", "Popescu"):
        assert text in page


@pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="pdftoppm is not on the PATH; Debian has poppler-utils")
def test_pdf_is_opened_by_another_implementation(documents, tmp_path):
    path = tmp_path / "report.pdf"
    path.write_bytes(pydicom.dcmread(io.BytesIO(documents["DOC"])).EncapsulatedDocument)
    page = subprocess.run(["pdftoppm", "-r", "50", "-gray", path], capture_output=True, check=True)
    assert page.stderr == b"" and page.stdout.startswith(b"P5") and min(page.stdout[-100_000:]) < 160
    text = subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True).stdout
    assert "warning: view: lateral" in text and "IMPRESSION: Normal chest." in text


@orthanc_server.needs_python
def test_recipe_reports_the_films_of_a_stable_study(pacs, tmp_path):
    study = f"{STUDY}.7"
    stow(pacs, {"DX": film(study)}, tmp_path)

    def modalities() -> list[str]:
        return sorted(each["00080060"]["Value"][0] for each in search(pacs, "series", StudyInstanceUID=study))

    orthanc_server.await_value(lambda: modalities() == ["DOC", "DX", "SR"])
    (instance,) = _instances(pacs, study, "DX")
    orthanc_server.await_value(lambda: "4711" in pacs.get(f"/instances/{instance}/metadata?numeric"))
    (report,) = _instances(pacs, study, "SR")
    document = pydicom.dcmread(io.BytesIO(httpx.get(f"{pacs.url}/instances/{report}/file").content))
    assert document.PatientName == "Popescu^Ștefan"
    texts = [item.value for item in document.iterall() if item.keyword == "TextValue"]
    assert set(texts) >= {DISCLAIMER, "The lungs are clear.", "Normal chest."}
    assert TEXT == "FINDINGS: The lungs are clear.\n\nIMPRESSION: Normal chest."
    stow(pacs, {"DX": film(study)}, tmp_path)
    assert modalities() == ["DOC", "DX", "SR"]


def _instances(pacs: Orthanc, study: str, modality: str) -> list[str]:
    query = {"Level": "Instance", "Query": {"StudyInstanceUID": study, "Modality": modality}}
    found: list[str] = httpx.post(f"{pacs.url}/tools/find", json=query, timeout=30).raise_for_status().json()
    return found
