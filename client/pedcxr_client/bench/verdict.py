"""The rules that make a figure count. A run that breaks one is INVALID; what could not be checked is named."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pedcxr_client.bench import figures
from pedcxr_client.bench.figures import StageRun
from pedcxr_client.bench.send import REFUSED, Sample
from pedcxr_client.bench.watch import spread
from pedcxr_client.bench.workload import Workload

LAG_S = 0.02
OWN_CPU = 0.25  # of one core
LATENESS_S, LATENESS_OF_TTFT = 0.01, 0.01
DRIFT = 0.05
NOISE = 0.15
CLOCK_STEP_S = 0.5
FEWEST, FEWEST_P95 = 20, 100
"""Reports that a window needs: for the rate of a closed loop, and for the 95th percentile of an open one."""
TOKENS_PER_S = 3000.0
FASTER_THAN_ALONE = 0.5
"""A median TTFT below this share of the shortest one alone is a cached answer."""
_SHORTEST_TTFT_S = 0.02  # below it, a time alone is too short to compare with
_HITS = "vllm:mm_cache_hits_total"
_FAILURES = ("connection", "timeout", "server", "cancelled", "authentication", "bad_request")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the figures count.

    Attributes:
        reasons: the broken rules, each with its figure; none if the run is valid.
        unchecked: the rules that the server's lack of counters left open.
        noisy: the machine's speed varied, so that only ratios of paths measured in turns count.
    """

    reasons: tuple[str, ...]
    unchecked: tuple[str, ...] = ()
    noisy: str = ""

    @property
    def is_valid(self) -> bool:
        """Whether no rule was broken."""
        return not self.reasons

    @property
    def label(self) -> str:
        """``"VALID"`` or ``"INVALID"``."""
        return "VALID" if self.is_valid else "INVALID"


def judge(
    runs: Sequence[StageRun],
    workload: Workload,
    alone: Sequence[Sample],
    *,
    clock_step_s: float = 0.0,
    interrupted: str = "",
    is_soak: bool = False,
) -> Verdict:
    """Apply every rule to a run.

    Args:
        alone: the requests that were sent one at a time before the stages.
        clock_step_s: by how much the system's clock was set during the run.
        interrupted: why the run ended early, or "".
        is_soak: the growth of the server's memory is expected.
    """
    reasons = []
    if interrupted:
        reasons.append(f"the run is incomplete: {interrupted}")
    if abs(clock_step_s) > CLOCK_STEP_S:
        reasons.append(f"the system clock was set by {clock_step_s:+.1f} s during the run")
    if not runs and not interrupted:
        reasons.append("no stage ran")
    for run in runs:
        reasons += [f"{run.stage.name}: {reason}" for reason in _stage(run, workload, digests(alone))]
    for run, before in zip(runs[1:], runs, strict=False):
        drift = figures.length_drift(run.samples, lengths(before.samples))
        if abs(drift) > DRIFT:
            reasons.append(f"{run.stage.name}: reports are {drift:+.0%} longer than in {before.stage.name}")
    reasons += _light_speed(runs, () if workload.films.reuse else alone)
    noise = spread([value for run in runs for value in run.calibration_s])
    noisy = f"the machine's speed varied by {noise:.0%}; only ratios measured in turns count" if noise > NOISE else ""
    return Verdict(tuple(reasons), tuple(_unchecked(runs, is_soak)), noisy)


def _unchecked(runs: Sequence[StageRun], is_soak: bool) -> list[str]:
    rules: tuple[tuple[Callable[[StageRun], bool], str, str], ...] = (
        (lambda run: not run.scrapes.is_read, "cache hits and engine restarts", "no metrics page; see --metrics-url"),
        (lambda run: run.scrapes.is_read and run.scrapes.delta(_HITS) is None, "cache hits", f"no {_HITS} on the page"),
        (lambda run: is_soak and not all(run.processes), "memory", "no process of the server; see --server-pid"),
        (
            lambda run: not lengths(run.samples) and any(sample.is_ok for sample in run.samples),
            "length of the reports",
            "the server states no usage",
        ),
    )
    names = [([run.stage.name for run in runs if lacks(run)], rule, why) for lacks, rule, why in rules]
    return [
        f"{rule}{'' if len(lacking) == len(runs) else ' in ' + ', '.join(lacking)} ({why})"
        for lacking, rule, why in names
        if lacking
    ]


def digests(samples: Sequence[Sample]) -> dict[str, str]:
    """Return the digest of each film's text."""
    return {sample.case: sample.digest for sample in samples if sample.is_ok}


def lengths(samples: Sequence[Sample]) -> dict[str, int]:
    """Return the completion tokens of the last report of each film."""
    return {sample.case: sample.completion_tokens for sample in samples if sample.is_ok and sample.completion_tokens}


def _stage(run: StageRun, workload: Workload, alone: dict[str, str]) -> list[str]:
    reasons, samples = [], run.in_window()
    good = [sample for sample in samples if sample.is_ok]
    if run.interrupted:
        reasons.append(run.interrupted)
    fewest = FEWEST_P95 if run.stage.is_open else FEWEST
    if len(good) < fewest:
        reasons.append(f"{len(good)} reports in the window; {fewest} are needed")
    if (lag := figures.quantile(run.lag_s, 0.99)) > LAG_S:
        reasons.append(f"the event loop of this process was {1e3 * lag:.0f} ms late (p99; limit {1e3 * LAG_S:.0f} ms)")
    cpu = run.own_cpu_s / max(run.end - run.begin, 1e-9)
    if cpu > OWN_CPU:
        reasons.append(f"this process used {cpu:.0%} of a core (limit {OWN_CPU:.0%})")
    reasons += _lateness(run, good)
    reasons += _texts(run)
    reasons += _different(run.samples, alone, workload.reports.max_different)
    if run.scrapes.restarted:
        reasons.append("the engine was restarted")
    if not workload.films.reuse:
        for kind in ("mm", "prefix"):
            if hits := run.scrapes.delta(f"vllm:{kind}_cache_hits_total"):
                reasons.append(f"films are unique, but vllm:{kind}_cache_hits rose by {hits:.0f}")
    return reasons


def _lateness(run: StageRun, good: Sequence[Sample]) -> list[str]:
    if not run.stage.is_open or not run.samples:
        return []
    late = figures.quantile([sample.sent - sample.scheduled for sample in run.samples], 0.99)
    ttft = statistics.median([sample.ttft for sample in good if sample.ttft is not None] or [0.0])
    limit = max(LATENESS_S, LATENESS_OF_TTFT * ttft)
    return [f"requests were sent {1e3 * late:.0f} ms late (p99; limit {1e3 * limit:.0f} ms)"] if late > limit else []


def _texts(run: StageRun) -> list[str]:
    other = (*_FAILURES, *REFUSED)
    bad = [sample for sample in run.samples if not sample.is_ok and sample.outcome not in other]
    reasons = [f"{len(bad)} texts failed their check, the first as {bad[0].outcome}: {bad[0].message}"] if bad else []
    failed = [sample for sample in run.samples if sample.outcome in _FAILURES and sample.outcome != "cancelled"]
    if failed:
        reasons.append(f"{len(failed)} requests failed, the first as {failed[0].outcome}: {failed[0].message}")
    return reasons


def _different(samples: Sequence[Sample], alone: dict[str, str], most: float) -> list[str]:
    texts = [sample for sample in samples if sample.is_ok and sample.case in alone]
    count = sum(sample.digest != alone[sample.case] for sample in texts)
    if texts and count > most * len(texts):
        return [f"{count} of {len(texts)} texts differ from the same film's text alone (limit {most:.0%})"]
    return []


def _light_speed(runs: Sequence[StageRun], alone: Sequence[Sample]) -> list[str]:
    """Detect answers from a cache that no counter shows: faster than the same films alone, or than any model."""
    reasons = []
    shortest = min((sample.ttft for sample in alone if sample.is_ok and sample.ttft is not None), default=0.0)
    for run in runs:
        good = [sample for sample in run.in_window() if sample.is_ok]
        ttfts = [sample.ttft for sample in good if sample.ttft is not None]
        if ttfts and shortest > _SHORTEST_TTFT_S and statistics.median(ttfts) < FASTER_THAN_ALONE * shortest:
            reasons.append(
                f"{run.stage.name}: the median TTFT of {1e3 * statistics.median(ttfts):.1f} ms is shorter than alone "
                f"({1e3 * shortest:.1f} ms): a cache answers"
            )
        speeds = [sample.completion_tokens / sample.e2e for sample in good if sample.completion_tokens and sample.e2e]
        if speeds and statistics.median(speeds) > TOKENS_PER_S:
            reasons.append(
                f"{run.stage.name}: {statistics.median(speeds):.0f} tokens per second in one stream is faster than "
                "any model: a cache or a stand-in answers"
            )
    return reasons
