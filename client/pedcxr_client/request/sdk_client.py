"""The openai SDK's clients, with our settings: no retries, no redirects, no settings of OpenAI's own service."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import httpx2
import openai

from pedcxr_client.errors import ConfigurationError

if TYPE_CHECKING:
    from pedcxr_client.request.settings import Settings

T = TypeVar("T")

_NO_KEY = "none"  # the SDK requires a key; a server without tenants ignores it


def blocking(settings: Settings) -> openai.OpenAI:
    """Return a synchronous client of the openai SDK with the same settings."""
    if settings.http_client is not None:
        raise ConfigurationError("openai: not available with http_client; create an openai.OpenAI of your own")
    return _create(
        settings,
        lambda options: openai.OpenAI(**_sdk_options(settings), http_client=openai.DefaultHttpxClient(**options)),
    )


def asynchronous(settings: Settings) -> openai.AsyncOpenAI:
    """Return an asynchronous client of the openai SDK with these settings. Raise ConfigurationError."""
    return _create(
        settings,
        lambda options: openai.AsyncOpenAI(
            **_sdk_options(settings), http_client=settings.http_client or openai.DefaultAsyncHttpxClient(**options)
        ),
    )


def _create(settings: Settings, create: Callable[[dict[str, Any]], T]) -> T:
    """Create a client of the SDK, with typed errors for what httpx refuses in the settings and the environment."""
    options = {} if settings.http_client is not None else _http_options(settings)
    try:
        httpx2.URL(settings.url)
    except httpx2.InvalidURL as error:
        raise ConfigurationError("url: contains characters or a host name that an address cannot have") from error
    try:
        return create(options)
    except (TypeError, AttributeError) as error:
        raise ConfigurationError(
            "http_client: must be an httpx2.AsyncClient, such as openai.DefaultAsyncHttpxClient(); Client needs one too"
        ) from error
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise ConfigurationError(
            "proxy: HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names a proxy that cannot be used; use an http:// proxy, "
            "install httpx2[socks] for a socks5:// one, or unset the variable"
        ) from error


class _SdkOptions(TypedDict):
    base_url: str
    api_key: str
    max_retries: int
    default_headers: dict[str, str]


def _sdk_options(settings: Settings) -> _SdkOptions:
    # Without these, the SDK would send OPENAI_ORG_ID and other settings of OpenAI's own service to this server.
    omit = cast("str", openai.Omit())
    return {
        "base_url": settings.url,
        "api_key": settings.api_key or _NO_KEY,
        "max_retries": 0,
        "default_headers": {
            **settings.headers,
            "Authorization": f"Bearer {settings.api_key or _NO_KEY}",
            "OpenAI-Organization": omit,
            "OpenAI-Project": omit,
        },
    }


def _http_options(settings: Settings) -> dict[str, Any]:
    return {
        "follow_redirects": False,  # films go to the configured address only
        "trust_env": not settings.is_loopback,  # no proxy for a server on this machine
        "verify": _trusted_certificates(settings),
        # The caller's concurrency limits the connections. The SDK's default keeps 100 and reopens the rest per film.
        "limits": httpx2.Limits(max_connections=None, max_keepalive_connections=None),
    }


def _trusted_certificates(settings: Settings) -> ssl.SSLContext | bool:
    # By default SSL_CERT_FILE or SSL_CERT_DIR, also on loopback, or else the certificates of the system.
    if isinstance(settings.verify, ssl.SSLContext):
        return settings.verify
    name, file, folder = "verify", settings.verify, None
    if file is not None and not isinstance(file, (str, os.PathLike)):
        raise ConfigurationError("verify: must be the path of a PEM file, or an ssl.SSLContext")
    if file is None:
        name, file, folder = "SSL_CERT_FILE", os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
        if settings.url.startswith("http://"):
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used; loading the system's certificates takes 30 ms
        if not file and not folder:
            return True
    try:
        return ssl.create_default_context(cafile=file or None, capath=folder or None)
    except (OSError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{name}: must be a readable PEM file of trusted certificates") from error
