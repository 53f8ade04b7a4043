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
from pedcxr_client.request.stream_parser import code_and_message, error_of_event, not_openai, printable

if TYPE_CHECKING:
    import httpx2


def before_response(error: Exception, url: str) -> RequestError:
    """Return the error for a failure before the response started."""
    import httpx2
    import openai

    if isinstance(error, openai.APIStatusError):
        return _from_status(error.response, url, error.body)
    if (response := _response_of(error, url)) is not None:
        return _from_status(response, url, None)
    timed_out = isinstance(error, (openai.APITimeoutError, httpx2.TimeoutException))  # httpx's: in an error body
    if timed_out and type(error.__cause__).__name__ != "ConnectTimeout":
        return TimedOut(f"{url}: no response in time; the server may be overloaded, or the timeout too short")
    if isinstance(error, (openai.OpenAIError, ValueError)) and not isinstance(error, openai.APIConnectionError):
        return not_openai(url)
    return ConnectionFailed(
        f"cannot reach {url}: {_connection_problem(error)}; check that a server runs there (pedcxr-serve start)"
    )


def during_response(error: Exception) -> RequestError:
    """Return the error for a failure after the response started: an error event, or a broken or stalled connection."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return TimedOut("the server stopped sending before the report was finished; try again")
    if isinstance(error, openai.APIConnectionError):
        return AbortedReport("the connection broke before the report was finished; try again")
    if isinstance(error, openai.APIError):
        return error_of_event(error.body, error.message)
    if isinstance(error, ValueError):
        return AbortedReport("the server sent an event that is not JSON; check the address")
    return AbortedReport("the response could not be read to its end; try again")


def _response_of(error: Exception, url: str) -> httpx2.Response | None:
    """Return the error response whose body could not be read. The SDK does not catch the errors of reading it."""
    import httpx2

    context = error.__context__
    while context is not None:
        if isinstance(context, httpx2.HTTPStatusError) and str(context.request.url).startswith(url):
            return context.response
        context = context.__context__
    return None


def _from_status(response: httpx2.Response, url: str, body: object) -> RequestError:
    """Return the error for an error response. Bodies that are no OpenAI error, such as HTML pages, are not quoted."""
    status = response.status_code
    code, message = code_and_message(body)
    reason = message or "no reason given"
    because = "" if message is None else f": {message}"
    failure: RequestError
    if status in (401, 403):
        failure = AuthenticationFailed(
            f"{url}: the server rejected the API key ({status}){because}; "
            "use a key that permits this request (api_key; for the command, set PEDCXR_API_KEY)"
        )
    elif status == 404:
        failure = NotFound(f"{url}: {reason}; check the model name and the address, which usually ends in /v1")
    elif status == 429:
        failure = RateLimited(f"{url}: too many requests (429){because}; try again later")
    elif status == 503 or (status in (502, 504) and message is None):
        failure = Unavailable(f"{url}: {reason}; the server is starting, full or stopping ({status}), try again later")
    elif 400 <= status < 500:
        failure = BadRequest(f"the server rejected the request ({status}): {reason}")
        failure.param = _text_field(body, "param")
    else:
        failure = ServerFailed(f"{url}: {reason} ({status})")
    if isinstance(failure, (RateLimited, Unavailable)):
        failure.retry_after = parse_retry_after(response.headers.get("retry-after"))
    failure.code, failure.reason, failure.status_code = code, message, status
    failure.request_id = response.headers.get("x-request-id")
    return failure


def _text_field(body: object, name: str) -> str | None:
    value = body.get(name) if isinstance(body, dict) else None
    return printable(value) if isinstance(value, str) else None


def _connection_problem(error: Exception) -> str:
    cause = error.__cause__
    if type(cause).__name__ == "ConnectTimeout":
        return "no connection in time"
    return printable(cause) if cause is not None and str(cause) else "connection failed"
