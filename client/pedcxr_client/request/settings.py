"""A client's configuration, checked once, and the rules it implies. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pedcxr_client.errors import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each phase may take, in seconds, all above 0.

    Attributes:
        connect: to reach the server.
        write: for a piece of the request to be taken.
        gap: the longest silence while waiting for the answer or between two pieces of it.
        total: the deadline of the whole call, retries included. The sync client checks it whenever something
            arrives and may overrun it by one ``gap`` at most; the async client keeps it exactly.
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
    """Where and how a client sends.

    Raises:
        ConfigurationError: if a value cannot be used; the message names it, and never shows a key.
    """

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
            raise ConfigurationError("api_key: is empty or holds characters that no HTTP header can carry")
        self._check_url()

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
        return _is_loopback(urlsplit(self.url).hostname or "")

    def _check_url(self) -> None:
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigurationError(f"url: not an address; write one such as {DEFAULT_URL}") from error
        if parts.username is not None or parts.password is not None:
            raise ConfigurationError("url: leave user and password out of it; give the key as api_key")
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigurationError(f"url: {self.url!r} is not an address; write one such as {DEFAULT_URL}")
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
