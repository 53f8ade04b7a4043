"""``POST /v1/chat/completions``: authenticate, admit, read and validate, forward, count and audit, in this order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pedcxr_serve.gateway import error_responses
from pedcxr_serve.gateway.accounting.metrics import RequestRecord, seconds_until_midnight
from pedcxr_serve.gateway.auth import tenants
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.http.engine_client import EngineClient
from pedcxr_serve.gateway.request import body, validation
from pedcxr_serve.gateway.request.client_metadata import ClientMetadata
from pedcxr_serve.gateway.request.image_splice import RequestRefused
from pedcxr_serve.gateway.request.validation import AcceptedRequest, Rules
from pedcxr_serve.gateway.request_context import RequestContext
from pedcxr_serve.gateway.scheduler import AdmissionRefused, Ticket
from pedcxr_serve.gateway.state import State
from pedcxr_serve.gateway.upstream import Upstream

_INLINE_BYTES = 128 * 1024  # of a body: a thread costs 0.1 ms, a body of this size 0.3 ms


class ChatCompletions:
    """ASGI endpoint of ``POST /v1/chat/completions``.

    Backpressure: the engine's answer is read only as fast as the client reads. A disconnect of the client ends its
    request at once, whether its body is being read, it is in the queue, or the engine runs it.
    """

    def __init__(self, state: State, engine: EngineClient) -> None:
        self._state = state
        self._upstream = Upstream(state, engine)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        tenant = authenticate(self._state, headers)
        if tenant is None:
            self._state.tenant_metrics.unauthenticated.inc()
            await error_responses.response("invalid_api_key")(scope, receive, send)
            return
        request_state = scope["state"]
        record = RequestRecord(
            tenant,
            request_state["request_id"],
            ClientMetadata.of(headers),
            key=key_name(self._state, headers),
            address=scope["client"][0] if scope.get("client") else None,
        )
        request_state |= {"tenant": tenant.name, "key": record.key, "record": record}
        if not self._state.ready:
            record.refuse("not_ready", 503)
            self._state.tenant_metrics.count(record)
            await error_responses.response("not_ready", stage=self._state.stage)(scope, receive, send)
            return
        traces = self._state.traces
        span = contextlib.nullcontext() if traces is None else traces.request(record, headers.get("traceparent", ""))
        with self._counted(record), span:
            await self._serve(record, headers, scope, receive, send)

    @contextlib.contextmanager
    def _counted(self, record: RequestRecord) -> Iterator[None]:
        """Count the request at the end of the block, however it ends."""
        try:
            yield
        finally:
            self._state.tenant_metrics.count(record)
            if record.outcome != "refused":
                self._state.share_tokens(record.tenant)

    async def _serve(self, record: RequestRecord, headers: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._admitted(record) as context:
            refusal = context if isinstance(context, Response) else await self._accept(context, headers, receive)
            if refusal is None and isinstance(context, RequestContext):
                await self._forward(context, scope, receive, send)
            elif refusal is not None:
                await refusal(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _admitted(self, record: RequestRecord) -> AsyncIterator[RequestContext | Response]:
        """Yield the context of an admitted request, or the answer that refuses it. Charge and audit it at its end."""
        state = self._state
        try:
            ticket = await self._open_ticket(record.tenant)
        except AdmissionRefused as error:
            yield _refuse_admission(record, error)
            return
        context = RequestContext(record, ticket, body.Body(state.bodies, record.tenant.name))
        context.response_headers += _limit_headers(state, record.tenant)
        try:
            yield context
        except Exception:
            record.status = record.status or 500
            raise
        finally:
            context.release()
            self._close(ticket, completed=record.outcome in ("ok", "length"))
            context.charge(state.tenant_metrics)
            if state.audit is not None:
                state.audit.write({"replica": state.replica, **context.audit_entry(state.revision)})

    async def _open_ticket(self, tenant: Tenant) -> Ticket:
        state = self._state
        tokens_left = state.tenant_metrics.tokens_left(tenant)
        ticket = state.scheduler.open(tenant, tokens_left=tokens_left, reset_s=seconds_until_midnight())
        try:
            ticket.shared = await state.shared_limits.admit(tenant)
            await state.rate_limiter.take(tenant)
        except BaseException:
            self._close(ticket)
            raise
        return ticket

    def _close(self, ticket: Ticket, *, completed: bool = False) -> None:
        self._state.scheduler.close(ticket, completed=completed)
        self._state.shared_limits.close(ticket.shared)

    async def _accept(self, context: RequestContext, headers: Headers, receive: Receive) -> Response | None:
        """Read and validate the body. Return the answer that refuses the request, or None."""
        state, record = self._state, context.record
        refusal: Response
        try:
            if headers.get("content-encoding") not in (None, "", "identity"):
                raise RequestRefused(
                    "compressed request bodies are not supported; send the body without Content-Encoding",
                    code="unsupported_encoding",
                    status=415,
                )
            with record.stage("body"):
                announced = body.announced_length(headers) or 0
                data = await context.body.read(receive, state.body_limit, announced=announced)
            with record.stage("policy"):
                accepted = await _validated(data, record.tenant, state.rules)
                context.accept(accepted, state)
                context.ticket.suspect = state.quarantine.check(record.tenant.name, accepted.film)
                del accepted  # its parts hold the body
            del data
            if state.ready:
                return None
            record.refuse("not_ready", 503)  # the server began to stop while the body arrived
            refusal = error_responses.response("not_ready", stage=state.stage)
        except RequestRefused as error:
            record.refuse(error.code, error.status)
            refusal = error_responses.error(error.status, str(error), error.code, param=error.param)
        except body.TooLarge:
            record.refuse("body_too_large", 413)
            refusal = error_responses.response("body_too_large", limit=state.body_limit)
        except body.TooSlow:
            record.refuse("body_too_slow", 408)
            refusal = error_responses.response("body_too_slow", timeout_s=state.bodies.timeout_s)
        except body.NoRoom:
            record.refuse("no_room", 503)
            refusal = error_responses.response("no_room")
        except body.Disconnected:
            record.outcome = "client_left"
            refusal = Response(status_code=499)  # the client has disconnected and does not receive it
        context.release()
        return refusal

    async def _forward(self, context: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._state
        state.in_flight += 1
        state.metrics.in_flight.inc()
        forward = asyncio.create_task(self._upstream(context, scope, receive, send))
        disconnect = asyncio.create_task(body.until_disconnect(receive))
        try:
            await asyncio.wait((forward, disconnect), return_when=asyncio.FIRST_COMPLETED)
            if forward.done():
                forward.result()
            elif context.record.outcome == "failed":  # no outcome so far
                context.record.outcome = "client_left"
        finally:
            for task in (forward, disconnect):
                task.cancel()
            await asyncio.gather(forward, disconnect, return_exceptions=True)
            state.in_flight -= 1
            state.metrics.in_flight.dec()


def authenticate(state: State, headers: Headers) -> Tenant | None:
    """Return the tenant whose key the request carries; None for a missing, wrong or expired key."""
    return state.tenants.current.owner(_bearer_key(headers), datetime.now(UTC))


def key_name(state: State, headers: Headers) -> str | None:
    """Return the first 12 digits of the digest of the request's key; None on a server without keys."""
    return None if state.tenants.current.is_anonymous else tenants.digest(_bearer_key(headers))[:12]


def _bearer_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


async def _validated(data: bytearray, tenant: Tenant, rules: Rules) -> AcceptedRequest:
    """Validate a body, a large one in a thread: decoding and hashing its film would stop the streams of others."""
    if len(data) <= _INLINE_BYTES:
        return validation.apply(data, tenant, rules)
    return await asyncio.to_thread(validation.apply, data, tenant, rules)


def _limit_headers(state: State, tenant: Tenant) -> list[tuple[bytes, bytes]]:
    """Return the headers with a tenant's limits and what is left of them, named as OpenAI names them."""
    headers = []
    if tenant.requests_per_minute is not None:
        remaining = state.rate_limiter.remaining(tenant)
        headers += [
            (b"x-ratelimit-limit-requests", b"%d" % tenant.requests_per_minute),
            (b"x-ratelimit-remaining-requests", b"%d" % remaining),
        ]
    if tenant.tokens_per_day is not None:
        headers += [
            (b"x-ratelimit-limit-tokens", b"%d" % tenant.tokens_per_day),
            (b"x-ratelimit-remaining-tokens", b"%d" % max(0, state.tokens_left(tenant))),
        ]
    return headers


def _refuse_admission(record: RequestRecord, error: AdmissionRefused) -> Response:
    record.refuse(error.code, error.status)
    return error_responses.admission_refused(error)
