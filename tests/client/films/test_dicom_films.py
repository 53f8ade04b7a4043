"""The real films of shared/data/cxr match their MANIFEST, and all variants of one film render alike."""

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
ABSENT = "the real films are absent: shared/data/cxr must be beside the checkout"

# The expectations that follow from the notes of the MANIFEST. BLOCKED: the checks that block. REFUSED: the error of a
# film that cannot be decoded.
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
    "dicom_other/mlut_18.dcm": "modality body-part age burned-in-text quality",  # a test pattern of few levels
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
    "dicom_other/RG3_JPLY.dcm": "pylibjpeg-libjpeg|damaged",  # "damaged" if pylibjpeg-libjpeg is installed
    "dicom_derived/d20_dx_multiframe_2.dcm": "NumberOfFrames .* is 2",
    "dicom_derived/d21_sc_rgb_screenshot.dcm": "is RGB",
    "dicom_derived/d24_dx_truncated.dcm": "cut short",
}
WARNED = {
    "dicom_derived/m11_view_LL.dcm": "view",
    "dicom_derived/m12_view_missing.dcm": "view",
    "dicom_other/mlut_18.dcm": "view",
    "dicom_derived/d20_dx_multiframe_2.dcm": "quality",  # its pixels were not measured
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
def test_each_film_matches_its_manifest_row(row):
    name = row["path"]
    undecoded = read(FILMS / name)
    stats = None
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            undecoded.render()
    else:
        film = undecoded.render()
        stats = film.stats
        assert film.pixels.mode == "L" or film.original is not None
        sent = encode(film)
        assert (sent.facts, sent.stats) == (undecoded.facts, stats)
    checks = {check.name: check for check in rules.check(undecoded.facts, CallerFacts(), stats)}
    assert tuple(checks) == rules.NAMES
    assert {name for name, check in checks.items() if check.blocks} == {*BLOCKED.get(name, "").split()}
    assert all(check.why and len(check.why) < 250 for check in checks.values())
    if name.endswith(".png"):
        warnings = {name for name, check in checks.items() if check.status == "warn"}
        assert warnings == {*rules.NAMES} - {"quality"}
    elif name not in BLOCKED or name in WARNED:
        assert {name for name, check in checks.items() if check.status == "warn"} == {*WARNED.get(name, "").split()}
    if name in PROMPTED or (name.startswith("dicom_derived/") and name not in BLOCKED):
        words, sex = PROMPTED.get(name, ("5-year-old", "F"))
        assert undecoded.facts.age is not None
        assert (undecoded.facts.age.words, undecoded.facts.sex) == (words, sex)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(load(path).pixels).astype(int)


def variant(films: Path, number: str) -> np.ndarray:
    return pixels(next(films.glob(f"dicom_derived/d{number}_*")))


def test_inverted_implicit_vr_copy_renders_equally(films):
    assert np.array_equal(variant(films, "01"), variant(films, "02"))


@pytest.mark.parametrize(
    ("number", "levels"),
    [("06", 0), ("09", 0), ("10", 0), ("13", 0), ("04", 5), ("07", 10)],
    ids=["rle", "big-endian", "jpeg-lossless", "multi-window", "j2k-lossy", "jpeg-baseline"],
)
def test_every_transfer_syntax_renders_equally(films, number, levels):
    """Lossless syntaxes render identically, lossy ones within their quantisation error."""
    difference = abs(variant(films, number) - variant(films, "03"))
    assert difference.max() <= levels
    assert difference.mean() < 1


def test_small_film_equals_downscaled_large_film(films):
    large = Image.fromarray(variant(films, "01").astype(np.uint8))
    small = variant(films, "03")
    shrunk = np.asarray(large.resize((384, 320), Image.Resampling.BILINEAR)).astype(int)
    assert abs(shrunk - small).mean() < 1


def test_voi_lut_is_monotone_in_the_linear_rendering(films):
    curved, linear = variant(films, "11"), variant(films, "03")
    mean = [curved[linear == level].mean() for level in np.unique(linear)]
    assert np.all(np.diff(mean) >= 0)
    assert np.corrcoef(curved.ravel(), linear.ravel())[0, 1] > 0.98


def test_lead_markers_do_not_compress_the_range_without_a_window(films):
    """The markers have the minimum and the maximum; scaling to them would use a fifth of the range for the film."""
    grey = variant(films, "14")
    low, high = np.percentile(grey, [5, 95])
    assert high - low > 150


def test_padding_is_black_and_other_pixels_are_unchanged(films):
    padded, linear = variant(films, "15"), variant(films, "03")
    inside = padded > 0
    assert 0.5 < inside.mean() < 1
    assert np.array_equal(padded[inside], linear[inside])
    assert not padded[0].any() and not padded[:, 0].any()


def test_pixels_with_aspect_ratio_two_become_square(films):
    resampled, linear = variant(films, "19"), variant(films, "03")
    assert resampled.shape == linear.shape
    assert abs(resampled - linear).mean() < 2, "the file omits every other row, which is interpolated"


def test_near_lossless_and_lossless_films_agree(films):
    near_lossless, lossless = (pixels(films / f"dicom_chest/RG1_{kind}.dcm") for kind in ("J2KR", "JLSN"))
    assert abs(near_lossless - lossless).max() <= 1
    assert lossless.shape == (1955, 1841)


def test_independent_reader_agrees(films):
    """radreader (Apache-2.0) implements PS3.3 C.11 independently; without a window it uses the full range instead."""
    radreader = pytest.importorskip("radreader")

    compared = 0
    for path in sorted(films.glob("dicom_*/*.dcm")):
        try:
            film = load(path)
        except InputError:
            continue
        if any("no window" in note for note in film.how) or "made square" in " ".join(film.how):
            continue
        expected = radreader.read(path, out_range=(0.0, 255.0), qc="off").pixels
        assert abs(np.asarray(film.pixels) - expected).max() <= 1, path.name
        compared += 1
    assert compared > 25


def test_decoding_in_threads_gives_the_same_results(films):
    """The async client decodes several films at a time in threads, with decoders written in C."""
    paths = [
        path for path in sorted(films.glob("dicom_derived/*.dcm")) if path.parent.name + "/" + path.name not in REFUSED
    ]
    sequential = [prepare(path).sha256 for path in paths]
    with ThreadPoolExecutor(8) as pool:
        in_threads = [encoded.sha256 for encoded in pool.map(prepare, paths * 3)]
    assert in_threads == sequential * 3
