"""The connection to one server: the HTTP pool, the served model, retries, and the synchronous client's event loop."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, TypeVarTuple, Unpack, cast

import httpx2
import openai

from pedcxr_client.errors import ConfigurationError, TimedOut
from pedcxr_client.films.geometry import is_size
from pedcxr_client.request import sdk_errors
from pedcxr_client.request.stream_parser import not_openai, printable
from pedcxr_client.types import ServedModel

if TYPE_CHECKING:
    from pedcxr_client.metrics.hooks import Hook
    from pedcxr_client.request.call import ReportCall
    from pedcxr_client.request.retry import RetryState
    from pedcxr_client.request.settings import Settings

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

_NO_KEY = "none"  # the SDK requires a key; a server without tenants ignores it
_END = object()


class Connection:
    """The connection of one client. Its coroutines run on one event loop."""

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
        """Return the model as the server describes it, requested once; see `choose_model`."""
        if self._model is None:
            listing = await self._with_retries(
                retries, lambda: self.sdk.get("/models", cast_to=object, options={"timeout": retries.timeout()})
            )
            self._model = choose_model(listing, self.settings.url, self.settings.model)
        return self._model

    async def model(self, retries: RetryState) -> ServedModel:
        """Return the model for a request: the configured name alone is enough."""
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
        """Return the next event, or None after the last one. Raise TimedOut if the deadline passes first."""
        event = await _before_deadline(retries, lambda: anext(events, _END))
        return None if event is _END else event

    async def _with_retries(self, retries: RetryState, send: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await _before_deadline(retries, send)
            except (openai.OpenAIError, ValueError) as error:
                failure = sdk_errors.before_response(error, self.settings.url)
                if isinstance(failure, TimedOut) and retries.seconds_left <= 0:
                    failure = retries.expired()
                wait = retries.wait_after(failure)
                if wait is None:
                    raise failure from error
            await asyncio.sleep(wait)


class LoopThread:
    """Runs coroutines on an event loop in a daemon thread, which the first call starts.

    When the loop stops, it cancels all running coroutines and then awaits ``at_end``.

    ``anyio.from_thread.start_blocking_portal`` is similar, but its generator ends the loop with a blocking call when it
    is garbage collected. That call never returns in a forked process, or when the collector runs in the loop's thread.
    """

    def __init__(self, at_end: Callable[[], Awaitable[None]]) -> None:
        self._at_end = at_end
        self._lock = threading.Lock()
        self._process: int | None = None
        self._thread: threading.Thread | None = None
        self.stopped = False

    def start(self) -> None:
        """Start the thread unless it is running. Raise RuntimeError after `stop`.

        Raise ConfigurationError in a process that was forked after the start: the thread exists in the parent only.
        """
        self._check_process()
        with self._lock:
            self._start()

    def run(self, function: Callable[[Unpack[Arguments]], Coroutine[Any, Any, T]], *arguments: *Arguments) -> T:
        """Run a coroutine function on the loop and wait for its result.

        An exception in the waiting thread, such as KeyboardInterrupt, cancels the coroutine and propagates at once.
        """
        self._check_process()
        if threading.current_thread() is self._thread:
            raise RuntimeError("the client cannot be used in its own thread, such as from a metrics hook")
        future: Future[T] | None = None
        try:
            with self._lock:
                self._start()
                future = asyncio.run_coroutine_threadsafe(function(*arguments), self._loop)
            return future.result()
        except CancelledError:
            raise RuntimeError("the client was closed during the call") from None
        finally:
            if future is not None:
                future.cancel()
            del future  # an exception's traceback refers to this frame, and the future to the exception

    def stop(self, timeout: float | None = None) -> None:
        """Cancel all running coroutines and end the thread. Wait for its end, at most ``timeout`` seconds."""
        if self._process not in (None, os.getpid()):
            return
        with self._lock:
            thread = self._thread
            if thread is not None and not self.stopped:
                self._loop.call_soon_threadsafe(self._stop_event.set)
            self.stopped = True
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _check_process(self) -> None:
        if self._process not in (None, os.getpid()):
            raise ConfigurationError("client: is in use by the parent process; create one client in each process")

    def _start(self) -> None:
        if self.stopped:
            raise RuntimeError("the client is closed")
        if self._thread is None:
            ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
            thread = threading.Thread(target=_serve, args=(ready, self._at_end), name="pedcxr-client", daemon=True)
            thread.start()
            self._loop, self._stop_event = ready.result()
            self._thread, self._process = thread, os.getpid()


def _serve(
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]], at_end: Callable[[], Awaitable[None]]
) -> None:
    async def main() -> None:
        stop = asyncio.Event()
        ready.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await at_end()

    try:
        # asyncio.Runner ends by starting a thread, which Python 3.12 and later refuse while the interpreter exits.
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(main())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
    except BaseException as error:
        if ready.done():
            raise
        ready.set_exception(error)  # such as too many open files


def choose_model(listing: object, url: str, name: str | None = None) -> ServedModel:
    """Return the model of this name from the body of ``GET /v1/models``, or the only one.

    A name that is not listed is accepted, because a server may serve more models than it lists.
    """
    entries = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(entries, list):
        raise not_openai(url)
    models = [_read_model(entry) for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    if name is not None:
        return next((model for model in models if model.name == name), ServedModel(name))
    if len(models) != 1:
        names = ", ".join(sorted(model.name for model in models)[:10]) or "none"
        raise ConfigurationError(f"model: {url} offers {printable(names)}; name one (--model)")
    return models[0]


def _read_model(entry: dict[str, object]) -> ServedModel:
    extension = entry.get("pedcxr")
    details = extension if isinstance(extension, dict) else {}
    size, revision = details.get("image_size"), details.get("revision")
    return ServedModel(
        name=str(entry["id"]),
        image_size=(size[0], size[1]) if is_size(size) else None,
        revision=printable(revision) or None if isinstance(revision, str) else None,
        demo=details.get("demo") is True,
    )


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
    # SSL_CERT_FILE or SSL_CERT_DIR, also on loopback, or else the certificates of the system.
    if url.startswith("http://"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used; loading the system's certificates takes 30 ms
    file, folder = os.environ.get("SSL_CERT_FILE") or None, os.environ.get("SSL_CERT_DIR") or None
    if file is None and folder is None:
        return True
    try:
        return ssl.create_default_context(cafile=file, capath=folder)
    except OSError as error:
        raise ConfigurationError("SSL_CERT_FILE: must be a readable PEM file of trusted certificates") from error
