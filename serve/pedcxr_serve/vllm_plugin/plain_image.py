"""Decode an image that is not DICOM to 8-bit RGB pixels, and refuse one that would silently lose grey levels.

vLLM 0.32 (``multimodal/image.py``) converts every image to RGB with ``Image.convert``. This clips 16-bit grey at 255,
so that the film turns white, and composites transparent pixels on white, without an error in either case.
"""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from pedcxr_serve.vllm_plugin.refusals import FilmRefused

_PHONE_JPEG = "MPO"  # a JPEG followed by previews or gain maps; its first picture is the film, as in the client
_MORE_THAN_8_BITS = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_RESEND = "apply a window to 8-bit grey and send PNG or JPEG"


def decode(data: bytes, *, max_pixels: int, formats: tuple[str, ...]) -> Image.Image:
    """Decode an image in one of Pillow's ``formats``; see `image_decoder.decode`.

    Raises:
        FilmRefused: unless the data is an opaque 8-bit image of one frame within the limit.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise FilmRefused(_too_large("", max_pixels)) from error
    except Exception as error:
        raise FilmRefused("the image cannot be read; send PNG or JPEG, 8-bit grey or RGB") from error
    with image:
        _require_usable(image, max_pixels)
        try:
            image.load()
            return _opaque_rgb(ImageOps.exif_transpose(image))
        except FilmRefused:
            raise
        except Exception as error:
            raise FilmRefused("the image is damaged or truncated; encode it again and send the whole file") from error


def _require_usable(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise FilmRefused(_too_large(f"{width} x {height} ", max_pixels))
    if getattr(image, "n_frames", 1) != 1 and image.format != _PHONE_JPEG:
        raise FilmRefused("the image has several frames; send one frame")
    if image.mode in _MORE_THAN_8_BITS:
        raise FilmRefused(
            f"the image has more than 8 bits per pixel (mode {image.mode}) and would turn white; {_RESEND}"
        )
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise FilmRefused(f"the image has colour mode {image.mode}; send 8-bit grey or RGB")


def _opaque_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        low, _ = image.getchannel("A").getextrema()
        if low != 255:
            raise FilmRefused("the image is partly transparent and would be filled with white; send it opaque")
    return image.convert("RGB")


def _too_large(size: str, max_pixels: int) -> str:
    return f"the image is too large ({size}pixels, and at most {max_pixels:,} are allowed); send a smaller image"
