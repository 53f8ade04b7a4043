"""An engine that ends, hangs, or does not come back: real processes, real sockets, an engine that answers at once."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest

from pedcxr_serve.config.load import GatewayConfig
from pedcxr_serve.engine import supervisor
from pedcxr_serve.engine.process import Engine
from pedcxr_serve.engine.supervisor import RestartBackoff, Supervisor
from pedcxr_serve.errors import EngineDied
from pedcxr_serve.gateway import app
from pedcxr_serve.gateway.gate import Gate
from pedcxr_serve.gateway.http.listeners import listen
from pedcxr_serve.gateway.http.server import serving
from pedcxr_serve.gateway.scheduler import Admission
from pedcxr_serve.gateway.state import State
from pedcxr_serve.launcher.console import Console
from tests.support.gateway_server import BODY, CHAT, ERROR_KEYS
from tests.support.paths import ROOT

TYPED_S = 2.0
"""Within this every request in flight must have its error."""

KILLS = 4  # `make drill` does it ten times with vLLM


@dataclass
class Running:
    state: State
    engines: list[Engine]
    keep: asyncio.Task[None]
    client: httpx.AsyncClient
    out: io.StringIO
    at_once: asyncio.Event

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


async def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def supervised(
    folder: Path, *, gap: float = 0.0, fail: int = 0, slots: int = 64, **settings: Any
) -> AsyncIterator[Running]:
    uds, starts = folder / "engine.sock", folder / "starts"
    starts.write_text(f"fail {fail}")
    defaults = {"restart_wait_s": 0.0, "probe_every_s": 1.0, "probe_timeout_s": 1.0, "port": 0, "admin_port": 0}
    config = GatewayConfig(**(defaults | settings))
    state = State(uds, demo=True, body_limit=1 << 20, gate=Gate(Admission(slots, max_waiting=99, max_wait_s=99)))
    command = [sys.executable, "-m", "tests.support.engine_process", str(uds), str(starts), str(gap)]
    engines: list[Engine] = []

    def launch() -> Engine:
        env = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "client"), str(ROOT / "serve")])}
        engines.append(Engine(command, env, lambda line: None))
        return engines[-1]

    out = io.StringIO()
    at_once = asyncio.Event()
    with listen(config) as listeners:
        async with (
            app.engine_session(state) as session,
            serving(state, session, listeners),
            httpx.AsyncClient(base_url=listeners.url.removesuffix("/v1"), timeout=60, trust_env=False) as client,
        ):
            watcher = Supervisor(launch, state, session, config, "fake", Console(0, out))
            try:
                await watcher.start()
                keep = asyncio.create_task(watcher.keep())
                try:
                    yield Running(state, engines, keep, client, out, at_once)
                finally:  # of a test that failed too: an engine started again would outlive it
                    keep.cancel()
                    await asyncio.gather(keep, return_exceptions=True)
            finally:
                await watcher.stop(at_once)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_killed_again_and_again(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, gap=1.0, probe_timeout_s=30.0) as running:
            for count in range(1, KILLS + 1):
                waiting = [asyncio.create_task(running.ask(stream=bool(number % 2))) for number in range(8)]
                await eventually(lambda: running.state.in_flight == 8)
                await eventually(
                    lambda: sum(job.running for job in running.state.gate.admission._accounts.values()) == 8
                )
                killed = time.monotonic()
                running.signal(signal.SIGKILL)
                for answer in await asyncio.gather(*waiting):
                    assert_typed(answer)
                assert time.monotonic() - killed < TYPED_S
                await running.ready(False)
                refused = await running.ask()
                if refused.status_code != 200:  # it may be back already
                    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
                    assert int(refused.headers["retry-after"]) >= 1
                await running.ready()
                assert running.restarts("ended") == count
                assert not running.keep.done()
            assert (await running.ask()).json()["choices"][0]["finish_reason"] == "stop"

    run(work())


def assert_typed(answer: httpx.Response) -> None:
    """An error of ours with a word for programs: a status, or the last event of a stream that had begun."""
    assert answer.headers["x-request-id"]
    if answer.status_code == 200:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert re.search(rb'"code": "engine_lost"\}\}\n\n\Z', answer.content)
    else:
        assert answer.status_code in (502, 503)
        assert set(answer.json()["error"]) == ERROR_KEYS
        assert answer.json()["error"]["code"] in ("engine_lost", "engine_restarting", "not_ready")


def test_an_engine_that_hangs_is_replaced(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path) as running:
            assert (await running.ask()).status_code == 200
            running.signal(signal.SIGSTOP)
            answer = await running.ask()
            assert_typed(answer)
            await running.ready()
            assert (await running.ask()).status_code == 200
            assert (running.restarts("hung"), running.restarts("ended")) == (1, 0)
            assert "not even the token it was asked for" in running.out.getvalue()

    run(work())


def test_an_engine_that_only_says_it_is_dead(tmp_path: Path) -> None:
    """vLLM's HTTP server outlives its EngineCore by seconds and answers 500."""

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
    end = time.monotonic() + 10
    while (answer := await running.ask()).status_code != status:
        assert time.monotonic() < end
    assert_typed(answer)


def test_silence_is_no_hang_while_the_engine_answers(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path) as running:
            beat = running.state.pulse.last
            await eventually(lambda: running.state.pulse.last > beat)  # a probe was answered
            assert running.state.ready
            assert len(running.engines) == 1

    run(work())


def test_who_waits_for_a_turn_is_told_to_come_again(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, gap=1.0, slots=1) as running:
            first = asyncio.create_task(running.ask(stream=True))
            await eventually(lambda: running.state.gate.admission.running == 1)
            second = asyncio.create_task(running.ask())
            await eventually(lambda: running.state.gate.admission.waiting == 1)
            running.signal(signal.SIGKILL)
            assert_typed(await first)
            answer = await second
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_restarting")
            assert answer.headers["retry-after"]

    run(work())


def test_starts_that_fail_are_tried_again(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, fail=2) as running:
            running.signal(signal.SIGKILL)
            await running.ready(False)
            await running.ready()
            assert len(running.engines) == 4
            assert "no memory left" in running.out.getvalue()

    run(work())


def test_too_many_starts_that_fail_end_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, fail=99, restarts=3) as running:
            running.signal(signal.SIGKILL)
            with pytest.raises(EngineDied, match="exit status 1"):
                await running.keep
            assert len(running.engines) == 4
            assert not running.state.ready
            assert (await running.ask()).status_code == 503

    run(work())


def test_no_restart_if_none_is_wanted(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, restarts=0) as running:
            running.signal(signal.SIGKILL)
            with pytest.raises(EngineDied, match="SIGKILL"):
                await running.keep
            assert len(running.engines) == 1

    run(work())


def test_the_wait_grows_and_is_forgiven() -> None:
    backoff = RestartBackoff(30.0, 5)
    assert [backoff.ended(10) for _ in range(8)] == [0, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.ended(3600) == 0
    assert [backoff.failed() for _ in range(5)] == [1, 2, 4, 8, None]
    assert backoff.ended(0) is not None  # one that became ready in between
    assert backoff.failed() is not None


def test_restarts_are_told_to_prometheus(tmp_path: Path) -> None:
    state = State(tmp_path / "none.sock", demo=True, body_limit=1)
    state.metrics.restarts.labels("hung").inc()
    assert b'pedcxr_engine_restarts_total{reason="hung"} 1.0' in generate_latest(state.metrics.registry)


def test_who_is_in_a_hurry_does_not_wait_for_an_orderly_end(tmp_path: Path) -> None:
    """The engine would take for ever: stopped, it does not even see SIGTERM."""

    async def work() -> None:
        async with supervised(tmp_path, probe_every_s=60.0) as running:
            running.signal(signal.SIGSTOP)
            asyncio.get_running_loop().call_later(0.5, running.at_once.set)
            begun = time.monotonic()
        assert time.monotonic() - begun < 0.5 + supervisor._HURRY_GRACE_S + 3
        assert running.engines[-1].status == -signal.SIGKILL

    run(work())
