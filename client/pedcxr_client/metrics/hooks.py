"""The hook interface, through which metrics observe a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pedcxr_client.errors import RequestError
from pedcxr_client.types import Timing, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of one call. It contains no text, path or image.

    Attributes:
        name: ``"ok"``, ``"cancelled"`` or the ``outcome`` of an error.
        model: the model in the request, or None if the call ended before.
        timing: the timestamps of the call.
        usage: the token counts, or None.
        request_bytes: length of the request body in bytes, 0 if none was built.
    """

    name: str
    model: str | None
    timing: Timing
    usage: Usage | None
    request_bytes: int


class Hook(Protocol):
    """Methods that a client calls. They must not block and must not raise.

    AsyncClient calls them on its event loop. Client calls them in the caller's thread or in its background thread.
    """

    def started(self) -> None:
        """A call started."""

    def retrying(self, error: RequestError, wait: float) -> None:
        """An attempt failed, and the next one starts in ``wait`` seconds."""

    def finished(self, outcome: Outcome) -> None:
        """A call ended, with a report or without. Follows each ``started`` exactly once."""


class HookChain:
    """A hook that calls other hooks, in order."""

    def __init__(self, *hooks: Hook) -> None:
        self._hooks = hooks

    def started(self) -> None:
        """A call started."""
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
    """A hook that does nothing."""

    def started(self) -> None: ...

    def retrying(self, error: RequestError, wait: float) -> None: ...

    def finished(self, outcome: Outcome) -> None: ...
