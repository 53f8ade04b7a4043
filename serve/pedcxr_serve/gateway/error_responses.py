"""Error answers in OpenAI's format: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

from pedcxr_serve.gateway.scheduler import AdmissionRefused

RETRY_AFTER_S = 2
_RETRY = {"Retry-After": str(RETRY_AFTER_S)}

_TYPES = {
    429: "rate_limit_error",
    500: "server_error",
    501: "server_error",
    502: "engine_error",
    503: "service_unavailable_error",
}
_DISCARD = "discard the text and send the request again"
_SMALLER = "send a smaller image, or a JPEG"
_ROUTES = (
    "POST /v1/chat/completions, GET /v1/models, GET /v1/models/NAME, GET /health/live and GET /health/ready. Set a "
    "client of the Responses API to chat completions"
)
_KEY = "the API key is missing, unknown or expired; send it as `Authorization: Bearer KEY`"

# Code -> status, message and headers.
_ERRORS: Mapping[str, tuple[int, str, Mapping[str, str]]] = {
    "invalid_api_key": (401, _KEY, {"WWW-Authenticate": "Bearer"}),
    "foreign_host": (
        403,
        "a server without API keys serves 127.0.0.1 only; set gateway.tenants, or gateway.allowed_hosts behind a proxy",
        {},
    ),
    "model_not_found": (404, "no such model; GET /v1/models lists them", {}),
    "not_found": (404, f"no such route; this server has {_ROUTES}", {}),
    "body_too_slow": (408, f"the request body was not complete after {{timeout_s:g}} s; {_SMALLER}", {}),
    "body_too_large": (413, f"the request body is larger than {{limit:,}} bytes; {_SMALLER}", {}),
    "internal": (500, "internal error; the server's log has the request id", {}),
    "engine_aborted": (502, f"the engine aborted the report before it was complete; {_DISCARD}", {}),
    "engine_lost": (502, f"the engine stopped before the report was complete; {_DISCARD}", {}),
    "no_room": (503, "too many request bodies are being received; try again in a moment", _RETRY),
    "not_ready": (503, "the server does not accept requests now ({stage}); try again in a moment", _RETRY),
}


def error_body(status: int, message: str, code: str, param: str | None = None) -> bytes:
    """Return the JSON of an error; ``code`` is stable, for programs. OpenAI's ``type`` follows from the status."""
    kind = _TYPES.get(status, "invalid_request_error")
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def error_event(code: str) -> bytes:
    """Return an error of the table as an event of a stream that has already started."""
    status, message, _ = _ERRORS[code]
    return event(error_body(status, message, code))


def event(body: bytes) -> bytes:
    """Return the body of an error as an event.

    Clients of OpenAI's API look for ``error`` in the data, others (aiperf) for the name of the event. The leading blank
    line ends an event that the engine did not finish.
    """
    return b"\n\nevent: error\ndata: " + body + b"\n\n"


def error(
    status: int, message: str, code: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response with an error; for the arguments see `error_body`.

    Clients of OpenAI repeat a request after any 5xx, unless ``x-should-retry`` forbids it. After 502 the film itself
    may be the cause.
    """
    if status >= 500:
        headers = {"X-Should-Retry": "true" if status == 503 else "false"} | dict(headers or {})
    return Response(error_body(status, message, code, param), status, headers, media_type="application/json")


def admission_refused(refusal: AdmissionRefused) -> Response:
    """Return the response for a request that may be sent again after ``refusal.retry_after`` seconds.

    OpenAI's clients retry at once after a longer Retry-After than a minute, unless ``x-should-retry`` forbids it.
    """
    wait = refusal.retry_after
    headers = {"Retry-After": str(wait), "X-Should-Retry": "true" if wait <= 60 else "false"}
    return error(refusal.status, f"{refusal}; retry after {wait} s", refusal.code, headers=headers)


def response(code: str, **values: object) -> Response:
    """Return the response for an error of the table, with ``values`` for the names in its message."""
    status, message, headers = _ERRORS[code]
    return error(status, message.format(**values), code, headers=headers)
