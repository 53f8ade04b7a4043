"""Notice that an engine which was ready has failed: it says so, accepts no connection, or makes no progress.

The output of requests is a sufficient sign of life. After ``probe_every_s`` without output, the engine's counters of
tokens are compared, since other gateways may use the engine too, and reports in one piece show no progress. If the
counters stand still, the engine is asked for one token: its HTTP server answers ``/health`` with 200 even while a step
hangs (vLLM 0.32). When a request loses its connection to the engine, ``/health`` is checked immediately.
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
_SILENT_CHECKS = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an engine counts as failed; ``reason`` is the label of the restart metric."""

    reason: Literal["ended", "hung"]
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
        self._tokens: float | None = None

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
                if await self.is_dead():
                    return Failure("ended", "engine reports that it is dead")
                if suspected:
                    heartbeat.clear()
            if not suspected and heartbeat.age >= config.probe_every_s:
                if await self._made_progress():
                    heartbeat.beat()
                elif not await self._responds():
                    age = f"{heartbeat.age:.0f} s"
                    return Failure("hung", f"engine hangs: no output for {age}, and no answer to the one-token probe")

    async def is_dead(self) -> bool:
        """Return whether the engine has failed. A busy one may miss an answer, so that silence counts after three."""
        start = time.monotonic()
        for _ in range(_SILENT_CHECKS):
            answer = await health.check(self._session)
            if answer != "silent" or self._heartbeat.last > start:
                return answer == "dead"
        return True

    async def _made_progress(self) -> bool:
        """Return whether the engine's counters have grown since the last call."""
        tokens = await health.tokens(self._session)
        before, self._tokens = self._tokens, tokens
        return tokens is not None and before is not None and tokens > before

    async def _responds(self) -> bool:
        """Return whether the engine generates a token in time, for the probe or for any request."""
        heartbeat, start = self._heartbeat, time.monotonic()
        try:
            async with asyncio.timeout(self._config.probe_timeout_s):
                await health.probe(self._session, self._model)
        except (TimeoutError, aiohttp.ClientError, EngineNotReady):
            if heartbeat.last <= start and not await self._made_progress():
                return False
        heartbeat.beat()
        return True
