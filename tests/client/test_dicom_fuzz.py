"""Headers and bytes that nobody foresaw: a film or an InputError comes out, in time, and never a name."""

from __future__ import annotations

import time
import warnings

import pytest

from pedcxr_client import InputError, gate, image

pytest.importorskip("pydicom")
hypothesis = pytest.importorskip("hypothesis")

from dicom_maker import dataset, film, ramp, table, written  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

SECRET = "Popescu^Ana"
SLOWEST = 5.0  # seconds a film
BOUNDED = settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

WORDS = st.sampled_from(
    [SECRET, "", "CHEST", "DX", "YES", "INVERSE", "SIGMOID", "LINEAR_EXACT", "MONOCHROME1", "62", "1\\2"]
)
SMALL = st.integers(0, 40) | st.sampled_from([255, 256, 4095, 32767, 65535])
NUMBERS = st.sampled_from(["0", "-1", "1e308", "-1e308", "1e-300", "0.5", "2048", "1\\2\\3", "", "nan"])
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
    "PatientAge": st.sampled_from(["005Y", "000Y", "999W", "062", "5Y", "-01Y", "", "００５Y"]),
}
HEADERS = st.fixed_dictionaries({}, optional=ELEMENTS)
TABLES = st.builds(
    table,
    st.integers(-32768, 65535),
    st.integers(0, 20),
    st.lists(st.integers(0, 65535), max_size=9),
    length=st.none() | SMALL,
)


def outcome(data: bytes) -> str:
    """What becomes of a film, in words."""
    began = time.monotonic()
    try:
        opened = image.read(data)
        said = [str(opened.facts), str(gate.check(opened.facts, gate.Asked()))]
        radiograph = opened.develop()
        said += [str(radiograph.how), str(gate.check(opened.facts, gate.Asked(), radiograph.look))]
        assert radiograph.pixels.mode == "L"
        image.encode(radiograph)
    except InputError as error:
        said = [str(error), repr(error.__context__)]
    assert time.monotonic() - began < SLOWEST
    assert not any("Popescu" in line for line in said), said
    return said[0]


@BOUNDED
@given(HEADERS)
def test_any_header(changed):
    """Written around pydicom's own checks, which are on the side of the writer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = dataset(ramp(32, 32))
        for keyword, value in changed.items():
            try:
                setattr(made, keyword, value)
            except (ValueError, TypeError, OverflowError):
                continue
        try:
            data = written(made)
        except Exception:
            hypothesis.reject()  # pydicom would not write it
    outcome(data)


@BOUNDED
@given(TABLES, st.booleans(), st.booleans())
def test_any_table(lut, modality, signed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = ramp(32, 32).astype("int16" if signed else "uint16")
        data = film(pixels, **{"ModalityLUTSequence" if modality else "VOILUTSequence": lut})
    outcome(data)


FILM = film(ramp(32, 32), PatientName=SECRET, WindowCenter=2048, WindowWidth=4096)
SPLICE = st.tuples(st.integers(0, len(FILM)), st.binary(max_size=6), st.integers(0, 6))


@BOUNDED
@given(st.lists(SPLICE, min_size=1, max_size=6), st.integers(200, len(FILM)) | st.just(len(FILM)))
def test_any_damage(splices, length):
    data = FILM
    for at, new, dropped in splices:
        data = data[:at] + new + data[at + dropped :]
    outcome(data[:length])


@BOUNDED
@given(st.binary(max_size=400))
def test_any_bytes_after_the_magic_word(tail):
    outcome(bytes(128) + b"DICM" + tail)


def test_what_counts_as_an_outcome():
    assert outcome(FILM).startswith("Facts(")
