"""The DICOM SR document: strict parsing, content tree, validation by dciodvfy, and patient identity."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import Dataset, config

from pedcxr_client import DISCLAIMER, ConfigurationError, InputError, Report
from pedcxr_client.reports import Identity, identity_of, to_dicom_pdf, to_sr
from tests.client.reports.test_formats import DEMO, REPORT, UNKNOWN
from tests.support.films import dicom_maker

DCIODVFY = shutil.which("dciodvfy")
PERSON = {
    "PatientName": "Popescu^Ana",
    "PatientID": "MRN-77",
    "PatientBirthDate": "20181231",
    "StudyInstanceUID": "1.2.3.5",
    "SeriesInstanceUID": "1.2.3.6",
    "StudyTime": "101112",
    "StudyID": "S1",
    "AccessionNumber": "A-1",
    "ReferringPhysicianName": "Ionescu^Dan",
}
ROOT, TEXT = ("18748-4", "Diagnostic Imaging Report"), "TextValue"


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """Let pydicom raise for every violation of the standard, when reading and writing."""
    before = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.RAISE
    yield
    config.settings.reading_validation_mode, config.settings.writing_validation_mode = before


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "film.dcm"
    path.write_bytes(dicom_maker.film(**PERSON))
    return path


def read(report: Report, identity: Identity | None = None) -> Dataset:
    return pydicom.dcmread(io.BytesIO(to_sr(report, identity=identity)))


def walk(items: list[Dataset]) -> Iterator[tuple[str, str, str | None, Any]]:
    """Return relation, value type, concept and value of each item, depth first."""
    for item in items:
        name = item.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in item else None
        value = {
            "TEXT": lambda item=item: item.TextValue,
            "CODE": lambda item=item: item.ConceptCodeSequence[0].CodeValue,
            "UIDREF": lambda item=item: item.UID,
            "IMAGE": lambda item=item: item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID,
            "CONTAINER": lambda item=item: item.ContinuityOfContent,
        }[item.ValueType]()
        yield item.RelationshipType, item.ValueType, name, value
        yield from walk(item.get("ContentSequence", []))


def test_content_tree():
    document = read(REPORT)
    root = document.ConceptNameCodeSequence[0]
    assert (document.ValueType, root.CodeValue, root.CodingSchemeDesignator) == ("CONTAINER", "18748-4", "LN")
    *tree, provenance = walk(document.ContentSequence)
    model, device = REPORT.model, tree[2][3]
    assert tree == [
        ("HAS CONCEPT MOD", "CODE", "Language of Content Item and Descendants", "en"),
        ("HAS OBS CONTEXT", "CODE", "Observer Type", "121007"),
        ("HAS OBS CONTEXT", "UIDREF", "Device Observer UID", device),
        ("HAS OBS CONTEXT", "TEXT", "Device Observer Name", f"{model} (pedcxr)"),
        ("HAS OBS CONTEXT", "TEXT", "Device Observer Model Name", f"{model}, revision 3f2a1b"),
        ("CONTAINS", "TEXT", "Comment", DISCLAIMER),
        ("CONTAINS", "TEXT", "Comment", "warning: view: lateral"),
        ("CONTAINS", "TEXT", "Comment", "check overridden: modality: it is CT"),
        ("CONTAINS", "CONTAINER", "Findings", "SEPARATE"),
        ("CONTAINS", "TEXT", "Finding", "The lungs are clear.\r\nC\u0153ur < normal & \u2028 fine."),
        ("CONTAINS", "CONTAINER", "Impressions", "SEPARATE"),
        ("CONTAINS", "TEXT", "Impression", "Normal chest."),
    ]
    assert provenance[:3] == ("CONTAINS", "TEXT", "Comment")
    assert f"prompt profile: card/1, sha256 {REPORT.prompt_sha256}" in provenance[3]


def test_document_attributes():
    document = read(REPORT)
    assert document.SOPClassUID == document.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.88.11"
    assert document.SpecificCharacterSet == "ISO_IR 192"
    assert document.Modality == "SR"
    flags = (document.CompletionFlag, document.VerificationFlag, document.PreliminaryFlag)
    assert flags == ("PARTIAL", "UNVERIFIED", "PRELIMINARY")
    assert (document.ContentDate, document.ContentTime, document.TimezoneOffsetFromUTC) == (
        "20261124", "010203", "+0000",
    )  # fmt: skip
    assert (document.ManufacturerModelName, document.Manufacturer) == (REPORT.model, "pedcxr")


def test_absent_sections_are_omitted():
    names = [name for _, _, name, _ in walk(read(UNKNOWN).ContentSequence)]
    assert "Findings" in names
    assert "Impressions" not in names
    names = [name for _, _, name, _ in walk(read(replace(REPORT, text="IMPRESSION: Normal.")).ContentSequence)]
    assert "Findings" not in names


def test_text_before_the_headings_is_a_summary():
    report = replace(REPORT, text="Chest, one view.\nFINDINGS: Clear.\nIMPRESSION: Normal.")
    tree = [(name, value) for _, _, name, value in walk(read(report).ContentSequence)]
    assert tree.index(("Summary", "SEPARATE")) + 1 == tree.index(("Comment", "Chest, one view."))


UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


@pytest.mark.parametrize("render", [to_sr, to_dicom_pdf])
def test_same_report_gives_the_same_bytes_and_new_another_series(render):
    assert render(REPORT) == render(replace(REPORT))
    first, second = (pydicom.dcmread(io.BytesIO(render(REPORT, new=new))) for new in (False, True))
    assert all(first[name].value != second[name].value for name in UIDS)
    assert all(first[name].value.startswith("2.25.") for name in UIDS)


@pytest.mark.parametrize("render", [to_sr, to_dicom_pdf])
@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"text": "FINDINGS: Clear."}, "series"),
        ({"request_id": "req-8"}, "series"),
        ({"image_sha256": "cd" * 32}, "nothing"),
        ({"model_revision": "other"}, "nothing"),
        ({"prompt": "Generate a radiology report for this chest X-ray of a 6-year-old male."}, "nothing"),
        ({"prompt_sha256": "ef" * 32}, "nothing"),
    ],
)
def test_uids_are_those_of_film_model_and_prompt(source, render, changes, same):
    identity = identity_of(source)
    first, second = (
        pydicom.dcmread(io.BytesIO(render(report, identity=identity)))
        for report in (REPORT, replace(REPORT, **changes))
    )
    assert first.StudyInstanceUID == second.StudyInstanceUID == "1.2.3.5"
    assert (first.SeriesInstanceUID == second.SeriesInstanceUID) is (same == "series")
    assert first.SOPInstanceUID != second.SOPInstanceUID, "documents of other content are other instances"


def test_reports_of_two_films_with_the_same_pixels_are_two_series(source):
    other = identity_of(dicom_maker.film(**(PERSON | {"SOPInstanceUID": "1.2.3.99"})))
    assert read(REPORT, identity_of(source)).SeriesInstanceUID != read(REPORT, other).SeriesInstanceUID


def test_sr_and_pdf_are_two_series_that_collide_with_no_film(source):
    identity = identity_of(source)
    sr = read(REPORT, identity)
    pdf = pydicom.dcmread(io.BytesIO(to_dicom_pdf(REPORT, identity=identity)))
    assert len({PERSON["SeriesInstanceUID"], sr.SeriesInstanceUID, pdf.SeriesInstanceUID}) == 3
    assert len({1, sr.SeriesNumber, pdf.SeriesNumber}) == 3


def test_the_device_is_the_same_for_the_same_model():
    device = [value for *_, name, value in walk(read(REPORT).ContentSequence) if name == "Device Observer UID"]
    second = walk(read(replace(REPORT, text="Clear.")).ContentSequence)
    assert device == [value for *_, name, value in second if name == "Device Observer UID"]
    other_model = walk(read(replace(REPORT, model_revision="x")).ContentSequence)
    assert device != [value for *_, name, value in other_model if name == "Device Observer UID"]


def test_language_is_that_of_the_text():
    romanian = read(replace(REPORT, text="Cordul este normal. Pl\u0103m\u00e2nii sunt clari."))
    assert romanian.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning == "Romanian"


def test_without_identity_the_patient_is_empty():
    document = read(REPORT)
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber"):
        assert not document[name].value, name
    assert "CurrentRequestedProcedureEvidenceSequence" not in document


@pytest.mark.parametrize("form", ["path", "bytes"])
def test_identity_of_the_film_is_copied(source, form):
    identity = identity_of(source if form == "path" else source.read_bytes())
    document = read(REPORT, identity)
    for name, value in (PERSON | {"StudyDate": "20240102", "PatientSex": "F"}).items():
        if name != "SeriesInstanceUID":
            assert str(document[name].value) == value, name
    assert document.SeriesInstanceUID != PERSON["SeriesInstanceUID"]
    study = document.CurrentRequestedProcedureEvidenceSequence[0]
    film = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    images = [value for _, kind, _, value in walk(document.ContentSequence) if kind == "IMAGE"]
    assert images == [film.ReferencedSOPInstanceUID] == ["1.2.3.4"]
    assert "Popescu" not in repr(identity)


def test_patient_name_in_another_character_set_is_converted(tmp_path):
    film = dicom_maker.film(SpecificCharacterSet="ISO_IR 101", PatientName="Ștefănescu".replace("Ș", "Ş"), **{
        name: value for name, value in PERSON.items() if name != "PatientName"
    })  # fmt: skip
    assert str(read(REPORT, identity_of(film)).PatientName) == "Ştefănescu"


def named(declared: str | None, name: bytes, **elements: Any) -> bytes:
    """Return a film whose PatientName has these bytes, whatever its character set."""
    placeholder = "X" * (len(name) + len(name) % 2)
    charset = {} if declared is None else {"SpecificCharacterSet": declared.split("\\")}
    data = dicom_maker.film(**(PERSON | {"PatientName": placeholder} | charset | elements))
    return data.replace(placeholder.encode(), name + b" " * (len(name) % 2))


@pytest.mark.parametrize(
    ("declared", "name", "expected"),
    [
        (None, b"Popescu^Ana", "Popescu^Ana"),
        ("NOT SUPPLIED", b"Popescu^Ana", "Popescu^Ana"),
        ("ISO_IR 100", "M\u00fcller^Jos\u00e9".encode("latin-1"), "M\u00fcller^Jos\u00e9"),
        ("ISO_IR 192", "Popescu^\u0218tefan".encode(), "Popescu^\u0218tefan"),
        (
            "ISO_IR 144",
            "\u041f\u0440\u0438\u043c\u0435\u0440".encode("iso8859_5"),
            "\u041f\u0440\u0438\u043c\u0435\u0440",
        ),
        ("GB18030", "\u793a\u4f8b^\u59d3".encode("gb18030"), "\u793a\u4f8b^\u59d3"),
        ("\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce", "Hong^Gildong=\u6d2a^\u5409"),
        ("ISO 2022 IR 6\\ISO 2022 IR 149", "\uc608\uc81c".encode("euc_kr"), None),
        (None, "\u041f\u0440\u0438\u043c\u0435\u0440".encode("cp1251"), None),
        ("ISO_IR 192", "M\u00fcller".encode("latin-1"), None),
        ("ISO_IR 6", "Ex\u0103mple".encode(), None),
        ("ISO_IR 100", b"Popescu^\x8aAna", None),
        ("NOT SUPPLIED", "M\u00fcller".encode("latin-1"), None),
    ],
)
def test_names_are_decoded_strictly(declared, name, expected):
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.WARN
    film = named(declared, name)
    if expected is not None:
        assert str(read(REPORT, identity_of(film)).PatientName) == expected
        return
    with pytest.raises(InputError, match=r"PatientName does not fit SpecificCharacterSet.*--patient-name"):
        identity_of(film)
    assert str(read(REPORT, identity_of(film, patient_name="Given^Name")).PatientName) == "Given^Name"


def test_physician_that_cannot_be_decoded_is_left_out_and_a_number_is_refused():
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.WARN
    physician = named(None, b"Popescu^Ana", ReferringPhysicianName="YYYY").replace(b"YYYY", b"\xcf\xf0\xe8\xec")
    assert not read(REPORT, identity_of(physician)).ReferringPhysicianName
    number = named(None, b"Popescu^Ana", PatientID="YYYY").replace(b"YYYY", b"\xcf\xf0\xe8\xec")
    with pytest.raises(InputError, match="PatientID does not fit"):
        identity_of(number, patient_name="Popescu^Ana")


@pytest.mark.parametrize("name", ["", "A\\B", "x" * 65, "A\nB", "\ufffd"])
def test_invalid_patient_name_is_refused(source, name):
    with pytest.raises(ConfigurationError, match="patient name: must be") as caught:
        identity_of(source, patient_name=name)
    assert not name or name not in str(caught.value)


def test_film_without_a_preamble_has_an_identity(source):
    data = source.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    assert str(read(REPORT, identity_of(data[start:])).PatientName) == "Popescu^Ana"


def test_document_uses_the_time_zone_of_the_film():
    film = dicom_maker.film(TimezoneOffsetFromUTC="-0330", **PERSON)
    document = read(REPORT, identity_of(film))
    assert (document.ContentDate, document.ContentTime, document.TimezoneOffsetFromUTC) == (
        "20261123", "213203", "-0330",
    )  # fmt: skip
    local = read(REPORT, identity_of(dicom_maker.film(**PERSON)))
    assert "TimezoneOffsetFromUTC" not in local
    assert local.ContentTime == (REPORT.created + timedelta()).astimezone().strftime("%H%M%S")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable DICOM file"),
        (b"\x89PNG Popescu", "not a readable DICOM file"),
        (dicom_maker.film(**(PERSON | {"StudyInstanceUID": None})), "StudyInstanceUID is absent"),
        (dicom_maker.film(**(PERSON | {"PatientID": ["1", "2"]})), "PatientID is absent or malformed"),
    ],
)
def test_source_without_identity_raises(data, message):
    config.settings.reading_validation_mode = config.WARN
    with pytest.raises(InputError, match=message) as caught:
        identity_of(data)
    assert not any(value in str(caught.value) for value in PERSON.values())


def test_absent_source_raises(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        identity_of(tmp_path / "absent.dcm")


@pytest.mark.parametrize("report", [REPORT, DEMO, UNKNOWN], ids=["report", "demo", "unknown"])
@pytest.mark.parametrize("with_identity", [False, True], ids=["anonymous", "identity"])
@pytest.mark.parametrize(("render", "iod"), [(to_sr, "BasicTextSR"), (to_dicom_pdf, "EncapsulatedPDF")])
def test_dciodvfy_reports_no_error(report, with_identity, render, iod, source, tmp_path):
    if DCIODVFY is None:
        pytest.skip("dciodvfy is not on the PATH; Debian's package dicom3tools has it")
    path = tmp_path / "document.dcm"
    path.write_bytes(render(report, identity=identity_of(source) if with_identity else None))
    completed = subprocess.run([DCIODVFY, "-new", path], capture_output=True, text=True, check=False)
    assert completed.returncode == 0
    assert iod in completed.stderr
    assert "Error" not in completed.stderr + completed.stdout


def test_dciodvfy_reports_an_invalid_document(tmp_path):
    if DCIODVFY is None:
        pytest.skip("dciodvfy is not on the PATH; Debian's package dicom3tools has it")
    document = read(REPORT)
    del document.VerificationFlag
    document.save_as(tmp_path / "sr.dcm")
    completed = subprocess.run([DCIODVFY, tmp_path / "sr.dcm"], capture_output=True, text=True, check=False)
    assert "Error" in completed.stderr + completed.stdout


def test_identity_of_real_films_is_copied(films):
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.WARN
    paths = sorted(films.glob("dicom_*/*.dcm"))
    assert len(paths) > 20
    for path in paths:
        document = read(REPORT, identity_of(path))
        header = pydicom.dcmread(path, stop_before_pixels=True)
        assert document.StudyInstanceUID == header.StudyInstanceUID, path.name
        assert str(document.PatientName) == str(header.get("PatientName", "")), path.name
