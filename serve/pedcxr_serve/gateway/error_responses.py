"""Answers in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

from pedcxr_serve.gateway.request.image_splice import IMAGE_URL
from pedcxr_serve.vllm_plugin.refusals import FilmRefusal

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


def unauthorized() -> Response:
    """401 for a request without a key that opens anything."""
    return error(
        401,
        "no key, or one that is not known or has expired; send it as `Authorization: Bearer KEY`",
        kind="invalid_request_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def refused(message: str, param: str | None, code: str, status: int) -> Response:
    """A request that the policy does not serve."""
    return error(status, message, kind="invalid_request_error", code=code, param=param)


def film_refused(refusal: FilmRefusal) -> Response:
    """A film that the engine's plugin does not take."""
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    return error(refusal.status, refusal.message, kind=kind, code=refusal.code, param=IMAGE_URL)


def rejected(message: str, code: str, status: int, retry_after: int) -> Response:
    """429 or 503 for a request that comes at the wrong time; ``retry_after`` in seconds."""
    kind = "rate_limit_error" if status == 429 else "service_unavailable_error"
    return error(status, message, kind=kind, code=code, headers={"Retry-After": str(retry_after)})


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


def too_slow(timeout_s: float) -> Response:
    """408; the connection is closed, since nobody knows what comes on it next."""
    return error(
        408,
        f"the request body was not complete after {timeout_s:g} s; send the film smaller, or as JPEG",
        kind="invalid_request_error",
        code="body_too_slow",
        headers={"Connection": "close"},
    )


def no_room() -> Response:
    """503 while as many bodies are held as the memory allows."""
    return error(
        503,
        "too many request bodies are being received; try again in a moment",
        kind="service_unavailable_error",
        code="no_room",
        headers={"Retry-After": str(RETRY_AFTER_S), "Connection": "close"},
    )


def failed() -> Response:
    """500, which nobody should ever see."""
    return error(500, "the gateway failed; its log has the request id", kind="server_error", code="internal")


def aborted() -> Response:
    """502 for a report that the engine gave up; it may have said 200."""
    return error(502, ENGINE_ABORTED, kind="engine_error", code="engine_aborted")


def event(message: str, code: str) -> bytes:
    """An error amid a stream."""
    return b"\n\ndata: " + error_body(message, kind="engine_error", code=code) + b"\n\n"


def engine_failed() -> Response:
    """502 when the engine went away before it had answered."""
    return error(502, ENGINE_LOST, kind="engine_error", code="engine_lost")


ENGINE_ABORTED = "the engine gave the report up before it was complete; nothing of it may be used, send it again"
ENGINE_LOST = "the engine stopped before the report was complete; nothing of it may be used, send the request again"
