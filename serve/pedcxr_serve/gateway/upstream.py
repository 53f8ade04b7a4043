"""Sends requests to the engine and passes its answers on to the clients."""

from __future__ import annotations

import asyncio
from time import monotonic

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pedcxr_serve.engine import access
from pedcxr_serve.gateway import error_responses
from pedcxr_serve.gateway.http.engine_answer import SSEReader, parse_completion, without_nulls
from pedcxr_serve.gateway.http.engine_client import EngineAnswer, EngineClient, EngineLost, EngineUnreachable
from pedcxr_serve.gateway.http.protocol import chunk_writer
from pedcxr_serve.gateway.request.image_splice import IMAGE_URL
from pedcxr_serve.gateway.request_context import RequestContext
from pedcxr_serve.gateway.scheduler import OUTPUT_COST, AdmissionRefused
from pedcxr_serve.gateway.state import State
from pedcxr_serve.vllm_plugin import refusals

_EVENT_STREAM = "text/event-stream"
_MAX_STALL_S = 60.0  # total time per answer that sending may block: the request keeps its slot meanwhile
_SMOOTHING = 0.1  # weight of the latest answer in the moving average of output tokens
_RESTART_S = 10.0  # Retry-After while the engine restarts

_OUTCOMES: dict[str | None, str] = {"stop": "ok", "length": "length"}  # by finish reason
_WAITING = b": waiting\n\n"


class Upstream:
    """Waits for a request's turn, sends the request, passes the answer on and charges for it."""

    def __init__(self, state: State, engine: EngineClient) -> None:
        self._state, self._engine = state, engine
        self._mean_output: dict[str, float] = {}  # output tokens per unstreamed answer, by tenant

    async def __call__(self, context: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request, or answer why the queue refuses it or the engine cannot take it."""
        record, scheduler = context.record, self._state.scheduler
        client = _ClientAnswer(scope, receive, send, context.response_headers)
        try:
            with record.stage("queue"):
                await self._wait_turn(context, client)
            if self._state.engine_up:
                await self._state.heartbeat.wait_checked()
            if not self._state.engine_up:
                raise _engine_restarting()
            if not context.stream:
                scheduler.assume_progress(context.ticket)
                scheduler.queue.charge(context.ticket, OUTPUT_COST * self._expected_output(context))
            with self._state.quarantine.observed(context.film, record):
                await self._exchange(context, client)
        except AdmissionRefused as error:
            record.refuse(error.code, error.status)
            await client.refuse(error_responses.admission_refused(error))
        except TimeoutError:
            # Without a last message uvicorn closes the connection.
            record.outcome, record.reason = "client_left", "client_stalled"
        finally:
            if record.usage is not None:
                scheduler.queue.charge(context.ticket, context.final_cost() - context.ticket.service)

    async def _wait_turn(self, context: RequestContext, client: _ClientAnswer) -> None:
        """Wait until the request may be sent.

        A stream gets its headers and comments meanwhile: proxies close a connection that is silent for a minute.
        """
        state = self._state
        my_turn = state.scheduler.wait_turn(context.ticket, context.prompt_cost(context.prompt_tokens))
        if not context.stream:
            await my_turn
            return
        turn = asyncio.ensure_future(my_turn)
        try:
            await asyncio.wait((turn,), timeout=state.comment_after_s)
            while not turn.done():
                await client.start(200, _EVENT_STREAM)
                await client.write(_WAITING)
                await asyncio.wait((turn,), timeout=state.comment_every_s)
            turn.result()
        finally:
            turn.cancel()

    async def _exchange(self, context: RequestContext, client: _ClientAnswer) -> None:
        record, start = context.record, monotonic()
        headers = {"X-Request-Id": record.request_id}
        if record.traceparent:
            headers["traceparent"] = record.traceparent
        request = self._engine.post("/v1/chat/completions", context.parts(), headers, on_sent=context.release)
        try:
            async with request as answer:
                record.stages["engine"] = start, monotonic()
                record.status = answer.status
                if answer.status == 200 and answer.content_type.startswith(_EVENT_STREAM):
                    # vLLM 0.32 sends the headers once the image is preprocessed.
                    self._state.scheduler.mark_prepared(context.ticket)
                    with record.stage("stream"):
                        await self._forward_stream(context, answer, client)
                else:
                    await self._forward_completion(context, answer, client)
        except EngineUnreachable as error:
            self._state.heartbeat.suspect()
            raise _engine_restarting() from error
        except EngineLost:
            self._state.heartbeat.suspect()
            record.outcome, record.status = "engine_lost", 502
            await client.refuse(error_responses.response("engine_lost"))

    async def _forward_completion(self, context: RequestContext, answer: EngineAnswer, client: _ClientAnswer) -> None:
        record = context.record
        data = await answer.read()
        if answer.status != 200 and (refusal := refusals.read(data)) is not None:
            record.refuse(refusal.code, refusal.status)
            await client.refuse(error_responses.error(refusal.status, refusal.message, refusal.code, param=IMAGE_URL))
            return
        if answer.status >= 500 and answer.status != 503:
            # Not forwarded: vLLM's message would be the text of a traceback, and its code a number.
            self._state.heartbeat.suspect()
            record.outcome, record.status = "engine_lost", 502
            await client.refuse(error_responses.response("engine_lost"))
            return
        if answer.status == 503 and access.is_stopping(data):
            self._state.heartbeat.suspect()
            raise _engine_restarting()
        if answer.status != 200:
            record.outcome = "engine_refused"
            await client.refuse(_engine_refusal(answer.status, data))
            return
        self._state.heartbeat.beat()
        record.finish_reason, record.usage = parse_completion(data)
        if record.finish_reason == "abort":
            record.outcome, record.status = "aborted", 502
            await client.refuse(error_responses.response("engine_aborted"))
            return
        record.outcome = _OUTCOMES.get(record.finish_reason, "incomplete")
        if record.usage is not None:
            self._update_mean_output(record.tenant.name, record.usage.output)
        data = without_nulls(data)
        await client.start(200, answer.content_type or "application/json", length=len(data))
        await client.write(data, more=False)

    async def _forward_stream(self, context: RequestContext, answer: EngineAnswer, client: _ClientAnswer) -> None:
        """Forward events as they arrive. A failure after the headers becomes an error event."""
        record, reader = context.record, SSEReader(context.forward_usage, context.forward_counts)
        await client.start(200, answer.content_type)
        charge, beat = self._state.scheduler.queue.charge, self._state.heartbeat.beat
        events = 0
        blocked = b""  # events for which the client has to read first

        def take(chunk: bytes) -> bool:
            nonlocal blocked, events
            block = reader.feed(chunk)
            if reader.events > events:
                events, record.last_token_at = reader.events, monotonic()
                if record.first_token_at is None:
                    record.first_token_at = record.last_token_at
                    self._state.scheduler.mark_started(context.ticket)
                beat()
            if new := reader.output_tokens - context.output_tokens:
                context.output_tokens = reader.output_tokens
                charge(context.ticket, OUTPUT_COST * new)
            record.finish_reason, record.usage = reader.finish_reason, reader.usage
            if reader.complete:
                record.outcome = _OUTCOMES.get(reader.finish_reason, "incomplete")
            if block and not client.write_now(block):
                blocked = block
            return not (blocked or reader.aborted or reader.failed)

        try:
            while not await answer.pump(take):
                if blocked:
                    block, blocked = blocked, b""
                    await client.write(block)
                if reader.aborted or reader.failed:
                    break
        except EngineLost:
            pass  # the stream is not complete, which is handled below
        if reader.aborted:
            record.outcome = "aborted"
            await client.write(error_responses.error_event("engine_aborted"))
        elif reader.failed or not reader.complete:
            self._state.heartbeat.suspect()
            record.outcome = "engine_lost"
            await client.write(error_responses.error_event("engine_lost"))
        await client.write(b"", more=False)

    def _expected_output(self, context: RequestContext) -> float:
        # An unstreamed request is charged before its answer arrives.
        mean = self._mean_output.get(context.record.tenant.name, context.max_tokens / 2)
        return min(context.max_tokens, mean)

    def _update_mean_output(self, tenant: str, tokens: int) -> None:
        mean = self._mean_output.setdefault(tenant, float(tokens))
        self._mean_output[tenant] = mean + _SMOOTHING * (tokens - mean)


class _ClientAnswer:
    """Sends the answer to the client under a total stall budget.

    A stream may start before the outcome is known. A later refusal is then an error event.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._scope, self._receive, self._send, self._headers = scope, receive, send, headers
        self._writer, self._budget_s = chunk_writer(scope), _MAX_STALL_S
        self._started = False
        # uvicorn would send chunks, which HTTP/1.0 does not know (RFC 9112, 6.1).
        self._whole: bytearray | None = bytearray() if scope["http_version"] == "1.0" else None
        self._content_type = ""

    async def start(self, status: int, content_type: str, *, length: int | None = None) -> None:
        """Send the status and the headers; a second call has no effect."""
        if self._started:
            return
        self._started, self._content_type = True, content_type
        if length is not None:
            self._whole = None
        elif self._whole is not None:
            return
        headers = [(b"content-type", content_type.encode()), *self._headers]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        if content_type.startswith(_EVENT_STREAM):
            headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def refuse(self, response: Response) -> None:
        """Send an error response, or its body as the last event of a stream that has started."""
        if self._started:
            await self.write(error_responses.event(bytes(response.body)), more=False)
        else:
            await response(self._scope, self._receive, self._send)

    def write_now(self, data: bytes) -> bool:
        """Send a part of a stream that has started. Return False, with nothing sent, if `write` has to be awaited."""
        return self._whole is None and self._writer is not None and self._writer.write(data)

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send data once the client has read enough of the earlier data; TimeoutError if the budget is used up."""
        if self._whole is not None:
            self._whole += data
            if more:
                return
            data, self._started = bytes(self._whole), False
            await self.start(200, self._content_type, length=len(data))
        message = {"type": "http.response.body", "body": data, "more_body": more}
        if self._writer is not None and not self._writer.paused:
            await self._send(message)  # does not block, so it needs no timer
            return
        start = monotonic()
        async with asyncio.timeout(self._budget_s):
            await self._send(message)
        self._budget_s -= monotonic() - start


def _engine_restarting() -> AdmissionRefused:
    """503: the engine has not received the request, so a retry is safe. A 502 would not say so."""
    message = "the engine is restarting; try again in a moment"
    return AdmissionRefused(503, "engine_restarting", message, _RESTART_S)


def _engine_refusal(status: int, data: bytes) -> Response:
    # The engine's words are not passed on: they may repeat the prompt, and they name options that clients do not have.
    if b"context length" in data:
        message = "the conversation is longer than the model's context; send less text or fewer messages"
        return error_responses.error(status, message, "context_length_exceeded", param="messages")
    message = "the engine refused the request; the server's log has the request id"
    headers = {"Retry-After": str(error_responses.RETRY_AFTER_S)} if status in (429, 503) else None
    return error_responses.error(status, message, "engine_refused", headers=headers)
