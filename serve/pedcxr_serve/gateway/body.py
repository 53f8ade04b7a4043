"""Reading a request's body within a cap, a time, and the memory that all bodies may take together."""

from __future__ import annotations

import asyncio

from starlette.types import Receive

_DISCARD_S = 10.0
_DISCARD = 4  # times the cap


class TooLarge(Exception):
    """The body is over the cap."""


class TooSlow(Exception):
    """The body was not complete in time."""


class NoRoom(Exception):
    """Too many bodies are held already."""


class Disconnected(Exception):
    """The client left before its body was complete."""


class Bodies:
    """The memory of all bodies together.

    Args:
        limit: bytes, at most.
        timeout_s: seconds that a client may take to send one.
    """

    def __init__(self, limit: int, *, timeout_s: float) -> None:
        self.limit, self.timeout_s = limit, timeout_s
        self.held = 0


class Body:
    """One body; `release` it when it was sent on."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    async def read(self, receive: Receive, limit: int) -> bytearray:
        """The whole of it.

        A larger one is read on and thrown away for a while, so that a client that writes first and reads later
        gets the answer and not a broken pipe.

        Raises:
            TooLarge: over ``limit`` bytes, whether or not a length was announced.
            TooSlow: not complete in time.
            NoRoom: all bodies together are over their limit.
            Disconnected: cut off.
        """
        data = bytearray()
        try:
            async with asyncio.timeout(self._bodies.timeout_s):
                more = True
                while more:
                    part, more = await _part(receive)
                    if len(data) + len(part) > limit:
                        break
                    self._take(len(part))
                    data += part
                else:
                    return data
        except TimeoutError:
            raise TooSlow from None
        data.clear()
        await _discard(receive, more, _DISCARD * limit)
        raise TooLarge

    def release(self) -> None:
        """Give the memory back; harmless when it was."""
        self._bodies.held -= self._size
        self._size = 0

    def _take(self, size: int) -> None:
        if self._bodies.held + size > self._bodies.limit:
            raise NoRoom
        self._bodies.held += size
        self._size += size


async def until_gone(receive: Receive) -> None:
    """Return when the client has left; call it only after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _part(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    return message.get("body", b""), message.get("more_body", False)


async def _discard(receive: Receive, more: bool, most: int) -> None:
    size = 0
    try:
        async with asyncio.timeout(_DISCARD_S):
            while more and size < most:
                part, more = await _part(receive)
                size += len(part)
    except (TimeoutError, Disconnected):
        pass
