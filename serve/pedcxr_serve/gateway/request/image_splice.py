"""Parsing of a request body without its film. No I/O.

The film is replaced by a placeholder before the body is parsed, and spliced back later as a view of the body. Of three
megabytes, some hundred bytes are parsed as JSON and none are copied. The film is found without parsing: a quote within
a JSON string has a backslash before it, so ``"data:image`` either starts a string or stands where the JSON is invalid.
Replacing a run of characters that has no quote leaves every other token in place.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec
import pybase64

NO_ADDRESS = (
    "send the film as data:image/png;base64,..., data:image/jpeg;base64,... or data:application/dicom;base64,...; "
    "addresses are not fetched"
)
IMAGE_URL = "messages[].content[].image_url.url"

_STARTS = (b'"data:image', b'"data:application')
# The type is not relied on: the engine detects it from the bytes. Browsers and PACS label DICOM with the last two.
_HEADER = re.compile(rb"data:(?:image/[a-z0-9.+-]{1,40}|application/dicom|application/octet-stream);base64,")


class RequestRefused(Exception):
    """The request is not served as it is.

    Attributes:
        param: path of the field, or None when the body as a whole is wrong.
        code: a stable identifier for programs.
        status: HTTP status.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


@dataclass(frozen=True, slots=True)
class Film:
    """The image of a request: its data URL, a view of the client's body, and the SHA-256 of the decoded bytes."""

    url: memoryview
    sha256: bytes


def refuse(message: str, param: str | None, code: str, status: int = 400) -> NoReturn:
    """Raise `RequestRefused` with a message that starts with the field's path."""
    raise RequestRefused(f"{param}: {message}" if param else message, param=param, code=code, status=status)


def placeholder() -> str:
    """Return the text that replaces the film while the body is parsed.

    It is new for every request. An error repeats the name of an unknown field, so a client can learn a placeholder. If
    it were fixed, a later text that contains it would be replaced by the film and exceed the limit on texts.
    """
    return "data:image/" + secrets.token_hex(16)


def extract_image(body: bytes | bytearray, placeholder: str, limit: int) -> tuple[bytes, Film | None]:
    """Return the body with ``placeholder`` instead of the film's URL, and the film, or None if there is no film.

    Args:
        placeholder: starts like an image's URL and has neither quote nor backslash.
        limit: maximum number of bytes besides the film.

    Raises:
        RequestRefused: two films, a film that is not valid base64, or a body over ``limit``.
    """
    start = next((at + 1 for mark in _STARTS if (at := body.find(mark)) >= 0), 0)
    if not start:
        _require_short(len(body), limit)
        return bytes(body), None
    end = body.find(b'"', start)
    if end < 0:
        refuse("the body is not JSON: a string is not terminated", None, "invalid_json")
    if any(body.find(mark, 0, start - 1) >= 0 or body.find(mark, end) >= 0 for mark in _STARTS):
        refuse("must be at most one image per request", "messages", "too_many_images")
    _require_short(len(body) - (end - start), limit)
    view = memoryview(body)
    url = view[start:end]
    if body.find(b"\\", start, end) >= 0:  # PHP writes \/ for /, Gson \u003d for =
        url = _unescaped(url)
    film = _film(url)
    return b"".join((view[:start], placeholder.encode(), view[end:])), film


def _require_short(size: int, limit: int) -> None:
    if size > limit:
        refuse(f"the body has {size:,} bytes besides the image; maximum {limit:,}", "messages", "too_long")


def _unescaped(url: memoryview) -> memoryview:
    try:
        return memoryview(msgspec.json.decode(b"".join((b'"', url, b'"')), type=str).encode("ascii"))
    except (msgspec.DecodeError, UnicodeEncodeError):
        refuse("must be an ASCII string in JSON", IMAGE_URL, "invalid_image_url")


def _film(url: memoryview) -> Film:
    header = _HEADER.match(url[:80])
    if not header:
        refuse(NO_ADDRESS, IMAGE_URL, "invalid_image_url")
    if len(url) == header.end():
        refuse("the image is empty", IMAGE_URL, "invalid_base64")
    try:
        data = pybase64.b64decode(url[header.end() :], validate=True)
    except ValueError:
        refuse("the image is not valid base64; send it padded and without line breaks", IMAGE_URL, "invalid_base64")
    return Film(url, hashlib.sha256(data).digest())


def parse(text: bytes) -> object:
    """Return the value of strict JSON (UTF-8, no duplicate field, no NaN), or raise `RequestRefused`."""
    try:
        return json.loads(text.decode(), object_pairs_hook=_object, parse_constant=_reject_constant)
    except UnicodeDecodeError:
        refuse("the body is not UTF-8", None, "invalid_json")
    except RecursionError:
        refuse("the body is nested too deeply", None, "invalid_json")
    except ValueError as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        refuse(f"the body is not JSON{where}", None, "invalid_json")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        refuse("an object has the same field twice", None, "duplicate_field")
    return fields


def _reject_constant(name: str) -> NoReturn:
    refuse(f"{name} is not JSON", None, "invalid_json")
