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

from pedcxr_client import DISCLAIMER, InputError, Report
from pedcxr_client.reports import Identity, identity_of, to_sr
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


def test_each_document_has_new_uids_and_the_same_device():
    first, second = read(REPORT), read(REPORT)
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert first[name].value != second[name].value
    device = [value for *_, name, value in walk(first.ContentSequence) if name == "Device Observer UID"]
    assert device == [value for *_, name, value in walk(second.ContentSequence) if name == "Device Observer UID"]
    other_model = walk(read(replace(REPORT, model_revision="x")).ContentSequence)
    assert device != [value for *_, name, value in other_model if name == "Device Observer UID"]


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
def test_dciodvfy_reports_no_error(report, with_identity, source, tmp_path):
    if DCIODVFY is None:
        pytest.skip("dciodvfy is not on the PATH; Debian's package dicom3tools has it")
    path = tmp_path / "sr.dcm"
    path.write_bytes(to_sr(report, identity=identity_of(source) if with_identity else None))
    completed = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False)
    assert completed.returncode == 0
    assert "BasicTextSR" in completed.stderr
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
