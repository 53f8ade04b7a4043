"""uvicorn's HTTP/1.1 connection with what it leaves open: caps on headers, time and number, and OpenAI's errors."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import Any

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pedcxr_serve.gateway import error_responses
from pedcxr_serve.gateway.http.connection_limiter import Room

HEADER_BYTES = 16_384
"""Of request line and headers together."""
HEADER_COUNT = 64
HEADERS_S = 20.0
"""Seconds from connecting, or from the first byte of a later request, to the end of the headers; and from an answer
that came before the end of its request, as 401 does, to that end."""
STALL_S = 90.0
"""Seconds that an answer may wait to be read; then the connection is dropped, with what was not read."""

_EXTENSION = "pedcxr"
_ONCE = (b"host", b"authorization", b"content-encoding")  # of which two readers might take two different ones
_REASONS = {
    400: b"Bad Request",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


class Connection(HttpToolsProtocol):
    """One connection, as uvicorn 0.54 makes it.

    A request that is no HTTP, or whose headers are over the cap, is answered 400 or 431 and the connection closed.
    """

    _slow: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _head = 0
    _refused = False
    _in_body = False  # of the request that is being parsed: between its headers and its end

    def __init__(self, *args: Any, room: Room, **more: Any) -> None:
        super().__init__(*args, **more)
        self._room = room

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._room.most and not self._room.make():
            self._refuse(503, "too many connections; try again in a moment", "too_many_connections")
            return
        self._room.add(self.transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._room.remove(self.transport)
        self._settled()
        self._read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        try:
            while data:
                data = self._fed(data)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _TooMuch):
                self._refuse(431, "the request's headers are too large", "headers_too_large")
            else:
                self._refuse(400, "this is not HTTP/1.1", "invalid_http")

    def _fed(self, data: bytes) -> bytes:
        """Parse it; what is to be parsed next, if not all was.

        Java's client asks for HTTP/2 with every request, of which the parser then drops the body. So the head is
        parsed again without the question, which says no to it as RFC 9110, 7.8 allows, and answers the request.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as asked:
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError("no tunnels here") from None
            version = self.parser.get_http_version().encode()
            lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
            lines += [b"%b: %b" % pair for pair in self.headers if pair[0] not in (b"upgrade", b"connection")]
            lines += [b"connection: close"] if _wants_close(self.headers) else []
            return b"\r\n".join((*lines, b"", data[asked.args[0] :]))
        return b""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():  # the rest may be read, or not
            self._read()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {_EXTENSION: {"flow": self.flow}}
        self._head, self._in_body = 0, False
        self._wait()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name + value)
        if self._in_body:
            return  # a trailer; among the headers it could pose as a key (RFC 9110, 6.5.1)
        if len(self.headers) >= HEADER_COUNT:
            raise _TooMuch
        super().on_header(name, value)
        name = self.headers[-1][0]
        if name in _ONCE and sum(name == other for other, _ in self.headers) > 1:
            raise _Ambiguous
        if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise _Ambiguous

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # see _fed
        self._settled()
        self._room.remove(self.transport)
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_body = False
        if self.cycle.response_complete:
            self._settled()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline or self.transport.is_closing():
            return
        self._room.add(self.transport)
        if self._in_body:
            self._wait()

    def _read(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def close(self) -> None:
        """Close it once what was written is sent."""
        if not self.transport.is_closing():
            self.transport.close()

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
        self.close()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer in OpenAI's shape and close, unless an answer is on its way already, or another is due first."""
        self._refused = True
        self._settled()
        cycle = self.cycle
        if cycle is None or cycle.response_complete or (self._in_body and not cycle.response_started):
            with contextlib.suppress(Exception):
                self.transport.write(_answer(status, message, code))
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # or it might answer too, before the connection is lost
            cycle.message_event.set()
        self.close()


def flow_of(scope: Scope) -> FlowControl | None:
    """Of a request's connection: while it is not ``write_paused``, sending does not wait. None under another server."""
    flow = scope.get("extensions", {}).get(_EXTENSION, {}).get("flow")
    return flow if isinstance(flow, FlowControl) else None


class _TooMuch(Exception):
    """Headers over the cap; raised in a callback of the parser, which wraps it."""


class _Ambiguous(Exception):
    """Headers that two readers could take for two different requests; raised like `_TooMuch`."""


def _wants_close(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"connection" and b"close" in value.lower() for name, value in headers)


def _answer(status: int, message: str, code: str) -> bytes:
    kind = "invalid_request_error" if status < 500 else "service_unavailable_error"
    body = error_responses.error_body(message, kind=kind, code=code)
    lines = [
        b"HTTP/1.1 %d %b" % (status, _REASONS[status]),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"x-request-id: " + uuid.uuid4().hex.encode(),
        b"connection: close",
    ]
    if status == 503:
        lines.append(b"retry-after: %d" % error_responses.RETRY_AFTER_S)
    return b"\r\n".join((*lines, b"", body))
