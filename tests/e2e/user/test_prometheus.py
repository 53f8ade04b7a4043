"""A real Prometheus scrapes a real server with deploy/prometheus.yml, and answers the engine's dashboard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import real_tools
from tests.support.paths import ROOT
from tests.support.servers.local_server import LocalServer

pytestmark = [pytest.mark.slow, real_tools.needs_prometheus]

SCRAPE = ROOT / "deploy/prometheus.yml"


def test_queries_find_gateway_and_engine_metrics(running: LocalServer, tmp_path: Path) -> None:
    target = running.metrics_url.removeprefix("http://").removesuffix("/metrics")
    config = SCRAPE.read_text().replace("127.0.0.1:8001", target).replace("15s", "1s").replace("10s", "1s")
    assert target in config
    with real_tools.prometheus(config, tmp_path) as address:
        for query in ("pedcxr_ready", "vllm:num_requests_running"):
            assert real_tools.value(address, query) is not None, query
        assert real_tools.value(address, "pedcxr_ready") == "1"
        dashboard = json.loads((ROOT / "deploy/monitoring/dashboards/engine.json").read_text())
        queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        assert [query for query in queries if real_tools.value(address, query) is None] == []
