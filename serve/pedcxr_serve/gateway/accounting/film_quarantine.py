"""Refuse a film during which the engine died twice, so that it cannot take the engine down again and again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from pedcxr_serve.gateway.accounting.metrics import RequestRecord
from pedcxr_serve.gateway.request.image_splice import RequestRefused
from pedcxr_serve.gateway.scheduler import Ticket

_DEATHS = 2
_REFUSED_S = 3600.0
_LOST_S = 10.0  # a request may lose its connection this long before the supervisor notices that the engine died
_Film = tuple[str, bytes]  # the tenant, and the SHA-256 of the film


class FilmQuarantine:
    """Counts for each tenant's film how often the engine died before it wrote anything about the film.

    All films that the engine had before their first token are counted, since nobody can tell which of them it was. A
    film that later gets a report is cleared. A count lasts one hour. ``clock`` returns seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: dict[Ticket, tuple[_Film, RequestRecord]] = {}
        self._lost: dict[_Film, float] = {}
        self._deaths: dict[_Film, tuple[int, float]] = {}  # number, and the time of the last one

    def check(self, tenant: str, film: bytes | None) -> None:
        """Raise RequestRefused, 422 ``film_quarantined``, if the film is refused at present."""
        count, at = self._deaths.get((tenant, film or b""), (0, 0.0))
        if count >= _DEATHS and self._clock() - at < _REFUSED_S:
            raise RequestRefused(
                "the engine died each time it read this film, which is refused for an hour; export the film again, or "
                "send it as PNG",
                code="film_quarantined",
                status=422,
            )

    @contextlib.contextmanager
    def observed(self, film: bytes | None, ticket: Ticket, record: RequestRecord) -> Iterator[None]:
        """Watch a request from its place in the queue to its end."""
        if film is None:
            yield
            return
        key = record.tenant.name, film
        self._running[ticket] = key, record
        try:
            yield
        finally:
            del self._running[ticket]
            if record.outcome in ("ok", "length"):
                self._deaths.pop(key, None)
            elif record.outcome == "engine_lost" and record.first_token_at is None:
                self._lost[key] = self._clock()

    def engine_died(self) -> None:
        """Record that the engine ended or hung, without a request to stop."""
        now = self._clock()
        films = {film for film, lost_at in self._lost.items() if now - lost_at < _LOST_S}
        for ticket, (film, record) in self._running.items():
            if ticket.stage == "running" and record.first_token_at is None:
                films.add(film)
        self._lost.clear()
        self._deaths = {film: entry for film, entry in self._deaths.items() if now - entry[1] < _REFUSED_S}
        for film in films:
            self._deaths[film] = self._deaths.get(film, (0, now))[0] + 1, now
