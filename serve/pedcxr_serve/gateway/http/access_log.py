"""Around every request: an id, a count, a line in the log, and an answer even when the gateway itself fails."""

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


class Observe:
    """ASGI middleware. The id is the client's ``X-Request-Id``, or a new one, and returned under that name.

    Labels and log lines hold nothing else that a client chose: a path that is not served is ``other``, and of an
    exception its type and places are told, since its message may repeat a prompt.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._requests = state.metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        told = scope.setdefault("state", {})
        told["request_id"] = request_id
        route = scope["path"] if scope["path"] in _ROUTES else "other"
        begun, status = monotonic(), 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
                self._requests.labels(route, status).inc()
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception as error:
            _log.error("request %s: the gateway failed: %s", request_id, _where(error))
            if not status:  # else the connection is dropped: an answer without its end
                await error_responses.failed()(scope, receive, observed)
        finally:
            _log.info(
                "request %s: %s %s, %s, %d after %.3f s",
                *(request_id, scope["method"], route, told.get("tenant", "nobody"), status, monotonic() - begun),
            )


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames)]
    return f"{type(error).__name__} at " + ", in ".join(places)
