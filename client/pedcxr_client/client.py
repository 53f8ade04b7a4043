"""The synchronous client. Its twin is async_client.py; what they share is in _exchange.py."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from . import _wire
from ._exchange import Exchange, Order
from ._settings import DEFAULT_TIMEOUTS, DEFAULT_URL, Settings, Timeouts
from ._watched import Watched
from .age import Age
from .gate import Asked
from .hook import Hook, Silent
from .image import Film
from .preparation import DISPLAY, Preparation
from .prompt import Sex
from .report import Report

if TYPE_CHECKING:
    import openai


class Client:
    """Asks a pedcxr server for draft reports; safe to share between threads.

    Args:
        url: the server's OpenAI address, usually ending in ``/v1``.
        api_key: sent as a bearer token. No environment variable is read.
        model: the model's name; by default the server is asked once and must offer exactly one.
        timeouts: for each phase, and in total.
        retries: how often to try again after a failed connection, 429 or 503 that does not say when to come back;
            one that does is obeyed until the deadline. 0 turns both off. Nothing is tried again once an answer began.
        insecure_http: allow plain http to another machine.
        metrics: told how each call went, such as :class:`pedcxr_client.metrics.Metrics`.

    Raises:
        ConfigurationError: if a value cannot be used.

    Example:
        >>> with Client() as client:  # doctest: +SKIP
        ...     print(client.report("film.png", age="5y", sex="M").text)
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
    def openai(self) -> openai.OpenAI:
        """The openai SDK's client beneath, for everything that this one does not do."""
        return self._openai

    def report(
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
        """Write the report of one film.

        Args:
            film: DICOM or an image: a path, bytes, an open file, a Pillow image, an array, or an EncodedImage.
            age: at the time of the film, as an Age or a text such as ``"5y"``; None takes that of a DICOM header.
            sex: ``"M"`` or ``"F"``; None takes that of a DICOM header. What neither says is left out of the prompt.
            max_tokens: 1 or more; a report that does not fit is an error.
            assume_chest: it shows a chest, should its header not say what it shows.
            allow: names of checks that must not block; see :mod:`pedcxr_client.gate`. Recorded in the report.
            preparation: what is done to the pixels; an EncodedImage is sent as it is.

        Raises:
            BlockedFilm: if the film is outside the intended use: an adult, an animal, another part of the body.
            InputError: if the film, the age or the sex cannot be sent.
            RequestError: if the server could not be reached, refused or failed.
            ReportError: if text came but is no report; the error carries it.
        """
        with self.stream(
            film, age=age, sex=sex, max_tokens=max_tokens, assume_chest=assume_chest, allow=allow,
            preparation=preparation,
        ) as stream:  # fmt: skip
            for _ in stream:
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
    ) -> ReportStream:
        """Write the report of one film, piece by piece: iterate, then read ``.report``.

        Takes and raises what :meth:`report` does, most of it on entering the ``with``; an unfinished report raises at
        the end of the iteration. Leaving early closes the request on the server.

        Example:
            >>> with client.stream("film.png", age="5y") as stream:  # doctest: +SKIP
            ...     for piece in stream:
            ...         print(piece, end="", flush=True)
            ...     report = stream.report
        """
        asked = Asked(
            age=Age.parse(age) if isinstance(age, str) else age, sex=sex, assume_chest=assume_chest, allow=allow
        )
        return ReportStream(self, Order(film, asked, preparation, max_tokens))

    def close(self) -> None:
        """Close the connections; the client is of no use afterwards."""
        self._openai.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _model_name(self, exchange: Exchange) -> str:
        if self._model is None:
            listing = self._openai.get("/models", cast_to=object, options={"timeout": exchange.timeout()})
            self._model = _wire.only_model(listing, self._settings.url)
        return self._model


class ReportStream:
    """A report as it is written: an iterator of text inside a ``with``; made by :meth:`Client.stream`."""

    def __init__(self, client: Client, order: Order) -> None:
        self._client, self._order = client, order
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
        self._exchange = Exchange(self._client._settings, self._order, self._client._hook)
        try:
            self._exchange.prepare()
            self._events = self._open()
            self._exchange.answered(self._events.response.headers)
            self._events.response = cast("Any", Watched(self._events.response, self._exchange.remaining))
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

    def _open(self) -> openai.Stream[object]:
        import openai

        exchange, client = self._exchange, self._client
        while True:
            try:
                model = client._model_name(exchange)
                options: openai.RequestOptions = {"timeout": exchange.timeout(), "headers": _wire.JSON_HEADERS}
                return client.openai.post(
                    "/chat/completions",
                    content=exchange.body(model),
                    cast_to=object,
                    options=options,
                    stream=True,
                    stream_cls=openai.Stream[object],
                )
            except (openai.OpenAIError, ValueError) as error:
                wait = exchange.wait_after(error)
            time.sleep(wait)

    def _close(self, error: BaseException | None) -> None:
        self._exchange.give_up(error)
        if self._events is not None:
            self._events.close()


_END = object()


def _connect(settings: Settings) -> openai.OpenAI:
    import openai

    return openai.OpenAI(
        base_url=settings.url,
        api_key=settings.api_key or _wire.NO_KEY,
        max_retries=0,
        default_headers=_wire.default_headers(settings.api_key),
        http_client=openai.DefaultHttpxClient(
            follow_redirects=False,  # a film goes to the address given and nowhere else
            trust_env=not settings.is_loopback,  # nor through a proxy to this very machine
            verify=_wire.trust(settings.url),
        ),
    )
