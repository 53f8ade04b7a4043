"""What the gateway's routes and the supervisor share; one object, made at start-up."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from pedcxr_serve.engine.heartbeat import EngineHeartbeat
from pedcxr_serve.gateway.accounting.audit import AuditLog
from pedcxr_serve.gateway.accounting.metrics import Meter
from pedcxr_serve.gateway.accounting.usage import UsageStore
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.gate import Gate
from pedcxr_serve.gateway.http.tls import Tls
from pedcxr_serve.gateway.rate_limit import Rate
from pedcxr_serve.gateway.request.body import BodyMemory
from pedcxr_serve.gateway.request.validation import Rules
from pedcxr_serve.gateway.scheduler import Admission


@dataclass(slots=True)
class Metrics:
    """The gateway's own metrics; labels are enumerations only."""

    registry: CollectorRegistry
    requests: Counter
    in_flight: Gauge
    ready: Gauge
    restarts: Counter

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
            Counter("pedcxr_engine_restarts", "Engines that ended or hung.", ("reason",), registry=registry),
        )


@dataclass(slots=True)
class State:
    """Attributes:
    socket: the engine's Unix socket.
    demo: whether the demo checkpoint answers, which every report is then marked with.
    body_limit: bytes of a request's body, at most.
    rules: what a request may ask for.
    book: the tenants.
    gate: who is next.
    rate: requests a minute.
    bodies: how much memory requests may take.
    usage: tokens by tenant and day.
    audit: where a line a request is kept, or None.
    tls: certificate and key of the public port, or None for plain HTTP.
    image_tokens: that a film takes in the prompt.
    image_size: width and height that the model's processor stretches a film to.
    revision: of the checkpoint (`pedcxr_serve.checkpoint.revision`), or None where nobody said.
    stage: what the server is doing, in words, until it is ready and when it stops.
    ready: whether reports are accepted.
    engine_up: whether those accepted can be sent on; stays true while the server drains.
    heartbeat: the engine's signs of life.
    in_flight: requests waiting their turn or being forwarded.
    """

    socket: Path
    demo: bool
    body_limit: int
    rules: Rules = field(default_factory=lambda: Rules("pedcxr-demo", 500))
    book: TenantStore = field(default_factory=lambda: TenantStore(None))
    gate: Gate = field(default_factory=lambda: Gate(Admission(64, max_waiting=1024, max_wait_s=120)))
    rate: Rate = field(default_factory=Rate)
    bodies: BodyMemory = field(default_factory=lambda: BodyMemory(1 << 30, timeout_s=60))
    usage: UsageStore = field(default_factory=lambda: UsageStore(None))
    audit: AuditLog | None = None
    tls: Tls | None = None
    image_tokens: int = 256
    image_size: tuple[int, int] = (896, 896)
    revision: str | None = None
    stage: str = "starting"
    ready: bool = False
    engine_up: bool = True
    heartbeat: EngineHeartbeat = field(default_factory=EngineHeartbeat)
    in_flight: int = 0
    started: float = field(default_factory=time.monotonic)
    metrics: Metrics = field(default_factory=Metrics.create)
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.metrics.registry, self.usage)
        self.rate.register(self.metrics.registry)
        if self.tls is not None:
            self.tls.register(self.metrics.registry)

    def set_ready(self, ready: bool, stage: str) -> None:
        """Open or close the door; ``stage`` tells a refused client why."""
        self.ready, self.stage = ready, stage
        self.metrics.ready.set(int(ready))

    def reload(self) -> None:
        """Read tenants and certificate again, as SIGHUP asks; what is broken stays as it was."""
        self.book.reload()
        if self.tls is not None:
            self.tls.reload()

    def look(self) -> None:
        """Read those again whose files have changed."""
        self.book.look()
        if self.tls is not None:
            self.tls.look()
