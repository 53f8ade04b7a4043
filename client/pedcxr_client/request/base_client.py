"""What the two clients have in common: how they are made, and what they can be asked for.

The twins differ in what a call gives back: a value, or a coroutine of one. Hence the type variables; the arguments
and their words stand here once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Generic, TypeVar

from pedcxr_client.films.age import Age
from pedcxr_client.films.film import FilmSource
from pedcxr_client.films.geometry import DISPLAY, Preparation
from pedcxr_client.metrics.hooks import Hook, NullHook
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.prompts import CARD, Profile
from pedcxr_client.request.served_model import ServedModel
from pedcxr_client.request.settings import DEFAULT_TIMEOUTS, DEFAULT_URL, Settings, Timeouts
from pedcxr_client.types import Sex

Written = TypeVar("Written")
"""A Report, or a coroutine of one."""
Stream = TypeVar("Stream")
"""A ReportStream or its twin."""
Payload = TypeVar("Payload")
"""Bytes, or a coroutine of them."""


class BaseClient(ABC, Generic[Written, Stream, Payload]):
    """The arguments of Client and AsyncClient."""

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
        self._hook: Hook = NullHook() if metrics is None else metrics
        self._model: ServedModel | None = None
        self._connect()

    def report(
        self,
        film: FilmSource,
        *,
        age: Age | str | None = None,
        sex: Sex | None = None,
        max_tokens: int = 500,
        assume_chest: bool = False,
        allow: Iterable[str] = (),
        preparation: Preparation = DISPLAY,
        prompt_profile: Profile = CARD,
        indication: str | None = None,
    ) -> Written:
        """Write the report of one film. The arguments are those of :class:`FilmRequest`.

        Raises:
            BlockedFilm: if the film is outside the intended use: an adult, an animal, another part of the body.
            InputError: if the film, the age or the sex cannot be sent.
            RequestError: if the server could not be reached, refused or failed.
            ReportError: if text came but is no report; the error carries it.
        """
        return self._report(
            FilmRequest(
                film, age=age, sex=sex, max_tokens=max_tokens, assume_chest=assume_chest, allow=allow,
                preparation=preparation, prompt_profile=prompt_profile, indication=indication,
            )
        )  # fmt: skip

    def stream(
        self,
        film: FilmSource,
        *,
        age: Age | str | None = None,
        sex: Sex | None = None,
        max_tokens: int = 500,
        assume_chest: bool = False,
        allow: Iterable[str] = (),
        preparation: Preparation = DISPLAY,
        prompt_profile: Profile = CARD,
        indication: str | None = None,
    ) -> Stream:
        """Write the report of one film, piece by piece: iterate, then read ``.report``.

        Takes and raises what :meth:`report` does, on entering the ``with``; an unfinished report raises at the end of
        the iteration. Leaving early closes the request on the server.

        Example:
            >>> with client.stream("film.png", age="5y") as stream:  # doctest: +SKIP
            ...     for piece in stream:
            ...         print(piece, end="", flush=True)
            ...     report = stream.report
        """
        return self._stream(
            FilmRequest(
                film, age=age, sex=sex, max_tokens=max_tokens, assume_chest=assume_chest, allow=allow,
                preparation=preparation, prompt_profile=prompt_profile, indication=indication,
            )
        )  # fmt: skip

    def payload(
        self,
        film: FilmSource,
        *,
        age: Age | str | None = None,
        sex: Sex | None = None,
        max_tokens: int = 500,
        assume_chest: bool = False,
        allow: Iterable[str] = (),
        preparation: Preparation = DISPLAY,
        prompt_profile: Profile = CARD,
        indication: str | None = None,
        stream: bool = True,
    ) -> Payload:
        """The JSON that :meth:`report` would send of one film, to the byte, for other languages to copy; sends no film.

        Takes and raises what :meth:`report` does. The server is asked for its model where none is named.

        Args:
            stream: False for the same question answered in one piece, which is simpler to read elsewhere.
        """
        return self._payload(
            FilmRequest(
                film, age=age, sex=sex, max_tokens=max_tokens, assume_chest=assume_chest, allow=allow,
                preparation=preparation, prompt_profile=prompt_profile, indication=indication,
            ),
            stream=stream,
        )  # fmt: skip

    @abstractmethod
    def _connect(self) -> None: ...

    @abstractmethod
    def _report(self, request: FilmRequest) -> Written: ...

    @abstractmethod
    def _stream(self, request: FilmRequest) -> Stream: ...

    @abstractmethod
    def _payload(self, request: FilmRequest, *, stream: bool) -> Payload: ...
