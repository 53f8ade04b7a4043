"""The drawn films and their expected reports, without a model."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pedcxr_client.films.age import Age
from pedcxr_serve.demo import drawing, expected_report
from pedcxr_serve.demo.findings import FINDINGS, ZONES, Case, Finding, Kind, compatible, sample, sample_age

LATERAL = [finding for finding in FINDINGS if finding.side is not None]
WIDE = Finding(Kind.WIDE_MEDIASTINUM)
ALL_LABELS = {expected_report.label(finding, age) for finding in FINDINGS for age in (Age(1, "Y"), None)}


def draw(*findings: Finding, age: Age | None = None, seed: int = 3) -> np.ndarray:
    return drawing.render(Case(age, None, findings), seed)


def test_film_is_determined_by_its_seed() -> None:
    case = sample(5)
    assert sample(5) == case
    assert np.array_equal(drawing.render(case, 5), drawing.render(case, 5))
    assert not np.array_equal(drawing.render(case, 5), drawing.render(case, 6))


def test_film_is_8_bit_grey_of_the_requested_size() -> None:
    film = draw()
    assert film.dtype == np.uint8 and film.shape == drawing.SIZE and film.shape[0] != film.shape[1]
    assert drawing.render(Case(None, None, ()), 1, size=(200, 150)).shape == (200, 150)
    assert film.std() > 30


@pytest.mark.parametrize("finding", [None, *FINDINGS], ids=str)
def test_film_does_not_depend_on_age_and_sex(finding: Finding | None) -> None:
    findings = () if finding is None else (finding,)
    first, *others = (
        drawing.render(Case(age, sex, findings), 11)
        for age, sex in ((Age(2, "D"), "M"), (Age(7, "M"), None), (Age(16, "Y"), "F"), (None, None))
    )
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("finding", LATERAL, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_lateral_finding_is_on_the_side_of_the_patient(finding: Finding, seed: int) -> None:
    change = np.abs(draw(finding, seed=seed).astype(int) - draw(seed=seed))
    middle = change.shape[1] // 2
    image_left, image_right = int(change[:, :middle].sum()), int(change[:, middle:].sum())
    same_opposite = (image_left, image_right) if finding.side == "right" else (image_right, image_left)
    assert same_opposite[0] > 2 * same_opposite[1]


def test_zones_are_ordered_from_the_top() -> None:
    heights = []
    for zone in ZONES:
        change = np.abs(draw(Finding(Kind.CONSOLIDATION, "left", zone)).astype(int) - draw()).sum(axis=1)
        heights.append(float((change * np.arange(len(change))).sum() / change.sum()))
    assert heights[0] + 40 < heights[1] and heights[1] + 40 < heights[2]


def test_air_is_dark_and_fluid_is_bright() -> None:
    normal = draw().astype(int)
    assert (draw(Finding(Kind.EFFUSION, "left")).astype(int) - normal).sum() > 0
    assert np.minimum(draw(Finding(Kind.PNEUMOTHORAX, "left")).astype(int) - normal, 0).min() < -25
    assert normal[160:200, 60:110].mean() < normal[160:200, 135:150].mean() - 40, "lung is darker than spine"
    left, right = normal[185:215, 150:190].mean(), normal[185:215, 98:138].mean()
    assert left > right + 5, "the heart is on the patient's left, which is image right"


def test_sampled_cases_are_compatible_and_cover_every_finding() -> None:
    cases = [sample(seed) for seed in range(1500)]
    for case in cases:
        pairs = [(a, b) for a in case.findings for b in case.findings if a is not b]
        assert all(compatible(a, b) for a, b in pairs)
    assert {finding for case in cases for finding in case.findings} == set(FINDINGS)
    assert any(not case.findings for case in cases)
    wide = [expected_report.thymus_age(case.age) for case in cases if WIDE in case.findings]
    assert len(wide) > 150 and 0.3 < sum(wide) / len(wide) < 0.7


def test_sampled_ages_cover_every_unit() -> None:
    rng = np.random.default_rng(0)
    ages = [sample_age(rng) for _ in range(3000)]
    words = {"unknown" if age is None else age.words for age in ages}
    assert {"unknown", "0-day-old", "4-week-old", "11-month-old", "1-year-old", "8-year-old", "17-year-old"} <= words
    assert not any(age and age.unit == "Y" and age.value > 17 for age in ages)


@pytest.mark.parametrize(
    ("age", "normal"),
    [
        (Age(0, "D"), True),
        (Age(7, "W"), True),
        (Age(23, "M"), True),
        (Age(35, "M"), True),
        (Age(36, "M"), False),
        (Age(999, "D"), True),
        (Age(156, "W"), True),
        (Age(157, "W"), False),
        (Age(2, "Y"), True),
        (Age(3, "Y"), False),
        (Age(10, "Y"), False),
        (None, False),
    ],
    ids=str,
)
def test_wide_mediastinum_is_a_thymus_under_three_years(age: Age | None, normal: bool) -> None:
    report = expected_report.text(Case(age, "M", (WIDE,)))
    assert ("normal thymus" in report) is normal
    assert ("Mediastinal widening, needs further evaluation." in report) is not normal
    assert expected_report.labels(report) == {expected_report.THYMUS if normal else expected_report.WIDENING}
    if age is not None:
        number, unit, _ = age.words.split("-")
        assert normal is (unit != "year" or int(number) < 3), "the wording of the age must be sufficient"


@pytest.mark.parametrize("age", [Age(1, "Y"), Age(9, "Y"), None], ids=str)
@pytest.mark.parametrize("finding", FINDINGS, ids=str)
def test_report_names_its_finding_and_no_other(finding: Finding, age: Age | None) -> None:
    report = expected_report.text(Case(age, None, (finding,)))
    assert expected_report.labels(report) == {expected_report.label(finding, age)}
    findings, impression = report.split("\n")
    assert findings.startswith("FINDINGS: ") and impression.startswith("IMPRESSION: ") and report.endswith(".")


def test_labels_are_read_from_the_report_of_any_case() -> None:
    for seed in range(500):
        case = sample(seed)
        assert expected_report.labels(expected_report.text(case)) == {
            expected_report.label(finding, case.age) for finding in case.findings
        }


def test_findings_lists_all_labels() -> None:
    assert set(expected_report.FINDINGS) == ALL_LABELS and len(expected_report.FINDINGS) == 18
    assert expected_report.labels("") == expected_report.labels("The lungs are clear.") == frozenset()


def test_report_of_a_normal_film() -> None:
    assert expected_report.text(Case(Age(5, "Y"), "M", ())) == (
        "FINDINGS: The lungs are clear. No pleural effusion or pneumothorax. The heart size is normal. "
        "The mediastinum is normal.\nIMPRESSION: No acute abnormality."
    )


def test_png_has_the_pixels_and_no_metadata() -> None:
    film = draw()
    image = Image.open(BytesIO(drawing.encode_png(film)))
    assert image.format == "PNG" and image.mode == "L" and not image.info
    assert np.array_equal(np.asarray(image), film)
