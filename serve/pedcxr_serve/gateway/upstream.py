"""Sends requests to the engine and passes its answers on to the clients."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import monotonic

import aiohttp
import msgspec
from starlette.types import Receive, Scope, Send

from pedcxr_serve.gateway import error_responses
from pedcxr_serve.gateway.accounting.usage import TokenUsage
from pedcxr_serve.gateway.http.protocol import flow_control
from pedcxr_serve.gateway.request.image_splice import IMAGE_URL
from pedcxr_serve.gateway.request_context import RequestContext
from pedcxr_serve.gateway.scheduler import OUTPUT_COST, AdmissionRefused
from pedcxr_serve.gateway.state import State
from pedcxr_serve.vllm_plugin import refusals

MAX_EVENT_BYTES = 4 << 20
"""Maximum size of an event of the engine; a larger one counts as a failure of the engine."""

_EVENT_STREAM = "text/event-stream"
_MAX_STALL_S = 60.0  # total time per answer that sending may block: the request keeps its slot meanwhile
_SMOOTHING = 0.1  # weight of the latest answer in the moving average of output tokens
_RESTART_S = 10.0  # Retry-After while the engine restarts

_FINISH_REASON = re.compile(rb'"finish_reason": ?"(\w+)"')
_USAGE = re.compile(rb'"usage": ?\{')
_EVENT_END = b"\n\n"


class EventTooLarge(Exception):
    """An event of the engine is larger than `MAX_EVENT_BYTES`."""


class Upstream:
    """Waits for a request's turn, sends the request, passes the answer on and charges for it."""

    def __init__(self, state: State, engine: aiohttp.ClientSession) -> None:
        self._state = state
        self._engine = engine
        self._mean_output: dict[str, float] = {}  # output tokens per unstreamed answer, by tenant

    async def __call__(self, context: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request, or raise `AdmissionRefused` if the queue refuses it or the engine restarts."""
        record, scheduler = context.record, self._state.scheduler
        with record.stage("queue"):
            await scheduler.wait_turn(context.ticket, context.prompt_tokens)
        if self._state.engine_up:
            await self._state.heartbeat.wait_checked()
        if not self._state.engine_up:
            raise _engine_restarting()
        if not context.stream:
            scheduler.assume_progress(context.ticket)
            scheduler.queue.charge(context.ticket, OUTPUT_COST * self._expected_output(context))
        try:
            await self._exchange(context, scope, receive, send)
        finally:
            if record.usage is not None:
                scheduler.queue.charge(context.ticket, context.final_cost() - context.ticket.service)

    async def _exchange(self, context: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        record = context.record
        parts = context.parts()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(sum(map(len, parts))),
            "X-Request-Id": record.request_id,
        }
        start = monotonic()
        try:
            async with self._engine.post("/v1/chat/completions", data=_chunks(parts), headers=headers) as answer:
                del parts
                context.release()
                record.stages["engine"] = monotonic() - start
                record.status = answer.status
                content_type = answer.headers.get("Content-Type", "application/json")
                if answer.status == 200 and content_type.startswith(_EVENT_STREAM):
                    # vLLM 0.32 sends the headers once the image is preprocessed.
                    self._state.scheduler.mark_prepared(context.ticket)
                    with record.stage("stream"):
                        await self._forward_stream(context, answer, content_type, scope, send)
                else:
                    await self._forward_completion(context, answer, content_type, scope, receive, send)
        except aiohttp.ClientConnectorError as error:
            self._state.heartbeat.suspect()
            raise _engine_restarting() from error
        except (aiohttp.ClientError, EventTooLarge):
            self._state.heartbeat.suspect()
            if "stream" not in record.stages:  # a stream has already sent its error event
                record.outcome, record.status = "engine_lost", 502
                await error_responses.response("engine_lost")(scope, receive, send)
        except TimeoutError:
            record.reason = "client_stalled"  # without a last message uvicorn closes the connection

    async def _forward_completion(
        self,
        context: RequestContext,
        answer: aiohttp.ClientResponse,
        content_type: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        record = context.record
        data = await answer.read()
        if answer.status != 200 and (refusal := refusals.read(data)) is not None:
            record.refuse(refusal.code, refusal.status)
            response = error_responses.error(refusal.status, refusal.message, refusal.code, param=IMAGE_URL)
            await response(scope, receive, send)
            return
        if answer.status >= 500 and answer.status != 503:
            # Not forwarded: vLLM's message would be the text of a traceback, and its code a number.
            self._state.heartbeat.suspect()
            record.outcome, record.status = "engine_lost", 502
            await error_responses.response("engine_lost")(scope, receive, send)
            return
        if answer.status != 200:
            record.outcome = "engine_refused"
        else:
            self._state.heartbeat.beat()
            record.finish_reason, record.usage = parse_completion(data)
            if record.finish_reason == "abort":
                record.outcome, record.status = "aborted", 502
                await error_responses.response("engine_aborted")(scope, receive, send)
                return
            record.outcome = "length" if record.finish_reason == "length" else "ok"
            if record.usage is not None:
                self._update_mean_output(record.tenant.name, record.usage.output)
        await send(_response_start(answer, content_type, demo=self._state.demo, length=len(data)))
        await _ClientWriter(scope, send).write(data, more=False)

    async def _forward_stream(
        self, context: RequestContext, answer: aiohttp.ClientResponse, content_type: str, scope: Scope, send: Send
    ) -> None:
        """Forward events as they arrive. A failure after the headers becomes an error event."""
        record, reader = context.record, SSEReader(context.forward_usage)
        await send(_response_start(answer, content_type, demo=self._state.demo))
        client = _ClientWriter(scope, send)
        charge = self._state.scheduler.queue.charge
        try:
            async for chunk in answer.content.iter_any():
                block = reader.feed(chunk)
                if new := reader.events - context.events:
                    record.last_token_at = monotonic()
                    if record.first_token_at is None:
                        record.first_token_at = record.last_token_at
                        self._state.scheduler.mark_started(context.ticket)
                    context.events = reader.events
                    charge(context.ticket, OUTPUT_COST * new)
                    self._state.heartbeat.beat()
                record.finish_reason, record.usage = reader.finish_reason, reader.usage
                if reader.complete:
                    record.outcome = "length" if reader.finish_reason == "length" else "ok"
                if block:
                    await client.write(block)
                if reader.aborted or reader.failed:
                    break
        except (aiohttp.ClientError, EventTooLarge):
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


@dataclass(slots=True)
class SSEReader:
    """Extracts the finish reason and the token usage from a stream of server-sent events, without parsing it.

    Blocks of whole events are searched for the two events of interest. That is exact: within JSON strings a quote is
    escaped as ``\\"`` and a line break as ``\\n``, so the text of a model cannot match.

    Attributes:
        forward_usage: whether the event with the token usage is forwarded.
        finish_reason: of the answer, or None until the engine sends it.
        usage: the engine's count, or None until the engine sends it.
        aborted: the engine aborted the request. That event and all later ones are not forwarded.
        failed: the engine sent an error event, which is not forwarded either.
        complete: the stream ended with ``[DONE]``.
        events: number of events with content so far, about one per token.
    """

    forward_usage: bool
    finish_reason: str | None = None
    usage: TokenUsage | None = None
    aborted: bool = False
    failed: bool = False
    complete: bool = False
    events: int = 0
    _rest: bytes = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return the whole events to forward now.

        Raises:
            EventTooLarge: an event has no end within `MAX_EVENT_BYTES`.
        """
        if self.aborted or self.failed:
            return b""
        data = self._rest + chunk if self._rest else chunk
        cut = data.rfind(_EVENT_END) + len(_EVENT_END)
        if cut < len(_EVENT_END):
            if len(data) > MAX_EVENT_BYTES:
                raise EventTooLarge
            self._rest = data
            return b""
        block, self._rest = data[:cut], data[cut:]
        self.events += block.count(b"\ndata: {") + block.startswith(b"data: {")
        if finish := _FINISH_REASON.search(block):
            self.finish_reason = finish[1].decode()
            if self.finish_reason == "abort":
                self.aborted = True
                return block[: _event_start(block, finish.start())]
        if matches := list(_USAGE.finditer(block)):  # the last one counts if every event has a usage
            block = self._take_usage(block, matches[-1].start())
        if (failure := block.find(b'data: {"error"')) >= 0:
            self.failed = True
            return block[:failure]
        if b"\ndata: [DONE]" in block or block.startswith(b"data: [DONE]"):
            self.complete = True
        return block

    def _take_usage(self, block: bytes, at: int) -> bytes:
        start = _event_start(block, at)
        end = block.find(_EVENT_END, at) + len(_EVENT_END)
        event = _parse(block[start:end].partition(b"data:")[2])
        if event is None or event.usage is None:
            return block
        self.usage = event.usage
        if event.choices or self.forward_usage:
            return block
        self.events -= 1
        return block[:start] + block[end:]


def parse_completion(body: bytes) -> tuple[str | None, TokenUsage | None]:
    """Return the finish reason and the token usage of an unstreamed answer; None for each that is absent."""
    completion = _parse(body)
    if completion is None:
        return None, None
    return (completion.choices[0].finish_reason if completion.choices else None), completion.usage


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []  # msgspec copies the default
    usage: TokenUsage | None = None


_decoder = msgspec.json.Decoder(_Completion)


def _parse(data: bytes) -> _Completion | None:
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError:
        return None


def _event_start(block: bytes, at: int) -> int:
    return block.rfind(_EVENT_END, 0, at) + len(_EVENT_END) if _EVENT_END in block[:at] else 0


class _ClientWriter:
    """Sends an answer to the client under a total stall budget."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._flow, self._send, self._budget_s = flow_control(scope), send, _MAX_STALL_S

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send data once the client has read enough of the earlier data; TimeoutError if the budget is used up."""
        message = {"type": "http.response.body", "body": data, "more_body": more}
        if self._flow is not None and not self._flow.write_paused:
            await self._send(message)  # does not block; a timer would cost a sixth of an event's processor time
            return
        start = monotonic()
        async with asyncio.timeout(self._budget_s):
            await self._send(message)
        self._budget_s -= monotonic() - start


def _engine_restarting() -> AdmissionRefused:
    """503: the engine has not received the request, so a retry is safe. A 502 would not say so."""
    message = "the engine is restarting; try again in a moment"
    return AdmissionRefused(503, "engine_restarting", message, _RESTART_S)


async def _chunks(parts: tuple[bytes | memoryview, ...]) -> AsyncIterator[bytes | memoryview]:
    for part in parts:
        if part:
            yield part


def _response_start(
    answer: aiohttp.ClientResponse, content_type: str, *, demo: bool, length: int | None = None
) -> dict[str, object]:
    headers = [(b"content-type", content_type.encode())]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    if answer.status in (429, 503):
        headers.append((b"retry-after", answer.headers.get("Retry-After", str(error_responses.RETRY_AFTER_S)).encode()))
    if content_type.startswith(_EVENT_STREAM):
        headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    if demo:
        headers.append((b"x-pedcxr-demo", b"1"))
    return {"type": "http.response.start", "status": answer.status, "headers": headers}
