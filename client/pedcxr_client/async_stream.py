"""A report as it is written, for asyncio. Its twin is stream.py; what they share is in _exchange.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pedcxr_client.reports.report import Report
from pedcxr_client.request.call import ReportCall
from pedcxr_client.request.film_request import FilmRequest

if TYPE_CHECKING:
    import openai

    from pedcxr_client.async_client import AsyncClient


class AsyncReportStream:
    """A report as it is written: an iterator of text inside an ``async with``; made by :meth:`AsyncClient.stream`."""

    def __init__(self, client: AsyncClient, request: FilmRequest) -> None:
        self._client, self._request = client, request
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
        self._exchange = ReportCall(self._client._settings, self._request, self._client._hook)
        try:
            size = await self._client._image_size(self._exchange)
            await asyncio.to_thread(self._exchange.prepare, size)
            self._events = await self._client._post(self._exchange)
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

    async def _next(self, events: openai.AsyncStream[object]) -> object:
        try:
            async with asyncio.timeout(self._exchange.attempts.remaining()):
                return await anext(events, _END)
        except TimeoutError as error:
            raise self._exchange.attempts.expired() from error

    async def _close(self, error: BaseException | None) -> None:
        self._exchange.give_up(error)
        if self._events is not None:
            await self._events.close()


_END = object()
