"""Compare two results: ratios with bootstrap intervals. A ratio that is worse beyond the tolerance is a regression."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pedcxr_client.bench import results
from pedcxr_client.bench.figures import RESAMPLES, StageRun, quantile
from pedcxr_client.errors import ConfigurationError

TOLERANCE = 0.05
_SEED = 20260101
_MOST = 400  # samples of a resample, so that a long run takes seconds


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure of B relative to A.

    Attributes:
        stage, name: what is compared.
        before, after: the figure of A and of B.
        value, low, high: ``after / before`` and its 95 % interval.
        higher_is_better: True for rates, False for times.
    """

    stage: str
    name: str
    before: float
    after: float
    value: float
    low: float
    high: float
    higher_is_better: bool

    def is_regression(self, tolerance: float = TOLERANCE) -> bool:
        """Return whether even the better end of the interval is worse than the tolerance."""
        return self.high < 1 - tolerance if self.higher_is_better else self.low > 1 + tolerance

    def is_improvement(self, tolerance: float = TOLERANCE) -> bool:
        """Return whether even the worse end of the interval is better than the tolerance."""
        return self.low > 1 + tolerance if self.higher_is_better else self.high < 1 - tolerance


@dataclass(frozen=True, slots=True)
class Comparison:
    """The ratios.

    Attributes:
        faults: why they do not count: a run is invalid, or its reports have another length.
        notes: what else to know: a machine whose speed varied.
    """

    ratios: tuple[Ratio, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def regressions(self, tolerance: float = TOLERANCE) -> list[Ratio]:
        """Return the ratios that are regressions."""
        return [ratio for ratio in self.ratios if ratio.is_regression(tolerance)]


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Compare the stages that both results have. Raise ConfigurationError without one, or with another workload."""
    if before["workload"] != after["workload"]:
        names = [name for name in before["workload"] if before["workload"][name] != after["workload"].get(name)]
        raise ConfigurationError(f"the runs have different workloads ({', '.join(names)}); compare equal ones")
    first, second = ({run.stage.name: run for run in results.stages(result)} for result in (before, after))
    if not (names := [name for name in first if name in second]):
        raise ConfigurationError("the runs have no stage in common; use the same mode and loads")
    faults = [
        f"{label} is INVALID: {'; '.join(result['reasons']) or 'no reason is recorded'}"
        for label, result in (("A", before), ("B", after))
        if not result["valid"]
    ]
    notes = [f"{label}: {result['noisy']}" for label, result in (("A", before), ("B", after)) if result.get("noisy")]
    ratios = [ratio for name in names for ratio in _ratios(name, first[name], second[name])]
    for ratio in ratios:
        if ratio.name == "output tokens" and abs(ratio.value - 1) > TOLERANCE:
            faults.append(f"{ratio.stage}: reports of B have {ratio.value - 1:+.0%} tokens: times are not comparable")
    return Comparison(tuple(ratio for ratio in ratios if ratio.name != "output tokens"), tuple(faults), tuple(notes))


def _ratios(name: str, before: StageRun, after: StageRun) -> list[Ratio]:
    rows: list[tuple[str, Sequence[float], Sequence[float], Callable[[Sequence[float]], float], bool]] = []
    if not before.stage.is_open:  # an open loop's rate is the offered one
        parts = [run.part_rates(lambda sample: sample.is_ok) for run in (before, after)]
        rows.append(("reports per second", parts[0], parts[1], statistics.fmean, True))
    good = [[sample for sample in run.in_window() if sample.is_ok] for run in (before, after)]
    for field, label in (("ttft_user", "TTFT"), ("tpot", "TPOT"), ("e2e_user", "E2E")):
        values = [[value for sample in side if (value := getattr(sample, field)) is not None] for side in good]
        rows.append((f"{label} p50", values[0], values[1], statistics.median, False))
        if min(map(len, values)) >= 100:
            rows.append((f"{label} p95", values[0], values[1], lambda one: quantile(one, 0.95), False))
    tokens = [[float(sample.completion_tokens or 0) for sample in side] for side in good]
    rows.append(("output tokens", tokens[0], tokens[1], statistics.fmean, True))
    return [
        _ratio(name, label, old, new, of, better)
        for label, old, new, of, better in rows
        if old and new and of(old) > 0 and of(new) > 0
    ]


def _ratio(
    stage: str,
    name: str,
    before: Sequence[float],
    after: Sequence[float],
    of: Callable[[Sequence[float]], float],
    better: bool,
) -> Ratio:
    draw, ratios = random.Random(_SEED), []
    for _ in range(RESAMPLES):
        old, new = (of(draw.choices(values, k=min(len(values), _MOST))) for values in (before, after))
        if old > 0:
            ratios.append(new / old)
    ratios.sort()
    low, high = (ratios[int(share * len(ratios))] for share in (0.025, 0.975)) if ratios else (0.0, float("inf"))
    return Ratio(stage, name, of(before), of(after), of(after) / of(before), low, high, better)


def text(comparison: Comparison, tolerance: float = TOLERANCE) -> str:
    """Return the comparison as Markdown."""
    worse, better = (
        [ratio for ratio in comparison.ratios if judge(ratio, tolerance)]
        for judge in (Ratio.is_regression, Ratio.is_improvement)
    )
    head = f"{len(worse)} regressions, {len(better)} improvements beyond {tolerance:.0%}"
    remarks = [f"- {remark}" for remark in (*comparison.faults, *comparison.notes)]
    lines = [head, "", *remarks, *([""] if remarks else [])]
    lines += ["| stage | figure | A | B | B / A (95 %) | |", "|---|---|---|---|---|---|"]
    for ratio in comparison.ratios:
        label = "regression" if ratio in worse else "improvement" if ratio in better else ""
        lines.append(
            f"| {ratio.stage} | {ratio.name} | {ratio.before:.4g} | {ratio.after:.4g} | "
            f"{ratio.value:.3f} ({ratio.low:.3f}-{ratio.high:.3f}) | {label} |"
        )
    return "\n".join(lines) + "\n"
