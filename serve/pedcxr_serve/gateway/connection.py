"""uvicorn's HTTP/1.1 connection with what it leaves open: a cap on headers, a time to send them, OpenAI's errors."""

from __future__ import annotations

import asyncio
import contextlib

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from . import reply

HEADER_BYTES = 16_384
"""Of request line and headers together."""
HEADER_COUNT = 64
HEADERS_S = 20.0
"""Seconds from connecting, or from the first byte of a later request, to the end of the headers."""


class Connection(HttpToolsProtocol):
    """One connection, as uvicorn 0.54 makes it.

    A request that is no HTTP, or whose headers are over the cap, is answered 400 or 431 and the connection closed.
    """

    _slow: asyncio.TimerHandle | None = None
    _head = 0
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settled()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # asked for politely, by Java's client with every request; HTTP/1.1 goes on
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _TooMuch):
                self._refuse(431, "the request's headers are too large", "headers_too_large")
            else:
                self._refuse(400, "this is not HTTP/1.1", "invalid_http")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0
        self._wait()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name + value)
        if len(self.headers) >= HEADER_COUNT:
            raise _TooMuch
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._settled()
        super().on_headers_complete()

    def _count(self, data: bytes) -> None:
        self._head += len(data)
        if self._head > HEADER_BYTES:
            raise _TooMuch

    def _wait(self) -> None:
        if self._slow is None:
            self._slow = self.loop.call_later(HEADERS_S, self._give_up)

    def _settled(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _give_up(self) -> None:
        self._slow = None
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer in OpenAI's shape and close, unless an answer is on its way already."""
        self._refused = True
        self._settled()
        if self.cycle is None or self.cycle.response_complete:
            body = reply.error_body(message, kind="invalid_request_error", code=code)
            reason = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}[status]
            head = (
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            )
            with contextlib.suppress(Exception):
                self.transport.write(head % (status, reason, len(body)) + body)
        self.transport.close()


class _TooMuch(Exception):
    """Headers over the cap; raised in a callback of the parser, which wraps it."""
