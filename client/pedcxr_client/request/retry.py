"""Retries of one call: its deadline, the timeouts of each attempt, and the back-off."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pedcxr_client.errors import ConnectionFailed, PedcxrError, RateLimited, RequestError, TimedOut, Unavailable
from pedcxr_client.metrics.hooks import Hook

if TYPE_CHECKING:
    import openai

    from pedcxr_client.request.settings import Settings, Timeouts

Clock = Callable[[], float]

_FIRST_WAIT = 0.5  # seconds
_LONGEST_WAIT = 8.0


class RetryState:
    """The attempts of one call, the current one included, and its deadline, which runs from its creation."""

    def __init__(
        self, settings: Settings, hook: Hook, clock: Clock = time.perf_counter, timeouts: Timeouts | None = None
    ) -> None:
        self._settings, self._hook, self._clock = settings, hook, clock
        self._timeouts = timeouts or settings.timeouts
        self.start = clock()
        self.count = 1

    @property
    def seconds_left(self) -> float:
        """Seconds to the deadline; negative after it."""
        return self.start + self._timeouts.total - self._clock()

    def remaining(self) -> float:
        """Return the seconds to the deadline. Raise TimedOut if it has passed."""
        seconds = self.seconds_left
        if seconds <= 0:
            raise self.expired()
        return seconds

    def timeout(self) -> openai.Timeout:
        """Return the timeouts of the next attempt. No phase extends past the deadline."""
        import openai

        seconds, limits = self.remaining(), self._timeouts
        return openai.Timeout(
            connect=min(limits.connect, seconds),
            write=min(limits.write, seconds),
            read=min(limits.gap, seconds),
            pool=seconds,
        )

    def expired(self) -> TimedOut:
        """Return the error for a passed deadline."""
        return TimedOut(f"no report within {self._timeouts.total:g} s; raise the total timeout, or try again later")

    def wait_after(self, failure: RequestError) -> float | None:
        """Count a failed attempt and return the seconds to wait before the next one; None to give up."""
        from random import random

        wait = wait_before_retry(
            failure, attempt=self.count, retries=self._settings.retries, remaining=self.seconds_left, jitter=random()
        )
        if wait is not None:
            self.count += 1
            self._hook.retrying(failure, wait)
        return wait


def back_off(attempt: int, longest: float, jitter: float) -> float:
    """Return the seconds to wait after a failed attempt: 0.5, 1, 2 ... up to ``longest``, half of it random.

    ``attempt`` counts from 1. ``jitter``, a random number from 0 to 1, spreads the retries of several clients.
    """
    return float(min(_FIRST_WAIT * 2.0 ** (attempt - 1), longest) * (0.5 + 0.5 * jitter))


def wait_before_retry(
    error: PedcxrError, *, attempt: int, retries: int, remaining: float, jitter: float
) -> float | None:
    """Return the seconds to wait before the next attempt, or None to give up.

    Only `ConnectionFailed`, `RateLimited` and `Unavailable` are retried, and nothing is if ``retries`` is 0. A
    Retry-After header is obeyed until the deadline, because a starting server may send it many times. Without one,
    ``retries`` limits the number of attempts. No wait extends past the deadline, which is ``remaining`` seconds away.
    For ``attempt`` and ``jitter`` see `back_off`.
    """
    if not isinstance(error, (ConnectionFailed, RateLimited, Unavailable)) or retries == 0:
        return None
    retry_after = None if isinstance(error, ConnectionFailed) else error.retry_after
    if retry_after is not None:
        # A lower bound, so that "Retry-After: 0" does not cause a busy loop.
        delay = max(retry_after, min(0.1 * 2.0 ** (attempt - 1), 1.0))
        wait = delay + jitter * min(delay * 0.25, 5.0)
    elif attempt > retries:
        return None
    else:
        wait = back_off(attempt, _LONGEST_WAIT, jitter)
    return wait if wait < remaining else None


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None if it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            from email.utils import parsedate_to_datetime  # rarely needed, and slow to import

            seconds = (parsedate_to_datetime(value) - (now or datetime.now(UTC))).total_seconds()
        except (TypeError, ValueError):
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None
