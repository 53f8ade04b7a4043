"""Reading of request bodies within limits of size, time and total memory."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import Receive

_SHARE = 3  # multiple of the free memory that a tenant may use
_SMALL = 1 << 20  # bytes; an ordinary film
_SMALL_S = 1.0


class TooLarge(Exception):
    """The body exceeds the size limit."""


class TooSlow(Exception):
    """The body was not complete in time."""


class NoRoom(Exception):
    """The tenant's bodies exceed its share of the memory."""


class Disconnected(Exception):
    """The client disconnected before its body was complete."""


class BodyMemory:
    """The memory of all request bodies together, shared so that no tenant can take all of it.

    A tenant may use up to `_SHARE` times the free memory: three quarters of the total if it is alone, three sevenths if
    two tenants compete, so that there is always room for another tenant (Choudhury and Hahne, "Dynamic Queue Length
    Thresholds for Shared-Memory Packet Switches", 1998).

    Args:
        limit: total memory, bytes.
        timeout_s: time for a client to send a body, seconds.
    """

    def __init__(self, limit: int, *, timeout_s: float) -> None:
        self.limit, self.timeout_s = limit, timeout_s
        self.in_use = 0
        self._by_tenant: dict[str, int] = {}

    def reserve(self, tenant: str, size: int) -> None:
        """Add ``size`` bytes to the memory of a tenant.

        Raises:
            NoRoom: the tenant would exceed its share.
        """
        total = self._by_tenant.get(tenant, 0) + size
        if total > _SHARE * (self.limit - self.in_use - size):
            raise NoRoom
        self._by_tenant[tenant] = total
        self.in_use += size

    def release(self, tenant: str, size: int) -> None:
        """Subtract ``size`` bytes from the memory of a tenant."""
        self._by_tenant[tenant] = self._by_tenant.get(tenant, 0) - size
        self.in_use -= size


class Body:
    """One request body. Call `release` when the engine has received it."""

    def __init__(self, memory: BodyMemory, tenant: str) -> None:
        self._memory, self._tenant = memory, tenant
        self._size = 0

    async def read(self, receive: Receive, limit: int, *, announced: int = 0) -> bytearray:
        """Return the whole body.

        Args:
            announced: size by the Content-Length, 0 if unknown.

        Raises:
            TooLarge: over ``limit`` bytes, with or without a Content-Length.
            TooSlow: not complete in time.
            NoRoom: the bodies of the tenant together exceed its share.
            Disconnected: the client disconnected.
        """
        data = bytearray()
        if announced > limit:
            raise TooLarge
        try:
            async with asyncio.timeout(self._memory.timeout_s):
                more = True
                while more:
                    chunk, more = await _chunk(receive)
                    if len(data) + len(chunk) > limit:
                        raise TooLarge
                    self._reserve(len(chunk))
                    data += chunk
        except TimeoutError:
            raise TooSlow from None
        return data

    def release(self) -> None:
        """Release the memory of the body; a second call has no effect."""
        self._memory.release(self._tenant, self._size)
        self._size = 0

    def _reserve(self, size: int) -> None:
        self._memory.reserve(self._tenant, size)
        self._size += size


async def until_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected. Call it only after the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def announced_length(headers: Headers) -> int | None:
    """Return the Content-Length of a request, None if it has no valid one."""
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


async def finish_small(headers: Headers, receive: Receive) -> None:
    """Wait at most 1 s for the rest of a refused body of at most 1 MiB, so that its connection can be kept.

    Python's clients write head and body apart. With ``Expect`` the body may never come (RFC 9110, 10.1.1).
    """
    length = announced_length(headers)
    if length is not None and length <= _SMALL and "expect" not in headers:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SMALL_S):
                while (await receive()).get("more_body"):
                    pass


async def _chunk(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    return message.get("body", b""), message.get("more_body", False)
