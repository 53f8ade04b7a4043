"""The synchronous client. Its twin is async_client.py; what they share is in _base.py and _exchange.py."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from pedcxr_client.async_client import AsyncClient
from pedcxr_client.metrics.hooks import NullHook
from pedcxr_client.reports.report import Report
from pedcxr_client.request import concurrent, payload
from pedcxr_client.request.base_client import BaseClient
from pedcxr_client.request.call import ReportCall
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.result import Result
from pedcxr_client.request.retry import RetryState
from pedcxr_client.request.served_model import ServedModel, choose
from pedcxr_client.stream import ReportStream

if TYPE_CHECKING:
    import openai
    from openai import Stream

T = TypeVar("T")


class Client(BaseClient[Report, ReportStream, bytes]):
    """Asks a pedcxr server for draft reports; safe to share between threads.

    Args:
        url: the server's OpenAI address, usually ending in ``/v1``.
        api_key: sent as a bearer token. No environment variable is read.
        model: the model's name; by default the server is asked once and must offer exactly one.
        timeouts: for each phase, and in total.
        retries: how often to try again after a failed connection, 429 or 503 that does not say when to come back;
            one that does is obeyed until the deadline. 0 turns both off. Nothing is tried again once an answer began.
        insecure_http: allow plain http to another machine.
        metrics: told how each call went, such as :class:`pedcxr_client.metrics.prometheus.Metrics`.

    Raises:
        ConfigurationError: if a value cannot be used.

    Example:
        >>> with Client() as client:  # doctest: +SKIP
        ...     print(client.report("film.png", age="5y", sex="M").text)
    """

    @property
    def openai(self) -> openai.OpenAI:
        """The openai SDK's client beneath, for everything that this one does not do."""
        return self._openai

    def model(self, *, anew: bool = False) -> ServedModel:
        """The model that is asked, as the server describes it; the server is asked once, or ``anew``.

        Raises:
            RequestError: if the server could not be reached, refused or failed.
            ConfigurationError: if it offers several models, or none, and none was named.
        """
        if anew:
            self._model = None
        return self._served(RetryState(self._settings, self._hook), listed=True)

    def reports(self, requests: Iterable[FilmRequest], *, concurrency: int = 8) -> Generator[Result, None, None]:
        """Write reports of many films and give the results as they finish; one film's error never stops the others.

        The requests run in a thread of their own. Leaving the loop early, or closing the generator, ends those that
        are under way on the server too.

        Args:
            requests: may be endless: at most ``2 * concurrency`` are read ahead of the results taken.
            concurrency: films under way at once, their reading and encoding included; as many connections are kept.

        Raises:
            ConfigurationError: if ``concurrency`` is below 1, or something else than an FilmRequest is given.

        Example:
            >>> requests = (FilmRequest(p, age="5y", key=p.stem) for p in folder.glob("*.dcm"))  # doctest: +SKIP
            >>> for result in client.reports(requests, concurrency=32):  # doctest: +SKIP
            ...     print(result.request.key, result.report.text if result.report else result.error)
        """
        return concurrent.as_they_finish_in_a_thread(self._writer, requests, concurrency)

    def close(self) -> None:
        """Close the connections; the client is of no use afterwards."""
        self._openai.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self) -> None:
        import openai

        settings = self._settings
        self._openai = openai.OpenAI(
            base_url=settings.url,
            api_key=settings.api_key or payload.NO_KEY,
            max_retries=0,
            default_headers=payload.default_headers(settings.api_key),
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False,  # a film goes to the address given and nowhere else
                trust_env=not settings.is_loopback,  # nor through a proxy to this very machine
                verify=payload.trust(settings.url),
                limits=payload.pool(),
            ),
        )

    def _report(self, request: FilmRequest) -> Report:
        with self._stream(request) as stream:
            for _ in stream:
                pass
            return stream.report

    def _stream(self, request: FilmRequest) -> ReportStream:
        return ReportStream(self, request)

    @asynccontextmanager
    async def _writer(self) -> AsyncIterator[concurrent.Write]:
        settings = self._settings
        async with AsyncClient(
            settings.url,
            api_key=settings.api_key,
            model=settings.model,
            timeouts=settings.timeouts,
            retries=settings.retries,
            insecure_http=settings.insecure_http,
            metrics=self._hook,
        ) as client:
            yield client._report

    def _payload(self, request: FilmRequest, *, stream: bool) -> bytes:
        exchange = ReportCall(self._settings, request, NullHook())
        size = self._image_size(exchange)
        exchange.prepare(size)
        return exchange.body(self._served(exchange.attempts, listed=False), stream=stream)

    def _post(self, exchange: ReportCall) -> Stream[object]:
        """Send the film, again if need be, until an answer begins."""
        import openai

        model = self._served(exchange.attempts, listed=False)
        return _persist(
            exchange.attempts,
            lambda: self._openai.post(
                "/chat/completions",
                content=exchange.body(model),
                cast_to=object,
                options={"timeout": exchange.attempts.timeout(), "headers": exchange.headers},
                stream=True,
                stream_cls=openai.Stream[object],
            ),
        )

    def _image_size(self, exchange: ReportCall) -> tuple[int, int] | None:
        return (self._served(exchange.attempts, listed=True)).image_size if exchange.asks_size else None

    def _served(self, attempts: RetryState, *, listed: bool) -> ServedModel:
        """The model to ask; ``listed``: as the server describes it, be it named or not."""
        name = self._settings.model
        if self._model is None and name is not None and not listed:
            return ServedModel(name)
        if self._model is None:
            listing = _persist(
                attempts,
                lambda: self._openai.get("/models", cast_to=object, options={"timeout": attempts.timeout()}),
            )
            self._model = choose(listing, self._settings.url, name)
        return self._model


def _persist(attempts: RetryState, ask: Callable[[], T]) -> T:
    import openai

    while True:
        try:
            return ask()
        except (openai.OpenAIError, ValueError) as error:
            wait = attempts.wait_after(error)
        time.sleep(wait)
