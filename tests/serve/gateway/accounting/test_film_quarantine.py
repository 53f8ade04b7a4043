"""Which films are suspected and refused after deaths of the engine."""

from __future__ import annotations

import contextlib

import pytest

from pedcxr_serve.gateway.accounting.film_quarantine import FilmQuarantine
from pedcxr_serve.gateway.accounting.metrics import RequestRecord
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.request.image_splice import RequestRefused

TEAM, POISON, INNOCENT = Tenant("team"), b"p" * 32, b"i" * 32


class Bench:
    """A quarantine with a clock, and requests that the engine has until it dies."""

    def __init__(self) -> None:
        self.now = 0.0
        self.quarantine = FilmQuarantine(lambda: self.now)

    def request(
        self, outcome: str = "engine_lost", *, film: bytes | None = POISON, token: bool = False, tenant: Tenant = TEAM
    ) -> None:
        record = RequestRecord(tenant, "r", first_token_at=1.0 if token else None)
        with self.quarantine.observed(film, record):
            record.outcome = outcome

    def die(self, *films: bytes) -> None:
        """The engine dies while it has these films."""
        with contextlib.ExitStack() as stack:
            records = [RequestRecord(TEAM, "r") for _ in films]
            for film, record in zip(films, records, strict=True):
                stack.enter_context(self.quarantine.observed(film, record))
            self.quarantine.engine_died()
            for record in records:
                record.outcome = "engine_lost"

    def refuses(self, film: bytes | None = POISON, tenant: str = "team") -> bool:
        try:
            self.quarantine.check(tenant, film)
        except RequestRefused as error:
            return (error.code, error.status) == ("film_quarantined", 422)
        return False

    def suspects(self, film: bytes | None = POISON, tenant: str = "team") -> bool:
        return not self.refuses(film, tenant) and self.quarantine.check(tenant, film)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_film_is_refused_after_the_second_death_for_an_hour(bench: Bench) -> None:
    bench.die(POISON)
    assert bench.suspects() and not bench.suspects(tenant="other")
    bench.die(POISON)
    assert bench.refuses()
    assert not bench.refuses(tenant="other"), "one tenant does not learn what another sent"
    assert not bench.refuses(INNOCENT) and not bench.refuses(None)
    bench.now = 3601
    assert not bench.refuses() and not bench.suspects()


def test_only_the_sole_suspect_is_refused(bench: Bench) -> None:
    bench.die(POISON, INNOCENT)
    assert bench.suspects() and bench.suspects(INNOCENT)
    bench.die(POISON, b"n" * 32)
    assert bench.refuses()
    assert bench.suspects(INNOCENT) and bench.suspects(b"n" * 32)


def test_two_suspects_at_one_death_are_both_kept(bench: Bench) -> None:
    """The gateway sends one suspect at a time, but two may be lost before the death is noticed."""
    bench.die(POISON, INNOCENT)
    bench.request(film=INNOCENT)
    bench.now = 5
    bench.die(POISON)
    assert bench.suspects() and bench.suspects(INNOCENT)


def test_loss_that_is_noticed_before_the_death_counts(bench: Bench) -> None:
    for _ in range(2):
        bench.request()
        bench.quarantine.engine_died()
    assert bench.refuses()


def test_one_death_counts_once_for_a_film_sent_twice(bench: Bench) -> None:
    bench.request()
    bench.die(POISON)
    assert bench.suspects()


def test_request_that_fails_after_its_death_is_not_counted_again(bench: Bench) -> None:
    bench.die(POISON)
    bench.quarantine.engine_died()
    assert bench.suspects()


def test_film_with_text_is_no_suspect(bench: Bench) -> None:
    for _ in range(3):
        bench.request(token=True)
        bench.quarantine.engine_died()
    assert not bench.suspects()


@pytest.mark.parametrize(("outcome", "token"), [("ok", False), ("engine_lost", True)], ids=["report", "first token"])
def test_suspect_is_cleared(bench: Bench, outcome: str, token: bool) -> None:
    bench.die(POISON)
    bench.request(outcome, token=token)
    assert not bench.suspects()
    bench.die(POISON)
    assert bench.suspects()


def test_loss_long_before_the_death_does_not_count(bench: Bench) -> None:
    for _ in range(2):
        bench.request()
        bench.now += 11
        bench.quarantine.engine_died()
    assert not bench.suspects()
