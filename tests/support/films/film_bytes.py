"""Hypothesis strategies for films: headers, look-up tables, damaged films of every format and syntax."""

from __future__ import annotations

import functools
import io
import time
import warnings

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from pedcxr_client import InputError
from pedcxr_client.checks import rules
from pedcxr_client.films.film import encode, read
from tests.support.films.dicom_maker import dataset, film, ramp, table, to_bytes
from tests.support.paths import REAL_FILMS

SECRET = "Popescu^Ana"
SLOWEST = 5.0  # CPU seconds per film
FILMS = REAL_FILMS
_SMALL_FILE = 130_000

WORDS = st.sampled_from(
    [SECRET, "", "CHEST", "DX", "YES", "INVERSE", "SIGMOID", "LINEAR_EXACT", "MONOCHROME1", "62", "1\\2"]
)
SMALL = st.integers(0, 40) | st.sampled_from([255, 256, 4095, 32767, 65535])
NUMBERS = st.sampled_from(["0", "-1", "1e308", "-1e308", "1e-300", "0.5", "2048", "1\\2\\3", "", "nan"])
PLACES = st.sampled_from(["0", "-9", "9", "2000000000", "4\\9", "1\\1\\1\\20\\20\\20", "", "x", "9.5"])
DATES = st.sampled_from(["20240102", "20240230", "00000000", "2024", "", "20060102", "99991231"])
ELEMENTS = {
    **dict.fromkeys(["Modality", "BodyPartExamined", "ViewPosition", "PatientSex", "BurnedInAnnotation"], WORDS),
    **dict.fromkeys(["PhotometricInterpretation", "PresentationLUTShape", "VOILUTFunction", "StudyDescription"], WORDS),
    **dict.fromkeys(["SpecificCharacterSet", "PatientName", "ResponsiblePersonRole", "InstitutionName"], WORDS),
    **dict.fromkeys(["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"], SMALL),
    **dict.fromkeys(["SamplesPerPixel", "PixelPaddingValue", "PixelPaddingRangeLimit"], SMALL),
    **dict.fromkeys(["WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "PixelSpacing"], NUMBERS),
    **dict.fromkeys(["NumberOfFrames", "PixelAspectRatio"], st.sampled_from(["0", "1", "2", "-3", "2\\1", "x", ""])),
    **dict.fromkeys(["StudyDate", "PatientBirthDate"], DATES),
    "ShutterShape": st.sampled_from([SECRET, "CIRCULAR", "POLYGONAL", "RECTANGULAR", "RECTANGULAR\\CIRCULAR"]),
    **dict.fromkeys(["VerticesOfThePolygonalShutter", "CenterOfCircularShutter", "RadiusOfCircularShutter"], PLACES),
    **dict.fromkeys([f"Shutter{side}Edge" for side in ("LeftVertical", "RightVertical", "UpperHorizontal")], PLACES),
    "PatientAge": st.sampled_from(["005Y", "000Y", "999W", "062", "5Y", "-01Y", "", "００５Y"]),
}
TABLES = st.builds(
    table,
    st.integers(-32768, 65535),
    st.integers(0, 20),
    st.lists(st.integers(0, 65535), max_size=9),
    length=st.none() | SMALL,
)


def outcome(data: bytes) -> str:
    """Process a film and return its facts, or the message of an InputError.

    Asserts that the film takes at most ``SLOWEST`` seconds and that no text holds a name. An out-of-memory error is a
    failure, since these films are small.
    """
    start = time.process_time()
    try:
        undecoded = read(data)
        texts = [str(undecoded.facts), str(rules.check(undecoded.facts, rules.CallerFacts()))]
        result = undecoded.render()
        texts += [str(result.how), str(rules.check(undecoded.facts, rules.CallerFacts(), result.stats))]
        assert result.pixels.mode == "L" or result.original is not None
        encode(result)
    except InputError as error:
        texts = [str(error), repr(error.__context__)]
        assert "memory" not in texts[0], texts
    assert time.process_time() - start < SLOWEST
    assert not any("Popescu" in line for line in texts), texts
    return texts[0]


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Draw films whose elements hold invalid values, bypassing the checks of pydicom's writer."""
    elements = draw(st.fixed_dictionaries({}, optional=ELEMENTS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dataset(ramp(32, 32))
        for keyword, value in elements.items():
            try:
                setattr(ds, keyword, value)
            except (ValueError, TypeError, OverflowError):
                continue
        try:
            return to_bytes(ds)
        except Exception:
            reject()  # pydicom cannot write it


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """Draw films with a look-up table."""
    keyword = draw(st.sampled_from(["ModalityLUTSequence", "VOILUTSequence"]))
    pixels = ramp(32, 32).astype(draw(st.sampled_from(["int16", "uint16"])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return film(pixels, **{keyword: draw(TABLES)})


@functools.cache
def corpus() -> dict[str, bytes]:
    """Return small films of every format and syntax that can be written, and small films of the film set if present."""
    ds = _images() | _dicoms()
    if FILMS.is_dir():
        paths = sorted(FILMS.glob("dicom_*/*"))
        ds |= {path.name: path.read_bytes() for path in paths if path.stat().st_size <= _SMALL_FILE}
    return ds


def _images() -> dict[str, bytes]:
    noise = Image.effect_noise((48, 40), 90)
    deep = Image.fromarray(ramp(40, 48))
    second = Image.new("L", noise.size)
    return {
        **{form: _saved(noise, form) for form in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")},
        "PNG 16": _saved(deep, "PNG"),
        "TIFF 16": _saved(deep, "TIFF"),
        "TIFF LZW": _saved(noise, "TIFF", compression="tiff_lzw"),
        "TIFF deflated": _saved(noise, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF JPEG": _saved(noise, "TIFF", compression="jpeg"),
        "PNG RGBA": _saved(noise.convert("RGBA"), "PNG"),
        "PNG P": _saved(noise.convert("P"), "PNG"),
        "JPEG progressive": _saved(noise.convert("RGB"), "JPEG", progressive=True),
        "JPEG CMYK": _saved(noise.convert("CMYK"), "JPEG"),
        "APNG": _saved(noise, "PNG", save_all=True, append_images=[second]),
        "GIF animated": _saved(noise, "GIF", save_all=True, append_images=[second]),
    }


def _dicoms() -> dict[str, bytes]:
    elements = {"PatientName": SECRET, "WindowCenter": 2048, "WindowWidth": 4096}
    noise = Image.effect_noise((48, 40), 90)
    jpeg = dataset(np.asarray(noise), bits=8, syntax=JPEGBaseline8Bit, PatientName=SECRET)
    j2k = dataset(np.asarray(noise), bits=8, syntax=JPEG2000Lossless, PatientName=SECRET)
    for ds, form in ((jpeg, "JPEG"), (j2k, "JPEG2000")):
        ds.PixelData = encapsulate([_saved(noise, form)])
        ds["PixelData"].is_undefined_length = True
    rle = dataset(ramp(32, 32), **elements)
    rle.compress(RLELossless, generate_instance_uid=False)
    syntaxes = (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    return {
        "DICOM": film(ramp(32, 32), **elements),
        **{f"DICOM {one.name}": film(ramp(32, 32), syntax=one, **elements) for one in syntaxes},
        "DICOM RLE": to_bytes(rle),
        "DICOM JPEG": to_bytes(jpeg),
        "DICOM JPEG 2000": to_bytes(j2k),
    }


def _saved(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw films with bytes inserted, removed or changed, possibly truncated. Headers are changed more often."""
    data = corpus()[draw(st.sampled_from(sorted(corpus())))]
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(len(data), 600)) | st.integers(0, len(data)))
        new = draw(
            st.binary(max_size=6)
            | st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff", b"\x7f\xff\xff\xff"])
        )
        data = data[:at] + new + data[at + draw(st.sampled_from([len(new), 0, 1, 6])) :]
    return data[: draw(st.just(len(data)) | st.integers(0, len(data)))]


TAILS = st.binary(max_size=400).map(lambda tail: bytes(128) + b"DICM" + tail)
KINDS = {"headers": headers(), "tables": tables(), "damaged": damaged(), "tails": TAILS}
"""The strategies by name."""
