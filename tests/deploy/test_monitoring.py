"""deploy/monitoring: rules under promtool; dashboards and an alert under a real Prometheus that scrapes a fleet."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.test_fleet import REPLICA, local_fleet
from tests.deploy.test_kubernetes import keda_query
from tests.support import real_tools
from tests.support.http_server import Handler, serving
from tests.support.paths import ROOT
from tests.support.scripts import load_script
from tests.support.servers.gateway_server import eventually
from tests.support.servers.watched_fleet import MONITORING, load_on, watched

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


@needs_promtool
def test_promtool_accepts_the_scrape_of_kubernetes(tmp_path: Path) -> None:
    page = (ROOT / "docs/fleet/kubernetes.md").read_text()
    (example,) = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    file = tmp_path / "prometheus.yml"
    # Debian's Prometheus is built without the discovery of Kubernetes.
    file.write_text(re.sub(r"kubernetes_sd_configs: .*", "static_configs: [{ targets: [a] }]", example))
    completed = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", str(file)], capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_each_alert_has_a_test() -> None:
    assert set(re.findall(r"alertname: (\w+)", (MONITORING / "rules_test.yml").read_text())) == alerts()


def test_each_alert_is_explained() -> None:
    assert set(re.findall(r"^\| `(Pedcxr\w+)`", ALERTS_PAGE.read_text(), re.MULTILINE)) == alerts()


@contextmanager
def receiver() -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Receive webhooks of Alertmanager: the port, and name and instance of the alerts that fired."""
    alerts: list[tuple[str, str]] = []

    class Webhook(Handler):
        def do_POST(self) -> None:
            page = json.loads(self.body())
            firing = [alert["labels"] for alert in page["alerts"] if alert["status"] == "firing"]
            alerts.extend((labels["alertname"], labels.get("instance", "")) for labels in firing)
            self.answer()

    with serving(Webhook) as port:
        yield port, alerts


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
    queries |= {"pedcxr:balancer_failures:ratio5m", keda_query("replicas-32")}
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
            # More users than the slots and queues of both, so that some are refused.
            with load_on(balancer.url, 40, film_bytes=1000):
                empty = [query for query in sorted(queries) if real_tools.value(address, query) is None]
            assert empty == []
            killed = fleet.replicas[1]
            killed.kill()
            fired.clear()  # on a busy machine a scrape may have failed before
            eventually(lambda: ("PedcxrReplicaDown", f"127.0.0.1:{killed.admin_port}") in fired)


@contextmanager
def dcgm_exporter() -> Iterator[str]:
    """Serve metrics in the form of NVIDIA's dcgm-exporter; yield the address."""
    labels = '{gpu="0",UUID="GPU-1",device="nvidia0",modelName="NVIDIA H100 80GB HBM3",Hostname="gpu1"}'
    values = {"GPU_UTIL": 93, "FB_USED": 71000, "FB_FREE": 10000, "POWER_USAGE": 512.3, "GPU_TEMP": 61, "XID_ERRORS": 0}
    page = "".join(f"# TYPE DCGM_FI_DEV_{name} gauge\nDCGM_FI_DEV_{name}{labels} {values[name]}\n" for name in values)

    class Metrics(Handler):
        def do_GET(self) -> None:
            self.answer(page.encode(), kind="text/plain; version=0.0.4")

    with serving(Metrics) as port:
        yield f"127.0.0.1:{port}"


@real_tools.needs_prometheus
def test_dashboard_of_the_gpu(tmp_path: Path) -> None:
    config = (MONITORING / "prometheus.yml").read_text()
    config, count = re.subn(r"^  # (- job_name: gpu|  static_configs)", r"  \1", config, flags=re.MULTILINE)
    assert count == 2  # the optional job, with its comment signs removed
    panels = json.loads((MONITORING / "dashboards/gpu.json").read_text())["panels"]
    with dcgm_exporter() as exporter:
        config = (
            config.replace("127.0.0.1:9400", exporter).replace("15s", "1s").replace("rule_files: [rules.yml]\n", "")
        )
        with real_tools.prometheus(config, tmp_path) as address:
            queries = [target["expr"] for panel in panels for target in panel["targets"]]
            assert [query for query in queries if real_tools.value(address, query) is None] == []
