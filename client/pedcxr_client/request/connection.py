"""The HTTP connection to one server: the connection pool, the served model, retries and deadlines."""

from __future__ import annotations

import asyncio
import os
import ssl
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import httpx2
import openai

from pedcxr_client.errors import ConfigurationError, TimedOut
from pedcxr_client.request import sdk_errors
from pedcxr_client.request.served_model import ServedModel, choose

if TYPE_CHECKING:
    from pedcxr_client.metrics.hooks import Hook
    from pedcxr_client.request.call import ReportCall
    from pedcxr_client.request.retry import RetryState
    from pedcxr_client.request.settings import Settings

T = TypeVar("T")

_NO_KEY = "none"  # the SDK requires a key; a server without tenants ignores it
_END = object()


class Connection:
    """The connection of one client. Its coroutines run on one event loop.

    Attributes:
        settings: where the server is, and the limits of a call.
        hook: observes each call.
        sdk: the client of the openai SDK.
    """

    def __init__(self, settings: Settings, hook: Hook) -> None:
        self.settings, self.hook = settings, hook
        self.sdk = openai.AsyncOpenAI(
            **_sdk_options(settings), http_client=openai.DefaultAsyncHttpxClient(**_http_options(settings))
        )
        self._model: ServedModel | None = None
        self._streams: weakref.WeakSet[openai.AsyncStream[object]] = weakref.WeakSet()

    async def close(self) -> None:
        """Cancel the responses that were not read to their end, and close all connections."""
        for events in list(self._streams):
            await events.close()
        await self.sdk.close()

    def forget_model(self) -> None:
        """Ask the server for its model again when the next call needs it."""
        self._model = None

    async def described_model(self, retries: RetryState) -> ServedModel:
        """Return the model as the server describes it, requested once.

        Raises:
            RequestError: if the server could not be reached, rejected the request or failed.
            ConfigurationError: if the client names no model and the server does not offer exactly one.
        """
        if self._model is None:
            listing = await self._with_retries(
                retries, lambda: self.sdk.get("/models", cast_to=object, options={"timeout": retries.timeout()})
            )
            self._model = choose(listing, self.settings.url, self.settings.model)
        return self._model

    async def model(self, retries: RetryState) -> ServedModel:
        """Return the model for a request: the configured name alone is enough.

        Raises:
            RequestError, ConfigurationError: as :meth:`described_model` does.
        """
        if self._model is None and self.settings.model is not None:
            return ServedModel(self.settings.model)
        return await self.described_model(retries)

    async def image_size(self, call: ReportCall) -> tuple[int, int] | None:
        """Return the width and height of the model's input in pixels if the call needs them and the server knows."""
        return (await self.described_model(call.retries)).image_size if call.needs_image_size else None

    async def post(self, call: ReportCall) -> openai.AsyncStream[object]:
        """Send the film, with retries, until a response starts, and return its events."""
        model = await self.model(call.retries)
        events = await self._with_retries(
            call.retries,
            lambda: self.sdk.post(
                "/chat/completions",
                content=call.body(model),
                cast_to=object,
                options={"timeout": call.retries.timeout(), "headers": call.headers},
                stream=True,
                stream_cls=openai.AsyncStream[object],
            ),
        )
        self._streams.add(events)
        return events

    async def next_event(self, events: openai.AsyncStream[object], retries: RetryState) -> object | None:
        """Return the next event, or None after the last one.

        Raises:
            TimedOut: if the deadline passes first.
        """
        event = await _before_deadline(retries, lambda: anext(events, _END))
        return None if event is _END else event

    async def _with_retries(self, retries: RetryState, send: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await _before_deadline(retries, send)
            except (openai.OpenAIError, ValueError) as error:
                failure = sdk_errors.before_response(error, self.settings.url)
                if isinstance(failure, TimedOut) and retries.left <= 0:
                    failure = retries.expired()
                wait = retries.wait_after(failure)
                if wait is None:
                    raise failure from error
            await asyncio.sleep(wait)


async def _before_deadline(retries: RetryState, start: Callable[[], Awaitable[T]]) -> T:
    try:
        async with asyncio.timeout(retries.remaining()):
            return await start()
    except TimeoutError as error:
        raise retries.expired() from error


def blocking_sdk(settings: Settings) -> openai.OpenAI:
    """Return a synchronous client of the openai SDK with the same settings."""
    return openai.OpenAI(**_sdk_options(settings), http_client=openai.DefaultHttpxClient(**_http_options(settings)))


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
            "Authorization": f"Bearer {settings.api_key or _NO_KEY}",
            "OpenAI-Organization": omit,
            "OpenAI-Project": omit,
        },
    }


def _http_options(settings: Settings) -> dict[str, Any]:
    return {
        "follow_redirects": False,  # films go to the configured address only
        "trust_env": not settings.is_loopback,  # no proxy for a server on this machine
        "verify": _trusted_certificates(settings.url),
        # The caller's concurrency limits the connections. The SDK's default keeps 100 and reopens the rest per film.
        "limits": httpx2.Limits(max_connections=None, max_keepalive_connections=None),
    }


def _trusted_certificates(url: str) -> ssl.SSLContext | bool:
    """Return the certificates to trust: SSL_CERT_FILE or SSL_CERT_DIR, also on loopback, or else the system's."""
    if url.startswith("http://"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used; loading the system's certificates takes 30 ms
    file, folder = os.environ.get("SSL_CERT_FILE") or None, os.environ.get("SSL_CERT_DIR") or None
    if file is None and folder is None:
        return True
    try:
        return ssl.create_default_context(cafile=file, capath=folder)
    except OSError as error:
        raise ConfigurationError("SSL_CERT_FILE: must be a readable PEM file of trusted certificates") from error
