"""The report of a made-up sweep: its first line, its tables and its pictures."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace

import pytest

from pedcxr_client.bench import charts, report, results, verdict
from pedcxr_client.bench.charts import Series
from pedcxr_client.bench.figures import StageRun
from pedcxr_client.bench.results import Result
from pedcxr_client.bench.run import Knee, Record
from pedcxr_client.bench.watch import Process, Scrapes
from pedcxr_client.bench.workload import Objectives, Reports, Workload
from pedcxr_client.cli import bench
from tests.client.cli.bench.helpers import closed, poisson, sample


def engine_times(run: StageRun, queue_ms: float) -> StageRun:
    times = {"queue_time_ms": queue_ms, "time_to_first_token_ms": 20.0, "generation_time_ms": 400.0}
    samples = [replace(one, engine=times, tenant="ward" if at % 3 else "clinic") for at, one in enumerate(run.samples)]
    scrapes = Scrapes(series=[{"time": at, "kv": at / 10, "running": at, "waiting": 0.0} for at in range(9)])
    return replace(run, samples=samples, scrapes=scrapes)


def result(mode: str, *runs: StageRun, knee: Knee | None = None, **fields: object) -> Result:
    load, record = Workload(slo=Objectives(e2e=2)), Record(stages=list(runs))
    made_up = results.assemble(mode, "fake", load, record, verdict.judge(record.stages, load, []), knee)
    return replace(made_up, **fields)  # type: ignore[arg-type]


@pytest.fixture
def sweep() -> Result:
    stages = [engine_times(closed(100, 1), 1), engine_times(closed(200, 2), 2), engine_times(closed(400, 4), 60)]
    return result("knee", *stages, knee=Knee(4.0, 8.0))


def test_the_first_line_says_it_in_a_users_words(sweep: Result) -> None:
    assert report.markdown(sweep).splitlines()[0] == (
        "VALID: 480 reports per minute at p95 <= 0.5 s; the knee is at 4 in flight; bounded by queue"
    )


def test_the_rate_of_a_ramp_has_no_interval() -> None:
    """Its parts differ because the load does."""
    run = poisson(400, 10)
    stage = replace(run.stage, name="ramp 5 to 15/s")
    made_up = result("run", run, replace(run, stage=stage))
    steady, unsteady = report.tables(made_up)[0][2]
    assert re.fullmatch(r"10\.?\d* \(\S+-\S+\)", steady[3])
    assert re.fullmatch(r"10\.?\d*", unsteady[3])
    rate = made_up.as_dict()["stages"][1]["figures"]["rate"]
    assert rate["low"] is rate["high"] is None
    assert "nan" not in report.html(made_up).lower()


def test_the_first_line_without_the_servers_times_names_a_half_of_the_report(sweep: Result) -> None:
    stages = [replace(run, samples=[replace(one, engine={}) for one in run.samples]) for run in sweep.record.stages]
    slow = [replace(one, first=one.sent + 0.1, last=one.sent + 0.9) for one in stages[2].samples]
    line = report.headline(result("knee", *stages[:2], replace(stages[2], samples=slow), knee=Knee(4.0, 8.0)))
    assert line.endswith("bounded by the generation")


def part(share: int, slow: int = 0) -> StageRun:
    """A stage of ``certify`` at a share of 20 per second; of each ten reports, this many are late."""
    run = poisson(400, share / 5)
    samples = [replace(one, last=one.sent + 20) if at % 10 < slow else one for at, one in enumerate(run.samples)]
    return replace(run, samples=samples, stage=replace(run.stage, name=f"{share}% of the knee"))


def test_the_first_line_certifies_the_fastest_stage_that_meets_the_objectives() -> None:
    good = result("certify", closed(400, 4), part(50), part(100), knee=Knee(4.0, 20.0))
    assert good.missed == ""
    line = r"VALID: 12\d\d reports per minute at p95 <= 0.5 s \(100% of the knee\); the knee is at 4 "
    assert re.match(line, report.headline(good))
    mixed = result("certify", part(50), part(100, slow=3), knee=Knee(0.0, 20.0))
    assert re.fullmatch(
        r"VALID, OBJECTIVES MISSED: 6\d\d reports per minute at p95 <= 0.5 s \(50% of the knee\); "
        r"fewer than 95% of the requests meet E2E <= 2 s: 100% of the knee \(70.\d%\)",
        report.headline(mixed),
    )
    bad = report.headline(result("certify", part(50, slow=1), part(100, slow=3)))
    assert bad.startswith("VALID, OBJECTIVES MISSED: fewer than 95% of the requests meet E2E <= 2 s: 50% of the knee (")
    assert report.headline(result("run")).startswith("INVALID, OBJECTIVES MISSED: no report in any window; the objecti")


@pytest.mark.parametrize(("slow", "code"), [(0, 0), (3, 1)])
def test_the_exit_code_says_whether_each_stage_meets_the_objectives(slow: int, code: int) -> None:
    value = result("certify", part(50), part(100, slow))
    options = argparse.Namespace(mode="certify")
    assert bench._finish(options, value.workload, "fake", value.record, None, {}) == code


def test_a_knee_beyond_the_objectives_and_none_say_so() -> None:
    late = closed(400, 4)
    late = replace(late, samples=[replace(one, last=one.sent + 3) for one in late.samples])
    knee = result("knee", closed(100, 1), late, knee=Knee(4.0, 8.0, is_reached=False))
    assert report.headline(knee) == (
        "VALID: 480 reports per minute, but only 0.0% of the requests meet E2E <= 2 s; "
        "no knee up to 4 in flight (--most)"
    )


def test_the_server_and_the_compared_texts_are_stated() -> None:
    value = result("run", closed())
    value.record.alone.append(sample())
    value.record.server.update(version={"version": "0|11"}, models={"data": [{"id": "fake", "root": ""}]}, server="")
    text, page = report.markdown(value), report.html(value)
    assert "## Server\n\n|  |  |\n| --- | --- |\n| version.version | 0\\|11 |\n| models.data.id | fake |\n\n" in text
    assert "<h2>Server</h2>" in page and "<td>models.data.id</td><td>fake</td>" in page
    assert "texts unlike alone (1 films)" in text and ", not enforced |" in text
    enforced = replace(value, workload=replace(value.workload, reports=Reports(max_different=0)))
    assert "not enforced" not in report.markdown(enforced)


def test_broken_rules_and_noise_are_in_the_report() -> None:
    page = report.html(result("run", closed(own_cpu_s=99, calibration_s=[1, 2], interrupted="<stopped>")))
    assert "INVALID: " in page and "NOISY: " in page
    assert '<li class="bad">closed 4: &lt;stopped&gt;</li>' in page
    assert "not checked" not in page


def test_tables_and_pictures_of_a_sweep(sweep: Result) -> None:
    text, page = report.markdown(sweep), report.html(sweep)
    titles = ["Load", "Where the time goes, mean per report", "Tenants", "Checks", "Length of the reports in tokens"]
    for title in titles:
        assert f"\n## {title}\n" in text
        assert f"<h2>{title}</h2>" in page
    assert "| closed 4 | 20 ms | 60 ms | 20 ms | 400 ms |" in text
    labels = re.findall(r'aria-label="([^"]+)"', page)
    assert labels == [
        "seconds against requests in flight", "seconds against requests in flight",
        "per second against requests in flight", "seconds per report", "share", "share against seconds",
        "requests against seconds",
    ]  # fmt: skip
    assert "objective 2" in page


def test_the_processes_of_the_server_are_shown() -> None:
    before, after = [Process(1, "api", 1.0, 100.0, 9)], [Process(1, "api", 3.0, 101.0, 9)]
    text = report.markdown(result("soak", closed(200, processes=(before, after))))
    assert "| closed 4 | 10.0 ms, +1.0% |" in text


def test_charts_without_points_are_empty_and_names_are_escaped() -> None:
    assert charts.lines([Series("a", [])], "x", "y") == charts.bars([], ["a"], "y") == ""
    assert "&lt;a&gt;" in charts.lines([Series("<a>", [(1, 2), (1, 3)])], "x", "y")
    assert charts.lines([Series("a", [(float(at), 1.0) for at in range(100)])], "x", "y").count("<circle") == 0


def test_a_line_breaks_at_a_gap() -> None:
    points = [(0.0, 1.0), (1.0, 1.0), (5.0, 1.0)]
    assert charts.lines([Series("a", points)], "x", "y").count("<polyline") == 1
    assert charts.lines([Series("a", points)], "x", "y", gap=1.5).count("<polyline") == 2


def test_a_logarithmic_axis_spreads_powers_evenly() -> None:
    chart = charts.lines([Series("a", [(1, 0.5), (10, 0.5), (1000, 0.5)])], "x", "y", log_x=True)
    first, second, third = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart))
    assert (third - first) / (second - first) == pytest.approx(3, abs=0.01)
