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
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
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
from pedcxr_client.films.header import vocabulary
from tests.support.films import unusual_films
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
DESCRIPTIONS = st.sampled_from(
    [
        "CHEST",
        "KNEE LEFT",
        "chest, knee",
        "tórax",
        "胸部",
        "Tierklinik",
        "dog",
        SECRET,
        "\0",
        "",
        "a" * 2000,
        "51185008",
    ]
)
"""Texts and codes of the elements that state a body part or an animal."""

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
    start, texts = time.process_time(), list[str]()
    try:
        undecoded = read(data)
        texts += [str(undecoded.facts), str(rules.check(undecoded.facts, rules.CallerFacts()))]
        result = undecoded.render()
        texts += [str(result.how), str(rules.check(undecoded.facts, rules.CallerFacts(), result.stats))]
        assert result.pixels.mode == "L" or result.original is not None
        encode(result)
    except InputError as error:
        texts = [str(error), repr(error.__context__), *texts]
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


def _header(charset: str, values: list[tuple[str, str | bytes]], inner: list[tuple[str, str | bytes]]) -> bytes:
    """Return a file without pixels. A text of a sequence becomes the meaning of an item that holds ``inner``."""
    ds = dataset(ramp(1, 1))
    ds.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in values:
            if isinstance(value, bytes):
                ds.add_new(keyword, "OB", value)
            elif dictionary_VR(keyword) == "SQ":
                item = Dataset()
                item.CodeMeaning = value
                for inner_keyword, text in inner:
                    item.add_new(inner_keyword, "LO" if isinstance(text, str) else "OB", text)
                setattr(ds, keyword, [item])
            else:
                ds.add_new(keyword, "LO", value)
        ds.SpecificCharacterSet = charset
        buffer = io.BytesIO()
        try:
            ds.save_as(buffer)
        except Exception:
            reject()  # pydicom cannot write it
    return buffer.getvalue()


_ELEMENTS = [
    *(keyword for keyword in vocabulary.TAGS if keyword != "MediaStorageSOPClassUID"),
    "StudyDate",
    "CodeValue",
]
_VALUES = st.lists(
    st.tuples(
        st.sampled_from([*_ELEMENTS, "PatientBirthDate"]),
        DESCRIPTIONS | WORDS | DATES | st.text(max_size=20) | st.sampled_from([b"\xff\xfe", b"CHEST"]),
    ),
    max_size=6,
)
CHARACTER_SETS = st.sampled_from(["ISO_IR 192", "ISO_IR 100", "\\ISO 2022 IR 87", "Popescu", ""])
described = st.builds(_header, CHARACTER_SETS, _VALUES, _VALUES)
"""Headers in which every element that is read holds a text, an item, or bytes of another VR."""


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
    """Return small films of every format, syntax and unusual form, and small films of the film set if present."""
    unusual = unusual_films.accepted() | unusual_films.refused()
    ds = _images() | _dicoms() | {name: data for name, (data, _) in unusual.items() if len(data) <= _SMALL_FILE}
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
        "MPO": _saved(noise, "MPO", save_all=True, append_images=[second]),
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


@st.composite
def encapsulated(draw: st.DrawFn) -> bytes:
    """Draw compressed films whose fragments, offset tables, trailing bytes and delimiters are damaged."""
    names = sorted(name for name, (data, _) in unusual_films.accepted().items() if unusual_films.DELIMITER in data)
    data = unusual_films.accepted()[draw(st.sampled_from(names))][0]
    at, end = data.index(b"\xe0\x7f\x10\x00"), data.rindex(unusual_films.DELIMITER)
    pixels = data[at + 12 : end]
    item = st.binary(max_size=40).map(lambda value: b"\xfe\xff\x00\xe0" + len(value).to_bytes(4, "little") + value)
    pieces = st.sampled_from([pixels, pixels[: len(pixels) // 2], pixels[8:], b"\xff\xd9", b"\xff\xd8\xff", b""])
    parts = draw(st.lists(pieces | item | st.binary(max_size=9), min_size=1, max_size=4))
    tail = draw(st.sampled_from([data[end:], data[end : end + 4], b"", b"\xfe\xff", data[end:] * 2]))
    return data[: at + 12] + b"".join(parts) + tail


TAILS = st.binary(max_size=400).map(lambda tail: bytes(128) + b"DICM" + tail)
KINDS = {
    "headers": headers(),
    "described": described,
    "tables": tables(),
    "damaged": damaged(),
    "encapsulated": encapsulated(),
    "tails": TAILS,
}
"""The strategies by name."""
