"""Refuse a film that ends the engine, so that it cannot take the engine down again and again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from pedcxr_serve.gateway.accounting.metrics import RequestRecord
from pedcxr_serve.gateway.request.image_splice import RequestRefused

_KEPT_S = 3600.0
_LOST_S = 10.0  # a request may lose its connection this long before the supervisor notices that the engine died
_Film = tuple[str, bytes]  # the tenant, and the SHA-256 of the film


class FilmQuarantine:
    """Finds the tenant's film that ends the engine, among all films that the engine had before their first token.

    After a death all of these films are suspects. The scheduler sends a suspect only while the engine has no other
    suspect before its first token. A suspect that was the only one at a further death is quarantined. A suspect that
    gets its first token is cleared. Both states last one hour.

    Films without suspicion run beside a suspect. One that ends the engine becomes a suspect, and is found later. To run
    a suspect entirely alone would stop all tenants for each suspect, for a whole report if it is not streamed. Several
    gateways of one engine do not know each other's suspects.

    ``clock`` returns seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sent: dict[RequestRecord, _Film] = {}  # requests that the engine has
        self._lost: dict[_Film, float] = {}
        self._suspects: dict[_Film, float] = {}  # time of the last death
        self._quarantined: dict[_Film, float] = {}

    def check(self, tenant: str, film: bytes | None) -> bool:
        """Return whether the film is a suspect.

        Raises:
            RequestRefused: 422 ``film_quarantined``, the film is quarantined.
        """
        key = tenant, film or b""
        if self._is_recent(self._quarantined.get(key)):
            raise RequestRefused(
                "the engine died each time it read this film, which is refused for an hour; export the film again, or "
                "send it as PNG",
                code="film_quarantined",
                status=422,
            )
        return self._is_recent(self._suspects.get(key))

    @contextlib.contextmanager
    def observed(self, film: bytes | None, record: RequestRecord) -> Iterator[None]:
        """Watch a request from the time when it is sent to the engine to its end."""
        if film is None:
            yield
            return
        key = record.tenant.name, film
        self._sent[record] = key
        try:
            yield
        finally:
            is_counted = self._sent.pop(record, None) is None  # by `engine_died`
            if record.first_token_at is not None or record.outcome in ("ok", "length"):
                self._suspects.pop(key, None)
                self._lost.pop(key, None)
            elif record.outcome == "engine_lost" and not is_counted:
                self._lost[key] = self._clock()

    def engine_died(self) -> None:
        """Record that the engine ended or hung, without a request to stop."""
        now = self._clock()
        films = {film for film, lost_at in self._lost.items() if now - lost_at < _LOST_S}
        films |= {film for record, film in self._sent.items() if record.first_token_at is None}
        self._lost.clear()
        self._sent.clear()
        self._suspects = {film: at for film, at in self._suspects.items() if self._is_recent(at)}
        self._quarantined = {film: at for film, at in self._quarantined.items() if self._is_recent(at)}
        suspects = films & self._suspects.keys()
        if len(suspects) == 1:
            self._quarantined[suspects.pop()] = now
        self._suspects |= dict.fromkeys(films, now)

    def _is_recent(self, at: float | None) -> bool:
        return at is not None and self._clock() - at < _KEPT_S
