"""How the engine was shared lately. Pure; time is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

__all__ = ["Shares"]

_SPAN_S = 60.0
_CLOSEST_S = 1.0


class Shares:
    """Remembers what each tenant's service was at earlier looks, no closer than a second."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Mapping[str, float]]] = deque([(0.0, {})])

    def since(self, now: float, service: Mapping[str, float]) -> dict[str, float]:
        """Each tenant's share of the service since the latest look that is a minute old, or the first; 0 for nothing.

        Args:
            service: charged so far, by tenant.
        """
        while len(self._looks) > 1 and self._looks[1][0] <= now - _SPAN_S:
            self._looks.popleft()
        begin = self._looks[0][1]
        got = {name: max(0.0, cost - begin.get(name, 0.0)) for name, cost in service.items()}
        if now - self._looks[-1][0] >= _CLOSEST_S:
            self._looks.append((now, dict(service)))
        whole = sum(got.values())
        return {name: cost / whole if whole else 0.0 for name, cost in got.items()}
