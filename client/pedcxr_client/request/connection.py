"""The connection to one server: the HTTP pool, the served model, retries, and the synchronous client's event loop."""

from __future__ import annotations

import asyncio
import copy
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

import openai

from pedcxr_client.errors import ConfigurationError, ConnectionFailed, PedcxrError, TimedOut
from pedcxr_client.films.geometry import is_size
from pedcxr_client.request import sdk_client, sdk_errors
from pedcxr_client.request.stream_parser import not_openai, printable
from pedcxr_client.types import ServedModel

if TYPE_CHECKING:
    from pedcxr_client.metrics.hooks import Hook
    from pedcxr_client.request.call import ReportCall
    from pedcxr_client.request.retry import RetryState
    from pedcxr_client.request.settings import Settings

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

_END = object()
_CLOSED = "client: is closed; create a new one"


class _Pool:
    """The open connections of one process."""

    def __init__(self, settings: Settings) -> None:
        self.sdk = sdk_client.asynchronous(settings)
        self.streams: weakref.WeakSet[openai.AsyncStream[object]] = weakref.WeakSet()
        self.loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
        # One request for the model list at a time. A call that waited for a request that failed shares its error.
        self.listing = asyncio.Lock()
        self.listings = 0
        self.failure: PedcxrError | None = None


class Connection:
    """The connection of one client. Its coroutines run on one event loop in each process.

    A process that was forked must not read from the connections of its parent, since it would take the parent's
    responses. It therefore opens its own when the client is next used there, and leaves those of the parent untouched.
    """

    def __init__(self, settings: Settings, hook: Hook) -> None:
        self.settings, self.hook = settings, hook
        self._pools = {os.getpid(): _Pool(settings)}  # by process id
        self._closed = False
        self._model: ServedModel | None = None

    @property
    def sdk(self) -> openai.AsyncOpenAI:
        """The SDK's client of this process. Raise ConfigurationError if the client is closed."""
        return self._pool().sdk

    def enter(self) -> None:
        """Raise ConfigurationError if the client is closed, or was used on another event loop."""
        pool, loop = self._pool(), asyncio.get_running_loop()
        if pool.loop is None:
            pool.loop = weakref.ref(loop)
        elif pool.loop() is not loop:
            raise ConfigurationError("client: was used on another event loop; create one AsyncClient for each")

    async def close(self) -> None:
        """Cancel the responses that were not read to their end, and close all connections of this process."""
        self._closed = True
        if (pool := self._pools.get(os.getpid())) is not None:
            for events in list(pool.streams):
                await events.close()
            await pool.sdk.close()

    def forget_model(self) -> None:
        """Ask the server for its model again when the next call needs it."""
        self._model = None

    async def described_model(self, retries: RetryState) -> ServedModel:
        """Return the model as the server describes it, requested once for all calls; see `choose_model`."""
        pool = self._pool()
        listings = pool.listings
        if self._model is None:
            await _before_deadline(retries, pool.listing.acquire)
            try:
                if self._model is None and pool.listings > listings and pool.failure is not None:
                    raise copy.copy(pool.failure) from pool.failure
                self._model = self._model or await self._request_model(pool, retries)
            finally:
                pool.listing.release()
        return self._model

    async def _request_model(self, pool: _Pool, retries: RetryState) -> ServedModel:
        pool.failure = None
        try:
            listing = await self._with_retries(
                retries, lambda: self.sdk.get("/models", cast_to=object, options=_request_options(retries))
            )
            return choose_model(listing, self.settings.url, self.settings.model)
        except TimedOut:  # the deadline of one call is not that of another
            raise
        except PedcxrError as error:
            pool.failure = error
            raise
        finally:
            pool.listings += 1

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
                options={**_request_options(call.retries), "headers": call.headers()},
                stream=True,
                stream_cls=openai.AsyncStream[object],
            ),
        )
        self._pool().streams.add(events)
        return events

    async def next_event(self, events: openai.AsyncStream[object], call: ReportCall) -> object | None:
        """Return the next event, or None after the last one. Raise RequestError if none arrives in time."""
        try:
            event = await _before_deadline(call.retries, lambda: anext(events, _END))
        except PedcxrError:
            raise
        except Exception as error:
            raise call.broken(error) from error
        return None if event is _END else event

    def _pool(self) -> _Pool:
        process = os.getpid()
        if process not in self._pools and self.settings.http_client is not None:
            raise ConfigurationError(
                "client: its http_client belongs to the parent process; create one in each process"
            )
        pool = self._pools.get(process) or self._pools.setdefault(process, _Pool(self.settings))
        if self._closed or pool.sdk.is_closed():
            raise ConfigurationError(_CLOSED)
        return pool

    async def _with_retries(self, retries: RetryState, send: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await _before_deadline(retries, send)
            except PedcxrError:
                raise
            except Exception as error:  # the SDK lets errors of httpx through, for example from the body of an error
                failure = sdk_errors.before_response(error, self.settings.url)
                if isinstance(failure, TimedOut) and retries.seconds_left <= 0:
                    failure = retries.expired()
                wait = retries.wait_after(failure)
                if wait is None:
                    raise failure from error
            await asyncio.sleep(wait)


def check_process(process: int) -> None:
    """Raise ConfigurationError if a call that this process started continues in a forked one."""
    if process != os.getpid():
        raise ConfigurationError("client: the parent process started this call; start it again in this process")


class _Thread:
    """The event loop's thread of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.loop: asyncio.AbstractEventLoop
        self.stop_event: asyncio.Event


class LoopThread:
    """Runs coroutines on an event loop in a daemon thread, which the first call in each process starts.

    When the loop stops, it cancels all running coroutines and then awaits ``at_end``.

    ``anyio.from_thread.start_blocking_portal`` is similar, but its generator ends the loop with a blocking call when it
    is garbage collected. That call never returns in a forked process, or when the collector runs in the loop's thread.
    """

    def __init__(self, at_end: Callable[[], Awaitable[None]]) -> None:
        self._at_end = at_end
        self._threads: dict[int, _Thread] = {}  # by process id: a forked process has no thread of its parent
        self.stopped = False

    def start(self) -> None:
        """Start the thread unless it is running.

        Raise ConfigurationError after `stop`, and ConnectionFailed if the system has no thread or file descriptor left.
        """
        own = self._own()
        with own.lock:
            self._start(own)

    def run(self, function: Callable[[Unpack[Arguments]], Coroutine[Any, Any, T]], *arguments: *Arguments) -> T:
        """Run a coroutine function on the loop and wait for its result.

        An exception in the waiting thread, such as KeyboardInterrupt, cancels the coroutine and propagates at once.
        """
        own = self._own()
        if threading.current_thread() is own.thread:
            raise RuntimeError("the client cannot be used in its own thread, such as from a metrics hook")
        future: Future[T] | None = None
        try:
            with own.lock:
                self._start(own)
                future = asyncio.run_coroutine_threadsafe(function(*arguments), own.loop)
            return future.result()
        except CancelledError:
            raise ConfigurationError("client: was closed during the call; create a new one") from None
        finally:
            if future is not None:
                future.cancel()
            del future  # an exception's traceback refers to this frame, and the future to the exception

    def stop(self, timeout: float | None = None) -> None:
        """Cancel all running coroutines and end the thread. Wait for its end, at most ``timeout`` seconds."""
        own = self._own()
        with own.lock:
            thread = own.thread
            if thread is not None and not self.stopped:
                own.loop.call_soon_threadsafe(own.stop_event.set)
            self.stopped = True
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _own(self) -> _Thread:
        return self._threads.setdefault(os.getpid(), _Thread())

    def _start(self, own: _Thread) -> None:
        if self.stopped:
            raise ConfigurationError(_CLOSED)
        if own.thread is None:
            ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
            thread = threading.Thread(target=_serve, args=(ready, self._at_end), name="pedcxr-client", daemon=True)
            try:
                thread.start()
                own.loop, own.stop_event = ready.result()
            except (OSError, RuntimeError) as error:
                raise ConnectionFailed(
                    f"the client's thread cannot start: {printable(error)}; free some resources, or raise the limit"
                ) from error
            own.thread = thread


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
    """Return the model of this name from the body of ``GET /v1/models``, or the only one, or the default.

    A name that is not listed is accepted, because a server may serve more models than it lists.
    """
    entries = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(entries, list):
        raise not_openai(url)
    models = [_read_model(entry) for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    if name is not None:
        return next((model for model in models if model.name == name), ServedModel(name))
    if len(models) > 1:
        defaults = [model for model in models if _is_default(entries, model.name)]
        models = defaults if len(defaults) == 1 else models
    if len(models) != 1:
        names = ", ".join(sorted(model.name for model in models)[:10]) or "none"
        raise ConfigurationError(f"model: {url} offers {printable(names)}; name one (--model)")
    return models[0]


def _is_default(entries: list[object], name: str) -> bool:
    """Return whether the server states that requests without a name get this model."""
    return any(
        isinstance(entry, dict)
        and entry.get("id") == name
        and isinstance(extension := entry.get("pedcxr"), dict)
        and extension.get("default") is True
        for entry in entries
    )


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


def _request_options(retries: RetryState) -> openai._types.RequestOptions:
    return {"timeout": retries.timeout(), "follow_redirects": False}  # films go to the configured address only
