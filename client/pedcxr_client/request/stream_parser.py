"""The text of a report from the events of a response, or a typed error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import uuid4

from pedcxr_client.errors import (
    AbortedReport,
    EmptyReport,
    LoopingReport,
    NotEnglish,
    NotReport,
    NotText,
    PromptEcho,
    ReportError,
    ServerFailed,
    TruncatedReport,
)
from pedcxr_client.reports import validation
from pedcxr_client.types import Usage

_LONGEST_MESSAGE = 300
_SENT_ID = re.compile(r"pedcxr-[0-9a-f]{32}")  # as `new_request_id` makes them
_DEFECTS: dict[validation.Defect, str] = {
    "thoughts": "the model shows its thoughts instead of a report; turn thinking off, or check the checkpoint",
    "markup": "the model wrote JSON, HTML or code instead of a report; check the prompt and the checkpoint",
    "refusal": "the model declines or describes itself instead of a report; check the film and the checkpoint",
    "no finding": "the text states no finding, so it is not a report; check the film and the checkpoint",
}


@dataclass(slots=True, repr=False)
class StreamParser:
    """The response to one request so far. ``first`` and ``last`` are the times of its first and last non-empty text.

    All chunks of a response have one id, or none. pedcxr's gateway and vLLM derive it from ``sent_id``, which the
    client sends in the header ``X-Request-Id``. Other servers choose one of their own.
    """

    sent_id: str = ""
    chunk_id: str | None = None
    started: bool = False
    pieces: list[str] = field(default_factory=list)
    model: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    first: float | None = None
    last: float | None = None

    @property
    def text(self) -> str:
        """The text so far, unchanged."""
        return "".join(self.pieces)

    def add(self, event: object, now: float) -> str:
        """Record one ``chat.completion.chunk`` and return its text, "" if it has none; refuse other events."""
        if isinstance(event, dict) and event.get("error"):
            raise error_of_event(event["error"])
        choices = event.get("choices") if isinstance(event, dict) else None
        if not isinstance(event, dict) or not isinstance(choices, list):
            raise AbortedReport("the server sent an event that is not a chat completion; check the address")
        self._check_id(_text(event.get("id")), choices)
        self.model = _text(event.get("model")) or self.model
        self.usage = _usage(event.get("usage")) or self.usage
        piece = "".join(self._record(choice) for choice in choices if isinstance(choice, dict))
        if piece:
            self.pieces.append(piece)
            self.first = now if self.first is None else self.first
            self.last = now
        return piece

    def response_started(self, headers: Mapping[str, str]) -> None:
        """Refuse the response to another request of this or another client."""
        self._refuse_if(self._is_foreign(headers.get("x-request-id", "")))

    def _check_id(self, chunk_id: str | None, choices: list[object]) -> None:
        self._refuse_if(bool(self.chunk_id and chunk_id) and chunk_id != self.chunk_id)
        self._refuse_if(self._is_foreign(chunk_id or ""))
        self.chunk_id = self.chunk_id or chunk_id
        if self.started or not choices:
            return
        # vLLM always begins with the role. Some other servers never send one.
        delta = choices[0].get("delta") if isinstance(choices[0], dict) else None
        has_role = isinstance(delta, dict) and "role" in delta
        self._refuse_if(self.sent_id != "" and self.chunk_id == f"chatcmpl-{self.sent_id}" and not has_role)
        self.started = True

    def _is_foreign(self, name: str) -> bool:
        match = _SENT_ID.search(name)
        return match is not None and match[0] != self.sent_id

    def _refuse_if(self, mixed: bool) -> None:
        if mixed:
            self.pieces.clear()  # the text may describe the film of another request
            raise AbortedReport("the server sent a part of the response to another request; try again")

    def _record(self, choice: dict[str, object]) -> str:
        if choice.get("index", 0) != 0:
            return ""
        self.finish_reason = _text(choice.get("finish_reason")) or self.finish_reason
        delta = choice.get("delta")
        return (_text(delta.get("content")) or "") if isinstance(delta, dict) else ""

    def check(self, system: str | None = None) -> None:
        """Raise a ReportError unless the text is a report that the model finished.

        A report that repeats the system text of the request is an echo.
        """
        if self.finish_reason is None:
            self._fail(AbortedReport("the server ended the stream before the report was finished; try again"))
        if self.finish_reason not in ("stop", "length"):
            self._fail(AbortedReport("the server aborted the report; try again"))
        if self.finish_reason == "stop":
            self._check_text(system)
        # Checked before the cut-off: raising max_tokens would only make a loop longer.
        if validation.is_loop(self.text):
            self._fail(LoopingReport("the model repeats itself instead of a report; check the film and the prompt"))
        if self.finish_reason == "length":
            self._fail(TruncatedReport("the text was cut off at max_tokens and is not a report; raise max_tokens"))
        self._check_report()

    def _check_text(self, system: str | None) -> None:
        if not self.text.strip():
            self._fail(EmptyReport("the model wrote nothing; check the film"))
        if validation.is_not_text(self.text):
            self._fail(NotText("the model's output is not text; check that the server runs the right checkpoint"))
        if validation.is_echo(self.text, system):
            self._fail(PromptEcho("the model repeats the prompt; check that the server runs the right checkpoint"))

    def _check_report(self) -> None:
        defect = validation.defect(self.text)
        if (language := validation.language(self.text)) != "en" and defect != "thoughts":
            error = NotEnglish(f"the text is not in English (language {language}); check the prompt and the checkpoint")
            error.language = language
            self._fail(error)
        if defect is not None:
            self._fail(NotReport(_DEFECTS[defect]))

    def _fail(self, error: ReportError) -> None:
        error.finish_reason = self.finish_reason
        raise error


def error_of_event(body: object, message: object = None) -> AbortedReport:
    """Return the error of a ``data: {"error": ...}`` event."""
    fields = body if isinstance(body, dict) else {"message": body}
    aborted = AbortedReport(f"the server aborted the report: {printable(fields.get('message') or message)}")
    aborted.code, aborted.reason = code_and_message(fields)
    return aborted


def code_and_message(body: object) -> tuple[str | None, str | None]:
    """Return the code and the message of an OpenAI error object, each as one printable line, or None."""
    fields = body if isinstance(body, dict) else {}
    code, message = fields.get("code"), fields.get("message")
    return (
        printable(code) if isinstance(code, (str, int)) else None,
        (printable(message) or None) if isinstance(message, str) else None,
    )


def new_request_id() -> str:
    """Return a random value for the header ``X-Request-Id``, which tells nothing about the film or the client."""
    return f"pedcxr-{uuid4().hex}"


def not_openai(url: str) -> ServerFailed:
    """Return the error for a response of another protocol."""
    return ServerFailed(
        f"{url}: the response does not follow the OpenAI API; check the address, which usually ends in /v1"
    )


def printable(text: object) -> str:
    """Return a server's text as one printable line of at most 300 characters."""
    line = " ".join(str(text).split())
    return "".join(letter for letter in line if letter.isprintable())[:_LONGEST_MESSAGE]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _usage(value: object) -> Usage | None:
    if not isinstance(value, dict):
        return None
    prompt, completion = value.get("prompt_tokens"), value.get("completion_tokens")
    return Usage(prompt, completion) if isinstance(prompt, int) and isinstance(completion, int) else None
