"""Answers in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

RETRY_AFTER_S = 2


def error_body(message: str, *, kind: str, code: str, param: str | None = None) -> bytes:
    """The JSON of an error; ``kind`` is OpenAI's ``type``, ``code`` a stable word for programs."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def error(
    status: int,
    message: str,
    *,
    kind: str,
    code: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A whole response that holds an error."""
    body = error_body(message, kind=kind, code=code, param=param)
    return Response(body, status, headers, media_type="application/json")


def not_found() -> Response:
    """404 for every route that is not served, and every method that a served one does not have."""
    return error(
        404,
        "not served here; there are POST /v1/chat/completions, GET /v1/models, GET /health/live and GET /health/ready",
        kind="invalid_request_error",
        code="not_found",
    )


def unavailable(stage: str) -> Response:
    """503 while no report is accepted."""
    return error(
        503,
        f"the server does not accept reports now ({stage}); try again in a moment",
        kind="service_unavailable_error",
        code="not_ready",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def too_large(limit: int) -> Response:
    """413; the connection is closed, since the rest of the body may still be on its way."""
    return error(
        413,
        f"the request body is larger than {limit:,} bytes; send the film smaller, or as JPEG",
        kind="invalid_request_error",
        code="body_too_large",
        headers={"Connection": "close"},
    )


def engine_failed() -> Response:
    """502 when the engine went away before it had answered."""
    return error(502, ENGINE_LOST, kind="engine_error", code="engine_lost")


ENGINE_LOST = "the engine stopped before the report was complete; nothing of it may be used, send the request again"
