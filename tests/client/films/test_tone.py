"""Headers whose window, look-up table, padding or HighBit does not fit the pixels, as devices write them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pedcxr_client import Preparation
from pedcxr_client.checks import rules
from pedcxr_client.checks.rules import SMALLEST_SIDE, CallerFacts
from pedcxr_client.films.film import Film, load
from pedcxr_client.films.geometry import MIN_LEVELS, MIN_SPREAD
from pedcxr_client.types import Check

pytest.importorskip("pydicom")

from pydicom.uid import ExplicitVRBigEndian

from pedcxr_client.films.grayscale import RARE, SAMPLES_PER_SIDE
from tests.support.films.dicom_maker import dataset, film, ramp, sequence, table, to_bytes
from tests.support.paths import ROOT

FULL = {"WindowCenter": 2048, "WindowWidth": 4096}
LINEAR = np.rint(ramp() / 4095 * 255)
TRAINED = Preparation(profile="ped-train")


def grey(data: bytes) -> np.ndarray:
    return np.asarray(load(data).pixels).astype(int)


def notes(data: bytes) -> str:
    return "; ".join(load(data).how)


def quality(rendered: Film) -> Check:
    return next(one for one in rules.check(rendered.facts, CallerFacts(), rendered.stats) if one.name == "quality")


def stretched(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, [1, 99])
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


@pytest.mark.parametrize(
    ("declared", "stored", "greatest", "used"),
    [
        (16, 12, 4095, 12),  # Agfa
        (16, 12, 3000, 12),
        (16, 15, 32767, 15),
        (16, 14, 16383, 14),
        (16, 12, 1000, 10),
        (12, 16, 1000, 10),
        (8, 12, 4080, 12),
        (12, 12, 4095, 12),
        (12, 12, 3000, 12),  # right: dark on purpose
        (12, 12, 1200, 12),
        (16, 12, 40000, 16),
        (16, 16, 20000, 16),
        (10, 12, 900, 10),
    ],
)
def test_range_of_a_voi_lut_fits_its_entries(declared, stored, greatest, used):
    top = (1 << min(stored, 15)) - 1
    entries = np.rint(np.arange(top + 1) / top * greatest).astype(int)
    pixels = ramp(top=top)
    data = film(pixels, bits=stored, VOILUTSequence=table(0, declared, entries.tolist()))
    assert np.array_equal(grey(data), np.rint(entries[pixels] / ((1 << used) - 1) * 255))
    assert ("VOI LUT (declares" in notes(data)) == (declared != used)
    if declared != used:
        assert f"declares {declared} bits per entry, uses {used}" in notes(data)


def test_agfa_lut_of_a_monochrome1_film():
    entries = np.rint(4095 / (1 + np.exp(-(np.arange(1745) - 872) / 200))).astype(int)
    lut = table(1401, 16, entries.tolist())
    data = film(4095 - ramp(), PhotometricInterpretation="MONOCHROME1", VOILUTSequence=lut)
    expected = 255 - np.rint(entries[np.clip(4095 - ramp().astype(int) - 1401, 0, 1744)] / 4095 * 255)
    assert abs(grey(data) - expected).max() <= 1
    assert quality(load(data)).status == "ok"


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize(
    ("kind", "first", "vr", "written"),
    [
        ("uint16", 40000, "SS", 40000 - 65536),
        ("uint16", 40000, "US", 40000),
        ("int16", -4000, "US", 65536 - 4000),
        ("int16", -4000, "SS", -4000),
    ],
)
def test_first_input_of_a_lut_may_have_the_wrong_sign(keyword, kind, first, vr, written):
    pixels = (ramp().astype(int) + first).astype(kind)
    item = sequence()[0]
    item.add_new("LUTDescriptor", vr, [4096, written, 12])
    item.add_new("LUTData", "OW", np.arange(4096, dtype="<u2").tobytes())
    window = FULL if keyword == "ModalityLUTSequence" else {}
    assert np.array_equal(grey(film(pixels, bits=16, **{keyword: [item]}, **window)), LINEAR)


def test_negative_modality_output_is_the_input_of_the_voi_lut():
    lut = table(-1000, 12, list(range(4096)))
    lut[0]["LUTDescriptor"].VR, lut[0]["LUTDescriptor"].value = "US", [4096, 65536 - 1000, 12]
    assert np.array_equal(grey(film(RescaleSlope=1, RescaleIntercept=-1000, VOILUTSequence=lut)), LINEAR)


def test_packed_8_bit_lut_in_big_endian_words():
    lut = table(0, 8, [255 - level for level in range(256)])
    entries = np.arange(255, -1, -1, dtype="u1")
    lut[0].LUTData = entries.reshape(-1, 2)[:, ::-1].tobytes()
    pixels = ramp(top=255).astype(">u2")
    data = film(pixels, syntax=ExplicitVRBigEndian, VOILUTSequence=lut)
    assert np.array_equal(grey(data), 255 - ramp(top=255).astype(int))


@pytest.mark.parametrize("entries", [[0], [200], [0] * 4096, [4095] * 4096])
def test_lut_without_an_image_is_not_applied(entries):
    data = film(VOILUTSequence=table(0, 12, entries))
    assert np.array_equal(grey(data), stretched(ramp()))
    assert re.search(r"VOI LUT( \(.*\))? not applied", notes(data))
    assert np.array_equal(grey(film(VOILUTSequence=table(0, 12, entries), **FULL)), LINEAR)


def test_modality_lut_without_an_image_blocks_and_is_named():
    check = quality(load(film(ModalityLUTSequence=table(0, 12, [7] * 4096), **FULL)))
    assert check.status == "block"
    assert "modality LUT; window 2048/4096" in check.why


@pytest.mark.parametrize(
    ("pixels", "bits", "window", "function"),
    [
        (ramp(top=3825) + 12000, 16, (3174, 2426), None),  # below the data
        (ramp(), 16, (30000, 1000), None),  # above the data
        (ramp(top=1023), 14, (8191.5, 16383), None),  # 16 times wider than the data
        (ramp(), 12, (2048, 1), None),
        (ramp(), 12, (2048, 2), "LINEAR"),
        (ramp(), 12, (2048, 0.5), "LINEAR_EXACT"),
        (ramp(), 12, (-9000, 10), "SIGMOID"),
    ],
)
def test_window_that_leaves_no_image_is_replaced_by_percentiles(pixels, bits, window, function):
    data = film(pixels.astype("u2"), bits=bits, WindowCenter=window[0], WindowWidth=window[1], VOILUTFunction=function)
    assert np.array_equal(grey(data), stretched(pixels))
    assert f"window {window[0]:g}/{window[1]:g} ({function or 'LINEAR'}) not applied" in notes(data)
    assert "percentiles 1-99" in notes(data)
    assert quality(load(data)).status == "ok"


@pytest.mark.parametrize(("center", "width"), [(1024, 512), (2048, 8192), (2048, 12000), (300, 4096)])
def test_unusual_window_is_obeyed(center, width):
    expected = np.rint(np.clip((ramp() - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255)
    assert np.array_equal(grey(film(WindowCenter=center, WindowWidth=width)), expected)


@pytest.mark.parametrize("first", [(0, 1), (30000, 100), (0, 0)])
def test_first_window_that_shows_the_film_is_used(first):
    data = film(WindowCenter=[first[0], 2048], WindowWidth=[first[1], 4096])
    assert np.array_equal(grey(data), LINEAR)
    assert "window 2048/4096 (LINEAR)" in notes(data)


def test_blank_film_is_not_stretched_into_an_image():
    noise = np.random.default_rng(3).normal(2000, 24, (256, 256)).astype("u2")
    check = quality(load(film(noise, **FULL)))
    assert check.status == "block"
    assert "too few grey levels" in check.why and "window 2048/4096" in check.why


def test_high_bit_is_ignored_if_the_pixels_contradict_it():
    data = film(HighBit=15, **FULL)
    assert np.array_equal(grey(data), LINEAR)
    assert "HighBit ignored, since the values start at bit 0" in notes(data)


def test_high_bit_is_obeyed_unless_the_pixels_contradict_it():
    data = film(ramp(top=255) << 4, HighBit=15, **FULL)  # dark, and the low bits are 0
    assert "HighBit is 15" in notes(data) and "percentiles" in notes(data)
    shifted = film(ramp() << 4 | ramp() & 15, HighBit=15, **FULL)  # noise below the value
    assert np.array_equal(grey(shifted), LINEAR)


def test_film_that_high_bit_ruins_in_the_training_profile_blocks():
    check = quality(load(film(ramp(top=255), HighBit=15), TRAINED))
    assert check.status == "block"
    assert "HighBit is 15; ped-train" in check.why


@pytest.mark.parametrize("value", [65535, 4103, 4096, -1, 0.5])
def test_padding_that_no_pixel_can_have_is_ignored(value):
    pixels = ramp()
    ds = dataset(pixels, **FULL)
    ds.add_new("PixelPaddingValue", "DS" if value == 0.5 else "US" if value >= 0 else "SS", value)
    data = to_bytes(ds)
    assert np.array_equal(grey(data), LINEAR)
    assert f"PixelPaddingValue {value:g} ignored" in notes(data)


def test_padding_limit_that_no_pixel_can_have_is_ignored():
    data = film(PixelPaddingValue=7, PixelPaddingRangeLimit=65535, **FULL)
    assert np.array_equal(grey(data), np.where(ramp() == 7, 0, LINEAR))
    assert "PixelPaddingRangeLimit 65535 ignored" in notes(data)


def test_padding_of_unsigned_pixels_may_be_stated_as_signed():
    pixels = ramp(top=65535)
    ds = dataset(pixels, bits=16, WindowCenter=32768, WindowWidth=65536)
    ds.add_new("PixelPaddingValue", "SS", -1)
    assert np.array_equal(grey(to_bytes(ds)), np.where(pixels == 65535, 0, np.rint(pixels / 65535 * 255)))


@pytest.mark.parametrize("border", [0, 4095, 2222])
def test_constant_border_does_not_set_the_percentiles(border):
    pixels = np.full((512, 512), border, np.uint16)
    pixels[200:456, 128:384] = inner = 1000 + ramp(top=1999)
    assert np.array_equal(grey(film(pixels))[200:456, 128:384], stretched(inner))


def test_quality_blocks_a_film_of_few_levels_in_both_profiles():
    data = film(ramp(top=30), bits=12)
    for preparation, step in ((Preparation(), "no window: percentiles"), (TRAINED, "ped-train: percentiles")):
        check = quality(load(data, preparation))
        assert check.status == "block"
        assert check.why.startswith("too few grey levels: ") and f" with a spread of 255 after {step}" in check.why


def test_docs_state_the_thresholds():
    text = " ".join((ROOT / "docs/films.md").read_text().split())
    words = f"fewer than {MIN_LEVELS} grey levels, or fewer than {MIN_SPREAD} of 255 between percentiles 2 and 98"
    among = f"fewer than {MIN_LEVELS} grey levels among 4,096 pixels, or fewer than {MIN_SPREAD} of 255 between"
    assert words in text and among in text
    assert f"on a grid of {SAMPLES_PER_SIDE} x {SAMPLES_PER_SIDE} pixels" in text
    assert f"a side below {SMALLEST_SIDE} pixels" in text
    assert 1 / RARE == 4096
