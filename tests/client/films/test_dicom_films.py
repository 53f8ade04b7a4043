"""The real films of shared/data/cxr: each behaves as its MANIFEST says, and all variants of one film look alike."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pedcxr_client import InputError
from pedcxr_client.checks import rules
from pedcxr_client.checks.rules import CallerFacts
from pedcxr_client.films.film import encode, load, prepare, read
from tests.support.paths import REAL_FILMS

pytest.importorskip("pydicom")

FILMS = REAL_FILMS
MANIFEST = FILMS / "MANIFEST.tsv"
ABSENT = "the real films are not here: shared/data/cxr lies beside the checkout"

# What the notes of the MANIFEST come to: the checks that block, and the error of a film that cannot be decoded.
BLOCKED = {
    "dicom_chest/RG1_J2KR.dcm": "age",  # born 1940, filmed 2004
    "dicom_chest/RG1_JLSN.dcm": "age",
    "dicom_chest/chrJapMulti.dcm": "age",  # born 1800
    "dicom_other/highdicom_dx_image_CANINE_005Y_F.dcm": "human quality",
    "dicom_other/CT_small.dcm": "modality body-part age quality",
    "dicom_other/MR_small.dcm": "modality body-part age quality",
    "dicom_other/MR_truncated.dcm": "modality body-part age",
    "dicom_other/examples_rgb_color.dcm": "modality body-part age",
    "dicom_other/test-SR.dcm": "modality body-part age",
    "dicom_other/highdicom_sr_document.dcm": "modality body-part age",
    "dicom_other/waveform_ecg.dcm": "modality body-part age",
    "dicom_other/JPEG2000.dcm": "modality body-part age burned-in-text",
    "dicom_other/mlut_18.dcm": "modality body-part age burned-in-text",
    "dicom_other/RG3_JPLL.dcm": "body-part age",
    "dicom_other/RG3_JPLY.dcm": "body-part age",
    "dicom_derived/d21_sc_rgb_screenshot.dcm": "modality burned-in-text",
    "dicom_derived/m05_age_malformed_62.dcm": "age",
    "dicom_derived/m06_age_adult_045Y.dcm": "age",
    "dicom_derived/m08_age_missing_all.dcm": "age",
    "dicom_derived/m15_body_HAND.dcm": "body-part",
    "dicom_derived/m16_burned_in_YES.dcm": "burned-in-text",
    "dicom_derived/m19_modality_CT_chest.dcm": "modality",
    "dicom_derived/m20_qc_image.dcm": "quality",
}
REFUSED = {
    "dicom_chest/chrJapMulti.dcm": "holds no pixels",
    "dicom_other/examples_rgb_color.dcm": "is RGB",
    "dicom_other/test-SR.dcm": "holds no pixels",
    "dicom_other/waveform_ecg.dcm": "holds no pixels",
    "dicom_other/highdicom_sr_document.dcm": "holds no pixels",
    "dicom_other/MR_truncated.dcm": "cut short",
    "dicom_other/RG3_JPLY.dcm": "pylibjpeg-libjpeg|damaged",  # the latter where somebody installed it
    "dicom_derived/d20_dx_multiframe_2.dcm": "NumberOfFrames .* is 2",
    "dicom_derived/d21_sc_rgb_screenshot.dcm": "is RGB",
    "dicom_derived/d24_dx_truncated.dcm": "cut short",
}
WARNED = {
    "dicom_derived/m11_view_LL.dcm": "view",
    "dicom_derived/m12_view_missing.dcm": "view",
    "dicom_other/mlut_18.dcm": "view quality",
    "dicom_derived/d20_dx_multiframe_2.dcm": "quality",  # its pixels were not looked at
    "dicom_derived/d24_dx_truncated.dcm": "quality",
}
PROMPTED = {
    "dicom_derived/m01_age_018M.dcm": ("18-month-old", "F"),
    "dicom_derived/m03_age_010D.dcm": ("10-day-old", "F"),
    "dicom_derived/m10_sex_missing.dcm": ("5-year-old", None),
    "dicom_derived/d02_cr_mono1_12bit_implicitLE.dcm": ("7-year-old", "M"),
}


def rows() -> list[dict[str, str]]:
    if not MANIFEST.exists():
        return []
    with MANIFEST.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.skipif(not MANIFEST.exists(), reason=ABSENT)
@pytest.mark.parametrize("row", rows(), ids=[row["path"] for row in rows()])
def test_each_film_behaves_as_its_note_says(row):
    name = row["path"]
    film = read(FILMS / name)
    stats = None
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            film.render()
    else:
        radiograph = film.render()
        stats = radiograph.stats
        assert radiograph.pixels.mode == "L" or radiograph.original is not None
        sent = encode(radiograph)
        assert (sent.facts, sent.stats) == (film.facts, stats)
    checks = {check.name: check for check in rules.check(film.facts, CallerFacts(), stats)}
    assert tuple(checks) == rules.NAMES
    assert {name for name, check in checks.items() if check.blocks} == {*BLOCKED.get(name, "").split()}
    assert all(check.why and len(check.why) < 250 for check in checks.values())
    if name.endswith(".png"):
        warned = {one for one, check in checks.items() if check.status == "warn"}
        assert warned == {*rules.NAMES} - {"quality"}
    elif name not in BLOCKED or name in WARNED:
        assert {one for one, check in checks.items() if check.status == "warn"} == {*WARNED.get(name, "").split()}
    if name in PROMPTED or (name.startswith("dicom_derived/") and name not in BLOCKED):
        words, sex = PROMPTED.get(name, ("5-year-old", "F"))
        assert film.facts.age is not None
        assert (film.facts.age.words, film.facts.sex) == (words, sex)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(load(path).pixels).astype(int)


def variant(films: Path, number: str) -> np.ndarray:
    return pixels(next(films.glob(f"dicom_derived/d{number}_*")))


def test_an_inverted_implicit_copy_is_the_same_picture(films):
    assert np.array_equal(variant(films, "01"), variant(films, "02"))


@pytest.mark.parametrize(
    ("number", "levels"),
    [("06", 0), ("09", 0), ("10", 0), ("13", 0), ("04", 5), ("07", 10)],
    ids=["rle", "big-endian", "jpeg-lossless", "multi-window", "j2k-lossy", "jpeg-baseline"],
)
def test_every_syntax_is_the_same_picture(films, number, levels):
    """Lossless ones to the last level; the lossy ones within what their quantisation moved."""
    difference = abs(variant(films, number) - variant(films, "03"))
    assert difference.max() <= levels
    assert difference.mean() < 1


def test_the_small_films_are_the_large_one(films):
    large = Image.fromarray(variant(films, "01").astype(np.uint8))
    small = variant(films, "03")
    shrunk = np.asarray(large.resize((384, 320), Image.Resampling.BILINEAR)).astype(int)
    assert abs(shrunk - small).mean() < 1


def test_a_voi_lut_is_monotone_in_the_same_picture(films):
    curve, straight = variant(films, "11"), variant(films, "03")
    mean = [curve[straight == level].mean() for level in np.unique(straight)]
    assert np.all(np.diff(mean) >= 0)
    assert np.corrcoef(curve.ravel(), straight.ravel())[0, 1] > 0.98


def test_markers_do_not_spoil_a_film_without_a_window(films):
    """Minimum and maximum would squeeze this film into a fifth of the range, as the marker pixels have both ends."""
    film = variant(films, "14")
    low, high = np.percentile(film, [5, 95])
    assert high - low > 150


def test_padding_is_black_and_the_rest_untouched(films):
    padded, straight = variant(films, "15"), variant(films, "03")
    inside = padded > 0
    assert 0.5 < inside.mean() < 1
    assert np.array_equal(padded[inside], straight[inside])
    assert not padded[0].any() and not padded[:, 0].any()


def test_pixels_of_two_to_one_become_square(films):
    tall, straight = variant(films, "19"), variant(films, "03")
    assert tall.shape == straight.shape
    assert abs(tall - straight).mean() < 2, "every other row is missing from the file and was interpolated"


def test_near_lossless_and_lossless_agree(films):
    one, other = (pixels(films / f"dicom_chest/RG1_{kind}.dcm") for kind in ("J2KR", "JLSN"))
    assert abs(one - other).max() <= 1
    assert one.shape == (1955, 1841)


def test_an_independent_reader_agrees(films):
    """radreader (Apache-2.0) has its own reading of PS3.3 C.11; without a window it shows the full range, we do not."""
    import radreader

    compared = 0
    for path in sorted(films.glob("dicom_*/*.dcm")):
        try:
            radiograph = load(path)
        except InputError:
            continue
        if any("no window" in note for note in radiograph.how) or "made square" in " ".join(radiograph.how):
            continue
        theirs = radreader.read(path, out_range=(0.0, 255.0), qc="off").pixels
        assert abs(np.asarray(radiograph.pixels) - theirs).max() <= 1, path.name
        compared += 1
    assert compared > 25


def test_threads_do_not_disturb_each_other(films):
    """The async client decodes in threads, several films at a time, with decoders written in C."""
    paths = [
        path for path in sorted(films.glob("dicom_derived/*.dcm")) if path.parent.name + "/" + path.name not in REFUSED
    ]
    alone = [prepare(path).sha256 for path in paths]
    with ThreadPoolExecutor(8) as pool:
        together = [encoded.sha256 for encoded in pool.map(prepare, paths * 3)]
    assert together == alone * 3
