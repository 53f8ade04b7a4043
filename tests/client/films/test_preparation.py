"""Preparation steps of a film's pixels are applied only on request."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from pedcxr_client import ConfigurationError, Preparation
from pedcxr_client.checks import rules
from pedcxr_client.checks.rules import CallerFacts
from pedcxr_client.films.film import load, prepare
from pedcxr_client.films.geometry import MIN_LEVELS, MIN_SPREAD, measure


@cache  # effect_noise is not deterministic
def tall() -> Image.Image:
    return Image.effect_noise((1000, 1400), 50).resize((500, 700), Image.Resampling.BOX)


def file_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_default_sends_the_original():
    data = file_bytes(tall())
    assert base64.b64decode(prepare(data).base64) == data
    assert prepare(data).sha256 == prepare(data, Preparation()).sha256


def test_pad_square_adds_black_on_both_sides():
    square = load(file_bytes(tall()), Preparation(pad_square=True))
    assert square.pixels.size == (700, 700)
    assert square.pixels.crop((100, 0, 600, 700)).tobytes() == tall().tobytes()
    assert (
        square.pixels.crop((0, 0, 100, 700)).getextrema()
        == square.pixels.crop((600, 0, 700, 700)).getextrema()
        == (0, 0)
    )
    assert square.how[-1] == "padded with black to 700 x 700"
    assert square.original is None
    assert (square.stats.width, square.stats.height) == (500, 700)


def test_model_size_stretches_the_film():
    film = load(file_bytes(tall()), Preparation(resize="model"))
    assert film.pixels.size == (896, 896)
    assert film.how[-1] == "stretched to the model's 896 x 896"
    assert load(tall(), Preparation(resize="model", model_size=(224, 112))).pixels.size == (224, 112)
    assert min(film.stats.width, film.stats.height) == 500, "the checks measure the film before it is resized"


def test_ped_train_profile_of_plain_images():
    small = load(file_bytes(tall()), Preparation(profile="ped-train"))
    assert small.pixels.size == (500, 700)
    large = load(Image.effect_noise((2000, 1000), 50), Preparation(profile="ped-train"))
    assert large.pixels.size == (896, 448)
    assert large.how[-2:] == (large.how[-2], "shrunk to 896 x 448") and "gamma 1.2" in large.how[-2]
    step = Image.new("L", (300, 300), 100)
    step.paste(200, (0, 0, 300, 150))
    assert load(step, Preparation(profile="ped-train")).pixels.getextrema() == (0, 255)
    ramp = Image.linear_gradient("L")
    levels = load(ramp, Preparation(profile="ped-train")).pixels.tobytes()[:: ramp.width]
    assert levels[128] == round(255 * (126 / 250) ** (1 / 1.2)), "gamma brightens the middle"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "training"}, "profile"),
        ({"resize": "896"}, "resize"),
        ({"model_size": (0, 9)}, "model_size"),
        ({"model_size": (896, 9000)}, "model_size"),
    ],
)
def test_invalid_value_is_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Preparation(**arguments)


@cache
def chest_films(folder: Path) -> tuple[Image.Image, ...]:
    """Return the chest films that can be rendered, as 8-bit grey."""
    pytest.importorskip("pydicom")
    paths = [*folder.glob("*_png/*.png"), *folder.glob("dicom_chest/*"), *folder.glob("dicom_derived/d*")]
    unreadable = ("chrJap", "RG1_J2KR", "d20_", "d21_", "d24_")  # RG1_J2KR has the pixels of RG1_JLSN
    return tuple(load(path).pixels.convert("L") for path in sorted(paths) if not path.name.startswith(unreadable))


@pytest.mark.parametrize(
    "side", [256, 512, *(pytest.param(one, marks=pytest.mark.slow) for one in (384, 768, 1024, None))]
)
def test_films_that_appear_inverted_or_turned(films, side):
    """The rates of docs/films.md; run with ``-s`` to print them."""
    rotations = {
        90: Image.Transpose.ROTATE_270,
        180: Image.Transpose.ROTATE_180,
        270: Image.Transpose.ROTATE_90,
    }
    recognised = dict.fromkeys(["inverted", *rotations], 0)
    originals = chest_films(films)
    for original in originals:
        scale = 1 if side is None else side / max(original.size)
        film = original.resize(
            (round(original.width * scale), round(original.height * scale)), Image.Resampling.BILINEAR
        )
        stats = measure(film)
        assert not stats.dark_middle and not stats.turned
        assert stats.spread >= 2 * MIN_SPREAD and stats.levels >= 2 * MIN_LEVELS
        recognised["inverted"] += measure(ImageOps.invert(film)).dark_middle
        for angle, transpose in rotations.items():
            recognised[angle] += measure(film.transpose(transpose)).turned == angle
    print(f"\n{side or 'original'}: of {len(originals)}: {recognised}")
    assert recognised.pop(180) >= len(originals) - 1
    assert set(recognised.values()) == {len(originals)}


@pytest.mark.parametrize("profile", ["display", "ped-train"])
@pytest.mark.parametrize("levels", [1, 2, 16, 40])
def test_plain_image_of_few_grey_levels_blocks(profile, levels):
    pixels = tall().point([level * levels // 256 * (15 // levels or 1) for level in range(256)])
    for form in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        pixels.save(buffer, form)
        film = load(buffer.getvalue(), Preparation(profile=profile))
        [check] = [one for one in rules.check(film.facts, CallerFacts(), film.stats) if one.name == "quality"]
        assert check.status == "block"
        assert ("ped-train: percentiles" in check.why) == (profile == "ped-train")


@pytest.mark.slow
def test_model_size_matches_the_gemma3_processor(films):
    """The difference to transformers' Gemma 3 processor is at most 1 of 255 levels. Slow, since it imports torch."""
    transformers = pytest.importorskip("transformers")
    numpy = pytest.importorskip("numpy")
    processor = transformers.Gemma3ImageProcessor(size={"height": 896, "width": 896})
    for name in ("pediatric_png/nih_00003438_000.png", "adult_png/wikimedia_Chest_Xray_PA_3-8-2010.png"):
        path = films / name
        expected = processor(Image.open(path).convert("RGB"), return_tensors="np", do_normalize=False, do_rescale=False)
        pixels = numpy.asarray(load(path, Preparation(resize="model")).pixels).astype(float)
        for channel in numpy.asarray(expected["pixel_values"])[0]:
            assert abs(channel - pixels).max() <= 1, name
