"""docs/metrics.md has exactly one row for each metric of the registries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from pedcxr_client import PedcxrError
from pedcxr_client.metrics import export, prometheus
from pedcxr_serve.gateway.accounting.redis_calls import connection_pool
from pedcxr_serve.gateway.accounting.shared_limits import SharedLimits
from pedcxr_serve.gateway.http.tls import CertificateStore
from pedcxr_serve.gateway.rate_limit import RateLimiter
from pedcxr_serve.gateway.state import State
from tests.support import real_tools
from tests.support.certificates import make_certificate
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "metrics.md").read_text()


def rows(registry: CollectorRegistry) -> Iterator[str]:
    """Yield the rows of the page, sorted by name."""
    named = (collector for collector in registry._collector_to_names if hasattr(collector, "_name"))
    collectors: dict[str, Any] = {collector._name: collector for collector in named}
    for name, collector in sorted(collectors.items()):
        kind = collector._type
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)
        edges = " ".join(f"{edge:.10g}" for edge in collector._kwargs.get("buckets", ()))
        exported = name + ("_total" if kind == "counter" else "")
        yield f"| `{exported}` | {kind} | {labels} | {collector._documentation} | {edges} |".replace("|  |", "| |")


def test_page_has_every_metric_of_client_and_server(tmp_path: Path) -> None:
    files = make_certificate(tmp_path)
    state = State(
        tmp_path / "socket",
        demo=True,
        body_limit=1,
        rate_limiter=RateLimiter(connection_pool("redis://127.0.0.1:1")),
        shared_limits=SharedLimits(connection_pool("redis://127.0.0.1:1")),
        tls=CertificateStore(files.certificate, files.key),
    )
    client = CollectorRegistry()
    prometheus.Metrics(client)
    expected = [*rows(client), *rows(state.metrics.registry)]
    missing = [row for row in expected if row not in PAGE]
    assert not missing, "docs/metrics.md lacks:\n" + "\n".join(missing)
    on_page = re.findall(r"^\| `\w+` \| (?:counter|gauge|histogram) \|.*$", PAGE, re.MULTILINE)
    assert on_page == expected
    labels = set(re.findall(r"`(\w+)`", " ".join(row.split("|")[3] for row in expected)))
    explained = PAGE.partition("## Labels")[2]
    assert labels == {name for row in explained.splitlines()[3:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_page_has_every_value_of_error_type() -> None:
    def outcomes(kind: type[PedcxrError]) -> set[str]:
        return {kind.outcome}.union(*map(outcomes, kind.__subclasses__()))

    (row,) = re.findall(r"^\| `error_type` .*$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`([a-z_]+)`", row)) - {"error_type"} == outcomes(PedcxrError) | {"cancelled"}


@pytest.mark.slow
@real_tools.needs_prometheus
def test_queries_of_the_page(tmp_path: Path) -> None:
    """Real Prometheus evaluates them: 3 of 4 calls within the SLO; tenant a has 3 times the service of b."""
    objective, share = re.findall(r"```promql\n(.+)\n```", PAGE)
    registry = CollectorRegistry()
    labels = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "error_type")
    calls = Histogram("gen_ai_client_operation_duration_seconds", "-", labels, registry=registry, buckets=(1, 10, 20))
    cost = Counter("pedcxr_tenant_service_cost", "-", ("tenant",), registry=registry)
    for seconds in (0.5, 5, 10, 15):
        calls.labels("chat", "pedcxr", "pedcxr-demo", "").observe(seconds)
    with export.serving(registry) as url:
        target = url.removeprefix("http://").removesuffix("/metrics")
        config = (
            "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
            f'scrape_configs: [{{job_name: pedcxr, static_configs: [{{targets: ["{target}"]}}]}}]\n'
        )
        for tenant in ("a", "b"):
            cost.labels(tenant)
        with real_tools.prometheus(config, tmp_path) as address:
            assert real_tools.value(address, objective) == "0.75"
            assert real_tools.value(address, 'count_over_time(pedcxr_tenant_service_cost_total{tenant="a"}[1m]) > 1')
            cost.labels("a").inc(300)
            cost.labels("b").inc(100)
            shares = real_tools.value(address, f"({share}) > 0.5")
            assert shares is not None and float(shares) == pytest.approx(0.75)
