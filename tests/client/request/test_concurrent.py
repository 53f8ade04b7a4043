"""Many films at once, from both twins alike."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest

from pedcxr_client import AsyncClient, BadRequest, Client, ConfigurationError, FilmRequest, InputError, TruncatedReport
from tests.support.fake_engine import TEXT, Answer


def test_each_film_has_one_result_and_errors_stay_their_own(engine, film, twin):
    engine.reply(Answer(finish="length"), Answer(status=400))
    requests = [
        *(FilmRequest(film, age="5y", key=number) for number in range(8)),
        FilmRequest(film, age="62", key="age"),
        FilmRequest("missing.png", key="path"),
    ]
    results = twin.reports(engine.url, requests, concurrency=3)
    assert sorted(result.index for result in results) == list(range(10))
    assert all(result.request is requests[result.index] for result in results)
    assert all((result.report is None) != (result.error is None) for result in results)
    kinds = sorted(type(result.error).__name__ for result in results if result.error)
    assert kinds == sorted(kind.__name__ for kind in (TruncatedReport, BadRequest, InputError, InputError))
    assert {result.report.text for result in results if result.report} == {TEXT}
    assert {result.request.key for result in results if isinstance(result.error, InputError)} == {"age", "path"}


def test_results_come_as_they_finish(engine, film, twin):
    engine.reply(Answer(first=1.0))
    results = twin.reports(engine.url, [FilmRequest(film) for _ in range(6)], concurrency=2, model="fake")
    assert [result.report is not None for result in results] == [True] * 6
    assert [result.index for result in results][-1] in (0, 1), "one of the first two waited for a second"


@pytest.mark.parametrize("concurrency", [1, 4])
def test_no_more_at_once_than_asked(engine, film, twin, concurrency):
    engine.answer = Answer(gap=0.005)
    busiest = 0
    lock = threading.Lock()

    class Busy:
        now = 0

        def started(self):
            nonlocal busiest
            with lock:
                self.now += 1
                busiest = max(busiest, self.now)

        def retrying(self, error, wait): ...

        def finished(self, outcome):
            with lock:
                self.now -= 1

    requests = (FilmRequest(film) for _ in range(20))
    assert len(twin.reports(engine.url, requests, concurrency=concurrency, metrics=Busy())) == 20
    assert busiest == concurrency


def test_an_endless_iterable_is_not_read_far_ahead(engine, film, twin):
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield FilmRequest(film)

    results = twin.reports(engine.url, endless(), concurrency=4, stop_after=10)
    assert len(results) == 10
    assert len(read) <= 10 + 2 * 4


def test_leaving_early_closes_what_is_under_way(engine, film, twin):
    engine.answer = Answer(stall_after=1)
    engine.reply(Answer(first=1))  # meanwhile the others are asked
    results = twin.reports(engine.url, (FilmRequest(film) for _ in range(100)), concurrency=4, stop_after=1)
    assert [result.report.text for result in results] == [TEXT]
    stalled = [seen for seen in engine.chats if not seen.answered.is_set()]
    assert stalled
    assert all(seen.disconnected.wait(5) for seen in stalled)
    assert not [thread for thread in threading.enumerate() if thread.name == "pedcxr-reports"]


def test_cancelling_a_task_that_reads_results_closes_them(engine, film):
    engine.answer = Answer(stall_after=1)

    async def run() -> None:
        async with AsyncClient(engine.url) as client:

            async def read() -> None:
                async for _ in client.reports((FilmRequest(film) for _ in range(5)), concurrency=2):
                    pass

            task = asyncio.ensure_future(read())
            while len(engine.chats) < 2:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert all(seen.disconnected.wait(5) for seen in engine.chats)
    assert len(engine.chats) == 2


def test_an_error_of_the_iterable_is_the_callers(engine, film, twin):
    def broken():
        yield FilmRequest(film)
        raise LookupError("row 2")

    with pytest.raises(LookupError, match="row 2"):
        twin.reports(engine.url, broken(), concurrency=2)


@pytest.mark.parametrize(("requests", "concurrency"), [(["film.png"], 2), ([], 0)])
def test_wrong_use_is_said(engine, twin, requests, concurrency):
    with pytest.raises(ConfigurationError, match=r"FilmRequest\(film\)|1 or more"):
        twin.reports(engine.url, requests, concurrency=concurrency)


def test_nothing_to_do(engine, twin):
    assert twin.reports(engine.url, []) == []


def test_as_many_connections_as_films_at_once_and_kept(engine, film, twin):
    engine.answer = Answer(first=0.01)
    twin.reports(engine.url, (FilmRequest(film) for _ in range(400)), concurrency=120, model="fake")
    ports = {seen.peer for seen in engine.chats}
    assert len(engine.chats) == 400
    assert len(ports) <= 120


def test_inside_an_event_loop_the_sync_twin_works_too(engine, film):
    async def run() -> int:
        with Client(engine.url) as client:
            return len(list(client.reports([FilmRequest(film)] * 3)))

    assert asyncio.run(run()) == 3


def test_results_say_nothing_of_the_film(engine, twin):
    [result] = twin.reports(engine.url, [FilmRequest("Popescu.png", key="Popescu")])
    assert "Popescu" not in repr(result) + repr(result.request)
