"""Accept TLS connections under limits that apply before the handshake, when a client is not known yet.

uvicorn sees a connection after its handshake. Until then it would hold an open file and, for a signature, up to a
millisecond of the processor, without a limit on either.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_PER_ADDRESS = 64
"""Handshakes of one address at a time. Each further handshake ends the oldest of the address."""
RATE_PER_ADDRESS, BURST_PER_ADDRESS = 100.0, 400.0
"""Handshakes per second that one address may begin, and at once after a pause. Others are reset."""
TIMEOUT_S = 3.0
"""Seconds that a handshake may take."""
_SHUTDOWN_TIMEOUT_S = 5.0  # for the client's close_notify
_PER_WAKE_UP = 64  # connections accepted before other work of the loop gets its turn
_NO_FILES_PAUSE_S = 0.5  # after accept() failed for lack of open files
_MAX_ADDRESSES = 10_000  # that are remembered; the one unused longest is forgotten
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset and leaves no TIME_WAIT
_log = logging.getLogger("pedcxr.gateway")


@dataclass(slots=True)
class _Address:
    tokens: float = BURST_PER_ADDRESS
    updated_at: float = 0.0
    handshakes: dict[socket.socket, None] = field(default_factory=dict)


class HandshakeServer:
    """Accepts from a listening socket, and gives a connection to ``protocol`` once its handshake is complete.

    Has the methods that uvicorn calls of `asyncio.Server`.

    Args:
        protocol: creates the protocol of a connection.
        limit: maximum number of handshakes at a time. One that arrives above it ends the oldest of all.
        refused: called with ``handshake_limit``, ``handshake_rate``, ``handshake_failed`` or ``no_files`` for each
            connection that does not get to the protocol.
    """

    def __init__(
        self,
        bound: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        *,
        limit: int,
        refused: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bound, self._protocol, self._context = bound, protocol, context
        self._limit, self._refused, self._clock = limit, refused, clock
        self._loop = asyncio.get_running_loop()
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        self._handshakes: dict[socket.socket, str] = {}  # oldest first
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        bound.setblocking(False)
        self._loop.add_reader(bound, self._accept)

    def __len__(self) -> int:
        """Return the number of handshakes in progress."""
        return len(self._handshakes)

    def close(self) -> None:
        """Accept no further connection."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._bound)

    async def wait_closed(self) -> None:
        """End the handshakes in progress."""
        for handshake in self._handshakes:
            _shut_down(handshake)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_PER_WAKE_UP):
            try:
                accepted, peer = self._bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no open file or no memory is left
                _log.error("no connection accepted for %g s: %s", _NO_FILES_PAUSE_S, error.strerror)
                self._refused("no_files")
                self._loop.remove_reader(self._bound)
                self._loop.call_later(_NO_FILES_PAUSE_S, self._resume)
                return
            self._admit(accepted, network(peer[0]))

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._bound, self._accept)

    def _admit(self, accepted: socket.socket, name: str) -> None:
        address = self._of(name)
        if not _take(address, self._clock()):
            self._refused("handshake_rate")
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            accepted.close()
            return
        if len(address.handshakes) >= MAX_PER_ADDRESS:
            self._end_oldest(address.handshakes)
        elif len(self._handshakes) >= self._limit:
            self._end_oldest(self._handshakes)
        accepted.setblocking(False)
        address.handshakes[accepted] = None
        self._handshakes[accepted] = name
        task = self._loop.create_task(self._shake_hands(accepted, name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end_oldest(self, handshakes: dict[socket.socket, None] | dict[socket.socket, str]) -> None:
        oldest = next(iter(handshakes))
        self._refused("handshake_limit")
        self._forget(oldest)
        _shut_down(oldest)  # its task then fails and closes it

    async def _shake_hands(self, accepted: socket.socket, name: str) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._protocol,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=TIMEOUT_S,
                ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
            )
        except (OSError, TimeoutError):  # ssl.SSLError is an OSError
            if accepted in self._handshakes:
                self._refused("handshake_failed")
        finally:
            self._forget(accepted)

    def _forget(self, handshake: socket.socket) -> None:
        name = self._handshakes.pop(handshake, None)
        if name is not None and name in self._addresses:
            self._addresses[name].handshakes.pop(handshake, None)

    def _of(self, name: str) -> _Address:
        address = self._addresses.get(name)
        if address is None:
            address = self._addresses[name] = _Address(updated_at=self._clock())
            if len(self._addresses) > _MAX_ADDRESSES:
                self._addresses.popitem(last=False)
        self._addresses.move_to_end(name)
        return address


def network(host: str) -> str:
    """Return the address whose handshakes count together: an IPv4 address, or the /64 network of an IPv6 address."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def _take(address: _Address, now: float) -> bool:
    """Take a token of the address's bucket; return whether there was one."""
    earned = RATE_PER_ADDRESS * (now - address.updated_at)
    address.tokens, address.updated_at = min(BURST_PER_ADDRESS, address.tokens + earned), now
    if address.tokens < 1:
        return False
    address.tokens -= 1
    return True


def _shut_down(handshake: socket.socket) -> None:
    with contextlib.suppress(OSError):
        handshake.shutdown(socket.SHUT_RDWR)
