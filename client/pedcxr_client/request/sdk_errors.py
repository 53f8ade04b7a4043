"""From the openai SDK's exceptions to ours. Pure; every caller chains with ``from``."""

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
from pedcxr_client.request.backoff import parse_retry_after

if TYPE_CHECKING:
    import openai

_LONGEST_MESSAGE = 300


def before_answer(error: Exception, url: str) -> RequestError:
    """Translate what went wrong before an answer began."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _from_status(error, url)
    if isinstance(error, openai.APITimeoutError) and type(error.__cause__).__name__ != "ConnectTimeout":
        return TimedOut(f"{url}: no answer in time; the server may be overloaded, or the timeout too short")
    if isinstance(error, openai.APIConnectionError):
        return ConnectionFailed(
            f"cannot reach {url}: {_reason(error)}; is a server running there? (pedcxr-serve start)"
        )
    return not_openai(url)


def amid_answer(error: Exception) -> RequestError:
    """Translate what went wrong after the answer began: an error event, a broken or a stalled connection."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return TimedOut("the server fell silent before the report was finished; try again")
    if isinstance(error, openai.APIConnectionError):
        return AbortedReport("the connection broke before the report was finished; try again")
    if isinstance(error, openai.APIError):
        return from_event(error.body, error.message)
    return AbortedReport("the server sent an event that is not JSON; is the address right?")


def from_event(body: object, message: object = None) -> AbortedReport:
    """The error that a ``data: {"error": ...}`` event stands for."""
    fields = body if isinstance(body, dict) else {"message": body}
    aborted = AbortedReport(f"the server aborted the report: {clean(fields.get('message') or message)}")
    code = fields.get("code")
    aborted.code = None if code is None else clean(code)
    return aborted


def not_openai(url: str) -> ServerFailed:
    """The error for an answer of another protocol."""
    return ServerFailed(f"{url} did not answer as an OpenAI server does; is the address right? It usually ends in /v1")


def _from_status(error: openai.APIStatusError, url: str) -> RequestError:
    status = error.status_code
    said = _said(error)
    failure: RequestError
    if status in (401, 403):
        failure = AuthenticationFailed(
            f"{url} refused the API key ({status}); set PEDCXR_API_KEY to one that may do this"
        )
    elif status == 404:
        failure = NotFound(f"{url}: {said}; check the model's name and the address, which usually ends in /v1")
    elif status == 429:
        failure = RateLimited(f"{url}: too many requests (429); try again later")
        failure.retry_after = _retry_after(error)
    elif status == 503:
        failure = Unavailable(f"{url}: {said}; the server is starting, full or stopping (503), try again later")
        failure.retry_after = _retry_after(error)
    elif 400 <= status < 500:
        failure = BadRequest(f"the server refused the request ({status}): {said}")
        failure.param, failure.code = error.param, error.code
    else:
        failure = ServerFailed(f"{url}: {said} ({status})")
    failure.status_code = status
    failure.request_id = error.request_id
    return failure


def _retry_after(error: openai.APIStatusError) -> float | None:
    return parse_retry_after(error.response.headers.get("retry-after"))


def _said(error: openai.APIStatusError) -> str:
    """The server's own words, if it spoke OpenAI's dialect; a page of HTML is not repeated."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return clean(message) if isinstance(message, str) and message else "no reason given"


def _reason(error: openai.APIConnectionError) -> str:
    cause = error.__cause__
    if type(cause).__name__ == "ConnectTimeout":
        return "no connection in time"
    return clean(cause) if cause is not None and str(cause) else "connection failed"


def clean(words: object) -> str:
    """A server's words made fit for a terminal and a single line."""
    text = " ".join(str(words).split())
    return "".join(letter for letter in text if letter.isprintable())[:_LONGEST_MESSAGE]
