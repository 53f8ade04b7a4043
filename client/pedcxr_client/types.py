"""Values that several packages share. This module imports no other module of the package."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

__version__ = "0.1.0"

Sex = Literal["M", "F"]
Views = Literal["any", "frontal"]
Status = Literal["ok", "warn", "block"]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check of the intended use.

    Attributes:
        name: one of `pedcxr_client.checks.rules.NAMES`.
        status: ``"ok"``, ``"warn"`` or ``"block"``.
        why: the DICOM element and value behind the status, and what to do. It identifies no person.
        allowed: True if the status is ``"block"`` and the caller allowed the check by name.
        from_header: False for a plain image, whose result is the same for every film without a header.
    """

    name: str
    status: Status
    why: str
    allowed: bool = False
    from_header: bool = True

    @property
    def blocks(self) -> bool:
        """Whether it prevents sending the film."""
        return self.status == "block" and not self.allowed


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of the server. ``prompt_tokens`` includes the image tokens."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Raw timestamps of one call, in seconds of ``time.perf_counter``; only differences are meaningful.

    A timestamp is None if the call did not reach that point.

    Attributes:
        scheduled: start of the call.
        encoded: end of reading and encoding the film.
        sent: start of the last attempt to send the request, after its body was built.
        first: arrival of the first non-empty text.
        last: arrival of the last non-empty text.
        done: end of the call, with a report or without.
        completion_tokens: the server's token count, for `tpot`; None if unknown.
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
        """Time to first token for the caller, encoding and retries included: ``first - scheduled``, in seconds."""
        return _between(self.scheduled, self.first)

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first: ``(last - first) / (completion_tokens - 1)``, in seconds.

        None for a single token, and for a text that arrived in one event.
        """
        span = _between(self.first, self.last)
        if not span or self.completion_tokens is None or self.completion_tokens < 2:
            return None
        return span / (self.completion_tokens - 1)

    @property
    def e2e(self) -> float | None:
        """End-to-end time: ``last - sent``, in seconds."""
        return _between(self.sent, self.last)

    @property
    def e2e_user(self) -> float | None:
        """End-to-end time for the caller: ``last - scheduled``, in seconds."""
        return _between(self.scheduled, self.last)

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the timestamps in seconds since ``scheduled``, and the derived times."""
        stamps = {
            name: round(value - self.scheduled, 6) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }
        derived = {name: getattr(self, name) for name in ("ttft", "ttft_user", "tpot", "e2e", "e2e_user")}
        return stamps | derived


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as its server describes it. A server other than pedcxr's states only the name.

    Attributes:
        name: the model's name in requests.
        image_size: width and height in pixels of the model's input image, or None if unknown.
        revision: the revision of the checkpoint, or None if unknown.
        demo: True for the demonstration model, whose text is synthetic and has no medical meaning.
    """

    name: str
    image_size: tuple[int, int] | None = None
    revision: str | None = None
    demo: bool = False


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
