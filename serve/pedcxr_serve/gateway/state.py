"""What the gateway's routes and the supervisor share; one object, made at start-up."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge


@dataclass(slots=True)
class Metrics:
    """The gateway's own metrics; labels are enumerations only."""

    registry: CollectorRegistry
    requests: Counter
    in_flight: Gauge
    ready: Gauge

    @classmethod
    def create(cls) -> Metrics:
        """Metrics on a registry of their own."""
        registry = CollectorRegistry()
        labels = ("route", "status")
        return cls(
            registry,
            Counter("pedcxr_requests", "Requests answered, by route and HTTP status.", labels, registry=registry),
            Gauge("pedcxr_requests_in_flight", "Requests being forwarded to the engine.", registry=registry),
            Gauge("pedcxr_ready", "1 while reports are accepted.", registry=registry),
        )


@dataclass(slots=True)
class State:
    """Attributes:
    socket: the engine's Unix socket.
    demo: whether the demo checkpoint answers, which every report is then marked with.
    body_limit: bytes of a request's body, at most.
    stage: what the server is doing, in words, until it is ready and when it stops.
    ready: whether reports are accepted.
    in_flight: requests being forwarded.
    """

    socket: Path
    demo: bool
    body_limit: int
    stage: str = "starting"
    ready: bool = False
    in_flight: int = 0
    started: float = field(default_factory=time.monotonic)
    metrics: Metrics = field(default_factory=Metrics.create)

    def set_ready(self, ready: bool, stage: str) -> None:
        """Open or close the door; ``stage`` tells a refused client why."""
        self.ready, self.stage = ready, stage
        self.metrics.ready.set(int(ready))
