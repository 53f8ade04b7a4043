"""How many connections there may be, and which gives way to another."""

from __future__ import annotations

import asyncio
import resource

CONNECTIONS = 8192
"""At once, on an address, where the system allows the process as many open files."""

_OTHER_FILES = 256


class Room:
    """The connections of a server that wait for a request: when it is full, the one that waits longest gives way.

    So a flood of connections that send nothing, or one header a second, pushes out its own kind. A connection with a
    request in work never gives way.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._silent: dict[asyncio.Transport, None] = {}

    def add(self, transport: asyncio.Transport) -> None:
        """It waits from now on."""
        self._silent.pop(transport, None)
        self._silent[transport] = None

    def remove(self, transport: asyncio.Transport) -> None:
        """It waits no longer, or is gone."""
        self._silent.pop(transport, None)

    def make(self) -> bool:
        """Close the one that waits longest; whether there was one."""
        oldest = next(iter(self._silent), None)
        if oldest is None:
            return False
        self.remove(oldest)
        oldest.abort()  # closing would wait for a client that does not read
        return True


def room() -> Room:
    """For as many connections as the limit on open files allows, each with one to the engine behind it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * CONNECTIONS + _OTHER_FILES
    if soft < wanted:
        soft = min(wanted, hard) if hard != resource.RLIM_INFINITY else wanted
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return Room(max(16, min(CONNECTIONS, (soft - _OTHER_FILES) // 2)))
