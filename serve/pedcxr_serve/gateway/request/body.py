"""Reading a request's body within a cap, a time, and the memory that all bodies may take together."""

from __future__ import annotations

import asyncio

from starlette.types import Receive

_SHARE = 3
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
    """The memory of all bodies together, shared such that no tenant can take it all.

    A tenant may hold up to `_SHARE` times what is still free: alone three quarters of the whole, and two that want
    everything three sevenths each, so that there is always room for one more (Choudhury and Hahne, "Dynamic Queue
    Length Thresholds for Shared-Memory Packet Switches", 1998).

    Args:
        limit: bytes, at most.
        timeout_s: seconds that a client may take to send one.
    """

    def __init__(self, limit: int, *, timeout_s: float) -> None:
        self.limit, self.timeout_s = limit, timeout_s
        self.held = 0
        self._of: dict[str, int] = {}

    def take(self, tenant: str, size: int) -> None:
        """Hold so many bytes more for a tenant.

        Raises:
            NoRoom: that is more than its share.
        """
        of = self._of.get(tenant, 0) + size
        if of > _SHARE * (self.limit - self.held - size):
            raise NoRoom
        self._of[tenant] = of
        self.held += size

    def give_back(self, tenant: str, size: int) -> None:
        """Hold so many less."""
        self._of[tenant] = self._of.get(tenant, 0) - size
        self.held -= size


class Body:
    """One body; `release` it when it was sent on."""

    def __init__(self, bodies: Bodies, tenant: str) -> None:
        self._bodies, self._tenant = bodies, tenant
        self._size = 0

    async def read(self, receive: Receive, limit: int) -> bytearray:
        """The whole of it.

        A larger one is read on and thrown away for a while, so that a client that writes first and reads later
        gets the answer and not a broken pipe.

        Raises:
            TooLarge: over ``limit`` bytes, whether or not a length was announced.
            TooSlow: not complete in time.
            NoRoom: the tenant's bodies together are over their share.
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
        self.release()
        await _discard(receive, more, _DISCARD * limit)
        raise TooLarge

    def release(self) -> None:
        """Give the memory back; harmless when it was."""
        self._bodies.give_back(self._tenant, self._size)
        self._size = 0

    def _take(self, size: int) -> None:
        self._bodies.take(self._tenant, size)
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
