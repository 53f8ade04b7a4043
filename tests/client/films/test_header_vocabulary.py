"""Words and codes of a header in several languages, against tables, real headers and docs/films.md."""

from __future__ import annotations

import csv
import gzip
import importlib.metadata
import io
import re
import warnings
from collections import Counter
from collections.abc import Iterator

import pytest

pytest.importorskip("pydicom")

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset

from pedcxr_client.checks import rules
from pedcxr_client.checks.rules import CallerFacts
from pedcxr_client.films.film import read
from pedcxr_client.films.header import vocabulary
from pedcxr_client.films.header.elements import Fact, fold
from pedcxr_client.films.header.facts import read_header
from pedcxr_client.types import Check
from tests.support.films.dicom_maker import DX, dataset, film, sequence
from tests.support.paths import ROOT

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def dataset_of(**elements: object) -> Dataset:
    ds = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tests use values that their VR does not allow
        for keyword, value in elements.items():
            setattr(ds, keyword, value)
    return ds


def check(name: str, *, assume_chest: bool = False, **elements: object) -> Check:
    facts = read_header(dataset_of(**elements))
    return next(one for one in rules.check(facts, CallerFacts(assume_chest=assume_chest)) if one.name == name)


def body(**elements: object) -> str:
    return check("body-part", **elements).status


@pytest.mark.parametrize(
    "value",
    [
        "CHEST", "CHESTPA", "CHEST2VIEWS", "CHEST1V", "THORAXAP", "PEDCHEST", "CXR", "THORACIC", "PECHO", "BRUST",
        "LUNG",
        "CHEST_PORT", "PORTCHEST", "CHESTS", "CHEST AP/PA", "NON GRID CHEST", "Tórax", "chest^pa", "Chest-2",
    ],
)  # fmt: skip
def test_body_parts_that_are_a_chest(value):
    assert body(BodyPartExamined=value) == "ok"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("CHESTABDOMEN", "chest and abdomen"),
        ("CHEST_ABDOMEN", "chest and abdomen"),
        ("CHESTABDPELVIS", "chest and abdomen"),
        ("NECKCHEST", "chest and neck"),
        ("NECKCHESTABDPELV", "chest and neck"),
        ("BABYGRAM", "chest and babygram"),
        ("HEMITHORAX", "chest and hemithorax"),
    ],
)
def test_chest_with_another_part_warns(value, reason):
    result = check("body-part", BodyPartExamined=value)
    assert (result.status, reason in result.why) == ("warn", True), result.why


@pytest.mark.parametrize(
    "value",
    [
        "RIB", "RIBS", "STERNUM", "CLAVICLE", "SHOULDER", "TSPINE", "SKULL", "EXTREMETY", "WHOLEBODY", "MANCHESTER",
        "CHST",
        "BREAST", "ABDOMEN", "ABDOMENPELVIS", "THORACIC SPINE", "T SPINE",
    ],
)  # fmt: skip
def test_other_body_parts_block(value):
    result = check("body-part", BodyPartExamined=value, assume_chest=True)
    assert (result.status, result.why) == ("block", f"BodyPartExamined (0018,0015) is {value}, not a chest")


DESCRIPTIONS = {
    "ok": [
        "XR Chest 1 View", "CXR AP portable", "chest_ap", "CHEST PA 6 FEET", "CHEST HEAD UP 30",
        "Radiografie toracică", "Radiografie torace", "plămâni AP", "Radiografie cord-pulmon",
        "Radiografía de tórax", "RX TÓRAX AP", "To\u0301rax PA", "Radiografia pulmonar",
        "RX THORACIQUE", "Radio du thorax face", "Poumons", "Thorax décubitus dorsal",
        "Röntgen-Thorax", "Thorax a.p. im Liegen", "Thorakalaufnahme", "Brustkorb", "Lunge p.a.",
        "Klatka piersiowa PA", "RTG kl. piersiowej", "płuca",
        "Rx tórax PA e perfil", "Peito", "Rx torace", "polmoni",
        "Рентгенография органов грудной клетки",
        "ОГК прямая", "лёгких",
        "Ακτινογραφία θώρακος",
        "ΘΩΡΑΞ", "胸部 正面", "胸正位", "胸片",
    ],
    "warn": [
        "CHEST AND T-SPINE", "XR CHEST AND ABDOMEN", "Thorax/Abdomen", "coloană și torace", "RIBS W CHEST", "Babygram",
    ],
    "block": [
        "XR T-SPINE", "thoracic spine", "coloana toracala", "Coloană dorsală", "columna torácica",
        "Rachis dorsal", "BWS in 2 Ebenen", "Brustwirbelsäule", "kręgosłup piersiowy", "coluna torácica",
        "colonna dorsale", "ΘΜΣΣ", "胸椎正侧位", "胸骨",
        "грудной отдел позвоночника",
        "грудной ребёнок", "Brustbein", "Manchester",
        "KNEE LEFT", "Genunchi stâng", "rodilla", "genou", "Knie", "kolano", "joelho", "ginocchio",
        "Колено", "Γόνατο", "膝关节",
        "XR CHEST, LEFT KNEE", "Beckenübersicht", "Schädel", "Żebra", "AP 6 FEET", "HEAD UP 30",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("status", "value"), [(status, one) for status, many in DESCRIPTIONS.items() for one in many])
@pytest.mark.parametrize("keyword", ["StudyDescription", "SeriesDescription"])
def test_descriptions_in_eleven_languages(keyword, status, value):
    assert body(**{keyword: value}) == status


def test_descriptions_are_read_from_files_in_their_character_sets():
    utf8, latin2 = "ISO_IR 192", "ISO_IR 101"
    for charset, value in ((utf8, "Radiografie toracică"), (latin2, "płuca"), (utf8, "胸部"), ("BAD", "Thorax")):
        data = film(BodyPartExamined=None, SpecificCharacterSet=charset, StudyDescription=value)
        facts = read(data).facts
        assert facts.body is not None and facts.body.value == "chest", value


@pytest.mark.parametrize("keyword", [*vocabulary.SERIES_ELEMENTS, *vocabulary.STUDY_ELEMENTS])
def test_each_element_states_a_chest_and_another_part(keyword):
    for meaning, status in {
        "Xray Chest PA and Lateral": "ok",
        "Left knee": "block",
        "Abdomen and chest": "warn",
    }.items():
        result = check("body-part", assume_chest=status != "ok", **{keyword: value_of(keyword, meaning)})
        assert (result.status, result.why.split(" (")[0]) == (status, keyword)


def value_of(keyword: str, meaning: str) -> object:
    if keyword == "RequestAttributesSequence":
        return sequence(ScheduledProtocolCodeSequence=sequence(CodeMeaning=meaning))
    return sequence(CodeMeaning=meaning) if keyword.endswith("Sequence") else meaning


@pytest.mark.parametrize("keyword", vocabulary.REQUEST_ELEMENTS)
def test_each_request_attribute_states_a_chest(keyword):
    items = [Dataset(), *sequence(**{keyword: value_of(keyword, "XR CHEST")})]
    assert body(RequestAttributesSequence=items) == "ok"


@pytest.mark.parametrize(
    ("elements", "status", "reason"),
    [
        (
            {"StudyDescription": "XR CHEST AND ABDOMEN", "SeriesDescription": "ABDOMEN AP"},
            "block",
            "SeriesDescription (0008,103E) is abdomen, not a chest",
        ),
        (
            {"StudyDescription": "XR CHEST, LEFT KNEE", "SeriesDescription": "KNEE LEFT"},
            "block",
            "is knee, not a chest",
        ),
        ({"StudyDescription": "XR CHEST, LEFT KNEE", "SeriesDescription": "CHEST AP"}, "ok", "SeriesDescription"),
        (
            {"StudyDescription": "XR KNEE", "ProtocolName": "CHEST AP"},
            "warn",
            "is chest, and StudyDescription (0008,1030) is",
        ),
        (
            {"BodyPartExamined": "CHEST", "SeriesDescription": "ABDOMEN"},
            "block",
            "is abdomen, not a chest, although BodyPartExamined (0018,0015) is chest",
        ),
        ({"BodyPartExamined": "ABDOMEN", "SeriesDescription": "CHEST"}, "block", "although SeriesDescription"),
        (
            {"BodyPartExamined": "CHEST", "StudyDescription": "XR ABDOMEN"},
            "warn",
            "StudyDescription (0008,1030) is abdomen",
        ),
        ({"BodyPartExamined": "CHEST", "SeriesDescription": "CHEST RIGHT HAND"}, "ok", "BodyPartExamined"),
        ({"BodyPartExamined": "CHEST", "SeriesDescription": "AP HEAD UP"}, "ok", "BodyPartExamined"),
        ({"BodyPartExamined": "OTHER", "SeriesDescription": "CHEST"}, "ok", "SeriesDescription"),
        (
            {"StudyDescription": "XR CHEST", "ProcedureCodeSequence": sequence(CodeMeaning="XR Hip")},
            "block",
            "is chest, and ProcedureCodeSequence (0008,1032) is hip; if the film shows the chest: --assume-chest",
        ),
        ({"BodyPartExamined": "CHEST KNEE"}, "block", "is chest and knee; if the film shows the chest: --assume-chest"),
    ],
)
def test_the_series_decides_over_the_study(elements, status, reason):
    result = check("body-part", **elements)
    assert (result.status, reason in result.why) == (status, True), result.why


def region(code: str, meaning: str) -> list[Dataset]:
    return sequence(CodeValue=code, CodingSchemeDesignator="SCT" if code.isdigit() else "SNM3", CodeMeaning=meaning)


@pytest.mark.parametrize("code", [*vocabulary.CHEST_CODES, *vocabulary.WIDE_CODES, "72696002", "T-D9200", "818981001"])
@pytest.mark.parametrize("meaning", ["", "Brustkorb", "胸", "Krutine", "Thoracic structure"])
def test_codes_of_regions_count_before_meanings(code, meaning):
    result = body(BodyPartExamined="", AnatomicRegionSequence=region(code, meaning))
    if code in vocabulary.CHEST_CODES:
        assert result == "ok"
    elif code in vocabulary.WIDE_CODES:
        assert result == "warn"
    else:
        assert result == ("ok" if meaning in ("Brustkorb", "Thoracic structure") else "block")


def test_codes_equal_those_of_pydicom():
    from pydicom.sr import codes
    from pydicom.sr._snomed_dict import mapping

    concepts = codes.SCT
    names = [
        "ChestAndAbdomen",
        "ChestAbdomenAndPelvis",
        "NeckAndChest",
        "NeckChestAndAbdomen",
        "NeckChestAbdomenAndPelvis",
    ]
    wide = {getattr(concepts, name).value for name in names}
    assert {code for code in vocabulary.WIDE_CODES if code.isdigit()} == wide
    assert {mapping["SRT"].get(code, code) for code in vocabulary.WIDE_CODES} == wide
    assert concepts.Chest.value in vocabulary.CHEST_CODES and concepts.Lung.value in vocabulary.CHEST_CODES
    assert {mapping["SRT"].get(code, code) for code in vocabulary.CHEST_CODES} < set(vocabulary.CHEST_CODES)
    assert vocabulary.HUMAN_CODES[0] == concepts.HomoSapiens.value == mapping["SRT"][vocabulary.HUMAN_CODES[1]]


@pytest.mark.parametrize(
    ("elements", "status", "reason"),
    [
        (
            {"Modality": "DR", "SOPClassUID": DX},
            "warn",
            "Modality (0008,0060) is DR, but SOPClassUID (0008,0016) is 1.2.840",
        ),
        ({"Modality": "RG", "SOPClassUID": DX}, "warn", "is RG"),
        ({"Modality": "XR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1"}, "warn", "is XR"),
        ({"SOPClassUID": DX}, "warn", "Modality (0008,0060) is empty"),
        ({"Modality": "DR", "SOPClassUID": SECONDARY_CAPTURE}, "block", "which is not a CR or DX image"),
        ({"Modality": "XR"}, "block", "SOPClassUID (0008,0016) is empty"),
        ({}, "block", "SOPClassUID (0008,0016) is empty"),
        ({"Modality": "DX", "SOPClassUID": "1.2.392.200036"}, "block", "SOPClassUID (0008,0016) is (not shown)"),
        ({"Modality": "CT", "SOPClassUID": DX}, "block", "only CR and DX"),
    ],
)
def test_modality_without_cr_or_dx_depends_on_the_sop_class(elements, status, reason):
    result = check("modality", **elements)
    assert (result.status, reason in result.why) == (status, True), result.why


@pytest.mark.parametrize(
    ("media", "blocking"),
    [(DX, set()), ("1.2.840.10008.5.1.4.1.1.1", set()), (SECONDARY_CAPTURE, {"modality", "burned-in-text"})],
)
def test_sop_class_of_the_file_meta_counts_if_the_data_set_has_none(media, blocking):
    """Public data sets of children keep neither Modality, SOPClassUID, BodyPartExamined, StudyDate nor ViewPosition."""
    ds = dataset(PatientAge="003Y")
    for keyword in (
        "Modality",
        "SOPClassUID",
        "BodyPartExamined",
        "StudyDate",
        "ViewPosition",
        "PresentationIntentType",
    ):
        delattr(ds, keyword)
    ds.file_meta.MediaStorageSOPClassUID = media
    buffer = io.BytesIO()
    ds.save_as(buffer)
    facts = read(buffer.getvalue()).facts
    checks = rules.check(facts, CallerFacts(assume_chest=True))
    assert {one.name for one in checks if one.blocks} == blocking
    assert next(one for one in checks if one.name == "modality").status == ("block" if blocking else "warn")
    assert "MediaStorageSOPClassUID (0002,0002)" in checks[0].why
    assert "body-part" in {one.name for one in rules.check(facts, CallerFacts()) if one.blocks}


def test_file_meta_does_not_override_the_data_set():
    ds = dataset_of(Modality="DX", SOPClassUID=DX)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE
    facts = read_header(ds)
    assert facts.sop_class == Fact(DX, "SOPClassUID (0008,0016)")


SITES = {
    "block": [
        "Riverside Animal Hospital", "Clinique vétérinaire du Lac", "Tierklinik Nord",
        "Tierärztliche Klinik Tierarzt Dr. M",
        "Kleintierpraxis", "Centro Veterinário", "Klinika weterynaryjna", "Cabinet Medical-Veterinar",
        "Lecznica zwierząt",
        "Ветеринарная клиника",
        "Κτηνιατρική", "动物医院", "Vet Clinic", "VETMED",
    ],
    "ok": [
        "Veterans Hospital", "VET AFFAIRS", "Isle of Dogs Children's Hospital", "Horsham Hospital",
        "Black Dog Institute",
        "PET CT Center", "CAT Scan Center", "Dr. Katze", "Spitalul de copii", "Hundt Klinik", "Animas Hospital",
        "No animals",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("status", "value"), [(status, one) for status, many in SITES.items() for one in many])
def test_veterinary_words_about_the_site_block(status, value):
    assert check("human", InstitutionName=value).status == status


EXAMINATIONS = {
    "block": [
        "DOG THORAX VD", "Hund Thorax", "Thorax Katze", "RX TORACE CANE", "Radio thorax chien", "Tórax gato",
        "FELINE CHEST",
        "câine torace", "królik", "собака", "犬胸部", "guinea pig", "Equine",
    ],
    "ok": [
        "CAT CHEST", "CHEST CAT SCAN", "PET CHEST", "RX PIES", "CALF LEFT", "DOG BITE HAND", "Bovine arch",
        "Pigtail CHEST",
        "talipes equinovarus", "cocaine", "canine tooth", "Hundred", "Catheter position",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("status", "value"), [(status, one) for status, many in EXAMINATIONS.items() for one in many])
@pytest.mark.parametrize("keyword", ["StudyDescription", "ProcedureCodeSequence"])
def test_animals_in_texts_about_the_examination_block(keyword, status, value):
    assert check("human", **{keyword: value_of(keyword, value)}).status == status


@pytest.mark.parametrize(
    ("elements", "status", "reason"),
    [
        ({"ResponsiblePerson": "Doe^Jane"}, "warn", "ResponsiblePerson (0010,2297) is filled"),
        ({"ResponsibleOrganization": "Child services"}, "warn", "ResponsibleOrganization (0010,2299) is filled"),
        ({"ResponsiblePerson": "Doe^Jane", "ResponsibleOrganization": "Child services"}, "warn", "is filled"),
        ({"ResponsiblePerson": "Doe^Jane", "ResponsiblePersonRole": "GUARDIAN"}, "ok", "no species"),
        ({"ResponsiblePerson": "Doe^Jane", "ResponsiblePersonRole": "OWNER"}, "block", "is filled"),
        ({"ResponsiblePerson": "Doe^Jane", "ResponsiblePersonRole": "VETERINARIAN"}, "block", "is filled"),
        ({"PatientSexNeutered": "UNALTERED"}, "warn", "PatientSexNeutered (0010,2203) is filled"),
        ({"PatientSexNeutered": "ALTERED"}, "block", "PatientSexNeutered (0010,2203) is filled"),
        (
            {"PatientSexNeutered": "UNALTERED", "ResponsiblePerson": "Doe^Jane"},
            "block",
            "ResponsiblePerson (0010,2297) is filled, as is PatientSexNeutered (0010,2203)",
        ),
        ({"ResponsiblePerson": "Doe^Jane", "PatientBreedDescription": "Poodle"}, "block", "PatientBreedDescription"),
        ({"ResponsiblePerson": "Doe^Jane", "StudyDescription": "dog"}, "block", "StudyDescription (0008,1030) is dog"),
        ({"PatientSpeciesDescription": "Homo sapiens (organism)"}, "ok", "no species"),
        ({"PatientSpeciesDescription": "HUMAN"}, "ok", "no species"),
        ({"PatientSpeciesDescription": "Canis lupus familiaris"}, "block", "PatientSpeciesDescription"),
        ({"PatientSpeciesCodeSequence": region("337915000", "Mensch")}, "ok", "no species"),
        ({"PatientSpeciesCodeSequence": region("337915000", "Ember")}, "ok", "no species"),
        ({"PatientSpeciesCodeSequence": region("L-85003", "")}, "ok", "no species"),
        ({"PatientSpeciesCodeSequence": region("448771007", "")}, "block", "PatientSpeciesCodeSequence"),
        ({"PatientSpeciesCodeSequence": []}, "ok", "no species"),
        ({"BreedRegistrationSequence": []}, "ok", "no species"),
    ],
)
def test_signs_of_an_animal(elements, status, reason):
    result = check("human", **elements)
    assert (result.status, reason in result.why, "Doe" in result.why) == (status, True, False), result.why


def test_words_are_folded_and_not_shown_beyond_the_match():
    tables = (vocabulary.CHEST, vocabulary.PARTIAL, vocabulary.OTHER_PARTS, vocabulary.VETERINARY, vocabulary.ANIMALS)
    words = [word for table in tables for many in table.values() for word in many] + [*vocabulary.HUMAN]
    for word in words:
        plain = " ".join(word.replace("*", " ").split())
        assert fold(plain) == plain
    assert check("human", InstitutionName="Dr. PopescuVeterinar").why.startswith(
        "InstitutionName (0008,0080) is veterin;"
    )
    assert set(vocabulary.ADJOINING) < set(vocabulary.OTHER_PARTS)


def test_long_texts_and_sequences_are_read_in_bounded_time():
    ds = dataset_of(StudyDescription="chest " * 100_000)
    ds.ProcedureCodeSequence = [dataset_of(CodeMeaning="thora" * 100_000)] * 10_000
    facts = read_header(ds)
    assert facts.body is not None and facts.body.value == "chest"


def rows(name: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a table of the distribution torchxrayvision, which is not imported."""
    try:
        files = importlib.metadata.files("torchxrayvision") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("torchxrayvision is not installed; it holds the headers of public chest films")
    with gzip.open(next(path for path in files if path.name == name).locate(), "rt", encoding="utf-8") as file:
        yield from csv.DictReader(file)


NLM = {
    "Modality": "Modality",
    "SOP Class UID": "SOPClassUID",
    "Body Part Examined": "BodyPartExamined",
    "View Position": "ViewPosition",
    "Burned In Annotation": "BurnedInAnnotation",
    "Presentation Intent Type": "PresentationIntentType",
    "Quality Control Image": "QualityControlImage",
}


@pytest.mark.parametrize("keyword", ["ProcedureCodeSequence", "RequestAttributesSequence"])
def test_real_headers_of_7469_films(keyword):
    """The table does not tell which sequence a code is from, except for AnatomicRegionSequence."""
    columns = [*NLM, "Anatomic Region Sequence", "Code Meaning"]
    headers = Counter(tuple(row[name] for name in columns) for row in rows("nlmcxr_dicom_metadata.csv.gz"))
    assert headers.total() == 7469
    results: Counter[tuple[str, str]] = Counter()
    reasons: Counter[str] = Counter()
    for values, count in headers.items():
        *plain, anatomy, meaning = values
        elements: dict[str, object] = {NLM[name]: value for name, value in zip(NLM, plain, strict=True) if value}
        if "T-D3000" in anatomy:
            elements["AnatomicRegionSequence"] = region("T-D3000", "Chest")
        elif meaning:
            elements[keyword] = value_of(keyword, meaning)
        for one in rules.check(read_header(dataset_of(PatientAge="005Y", **elements)), CallerFacts()):
            results[one.name, one.status] += count
            if one.name == "body-part" and one.status != "ok":
                reasons[one.why] += count
    print(f"\n{dict(results)}\n{dict(reasons)}")
    blocked = {name: count for (name, status), count in results.items() if status == "block"}
    assert blocked.pop("body-part") <= 860
    assert blocked == {"modality": 2, "burned-in-text": 2}, "the two secondary captures"
    assert ("body-part", "warn") not in results


def test_real_headers_of_26684_secondary_captures_block():
    """The table has no SOP class. Its ConversionType WSD is an element of secondary captures only."""
    columns = ["Modality", "BodyPartExamined", "ViewPosition", "ConversionType", "PatientSex", "PatientAge"]
    headers = Counter(
        tuple(row[name] for name in columns) for row in rows("kaggle_stage_2_train_images_dicom_headers.csv.gz")
    )
    assert headers.total() == 26684 and {values[3] for values in headers} == {"WSD"}
    for values in headers:
        elements = dict(zip(columns, values, strict=True)) | {"SOPClassUID": SECONDARY_CAPTURE}
        checks = rules.check(read_header(dataset_of(**elements)), CallerFacts())
        assert {"modality", "age", "burned-in-text"} == {one.name for one in checks if one.blocks}


def docs_table(first_cell: str) -> dict[str, list[list[str]]]:
    """Return the rows of a table of docs/films.md: the code words of each cell, by the text of the first cell."""
    page = (ROOT / "docs/films.md").read_text()
    lines = page[page.index(f"| {first_cell} |") :].split("\n\n")[0].splitlines()[2:]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {first: [re.findall(r"`([^`]+)`", cell) for cell in others] for first, *others in cells}


def test_docs_list_the_words_of_each_language():
    words = zip(vocabulary.CHEST.values(), vocabulary.VETERINARY.values(), vocabulary.ANIMALS.values(), strict=True)
    expected = {language: [list(one) for one in row] for language, row in zip(vocabulary.CHEST, words, strict=True)}
    assert list(vocabulary.CHEST) == list(vocabulary.VETERINARY) == list(vocabulary.ANIMALS)
    assert docs_table("language") == expected


def test_docs_list_the_other_parts():
    assert docs_table("other part") == {name: [list(words)] for name, words in vocabulary.OTHER_PARTS.items()}


def test_docs_list_the_elements_in_their_order():
    table = docs_table("elements")
    assert [row[0] for row in table.values()] == [
        list(vocabulary.SERIES_ELEMENTS),
        list(vocabulary.STUDY_ELEMENTS),
        list(vocabulary.REQUEST_ELEMENTS),
        list(vocabulary.SITE_ELEMENTS),
        ["AcquisitionDeviceProcessingDescription"],
    ]
    elements = [*vocabulary.SITE_ELEMENTS, *vocabulary.EXAMINATION_ELEMENTS]
    assert not [keyword for keyword in elements if keyword not in vocabulary.TAGS]
