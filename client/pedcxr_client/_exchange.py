"""One report, from a film to a Report or an error: all of the protocol and none of the I/O.

The twins in client.py and async_client.py do the I/O and tell the exchange what happened and when; what to send, how
long to wait, what an answer means and what to report to the hook is decided here, once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from . import _failures, _intake, _wire, image
from ._builder import Builder
from ._errors import ConfigurationError, PedcxrError, RequestError, TimedOut
from ._retry import wait_before_retry
from .gate import Asked
from .hook import Hook, Outcome
from .preparation import Preparation
from .report import Report, Timing

if TYPE_CHECKING:
    import openai

    from ._settings import Settings

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, repr=False)
class Order:
    """What the caller asked for, checked.

    Raises:
        ConfigurationError: if ``max_tokens`` is below 1.
    """

    film: image.Film
    asked: Asked
    preparation: Preparation
    max_tokens: int

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigurationError(f"max_tokens: {self.max_tokens} must be 1 or more")


class Exchange:
    """The state of one call. Its deadline runs from its making."""

    def __init__(self, settings: Settings, order: Order, hook: Hook, clock: Clock = time.perf_counter) -> None:
        self._settings, self._order, self._hook, self._clock = settings, order, hook, clock
        self._builder = Builder()
        self._intake: _intake.Intake | None = None
        self._scheduled = clock()
        self._encoded: float | None = None
        self._sent: float | None = None
        self._done: float | None = None
        self._attempts = 1
        self._model: str | None = None
        self._request_bytes = 0
        self._request_id: str | None = None
        self._demo = False
        hook.started()

    # Before sending

    def prepare(self) -> None:
        """Read, check and encode the film: the only part that is heavy, so the async twin runs it in a thread."""
        self._intake = _intake.take(self._order.film, self._order.asked, self._order.preparation)
        self._encoded = self._clock()

    def remaining(self) -> float:
        """Seconds to the deadline.

        Raises:
            TimedOut: if it has passed.
        """
        left = self._left()
        if left <= 0:
            raise self.expired()
        return left

    def _left(self) -> float:
        return self._scheduled + self._settings.timeouts.total - self._clock()

    def timeout(self) -> openai.Timeout:
        """The timeouts of the next request, none of them beyond the deadline."""
        import openai

        left, phases = self.remaining(), self._settings.timeouts
        return openai.Timeout(
            connect=min(phases.connect, left), write=min(phases.write, left), read=min(phases.gap, left), pool=left
        )

    def body(self, model: str) -> bytes:
        """The request body. Marks the moment of sending, so that hand it to HTTP at once."""
        assert self._intake is not None
        self._model = model
        body = _wire.payload(model, self._intake.prompt, self._intake.image, self._order.max_tokens)
        self._request_bytes = len(body)
        self._sent = self._clock()
        return body

    def wait_after(self, error: Exception) -> float:
        """Seconds to wait before the next attempt, after one that got no answer.

        Raises:
            RequestError: if there is to be none.
        """
        failure = _failures.before_answer(error, self._settings.url)
        if isinstance(failure, TimedOut) and self._left() <= 0:
            failure = self.expired()
        wait = wait_before_retry(
            failure,
            attempt=self._attempts,
            retries=self._settings.retries,
            remaining=self._left(),
            jitter=random.random(),
        )
        if wait is None:
            raise failure from error
        self._attempts += 1
        self._hook.retrying(failure, wait)
        return wait

    # While the answer comes

    def answered(self, headers: Mapping[str, str]) -> None:
        """Take the headers of an answer that began.

        Raises:
            ServerFailed: if it is no stream of events.
        """
        self._request_id = headers.get("x-request-id")
        self._demo = headers.get("x-pedcxr-demo") == "1"
        if not headers.get("content-type", "").startswith("text/event-stream"):
            raise _failures.not_openai(self._settings.url)

    def add(self, event: object) -> str:
        """Take one event and return the text it brought.

        Raises:
            AbortedReport: if it is an error event, or no event of a chat completion.
            TimedOut: if the deadline has passed.
        """
        piece = self._builder.add(event, self._clock())
        self.remaining()
        return piece

    def report(self) -> Report:
        """The report, after the last event.

        Raises:
            TruncatedReport, AbortedReport, EmptyReport: if the text is none.
        """
        self._builder.check()
        assert self._intake is not None and self._model is not None and self._builder.finish_reason is not None
        self._end("ok")
        return Report(
            text=self._builder.text,
            finish_reason=self._builder.finish_reason,
            model=self._builder.model or self._model,
            demo=self._demo,
            prompt=self._intake.prompt,
            prompt_profile="card",
            image_sha256=self._intake.image.sha256,
            image_how=self._intake.image.how,
            image_profile=self._order.preparation.profile,
            checks=self._intake.checks,
            max_tokens=self._order.max_tokens,
            usage=self._builder.usage,
            timing=self._timing(),
            request_id=self._request_id,
            attempts=self._attempts,
            created=datetime.now(UTC),
        )

    # However it ends

    @property
    def is_over(self) -> bool:
        """Whether the call has ended, well or badly."""
        return self._done is not None

    def expired(self) -> TimedOut:
        """The error for a passed deadline."""
        return TimedOut(f"not finished within {self._settings.timeouts.total:g} s; allow more time, or try again later")

    def broken(self, error: Exception) -> RequestError:
        """The error for an answer that broke off, to be chained to its cause."""
        return self.expired() if self._left() <= 0 else _failures.amid_answer(error)

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
                model=self._model,
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
