"""The configuration of a client, validated on creation."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pedcxr_client.errors import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits for each phase of a call, in seconds, all above 0.

    Attributes:
        connect: time to open a connection.
        write: time for the server to accept one part of the request body.
        gap: longest pause before the response and between two parts of it.
        total: deadline of the whole call, retries included.

    Raises:
        ConfigurationError: if a value is not above 0.
    """

    connect: float = 5.0
    write: float = 60.0
    gap: float = 120.0
    total: float = 600.0

    def __post_init__(self) -> None:
        for name in ("connect", "write", "gap", "total"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"timeouts.{name}: {getattr(self, name)!r} must be above 0 seconds")


DEFAULT_TIMEOUTS = Timeouts()


@dataclass(frozen=True, slots=True)
class Settings:
    """The server's address, the API key and the limits of a client. No error message contains a key."""

    url: str
    api_key: str | None = field(repr=False)
    model: str | None
    timeouts: Timeouts
    retries: int
    insecure_http: bool

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ConfigurationError(f"retries: {self.retries} must be 0 or more")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ConfigurationError("api_key: is empty or contains characters that an HTTP header cannot carry")
        self._check_url()

    @property
    def is_loopback(self) -> bool:
        """Whether the server runs on this machine."""
        return _is_loopback(urlsplit(self.url).hostname or "")

    def _check_url(self) -> None:
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
