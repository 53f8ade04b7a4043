"""The traps of DICOM, one by one, on films made for them. Expected greys are worked out by hand from PS3.3 C.11."""

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
from pedcxr_client.films import decoders
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

from tests.support.dicom_maker import dataset, film, jpeg_film, ramp, sequence, table, written


def grey(data: bytes) -> np.ndarray:
    return np.asarray(load(data).pixels).astype(int)


def notes(data: bytes) -> str:
    return "; ".join(load(data).how)


FULL = {"WindowCenter": 2048, "WindowWidth": 4096}
STRAIGHT = np.rint(ramp() / 4095 * 255)


def test_a_window_over_the_whole_range_changes_nothing():
    assert np.array_equal(grey(film(**FULL)), STRAIGHT)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless, DeflatedExplicitVRLittleEndian])
def test_the_syntax_does_not_matter(syntax):
    made = dataset(**FULL)
    if syntax == RLELossless:
        made.compress(RLELossless)
    made.file_meta.TransferSyntaxUID = syntax
    assert np.array_equal(grey(written(made)), STRAIGHT)


def test_big_endian_words_are_turned():
    made = dataset(ramp().astype(">u2"), syntax=ExplicitVRBigEndian, **FULL)
    made["PixelData"].VR = "OW"
    assert np.array_equal(grey(written(made)), STRAIGHT)


def test_a_film_of_8_bits_in_big_endian_words():
    """PS3.5 section 8.1.1: OW swaps the pairs of bytes."""
    pixels = ramp(top=255, dtype="uint8")
    made = dataset(pixels, bits=8, syntax=ExplicitVRBigEndian, WindowCenter=128, WindowWidth=256)
    made.PixelData = pixels.reshape(-1, 2)[:, ::-1].tobytes()
    made["PixelData"].VR = "OW"
    assert np.array_equal(grey(written(made)), pixels)


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
def test_windows(function, center, width, levels):
    pixels = np.zeros((256, 256), np.uint16)
    pixels[0, :5] = range(5)
    data = film(pixels, VOILUTFunction=function, WindowCenter=center, WindowWidth=width)
    assert grey(data)[0, :5].tolist() == levels
    assert f"({function or 'LINEAR'})" in notes(data)


def test_the_first_of_several_windows_counts():
    several = film(WindowCenter=[2048, 100, 200], WindowWidth=[4096, 10, 10])
    assert np.array_equal(grey(several), STRAIGHT)


def test_a_voi_lut_goes_before_a_window():
    lut = table(0, 8, [255 - level for level in range(256)])
    data = film(ramp(top=255), VOILUTSequence=lut, WindowCenter=128, WindowWidth=256)
    assert np.array_equal(grey(data), 255 - ramp(top=255))


@pytest.mark.parametrize("width", [0, -5, 0.5, "nan"])
def test_a_window_without_width_is_not_used(width):
    made = dataset(WindowCenter=2048)
    made.add_new("WindowWidth", "DS", "1")
    made["WindowWidth"]._value = width  # pydicom would refuse to set some of them
    data = written(made)
    assert "percentiles 1-99" in notes(data)
    assert grey(data).max() == 255


@pytest.mark.parametrize("text", ["", "abc", "1e999", "--", "\\"])
def test_a_window_that_is_no_number_is_not_used(text):
    data = film(**FULL).replace(b"2048.0", text.encode().ljust(6))
    assert "percentiles 1-99" in notes(data)
    assert grey(data).shape == (256, 256)


def test_without_a_window_a_marker_does_not_decide():
    pixels = np.full((256, 256), 1000, np.uint16) + ramp(top=99)
    pixels[:2, :10], pixels[2:4, :10] = 4095, 0
    middle = grey(film(pixels))[100:150]
    assert middle.max() - middle.min() > 45
    assert "percentiles 1-99 (1001 to 1099) stretched" in notes(film(pixels))


@pytest.mark.parametrize(
    ("photometric", "shape"), [("MONOCHROME1", None), ("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "INVERSE")]
)
def test_inverted_once(photometric, shape):
    data = film(PhotometricInterpretation=photometric, PresentationLUTShape=shape, **FULL)
    assert np.array_equal(grey(data), 255 - STRAIGHT)


def test_a_negative_slope_is_no_inversion():
    """The window is on the rescaled values; the picture follows them."""
    data = film(RescaleSlope=-1, RescaleIntercept=4095, **FULL)
    assert np.array_equal(grey(data), 255 - STRAIGHT)


def test_rescaling_comes_before_the_window():
    assert np.array_equal(
        grey(film(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3095.5, WindowWidth=8191)), STRAIGHT
    )


def test_a_slope_of_0_is_refused():
    with pytest.raises(InputError, match="RescaleSlope"):
        grey(film(RescaleSlope=0, RescaleIntercept=0))


def test_a_modality_lut_comes_before_the_window():
    lut = table(0, 8, [min(2 * level, 255) for level in range(256)])
    data = film(ramp(top=255), ModalityLUTSequence=lut, WindowCenter=128, WindowWidth=256)
    assert np.array_equal(grey(data), np.minimum(2 * ramp(top=255).astype(int), 255))


def test_a_table_of_length_0_has_65536_entries():
    data = film(
        ramp(top=65535), bits=16, VOILUTSequence=table(0, 16, [65535 - level for level in range(65536)], length=0)
    )
    assert np.array_equal(grey(data), np.rint(255 - ramp(top=65535) / 257))


def test_a_table_ends_where_it_ends():
    data = film(ramp(top=255), VOILUTSequence=table(100, 8, [0, 100, 200]))
    levels = {int(value): int(level) for value, level in zip(ramp(top=255).ravel(), grey(data).ravel(), strict=True)}
    assert [levels[value] for value in (0, 100, 101, 102, 255)] == [0, 0, 100, 200, 200]


def test_a_table_from_a_negative_value_on():
    pixels = np.zeros((256, 256), np.int16)
    pixels[0, :4] = [-3, -2, -1, 0]
    assert grey(film(pixels, VOILUTSequence=table(-3, 8, [10, 20, 30, 40])))[0, :4].tolist() == [10, 20, 30, 40]


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
def test_a_table_in_every_coding(form, syntax, vr):
    pixels = ramp(top=255).astype(">u2" if syntax == ExplicitVRBigEndian else "<u2")
    lut = table(0, 8, [255 - level for level in range(256)], form=form, vr=vr)
    assert np.array_equal(grey(film(pixels, syntax=syntax, VOILUTSequence=lut)), 255 - ramp(top=255).astype(int))


@pytest.mark.parametrize("lut", [table(0, 8, [1, 2, 3], length=9), table(0, 8, []), table(0, 40, [1, 2]), sequence()])
def test_a_damaged_table_is_refused(lut):
    with pytest.raises(InputError, match="VOILUTSequence"):
        grey(film(VOILUTSequence=lut))


def test_bits_above_the_stored_ones_are_not_the_films():
    assert np.array_equal(grey(film(ramp() | 0xA000, **FULL)), STRAIGHT)


def test_a_value_may_lie_high_in_its_word():
    assert np.array_equal(grey(film(ramp() << 4 | 5, HighBit=15, **FULL)), STRAIGHT)


def test_signed_values_of_fewer_bits_keep_their_sign():
    pixels = ramp().astype(np.int16) - 2048
    assert np.array_equal(grey(film(pixels, WindowCenter=0, WindowWidth=4096)), STRAIGHT)
    cut = (pixels & 0x0FFF).astype(np.int16)  # the sign bit is bit 11, and nothing repeats it above
    assert np.array_equal(grey(film(cut, WindowCenter=0, WindowWidth=4096)), STRAIGHT)


@pytest.mark.parametrize("limit", [None, 30])
def test_padding_is_found_on_stored_values_and_shown_black(limit):
    pixels = ramp()
    data = film(
        pixels, PixelPaddingValue=0, PixelPaddingRangeLimit=limit, PhotometricInterpretation="MONOCHROME1",
        RescaleSlope=1, RescaleIntercept=5, WindowCenter=2053, WindowWidth=4096,
    )  # fmt: skip
    expected = 255 - STRAIGHT
    expected[pixels <= (limit or 0)] = 0
    assert np.array_equal(grey(data), expected)


def test_padding_does_not_count_among_the_percentiles():
    pixels = np.full((256, 256), 4000, np.uint16)
    pixels[:, :100] = 1000 + ramp(256, 100, 999)
    assert "(1010 to 1989)" in notes(film(pixels, PixelPaddingValue=4000)) or "(1009" in notes(
        film(pixels, PixelPaddingValue=4000)
    )


@pytest.mark.parametrize("signed", [False, True])
def test_a_film_of_nothing_but_padding_is_refused(signed):
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
def test_pixels_become_square(elements, shape):
    assert grey(film(**elements, **FULL)).shape == shape


def test_absurd_pixels_are_refused():
    with pytest.raises(InputError, match="PixelAspectRatio makes pixels more than 8 times"):
        grey(film(PixelAspectRatio=[1000, 1]))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"NumberOfFrames": 2}, r"NumberOfFrames \(0028,0008\) is 2"),
        ({"Rows": 60000, "Columns": 60000}, "50 million pixels"),
        ({"NumberOfFrames": 2_000_000}, "50 million pixels"),
        ({"Rows": 0}, "Rows, Columns"),
        ({"Rows": None}, "Rows is absent"),
        ({"Rows": 257}, "cut short"),
        ({"SamplesPerPixel": 3}, "SamplesPerPixel"),
        ({"PhotometricInterpretation": "RGB"}, "is RGB"),
        ({"PhotometricInterpretation": None}, "is not grey"),
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
def test_what_is_no_film_of_one_frame_is_refused_by_its_element(changed, says):
    began = time.monotonic()
    with pytest.raises(InputError, match=says):
        grey(film(**changed))
    assert time.monotonic() - began < 1


def with_syntax(data: bytes, uid: bytes) -> bytes:
    """Another transfer syntax in the same film; the UID is padded to the length there was."""
    old = b"1.2.840.10008.1.2.1\0"
    return data.replace(old, uid.ljust(len(old), b"\0"), 1)


@pytest.mark.parametrize("uid", [b"1.2.840.10008.1.2.9", b"1.2.3", b"1.2.840.10008.1.2.66", b"1.2.Popescu^Ana"])
def test_an_unknown_syntax_is_named(uid):
    with pytest.raises(InputError, match=r"TransferSyntaxUID|damaged|holds no pixels") as caught:
        grey(with_syntax(film(**FULL), uid))
    assert "Popescu" not in str(caught.value)


def test_video_is_named():
    made = dataset(**FULL)
    made.PixelData = encapsulate([b"\0" * 64])
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
    with pytest.raises(InputError, match=r"MPEG-4.*is not supported"):
        grey(written(made))


def test_a_jpeg_film_and_what_is_cut_off_it():
    picture = Image.effect_noise((256, 256), 60)
    elements = {"WindowCenter": 128, "WindowWidth": 256}
    assert abs(grey(jpeg_film(picture, **elements)) - np.asarray(picture)).mean() < 3
    for cut in (1, 2, 50, 5000):
        with pytest.raises(InputError, match="cut short"):
            grey(jpeg_film(picture, cut=cut, **elements))


def jpeg_damaged(at: bytes, new: bytes, *, skip: int = 0) -> bytes:
    """A JPEG film with bytes put before a marker, or in place of as many from `skip` behind it."""
    made = jpeg_film(Image.effect_noise((256, 256), 60), WindowCenter=128, WindowWidth=256)
    place = made.index(at, made.index(b"\xff\xd8\xff")) + skip
    return made[:place] + new + made[place + (len(new) if skip else 0) :]


@pytest.mark.parametrize(
    ("at", "new", "skip"),
    [
        (b"\xff\xda", b"\x55" * 180, 0),  # what stands between two markers
        (b"\xff\xc0", b"\x0d", 4),  # 13 bits
        (b"\xff\xc0", b"\x03", 9),  # three colours
        (b"\xff\xc0", b"\xff\xc4", 1),  # no frame header
        (b"\xff\xdb", b"\0\0", 2),  # a segment without its length
    ],
)
def test_a_jpeg_stream_that_would_end_the_process_is_refused(at, new, skip):
    """GDCM throws through C over streams like the first, which no except clause stops."""
    with pytest.raises(InputError, match="pixels are damaged"):
        grey(jpeg_damaged(at, new, skip=skip))


def test_gdcm_decodes_what_nothing_else_does_only(monkeypatch):
    """It throws through C over some damaged streams of JPEG baseline and JPEG 2000, and the process is gone."""
    asked = []

    def refuse(*_):
        asked.append("GDCM")
        raise RuntimeError

    for decoder in (JPEGBaseline8BitDecoder, JPEG2000LosslessDecoder):
        monkeypatch.setitem(decoder._available, "gdcm", refuse)
    picture = Image.effect_noise((256, 256), 60)
    assert grey(jpeg_film(picture)).shape == (256, 256)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG2000")
    made = dataset(ramp(256, 256, 255, "uint8"), bits=8, syntax=JPEG2000Lossless)
    made.PixelData = encapsulate([buffer.getvalue()])
    made["PixelData"].is_undefined_length = True
    assert grey(written(made)).shape == (256, 256)
    assert not asked


def test_a_stream_of_another_size_is_refused_before_it_is_decoded():
    with pytest.raises(InputError, match="another size than Rows and Columns"):
        grey(jpeg_film(Image.effect_noise((512, 512), 60), Rows=256, Columns=256))
    made = dataset(**FULL, syntax=JPEG2000Lossless)
    bomb = b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 41, 0, 60000, 60000, 0, 0) + b"\0" * 64 + b"\xff\xd9"
    made.PixelData = encapsulate([bomb])
    made["PixelData"].is_undefined_length = True
    with pytest.raises(InputError, match="another size than Rows and Columns"):
        grey(written(made))


@pytest.mark.parametrize("padding", [b"", b"\0", b"\xff"])
def test_a_stream_may_be_padded(padding):
    """Old encoders pad to an even length with FF."""
    buffer = io.BytesIO()
    Image.effect_noise((20, 10), 50).save(buffer, "JPEG")
    stream = buffer.getvalue() + padding
    assert decoders.is_complete(stream) and not decoders.is_complete(stream[:-3])
    assert decoders.coded_size(stream) == (10, 20)


def test_a_stream_in_a_jp2_file_is_measured_too():
    buffer = io.BytesIO()
    Image.effect_noise((20, 10), 50).save(buffer, "JPEG2000")
    assert buffer.getvalue()[4:8] == b"jP  "
    assert decoders.coded_size(buffer.getvalue()) == (10, 20)
    assert decoders.is_complete(buffer.getvalue())
    assert decoders.coded_size(b"") is None


def test_a_deflated_bomb_is_refused():
    made = dataset(**FULL, syntax=DeflatedExplicitVRLittleEndian)
    data = written(made)
    start = 144 + int.from_bytes(data[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    assert len(bomb) < 1 << 20
    with pytest.raises(InputError, match="inflates to more than 100 MiB"):
        grey(data[:start] + bomb)


def test_a_bomb_behind_a_false_length_is_refused_too():
    data = written(dataset(**FULL, syntax=DeflatedExplicitVRLittleEndian))
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


def test_a_syntax_given_twice_is_no_crash():
    with pytest.raises(InputError):
        grey(with_syntax(film(**FULL), b"1.2.8\\1.2.9"))


def test_values_of_an_unknown_vr_are_not_taken_apart():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = dataset()
        made.add_new("BodyPartExamined", "UN", b"Popescu^")
        made.add_new("WindowCenter", "UN", b"40")
        data = written(made)
    assert "window" in notes(data)
    assert read(data).facts.body.value in ("", "(not shown)")


def test_more_bits_than_stored_in_a_stream_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(ramp()).save(buffer, "JPEG2000", irreversible=False)
    made = dataset(**FULL, syntax=JPEG2000Lossless)
    stream = buffer.getvalue()
    made.PixelData = encapsulate([stream[stream.index(b"\xff\x4f\xff\x51") :]])
    made["PixelData"].is_undefined_length = True
    assert np.array_equal(grey(written(made)), STRAIGHT)
    made.BitsStored, made.HighBit = 10, 9
    with pytest.raises(InputError, match="more bits than BitsStored"):
        grey(written(made))


def test_a_dicomdir_is_named():
    made = dataset()
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    with pytest.raises(InputError, match="is a DICOMDIR, an index of films"):
        grey(written(made))


def test_a_file_of_private_elements_only():
    made = dataset()
    for element in list(made):
        del made[element.tag]
    made.private_block(0x0011, "ACME", create=True).add_new(1, "LO", "Popescu^Ana")
    data = written(made)
    assert read(data).facts.modality.value == ""
    with pytest.raises(InputError, match="holds no pixels"):
        grey(data)


def test_a_bare_data_set_of_an_old_device_is_read():
    data = film(**FULL)
    start = 144 + int.from_bytes(data[140:144], "little")
    assert np.array_equal(grey(data[start:]), STRAIGHT)


@pytest.mark.parametrize("length", [1, 131, 132, 200, 600, 5000, -1])
def test_a_cut_file_is_an_input_error(length):
    with pytest.raises(InputError):
        grey(film(**FULL)[:length])


def test_a_deep_sequence_does_not_overflow():
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"
    data = film(**FULL)
    with pytest.raises(InputError):
        grey(data[:1000].split(b"\x08\x00\x16\x00")[0] + b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + item * 20000)


def test_what_leaves_holds_pixels_only():
    data = film(PatientName="Popescu^Ana", PatientID="MRN1", **FULL)
    sent = encode(load(data))
    assert sent.mime == "image/png"
    radiograph = load(data)
    assert (radiograph.pixels.mode, radiograph.pixels.info) == ("L", {})


def test_a_profile_like_the_training_films():
    data = film(PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0, **FULL)
    low, high = np.percentile(ramp(), [1, 99])
    expected = np.rint(np.clip((ramp() - low) / (high - low), 0, 1) ** (1 / 1.2) * 255)
    trained = load(data, Preparation(profile="ped-train"))
    assert np.array_equal(np.asarray(trained.pixels), expected), "MONOCHROME1 is not inverted, nor padding blackened"
    assert "gamma 1.2" in " ".join(trained.how)


@pytest.mark.parametrize(
    ("missing", "data", "says"),
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
def test_a_missing_decoder_names_the_line_to_type(tmp_path, missing, data, says):
    if isinstance(data, str):
        made = dataset(syntax=data)
        made.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        made["PixelData"].is_undefined_length = True
        data = written(made)
    path = tmp_path / "film.dcm"
    path.write_bytes(data)
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing.split()!r}))\n"  # None there: the import fails
        "from pedcxr_client import InputError\nfrom pedcxr_client.films.film import load, read\n"
        "try: read(sys.argv[1]).render()\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert re.search(says, done.stdout), done.stdout
