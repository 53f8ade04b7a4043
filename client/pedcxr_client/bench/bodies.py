"""Request bodies, built by the client's own code before the clock starts, and made unique at no cost when sent."""

from __future__ import annotations

import base64
import io
import itertools
import math
import os
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from pedcxr_client.batch import folder, manifest
from pedcxr_client.bench.workload import Films, Tenant, Workload
from pedcxr_client.errors import ConfigurationError, InputError
from pedcxr_client.films.film import FilmSource
from pedcxr_client.films.geometry import DISPLAY, Preparation
from pedcxr_client.request import payload
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.types import ServedModel

PNG_HEAD = 33
"""Bytes of the signature and the header chunk of a PNG file."""
_JPEG_HEAD = 3  # bytes of the start marker and the first byte of the next marker
_FIRST_SEED = 8_000_000  # the demo model was trained on phantoms of lower seeds
_PNG_TEXT, _JPEG_TEXT = 31, 30  # characters of a comment; with them, the inserted bytes are a multiple of 3


@dataclass(frozen=True, slots=True, repr=False)
class Case:
    """A film with its prompt: the body in two parts, between which a comment of the image file fits.

    Attributes:
        front, rest: the body is ``front + rest``. Base64 encodes 3 bytes at a time, so a comment of a multiple of
            3 bytes after a multiple of 3 bytes changes no other character.
        headers: of the request, without a key.
        system: the system text of the prompt, for the check for an echo.
    """

    id: str
    front: bytes
    rest: bytes
    is_png: bool
    headers: dict[str, str]
    system: str | None

    @property
    def body(self) -> bytes:
        """The body as `Client.payload` returns it."""
        return self.front + self.rest

    def unique_body(self, number: int) -> bytes:
        """Return the body with a comment in its image file. The pixels are the same, the bytes occur once."""
        comment = png_comment(number) if self.is_png else _jpeg_comment(number)
        return b"".join((self.front, base64.b64encode(comment), self.rest))

    def __repr__(self) -> str:
        return f"<Case {self.id}>"


def png_comment(number: int) -> bytes:
    """Return a text chunk that no other number has, for the place after the first `PNG_HEAD` bytes of a PNG file."""
    chunk = b"tEXtComment\0%0*d" % (_PNG_TEXT, number)
    return (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)


def _jpeg_comment(number: int) -> bytes:
    """Return what follows FF D8 FF: the rest of a comment marker, and the first byte of the next marker."""
    text = b"%0*d" % (_JPEG_TEXT, number)
    return b"\xfe" + (len(text) + 4).to_bytes(2) + text + b"00\xff"


def build(workload: Workload, model: ServedModel, progress: Callable[[Iterable[int]], Iterable[int]]) -> list[Case]:
    """Return the cases of a workload.

    Args:
        progress: wraps the numbers of the films, such as by a progress bar.

    Raises:
        InputError: a film cannot be read or is blocked, or the source has no film.
        ConfigurationError: phantoms need numpy, which is not installed.
    """
    requests = list(_requests(workload))
    if not requests:
        raise InputError(f"{workload.films.path}: contains no film; give a folder with DICOM, PNG or JPEG files")
    return [case(requests[number], model) for number in progress(range(len(requests)))]


def case(request: FilmRequest, model: ServedModel) -> Case:
    """Return the case of one film. Raise InputError, which names the key of the request."""
    try:
        prepared = payload.prepare(request, model.image_size)
    except InputError as error:
        raise InputError(f"{request.key}: {str(error).removeprefix('the film: ')}") from error
    image, prompt = prepared.image, prepared.prompt
    body = payload.body(model.name, prompt, image, request.max_tokens)
    is_png = image.mime == "image/png"
    at = body.index(image.base64[:200]) + (PNG_HEAD if is_png else _JPEG_HEAD) // 3 * 4
    headers = payload.headers(prompt, prepared.checks)
    return Case(str(request.key), body[:at], body[at:], is_png, headers, prompt.profile.system)


def _requests(workload: Workload) -> Iterator[FilmRequest]:
    films, draw = workload.films, random.Random(workload.films.seed)
    weights = [patient.weight for patient in workload.patients]
    preparation = Preparation(resize="model") if films.resize else DISPLAY

    def request(name: str, film: FilmSource) -> FilmRequest:
        (patient,) = draw.choices(workload.patients, weights)
        return FilmRequest(
            film,
            default_age=patient.age or None,
            default_sex=patient.sex or None,
            max_tokens=workload.reports.max_tokens,
            preparation=preparation,
            key=name,
        )

    if films.source == "phantoms":
        for number in range(films.count):
            yield request(f"phantom {number}", _phantom(films, number, draw))
        return
    path = str(workload.path(films.path))
    entries = folder.walk(path) if films.source == "folder" else manifest.read(path)
    films_of_source = (entry for entry in entries if isinstance(entry, manifest.Entry))
    for entry in itertools.islice(films_of_source, films.count or None):
        yield replace(
            request(entry.id, entry.path),
            age=entry.age, sex=entry.sex, assume_chest=entry.assume_chest, allow=entry.allow,
        )  # fmt: skip


def _phantom(films: Films, number: int, draw: random.Random) -> bytes:
    try:
        from pedcxr_serve.demo import drawing, findings
    except ImportError as error:
        raise ConfigurationError('phantoms require numpy: pip install "pedcxr[bench]"') from error
    seed = _FIRST_SEED + 1000 * films.seed + number
    is_large, is_jpeg = draw.random() < films.large_share, draw.random() < films.jpeg
    size = (films.large_height, films.large_width) if is_large else (films.height, films.width)
    pixels = drawing.render(findings.sample(seed), seed, size=size if all(size) else drawing.SIZE)
    if not is_jpeg:
        return drawing.encode_png(pixels)
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@dataclass(frozen=True, slots=True, repr=False)
class Draw:
    """The next request: a tenant, a case, and the body."""

    tenant: Tenant
    case: Case
    body: bytes


def divide(number: int, tenants: tuple[Tenant, ...]) -> list[Tenant]:
    """Return the tenant of each of this many lanes: by weight, at least one lane for each tenant, if there are enough.

    This is Adams's method: the next lane goes to the tenant with the largest weight per lane.
    """
    lanes: Counter[str] = Counter()
    for _ in range(number):
        most = max(tenants, key=lambda one: one.weight / lanes[one.name] if lanes[one.name] else math.inf)
        lanes[most.name] += 1
    return [tenant for tenant in tenants for _ in range(lanes[tenant.name])]


class Supply:
    """Requests in a seeded order: without end, or until each film was sent once."""

    def __init__(self, workload: Workload, cases: list[Case], tenants: tuple[Tenant, ...]) -> None:
        self._films, self._cases, self._tenants = workload.films, cases, tenants
        self._weights = [tenant.weight for tenant in tenants]
        self._draw = random.Random(workload.films.seed)
        self._numbers = itertools.count(int.from_bytes(os.urandom(8)))  # no other run has sent these
        self._sent: list[tuple[Case, bytes]] = []  # for reuse
        self._count = 0

    @property
    def limit(self) -> int | None:
        """The number of requests that can be sent, or None without a limit."""
        return len(self._cases) if self._films.unique == "film" else None

    def lanes(self, number: int) -> list[Tenant | None]:
        """Return the tenant of each lane of a closed loop, so that a slow tenant does not get the places of the others.

        With fewer lanes than tenants, each request draws its tenant: None.
        """
        return [*divide(number, self._tenants)] if number >= len(self._tenants) else [None] * number

    def alone(self, number: int) -> list[Draw]:
        """Return requests for the first films, at least one of each tenant. They do not count as sent."""
        count = max(min(number, len(self._cases)), len(self._tenants))
        cases = [self._cases[at % len(self._cases)] for at in range(count)]
        return [
            Draw(self._tenants[at % len(self._tenants)], case, case.unique_body(next(self._numbers)))
            for at, case in enumerate(cases)
        ]

    def next(self, tenant: Tenant | None = None) -> Draw | None:
        """Return the next request, of this tenant or of one drawn by weight; None if every film was sent."""
        if self.limit is not None and self._count >= self.limit:
            return None
        sender = tenant or self._draw.choices(self._tenants, self._weights)[0]
        if self._films.reuse and self._sent and self._draw.random() < self._films.reuse:
            case, body = self._draw.choice(self._sent)
            return Draw(sender, case, body)
        case = self._cases[self._count % len(self._cases)]
        self._count += 1
        body = case.body if self._films.unique == "film" else case.unique_body(next(self._numbers))
        if self._films.reuse and len(self._sent) < len(self._cases):
            self._sent.append((case, body))
        return Draw(sender, case, body)
