"""Which films are refused after deaths of the engine."""

from __future__ import annotations

import pytest

from pedcxr_serve.gateway.accounting.film_quarantine import FilmQuarantine
from pedcxr_serve.gateway.accounting.metrics import RequestRecord
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.request.image_splice import RequestRefused
from pedcxr_serve.gateway.scheduler import Ticket

TEAM, FILM = Tenant("team"), b"f" * 32


class Bench:
    """A quarantine with a clock, and requests that end when the engine dies."""

    def __init__(self) -> None:
        self.now = 0.0
        self.quarantine = FilmQuarantine(lambda: self.now)

    def request(self, outcome: str, *, film: bytes | None = FILM, token: bool = False, tenant: Tenant = TEAM) -> None:
        record = RequestRecord(tenant, "r", first_token_at=1.0 if token else None)
        with self.quarantine.observed(film, Ticket(tenant, stage="running"), record):
            record.outcome = outcome

    def refuses(self, film: bytes | None = FILM, tenant: str = "team") -> bool:
        try:
            self.quarantine.check(tenant, film)
        except RequestRefused as error:
            return (error.code, error.status) == ("film_quarantined", 422)
        return False

    def deaths(self, number: int, outcome: str = "engine_lost", *, token: bool = False) -> None:
        for _ in range(number):
            self.request(outcome, token=token)
            self.quarantine.engine_died()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_film_is_refused_after_the_second_death_for_an_hour(bench: Bench) -> None:
    bench.deaths(1)
    assert not bench.refuses()
    bench.deaths(1)
    assert bench.refuses()
    assert not bench.refuses(tenant="other"), "one tenant does not learn what another sent"
    assert not bench.refuses(b"g" * 32) and not bench.refuses(None)
    bench.now = 3601
    assert not bench.refuses()


def test_request_that_is_still_running_counts(bench: Bench) -> None:
    for _ in range(2):
        record = RequestRecord(TEAM, "r")
        with bench.quarantine.observed(FILM, Ticket(TEAM, stage="running"), record):
            bench.quarantine.engine_died()
            record.outcome = "engine_lost"
        bench.now += 60
    assert bench.refuses()


def test_one_death_counts_once_for_a_film_sent_twice(bench: Bench) -> None:
    bench.request("engine_lost")
    bench.deaths(1)
    assert not bench.refuses()


@pytest.mark.parametrize("stage", ["open", "waiting"])
def test_film_that_the_engine_never_had_is_no_suspect(bench: Bench, stage: str) -> None:
    for _ in range(2):
        with bench.quarantine.observed(FILM, Ticket(TEAM, stage=stage), RequestRecord(TEAM, "r")):
            bench.quarantine.engine_died()
    assert not bench.refuses()


def test_film_with_text_is_no_suspect(bench: Bench) -> None:
    bench.deaths(3, token=True)
    assert not bench.refuses()


def test_report_clears_a_film(bench: Bench) -> None:
    bench.deaths(1)
    bench.request("ok")
    bench.deaths(1)
    assert not bench.refuses()


def test_loss_long_before_the_death_does_not_count(bench: Bench) -> None:
    for _ in range(2):
        bench.request("engine_lost")
        bench.now += 11
        bench.quarantine.engine_died()
    assert not bench.refuses()
