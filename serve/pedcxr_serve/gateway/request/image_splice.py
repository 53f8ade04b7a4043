"""Parsing of a request body without its film. No I/O.

The film is replaced by a placeholder before the body is parsed, and spliced back later as a view of the body. Of three
megabytes, some hundred bytes are parsed as JSON and none are copied. The film is found without parsing: a quote within
a JSON string has a backslash before it, so ``"data:`` either starts a string or stands where the JSON is invalid.
Replacing a run of characters that has no quote leaves every other token in place.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

import msgspec
import pybase64

from pedcxr_serve.gateway.request.image_size import pixel_count

NO_ADDRESS = (
    "send the film as data:image/png;base64,..., data:image/jpeg;base64,... or data:application/dicom;base64,...; "
    "addresses are not fetched"
)
IMAGE_URL = "messages[].content[].image_url.url"

# A JSON string that starts with the header of a base64 data URL (RFC 2397), after blanks and with any parameters.
_START = re.compile(rb'"(?:[ \t]|\\[nrt])*data:[^",]{0,200}base64[ \t]*,', re.IGNORECASE)
_HEADER = re.compile(rb"\s*data:\s*([^,;\s]*)[^,]*?;\s*base64\s*,", re.IGNORECASE)
_LONGEST_HEADER = 300

# The declared type is not relied on: browsers, S3 and PACS use generic ones, and the engine detects the type again.
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", b"image/png"),
    (b"\xff\xd8\xff", b"image/jpeg"),
    (b"GIF8", b"image/gif"),
    (b"BM", b"image/bmp"),
    (b"II*\0", b"image/tiff"),
    (b"MM\0*", b"image/tiff"),
)
_GENERIC = (b"", b"application/octet-stream", b"binary/octet-stream", b"application/dicom")
_SHORT = 8192  # bytes of a body whose values need not be counted
_MAX_VALUES = 8192  # commas and opening brackets; 64 messages of 16 parts have 3,400
_URL_SAFE = bytes.maketrans(b"-_", b"+/")  # RFC 4648 section 5


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
    """The image of a request.

    Attributes:
        url: its data URL in two parts: a header with the detected type, and padded base64 of the standard alphabet. The
            latter is a view of the client's body if the client wrote it in this form.
        sha256: digest of the decoded bytes.
        pixels: their number by the head of the file, 0 if unknown.
    """

    url: tuple[bytes, bytes | memoryview]
    sha256: bytes
    pixels: int


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
    starts = [match.start() + 1 for match in islice(_START.finditer(body), 2)]
    if not starts:
        _require_short(len(body), limit)
        return bytes(body), None
    if len(starts) > 1:
        refuse(
            "must be at most one image per request; start a new conversation for another film",
            "messages",
            "too_many_images",
        )
    start = starts[0]
    end = body.find(b'"', start)
    if end < 0:
        refuse("the body is not JSON: a string is not terminated", None, "invalid_json")
    _require_short(len(body) - (end - start), limit)
    view = memoryview(body)
    url = view[start:end]
    if (
        body.find(b"\\", start, end) >= 0
    ):  # PHP writes \/ for /, Gson \u003d for =, MIME encoders \r\n every 76 characters
        url = _unescaped(url)
    film = _film(url)
    return b"".join((view[:start], placeholder.encode(), view[end:])), film


def _require_short(size: int, limit: int) -> None:
    if size > limit:
        refuse(
            f"the body has {size:,} bytes besides the image; maximum {limit:,}. An image counts as one only as the "
            "base64 data: URL of an image_url part",
            "messages",
            "too_long",
        )


def _unescaped(url: memoryview) -> memoryview:
    try:
        return memoryview(msgspec.json.decode(b"".join((b'"', url, b'"')), type=str).encode("ascii"))
    except (msgspec.DecodeError, UnicodeError):
        refuse("must be an ASCII string in JSON", IMAGE_URL, "invalid_image_url")


def _film(url: memoryview) -> Film:
    header = _HEADER.match(url[:_LONGEST_HEADER])
    if not header:
        refuse(NO_ADDRESS, IMAGE_URL, "invalid_image_url")
    text, data = _decode(url[header.end() :])
    if not data:
        refuse("the image is empty", IMAGE_URL, "invalid_base64")
    declared, detected = header[1].lower(), _media_type(data)
    if detected is None and not declared.startswith(b"image/") and declared not in _GENERIC:
        refuse("is not an image; send a PNG, JPEG or DICOM file", IMAGE_URL, "invalid_image_url")
    media_type = detected or b"application/octet-stream"
    return Film((b"data:" + media_type + b";base64,", text), hashlib.sha256(data).digest(), pixel_count(data))


def _decode(text: memoryview) -> tuple[bytes | memoryview, bytes]:
    """Return standard base64 (RFC 4648 section 4) of the image, and its bytes.

    Line breaks, blanks, percent-encoding, the URL-safe alphabet and missing padding are accepted.
    """
    try:
        return text, pybase64.b64decode(text, validate=True)
    except ValueError:
        pass
    plain = bytes(text)
    plain = unquote_to_bytes(plain) if b"%" in plain else plain
    plain = b"".join(plain.split()).translate(_URL_SAFE).rstrip(b"=")
    plain += b"=" * (-len(plain) % 4)
    try:
        return plain, pybase64.b64decode(plain, validate=True)
    except ValueError:
        refuse("the image is not valid base64; encode the whole file again", IMAGE_URL, "invalid_base64")


def _media_type(data: bytes) -> bytes | None:
    if data[128:132] == b"DICM":
        return b"application/dicom"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return b"image/webp"
    return next((media_type for magic, media_type in _MAGIC if data.startswith(magic)), None)


def parse(text: bytes) -> object:
    """Return the value of strict JSON (UTF-8, no duplicate field, no NaN), or raise `RequestRefused`."""
    _require_few_values(text)
    try:
        return json.loads(text.decode(), object_pairs_hook=_object, parse_constant=_reject_constant)
    except UnicodeDecodeError:
        refuse("the body is not UTF-8", None, "invalid_json")
    except RecursionError:
        refuse("the body is nested too deeply", None, "invalid_json")
    except ValueError as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        refuse(f"the body is not JSON{where}", None, "invalid_json")


def _require_few_values(text: bytes) -> None:
    """Refuse a body of very many values before it is parsed: 300 kB of ``{}`` would take 30 ms."""
    if len(text) <= _SHORT:
        return
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")  # the quotes that are left begin or end a string
    structure = unescaped
    if unescaped.count(b'"') <= 2 * _MAX_VALUES:
        structure = b"".join(unescaped.split(b'"')[::2])
        if sum(map(structure.count, (b",", b"{", b"["))) <= _MAX_VALUES:
            return
    if structure.count(b"{") > structure.count(b"}") or structure.count(b"[") > structure.count(b"]"):
        refuse("the body is not JSON: a bracket is not closed", None, "invalid_json")
    refuse("the body has too many values; shorten the conversation", "messages", "too_long")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        refuse("an object has the same field twice", None, "duplicate_field")
    return fields


def _reject_constant(name: str) -> NoReturn:
    refuse(f"{name} is not JSON", None, "invalid_json")
