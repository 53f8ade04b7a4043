"""One call, from a film to a Report or an error: the protocol without the I/O, which the streams in client.py do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pedcxr_client.errors import NotReport, PedcxrError, RequestError
from pedcxr_client.metrics.hooks import Hook, Outcome
from pedcxr_client.reports.report import Report
from pedcxr_client.request import payload, sdk_errors
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.retry import Clock, RetryState
from pedcxr_client.request.stream_parser import StreamParser, new_request_id, not_openai, printable
from pedcxr_client.types import ServedModel, Timing

if TYPE_CHECKING:
    from pedcxr_client.metrics.call_span import CallSpan
    from pedcxr_client.request.settings import Settings


class ReportCall:
    """The state of one call, whose deadline runs from the creation of this object."""

    def __init__(self, settings: Settings, request: FilmRequest, hook: Hook, clock: Clock = time.perf_counter) -> None:
        self._url, self._request, self._hook, self._clock = settings.url, request, hook, clock
        self.retries = RetryState(settings, hook, clock, request.timeouts)
        self._parser = StreamParser()
        self._prepared: payload.PreparedRequest | None = None
        self._scheduled = self.retries.start  # one reading, so that a timed-out call never seems shorter than its limit
        self._encoded: float | None = None
        self._sent: float | None = None
        self._done: float | None = None
        self._model: ServedModel | None = None
        self._request_bytes = 0
        self._request_id: str | None = None
        self._demo = False
        self._span: CallSpan | None = None
        if settings.tracer is not None:
            from pedcxr_client.metrics.call_span import CallSpan  # OpenTelemetry is optional

            self._span = CallSpan(settings.tracer, clock)
        self._revision: str | None = None
        hook.started()

    # Before the request

    @property
    def needs_image_size(self) -> bool:
        """Whether the film is resized to the model's input, whose size the server states."""
        return self._request.preparation.asks_size

    def prepare(self, size: tuple[int, int] | None) -> None:
        """Read, check and encode the film for a model input of this width and height in pixels, None if unknown.

        This is CPU-bound, so it must not run on an event loop.
        """
        self._prepared = payload.prepare(self._request, size)
        self._encoded = self._clock()

    def headers(self) -> dict[str, str]:
        """Return the headers of the next attempt, with a new request id."""
        assert self._prepared is not None
        self._parser.sent_id = new_request_id()
        headers = payload.headers(self._prepared.prompt, self._prepared.checks)
        headers["X-Request-Id"] = self._parser.sent_id
        return headers if self._span is None else headers | self._span.headers()

    def body(self, model: ServedModel, *, stream: bool = True) -> bytes:
        """Return the body of the request and record the time of sending; send it at once."""
        assert self._prepared is not None
        self._model = model
        body = payload.body(
            model.name, self._prepared.prompt, self._prepared.image, self._request.max_tokens, stream=stream
        )
        self._request_bytes = len(body)
        self._sent = self._clock()
        return body

    # During the response

    @property
    def text(self) -> str:
        """The text so far, unchanged."""
        return self._parser.text

    def response_started(self, headers: Mapping[str, str]) -> None:
        """Record the headers of the response. Raise ServerFailed if it is not an event stream.

        Raise AbortedReport if it is the response to another request, NotReport if the server received no film.
        """
        self._request_id = headers.get("x-request-id")
        self._demo = headers.get("x-pedcxr-demo") == "1"
        self._revision = printable(headers.get("x-pedcxr-revision", "")) or None
        if not headers.get("content-type", "").startswith("text/event-stream"):
            raise not_openai(self._url)
        if headers.get("x-pedcxr-film") == "none":
            raise NotReport("the server received no film, so its text is not a report; check the proxy in between")
        self._parser.response_started(headers)

    def add(self, event: object) -> str:
        """Record one event and return its text, "" if it has none. Raise TimedOut if the deadline has passed."""
        piece = self._parser.add(event, self._clock())
        self.retries.remaining()
        return piece

    def report(self) -> Report:
        """Return the report, after the last event. Raise ReportError if the text is not a report."""
        assert self._prepared is not None and self._model is not None
        prompt = self._prepared.prompt
        self._parser.check(prompt.profile.system)
        assert self._parser.finish_reason is not None
        self._end("ok")
        return Report(
            text=self._parser.text,
            finish_reason=self._parser.finish_reason,
            model=self._parser.model or self._model.name,
            model_revision=self._revision or self._model.revision,
            demo=self._demo or self._model.demo,
            age=self._prepared.age,
            sex=self._prepared.sex,
            view=self._prepared.view,
            prompt=prompt.recorded,
            prompt_profile=prompt.profile.name,
            prompt_version=prompt.profile.version,
            prompt_sha256=prompt.profile.sha256,
            indication_sha256=prompt.indication_sha256,
            image_sha256=self._prepared.image.sha256,
            image_how=self._prepared.image.how,
            image_profile=self._prepared.image.preparation,
            checks=self._prepared.checks,
            max_tokens=self._request.max_tokens,
            usage=self._parser.usage,
            timing=self._timing(),
            request_id=self._request_id,
            attempts=self.retries.count,
            created=datetime.now(UTC),
        )

    # The end of the call

    @property
    def is_over(self) -> bool:
        """Whether the call has ended, with a report or without."""
        return self._done is not None

    def broken(self, error: Exception) -> RequestError:
        """Return the error for a response that was interrupted; the caller chains it to its cause."""
        return self.retries.expired() if self.retries.seconds_left <= 0 else sdk_errors.during_response(error)

    def fail(self, error: BaseException | None, *, in_block: bool = False) -> None:
        """End the call without a report and add the text and the timing to the error. Later calls have no effect.

        ``in_block`` tells that the error was raised by the caller's code inside the ``with`` statement.
        """
        if self.is_over:
            return
        is_failure = isinstance(error, PedcxrError) or (isinstance(error, Exception) and not in_block)
        self._end(getattr(error, "outcome", PedcxrError.outcome) if is_failure else "cancelled")
        if isinstance(error, RequestError):
            error.request_id = error.request_id or self._request_id
            error.text, error.timing = self._parser.text, self._timing()

    def _end(self, name: str) -> None:
        self._done = self._clock()
        outcome = Outcome(
            name=name,
            model=None if self._model is None else self._model.name,
            timing=self._timing(),
            usage=self._parser.usage,
            request_bytes=self._request_bytes,
        )
        if self._span is not None:
            self._span.end(outcome, request_id=self._request_id, attempts=self.retries.count)
        self._hook.finished(outcome)

    def _timing(self) -> Timing:
        usage = self._parser.usage
        return Timing(
            scheduled=self._scheduled,
            encoded=self._encoded,
            sent=self._sent,
            first=self._parser.first,
            last=self._parser.last,
            done=self._done,
            completion_tokens=None if usage is None else usage.completion_tokens,
        )
