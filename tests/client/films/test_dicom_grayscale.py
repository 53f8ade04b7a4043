"""Edge cases of DICOM on synthetic films. Expected greys are derived by hand from PS3.3 C.11."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import time
import warnings
import zlib

import numpy as np
import pytest

from pedcxr_client import InputError, Preparation
from pedcxr_client.films import codestreams
from pedcxr_client.films.film import encode, load, read

pytest.importorskip("pydicom")

from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders import JPEG2000LosslessDecoder, JPEGBaseline8BitDecoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from tests.support.films.dicom_maker import dataset, film, jpeg_film, ramp, sequence, table, to_bytes


def grey(data: bytes) -> np.ndarray:
    return np.asarray(load(data).pixels).astype(int)


def notes(data: bytes) -> str:
    return "; ".join(load(data).how)


FULL = {"WindowCenter": 2048, "WindowWidth": 4096}
LINEAR = np.rint(ramp() / 4095 * 255)


def test_window_over_the_full_range_is_linear():
    assert np.array_equal(grey(film(**FULL)), LINEAR)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless, DeflatedExplicitVRLittleEndian])
def test_every_uncompressed_syntax_renders_equally(syntax):
    ds = dataset(**FULL)
    if syntax == RLELossless:
        ds.compress(RLELossless)
    ds.file_meta.TransferSyntaxUID = syntax
    assert np.array_equal(grey(to_bytes(ds)), LINEAR)


def test_big_endian_pixels_are_byte_swapped():
    ds = dataset(ramp().astype(">u2"), syntax=ExplicitVRBigEndian, **FULL)
    ds["PixelData"].VR = "OW"
    assert np.array_equal(grey(to_bytes(ds)), LINEAR)


def test_8_bit_pixels_in_big_endian_words():
    """PS3.5 section 8.1.1: OW swaps the pairs of bytes."""
    pixels = ramp(top=255, dtype="uint8")
    ds = dataset(pixels, bits=8, syntax=ExplicitVRBigEndian, WindowCenter=128, WindowWidth=256)
    ds.PixelData = pixels.reshape(-1, 2)[:, ::-1].tobytes()
    ds["PixelData"].VR = "OW"
    assert np.array_equal(grey(to_bytes(ds)), pixels)


@pytest.mark.parametrize(
    ("function", "center", "width", "levels"),
    [
        ("LINEAR", 2, 4, [0, 85, 170, 255, 255]),  # (x - 1.5) / 3 + 0.5
        (None, 2, 4, [0, 85, 170, 255, 255]),
        ("LINEAR", 2, 1, [0, 0, 255, 255, 255]),  # a threshold: x > 1.5
        ("LINEAR_EXACT", 2, 4, [0, 64, 128, 191, 255]),  # (x - 2) / 4 + 0.5
        ("LINEAR_EXACT", 2, 0.5, [0, 0, 128, 255, 255]),
        ("SIGMOID", 2, 4, [30, 69, 128, 186, 225]),  # 255 / (1 + exp(-(x - 2)))
    ],
)
def test_window_functions(function, center, width, levels):
    pixels = np.zeros((256, 256), np.uint16)
    pixels[0, :5] = range(5)
    data = film(pixels, VOILUTFunction=function, WindowCenter=center, WindowWidth=width)
    assert grey(data)[0, :5].tolist() == levels
    assert f"({function or 'LINEAR'})" in notes(data)


def test_first_of_several_windows_is_used():
    data = film(WindowCenter=[2048, 100, 200], WindowWidth=[4096, 10, 10])
    assert np.array_equal(grey(data), LINEAR)


def test_voi_lut_takes_precedence_over_a_window():
    lut = table(0, 8, [255 - level for level in range(256)])
    data = film(ramp(top=255), VOILUTSequence=lut, WindowCenter=128, WindowWidth=256)
    assert np.array_equal(grey(data), 255 - ramp(top=255))


@pytest.mark.parametrize("width", [0, -5, 0.5, "nan"])
def test_window_with_an_invalid_width_is_ignored(width):
    ds = dataset(WindowCenter=2048)
    ds.add_new("WindowWidth", "DS", "1")
    ds["WindowWidth"]._value = width  # pydicom rejects some of these values in its setter
    data = to_bytes(ds)
    assert "percentiles 1-99" in notes(data)
    assert grey(data).max() == 255


@pytest.mark.parametrize("text", ["", "abc", "1e999", "--", "\\"])
def test_window_that_is_not_a_number_is_ignored(text):
    data = film(**FULL).replace(b"2048.0", text.encode().ljust(6))
    assert "percentiles 1-99" in notes(data)
    assert grey(data).shape == (256, 256)


def test_extreme_markers_do_not_set_the_range_without_a_window():
    pixels = np.full((256, 256), 1000, np.uint16) + ramp(top=99)
    pixels[:2, :10], pixels[2:4, :10] = 4095, 0
    middle = grey(film(pixels))[100:150]
    assert middle.max() - middle.min() > 45
    assert "percentiles 1-99 (1001 to 1099) stretched" in notes(film(pixels))


@pytest.mark.parametrize(
    ("photometric", "shape"), [("MONOCHROME1", None), ("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "INVERSE")]
)
def test_inversion_is_applied_once(photometric, shape):
    data = film(PhotometricInterpretation=photometric, PresentationLUTShape=shape, **FULL)
    assert np.array_equal(grey(data), 255 - LINEAR)


def test_negative_slope_does_not_invert():
    """The window applies to the rescaled values, so the image follows them."""
    data = film(RescaleSlope=-1, RescaleIntercept=4095, **FULL)
    assert np.array_equal(grey(data), 255 - LINEAR)


def test_rescale_is_applied_before_the_window():
    assert np.array_equal(
        grey(film(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3095.5, WindowWidth=8191)), LINEAR
    )


def test_slope_of_0_raises():
    with pytest.raises(InputError, match="RescaleSlope"):
        grey(film(RescaleSlope=0, RescaleIntercept=0))


def test_modality_lut_is_applied_before_the_window():
    lut = table(0, 8, [min(2 * level, 255) for level in range(256)])
    data = film(ramp(top=255), ModalityLUTSequence=lut, WindowCenter=128, WindowWidth=256)
    assert np.array_equal(grey(data), np.minimum(2 * ramp(top=255).astype(int), 255))


def test_lut_of_length_0_has_65536_entries():
    data = film(
        ramp(top=65535), bits=16, VOILUTSequence=table(0, 16, [65535 - level for level in range(65536)], length=0)
    )
    assert np.array_equal(grey(data), np.rint(255 - ramp(top=65535) / 257))


def test_lut_extends_its_first_and_last_entries():
    data = film(ramp(top=255), VOILUTSequence=table(100, 8, list(range(0, 256, 2))))
    levels = {int(value): int(level) for value, level in zip(ramp(top=255).ravel(), grey(data).ravel(), strict=True)}
    assert [levels[value] for value in (0, 100, 101, 102, 227, 255)] == [0, 0, 2, 4, 254, 254]


def test_lut_may_start_at_a_negative_value():
    pixels = np.zeros((256, 256), np.int16)
    pixels[0, :4] = [-3, -2, -1, 0]
    assert grey(film(pixels, VOILUTSequence=table(-3, 8, [50, 100, 150, 200])))[0, :4].tolist() == [50, 100, 150, 200]


@pytest.mark.parametrize(
    ("form", "syntax", "vr"),
    [
        ("u1", ExplicitVRLittleEndian, "OW"),
        ("<u2", ExplicitVRLittleEndian, "OW"),
        ("<u2", ExplicitVRLittleEndian, "US"),
        ("<u2", ImplicitVRLittleEndian, "US"),
        (">u2", ExplicitVRBigEndian, "OW"),
        (">u2", ExplicitVRBigEndian, "US"),
    ],
)
def test_lut_in_every_encoding(form, syntax, vr):
    pixels = ramp(top=255).astype(">u2" if syntax == ExplicitVRBigEndian else "<u2")
    lut = table(0, 8, [255 - level for level in range(256)], form=form, vr=vr)
    assert np.array_equal(grey(film(pixels, syntax=syntax, VOILUTSequence=lut)), 255 - ramp(top=255).astype(int))


def test_voi_lut_entries_may_exceed_the_bits_of_the_descriptor():
    """Some devices declare 8 bits and store more; the range of the entries is that of the largest entry."""
    lut = table(0, 8, [16 * level for level in range(256)])  # 4080 at most: 12 bits
    assert np.array_equal(grey(film(ramp(top=255), VOILUTSequence=lut)), np.rint(ramp(top=255) * 16.0 / 4095 * 255))


@pytest.mark.parametrize("lut", [table(0, 8, [1, 2, 3], length=9), table(0, 8, []), table(0, 40, [1, 2]), sequence()])
def test_damaged_lut_raises(lut):
    with pytest.raises(InputError, match="VOILUTSequence"):
        grey(film(VOILUTSequence=lut))


def test_bits_above_bits_stored_are_ignored():
    assert np.array_equal(grey(film(ramp() | 0xA000, **FULL)), LINEAR)


def test_high_bit_shifts_the_value():
    assert np.array_equal(grey(film(ramp() << 4 | 5, HighBit=15, **FULL)), LINEAR)


def test_signed_values_are_sign_extended():
    pixels = ramp().astype(np.int16) - 2048
    assert np.array_equal(grey(film(pixels, WindowCenter=0, WindowWidth=4096)), LINEAR)
    cut = (pixels & 0x0FFF).astype(np.int16)  # the sign bit is bit 11, and the bits above it are 0
    assert np.array_equal(grey(film(cut, WindowCenter=0, WindowWidth=4096)), LINEAR)


@pytest.mark.parametrize("limit", [None, 30])
def test_padding_applies_to_stored_values_and_is_black(limit):
    pixels = ramp()
    data = film(
        pixels, PixelPaddingValue=0, PixelPaddingRangeLimit=limit, PhotometricInterpretation="MONOCHROME1",
        RescaleSlope=1, RescaleIntercept=5, WindowCenter=2053, WindowWidth=4096,
    )  # fmt: skip
    expected = 255 - LINEAR
    expected[pixels <= (limit or 0)] = 0
    assert np.array_equal(grey(data), expected)


@pytest.mark.parametrize("limit", [None, 65534])
def test_padding_of_signed_pixels_may_be_stated_as_unsigned(limit):
    """Some devices write the padding of signed pixels with VR US: 65531 is -5 in two's complement."""
    pixels = ramp().astype(np.int16) - 2048
    ds = dataset(pixels, WindowCenter=0, WindowWidth=4096)
    ds.add_new("PixelPaddingValue", "US", 65531)
    if limit is not None:
        ds.add_new("PixelPaddingRangeLimit", "US", limit)
    expected = LINEAR.copy()
    expected[(pixels >= -5) & (pixels <= (-5 if limit is None else -2))] = 0
    assert np.array_equal(grey(to_bytes(ds)), expected)


def test_percentiles_exclude_padding():
    pixels = np.full((256, 256), 4000, np.uint16)
    pixels[:, :100] = 1000 + ramp(256, 100, 999)
    assert "(1010 to 1989)" in notes(film(pixels, PixelPaddingValue=4000)) or "(1009" in notes(
        film(pixels, PixelPaddingValue=4000)
    )


@pytest.mark.parametrize("signed", [False, True])
def test_film_with_only_padding_raises(signed):
    pixels = np.full((256, 256), -5 if signed else 7, np.int16 if signed else np.uint16)
    with pytest.raises(InputError, match="every pixel is padding"):
        grey(film(pixels, PixelPaddingValue=-5 if signed else 7, **FULL))


@pytest.mark.parametrize(
    ("elements", "shape"),
    [
        ({"PixelAspectRatio": [2, 1]}, (512, 256)),
        ({"PixelAspectRatio": [1, 2]}, (256, 512)),
        ({"PixelSpacing": [0.3, 0.2]}, (384, 256)),
        ({"ImagerPixelSpacing": [0.2, 0.2]}, (256, 256)),
        ({"PixelSpacing": [1.2, 1.2011]}, (256, 256)),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.4, 0.2]}, (512, 256)),
    ],
)
def test_pixels_are_resampled_to_squares(elements, shape):
    assert grey(film(**elements, **FULL)).shape == shape


def test_extreme_aspect_ratio_raises():
    with pytest.raises(InputError, match="PixelAspectRatio makes pixels more than 8 times"):
        grey(film(PixelAspectRatio=[1000, 1]))


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"NumberOfFrames": 2}, r"NumberOfFrames \(0028,0008\) is 2"),
        ({"Rows": 60000, "Columns": 60000}, "50 million pixels"),
        ({"NumberOfFrames": 2_000_000}, "50 million pixels"),
        ({"Rows": 0}, "Rows, Columns"),
        ({"Rows": None}, "Rows is absent"),
        ({"Rows": 257}, "cut short"),
        ({"SamplesPerPixel": 3}, "SamplesPerPixel"),
        ({"PhotometricInterpretation": "RGB"}, "is RGB"),
        ({"PhotometricInterpretation": None}, r"PhotometricInterpretation \(0028,0004\) is absent"),
        ({"PhotometricInterpretation": "YBR_FULL_422"}, "is YBR"),
        ({"BitsAllocated": 32}, r"BitsAllocated \(0028,0100\) is 32"),
        ({"BitsStored": 17}, "BitsStored"),
        ({"BitsStored": 0}, "BitsStored"),
        ({"HighBit": 3}, "HighBit"),
        ({"PixelData": None}, "holds no pixels"),
        ({"PixelData": b""}, "cut short"),
        ({"PixelData": None, "FloatPixelData": b"\0" * 8}, "floats"),
        ({"PixelData": None, "DoubleFloatPixelData": b"\0" * 8}, "floats"),
    ],
)
def test_error_names_the_invalid_element(elements, message):
    start = time.process_time()  # of this process alone: others may keep it waiting
    with pytest.raises(InputError, match=message):
        grey(film(**elements))
    assert time.process_time() - start < 1


def with_syntax(data: bytes, uid: bytes) -> bytes:
    """Return the film with another transfer syntax, its UID padded to the original length."""
    old = b"1.2.840.10008.1.2.1\0"
    return data.replace(old, uid.ljust(len(old), b"\0"), 1)


@pytest.mark.parametrize("uid", [b"1.2.840.10008.1.2.9", b"1.2.3", b"1.2.840.10008.1.2.66", b"1.2.Popescu^Ana"])
def test_unknown_syntax_raises_without_quoting_the_header(uid):
    with pytest.raises(InputError, match=r"TransferSyntaxUID|damaged|holds no pixels") as error:
        grey(with_syntax(film(**FULL), uid))
    assert "Popescu" not in str(error.value)


def test_video_syntax_is_named():
    ds = dataset(**FULL)
    ds.PixelData = encapsulate([b"\0" * 64])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
    with pytest.raises(InputError, match=r"MPEG-4.*is not supported"):
        grey(to_bytes(ds))


def test_truncated_jpeg_raises():
    picture = Image.effect_noise((256, 256), 60)
    elements = {"WindowCenter": 128, "WindowWidth": 256}
    assert abs(grey(jpeg_film(picture, **elements)) - np.asarray(picture)).mean() < 3
    for cut in (1, 2, 50, 5000):
        with pytest.raises(InputError, match="cut short"):
            grey(jpeg_film(picture, cut=cut, **elements))


def jpeg_damaged(at: bytes, new: bytes, *, skip: int = 0) -> bytes:
    """Return a JPEG film with bytes inserted before a marker, or, with ``skip``, overwritten that far after it."""
    ds = jpeg_film(Image.effect_noise((256, 256), 60), WindowCenter=128, WindowWidth=256)
    place = ds.index(at, ds.index(b"\xff\xd8\xff")) + skip
    return ds[:place] + new + ds[place + (len(new) if skip else 0) :]


@pytest.mark.parametrize(
    ("at", "new", "skip"),
    [
        (b"\xff\xda", b"\x55" * 180, 0),  # bytes between two markers
        (b"\xff\xc0", b"\x0d", 4),  # 13 bits
        (b"\xff\xc0", b"\x03", 9),  # three colours
        (b"\xff\xc0", b"\xff\xc4", 1),  # frame header replaced
        (b"\xff\xdb", b"\0\0", 2),  # segment length 0
    ],
)
def test_jpeg_stream_that_crashes_gdcm_raises(at, new, skip):
    """GDCM throws a C++ exception through C on streams like the first, which terminates the process."""
    with pytest.raises(InputError, match="pixels are damaged"):
        grey(jpeg_damaged(at, new, skip=skip))


def test_gdcm_is_not_used_if_another_decoder_exists(monkeypatch):
    """GDCM terminates the process on some damaged streams of JPEG baseline and JPEG 2000."""
    calls = []

    def refuse(*_):
        calls.append("GDCM")
        raise RuntimeError

    for decoder in (JPEGBaseline8BitDecoder, JPEG2000LosslessDecoder):
        monkeypatch.setitem(decoder._available, "gdcm", refuse)
    picture = Image.effect_noise((256, 256), 60)
    assert grey(jpeg_film(picture)).shape == (256, 256)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG2000")
    ds = dataset(ramp(256, 256, 255, "uint8"), bits=8, syntax=JPEG2000Lossless)
    ds.PixelData = encapsulate([buffer.getvalue()])
    ds["PixelData"].is_undefined_length = True
    assert grey(to_bytes(ds)).shape == (256, 256)
    assert not calls


def test_stream_of_another_size_raises_before_decoding():
    with pytest.raises(InputError, match="another size than Rows and Columns"):
        grey(jpeg_film(Image.effect_noise((512, 512), 60), Rows=256, Columns=256))
    ds = dataset(**FULL, syntax=JPEG2000Lossless)
    bomb = b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 41, 0, 60000, 60000, 0, 0) + b"\0" * 64 + b"\xff\xd9"
    ds.PixelData = encapsulate([bomb])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(InputError, match="another size than Rows and Columns"):
        grey(to_bytes(ds))


@pytest.mark.parametrize("padding", [b"", b"\0", b"\xff"])
def test_padding_after_the_end_marker_is_accepted(padding):
    """Some encoders pad to an even length with FF."""
    buffer = io.BytesIO()
    Image.effect_noise((20, 10), 50).save(buffer, "JPEG")
    stream = buffer.getvalue() + padding
    assert codestreams.split(stream) == (buffer.getvalue(), padding) and codestreams.split(stream[:-3]) is None
    assert codestreams.coded_size(stream) == (10, 20)


def test_coded_size_of_a_jp2_file():
    buffer = io.BytesIO()
    Image.effect_noise((20, 10), 50).save(buffer, "JPEG2000")
    assert buffer.getvalue()[4:8] == b"jP  "
    assert codestreams.coded_size(buffer.getvalue()) == (10, 20)
    stream, rest = codestreams.split(buffer.getvalue())
    assert buffer.getvalue().endswith(stream) and rest == b""
    assert codestreams.coded_size(b"") is None


def test_deflate_bomb_raises():
    ds = dataset(**FULL, syntax=DeflatedExplicitVRLittleEndian)
    data = to_bytes(ds)
    start = 144 + int.from_bytes(data[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    assert len(bomb) < 1 << 20
    with pytest.raises(InputError, match="inflates to more than 100 MiB"):
        grey(data[:start] + bomb)


def test_deflate_bomb_after_a_false_group_length_raises():
    data = to_bytes(dataset(**FULL, syntax=DeflatedExplicitVRLittleEndian))
    start = 144 + int.from_bytes(data[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    for group in (b"\xff\xff\0\0", b"\0\0\0\0"):
        with pytest.raises(InputError, match="inflates to more than 100 MiB"):
            grey(data[:140] + group + data[144:start] + bomb)
    with pytest.raises(InputError, match="damaged deflated"):
        grey(data[:start] + b"\xff" * 50)
    implicit = data[:132] + b"\x02\0\x10\0\x16\0\0\0" + b"1.2.840.10008.1.2.1.99" + bomb
    with pytest.raises(InputError, match=r"damaged deflated|inflates"):
        grey(implicit)


def test_multivalued_syntax_raises_input_error():
    with pytest.raises(InputError):
        grey(with_syntax(film(**FULL), b"1.2.8\\1.2.9"))


def test_values_of_unknown_vr_are_ignored():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dataset()
        ds.add_new("BodyPartExamined", "UN", b"Popescu^")
        ds.add_new("WindowCenter", "UN", b"40")
        data = to_bytes(ds)
    assert "window" in notes(data)
    assert read(data).facts.body.value in ("", "(not shown)")


def test_stream_with_more_bits_than_bits_stored_raises():
    buffer = io.BytesIO()
    Image.fromarray(ramp()).save(buffer, "JPEG2000", irreversible=False)
    ds = dataset(**FULL, syntax=JPEG2000Lossless)
    stream = buffer.getvalue()
    ds.PixelData = encapsulate([stream[stream.index(b"\xff\x4f\xff\x51") :]])
    ds["PixelData"].is_undefined_length = True
    assert np.array_equal(grey(to_bytes(ds)), LINEAR)
    ds.BitsStored, ds.HighBit = 10, 9
    with pytest.raises(InputError, match="more bits than BitsStored"):
        grey(to_bytes(ds))


def test_dicomdir_raises():
    ds = dataset()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    with pytest.raises(InputError, match="is a DICOMDIR, an index of films"):
        grey(to_bytes(ds))


def test_film_with_only_private_elements_raises():
    ds = dataset()
    for element in list(ds):
        del ds[element.tag]
    ds.private_block(0x0011, "ACME", create=True).add_new(1, "LO", "Popescu^Ana")
    data = to_bytes(ds)
    assert read(data).facts.modality.value == ""
    with pytest.raises(InputError, match="holds no pixels"):
        grey(data)


def test_data_set_without_preamble_is_read():
    data = film(**FULL)
    start = 144 + int.from_bytes(data[140:144], "little")
    assert np.array_equal(grey(data[start:]), LINEAR)


@pytest.mark.parametrize("length", [1, 131, 132, 200, 600, 5000, -1])
def test_truncated_file_raises_input_error(length):
    with pytest.raises(InputError):
        grey(film(**FULL)[:length])


def test_deeply_nested_sequence_raises_input_error():
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"
    data = film(**FULL)
    with pytest.raises(InputError):
        grey(data[:1000].split(b"\x08\x00\x16\x00")[0] + b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + item * 20000)


def test_encoded_film_holds_only_pixels():
    data = film(PatientName="Popescu^Ana", PatientID="MRN1", **FULL)
    encoded = encode(load(data))
    assert encoded.mime == "image/png"
    result = load(data)
    assert (result.pixels.mode, result.pixels.info) == ("L", {})


def test_ped_train_profile():
    data = film(PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0, **FULL)
    low, high = np.percentile(ramp(), [1, 99])
    expected = np.rint(np.clip((ramp() - low) / (high - low), 0, 1) ** (1 / 1.2) * 255)
    result = load(data, Preparation(profile="ped-train"))
    assert np.array_equal(np.asarray(result.pixels), expected), "MONOCHROME1 is not inverted, and padding is not black"
    assert "gamma 1.2" in " ".join(result.how)


@pytest.mark.parametrize(
    ("modules", "data", "message"),
    [
        ("pydicom", film(), r'which needs pydicom: pip install "pedcxr\[dicom\]"'),
        ("numpy", film(), r'which needs pydicom: pip install "pedcxr\[dicom\]"'),
        (
            "pylibjpeg openjpeg",
            "1.2.840.10008.1.2.4.201",
            r"High-Throughput JPEG 2000.* decoder is missing: pip install",
        ),
        (
            "gdcm pylibjpeg libjpeg",
            "1.2.840.10008.1.2.4.70",
            r'JPEG Lossless.* the decoder is missing: pip install "pedcxr\[dicom\]"',
        ),
    ],
)
def test_missing_decoder_message_names_the_install_command(tmp_path, modules, data, message):
    if isinstance(data, str):
        ds = dataset(syntax=data)
        ds.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        ds["PixelData"].is_undefined_length = True
        data = to_bytes(ds)
    path = tmp_path / "film.dcm"
    path.write_bytes(data)
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({modules.split()!r}))\n"  # None makes the import fail
        "from pedcxr_client import InputError\nfrom pedcxr_client.films.film import load, read\n"
        "try: read(sys.argv[1]).render()\n"
        "except InputError as error: print(error)"
    )
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert re.search(message, process.stdout), process.stdout
