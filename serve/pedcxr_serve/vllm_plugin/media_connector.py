"""vLLM's media connector for films: ``data:`` URLs of one opaque 8-bit image or one DICOM film, and nothing else.

Written for vLLM 0.32 (``multimodal/media/connector.py``), which fetches any URL from any domain and decodes any of
Pillow's formats. Chosen by ``VLLM_MEDIA_CONNECTOR=pedcxr``; the pixel cap is ``VLLM_MAX_IMAGE_PIXELS``.
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

from pedcxr_serve.vllm_plugin import dicom_decoder, image_decoder, refusals

_DICOM_AT_ONCE = 2
"""A film of 50 million pixels takes 250 MiB and 1.5 s of a core to develop; plain ones shall not queue behind it."""

_PEEK = 176  # base64 of the 132 bytes that tell DICOM
_developers = ThreadPoolExecutor(_DICOM_AT_ONCE, thread_name_prefix="pedcxr-dicom")


@MEDIA_CONNECTOR_REGISTRY.register("pedcxr")
class FilmConnector(MediaConnector):
    """Decodes films itself; remote, file and non-image media are refused with a 400, DICOM films with a 422."""

    def load_from_url(self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None) -> Any:
        """Decode the film in a ``data:`` URL.

        Raises:
            VLLMValidationError: if it is not such a URL or the image is refused (`film.decode`); HTTP 400.
            VLLMUnprocessableEntityError: if a DICOM film is; HTTP 422.
            GracefulHTTPError: if the extra `dicom` is not installed; HTTP 501.
        """
        if not isinstance(media_io, ImageMediaIO):
            _refuse("only images are served here; send one film as image_url")
        return _load(url)

    async def load_from_url_async(self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None) -> Any:
        """`load_from_url` off the event loop."""
        loop = asyncio.get_running_loop()
        pool = _developers if _is_dicom(url) else global_thread_pool
        return await loop.run_in_executor(pool, self.load_from_url, url, media_io)


def _load(url: str) -> MediaWithBytes[Image.Image]:
    data = _payload(url)
    try:
        image = image_decoder.decode(data, max_pixels=envs.VLLM_MAX_IMAGE_PIXELS)
    except image_decoder.FilmRefused as error:
        _refuse(str(error), error, error.code)
    return MediaWithBytes(image, data, {"loader": "pedcxr"})


def _payload(url: str) -> bytes:
    if url[:5].lower() != "data:":
        # The URL itself is not repeated: a file name may name a patient.
        _refuse("only data: URLs are read here, no remote or local ones; send data:image/png;base64,...")
    spec, comma, text = url[5:].partition(",")
    if not comma or not spec.lower().endswith(";base64"):
        _refuse("the data: URL must be of the form data:image/png;base64,... or data:application/dicom;base64,...")
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        _refuse("the base64 text of the image is not valid; encode the whole file again, without line breaks", error)


def _is_dicom(url: str) -> bool:
    start = url.find(",", 0, 80) + 1
    try:
        return dicom_decoder.is_dicom(pybase64.b64decode(url[start : start + _PEEK]))
    except (binascii.Error, ValueError):
        return False  # `_payload` says why


def _refuse(message: str, cause: Exception | None = None, code: str = "film_refused") -> NoReturn:
    status, message = refusals.STATUS[code], refusals.mark(code, message)
    if status == HTTPStatus.BAD_REQUEST:
        raise VLLMValidationError(message) from cause
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        raise VLLMUnprocessableEntityError(message) from cause
    raise GracefulHTTPError(message, HTTPStatus(status)) from cause
