"""``pedcxr report --format``: output on stdout and in files, and usage errors before any request."""

from __future__ import annotations

import csv
import io
import json
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pydicom
import pytest

from pedcxr_client import DISCLAIMER
from pedcxr_client.cli import output
from pedcxr_client.cli.main import main
from pedcxr_client.reports import COLUMNS
from tests.support.films import dicom_maker
from tests.support.servers.fake_engine import TEXT, Answer


@pytest.fixture
def dicom(tmp_path) -> str:
    path = tmp_path / "film.dcm"
    path.write_bytes(
        dicom_maker.film(PatientName="Popescu^Ana", StudyInstanceUID="1.2.3.5", SeriesInstanceUID="1.2.3.6")
    )
    return str(path)


def report(engine, capsys, *arguments: str) -> str:
    assert main(["report", *arguments, "--url", engine.url]) == 0
    out, err = capsys.readouterr()
    assert err.endswith(DISCLAIMER + "\n")
    return out


def test_each_text_format_on_stdout(engine, path, capsys):
    text = report(engine, capsys, path, "--format", "text")
    assert text.startswith(DISCLAIMER) and f"\n{TEXT}\n" in text
    assert json.loads(report(engine, capsys, path, "--format", "json"))["text"] == TEXT
    assert json.loads(report(engine, capsys, path, "--json"))["schema"] == "pedcxr-report/1"
    head, row = csv.reader(io.StringIO(report(engine, capsys, path, "--format", "csv"), newline=""))
    assert dict(zip(COLUMNS, row, strict=True))["text"] == TEXT and tuple(head) == COLUMNS
    arguments = ["--format", "fhir", "--subject", "Patient/7", "--preliminary"]
    resource = json.loads(report(engine, capsys, path, *arguments))
    assert (resource["subject"]["reference"], resource["status"]) == ("Patient/7", "preliminary")


@pytest.mark.parametrize("flags", [[], ["--format", "text"], ["--json"], ["--format", "csv"], ["--format", "fhir"]])
def test_output_file_is_readable_by_its_owner_only(engine, path, tmp_path, capsys, flags):
    target = tmp_path / "out"
    assert report(engine, capsys, path, *flags, "-o", str(target)) == ""
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert DISCLAIMER in target.read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["film.png", "out"]


def test_sr_without_and_with_the_identity_of_the_film(engine, dicom, tmp_path, capsys):
    target = tmp_path / "sr.dcm"
    report(engine, capsys, dicom, "--format", "sr", "-o", str(target))
    assert not pydicom.dcmread(target).PatientName
    report(engine, capsys, dicom, "--format", "sr", "-o", str(target), "--force", "--copy-identity")
    document = pydicom.dcmread(target)
    assert (document.PatientName, document.StudyInstanceUID) == ("Popescu^Ana", "1.2.3.5")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert all(b"Popescu" not in chat.body and b"1.2.3.5" not in chat.body for chat in engine.chats)


def test_pdf_as_dicom_and_bare(engine, dicom, tmp_path, capsys):
    target, bare = tmp_path / "pdf.dcm", tmp_path / "report.pdf"
    report(engine, capsys, dicom, "--format", "pdf", "-o", str(target), "--copy-identity", "--patient-name", "Ion^Ana")
    document = pydicom.dcmread(target)
    assert (document.PatientName, document.StudyInstanceUID) == ("Ion^Ana", "1.2.3.5")
    assert document.EncapsulatedDocument.startswith(b"%PDF-1.4")
    report(engine, capsys, dicom, "--format", "pdf", "-o", str(bare))
    assert bare.read_bytes().startswith(b"%PDF-1.4")


def test_csv_for_excel_and_fhir_with_the_study_of_the_film(engine, dicom, capsys):
    assert report(engine, capsys, dicom, "--format", "csv", "--excel").startswith("\ufeffid,")
    arguments = ["--format", "fhir", "--copy-identity", "--based-on", "ServiceRequest/4"]
    resource = json.loads(report(engine, capsys, dicom, *arguments))
    assert resource["imagingStudy"][0]["identifier"]["value"] == "urn:oid:1.2.3.5"
    assert resource["basedOn"][0] == {"reference": "ServiceRequest/4"}
    assert "Popescu" not in json.dumps(resource)


def test_existing_file_is_replaced_only_with_force(engine, path, tmp_path, capsys):
    target = tmp_path / "out.txt"
    target.write_text("mine")
    assert main(["report", path, "-o", str(target), "--url", engine.url]) == 2
    assert "already exists; give another file name, or use --force" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert not engine.chats
    report(engine, capsys, path, "-o", str(target), "--force")
    assert TEXT in target.read_text()


def test_file_that_appears_after_the_check_is_not_replaced(tmp_path):
    target = tmp_path / "out.txt"
    output.check(str(target), film="x", force=False)
    target.write_text("mine")
    with pytest.raises(output.ConfigurationError, match="File exists"):
        output.write(str(target), b"new", force=False)
    assert target.read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["out.txt"]


def test_report_is_printed_if_its_file_cannot_be_written(engine, path, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    folder_is_gone = threading.Event()
    monkeypatch.setattr(engine, "answer", Answer(hold=folder_is_gone))
    command = [sys.executable, "-m", "pedcxr_client", "report", path, "-o", str(folder / "x"), "--url", engine.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not engine.chats and process.poll() is None:
            time.sleep(0.01)
        folder.rmdir()
        folder_is_gone.set()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == TEXT + "\n"
    assert "-o: cannot be written: No such file" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--format", "sr"], 2, "give a file to write: -o OUT.dcm"),
        (["--format", "pdf"], 2, "give a file to write: -o OUT.dcm"),
        (["--format", "docx"], 2, "invalid choice"),
        (["--format", "pdf", "-o", "TMP/x.pdf", "--new"], 2, "name the file OUT.dcm"),
        (["--format", "sr", "-o", "TMP/x", "--patient-name", "A^B"], 2, "valid only with --copy-identity"),
        (["--json", "--excel"], 2, "valid only with --format csv"),
        (["--format", "text", "--new"], 2, "valid only with --format sr, pdf"),
        (["--format", "fhir", "--accession", "A\\B"], 2, "FHIR accession must be"),
        (["--format", "fhir", "--copy-identity"], 3, "not a readable DICOM file"),
        (["--format", "json", "--json"], 2, "not allowed with"),
        (["--stream", "--format", "csv"], 2, "not allowed with"),
        (["--stream", "-o", "TMP/x"], 2, "cannot be combined with --stream"),
        (["--force"], 2, "valid only with -o"),
        (["--subject", "Patient/7"], 2, "valid only with --format fhir"),
        (["--json", "--preliminary"], 2, "valid only with --format fhir"),
        (["--format", "csv", "--copy-identity"], 2, "valid only with --format sr, pdf, fhir"),
        (["--format", "fhir", "--subject", "Popescu"], 2, "must be Patient/ID"),
        (["--format", "sr", "-o", "TMP/x", "--copy-identity"], 3, "not a readable DICOM file"),
        (["-o", "TMP/absent/x"], 2, "its folder does not exist"),
        (["-o", "TMP"], 2, "is not a regular file"),
        (["-o", "TMP/film.png", "--force"], 2, "is the film itself"),
        (["-o", "TMP/link", "--force"], 2, "is the film itself"),
        (["-o", "/dev/null", "--force"], 2, "is not a regular file"),
    ],
)
def test_usage_errors_are_reported_before_any_request(engine, path, tmp_path, capsys, arguments, code, message):
    (tmp_path / "link").symlink_to(path)
    arguments = [argument.replace("TMP", str(tmp_path)) for argument in arguments]
    before = Path(path).read_bytes()
    assert main(["report", path, *arguments, "--url", engine.url]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Popescu" not in err
    assert not engine.chats
    assert Path(path).read_bytes() == before


def test_sr_without_pydicom_gives_the_install_command(path, tmp_path):
    code = "import sys; sys.modules['pydicom'] = None\n"
    code += "from pedcxr_client.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "report", path, "--format", "sr", "-o", str(tmp_path / "x.dcm")]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert 'DICOM documents require pydicom: pip install "pedcxr[dicom]"' in process.stderr


def test_streamed_control_characters_are_replaced(engine, path, capsys):
    engine.answer = Answer(pieces=("Lungs\n\x1b]0;x\x07", " clear:\u00a05\u202fmm.\r\u009b2J"))
    assert main(["report", path, "--stream", "--url", engine.url]) == 4
    out, err = capsys.readouterr()
    assert out == "Lungs\n\ufffd]0;x\ufffd clear:\u00a05\u202fmm.\ufffd\ufffd2J\n"
    assert "is not text" in err
