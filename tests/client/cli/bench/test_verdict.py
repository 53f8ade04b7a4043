"""Each rule of the verdict fires on a run that breaks it, and on no other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pedcxr_client.bench.figures import StageRun
from pedcxr_client.bench.verdict import judge
from pedcxr_client.bench.watch import ClockCheck, Scrapes
from pedcxr_client.bench.workload import Films, Reports, Workload
from tests.client.cli.bench.helpers import closed, poisson, sample

HITS, PREFIX = "vllm:mm_cache_hits_total", "vllm:prefix_cache_hits_total"
ALONE = [sample(case=f"film {number}") for number in range(8)]


def scrapes(before: dict[str, float], after: dict[str, float]) -> Scrapes:
    return Scrapes({HITS: 5.0} | before, {HITS: 5.0} | after)


@pytest.mark.parametrize("run", [closed(), poisson()], ids=["closed", "open"])
def test_a_clean_run_is_valid(run: StageRun) -> None:
    verdict = judge([run], Workload(), ALONE)
    assert (verdict.label, verdict.reasons, verdict.unchecked, verdict.noisy) == ("VALID", (), (), "")


def with_samples(run: StageRun, *more: object) -> StageRun:
    return replace(run, samples=[*run.samples, *more])


BROKEN: dict[str, StageRun] = {
    "films are unique, but vllm:mm_cache_hits rose by 3": closed(scrapes=scrapes({}, {HITS: 8.0})),
    "films are unique, but vllm:prefix_cache_hits rose by 64": closed(scrapes=scrapes({PREFIX: 0}, {PREFIX: 64})),
    "the engine was restarted": closed(scrapes=scrapes({"vllm:x_total": 9}, {"vllm:x_total": 1})),
    "was 50 ms late (p99; limit 20 ms)": closed(lag_s=[0.001] * 90 + [0.05] * 10),
    "this process used 50% of a core": closed(own_cpu_s=12.5),
    "12 reports in the window; 20 are needed": closed(count=18),
    "45 reports in the window; 100 are needed": poisson(count=50),
    "requests were sent 30 ms late": replace(
        poisson(), samples=[sample(number / 10, scheduled=number / 10 - 0.03) for number in range(200)]
    ),
    "1 texts failed their check, the first as looping": with_samples(closed(), sample(5, outcome="looping")),
    "1 requests failed, the first as timeout": with_samples(closed(), sample(5, outcome="timeout")),
    "each film was sent once": closed(interrupted="each film was sent once, and the stage needs more"),
    "4000 tokens per second in one stream is faster than any model": replace(
        closed(), samples=[sample(number * 0.01, ttft=0.006, e2e=0.01, tokens=40) for number in range(200)]
    ),
    "shorter than alone": replace(closed(), samples=[sample(number / 8, ttft=0.04) for number in range(200)]),
}


@pytest.mark.parametrize("words", BROKEN)
def test_each_rule_fires(words: str) -> None:
    verdict = judge([BROKEN[words]], Workload(), ALONE)
    assert verdict.label == "INVALID"
    assert [reason for reason in verdict.reasons if words in reason]


def test_lateness_within_a_hundredth_of_the_ttft_is_allowed() -> None:
    slow = [sample(number / 10, ttft=5, e2e=9, scheduled=number / 10 - 0.03) for number in range(200)]
    assert judge([replace(poisson(), samples=slow)], Workload(), ALONE).is_valid


def test_reports_that_grow_between_stages_are_invalid_though_other_films_have_other_lengths() -> None:
    first = closed()
    longer = [replace(one, completion_tokens=44) for one in first.samples]
    mixed = [replace(one, case="film 9", completion_tokens=400) for one in first.samples[:40]]
    assert judge([first, replace(first, samples=first.samples + mixed)], Workload(), ALONE).is_valid
    verdict = judge([first, replace(first, samples=longer)], Workload(), ALONE)
    assert verdict.reasons == ("closed 4: reports are +10% longer than in closed 4",)


def test_a_clock_that_was_set_is_invalid() -> None:
    walls, steadies = iter([1000.0, 1010.0, 4610.0]), iter([5.0, 15.0, 15.0])
    check = ClockCheck(lambda: next(walls), lambda: next(steadies))
    assert (check.step_s(), check.step_s()) == (0, 3600)
    assert "the system clock was set by +3600.0 s" in judge([closed()], Workload(), ALONE, clock_step_s=3600).reasons[0]


def test_cache_hits_are_allowed_if_films_repeat_on_purpose() -> None:
    run = closed(scrapes=scrapes({}, {HITS: 90.0}))
    fast = replace(run, samples=[sample(number / 8, ttft=0.01) for number in range(200)])
    assert judge([fast], Workload(films=Films(reuse=0.5)), ALONE).is_valid


def test_texts_that_differ_from_the_same_film_alone_are_invalid_beyond_the_share() -> None:
    run = closed()
    run.samples[20].digest = "other"
    assert judge([run], Workload(), ALONE).is_valid
    verdict = judge([run], Workload(reports=Reports(max_different=0)), ALONE)
    assert verdict.reasons == ("closed 4: 1 of 200 texts differ from the same film's text alone (limit 0%)",)


def test_refusals_are_bad_but_not_invalid() -> None:
    run = with_samples(closed(), sample(5, outcome="rate_limited", status=429))
    assert judge([run], Workload(), ALONE).is_valid


def test_a_server_without_counters_leaves_rules_open() -> None:
    assert "--metrics-url" in judge([closed(scrapes=Scrapes())], Workload(), ALONE).unchecked[0]
    for lost in (Scrapes({HITS: 5.0}), Scrapes({}, {HITS: 5.0})):  # neither a restart nor a hit
        verdict = judge([closed(), poisson(scrapes=lost)], Workload(), ALONE)
        assert verdict.reasons == ()
        assert verdict.unchecked == ("cache hits and engine restarts in open (no metrics page; see --metrics-url)",)
    assert "--server-pid" in judge([poisson()], Workload(), ALONE, is_soak=True).unchecked[0]
    other = Scrapes({"other_total": 1}, {"other_total": 2})
    assert judge([closed(scrapes=other)], Workload(), ALONE).unchecked == (f"cache hits (no {HITS} on the page)",)


def test_a_machine_of_varying_speed_is_noisy() -> None:
    verdict = judge([closed(calibration_s=[0.01, 0.01, 0.013])], Workload(), ALONE)
    assert verdict.is_valid
    assert "varied by 30%" in verdict.noisy


def test_a_run_that_was_cut_short_is_invalid() -> None:
    assert judge([closed()], Workload(), ALONE, interrupted="stopped by Ctrl-C").label == "INVALID"
    assert judge([], Workload(), ALONE).reasons == ("no stage ran",)
