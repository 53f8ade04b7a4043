"""The hook through which metrics, or anything else, watch a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pedcxr_client.errors import RequestError
    from pedcxr_client.types import Timing, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one call ended; no text, path or image is in it.

    Attributes:
        name: ``"ok"``, ``"cancelled"`` or the ``outcome`` word of an error.
        model: the model asked for, or None if that was not reached.
        request_bytes: length of the request body, 0 if none was built.
    """

    name: str
    model: str | None
    timing: Timing
    usage: Usage | None
    request_bytes: int


class Hook(Protocol):
    """What a client calls, from the thread or task that makes the request; it must be quick and must not raise."""

    def started(self) -> None:
        """A call began."""

    def retrying(self, error: RequestError, wait: float) -> None:
        """An attempt failed; the next one comes in ``wait`` seconds."""

    def finished(self, outcome: Outcome) -> None:
        """A call ended, well or badly; follows each ``started`` exactly once."""


class HookChain:
    """The hook that calls others, in order."""

    def __init__(self, *hooks: Hook) -> None:
        self._hooks = hooks

    def started(self) -> None:
        """A call began."""
        for hook in self._hooks:
            hook.started()

    def retrying(self, error: RequestError, wait: float) -> None:
        """An attempt failed."""
        for hook in self._hooks:
            hook.retrying(error, wait)

    def finished(self, outcome: Outcome) -> None:
        """A call ended."""
        for hook in self._hooks:
            hook.finished(outcome)


class NullHook:
    """The hook that does nothing."""

    def started(self) -> None: ...

    def retrying(self, error: RequestError, wait: float) -> None: ...

    def finished(self, outcome: Outcome) -> None: ...
