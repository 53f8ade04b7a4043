"""Middleware that gives every request an id, counts it, logs it, and answers 500 if the gateway fails."""

from __future__ import annotations

import logging
import re
import traceback
import uuid
from pathlib import Path
from time import monotonic

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pedcxr_serve.gateway import error_responses
from pedcxr_serve.gateway.state import State

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ROUTES = ("/v1/chat/completions", "/v1/models", "/health", "/health/live", "/health/ready")
_log = logging.getLogger("pedcxr.gateway")


class AccessLog:
    """ASGI middleware. The request id is the client's ``X-Request-Id`` if valid, else a new one.

    Metric labels and log lines hold nothing else that the client sent. An unknown path appears as ``other``. An
    exception appears by type and place, without its message, which may contain the prompt.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app, self._state = app, state
        self._requests = state.metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        header = Headers(scope=scope).get("x-request-id", "")
        request_id = header if _REQUEST_ID.fullmatch(header) else uuid.uuid4().hex
        request_state = scope.setdefault("state", {})
        request_state["request_id"] = request_id
        path = scope["path"]
        route = path if path in _ROUTES else "/v1/models" if path.startswith("/v1/models/") else "other"
        start, status = monotonic(), 0

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                if self._state.stage == "stopping":  # a kept connection would lead to this server again
                    headers["Connection"] = "close"
                self._requests.labels(route, status).inc()
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except Exception as error:
            _log.error("request %s: internal error: %s", request_id, _describe(error))
            if not status:  # otherwise uvicorn closes the connection, since the answer has no end
                await error_responses.response("internal")(scope, receive, send_observed)
        finally:
            tenant = request_state.get("tenant", "no tenant")
            _log.info(
                "request %s: %s %s, %s, %d after %.3f s",
                *(request_id, scope["method"], route, tenant, status, monotonic() - start),
            )


def _describe(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames)]
    return f"{type(error).__name__} at " + ", in ".join(places)
