"""To the engine and back, once it is the request's turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import aiohttp
from starlette.types import Receive, Scope, Send

from . import answer as answers
from . import reply
from .admission import OUTPUT_COST
from .job import Job
from .state import State

_EVENT_STREAM = "text/event-stream"
_STALL_S = 60.0  # that a client may take to read some kilobytes
_MEMORY = 0.1


class Relay:
    """Waits for a request's turn, sends it, passes the answer on and charges for it."""

    def __init__(self, state: State, engine: aiohttp.ClientSession) -> None:
        self._state = state
        self._engine = engine
        self._typical: dict[str, float] = {}  # tokens of a whole answer, by tenant: it is charged before it is seen

    async def __call__(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one job.

        Raises:
            Rejected: it will not get a turn.
        """
        record, gate = job.record, self._state.gate
        with record.stage("queue"):
            await gate.turn(job.ticket, job.prompt_tokens)
        if not job.stream:
            gate.admission.charge(job.ticket, OUTPUT_COST * self._expected(job))
        try:
            await self._exchange(job, scope, receive, send)
        finally:
            if record.usage is not None:
                gate.admission.charge(job.ticket, job.true_cost() - job.ticket.service)

    async def _exchange(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        record = job.record
        parts = job.parts()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(sum(map(len, parts))),
            "X-Request-Id": record.request_id,
        }
        sent = monotonic()
        try:
            async with self._engine.post("/v1/chat/completions", data=_chunks(parts), headers=headers) as answer:
                del parts
                job.release()
                record.stages["engine"] = monotonic() - sent
                record.status = answer.status
                kind = answer.headers.get("Content-Type", "application/json")
                if answer.status == 200 and kind.startswith(_EVENT_STREAM):
                    with record.stage("stream"):
                        await self._stream(job, answer, kind, send)
                else:
                    await self._whole(job, answer, kind, scope, receive, send)
        except (aiohttp.ClientError, answers.Endless):
            if "stream" not in record.stages:  # of which the end was told already
                record.outcome, record.status = "engine_lost", 502
                await reply.engine_failed()(scope, receive, send)
        except TimeoutError:
            record.reason = "client_stalled"  # returning without a last message makes uvicorn drop the connection

    async def _whole(
        self, job: Job, answer: aiohttp.ClientResponse, kind: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """An answer in one piece: nothing of it is sent before it is known to be whole."""
        record = job.record
        data = await answer.read()
        if answer.status != 200:
            record.outcome = "engine_refused"
        else:
            record.finish, record.usage = answers.whole(data)
            if record.finish == "abort":
                record.outcome, record.status = "aborted", 502
                await reply.aborted()(scope, receive, send)
                return
            record.outcome = "length" if record.finish == "length" else "ok"
            if record.usage is not None:
                self._learn(record.tenant.name, record.usage.output)
        await send(_start(answer, kind, demo=self._state.demo, length=len(data)))
        await _send(send, data, more=False)

    async def _stream(self, job: Job, answer: aiohttp.ClientResponse, kind: str, send: Send) -> None:
        """Events, passed on as they come; whatever goes wrong from here on becomes an event too."""
        record, reader = job.record, answers.Stream(job.usage_wanted)
        await send(_start(answer, kind, demo=self._state.demo))
        charge = self._state.gate.admission.charge
        try:
            async for chunk in answer.content.iter_any():
                block = reader.feed(chunk)
                if new := reader.events - job.events:
                    record.last = monotonic()
                    record.first = record.first or record.last
                    job.events = reader.events
                    charge(job.ticket, OUTPUT_COST * new)
                record.finish, record.usage = reader.finish, reader.usage
                if reader.done and not reader.failed:
                    record.outcome = "length" if reader.finish == "length" else "ok"
                if block:
                    await _send(send, block)
                if reader.aborted:
                    break
        except (aiohttp.ClientError, answers.Endless):
            pass  # told below: the stream is not done
        if reader.aborted:
            record.outcome = "aborted"
            await _send(send, reply.event(reply.ENGINE_ABORTED, "engine_aborted"))
        elif reader.failed or not reader.done:
            record.outcome = "engine_lost"
            if not reader.failed:
                await _send(send, reply.event(reply.ENGINE_LOST, "engine_lost"))
        await _send(send, b"", more=False)

    def _expected(self, job: Job) -> float:
        return min(job.max_tokens, self._typical.get(job.record.tenant.name, job.max_tokens / 2))

    def _learn(self, tenant: str, tokens: int) -> None:
        typical = self._typical.setdefault(tenant, float(tokens))
        self._typical[tenant] = typical + _MEMORY * (tokens - typical)


async def _chunks(parts: tuple[bytes | memoryview, ...]) -> AsyncIterator[bytes | memoryview]:
    for part in parts:
        if part:
            yield part


async def _send(send: Send, data: bytes, *, more: bool = True) -> None:
    async with asyncio.timeout(_STALL_S):
        await send({"type": "http.response.body", "body": data, "more_body": more})


def _start(answer: aiohttp.ClientResponse, kind: str, *, demo: bool, length: int | None = None) -> dict[str, object]:
    headers = [(b"content-type", kind.encode())]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    if answer.status in (429, 503):
        headers.append((b"retry-after", answer.headers.get("Retry-After", str(reply.RETRY_AFTER_S)).encode()))
    if kind.startswith(_EVENT_STREAM):
        headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    if demo:
        headers.append((b"x-pedcxr-demo", b"1"))
    return {"type": "http.response.start", "status": answer.status, "headers": headers}
