"""Real Prometheus scrapes a real server, with the scrape file of deploy/."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from pedcxr_serve.local import LocalServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="no prometheus here; Debian has a package of the name"
    ),
]

SCRAPE = Path(__file__).parents[2] / "deploy/prometheus.yml"


def test_a_query_finds_both_sides(running: LocalServer, tmp_path: Path) -> None:
    target = running.metrics_url.removeprefix("http://").removesuffix("/metrics")
    config = tmp_path / "prometheus.yml"
    config.write_text(SCRAPE.read_text().replace("127.0.0.1:8001", target).replace("15s", "1s").replace("10s", "1s"))
    assert target in config.read_text()
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--web.listen-address={address}",
        f"--storage.tsdb.path={tmp_path}",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as prometheus:
        try:
            for query in ("pedcxr_ready", "vllm:num_requests_running"):
                assert value(address, query) is not None, query
            assert value(address, "pedcxr_ready") == "1"
        finally:
            prometheus.terminate()


def value(address: str, query: str, seconds: float = 30) -> str | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            found = httpx.get(f"http://{address}/api/v1/query", params={"query": query}).json()["data"]["result"]
        except (httpx.HTTPError, KeyError, ValueError):
            found = []
        if found:
            return str(found[0]["value"][1])
        time.sleep(0.5)
    return None
