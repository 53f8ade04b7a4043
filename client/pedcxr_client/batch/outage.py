"""A server that went away: all films wait for it together, one of them asks."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from pedcxr_client.errors import ConnectionFailed, RateLimited, RequestError, ServerFailed, TimedOut, Unavailable

AWAY = (ConnectionFailed, Unavailable, RateLimited)
"""The server is not there, or asks to come back later; says nothing about a film."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0


class ServerAway(RequestError):
    """The server was away for longer than it is waited for; nothing is lost, and a later run goes on."""

    outcome = "unavailable"


class Outage:
    """Waits for a server.

    Args:
        ask: raises a RequestError as long as it is away.
        patience: seconds to wait since it last gave a report.
        told: called once for each time that it goes away, with the reason.
        clock: in seconds.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[None]],
        patience: float,
        told: Callable[[RequestError], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._patience, self._told, self._clock = ask, patience, told, clock
        self._since: float | None = None
        self._asked = 0
        self._asking: asyncio.Task[None] | None = None

    def over(self) -> None:
        """A report came: the server is there."""
        self._since, self._asked = None, 0

    async def wait(self, error: RequestError) -> None:
        """Return when the server answers again.

        Raises:
            ServerAway: if it does not in time.
        """
        if self._asking is None:
            self._asking = asyncio.create_task(self._wait(error))
            self._asking.add_done_callback(self._forget)
        await asyncio.shield(self._asking)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()  # those who wait have it; if all were cancelled, asyncio would complain

    async def _wait(self, error: RequestError) -> None:
        if self._since is None:
            self._since = self._clock()
            self._told(error)
        while True:
            left = self._since + self._patience - self._clock()
            wait = self._next_wait(error)
            if left <= 0 or wait > left:
                raise ServerAway(
                    f"the server was away or busy for {self._patience:g} s ({type(error).__name__}: {error}); "
                    "what is done is kept: run the same command again to go on"
                ) from error
            await asyncio.sleep(wait)
            try:
                return await self._ask()
            except (*AWAY, ServerFailed, TimedOut) as again:
                error = again

    def _next_wait(self, error: RequestError) -> float:
        wait = min(_FIRST_WAIT * 2.0**self._asked, _LONGEST_WAIT) * (0.5 + 0.5 * random.random())
        self._asked = min(self._asked + 1, 10)
        asked = getattr(error, "retry_after", None)
        return wait if asked is None else max(wait, asked)
