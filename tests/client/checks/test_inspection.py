"""pedcxr inspect, and the checks of pedcxr report and the clients."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import socket
import subprocess
import sys
import typing

import numpy as np
import pytest
from PIL import Image

import pedcxr_client
from pedcxr_client import DISCLAIMER, BlockedFilm, ConfigurationError, InputError, Preparation
from pedcxr_client.batch import manifest
from pedcxr_client.checks import rules
from pedcxr_client.cli.main import main
from pedcxr_client.films.film import load, prepare
from tests.support.paths import ROOT
from tests.support.servers.fake_engine import TEXT

pytest.importorskip("pydicom")

from tests.support.films.dicom_maker import dataset, ramp
from tests.support.films.dicom_maker import film as dicom_film

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
SHEET = """\
{path}
  facts    DICOM: modality DX, body part chest, view PA, age 5y, sex F
  checks   ok     modality        Modality (0008,0060) is DX
           ok     presentation    PresentationIntentType (0008,0068) is FOR PRESENTATION
           ok     body-part       BodyPartExamined (0018,0015) is chest
           ok     view            ViewPosition (0018,5101) is PA
           ok     orientation     PatientOrientation (0020,0020) is L\\F
           ok     age             PatientAge (0010,1010) is 005Y
           ok     sex             PatientSex (0010,0040) is F
           ok     human           no species, breed, owner or veterinary word
           ok     burned-in-text  BurnedInAnnotation (0028,0301) is NO
           ok     quality         256 x 256 pixels
  image    image/png, 256 x 256, {bytes} bytes
           DICOM MONOCHROME2 of 12 bits rendered as 8-bit grey
           window 2048/4096 (LINEAR)
  prompt   Generate a radiology report for this chest X-ray of a 5-year-old female.
  verdict  would be sent
"""


@pytest.fixture
def dicom(tmp_path):
    """Return a function that writes a film with some elements changed and returns its path."""

    def write(name: str = "film.dcm", **elements: object) -> str:
        path = tmp_path / name
        path.write_bytes(dicom_film(**(WINDOW | elements)))
        return str(path)

    return write


def test_one_film_is_printed_in_full(dicom, capsys):
    path = dicom()
    assert main(["inspect", path]) == 0
    size = len(base64.b64decode(prepare(path).base64))
    assert capsys.readouterr() == (SHEET.format(path=path, bytes=size), "")


def test_blocked_film_exits_3_with_the_reason(dicom, capsys):
    assert main(["inspect", dicom(PatientAge="045Y", Modality="CT")]) == 3
    out = capsys.readouterr().out
    assert "block  age             PatientAge (0010,1010) is 045Y: 18 years or more" in out
    assert out.endswith("verdict  blocked by modality, age\n")
    assert main(["inspect", dicom(PatientAge="045Y"), "--allow", "age"]) == 0
    assert "allow  age" in capsys.readouterr().out


def test_caller_facts_change_the_prompt(dicom, capsys):
    path = dicom(PatientAge=None, PatientSex=None, BodyPartExamined=None)
    assert main(["inspect", path]) == 3
    capsys.readouterr()
    assert main(["inspect", path, "--age", "10d", "--sex", "M", "--assume-chest"]) == 0
    assert "of a 10-day-old male." in capsys.readouterr().out


def test_json_prints_one_object_per_film(dicom, film, tmp_path, capsys):
    (tmp_path / "film.png").write_bytes(film)
    (tmp_path / "film.txt").write_text("no film")
    paths = [dicom(), str(tmp_path / "film.png"), str(tmp_path / "film.txt")]
    assert main(["inspect", *paths, "--json"]) == 3
    one, two, three = map(json.loads, capsys.readouterr().out.splitlines())
    assert [entry["file"] for entry in (one, two, three)] == paths
    assert [entry["verdict"] for entry in (one, two, three)] == ["would be sent", "would be sent", "cannot be sent"]
    assert one["facts"] == {
        "kind": "dicom", "modality": "DX", "sop_class": "1.2.840.10008.5.1.4.1.1.1.1", "intent": "FOR PRESENTATION",
        "body": "chest", "view": "PA", "projection": "frontal", "orientation": "L\\F", "burned_in": "NO",
        "quality_control": "", "not_human": None,
        "age": "5y", "sex": "F",
    }  # fmt: skip
    assert one["image"]["sha256"] == prepare(paths[0]).sha256
    assert [check["name"] for check in one["checks"]] == list(rules.NAMES)
    assert one["prompt"]["text"].endswith("5-year-old female.")
    assert two["facts"]["kind"] == "image" and two["image"]["how"] == ["original bytes"]
    assert "not an image" in three["error"] and three["facts"] is None


def test_several_films_print_a_table(dicom, film, tmp_path, capsys):
    (tmp_path / "film.png").write_bytes(film)
    paths = [
        dicom("a.dcm"),
        dicom("b.dcm", Modality="CT", PatientAge="010D"),
        str(tmp_path / "film.png"),
        "missing.dcm",
    ]
    assert main(["inspect", *paths]) == 3
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["FILE", "VERDICT", "KIND", "AGE", "SEX", "VIEW", "SIZE", "WHY"]
    assert lines[1][1:] == ["would", "be", "sent", "DX", "5y", "F", "PA", "256x256"]
    assert lines[2][1:9] == ["blocked", "by", "modality", "CT", "10d", "F", "PA", "256x256"]
    assert " ".join(lines[2][9:]) == "Modality (0008,0060) is CT; only CR and DX are chest films"
    assert lines[3][1:] == ["would", "be", "sent", "image", "-", "-", "-", "256x256"]
    assert lines[4][1:9] == ["cannot", "be", "sent", "-", "-", "-", "-", "-"]
    assert " ".join(lines[4][9:]).startswith("No such file")


def test_preview_equals_the_sent_image(dicom, tmp_path, capsys):
    path, out = dicom(), tmp_path / "out.png"
    assert main(["inspect", path, "--preview", str(out), "--pad-square", "--resize", "model"]) == 0
    encoded = prepare(path, Preparation(pad_square=True, resize="model"))
    assert out.read_bytes() == base64.b64decode(encoded.base64)
    with Image.open(out) as preview:
        assert preview.size == (896, 896)
    for line, code, message in (
        (["inspect", path, path, "--preview", str(out)], 2, "shows one film"),
        (["inspect", path, "--preview", path], 2, "is the film itself"),
        (["inspect", path, "--preview", str(tmp_path / "no/out.png")], 2, "No such file"),
        (["inspect", dicom("x.dcm", PixelData=None), "--preview", str(out)], 3, "no image to write"),
    ):
        capsys.readouterr()
        assert main(line) == code
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspect"], 2, "FILE"),
        (["inspect", "FILM", "--allow", "everything"], 2, "is not a check; the checks are modality"),
        (["inspect", "FILM", "--age", "62"], 3, "write a number"),
        (["inspect", "FILM", "--profile", "other"], 2, "invalid choice"),
        (["report", "FILM", "--allow", "everything"], 2, "is not a check"),
    ],
)
def test_usage_errors(dicom, capsys, engine, arguments, code, message):
    path = dicom()
    arguments = [path if argument == "FILM" else argument for argument in arguments]
    assert main(arguments + (["--url", engine.url] if arguments[0] == "report" else [])) == code
    assert message in capsys.readouterr().err


def test_all_real_films_print_one_table(films, capsys):
    paths = [str(path) for path in sorted(films.glob("*/*.*"))]
    assert main(["inspect", *paths]) == 3
    out = capsys.readouterr().out
    assert out.count("\n") == len(paths) + 1
    assert out.count("would be sent") == 19 + 20, "every plain image, and the derived films that pass the checks"


# Invalid files on the command line: one line, exit code 3, nothing is sent.


def file_bytes(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


NOISE = Image.effect_noise((300, 300), 60)
BAD = {
    "empty": b"",
    "text": b"hello",
    "zip": b"PK\x03\x04" + bytes(300),
    "pdf": b"%PDF-1.7\n" + bytes(300),
    "heic": b"\0\0\0\x18ftypheic" + bytes(300),
    "cut png": file_bytes(NOISE, "PNG")[:-4000],
    "cut dicom": dicom_film()[:5000],
    "animated gif": file_bytes(NOISE, "GIF", save_all=True, append_images=[Image.new("L", (300, 300))]),
    "1x1": file_bytes(Image.new("L", (1, 1)), "PNG"),
    "1x1 dicom": dicom_film(ramp(1, 1)),
    "flat": file_bytes(Image.new("L", (300, 300), 9), "PNG"),
    "cmyk 1x1": file_bytes(Image.new("CMYK", (1, 1)), "JPEG"),
    "dicom 60000": dicom_film(Rows=60000, Columns=60000),
    "sr": dicom_film(Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", PixelData=None),
    "no pixels": dicom_film(PixelData=None),
    "rt": dicom_film(Modality="RTPLAN", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.5", PixelData=None),
}


@pytest.mark.parametrize("name", BAD)
def test_both_commands_refuse_a_bad_film(name, tmp_path, engine, capsys):
    path = tmp_path / "film.dcm"  # the extension does not match every content
    path.write_bytes(BAD[name])
    assert main(["inspect", str(path)]) == 3
    assert main(["report", str(path), "--url", engine.url, "--age", "5y"]) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert not engine.chats


def test_a_cmyk_jpeg_becomes_grey(tmp_path, capsys):
    path = tmp_path / "film.jpg"
    path.write_bytes(file_bytes(NOISE.convert("RGB").convert("CMYK"), "JPEG"))
    assert main(["inspect", str(path)]) == 0
    assert "CMYK converted to grey" in capsys.readouterr().out


def test_missing_paths_cannot_be_sent(tmp_path, capsys):
    (tmp_path / "link.dcm").symlink_to(tmp_path / "nowhere")
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.dcm")
    assert main(["inspect", str(tmp_path / "link.dcm"), str(tmp_path), name]) == 3
    assert capsys.readouterr().out.count("cannot be sent") == 3


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_path_that_is_not_utf8_is_printed(tmp_path, form):
    path = os.fsencode(tmp_path) + b"/caf\xe9.dcm"
    with open(path, "wb") as file:
        file.write(dicom_film(**WINDOW))
    command = [sys.executable, "-W", "error", "-m", "pedcxr_client", "inspect", path, *form]
    process = subprocess.run(command, capture_output=True, check=False)
    assert (process.returncode, process.stderr) == (0, b"")
    assert b"would be sent" in process.stdout


# Checks before a request.


def prompt(engine: object) -> str:
    return engine.chats[-1].json["messages"][0]["content"][1]["text"]


def test_a_report_takes_age_and_sex_from_the_header(engine, twin, dicom):
    report = twin.report(engine.url, dicom())
    assert prompt(engine).endswith("of a 5-year-old female.")
    assert report.as_dict()["checks"][0] == {
        "name": "modality", "status": "ok", "why": "Modality (0008,0060) is DX", "allowed": False, "from_header": True,
    }  # fmt: skip
    twin.report(engine.url, dicom(PatientAge=None, PatientSex=None), age="7m", sex="M")
    assert prompt(engine).endswith("of a 7-month-old male.")
    twin.report(engine.url, dicom(PatientSex="O"))
    assert prompt(engine).endswith("of a 5-year-old child.")


def test_blocked_film_is_not_sent(engine, twin, dicom):
    with pytest.raises(BlockedFilm, match="045Y") as error:
        twin.report(engine.url, dicom(PatientAge="045Y"))
    assert [one.name for one in error.value.checks if one.blocks] == ["age"]
    with pytest.raises(BlockedFilm, match="stated by the caller"):
        twin.report(engine.url, Image.effect_noise((300, 300), 60), age="18y")
    with pytest.raises(BlockedFilm, match="quality"):
        twin.report(engine.url, Image.effect_noise((255, 300), 60))
    with pytest.raises(BlockedFilm, match="modality"):
        twin.report(engine.url, dicom(Modality="SR", PixelData=None))
    with pytest.raises(BlockedFilm, match="045Y"):
        twin.report(engine.url, prepare(dicom(PatientAge="045Y")))
    assert not engine.requests


def test_report_records_allowed_checks(engine, twin, dicom):
    report = twin.report(engine.url, dicom(Modality="CT"), allow=["modality"], preparation=Preparation(resize="model"))
    assert [one.name for one in report.checks if one.allowed] == ["modality"]
    assert report.image_how[-1] == "stretched to the model's 896 x 896"
    chest = twin.report(engine.url, dicom(BodyPartExamined=None), assume_chest=True)
    assert "by the caller" in next(one.why for one in chest.checks if one.name == "body-part")


def test_report_command_prints_warnings(engine, dicom, capsys):
    path = dicom(ViewPosition="LL", PatientOrientation=["A", "F"], Modality="CT")
    assert main(["report", path, "--url", engine.url]) == 3
    out, err = capsys.readouterr()
    assert out == "" and "--allow modality" in err and not engine.chats
    assert main(["report", path, "--url", engine.url, "--allow", "modality", "--stream"]) == 0
    out, err = capsys.readouterr()
    assert out == TEXT + "\n"
    first, second, last = err.splitlines()
    assert first == "pedcxr: allowed: modality: Modality (0008,0060) is CT; only CR and DX are chest films"
    assert second == "pedcxr: warning: view: ViewPosition (0018,5101) is LL, lateral"
    assert last == DISCLAIMER


def test_sent_image_uses_the_profile(engine, twin, dicom):
    report = twin.report(engine.url, dicom(), preparation=Preparation(profile="ped-train"))
    assert report.image_profile == "ped-train"
    url = engine.chats[0].json["messages"][0]["content"][0]["image_url"]["url"]
    encoded = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert (encoded.mode, encoded.info) == ("L", {})


def test_unsupported_type_raises(dicom):
    with pytest.raises(InputError, match="not a path, bytes, a file, a Dataset, a Pillow image or an array"):
        load({"a": 1})  # type: ignore[arg-type]


# pedcxr_client.inspect, and the programs of docs/examples that need no server.


def kinds(folder: os.PathLike[str]) -> dict[str, object]:
    """Return one film as every kind of `FilmSource`."""
    data = dicom_film(**WINDOW)
    path = folder / "film.dcm"
    path.write_bytes(data)
    png = base64.b64decode(prepare(data).base64)
    return {
        "path": path, "str": str(path), "bytes": data, "bytearray": bytearray(data), "memoryview": memoryview(data),
        "open file": io.BytesIO(data), "dataset": dataset(**WINDOW), "encoded": prepare(data),
        "image": Image.open(io.BytesIO(png)), "array": np.asarray(Image.open(io.BytesIO(png))),
    }  # fmt: skip


KINDS = (
    "path", "str", "bytes", "bytearray", "memoryview", "open file", "dataset", "encoded", "image", "array",
)  # fmt: skip


@pytest.fixture
def no_socket(monkeypatch):
    def refuse(*_: object) -> None:
        pytest.fail("a socket was created")

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_takes_every_kind_of_film(kind, tmp_path, no_socket):
    inspection = pedcxr_client.inspect(kinds(tmp_path)[kind], age="5y", sex="F", allow=["quality"])
    assert (inspection.verdict, inspection.error, inspection.blocked) == ("would be sent", None, False)
    assert inspection.file == (str(tmp_path / "film.dcm") if kind in ("path", "str") else None)
    assert inspection.facts.kind == ("image" if kind in ("image", "array") else "dicom")
    assert tuple(check.name for check in inspection.checks) == rules.NAMES
    assert inspection.pixels.mode == "L"
    assert inspection.pixels.tobytes() == load(dicom_film(**WINDOW)).pixels.tobytes()
    assert inspection.prompt.recorded.endswith("of a 5-year-old female.")
    assert json.loads(json.dumps(inspection.as_dict()))["file"] == inspection.file


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_shows_what_a_report_sends(kind, tmp_path, engine, twin):
    options = {"age": "5y", "sex": "F"}
    if kind != "encoded":  # an EncodedImage is prepared already
        options["preparation"] = Preparation(pad_square=True, resize="model")
    inspection = pedcxr_client.inspect(kinds(tmp_path)[kind], **options)
    twin.report(engine.url, kinds(tmp_path)[kind], **options)
    image, text = engine.chats[-1].json["messages"][0]["content"]
    assert image["image_url"]["url"] == inspection.image.data_url
    assert text["text"] == inspection.prompt.user


def test_inspect_returns_the_error_of_a_film_and_raises_that_of_an_option(dicom):
    blocked = pedcxr_client.inspect(dicom(PatientAge="045Y", BodyPartExamined="HAND"))
    assert (blocked.verdict, blocked.blocked) == ("blocked by body-part, age", True)
    assert blocked.image is not None
    for film in (b"", b"no film", "missing.dcm", np.zeros((9, 9)), object()):
        inspection = pedcxr_client.inspect(film)
        assert (inspection.verdict, inspection.pixels) == ("cannot be sent", None)
        assert inspection.error
    for options, error in (({"age": "62"}, InputError), ({"allow": ["chest"]}, ConfigurationError)):
        with pytest.raises(error):
            pedcxr_client.inspect(dicom(), **options)


def test_types_of_the_public_functions_resolve():
    for function in (pedcxr_client.inspect, pedcxr_client.Client.report, pedcxr_client.AsyncClient.stream):
        assert {"film", "options", "return"} <= typing.get_type_hints(function).keys()


def run_example(name: str, *arguments: str, folder: os.PathLike[str]) -> str:
    command = [sys.executable, str(ROOT / "docs/examples" / name), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "client")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_inspect_example(dicom, tmp_path):
    out = run_example("inspect_film.py", dicom(), folder=tmp_path)
    assert out.startswith("would be sent\nok modality ")
    assert out.endswith("of a 5-year-old female.\n")
    assert Image.open(tmp_path / "sent.png").tobytes() == load(dicom()).pixels.tobytes()


# The column names are those of the data sets; the rows are made up.
NIH = """\
Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],\
OriginalImagePixelSpacing[x,y]
90000001_000.png,No Finding,0,90000001,7,F,PA,2682,2749,0.143,0.143
90000001_001.png,Mass|Nodule,1,90000001,0,M,AP,2682,2749,0.143,0.143
90000002_000.png,Effusion,0,90000002,18,M,PA,2682,2749,0.143,0.143
"""
PADCHEST = """\
,ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,\
MethodProjection,Pediatric,Modality_DICOM
0,1_a.png,3,20140915,1,2,2008.0,F,POSTEROANTERIOR,PA,made up,No,CR
1,2_b.png,54,20140915,1,2,2010.0,O,ANTEROPOSTERIOR,AP_horizontal,made up,PED,DX
2,3_c.png,54,20140915,1,2,2010.0,M,LATERAL,L,made up,PED,DX
3,4_d.png,54,20140915,1,2,1950.0,M,POSTEROANTERIOR,PA,made up,No,DX
4,5_e.png,54,20140915,1,2,,M,POSTEROANTERIOR,PA,made up,No,DX
"""
MIMIC = """\
dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,\
ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning
0a-1b,19000001,59000001,CHEST (PA AND LAT),PA,3056,2544,21800506,213014.531,CHEST (PA AND LAT),postero-anterior,Erect
0a-2c,19000001,59000001,CHEST (PA AND LAT),LATERAL,3056,2544,21800506,213014.531,CHEST (PA AND LAT),lateral,Erect
"""
MANIFESTS = {
    "nih": (NIH, [("images/90000001_000.png", "7y", "F"), ("images/90000001_001.png", None, "M")]),
    "padchest": (PADCHEST, [("3/1_a.png", "6y", "F"), ("54/2_b.png", "4y", None)]),
    "mimic": (MIMIC, [("files/p19/p19000001/s59000001/0a-1b.jpg", None, None)]),
}


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_dataset_manifest_example(name, suffix, tmp_path):
    text, expected = MANIFESTS[name]
    (tmp_path / f"in.{suffix}").write_bytes(gzip.compress(text.encode()) if suffix == "csv.gz" else text.encode())
    path = tmp_path / "manifest.csv"
    path.write_text(run_example("dataset_manifest.py", name, f"in.{suffix}", folder=tmp_path), newline="")
    entries = [*manifest.read(str(path))]
    assert [
        (os.path.relpath(entry.path, tmp_path), entry.age and str(entry.age), entry.sex) for entry in entries
    ] == expected
    assert all(entry.assume_chest for entry in entries)
    assert manifest.check(str(path)) == len(expected)


def test_the_page_shows_each_data_set():
    page = (ROOT / "docs/films.md").read_text()
    assert all(f"`python dataset_manifest.py {name} " in page for name in MANIFESTS)
