"""Run a gateway with the code that keeps its engine, from bound ports to an orderly shutdown.

::

    bind ports ─▶ gateway answers 503 ─▶ engine loads ─▶ ready ─▶ signal ─▶ drain ─▶ stop engine and gateway
                         ▲                                 │
                         └─── engine exits or hangs ◀──────┘

`pedcxr_serve.engine.supervisor` runs the engine (`pedcxr-serve start`). `pedcxr_serve.engine.remote` finds an engine
of another process (`pedcxr-serve gateway`) and does not stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import aiohttp

from pedcxr_serve.config.settings import GatewayConfig
from pedcxr_serve.errors import EngineError
from pedcxr_serve.gateway import app
from pedcxr_serve.gateway.http import server
from pedcxr_serve.gateway.http.listeners import Listeners
from pedcxr_serve.gateway.state import State
from pedcxr_serve.launcher.console import Console


class EngineKeeper(Protocol):
    """What keeps the engine of a gateway: a `Supervisor` or a `RemoteEngine`."""

    @property
    def exit_error(self) -> EngineError | None:
        """The error for an engine that exited unexpectedly."""

    async def start(self) -> None:
        """Return when the engine accepts requests."""

    async def keep(self) -> NoReturn:
        """Tell the gateway whether the engine accepts requests, until cancelled."""

    async def stop(self, urgent: asyncio.Event) -> None:
        """End what the engine still does for this gateway."""


@dataclass(frozen=True, slots=True)
class Server:
    """A gateway and its engine. ``attach`` returns what keeps the engine, given a session to it."""

    attach: Callable[[aiohttp.ClientSession], EngineKeeper]
    state: State
    listeners: Listeners
    config: GatewayConfig
    console: Console

    async def run(self, work: Callable[[], Awaitable[None]] | None = None) -> None:
        """Run until SIGINT or SIGTERM, or until ``work``, which starts when the server is ready, has completed.

        All processes and tasks have ended when this returns or raises.

        Raises:
            ConfigError: an engine that this process does not run is not accepted.
            EngineNotReady, EngineDied: the first start failed, or ``gateway.restarts`` consecutive restarts failed.
        """
        stop, urgent = asyncio.Event(), asyncio.Event()
        with signal_handlers(stop, urgent, self.state.reload):
            async with app.engine_session(self.state) as session, server.serving(self.state, session, self.listeners):
                engine = self.attach(session)
                try:
                    if await first(engine.start(), stop.wait()):
                        self.console.print_line(self._ready_lines())
                        await first(engine.keep(), work() if work else asyncio.Event().wait(), stop.wait())
                    await self._drain(urgent)
                    if self.state.engine_up and (error := engine.exit_error):
                        raise error
                finally:
                    self.state.set_ready(False, "stopping")
                    await engine.stop(urgent)
                    # Aborted requests must receive their error before the sockets close.
                    await _wait_drained(self.state, server.FLUSH_S)

    async def _drain(self, urgent: asyncio.Event) -> None:
        if self.state.ready and self.config.lame_duck_s:
            # Balancers learn from /health/ready that the server stops; until then its requests are still served.
            self.state.set_ready(True, "stopping")
            self.console.print_line(f"stopping in {self.config.lame_duck_s:g} s; /health/ready answers 503")
            await first(asyncio.sleep(self.config.lame_duck_s), urgent.wait())
        self.state.set_ready(False, "stopping")
        running = self.state.in_flight
        self.console.print_line(
            f"stopping; waiting for {running} reports in flight (Ctrl-C again aborts them)" if running else "stopping"
        )
        await first(_wait_drained(self.state, self.config.drain_s), urgent.wait())

    def _ready_lines(self) -> str:
        seconds = time.monotonic() - self.state.started
        note = "\nThis is the demo model: trained on drawings, no medical use." if self.state.demo else ""
        return (
            f"ready after {seconds:.1f} s: model {self.state.rules.model}\n"
            f"  API      {self.listeners.url}\n"
            f"  metrics  {self.listeners.metrics_url}\n"
            f"Every report is a draft for a professional to review. Press Ctrl-C to stop.{note}"
        )


@contextlib.contextmanager
def signal_handlers(stop: asyncio.Event, urgent: asyncio.Event, reload: Callable[[], None]) -> Iterator[None]:
    """Set ``stop`` on the first SIGINT or SIGTERM and ``urgent`` on the second; call ``reload`` on SIGHUP."""
    loop = asyncio.get_running_loop()

    def on_stop_signal() -> None:
        (urgent if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_stop_signal)
    before = signal.getsignal(signal.SIGHUP) or signal.SIG_DFL
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGHUP, before)  # the default would end the process before its files are closed


async def first(*awaitables: Awaitable[Any]) -> bool:
    """Wait for any and cancel the rest; return whether the first has completed. Raise the error of any that failed."""
    tasks = [asyncio.ensure_future(one) for one in awaitables]
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


async def _wait_drained(state: State, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while state.in_flight and time.monotonic() < end:
        await asyncio.sleep(0.02)
