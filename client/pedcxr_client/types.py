"""Values that several packages share; imports nothing of ours."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

__version__ = "0.1.0"

Sex = Literal["M", "F"]
Status = Literal["ok", "warn", "block"]


@dataclass(frozen=True, slots=True)
class Check:
    """The answer of one check.

    Attributes:
        name: one of :data:`pedcxr_client.checks.rules.NAMES`.
        status: ``"ok"``, ``"warn"`` or ``"block"``.
        why: the element and the value that decided it, and what to do; nothing that identifies a person.
        allowed: it blocks, but the caller allowed it by name.
        from_header: False where there was no header to ask, so that it says the same of every plain image.
    """

    name: str
    status: Status
    why: str
    allowed: bool = False
    from_header: bool = True

    @property
    def blocks(self) -> bool:
        """Whether it stands in the way of sending."""
        return self.status == "block" and not self.allowed


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counted them. ``prompt_tokens`` includes those of the image."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Raw timestamps of one request, in seconds of ``time.perf_counter``; only differences mean anything.

    Attributes:
        scheduled: the call was made.
        encoded: the film was read and encoded; None if it was not reached.
        sent: the body, already built, was handed to HTTP for the attempt that counted (FACTS: t_send).
        first: the first non-empty piece of text arrived.
        last: the last non-empty piece of text arrived.
        done: the exchange was over, well or badly.
        completion_tokens: the server's count, which :attr:`tpot` divides by; None if it gave none.
    """

    scheduled: float
    encoded: float | None = None
    sent: float | None = None
    first: float | None = None
    last: float | None = None
    done: float | None = None
    completion_tokens: int | None = None

    @property
    def ttft(self) -> float | None:
        """Time to first token: ``first - sent``, in seconds."""
        return _between(self.sent, self.first)

    @property
    def ttft_user(self) -> float | None:
        """Time to first token as the caller felt it, encoding and retries included: ``first - scheduled``."""
        return _between(self.scheduled, self.first)

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first: ``(last - first) / (completion_tokens - 1)``, in seconds.

        None for a single token, and where all the text came in one event, which says nothing about the pace.
        """
        span = _between(self.first, self.last)
        if not span or self.completion_tokens is None or self.completion_tokens < 2:
            return None
        return span / (self.completion_tokens - 1)

    @property
    def e2e(self) -> float | None:
        """End to end: ``last - sent``, in seconds."""
        return _between(self.sent, self.last)

    @property
    def e2e_user(self) -> float | None:
        """End to end as the caller felt it: ``last - scheduled``, in seconds."""
        return _between(self.scheduled, self.last)

    def as_dict(self) -> dict[str, float | int | None]:
        """The raw timestamps and what derives from them."""
        derived = {name: getattr(self, name) for name in ("ttft", "ttft_user", "tpot", "e2e", "e2e_user")}
        return asdict(self) | derived


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
