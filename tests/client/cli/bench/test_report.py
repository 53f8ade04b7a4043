"""The report of a made-up sweep: its first line, its tables and its pictures."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pedcxr_client.bench import charts, report, results, verdict
from pedcxr_client.bench.charts import Series
from pedcxr_client.bench.figures import StageRun
from pedcxr_client.bench.results import Result
from pedcxr_client.bench.run import Record
from pedcxr_client.bench.watch import Process, Scrapes
from pedcxr_client.bench.workload import Objectives, Workload
from tests.client.cli.bench.helpers import closed, poisson


def engine_times(run: StageRun, queue_ms: float) -> StageRun:
    times = {"queue_time_ms": queue_ms, "time_to_first_token_ms": 20.0, "generation_time_ms": 400.0}
    samples = [replace(one, engine=times, tenant="ward" if at % 3 else "clinic") for at, one in enumerate(run.samples)]
    scrapes = Scrapes(series=[{"time": at, "kv": at / 10, "running": at, "waiting": 0.0} for at in range(9)])
    return replace(run, samples=samples, scrapes=scrapes)


def result(mode: str, *runs: StageRun, knee: tuple[float, float] | None = None, **fields: object) -> Result:
    load, record = Workload(slo=Objectives(e2e=2)), Record(stages=list(runs))
    made_up = results.assemble(mode, "fake", load, record, verdict.judge(record.stages, load, []), knee)
    return replace(made_up, **fields)  # type: ignore[arg-type]


@pytest.fixture
def sweep() -> Result:
    stages = [engine_times(closed(100, 1), 1), engine_times(closed(200, 2), 2), engine_times(closed(400, 4), 60)]
    return result("knee", *stages, knee=(4.0, 8.0))


def test_the_first_line_says_it_in_a_users_words(sweep: Result) -> None:
    assert report.markdown(sweep).splitlines()[0] == (
        "VALID: 480 reports per minute at p95 <= 0.5 s; the knee is at 4 in flight; bounded by queue"
    )


def test_the_first_line_without_the_servers_times_names_a_half_of_the_report(sweep: Result) -> None:
    stages = [replace(run, samples=[replace(one, engine={}) for one in run.samples]) for run in sweep.record.stages]
    slow = [replace(one, first=one.sent + 0.1, last=one.sent + 0.9) for one in stages[2].samples]
    line = report.headline(result("knee", *stages[:2], replace(stages[2], samples=slow), knee=(4.0, 8.0)))
    assert line.endswith("bounded by the generation")


def test_an_open_loop_describes_its_best_stage() -> None:
    line = report.headline(result("certify", poisson(200, 10), poisson(400, 20), knee=(4.0, 20.0), missed="none good"))
    assert line.startswith("VALID: 12")
    assert "; the knee is at 4 in flight; none good" in line
    assert report.headline(result("run")).startswith("INVALID: no report in any window; the objectives cannot be met")


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
