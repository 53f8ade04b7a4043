"""From the bytes of a body to JSON, with the film left out. Pure.

The film is cut out before anything is parsed, and spliced back later as a view of the body: of three megabytes, some
hundred bytes are read as JSON and none are copied. The cut is safe without parsing. In JSON, a quote within a text has
a backslash before it, so ``"data:image`` either begins a text or stands where no JSON can; and putting one run of
characters without a quote for another leaves every other token where it was.
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

__all__ = ["IMAGE_URL", "NO_ADDRESS", "Film", "Refused", "cut", "parse", "refuse", "stand_in"]

NO_ADDRESS = (
    "send the film as data:image/png;base64,..., data:image/jpeg;base64,... or data:application/dicom;base64,...; "
    "addresses are not fetched"
)
IMAGE_URL = "messages[].content[].image_url.url"

_MARKS = (b'"data:image', b'"data:application')
# What a film is, its bytes say; browsers and PACS call DICOM by either of the latter two.
_HEADER = re.compile(rb"data:(?:image/[a-z0-9.+-]{1,40}|application/dicom|application/octet-stream);base64,")


class Refused(Exception):
    """The request is not served as it is.

    Attributes:
        param: the field, or None when the body as a whole is wrong.
        code: a stable word for programs.
        status: of HTTP.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


@dataclass(frozen=True, slots=True)
class Film:
    """The one image of a request.

    Attributes:
        url: as it goes to the engine, a view of the client's body.
        sha256: of the image's bytes, however they were written in base64.
    """

    url: memoryview
    sha256: bytes


def refuse(message: str, param: str | None, code: str, status: int = 400) -> NoReturn:
    """Raise `Refused`, its message led by the field."""
    raise Refused(f"{param}: {message}" if param else message, param=param, code=code, status=status)


def stand_in() -> str:
    """What takes the film's place while the rest is parsed.

    New for every request: a film sent as the name of a field comes back in the error, and a later text that spells a
    stand-in it has seen would be swapped for its film, past the cap on texts.
    """
    return "data:image/" + secrets.token_hex(16)


def cut(body: bytes | bytearray, stand_in: str, limit: int) -> tuple[bytes, Film | None]:
    """The body with ``stand_in`` for the film's URL, and the film; None where there is none.

    Args:
        stand_in: begins like an image's URL and holds neither quote nor backslash.
        limit: bytes beside the film, at most.

    Raises:
        Refused: two films, or one that is not whole base64.
    """
    start = next((at + 1 for mark in _MARKS if (at := body.find(mark)) >= 0), 0)
    if not start:
        _require_short(len(body), limit)
        return bytes(body), None
    end = body.find(b'"', start)
    if end < 0:
        refuse("the body is not JSON: a text has no end", None, "invalid_json")
    if any(body.find(mark, 0, start - 1) >= 0 or body.find(mark, end) >= 0 for mark in _MARKS):
        refuse("at most one image a request", "messages", "too_many_images")
    _require_short(len(body) - (end - start), limit)
    view = memoryview(body)
    url = view[start:end]
    if body.find(b"\\", start, end) >= 0:  # PHP writes \/ for /, Gson \u003d for =
        url = _unescaped(url)
    film = _film(url)
    return b"".join((view[:start], stand_in.encode(), view[end:])), film


def _require_short(size: int, limit: int) -> None:
    if size > limit:
        refuse(f"{size:,} bytes beside the image; allowed are {limit:,}", "messages", "too_long")


def _unescaped(url: memoryview) -> memoryview:
    try:
        return memoryview(msgspec.json.decode(b"".join((b'"', url, b'"')), type=str).encode("ascii"))
    except (msgspec.DecodeError, UnicodeEncodeError):
        refuse("the image's url is not ASCII in JSON", IMAGE_URL, "invalid_image_url")


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


def parse(frame: bytes) -> object:
    """Strict JSON: UTF-8, no field twice, no NaN.

    Raises:
        Refused: it is none.
    """
    try:
        return json.loads(frame.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        refuse("the body is not UTF-8", None, "invalid_json")
    except RecursionError:
        refuse("the body is nested too deeply", None, "invalid_json")
    except ValueError as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        refuse(f"the body is not JSON{where}", None, "invalid_json")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        refuse("a field is given twice in one object", None, "duplicate_field")
    return found


def _no_constant(name: str) -> NoReturn:
    refuse(f"{name} is no JSON", None, "invalid_json")
