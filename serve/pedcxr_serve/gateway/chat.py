"""One request: authenticate, policy, admit, forward, meter, audit, in this order, and the same end for all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pedcxr_serve.gateway import error_responses
from pedcxr_serve.gateway.accounting.metrics import Record, until_midnight
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.request import body, validation
from pedcxr_serve.gateway.request.client_metadata import ClientMetadata
from pedcxr_serve.gateway.request_context import Job
from pedcxr_serve.gateway.scheduler import Rejected, Ticket
from pedcxr_serve.gateway.state import State
from pedcxr_serve.gateway.upstream import Relay


class ChatCompletions:
    """ASGI endpoint of ``POST /v1/chat/completions``.

    Backpressure: the engine is read only as fast as the client reads. A client that leaves ends its request at once,
    whether it is being read, waits its turn, or is running in the engine.
    """

    def __init__(self, state: State, engine: aiohttp.ClientSession) -> None:
        self._state = state
        self._relay = Relay(state, engine)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        tenant = authenticate(self._state, headers)
        if tenant is None:
            self._state.meter.unauthenticated.inc()
            await error_responses.unauthorized()(scope, receive, send)
            return
        scope["state"]["tenant"] = tenant.name
        record = Record(tenant, scope["state"]["request_id"], ClientMetadata.of(headers))
        if not self._state.ready:
            record.refuse("not_ready", 503)
            self._state.meter.count(record)
            await error_responses.unavailable(self._state.stage)(scope, receive, send)
            return
        async with self._opened(record) as opened:
            refusal = opened if isinstance(opened, Response) else await self._accept(opened, headers, receive)
            if refusal is None and isinstance(opened, Job):
                await self._race(opened, scope, receive, send)
            elif refusal is not None:
                await refusal(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _opened(self, record: Record) -> AsyncIterator[Job | Response]:
        """Count the request in and, however it ends, out; a refusal instead of a job if it may not come in."""
        state = self._state
        try:
            ticket = await self._ticket(record.tenant)
        except Rejected as error:
            try:
                yield _rejected(record, error)
            finally:
                state.meter.count(record)
            return
        job = Job(record, ticket, body.Body(state.bodies, record.tenant.name))
        try:
            yield job
        finally:
            job.release()
            state.gate.close(ticket)
            job.settle(state.meter)
            if state.audit is not None:
                state.audit.write(job.audit_entry(state.revision))

    async def _ticket(self, tenant: Tenant) -> Ticket:
        """A place for a request that its tenant may send now.

        Raises:
            Rejected: 429, with what the tenant has too much of.
        """
        state = self._state
        left = state.meter.tokens_left(tenant)
        ticket = state.gate.open(tenant, tokens_left=left, reset_s=until_midnight())
        try:
            await state.rate.take(tenant)
        except BaseException:
            state.gate.close(ticket)
            raise
        return ticket

    async def _accept(self, job: Job, headers: Headers, receive: Receive) -> Response | None:
        """Read the body and apply the policy; a refusal, or None when the request may go on."""
        state, record = self._state, job.record
        refusal: Response
        try:
            if headers.get("content-encoding", "identity") != "identity":
                raise validation.RequestRefused(
                    "send the body as it is, not compressed", code="unsupported_encoding", status=415
                )
            with record.stage("body"):
                data = await job.body.read(receive, state.body_limit)
            with record.stage("policy"):
                job.accept(validation.apply(data, record.tenant, state.rules), state)
            del data
            if state.ready:
                return None
            record.refuse("not_ready", 503)  # it began to stop while the body came in
            refusal = error_responses.unavailable(state.stage)
        except validation.RequestRefused as error:
            record.refuse(error.code, error.status)
            refusal = error_responses.refused(str(error), error.param, error.code, error.status)
        except body.TooLarge:
            record.refuse("body_too_large", 413)
            refusal = error_responses.too_large(state.body_limit)
        except body.TooSlow:
            record.refuse("body_too_slow", 408)
            refusal = error_responses.too_slow(state.bodies.timeout_s)
        except body.NoRoom:
            record.refuse("no_room", 503)
            refusal = error_responses.no_room()
        except body.Disconnected:
            refusal = Response(status_code=499)  # goes nowhere
        job.release()
        return refusal

    async def _race(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward until the end or until the client leaves, whichever comes first."""
        state = self._state
        state.in_flight += 1
        state.metrics.in_flight.inc()
        relay = asyncio.create_task(self._relay(job, scope, receive, send))
        gone = asyncio.create_task(body.until_disconnect(receive))
        try:
            await asyncio.wait((relay, gone), return_when=asyncio.FIRST_COMPLETED)
            if relay.done():
                relay.result()
        except Rejected as error:
            await _rejected(job.record, error)(scope, receive, send)
        finally:
            for task in (relay, gone):
                task.cancel()
            await asyncio.gather(relay, gone, return_exceptions=True)
            state.in_flight -= 1
            state.metrics.in_flight.dec()


def authenticate(state: State, headers: Headers) -> Tenant | None:
    """The tenant of the request's key; None if it opens nothing."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = ""
    return state.book.current.owner(key.strip(), datetime.now(UTC))


def _rejected(record: Record, error: Rejected) -> Response:
    record.refuse(error.code, error.status)
    return error_responses.rejected(str(error), error.code, error.status, error.retry_after)
