"""The two clients, synchronous and asynchronous, and the streams that they return.

The asynchronous code does all the work. The synchronous client runs it on an event loop in a background thread.
"""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack

from pedcxr_client.films.film import FilmSource
from pedcxr_client.metrics.hooks import Hook, NullHook
from pedcxr_client.reports.report import Report
from pedcxr_client.request.call import ReportCall
from pedcxr_client.request.film_request import FilmOptions, FilmRequest, Result
from pedcxr_client.request.retry import RetryState
from pedcxr_client.request.settings import (
    DEFAULT_TIMEOUTS,
    DEFAULT_URL,
    Certificates,
    HttpClient,
    Settings,
    SpanTracer,
    Timeouts,
)
from pedcxr_client.types import ServedModel

if TYPE_CHECKING:
    import openai

    from pedcxr_client.request.connection import Connection

# The modules that need asyncio and the openai SDK are imported when a client is created: they take half a second.

ReportT = TypeVar("ReportT")  # Report, or a coroutine that returns one
StreamT = TypeVar("StreamT")  # ReportStream or AsyncReportStream
BytesT = TypeVar("BytesT")  # bytes, or a coroutine that returns them

_EXIT_TIMEOUT_S = 1.0


class _BaseClient(ABC, Generic[ReportT, StreamT, BytesT]):
    """The arguments that both clients share."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        retries: int = 2,
        insecure_http: bool = False,
        metrics: Hook | None = None,
        headers: Mapping[str, str] | None = None,
        verify: Certificates | None = None,
        http_client: HttpClient | None = None,
        tracer: SpanTracer | None = None,
    ) -> None:
        settings = Settings(
            url, api_key, model, timeouts, retries, insecure_http,
            headers={} if headers is None else headers, verify=verify, http_client=http_client,
            tracer=tracer,
        )  # fmt: skip

        from pedcxr_client.request import concurrent  # noqa: F401  # an import needs a file descriptor, so not later
        from pedcxr_client.request.connection import Connection

        self._connection = Connection(settings, NullHook() if metrics is None else metrics)
        self._set_up()

    def report(self, film: FilmSource, **options: Unpack[FilmOptions]) -> ReportT:
        """Return the report of one film. The arguments are those of `FilmRequest`, without ``key``.

        Raises:
            BlockedFilm: if the film is outside the intended use: an adult, an animal, another body part.
            InputError: if the film, the age or the sex is invalid.
            RequestError: if the server could not be reached, rejected the request or failed.
            ReportError: if the model's text is not a report; the error carries the text.
        """
        return self._report(_film_request("report", film, options))

    def stream(self, film: FilmSource, **options: Unpack[FilmOptions]) -> StreamT:
        """Return a stream of the report of one film: iterate it for the text, then read ``.report``.

        The arguments and errors are those of `report`. Entering the ``with`` statement sends the request. The
        end of the iteration raises if the report is unfinished. Leaving the statement early cancels the request on the
        server.

        Example:
            >>> with client.stream("film.png", age="5y") as stream:  # doctest: +SKIP
            ...     for piece in stream:
            ...         print(piece, end="", flush=True)
            ...     report = stream.report
        """
        return self._stream(_film_request("stream", film, options))

    def payload(self, film: FilmSource, *, stream: bool = True, **options: Unpack[FilmOptions]) -> BytesT:
        """Return the JSON body that `report` would send, byte for byte, without sending the film.

        The arguments and errors are those of `report`. Without a configured model, the client requests the
        server's model.

        Args:
            stream: False for the body of a request whose response is a single JSON object.
        """
        return self._payload(_film_request("payload", film, options), stream=stream)

    def _set_up(self) -> None:  # an optional step
        pass

    @abstractmethod
    def _report(self, request: FilmRequest) -> ReportT: ...

    @abstractmethod
    def _stream(self, request: FilmRequest) -> StreamT: ...

    @abstractmethod
    def _payload(self, request: FilmRequest, *, stream: bool) -> BytesT: ...


class AsyncClient(_BaseClient[Coroutine[Any, Any, Report], "AsyncReportStream", Coroutine[Any, Any, bytes]]):
    """`Client` for asyncio, with the same arguments, methods, results and errors. Use one for each event loop.

    A forked process may use it on an event loop of its own, where it opens connections of its own.

    Films are read and encoded in a worker thread. Cancelling a task cancels its request on the server.

    Example:
        >>> async with AsyncClient() as client:  # doctest: +SKIP
        ...     print((await client.report("film.png", age="5y", sex="M")).text)
        ...     async with client.stream("film.png", age="5y") as stream:
        ...         async for piece in stream:
        ...             print(piece, end="", flush=True)
        ...         report = stream.report
    """

    @property
    def openai(self) -> openai.AsyncOpenAI:
        """The client of the openai SDK, for everything else that the server offers."""
        return self._connection.sdk

    async def model(self, *, refresh: bool = False) -> ServedModel:
        """Return the served model as the server describes it. Requested once, or again with ``refresh=True``.

        Raises:
            RequestError: if the server could not be reached, rejected the request or failed.
            ConfigurationError: if the client names no model and the server does not offer exactly one.
        """
        self._connection.enter()
        return await _served_model(self._connection, refresh)

    def reports(
        self, requests: Iterable[FilmRequest] | AsyncIterable[FilmRequest], *, concurrency: int = 8
    ) -> AsyncGenerator[Result, None]:
        """Write reports of many films and yield the results as they finish; see `Client.reports`.

        The requests are read on the event loop, so an iterable must not block: a slow source, such as a queue, is an
        asynchronous iterable. To cancel the requests in flight when leaving the loop early, wrap the generator in
        ``contextlib.aclosing``.

        Example:
            >>> async with aclosing(client.reports(requests, concurrency=32)) as results:  # doctest: +SKIP
            ...     async for result in results:
            ...         print(result.request.key, result.report.text if result.report else result.error)
        """
        from pedcxr_client.request.concurrent import as_they_finish

        return as_they_finish(self._report, requests, concurrency)

    async def close(self) -> None:
        """Close the connections. The client cannot be used afterwards."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _report(self, request: FilmRequest) -> Report:
        return await _write_report(self._connection, request)

    def _stream(self, request: FilmRequest) -> AsyncReportStream:
        return AsyncReportStream(self._connection, request)

    async def _payload(self, request: FilmRequest, *, stream: bool) -> bytes:
        import asyncio

        self._connection.enter()
        call = ReportCall(self._connection.settings, request, NullHook())
        size = await self._connection.image_size(call)
        await asyncio.to_thread(call.prepare, size)
        return call.body(await self._connection.model(call.retries), stream=stream)


class AsyncReportStream:
    """The text of a report while the model writes it: an async iterator, returned by `AsyncClient.stream`."""

    def __init__(self, connection: Connection, request: FilmRequest) -> None:
        self._connection, self._request = connection, request
        self._call: ReportCall | None = None
        self._events: openai.AsyncStream[object] | None = None
        self._report: Report | None = None
        self._process = os.getpid()

    @property
    def text(self) -> str:
        """The text so far. It is a report only after the end of the iteration; see ``report``."""
        return "" if self._call is None else self._call.text

    @property
    def report(self) -> Report:
        """The report, after the end of the iteration.

        Raises:
            RuntimeError: before the end of the iteration.
        """
        if self._report is None:
            raise RuntimeError("the report is not finished; iterate the stream to its end first")
        return self._report

    async def __aenter__(self) -> Self:
        import asyncio

        self._connection.enter()
        call = self._start()
        try:
            size = await self._connection.image_size(call)
            await asyncio.to_thread(call.prepare, size)
            await self._send(call)
        except BaseException as error:
            await self._close(error)
            raise
        return self

    def __aiter__(self) -> AsyncIterator[str]:
        if self._call is None:
            raise RuntimeError("the stream is not open; write: async with client.stream(...) as stream")
        return self

    async def __anext__(self) -> str:
        if piece := await self._next_piece():
            return piece
        raise StopAsyncIteration

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        await self._close(error, in_block=True)

    def _start(self) -> ReportCall:
        self._process = os.getpid()
        self._call = ReportCall(self._connection.settings, self._request, self._connection.hook)
        return self._call

    async def _send(self, call: ReportCall) -> None:
        self._events = await self._connection.post(call)
        call.response_started(self._events.response.headers)

    async def _next_piece(self) -> str | None:
        """Return the next piece of text, or None after the last one, when the report is complete."""
        from pedcxr_client.request.connection import check_process

        check_process(self._process)
        call, events = self._call, self._events
        if call is None or events is None:
            raise RuntimeError("the stream is not open; use it in a with statement (AsyncClient: async with)")
        try:
            while not call.is_over:
                if (event := await self._connection.next_event(events, call)) is None:
                    self._report = call.report()
                elif piece := call.add(event):
                    return piece
        except BaseException as error:
            await self._close(error)
            raise
        return None

    async def _read_to_end(self) -> Report:
        while await self._next_piece() is not None:
            pass
        return self.report

    async def _close(self, error: BaseException | None, *, in_block: bool = False) -> None:
        if self._process != os.getpid():
            return  # the parent process owns the connection
        if self._call is not None:
            self._call.fail(error, in_block=in_block)
        if self._events is not None:
            await self._events.close()


class Client(_BaseClient[Report, "ReportStream", bytes]):
    """Requests draft reports from a pedcxr server. Threads may share one client.

    The client opens its connections from a background thread, which the first call starts and `close` ends. A forked
    process has a thread and connections of its own; it cannot continue a call that its parent started.

    Args:
        url: the server's OpenAI base URL, usually ending in ``/v1``.
        api_key: sent as a bearer token. The client reads no environment variable.
        model: the model's name. By default, the client requests it once from the server, which must offer exactly one.
        timeouts: limits for each phase and for the whole call.
        retries: how often to retry after a failed connection, and after 429, 503, or 502 and 504 of a proxy, without
            Retry-After. A Retry-After is obeyed until the deadline. 0 turns all retries off. Nothing is retried after
            the response has started.
        insecure_http: allow plain http to another machine.
        metrics: observes every call, for example `pedcxr_client.metrics.prometheus.Metrics`.
        headers: further headers of every request, for example for a proxy.
        verify: the trusted certificates: a PEM file, or an SSLContext, which may hold a client certificate too.
            By default SSL_CERT_FILE, or else the certificates of the system.
        http_client: sends the requests, for a transport or a proxy of your own; ``close`` closes it. Both clients take
            an `httpx2.AsyncClient`, such as ``openai.DefaultAsyncHttpxClient(proxy=...)``.
        tracer: records an OpenTelemetry span of every call, and makes the server's spans its children.

    Raises:
        ConfigurationError: if an argument is invalid.

    Example:
        >>> with Client() as client:  # doctest: +SKIP
        ...     print(client.report("film.png", age="5y", sex="M").text)
    """

    @property
    def openai(self) -> openai.OpenAI:
        """A client of the openai SDK with the same settings, for everything else that the server offers.

        Raises:
            ConfigurationError: if the client has an ``http_client``, which is asynchronous.
        """
        if (sdk := self._sdks.get(os.getpid())) is None:
            from pedcxr_client.request import sdk_client

            sdk = self._sdks[os.getpid()] = sdk_client.blocking(self._connection.settings)
        return sdk

    def model(self, *, refresh: bool = False) -> ServedModel:
        """Return the served model as the server describes it. Requested once, or again with ``refresh=True``.

        Raises:
            RequestError: if the server could not be reached, rejected the request or failed.
            ConfigurationError: if the client names no model and the server does not offer exactly one.
        """
        return self._loop.run(_served_model, self._connection, refresh)

    def reports(self, requests: Iterable[FilmRequest], *, concurrency: int = 8) -> Generator[Result, None, None]:
        """Write reports of many films and yield the results as they finish. An error of one film ends no other.

        A result is yielded as soon as it exists, also while the iterable blocks. The iterable is therefore read in a
        thread of its own, with the caller's context variables. Leaving the loop early, or closing the generator,
        cancels the requests in flight, on the server too, and closes the iterable, unless it blocks.

        Args:
            requests: may block and be endless; at most ``2 * concurrency`` are read ahead of the results.
            concurrency: maximum number of films in flight, from reading to report. Each has a connection of its own.

        Raises:
            ConfigurationError: if ``concurrency`` is below 1, or an item is not a FilmRequest.

        Example:
            >>> requests = (FilmRequest(p, age="5y", key=p.stem) for p in folder.glob("*.dcm"))  # doctest: +SKIP
            >>> for result in client.reports(requests, concurrency=32):  # doctest: +SKIP
            ...     print(result.request.key, result.report.text if result.report else result.error)
        """
        from pedcxr_client.request.concurrent import ReportPool, ThreadedIterator

        self._loop.start()
        source = ThreadedIterator(requests)
        try:
            pool = ReportPool(partial(_write_report, self._connection), source, concurrency)
            try:
                while (result := self._loop.run(pool.next)) is not None:
                    yield result
            finally:
                if not self._loop.stopped:
                    self._loop.run(pool.close)
        finally:
            source.close()

    def close(self) -> None:
        """Close the connections and end the background thread. The client cannot be used afterwards."""
        self._loop.stop()
        if (sdk := self._sdks.get(os.getpid())) is not None:
            sdk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_up(self) -> None:
        from pedcxr_client.request.connection import LoopThread

        self._sdks: dict[int, openai.OpenAI] = {}  # by process id
        self._loop = LoopThread(self._connection.close)
        weakref.finalize(self, self._loop.stop, _EXIT_TIMEOUT_S)

    def _report(self, request: FilmRequest) -> Report:
        with self._stream(request) as stream:
            return self._loop.run(stream._stream._read_to_end)

    def _stream(self, request: FilmRequest) -> ReportStream:
        return ReportStream(self, request)

    def _payload(self, request: FilmRequest, *, stream: bool) -> bytes:
        call = ReportCall(self._connection.settings, request, NullHook())
        call.prepare(self._loop.run(self._connection.image_size, call))
        return call.body(self._loop.run(self._connection.model, call.retries), stream=stream)


class ReportStream:
    """The text of a report while the model writes it: an iterator, returned by `Client.stream`."""

    def __init__(self, client: Client, request: FilmRequest) -> None:
        self._client = client  # the background thread ends when the client is garbage collected
        self._loop, self._connection = client._loop, client._connection
        self._stream = AsyncReportStream(client._connection, request)

    @property
    def report(self) -> Report:
        """The report, after the end of the iteration.

        Raises:
            RuntimeError: before the end of the iteration.
        """
        return self._stream.report

    @property
    def text(self) -> str:
        """The text so far. It is a report only after the end of the iteration; see ``report``."""
        return self._stream.text

    def __enter__(self) -> Self:
        self._loop.start()
        call = self._stream._start()
        try:
            call.prepare(self._loop.run(self._connection.image_size, call))  # in this thread, so that Ctrl-C ends it
            self._loop.run(self._stream._send, call)
        except BaseException as error:
            self._close(error)
            raise
        return self

    def __iter__(self) -> Iterator[str]:
        if self._stream._call is None:
            raise RuntimeError("the stream is not open; write: with client.stream(...) as stream")
        return self

    def __next__(self) -> str:
        if piece := self._loop.run(self._stream._next_piece):
            return piece
        raise StopIteration

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._close(error, in_block=True)

    def _close(self, error: BaseException | None, *, in_block: bool = False) -> None:
        if not self._loop.stopped:
            self._loop.run(partial(self._stream._close, error, in_block=in_block))


def _film_request(method: str, film: FilmSource, options: FilmOptions) -> FilmRequest:
    if "key" in options:  # a field of FilmRequest, which only `reports` gives back
        raise TypeError(f"{method}() got an unexpected keyword argument 'key'")
    return FilmRequest(film, **options)


async def _served_model(connection: Connection, refresh: bool) -> ServedModel:
    if refresh:
        connection.forget_model()
    return await connection.described_model(RetryState(connection.settings, connection.hook))


async def _write_report(connection: Connection, request: FilmRequest) -> Report:
    async with AsyncReportStream(connection, request) as stream:
        return await stream._read_to_end()
