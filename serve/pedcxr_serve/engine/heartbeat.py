"""Track whether the engine is alive, from what the requests observe."""

from __future__ import annotations

import asyncio
import time

_CHECK_TIMEOUT_S = 1.0


class EngineHeartbeat:
    """Signs of life that requests report, so that the supervisor need not probe a busy engine.

    Attributes:
        last: `time.monotonic` value of the engine's most recent output.
        suspicion: set when a request loses its connection to the engine, until the supervisor has checked the engine.
    """

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.suspicion = asyncio.Event()
        self._checked = asyncio.Event()
        self._checked.set()

    @property
    def age(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self.last

    def beat(self) -> None:
        """Record output from the engine."""
        self.last = time.monotonic()

    def suspect(self) -> None:
        """Report that a request lost the engine."""
        self.suspicion.set()
        self._checked.clear()

    def clear(self) -> None:
        """End the suspicion: the engine has been checked and the gateway's state is up to date."""
        self.suspicion.clear()
        self._checked.set()

    async def wait_checked(self) -> None:
        """Wait until the supervisor has checked a suspected engine, at most 1 s.

        Without this wait, the next request in the queue would be sent to a dead engine and could not be retried safely.
        """
        try:
            # Not wait_for: on Python 3.11 it swallows a cancellation that arrives together with the result.
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                await self._checked.wait()
        except TimeoutError:
            self.clear()
