"""Metrics by tenant: the daily budget and its day."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import Self

import pytest
from prometheus_client import CollectorRegistry

from pedcxr_serve.gateway.accounting import metrics
from pedcxr_serve.gateway.accounting.metrics import RequestRecord, TenantMetrics, seconds_until_midnight
from pedcxr_serve.gateway.accounting.usage import TokenUsage, UsageStore
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.scheduler import FairQueue


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[datetime]:
    """Replaces `datetime` in the module; a test sets ``clock.moment``."""

    class Clock(datetime):
        moment: datetime

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            assert tz is UTC
            return cls.fromtimestamp(cls.moment.timestamp(), tz)

    monkeypatch.setattr(metrics, "datetime", Clock)
    return Clock


def test_budget_is_reset_at_midnight_utc(clock: type[datetime]) -> None:
    store = UsageStore(None)
    tenant_metrics = TenantMetrics(CollectorRegistry(), store)
    team = Tenant("team", tokens_per_day=600)
    clock.moment = datetime(2026, 11, 23, 23, 59, 59, tzinfo=UTC)  # type: ignore[attr-defined]
    record = RequestRecord(team, "r-1", outcome="ok", usage=TokenUsage(500, 100))
    tenant_metrics.count(record)
    assert tenant_metrics.tokens_left(team) == 0
    clock.moment = datetime(2026, 11, 24, tzinfo=UTC)  # type: ignore[attr-defined]
    assert tenant_metrics.tokens_left(team) == 600
    tenant_metrics.count(record)
    assert {day: tenants["team"]["tokens"] for day, tenants in store.days().items()} == {
        "2026-11-23": 600,
        "2026-11-24": 600,
    }


@pytest.mark.parametrize(
    ("moment", "seconds"),
    [
        (datetime(2026, 11, 23, tzinfo=UTC), 86_400),
        (datetime(2026, 11, 23, 1, tzinfo=UTC), 82_800),
        (datetime(2026, 12, 31, 23, 59, 59, 500_000, tzinfo=UTC), 0.5),
    ],
)
def test_seconds_until_midnight(clock: type[datetime], moment: datetime, seconds: float) -> None:
    clock.moment = moment  # type: ignore[attr-defined]
    assert seconds_until_midnight() == pytest.approx(seconds)


def test_failed_writes_are_exported() -> None:
    registry, store = CollectorRegistry(), UsageStore(None)
    store.failures = 2
    queue = FairQueue(1, max_waiting=1, max_wait_s=1)
    TenantMetrics(registry, store).update_gauges(queue, [], broken=False, unaudited=3)
    assert registry.get_sample_value("pedcxr_writes_failed", {"file": "usage"}) == 2
    assert registry.get_sample_value("pedcxr_writes_failed", {"file": "audit"}) == 3
