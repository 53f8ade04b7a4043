"""A server that became unavailable: one shared wait for all films, one request that polls."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from pedcxr_client.errors import ConnectionFailed, RateLimited, RequestError, ServerFailed, TimedOut, Unavailable
from pedcxr_client.request.retry import back_off

UNAVAILABLE = (ConnectionFailed, Unavailable, RateLimited)
"""The server cannot be reached, or asks the client to retry later; the cause is not the film."""
_LONGEST_WAIT = 10.0  # seconds


class OutageTooLong(RequestError):
    """The server was unavailable for longer than the batch waits; completed reports are kept and a rerun resumes."""

    outcome = "unavailable"


class Outage:
    """Waits until a server is available again, at most ``patience`` seconds since the current outage began.

    ``poll`` raises a RequestError while the server is unavailable.
    """

    def __init__(
        self,
        poll: Callable[[], Awaitable[None]],
        patience: float,
        on_start: Callable[[RequestError], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._poll, self._patience, self._on_start, self._clock = poll, patience, on_start, clock
        self._start: float | None = None
        self._waits = 0
        self._task: asyncio.Task[None] | None = None

    def end(self) -> None:
        """Mark the end of the outage: the server answered the request of a film."""
        self._start, self._waits = None, 0

    async def wait(self, error: RequestError) -> None:
        """Return when the server is available again. Raise OutageTooLong if that takes too long."""
        if self._task is None:
            self._task = asyncio.create_task(self._poll_until_available(error))
            self._task.add_done_callback(self._forget_task)
        await asyncio.shield(self._task)

    def _forget_task(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # asyncio logs an exception that no caller retrieved, as when all callers were cancelled

    async def _poll_until_available(self, error: RequestError) -> None:
        if self._start is None:
            self._start = self._clock()
            self._on_start(error)
        while True:
            if self._start is None:  # a request that was in flight succeeded during the last wait
                self._start = self._clock()
            remaining = self._start + self._patience - self._clock()
            wait = self._next_wait(error)
            if remaining <= 0 or wait > remaining:
                raise OutageTooLong(
                    f"the server was unavailable for {self._patience:g} s ({type(error).__name__}: {error}); "
                    "completed reports are kept: run the same command again to resume"
                ) from error
            await asyncio.sleep(wait)
            try:
                return await self._poll()
            except (*UNAVAILABLE, ServerFailed, TimedOut) as next_error:
                error = next_error

    def _next_wait(self, error: RequestError) -> float:
        self._waits = min(self._waits + 1, 10)
        wait = back_off(self._waits, _LONGEST_WAIT, random.random())
        retry_after = getattr(error, "retry_after", None)
        return wait if retry_after is None else max(wait, retry_after)
