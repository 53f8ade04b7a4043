"""Notice that an engine which was ready has failed: it says so, accepts no connection, or makes no progress.

A busy engine is not probed: its output is a sufficient sign of life. An engine that is silent for ``probe_every_s`` is
asked for one token, because its HTTP server answers ``/health`` with 200 even while a step hangs (vLLM 0.32). The probe
may wait behind a full batch, also of other gateways, so an engine whose own counters advance meanwhile is kept. When a
request loses its connection to the engine, ``/health`` is checked immediately.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Literal

import aiohttp

from pedcxr_serve.config.settings import GatewayConfig
from pedcxr_serve.engine import health
from pedcxr_serve.engine.heartbeat import EngineHeartbeat
from pedcxr_serve.errors import EngineNotReady

_SHORTEST_WAIT_S = 0.2
_PROGRESS_POLL_S = 1.0
_SILENT_CHECKS = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an engine takes no more requests; ``ended`` and ``hung`` are labels of the restart metric."""

    reason: Literal["ended", "hung", "stopping"]
    message: str


class EngineWatch:
    """Watches one engine; used from one event loop.

    Args:
        session: HTTP session to the engine.
        config: ``probe_every_s`` and ``probe_timeout_s``.
        model: name of the model that the probe asks for.
        health_every_s: seconds between two checks of ``/health``; None checks it on suspicion only, which is enough
            for an engine whose process is watched too.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        heartbeat: EngineHeartbeat,
        config: GatewayConfig,
        model: str,
        *,
        health_every_s: float | None = None,
    ) -> None:
        self._session, self._heartbeat, self._config, self._model = session, heartbeat, config, model
        self._health_every_s = health_every_s

    async def failure(self) -> Failure:
        """Wait until the engine has failed."""
        heartbeat, config = self._heartbeat, self._config
        while True:
            wait_s = max(_SHORTEST_WAIT_S, config.probe_every_s - heartbeat.age)
            if self._health_every_s is not None:
                wait_s = min(wait_s, self._health_every_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await heartbeat.suspicion.wait()
            suspected = heartbeat.suspicion.is_set()
            if suspected or self._health_every_s is not None:
                answer = await self.health()
                if answer == "stopping":
                    return Failure("stopping", "engine stops")
                if answer == "dead":
                    return Failure("ended", "engine reports that it is dead")
                if suspected:
                    heartbeat.clear()
            if not suspected and heartbeat.age >= config.probe_every_s and not await self._responds():
                age = f"{heartbeat.age:.0f} s"
                return Failure("hung", f"engine hangs: no output for {age}, and no answer to the one-token probe")

    async def health(self) -> Literal["healthy", "dead", "stopping"]:
        """Return the engine's health. A busy engine may miss an answer, so that silence counts after three."""
        start = time.monotonic()
        for _ in range(_SILENT_CHECKS):
            answer = await health.check(self._session)
            if answer != "silent":
                return answer
            if self._heartbeat.last > start:
                return "healthy"
        return "dead"

    async def _responds(self) -> bool:
        """Return whether the engine makes progress in time: for the probe, for any request, or by its own counters."""
        heartbeat, start = self._heartbeat, time.monotonic()
        probe = asyncio.create_task(health.probe(self._session, self._model))
        try:
            async with asyncio.timeout(self._config.probe_timeout_s):
                before = await health.progress(self._session)
                while heartbeat.last <= start:
                    await asyncio.wait((probe,), timeout=_PROGRESS_POLL_S)
                    if probe.done():
                        probe.result()
                        heartbeat.beat()
                    elif before is not None and await health.progress(self._session) not in (None, before):
                        heartbeat.beat()
        except (TimeoutError, aiohttp.ClientError, EngineNotReady):
            return heartbeat.last > start
        finally:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)
        return True
