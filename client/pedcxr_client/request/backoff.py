"""When to try again. Pure."""

from __future__ import annotations

import email.utils
from datetime import UTC, datetime

from pedcxr_client.errors import ConnectionFailed, PedcxrError, RateLimited, Unavailable

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0


def wait_before_retry(
    error: PedcxrError, *, attempt: int, retries: int, remaining: float, jitter: float
) -> float | None:
    """Seconds to wait before the next attempt, or None to give up.

    Only a failed connection, 429 and 503 are tried again, and nothing at all if ``retries`` is 0. A server that says
    when to come back is obeyed for as long as the deadline allows, since a starting one may say so many times;
    otherwise ``retries`` counts. No wait goes past the deadline.

    Args:
        attempt: attempts made, 1 or more.
        remaining: seconds to the deadline.
        jitter: 0 to 1, random, so that clients do not come back together.
    """
    if not isinstance(error, (ConnectionFailed, RateLimited, Unavailable)) or retries == 0:
        return None
    asked = None if isinstance(error, ConnectionFailed) else error.retry_after
    if asked is not None:
        patience = max(asked, min(0.1 * 2.0 ** (attempt - 1), 1.0))  # "Retry-After: 0" must not become a busy loop
        wait = patience + jitter * min(patience * 0.25, 5.0)
    elif attempt > retries:
        return None
    else:
        wait = min(_FIRST_WAIT * 2.0 ** (attempt - 1), _LONGEST_WAIT) * (0.5 + 0.5 * jitter)
    return wait if wait < remaining else None


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds from a Retry-After header, which is a number or a date (RFC 9110, 10.2.3); None if it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(value) - (now or datetime.now(UTC))).total_seconds()
        except (TypeError, ValueError):
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None
