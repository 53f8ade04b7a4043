"""``pedcxr export``: the reports of a run in every format, with no request to a server."""

from __future__ import annotations

import base64
import csv
import io
import json
import resource
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from html import escape
from pathlib import Path

import pydicom
import pytest
from PIL import Image

from pedcxr_client import DISCLAIMER, Report
from pedcxr_client.cli.main import main
from pedcxr_client.films.film import prepare
from pedcxr_client.films.geometry import Preparation
from pedcxr_client.reports import COLUMNS, to_jsonl, to_text
from pedcxr_client.reports.provenance import PRIOR
from pedcxr_client.reports.report import DEMO_NOTICE
from tests.client.reports.test_formats import DEMO, REPORT
from tests.support.films import dicom_maker

ERROR = json.dumps({"schema": "pedcxr-error/1", "id": "9", "error": {"kind": "failed"}}) + "\n"
ROMANIAN = replace(REPORT, text="Cordul este normal. Pl\u0103m\u00e2nii sunt clari.")


def run_file(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "run.jsonl"
    path.write_text("".join(lines))
    return str(path)


def export(run: str, folder: Path, *arguments: str, code: int = 0) -> None:
    assert main(["export", run, "-o", str(folder), *arguments]) == code


@pytest.fixture
def run(tmp_path) -> str:
    return run_file(tmp_path, to_jsonl(REPORT, film_id="a/film 1.dcm"), ERROR, to_jsonl(REPORT, film_id="b.png"))


@pytest.mark.parametrize(
    ("name", "suffix"), [("text", ".txt"), ("fhir", ".json"), ("sr", ".sr.dcm"), ("pdf", ".pdf.dcm")]
)
def test_one_file_per_film(run, tmp_path, capsys, name, suffix):
    export(run, tmp_path / "out", "--format", name)
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"a_film_1.dcm-0f95836b{suffix}", f"b.png{suffix}"]
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert files[0].read_bytes() == files[1].read_bytes(), "the id of a film is in the name of its file only"
    if name == "text":
        assert files[0].read_bytes() == to_text(REPORT).encode()
    err = capsys.readouterr().err
    assert "2 reports exported; 1 lines without a report" in err
    assert err.endswith(DISCLAIMER + "\n")


def test_table(run, tmp_path, capsys):
    export(run, tmp_path / "out", "--format", "csv", "--excel")
    data = (tmp_path / "out/reports.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbfid,")
    head, *rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    assert tuple(head) == COLUMNS
    assert [row[0] for row in rows] == ["a/film 1.dcm", "b.png"]
    assert dict(zip(head, rows[0], strict=True))["text"] == REPORT.text


@pytest.mark.parametrize("name", ["csv", "text", "fhir", "sr", "pdf"])
def test_second_export_into_the_same_folder_changes_nothing(run, tmp_path, capsys, name):
    for _ in range(2):
        export(run, tmp_path / "out", "--format", name)
    files = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    other = run_file(tmp_path, to_jsonl(replace(REPORT, attempts=2, text="Clear lungs."), film_id="b.png"))
    export(other, tmp_path / "out", "--format", name, code=2)
    assert "another" in (err := capsys.readouterr().err) or "File exists" in err
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == files
    export(other, tmp_path / "out", "--format", name, "--force")
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} != files


def test_two_exports_at_the_same_time_write_each_file_once(run, tmp_path):
    codes: list[int] = []
    arguments = ["export", run, "-o", str(tmp_path / "out"), "--format", "sr"]
    threads = [threading.Thread(target=lambda: codes.append(main(arguments))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 4
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_new_writes_another_series(run, tmp_path):
    for folder, flags in (("one", []), ("two", []), ("three", ["--new"])):
        export(run, tmp_path / folder, "--format", "sr", *flags)
    one, two, three = (pydicom.dcmread(tmp_path / folder / "b.png.sr.dcm") for folder in ("one", "two", "three"))
    assert one.SeriesInstanceUID == two.SeriesInstanceUID != three.SeriesInstanceUID


def test_last_report_of_a_film_counts(tmp_path, capsys):
    later = replace(REPORT, text="Clear lungs.", demo=True)
    run = run_file(tmp_path, to_jsonl(REPORT, film_id="7"), to_jsonl(DEMO), to_jsonl(later, film_id="7"))
    export(run, tmp_path / "out", "--format", "text")
    assert (tmp_path / "out/7.txt").read_text() == to_text(later)
    assert (tmp_path / "out/line-2.txt").exists(), "a report without an id"
    err = capsys.readouterr().err
    assert "1 earlier reports of the same films left out" in err
    assert DEMO_NOTICE in err


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"schema": "pedcxr-report/1", "id": "Popescu", "te', "is incomplete; run pedcxr batch again"),
        ("Popescu\n", "is not a JSON object"),
        (to_jsonl(REPORT).replace("pedcxr-report/1", "pedcxr-report/2"), "has a schema of another version"),
        (to_jsonl(ROMANIAN, film_id="Popescu"), "is not in English (language ro)"),
        (to_jsonl(replace(REPORT, text="FINDINGS:")), "states no finding"),
        (to_jsonl(REPORT).replace('"stop"', '"length"'), "finish_reason: is 'length'"),
    ],
)
def test_lines_that_are_no_reports_are_left_out_with_the_reason(tmp_path, capsys, line, why):
    run = run_file(tmp_path, to_jsonl(REPORT, film_id="7"), line)
    export(run, tmp_path / "out", "--format", "text", code=3)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["7.txt"]
    err = capsys.readouterr().err
    assert f"line 2: {why}" in err or why in err
    assert "1 lines left out" in err
    assert "Popescu" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["RUN", "-o", "TMP/out"], 2, "--format"),
        (["RUN", "-o", "TMP/out", "--format", "json"], 2, "invalid choice"),
        (["RUN", "-o", "TMP/run.jsonl", "--format", "csv"], 2, "-o: is not a folder"),
        (["RUN", "-o", "TMP/absent/out", "--format", "csv"], 2, "-o: cannot be created: No such file"),
        (["RUN", "-o", "TMP/out", "--format", "text", "--excel"], 2, "valid only with --format csv"),
        (["RUN", "-o", "TMP/out", "--format", "sr", "--copy-identity"], 2, "need each other"),
        (["RUN", "-o", "TMP/out", "--format", "sr", "--films", "TMP"], 2, "need each other"),
        (["TMP/absent", "-o", "TMP/out", "--format", "csv"], 3, "the run: No such file"),
        (["TMP", "-o", "TMP/out", "--format", "csv"], 3, "the run: Is a directory"),
        (["TMP/empty", "-o", "TMP/out", "--format", "csv"], 3, "contains no line"),
    ],
)
def test_usage_errors(run, tmp_path, capsys, arguments, code, message):
    (tmp_path / "empty").touch()
    arguments = [argument.replace("TMP", str(tmp_path)).replace("RUN", run) for argument in arguments]
    assert main(["export", *arguments]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["csv", "text"])
def test_full_disk_leaves_whole_files_only(run, tmp_path, name):
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    command = [sys.executable, "-m", "pedcxr_client", "export", run, "-o", tmp_path / "out", "--format", name]
    process = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit_file_size)
    assert process.returncode == 2
    assert "-o: cannot be written: File too large" in process.stderr
    assert list((tmp_path / "out").iterdir()) == []
    export(run, tmp_path / "out", "--format", name)


# With the films


@pytest.fixture
def films(tmp_path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    for number, (name, window) in enumerate([("Popescu^Ana", 1024), ("Ionescu^Dan", 3000)]):
        film = dicom_maker.film(
            PatientName=name, StudyInstanceUID=f"1.2.{number + 3}", SeriesInstanceUID="1.2.9", AccessionNumber="A-1",
            WindowCenter=window, WindowWidth=1000,
        )  # fmt: skip
        (folder / f"{number}.dcm").write_bytes(film)
    return folder


def reported(film: Path, preparation: Preparation | None = None) -> Report:
    image = prepare(film, preparation or Preparation())
    return replace(REPORT, image_sha256=image.sha256, image_profile=image.preparation)


@pytest.mark.parametrize("form", ["folder", "manifest"])
def test_identity_is_that_of_each_film(films, tmp_path, capsys, form):
    names = [f"{number}.dcm" if form == "folder" else f"case {number}" for number in range(2)]
    (tmp_path / "m.csv").write_text("path,id\nfilms/0.dcm,case 0\nfilms/1.dcm,case 1\n")
    prepared = [Preparation(pad_square=True, resize="model"), Preparation(profile="ped-train")]
    reports = [reported(films / f"{number}.dcm", prepared[number]) for number in range(2)]
    run = run_file(tmp_path, *(to_jsonl(report, film_id=name) for report, name in zip(reports, names, strict=True)))
    source = str(films if form == "folder" else tmp_path / "m.csv")
    for name in ("sr", "pdf", "fhir"):
        export(run, tmp_path / name, "--format", name, "--films", source, "--copy-identity")
    for name in ("sr", "pdf"):
        documents = [pydicom.dcmread(file) for file in sorted((tmp_path / name).iterdir())]
        assert [document.PatientName for document in documents] == ["Popescu^Ana", "Ionescu^Dan"]
        assert [document.StudyInstanceUID for document in documents] == ["1.2.3", "1.2.4"]
    resources = [json.loads(file.read_text()) for file in sorted((tmp_path / "fhir").iterdir())]
    studies = [resource["imagingStudy"][0]["identifier"]["value"] for resource in resources]
    assert studies == ["urn:oid:1.2.3", "urn:oid:1.2.4"]
    assert "Popescu" not in json.dumps(resources) + capsys.readouterr().err


def test_film_of_another_patient_is_not_given_the_report(films, tmp_path, capsys):
    run = run_file(
        tmp_path,
        to_jsonl(reported(films / "0.dcm"), film_id="0.dcm"),
        to_jsonl(reported(films / "0.dcm"), film_id="1.dcm"),
        to_jsonl(reported(films / "0.dcm"), film_id="2.dcm"),
        to_jsonl(replace(reported(films / "0.dcm"), image_profile="other"), film_id="1.dcm "),
    )
    arguments = ["--format", "sr", "--films", str(films), "--copy-identity"]
    export(run, tmp_path / "out", *arguments, code=3)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["0.dcm.sr.dcm"]
    err = capsys.readouterr().err
    assert "line 2: its film gives another image than the report had" in err
    assert "line 3: its film is not in --films" in err
    export(run, tmp_path / "unchecked", *arguments, "--skip-film-check", code=3)
    assert len(list((tmp_path / "unchecked").iterdir())) == 2


def test_page_shows_film_facts_report_and_warnings(films, tmp_path, capsys):
    text = "Clear lungs <b> & unchanged \U0001fac1.\nNormal."
    first = replace(reported(films / "0.dcm"), text=text, demo=True)
    run = run_file(tmp_path, to_jsonl(first, film_id="0.dcm"), to_jsonl(first, film_id="1.dcm"), ERROR)
    export(run, tmp_path / "out", "--format", "html", "--films", str(films), code=3)
    page = (tmp_path / "out/reports.html").read_text()
    for part in ("age 5y, sex M, view PA", "warning: view: lateral", PRIOR, DEMO_NOTICE, DISCLAIMER, escape(text)):
        assert part in page, part
    assert page.count("<article>") == 1, "the film of the second line is not that of its report"
    assert "<b>" not in page and "<script" not in page and "http" not in page.replace("http-equiv", "")
    data = base64.b64decode(page.partition("base64,")[2].partition('"')[0])
    with Image.open(io.BytesIO(data)) as image:
        assert max(image.size) == 256
    export(run, tmp_path / "without", "--format", "html")
    page = (tmp_path / "without/reports.html").read_text()
    assert page.count("no film given") == page.count("<article>") == 2
    assert "Popescu" not in page + capsys.readouterr().err


def test_run_of_the_command_line_is_exported(engine, films, tmp_path, capsys):
    run = tmp_path / "run.jsonl"
    page = tmp_path / "page.html"
    arguments = ["batch", str(films), "-o", str(run), "--url", engine.url]
    assert main([*arguments, "--html", str(page)]) == 0
    assert page.read_text().count('src="data:image/jpeg;base64,') == 2
    assert main([*arguments, "--html", str(films / "0.dcm")]) == 2
    assert main([*arguments, "--html", str(page)]) == 0, "an earlier page is replaced"
    requests = len(engine.requests)
    export(str(run), tmp_path / "out", "--format", "sr", "--films", str(films), "--copy-identity")
    assert len(engine.requests) == requests
    documents = [pydicom.dcmread(file) for file in sorted((tmp_path / "out").iterdir())]
    assert [document.PatientName for document in documents] == ["Popescu^Ana", "Ionescu^Dan"]


def test_page_that_cannot_be_written_is_refused_before_any_request(engine, films, tmp_path, capsys):
    keep, empty, link = (tmp_path / name for name in ("keep.html", "empty.html", "link.html"))
    keep.write_text("<!doctype html><title>My notes</title>")
    empty.touch()
    link.symlink_to(keep)
    for path, words in (
        (tmp_path / "no" / "x.html", "its folder does not exist"),
        (keep, "already exists and is no page of this command"),
        (link, "exists and is not a regular file"),
        (tmp_path / "run.html", "is another file of this command"),
    ):
        out = tmp_path / ("run.html" if path.name == "run.html" else "run.jsonl")
        assert main(["batch", str(films), "-o", str(out), "--url", engine.url, "--html", str(path)]) == 2
        assert f"--html: {words}" in capsys.readouterr().err
    assert keep.read_text() == "<!doctype html><title>My notes</title>"
    assert engine.requests == [] and not [*tmp_path.glob("run.*")]
    run = tmp_path / "run.jsonl"
    assert main(["batch", str(films), "-o", str(run), "--url", engine.url, "--html", str(empty)]) == 0
    assert "<article>" in empty.read_text()


def test_fhir_resources_refer_to_patient_and_order_of_their_film(run, tmp_path, capsys):
    table = tmp_path / "references.csv"
    table.write_text(
        "sep=;\nID;subject;based_on;accession;effective\n"
        "a/film 1.dcm;Patient/1;ServiceRequest/7;A1;2026-11-24\nb.png;Patient/2;;;\n;;;;\nunused.png;Patient/3;;;\n"
    )
    export(run, tmp_path / "out", "--format", "fhir", "--references", str(table))
    first, second = (json.loads(file.read_bytes()) for file in sorted((tmp_path / "out").iterdir()))
    assert first["subject"] == {"reference": "Patient/1"}
    assert {"reference": "ServiceRequest/7"} in first["basedOn"]
    assert first["effectiveDateTime"] == "2026-11-24"
    assert second["subject"] == {"reference": "Patient/2"}
    assert "basedOn" not in second and "effectiveDateTime" not in second


def test_report_without_a_row_of_references_is_left_out(run, tmp_path, capsys):
    table = tmp_path / "references.csv"
    table.write_text("id,subject\nb.png,Patient/2\n")
    export(run, tmp_path / "out", "--format", "fhir", "--references", str(table), code=3)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["b.png.json"]
    assert "line 1: its id is not in --references; add a row for it; left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,subject\nb.png,Popescu\n", "line 2: FHIR subject must be Patient/ID"),
        ("id,subject\nb.png,Patient/1\nb.png,Patient/2\n", "line 3: id is already used"),
        ("id,subject\n,Patient/1\n", "line 2: id is empty"),
        ("id,subject\nb.png\n", "line 2: has 1 cells but the header has 2"),
        ("id,patient\nb.png,Popescu\n", "unknown column 2; rename or remove it. Allowed columns: id, subject"),
        ("subject\nPatient/1\n", 'the column "id" is missing'),
    ],
)
def test_wrong_references_stop_the_export(run, tmp_path, capsys, text, message):
    table = tmp_path / "references.csv"
    table.write_text(text)
    export(run, tmp_path / "out", "--format", "fhir", "--references", str(table), code=3)
    err = capsys.readouterr().err
    assert f"--references: {message}" in err and "Popescu" not in err
    assert not (tmp_path / "out").exists()


def test_references_are_for_fhir_only(run, tmp_path, capsys):
    export(run, tmp_path / "out", "--format", "csv", "--references", "x.csv", code=2)
    assert "--references: valid only with --format fhir" in capsys.readouterr().err
