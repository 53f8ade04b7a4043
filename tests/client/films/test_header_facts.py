"""What a header states about view, orientation and age, and how the tables of docs/films.md state it."""

from __future__ import annotations

import json
import re
import warnings
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from pedcxr_client import Age, BlockedFilm, Client, ConfigurationError, FilmRequest, InputError
from pedcxr_client.checks import rules
from pedcxr_client.checks.rules import CallerFacts
from pedcxr_client.cli.main import main
from pedcxr_client.films.film import load, read
from pedcxr_client.films.header import views
from pedcxr_client.films.header.facts import PLAIN, Facts, read_header
from pedcxr_client.request.payload import write_prompt
from pedcxr_client.types import Check
from tests.support.paths import ROOT

pytest.importorskip("pydicom")

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.films.dicom_maker import dataset, film, sequence, to_bytes

DOCS = (ROOT / "docs/films.md").read_text()
FRONTAL = CallerFacts(views="frontal")


def facts(**elements: object) -> Facts:
    return read(film(**elements)).facts


def check(name: str, caller: CallerFacts = CallerFacts(), **elements: object) -> Check:  # noqa: B008  # immutable
    return next(one for one in rules.check(facts(**elements), caller) if one.name == name)


def raw_age(value: str, **elements: object) -> Facts:
    """Return the facts of a film whose PatientAge has a form that pydicom would not write."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tests use malformed values
        ds = dataset(PatientAge="005Y", **elements)
    ds["PatientAge"]._value = value
    return read(to_bytes(ds)).facts


def doc_table(heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading of docs/films.md."""
    section = DOCS.split(f"\n### {heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.M)
    assert table is not None
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[0].splitlines()[2:]]


def code_words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize(
    ("stated", "view", "projection"),
    [
        ("AP", "AP", "frontal"),
        ("pa", "PA", "frontal"),
        ("POSTEROANTERIOR", "PA", "frontal"),
        ("ANTERO-POSTERIOR", "AP", "frontal"),
        ("Postéro-antérieur", "PA", "frontal"),
        ("posterior anterior", "PA", "frontal"),
        ("AP SUPINE", "AP", "frontal"),
        ("PA UPRIGHT", "PA", "frontal"),
        ("AP_ERECT", "AP", "frontal"),
        ("PA1", "PA", "frontal"),
        ("P/A", "PA", "frontal"),
        ("p.a.", "PA", "frontal"),
        ("A P", "AP", "frontal"),
        ("AP/PA", "AP", "frontal"),
        ("AP LORDOTIC", "AP", "frontal"),
        ("LLD", "DECUBITUS", "frontal"),
        ("RLD", "DECUBITUS", "frontal"),
        ("LAT DECUBITUS", "DECUBITUS", "frontal"),
        ("LL", "LL", "lateral"),
        ("RL", "RL", "lateral"),
        ("LAT", "LATERAL", "lateral"),
        ("L", "LATERAL", "lateral"),
        ("LARGE LATERAL", "LATERAL", "lateral"),
        ("LATERAL_LEFT", "LATERAL", "lateral"),
        ("RLO", "OBLIQUE", ""),
        ("LAO", "OBLIQUE", ""),
        ("AP OBLIQUE", "OBLIQUE", ""),
        ("PA AND LATERAL", "PA AND LATERAL", ""),
        ("PA LAT", "PA LAT", ""),
        ("SUPINE", "SUPINE", ""),
        ("PALM", "PALM", ""),
        ("MAPS", "MAPS", ""),
        ("Popescu^Ana", "(not shown)", ""),
        ("", "", ""),
        (None, "", ""),
    ],
)
def test_view_position(stated, view, projection):
    elements = {"ViewPosition": stated, "PatientOrientation": None, "SpecificCharacterSet": "ISO_IR 192"}
    ds = dataset(**{**elements, "ViewPosition": None})
    if stated is not None:
        ds.add_new("ViewPosition", "LO", stated)  # CS would not accept every value
    read_facts = read(to_bytes(ds)).facts
    assert read_facts.view is not None
    assert (read_facts.view.value, read_facts.projection) == (view, projection)
    statuses = [rules.view(read_facts, caller, None).status for caller in (CallerFacts(), FRONTAL)]
    assert statuses == (["ok", "ok"] if projection == "frontal" else ["warn", "block"])
    assert "Popescu" not in str(read_facts)


@pytest.mark.parametrize(
    ("item", "view", "projection"),
    [
        ({"CodeValue": "399348003", "CodingSchemeDesignator": "SCT", "CodeMeaning": "von vorn"}, "AP", "frontal"),
        (
            {"CodeValue": "R-10214", "CodingSchemeDesignator": "SNM3", "CodeMeaning": "postero"},
            "PA",
            "frontal",
        ),
        ({"CodeValue": "399173006", "CodingSchemeDesignator": "SCT", "CodeMeaning": "profil gauche"}, "LL", "lateral"),
        ({"CodeValue": "R-10236", "CodingSchemeDesignator": "SRT", "CodeMeaning": "PA"}, "LL", "lateral"),
        ({"CodeValue": "399135007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "?"}, "OBLIQUE", ""),
        ({"CodeValue": "X1", "CodingSchemeDesignator": "99LOCAL", "CodeMeaning": "Thorax a.-p."}, "AP", "frontal"),
        ({"CodeMeaning": "left lateral"}, "LATERAL", "lateral"),
        ({"CodeMeaning": "Popescu"}, "(not shown)", ""),
    ],
)
def test_view_code_sequence(item, view, projection):
    read_facts = facts(ViewPosition="", PatientOrientation=None, ViewCodeSequence=sequence(**item))
    assert read_facts.view is not None
    assert (read_facts.view.value, read_facts.projection) == (view, projection)
    assert "Popescu" not in str(read_facts)


@pytest.mark.parametrize(
    ("elements", "status", "frontal", "why"),
    [
        ({"ViewPosition": "", "PatientOrientation": ["A", "F"]}, "warn", "block", r"(0020,0020) is A\F, lateral"),
        ({"ViewPosition": "", "PatientOrientation": ["P", "FA"]}, "warn", "block", r"is P\FA, lateral"),
        ({"ViewPosition": "", "PatientOrientation": ["L", "F"]}, "warn", "warn", r"is L\F, frontal"),
        ({"ViewPosition": "PA", "PatientOrientation": ["A", "F"]}, "warn", "block", r"is PA, but PatientOrientation"),
        ({"ViewPosition": "LL", "PatientOrientation": ["L", "F"]}, "warn", "block", r"is LL, but PatientOrientation"),
        ({"ViewPosition": "LL", "PatientOrientation": ["P", "F"]}, "warn", "block", "is LL, lateral"),
        ({"ViewPosition": "LAO", "PatientOrientation": ["LA", "F"]}, "warn", "block", "OBLIQUE, not AP or PA"),
        (
            {"ViewPosition": "PA", "ViewCodeSequence": sequence(CodeValue="399173006", CodeMeaning="left lateral")},
            "warn", "block", "is PA, but ViewCodeSequence (0054,0220) is LL",
        ),
        (
            {"ViewPosition": "PA", "ViewCodeSequence": sequence(CodeValue="399182000", CodeMeaning="oblique")},
            "warn", "block", "is PA, but ViewCodeSequence (0054,0220) is OBLIQUE",
        ),
    ],
)  # fmt: skip
def test_elements_that_complete_or_contradict_the_view(elements, status, frontal, why):
    results = [check("view", caller, **elements) for caller in (CallerFacts(), FRONTAL)]
    assert [one.status for one in results] == [status, frontal]
    assert all(why in one.why for one in results), results
    assert facts(**elements).projection == ("frontal" if frontal == "warn" else "lateral" if "lateral" in why else "")
    assert check("view", CallerFacts(views="frontal", allow=["view"]), **elements).blocks is False


def test_frontal_views_of_plain_images_only_warn():
    assert rules.view(PLAIN, FRONTAL, None).status == "warn", "nothing is known, and every plain image would be blocked"
    with pytest.raises(ConfigurationError, match="views: must be 'any' or 'frontal'"):
        CallerFacts(views="lateral")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "status", "why"),
    [
        (["L", "F"], "ok", r"PatientOrientation (0020,0020) is L\F"),
        (["l", "f"], "ok", r"is L\F"),
        (["L", "FR"], "ok", r"is L\FR"),
        (["LA", "FPR"], "ok", r"is LA\FPR"),
        (["R", "F"], "block", r"is R\F, mirrored"),
        (["L", "H"], "block", "upside down"),
        (["R", "H"], "block", "upside down"),
        (["RP", "FL"], "block", "mirrored"),
        (["F", "R"], "block", "turned by 90 degrees anticlockwise"),
        (["H", "L"], "block", "turned by 90 degrees clockwise"),
        (["F", "L"], "block", "turned by 90 degrees and mirrored"),
        (["A", "F"], "ok", r"is A\F"),
        (["P", "H"], "block", "upside down"),
        (["H", "A"], "block", "turned by 90 degrees"),
        (["L", "P"], "block", views.NO_FILM_PLANE),
        (["L", "R"], "block", views.NO_FILM_PLANE),
        (None, "warn", "is empty; compare the side marker"),
        ("", "warn", "is empty"),
        ("L", "warn", "(not shown)"),
        (["L", "F", "R"], "warn", "(not shown)"),
        (["LE", "V"], "warn", "(not shown)"),  # the directions of a quadruped
        (["Popescu", "F"], "warn", "(not shown)"),
    ],
)
def test_orientation(value, status, why):
    result = check("orientation", PatientOrientation=value)
    assert (result.status, why in result.why) == (status, True), result.why
    assert not check("orientation", CallerFacts(allow=["orientation"]), PatientOrientation=value).blocks
    assert "Popescu" not in result.why


def test_flip_against_the_detector_is_not_a_flip_of_the_patient():
    """PS3.3 C.8.11.4: the flip was applied already, relative to the detector."""
    flip = {"FieldOfViewHorizontalFlip": "YES", "FieldOfViewRotation": "0"}
    assert check("orientation", **flip).status == "ok"
    unknown = check("orientation", PatientOrientation=None, **flip)
    assert unknown.status == "warn" and "and FieldOfViewHorizontalFlip (0018,7034) is YES" in unknown.why
    turned = check("orientation", PatientOrientation=None, FieldOfViewHorizontalFlip="NO", FieldOfViewRotation="90")
    assert "FieldOfViewRotation (0018,7032) is 90" in turned.why
    straight = check("orientation", PatientOrientation=None, FieldOfViewHorizontalFlip="NO", FieldOfViewRotation="0")
    assert "FieldOfView" not in straight.why


def test_overlays_are_noted():
    ds = dataset(WindowCenter=2048, WindowWidth=4096)
    assert not any("overlays" in note for note in load(to_bytes(ds)).how)
    ds.add_new(0x60000010, "US", 256)  # OverlayRows
    ds.add_new(0x60003000, "OW", b"\0" * 8192)
    assert "overlays (60xx), which may hold side markers, are not drawn" in load(to_bytes(ds)).how


@pytest.mark.parametrize(
    ("age", "birth", "study", "status", "why"),
    [
        ("5Y", None, None, "ok", "PatientAge (0010,1010) is 5Y, read as 5y"),
        ("05Y", None, None, "ok", "is 05Y, read as 5y"),
        ("5 Y", None, None, "ok", "is 5 Y, read as 5y"),
        ("006 M", None, None, "ok", "is 006 M, read as 6m"),
        ("005y", None, None, "ok", "is 005Y"),
        ("62", None, None, "block", "is 62, and PatientBirthDate"),
        ("005", None, None, "block", "is 005, and"),
        ("-01Y", None, None, "block", "cannot be used"),
        ("Y", None, None, "block", "cannot be used"),
        ("0005Y", None, None, "block", "cannot be used"),
        ("P5Y", None, None, "block", "cannot be used"),
        ("000D", None, None, "ok", "is 000D"),
        ("000W", None, None, "block", "is 000W, and"),
        ("000M", None, None, "block", "is 000M, and"),
        ("000M", "20231228", None, "ok", "(0010,0030) is 5d"),
        ("000W", "20231228", None, "ok", "(0010,0030) is 5d"),
        ("000M", "20180101", None, "ok", "(0010,0030) is 6y"),
        ("000D", "20240102", None, "ok", "is 000D"),
        ("000D", "20231228", None, "ok", "is 000D"),
        (
            "000D",
            "20180101",
            None,
            "block",
            "is 000D, but StudyDate (0008,0020) minus PatientBirthDate",
        ),
        ("000D", "20230801", None, "block", "is 5m"),
        (
            "001Y",
            "20130101",
            None,
            "block",
            "PatientBirthDate (0010,0030) is 11y",
        ),
        ("010Y", "20231201", None, "block", "is 32d"),
        ("018M", "20180101", None, "block", "is 6y"),
        ("005Y", "20090101", None, "block", "is 15y"),
        ("005Y", "20251223", None, "block", "is a birth after the study"),
        ("000D", "20260102", None, "block", "is a birth after the study"),
        ("001D", "20240103", None, "ok", "is 001D"),  # a time zone
        ("005Y", "20180101", None, "ok", "is 005Y"),  # 6 years: one year
        ("006Y", "20160102", None, "ok", "is 006Y"),  # 8 years: 25 %
        ("004Y", "20180101", None, "block", "is 6y"),  # two years, 33 %
        ("014Y", "20070102", None, "ok", "is 014Y"),  # 17 years: 18 %
        ("017Y", "20060103", None, "ok", "is 017Y"),  # 17 years and 364 days
        ("017Y", "20060102", None, "block", "its dates result in 18 years or more"),  # 18 years
        ("", "20060103", None, "ok", "is 17y"),
        ("", "20060102", None, "block", "is 18y: 18 years or more"),
        ("", "20080229", "20260228", "ok", "is 17y"),
        ("", "20080229", "20260301", "block", "is 18y"),
        ("005Y", "19000101", None, "ok", "is 005Y"),
        ("005Y", "00010101", None, "ok", "is 005Y"),
        ("005Y", "18000101", None, "ok", "is 005Y"),
        ("005Y", "19030101", None, "ok", "is 005Y"),  # 121 years
        ("005Y", "19040101", None, "block", "is 120y"),
        ("", "19000101", "19180101", "block", "cannot be used"),
        ("005Y", "20190101", "19000101", "ok", "is 005Y"),
        ("", ["20190101", "20130101"], None, "block", "cannot be used"),
        ("005Y", ["20190101", "20130101"], None, "ok", "is 005Y"),
        ("", "20190230", None, "block", "cannot be used"),
        ("", "2019.01.01", None, "ok", "is 5y"),
    ],
)
def test_age_and_dates(age, birth, study, status, why):
    read_facts = raw_age(age, PatientBirthDate=birth, **({"StudyDate": study} if study else {}))
    result = rules.age(read_facts, CallerFacts(), None)
    assert (result.status, why in result.why) == (status, True), result.why
    assert not any(day in result.why for day in ("20180101", "20090101", "20251223", "2018-01-01"))
    if read_facts.age_conflict:
        assert CallerFacts().age_of(read_facts) is None, "no prompt has an age that a check called contradictory"
        assert CallerFacts(allow=["age"]).age_of(read_facts) == read_facts.age is not None


@pytest.mark.parametrize(
    ("caller", "elements", "status", "words"),
    [
        ({"age": "5y"}, {"PatientAge": "005Y"}, "ok", "5-year-old"),
        ({"age": "6y"}, {"PatientAge": "005Y"}, "ok", "6-year-old"),
        ({"age": "5y"}, {"PatientAge": "010Y"}, "block", None),
        ({"age": "15y"}, {"PatientAge": "010D"}, "block", None),
        ({"age": "0d"}, {"PatientAge": "005M"}, "block", None),
        ({"age": "0m"}, {"PatientAge": "005Y"}, "block", None),
        ({"age": "0w"}, {"PatientAge": "020D"}, "ok", "0-day-old"),
        ({"age": "5y", "allow": ["age"]}, {"PatientAge": "010Y"}, "block", "5-year-old"),
        ({"age": "5y"}, {"PatientAge": None}, "ok", "5-year-old"),
        ({"age": "5y"}, {"PatientAge": None, "PatientBirthDate": "20090101"}, "block", None),
        ({"age": "13y"}, {"PatientAge": "010Y", "PatientBirthDate": "20150101"}, "block", None),  # 9 years by dates
        ({"age": "5y"}, {"PatientAge": "005Y", "PatientBirthDate": "20090101"}, "block", None),
        ({"default_age": "5y"}, {"PatientAge": "010Y"}, "ok", "10-year-old"),
        ({"default_age": "5y"}, {"PatientAge": None}, "ok", "5-year-old"),
        ({"default_age": "5y"}, {"PatientAge": "62"}, "ok", "5-year-old"),
        ({"default_age": "20y"}, {"PatientAge": "010Y"}, "ok", "10-year-old"),
        ({"default_age": "20y"}, {"PatientAge": None}, "block", "20-year-old"),
        ({"default_age": "5y"}, {"PatientAge": "005Y", "PatientBirthDate": "20090101"}, "block", None),
        ({"age": "5y", "default_age": "9y"}, {"PatientAge": None}, "ok", "5-year-old"),
    ],
)  # fmt: skip
def test_age_of_the_caller(caller, elements, status, words):
    request = FilmRequest(b"", **caller)
    read_facts = facts(**elements)
    result = rules.age(read_facts, request.caller_facts(), None)
    assert result.status == status, result.why
    if words is None:
        assert len(re.findall(r"\b\d+[dmy]\b|\d{3}[DMY]", result.why)) == 2, "both values are named"
    age = request.caller_facts().age_of(read_facts)
    assert (None if age is None else age.words) == words
    assert (words or "film") in write_prompt(read_facts, request).user or words is None
    if words is None:
        assert "-old" not in write_prompt(read_facts, request).user


@pytest.mark.parametrize(
    ("caller", "header", "status", "sex"),
    [
        ({"sex": "M"}, "F", "block", None),
        ({"sex": "M", "allow": ["sex"]}, "F", "block", "M"),
        ({"sex": "F"}, "F", "ok", "F"),
        ({"sex": "F"}, "O", "ok", "F"),
        ({"sex": "F"}, None, "ok", "F"),
        ({"default_sex": "M"}, "F", "ok", "F"),
        ({"default_sex": "M"}, "O", "ok", "M"),
        ({}, "O", "ok", None),
    ],
)
def test_sex_of_the_caller(caller, header, status, sex):
    read_facts, facts_of_caller = facts(PatientSex=header), CallerFacts(**caller)
    result = rules.sex(read_facts, facts_of_caller, None)
    assert (result.status, facts_of_caller.sex_of(read_facts)) == (status, sex)
    if status == "block":
        assert result.why.startswith("the caller states M, but PatientSex (0010,0040) is F")


def test_words_of_an_age_never_go_back():
    """For every child, the words of a later film state the same age or an older one."""
    order = {"day": 1, "week": 2, "month": 3, "year": 4}

    def rank(age: Age) -> tuple[int, int]:
        value, unit, _ = age.words.split("-")
        return order[unit], int(value)

    for birth in (date(2019, 12, 31), date(2020, 2, 29), date(2021, 7, 1), date(2021, 1, 1)):
        ranks = [rank(Age.between(birth, birth + timedelta(days))) for days in range(1500)]
        assert ranks == sorted(ranks)
    ranks = [rank(Age(days, "D")) for days in range(1000)]
    assert ranks == sorted(ranks)
    assert [Age(days, "D").words for days in (27, 28, 55, 56, 60, 61)] == [
        "27-day-old", "4-week-old", "7-week-old", "8-week-old", "8-week-old", "2-month-old",
    ]  # fmt: skip
    assert [Age(weeks, "W").words for weeks in (3, 8, 9)] == ["21-day-old", "8-week-old", "2-month-old"]


@pytest.mark.parametrize(
    ("birth", "study", "age"),
    [
        (date(2024, 1, 2), date(2024, 1, 2), "0d"),
        (date(2023, 11, 3), date(2024, 1, 2), "60d"),
        (date(2023, 11, 2), date(2024, 1, 2), "2m"),
        (date(2022, 1, 3), date(2024, 1, 2), "23m"),
        (date(2022, 1, 2), date(2024, 1, 2), "2y"),
        (date(2006, 1, 3), date(2024, 1, 2), "17y"),
        (date(2006, 1, 2), date(2024, 1, 2), "18y"),
        (date(2020, 2, 29), date(2021, 2, 28), "11m"),
        (date(2020, 2, 29), date(2021, 3, 1), "12m"),
        (datetime(2020, 2, 29, 23), date(2024, 2, 29), "4y"),
    ],
)
def test_age_between_two_dates(birth, study, age):
    assert str(Age.between(birth, study)) == age


def test_age_between_needs_a_birth_before_the_study():
    with pytest.raises(InputError, match=r"^age: the birth is after the study; check both dates$"):
        Age.between(date(2024, 1, 3), date(2024, 1, 2))


@pytest.mark.parametrize(
    ("text", "quoted"), [("62", "'62'"), ("5 yy", "'5 yy'"), ("Popescu Ana", "the text"), ("", "the")]
)
def test_error_of_an_age_quotes_no_name(text, quoted):
    with pytest.raises(InputError, match=f"^age: {quoted}.* is not an age; write a number"):
        Age.parse(text)


def test_batch_age_fills_gaps_and_a_cell_of_the_manifest_is_compared(engine, tmp_path, capsys):
    names = {"ten.dcm": "010Y", "none.dcm": None, "other.dcm": "010Y"}
    for name, age in names.items():
        (tmp_path / name).write_bytes(film(PatientAge=age, WindowCenter=2048, WindowWidth=4096))
    manifest = tmp_path / "films.csv"
    manifest.write_text("path,age\nten.dcm,\nnone.dcm,\nother.dcm,5y\n")

    def reports(*options: str) -> dict[str, object]:
        output = tmp_path / f"{len(options)}.jsonl"
        main(["batch", str(manifest), "-o", str(output), "--url", engine.url, "--age", "6y", *options])
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        return {line["id"]: line.get("age") or line["error"]["message"] for line in lines}

    ages = reports()
    assert (ages["ten.dcm"], ages["none.dcm"]) == ("10y", "6y")
    assert "the caller states 5y, but PatientAge (0010,1010) is 010Y" in str(ages["other.dcm"])
    ages = reports("--age-overrides")
    assert "the caller states 6y, but PatientAge (0010,1010) is 010Y" in str(ages["ten.dcm"])
    assert ages["none.dcm"] == "6y"
    capsys.readouterr()


def test_options_of_the_commands(engine, tmp_path, capsys):
    path = tmp_path / "film.dcm"
    path.write_bytes(film(PatientAge="010Y", ViewPosition="LAT", PatientOrientation=["A", "F"]))
    assert main(["inspect", str(path), "--views", "frontal"]) == 3
    assert "verdict  blocked by view" in capsys.readouterr().out
    assert main(["report", str(path), "--url", engine.url, "--views", "frontal"]) == 3
    assert "--allow view" in capsys.readouterr().err and not engine.chats
    assert main(["inspect", str(path), "--age", "5y"]) == 3
    assert "-old" not in capsys.readouterr().out.split("prompt", 1)[1], "the age is contradictory"
    assert main(["inspect", str(path), str(path), "--age", "5y", "--sex", "M"]) == 0
    assert main(["inspect", str(path), str(path), "--age", "5y", "--age-overrides"]) == 3
    capsys.readouterr()
    assert main(["report", str(path), "--age-overrides"]) == 2
    assert "unrecognized arguments: --age-overrides" in capsys.readouterr().err


def test_client_passes_views_and_defaults(engine):
    lateral = film(ViewPosition="LAT", PatientOrientation=None, PatientAge=None)
    with Client(engine.url) as client:
        with pytest.raises(BlockedFilm, match="only frontal views"):
            client.report(lateral, default_age="5y", views="frontal")
        assert client.report(lateral, default_age="5y").age == Age(5, "Y")
        for method in (client.report, client.stream, client.payload):
            with pytest.raises(TypeError, match=r"^\w+\(\) got an unexpected keyword argument 'key'$"):
                method(lateral, key="a")


_TEXT = st.text("LRAPFHDWMY0123456789 /\\^é", max_size=16)


_HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "PatientAge": _TEXT,
        "PatientBirthDate": _TEXT | st.dates().map("{:%Y%m%d}".format),
        "StudyDate": _TEXT | st.dates().map("{:%Y%m%d}".format),
        "PatientSex": _TEXT,
        "ViewPosition": _TEXT,
        "PatientOrientation": _TEXT | st.lists(_TEXT, max_size=3),
        "FieldOfViewRotation": _TEXT,
    },
)


def check_any_header(elements: dict[str, object]) -> None:
    from pydicom import Dataset

    ds = Dataset()
    for keyword, value in elements.items():
        ds.add_new(keyword, "LO", value)
    found = read_header(ds)
    for caller in (CallerFacts(), CallerFacts(age=Age(5, "Y"), sex="M", views="frontal")):
        checks = {one.name: one for one in rules.check(found, caller)}
        assert not (caller.age_conflict(found) and caller.age_of(found))
        assert checks["age"].blocks or caller.age_of(found) is not None


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(_HEADERS)
def test_any_header_gives_facts_and_checks(elements):
    """No error is raised, and the prompt never has an age that a check calls contradictory."""
    check_any_header(elements)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, database=None)
@given(_HEADERS)
def test_1000_headers_give_facts_and_checks(elements):
    check_any_header(elements)


def test_table_of_views_in_the_docs():
    rows = doc_table("Views")
    assert [code_words(row[0]) for row in rows] == [[name] for name in views.VIEWS]
    for (_, projection, words, codes), (name, value) in zip(rows, views.VIEWS.items(), strict=True):
        assert ("" if projection == "neither" else projection, tuple(code_words(words))) == value
        assert code_words(codes) == [code for code, view in views.VIEW_CODES.items() if view == name]


def test_table_of_orientations_in_the_docs():
    rows = doc_table("Orientation")
    described = {
        code: (projection, "" if words == "upright" else words)
        for codes, projection, words, result in rows
        for code in code_words(codes)
        if (result == "ok") == (words == "upright")
    }
    assert described == views.ORIENTATIONS


@pytest.mark.parametrize("row", doc_table("Ages"), ids=lambda row: " ".join(row[:3]))
def test_table_of_ages_in_the_docs(row):
    stated, birth, caller, status, words = (cell.strip("`") for cell in row)
    read_facts = raw_age(stated, PatientBirthDate=birth or None, StudyDate="20240102")
    request = FilmRequest(Path(), age=caller or None)
    assert rules.age(read_facts, request.caller_facts(), None).status == status
    age = request.caller_facts().age_of(read_facts)
    assert ("" if age is None else age.words) == words
