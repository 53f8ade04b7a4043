"""The asynchronous client, for asyncio. Its twin is client.py; what they share is in _exchange.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from . import _wire
from ._exchange import Exchange, Order
from ._settings import DEFAULT_TIMEOUTS, DEFAULT_URL, Settings, Timeouts
from .age import Age
from .gate import Asked
from .hook import Hook, Silent
from .image import Film
from .preparation import DISPLAY, Preparation
from .prompt import Sex
from .report import Report

if TYPE_CHECKING:
    import openai


class AsyncClient:
    """:class:`Client` for asyncio: the same arguments, methods, results and errors. One event loop each.

    Films are read and encoded in a thread, off the event loop, and cancelling a task closes its request on the server.

    Example:
        >>> async with AsyncClient() as client:  # doctest: +SKIP
        ...     print((await client.report("film.png", age="5y", sex="M")).text)
    """

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
    ) -> None:
        self._settings = Settings(url, api_key, model, timeouts, retries, insecure_http)
        self._hook: Hook = Silent() if metrics is None else metrics
        self._model = model
        self._openai = _connect(self._settings)

    @property
    def openai(self) -> openai.AsyncOpenAI:
        """The openai SDK's client beneath, for everything that this one does not do."""
        return self._openai

    async def report(
        self,
        film: Film,
        *,
        age: Age | str | None = None,
        sex: Sex | None = None,
        max_tokens: int = 500,
        assume_chest: bool = False,
        allow: Iterable[str] = (),
        preparation: Preparation = DISPLAY,
    ) -> Report:
        """Write the report of one film; see :meth:`Client.report`."""
        async with self.stream(
            film, age=age, sex=sex, max_tokens=max_tokens, assume_chest=assume_chest, allow=allow,
            preparation=preparation,
        ) as stream:  # fmt: skip
            async for _ in stream:
                pass
            return stream.report

    def stream(
        self,
        film: Film,
        *,
        age: Age | str | None = None,
        sex: Sex | None = None,
        max_tokens: int = 500,
        assume_chest: bool = False,
        allow: Iterable[str] = (),
        preparation: Preparation = DISPLAY,
    ) -> AsyncReportStream:
        """Write the report of one film, piece by piece; see :meth:`Client.stream`.

        Example:
            >>> async with client.stream("film.png", age="5y") as stream:  # doctest: +SKIP
            ...     async for piece in stream:
            ...         print(piece, end="", flush=True)
            ...     report = stream.report
        """
        asked = Asked(
            age=Age.parse(age) if isinstance(age, str) else age, sex=sex, assume_chest=assume_chest, allow=allow
        )
        return AsyncReportStream(self, Order(film, asked, preparation, max_tokens))

    async def close(self) -> None:
        """Close the connections; the client is of no use afterwards."""
        await self._openai.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _model_name(self, exchange: Exchange) -> str:
        if self._model is None:
            listing = await self._openai.get("/models", cast_to=object, options={"timeout": exchange.timeout()})
            self._model = _wire.only_model(listing, self._settings.url)
        return self._model


class AsyncReportStream:
    """A report as it is written: an iterator of text inside an ``async with``; made by :meth:`AsyncClient.stream`."""

    def __init__(self, client: AsyncClient, order: Order) -> None:
        self._client, self._order = client, order
        self._events: openai.AsyncStream[object] | None = None
        self._report: Report | None = None

    @property
    def report(self) -> Report:
        """The report, once the iteration has ended.

        Raises:
            RuntimeError: before that.
        """
        if self._report is None:
            raise RuntimeError("the report is not finished; iterate the stream to its end first")
        return self._report

    async def __aenter__(self) -> Self:
        self._exchange = Exchange(self._client._settings, self._order, self._client._hook)
        try:
            await asyncio.to_thread(self._exchange.prepare)
            self._events = await self._open()
            self._exchange.answered(self._events.response.headers)
        except BaseException as error:
            await self._close(error)
            raise
        return self

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        import openai

        if self._events is None:
            raise RuntimeError("the stream is not open; use it in an async with statement")
        try:
            while not self._exchange.is_over:
                if (event := await self._next(self._events)) is _END:
                    self._report = self._exchange.report()
                elif piece := self._exchange.add(event):
                    return piece
        except (openai.OpenAIError, ValueError) as error:
            failure = self._exchange.broken(error)
            await self._close(failure)
            raise failure from error
        except BaseException as error:
            await self._close(error)
            raise
        raise StopAsyncIteration

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close(error)

    async def _open(self) -> openai.AsyncStream[object]:
        import openai

        exchange, client = self._exchange, self._client
        while True:
            try:
                async with asyncio.timeout(exchange.remaining()):
                    model = await client._model_name(exchange)
                    options: openai.RequestOptions = {"timeout": exchange.timeout(), "headers": _wire.JSON_HEADERS}
                    return await client.openai.post(
                        "/chat/completions",
                        content=exchange.body(model),
                        cast_to=object,
                        options=options,
                        stream=True,
                        stream_cls=openai.AsyncStream[object],
                    )
            except TimeoutError as error:
                raise exchange.expired() from error
            except (openai.OpenAIError, ValueError) as error:
                wait = exchange.wait_after(error)
            await asyncio.sleep(wait)

    async def _next(self, events: openai.AsyncStream[object]) -> object:
        try:
            async with asyncio.timeout(self._exchange.remaining()):
                return await anext(events, _END)
        except TimeoutError as error:
            raise self._exchange.expired() from error

    async def _close(self, error: BaseException | None) -> None:
        self._exchange.give_up(error)
        if self._events is not None:
            await self._events.close()


_END = object()


def _connect(settings: Settings) -> openai.AsyncOpenAI:
    import openai

    return openai.AsyncOpenAI(
        base_url=settings.url,
        api_key=settings.api_key or _wire.NO_KEY,
        max_retries=0,
        default_headers=_wire.default_headers(settings.api_key),
        http_client=openai.DefaultAsyncHttpxClient(
            follow_redirects=False,  # a film goes to the address given and nowhere else
            trust_env=not settings.is_loopback,  # nor through a proxy to this very machine
            verify=_wire.trust(settings.url),
        ),
    )
