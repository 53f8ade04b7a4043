"""What the drills call a failure, and a short run of ``tests.drills.overload`` on a gateway with a fake engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pedcxr_client.bench.workload import Objectives
from tests.client.cli.bench.helpers import poisson, sample
from tests.drills.fleet import cable_client
from tests.drills.kill_engine import Outcome, Round
from tests.drills.overload import Bench, Overload, Soak, drill
from tests.support.bench_command import BenchCommand
from tests.support.servers import fleet_load
from tests.support.servers.apart import engine_apart
from tests.support.servers.fake_engine import Answer
from tests.support.servers.local_server import server

SLO = Objectives(ttft=2.0, e2e=15.0)
LOAD_S = 20.0


def overload(*more: Any, probes: float = 0.1, memory: Sequence[float] = (100.0,) * 20, refusals: int = 20) -> Overload:
    """10 reports per second for 20 s, a refusal per second, a probe per second with this TTFT, and more requests."""
    refused = [
        sample(at, outcome="unavailable", status=503, retry_after=1.0, first=None, last=None) for at in range(refusals)
    ]
    after = [sample(LOAD_S + at, ttft=probes) for at in range(1, 10)]
    run = poisson()
    return Overload(replace(run, samples=[*run.samples, *refused, *after, *more]), LOAD_S, {"gateway": memory})


def test_a_server_that_keeps_its_promises_has_no_failures() -> None:
    result = overload()
    assert result.goodput(SLO) == pytest.approx(10, rel=0.03)
    assert (len(result.refused), result.recovery_s(SLO)) == (20, 1.0)
    assert result.failures(10.5, SLO) == []


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (overload(sample(3, outcome="server", status=500)), "1 requests ended as server"),
        (overload(sample(3, outcome="rate_limited", status=429)), "1 refusals without Retry-After"),
        (overload(sample(LOAD_S + 6.5, outcome="unavailable", status=503, retry_after=1.0)), "recovery took 7.0 s"),
        (overload(probes=2.5), "the server did not recover"),
        (overload(memory=[100.0] * 10 + [110.0] * 10), "memory of gateway grew by 10.0%"),
        (overload(memory=[]), "memory was not measured"),
        (overload(refusals=0), "no request was refused"),
    ],
)
def test_each_broken_promise_is_named(result: Overload, words: str) -> None:
    (failure,) = result.failures(10.0, SLO)
    assert words in failure


def test_reports_that_miss_the_objectives_are_no_goodput() -> None:
    assert "goodput is 50% of that at the knee" in overload().failures(20.0, SLO)[0]
    assert "goodput is 0%" in overload().failures(10.0, Objectives(e2e=0.4))[0]


def test_a_soak_allows_no_refusal_no_growth_and_no_open_file() -> None:
    figures = {"outcomes": {"ok": 900}, "rss_growth": {"gateway": 0.004, "engine": -0.01}}
    files = {"gateway": 20, "engine": 30}
    assert Soak({"figures": figures}, (files, files)).failures() == []
    figures = {"outcomes": {"ok": 899, "unavailable": 1}, "rss_growth": {"gateway": 0.02}}
    assert Soak({"figures": figures}, (files, {"gateway": 23, "engine": 29})).failures() == [
        "1 requests ended as unavailable",
        "memory of gateway grew by 2.00%",
        "gateway has 23 open files, 20 before",
    ]
    nothing = Soak({"figures": {"outcomes": {}, "rss_growth": {}}}, ({}, {}))
    assert nothing.failures() == [f"no {name} measured" for name in ("reports", "memory", "open files")]


def test_an_invalid_run_fails_the_drill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"in_flight": 8, "figures": {"goodput": 10.5}}
    result = {"reasons": ["late"], "knee": {"in_flight": 8}, "stages": [stage]}
    monkeypatch.setattr(BenchCommand, "__call__", lambda *args, **tables: result)
    monkeypatch.setattr(Bench, "overload", lambda *args: overload())
    running: Any = SimpleNamespace(url="", metrics_url="", process=SimpleNamespace(pid=0))
    failures = drill(Bench(running, tmp_path, SLO), seconds=LOAD_S, soak_seconds=0)
    assert failures == ["knee: INVALID: late", "run: INVALID: late"]


def test_a_kill_must_hit_requests_in_flight() -> None:
    lost = Round("Worker", (Outcome("engine_lost", 1.0), Outcome("complete", 1.0)), 1.0, 3, 30.0)
    assert lost.failures() == []
    untouched = replace(lost, outcomes=(Outcome("complete", 1.0),), refused=0)
    assert untouched.failures() == [
        "no request was lost: none was in flight at the kill",
        "no request was refused during the restart",
    ]


def test_a_request_that_ends_late_is_a_failure() -> None:
    late = Round("Worker", (Outcome("engine_lost", 1.0),), 2.5, 3, 30.0)
    assert late.failures() == ["the last request ended after 2.5 s"]
    assert late.failures(typed_s=3.0) == []


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({"kind": "cut"}, None),
        ({"seconds": 10.0}, None),
        ({"resent": True}, None),
        ({}, "no request was on the cut cable"),
        ({"seconds": 13.0}, "a request took 13.0 s"),
        ({"kind": "untyped 502"}, "a request ended as untyped 502"),
    ],
)
def test_a_cut_cable_must_hit_a_request_and_lose_none_in_silence(outcome: dict[str, Any], words: str | None) -> None:
    values: dict[str, Any] = {"kind": "ok", "status": 200, "start": 0.0, "seconds": 1.0}
    load = fleet_load.Load([fleet_load.Outcome(**values | outcome)])
    assert cable_client.failures(load) == ([words] if words else [])


def test_more_than_an_engine_can_carry(tmp_path: Path) -> None:
    """Four slots of 0.3 s carry at most 13.3 requests per second; 40 are offered."""
    with engine_apart(tmp_path / "run") as engine:
        engine.answer = Answer(gap=0.05)
        flags = ("--engine", f"unix:{tmp_path}/run/engine.sock", "--slots", "4", "--max-wait-s", "1")
        with server(*flags, command="gateway") as running:
            result = Bench(running, tmp_path).overload(40, 4, probes=3)
    assert {sample.outcome for sample in result.run.samples} == {"ok", "unavailable"}
    assert {sample.status for sample in result.refused} == {503}
    assert all(sample.retry_after for sample in result.refused)
    assert result.memory["pedcxr_serve"]
    assert result.recovery_s(Objectives(e2e=200.0)) is not None  # on a busy machine, all are late


DRIVER = """
import asyncio, sys, uvloop
from tests.support.servers.local_server import server
async def main():
    with server(*sys.argv[1:], command="gateway") as running:
        print(running.process.pid, running.temporary, flush=True)
        await asyncio.sleep(600)
uvloop.run(main())
"""


def test_sigterm_for_a_benchmark_ends_its_server(tmp_path: Path) -> None:
    with engine_apart(tmp_path / "run"):
        command = [sys.executable, "-c", DRIVER, "--engine", f"unix:{tmp_path}/run/engine.sock"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
            assert driver.stdout is not None
            pid, folder = driver.stdout.readline().split()
            driver.terminate()
            assert driver.wait(120) == 143
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(folder).exists()
