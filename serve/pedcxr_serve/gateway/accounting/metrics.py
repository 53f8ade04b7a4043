"""The gateway's Prometheus metrics, and the record of a request from which the metrics by tenant are computed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic, time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from pedcxr_serve.gateway.accounting.runtime_metrics import RuntimeMetrics
from pedcxr_serve.gateway.accounting.usage import TokenUsage, UsageStore, UsageTotals
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.request.client_metadata import ClientMetadata
from pedcxr_serve.gateway.scheduler import FairQueue

# A tenant has nine histograms, and a page with all of them is sent at every scrape: hence few buckets.
_REQUEST_BUCKETS_S = (0.05, 0.2, 0.5, 1, 2, 3, 4, 5, 7, 10, 15, 20, 60, 120)  # close where objectives lie
_STAGE_BUCKETS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 5, 60)
_TOKEN_BUCKETS_S = (0.004, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.8)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a tenth of all lines, and no query uses them


async def render(registry: CollectorRegistry) -> bytes:
    """Return the page of all metrics. A thread renders it, because the streams would wait for the event loop."""
    return await asyncio.to_thread(generate_latest, registry)


class GatewayMetrics:
    """Metrics of the whole gateway, on a new registry. Label values are fixed words only."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        labels = ("route", "status")
        self.requests = Counter("pedcxr_requests", "HTTP requests by route and status.", labels, registry=registry)
        self.in_flight = Gauge("pedcxr_requests_in_flight", "Accepted requests, queued or sent on.", registry=registry)
        self.ready = Gauge("pedcxr_ready", "1 while requests for reports are accepted.", registry=registry)
        self.models = Gauge(
            "pedcxr_model_info",
            "1 for each model and adapter that is served.",
            ("model", "revision"),
            registry=registry,
        )
        self.runtime = RuntimeMetrics(registry)
        self.restarts = Counter("pedcxr_engine_restarts", "Engine restarts by reason.", ("reason",), registry=registry)
        clock = Gauge(
            "pedcxr_clock_seconds", "Unix time of this machine, for an alert on wrong clocks.", registry=registry
        )
        clock.set_function(time)
        self._refused_connections = Counter(
            "pedcxr_connections_refused",
            "Connections closed before a request, by reason.",
            ("reason",),
            registry=registry,
        )

    def count_refused_connection(self, reason: str) -> None:
        """Count a connection that was closed before the app saw a request, or for an invalid one."""
        self._refused_connections.labels(reason).inc()


@dataclass(eq=False, slots=True)
class RequestRecord:
    """Measurements of one request, filled in while it is served. Times are those of `time.monotonic`.

    Attributes:
        key: first 12 digits of the API key's digest, or None on a server without keys.
        address: the client's IP address, or None over a Unix socket.
        outcome: ``ok`` (the model ended the report), ``length``, ``incomplete`` (any other finish reason, or none),
            ``aborted``, ``engine_refused``, ``engine_lost``, ``client_left``, ``failed`` (an error of the gateway), or
            ``refused``, for which ``reason`` holds the error code.
        model: name of the requested model, which the server has; "" before the request is validated.
        image_tokens: tokens of the prompt that stand for the image.
        stages: start and end of ``body``, ``policy``, ``queue``, ``engine`` (to the response headers) and ``stream``.
        traceparent: of the request's span, as the engine gets it; empty without traces.
    """

    tenant: Tenant
    request_id: str
    note: ClientMetadata = field(default_factory=ClientMetadata)
    key: str | None = None
    address: str | None = None
    outcome: str = "failed"
    reason: str = ""
    model: str = ""
    status: int = 0
    finish_reason: str | None = None
    usage: TokenUsage | None = None
    image_tokens: int = 0
    arrived_at: float = field(default_factory=monotonic)
    first_token_at: float | None = None
    last_token_at: float | None = None
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)
    traceparent: str = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the time of a stage, also if the body of the block raises."""
        start = monotonic()
        try:
            yield
        finally:
            self.stages[name] = start, monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the request arrived."""
        return monotonic() - self.arrived_at

    def refuse(self, code: str, status: int) -> None:
        """Record that the gateway refused the request."""
        self.outcome, self.reason, self.status = "refused", code, status

    def totals(self) -> UsageTotals:
        """Return the usage of this request alone."""
        usage = self.usage or TokenUsage()
        image = min(self.image_tokens, usage.prompt_tokens)
        return UsageTotals(1, int(self.outcome == "ok"), usage.prompt_tokens - image, image, usage.output)


class TenantMetrics:
    """The gateway's metrics by tenant. Label values are names from tenants.toml and fixed words only."""

    def __init__(self, registry: CollectorRegistry, store: UsageStore) -> None:
        self.store = store

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"pedcxr_{name}_seconds", text, ("tenant", *labels), registry=registry, buckets=buckets)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"pedcxr_{name}", text, ("tenant", *labels), registry=registry)

        self._requests = counter("tenant_requests", "Requests by outcome.", "outcome")
        self._models = Counter(
            "pedcxr_model_requests", "Valid requests by model or adapter.", ("model", "outcome"), registry=registry
        )
        self._rejections = counter("rejections", "Requests refused by the gateway, by reason.", "reason")
        self._tokens = counter("tokens", "Tokens by kind: prompt, image, output.", "kind")
        self.service_cost = counter(
            "tenant_service_cost", "Cost of service: image + prompt + 2 x output tokens, and large images."
        )
        self._queue = histogram("queue_wait", "Time a request spent in the scheduler queue.", _REQUEST_BUCKETS_S)
        self._first = histogram(
            "time_to_first_token", "Time from the arrival of a request to its first token.", _REQUEST_BUCKETS_S
        )
        self._gap = histogram("time_per_output_token", "Mean time between the tokens of a stream.", _TOKEN_BUCKETS_S)
        self._duration = histogram(
            "request_duration", "Time from the arrival of a request to the end of its answer.", _REQUEST_BUCKETS_S
        )
        self._e2e = histogram("e2e", "Deprecated name of pedcxr_request_duration_seconds.", _REQUEST_BUCKETS_S)
        self._stage = histogram("stage", "Time a request spent in a stage of the gateway.", _STAGE_BUCKETS_S, "stage")
        labels = ("tenant",)
        self.running = Gauge("pedcxr_tenant_in_flight", "Requests sent to the engine.", labels, registry=registry)
        self.waiting = Gauge("pedcxr_tenant_waiting", "Requests in the scheduler queue.", labels, registry=registry)
        self.unauthenticated = Counter("pedcxr_unauthenticated", "Requests without a valid key.", registry=registry)
        self._tokens_left = Gauge(
            "pedcxr_tenant_tokens_left", "Rest of the token budget of today (UTC).", labels, registry=registry
        )
        self._failed_writes = Gauge(
            "pedcxr_writes_failed", "Deprecated name of pedcxr_write_failures_total.", ("file",), registry=registry
        )
        self.tenants_broken = Gauge("pedcxr_tenants_broken", "1 while tenants.toml is invalid.", registry=registry)

    def update_gauges(self, queue: FairQueue, tenants: Iterable[Tenant], *, broken: bool, unaudited: int) -> None:
        """Set the gauges before a scrape.

        Args:
            tenants: the current ones; those with a budget get a gauge of its rest.
            broken: whether tenants.toml is invalid.
            unaudited: the number of lines that the audit log could not write.
        """
        for tenant in tenants:
            if tenant.tokens_per_day is not None:
                self._tokens_left.labels(tenant.name).set(self.tokens_left(tenant))
        for name, (waiting, running) in queue.counts().items():
            self.waiting.labels(name).set(waiting)
            self.running.labels(name).set(running)
        self._failed_writes.labels("audit").set(unaudited)
        self._failed_writes.labels("usage").set(self.store.failures)
        self.tenants_broken.set(int(broken))

    def tokens_left(self, tenant: Tenant) -> float:
        """Return the rest of the tenant's token budget of today (UTC), without requests in flight; may be negative."""
        if tenant.tokens_per_day is None:
            return math.inf
        return tenant.tokens_per_day - self.store.of(today(), tenant.name).tokens

    def count(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        name, totals = record.tenant.name, record.totals()
        self._requests.labels(name, record.outcome).inc()
        if record.model:
            self._models.labels(record.model, record.outcome).inc()
        if record.reason:
            self._rejections.labels(name, record.reason).inc()
        for stage, (start, end) in record.stages.items():
            self._stage.labels(name, stage).observe(end - start)
            if stage == "queue":
                self._queue.labels(name).observe(end - start)
        if record.usage is not None or record.outcome != "refused":
            self.store.add(today(), name, totals)
        if record.usage is not None:
            for kind, tokens in (
                ("prompt", totals.prompt_tokens),
                ("image", totals.image_tokens),
                ("output", totals.output_tokens),
            ):
                self._tokens.labels(name, kind).inc(tokens)
        if record.outcome in ("ok", "length"):
            seconds = record.seconds
            self._duration.labels(name).observe(seconds)
            self._e2e.labels(name).observe(seconds)
            if record.first_token_at is not None and record.last_token_at is not None:
                self._first.labels(name).observe(record.first_token_at - record.arrived_at)
                if totals.output_tokens > 1:
                    gap = (record.last_token_at - record.first_token_at) / (totals.output_tokens - 1)
                    self._gap.labels(name).observe(gap)


def seconds_until_midnight() -> float:
    """Return the seconds until the next day, UTC."""
    now = datetime.now(UTC)
    return ((now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0) - now).total_seconds()


def today() -> str:
    """Return the day of budgets and usage, YYYY-MM-DD in UTC."""
    return datetime.now(UTC).date().isoformat()
