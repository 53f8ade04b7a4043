"""Reports of many films, with both clients."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from contextlib import aclosing, closing

import pytest

from pedcxr_client import AsyncClient, BadRequest, Client, ConfigurationError, FilmRequest, InputError, TruncatedReport
from tests.support.servers.fake_engine import TEXT, Answer


def test_each_request_has_one_result_or_error(engine, film, twin):
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
    assert [result.index for result in results][-1] in (0, 1), "the first or second request was slow"


@pytest.mark.parametrize("concurrency", [1, 4])
def test_concurrency_limits_the_requests_in_flight(engine, film, twin, concurrency):
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
    numbers = []

    def endless():
        for number in itertools.count():
            numbers.append(number)
            yield FilmRequest(film)

    results = twin.reports(engine.url, endless(), concurrency=4, stop_after=10)
    assert len(results) == 10
    assert len(numbers) <= 10 + 2 * 4


def all_are_finished(engine, numbers) -> bool:
    """Whether the engine has answered every request that was read, so that the client stores all other results."""
    return len(engine.chats) >= len(numbers) and all(request.answered.is_set() for request in engine.chats)


def test_a_slow_reader_limits_what_is_read_and_stored(engine, film):
    numbers = []

    def endless():
        for number in itertools.count():
            numbers.append(number)
            yield FilmRequest(film)

    with Client(engine.url) as client, closing(client.reports(endless(), concurrency=4)) as results:
        next(results)
        while not all_are_finished(engine, numbers):
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(numbers) <= 1 + 2 * 4


def test_a_slow_async_reader_limits_what_is_read_and_stored(engine, film):
    numbers = []

    def endless():
        for number in itertools.count():
            numbers.append(number)
            yield FilmRequest(film)

    async def run() -> None:
        async with (
            AsyncClient(engine.url) as client,
            aclosing(client.reports(endless(), concurrency=4)) as results,
        ):
            await anext(results)
            while not all_are_finished(engine, numbers):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert len(numbers) <= 1 + 2 * 4

    asyncio.run(run())


def test_leaving_early_cancels_the_requests_in_flight(engine, film, twin):
    engine.answer = Answer(stall_after=1)
    engine.reply(Answer(first=1))  # the other requests are sent meanwhile
    results = twin.reports(engine.url, (FilmRequest(film) for _ in range(100)), concurrency=4, stop_after=1)
    assert [result.report.text for result in results] == [TEXT]
    stalled = [request for request in engine.chats if not request.answered.is_set()]
    assert stalled
    assert all(request.disconnected.wait(5) for request in stalled)
    assert not [thread for thread in threading.enumerate() if thread.name == "pedcxr-client"]


def test_cancelling_the_reading_task_cancels_the_requests(engine, film):
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
    assert all(request.disconnected.wait(5) for request in engine.chats)
    assert len(engine.chats) == 2


def test_an_error_of_the_iterable_propagates(engine, film, twin):
    def broken():
        yield FilmRequest(film)
        raise LookupError("row 2")

    with pytest.raises(LookupError, match="row 2"):
        twin.reports(engine.url, broken(), concurrency=2)


@pytest.mark.parametrize(("requests", "concurrency"), [(["film.png"], 2), ([], 0)])
def test_invalid_arguments_raise(engine, twin, requests, concurrency):
    with pytest.raises(ConfigurationError, match=r"FilmRequest\(film\)|1 or more"):
        twin.reports(engine.url, requests, concurrency=concurrency)


def test_no_requests_give_no_results(engine, twin):
    assert twin.reports(engine.url, []) == []


def test_connections_are_limited_by_concurrency_and_reused(engine, film, twin):
    engine.answer = Answer(first=0.01)
    twin.reports(engine.url, (FilmRequest(film) for _ in range(400)), concurrency=120, model="fake")
    ports = {request.peer for request in engine.chats}
    assert len(engine.chats) == 400
    assert len(ports) <= 120


def test_sync_reports_work_inside_an_event_loop(engine, film):
    async def run() -> int:
        with Client(engine.url) as client:
            return len(list(client.reports([FilmRequest(film)] * 3)))

    assert asyncio.run(run()) == 3


def test_result_repr_contains_no_film_data(engine, twin):
    [result] = twin.reports(engine.url, [FilmRequest("Popescu.png", key="Popescu")])
    assert "Popescu" not in repr(result) + repr(result.request)
