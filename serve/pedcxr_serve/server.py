"""A whole server: the engine started, warmed up and watched, the gateway in front of it, and an orderly end.

::

    bind ports ─▶ gateway answers 503 ─▶ engine loads ─▶ warm-up report ─▶ ready ─▶ stop asked ─▶ drain ─▶ stop all
                                              └───────── engine dies ────────▶ EngineDied, exit 4 ◀─┘
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from . import warmup
from ._errors import EngineDied, EngineNotReady
from .config import GatewayConfig
from .console import Console
from .engine import Engine
from .gateway import app, serve
from .gateway.state import State
from .listeners import Listeners

_POLL_S = 0.2
_STOP_GRACE_S = 30.0  # vLLM takes about 7 s to leave in order; killed, it would leave semaphores in /dev/shm


@dataclass(frozen=True, slots=True)
class Server:
    """Attributes:
    engine: not yet started.
    model: the name that clients ask for.
    """

    engine: Engine
    state: State
    listeners: Listeners
    config: GatewayConfig
    model: str
    console: Console

    async def run(self, work: Callable[[], Awaitable[None]] | None = None) -> None:
        """Run until SIGINT or SIGTERM, or until ``work``, begun when the server is ready, is done.

        Everything that was started has ended when this returns or raises.

        Raises:
            EngineNotReady: the engine did not write a warm-up report within ``gateway.start_timeout_s``.
            EngineDied: it ended by itself; carries its last lines.
        """
        stop, at_once = asyncio.Event(), asyncio.Event()
        with _signals(stop, at_once, self.state.book.reload):
            async with app.engine_session(self.state) as session, serve.serving(self.state, session, self.listeners):
                try:
                    await self.engine.start()
                    async with _watched(self.engine):
                        if await _first(self._get_ready(session), stop.wait()):
                            self.console.say(self._ready_lines())
                            await _first(work() if work else asyncio.Event().wait(), stop.wait())
                        await self._drain(at_once)
                finally:
                    self.state.set_ready(False, "stopping")
                    await self.engine.stop(_STOP_GRACE_S)
                    await _drained(self.state, serve.FLUSH_S)  # those cut off get their error before the sockets close

    async def _get_ready(self, session: aiohttp.ClientSession) -> None:
        engine, deadline = self.engine, self.config.start_timeout_s
        progress = asyncio.create_task(self.console.progress(lambda: engine.stage))
        try:
            async with asyncio.timeout(deadline):
                while not await warmup.healthy(session):
                    self.state.stage = engine.stage
                    await asyncio.sleep(_POLL_S)
                engine.stage = self.state.stage = "writing a warm-up report"
                await warmup.report(session, self.model)
        except TimeoutError:
            raise EngineNotReady(
                f"not ready after {deadline:.0f} s, while {engine.stage}; see the engine's last lines, or raise "
                "gateway.start_timeout_s",
                tail=engine.tail,
            ) from None
        finally:
            progress.cancel()
            await asyncio.gather(progress, return_exceptions=True)
        self.state.set_ready(True, "ready")

    async def _drain(self, at_once: asyncio.Event) -> None:
        self.state.set_ready(False, "stopping")
        running = self.state.in_flight
        self.console.say(f"stopping; {running} reports in work (Ctrl-C again to drop them)" if running else "stopping")
        await _first(_drained(self.state, self.config.drain_s), at_once.wait())

    def _ready_lines(self) -> str:
        seconds = time.monotonic() - self.state.started
        note = "\nThis is the demo model: trained on drawings, no medical use." if self.state.demo else ""
        return (
            f"ready after {seconds:.1f} s: model {self.model}\n"
            f"  API      {self.listeners.url}\n"
            f"  metrics  {self.listeners.metrics_url}\n"
            f"Every report is a draft for a professional to review. Ctrl-C stops.{note}"
        )


@contextlib.asynccontextmanager
async def _watched(engine: Engine) -> AsyncIterator[None]:
    """Turn the engine's end, while the body runs, into `EngineDied`."""
    body = asyncio.current_task()
    assert body is not None
    died: list[int] = []

    async def watch() -> None:
        died.append(await engine.wait())
        body.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not died:
            raise
        body.uncancel()
        raise EngineDied(
            f"the engine ended by itself, {_how(died[0])}; its last lines say why", tail=engine.tail
        ) from None
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


@contextlib.contextmanager
def _signals(stop: asyncio.Event, at_once: asyncio.Event, hang_up: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM set ``stop``; a second one sets ``at_once``. SIGHUP calls ``hang_up``."""
    loop = asyncio.get_running_loop()

    def asked() -> None:
        (at_once if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)


async def _first(one: Awaitable[Any], other: Awaitable[Any]) -> bool:
    """Wait for either and cancel the rest; whether ``one`` was done. Its exception is raised."""
    tasks = (asyncio.ensure_future(one), asyncio.ensure_future(other))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
        return tasks[0].done()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _drained(state: State, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while state.in_flight and time.monotonic() < end:
        await asyncio.sleep(0.02)


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"signal {signal.Signals(-status).name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")
