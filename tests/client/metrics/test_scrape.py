"""Export to a real Prometheus and a real Pushgateway, and the SLO query of docs/metrics.md."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from pedcxr_client import Client
from pedcxr_client.cli.main import main
from pedcxr_client.metrics import export
from pedcxr_client.metrics.prometheus import Metrics
from tests.support import real_tools
from tests.support.servers.fake_engine import Answer

E2E = "gen_ai_client_operation_duration_seconds"
SCRAPE = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: pedcxr
    honor_labels: true
    static_configs: [{{targets: ["{target}"]}}]
"""
SLO_S = 3.0  # a report of the fake engine takes less, also on a busy machine
# The query of docs/metrics.md.
WITHIN_SLO = f'sum({E2E}_bucket{{error_type="",le="{SLO_S}"}}) / sum({E2E}_count)'


def config(url: str) -> str:
    return SCRAPE.format(target=url.removeprefix("http://").removesuffix("/metrics"))


@pytest.mark.slow
@real_tools.needs_prometheus
def test_share_of_calls_within_the_slo(engine: Any, film: bytes, tmp_path: Any) -> None:
    """Four calls: two within the SLO, one too slow, and a fast failure, which counts as outside the SLO."""
    registry = CollectorRegistry()
    engine.reply(Answer(), Answer(), Answer(first=SLO_S + 0.5), Answer(finish="length"))
    with Client(engine.url, metrics=Metrics(registry, models=["fake"], e2e_slo=SLO_S)) as client:
        for _ in range(3):
            client.report(film)
        with pytest.raises(Exception, match="cut off"):
            client.report(film)
    with export.serving(registry) as url, real_tools.prometheus(config(url), tmp_path) as address:
        assert real_tools.value(address, f"sum({E2E}_count)") == "4"
        assert real_tools.value(address, WITHIN_SLO) == "0.5"
        truncated = 'sum(pedcxr_client_aborts_total{reason="truncated"})'
        assert real_tools.value(address, truncated) == "1"
        median = f"histogram_quantile(0.5, sum by (le) ({E2E}_bucket))"
        assert 0 < float(real_tools.value(address, median) or 0) < SLO_S


@real_tools.needs_pushgateway
def test_pushgateway_accepts_and_deletes_a_group(registry_of_one: CollectorRegistry) -> None:
    with real_tools.pushgateway() as url:
        target = export.Pushgateway(url=url, instance="here:1")
        target.push(registry_of_one)
        page = httpx.get(f"{url}/metrics", timeout=60).text
        labels = 'error_type="",gen_ai_operation_name="chat",gen_ai_provider_name="pedcxr",gen_ai_request_model="fake"'
        assert f"{E2E}_count{{{labels}" in page
        assert 'instance="here:1",job="pedcxr"' in page
        target.delete()
        assert E2E not in httpx.get(f"{url}/metrics", timeout=60).text


@pytest.fixture
def registry_of_one(engine: Any, film: bytes) -> CollectorRegistry:
    registry = CollectorRegistry()
    with Client(engine.url, metrics=Metrics(registry, models=["fake"])) as client:
        client.report(film)
    return registry


@pytest.mark.slow
@real_tools.needs_prometheus
@real_tools.needs_pushgateway
def test_metrics_of_a_short_run_reach_prometheus(engine: Any, film: bytes, tmp_path: Any) -> None:
    """Prometheus scrapes the group before the command deletes it after ``--metrics-linger``."""
    path = tmp_path / "film.png"
    path.write_bytes(film)
    with real_tools.pushgateway() as url, real_tools.prometheus(config(url), tmp_path) as address:
        # Service discovery starts some seconds after readiness, and a scrape of a busy machine may fail.
        assert real_tools.value(address, "up == 1") == "1"
        flags = ["--url", engine.url, "--metrics-push", url, "--metrics-linger", "10"]
        assert main(["report", str(path), *flags]) == 0
        assert E2E not in httpx.get(f"{url}/metrics", timeout=60).text
        assert real_tools.value(address, f"sum(max_over_time({E2E}_count[1m]))") == "1"
