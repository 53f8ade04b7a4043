"""Keeps one engine running: started, warmed up, watched, and started again when it ends or hangs.

::

    start ─▶ loads ─▶ warm-up report ─▶ ready ─▶ watched ─▶ ended, or hangs ─▶ its group is killed ─▶ wait ─▶ start
      └── the first start fails: EngineNotReady, EngineDied                                             (backs off)

Watching costs a busy engine nothing: tokens that pass are its signs of life. One that was silent for ``probe_every_s``
is asked for a token, since its HTTP server answers ``/health`` with 200 while a step hangs (vLLM 0.32). One that a
request lost, whose connection broke, is looked at without delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import aiohttp

from pedcxr_serve.config.settings import GatewayConfig
from pedcxr_serve.engine import health
from pedcxr_serve.engine.process import Engine
from pedcxr_serve.engine.socket_dir import clear
from pedcxr_serve.errors import EngineDied, EngineError, EngineNotReady
from pedcxr_serve.gateway.state import State
from pedcxr_serve.launcher.console import Console

_POLL_S = 0.2
_STOP_GRACE_S = 30.0  # vLLM takes about 7 s to leave in order
_HURRY_GRACE_S = 2.0  # of one that somebody waits for: half of what he is promised
_KILL_GRACE_S = 0.0  # of one that is dead or hangs: nobody waits for it
_LINES = 15
_STABLE_S = 600.0  # an engine that ran this long starts without a wait


@dataclass(slots=True)
class RestartBackoff:
    """Seconds to wait before each start: 0, 1, 2, 4 ... and never more than ``longest_s``.

    Attributes:
        most_failures: starts in a row that may fail; then there is no next one.
    """

    longest_s: float
    most_failures: int
    _failures: int = field(default=0, init=False)
    _ends: int = field(default=0, init=False)

    def ended(self, lived_s: float) -> float | None:
        """The engine ended after it was ready for so long; one that was steady is forgiven what was before.

        Returns:
            seconds to wait before the next start; None if there is to be none.
        """
        self._failures = 0
        self._ends = 1 if lived_s >= _STABLE_S else self._ends + 1
        return self._next_wait() if self.most_failures else None

    def failed(self) -> float | None:
        """A start failed; returns as `ended`."""
        self._failures += 1
        self._ends += 1
        return self._next_wait() if self._failures < self.most_failures else None

    def _next_wait(self) -> float:
        return 0.0 if self._ends == 1 else min(self.longest_s, 2.0 ** min(self._ends - 2, 30))


class Supervisor:
    """One engine, through all its processes; used from one event loop.

    Args:
        launch: makes the next process, not yet started.
        state: told whether reports are accepted.
        session: to the engine's socket.
        config: how long to wait for what.
        model: the name that clients ask for.
        console: tells the person at the terminal.
    """

    def __init__(
        self,
        launch: Callable[[], Engine],
        state: State,
        session: aiohttp.ClientSession,
        config: GatewayConfig,
        model: str,
        console: Console,
    ) -> None:
        self._launch, self._state, self._session = launch, state, session
        self._config, self._model, self._console = config, model, console
        self._engine = launch()
        self._backoff = RestartBackoff(config.restart_wait_s, config.restarts)
        self._ready_at = 0.0

    async def start(self) -> None:
        """Start the first engine and wait until it has written a report.

        Raises:
            EngineNotReady: it did not within ``gateway.start_timeout_s``.
            EngineDied: it ended by itself; carries its last lines.
        """
        await self._engine.start()
        loading = asyncio.create_task(self._get_ready())
        ended = asyncio.create_task(self._engine.wait())
        try:
            await asyncio.wait((loading, ended), return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                raise self._died(ended.result())
            loading.result()
        finally:
            await _cancel(loading, ended)
        self._ready_at = time.monotonic()
        self._state.pulse.beat()
        self._state.pulse.settle()
        self._state.engine_up = True
        self._state.set_ready(True, "ready")

    async def keep(self) -> NoReturn:
        """Watch the engine and start it again whenever it ends or hangs, until cancelled.

        Raises:
            EngineError: ``gateway.restarts`` starts in a row failed; carries the last one's last lines.
        """
        while True:
            reason, what = await self._trouble()
            self._state.engine_up = False
            self._state.pulse.settle()
            self._state.set_ready(False, "starting the engine again")
            self._state.metrics.restarts.labels(reason).inc()
            await self._engine.stop(_KILL_GRACE_S)
            self._show(what)
            await self._restart(what)

    async def stop(self, at_once: asyncio.Event) -> None:
        """End the engine, in order, or with little ado when ``at_once`` is set or comes; harmless when it has ended.

        Whoever still waits a turn is told when it comes, and costs no time: there may be many of them.
        """
        self._state.engine_up = False
        leaving = asyncio.create_task(self._engine.stop(_STOP_GRACE_S))
        hurry = asyncio.create_task(at_once.wait())
        try:
            await asyncio.wait((leaving, hurry), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((leaving,), timeout=_HURRY_GRACE_S)
        finally:
            await _cancel(leaving, hurry)
        await self._engine.stop(_KILL_GRACE_S)

    @property
    def ended(self) -> EngineDied | None:
        """The error for an engine that ended and was not asked to; None for one that runs."""
        status = self._engine.status
        return None if status is None else self._died(status)

    async def _restart(self, what: EngineError) -> None:
        wait = self._backoff.ended(time.monotonic() - self._ready_at)
        while True:
            if wait is None:
                raise what
            self._console.say(f"starting the engine again in {wait:.0f} s" if wait else "starting the engine again")
            await asyncio.sleep(wait)
            # A process that was killed leaves its sockets behind, on which the next could not bind.
            clear(self._state.socket.parent)
            self._engine = self._launch()
            try:
                await self.start()
            except EngineError as error:
                await self._engine.stop(_KILL_GRACE_S)
                self._show(error)
                what, wait = error, self._backoff.failed()
            else:
                self._console.say(f"ready again after {time.monotonic() - self._engine.started:.1f} s")
                return

    async def _get_ready(self) -> None:
        engine, deadline = self._engine, self._config.start_timeout_s
        progress = asyncio.create_task(self._console.progress(lambda: engine.stage))
        try:
            async with asyncio.timeout(deadline):
                while not await health.healthy(self._session):
                    self._state.stage = engine.stage
                    await asyncio.sleep(_POLL_S)
                engine.stage = self._state.stage = "writing a warm-up report"
                served = await health.names(self._session)
                self._state.rules = dataclasses.replace(self._state.rules, served=served)
                await health.report(self._session, self._model)
        except TimeoutError:
            raise EngineNotReady(
                f"not ready after {deadline:.0f} s, while {engine.stage}; see the engine's last lines, or raise "
                "gateway.start_timeout_s",
                tail=engine.tail,
            ) from None
        except aiohttp.ClientError as error:
            raise EngineNotReady(
                "the engine's server broke off during the warm-up report; its last lines say why", tail=engine.tail
            ) from error
        finally:
            await _cancel(progress)

    async def _trouble(self) -> tuple[str, EngineError]:
        """Wait until the engine has ended or hangs: a word for the metric, and the error that says so."""
        ended = asyncio.create_task(self._engine.wait())
        hangs = asyncio.create_task(self._watch())
        try:
            await asyncio.wait((ended, hangs), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return "ended", self._died(ended.result())
            return hangs.result()
        finally:
            await _cancel(ended, hangs)

    async def _watch(self) -> tuple[str, EngineError]:
        pulse, config = self._state.pulse, self._config
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(_POLL_S, config.probe_every_s - pulse.age)):
                    await pulse.doubted.wait()
            if pulse.doubted.is_set():
                if not await health.healthy(self._session):
                    return "ended", EngineDied("the engine says it is dead; its last lines say why", tail=self._tail)
                pulse.settle()
            elif pulse.age >= config.probe_every_s and not await self._answers():
                message = f"the engine wrote nothing for {pulse.age:.0f} s, not even the token it was asked for"
                return "hung", EngineDied(message, tail=self._tail)

    async def _answers(self) -> bool:
        """Whether the engine writes a token in time, for the probe or for anybody else."""
        pulse, asked = self._state.pulse, time.monotonic()
        try:
            async with asyncio.timeout(self._config.probe_timeout_s):
                await health.probe(self._session, self._model)
        except (TimeoutError, aiohttp.ClientError, EngineNotReady):
            return pulse.last > asked
        pulse.beat()
        return True

    @property
    def _tail(self) -> tuple[str, ...]:
        return tuple(self._engine.tail)

    def _died(self, status: int) -> EngineDied:
        return EngineDied(f"the engine ended by itself, {_how(status)}; its last lines say why", tail=self._tail)

    def _show(self, error: EngineError) -> None:
        for line in error.tail[-_LINES:]:
            self._console.say(f"engine | {line}")
        self._console.say(str(error))


async def _cancel(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"signal {signal.Signals(-status).name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")
