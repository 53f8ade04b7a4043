"""The configuration of a client, validated on creation."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from pedcxr_client.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl

    import httpx2
    from opentelemetry.trace import Tracer

    Certificates: TypeAlias = ssl.SSLContext | str | os.PathLike[str]
    HttpClient: TypeAlias = httpx2.AsyncClient
    SpanTracer: TypeAlias = Tracer
else:  # for typing.get_type_hints, without an import of ssl, httpx2 and opentelemetry
    Certificates = str | os.PathLike[str] | Any
    HttpClient = Any
    SpanTracer = Any

DEFAULT_URL = "http://127.0.0.1:8000/v1"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_OWN_HEADERS = {"authorization", "content-type", "content-length", "accept", "host", "x-request-id"}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits for each phase of a call, in seconds, all above 0.

    Attributes:
        connect: time to open a connection.
        write: time for the server to accept one part of the request body.
        gap: longest pause before the response and between two parts of it. The default exceeds the time that a request
            may wait in the gateway's queue (``gateway.max_wait_s``, 120), which is a part of the first pause.
        total: deadline of the whole call, retries included.

    Raises:
        ConfigurationError: if a value is not above 0.
    """

    connect: float = 5.0
    write: float = 60.0
    gap: float = 180.0
    total: float = 600.0

    def __post_init__(self) -> None:
        for name in ("connect", "write", "gap", "total"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value > 0:
                raise ConfigurationError(f"timeouts.{name}: {value!r} must be a number of seconds above 0")


DEFAULT_TIMEOUTS = Timeouts()


@dataclass(frozen=True, slots=True)
class Settings:
    """The server's address, the API key and the limits of a client. No error message contains a key or a header."""

    url: str
    api_key: str | None = field(repr=False)
    model: str | None
    timeouts: Timeouts
    retries: int
    insecure_http: bool
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    verify: Certificates | None = field(default=None, repr=False)
    http_client: HttpClient | None = field(default=None, repr=False)
    tracer: SpanTracer | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_timeouts(self.timeouts)
        if not isinstance(self.retries, int) or self.retries < 0:
            raise ConfigurationError(f"retries: {self.retries!r} must be an integer, 0 or more")
        if self.api_key is not None:
            check_api_key(self.api_key)
        if self.model is not None and not isinstance(self.model, str):
            raise ConfigurationError("model: must be the name of a model")
        if self.verify is not None and self.http_client is not None:
            raise ConfigurationError("verify: has no effect with http_client; pass it to that client")
        self._check_headers()
        self._check_url()

    def _check_headers(self) -> None:
        if not isinstance(self.headers, Mapping):
            raise ConfigurationError("headers: must be a mapping of names to values")
        for name, value in self.headers.items():
            if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name) or not _is_header_value(value):
                raise ConfigurationError("headers: contains a name or a value that an HTTP header cannot carry")
            if name.lower() in _OWN_HEADERS:
                raise ConfigurationError(f"headers: {name} is set by the client; remove it (for a key, use api_key)")

    @property
    def is_loopback(self) -> bool:
        """Whether the server runs on this machine."""
        return _is_loopback(urlsplit(self.url).hostname or "")

    def _check_url(self) -> None:
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"url: is not an address; write it as {DEFAULT_URL}") from error
        if parts.username is not None or parts.password is not None:
            raise ConfigurationError("url: must not contain a user or a password; pass the key as api_key")
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigurationError(f"url: {self.url!r} is not an address; write it as {DEFAULT_URL}")
        if parts.scheme == "http" and not self.insecure_http and not _is_loopback(host):
            raise ConfigurationError(
                f"url: {self.url} would send films and keys unencrypted; "
                "use https, or allow it with insecure_http=True (--insecure-http)"
            )


def check_api_key(key: object, where: str = "api_key") -> None:
    """Raise ConfigurationError, which names ``where``, unless an HTTP header can carry the key."""
    if not (_is_header_value(key) and key):
        raise ConfigurationError(f"{where}: the key is empty or contains characters that an HTTP header cannot carry")


def check_timeouts(timeouts: object) -> None:
    """Raise ConfigurationError unless this is a `Timeouts`, such as for a plain number."""
    if not isinstance(timeouts, Timeouts):
        raise ConfigurationError("timeouts: must be a Timeouts, such as Timeouts(total=30)")


def _is_header_value(text: object) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
