"""``pedcxr report --format``: forms on stdout and in files, and what is refused before anything is sent."""

from __future__ import annotations

import csv
import io
import json
import stat
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from pedcxr_client import DISCLAIMER
from pedcxr_client.cli import output
from pedcxr_client.cli.main import main
from pedcxr_client.reports import COLUMNS
from tests.support import dicom_maker
from tests.support.fake_engine import TEXT, Answer


@pytest.fixture
def dicom(tmp_path) -> str:
    path = tmp_path / "film.dcm"
    path.write_bytes(
        dicom_maker.film(PatientName="Popescu^Ana", StudyInstanceUID="1.2.3.5", SeriesInstanceUID="1.2.3.6")
    )
    return str(path)


def written(engine, capsys, *arguments: str) -> str:
    assert main(["report", *arguments, "--url", engine.url]) == 0
    out, err = capsys.readouterr()
    assert err.endswith(DISCLAIMER + "\n")
    return out


def test_each_form_on_stdout(engine, path, capsys):
    text = written(engine, capsys, path, "--format", "text")
    assert text.startswith(DISCLAIMER) and f"\n{TEXT}\n" in text
    assert json.loads(written(engine, capsys, path, "--format", "json"))["text"] == TEXT
    assert json.loads(written(engine, capsys, path, "--json"))["schema"] == "pedcxr-report/1"
    head, row = csv.reader(io.StringIO(written(engine, capsys, path, "--format", "csv"), newline=""))
    assert dict(zip(COLUMNS, row, strict=True))["text"] == TEXT and tuple(head) == COLUMNS
    arguments = ["--format", "fhir", "--subject", "Patient/7", "--preliminary"]
    resource = json.loads(written(engine, capsys, path, *arguments))
    assert (resource["subject"]["reference"], resource["status"]) == ("Patient/7", "preliminary")


@pytest.mark.parametrize("form", [[], ["--format", "text"], ["--json"], ["--format", "csv"], ["--format", "fhir"]])
def test_a_file_for_its_owner_alone(engine, path, tmp_path, capsys, form):
    target = tmp_path / "out"
    assert written(engine, capsys, path, *form, "-o", str(target)) == ""
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert DISCLAIMER in target.read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["film.png", "out"]


def test_sr_of_nobody_and_of_the_film(engine, dicom, tmp_path, capsys):
    target = tmp_path / "sr.dcm"
    written(engine, capsys, dicom, "--format", "sr", "-o", str(target))
    assert not pydicom.dcmread(target).PatientName
    written(engine, capsys, dicom, "--format", "sr", "-o", str(target), "--force", "--copy-identity")
    document = pydicom.dcmread(target)
    assert (document.PatientName, document.StudyInstanceUID) == ("Popescu^Ana", "1.2.3.5")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert all(b"Popescu" not in seen.body and b"1.2.3.5" not in seen.body for seen in engine.chats)


def test_nothing_is_replaced_unasked(engine, path, tmp_path, capsys):
    target = tmp_path / "out.txt"
    target.write_text("mine")
    assert main(["report", path, "-o", str(target), "--url", engine.url]) == 2
    assert "is there already; give another name, or --force" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert not engine.chats
    written(engine, capsys, path, "-o", str(target), "--force")
    assert TEXT in target.read_text()


def test_a_file_that_came_meanwhile_is_left_alone(tmp_path):
    target = tmp_path / "out.txt"
    output.check(str(target), film="x", force=False)
    target.write_text("mine")
    with pytest.raises(output.ConfigurationError, match="File exists"):
        output.write(str(target), b"new", force=False)
    assert target.read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["out.txt"]


def test_a_report_that_cannot_be_filed_is_shown(engine, path, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.setattr(engine, "answer", Answer(first=0.5))
    command = [sys.executable, "-m", "pedcxr_client", "report", path, "-o", str(folder / "x"), "--url", engine.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not engine.chats and process.poll() is None:
            pass
        folder.rmdir()
        out, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert out == TEXT + "\n"
    assert "-o: cannot be written: No such file" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--format", "sr"], 2, "say where to write it: -o OUT.dcm"),
        (["--format", "pdf"], 2, "invalid choice"),
        (["--format", "json", "--json"], 2, "not allowed with"),
        (["--stream", "--format", "csv"], 2, "not allowed with"),
        (["--stream", "-o", "TMP/x"], 2, "--stream shows the text"),
        (["--force"], 2, "belongs to -o"),
        (["--subject", "Patient/7"], 2, "belongs to --format fhir"),
        (["--json", "--preliminary"], 2, "belongs to --format fhir"),
        (["--format", "fhir", "--copy-identity"], 2, "belongs to --format sr"),
        (["--format", "fhir", "--subject", "Popescu"], 2, "write Patient/ID"),
        (["--format", "sr", "-o", "TMP/x", "--copy-identity"], 3, "no DICOM file"),
        (["-o", "TMP/absent/x"], 2, "its folder does not exist"),
        (["-o", "TMP"], 2, "no plain file"),
        (["-o", "TMP/film.png", "--force"], 2, "is the film itself"),
        (["-o", "TMP/link", "--force"], 2, "is the film itself"),
        (["-o", "/dev/null", "--force"], 2, "no plain file"),
    ],
)
def test_what_is_wrong_is_so_before_anything_is_sent(engine, path, tmp_path, capsys, arguments, code, says):
    (tmp_path / "link").symlink_to(path)
    arguments = [argument.replace("TMP", str(tmp_path)) for argument in arguments]
    before = Path(path).read_bytes()
    assert main(["report", path, *arguments, "--url", engine.url]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert "Popescu" not in err
    assert not engine.chats
    assert Path(path).read_bytes() == before


def test_without_pydicom_the_line_that_installs_it(path, tmp_path):
    code = "import sys; sys.modules['pydicom'] = None\n"
    code += "from pedcxr_client.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "report", path, "--format", "sr", "-o", str(tmp_path / "x.dcm")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'DICOM SR needs pydicom: pip install "pedcxr[dicom]"' in done.stderr


def test_a_stream_gives_the_terminal_no_commands(engine, path, capsys):
    engine.answer = Answer(pieces=("Lungs\n\x1b]0;x\x07", " clear:\u00a05\u202fmm.\r\u009b2J"))
    assert main(["report", path, "--stream", "--url", engine.url]) == 4
    out, err = capsys.readouterr()
    assert out == "Lungs\n\ufffd]0;x\ufffd clear:\u00a05\u202fmm.\ufffd\ufffd2J\n"
    assert "is not text" in err
