"""Process the films of a batch concurrently. Each film becomes exactly one line of the output."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import cast

from pedcxr_client.batch.manifest import Entry
from pedcxr_client.batch.outage import UNAVAILABLE, Outage, OutageTooLong
from pedcxr_client.batch.output_file import OutputFile, error_line, report_line
from pedcxr_client.client import AsyncClient
from pedcxr_client.errors import (
    AbortedReport,
    AuthenticationFailed,
    BadRequest,
    ConfigurationError,
    ConnectionFailed,
    InputError,
    NotFound,
    PedcxrError,
    RequestError,
    ServerFailed,
    TimedOut,
)
from pedcxr_client.films import files
from pedcxr_client.films.age import Age
from pedcxr_client.films.geometry import Preparation
from pedcxr_client.reports.report import Report
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.prompts import Profile
from pedcxr_client.types import ServedModel, Sex, Views

_FATAL_ERRORS = (AuthenticationFailed, NotFound, ConfigurationError, OutageTooLong)  # each would fail every film
_AMBIGUOUS_ERRORS = (AbortedReport, ServerFailed, TimedOut, ConnectionFailed)  # caused by the film if they repeat
_MAX_ATTEMPTS = 3  # per film that ends in an ambiguous error


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """Settings that apply to every film of a batch. ``age`` and ``sex`` are used where the entry gives no value.

    ``default_age`` and ``default_sex`` are used where neither the entry nor the header gives one.
    ``allow`` is combined with that of the entry. ``concurrency`` is the maximum number of films processed at the same
    time, and ``patience`` the seconds to wait for an unavailable server.
    """

    age: Age | None = None
    sex: Sex | None = None
    default_age: Age | None = None
    default_sex: Sex | None = None
    views: Views = "any"
    assume_chest: bool = False
    allow: tuple[str, ...] = ()
    max_tokens: int = 500
    preparation: Preparation
    prompt_profile: Profile
    concurrency: int
    patience: float


@dataclass(slots=True)
class BatchCounts:
    """Progress of a batch, in films.

    Attributes:
        new_reports: Reports of this run.
        earlier_reports: Films that had a report before this run.
        refusals: Films that cannot be sent or that the server rejects, in this run or before.
        failures: Films without a report because of the server; another run retries them.
        is_demo: Whether the demonstration model wrote a report.
    """

    new_reports: int = 0
    earlier_reports: int = 0
    refusals: int = 0
    failures: int = 0
    is_demo: bool = False


class Batch:
    """One run of a batch.

    The client has ``retries=0``, because the films of a batch wait for the server together. ``on_film`` is called after
    each film, with False if the film had a line already.
    """

    def __init__(
        self,
        client: AsyncClient,
        output: OutputFile,
        settings: BatchSettings,
        counts: BatchCounts,
        *,
        on_film: Callable[[bool], None],
        on_outage: Callable[[RequestError], None],
    ) -> None:
        self._client, self._output, self._settings, self._counts = client, output, settings, counts
        self._on_film = on_film
        self._outage = Outage(self._check_server_and_model, settings.patience, on_outage)
        self._model: ServedModel | None = None

    async def run(self, entries: Iterable[Entry]) -> None:
        """Report every film that has no report yet. Entries are read as workers become free.

        Raise an error that would fail every film in the same way: a wrong key, an unknown model, a full disk.
        """
        self._model = await self._wait_for_model()
        source = iter(entries)
        workers = [asyncio.create_task(self._work(source)) for _ in range(self._settings.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self._output.drain()

    async def _work(self, source: Iterable[Entry]) -> None:
        for entry in source:  # an iterator that all workers share
            await self._process(entry)

    async def _process(self, entry: Entry) -> None:
        film = await asyncio.to_thread(_read, entry)
        request = self._request(entry, film)
        key = self._key(entry, request, film)
        if key in self._output.completed or key in self._output.refused:
            self._count_earlier(key)
            return self._on_film(False)
        try:
            if film.error is not None:
                raise film.error
            report = await self._report(request)
        except _FATAL_ERRORS:
            raise
        except PedcxrError as error:
            refused = isinstance(error, InputError | BadRequest)
            await self._output.append(error_line(error, film_id=entry.id, key=key, refused=refused))
            self._counts.refusals += refused
            self._counts.failures += not refused
        else:
            await self._output.append(report_line(report, film_id=entry.id, key=key))
            self._counts.new_reports += 1
            self._counts.is_demo = self._counts.is_demo or report.demo
        return self._on_film(True)

    async def _report(self, request: FilmRequest) -> Report:
        attempts = 0
        while True:
            try:
                report = await self._client._report(request)
            except (*UNAVAILABLE, *_AMBIGUOUS_ERRORS) as error:
                attempts += isinstance(error, _AMBIGUOUS_ERRORS)
                if attempts == _MAX_ATTEMPTS:
                    raise
                await self._outage.wait(error)
            else:
                self._outage.end()
                return report

    async def _wait_for_model(self) -> ServedModel:
        while True:
            try:
                return await self._client.model()
            except UNAVAILABLE as error:
                await self._outage.wait(error)

    async def _check_server_and_model(self) -> None:
        model = await self._client.model(refresh=True)
        if self._model is not None and model != self._model:
            raise ConfigurationError(
                "the server now serves another model or revision; completed reports are kept: run the same command "
                "again to report the remaining films with the new model"
            )

    def _request(self, entry: Entry, film: _FileContent) -> FilmRequest:
        settings = self._settings
        return FilmRequest(
            film.data,
            age=entry.age or settings.age,
            sex=cast("Sex | None", entry.sex or settings.sex),  # validated when the request is prepared
            default_age=settings.default_age,
            default_sex=settings.default_sex,
            views=settings.views,
            max_tokens=settings.max_tokens,
            assume_chest=entry.assume_chest or settings.assume_chest,
            allow=(*settings.allow, *entry.allow),
            preparation=settings.preparation.sized(self._model.image_size if self._model is not None else None),
            prompt_profile=settings.prompt_profile,
        )

    def _key(self, entry: Entry, request: FilmRequest, film: _FileContent) -> bytes:
        """Return 16 bytes that identify everything the report depends on."""
        assert self._model is not None
        values = [
            entry.id, film.sha256, request.preparation.tag, request.prompt_profile.tag, request.prompt_profile.sha256,
            str(request.age), request.sex, request.assume_chest, sorted(set(request.allow)), request.max_tokens,
            self._model.name, self._model.revision,
        ]  # fmt: skip
        if request.default_age is not None or request.default_sex is not None or request.views != "any":
            values += [str(request.default_age), request.default_sex, request.views]
        return sha256(json.dumps(values).encode()).digest()[:16]

    def _count_earlier(self, key: bytes) -> None:
        if key in self._output.completed:
            self._counts.earlier_reports += 1
        else:
            self._counts.refusals += 1


@dataclass(frozen=True, slots=True, repr=False)
class _FileContent:
    data: bytes
    sha256: str
    error: InputError | None = None


def _read(entry: Entry) -> _FileContent:
    try:
        data = files.read(entry.path, "the film")  # the output names a film by its id, never by its path
    except InputError as error:
        return _FileContent(b"", "", error)
    return _FileContent(data, sha256(data).hexdigest())
