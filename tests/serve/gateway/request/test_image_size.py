"""`pixel_count` on files that other libraries wrote, and on damaged ones."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pedcxr_serve.gateway.request.image_size import pixel_count
from tests.support.films import dicom_maker

WIDTH, HEIGHT = 300, 70


def saved(form: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("L", (WIDTH, HEIGHT), 99).save(file, form, **options)
    return file.getvalue()


FILES = {
    "png": saved("PNG"),
    "jpeg": saved("JPEG"),
    "progressive": saved("JPEG", progressive=True, comment=b"\xff\xc0" * 500),
    "gif": saved("GIF"),
    "bmp": saved("BMP"),
    "tiff": saved("TIFF"),
    "webp": saved("WEBP"),
    "lossless webp": saved("WEBP", lossless=True),
    "webp with metadata": saved("WEBP", exif=b"Exif\0\0"),
    "dicom": dicom_maker.film(dicom_maker.ramp(HEIGHT, WIDTH)),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_pixels_are_counted(data: bytes) -> None:
    assert pixel_count(data) == WIDTH * HEIGHT


def test_dicom_without_a_size_counts_by_its_length() -> None:
    assert pixel_count(bytes(128) + b"DICM" + bytes(1000)) == 1132 // 2


@given(st.sampled_from([*FILES.values(), b""]), st.integers(0, 400), st.binary(max_size=9))
def test_damaged_file_is_counted_without_an_error(data: bytes, at: int, patch: bytes) -> None:
    assert pixel_count(data[:at]) >= 0
    assert pixel_count(data[:at] + patch + data[at + len(patch) :]) >= 0


@pytest.mark.parametrize("filler", [b"\xff", b"\xff\xfe\0\2"])
def test_jpeg_with_endless_segments_is_given_up(filler: bytes) -> None:
    frame = b"\xff\xc0\0\x11\x08" + (2000).to_bytes(2) + (3000).to_bytes(2)
    assert pixel_count(b"\xff\xd8" + filler * 9_000 + frame) == 6_000_000
    endless = b"\xff\xd8" + filler * 11_000 + frame
    assert pixel_count(endless) == len(endless)
