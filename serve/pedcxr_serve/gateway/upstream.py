"""To the engine and back, once it is the request's turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import aiohttp
from starlette.types import Receive, Scope, Send

from pedcxr_serve.gateway import answer as answers
from pedcxr_serve.gateway import error_responses
from pedcxr_serve.gateway.http.protocol import flow_of
from pedcxr_serve.gateway.request_context import Job
from pedcxr_serve.gateway.scheduler import OUTPUT_COST, Rejected
from pedcxr_serve.gateway.state import State
from pedcxr_serve.vllm_plugin import refusals

_EVENT_STREAM = "text/event-stream"
_STALL_S = 60.0  # that a client may keep its answer waiting, in all: meanwhile it holds a place in the engine
_MEMORY = 0.1
_RESTART_S = 10.0


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
        if self._state.engine_up:
            await self._state.heartbeat.wait_checked()
        if not self._state.engine_up:
            raise _restarting()
        if not job.stream:
            gate.begins_unseen(job.ticket)
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
                    self._state.gate.prepared(job.ticket)  # vLLM 0.32 answers once it has handed the film on
                    with record.stage("stream"):
                        await self._stream(job, answer, kind, scope, send)
                else:
                    await self._whole(job, answer, kind, scope, receive, send)
        except aiohttp.ClientConnectorError as error:
            self._state.heartbeat.suspect()
            raise _restarting() from error
        except (aiohttp.ClientError, answers.Endless):
            self._state.heartbeat.suspect()
            if "stream" not in record.stages:  # of which the end was told already
                record.outcome, record.status = "engine_lost", 502
                await error_responses.engine_failed()(scope, receive, send)
        except TimeoutError:
            record.reason = "client_stalled"  # returning without a last message makes uvicorn drop the connection

    async def _whole(
        self, job: Job, answer: aiohttp.ClientResponse, kind: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """An answer in one piece: nothing of it is sent before it is known to be whole."""
        record = job.record
        data = await answer.read()
        if answer.status != 200 and (refusal := refusals.read(data)) is not None:
            record.refuse(refusal.code, refusal.status)
            await error_responses.film_refused(refusal)(scope, receive, send)
            return
        if answer.status >= 500 and answer.status != 503:
            # Not passed on: vLLM's own words would be those of a traceback, and its code a number.
            self._state.heartbeat.suspect()
            record.outcome, record.status = "engine_lost", 502
            await error_responses.engine_failed()(scope, receive, send)
            return
        if answer.status != 200:
            record.outcome = "engine_refused"
        else:
            self._state.heartbeat.beat()
            record.finish, record.usage = answers.whole(data)
            if record.finish == "abort":
                record.outcome, record.status = "aborted", 502
                await error_responses.aborted()(scope, receive, send)
                return
            record.outcome = "length" if record.finish == "length" else "ok"
            if record.usage is not None:
                self._learn(record.tenant.name, record.usage.output)
        await send(_start(answer, kind, demo=self._state.demo, length=len(data)))
        await _Reader(scope, send).take(data, more=False)

    async def _stream(self, job: Job, answer: aiohttp.ClientResponse, kind: str, scope: Scope, send: Send) -> None:
        """Events, passed on as they come; whatever goes wrong from here on becomes an event too."""
        record, reader = job.record, answers.Stream(job.usage_wanted)
        await send(_start(answer, kind, demo=self._state.demo))
        client = _Reader(scope, send)
        charge = self._state.gate.admission.charge
        try:
            async for chunk in answer.content.iter_any():
                block = reader.feed(chunk)
                if new := reader.events - job.events:
                    record.last = monotonic()
                    if record.first is None:
                        record.first = record.last
                        self._state.gate.began(job.ticket)
                    job.events = reader.events
                    charge(job.ticket, OUTPUT_COST * new)
                    self._state.heartbeat.beat()
                record.finish, record.usage = reader.finish, reader.usage
                if reader.done:
                    record.outcome = "length" if reader.finish == "length" else "ok"
                if block:
                    await client.take(block)
                if reader.aborted or reader.failed:
                    break
        except (aiohttp.ClientError, answers.Endless):
            pass  # told below: the stream is not done
        if reader.aborted:
            record.outcome = "aborted"
            await client.take(error_responses.event(error_responses.ENGINE_ABORTED, "engine_aborted"))
        elif reader.failed or not reader.done:
            self._state.heartbeat.suspect()
            record.outcome = "engine_lost"
            await client.take(error_responses.event(error_responses.ENGINE_LOST, "engine_lost"))
        await client.take(b"", more=False)

    def _expected(self, job: Job) -> float:
        return min(job.max_tokens, self._typical.get(job.record.tenant.name, job.max_tokens / 2))

    def _learn(self, tenant: str, tokens: int) -> None:
        typical = self._typical.setdefault(tenant, float(tokens))
        self._typical[tenant] = typical + _MEMORY * (tokens - typical)


def _restarting() -> Rejected:
    """For a request that the engine has not seen: it is safe to send again, which 502 does not say."""
    return Rejected(503, "engine_restarting", "the engine is being started again; try again in a moment", _RESTART_S)


async def _chunks(parts: tuple[bytes | memoryview, ...]) -> AsyncIterator[bytes | memoryview]:
    for part in parts:
        if part:
            yield part


class _Reader:
    """A client that may be slow, but not for ever by reading a little now and then."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._flow, self._send, self._left = flow_of(scope), send, _STALL_S

    async def take(self, data: bytes, *, more: bool = True) -> None:
        """Give it some, once it has read enough of what came before.

        Raises:
            TimeoutError: its time is up.
        """
        message = {"type": "http.response.body", "body": data, "more_body": more}
        if self._flow is not None and not self._flow.write_paused:
            await self._send(message)  # waits for nobody, and a timer would be a sixth of an event's processor time
            return
        began = monotonic()
        async with asyncio.timeout(self._left):
            await self._send(message)
        self._left -= monotonic() - began


def _start(answer: aiohttp.ClientResponse, kind: str, *, demo: bool, length: int | None = None) -> dict[str, object]:
    headers = [(b"content-type", kind.encode())]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    if answer.status in (429, 503):
        headers.append((b"retry-after", answer.headers.get("Retry-After", str(error_responses.RETRY_AFTER_S)).encode()))
    if kind.startswith(_EVENT_STREAM):
        headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    if demo:
        headers.append((b"x-pedcxr-demo", b"1"))
    return {"type": "http.response.start", "status": answer.status, "headers": headers}
