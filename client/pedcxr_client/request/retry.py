"""The attempts of one call: its deadline, its timeouts, and whether there is to be another."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pedcxr_client.errors import TimedOut
from pedcxr_client.metrics.hooks import Hook
from pedcxr_client.request import sdk_errors
from pedcxr_client.request.backoff import wait_before_retry

if TYPE_CHECKING:
    import openai

    from pedcxr_client.request.settings import Settings

Clock = Callable[[], float]


class RetryState:
    """Counts attempts against a deadline that runs from the making.

    Attributes:
        count: attempts so far, the present one included.
    """

    def __init__(self, settings: Settings, hook: Hook, clock: Clock = time.perf_counter) -> None:
        self._settings, self._hook, self._clock = settings, hook, clock
        self._began = clock()
        self.count = 1

    @property
    def left(self) -> float:
        """Seconds to the deadline, below 0 after it."""
        return self._began + self._settings.timeouts.total - self._clock()

    def remaining(self) -> float:
        """Seconds to the deadline.

        Raises:
            TimedOut: if it has passed.
        """
        left = self.left
        if left <= 0:
            raise self.expired()
        return left

    def timeout(self) -> openai.Timeout:
        """The timeouts of the next request, none of them beyond the deadline."""
        import openai

        left, phases = self.remaining(), self._settings.timeouts
        return openai.Timeout(
            connect=min(phases.connect, left), write=min(phases.write, left), read=min(phases.gap, left), pool=left
        )

    def expired(self) -> TimedOut:
        """The error for a passed deadline."""
        return TimedOut(f"not finished within {self._settings.timeouts.total:g} s; allow more time, or try again later")

    def wait_after(self, error: Exception) -> float:
        """Seconds to wait before the next attempt, after one that got no answer.

        Raises:
            RequestError: if there is to be none.
        """
        failure = sdk_errors.before_answer(error, self._settings.url)
        if isinstance(failure, TimedOut) and self.left <= 0:
            failure = self.expired()
        wait = wait_before_retry(
            failure, attempt=self.count, retries=self._settings.retries, remaining=self.left, jitter=random.random()
        )
        if wait is None:
            raise failure from error
        self.count += 1
        self._hook.retrying(failure, wait)
        return wait
