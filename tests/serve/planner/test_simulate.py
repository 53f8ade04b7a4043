"""The simulated replica: times of single requests, limits of each part, laws that hold for every queue, and the fit."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from pedcxr_serve.planner.replica_model import Replica
from pedcxr_serve.planner.simulate import Distribution, Measured, fit, highest_rate, rate_errors, simulate

REPLICA = Replica(prepare=0.02, step=0.01, decode=0.0002, prompt=0.03, lengths=(50,), slots=32)
KNOWN = Replica(
    prepare=0.03, step=0.01, decode=0.0005, prompt=0.012, lengths=(29, 35, 43, 57, 79), slots=32, prompts_per_step=18
)


def test_request_alone_takes_the_sum_of_its_parts() -> None:
    outcome = simulate(replace(REPLICA, event=0.001, request=0.004), in_flight=1, reports=10)
    first = 0.02 + (0.01 + 0.03) + 0.001
    assert outcome.ttft.p50 == pytest.approx(first)
    assert outcome.tpot.p50 == pytest.approx(0.01 + 0.0002)
    assert outcome.e2e.p50 == pytest.approx(first + 49 * (0.01 + 0.0002))
    assert outcome.decoding == pytest.approx(49 * 0.0102 / outcome.e2e.p50, rel=0.05)


@pytest.mark.parametrize(
    ("slow", "limit"),
    [
        ({"prepare": 1.0}, 1.0),
        ({"prepare": 1.0, "api_processes": 3}, 3.0),
        ({"prompt": 1.0}, 1.0),
        ({"arithmetic": 0.02}, 1.0),  # 50 tokens of 20 ms each, however many decode together
        ({"event": 0.01}, 2.0),  # 50 events of 10 ms each
        ({"event": 0.01, "stream_interval": 4}, 7.5),  # the first token, and 49 in events of four
        ({"request": 0.5}, 2.0),
    ],
    ids=str,
)
def test_slowest_part_limits_the_rate(slow: dict[str, float], limit: float) -> None:
    outcome = simulate(replace(REPLICA, **slow), in_flight=32, reports=600)
    assert 0.9 * limit < outcome.rate <= 1.06 * limit


def test_requests_beyond_the_slots_wait_in_the_queue_of_the_gateway() -> None:
    within, beyond = (simulate(REPLICA, in_flight=count, reports=1000) for count in (32, 64))
    assert within.waiting == 0
    assert beyond.waiting > 20
    assert beyond.decoding < 32
    assert beyond.rate == pytest.approx(within.rate, rel=0.03)
    assert beyond.ttft.p50 > within.ttft.p50 + 0.5


def test_step_takes_in_a_limited_number_of_prompts() -> None:
    quick = replace(REPLICA, prepare=0.0, prompt=0.0, decode=0.0)
    many, one = (simulate(replace(quick, prompts_per_step=n), in_flight=8, reports=8) for n in (8, 1))
    assert many.ttft.p95 == pytest.approx(0.02, rel=0.01), "the first, and then all others in one step"
    assert one.ttft.p95 == pytest.approx(0.08, rel=0.01), "one in each of eight steps"


@pytest.mark.parametrize("seed", range(6))
def test_littles_law_holds(seed: int) -> None:
    draw = Random(seed).uniform
    replica = Replica(
        prepare=draw(0.001, 0.05),
        step=draw(0.001, 0.03),
        decode=draw(0, 0.001),
        prompt=draw(0.001, 0.05),
        lengths=(10, 40, 60),
        slots=16,
        event=0.0001,
        stream_interval=1 + seed % 4,
    )
    closed = simulate(replica, in_flight=12, reports=800)
    assert closed.rate * closed.e2e.mean == pytest.approx(12, rel=0.06)
    rate = draw(0.1, 0.7) * closed.rate
    opened = simulate(replica, rate=rate, reports=2000)
    assert opened.rate == pytest.approx(rate, rel=0.12), "all that arrive are served"
    in_steps = opened.rate * (opened.e2e.mean - opened.ttft.mean)
    assert opened.decoding == pytest.approx(in_steps, rel=0.1), "reports that decode = rate x decode time"
    assert all(0 <= share <= 1.0001 for share in opened.busy.values())


def test_result_depends_on_the_seed_alone() -> None:
    assert simulate(KNOWN, rate=5) == simulate(KNOWN, rate=5)
    assert simulate(KNOWN, rate=5) != simulate(KNOWN, rate=5, seed=2)


def test_fit_to_two_loads_predicts_the_others() -> None:
    def measured(in_flight: int) -> Measured:
        outcome = simulate(KNOWN, in_flight=in_flight, reports=2000, seed=7)
        return Measured(in_flight, outcome.rate, outcome.ttft.mean, outcome.tpot.mean)

    unknown = Replica(0, 0, 0, 0, KNOWN.lengths, KNOWN.slots, prompts_per_step=18, event=1.0, request=1.0)
    replica = fit([measured(in_flight) for in_flight in (8, 32)], unknown)
    for in_flight in (1, 4, 8, 16, 32, 64):
        outcome, real = simulate(replica, in_flight=in_flight, reports=2000), measured(in_flight)
        assert outcome.rate == pytest.approx(real.rate, rel=0.05), in_flight
        assert outcome.ttft.mean == pytest.approx(real.ttft, rel=0.2), in_flight


def test_highest_rate_meets_the_limits_and_more_does_not() -> None:
    limits = {"ttft": 0.5, "e2e": 1.5}
    rate = highest_rate(KNOWN, **limits)
    below, above = (simulate(KNOWN, rate=share * rate, reports=3000) for share in (0.95, 1.15))
    assert below.ttft.p95 <= 0.5 and below.e2e.p95 <= 1.5
    assert above.ttft.p95 > 0.5 or above.e2e.p95 > 1.5
    assert highest_rate(KNOWN, ttft=0.5, e2e=1.0) < rate
    assert highest_rate(KNOWN, ttft=0.5, e2e=0.3) == 0, "a request alone takes longer"


def test_error_of_a_fit_is_the_largest_of_each_load() -> None:
    rate = simulate(KNOWN, in_flight=8, reports=2000).rate
    errors = rate_errors([Measured(8, rate, 1, 1), Measured(8, 0.5 * rate, 1, 1)], KNOWN)
    assert errors == {8: pytest.approx(1.0, abs=0.03)}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("long", "is_met"), [(1, True), (7, False)])
def test_reports_that_are_seldom_long_decide_by_their_share(long: int, is_met: bool, order: int) -> None:
    """Of 100 reports, the 95th percentile is a long one if more than 5 are, wherever they stand."""
    lengths = (*[100] * (100 - long), *[1000] * long)[::order]
    assert (highest_rate(replace(REPLICA, lengths=lengths), ttft=2, e2e=6) > 1) is is_met


def test_no_rate_is_returned_where_none_meets_the_limits() -> None:
    """One report in 20 is long, so that the drawn ones decide; a search without an end would return 1e-14."""
    for seed in range(40):
        lengths = [1000] * (seed + 30) + [100] * 760
        rate = highest_rate(replace(REPLICA, lengths=lengths), ttft=2, e2e=6, reports=400)
        assert rate == 0 or rate > 0.001


def test_percentile_is_the_smallest_value_that_covers_its_share() -> None:
    assert Distribution.of(range(1, 101)) == Distribution(50.5, 50, 95)
    assert Distribution.of([3.0]) == Distribution(3, 3, 3)
