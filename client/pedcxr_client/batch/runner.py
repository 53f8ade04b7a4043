"""Process the films of a batch concurrently. Each film becomes at most one line of the output."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

from pedcxr_client.batch.manifest import Entry
from pedcxr_client.batch.outage import UNAVAILABLE, Outage, OutageTooLong
from pedcxr_client.batch.output_file import (
    OutputFile,
    SkipReason,
    error_line,
    id_digest,
    report_line,
    skip_key,
    skip_line,
)
from pedcxr_client.batch.study_selection import StudySelection
from pedcxr_client.client import AsyncClient
from pedcxr_client.errors import (
    AbortedReport,
    AuthenticationFailed,
    BadRequest,
    ConfigurationError,
    ConnectionFailed,
    InputError,
    MissingResource,
    NotFound,
    RequestError,
    ServerFailed,
    TimedOut,
)
from pedcxr_client.films import dicom, files
from pedcxr_client.films.age import Age
from pedcxr_client.films.geometry import Preparation
from pedcxr_client.reports.report import Report
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.prompts import Profile
from pedcxr_client.types import ServedModel, Sex, Views

_FATAL_ERRORS = (AuthenticationFailed, NotFound, ConfigurationError, OutageTooLong)  # each would fail every film
_AMBIGUOUS_ERRORS = (AbortedReport, ServerFailed, TimedOut, ConnectionFailed)  # caused by the film if they repeat
_AMBIGUOUS_STATUS = {408, 409, 425}  # RFC 9110 and 8470: the same request may succeed later
_REJECTED_STATUS = {400, 422}  # the server read the request and rejects its content
_MAX_ATTEMPTS = 3  # per film that ends in an ambiguous error


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """Settings that apply to every film of a batch. ``age`` and ``sex`` are used where the entry gives no value.

    ``default_age`` and ``default_sex`` are used where neither the entry nor the header gives one.
    ``allow`` is combined with that of the entry. ``concurrency`` is the maximum number of films processed at the same
    time, and ``patience`` the seconds to wait for an unavailable server. ``redo`` permits reports of a model other than
    that of the reports in the output file.
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
    redo: bool = False

    def request(self, entry: Entry, data: bytes, image_size: tuple[int, int] | None = None) -> FilmRequest:
        """Return the request for one film. ``image_size`` is the width and height of the model's input in pixels."""
        return FilmRequest(
            data,
            age=entry.age or self.age,
            sex=entry.sex or self.sex,
            default_age=self.default_age,
            default_sex=self.default_sex,
            views=self.views,
            max_tokens=self.max_tokens,
            assume_chest=entry.assume_chest or self.assume_chest,
            allow=(*self.allow, *entry.allow),
            preparation=self.preparation.sized(image_size),
            prompt_profile=self.prompt_profile,
        )


@dataclass(slots=True)
class BatchCounts:
    """Progress of a batch, in films.

    Attributes:
        new_reports: Reports of this run.
        earlier_reports: Films that had a report before this run.
        refusals: Films that cannot be sent or that the server rejects, in this run or before.
        failures: Films without a report because of the server or of this machine; another run retries them.
        skipped: Films that another film of the run stands for, by the reason.
        is_demo: Whether the demonstration model wrote a report.
    """

    new_reports: int = 0
    earlier_reports: int = 0
    refusals: int = 0
    failures: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    is_demo: bool = False


class Batch:
    """One run of a batch.

    The client has ``retries=0``, because the films of a batch wait for the server together. ``on_film`` is called after
    each film, with False if it was not sent in this run. A ``selection`` has read the headers of all films.
    """

    def __init__(
        self,
        client: AsyncClient,
        output: OutputFile,
        settings: BatchSettings,
        counts: BatchCounts,
        selection: StudySelection | None = None,
        *,
        on_film: Callable[[bool], None],
        on_outage: Callable[[RequestError], None],
    ) -> None:
        self._client, self._output, self._settings, self._counts = client, output, settings, counts
        self._selection, self._on_film = selection, on_film
        self._first_ids: dict[bytes, str] = {}  # by film key
        self._last_turn = asyncio.Event()
        self._last_turn.set()
        self._outage = Outage(self._check_server_and_model, settings.patience, on_outage)
        self._model: ServedModel | None = None

    async def run(self, entries: Iterable[Entry]) -> None:
        """Report every film that has no report yet. Entries are read as workers become free.

        Raise an error that would fail every film in the same way: a wrong key, an unknown model, a full disk.
        """
        self._model = await self._wait_for_model()
        self._check_earlier_model(self._model)
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
            turn, self._last_turn = self._last_turn, asyncio.Event()
            await self._process(entry, turn, self._last_turn)

    async def _process(self, entry: Entry, turn: asyncio.Event, next_turn: asyncio.Event) -> None:
        reason = None if self._selection is None else self._selection.reason_to_skip(entry)
        try:
            film = await _read_in_thread(entry) if reason is None else _NOT_READ
            await turn.wait()  # so that of two entries for one film, the first in the list is reported in every run
            request = self._request(entry, film)
            key, film_key = self._keys(entry, request, film)
            if reason is None and film.error is None:
                reason = self._reason_as_copy(entry, film_key)
        finally:
            next_turn.set()
        if reason is not None:
            return await self._skip(entry, film, reason)
        if key in self._output.completed or key in self._output.refused:
            self._count_earlier(key)
            return self._on_film(False)
        await self._append_line(entry, request, film, key)
        return self._on_film(True)

    def _reason_as_copy(self, entry: Entry, film_key: bytes) -> SkipReason | None:
        first = self._first_ids.setdefault(film_key, entry.id)
        return None if first == entry.id else SkipReason("the same film with the same options is listed before", first)

    async def _skip(self, entry: Entry, film: _FileContent, reason: SkipReason) -> None:
        if id_digest(entry.id) in self._output.reported_ids:
            self._counts.earlier_reports += 1
            return self._on_film(False)
        self._counts.skipped[reason.text] += 1
        if skip_key(entry.id, reason) not in self._output.skipped:
            study = film.study if self._selection is None else self._selection.study_of(entry)
            await self._output.append(skip_line(reason, film_id=entry.id, study=self._output.study(study)))
        return self._on_film(False)

    async def _append_line(self, entry: Entry, request: FilmRequest, film: _FileContent, key: bytes) -> None:
        assert self._model is not None
        study = self._output.study(film.study)
        try:
            if film.error is not None:
                raise film.error
            report = await self._report(request)
        except _FATAL_ERRORS:
            raise
        except Exception as error:  # whatever it is, it ends no other film
            refused = _is_refusal(error)
            kind: Literal["refused", "failed"] = "refused" if refused else "failed"
            await self._output.append(error_line(error, film_id=entry.id, key=key, study=study, kind=kind))
            self._counts.refusals += refused
            self._counts.failures += not refused
        else:
            line = report_line(report, film_id=entry.id, key=key, study=study, model=self._model.name)
            await self._output.append(line)
            self._counts.new_reports += 1
            self._counts.is_demo = self._counts.is_demo or report.demo

    async def _report(self, request: FilmRequest) -> Report:
        attempts = 0
        while True:
            try:
                report = await self._client._report(request)
            except RequestError as error:
                is_ambiguous = _is_ambiguous(error)
                attempts += is_ambiguous
                if not is_ambiguous and not isinstance(error, UNAVAILABLE):
                    self._outage.end()
                    raise
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
                "the server now serves another model or revision; completed reports are kept. To report all films with "
                "it, run the same command with --redo, or with another -o"
            )

    def _check_earlier_model(self, model: ServedModel) -> None:
        if self._output.last_model is None or self._settings.redo:
            return
        name, revision = self._output.last_model
        if revision != model.revision or name not in (None, model.name):
            raise ConfigurationError(
                f"-o: its last report is of {name or 'a model'} at revision {revision or 'unknown'}, but the server "
                f"serves {model.name} at revision {model.revision or 'unknown'}. A run would report every film again; "
                "nothing was sent. Add --redo to do that in this file, or give another -o"
            )

    def _request(self, entry: Entry, film: _FileContent) -> FilmRequest:
        return self._settings.request(entry, film.data, self._model.image_size if self._model is not None else None)

    def _keys(self, entry: Entry, request: FilmRequest, film: _FileContent) -> tuple[bytes, bytes]:
        """Return 16 bytes that identify everything the report depends on, with the id and without it."""
        assert self._model is not None
        values = [
            film.sha256, request.preparation.tag, request.prompt_profile.tag, request.prompt_profile.sha256,
            str(request.age), request.sex, request.assume_chest, sorted(set(request.allow)), request.max_tokens,
            self._model.name, self._model.revision,
        ]  # fmt: skip
        if request.default_age is not None or request.default_sex is not None or request.views != "any":
            values += [str(request.default_age), request.default_sex, request.views]
        key, film_key = (sha256(json.dumps(items).encode()).digest()[:16] for items in ([entry.id, *values], values))
        return key, film_key

    def _count_earlier(self, key: bytes) -> None:
        if key in self._output.completed:
            self._counts.earlier_reports += 1
        else:
            self._counts.refusals += 1


def _is_ambiguous(error: RequestError) -> bool:
    return isinstance(error, _AMBIGUOUS_ERRORS) or error.status_code in _AMBIGUOUS_STATUS


def _is_refusal(error: Exception) -> bool:
    """Return whether the cause is the film, so that another attempt would fail in the same way."""
    if isinstance(error, InputError):
        return not isinstance(error, MissingResource)
    return isinstance(error, BadRequest) and error.status_code in _REJECTED_STATUS


@dataclass(frozen=True, slots=True, repr=False)
class _FileContent:
    data: bytes
    sha256: str
    study: str = ""
    error: Exception | None = None


_NOT_READ = _FileContent(b"", "")


async def _read_in_thread(entry: Entry) -> _FileContent:
    try:
        return await asyncio.to_thread(_read, entry)
    except Exception as error:  # becomes the line of this film
        return _FileContent(b"", "", error=error)


def _read(entry: Entry) -> _FileContent:
    data = files.read(entry.path, "the film")  # the output names a film by its id, never by its path
    return _FileContent(data, sha256(data).hexdigest(), dicom.read_study(data))
