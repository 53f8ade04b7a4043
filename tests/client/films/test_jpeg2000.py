"""JPEG 2000 headers that request more than a film needs raise quickly, before decoding."""

from __future__ import annotations

import io
import signal
import time

import numpy as np
import pytest
from PIL import Image

from pedcxr_client import InputError
from pedcxr_client.films import codestreams
from pedcxr_client.films.film import load

pytest.importorskip("pydicom")

from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGLSLossless

from tests.support.films.dicom_maker import dataset, to_bytes

PICTURE = Image.effect_noise((48, 40), 90)
SIZ, COD, QCD, SOT = (bytes([0xFF, low]) for low in (0x51, 0x52, 0x5C, 0x90))


@pytest.fixture(autouse=True)
def time_limit():
    """Fail a test that loops endlessly."""

    def expire(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def jp2(picture=PICTURE, **options):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG2000", **options)
    return buffer.getvalue()


def film(*streams, syntax=JPEG2000Lossless, picture=PICTURE, **elements):
    ds = dataset(np.asarray(picture), bits=8, syntax=syntax, **elements)
    ds.PixelData = encapsulate(list(streams))
    ds["PixelData"].is_undefined_length = True
    return to_bytes(ds)


def overwrite(stream, marker, at, new):
    """Return the stream with bytes overwritten at an offset from a marker."""
    start = stream.index(marker, stream.index(b"\xff\x4f\xff\x51")) + at
    return stream[:start] + new + stream[start + len(new) :]


@pytest.mark.parametrize("box", [b"ihdr", b"colr", b"jp2h", b"jp2c", b"ftyp"])
@pytest.mark.parametrize("length", [0, 1, 7, 0x7FFFFFFF, 0xFFFFFFFF])
def test_box_with_a_wrong_length_is_ignored(box, length):
    """pydicom loops endlessly on a box of length 0."""
    original, at = jp2(), jp2().index(box) - 4
    result = load(film(original[:at] + length.to_bytes(4) + original[at + 4 :]))
    assert np.array_equal(np.asarray(result.pixels), np.asarray(load(film(jp2())).pixels))


HOSTILE = {
    "65,535 layers": (COD, 6, b"\xff\xff"),
    "no layer": (COD, 6, b"\0\0"),
    "33 levels": (COD, 9, b"\x21"),
    "code-blocks of 4096 x 4096": (COD, 10, b"\x0a\x0a"),
    "one tile per pixel": (SIZ, 22, b"\0\0\0\1" * 2),
    "tiles of nothing": (SIZ, 22, b"\0\0\0\0" * 2),
    "tiles that start after the image": (SIZ, 30, b"\0\0\2\0" * 2),
    "38 bits": (SIZ, 40, b"\x25"),
    "255 components": (SIZ, 38, b"\0\xff"),
    "a sample in 255 points": (SIZ, 41, b"\xff\xff"),
    "one precinct per pixel": (COD, 14, b"\0" * 6),
    "COD twice": (QCD, 0, COD),
    "a component's own coding style": (QCD, 0, b"\xff\x53"),
    "a segment of no length": (QCD, 2, b"\0\0"),
    "a segment longer than the file": (QCD, 2, b"\xff\xff"),
    "a tile-part shorter than its header": (SOT, 6, b"\0\0\0\x0d"),
    "a tile's own coding style": (SOT, 12, COD),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_headers_that_exceed_the_limits_raise(name):
    flat = Image.new("L", (300, 270), 90)
    original = jp2(flat, precinct_size=(256, 256))
    assert load(film(original, picture=flat)).pixels.size == flat.size
    start = time.process_time()
    with pytest.raises(InputError, match="JPEG 2000 headers are damaged or exceed what a film needs"):
        load(film(overwrite(original, *HOSTILE[name]), picture=flat))
    assert time.process_time() - start < 5


def test_number_of_tile_parts_is_limited():
    stream = codestreams.jpeg2000_codestream(jp2())
    at = stream.index(SOT)
    part = SOT + b"\0\x0a\0\0\0\0\0\x0e\0\1" + b"\xff\x93"
    assert codestreams.is_bounded_jpeg2000(stream[:at] + part * 50 + stream[at:])
    start = time.process_time()
    assert not codestreams.is_bounded_jpeg2000(stream[:at] + part * 2_000_000 + stream[at:])
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_jp2": True},
        {"tile_size": (64, 64)},
        {"num_resolutions": 1},
        {"codeblock_size": (8, 8)},
        {"precinct_size": (64, 64)},
        {"tile_size": (256, 256), "precinct_size": (128, 128), "codeblock_size": (32, 32)},
        {"irreversible": True, "quality_layers": [40, 20, 10, 5, 2]},
        {"progression": "RPCL", "quality_layers": [20, 2], "irreversible": True, "plt": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(300, 270), (333, 257)])
def test_streams_of_real_encoders_are_accepted(options, size):
    picture = Image.effect_noise(size, 60)
    stream = jp2(picture, **options)
    result = load(film(stream, syntax=JPEG2000, picture=picture, WindowCenter=128, WindowWidth=256))
    difference = np.asarray(result.pixels, int) - np.asarray(Image.open(io.BytesIO(stream)), int)
    assert abs(difference).max() <= 1


def test_extended_offset_table_is_removed():
    """An extended offset table could point to another frame than the checked one."""
    original = jp2()
    offsets = {
        "ExtendedOffsetTable": (len(original) + 8 + len(original) % 2).to_bytes(8, "little"),
        "ExtendedOffsetTableLengths": len(original).to_bytes(8, "little"),
    }
    damaged = overwrite(original, COD, 6, b"\xff\xff")
    assert load(film(original, **offsets)).pixels.size == (48, 40)
    with pytest.raises(InputError):
        load(film(damaged, original, **offsets))


@pytest.mark.parametrize("stream", [b"\xff\xd8\xff\xd9", jp2()[:40] + b"\xff\xd9"])
def test_stream_of_another_syntax_raises(stream):
    with pytest.raises(InputError, match="JPEG 2000 headers are damaged"):
        load(film(stream))
    with pytest.raises(InputError, match="pixels are damaged"):
        load(film(jp2(), syntax=JPEGLSLossless))
