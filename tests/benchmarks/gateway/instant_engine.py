"""An engine that answers immediately, to measure the gateway. Its hand-written HTTP takes little processor time.

A word in the request's ``stop`` selects another answer: ``pace`` streams events at a fixed rate, ``brief`` is a stream
without events, ``idle`` streams an event every 10 s, and ``wait`` sends an unstreamed answer after 3 s.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import cast

EVENTS = 400
"""Number of events of a stream that is sent in one burst."""
PACE = 30
"""Events per second of a paced stream."""
PACED_EVENTS = 120
_SEARCHED = 2000  # bytes at each end of a body: the film between them is long
_WAIT_S = 3.0
_IDLE_S = 10.0


async def serve(socket: Path) -> None:
    """Answer on a Unix socket until cancelled."""
    server = await asyncio.get_running_loop().create_unix_server(_Instant, socket, backlog=2048)
    socket.with_suffix(".up").touch()
    await server.serve_forever()


class _Instant(asyncio.Protocol):
    """Answers after the last byte of the body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is not a subclass
        self._head, self._remaining = b"", -1

    def data_received(self, data: bytes) -> None:
        if self._remaining < 0:
            self._head += data
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._remaining = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            self._start, self._tail, data = b"", b"", rest
        self._remaining -= len(data)
        self._start += data[: _SEARCHED - len(self._start)]
        self._tail = (self._tail + data)[-_SEARCHED:]
        if self._remaining == 0:
            self._answer()

    def _answer(self) -> None:
        fields = self._start + self._tail
        if b'"wait"' in fields:
            asyncio.get_running_loop().call_later(_WAIT_S, self._write, _WHOLE)
        elif b'"pace"' in fields:
            self._transport.write(_OPEN)
            self._pace(PACED_EVENTS, 1 / PACE)
        elif b'"brief"' in fields:
            self._write(_OPEN + _END)
        elif b'"idle"' in fields:
            self._transport.write(_OPEN)
            self._pace(PACED_EVENTS, _IDLE_S)
        else:
            self._write(_STREAM if b'"stream":true' in fields else _WHOLE)

    def _pace(self, count: int, gap_s: float) -> None:
        if not count:
            self._write(_END)
        elif not self._transport.is_closing():
            self._transport.write(_WORD)
            asyncio.get_running_loop().call_later(gap_s, self._pace, count - 1, gap_s)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self._transport.close()


def _http(kind: bytes, data: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    return head % (kind, len(data)) + data


_USAGE = {"prompt_tokens": 300, "completion_tokens": EVENTS, "total_tokens": 300 + EVENTS}
_CHUNK = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1, "model": "bench"}


def _event(*choices: object, **more: object) -> bytes:
    return b"data: " + json.dumps({**_CHUNK, "choices": choices, **more}, separators=(",", ":")).encode() + b"\n\n"


_COUNT = {"prompt_tokens": 300, "total_tokens": 301, "completion_tokens": 1, "completion_tokens_details": None}
_WORD = _event({"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}, usage=_COUNT)
_END = _event({"index": 0, "delta": {}, "finish_reason": "stop"}) + _event(usage=_USAGE) + b"data: [DONE]\n\n"
_STREAM = _http(b"text/event-stream", _WORD * EVENTS + _END)
_OPEN = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
_CHOICE = {"index": 0, "message": {"role": "assistant", "content": "word " * EVENTS}, "finish_reason": "stop"}
_WHOLE = _http(b"application/json", json.dumps({**_CHUNK, "choices": [_CHOICE], "usage": _USAGE}).encode())
