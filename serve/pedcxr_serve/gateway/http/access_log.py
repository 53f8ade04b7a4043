"""Middleware that gives every request an id, counts it, logs it, and answers 500 if the gateway fails."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping
from time import monotonic
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pedcxr_serve.gateway import error_responses
from pedcxr_serve.gateway.accounting.metrics import RequestRecord
from pedcxr_serve.gateway.accounting.usage import TokenUsage
from pedcxr_serve.gateway.http.protocol import chunk_writer
from pedcxr_serve.gateway.request import body
from pedcxr_serve.gateway.state import State
from pedcxr_serve.vllm_plugin import log_redaction

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ROUTES = ("/v1/chat/completions", "/v1/models", "/health", "/health/live", "/health/ready")
_log = logging.getLogger("pedcxr.gateway")


class AccessLog:
    """ASGI middleware. The request id is the client's ``X-Request-Id`` if valid, else a new one.

    Metric labels and log lines hold nothing else that the client sent. An unknown path appears as ``other``. An
    exception and its causes appear by type and place, without their messages, which may contain the prompt.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app, self._state = app, state
        self._requests = state.metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_headers = Headers(scope=scope)
        header = request_headers.get("x-request-id", "")
        request_id = header if _REQUEST_ID.fullmatch(header) else uuid.uuid4().hex
        request_state = scope.setdefault("state", {})
        request_state["request_id"] = request_id
        path = scope["path"]
        route = path if path in _ROUTES else "/v1/models" if path.startswith("/v1/models/") else "other"
        start, status, writer = monotonic(), 0, chunk_writer(scope)

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                if self._state.stage == "stopping":  # a kept connection would lead to this server again
                    headers["Connection"] = "close"
                elif writer is not None and writer.request_pending:
                    await body.finish_small(request_headers, receive)
                self._requests.labels(route, status).inc()
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except Exception as error:
            extra = {"fields": {"request_id": request_id}}
            _log.error("request %s: internal error: %s", request_id, log_redaction.describe(error), extra=extra)
            if not status:  # otherwise uvicorn closes the connection, since the answer has no end
                await error_responses.response("internal")(scope, receive, send_observed)
        finally:
            if _log.isEnabledFor(logging.INFO):
                fields: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "route": route}
                fields |= {"status": status, "seconds": round(monotonic() - start, 4)}
                fields |= _caller_fields(scope) | _report_fields(request_state.get("record"))
                _log.info(_line(fields), extra={"fields": fields})


def _caller_fields(scope: Scope) -> dict[str, Any]:
    """Return tenant, key and address of a request. Behind a proxy on this machine, the address is the proxy's client.

    The key is named by the first 12 digits of its digest, as `pedcxr-serve keys list` prints them.
    """
    client, request_state = scope.get("client"), scope["state"]
    return {
        "tenant": request_state.get("tenant"),
        "key": request_state.get("key"),
        "address": client[0] if client else None,
    }


def _report_fields(record: RequestRecord | None) -> dict[str, Any]:
    """Return what became of a request for a report, and an empty dict for any other request."""
    if record is None:
        return {}
    usage, first = record.usage or TokenUsage(), record.first_token_at
    return {
        "outcome": record.outcome,
        "code": record.reason or None,
        "prompt_tokens": usage.prompt_tokens,
        "output_tokens": usage.output,
        "trace_id": record.traceparent[3:35] or None,  # 00-TRACE-SPAN-FLAGS
        "time_to_first_token": None if first is None else round(first - record.arrived_at, 4),
    }


def _line(fields: Mapping[str, Any]) -> str:
    """Return the fields as a line of text; absent ones are left out."""
    tenant, words = fields["tenant"] or "no tenant", []
    if "outcome" in fields:
        code = f" ({fields['code']})" if fields["code"] else ""
        words += [f"{fields['outcome']}{code}", f"{fields['prompt_tokens']} + {fields['output_tokens']} tokens"]
        if fields["time_to_first_token"] is not None:
            words.append(f"first token after {fields['time_to_first_token']:.3f} s")
    words += [f"trace {trace}"] if (trace := fields.get("trace_id")) else []
    words += [f"key {fields['key']}"] if fields["key"] else []
    words += [f"from {fields['address']}"] if fields["address"] else []
    head = "request {request_id}: {method} {route}, ".format_map(fields)
    return head + ", ".join([tenant, f"{fields['status']} after {fields['seconds']:.3f} s", *words])
