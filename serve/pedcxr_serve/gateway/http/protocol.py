"""uvicorn's HTTP/1.1 protocol with limits on header size, time and number of connections, and OpenAI's error format."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from pedcxr_serve.gateway import error_responses

MAX_CONNECTIONS = 8192
"""Maximum number of connections per listening address, if the limit on open files allows it."""
MAX_HEADER_BYTES = 16_384
"""Maximum size of request line and headers together."""
MAX_HEADERS = 64
HEADERS_TIMEOUT_S = 20.0
"""Seconds from the connection, or from the first byte of a later request, to the end of the headers. Also the seconds
from an early answer, such as a 401, to the end of its request."""
MAX_DISCARDED_BYTES = 64 << 20
"""Maximum number of bytes that are read and discarded after an early answer."""
WRITE_TIMEOUT_S = 90.0
"""Seconds that the client may leave an answer unread before the connection is aborted."""

_log = logging.getLogger("pedcxr.gateway")
_EXTENSION = "pedcxr"
_OTHER_FILES = 256  # open files that are neither connections nor handshakes
_MAX_HANDSHAKES = 1024
_SINGLE_HEADERS = (b"host", b"authorization", b"content-encoding")  # two parsers could pick different values
_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}


class ConnectionLimiter:
    """Limits the number of connections of a server. At the limit, the connection that is idle longest is closed.

    A flood of connections that send nothing, or one header per second, thus evicts only connections of that kind. A
    connection with a request in flight is never evicted.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._idle: dict[asyncio.Transport, None] = {}

    def mark_idle(self, transport: asyncio.Transport) -> None:
        """Record that the connection waits for a request from now on."""
        self._idle.pop(transport, None)
        self._idle[transport] = None

    def mark_busy(self, transport: asyncio.Transport) -> None:
        """Record that the connection has a request in flight, or is closed."""
        self._idle.pop(transport, None)

    def evict_oldest(self) -> bool:
        """Close the connection that is idle longest; return whether there was an idle connection."""
        oldest = next(iter(self._idle), None)
        if oldest is None:
            return False
        self.mark_busy(oldest)
        oldest.abort()  # close() would wait for a client that does not read
        return True


def connection_limiter() -> ConnectionLimiter:
    """Return a limiter for the limit on open files, which is raised first if possible.

    Every client connection may need a second file, for its connection to the engine.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = 2 * MAX_CONNECTIONS + _MAX_HANDSHAKES + _OTHER_FILES
    if soft < files:
        soft = min(files, hard) if hard != resource.RLIM_INFINITY else files
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return ConnectionLimiter(max(16, min(MAX_CONNECTIONS, (soft - max_handshakes() - _OTHER_FILES) // 2)))


def max_handshakes() -> int:
    """Return the maximum number of TLS handshakes at a time: a sixteenth of the open files, at most 1,024."""
    return max(16, min(_MAX_HANDSHAKES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16))


class Connection(HttpToolsProtocol):
    """One client connection, a subclass of uvicorn's protocol (`server.UVICORN_VERSIONS`).

    Invalid HTTP is answered with 400 and oversized headers with 431; then the connection is closed.

    An answer that starts before its request has arrived says ``Connection: close``, since the client may leave out the
    rest (RFC 9112, 9.3). The connection is closed once the rest is discarded, within `HEADERS_TIMEOUT_S` and
    `MAX_DISCARDED_BYTES`: a client that still sends could otherwise get a reset instead of the answer (9.6).
    """

    _headers_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _refused = False
    _in_body = False  # the parser is between the headers and the end of the current request
    _pipelined = False  # a request came before the answer to the one before it; the connection ends with that answer
    _keep_alive = False  # whether the connection is kept if the answer starts after the end of the request
    _lingering = False  # answered, and closed once the rest of the request has arrived
    _discarded_bytes = 0

    def __init__(self, *args: Any, limiter: ConnectionLimiter, refused: Callable[[str], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self._limiter, self._count_refused = limiter, refused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # The transport of an answer, which uvicorn would close while the client still sends.
        self._answers: Any = SimpleNamespace(
            write=transport.write, is_closing=transport.is_closing, close=self._close_after_request
        )
        if len(self.connections) > self._limiter.limit:
            if not self._limiter.evict_oldest():
                self._refuse(503, "too many connections; try again in a moment", "too_many_connections")
                return
            self._count_refused("idle_evicted")
        self._limiter.mark_idle(self.transport)
        self._start_headers_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._limiter.mark_busy(self.transport)
        self._cancel_headers_timer()
        self._cancel_write_timer()
        self._answers.close = self.transport.close  # so that nothing refers to this object and it is freed at once
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self._pipelined:
            return
        self._unset_keepalive_if_required()
        if self._lingering:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.close()
                return
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError as error:
            if self._pipelined:
                return
            if self._lingering:  # the answer was sent
                self.close()
                return
            if isinstance(error.__context__, _HeadersTooLarge):
                self._refuse(431, "the request's headers are too large", "headers_too_large")
            else:
                self._refuse(400, "the request is not valid HTTP/1.1", "invalid_http")

    def _parse(self, data: bytes) -> bytes:
        """Parse received bytes; return the bytes to parse next, or an empty string.

        Java's client asks to upgrade to HTTP/2 in every request, and the parser then drops the body. The head is
        therefore parsed again without the Upgrade header. RFC 9110, 7.8 allows a server to ignore that header.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._pipelined:
                return b""
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError("CONNECT is not supported") from None
            version = self.parser.get_http_version().encode()
            lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
            lines += [b"%b: %b" % pair for pair in self.headers if pair[0] not in (b"upgrade", b"connection")]
            lines += [b"connection: close"] if _wants_close(self.headers) else []
            return b"\r\n".join((*lines, b"", data[upgrade.args[0] :]))
        return b""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():  # a closing transport still has data that may stay unread
            self._cancel_write_timer()

    def on_message_begin(self) -> None:
        if self._pipelined or (self.cycle is not None and not self.cycle.response_complete):
            # Pipelined requests are not read: uvicorn would stop reading until it has answered, and would not see that
            # the client leaves. A client sends an unanswered request again (RFC 9112, 9.3.2).
            self._pipelined, self.cycle.keep_alive = True, False
            return
        super().on_message_begin()
        self.scope["extensions"] = {_EXTENSION: {}}
        self._header_bytes, self._in_body = 0, False
        self._start_headers_timer()

    def on_url(self, url: bytes) -> None:
        if self._pipelined:
            return
        self._count_header_bytes(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._pipelined:
            return
        self._count_header_bytes(name + value)
        if self._in_body:
            return  # a trailer field, which could pose as an Authorization header (RFC 9110, 6.5.1)
        if len(self.headers) >= MAX_HEADERS:
            raise _HeadersTooLarge
        super().on_header(name, value)
        name = self.headers[-1][0]
        if name in _SINGLE_HEADERS and sum(name == other for other, _ in self.headers) > 1:
            raise _AmbiguousHeaders
        if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise _AmbiguousHeaders

    def on_headers_complete(self) -> None:
        if self._pipelined or self.parser.should_upgrade():
            return  # _parse starts again
        self._cancel_headers_timer()
        self._limiter.mark_busy(self.transport)
        self._in_body = True
        super().on_headers_complete()
        self.cycle.transport = self._answers
        self._keep_alive, self.cycle.keep_alive = self.cycle.keep_alive, False
        self.scope["extensions"][_EXTENSION]["writer"] = ChunkWriter(self.cycle)

    def on_body(self, body: bytes) -> None:
        if not self._pipelined:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._pipelined or self.parser.should_upgrade():
            return
        self._in_body = False
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive
        if self._lingering:
            self._pipelined = True  # what follows is not read
            self.close()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline or self.transport.is_closing():
            return
        self._limiter.mark_idle(self.transport)

    def _close_after_request(self) -> None:
        if not self._in_body:
            self.close()
            return
        self._lingering = True
        self.flow.resume_reading()
        self._start_headers_timer()
        if self.transport.can_write_eof():  # not over TLS
            self.transport.write_eof()

    def close(self) -> None:
        """Close the connection once the written data is sent."""
        if not self.transport.is_closing():
            self.transport.close()

    def _count_header_bytes(self, data: bytes) -> None:
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise _HeadersTooLarge

    def _start_headers_timer(self) -> None:
        if self._headers_timer is None:
            self._headers_timer = self.loop.call_later(HEADERS_TIMEOUT_S, self._headers_timed_out)

    def _cancel_headers_timer(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _headers_timed_out(self) -> None:
        self._headers_timer = None
        self._count_refused("headers_too_slow")
        self.close()

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Send an error and close. No error is sent if another answer has started or is due first."""
        self._refused = True
        self._count_refused(code)
        _log.info("connection from %s refused: %s", self.client[0] if self.client else "a socket", code)
        self._cancel_headers_timer()
        cycle = self.cycle
        if cycle is None or cycle.response_complete or (self._in_body and not cycle.response_started):
            with contextlib.suppress(Exception):
                self.transport.write(_error_answer(status, message, code))
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # otherwise the app could answer too before the connection is lost
            cycle.message_event.set()
        self.close()


class ChunkWriter:
    """Writes chunks of a streamed answer straight to its connection.

    The headers and the end of the answer take the way of ASGI. The events in between would spend a fifth of their
    processor time in middleware that looks at headers only.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def request_pending(self) -> bool:
        """Whether a part of the request has not arrived."""
        return self._cycle.more_body

    @property
    def paused(self) -> bool:
        """Whether the client has to read before more is sent; if not, ASGI's ``send`` does not block either."""
        return self._cycle.flow.write_paused

    def write(self, data: bytes) -> bool:
        """Write without blocking. Return False, with nothing written, if ``send`` has to be used instead."""
        cycle = self._cycle
        if self._cycle.flow.write_paused or not cycle.chunked_encoding or cycle.response_complete:
            return False
        if not cycle.disconnected:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True


def chunk_writer(scope: Scope) -> ChunkWriter | None:
    """Return the writer of a request's answer, or None under another server."""
    writer = scope.get("extensions", {}).get(_EXTENSION, {}).get("writer")
    return writer if isinstance(writer, ChunkWriter) else None


class _HeadersTooLarge(Exception):
    """The headers are over a limit; raised in a callback of the parser, which wraps it."""


class _AmbiguousHeaders(Exception):
    """Two parsers could read the headers as different requests; raised like `_HeadersTooLarge`."""


def _wants_close(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"connection" and b"close" in value.lower() for name, value in headers)


def _error_answer(status: int, message: str, code: str) -> bytes:
    body = error_responses.error_body(status, message, code)
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
