"""Where the engine listens, and the HTTP session that reaches it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from pedcxr_serve.config import load
from pedcxr_serve.errors import ConfigError

EngineAddress = Path | URL
"""The path of a Unix socket, or ``http://HOST:PORT`` or ``https://HOST:PORT``."""

_CONNECT_TIMEOUT_S = 5.0


def parse(text: str) -> EngineAddress:
    """Return the address that ``unix:/PATH``, ``http://HOST:PORT`` or ``https://HOST:PORT`` names.

    Raises:
        ConfigError: the text has another form.
    """
    if text.startswith("unix:"):
        path = "/" + text.removeprefix("unix:").lstrip("/")
        if path != "/" and text.startswith("unix:/"):
            return Path(path)
    try:
        parts = urlsplit(text)
        is_host = parts.hostname and load.is_host(parts.hostname)
        valid = parts.scheme in ("http", "https") and is_host and parts.path in ("", "/")
        if valid and not (parts.query or parts.fragment or parts.username) and (parts.port is None or parts.port > 0):
            return URL(f"{parts.scheme}://{parts.netloc}")
    except ValueError:
        pass
    raise ConfigError(f"gateway.engine = {text!r}: must be unix:/PATH, http://HOST:PORT or https://HOST:PORT.")


def listener(text: str) -> URL:
    """Return the address that ``HOST:PORT`` names, for an engine that listens there.

    Raises:
        ConfigError: the text has another form, or the port is absent.
    """
    try:
        parts = urlsplit(f"//{text}")
        is_host = parts.hostname and load.is_host(parts.hostname)
        if is_host and parts.port and parts.netloc == text and not parts.username:
            return URL(f"http://{text}")
    except ValueError:
        pass
    raise ConfigError(f"engine.listen = {text!r}: must be HOST:PORT, such as 10.0.0.5:8100 or [fd00::5]:8100.")


def describe(address: EngineAddress) -> str:
    """Return the address as `parse` reads it."""
    return f"unix:{address}" if isinstance(address, Path) else str(address).rstrip("/")


def is_private(path: Path) -> bool:
    """Return whether only this user and root can connect to a Unix socket, because of the mode of its folder."""
    try:
        status = path.parent.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) & 0o077 == 0


def connector(address: EngineAddress) -> aiohttp.BaseConnector:
    """Return a connector that opens one connection per request.

    A reused connection could meet the engine closing it, which loses a report to save 0.1 ms. Several API servers on
    one socket share new connections evenly (vLLM 0.32, ``launchers/launcher.py``).
    """
    if isinstance(address, Path):
        return aiohttp.UnixConnector(str(address), limit=0, force_close=True)
    return aiohttp.TCPConnector(limit=0, force_close=True)


def session(address: EngineAddress, key: str = "") -> aiohttp.ClientSession:
    """Return a session to the engine, to be created in and closed by the event loop that uses it.

    Args:
        key: sent as ``Authorization: Bearer KEY``; empty = no such header.
    """
    return aiohttp.ClientSession(
        URL("http://engine") if isinstance(address, Path) else address,
        connector=connector(address),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        headers={"Authorization": f"Bearer {key}"} if key else None,
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
    )
