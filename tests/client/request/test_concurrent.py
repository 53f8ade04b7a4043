"""Reports of many films, with both clients."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import subprocess
import sys
import threading
import time
from contextlib import aclosing, closing

import pytest

from pedcxr_client import (
    AsyncClient,
    BadRequest,
    Client,
    ConfigurationError,
    FilmRequest,
    InputError,
    PedcxrError,
    TimedOut,
    Timeouts,
    TruncatedReport,
    Unavailable,
)
from pedcxr_client.request.concurrent import as_they_finish
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
    others = threading.Event()
    engine.reply(Answer(hold=others))

    class Count:
        number = 0

        def started(self): ...

        def retrying(self, error, wait): ...

        def finished(self, outcome):
            self.number += 1
            if self.number == 5:
                others.set()

    requests = [FilmRequest(film) for _ in range(6)]
    results = twin.reports(engine.url, requests, concurrency=2, model="fake", metrics=Count())
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
    class OthersSent:
        def is_set(self) -> bool:
            return len(engine.chats) >= 4

    engine.answer = Answer(stall_after=1)
    engine.reply(Answer(hold=OthersSent()))
    results = twin.reports(engine.url, (FilmRequest(film) for _ in range(100)), concurrency=4, stop_after=1)
    assert [result.report.text for result in results] == [TEXT]
    stalled = [request for request in engine.chats if not request.answered.is_set()]
    assert stalled
    assert all(request.disconnected.wait(30) for request in stalled)
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
    assert all(request.disconnected.wait(30) for request in engine.chats)
    assert len(engine.chats) == 2


def test_an_error_of_the_iterable_propagates(engine, film, twin):
    def broken():
        yield FilmRequest(film)
        raise LookupError("row 2")

    with pytest.raises(LookupError, match="row 2"):
        twin.reports(engine.url, broken(), concurrency=2)


@pytest.mark.parametrize(("requests", "concurrency"), [(["film.png"], 2), ([], 0), ([], "8"), ([], 1.5)])
def test_invalid_arguments_raise(engine, twin, requests, concurrency):
    with pytest.raises(ConfigurationError, match=r"FilmRequest\(film\)|1 or more"):
        twin.reports(engine.url, requests, concurrency=concurrency)


def test_no_requests_give_no_results(engine, twin):
    assert twin.reports(engine.url, []) == []


@pytest.mark.slow
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


def test_a_result_is_yielded_while_the_iterable_blocks(engine, film):
    go = threading.Event()
    name = contextvars.ContextVar("name", default="")
    name.set("the caller's")
    readers = []

    def slow():
        for key in range(3):
            readers.append((threading.current_thread().name, name.get()))
            yield FilmRequest(film, key=key)
            assert go.wait(30)
            go.clear()

    keys = []
    with Client(engine.url) as client:
        for result in client.reports(slow(), concurrency=4):
            keys.append(result.request.key)
            go.set()
    assert keys == [0, 1, 2]
    assert readers == [("pedcxr-requests", "the caller's")] * 3


def test_an_async_iterable_may_wait(engine, film):
    async def run() -> list[object]:
        go, keys = asyncio.Event(), []

        async def slow():
            for key in range(3):
                yield FilmRequest(film, key=key)
                await go.wait()
                go.clear()

        async with AsyncClient(engine.url) as client:
            async for result in client.reports(slow(), concurrency=4):
                keys.append(result.request.key)
                go.set()
        return keys

    assert asyncio.run(run()) == [0, 1, 2]


def test_leaving_early_closes_the_iterable_and_does_not_wait_for_it(engine, film):
    go, closed = threading.Event(), threading.Event()

    def blocked():
        try:
            yield FilmRequest(film)
            assert go.wait(30)
            yield FilmRequest(film)
        finally:
            closed.set()

    with Client(engine.url) as client:
        with closing(client.reports(blocked())) as results:
            assert next(results).report is not None
        assert not closed.is_set(), "the iterable still blocks"
        go.set()
        assert closed.wait(30)
        closed.clear()
        go.set()
        with closing(client.reports(blocked(), concurrency=1)) as results:
            next(results)
        assert closed.wait(30)
    assert len(engine.chats) <= 3


def test_a_film_that_raises_any_error_does_not_stop_the_others(engine, film, twin):
    class CloudError(Exception):
        pass

    class Body:
        def read(self, _size: int = -1) -> bytes:
            raise CloudError("connection reset by peer")

    requests = [FilmRequest(film), FilmRequest(Body(), key="cloud"), FilmRequest(film)]
    results = twin.reports(engine.url, requests, concurrency=1)
    assert [type(result.error) for result in results] == [type(None), InputError, type(None)]
    assert isinstance(results[1].error.__cause__, CloudError)


def test_an_unforeseen_error_is_the_result_of_its_film():
    async def write(request):
        raise ZeroDivisionError(request.key)

    async def run():
        return [result async for result in as_they_finish(write, [FilmRequest(b"", key=key) for key in "ab"], 1)]

    errors = [result.error for result in asyncio.run(run())]
    assert [(type(error), type(error.__cause__)) for error in errors] == [(PedcxrError, ZeroDivisionError)] * 2


def listings(engine) -> int:
    return [request.path for request in engine.requests].count("/v1/models")


def test_the_model_list_is_requested_once(engine, film, twin):
    engine.models_answer = Answer(first=0.05, raw=b'{"data": [{"id": "fake"}]}', content_type="application/json")
    results = twin.reports(engine.url, [FilmRequest(film) for _ in range(40)], concurrency=32)
    assert len([result for result in results if result.report is not None]) == 40
    assert listings(engine) == 1


def test_calls_that_wait_for_the_model_list_share_its_failure(engine, film, twin):
    engine.models_answer = Answer(first=1.0, status=503, error={"message": "loading", "code": "not_ready"})
    results = twin.reports(engine.url, [FilmRequest(film) for _ in range(16)], concurrency=16, retries=0)
    assert {(type(result.error), result.error.code) for result in results} == {(Unavailable, "not_ready")}
    assert len({id(result.error) for result in results}) == 16, "each call has an error of its own"
    assert listings(engine) < 16


def test_the_deadline_of_one_call_is_not_that_of_another(engine, film, twin):
    engine.models_answer = Answer(first=0.5, raw=b'{"data": [{"id": "fake"}]}', content_type="application/json")
    requests = [FilmRequest(film, timeouts=Timeouts(total=0.3), key="short"), FilmRequest(film, key="long")]
    results = {result.request.key: result for result in twin.reports(engine.url, requests)}
    assert isinstance(results["short"].error, TimedOut)
    assert results["long"].report is not None


def test_a_closed_client_and_one_of_another_loop_are_errors(engine, film):
    engine.answer = Answer(headers={"connection": "close"})  # no connection outlives its event loop
    client = AsyncClient(engine.url)

    async def report():
        return await client.report(film)

    assert asyncio.run(report()).text == TEXT
    with pytest.raises(ConfigurationError, match="another event loop"):
        asyncio.run(report())

    async def closed():
        async with AsyncClient(engine.url) as other:
            await other.report(film)
        with pytest.raises(ConfigurationError, match="is closed"):
            await other.report(film)
        with pytest.raises(ConfigurationError, match="is closed"):
            await other.model()
        return [type(result.error) async for result in other.reports([FilmRequest(film)])]

    assert asyncio.run(closed()) == [ConfigurationError]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
@pytest.mark.parametrize("first", ["", "client.report(film)"], ids=["unused", "used"])
def test_without_a_free_file_descriptor_reports_end_with_typed_errors(engine, path, first):
    code = f"""
import os, resource, sys
from pedcxr_client import Client, FilmRequest, PedcxrError
film = open(sys.argv[2], "rb").read()
client = Client(sys.argv[1], retries=0)
Client(sys.argv[1]).report(film)  # imports everything
{first}
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, most))
try:
    errors = [result.error for result in client.reports([FilmRequest(film)] * 9) if result.error]
except PedcxrError as error:
    errors = [error]
print(*{{type(error).__name__ for error in errors}})
"""
    command = [sys.executable, "-c", code, engine.url, path]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (process.returncode, process.stdout) == (0, "ConnectionFailed\n"), process.stderr
