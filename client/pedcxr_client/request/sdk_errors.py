"""Conversion of the openai SDK's exceptions to ours. Each caller chains the result with ``raise ... from``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedcxr_client.errors import (
    AbortedReport,
    AuthenticationFailed,
    BadRequest,
    ConnectionFailed,
    NotFound,
    RateLimited,
    RequestError,
    ServerFailed,
    TimedOut,
    Unavailable,
)
from pedcxr_client.request.retry import parse_retry_after
from pedcxr_client.request.stream_parser import error_of_event, not_openai, printable

if TYPE_CHECKING:
    import openai


def before_response(error: Exception, url: str) -> RequestError:
    """Return the error for a failure before the response started."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _from_status(error, url)
    if isinstance(error, openai.APITimeoutError) and type(error.__cause__).__name__ != "ConnectTimeout":
        return TimedOut(f"{url}: no response in time; the server may be overloaded, or the timeout too short")
    if isinstance(error, openai.APIConnectionError):
        return ConnectionFailed(
            f"cannot reach {url}: {_connection_problem(error)}; check that a server runs there (pedcxr-serve start)"
        )
    return not_openai(url)


def during_response(error: Exception) -> RequestError:
    """Return the error for a failure after the response started: an error event, or a broken or stalled connection."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return TimedOut("the server stopped sending before the report was finished; try again")
    if isinstance(error, openai.APIConnectionError):
        return AbortedReport("the connection broke before the report was finished; try again")
    if isinstance(error, openai.APIError):
        return error_of_event(error.body, error.message)
    return AbortedReport("the server sent an event that is not JSON; check the address")


def _from_status(error: openai.APIStatusError, url: str) -> RequestError:
    status = error.status_code
    reason = _server_message(error)
    failure: RequestError
    if status in (401, 403):
        failure = AuthenticationFailed(
            f"{url}: the server rejected the API key ({status}); set PEDCXR_API_KEY to a key that permits this request"
        )
    elif status == 404:
        failure = NotFound(f"{url}: {reason}; check the model name and the address, which usually ends in /v1")
    elif status == 429:
        failure = RateLimited(f"{url}: too many requests (429); try again later")
        failure.retry_after = _retry_after(error)
    elif status == 503:
        failure = Unavailable(f"{url}: {reason}; the server is starting, full or stopping (503), try again later")
        failure.retry_after = _retry_after(error)
    elif 400 <= status < 500:
        failure = BadRequest(f"the server rejected the request ({status}): {reason}")
        failure.param, failure.code = error.param, error.code
    else:
        failure = ServerFailed(f"{url}: {reason} ({status})")
    failure.status_code = status
    failure.request_id = error.request_id
    return failure


def _retry_after(error: openai.APIStatusError) -> float | None:
    return parse_retry_after(error.response.headers.get("retry-after"))


def _server_message(error: openai.APIStatusError) -> str:
    """Return the message of an OpenAI error body. Other bodies, such as HTML pages, are not quoted."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return printable(message) if isinstance(message, str) and message else "no reason given"


def _connection_problem(error: openai.APIConnectionError) -> str:
    cause = error.__cause__
    if type(cause).__name__ == "ConnectTimeout":
        return "no connection in time"
    return printable(cause) if cause is not None and str(cause) else "connection failed"
