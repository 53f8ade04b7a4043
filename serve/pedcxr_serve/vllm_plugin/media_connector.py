"""A media connector for vLLM that accepts only ``data:`` URLs of one opaque 8-bit image or one DICOM film.

Written for vLLM 0.32, whose own connector (``multimodal/media/connector.py``) fetches any URL from any domain and
decodes every format of Pillow. ``VLLM_MEDIA_CONNECTOR=pedcxr`` selects this connector, and ``VLLM_MAX_IMAGE_PIXELS``
sets its limit of pixels.
"""

from __future__ import annotations

import asyncio
import binascii
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, NoReturn

import pybase64
from PIL import Image
from vllm import envs
from vllm.exceptions import GracefulHTTPError, VLLMUnprocessableEntityError, VLLMValidationError
from vllm.multimodal.media.base import MediaIO, MediaWithBytes
from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY, MediaConnector, global_thread_pool
from vllm.multimodal.media.image import ImageMediaIO

from pedcxr_serve.vllm_plugin import image_decoder, refusals

_SLOW_THREADS = 2
"""DICOM films and images that need a decoder process have their own threads: 50 million pixels take 250 MiB and 1.5 s
of one core, and PNG and JPEG must not queue behind them."""

_PREFIX = 176  # characters: base64 of the first 132 bytes, which identify DICOM
_slow_threads = ThreadPoolExecutor(_SLOW_THREADS, thread_name_prefix="pedcxr-decode")


@MEDIA_CONNECTOR_REGISTRY.register("pedcxr")
class FilmConnector(MediaConnector):
    """Decodes films. Remote, local and non-image media are refused with status 400, unusable DICOM films with 422."""

    def load_from_url(self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None) -> Any:
        """Decode the film in a ``data:`` URL.

        Raises:
            VLLMValidationError: the URL or the image is refused (see `image_decoder.decode`); HTTP 400.
            VLLMUnprocessableEntityError: a DICOM film is refused; HTTP 422.
            GracefulHTTPError: the extra `dicom` is not installed; HTTP 501.
        """
        if not isinstance(media_io, ImageMediaIO):
            _refuse("only images are accepted; send one film as image_url")
        return _load(url)

    async def load_from_url_async(self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None) -> Any:
        """Run `load_from_url` in a thread, outside the event loop."""
        loop = asyncio.get_running_loop()
        pool = _slow_threads if _is_slow(url) else global_thread_pool
        return await loop.run_in_executor(pool, self.load_from_url, url, media_io)


def _load(url: str) -> MediaWithBytes[Image.Image]:
    data = _payload(url)
    try:
        image = image_decoder.decode(data, max_pixels=envs.VLLM_MAX_IMAGE_PIXELS)
    except refusals.FilmRefused as error:
        _refuse(str(error), error, error.code)
    return MediaWithBytes(image, data, {"loader": "pedcxr"})


def _payload(url: str) -> bytes:
    if url[:5].lower() != "data:":
        # The message does not repeat the URL, because a file name may contain a patient's name.
        _refuse("only data: URLs are accepted, no remote or local URLs; send data:image/png;base64,...")
    spec, comma, text = url[5:].partition(",")
    if not comma or not spec.lower().endswith(";base64"):
        _refuse("the data: URL must be of the form data:image/png;base64,... or data:application/dicom;base64,...")
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        _refuse("the base64 text of the image is invalid; encode the whole file again, without line breaks", error)


def _is_slow(url: str) -> bool:
    start = url.find(",", 0, 80) + 1
    try:
        return image_decoder.is_slow(pybase64.b64decode(url[start : start + _PREFIX]))
    except (binascii.Error, ValueError):
        return False  # `_payload` reports the error


def _refuse(message: str, cause: Exception | None = None, code: str = "film_refused") -> NoReturn:
    status, message = refusals.STATUS[code], refusals.mark(code, message)
    if status == HTTPStatus.BAD_REQUEST:
        raise VLLMValidationError(message) from cause
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        raise VLLMUnprocessableEntityError(message) from cause
    raise GracefulHTTPError(message, HTTPStatus(status)) from cause
