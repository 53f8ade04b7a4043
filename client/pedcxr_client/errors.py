"""The errors of pedcxr_client, with the exit codes of the command line.

PedcxrError                        4
├── ConfigurationError             2  invalid settings of the client: address, key, model, options; a closed client
├── InputError                     3  an invalid film, age or sex; nothing was sent
│   ├── BlockedFilm                3  a film outside the intended use that the caller did not allow; nothing was sent
│   └── MissingResource            3  this machine lacks a decoder or the memory to read the film; nothing was sent
└── RequestError                   4  the request failed; carries the evidence
    ├── ConnectionFailed           4  no connection, or disconnected before the response started (retried)
    ├── TimedOut                   4  a phase other than connecting, or the whole call, took too long
    ├── AuthenticationFailed       2  401, 403
    ├── NotFound                   2  404: unknown model or path
    ├── BadRequest                 3  another 4xx: the server rejected the film or the prompt
    ├── RateLimited                4  429 (retried)
    ├── Unavailable                4  503: starting, full or stopping; 502 or 504 of a proxy (retried)
    ├── ServerFailed               4  another 5xx, a redirect, or a response of another protocol
    └── ReportError                4  the server sent text that is not a report
        ├── TruncatedReport        4  cut off at max_tokens
        ├── AbortedReport          4  ended by an error, an abort or a broken connection
        ├── EmptyReport            4  no text
        ├── LoopingReport          4  the same words repeated, with any finish reason
        ├── PromptEcho             4  repeats the prompt, or contains tokens of the chat template
        ├── NotText                4  control characters, too few letters, or only special tokens
        ├── NotEnglish             4  a text in another language
        └── NotReport              4  a refusal, thoughts, JSON, or a text that states no finding
"""

from __future__ import annotations

from typing import ClassVar

from pedcxr_client.types import Check, Timing


class PedcxrError(Exception):
    """The base class of all errors of this package.

    Attributes:
        exit_code: the exit code of ``pedcxr``: 2, 3 or 4.
        outcome: one of a fixed set of words, suitable as a metric label.
    """

    exit_code: ClassVar[int] = 4
    outcome: ClassVar[str] = "error"


class ConfigurationError(PedcxrError):
    """Invalid settings: a malformed address, plain http to another machine, an ambiguous model; or a closed client."""

    exit_code = 2
    outcome = "configuration"


class InputError(PedcxrError):
    """Invalid input, such as an unreadable film or a malformed age. Nothing was sent."""

    exit_code = 3
    outcome = "input"


class BlockedFilm(InputError):
    """A film outside the intended use: an adult, an animal, another body part. Nothing was sent.

    Attributes:
        checks: the results of all checks, passed ones included.
    """

    outcome = "blocked"

    def __init__(self, message: str, checks: tuple[Check, ...] = ()) -> None:
        super().__init__(message)
        self.checks = checks


class MissingResource(InputError):
    """This machine lacks what it needs to read the film: a decoder or memory. The film itself may be valid."""


class RequestError(PedcxrError):
    """The request to the server failed.

    The message never contains text of the report.

    Attributes:
        status_code: the HTTP status of an error response, or None.
        code: the server's own error code, such as ``"budget_spent"``, as a text; or None.
        reason: the server's own message on one line, or None. It is a part of the error's message too.
        request_id: the server's ``X-Request-Id``, or None.
        text: the part of the report that was received, unchanged; "" if none.
        timing: the timestamps so far, or None if nothing was sent.
    """

    outcome = "server"
    code: str | None = None
    reason: str | None = None

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        request_id: str | None = None,
        text: str = "",
        timing: Timing | None = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.request_id = request_id
        self.text = text
        self.timing = timing


class _RetryLater(RequestError):
    """An error response that may carry a Retry-After header.

    Attributes:
        retry_after: seconds from the header, or None without one.
    """

    retry_after: float | None = None


class ConnectionFailed(RequestError):
    """The server could not be reached, or disconnected before the response started."""

    outcome = "connection"


class TimedOut(RequestError):
    """A phase took longer than `Timeouts` allows; ``text`` is the part of the report that was received."""

    outcome = "timeout"


class AuthenticationFailed(RequestError):
    """The server rejected the API key (401), or the key lacks permission (403)."""

    exit_code = 2
    outcome = "authentication"


class NotFound(RequestError):
    """The server does not know the model or the path (404)."""

    exit_code = 2
    outcome = "not_found"


class BadRequest(RequestError):
    """The server rejected the film or the prompt (4xx). The message contains the server's message.

    Attributes:
        param: the field that the server names, or None.
    """

    exit_code = 3
    outcome = "bad_request"
    param: str | None = None


class RateLimited(_RetryLater):
    """Too many requests (429)."""

    outcome = "rate_limited"


class Unavailable(_RetryLater):
    """The server is starting, full or stopping (503), or a proxy in front of it does not reach it (502, 504).

    A 502 or 504 of the server itself, which has an OpenAI error body, is a `ServerFailed`, since the film may cause it.
    """

    outcome = "unavailable"


class ServerFailed(RequestError):
    """The server failed (5xx), or its response does not follow the OpenAI API."""


class ReportError(RequestError):
    """The server sent text that is not a report; ``text`` contains it.

    Attributes:
        finish_reason: the server's reason for the end of the text, or None.
    """

    finish_reason: str | None = None


class TruncatedReport(ReportError):
    """The text was cut off at ``max_tokens`` and must not be used as a report."""

    outcome = "truncated"


class AbortedReport(ReportError):
    """An error, an abort or a broken connection ended the text, or the response is that of another request."""

    outcome = "aborted"


class EmptyReport(ReportError):
    """The model wrote no text."""

    outcome = "empty"


class LoopingReport(ReportError):
    """The text repeats the same words; ``finish_reason`` is ``"stop"`` or ``"length"``."""

    outcome = "looping"


class PromptEcho(ReportError):
    """The text repeats the prompt, or contains tokens of the chat template."""

    outcome = "prompt_echo"


class NotText(ReportError):
    """The output is not text: control or replacement characters, too few letters, or only special tokens."""

    outcome = "not_text"


class NotEnglish(ReportError):
    """The text is in another language than the prompt and the model's training.

    Attributes:
        language: its RFC 5646 tag, such as ``"ro"``; ``"und"`` if it is unknown.
    """

    outcome = "not_english"
    language: str = "und"


class NotReport(ReportError):
    """The text declines, describes the model, contains its thoughts or JSON, or states nothing about a film."""

    outcome = "not_report"
