"""``pedcxr bench compare``: a regression is found, noise is not, and files that cannot be compared are named."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pedcxr_client.bench import results, schedule, verdict
from pedcxr_client.bench.figures import StageRun
from pedcxr_client.bench.run import Knee, Record
from pedcxr_client.bench.schedule import Stage
from pedcxr_client.bench.workload import Films, Workload
from pedcxr_client.cli.main import main
from tests.client.cli.bench.helpers import closed, poisson, sample


def noisy(run: StageRun, factor: float, seed: int) -> StageRun:
    """Times drawn around those of the run, made longer by a factor."""
    draw = random.Random(seed)
    samples = []
    for one in run.samples:
        slower = factor * draw.gauss(1, 0.1)
        at = one.sent * factor if not run.stage.is_open else one.sent
        samples.append(sample(at, ttft=0.1 * slower, e2e=0.5 * slower, case=one.case))
    return replace(run, samples=samples)


def write(path: Path, *runs: StageRun, knee: Knee | None = None, **changes: Any) -> str:
    load, record = Workload(), Record(stages=list(runs))
    judged = verdict.judge(record.stages, load, [])
    result = results.assemble("run", "fake", load, record, judged, knee)
    path.write_text(json.dumps(json.loads(results.dumps(result)) | changes))
    return str(path)


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.json", closed(), knee=Knee(4, 8.0)))
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert results.read_knee(str(path)) == Knee(4, 8.0)


@pytest.mark.parametrize("run", [closed(240), poisson(240)], ids=["closed", "open"])
def test_equal_servers_show_no_regression(tmp_path: Path, capsys: Any, run: StageRun) -> None:
    before, after = (write(tmp_path / f"{seed}.json", noisy(run, 1, seed)) for seed in (1, 2))
    assert main(["bench", "compare", before, after]) == 0
    assert capsys.readouterr().out.startswith("0 regressions, 0 improvements beyond 5%\n")


@pytest.mark.parametrize("run", [closed(240), poisson(240)], ids=["closed", "open"])
def test_a_slower_server_is_a_regression(tmp_path: Path, capsys: Any, run: StageRun) -> None:
    before, after = write(tmp_path / "a.json", noisy(run, 1, 1)), write(tmp_path / "b.json", noisy(run, 1.3, 2))
    assert main(["bench", "compare", before, after]) == 1
    out = capsys.readouterr().out
    assert "| E2E p50 |" in out
    assert ("reports per second" in out) is not run.stage.is_open
    assert out.count("regression |") >= 3
    assert main(["bench", "compare", before, after, "--tolerance", "0.6"]) == 0
    assert main(["bench", "compare", after, before]) == 0
    assert "improvement |" in capsys.readouterr().out


@pytest.mark.parametrize("run", [closed(600), poisson(600)], ids=["closed", "open"])
@pytest.mark.parametrize("every", [1, 2])
def test_refusals_are_a_regression(tmp_path: Path, capsys: Any, run: StageRun, every: int) -> None:
    """Those of each second request, which halve the goodput of an open loop, and those of each."""
    refused = [
        replace(one, outcome="rate_limited", status=429) if not at % every else one
        for at, one in enumerate(run.samples)
    ]
    before, after = write(tmp_path / "a.json", run), write(tmp_path / "b.json", replace(run, samples=refused))
    assert main(["bench", "compare", before, after]) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if "| regression |" in line]
    expected = ["reports per second"] * (not run.stage.is_open) + ["goodput per second", "share of good requests"]
    assert [row.split(" | ")[1] for row in rows] == expected


def test_each_of_several_stages_of_one_name_is_compared(tmp_path: Path, capsys: Any) -> None:
    run, slower = closed(240), closed(240)
    slower = replace(slower, samples=[replace(one, last=one.done + 0.5, done=one.done + 0.5) for one in slower.samples])
    before = write(tmp_path / "a.json", run, run)
    for after, name in (((slower, run), "closed 4"), ((run, slower), "closed 4 #2")):
        assert main(["bench", "compare", before, write(tmp_path / "b.json", *after)]) == 1
        worse = {line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if "| regression |" in line}
        assert worse == {f"| {name}"}


def interval_of(row: str) -> tuple[float, float, float]:
    value, low, high = map(float, re.findall(r"\d\.\d{3}", row)[-3:])
    return value, low, high


def ramp(knee_rate: float, seed: int) -> StageRun:
    """From 1 to 20 requests per second; above a rate, the server takes 3 s in place of 0.5 s."""
    stage, draw = schedule.ramp(1, 20, 120, seed=1), random.Random(seed)
    samples = [
        sample(time, e2e=(0.5 if 1 + 19 * time / 120 <= knee_rate else 3.0) * draw.uniform(0.9, 1.1))
        for time in stage.times
    ]
    return replace(poisson(), stage=stage, samples=samples, end=123)


@pytest.mark.parametrize("name", ["ramp 1 to 20/s", "trace arrivals.txt"])
def test_parts_of_a_ramp_or_a_trace_are_not_interchangeable(tmp_path: Path, capsys: Any, name: str) -> None:
    def file(at: str, knee_rate: float, seed: int) -> str:
        run = ramp(knee_rate, seed)
        return write(tmp_path / at, replace(run, stage=replace(run.stage, name=name)), slo={"e2e": 1})

    before = file("a.json", 15, 1)
    assert main(["bench", "compare", before, file("b.json", 12.5, 2)]) == 1
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "goodput per second" in line)
    value, low, high = interval_of(row)
    assert low == pytest.approx(value, abs=0.05) and high == pytest.approx(value, abs=0.05) and value < 0.8
    assert main(["bench", "compare", before, file("c.json", 15, 3)]) == 0


def test_parts_keep_their_weight_in_a_long_run(tmp_path: Path, capsys: Any) -> None:
    """Of 1,600 reports in half of the time and 190 in the other, the latter become slow."""
    times = [*(number / 266 for number in range(1600)), *(6.02 + number / 32 for number in range(190))]

    def file(name: str, quiet_e2e: float) -> str:
        run = replace(poisson(), stage=Stage("trace busy.txt", 12, times=tuple(times), rate=149))
        samples = [sample(at, e2e=0.5 if at < 6 else quiet_e2e) for at in times]
        return write(tmp_path / name, replace(run, samples=samples, end=15), slo={"e2e": 1})

    assert main(["bench", "compare", file("a.json", 0.5), file("b.json", 3.0)]) == 1
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "share of good" in line)
    value, low, high = interval_of(row)
    assert value == pytest.approx(0.868, abs=0.001)
    assert low == pytest.approx(value, abs=0.02) and high == pytest.approx(value, abs=0.02)


def test_goodput_is_compared_by_the_objectives(tmp_path: Path, capsys: Any) -> None:
    before, after = (write(tmp_path / f"{slo}.json", closed(400), slo={"e2e": slo}) for slo in (0.4, 0.6))
    assert main(["bench", "compare", after, before]) == 0
    assert "| share of good requests | 1 | 1 |" in capsys.readouterr().out


def test_other_loads_are_faults(tmp_path: Path, capsys: Any) -> None:
    before = write(tmp_path / "a.json", closed(400), poisson(200, 20))
    after = write(tmp_path / "b.json", closed(400), poisson(200, 5))
    assert main(["bench", "compare", before, after]) == 1
    out = capsys.readouterr().out
    assert "- open: A offers 20 and B 5 requests per second; repeat B with the load of A: the same --from or" in out
    assert "| open |" not in out
    without = write(tmp_path / "c.json", closed(400))
    for files, rates in (((before, without), "20 and B 0"), ((without, before), "0 and B 20")):
        assert main(["bench", "compare", *files]) == 1
        assert f"- open: A offers {rates} requests per second" in capsys.readouterr().out


def test_knees_at_other_loads_are_compared(tmp_path: Path, capsys: Any) -> None:
    one, two, four = closed(200, 1), closed(400, 2), closed(400, 4)
    before = write(tmp_path / "a.json", one, two, four, knee=Knee(4, 8))
    after = write(tmp_path / "b.json", one, two, knee=Knee(2, 4))
    assert main(["bench", "compare", before, after]) == 1
    out = capsys.readouterr().out
    assert "- closed 4: only in A" in out
    assert "| knee | reports per second | 8 | 4 |" in out
    after = write(tmp_path / "b.json", one, two, knee=Knee(2, 4, is_reached=False))
    assert main(["bench", "compare", before, after]) == 0
    assert "| knee |" not in capsys.readouterr().out


def phases(seed: int) -> StageRun:
    """Four lanes of a server whose speed changes every 4 seconds."""
    draw, run = random.Random(seed), closed()
    speeds = [draw.uniform(0.9, 1.25) for _ in range(20)]
    samples = []
    for _ in range(4):
        at = 0.0
        while at < 60:
            e2e = 0.5 * speeds[int(at / 4)] * draw.gauss(1, 0.02)
            samples.append(sample(at, ttft=e2e / 5, e2e=e2e))
            at += e2e
    return replace(run, samples=samples, end=max(one.done for one in samples))


def test_a_server_of_varying_speed_shows_no_regression(tmp_path: Path) -> None:
    """Of 60 pairs, 19 were regressions while single samples were resampled, these among them; with parts, 4 are."""
    codes = []
    for seed in (6, 13, 18, 20):
        before, after = (write(tmp_path / f"{at}.json", phases(at)) for at in (seed, 1000 + seed))
        codes.append(main(["bench", "compare", before, after]))
    assert codes == [0] * len(codes)


def test_an_invalid_run_is_named(tmp_path: Path, capsys: Any) -> None:
    before = write(tmp_path / "a.json", closed(400))
    after = write(tmp_path / "b.json", closed(400, own_cpu_s=99))
    assert main(["bench", "compare", before, after]) == 1
    assert "B is INVALID: closed 4: this process used" in capsys.readouterr().out


def test_a_noisy_machine_is_named_and_is_no_fault(tmp_path: Path, capsys: Any) -> None:
    before = write(tmp_path / "a.json", closed(240))
    after = write(tmp_path / "b.json", closed(240, calibration_s=[0.01, 0.013]))
    assert main(["bench", "compare", before, after]) == 0
    assert "- B: the machine's speed varied by" in capsys.readouterr().out


def test_other_lengths_of_the_reports_are_named(tmp_path: Path, capsys: Any) -> None:
    run = closed(400)
    longer = replace(run, samples=[replace(one, completion_tokens=60) for one in run.samples])
    main(["bench", "compare", write(tmp_path / "a.json", run), write(tmp_path / "b.json", longer)])
    assert "reports of B have +50% tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2, "tool": "pedcxr bench 9.0"}, "was written by pedcxr bench 9.0 in format 2"),
        ({"stages": 3}, "is not a result of pedcxr bench"),
        ({"stages": [{"name": "closed 4"}]}, "is damaged"),
        ({"stages": []}, "no stage in common"),
        (
            {"workload": None, "valid": "yes"},
            "B: workload, valid: missing or damaged; give the JSON file of pedcxr bench",
        ),
        ({"slo": {"e2e": "2"}}, "B: slo: missing or damaged"),
        ({"slo": {"p99": 2}}, "B: slo: missing or damaged"),
        ({"reasons": "late"}, "B: reasons: missing or damaged"),
        ({"workload": Workload(films=Films(count=9)).described()}, "different workloads (films)"),
    ],
)
def test_files_that_cannot_be_compared(tmp_path: Path, capsys: Any, changes: dict[str, Any], words: str) -> None:
    before, after = write(tmp_path / "a.json", closed()), write(tmp_path / "b.json", closed(), **changes)
    assert main(["bench", "compare", before, after]) == 2
    assert words in capsys.readouterr().err


def test_a_file_of_vllm_bench_and_a_missing_one(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "vllm.json").write_text('{"completed": 3}')
    assert main(["bench", "compare", str(tmp_path / "vllm.json"), str(tmp_path / "vllm.json")]) == 2
    assert "is not a result of pedcxr bench" in capsys.readouterr().err
    (tmp_path / "empty.json").write_text('{"schema": 1, "stages": []}')
    assert main(["bench", "compare", str(tmp_path / "empty.json"), str(tmp_path / "empty.json")]) == 2
    assert "A: workload, valid, reasons, slo, knee: missing or damaged" in capsys.readouterr().err
    assert main(["bench", "compare", str(tmp_path / "none.json"), str(tmp_path / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().err
