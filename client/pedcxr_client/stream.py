"""A report as it is written, synchronously. Its twin is async_stream.py; what they share is in _exchange.py."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from pedcxr_client.reports.report import Report
from pedcxr_client.request.call import ReportCall
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.watched import Watched

if TYPE_CHECKING:
    import openai

    from pedcxr_client.client import Client


class ReportStream:
    """A report as it is written: an iterator of text inside a ``with``; made by :meth:`Client.stream`."""

    def __init__(self, client: Client, request: FilmRequest) -> None:
        self._client, self._request = client, request
        self._events: openai.Stream[object] | None = None
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

    def __enter__(self) -> Self:
        self._exchange = ReportCall(self._client._settings, self._request, self._client._hook)
        try:
            self._exchange.prepare(self._client._image_size(self._exchange))
            self._events = self._client._post(self._exchange)
            self._exchange.answered(self._events.response.headers)
            self._events.response = cast("Any", Watched(self._events.response, self._exchange.attempts.remaining))
        except BaseException as error:
            self._close(error)
            raise
        return self

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        import openai

        if self._events is None:
            raise RuntimeError("the stream is not open; use it in a with statement")
        try:
            while not self._exchange.is_over:
                if (event := next(self._events, _END)) is _END:
                    self._report = self._exchange.report()
                elif piece := self._exchange.add(event):
                    return piece
        except (openai.OpenAIError, ValueError) as error:
            failure = self._exchange.broken(error)
            self._close(failure)
            raise failure from error
        except BaseException as error:
            self._close(error)
            raise
        raise StopIteration

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(error)

    def _close(self, error: BaseException | None) -> None:
        self._exchange.give_up(error)
        if self._events is not None:
            self._events.close()


_END = object()
