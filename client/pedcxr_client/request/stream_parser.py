"""From the events of a stream to a report. Pure: events and times in, a report or a typed error out."""

from __future__ import annotations

from dataclasses import dataclass, field

from pedcxr_client.errors import (
    AbortedReport,
    EmptyReport,
    LoopingReport,
    NotText,
    PromptEcho,
    ReportError,
    TruncatedReport,
)
from pedcxr_client.reports import validation
from pedcxr_client.request import sdk_errors
from pedcxr_client.types import Usage


@dataclass(slots=True, repr=False)
class StreamParser:
    """What has arrived of one report."""

    pieces: list[str] = field(default_factory=list)
    model: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    first: float | None = None
    last: float | None = None

    @property
    def text(self) -> str:
        """The text so far, byte for byte."""
        return "".join(self.pieces)

    def add(self, event: object, now: float) -> str:
        """Take one ``chat.completion.chunk`` and return the text it brought, "" if none.

        Raises:
            AbortedReport: if it is an error event, or no chunk at all.
        """
        if isinstance(event, dict) and event.get("error"):
            raise sdk_errors.from_event(event["error"])
        choices = event.get("choices") if isinstance(event, dict) else None
        if not isinstance(event, dict) or not isinstance(choices, list):
            raise AbortedReport("the server sent an event that is not a chat completion; is the address right?")
        self.model = _text(event.get("model")) or self.model
        self.usage = _usage(event.get("usage")) or self.usage
        piece = "".join(self._take(choice) for choice in choices if isinstance(choice, dict))
        if piece:
            self.pieces.append(piece)
            self.first = now if self.first is None else self.first
            self.last = now
        return piece

    def _take(self, choice: dict[str, object]) -> str:
        if choice.get("index", 0) != 0:
            return ""
        self.finish_reason = _text(choice.get("finish_reason")) or self.finish_reason
        delta = choice.get("delta")
        return (_text(delta.get("content")) or "") if isinstance(delta, dict) else ""

    def check(self, system: str | None = None) -> None:
        """Raise unless the text is a report: ended by the model itself, and with words of its own.

        Args:
            system: the system text that was sent, to know it again.

        Raises:
            TruncatedReport, AbortedReport, EmptyReport, LoopingReport, PromptEcho, NotText
        """
        if self.finish_reason is None:
            self._refuse(AbortedReport("the server ended the stream before the report was finished; try again"))
        if self.finish_reason not in ("stop", "length"):
            self._refuse(AbortedReport("the server aborted the report; try again"))
        if self.finish_reason == "stop":
            self._check_words(system)
        # A loop is called one even where it was cut off, since more tokens would only make it longer.
        if validation.is_loop(self.text):
            self._refuse(LoopingReport("the model repeats itself and wrote no report; check the film and the prompt"))
        if self.finish_reason == "length":
            self._refuse(TruncatedReport("the text was cut off at max_tokens and is no report; raise max_tokens"))

    def _check_words(self, system: str | None) -> None:
        if not self.text.strip():
            self._refuse(EmptyReport("the model wrote nothing; check the film"))
        if validation.is_not_text(self.text):
            self._refuse(NotText("the model wrote something that is no text; is it the right checkpoint?"))
        if validation.is_echo(self.text, system):
            self._refuse(
                PromptEcho("the model repeats what it was asked and wrote no report; is it the right checkpoint?")
            )

    def _refuse(self, error: ReportError) -> None:
        error.finish_reason = self.finish_reason
        raise error


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _usage(value: object) -> Usage | None:
    if not isinstance(value, dict):
        return None
    prompt, completion = value.get("prompt_tokens"), value.get("completion_tokens")
    return Usage(prompt, completion) if isinstance(prompt, int) and isinstance(completion, int) else None
