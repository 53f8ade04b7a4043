"""Which images the media connector accepts, and with which messages it refuses the others."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pedcxr_client.films import film
from pedcxr_serve.vllm_plugin import image_decoder
from pedcxr_serve.vllm_plugin.refusals import FilmRefused

CAP = 1_000_000


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def ramp(mode: str = "L", size: tuple[int, int] = (40, 30)) -> Image.Image:
    grey = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    return Image.fromarray(grey).convert(mode)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_opaque_8_bit_image_keeps_its_pixels(mode: str) -> None:
    image = ramp(mode)
    decoded = image_decoder.decode(encoded(image), max_pixels=CAP)
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_alpha_channel_is_dropped(mode: str) -> None:
    decoded = image_decoder.decode(encoded(ramp(mode)), max_pixels=CAP)
    assert np.array_equal(np.asarray(decoded), np.asarray(ramp("RGB")))


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = image_decoder.decode(encoded(ramp(), "JPEG", exif=exif, quality=95), max_pixels=CAP)
    assert decoded.size == (30, 40)


def test_first_picture_of_a_phone_jpeg_is_decoded_as_the_client_sends_it() -> None:
    """A phone writes previews and gain maps after the picture."""
    data = encoded(ramp(), "MPO", save_all=True, append_images=[ramp(size=(20, 15))], quality=95)
    decoded = image_decoder.decode(data, max_pixels=CAP)
    assert decoded.size == (40, 30)
    sent = image_decoder.decode(base64.b64decode(film.prepare(data).base64), max_pixels=CAP)
    assert np.array_equal(np.asarray(decoded), np.asarray(sent))


def transparent() -> Image.Image:
    image = ramp("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 254))
    return image


def palette_with_alpha() -> bytes:
    return encoded(ramp("P"), transparency=3)


REFUSED = {
    "empty": (b"", "empty"),
    "text": (b"not an image", "cannot be read"),
    "16-bit PNG": (encoded(Image.fromarray(np.full((9, 9), 40000, np.uint16))), "more than 8 bits"),
    "16-bit TIFF": (encoded(Image.fromarray(np.full((9, 9), 40000, np.uint16)), "TIFF"), "more than 8 bits"),
    "32-bit TIFF": (encoded(ramp("I"), "TIFF"), "more than 8 bits"),
    "float TIFF": (encoded(ramp("F"), "TIFF"), "more than 8 bits"),
    "partial alpha": (encoded(transparent()), "transparent"),
    "palette with alpha": (palette_with_alpha(), "transparent"),
    "CMYK JPEG": (encoded(ramp("CMYK"), "JPEG"), "CMYK"),
    "cut short": (encoded(ramp(size=(200, 200)))[:-200], "damaged"),
    "animation": (encoded(ramp(), "TIFF", save_all=True, append_images=[ramp()]), "several frames"),
    "over the cap": (encoded(ramp(size=(1001, 1000))), "too large"),
    "bomb": (png_header(30_000, 30_000), "too large"),
    "GIF": (encoded(ramp("P"), "GIF"), "cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_image_is_refused(name: str) -> None:
    data, words = REFUSED[name]
    with pytest.raises(FilmRefused, match=words) as caught:
        image_decoder.decode(data, max_pixels=CAP)
    assert "send" in str(caught.value)


def test_pixel_limit_is_inclusive() -> None:
    assert image_decoder.decode(encoded(ramp(size=(1000, 1000))), max_pixels=CAP).size == (1000, 1000)
