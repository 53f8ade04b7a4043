"""Whether the engine lives, as the requests see it."""

from __future__ import annotations

import asyncio
import time

_LOOK_S = 1.0


class Pulse:
    """Signs of life that requests bring along, so that a busy engine need not be asked for any.

    Attributes:
        last: when the engine last wrote something, of `time.monotonic`.
        doubted: set while a request has lost the engine and nobody has looked yet.
    """

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.doubted = asyncio.Event()
        self._looked = asyncio.Event()
        self._looked.set()

    @property
    def age(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self.last

    def beat(self) -> None:
        """The engine wrote something."""
        self.last = time.monotonic()

    def doubt(self) -> None:
        """A request lost the engine."""
        self.doubted.set()
        self._looked.clear()

    def settle(self) -> None:
        """Somebody has looked, and told the state what there is."""
        self.doubted.clear()
        self._looked.set()

    async def settled(self) -> None:
        """Wait, a second at most, until a doubt has been looked into: whoever is next in line after a request that lost
        the engine would lose it too, and could not be told that it is safe to ask again."""
        try:
            # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the result.
            async with asyncio.timeout(_LOOK_S):
                await self._looked.wait()
        except TimeoutError:
            self.settle()
