"""How long to wait before an engine is started again. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

_STEADY_S = 600.0


@dataclass(slots=True)
class Backoff:
    """Seconds to wait before each start: 0, 1, 2, 4 ... and never more than ``longest_s``.

    Attributes:
        most_failures: starts in a row that may fail; then there is no next one.
    """

    longest_s: float
    most_failures: int
    _failures: int = field(default=0, init=False)
    _ends: int = field(default=0, init=False)

    def ended(self, lived_s: float) -> float | None:
        """The engine ended after it was ready for so long; one that was steady is forgiven what was before.

        Returns:
            seconds to wait before the next start; None if there is to be none.
        """
        self._failures = 0
        self._ends = 1 if lived_s >= _STEADY_S else self._ends + 1
        return self._wait() if self.most_failures else None

    def failed(self) -> float | None:
        """A start failed; returns as `ended`."""
        self._failures += 1
        self._ends += 1
        return self._wait() if self._failures < self.most_failures else None

    def _wait(self) -> float:
        return 0.0 if self._ends == 1 else min(self.longest_s, 2.0 ** min(self._ends - 2, 30))
