"""Keep one engine running: start it, warm it up, watch it, and restart it when it exits or hangs.

::

    start ─▶ loading ─▶ warm-up report ─▶ ready ─▶ watched ─▶ exited or hung ─▶ kill its group ─▶ back-off ─▶ start
      └── first start fails: EngineNotReady, EngineDied

`pedcxr_serve.engine.watch` notices an engine that fails without exiting.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import aiohttp

from pedcxr_serve.config.settings import GatewayConfig
from pedcxr_serve.engine import health
from pedcxr_serve.engine.process import Engine
from pedcxr_serve.engine.socket_dir import remove_sockets
from pedcxr_serve.engine.status import EngineStatus
from pedcxr_serve.engine.watch import EngineWatch
from pedcxr_serve.errors import EngineDied, EngineError, EngineNotReady
from pedcxr_serve.launcher.console import Console

_POLL_S = 0.2
_STOP_GRACE_S = 30.0  # a graceful shutdown of vLLM takes about 7 s
_URGENT_GRACE_S = 2.0  # after a second signal; half of the time that the user is promised
_KILL_GRACE_S = 0.0  # for an engine that is dead or hangs
_LOG_LINES = 15
_STABLE_S = 600.0  # an engine that was ready this long resets the back-off


@dataclass(slots=True)
class RestartBackoff:
    """Seconds to wait before each restart: 0, 1, 2, 4 ... up to ``max_wait_s``.

    Attributes:
        max_wait_s: the longest wait.
        max_failures: consecutive starts that may fail before the supervisor gives up; 0 means no restart at all.
    """

    max_wait_s: float
    max_failures: int
    _failures: int = field(default=0, init=False)
    _attempts: int = field(default=0, init=False)

    def exited(self, uptime_s: float) -> float | None:
        """Record that a ready engine exited ``uptime_s`` seconds after it became ready; 600 s or more reset the wait.

        Returns:
            seconds to wait before the next start; None if the engine must not be restarted.
        """
        self._failures = 0
        self._attempts = 1 if uptime_s >= _STABLE_S else self._attempts + 1
        return self._next_wait() if self.max_failures else None

    def failed(self) -> float | None:
        """Record that a start failed; return as `exited`."""
        self._failures += 1
        self._attempts += 1
        return self._next_wait() if self._failures < self.max_failures else None

    def _next_wait(self) -> float:
        return 0.0 if self._attempts == 1 else min(self.max_wait_s, 2.0 ** min(self._attempts - 2, 30))


class Supervisor:
    """One engine and the processes that replace it; used from one event loop.

    Args:
        launch: creates the next process without starting it.
        state: tells the gateway whether the engine accepts requests.
        session: HTTP session to the engine.
        config: time-outs and the number of restarts.
        model: the served model name.
        console: prints progress, log lines and errors.
        adapters: names of the adapters that must have an effect.
    """

    def __init__(
        self,
        launch: Callable[[], Engine],
        state: EngineStatus,
        session: aiohttp.ClientSession,
        config: GatewayConfig,
        model: str,
        console: Console,
        *,
        adapters: Iterable[str] = (),
    ) -> None:
        self._launch, self._state, self._session = launch, state, session
        self._config, self._model, self._console = config, model, console
        self._adapters = tuple(adapters)
        self._watch = EngineWatch(session, state.heartbeat, config, model)
        self._engine = launch()
        self._backoff = RestartBackoff(config.restart_wait_s, config.restarts)
        self._ready_at = 0.0

    async def start(self) -> None:
        """Start the engine and wait until it has generated the warm-up report.

        Raises:
            EngineNotReady: the engine was not ready within ``gateway.start_timeout_s``.
            EngineDied: the engine exited; carries its last log lines.
            AdapterError: an adapter has no effect.
        """
        try:
            await self._engine.start()
        except OSError as error:  # such as no space for the engine's temporary files
            raise _not_started(error) from error
        loading = asyncio.create_task(self._wait_until_ready())
        exit_status = asyncio.create_task(self._engine.wait())
        try:
            await asyncio.wait((loading, exit_status), return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                raise self._exit_error(exit_status.result())
            loading.result()
        finally:
            await _cancel(loading, exit_status)
        self._ready_at = time.monotonic()
        self._state.heartbeat.beat()
        self._state.heartbeat.clear()
        self._state.engine_up = True
        self._state.set_ready(True, "ready")

    async def keep(self) -> NoReturn:
        """Watch the engine and restart it whenever it exits or hangs, until cancelled.

        Raises:
            EngineError: ``gateway.restarts`` consecutive starts failed; carries the last log lines of the last start.
        """
        while True:
            reason, error = await self._wait_for_failure()
            self._state.engine_up = False
            self._state.heartbeat.clear()
            self._state.set_ready(False, "restarting the engine")
            self._state.engine_died(reason)
            await self._engine.stop(_KILL_GRACE_S)
            self._print_error(error)
            await self._restart(error)

    async def stop(self, urgent: asyncio.Event) -> None:
        """Stop the engine gracefully, within 2 s once ``urgent`` is set; do nothing if it has exited.

        Requests still in the queue are refused when their turn comes. There may be many, so the stop does not wait for
        them.
        """
        self._state.engine_up = False
        stopping = asyncio.create_task(self._engine.stop(_STOP_GRACE_S))
        interrupt = asyncio.create_task(urgent.wait())
        try:
            await asyncio.wait((stopping, interrupt), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((stopping,), timeout=_URGENT_GRACE_S)
        finally:
            await _cancel(stopping, interrupt)
        await self._engine.stop(_KILL_GRACE_S)

    @property
    def exit_error(self) -> EngineDied | None:
        """The error for an engine that exited unexpectedly; None while the engine runs."""
        status = self._engine.status
        return None if status is None else self._exit_error(status)

    async def _restart(self, cause: EngineError) -> None:
        wait = self._backoff.exited(time.monotonic() - self._ready_at)
        while True:
            if wait is None:
                raise cause
            self._console.print_line(f"restarting the engine in {wait:.0f} s" if wait else "restarting the engine")
            await asyncio.sleep(wait)
            # A process that was killed leaves its sockets behind, and the next could not bind to them.
            if isinstance(self._state.engine_address, Path):
                remove_sockets(self._state.engine_address.parent)
            try:
                self._engine = self._launch()
                await self.start()
            except (EngineError, OSError) as problem:  # such as no space for the engine's temporary files
                error = problem if isinstance(problem, EngineError) else _not_started(problem)
                await self._engine.stop(_KILL_GRACE_S)
                self._print_error(error)
                cause, wait = error, self._backoff.failed()
            else:
                self._console.print_line(f"ready again after {time.monotonic() - self._engine.started:.1f} s")
                return

    async def _wait_until_ready(self) -> None:
        engine, deadline = self._engine, self._config.start_timeout_s
        progress = asyncio.create_task(self._console.progress(lambda: engine.stage))
        try:
            async with asyncio.timeout(deadline):
                while not await health.is_healthy(self._session):
                    self._state.stage = engine.stage
                    await asyncio.sleep(_POLL_S)
                engine.stage = self._state.stage = "generating the warm-up report"
                self._state.set_models(await health.model_names(self._session))
                await health.warm_up(self._session, self._model)
                await health.check_plugin(self._session, self._model)
                for adapter in self._adapters:
                    await health.check_adapter(self._session, adapter, self._model)
        except TimeoutError:
            raise EngineNotReady(
                f"the engine was not ready after {deadline:.0f} s (last stage: {engine.stage}); see its last "
                "log lines, or increase gateway.start_timeout_s",
                tail=engine.tail,
            ) from None
        except aiohttp.ClientError as error:
            raise EngineNotReady(
                "the engine closed the connection during the warm-up report; see its last log lines", tail=engine.tail
            ) from error
        finally:
            await _cancel(progress)

    async def _wait_for_failure(self) -> tuple[str, EngineError]:
        """Wait until the engine has exited or hangs; return the reason for the metric and the error."""
        exit_status = asyncio.create_task(self._engine.wait())
        watching = asyncio.create_task(self._watch.failure())
        try:
            await asyncio.wait((exit_status, watching), return_when=asyncio.FIRST_COMPLETED)
            if exit_status.done():
                return "ended", self._exit_error(exit_status.result())
            failure = watching.result()
            see = "; see its last log lines" if failure.reason == "ended" else ""
            return failure.reason, EngineDied(failure.message + see, tail=self._tail)
        finally:
            await _cancel(exit_status, watching)

    @property
    def _tail(self) -> tuple[str, ...]:
        return tuple(self._engine.tail)

    def _exit_error(self, status: int) -> EngineDied:
        message = f"engine exited unexpectedly ({_describe_status(status)}); see its last log lines"
        return EngineDied(message, tail=self._tail)

    def _print_error(self, error: EngineError) -> None:
        for line in error.tail[-_LOG_LINES:]:
            self._console.print_engine_text(line)
        self._console.print_line(str(error), logging.ERROR)


async def _cancel(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _not_started(problem: OSError) -> EngineDied:
    return EngineDied(f"the engine could not be started: {problem.strerror or problem}")


def _describe_status(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"signal {signal.Signals(-status).name}" + ("; out of memory?" if -status == signal.SIGKILL else "")
