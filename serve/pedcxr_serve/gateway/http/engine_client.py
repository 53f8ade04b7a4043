"""HTTP/1.1 client for requests that the engine answers with a report: one connection per request, no copy of the body.

A reused connection could meet the engine closing it, which loses a report to save 0.1 ms. Several API servers on one
socket share new connections evenly (vLLM 0.32, ``launchers/launcher.py``). Events are handed on within the callback of
the socket, because a task that wakes up for each event costs more than the event itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import httptools
from yarl import URL

_CONNECT_TIMEOUT_S = 5.0
_HIGH_WATER = 256 * 1024  # bytes that wait for a slow client before the engine's socket is no longer read

BodyPart = bytes | memoryview


class EngineUnreachable(Exception):
    """No connection could be opened, so the engine has not seen the request."""


class EngineLost(Exception):
    """The connection ended, or the answer was no HTTP, before the answer was complete."""


class EngineClient:
    """Sends requests to one engine.

    Args:
        address: path of the engine's Unix socket, or ``http://HOST:PORT`` or ``https://HOST:PORT``.
        key: sent as ``Authorization: Bearer KEY``; empty = no such header.
    """

    def __init__(self, address: Path | URL, key: str = "") -> None:
        self._address = address
        self._headers = {"Host": "engine" if isinstance(address, Path) else address.authority}
        self._headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._open: set[EngineAnswer] = set()

    def close(self) -> None:
        """End all requests in flight, which raises `EngineLost` where their answers are awaited."""
        for answer in [*self._open]:
            answer.close()

    @contextlib.asynccontextmanager
    async def post(
        self, path: str, parts: Sequence[BodyPart], headers: Mapping[str, str], *, on_sent: Callable[[], None]
    ) -> AsyncIterator[EngineAnswer]:
        """Send a body of JSON and yield the answer after its headers. The connection ends with the block.

        Args:
            headers: further headers.
            on_sent: called once the last byte of the body is written; the answer may come much later.

        Raises:
            EngineUnreachable: no connection within 5 seconds.
            EngineLost: the connection ended before the headers of the answer.
        """
        request = [_head(path, sum(map(len, parts)), self._headers | dict(headers)), *parts]
        answer = EngineAnswer(request, on_sent)
        del request, parts
        self._open.add(answer)
        try:
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    await self._connect(answer)
            except OSError as error:  # TimeoutError is one
                raise EngineUnreachable from error
            await answer.started()
            yield answer
        finally:
            self._open.discard(answer)
            answer.close()

    async def _connect(self, answer: EngineAnswer) -> None:
        loop, address = asyncio.get_running_loop(), self._address
        if isinstance(address, Path):
            await loop.create_unix_connection(lambda: answer, str(address))
        else:
            assert address.host is not None and address.port is not None
            tls = True if address.scheme == "https" else None
            await loop.create_connection(lambda: answer, address.host, address.port, ssl=tls)


class EngineAnswer(asyncio.Protocol):
    """One connection to the engine: it sends the request when it is open, and parses the answer.

    Attributes:
        status: HTTP status, once `started` has returned.
        content_type: value of that header, or an empty string.
    """

    def __init__(self, request: list[BodyPart], on_sent: Callable[[], None]) -> None:
        self._request, self._on_sent = request, on_sent
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._headers_complete = self._complete = self._lost = self._has_length = False
        self._take: Callable[[bytes], bool] | None = None
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._paused = False
        self.status, self.content_type = 0, ""

    async def started(self) -> None:
        """Return once the headers have arrived, or raise `EngineLost`."""
        await self._until(lambda: self._headers_complete)

    async def read(self) -> bytes:
        """Return the whole rest of the body, or raise `EngineLost`."""
        chunks: list[bytes] = []

        def take(chunk: bytes) -> bool:
            chunks.append(chunk)
            return True

        await self.pump(take)
        return b"".join(chunks)

    async def pump(self, take: Callable[[bytes], bool]) -> bool:
        """Pass the body to ``take`` as it arrives, until it returns False. Return whether the body is complete.

        ``take`` runs within the callback of the socket: it must neither block nor raise. What arrives between two calls
        of `pump` is kept, and the engine's socket is not read while too much is kept.

        Raises:
            EngineLost: the connection ended before the body was complete.
        """
        while self._unread:
            chunk = self._unread.popleft()
            self._unread_bytes -= len(chunk)
            if not take(chunk):
                return False
        if self._paused and self._transport is not None and not self._lost:
            self._paused = False
            self._transport.resume_reading()
        self._take = take
        try:
            await self._until(lambda: self._complete or self._take is None)
        finally:
            taking, self._take = self._take is not None, None
        return taking and self._complete

    def close(self) -> None:
        """End the connection, which ends the request in the engine if its answer is not complete. Idempotent."""
        self._sent()
        if self._transport is not None:
            self._transport.abort()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._lost:
                raise EngineLost
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _sent(self) -> None:
        self._request = []
        self._on_sent()

    # The transport's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's transport is not a subclass
        assert self._transport is not None
        self._transport.set_write_buffer_limits(high=0)  # resume_writing is then called after the last byte
        self._transport.writelines(self._request)
        self._request = []
        if not self._transport.get_write_buffer_size():
            self._sent()

    def resume_writing(self) -> None:
        self._sent()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.connection_lost(None)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._headers_complete and not self._has_length and exc is None:
            self._complete = True  # a body without a length ends with the connection (RFC 9112, 6.3)
        self._lost = True
        self._wake()

    # The parser's callbacks.

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self.content_type = value.decode("latin-1")
        elif name in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._headers_complete = True
        self._wake()

    def on_body(self, body: bytes) -> None:
        if self._take is not None:
            if not self._take(body):
                self._take = None
                self._wake()
            return
        self._unread.append(body)
        self._unread_bytes += len(body)
        if self._unread_bytes > _HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        self._complete = True
        self._wake()


def _head(path: str, length: int, headers: Mapping[str, str]) -> bytes:
    fields = {"Content-Type": "application/json", "Content-Length": str(length), "Connection": "close", **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header contains a line break")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
