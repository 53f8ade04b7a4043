"""Decode one film to 8-bit RGB pixels: DICOM by `dicom_decoder`, other images by `plain_image`.

PNG and JPEG, which nearly all films are, are decoded in this process. The decoders of the other formats have a worse
history; they run in a process without network and files, like those of compressed DICOM (`decoder_process`).
"""

from __future__ import annotations

from PIL import Image

from pedcxr_serve.vllm_plugin import decoder_process, dicom_decoder, plain_image
from pedcxr_serve.vllm_plugin.refusals import FilmRefused

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
"""The accepted formats of Pillow's 37; a short list keeps the attack surface small."""

_DECODED_HERE = (b"\x89PNG", b"\xff\xd8")


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode one film.

    Args:
        data: an encoded image of one frame, or a DICOM film (see `dicom_decoder.decode`). Of a phone's JPEG with
            several pictures (MPO), the first is decoded.
        max_pixels: limit on width x height, applied to the header before any pixel is decoded.

    Returns:
        An image of mode RGB, with the EXIF orientation applied.

    Raises:
        FilmRefused: unless the data is an opaque 8-bit image of one frame within the limit, or a DICOM film of a chest.
    """
    if not data:
        raise FilmRefused("the image is empty (0 bytes); send the film as a base64 data URL")
    if dicom_decoder.is_dicom(data):
        return dicom_decoder.decode(data, max_pixels=max_pixels)
    if data.startswith(_DECODED_HERE):
        return plain_image.decode(data, max_pixels=max_pixels, formats=("PNG", "JPEG"))
    return decoder_process.shared_pool.decode_image(data, max_pixels)


def is_slow(start: bytes) -> bool:
    """Return whether a film is DICOM or decoded in another process, by its first 132 bytes."""
    return not start.startswith(_DECODED_HERE)
