"""What a request was and cost: counted in Prometheus, by tenant, and in the usage that budgets are checked against."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pedcxr_serve.gateway.accounting.share import Shares
from pedcxr_serve.gateway.accounting.usage import Spent, UsageStore
from pedcxr_serve.gateway.answer import Usage
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.request.client_metadata import ClientMetadata
from pedcxr_serve.gateway.scheduler import Admission

__all__ = ["Meter", "Record", "until_midnight"]

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
_STAGES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 20, 60)
_TOKEN = (0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.033, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


@dataclass(slots=True)
class Record:
    """One request, filled in as it goes; times are of `time.monotonic`.

    Attributes:
        outcome: ``ok`` (ended by itself), ``length``, ``aborted``, ``engine_refused``, ``engine_lost``,
            ``client_left``, or ``refused``, for which ``reason`` has the error's code.
        stages: seconds of ``body``, ``policy``, ``queue``, ``engine`` (to its first byte) and ``stream``.
    """

    tenant: Tenant
    request_id: str
    note: ClientMetadata = field(default_factory=ClientMetadata)
    outcome: str = "client_left"
    reason: str = ""
    status: int = 0
    finish: str | None = None
    usage: Usage | None = None
    image_tokens: int = 0
    begun: float = field(default_factory=monotonic)
    first: float | None = None
    last: float | None = None
    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, however it ends."""
        start = monotonic()
        try:
            yield
        finally:
            self.stages[name] = monotonic() - start

    @property
    def seconds(self) -> float:
        """Since it came."""
        return monotonic() - self.begun

    def refuse(self, code: str, status: int) -> None:
        """Note that the gateway itself said no."""
        self.outcome, self.reason, self.status = "refused", code, status

    def spent(self) -> Spent:
        """What it counts for."""
        usage = self.usage or Usage()
        image = min(self.image_tokens, usage.prompt_tokens)
        return Spent(1, int(self.outcome == "ok"), usage.prompt_tokens - image, image, usage.output)


class Meter:
    """The gateway's figures by tenant; only names of tenants.toml become labels.

    Args:
        registry: where the metrics are registered.
        store: where usage is kept.
    """

    def __init__(self, registry: CollectorRegistry, store: UsageStore) -> None:
        self.store = store

        def seconds(name: str, text: str, buckets: tuple[float, ...], *more: str) -> Histogram:
            return Histogram(f"pedcxr_{name}_seconds", text, ("tenant", *more), registry=registry, buckets=buckets)

        def count(name: str, text: str, *more: str) -> Counter:
            return Counter(f"pedcxr_{name}", text, ("tenant", *more), registry=registry)

        self._requests = count("tenant_requests", "Requests by outcome.", "outcome")
        self._rejections = count("rejections", "Requests refused by the gateway, by reason.", "reason")
        self._tokens = count("tokens", "Tokens, of prompt, image and output.", "kind")
        self.service_cost = count("tenant_service_cost", "Cost of service: image + prompt + 2 x output tokens.")
        self._queue = seconds("queue_wait", "From the line's end to its front.", _SECONDS)
        self._first = seconds("time_to_first_token", "From the request's first byte to its first token.", _SECONDS)
        self._gap = seconds("time_per_output_token", "Mean gap between tokens of a stream.", _TOKEN)
        self._whole = seconds("e2e", "From the request's first byte to the answer's last.", _SECONDS)
        self._stage = seconds("stage", "By stage of the gateway.", _STAGES, "stage")
        labels = ("tenant",)
        self.running = Gauge("pedcxr_tenant_in_flight", "Requests in work.", labels, registry=registry)
        self.waiting = Gauge("pedcxr_tenant_waiting", "Requests waiting their turn.", labels, registry=registry)
        self._share = Gauge("pedcxr_tenant_service_share", "Of the last minute's service.", labels, registry=registry)
        self._shares = Shares()
        self.unauthenticated = Counter(
            "pedcxr_unauthenticated", "Requests without a key that counts.", registry=registry
        )
        self._lost = Gauge("pedcxr_writes_failed", "Writes of a file that failed.", ("file",), registry=registry)
        self.tenants_broken = Gauge("pedcxr_tenants_broken", "1 while tenants.toml cannot be used.", registry=registry)

    def look(self, admission: Admission, *, broken: bool, unaudited: int) -> None:
        """Set the gauges.

        Args:
            broken: whether tenants.toml cannot be used.
            unaudited: lines that the audit log lacks.
        """
        for name, (waiting, running) in admission.counts().items():
            self.waiting.labels(name).set(waiting)
            self.running.labels(name).set(running)
        for name, share in self._shares.since(monotonic(), admission.service()).items():
            self._share.labels(name).set(share)
        self._lost.labels("audit").set(unaudited)
        self._lost.labels("usage").set(self.store.failures)
        self.tenants_broken.set(int(broken))

    def tokens_left(self, tenant: Tenant) -> float:
        """Of the tenant's day; requests in work are not in it yet."""
        if tenant.tokens_per_day is None:
            return math.inf
        return tenant.tokens_per_day - self.store.of(_today(), tenant.name).tokens

    def count(self, record: Record) -> None:
        """Count a request that has ended."""
        name, spent = record.tenant.name, record.spent()
        self._requests.labels(name, record.outcome).inc()
        if record.reason:
            self._rejections.labels(name, record.reason).inc()
        for stage, took in record.stages.items():
            self._stage.labels(name, stage).observe(took)
        if "queue" in record.stages:
            self._queue.labels(name).observe(record.stages["queue"])
        if record.usage is not None:
            self.store.add(_today(), name, spent)
            for kind, tokens in (
                ("prompt", spent.prompt_tokens),
                ("image", spent.image_tokens),
                ("output", spent.output_tokens),
            ):
                self._tokens.labels(name, kind).inc(tokens)
        if record.outcome in ("ok", "length"):
            self._whole.labels(name).observe(record.seconds)
            if record.first is not None and record.last is not None:
                self._first.labels(name).observe(record.first - record.begun)
                if spent.output_tokens > 1:
                    self._gap.labels(name).observe((record.last - record.first) / (spent.output_tokens - 1))


def until_midnight() -> float:
    """Seconds until the next day, UTC."""
    now = datetime.now(UTC)
    return ((now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0) - now).total_seconds()


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
