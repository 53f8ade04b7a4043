"""Schedules are pure: the same seed gives the same times, and their statistics are those of their process."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest

from pedcxr_client import ConfigurationError
from pedcxr_client.bench import schedule
from pedcxr_client.bench.workload import Load, Workload


def test_poisson_arrivals_have_the_rate_and_exponential_gaps():
    stage = schedule.poisson(50, 100, seed=1)
    gaps = [after - before for before, after in pairwise(stage.times)]
    assert 4700 < len(stage.times) < 5300
    assert 0.95 < statistics.pstdev(gaps) / statistics.fmean(gaps) < 1.05
    assert stage.times == schedule.poisson(50, 100, seed=1).times != schedule.poisson(50, 100, seed=2).times
    assert stage.is_open


def test_a_ramp_changes_the_rate_linearly():
    times = schedule.ramp(10, 90, 100, seed=1).times
    quarters = [sum(25 * at <= time < 25 * (at + 1) for time in times) for at in range(4)]
    for count, expected in zip(quarters, (500, 1000, 1500, 2000), strict=True):
        assert abs(count - expected) < 0.1 * expected + 50
    down = schedule.ramp(90, 10, 100, seed=1).times
    assert sum(time < 50 for time in down) > 2 * sum(time >= 50 for time in down)
    assert len(schedule.ramp(10, 10, 100, seed=1).times) == len(schedule.poisson(10, 100, seed=1).times)


def test_steps_are_stages_of_their_own():
    stages = schedule.of_load(Workload(load=Load("steps", rates=(1, 2, 4), seconds=30)))
    assert [(stage.rate, stage.seconds) for stage in stages] == [(1, 10), (2, 10), (4, 10)]


def test_a_sweep_is_a_closed_loop_of_each_load():
    stages = schedule.of_load(Workload(load=Load("sweep", loads=(1, 16), seconds=30)))
    assert stages == [schedule.closed(1, 15), schedule.closed(16, 15)]


def test_stages_of_equal_loads_have_names_of_their_own():
    sweep = schedule.of_load(Workload(load=Load("sweep", loads=(2, 8, 2, 2))))
    assert [stage.name for stage in sweep] == ["closed 2", "closed 8", "closed 2 #2", "closed 2 #3"]
    steps = schedule.of_load(Workload(load=Load("steps", rates=(1, 2, 1))))
    assert [stage.name for stage in steps] == ["poisson 1/s", "poisson 2/s", "poisson 1/s #2"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_trace_is_read_and_sorted(tmp_path, encoding):
    (tmp_path / "trace.txt").write_text("3.5\n0\n1.25\n", encoding=encoding)
    (stage,) = schedule.of_load(Workload(load=Load("trace", file="trace.txt"), folder=tmp_path))
    assert stage.times == (0, 1.25, 3.5)


@pytest.mark.parametrize("text", ["", "one", "nan", "-1", "inf", "0\nnan\n0.5"])
def test_a_damaged_trace_is_an_error(tmp_path, text):
    (tmp_path / "trace.txt").write_text(text)
    with pytest.raises(ConfigurationError, match=r"load\.file"):
        schedule.trace(tmp_path / "trace.txt")


def test_a_load_that_fills_the_memory_is_an_error(monkeypatch):
    monkeypatch.setattr(schedule, "_MOST_REQUESTS", 1000)
    assert len(schedule.poisson(9, 100, seed=1).times) <= 1000
    with pytest.raises(ConfigurationError, match="more than 1,000 requests"):
        schedule.poisson(1e9, 1e9, seed=1)
