"""A whole server: the gateway in front of a supervised engine, and an orderly end.

::

    bind ports ─▶ gateway answers 503 ─▶ engine loads ─▶ ready ─▶ stop asked ─▶ drain ─▶ stop all
                         ▲                                 │
                         └──── engine ended, or hangs ◀────┘   (`supervisor`)
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pedcxr_serve.config.load import GatewayConfig
from pedcxr_serve.engine.process import Engine
from pedcxr_serve.engine.supervisor import Supervisor
from pedcxr_serve.gateway import app
from pedcxr_serve.gateway.http import server
from pedcxr_serve.gateway.http.listeners import Listeners
from pedcxr_serve.gateway.state import State
from pedcxr_serve.launcher.console import Console


@dataclass(frozen=True, slots=True)
class Server:
    """Attributes:
    launch: makes an engine's next process, not yet started.
    model: the name that clients ask for.
    """

    launch: Callable[[], Engine]
    state: State
    listeners: Listeners
    config: GatewayConfig
    model: str
    console: Console

    async def run(self, work: Callable[[], Awaitable[None]] | None = None) -> None:
        """Run until SIGINT or SIGTERM, or until ``work``, begun when the server is ready, is done.

        Everything that was started has ended when this returns or raises.

        Raises:
            EngineNotReady, EngineDied: the first start failed, or ``gateway.restarts`` later ones in a row.
        """
        stop, at_once = asyncio.Event(), asyncio.Event()
        with _signals(stop, at_once, self.state.reload):
            async with app.engine_session(self.state) as session, server.serving(self.state, session, self.listeners):
                engine = Supervisor(self.launch, self.state, session, self.config, self.model, self.console)
                try:
                    if await _first(engine.start(), stop.wait()):
                        self.console.say(self._ready_lines())
                        await _first(engine.keep(), work() if work else asyncio.Event().wait(), stop.wait())
                    await self._drain(at_once)
                    if self.state.engine_up and (died := engine.ended):
                        raise died
                finally:
                    self.state.set_ready(False, "stopping")
                    await engine.stop(at_once)
                    await _drained(self.state, server.FLUSH_S)  # those cut off get their error before the sockets close

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


async def _first(*awaited: Awaitable[Any]) -> bool:
    """Wait for any and cancel the rest; whether the first was done. The exception of one that is done is raised."""
    tasks = [asyncio.ensure_future(one) for one in awaited]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
        return tasks[0].done()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _drained(state: State, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while state.in_flight and time.monotonic() < end:
        await asyncio.sleep(0.02)
