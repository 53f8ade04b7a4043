"""One request to the engine and its answer back: bytes pass through both ways, and so does a client that leaves."""

from __future__ import annotations

import asyncio

import aiohttp
from starlette.types import Receive, Scope, Send

from . import body, reply
from .state import State

_EVENT_STREAM = "text/event-stream"


class ChatCompletions:
    """ASGI endpoint of ``POST /v1/chat/completions``.

    Backpressure: the engine is read only as fast as the client reads. A client that leaves ends its request in the
    engine, whether it is queued there or running.
    """

    def __init__(self, state: State, engine: aiohttp.ClientSession) -> None:
        self._state = state
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._state.ready:
            await reply.unavailable(self._state.stage)(scope, receive, send)
            return
        try:
            data = await body.read(receive, self._state.body_limit)
        except body.TooLarge:
            await reply.too_large(self._state.body_limit)(scope, receive, send)
            return
        except body.Disconnected:
            return
        self._state.in_flight += 1
        self._state.metrics.in_flight.inc()
        try:
            await self._race(data, scope, receive, send)
        finally:
            self._state.in_flight -= 1
            self._state.metrics.in_flight.dec()

    async def _race(self, data: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        relay = asyncio.create_task(self._relay(data, scope, receive, send))
        gone = asyncio.create_task(body.until_gone(receive))
        try:
            await asyncio.wait((relay, gone), return_when=asyncio.FIRST_COMPLETED)
            if relay.done():
                relay.result()
        finally:
            for task in (relay, gone):
                task.cancel()
            await asyncio.gather(relay, gone, return_exceptions=True)

    async def _relay(self, data: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        started = streaming = False
        headers = {"Content-Type": "application/json", "X-Request-Id": scope["state"]["request_id"]}
        try:
            async with self._engine.post("/v1/chat/completions", data=data, headers=headers) as answer:
                kind = answer.headers.get("Content-Type", "application/json")
                streaming = kind.startswith(_EVENT_STREAM)
                await send(_start(answer, kind, demo=self._state.demo))
                started = True
                async for chunk in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except aiohttp.ClientError:
            if not started:
                await reply.engine_failed()(scope, receive, send)
                return
            if not streaming:
                raise  # half a JSON body: a closed connection is the only honest end
            event = reply.error_body(reply.ENGINE_LOST, kind="engine_error", code="engine_lost")
            await send({"type": "http.response.body", "body": b"\n\ndata: " + event + b"\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _start(answer: aiohttp.ClientResponse, kind: str, *, demo: bool) -> dict[str, object]:
    headers = [(b"content-type", kind.encode())]
    for name in ("Content-Length", "Retry-After"):
        if name in answer.headers:
            headers.append((name.lower().encode(), answer.headers[name].encode()))
    if kind.startswith(_EVENT_STREAM):
        headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    if demo:
        headers.append((b"x-pedcxr-demo", b"1"))
    return {"type": "http.response.start", "status": answer.status, "headers": headers}
