"""Figures from raw samples: windows, percentiles, goodput, the knee, and intervals by bootstrap. Pure functions."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pedcxr_client.bench.schedule import Stage, numbered
from pedcxr_client.bench.send import Sample
from pedcxr_client.bench.watch import Process, Scrapes
from pedcxr_client.bench.workload import Objectives

PARTS = 12
"""Number of equal parts of a window, whose rates are resampled for the interval of the rate."""
KNEE_SHARE = 0.95
RESAMPLES = 500
_SEED = 20260101  # fixed, so that the same samples give the same intervals
LATENCIES = ("ttft", "tpot", "e2e", "ttft_user", "e2e_user")
STAGES = ("before the engine", "queue", "prefill", "decode")


@dataclass(slots=True)
class StageRun:
    """A stage as it ran.

    Attributes:
        begin, end: first scheduled time and end of the last response, in seconds since the start of the run.
        lag_s: delays of the event loop.
        own_cpu_s: processor time of the load generator.
        calibration_s: processor times of a fixed loop before and after.
        processes: the server's processes before and after.
        interrupted: the stage was cut short by Ctrl-C, or because the server no longer answers.
    """

    stage: Stage
    samples: list[Sample]
    begin: float
    end: float
    scrapes: Scrapes = field(default_factory=Scrapes)
    lag_s: list[float] = field(default_factory=list)
    own_cpu_s: float = 0.0
    calibration_s: list[float] = field(default_factory=list)
    processes: tuple[list[Process], list[Process]] = field(default_factory=lambda: ([], []))
    interrupted: str = ""

    @property
    def window(self) -> tuple[float, float]:
        """The steady part.

        A closed loop is steady from its N-th completion, N being the requests in flight, to its last start. An open
        loop is steady from 10 % of its length to its end.
        """
        if self.stage.is_open:
            return self.begin + 0.1 * self.stage.seconds, self.begin + self.stage.seconds
        if not self.samples:
            return self.begin, self.begin
        spans = [(sample.sent, sample.done) for sample in self.samples]
        return steady_window(spans, self.stage.in_flight)

    def in_window(self) -> list[Sample]:
        """Requests that belong to the window: by their end in a closed loop, by their scheduled time in an open one."""
        low, high = self.window
        if self.stage.is_open:
            return [sample for sample in self.samples if low <= sample.scheduled <= high]
        return self.ended_in_window()

    def ended_in_window(self) -> list[Sample]:
        """Requests that ended in the window, so while the load lasted."""
        low, high = self.window
        return [sample for sample in self.samples if low < sample.done <= high]

    def part_rates(self, of: Callable[[Sample], bool]) -> list[float]:
        """Return the rate of the ends of such requests in each part of the window, per second."""
        low, high = self.window
        parts = self.by_part(self.ended_in_window(), lambda sample: sample.done)
        return [sum(map(of, part)) / ((high - low) / PARTS) for part in parts]

    def by_part(self, samples: Sequence[Sample], time_of: Callable[[Sample], float]) -> list[list[Sample]]:
        """Return the requests of each part of the window, by a time in it; [] if the window has no length."""
        low, high = self.window
        if high <= low:
            return []
        parts: list[list[Sample]] = [[] for _ in range(PARTS)]
        for sample in samples:
            parts[min(PARTS - 1, int((time_of(sample) - low) / ((high - low) / PARTS)))].append(sample)
        return parts


def steady_window(spans: Sequence[tuple[float, float]], in_flight: int) -> tuple[float, float]:
    """Return the steady part of a closed loop: from its N-th end to its last start, so without ramp-up and drain.

    Args:
        spans: start and end of each request, at least one.
        in_flight: N; the last end counts if there are fewer.
    """
    ends = sorted(end for _, end in spans)
    return ends[min(in_flight, len(ends)) - 1], max(start for start, _ in spans)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval by bootstrap, or without one (None)."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of a stage; see docs/examples/load-testing.md for each formula. Times are in seconds.

    Attributes:
        completed: requests of the window whose text passed the checks; ``failed``: the others.
        rate: reports that ended in the window, per second; ``goodput``: reports that meet all objectives.
        percentiles: by latency, then ``mean``, ``p50``, ``p90``, ``p95``, ``p99``; p95 and p99 need 100 requests.
        waterfall: mean seconds of each stage of a request, if the server states its own times.
        tenants: by tenant: reports that ended in the window, their share and that of their tokens; E2E of the user.
        outcomes: number of requests by outcome, of the whole stage.
        lengths: histogram of the completion tokens, by the lower edge of bins of 16; empty if the server states none.
        server_cpu_ms: processor time per completed report of each process of the server.
        cache_hits: increase of the server's cache counters; None if it has none.
    """

    name: str
    in_flight: float
    offered: float
    duration: float
    completed: int
    failed: int
    rate: Interval
    goodput: float
    output_tokens: float
    percentiles: dict[str, dict[str, float]]
    waterfall: dict[str, float]
    tenants: dict[str, dict[str, float]]
    outcomes: dict[str, int]
    lengths: dict[int, int]
    own_cpu: float
    lag_p99: float
    lateness_p99: float
    server_cpu_ms: dict[str, float]
    rss_growth: dict[str, float]
    cache_hits: dict[str, float] | None
    different: tuple[int, int]


def figures(run: StageRun, slo: Objectives, alone: dict[str, str]) -> Figures:
    """Return the figures of a stage. ``alone`` is the digest of each film's text when it was sent alone."""
    samples, (low, high) = run.in_window(), run.window
    good = [sample for sample in samples if sample.is_ok]
    length = max(high - low, 1e-9)
    texts = [sample for sample in run.samples if sample.is_ok and sample.case in alone]
    rate = interval(run.part_rates(lambda sample: sample.is_ok), statistics.fmean)
    hits = {name: delta for name in ("mm", "prefix") if (delta := _hits(run.scrapes, name)) is not None}
    return Figures(
        name=run.stage.name,
        in_flight=run.stage.in_flight or _mean_in_flight(samples, length),
        offered=run.stage.rate or len(samples) / length,
        duration=length,
        completed=len(good),
        failed=len(samples) - len(good),
        rate=rate if run.stage.is_steady else Interval(rate.value, None, None),  # the parts of a ramp differ on purpose
        goodput=sum(meets(sample, slo) for sample in samples) / length,
        output_tokens=sum(sample.completion_tokens or 0 for sample in good) / length,
        percentiles={name: percentiles([getattr(sample, name) for sample in good]) for name in LATENCIES},
        waterfall=waterfall(good),
        tenants=_tenants(run, good),
        outcomes=dict(Counter(sample.outcome for sample in run.samples).most_common()),
        lengths=dict(
            sorted(Counter(one.completion_tokens // 16 * 16 for one in good if one.completion_tokens).items())
        ),
        own_cpu=run.own_cpu_s / max(run.end - run.begin, 1e-9),
        lag_p99=quantile(run.lag_s, 0.99),
        lateness_p99=quantile([sample.sent - sample.scheduled for sample in run.samples], 0.99),
        server_cpu_ms=_cpu_ms(run),
        rss_growth=_rss_growth(run),
        cache_hits=hits or None,
        different=(sum(sample.digest != alone[sample.case] for sample in texts), len(texts)),
    )


def meets(sample: Sample, slo: Objectives) -> bool:
    """Return whether a request is good: a report that meets every objective. A failed request is bad."""
    if not sample.is_ok:
        return False
    pairs = ((slo.ttft, sample.ttft_user), (slo.e2e, sample.e2e_user), (slo.tpot, sample.tpot))
    return all(not limit or (value is not None and value <= limit) for limit, value in pairs)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values do not exceed; 0 without values."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def percentiles(values: Sequence[float | None]) -> dict[str, float]:
    """Return mean and percentiles of the values that exist; p95 and p99 only of 100 or more."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return {}
    names = {"p50": 0.5, "p90": 0.9} | ({"p95": 0.95, "p99": 0.99} if len(numbers) >= 100 else {})
    return {"mean": statistics.fmean(numbers)} | {name: quantile(numbers, share) for name, share in names.items()}


def waterfall(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the mean seconds of each stage, from the server's own times and the client's clock.

    Before the engine = TTFT - queue - prefill: upload, gateway, and the film's preparation.
    """
    rows = []
    for sample in samples:
        times, ttft = sample.engine, sample.ttft
        if ttft is None or sample.last is None or sample.first is None or len(times) < 3:
            continue
        queue, prefill = times["queue_time_ms"] / 1e3, times["time_to_first_token_ms"] / 1e3
        rows.append((max(0.0, ttft - queue - prefill), queue, prefill, sample.last - sample.first))
    return dict(zip(STAGES, map(statistics.fmean, zip(*rows, strict=True)), strict=True)) if rows else {}


def interval(values: Sequence[float], of: Callable[[Sequence[float]], float]) -> Interval:
    """Return a statistic of the values with the middle 95 % of its resampled values; 0 without values."""
    if not values:
        return Interval(0.0, 0.0, 0.0)
    draw = random.Random(_SEED)
    resampled = sorted(of(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    low, high = resampled[int(0.025 * RESAMPLES)], resampled[int(0.975 * RESAMPLES)]
    return Interval(of(values), low, high)


def knee(loads: Sequence[float], rates: Sequence[Sequence[float]]) -> float:
    """Return the smallest load whose rate is at least 95 % of the best in half of the resampled windows.

    Windows that differ by more than the loads do may leave no such load. The one with most windows is returned then.

    Args:
        loads: requests in flight, ascending.
        rates: the rates in the parts of each load's window.
    """
    draw, votes = random.Random(_SEED), [0] * len(loads)
    for _ in range(RESAMPLES):
        means = [statistics.fmean(draw.choices(parts, k=len(parts))) if parts else 0.0 for parts in rates]
        best = max(means)
        for at, mean in enumerate(means):
            votes[at] += mean >= KNEE_SHARE * best
    enough = min(max(votes), RESAMPLES / 2)
    return next(load for load, count in zip(loads, votes, strict=True) if count >= enough)


def is_saturated(rates: Sequence[float]) -> bool:
    """Return whether the last two loads of a sweep each gained less than 5 % over the best before them."""
    if len(rates) < 3:
        return False
    return all(rates[at] < 1.05 * max(rates[:at]) for at in (len(rates) - 2, len(rates) - 1))


def length_drift(samples: Sequence[Sample], reference: dict[str, int]) -> float:
    """Return the relative change of the completion tokens against those of the same films before.

    Comparing film by film leaves out that other films have other reports.
    """
    pairs = [
        (sample.completion_tokens, reference[sample.case])
        for sample in samples
        if sample.is_ok and sample.completion_tokens and sample.case in reference
    ]
    before = sum(tokens for _, tokens in pairs)
    return sum(tokens for tokens, _ in pairs) / before - 1 if before else 0.0


def _hits(scrapes: Scrapes, kind: str) -> float | None:
    return scrapes.delta(f"vllm:{kind}_cache_hits_total")


def _mean_in_flight(samples: Sequence[Sample], length: float) -> float:
    """Return the mean number of open requests by Little's law."""
    return sum(sample.done - sample.sent for sample in samples) / length


def _tenants(run: StageRun, good: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Return what the server gave to each tenant while the load lasted: after it, every queue is served out."""
    reports, tokens = Counter[str](), Counter[str]()
    for sample in run.ended_in_window():
        if sample.is_ok:
            reports[sample.tenant] += 1
            tokens[sample.tenant] += sample.completion_tokens or 0
    rows = {}
    for name in sorted({sample.tenant for sample in run.samples}):
        times = [sample.e2e_user or 0.0 for sample in good if sample.tenant == name]
        rows[name] = {
            "completed": reports[name],
            "share": reports[name] / max(1, reports.total()),
            "share_of_tokens": tokens[name] / max(1, tokens.total()),
            "e2e_user_p50": quantile(times, 0.5),
            "e2e_user_p95": quantile(times, 0.95),
        }
    return rows


def by_name(processes: Sequence[Process]) -> dict[str, Process]:
    """Return the processes by name; a second one of a name gets a number."""
    return dict(zip(numbered(process.name for process in processes), processes, strict=True))


def _cpu_ms(run: StageRun) -> dict[str, float]:
    before, after = map(by_name, run.processes)
    count = sum(sample.is_ok for sample in run.samples)
    return {
        name: 1e3 * (process.cpu_s - before[name].cpu_s) / count
        for name, process in after.items()
        if name in before and count
    }


def _rss_growth(run: StageRun) -> dict[str, float]:
    before, after = map(by_name, run.processes)
    return {
        name: process.rss_mib / before[name].rss_mib - 1
        for name, process in after.items()
        if name in before and before[name].rss_mib
    }


def max_in_flight(samples: Sequence[Sample]) -> int:
    """Return the largest number of requests that were open at once."""
    steps = sorted([(sample.sent, 1) for sample in samples] + [(sample.done, -1) for sample in samples])
    total = most = 0
    for _, step in steps:
        total += step
        most = max(most, total)
    return most


def gaps(samples: Sequence[Sample]) -> list[float]:
    """Return the seconds between the events of all requests (inter-chunk latency, ICL)."""
    return [gap for sample in samples for gap in sample.gaps]
