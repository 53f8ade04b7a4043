"""Sends requests to the engine and passes its answers on to the clients."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from time import monotonic

import aiohttp
import msgspec
from starlette.responses import Response
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
_OUTCOMES: dict[str | None, str] = {"stop": "ok", "length": "length"}  # by finish reason
# The count in an event with text, after the list of choices. The last event has no choices and does not match.
_COUNT = re.compile(
    rb'\}\](, ?"usage": ?\{(?:"\w+": ?\d+, ?)*?"completion_tokens": ?(\d+)[^{}]*(?:\{[^{}]*\}[^{}]*)*\})'
)
_EVENT_END = b"\n\n"
_WAITING = b": waiting\n\n"
_NULLABLE = ("content", "refusal", "finish_reason", "logprobs", "usage")  # of OpenAI's API


class EventTooLarge(Exception):
    """An event of the engine is larger than `MAX_EVENT_BYTES`."""


class Upstream:
    """Waits for a request's turn, sends the request, passes the answer on and charges for it."""

    def __init__(self, state: State, engine: aiohttp.ClientSession) -> None:
        self._state = state
        self._engine = engine
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
        my_turn = state.scheduler.wait_turn(context.ticket, context.prompt_tokens)
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
        record = context.record
        parts = context.parts()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(sum(map(len, parts))),
            "X-Request-Id": record.request_id,
        }
        start, data = monotonic(), _chunks(parts, context.release)
        del parts
        try:
            async with self._engine.post("/v1/chat/completions", data=data, headers=headers) as answer:
                record.stages["engine"] = monotonic() - start
                record.status = answer.status
                content_type = answer.headers.get("Content-Type", "application/json")
                if answer.status == 200 and content_type.startswith(_EVENT_STREAM):
                    # vLLM 0.32 sends the headers once the image is preprocessed.
                    self._state.scheduler.mark_prepared(context.ticket)
                    with record.stage("stream"):
                        await self._forward_stream(context, answer, client)
                else:
                    await self._forward_completion(context, answer, client)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._state.heartbeat.suspect()
            raise _engine_restarting() from error
        except (aiohttp.ClientError, EventTooLarge):
            self._state.heartbeat.suspect()
            if "stream" not in record.stages:  # a stream has already sent its error event
                record.outcome, record.status = "engine_lost", 502
                await client.refuse(error_responses.response("engine_lost"))

    async def _forward_completion(
        self, context: RequestContext, answer: aiohttp.ClientResponse, client: _ClientAnswer
    ) -> None:
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
        await client.start(200, answer.headers.get("Content-Type", "application/json"), length=len(data))
        await client.write(data, more=False)

    async def _forward_stream(
        self, context: RequestContext, answer: aiohttp.ClientResponse, client: _ClientAnswer
    ) -> None:
        """Forward events as they arrive. A failure after the headers becomes an error event."""
        record, reader = context.record, SSEReader(context.forward_usage, context.forward_counts)
        await client.start(200, answer.headers["Content-Type"])
        charge, events = self._state.scheduler.queue.charge, 0
        try:
            async for chunk in answer.content.iter_any():
                block = reader.feed(chunk)
                if reader.events > events:
                    events, record.last_token_at = reader.events, monotonic()
                    if record.first_token_at is None:
                        record.first_token_at = record.last_token_at
                        self._state.scheduler.mark_started(context.ticket)
                    self._state.heartbeat.beat()
                if new := reader.output_tokens - context.output_tokens:
                    context.output_tokens = reader.output_tokens
                    charge(context.ticket, OUTPUT_COST * new)
                record.finish_reason, record.usage = reader.finish_reason, reader.usage
                if reader.complete:
                    record.outcome = _OUTCOMES.get(reader.finish_reason, "incomplete")
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

    Blocks of whole events are searched for the fields of interest. That is exact: within JSON strings a quote is
    escaped as ``\\"`` and a line break as ``\\n``, so the text of a model cannot match.

    Attributes:
        forward_usage: whether the last event, which has the token usage and no text, is forwarded.
        forward_counts: whether the count in every other event is forwarded.
        finish_reason: of the answer, or None until the engine sends it.
        usage: the engine's count at the end, or None until the engine sends it.
        output_tokens: the engine's count so far. An event may hold several tokens (``--stream-interval``).
        aborted: the engine aborted the request. That event and all later ones are not forwarded.
        failed: the engine sent an error event, which is not forwarded either.
        complete: the stream ended with ``[DONE]``.
        events: number of events so far that are forwarded, without comments.
    """

    forward_usage: bool
    forward_counts: bool = False
    finish_reason: str | None = None
    usage: TokenUsage | None = None
    aborted: bool = False
    failed: bool = False
    complete: bool = False
    output_tokens: int = 0
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
        if b'"usage"' in block:
            block = self._take_counts(block)
        if finish := _FINISH_REASON.search(block):
            self.finish_reason = finish[1].decode()
            if self.finish_reason == "abort":
                self.aborted = True
                return block[: _event_start(block, finish.start())]
        if b'"usage"' in block and (matches := list(_USAGE.finditer(block))):
            block = self._take_usage(block, matches[-1].start())
        if (failure := block.find(b'data: {"error"')) >= 0:
            self.failed = True
            return block[:failure]
        if b"\ndata: [DONE]" in block or block.startswith(b"data: [DONE]"):
            self.complete = True
        return block

    def _take_counts(self, block: bytes) -> bytes:
        counts = list(_COUNT.finditer(block))
        if counts:
            self.output_tokens = int(counts[-1][2])
        if self.forward_counts:
            return block
        for count in reversed(counts):
            block = block[: count.start(1)] + block[count.end(1) :]
        return block

    def _take_usage(self, block: bytes, at: int) -> bytes:
        start = _event_start(block, at)
        end = block.find(_EVENT_END, at) + len(_EVENT_END)
        event = _parse(block[start:end].partition(b"data:")[2])
        if event is None or event.usage is None:
            return block
        if event.choices:
            return block
        self.usage, self.output_tokens = event.usage, event.usage.output
        if self.forward_usage:
            return block
        self.events -= 1
        return block[:start] + block[end:]


def parse_completion(body: bytes) -> tuple[str | None, TokenUsage | None]:
    """Return the finish reason and the token usage of an unstreamed answer; None for each that is absent."""
    completion = _parse(body)
    if completion is None:
        return None, None
    return (completion.choices[0].finish_reason if completion.choices else None), completion.usage


def without_nulls(body: bytes) -> bytes:
    """Return an answer without the empty fields of vLLM, which some clients send back with the next question."""
    try:
        completion = msgspec.json.decode(body)
        for choice in completion["choices"]:
            choice["message"] = _without_nulls(choice["message"])
        completion["choices"] = [_without_nulls(choice) for choice in completion["choices"]]
        return msgspec.json.encode(_without_nulls(completion))
    except (msgspec.DecodeError, KeyError, TypeError):
        return body


def _without_nulls(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None or name in _NULLABLE}


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


class _ClientAnswer:
    """Sends the answer to the client under a total stall budget.

    A stream may start before the outcome is known. A later refusal is then an error event.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._scope, self._receive, self._send, self._headers = scope, receive, send, headers
        self._flow, self._budget_s = flow_control(scope), _MAX_STALL_S
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

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send data once the client has read enough of the earlier data; TimeoutError if the budget is used up."""
        if self._whole is not None:
            self._whole += data
            if more:
                return
            data, self._started = bytes(self._whole), False
            await self.start(200, self._content_type, length=len(data))
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


async def _chunks(parts: tuple[bytes | memoryview, ...], sent: Callable[[], None]) -> AsyncIterator[bytes | memoryview]:
    """Yield the parts of a body and call ``sent`` at its end: the answer of an unstreamed request comes much later."""
    for part in parts:
        if part:
            yield part
    sent()


def _engine_refusal(status: int, data: bytes) -> Response:
    # The engine's words are not passed on: they may repeat the prompt, and they name options that clients do not have.
    if b"context length" in data:
        message = "the conversation is longer than the model's context; send less text or fewer messages"
        return error_responses.error(status, message, "context_length_exceeded", param="messages")
    message = "the engine refused the request; the server's log has the request id"
    headers = {"Retry-After": str(error_responses.RETRY_AFTER_S)} if status in (429, 503) else None
    return error_responses.error(status, message, "engine_refused", headers=headers)
