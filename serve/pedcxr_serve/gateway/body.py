"""Reading a request's body within a cap."""

from __future__ import annotations

import asyncio

from starlette.types import Receive

_DISCARD_S = 10.0


class TooLarge(Exception):
    """The body is over the cap."""


class Disconnected(Exception):
    """The client left before its body was complete."""


async def read(receive: Receive, limit: int) -> bytes:
    """The whole body.

    A larger one is read on and thrown away for some seconds, so that a client that writes first and reads later
    gets the answer and not a broken pipe.

    Raises:
        TooLarge: over ``limit`` bytes, whether or not a length was announced.
        Disconnected: cut off.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        part, more = await _part(receive)
        size += len(part)
        if size > limit:
            await _discard(receive, more)
            raise TooLarge
        parts.append(part)
        if not more:
            return b"".join(parts)


async def until_gone(receive: Receive) -> None:
    """Return when the client has left; call it only after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _part(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    return message.get("body", b""), message.get("more_body", False)


async def _discard(receive: Receive, more: bool) -> None:
    try:
        async with asyncio.timeout(_DISCARD_S):
            while more:
                _, more = await _part(receive)
    except (TimeoutError, Disconnected):
        pass
