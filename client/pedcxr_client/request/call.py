"""One report, from a film to a Report or an error: all of the protocol and none of the I/O.

The twins in client.py and async_client.py do the I/O and tell the exchange what happened and when; what to send, how
long to wait, what an answer means and what to report to the hook is decided here, once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pedcxr_client.errors import PedcxrError, RequestError
from pedcxr_client.metrics.hooks import Hook, Outcome
from pedcxr_client.reports.report import Report
from pedcxr_client.request import intake, payload, sdk_errors
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.retry import Clock, RetryState
from pedcxr_client.request.served_model import ServedModel
from pedcxr_client.request.stream_parser import StreamParser
from pedcxr_client.types import Timing

if TYPE_CHECKING:
    from pedcxr_client.request.settings import Settings


class ReportCall:
    """The state of one call.

    Attributes:
        attempts: its deadline, which runs from the making, and its retries.
    """

    def __init__(self, settings: Settings, request: FilmRequest, hook: Hook, clock: Clock = time.perf_counter) -> None:
        self._url, self._request, self._hook, self._clock = settings.url, request, hook, clock
        self.attempts = RetryState(settings, hook, clock)
        self._builder = StreamParser()
        self._intake: intake.Intake | None = None
        self._scheduled = clock()
        self._encoded: float | None = None
        self._sent: float | None = None
        self._done: float | None = None
        self._model: ServedModel | None = None
        self._request_bytes = 0
        self._request_id: str | None = None
        self._demo = False
        hook.started()

    # Before sending

    @property
    def asks_size(self) -> bool:
        """Whether the film is stretched to a size that the server has to tell first."""
        return self._request.preparation.asks_size

    def prepare(self, size: tuple[int, int] | None) -> None:
        """Read, check and encode the film: the only part that is heavy, so the async twin runs it in a thread.

        Args:
            size: of the model's input as the server told it, None where it was not asked or did not tell.
        """
        self._intake = intake.take(self._request, size)
        self._encoded = self._clock()

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the request."""
        assert self._intake is not None
        return payload.headers(self._intake.prompt, self._intake.checks)

    def body(self, model: ServedModel, *, stream: bool = True) -> bytes:
        """The request body. Marks the moment of sending, so that hand it to HTTP at once."""
        assert self._intake is not None
        self._model = model
        body = payload.payload(
            model.name, self._intake.prompt, self._intake.image, self._request.max_tokens, stream=stream
        )
        self._request_bytes = len(body)
        self._sent = self._clock()
        return body

    # While the answer comes

    def answered(self, headers: Mapping[str, str]) -> None:
        """Take the headers of an answer that began.

        Raises:
            ServerFailed: if it is no stream of events.
        """
        self._request_id = headers.get("x-request-id")
        self._demo = headers.get("x-pedcxr-demo") == "1"
        if not headers.get("content-type", "").startswith("text/event-stream"):
            raise sdk_errors.not_openai(self._url)

    def add(self, event: object) -> str:
        """Take one event and return the text it brought.

        Raises:
            AbortedReport: if it is an error event, or no event of a chat completion.
            TimedOut: if the deadline has passed.
        """
        piece = self._builder.add(event, self._clock())
        self.attempts.remaining()
        return piece

    def report(self) -> Report:
        """The report, after the last event.

        Raises:
            ReportError: if the text is none.
        """
        assert self._intake is not None and self._model is not None
        prompt = self._intake.prompt
        self._builder.check(prompt.profile.system)
        assert self._builder.finish_reason is not None
        self._end("ok")
        return Report(
            text=self._builder.text,
            finish_reason=self._builder.finish_reason,
            model=self._builder.model or self._model.name,
            model_revision=self._model.revision,
            demo=self._demo,
            age=self._intake.age,
            sex=self._intake.sex,
            view=self._intake.view,
            prompt=prompt.recorded,
            prompt_profile=prompt.profile.name,
            prompt_version=prompt.profile.version,
            prompt_sha256=prompt.profile.sha256,
            indication_sha256=prompt.indication_sha256,
            image_sha256=self._intake.image.sha256,
            image_how=self._intake.image.how,
            image_profile=self._request.preparation.profile,
            checks=self._intake.checks,
            max_tokens=self._request.max_tokens,
            usage=self._builder.usage,
            timing=self._timing(),
            request_id=self._request_id,
            attempts=self.attempts.count,
            created=datetime.now(UTC),
        )

    # However it ends

    @property
    def is_over(self) -> bool:
        """Whether the call has ended, well or badly."""
        return self._done is not None

    def broken(self, error: Exception) -> RequestError:
        """The error for an answer that broke off, to be chained to its cause."""
        return self.attempts.expired() if self.attempts.left <= 0 else sdk_errors.amid_answer(error)

    def give_up(self, error: BaseException | None) -> None:
        """Note that the call ended without a report, and put the evidence on the error; the first end counts."""
        if self.is_over:
            return
        self._end(error.outcome if isinstance(error, PedcxrError) else "cancelled")
        if isinstance(error, RequestError):
            error.request_id = error.request_id or self._request_id
            error.text, error.timing = self._builder.text, self._timing()

    def _end(self, name: str) -> None:
        self._done = self._clock()
        self._hook.finished(
            Outcome(
                name=name,
                model=None if self._model is None else self._model.name,
                timing=self._timing(),
                usage=self._builder.usage,
                request_bytes=self._request_bytes,
            )
        )

    def _timing(self) -> Timing:
        usage = self._builder.usage
        return Timing(
            scheduled=self._scheduled,
            encoded=self._encoded,
            sent=self._sent,
            first=self._builder.first,
            last=self._builder.last,
            done=self._done,
            completion_tokens=None if usage is None else usage.completion_tokens,
        )
