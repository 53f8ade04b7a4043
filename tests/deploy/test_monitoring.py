"""deploy/monitoring: rules under promtool; dashboards and an alert under a real Prometheus that scrapes a fleet."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_fleet import REPLICA, local_fleet
from tests.support import real_tools
from tests.support.paths import ROOT
from tests.support.scripts import load_script
from tests.support.servers.fleet_load import Load, drive
from tests.support.servers.gateway_server import eventually

MONITORING = ROOT / "deploy/monitoring"
generate = load_script(MONITORING / "generate.py")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
ALERTS_PAGE = ROOT / "docs/fleet/alerts.md"


def alerts() -> set[str]:
    return {rule["alert"] for rule in generate.burn_alerts() + generate.state_alerts()}


@pytest.mark.parametrize("path", sorted(generate.files()), ids=lambda path: path.name)
def test_generated_file_is_current(path: Path) -> None:
    assert path.read_text() == generate.files()[path], "run: python3 deploy/monitoring/generate.py"


@needs_promtool
@pytest.mark.parametrize("words", [["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]])
def test_promtool_accepts(words: list[str]) -> None:
    completed = subprocess.run(["promtool", *words], cwd=MONITORING, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_each_alert_has_a_test() -> None:
    assert set(re.findall(r"alertname: (\w+)", (MONITORING / "rules_test.yml").read_text())) == alerts()


def test_each_alert_is_explained() -> None:
    assert set(re.findall(r"^\| `(Pedcxr\w+)`", ALERTS_PAGE.read_text(), re.MULTILINE)) == alerts()


@contextmanager
def receiver() -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Receive webhooks of Alertmanager: the port, and name and instance of the alerts that fired."""
    alerts: list[tuple[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            page = json.loads(self.rfile.read(int(self.headers["content-length"])))
            firing = [alert["labels"] for alert in page["alerts"] if alert["status"] == "firing"]
            alerts.extend((labels["alertname"], labels.get("instance", "")) for labels in firing)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_port, alerts
        server.shutdown()


def targets(fleet: Any) -> str:
    return ", ".join(f'"127.0.0.1:{replica.admin_port}"' for replica in fleet.replicas)


@contextmanager
def watched(folder: Path, fleet: Any, balancer: Any, alertmanager: str) -> Iterator[str]:
    """Run Prometheus with the shipped files, other addresses, short intervals, and alerts that fire at once."""
    (folder / "rules.yml").write_text(re.sub(r'for: "\w+"', 'for: "0s"', (MONITORING / "rules.yml").read_text()))
    config = (MONITORING / "prometheus.yml").read_text()
    for old, new in (
        ('"127.0.0.1:8100", "127.0.0.1:8101"', targets(fleet)),
        ("127.0.0.1:8405", balancer.metrics_url.split("/")[2]),
        ("127.0.0.1:9093", alertmanager),
        ("scrape_interval: 15s, evaluation_interval: 15s", "scrape_interval: 1s, evaluation_interval: 1s"),
    ):
        assert old in config
        config = config.replace(old, new)
    with real_tools.prometheus(config, folder) as address:
        yield address


@contextmanager
def load_on(url: str, users: int) -> Iterator[None]:
    """Drive a fleet from a thread during the block."""
    load, loop = Load(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(drive(url, users, load, film_bytes=1000),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(load.stop.set)
        thread.join()
        loop.close()


@real_tools.needs_prometheus
@real_tools.needs_alertmanager
@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
def test_dashboards_and_an_alert_on_a_real_fleet(tmp_path: Path) -> None:
    queries = {
        target["expr"]
        for name in ("service", "tenants", "fleet")
        for panel in json.loads((MONITORING / f"dashboards/{name}.json").read_text())["panels"]
        for target in panel["targets"]
    }
    assert len(queries) > 25
    command = [*REPLICA, "--max-waiting", "4"]
    manager_folder, prometheus_folder = tmp_path / "a", tmp_path / "p"
    manager_folder.mkdir()
    prometheus_folder.mkdir()
    with receiver() as (port, fired), local_fleet.running(command, 2) as (fleet, balancers):
        config = (MONITORING / "alertmanager.yml").read_text()
        config = config.replace("127.0.0.1:9095", f"127.0.0.1:{port}").replace("group_wait: 10s", "group_wait: 0s")
        balancer = balancers["haproxy"]
        with (
            real_tools.alertmanager(config, manager_folder) as manager,
            watched(prometheus_folder, fleet, balancer, manager) as address,
        ):
            with load_on(balancer.url, 40):  # more than the slots and queues of both, so that some are refused
                empty = [query for query in sorted(queries) if real_tools.value(address, query) is None]
            assert empty == []
            killed = fleet.replicas[1]
            killed.kill()
            fired.clear()  # on a busy machine a scrape may have failed before
            eventually(lambda: ("PedcxrReplicaDown", f"127.0.0.1:{killed.admin_port}") in fired, 60)
