"""DICOM through the media connector's decoder: the client's pixels, the client's checks, in the server's words."""

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
from pedcxr_client.films import film as image
from pedcxr_serve.vllm_plugin import dicom_decoder, image_decoder, refusals
from tests.support.paths import REAL_FILMS

pytest.importorskip("pydicom")

from tests.support import dicom_maker

FILMS = REAL_FILMS
CAP = 50_000_000
GOOD = dicom_maker.film()
CONTEXT = {"age", "sex", "view"}  # what the prompt says, or nothing more than a warning


def real_films() -> list[Path]:
    if not FILMS.is_dir():
        return []
    with (FILMS / "MANIFEST.tsv").open(newline="") as rows:
        listed = [FILMS / row["path"] for row in csv.DictReader(rows, delimiter="\t")]
    return [path for path in listed if path.suffix == ".dcm"]


def as_the_client_sends_it(data: bytes) -> np.ndarray:
    encoded = image.prepare(data)
    return np.asarray(image_decoder.decode(base64.b64decode(encoded.base64), max_pixels=CAP))


@pytest.mark.skipif(not real_films(), reason="the real films are not here: shared/data/cxr lies beside the checkout")
@pytest.mark.parametrize("path", real_films(), ids=lambda path: path.stem)
def test_each_real_film_is_seen_as_the_client_would_send_it_or_refused_as_it_would(path: Path) -> None:
    data = path.read_bytes()
    read = image.read(data)
    try:
        seen = read.develop()
        error = ""
    except InputError as refused:
        seen, error = None, str(refused)
    checks = rules.check(read.facts, rules.CallerFacts(assume_chest=True), seen.stats if seen else None)
    blocking = [one for one in checks if one.status == "block" and one.name not in CONTEXT]
    if not blocking and not error:
        got = image_decoder.decode(data, max_pixels=CAP)
        assert got.mode == "RGB"
        assert np.array_equal(np.asarray(got), as_the_client_sends_it(data))
        return
    with pytest.raises(image_decoder.FilmRefused) as caught:
        image_decoder.decode(data, max_pixels=CAP)
    assert caught.value.code == ("film_blocked" if blocking else "film_unreadable")
    header_blocks = [one for one in blocking if one.name != "quality" or seen is None]
    for one in header_blocks or blocking:
        assert f"{one.name}: {one.why}" in str(caught.value)


@pytest.mark.skipif(not real_films(), reason="the real films are not here: shared/data/cxr lies beside the checkout")
def test_how_many_of_the_real_films_pass() -> None:
    """So that the test above cannot agree on refusing everything."""
    passed = 0
    for path in real_films():
        try:
            passed += image_decoder.decode(path.read_bytes(), max_pixels=CAP).width > 0
        except image_decoder.FilmRefused:
            continue
    assert passed >= len(real_films()) // 2


@pytest.mark.parametrize(
    ("elements", "code", "words"),
    [
        ({"Modality": "CT"}, "film_blocked", r"modality: Modality \(0008,0060\) is CT"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "film_blocked", r"presentation: .*\(0008,0068\)"),
        ({"BodyPartExamined": "HAND"}, "film_blocked", r"body-part: BodyPartExamined \(0018,0015\) is HAND"),
        ({"BurnedInAnnotation": "YES"}, "film_blocked", r"burned-in-text: BurnedInAnnotation \(0028,0301\) is YES"),
        ({"PatientSpeciesDescription": "CANINE"}, "film_blocked", r"human: PatientSpeciesDescription"),
        ({"QualityControlImage": "YES"}, "film_blocked", r"quality: "),
        ({"pixels": dicom_maker.ramp(200, 300)}, "film_blocked", r"quality: 300 x 200 pixels"),
        ({"pixels": np.zeros((300, 300), np.uint16)}, "film_blocked", "nearly constant"),
        ({"NumberOfFrames": 2}, "film_unreadable", r"NumberOfFrames \(0028,0008\) is 2"),
        ({"PixelData": None}, "film_unreadable", "holds no pixels"),
        ({"Rows": 60_000, "Columns": 60_000}, "film_unreadable", "million pixels"),
        ({"PhotometricInterpretation": "RGB"}, "film_unreadable", "is RGB"),
    ],
)
def test_what_the_film_itself_tells_is_checked(elements: dict[str, object], code: str, words: str) -> None:
    data = dicom_maker.film(**elements)
    with pytest.raises(image_decoder.FilmRefused, match=words) as caught:
        image_decoder.decode(data, max_pixels=CAP)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "elements",
    [
        {"PatientAge": "045Y"},  # the prompt's business: who asks has said how old the child is
        {"PatientAge": None, "PatientSex": None},
        {"BodyPartExamined": None},
        {"BodyPartExamined": ""},
        {"ViewPosition": "LL"},
    ],
)
def test_what_the_prompt_or_nobody_says_does_not_block(elements: dict[str, object]) -> None:
    assert image_decoder.decode(dicom_maker.film(**elements), max_pixels=CAP).size == (256, 256)


def test_every_check_is_decided_here_or_by_the_caller() -> None:
    """A check that the client learns one day must be put on one side or the other."""
    assert set(dicom_decoder.CHECKS) | CONTEXT == set(rules.NAMES)


def test_the_cap_of_the_server_holds_below_the_client_s() -> None:
    data = dicom_maker.film()
    assert image_decoder.decode(data, max_pixels=256 * 256).size == (256, 256)
    with pytest.raises(image_decoder.FilmRefused, match="256 x 256 pixels, at most 65,535"):
        image_decoder.decode(data, max_pixels=256 * 256 - 1)


def test_a_bare_data_set_is_dicom_too() -> None:
    data = dicom_maker.film()
    start = data.index(b"\x08\x00\x16\x00")  # SOPClassUID, the first element after the file's own
    assert np.array_equal(
        image_decoder.decode(data[start:], max_pixels=CAP), image_decoder.decode(data, max_pixels=CAP)
    )


@pytest.mark.parametrize("cut", [140, 400, 20_000])
def test_a_film_cut_short(cut: int) -> None:
    with pytest.raises(image_decoder.FilmRefused):
        image_decoder.decode(dicom_maker.film()[:cut], max_pixels=CAP)


PLANTED = "Popescu^Ana"


def test_no_refusal_repeats_what_identifies() -> None:
    planted = {"PatientName": PLANTED, "PatientID": "1234567890", "InstitutionName": "St. Planted"}
    bad: list[dict[str, object]] = [{"Modality": PLANTED}, {"BodyPartExamined": PLANTED}, {"PixelData": None}]
    bad += [{"ResponsiblePerson": PLANTED}, {"Rows": 0}, {"PhotometricInterpretation": PLANTED}]
    for elements in bad:
        with pytest.raises(image_decoder.FilmRefused) as caught:
            image_decoder.decode(dicom_maker.film(**planted, **elements), max_pixels=CAP)
        chain = ""
        error: BaseException | None = caught.value
        while error is not None:
            chain, error = f"{chain} {error!r}", error.__cause__ or error.__context__
        assert not any(secret in chain for secret in ("Popescu", "1234567890", "Planted"))


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(image_decoder.FilmRefused, match=r"pedcxr\[dicom\]") as caught:
        image_decoder.decode(GOOD, max_pixels=CAP)
    assert refusals.STATUS[caught.value.code] == 501


def test_magic_bytes_decide() -> None:
    out = io.BytesIO()
    Image.fromarray(np.arange(90_000, dtype=np.uint8).reshape(300, 300)).save(out, "PNG")
    assert dicom_decoder.is_dicom(GOOD[:132]) and not dicom_decoder.is_dicom(out.getvalue())


def test_refusals_survive_the_engine() -> None:
    for code, status in refusals.STATUS.items():
        body = b'{"error": {"message": "%s", "type": "x", "param": null, "code": 422}}'
        told = refusals.read(body % refusals.mark(code, "a: b").encode())
        assert told == refusals.FilmRefusal(code, "a: b") and told.status == status
    for other in (b"", b"[]", b'{"error": null}', b'{"error": {"message": "no: code"}}', b'{"error": {"message": 5}}'):
        assert refusals.read(other) is None
