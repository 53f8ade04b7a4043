"""Display shutters (PS3.3 C.7.6.11): what a viewer covers is black and does not set the percentiles."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pedcxr_client import Preparation
from pedcxr_client.checks import rules
from pedcxr_client.checks.rules import CallerFacts
from pedcxr_client.films.film import load

pytest.importorskip("pydicom")

from tests.support.films.dicom_maker import film, ramp

FULL = {"WindowCenter": 2048, "WindowWidth": 4096}
LINEAR = np.rint(ramp() / 4095 * 255)
RECTANGLE = {
    "ShutterShape": "RECTANGULAR",
    "ShutterLeftVerticalEdge": 61,
    "ShutterRightVerticalEdge": 200,
    "ShutterUpperHorizontalEdge": 51,
    "ShutterLowerHorizontalEdge": 220,
    "ShutterPresentationValue": 65535,
}
CIRCLE = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [100, 120], "RadiusOfCircularShutter": 80}
POLYGON = {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 1, 256, 256, 256]}
Y, X = np.mgrid[1:257, 1:257]
IN_RECTANGLE = (X >= 61) & (X <= 200) & (Y >= 51) & (Y <= 220)
IN_CIRCLE = (Y - 100) ** 2 + (X - 120) ** 2 <= 80**2
IN_POLYGON = Y <= X


def grey(data: bytes) -> np.ndarray:
    return np.asarray(load(data).pixels).astype(int)


def notes(data: bytes) -> str:
    return "; ".join(load(data).how)


@pytest.mark.parametrize(
    ("shutter", "inside", "words"),
    [
        (RECTANGLE, IN_RECTANGLE, "rectangular"),
        (CIRCLE, IN_CIRCLE, "circular"),
        (POLYGON, IN_POLYGON, "polygonal"),
        (
            RECTANGLE | CIRCLE | POLYGON | {"ShutterShape": ["RECTANGULAR", "CIRCULAR", "POLYGONAL"]},
            IN_RECTANGLE & IN_CIRCLE & IN_POLYGON,
            "rectangular, circular, polygonal",
        ),
        (RECTANGLE | {"ShutterShape": ["RECTANGULAR", "CIRCULAR"]}, IN_RECTANGLE, "rectangular"),  # no circle is given
        (
            RECTANGLE | {"ShutterLeftVerticalEdge": -400, "ShutterLowerHorizontalEdge": 99999},
            (X <= 200) & (Y >= 51),
            "rect",
        ),
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_pixels_outside_the_shutters_are_black(shutter, inside, words, photometric):
    data = film(PhotometricInterpretation=photometric, **shutter, **FULL)
    shown = LINEAR if photometric == "MONOCHROME2" else 255 - LINEAR
    assert np.array_equal(grey(data), np.where(inside, shown, 0))
    assert f"display shutter rendered black ({words}" in notes(data)


def test_hidden_pixels_do_not_set_the_percentiles():
    pixels = np.random.default_rng(5).integers(0, 4096, (300, 300)).astype("u2")
    pixels[75:225, 75:225] = inner = 1000 + ramp(150, 150, 500)
    edges = {"ShutterLeftVerticalEdge": 76, "ShutterRightVerticalEdge": 225} | {
        "ShutterUpperHorizontalEdge": 76, "ShutterLowerHorizontalEdge": 225
    }  # fmt: skip
    shown = grey(film(pixels, ShutterShape="RECTANGULAR", **edges))
    low, high = np.percentile(inner, [1, 99])
    assert np.array_equal(shown[75:225, 75:225], np.rint(np.clip((inner - low) / (high - low), 0, 1) * 255))
    assert shown.sum() == shown[75:225, 75:225].sum()


def test_circle_is_round_on_pixels_that_are_not_square():
    data = film(PixelAspectRatio=[2, 1], **CIRCLE | {"CenterOfCircularShutter": [128, 128]}, **FULL)
    shown = grey(data) > 0
    assert shown.shape == (512, 256)
    assert abs(np.ptp(np.nonzero(shown)[0]) - np.ptp(np.nonzero(shown)[1])) <= 4


@pytest.mark.parametrize(
    "shutter",
    [
        RECTANGLE | {"ShutterLeftVerticalEdge": 1, "ShutterUpperHorizontalEdge": 0} | {
            "ShutterRightVerticalEdge": 256, "ShutterLowerHorizontalEdge": 5000,
        },
        CIRCLE | {"RadiusOfCircularShutter": 900000},
        {"ShutterShape": ""},
        {"ShutterPresentationValue": 0},
    ],
)  # fmt: skip
def test_shutter_that_hides_nothing_changes_nothing(shutter):
    data = film(**shutter, **FULL)
    assert np.array_equal(grey(data), LINEAR)
    assert "shutter" not in notes(data)


@pytest.mark.parametrize(
    ("shutter", "reason"),
    [
        (RECTANGLE | {"ShutterLeftVerticalEdge": 300, "ShutterRightVerticalEdge": 400}, "it hides every pixel"),
        (CIRCLE | {"CenterOfCircularShutter": [5000, 5000]}, "it hides every pixel"),
        (CIRCLE | {"RadiusOfCircularShutter": 0}, "damaged"),
        (CIRCLE | {"CenterOfCircularShutter": [100]}, "damaged"),
        (RECTANGLE | {"ShutterLeftVerticalEdge": 201}, "damaged"),
        (RECTANGLE | {"ShutterLowerHorizontalEdge": None}, "damaged"),
        (RECTANGLE | {"ShutterLeftVerticalEdge": 10**9}, "damaged"),
        (POLYGON | {"VerticesOfThePolygonalShutter": [1, 1, 9, 9]}, "damaged"),
        (POLYGON | {"VerticesOfThePolygonalShutter": [1, 1, 1, 256, 256, 256, 7]}, "damaged"),
        ({"ShutterShape": "BITMAP"}, "unknown"),
        ({"ShutterShape": "Popescu^Ana"}, "unknown"),
    ],
)
def test_damaged_or_empty_shutter_is_ignored_with_a_note(shutter, reason):
    data = film(**shutter, **FULL)
    assert np.array_equal(grey(data), LINEAR)
    assert "display shutter ignored" in notes(data) and reason in notes(data)
    assert "Popescu" not in notes(data)


def test_shutter_that_leaves_almost_nothing_blocks_and_is_named():
    rendered = load(film(**CIRCLE | {"RadiusOfCircularShutter": 8}, **FULL))
    [check] = [one for one in rules.check(rendered.facts, CallerFacts(), rendered.stats) if one.name == "quality"]
    assert check.status == "block"
    assert "display shutter rendered black (circular)" in check.why


def test_training_profile_shows_stored_values_without_a_shutter():
    trained = Preparation(profile="ped-train")
    assert load(film(**RECTANGLE, **FULL), trained).pixels.tobytes() == load(film(**FULL), trained).pixels.tobytes()


def test_polygon_of_many_vertices_is_fast():
    angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    vertices = np.stack([128 + 90 * np.sin(angles), 128 + 90 * np.cos(angles)], axis=1).round().astype(int)
    start = time.process_time()
    shown = grey(film(ShutterShape="POLYGONAL", VerticesOfThePolygonalShutter=vertices.ravel().tolist(), **FULL))
    assert time.process_time() - start < 2
    assert abs((shown > 0).mean() - np.pi * 90**2 / 256**2) < 0.02
