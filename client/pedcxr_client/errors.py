"""Every error pedcxr_client raises, with the exit code of the command line.

PedcxrError                        4
├── ConfigurationError             2  the client itself: address, key, model, options
├── InputError                     3  a film, an age or a sex that cannot be sent; nothing left the machine
│   └── BlockedFilm                3  the film is outside the intended use, and was not allowed by name
└── RequestError                   4  the exchange with the server failed; carries what is known of it
    ├── ConnectionFailed           4  nobody answered, or hung up before an answer began (retried)
    ├── TimedOut                   4  connecting aside, a phase or the total deadline ran out
    ├── AuthenticationFailed       2  401, 403
    ├── NotFound                   2  404: no such model, or no such path
    ├── BadRequest                 3  another 4xx: the server refuses the film or the prompt
    ├── RateLimited                4  429 (retried)
    ├── Unavailable                4  503: starting, full or stopping (retried)
    ├── ServerFailed               4  another 5xx, a redirect, or an answer that is not OpenAI's
    └── ReportError                4  text came, but it is not a report
        ├── TruncatedReport        4  cut off at max_tokens
        ├── AbortedReport          4  ended by an error, an abort or a broken connection
        ├── EmptyReport            4  ended by itself without a word
        ├── LoopingReport          4  the same words over and over, however it ended
        ├── PromptEcho             4  repeats the instruction, or holds marks of the chat template
        └── NotText                4  control characters, hardly a letter, or special tokens alone
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pedcxr_client.types import Check, Timing


class PedcxrError(Exception):
    """The root of the tree; catch it to catch all.

    Attributes:
        exit_code: what ``pedcxr`` exits with: 2, 3 or 4.
        outcome: a word from a closed set, fit for a metric's label.
    """

    exit_code: ClassVar[int] = 4
    outcome: ClassVar[str] = "error"


class ConfigurationError(PedcxrError):
    """The client is not set up well: a bad address, plain http to another machine, no model to choose."""

    exit_code = 2
    outcome = "configuration"


class InputError(PedcxrError):
    """What the caller gave cannot be sent: a bad age, an unreadable film. Nothing left the machine."""

    exit_code = 3
    outcome = "input"


class BlockedFilm(InputError):
    """A check of the intended use blocks: an adult, an animal, another part of the body. Nothing left the machine.

    Attributes:
        checks: all checks, those that are fine among them.
    """

    outcome = "blocked"

    def __init__(self, message: str, checks: tuple[Check, ...]) -> None:
        super().__init__(message)
        self.checks = checks


class RequestError(PedcxrError):
    """The exchange with the server failed.

    The message never holds the report's text; the attributes carry the evidence.

    Attributes:
        status_code: the HTTP status, or None where no answer came.
        request_id: the server's ``X-Request-Id``, or None.
        text: what had arrived of the report, byte for byte; "" if nothing.
        timing: the timestamps so far, or None where nothing was sent.
    """

    outcome = "server"

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
    """An error whose answer may say when to come back.

    Attributes:
        retry_after: seconds the server asked to wait, or None where it did not say.
    """

    retry_after: float | None = None


class ConnectionFailed(RequestError):
    """The server could not be reached, or hung up before an answer began."""

    outcome = "connection"


class TimedOut(RequestError):
    """A phase took longer than :class:`Timeouts` allows; ``text`` holds what had arrived."""

    outcome = "timeout"


class AuthenticationFailed(RequestError):
    """The server refused the API key (401), or the key may not do this (403)."""

    exit_code = 2
    outcome = "authentication"


class NotFound(RequestError):
    """The server has no such model, or no such path (404)."""

    exit_code = 2
    outcome = "not_found"


class BadRequest(RequestError):
    """The server refuses the film or the prompt (4xx); the message is the server's.

    Attributes:
        param: the field the server names, or None.
        code: the server's code, or None.
    """

    exit_code = 3
    outcome = "bad_request"
    param: str | None = None
    code: str | None = None


class RateLimited(_RetryLater):
    """Too many requests (429); ``retry_after`` holds the seconds the server asked for, or None."""

    outcome = "rate_limited"


class Unavailable(_RetryLater):
    """The server is starting, full or stopping (503); ``retry_after`` holds the seconds it asked for, or None."""

    outcome = "unavailable"


class ServerFailed(RequestError):
    """The server failed (5xx), or answered with something that is not OpenAI's protocol."""


class ReportError(RequestError):
    """Text came back, but it is not a report; ``text`` holds it.

    Attributes:
        finish_reason: what the server gave as the reason, or None where none came.
    """

    finish_reason: str | None = None


class TruncatedReport(ReportError):
    """The text was cut off at ``max_tokens`` and must not be read as a report."""

    outcome = "truncated"


class AbortedReport(ReportError):
    """The text ended by an error, an abort or a broken connection.

    Attributes:
        code: the code of the server's error event, or None.
    """

    outcome = "aborted"
    code: str | None = None


class EmptyReport(ReportError):
    """The model ended by itself without writing a word."""

    outcome = "empty"


class LoopingReport(ReportError):
    """The text repeats the same words over and over; ``finish_reason`` is ``"stop"`` or ``"length"``."""

    outcome = "looping"


class PromptEcho(ReportError):
    """The text repeats what was asked, or holds marks of the chat template."""

    outcome = "prompt_echo"


class NotText(ReportError):
    """The text is none: control or replacement characters, hardly a letter, or special tokens alone."""

    outcome = "not_text"
