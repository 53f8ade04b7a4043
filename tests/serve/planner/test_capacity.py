"""Replicas for a load: what limits them, what they cost, and measured loads in place of the roofline's times."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pedcxr_client.bench import results
from pedcxr_client.bench.run import Record
from pedcxr_client.bench.verdict import judge
from pedcxr_client.bench.workload import Workload
from pedcxr_serve import cli
from pedcxr_serve.checkpoint import inspect
from pedcxr_serve.checkpoint.architecture import Shape
from pedcxr_serve.checkpoint.inspect import Checkpoint
from pedcxr_serve.config import load
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.planner import capacity, devices, measurement, plan, simulate
from pedcxr_serve.planner.capacity import Objectives
from pedcxr_serve.planner.plan import EnginePlan
from pedcxr_serve.planner.replica_model import Replica
from pedcxr_serve.planner.simulate import Distribution
from tests.benchmarks.throughput import event_cost
from tests.client.cli.bench.helpers import closed, poisson
from tests.e2e.requests import capacity_accuracy
from tests.support import checkpoint_folders as folders

KNOWN = Replica(0.03, 0.01, 0.0005, 0.012, (29, 43, 79), 32, prompts_per_step=18)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return inspect.inspect(folders.medgemma_4b(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def shape(model: Checkpoint) -> Shape:
    assert model.shape is not None
    return model.shape


@pytest.fixture(scope="module")
def h200(model: Checkpoint) -> EnginePlan:
    return plan.make(model, devices.TABLE["h200"], load.load(None, {}), model_dir=Path("/m"), socket=Path("/s"))


def stage(in_flight: int | None, rate: float, ttft: float, tpot: float, **more: object) -> dict[str, object]:
    """Return an object as `vllm bench serve --save-result` writes it."""
    return {
        "max_concurrency": in_flight,
        "request_throughput": rate,
        "mean_ttft_ms": 1e3 * ttft,
        "mean_tpot_ms": 1e3 * tpot,
        "completed": 100,
        "total_input_tokens": 30_000,
        "total_output_tokens": 5000,
        "p99_itl_ms": 3.5,
        **more,
    }


def simulated_stage(in_flight: int) -> dict[str, object]:
    outcome = simulate.simulate(KNOWN, in_flight=in_flight, reports=2000, seed=7)
    return stage(in_flight, outcome.rate, outcome.ttft.mean, outcome.tpot.mean, output_lens=[*KNOWN.lengths, None])


def test_replicas_carry_the_load_within_the_objectives(h200: EnginePlan, shape: Shape) -> None:
    part = capacity.replica(h200, shape, (350,))
    objectives = Objectives(rate=100, ttft=2, e2e=15, price=4.0)
    answer = capacity.size(h200, shape, part, objectives)

    assert answer.replicas * answer.highest_rate >= 100 > (answer.replicas - 1) * answer.highest_rate
    assert answer.outcome.ttft.p95 <= 2 and answer.outcome.e2e.p95 <= 15
    assert answer.cost_per_thousand == pytest.approx(answer.replicas * 4.0 / 360)
    assert answer.bound_by == "vision tower"
    engine = [answer.utilisation[name] for name in ("vision tower", "prefill", "decode (memory bandwidth)")]
    assert 0.5 < sum(engine) < 1


@pytest.mark.parametrize(
    ("changes", "plan_changes", "bound"),
    [
        ({"prepare": 1.0}, {}, "film preparation"),
        ({"event": 1e-3}, {}, "gateway"),
        ({"prompt": 0.0001, "decode": 1e-3}, {}, "decode (memory bandwidth)"),
        ({"prompt": 0.0001, "arithmetic": 1e-3}, {}, "decode (arithmetic)"),
        ({"prompt": 0.0001, "prepare": 0.02, "slots": 16}, {}, "slots (limited by CUDA graphs, which end at 512)"),
        ({"prompt": 0.0001, "prepare": 0.02, "slots": 16}, {"reports_at_once": 16, "max_num_seqs": 16}, "KV cache"),
    ],
    ids=str,
)
def test_bound_names_the_part_that_limits(
    h200: EnginePlan, shape: Shape, changes: dict[str, float], plan_changes: dict[str, int], bound: str
) -> None:
    part = replace(capacity.replica(h200, shape, (100,)), **changes)
    adjusted = replace(h200, **plan_changes)
    assert capacity.size(adjusted, shape, part, Objectives(1, ttft=60, e2e=120)).bound_by == bound


def test_bound_is_the_objective_while_no_part_is_busy(h200: EnginePlan, shape: Shape) -> None:
    part = capacity.replica(h200, shape, (350,))
    alone = simulate.simulate(part, in_flight=1, reports=10).e2e.p95
    assert "objective of E2E" in capacity.size(h200, shape, part, Objectives(1, 2, 1.2 * alone)).bound_by
    with pytest.raises(ConfigError, match=r"a request alone on NVIDIA H200 has .* its last after 1\.\d\d s"):
        capacity.size(h200, shape, part, Objectives(1, 2, 0.9 * alone))


def test_tokens_in_events_of_four_relieve_the_gateway(h200: EnginePlan, shape: Shape) -> None:
    four, one = (
        capacity.size(h200, shape, capacity.replica(adjusted, shape, (350,)), Objectives(20, 2, 15))
        for adjusted in (h200, replace(h200, stream_interval=1))
    )
    assert one.utilisation["gateway"] > 2.5 * four.utilisation["gateway"]


def test_measured_loads_replace_the_times_of_the_roofline(model: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    stages = [simulated_stage(8), simulated_stage(32), stage(None, 9.0, 0.1, 0.02)]
    file.write_text(json.dumps({"schema": 1, "stages": stages, "valid": False, "reasons": ["late"], "slo": {}}))
    measured = measurement.read([file])
    assert [one.in_flight for one in measured.loads] == [8, 32], "an open loop has no number in flight"
    assert measured.doubts == (f"{file} is INVALID: late",)
    assert measured.lengths == KNOWN.lengths * 2

    shape = model.shape
    assert shape is not None
    device = replace(devices.TABLE["cpu"], memory_bytes=64 * 2**30)
    config = load.load(None, {"engine.max_num_seqs": 32})
    cpu = plan.make(model, device, config, model_dir=Path("/m"), socket=Path("/s"))
    fitted = capacity.measured_replica(cpu, shape, measured)
    between = simulate.simulate(KNOWN, in_flight=16, reports=2000)
    assert simulate.simulate(fitted, in_flight=16, reports=2000).rate == pytest.approx(between.rate, rel=0.05)
    longer = capacity.with_tokens(cpu, shape, fitted, 400)
    own, other = (capacity.replica(cpu, shape, lengths) for lengths in (measured.lengths, (400,)))
    assert longer == replace(fitted, lengths=(400,), prepare=longer.prepare, decode=longer.decode)
    assert longer.prepare - fitted.prepare == pytest.approx(other.prepare - own.prepare)
    assert longer.decode - fitted.decode == pytest.approx(other.decode - own.decode) and other.decode > own.decode
    with pytest.raises(ConfigError, match="at least two different numbers of requests in flight, each at most 4"):
        capacity.measured_replica(replace(cpu, max_num_seqs=4), shape, measured)


def test_rate_that_no_longer_grows_limits_a_replica(tmp_path: Path, capsys: Any) -> None:
    """Made of a server with 6 slots: 43 reports/s with 8 and with 16 in flight. The plan assumes 16 slots."""
    rates = {1: (6.73, 0.052), 4: (26.9, 0.052), 8: (43.1, 0.096), 16: (42.1, 0.287)}
    stages = [stage(load, rate, ttft, 0.0058, total_output_tokens=1700) for load, (rate, ttft) in rates.items()]
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"stages": stages}))
    words = ["plan", "--gpu", "l4", "--max-num-seqs", "16", "--from", str(file)]
    words += ["--rate", "100", "--slo-ttft", "1", "--slo-e2e", "2"]
    assert cli.main(words) == 0
    rows = capsys.readouterr().out.splitlines()
    (replicas, one, share) = (
        next(row for row in rows if row.startswith(name)) for name in ("replicas", "one replica", "at this rate")
    )
    assert " 3 for 100 reports/s" in replicas
    assert "at most 43.1 reports/s within them; bound by the measured rate, which more requests" in one
    assert " 33.3 reports/s a replica" in share
    (doubt,) = (row for row in rows if "the fit misses rates" in row)
    assert re.search(r"\+\d\d% at 16 in flight; repeat the measurement", doubt) and "at 4" not in doubt


def test_limit_of_a_measurement(tmp_path: Path) -> None:
    def limit(*rates: tuple[int, float], part: Replica = KNOWN) -> float:
        file = tmp_path / "bench.json"
        file.write_text(json.dumps({"stages": [stage(load, rate, 0.1, 0.02) for load, rate in rates]}))
        return capacity.measured_limit(part, KNOWN, measurement.read([file]))

    assert limit((8, 10), (16, 9), (32, 10.4)) == 10.4
    assert limit((8, 10), (32, 10.6)) == math.inf, "the rate still grows"
    assert limit((8, 10), (15, 10)) == math.inf, "too near to each other to tell"
    assert limit((8, 10), (16, 12), (64, 12)) == math.inf, "a load beyond the slots does not count"
    own, longer = (
        simulate.simulate(one, in_flight=32, reports=2000).rate for one in (KNOWN, replace(KNOWN, lengths=(400,)))
    )
    assert limit((8, 10), (32, 10), part=replace(KNOWN, lengths=(400,))) == pytest.approx(10 * longer / own)


def test_result_of_pedcxr_bench_is_read(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    record = Record(stages=[closed(400, 4), poisson(200, 10), closed(200, 2)])
    verdict = judge(record.stages, Workload(), [])
    text = results.dumps(results.assemble("knee", "fake", Workload(), record, verdict))
    file.write_text(text, encoding="utf-8-sig")  # as an editor may save it
    measured = measurement.read([file])
    assert [one.in_flight for one in measured.loads] == [2, 4]
    for one, rate in zip(measured.loads, (4.0, 8.0), strict=True):
        assert one.rate == pytest.approx(rate, rel=0.05), "a report takes 0.5 s"
        assert (one.ttft, one.tpot) == (pytest.approx(0.1), pytest.approx(0.4 / 39, rel=0.01))
        assert (one.prompt_tokens, one.output_tokens, set(one.lengths)) == (300, 40, {40})


def test_percent_of_the_roofline(h200: EnginePlan, shape: Shape, tmp_path: Path) -> None:
    file = tmp_path / "vllm.json"
    file.write_text(json.dumps(stage(512, 20.0, 0.5, 0.02, total_input_tokens=30_000, total_output_tokens=50_000)))
    ((label, text),) = capacity.measured_rows(h200, shape, measurement.read([file]))
    share = 20 / h200.expected.reports_per_s
    assert label == "measured at 512"
    assert text.endswith(f"{share:.0%} of the roofline for 300 prompt and 500 new tokens")
    file.write_text(json.dumps(stage(512, 200.0, 0.05, 0.002)))
    ((_, text),) = capacity.measured_rows(h200, shape, measurement.read([file]))
    assert text.endswith("so not of this model on this device")


def test_measurement_of_another_model_or_range_is_doubted(
    h200: EnginePlan, shape: Shape, model: Checkpoint, tmp_path: Path
) -> None:
    file = tmp_path / "demo.json"
    stages = [simulated_stage(count) | {"total_input_tokens": 6000} for count in (8, 32)]
    file.write_text(json.dumps({"model_id": "pedcxr-demo", "stages": stages}))
    measured = measurement.read([file])
    assert capacity.measured_rows(h200, shape, measured)[0] == ("measured model", "pedcxr-demo")
    doubt = ("measured", "prompts of 60 tokens, but 300 for this model: another model or prompt")
    assert capacity.measured_rows(h200, shape, measured)[-1] == doubt

    part = capacity.measured_replica(h200, shape, measured)
    objectives = Objectives(5, 2, 15)
    rows = capacity.rows(h200, part, capacity.size(h200, shape, part, objectives), objectives, measured)
    text = "at most 32 in flight: extrapolated to 512 slots; measure more or use --max-num-seqs 32"
    assert rows[-1] == ("measured", text)
    assert ("simulated with", "60 prompt and 50 new tokens a report, as measured") in rows


def test_accuracy_of_a_prediction_is_judged_by_rate_and_latency() -> None:
    rounds = [{"rate": 10.0, "ttft": 0.2, "tpot": 0.02, "ttft_p50": 0.2, "e2e_p50": e2e} for e2e in (1.1, 1.0, 0.9)]
    outcome = simulate.simulate(KNOWN, in_flight=16, reports=100)
    predicted = replace(outcome, rate=11.0, ttft=Distribution(0.3, 0.3, 0.3), e2e=Distribution(1.2, 1.2, 1.2))
    table, errors = capacity_accuracy.compare(rounds, predicted)
    assert table.splitlines()[2:] == [
        "| reports per second | 10 (10 to 10) | 11 | +10 % |",
        "| E2E, median, s | 1 (0.9 to 1.1) | 1.2 | +20 % |",
        "| TTFT, median, s | 0.2 (0.2 to 0.2) | 0.3 | +50 % |",
    ]
    assert errors == pytest.approx({"reports per second": 0.1, "E2E, median, s": 0.2})


def test_bench_splits_cpu_time_into_requests_and_events() -> None:
    """Of reports with 8 and 48 events, a request costs 20 ms and an event 0.1 ms."""

    def stage_of(events: int, cpu_ms: float) -> dict[str, object]:
        report = {"outcome": "ok", "gaps": [0.01] * (events - 1)}
        return {
            "samples": [report, report | {"outcome": "aborted", "gaps": []}],
            "figures": {"server_cpu_ms": {"api": cpu_ms}},
        }

    (cost,) = event_cost.costs(stage_of(8, 20.8), stage_of(48, 24.8)).values()
    assert (cost.request, cost.event) == (pytest.approx(20), pytest.approx(0.1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "is not a result of a load test"),
        ("[]", "is not a result of a load test"),
        ('{"stages": 3}', "is not a result of a load test"),
        ("{}", "has no closed loop with complete reports"),
        (json.dumps({"stages": [stage(None, 3, 1, 1)]}), "has no closed loop with complete reports"),
        (json.dumps(stage(8, 1e-300, 1, 1)), "has no closed loop with complete reports"),
        (json.dumps(stage(8, 3, 1, 1) | {"max_concurrency": 0.5}), r"`int \| null`.* at `\$\.max_concurrency`"),
        (json.dumps({"stages": [stage(-4, 3, 1, 1)]}), r">= 0 - at `\$\.stages\[0\]\.max_concurrency`"),
        (json.dumps(stage(8, -3, 1, 1)), r">= 0.0 - at `\$\.request_throughput`"),
        (json.dumps(stage(8, 3, -1, 1)), r">= 0.0 - at `\$\.mean_ttft_ms`"),
        (json.dumps(stage(8, 3, 1, 1, output_lens=[5, -5])), r">= 0 - at `\$\.output_lens\[1\]`"),
        (json.dumps(stage(8, 3, 1, 1, total_output_tokens=0)), "total_output_tokens: is 0"),
        (json.dumps(stage(8, 3, 1, 1) | {"completed": 0}), "has no closed loop with complete reports"),
        (json.dumps({"schema": 2, "stages": [stage(8, 3, 1, 1)]}), "another version of pedcxr bench, in format 2"),
    ],
)
def test_file_without_a_measurement_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        measurement.read([file])
    assert str(file) in str(caught.value)


def test_command_prints_the_capacity(model: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", str(model.folder), "--gpu", "h200"]
    assert cli.main([*words, "--rate", "20", "--slo-ttft", "2", "--price", "3.6", "--tokens", "100"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"model                   {model.folder}, {model.parameters:,} parameters\n")
    assert "simulated with          300 prompt and 100 new tokens a report\n" in text
    assert "replicas                1 for 20 reports/s; simulated, times of the roofline model\n" in text
    assert "price                   0.05 per 1,000 reports, at 3.6 an hour each\n" in text
    assert "vllm_main serve" in text

    assert cli.main([*words, "--rate", "20", "--slo-e2e", "0.5"]) == 2
    assert "use a faster device, shorter reports (--tokens), or larger objectives" in capsys.readouterr().err
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"stages": [simulated_stage(8), simulated_stage(32)]}))
    words += ["--max-num-seqs", "32", "--from", str(file)]
    assert cli.main([*words, "--tokens", "400"]) == 2
    assert "--tokens: needs --rate" in capsys.readouterr().err
    for option in ("--slo-ttft", "--slo-e2e"):
        assert cli.main([*words, option, "2"]) == 2
        assert f"{option}: needs --rate" in capsys.readouterr().err
    assert cli.main([*words, "--rate", "20", "--tokens", "400"]) == 0
    text = capsys.readouterr().out
    assert "simulated with          300 prompt and 400 new tokens a report; measured with 50 new tokens\n" in text
    assert "gateway: in the measured times\n" in text and "gateway 0%" not in text and "; decode (" not in text
    assert "\nmeasured  " not in text, "the loads cover all slots"
    assert text.count("of the roofline for 300 prompt and 50 new tokens") == 2
    assert "times fitted to the measured loads" in text


@pytest.mark.parametrize("word", ["0", "-1", "nan", "inf", "x"])
def test_capacity_options_must_be_positive_numbers(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", "--rate", word])
    assert caught.value.code == 2
    assert "--rate" in capsys.readouterr().err
