"""Rules of the intended use: the element that decides each one, and what the caller can change."""

from __future__ import annotations

import pytest

from pedcxr_client import Age, BlockedFilm, ConfigurationError, InputError
from pedcxr_client.checks import rules
from pedcxr_client.checks.rules import CallerFacts
from pedcxr_client.films.film import read
from pedcxr_client.films.geometry import PixelStats
from pedcxr_client.films.header.facts import PLAIN
from pedcxr_client.types import Check

pytest.importorskip("pydicom")

from tests.support.films.dicom_maker import film, sequence

NO_FACTS = CallerFacts()
GOOD = PixelStats(1000, 1000, spread=200, levels=200)


def check(name: str, caller: CallerFacts = NO_FACTS, stats: PixelStats | None = GOOD, **elements: object) -> Check:
    facts = read(film(**elements)).facts
    return next(one for one in rules.check(facts, caller, stats) if one.name == name)


def test_good_film_passes_every_check():
    checks = rules.check(read(film()).facts, CallerFacts(), GOOD)
    assert [one.name for one in checks] == list(rules.NAMES)
    assert {one.status for one in checks} == {"ok"}
    assert not any(one.blocks or one.allowed for one in checks)


@pytest.mark.parametrize(
    ("name", "elements", "status", "reason"),
    [
        (
            "modality",
            {"Modality": "CR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1"},
            "ok",
            "Modality (0008,0060) is CR",
        ),
        ("modality", {"Modality": "CT"}, "block", "Modality (0008,0060) is CT"),
        (
            "modality",
            {"Modality": None},
            "warn",
            "Modality (0008,0060) is empty, but SOPClassUID",
        ),
        ("modality", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "block", "SOPClassUID (0008,0016) is 1.2.840"),
        ("modality", {"Modality": "Popescu^Ana"}, "block", "is (not shown)"),
        ("presentation", {"PresentationIntentType": "FOR PROCESSING"}, "block", "(0008,0068) is FOR PROCESSING"),
        ("presentation", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"}, "block", "1.1.1.1, which is FOR PROCESSING"),
        ("presentation", {"PresentationIntentType": None}, "ok", "is empty"),
        ("body-part", {"BodyPartExamined": "thorax"}, "ok", "BodyPartExamined (0018,0015) is chest"),
        ("body-part", {"BodyPartExamined": "PORT_CHEST"}, "ok", "is chest"),
        ("body-part", {"BodyPartExamined": "HAND"}, "block", "BodyPartExamined (0018,0015) is HAND"),
        ("body-part", {"BodyPartExamined": "TSPINE"}, "block", "is TSPINE"),
        ("body-part", {"BodyPartExamined": None}, "block", "--assume-chest"),
        ("body-part", {"BodyPartExamined": "", "StudyDescription": "Radiografie torace"}, "ok", "StudyDescription"),
        (
            "body-part",
            {"BodyPartExamined": "", "SeriesDescription": "pulmonar AP"},
            "ok",
            "SeriesDescription (0008,103E)",
        ),
        ("body-part", {"BodyPartExamined": "", "ProtocolName": "LUNG"}, "ok", "ProtocolName (0018,1030) is chest"),
        ("body-part", {"BodyPartExamined": "", "StudyDescription": "thoracic spine"}, "block", "is spine, not"),
        ("body-part", {"BodyPartExamined": "", "StudyDescription": "coloana torace"}, "block", "is spine, not"),
        ("view", {"ViewPosition": "AP"}, "ok", "ViewPosition (0018,5101) is AP"),
        ("view", {"ViewPosition": "RL", "PatientOrientation": None}, "warn", "is RL, lateral"),
        ("view", {"ViewPosition": None, "PatientOrientation": None}, "warn", "is empty, not AP or PA"),
        ("age", {"PatientAge": "017Y"}, "ok", "PatientAge (0010,1010) is 017Y"),
        ("age", {"PatientAge": "018Y"}, "block", "is 018Y: 18 years or more"),
        ("age", {"PatientAge": "215M"}, "ok", "215M"),
        ("age", {"PatientAge": "216M"}, "block", "216M"),
        ("age", {"PatientAge": "939W"}, "ok", "939W"),
        ("age", {"PatientAge": "940W"}, "block", "940W"),
        ("age", {"PatientAge": "999D"}, "ok", "999D"),
        ("age", {"PatientAge": "62"}, "block", "PatientAge (0010,1010) is 62, and PatientBirthDate"),
        ("age", {"PatientAge": "5Y"}, "ok", "is 5Y, read as 5y"),
        ("age", {"PatientAge": "000Y"}, "block", "is 000Y"),
        ("age", {"PatientAge": "000Y", "PatientBirthDate": "20231201"}, "ok", "StudyDate (0008,0020) minus"),
        ("age", {"PatientAge": None}, "block", "; add --age"),
        ("age", {"PatientAge": None, "PatientBirthDate": "20060102"}, "block", "18 years or more"),
        ("age", {"PatientAge": None, "PatientBirthDate": "20060103"}, "ok", "minus PatientBirthDate (0010,0030)"),
        ("age", {"PatientAge": None, "PatientBirthDate": "20240103"}, "block", "cannot be used"),
        ("age", {"PatientAge": None, "PatientBirthDate": "20230231"}, "block", "cannot be used"),
        ("age", {"PatientAge": None, "PatientBirthDate": "20200101", "StudyDate": ""}, "block", "cannot be used"),
        ("age", {"PatientAge": "005Y", "PatientBirthDate": "19700101"}, "block", "is 005Y, but StudyDate"),
        ("sex", {"PatientSex": "M"}, "ok", "PatientSex (0010,0040) is M"),
        ("sex", {"PatientSex": "O"}, "ok", "is O; omitted"),
        ("sex", {"PatientSex": None}, "ok", "is empty; omitted"),
        ("human", {"InstitutionName": "Spital Veterinar"}, "block", "InstitutionName (0008,0080) is veterin"),
        ("human", {"AcquisitionDeviceProcessingDescription": "CANINE THORAX"}, "block", "is canine"),
        ("human", {"ProtocolName": "Equine"}, "block", "ProtocolName (0018,1030) is equine"),
        ("human", {"InstitutionName": "Veterans Hospital"}, "ok", "no species"),
        ("human", {"PatientSpeciesDescription": "Felis catus"}, "block", "(0010,2201) is filled"),
        ("human", {"PatientSpeciesDescription": "Homo sapiens"}, "ok", "no species"),
        ("human", {"PatientSpeciesCodeSequence": sequence(CodeMeaning="Canis lupus familiaris")}, "block", "filled"),
        ("human", {"PatientBreedDescription": "Poodle"}, "block", "PatientBreedDescription (0010,2292)"),
        ("human", {"PatientSexNeutered": "ALTERED"}, "block", "PatientSexNeutered"),
        ("human", {"ResponsiblePerson": "Popescu^Ana"}, "warn", "ResponsiblePerson (0010,2297) is filled"),
        ("human", {"ResponsiblePerson": "Popescu^Ana", "ResponsiblePersonRole": "OWNER"}, "block", "filled"),
        ("human", {"ResponsiblePerson": "Popescu^Ana", "ResponsiblePersonRole": "PARENT"}, "ok", "no species"),
        ("burned-in-text", {"BurnedInAnnotation": "YES"}, "block", "BurnedInAnnotation (0028,0301) is YES"),
        ("burned-in-text", {"BurnedInAnnotation": None}, "ok", "is empty"),
        ("burned-in-text", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "block", "secondary capture"),
        ("burned-in-text", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "block", "secondary capture"),
        ("quality", {"QualityControlImage": "YES"}, "block", "QualityControlImage (0028,0300) is YES"),
    ],
)
def test_each_rule(name, elements, status, reason):
    result = check(name, **elements)
    assert (result.status, reason in result.why) == (status, True), result.why
    assert "Popescu" not in result.why


def test_code_sequences_are_read_if_texts_are_absent():
    region = sequence(CodeMeaning="Thorax")
    assert check("body-part", BodyPartExamined=None, AnatomicRegionSequence=region).why.startswith("AnatomicRegion")
    hand = sequence(CodeMeaning="Hand of Popescu")
    other = check("body-part", BodyPartExamined=None, AnatomicRegionSequence=hand, StudyDescription="CHEST")
    assert (other.status, "Popescu" in other.why) == ("block", False)
    for meaning, status in {"postero-anterior": "ok", "antero-posterior": "ok", "left lateral": "warn"}.items():
        code = sequence(CodeMeaning=meaning)
        assert check("view", ViewPosition="", PatientOrientation=None, ViewCodeSequence=code).status == status


@pytest.mark.parametrize(
    ("stats", "status"),
    [
        (PixelStats(256, 9000, spread=64, levels=48), "ok"),
        (PixelStats(255, 9000, spread=64, levels=48), "block"),
        (PixelStats(1000, 1000, spread=63, levels=200), "block"),
        (PixelStats(1000, 1000, spread=200, levels=47), "block"),
        (PixelStats(1000, 1000, spread=200, levels=200, dark_middle=True), "warn"),
        (PixelStats(1000, 1000, spread=200, levels=200, turned=180), "warn"),
        (None, "warn"),
    ],
)
def test_quality_check_uses_the_pixel_stats(stats, status):
    assert check("quality", stats=stats).status == status


def test_quality_check_names_the_steps_that_left_few_grey_levels():
    stats = PixelStats(1000, 1000, spread=14, levels=15, steps="window 8191.5/16383 (LINEAR)")
    assert "too few grey levels: 15 with a spread of 14 after window 8191.5/16383" in check("quality", stats=stats).why


@pytest.mark.parametrize(
    ("birth", "study", "words"),
    [
        ("20240102", "20240102", "0-day-old"),
        ("20231206", "20240102", "27-day-old"),
        ("20231205", "20240102", "4-week-old"),
        ("20231108", "20240102", "7-week-old"),
        ("20231107", "20240102", "8-week-old"),
        ("20231103", "20240102", "8-week-old"),
        ("20231102", "20240102", "2-month-old"),
        ("20220103", "20240102", "23-month-old"),
        ("20220102", "20240102", "2-year-old"),
        ("20180228", "20230228", "5-year-old"),
        ("20200229", "20210228", "11-month-old"),
        ("20180301", "20230228", "4-year-old"),
    ],
)
def test_age_is_computed_at_the_study_date(birth, study, words):
    facts = read(film(PatientAge=None, PatientBirthDate=birth, StudyDate=study)).facts
    assert facts.age is not None and facts.age.words == words


def test_caller_takes_precedence_over_the_header():
    facts = read(film(PatientAge=None, PatientSex="O")).facts
    caller = CallerFacts(age=Age(7, "Y"), sex="F")
    assert (caller.age_of(facts), caller.sex_of(facts)) == (Age(7, "Y"), "F")
    assert check("age", caller, PatientAge=None).why == "stated by the caller"
    assert check("sex", caller, PatientSex="O").why == "stated by the caller"
    assert check("age", CallerFacts(age=Age(18, "Y"))).status == "block"
    assert check("age", caller, PatientAge="045Y").status == "block", "the film is of another patient"


def test_assume_chest_does_not_override_the_header():
    caller = CallerFacts(assume_chest=True)
    assert check("body-part", caller, BodyPartExamined=None).status == "ok"
    assert check("body-part", caller, BodyPartExamined="HAND").status == "block"


def test_only_blocking_checks_are_allowed_by_name():
    result = check("modality", CallerFacts(allow=["modality"]), Modality="CT")
    assert (result.status, result.allowed, result.blocks) == ("block", True, False)
    assert check("modality", CallerFacts(allow=["age"]), Modality="CT").blocks
    assert not check("modality", CallerFacts(allow=["modality"])).allowed, "the check did not block"
    for wrong in (["everything"], "all", ["modality", "AGE"]):
        with pytest.raises(ConfigurationError, match=r"allow: .* is not a check; the checks are modality, present"):
            CallerFacts(allow=wrong)


def test_error_lists_all_reasons_and_options():
    checks = rules.check(read(film(Modality="CT", PatientAge="045Y")).facts, CallerFacts())
    with pytest.raises(BlockedFilm, match=r"modality: .* is CT.*age: .*--allow modality --allow age") as error:
        rules.enforce(checks)
    assert error.value.checks == checks
    assert isinstance(error.value, InputError)
    rules.enforce(rules.check(read(film()).facts, CallerFacts()))


def test_plain_image_warns_and_blocks_only_on_known_facts():
    checks = {one.name: one for one in rules.check(PLAIN, CallerFacts(), GOOD)}
    assert {name for name, one in checks.items() if one.status == "warn"} == {*rules.NAMES} - {"quality"}
    assert not any(one.from_header for one in checks.values() if one.status == "warn")
    statuses = {
        one.name: one.status
        for one in rules.check(PLAIN, CallerFacts(age=Age(5, "Y"), sex="M", assume_chest=True), GOOD)
    }
    assert statuses["age"] == statuses["sex"] == statuses["body-part"] == "ok"
    assert {one.name for one in rules.check(PLAIN, CallerFacts(age=Age(45, "Y")), GOOD) if one.blocks} == {"age"}
