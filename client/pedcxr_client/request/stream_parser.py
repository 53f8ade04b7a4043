"""The text of a report from the events of a response, or a typed error."""

from __future__ import annotations

from dataclasses import dataclass, field

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
_DEFECTS: dict[validation.Defect, str] = {
    "thoughts": "the model shows its thoughts instead of a report; turn thinking off, or check the checkpoint",
    "markup": "the model wrote JSON, HTML or code instead of a report; check the prompt and the checkpoint",
    "refusal": "the model declines or describes itself instead of a report; check the film and the checkpoint",
    "no finding": "the text states no finding, so it is not a report; check the film and the checkpoint",
}


@dataclass(slots=True, repr=False)
class StreamParser:
    """The response to one request so far. ``first`` and ``last`` are the times of its first and last non-empty text."""

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
        self.model = _text(event.get("model")) or self.model
        self.usage = _usage(event.get("usage")) or self.usage
        piece = "".join(self._record(choice) for choice in choices if isinstance(choice, dict))
        if piece:
            self.pieces.append(piece)
            self.first = now if self.first is None else self.first
            self.last = now
        return piece

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
    code = fields.get("code")
    aborted.code = None if code is None else printable(code)
    return aborted


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
