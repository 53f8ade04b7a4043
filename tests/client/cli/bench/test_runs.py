"""``pedcxr bench`` on real HTTP: every mode and its result."""

from __future__ import annotations

import asyncio
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pedcxr_client.bench import results
from pedcxr_client.bench.figures import StageRun, max_in_flight
from pedcxr_client.bench.run import find_knee
from pedcxr_client.bench.schedule import Stage
from pedcxr_client.bench.watch import page_facts
from pedcxr_client.request import prompts
from pedcxr_serve.gateway.request.validation import Rules
from tests.client.cli.bench.helpers import FLAGS, WORKLOAD, bench, closed, reasons
from tests.support.servers.fake_engine import Answer, FakeEngine
from tests.support.servers.gateway_server import running


def test_a_run_on_a_server_that_is_not_ours(engine: FakeEngine, tmp_path: Path, capsys: Any) -> None:
    engine.details = None
    code, result = bench(tmp_path, engine.url, "run")
    assert reasons(result) == []
    assert code == (0 if result["valid"] else 1)
    out = capsys.readouterr().out
    assert out.startswith(f"{'VALID' if result['valid'] else 'INVALID'}: ")
    assert "reports per minute at p9" in out
    assert result["server"]["cache_config"] == {"block_size": "32", "enable_prefix_caching": "True"}
    (stage,) = result["stages"]
    assert stage["completed"] >= 20
    assert stage["figures"]["cache_hits"] == {"mm": 0.0}
    assert set(stage["figures"]["waterfall"]) == {"before the engine", "queue", "prefill", "decode"}
    assert stage["metrics"]["series"][0]["kv"] == 0.25
    assert stage["figures"]["different"][0] == 0
    # Two films alone, then the run; no two bodies are equal, and each has the headers of the client.
    assert len(engine.chats) == 2 + len(stage["samples"])
    assert len({request.body for request in engine.chats}) == len(engine.chats)
    assert {request.headers["x-pedcxr-prompt"] for request in engine.chats} == {prompts.CARD.tag}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "out.html",
        "out.json",
        "out.md",
        "workload.toml",
    ]


def test_the_gateway_states_the_versions_and_limits_of_both(tmp_path: Path) -> None:
    with FakeEngine(uds=tmp_path / "engine.sock") as engine, running(engine, rules=Rules("fake", 500)) as gateway:
        engine.answer, engine.counters = Answer(gap=0.004), FLAGS
        gateway.state.label_served("0.32.0")
        gateway.state.metrics.runtime.slots.set(8)
        page = ("--metrics-url", gateway.listeners.metrics_url)
        _, result = bench(tmp_path, f"{gateway.root}/v1", "run", *page)
    server = result["server"]
    assert server["gateway"] == {"version": version("pedcxr"), "python": platform.python_version(), "slots": "8"}
    assert server["engine"]["vllm"] == "0.32.0"
    assert server["cache_config"]["block_size"] == "32"


def test_replicas_that_differ_are_listed() -> None:
    pages = 'pedcxr_replica_info{vllm="0.32.0"} 1.0\npedcxr_slots 8.0\npedcxr_replica_info{vllm="0.33.0"} 1.0\n'
    assert page_facts(f"{pages}pedcxr_slots 8.0") == {"engine": {"vllm": "0.32.0, 0.33.0"}, "gateway": {"slots": "8"}}


def test_a_closed_loop_keeps_the_requests_of_each_tenant_open(engine: FakeEngine, tmp_path: Path) -> None:
    tenants = '[[tenants]]\nname = "ward"\nweight = 3\n[[tenants]]\nname = "clinic"\n'
    _, result = bench(tmp_path, engine.url, "run", workload=WORKLOAD + tenants)
    (run,) = results.stages(result)
    by = {name: [one for one in run.samples if one.tenant == name] for name in ("ward", "clinic")}
    assert {name: max_in_flight(samples) for name, samples in by.items()} == {"ward": 3, "clinic": 1}


def test_the_result_has_the_keys_of_vllm_and_no_text(engine: FakeEngine, tmp_path: Path) -> None:
    _, result = bench(tmp_path, engine.url, "run")
    (stage,) = result["stages"]
    keys = {
        "backend", "model_id", "num_prompts", "request_rate", "max_concurrency", "duration", "completed", "failed",
        "total_input_tokens", "total_output_tokens", "request_throughput", "output_throughput",
        "total_token_throughput", "input_lens", "output_lens", "ttfts", "itls", "errors", "mean_ttft_ms",
        "median_ttft_ms", "std_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_itl_ms", "p99_e2el_ms",
    }  # fmt: skip
    assert keys <= set(stage)
    assert stage["completed"] == len([one for one in stage["errors"] if not one])
    for path in tmp_path.glob("out.*"):
        assert "lungs" not in path.read_text().lower()
        assert "iVBOR" not in path.read_text()


def test_the_page_is_self_contained(engine: FakeEngine, tmp_path: Path) -> None:
    bench(tmp_path, engine.url, "run", "--slo-e2e", "5")
    page = (tmp_path / "out.html").read_text()
    assert page.count("<svg") >= 4
    assert "objective 5" in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(("most", "is_reached"), [(2, False), (16, True)])
def test_the_fastest_load_is_no_knee_if_it_is_the_last(most: int, is_reached: bool) -> None:
    class Server:
        async def stage(self, stage: Stage) -> StageRun:
            return closed(400, min(4, stage.in_flight))

    runner: Any = Server()
    assert asyncio.run(find_knee(runner, 15, most)).is_reached is is_reached


def test_knee_then_certify(engine: FakeEngine, tmp_path: Path, capsys: Any) -> None:
    short = WORKLOAD.replace("alone = 2", "alone = 1")
    code, result = bench(tmp_path, engine.url, "knee", "--seconds", "0.2", "--most", "2", workload=short)
    assert reasons(result) == []
    assert result["knee"]["in_flight"] == (1 if result["knee"]["is_reached"] else 2)
    assert [stage["name"] for stage in result["stages"]] == ["closed 1", "closed 2"]
    knee = tmp_path / "knee.json"
    (tmp_path / "out.json").rename(knee)
    fast = json.loads(knee.read_text())
    fast["valid"] = True  # a busy machine may have made the search invalid
    fast["knee"] = {"in_flight": 2, "reports_per_second": 300.0, "is_reached": False}
    knee.write_text(json.dumps(fast))
    more = ("--from", str(knee), "--seconds", "0.5", "--slo-e2e", "60")
    code, result = bench(tmp_path, engine.url, "certify", *more, workload=short)
    assert [stage["name"] for stage in result["stages"]] == [f"{share}% of the knee" for share in (50, 70, 85, 100)]
    assert "; no knee up to 2 in flight (--most)" in capsys.readouterr().out
    assert not result["slo_missed"]
    assert code == (0 if result["valid"] else 1)


def test_soak_and_tenants(engine: FakeEngine, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WARD_KEY", "ward-key")
    (tmp_path / "clinic").write_text("clinic-key")
    tenants = '[[tenants]]\nname = "ward"\nkey_env = "WARD_KEY"\nweight = 3\n[[tenants]]\nname = "clinic"\n'
    tenants += 'key_file = "clinic"\n'
    more = ("--rate", "100", "--seconds", "2", "--server-pid", str(os.getpid()))
    _, result = bench(tmp_path, engine.url, "soak", *more, workload=WORKLOAD + tenants)
    assert reasons(result) == []
    figures = result["stages"][0]["figures"]
    assert 0.6 < figures["tenants"]["ward"]["share"] < 0.9
    assert figures["rss_growth"]
    assert {request.headers["authorization"] for request in engine.chats} == {"Bearer ward-key", "Bearer clinic-key"}
    assert "ward-key" not in (tmp_path / "out.json").read_text()
