"""Error answers in OpenAI's format: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

from pedcxr_serve.gateway.request.image_splice import IMAGE_URL
from pedcxr_serve.vllm_plugin.refusals import FilmRefusal

RETRY_AFTER_S = 2
ENGINE_ABORTED = "the engine aborted the report before it was complete; discard the text and send the request again"
ENGINE_LOST = "the engine stopped before the report was complete; discard the text and send the request again"


def error_body(message: str, *, kind: str, code: str, param: str | None = None) -> bytes:
    """Return the JSON of an error; ``kind`` is OpenAI's ``type``, ``code`` a stable code for programs."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def error_event(message: str, code: str) -> bytes:
    """Return an error as an event of a stream that has already started."""
    return b"\n\ndata: " + error_body(message, kind="engine_error", code=code) + b"\n\n"


def error(
    status: int,
    message: str,
    *,
    kind: str,
    code: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a response with an error; for the arguments see `error_body`."""
    body = error_body(message, kind=kind, code=code, param=param)
    return Response(body, status, headers, media_type="application/json")


def not_found() -> Response:
    """Return 404, for unknown routes and for unsupported methods of known routes."""
    return error(
        404,
        "no such route; this server has POST /v1/chat/completions, GET /v1/models, GET /health/live and "
        "GET /health/ready",
        kind="invalid_request_error",
        code="not_found",
    )


def unauthorized() -> Response:
    """Return 401, for a request without a valid key."""
    return error(
        401,
        "the API key is missing, unknown or expired; send it as `Authorization: Bearer KEY`",
        kind="invalid_request_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def request_refused(message: str, param: str | None, code: str, status: int) -> Response:
    """Return 4xx, for a request that fails validation."""
    return error(status, message, kind="invalid_request_error", code=code, param=param)


def film_refused(refusal: FilmRefusal) -> Response:
    """Return the status of a film that the engine's plugin refuses."""
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    return error(refusal.status, refusal.message, kind=kind, code=refusal.code, param=IMAGE_URL)


def admission_refused(message: str, code: str, status: int, retry_after: int) -> Response:
    """Return 429 or 503, for a request that cannot be served now; ``retry_after`` in seconds."""
    kind = "rate_limit_error" if status == 429 else "service_unavailable_error"
    return error(status, message, kind=kind, code=code, headers={"Retry-After": str(retry_after)})


def not_ready(stage: str) -> Response:
    """Return 503, while the server starts, restarts its engine or stops."""
    return error(
        503,
        f"the server does not accept requests now ({stage}); try again in a moment",
        kind="service_unavailable_error",
        code="not_ready",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def body_too_large(limit: int) -> Response:
    """Return 413 and close the connection, since the rest of the body may still arrive."""
    return error(
        413,
        f"the request body is larger than {limit:,} bytes; send a smaller image, or a JPEG",
        kind="invalid_request_error",
        code="body_too_large",
        headers={"Connection": "close"},
    )


def body_too_slow(timeout_s: float) -> Response:
    """Return 408 and close the connection, since the rest of the body may still arrive."""
    return error(
        408,
        f"the request body was not complete after {timeout_s:g} s; send a smaller image, or a JPEG",
        kind="invalid_request_error",
        code="body_too_slow",
        headers={"Connection": "close"},
    )


def no_room() -> Response:
    """Return 503 and close the connection, while the memory for request bodies is full."""
    return error(
        503,
        "too many request bodies are being received; try again in a moment",
        kind="service_unavailable_error",
        code="no_room",
        headers={"Retry-After": str(RETRY_AFTER_S), "Connection": "close"},
    )


def internal_error() -> Response:
    """Return 500, for an unexpected exception in the gateway."""
    return error(500, "internal error; the server's log has the request id", kind="server_error", code="internal")


def engine_aborted() -> Response:
    """Return 502, for a report that the engine aborted."""
    return error(502, ENGINE_ABORTED, kind="engine_error", code="engine_aborted")


def engine_lost() -> Response:
    """Return 502, for an engine that failed before its answer was complete."""
    return error(502, ENGINE_LOST, kind="engine_error", code="engine_lost")
