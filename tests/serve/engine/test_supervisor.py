"""An engine that exits, hangs, or fails to restart. Processes and sockets are real; the engine is a fake."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from PIL import Image
from prometheus_client import generate_latest

from pedcxr_client.films.film import encode_png
from pedcxr_serve.config.settings import GatewayConfig
from pedcxr_serve.engine import health, supervisor
from pedcxr_serve.engine.process import Engine
from pedcxr_serve.engine.supervisor import RestartBackoff, Supervisor
from pedcxr_serve.engine.watch import EngineWatch
from pedcxr_serve.errors import AdapterError, EngineDied, EngineNotReady
from pedcxr_serve.gateway import app
from pedcxr_serve.gateway.accounting.film_quarantine import FilmQuarantine
from pedcxr_serve.gateway.auth.models import ServedAdapter
from pedcxr_serve.gateway.http.listeners import listen
from pedcxr_serve.gateway.http.server import serving
from pedcxr_serve.gateway.request.validation import Rules
from pedcxr_serve.gateway.scheduler import FairQueue, FairScheduler
from pedcxr_serve.gateway.state import State
from pedcxr_serve.launcher.console import Console
from tests.support.paths import ROOT
from tests.support.servers.fake_engine import Answer, FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, ERROR_KEYS

TYPED_S = 10.0
"""Every request in flight must end with an error within this many seconds. A closed connection tells the gateway at
once; without that it would learn of the death from a probe, after more than 30 s."""

KILLS = 4  # `make drill` kills vLLM ten times


@dataclass
class Running:
    state: State
    engines: list[Engine]
    keep: asyncio.Task[None]
    client: httpx.AsyncClient
    out: io.StringIO
    urgent: asyncio.Event
    watcher: Supervisor

    def signal(self, number: int) -> None:
        pid = self.engines[-1].pid
        assert pid is not None
        os.kill(pid, number)

    async def ask(self, **more: object) -> httpx.Response:
        return await self.client.post(CHAT, json=BODY | more)

    async def ready(self, value: bool = True) -> None:
        await eventually(lambda: self.state.ready is value)

    def restarts(self, reason: str) -> float:
        return self.state.metrics.registry.get_sample_value("pedcxr_engine_restarts_total", {"reason": reason}) or 0


async def eventually(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "condition not reached"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def supervised(
    folder: Path, *, gap: float = 0.0, fail: int = 0, slots: int = 64, adapters: tuple[str, ...] = (), **settings: Any
) -> AsyncIterator[Running]:
    uds, starts = folder / "engine.sock", folder / "starts"
    starts.write_text(f"fail {fail}")
    # Without a probe: a busy machine may keep a healthy engine from answering for some seconds.
    defaults = {"restart_wait_s": 0.0, "probe_every_s": 300.0, "probe_timeout_s": 60.0, "port": 0, "admin_port": 0}
    config = GatewayConfig(**(defaults | settings))
    state = State(
        uds,
        demo=True,
        body_limit=1 << 20,
        rules=Rules("fake", 500, adapters={name: ServedAdapter("sha256:1") for name in adapters}),
        scheduler=FairScheduler(FairQueue(slots, max_waiting=99, max_wait_s=99)),
    )
    command = [sys.executable, "-m", "tests.support.servers.engine_process", str(uds), str(starts), str(gap)]
    engines: list[Engine] = []

    def launch() -> Engine:
        env = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "client"), str(ROOT / "serve")])}
        engines.append(Engine(command, env, lambda line: None))
        return engines[-1]

    out = io.StringIO()
    urgent = asyncio.Event()
    with listen(config) as listeners:
        async with (
            app.engine_session(state) as session,
            serving(state, session, listeners),
            httpx.AsyncClient(base_url=listeners.url.removesuffix("/v1"), timeout=60, trust_env=False) as client,
        ):
            watcher = Supervisor(launch, state, session, config, "fake", Console(0, out), adapters=adapters)
            try:
                await watcher.start()
                keep = asyncio.create_task(watcher.keep())
                try:
                    yield Running(state, engines, keep, client, out, urgent, watcher)
                finally:  # in a failed test too, or a restarted engine would outlive it
                    keep.cancel()
                    await asyncio.gather(keep, return_exceptions=True)
            finally:
                await watcher.stop(urgent)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 300))


def test_an_adapter_that_changes_nothing_ends_the_start(tmp_path: Path) -> None:
    async def work() -> None:
        with pytest.raises(AdapterError, match=r"adapters\.north: has no effect.* with fake"):
            async with supervised(tmp_path, adapters=("north",)):
                pytest.fail("the server became ready")

    run(work())


@pytest.mark.slow
def test_engine_killed_repeatedly_is_restarted(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, gap=2.5, probe_every_s=1.0, probe_timeout_s=30.0) as running:
            for count in range(1, KILLS + 1):
                running.state.quarantine = FilmQuarantine()  # each round sends the same film
                requests = [asyncio.create_task(running.ask(stream=bool(number % 2))) for number in range(8)]
                await eventually(lambda: running.state.in_flight == 8)
                await eventually(
                    lambda: sum(job.running for job in running.state.scheduler.queue._accounts.values()) == 8
                )
                killed = time.monotonic()
                running.signal(signal.SIGKILL)
                for answer in await asyncio.gather(*requests):
                    assert_typed(answer)
                assert time.monotonic() - killed < TYPED_S
                await running.ready(False)
                refused = await running.ask()
                if refused.status_code != 200:  # the engine may be ready again
                    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
                    assert int(refused.headers["retry-after"]) >= 1
                await running.ready()
                assert running.restarts("ended") == count
                assert not running.keep.done()
            running.state.quarantine = FilmQuarantine()
            assert (await running.ask()).json()["choices"][0]["finish_reason"] == "stop"

    run(work())


def assert_typed(answer: httpx.Response) -> None:
    """Check for an error with a code: as the response, or as the last event of a stream that had started."""
    assert answer.headers["x-request-id"]
    if answer.status_code == 200:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert re.search(rb'"code": "engine_lost"\}\}\n\n\Z', answer.content)
    else:
        assert answer.status_code in (502, 503)
        assert set(answer.json()["error"]) == ERROR_KEYS
        assert answer.json()["error"]["code"] in ("engine_lost", "engine_restarting", "not_ready")


def test_hanging_engine_is_replaced(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, probe_every_s=1.0, probe_timeout_s=5.0) as running:
            assert (await running.ask()).status_code == 200
            running.signal(signal.SIGSTOP)
            answer = await running.ask()
            assert_typed(answer)
            await running.ready()
            assert (await running.ask()).status_code == 200
            assert (running.restarts("hung"), running.restarts("ended")) == (1, 0)
            await eventually(lambda: "no answer to the one-token probe" in running.out.getvalue())

    run(work())


def test_slow_engine_that_makes_progress_is_kept(tmp_path: Path) -> None:
    """An answer in one piece and the probe both take longer than the time limit, but the engine's counters advance."""

    async def work() -> None:
        async with supervised(tmp_path, gap=1.5, probe_every_s=1.0, probe_timeout_s=5.0) as running:
            answer = await running.ask()
            assert answer.status_code == 200
            assert len(running.engines) == 1

    run(work())


def test_engine_that_reports_it_is_dead_is_replaced(tmp_path: Path) -> None:
    """vLLM's HTTP server outlives its EngineCore by some seconds and answers 500."""

    async def work() -> None:
        async with supervised(tmp_path, probe_every_s=60.0) as running:
            (tmp_path / "dead").touch()
            running.signal(signal.SIGUSR1)
            await eventually_status(running, 502)
            (tmp_path / "dead").unlink(missing_ok=True)
            await eventually(lambda: running.restarts("ended") == 1)
            await running.ready()
            assert (await running.ask()).status_code == 200

    run(work())


async def eventually_status(running: Running, status: int) -> None:
    end = time.monotonic() + 60
    while (answer := await running.ask()).status_code != status:
        assert time.monotonic() < end
    assert_typed(answer)


def test_silent_engine_that_answers_the_probe_is_kept(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, probe_every_s=1.0) as running:
            last = running.state.heartbeat.last
            await eventually(lambda: running.state.heartbeat.last > last)  # the probe was answered
            assert running.state.ready
            assert len(running.engines) == 1

    run(work())


def test_queued_request_is_told_to_retry_when_the_engine_exits(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, gap=30.0, slots=1) as running:
            first = asyncio.create_task(running.ask(stream=True))
            await eventually(lambda: running.state.scheduler.queue.running == 1)
            second = asyncio.create_task(running.ask())
            await eventually(lambda: running.state.scheduler.queue.waiting == 1)
            running.signal(signal.SIGKILL)
            assert_typed(await first)
            answer = await second
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_restarting")
            assert answer.headers["retry-after"]

    run(work())


def test_film_is_refused_after_two_deaths_of_the_engine(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, gap=30.0) as running:
            for count in (1, 2):
                asked = asyncio.create_task(running.ask())
                await eventually(lambda: running.state.scheduler.queue.running == 1)
                running.signal(signal.SIGKILL)
                assert_typed(await asked)
                await eventually(lambda count=count: running.restarts("ended") == count)
                await running.ready()
            refused = await running.ask()
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "film_quarantined")
            assert refused.headers.get("x-should-retry") != "true"

    run(work())


def test_film_that_shared_the_engine_with_a_poison_film_is_not_refused(tmp_path: Path) -> None:
    def with_film(grey: int) -> dict[str, object]:
        film = base64.b64encode(encode_png(Image.new("L", (2, 2), grey))).decode()
        part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{film}"}}
        return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Report."}]}], "stream": True}

    poison, innocent = with_film(1), with_film(2)

    async def work() -> None:
        async with supervised(tmp_path, gap=30.0) as running:
            queue = running.state.scheduler.queue

            async def send_and_kill(*, sent: int, waiting: int, deaths: int) -> list[str]:
                asked = [asyncio.create_task(running.ask(**poison))]
                await eventually(lambda: queue.running == 1)
                asked.append(asyncio.create_task(running.ask(**innocent)))
                await eventually(lambda: (queue.running, queue.waiting) == (sent, waiting))
                running.signal(signal.SIGKILL)
                answers = await asyncio.gather(*asked)
                await eventually(lambda: running.restarts("ended") == deaths)
                await running.ready()
                return [re.findall(r'"code": ?"(\w+)"', answer.text)[0] for answer in answers]

            assert await send_and_kill(sent=2, waiting=0, deaths=1) == ["engine_lost", "engine_lost"]
            codes = await send_and_kill(sent=1, waiting=1, deaths=2)
            assert codes == ["engine_lost", "engine_restarting"], "the second suspect waited outside of the engine"
            assert (await running.ask(**poison)).json()["error"]["code"] == "film_quarantined"
            asked = asyncio.create_task(running.ask(**innocent))
            await eventually(lambda: queue.running == 1)
            asked.cancel()

    run(work())


def test_failed_starts_are_repeated(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, fail=2) as running:
            running.signal(signal.SIGKILL)
            await running.ready(False)
            await running.ready()
            assert len(running.engines) == 4
            await eventually(lambda: "no memory left" in running.out.getvalue())

    run(work())


def test_first_start_without_room_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")

    async def work() -> None:
        with pytest.raises(EngineDied, match="could not be started: "):
            async with supervised(tmp_path):
                pytest.fail("the engine started")

    run(work())


def test_too_many_failed_starts_end_the_supervisor(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, fail=99, restarts=3) as running:
            running.signal(signal.SIGKILL)
            with pytest.raises(EngineDied, match="exit status 1"):
                await running.keep
            assert len(running.engines) == 4
            assert not running.state.ready
            assert (await running.ask()).status_code == 503

    run(work())


def test_no_restart_if_restarts_is_zero(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, restarts=0) as running:
            running.signal(signal.SIGKILL)
            with pytest.raises(EngineDied, match="SIGKILL"):
                await running.keep
            assert len(running.engines) == 1

    run(work())


def test_restart_wait_grows_and_is_reset_by_a_stable_engine() -> None:
    backoff = RestartBackoff(30.0, 5)
    assert [backoff.exited(10) for _ in range(8)] == [0, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.exited(3600) == 0
    assert [backoff.failed() for _ in range(5)] == [1, 2, 4, 8, None]
    assert backoff.exited(0) is not None  # the engine was ready in between
    assert backoff.failed() is not None


def test_restarts_are_counted_in_prometheus(tmp_path: Path) -> None:
    state = State(tmp_path / "none.sock", demo=True, body_limit=1)
    state.metrics.restarts.labels("hung").inc()
    assert b'pedcxr_engine_restarts_total{reason="hung"} 1.0' in generate_latest(state.metrics.registry)


def test_second_signal_does_not_wait_for_an_orderly_stop(tmp_path: Path) -> None:
    """The engine is suspended by SIGSTOP, so it never handles SIGTERM."""

    async def work() -> None:
        async with supervised(tmp_path, probe_every_s=60.0) as running:
            running.signal(signal.SIGSTOP)
            asyncio.get_running_loop().call_later(0.5, running.urgent.set)
            start = time.monotonic()
        assert time.monotonic() - start < supervisor._STOP_GRACE_S - 10, "0.5 s and the 2 s of an urgent stop"
        assert running.engines[-1].status == -signal.SIGKILL

    run(work())


@pytest.mark.parametrize("answer", [Answer(), Answer(status=500), Answer(status=400)])
def test_engine_without_the_plugin_is_not_ready(tmp_path: Path, answer: Answer) -> None:
    """Without it, vLLM turns a 16-bit film white and reports it."""

    async def check() -> None:
        async with aiohttp.ClientSession(
            "http://engine", connector=aiohttp.UnixConnector(str(tmp_path / "engine.sock"))
        ) as session:
            await health.check_plugin(session, "m")

    with FakeEngine(uds=tmp_path / "engine.sock") as engine:
        engine.answer = answer
        with pytest.raises(EngineNotReady, match="plugin of pedcxr is not loaded"):
            asyncio.run(check())
    assert "iVBORw0KGgo" in engine.chats[0].body.decode()


def test_silent_health_route_is_no_failure_until_the_third_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy engine may miss an answer; stopping it would lose every request."""
    monkeypatch.setattr(health, "_HEALTH_TIMEOUT_S", 2.5)  # an answer comes in time on a busy machine too

    async def check(answers: int, *, beat: bool) -> tuple[bool, int]:
        handlers: list[asyncio.Task[None] | None] = []

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            handlers.append(asyncio.current_task())
            await reader.readuntil(b"\r\n\r\n")
            if beat:
                state.heartbeat.beat()
            if len(handlers) > answers:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await reader.read()
            writer.close()
            await writer.wait_closed()

        path = tmp_path / f"{answers}{beat}.sock"
        state = State(path, demo=True, body_limit=1)
        async with await asyncio.start_unix_server(silent, path):
            async with app.engine_session(state) as session:
                watch = EngineWatch(session, state.heartbeat, GatewayConfig(), "m")
                is_dead = await watch.health() == "dead"
            await asyncio.gather(*filter(None, handlers))
        return is_dead, len(handlers)

    assert asyncio.run(check(2, beat=False)) == (False, 3)
    assert asyncio.run(check(99, beat=False)) == (True, 3)
    assert asyncio.run(check(99, beat=True)) == (False, 1), "a request received output meanwhile"


def test_hang_is_noticed_although_two_time_limits_end_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pause of the machine, those of the probe and of a look at the counters end in one turn of the loop."""
    monkeypatch.setattr(health, "_PROGRESS_TIMEOUT_S", 0.2)

    async def responds() -> bool:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()  # until the gateway closes
            writer.close()

        state = State(tmp_path / "engine.sock", demo=True, body_limit=1)
        async with (
            await asyncio.start_unix_server(silent, tmp_path / "engine.sock"),
            app.engine_session(state) as session,
            asyncio.timeout(30) as never_needed,
        ):
            watch = EngineWatch(session, state.heartbeat, GatewayConfig(probe_timeout_s=0.2), "m")
            asyncio.get_running_loop().call_later(0.1, time.sleep, 0.5)
            answer = await watch._responds()
            assert not never_needed.expired()
        return answer

    assert not asyncio.run(responds())


def test_restart_goes_on_after_an_error_of_the_system(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path) as running:
            launch, failures = running.watcher._launch, iter([OSError(errno.ENOSPC, "No space left on device")])

            def fail_once() -> Engine:
                for failure in failures:
                    raise failure
                return launch()

            running.watcher._launch = fail_once
            running.signal(signal.SIGKILL)
            await running.ready(False)
            await running.ready()
            await eventually(lambda: "could not be started: No space left on device" in running.out.getvalue())

    run(work())
