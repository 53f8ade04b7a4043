"""The engine's list of models, asked for at most once in some seconds, whatever the clients ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

_FRESH_S = 5.0  # an adapter that the engine loads appears after this time
_TIMEOUT_S = 10.0  # of an engine that does not answer


class ServedModels:
    """The last list that the engine returned; used from one event loop. ``clock`` returns seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._models: Mapping[str, dict[str, Any]] = {}
        self._read_at = -_FRESH_S
        self._lock = asyncio.Lock()

    async def get(self, engine: aiohttp.ClientSession) -> Mapping[str, dict[str, Any]]:
        """Return the engine's entries by name, at most 5 s old. Requests that come at once share one question.

        Raises:
            aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError: the engine does not answer with a list
                within 10 s.
        """
        async with self._lock:
            if self._clock() - self._read_at >= _FRESH_S:
                async with asyncio.timeout(_TIMEOUT_S), engine.get("/v1/models") as answer:
                    answer.raise_for_status()
                    self._models = {model["id"]: model for model in (await answer.json())["data"]}
                self._read_at = self._clock()
        return self._models
