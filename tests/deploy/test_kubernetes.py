"""deploy/kubernetes and deploy/fleet/compose.yaml, rendered and checked by kubectl, kubernetes-validate and Compose."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from pedcxr_serve.config import load
from pedcxr_serve.engine import supervisor
from tests.support.paths import ROOT

KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = ["replicas-1", "replicas-4", "replicas-32"]
NO_SCHEMA = {"BackendTrafficPolicy", "Gateway", "HTTPRoute", "ScaledObject"}  # custom resources


def tool(name: str) -> str:
    """Return the path of a tool of locks/deploytools.txt, or skip the test."""
    path = shutil.which(name) or shutil.which(name, path=str(ROOT / ".venv/deploytools/bin"))
    if path is None:
        pytest.skip(
            f"{name} not found; `make test-fast` installs locks/deploytools.txt, Debian's prometheus has promtool"
        )
    return path


@cache
def rendered(overlay: str) -> str:
    words = [tool("kubectl"), "kustomize", str(KUBERNETES / overlay)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def objects(overlay: str) -> dict[tuple[str, str], dict[str, Any]]:
    documents = yaml.safe_load_all(rendered(overlay))
    return {(one["kind"], one["metadata"]["name"]): one for one in documents}


def pod(overlay: str) -> dict[str, Any]:
    spec: dict[str, Any] = objects(overlay)["Deployment", "pedcxr"]["spec"]["template"]["spec"]
    return spec


def serve_toml() -> Path:
    return KUBERNETES / "base/serve.toml"


@pytest.mark.parametrize("overlay", OVERLAYS)
class TestOverlay:
    def test_passes_the_schemas_of_kubernetes(self, overlay: str, tmp_path: Path) -> None:
        file = tmp_path / "all.yaml"
        file.write_text(rendered(overlay))
        words = [tool("kubernetes-validate"), "-k", "1.35", "--strict", str(file)]
        completed = subprocess.run(words, capture_output=True, text=True)
        assert completed.returncode == 0, completed.stdout
        kinds = set(re.findall(r"find schema for kind (\w+)", completed.stdout + completed.stderr))
        assert kinds <= NO_SCHEMA

    def test_selectors_match_the_pods(self, overlay: str) -> None:
        every = objects(overlay)
        labels = every["Deployment", "pedcxr"]["spec"]["template"]["metadata"]["labels"]
        for kind, path in (
            ("Service", ()),
            ("PodDisruptionBudget", ("matchLabels",)),
            ("Deployment", ("matchLabels",)),
        ):
            selector = every[kind, "pedcxr"]["spec"]["selector"]
            for key in path:
                selector = selector[key]
            assert selector and selector.items() <= labels.items(), kind
        assert every["NetworkPolicy", "pedcxr"]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()

    def test_network_policy_opens_what_is_needed_only(self, overlay: str) -> None:
        policy = objects(overlay)["NetworkPolicy", "pedcxr"]["spec"]
        sources = {
            rule["ports"][0]["port"]: [one["namespaceSelector"]["matchLabels"] for one in rule["from"]]
            for rule in policy["ingress"]
        }
        assert sources["metrics"] == [{"kubernetes.io/metadata.name": "monitoring"}]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        # includeSelectors of Kustomize would add the label of the pods to the peers, and cut DNS off.
        assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 6379, 4318}
        dns = policy["egress"][0]["to"][0]["podSelector"]["matchLabels"]
        assert dns == {"k8s-app": "kube-dns"}

    def test_route_serves_the_api_only(self, overlay: str) -> None:
        (rule,) = objects(overlay)["HTTPRoute", "pedcxr"]["spec"]["rules"]
        paths = {match["path"]["value"] for match in rule["matches"]}
        assert paths == {"/v1/chat/completions", "/v1/models", "/health/ready"}
        policy = objects(overlay)["BackendTrafficPolicy", "pedcxr"]["spec"]
        assert policy["loadBalancer"] == {"type": "LeastRequest"}
        assert policy["retry"]["retryOn"]["triggers"] == ["connect-failure"]  # never a film that was sent

    def test_grace_period_covers_the_whole_shutdown(self, overlay: str) -> None:
        text = serve_toml().read_text()
        lame_duck_s, drain_s = (float(re.findall(rf"^{key} = (\S+)", text, re.MULTILINE)[0]) for key in SHUTDOWN)
        assert pod(overlay)["terminationGracePeriodSeconds"] >= lame_duck_s + drain_s + 45
        assert supervisor._STOP_GRACE_S < 45

    def test_probes(self, overlay: str) -> None:
        (container,) = pod(overlay)["containers"]
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 900
        assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
        assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"

    def test_volumes_are_folders(self, overlay: str) -> None:
        (container,) = pod(overlay)["containers"]
        assert not any("subPath" in mount for mount in container["volumeMounts"])
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            one["name"] for one in pod(overlay)["volumes"]
        }

    def test_pod_meets_the_restricted_standard(self, overlay: str) -> None:
        (container,) = pod(overlay)["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod(overlay)["securityContext"]["runAsNonRoot"] is True
        assert pod(overlay)["automountServiceAccountToken"] is False


SHUTDOWN = ("lame_duck_s", "drain_s")


def test_overlays_differ_in_replicas_and_components() -> None:
    counts = [objects(overlay)["Deployment", "pedcxr"]["spec"].get("replicas") for overlay in OVERLAYS]
    assert counts == [1, 4, None]  # KEDA owns the last
    assert [("Deployment", "redis") in objects(overlay) for overlay in OVERLAYS] == [False, True, True]
    assert [("ScaledObject", "pedcxr") in objects(overlay) for overlay in OVERLAYS] == [False, False, True]


def keda_query(overlay: str) -> str:
    (trigger,) = objects(overlay)["ScaledObject", "pedcxr"]["spec"]["triggers"]
    return str(trigger["metadata"]["query"])


def test_keda_asks_for_requests_in_replicas_worth_of_slots(tmp_path: Path) -> None:
    series = {
        f'pedcxr_{name}{{job="pedcxr", instance="{pod}"}}': value
        for name, values in (("requests_in_flight", (90, 30, 0)), ("slots", (96, 96, 96)))
        for pod, value in zip("abc", values, strict=True)
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": f"{value}x9"} for name, value in series.items()],
        "promql_expr_test": [{"expr": keda_query("replicas-32"), "eval_time": "5m", "exp_samples": [{"value": 1.25}]}],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"tests": [test]}))
    completed = subprocess.run([tool("promtool"), "test", "rules", str(file)], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_page_states_the_disruption_budget_of_each_overlay() -> None:
    budgets = [objects(overlay)["PodDisruptionBudget", "pedcxr"]["spec"]["maxUnavailable"] for overlay in OVERLAYS]
    assert budgets == [1, 1, 2]
    page = (ROOT / "docs/fleet/kubernetes.md").read_text()
    assert "| PodDisruptionBudget | `maxUnavailable: 1`; `replicas-32`: 2 |" in page


def test_strict_validation_finds_a_misspelt_field(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(rendered("replicas-1").replace("readinessProbe:", "readinesProbe:"))
    words = [tool("kubernetes-validate"), "-k", "1.35", "--strict", str(file)]
    assert subprocess.run(words, capture_output=True).returncode != 0


def test_serve_toml_loads(tmp_path: Path) -> None:
    settings = load.load(serve_toml(), {})
    (container,) = yaml.safe_load((KUBERNETES / "base/deployment.yaml").read_text())["spec"]["template"]["spec"][
        "containers"
    ]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert ports == {"api": settings.gateway.port, "metrics": settings.gateway.admin_port}
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    assert str(Path(settings.gateway.tenants).parent) in mounts and str(Path(settings.model).parent) in mounts


@cache
def compose_services() -> dict[str, Any]:
    words = [tool("docker-compose"), "-f", str(ROOT / "deploy/fleet/compose.yaml"), "config", "--format", "json"]
    completed = subprocess.run(words, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    services: dict[str, Any] = json.loads(completed.stdout)["services"]
    return services


def compose_replicas() -> list[dict[str, Any]]:
    return [service for name, service in compose_services().items() if name.startswith("replica")]


def test_each_compose_replica_has_a_gpu_and_ports_of_its_own() -> None:
    replicas = compose_replicas()
    assert len(replicas) == 8
    devices = [one["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for one in replicas]
    assert sorted(devices) == [[str(number)] for number in range(8)]
    ports = {word for one in replicas for word in one["command"] if re.fullmatch(r"8[01]0\d", word)}
    assert len(ports) == 16


def test_compose_replicas_announce_that_they_stop() -> None:
    for service in compose_replicas():
        assert service["command"][-2:] == ["--lame-duck-s", "2.5"]
        assert service["stop_grace_period"] == "2m0s"


def test_systemd_template_equals_the_unit_but_for_its_instance() -> None:
    template, unit = ((ROOT / "deploy" / name).read_text() for name in ("fleet/pedcxr@.service", "pedcxr.service"))
    own = [line for line in template.splitlines() if line not in unit.splitlines() and line[0] != "#"]
    keys = "Description|Environment|WorkingDirectory|StateDirectory|RuntimeDirectory|ExecStart|    --port"
    assert [line for line in own if not re.match(keys, line)] == []
    assert "CUDA_VISIBLE_DEVICES=%i" in template


def test_systemd_accepts_the_template(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze not found")
    copy = tmp_path / "pedcxr@3.service"
    text = (ROOT / "deploy/fleet/pedcxr@.service").read_text()
    copy.write_text(text.replace("/opt/pedcxr/bin/pedcxr-serve", "/bin/true"))
    completed = subprocess.run([analyze, "verify", "--man=no", copy], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
