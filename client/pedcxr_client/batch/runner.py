"""A batch, from entries to lines: many films at once, each its own line, nothing twice and nothing lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import cast

from pedcxr_client.batch import lines
from pedcxr_client.batch.entry import Entry
from pedcxr_client.batch.outage import AWAY, Outage, ServerAway
from pedcxr_client.batch.output_file import Journal
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
from pedcxr_client.films.preparation import Preparation
from pedcxr_client.reports.report import Report
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.prompts import Profile
from pedcxr_client.types import ServedModel, Sex

_FATAL = (AuthenticationFailed, NotFound, ConfigurationError, ServerAway)  # of every film alike: no use to go on
_DOUBTFUL = (AbortedReport, ServerFailed, TimedOut, ConnectionFailed)  # the film's own fault if it comes again
_TRIES = 3  # of a film with those


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked of every film.

    Attributes:
        age, sex, assume_chest, allow: where the entry says nothing; ``allow`` comes on top of the entry's.
        max_tokens, preparation, prompt_profile: as of :class:`FilmRequest`.
        concurrency: films under way at once.
        patience: seconds that a server which is away is waited for.
    """

    age: Age | None = None
    sex: Sex | None = None
    assume_chest: bool = False
    allow: tuple[str, ...] = ()
    max_tokens: int = 500
    preparation: Preparation
    prompt_profile: Profile
    concurrency: int
    patience: float


@dataclass(slots=True)
class Tally:
    """How far a batch is.

    Attributes:
        written: reports of this run.
        before: films that had a report.
        refused: films that cannot be sent or that the server does not take, this time or before.
        failed: films that the server has not reported; another run tries them again.
        demo: whether the demonstration model wrote.
    """

    written: int = 0
    before: int = 0
    refused: int = 0
    failed: int = 0
    demo: bool = False


class Batch:
    """One run.

    Args:
        client: made with ``retries=0``: here all films wait together.
        journal: where the lines go.
        plan: what is asked.
        tally: counted up as the batch goes.
        settled: called after each film: True if there was something to do.
        away: called when the server goes away.
    """

    def __init__(
        self,
        client: AsyncClient,
        journal: Journal,
        plan: Plan,
        tally: Tally,
        *,
        settled: Callable[[bool], None],
        away: Callable[[RequestError], None],
    ) -> None:
        self._client, self._journal, self._plan, self._tally = client, journal, plan, tally
        self._settled = settled
        self._outage = Outage(self._ask, plan.patience, away)
        self._model: ServedModel | None = None

    async def run(self, entries: Iterable[Entry]) -> None:
        """Report every film that has no report yet. Reads entries as it needs them.

        Raises:
            ServerAway: if the server stays away for longer than the plan's patience.
            PedcxrError: what would befall every film alike: a wrong key, no such model, a full disk.
        """
        self._model = await self._first_answer()
        source = iter(entries)
        workers = [asyncio.create_task(self._work(source)) for _ in range(self._plan.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self._journal.drain()

    async def _work(self, source: Iterable[Entry]) -> None:
        for entry in source:  # shared: whoever is free takes the next one
            await self._settle(entry)

    async def _settle(self, entry: Entry) -> None:
        film = await asyncio.to_thread(_read, entry)
        request = self._request(entry, film)
        key = self._key(entry, request, film)
        if key in self._journal.done or key in self._journal.refused:
            self._count_before(key)
            return self._settled(False)
        try:
            if film.error is not None:
                raise film.error
            report = await self._report(request)
        except _FATAL:
            raise
        except PedcxrError as error:
            refused = isinstance(error, InputError | BadRequest)
            await self._journal.append(lines.of_error(error, film_id=entry.id, key=key, refused=refused))
            self._tally.refused += refused
            self._tally.failed += not refused
        else:
            await self._journal.append(lines.of_report(report, film_id=entry.id, key=key))
            self._tally.written += 1
            self._tally.demo = self._tally.demo or report.demo
        return self._settled(True)

    async def _report(self, request: FilmRequest) -> Report:
        tries = 0
        while True:
            try:
                report = await self._client._report(request)
            except (*AWAY, *_DOUBTFUL) as error:
                tries += isinstance(error, _DOUBTFUL)
                if tries == _TRIES:
                    raise
                await self._outage.wait(error)
            else:
                self._outage.over()
                return report

    async def _first_answer(self) -> ServedModel:
        while True:
            try:
                return await self._client.model()
            except AWAY as error:
                await self._outage.wait(error)

    async def _ask(self) -> None:
        """Ask the server whether it is there, and whether it is still the same one."""
        model = await self._client.model(anew=True)
        if self._model is not None and model != self._model:
            raise ConfigurationError(
                "the server came back with another model or revision; what is done is kept: run the same command again "
                "to report the rest with that one"
            )

    def _request(self, entry: Entry, film: _Bytes) -> FilmRequest:
        plan = self._plan
        return FilmRequest(
            film.data,
            age=entry.age or plan.age,
            sex=cast("Sex | None", entry.sex or plan.sex),  # looked at when the film is taken in
            max_tokens=plan.max_tokens,
            assume_chest=entry.assume_chest or plan.assume_chest,
            allow=(*plan.allow, *entry.allow),
            preparation=plan.preparation.sized(self._model.image_size if self._model is not None else None),
            prompt_profile=plan.prompt_profile,
        )

    def _key(self, entry: Entry, request: FilmRequest, film: _Bytes) -> bytes:
        """What makes a report this one and no other."""
        assert self._model is not None
        told = [
            entry.id, film.sha256, request.preparation.tag, request.prompt_profile.tag, request.prompt_profile.sha256,
            str(request.age), request.sex, request.assume_chest, sorted(set(request.allow)), request.max_tokens,
            self._model.name, self._model.revision,
        ]  # fmt: skip
        return sha256(json.dumps(told).encode()).digest()[:16]

    def _count_before(self, key: bytes) -> None:
        if key in self._journal.done:
            self._tally.before += 1
        else:
            self._tally.refused += 1


@dataclass(frozen=True, slots=True, repr=False)
class _Bytes:
    """A film's file, or why there is none."""

    data: bytes
    sha256: str
    error: InputError | None = None


def _read(entry: Entry) -> _Bytes:
    try:
        data = files.read(entry.path, "the film")  # its path stays out of the output, where the id stands
    except InputError as error:
        return _Bytes(b"", "", error)
    return _Bytes(data, sha256(data).hexdigest())
