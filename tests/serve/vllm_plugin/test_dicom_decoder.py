"""DICOM through the media connector's decoder: the client's pixels and the client's checks."""

from __future__ import annotations

import base64
import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pedcxr_client import InputError
from pedcxr_client.checks import rules
from pedcxr_client.films import film
from pedcxr_serve.vllm_plugin import dicom_decoder, image_decoder, refusals
from pedcxr_serve.vllm_plugin.refusals import FilmRefused
from tests.support.paths import REAL_FILMS

pytest.importorskip("pydicom")

from tests.support.films import dicom_maker, unusual_films

FILMS = REAL_FILMS
CAP = 50_000_000
GOOD = dicom_maker.film()
CONTEXT = {"age", "sex", "view"}  # checks that depend on the prompt, or that only warn


def real_films() -> list[Path]:
    if not FILMS.is_dir():
        return []
    with (FILMS / "MANIFEST.tsv").open(newline="") as rows:
        paths = [FILMS / row["path"] for row in csv.DictReader(rows, delimiter="\t")]
    return [path for path in paths if path.suffix == ".dcm"]


def sent_by_the_client(data: bytes) -> np.ndarray:
    encoded = film.prepare(data)
    return np.asarray(image_decoder.decode(base64.b64decode(encoded.base64), max_pixels=CAP))


@pytest.mark.skipif(
    not real_films(), reason="the real films are not available: shared/data/cxr belongs beside the checkout"
)
@pytest.mark.parametrize("path", real_films(), ids=lambda path: path.stem)
def test_real_film_gives_the_pixels_or_the_refusal_of_the_client(path: Path) -> None:
    data = path.read_bytes()
    undecoded = film.read(data)
    try:
        rendered = undecoded.render()
        error = ""
    except InputError as refusal:
        rendered, error = None, str(refusal)
    checks = rules.check(undecoded.facts, rules.CallerFacts(assume_chest=True), rendered.stats if rendered else None)
    blocking = [one for one in checks if one.status == "block" and one.name not in CONTEXT]
    if not blocking and not error:
        image = image_decoder.decode(data, max_pixels=CAP)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), sent_by_the_client(data))
        return
    with pytest.raises(FilmRefused) as caught:
        image_decoder.decode(data, max_pixels=CAP)
    assert caught.value.code == ("film_blocked" if blocking else "film_unreadable")
    header_blocks = [one for one in blocking if one.name != "quality" or rendered is None]
    for one in header_blocks or blocking:
        assert f"{one.name}: {one.why}" in str(caught.value)


@pytest.mark.parametrize("name", unusual_films.accepted())
def test_unusual_form_gives_the_pixels_of_the_client(name: str) -> None:
    data, _ = unusual_films.accepted()[name]
    image = image_decoder.decode(data, max_pixels=CAP)
    assert np.array_equal(np.asarray(image), sent_by_the_client(data))


@pytest.mark.parametrize("name", unusual_films.refused())
def test_damaged_film_gives_the_message_of_the_client(name: str) -> None:
    data, _ = unusual_films.refused()[name]
    with pytest.raises(InputError) as expected:
        film.load(data)
    with pytest.raises(FilmRefused) as caught:
        image_decoder.decode(data, max_pixels=CAP)
    assert (str(caught.value), caught.value.code) == (str(expected.value), "film_unreadable")


@pytest.mark.skipif(
    not real_films(), reason="the real films are not available: shared/data/cxr belongs beside the checkout"
)
def test_at_least_half_of_the_real_films_pass() -> None:
    """The test above would also pass if every film were refused."""
    count = 0
    for path in real_films():
        try:
            count += image_decoder.decode(path.read_bytes(), max_pixels=CAP).width > 0
        except FilmRefused:
            continue
    assert count >= len(real_films()) // 2


@pytest.mark.parametrize(
    ("elements", "code", "words"),
    [
        ({"Modality": "CT"}, "film_blocked", r"modality: Modality \(0008,0060\) is CT"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "film_blocked", r"presentation: .*\(0008,0068\)"),
        ({"BodyPartExamined": "HAND"}, "film_blocked", r"body-part: BodyPartExamined \(0018,0015\) is HAND"),
        ({"PatientOrientation": ["R", "F"]}, "film_blocked", r"orientation: PatientOrientation .* is R.F, mirrored"),
        ({"PatientOrientation": ["H", "L"]}, "film_blocked", "turned by 90 degrees clockwise"),
        (
            {"BodyPartExamined": None, "SeriesDescription": "KNEE"},
            "film_blocked",
            r"SeriesDescription .* is knee",
        ),
        ({"BurnedInAnnotation": "YES"}, "film_blocked", r"burned-in-text: BurnedInAnnotation \(0028,0301\) is YES"),
        ({"PatientSpeciesDescription": "CANINE"}, "film_blocked", r"human: PatientSpeciesDescription"),
        ({"QualityControlImage": "YES"}, "film_blocked", r"quality: "),
        ({"pixels": dicom_maker.ramp(200, 300)}, "film_blocked", r"quality: 300 x 200 pixels"),
        ({"pixels": np.zeros((300, 300), np.uint16)}, "film_blocked", "quality: too few grey levels: 1 with"),
        ({"NumberOfFrames": 2}, "film_unreadable", r"NumberOfFrames \(0028,0008\) is 2"),
        ({"PixelData": None}, "film_unreadable", "holds no pixels"),
        ({"Rows": 60_000, "Columns": 60_000}, "film_unreadable", "million pixels"),
        ({"PhotometricInterpretation": "RGB"}, "film_unreadable", "is RGB"),
    ],
)
def test_film_outside_the_intended_use_or_unreadable_is_refused(
    elements: dict[str, object], code: str, words: str
) -> None:
    data = dicom_maker.film(**elements)
    with pytest.raises(FilmRefused, match=words) as caught:
        image_decoder.decode(data, max_pixels=CAP)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "elements",
    [
        {"PatientAge": "045Y"},  # the age belongs to the prompt, which the caller writes
        {"PatientAge": None, "PatientSex": None},
        {"BodyPartExamined": None},
        {"BodyPartExamined": ""},
        {"BodyPartExamined": None, "StudyDescription": "CHEST, LEFT KNEE"},
        {"BodyPartExamined": None, "Modality": None, "SOPClassUID": None},
        {"ResponsiblePerson": "Doe^Jane"},
        {"ViewPosition": "LL"},
        {"PatientOrientation": None},
        {"PatientAge": "005Y", "PatientBirthDate": "20090101"},
    ],
)
def test_elements_that_belong_to_the_prompt_or_are_absent_do_not_block(elements: dict[str, object]) -> None:
    assert image_decoder.decode(dicom_maker.film(**elements), max_pixels=CAP).size == (256, 256)


def test_every_check_is_made_here_or_left_to_the_caller() -> None:
    """A check that is added to the client must be assigned to one of the two sets."""
    assert set(dicom_decoder.CHECKS) | CONTEXT == set(rules.NAMES)


def test_server_pixel_limit_applies_below_the_limit_of_the_client() -> None:
    data = dicom_maker.film()
    assert image_decoder.decode(data, max_pixels=256 * 256).size == (256, 256)
    with pytest.raises(FilmRefused, match="256 x 256 pixels, and at most 65,535"):
        image_decoder.decode(data, max_pixels=256 * 256 - 1)


def test_data_set_without_preamble_is_dicom() -> None:
    data = dicom_maker.film()
    start = data.index(b"\x08\x00\x16\x00")  # SOPClassUID, the first element after the file meta information
    assert np.array_equal(
        image_decoder.decode(data[start:], max_pixels=CAP), image_decoder.decode(data, max_pixels=CAP)
    )


@pytest.mark.parametrize("cut", [140, 400, 20_000])
def test_truncated_film_is_refused(cut: int) -> None:
    with pytest.raises(FilmRefused):
        image_decoder.decode(dicom_maker.film()[:cut], max_pixels=CAP)


PATIENT_NAME = "Popescu^Ana"


def test_refusal_does_not_repeat_identifying_values() -> None:
    identifiers = {"PatientName": PATIENT_NAME, "PatientID": "1234567890", "InstitutionName": "St. Planted"}
    invalid: list[dict[str, object]] = [
        {"Modality": PATIENT_NAME},
        {"BodyPartExamined": PATIENT_NAME},
        {"PixelData": None},
    ]
    owner = {"ResponsiblePerson": PATIENT_NAME, "ResponsiblePersonRole": "OWNER"}
    invalid += [
        owner,
        {"SeriesDescription": f"KNEE {PATIENT_NAME}"},
        {"Rows": 0},
        {"PhotometricInterpretation": PATIENT_NAME},
    ]
    for elements in invalid:
        with pytest.raises(FilmRefused) as caught:
            image_decoder.decode(dicom_maker.film(**identifiers, **elements), max_pixels=CAP)
        chain = ""
        error: BaseException | None = caught.value
        while error is not None:
            chain, error = f"{chain} {error!r}", error.__cause__ or error.__context__
        assert not any(secret in chain for secret in ("Popescu", "1234567890", "Planted"))


def test_error_names_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(FilmRefused, match=r"pedcxr\[dicom\]") as caught:
        image_decoder.decode(GOOD, max_pixels=CAP)
    assert refusals.STATUS[caught.value.code] == 501


def test_dicom_is_recognised_by_its_first_bytes() -> None:
    out = io.BytesIO()
    Image.fromarray(np.arange(90_000, dtype=np.uint8).reshape(300, 300)).save(out, "PNG")
    assert dicom_decoder.is_dicom(GOOD[:132]) and not dicom_decoder.is_dicom(out.getvalue())


def test_refusals_are_read_from_engine_errors() -> None:
    for code, status in refusals.STATUS.items():
        body = b'{"error": {"message": "%s", "type": "x", "param": null, "code": 422}}'
        refusal = refusals.read(body % refusals.mark(code, "a: b").encode())
        assert refusal == refusals.FilmRefusal(code, "a: b") and refusal.status == status
    for other in (b"", b"[]", b'{"error": null}', b'{"error": {"message": "no: code"}}', b'{"error": {"message": 5}}'):
        assert refusals.read(other) is None
