"""The asynchronous client, for asyncio. Its twin is client.py; what they share is in _base.py and _exchange.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pedcxr_client.async_stream import AsyncReportStream
from pedcxr_client.metrics.hooks import NullHook
from pedcxr_client.reports.report import Report
from pedcxr_client.request import concurrent, payload
from pedcxr_client.request.base_client import BaseClient
from pedcxr_client.request.call import ReportCall
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.result import Result
from pedcxr_client.request.retry import RetryState
from pedcxr_client.request.served_model import ServedModel, choose

if TYPE_CHECKING:
    import openai
    from openai import AsyncStream

T = TypeVar("T")


class AsyncClient(BaseClient[Coroutine[Any, Any, Report], AsyncReportStream, Coroutine[Any, Any, bytes]]):
    """:class:`Client` for asyncio: the same arguments, methods, results and errors. One event loop each.

    Films are read and encoded in a thread, off the event loop, and cancelling a task closes its request on the server.

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
        """The openai SDK's client beneath, for everything that this one does not do."""
        return self._openai

    async def model(self, *, anew: bool = False) -> ServedModel:
        """The model that is asked, as the server describes it; the server is asked once, or ``anew``.

        Raises:
            RequestError: if the server could not be reached, refused or failed.
            ConfigurationError: if it offers several models, or none, and none was named.
        """
        if anew:
            self._model = None
        return await self._served(RetryState(self._settings, self._hook), listed=True)

    def reports(self, requests: Iterable[FilmRequest], *, concurrency: int = 8) -> AsyncGenerator[Result, None]:
        """Write reports of many films and give the results as they finish; see :meth:`Client.reports`.

        The iterable is asked on the event loop, so that it must be quick. Use ``contextlib.aclosing`` to end what is
        under way at once when leaving the loop early.

        Example:
            >>> async with aclosing(client.reports(requests, concurrency=32)) as results:  # doctest: +SKIP
            ...     async for result in results:
            ...         print(result.request.key, result.report.text if result.report else result.error)
        """
        return concurrent.as_they_finish(self._report, requests, concurrency)

    async def close(self) -> None:
        """Close the connections; the client is of no use afterwards."""
        await self._openai.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _connect(self) -> None:
        import openai

        settings = self._settings
        self._openai = openai.AsyncOpenAI(
            base_url=settings.url,
            api_key=settings.api_key or payload.NO_KEY,
            max_retries=0,
            default_headers=payload.default_headers(settings.api_key),
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False,  # a film goes to the address given and nowhere else
                trust_env=not settings.is_loopback,  # nor through a proxy to this very machine
                verify=payload.trust(settings.url),
                limits=payload.pool(),
            ),
        )

    async def _report(self, request: FilmRequest) -> Report:
        async with self._stream(request) as stream:
            async for _ in stream:
                pass
            return stream.report

    def _stream(self, request: FilmRequest) -> AsyncReportStream:
        return AsyncReportStream(self, request)

    async def _payload(self, request: FilmRequest, *, stream: bool) -> bytes:
        exchange = ReportCall(self._settings, request, NullHook())
        size = await self._image_size(exchange)
        await asyncio.to_thread(exchange.prepare, size)
        return exchange.body(await self._served(exchange.attempts, listed=False), stream=stream)

    async def _post(self, exchange: ReportCall) -> AsyncStream[object]:
        """Send the film, again if need be, until an answer begins."""
        import openai

        model = await self._served(exchange.attempts, listed=False)
        return await _persist(
            exchange.attempts,
            lambda: self._openai.post(
                "/chat/completions",
                content=exchange.body(model),
                cast_to=object,
                options={"timeout": exchange.attempts.timeout(), "headers": exchange.headers},
                stream=True,
                stream_cls=openai.AsyncStream[object],
            ),
        )

    async def _image_size(self, exchange: ReportCall) -> tuple[int, int] | None:
        return (await self._served(exchange.attempts, listed=True)).image_size if exchange.asks_size else None

    async def _served(self, attempts: RetryState, *, listed: bool) -> ServedModel:
        """The model to ask; ``listed``: as the server describes it, be it named or not."""
        name = self._settings.model
        if self._model is None and name is not None and not listed:
            return ServedModel(name)
        if self._model is None:
            listing = await _persist(
                attempts,
                lambda: self._openai.get("/models", cast_to=object, options={"timeout": attempts.timeout()}),
            )
            self._model = choose(listing, self._settings.url, name)
        return self._model


async def _persist(attempts: RetryState, ask: Callable[[], Awaitable[T]]) -> T:
    import openai

    while True:
        try:
            async with asyncio.timeout(attempts.remaining()):
                return await ask()
        except TimeoutError as error:
            raise attempts.expired() from error
        except (openai.OpenAIError, ValueError) as error:
            wait = attempts.wait_after(error)
        await asyncio.sleep(wait)
