"""Figures from made-up samples whose results are known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pedcxr_client.bench import figures
from pedcxr_client.bench.workload import Objectives
from tests.client.cli.bench.helpers import closed, poisson, sample


def test_the_window_of_a_closed_loop_leaves_out_ramp_and_drain():
    run = closed(count=40, in_flight=4)  # ten rounds of 0.5 s
    assert run.window == (0.5, 4.5)
    values = figures.figures(run, Objectives(), {})
    assert values.rate.value == pytest.approx(8)  # 4 requests in flight, 0.5 s each
    assert values.completed == 32
    assert values.in_flight == 4


def test_the_window_of_an_open_loop_counts_scheduled_requests():
    values = figures.figures(poisson(count=200, rate=10), Objectives(), {})
    assert values.rate.value == pytest.approx(10, rel=0.02)
    assert values.in_flight == pytest.approx(5, rel=0.01)  # Little's law: 10 per second, 0.5 s each


def test_latencies_of_the_user_count_from_the_scheduled_time():
    late = sample(10, ttft=0.1, e2e=0.5, scheduled=7)
    assert late.ttft == pytest.approx(0.1)
    assert late.ttft_user == pytest.approx(3.1)
    assert late.e2e_user == pytest.approx(3.5)
    assert late.tpot == pytest.approx(0.4 / 39)
    assert not figures.meets(late, Objectives(ttft=2))


def test_goodput_counts_reports_that_meet_every_objective():
    run = closed(count=40)
    run.samples[20].outcome = "rate_limited"
    run.samples[21].last = run.samples[21].last + 3
    values = figures.figures(run, Objectives(ttft=1, e2e=2), {})
    assert values.goodput == pytest.approx((32 - 2) / 4)
    assert values.rate.value == pytest.approx(31 / 4)
    assert figures.meets(sample(), Objectives())
    assert not figures.meets(sample(first=None, last=None), Objectives(tpot=1))


def test_percentiles_need_their_number_of_requests():
    assert figures.percentiles([]) == {}
    assert figures.percentiles([1.0, None, 3.0]) == {"mean": 2.0, "p50": 1.0, "p90": 3.0}
    assert figures.percentiles([float(value) for value in range(1, 101)])["p95"] == 95


def test_the_waterfall_adds_up_to_the_whole_time():
    times = {"queue_time_ms": 20.0, "time_to_first_token_ms": 30.0, "generation_time_ms": 400.0}
    parts = figures.waterfall([sample(engine=times), sample()])
    assert parts == pytest.approx({"before the engine": 0.05, "queue": 0.02, "prefill": 0.03, "decode": 0.4})


def test_the_knee_is_the_smallest_load_near_the_best_rate():
    draw = random.Random(3)

    def parts(rate: float) -> list[float]:
        return [draw.gauss(rate, 0.02 * rate) for _ in range(12)]

    rates = [parts(rate) for rate in (2, 4, 8, 9.9, 10, 9.8)]
    assert figures.knee([1, 2, 4, 8, 16, 32], rates) == 8
    assert figures.knee([1], [[]]) == 1


def test_there_is_a_knee_although_no_load_is_the_best_in_half_of_the_windows():
    rates = [[0.0] * 9 + [10.0]] * 4  # as of a server that ends its requests in batches
    assert figures.knee([1, 2, 4, 8], rates) in (1, 2, 4, 8)
    assert figures.knee([1, 2, 4, 8], [[1.0], *rates[1:]]) in (2, 4, 8)


@pytest.mark.parametrize(
    ("rates", "saturated"),
    [([2, 4], False), ([2, 4, 8, 8.2, 8.1], True), ([2, 4, 4.1, 8], False), ([8, 4, 2], True)],
)
def test_a_sweep_ends_after_two_loads_that_gain_nothing(rates, saturated):
    assert figures.is_saturated(rates) is saturated


def test_the_interval_of_a_rate_contains_it():
    rate = figures.figures(closed(count=400), Objectives(), {}).rate
    assert rate.low <= rate.value <= rate.high
    assert figures.interval([1.0, 2.0, 3.0], max) == figures.interval([1.0, 2.0, 3.0], max)


def test_shares_of_tenants_and_outcomes():
    run = closed(count=40)
    samples = [replace(one, tenant="ward" if at % 4 else "clinic") for at, one in enumerate(run.samples)]
    values = figures.figures(replace(run, samples=samples), Objectives(), {"film 1": "same", "film 2": "other"})
    assert values.tenants["ward"]["share"] == pytest.approx(0.75)
    assert values.outcomes == {"ok": 40}
    assert values.lengths == {32: 32}
    assert values.different == (5, 10)


def test_reports_after_the_load_are_no_share_of_it():
    """A server that serves ward only once nobody else waits, and that refuses every film of the third tenant."""
    names = ("clinic", "ward", "lab")
    samples = [replace(one, tenant=names[at % 3]) for at, one in enumerate(poisson(count=300, rate=10).samples)]
    for one in samples:
        one.done, one.last = (one.done + 40, one.done + 40) if one.tenant == "ward" else (one.done, one.last)
        one.outcome = "rate_limited" if one.tenant == "lab" else "ok"
    tenants = figures.figures(replace(poisson(count=300, rate=10), samples=samples), Objectives(), {}).tenants
    assert {name: (row["share"], row["share_of_tokens"]) for name, row in tenants.items()} == {
        "clinic": (1, 1), "lab": (0, 0), "ward": (0, 0),
    }  # fmt: skip
    assert tenants["ward"]["e2e_user_p50"] == pytest.approx(40.5)
