"""Compare two results: ratios with bootstrap intervals. A ratio that is worse beyond the tolerance is a regression."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

from pedcxr_client.bench import results
from pedcxr_client.bench.figures import PARTS, RESAMPLES, StageRun, meets, quantile
from pedcxr_client.bench.schedule import numbered
from pedcxr_client.bench.send import Sample
from pedcxr_client.bench.workload import Objectives
from pedcxr_client.errors import ConfigurationError

TOLERANCE = 0.05
_SEED = 20260101
_MOST = 200  # values of a part in a resample, so that a long run takes seconds
_SAME_RATE = 0.01
_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "workload": dict,
    "valid": bool,
    "reasons": list,
    "slo": dict,
    "knee": (dict, type(None)),
}
Parts = list[list[float]]
"""Values by the part of the window.

Neighbours in time are alike, so whole parts are resampled. Those of a ramp or a trace are not interchangeable: there,
the values within each part are resampled.
"""


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
        faults: why they do not count: a run is invalid, or has another load or reports of another length.
        notes: what else to know: a machine whose speed varied, a load that only one search reached.
    """

    ratios: tuple[Ratio, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def regressions(self, tolerance: float = TOLERANCE) -> list[Ratio]:
        """Return the ratios that are regressions."""
        return [ratio for ratio in self.ratios if ratio.is_regression(tolerance)]


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Compare the stages that both results have, and their knees. A report is good by the objectives of the first.

    Raises:
        ConfigurationError: a file lacks a value, the workloads differ, or no stage is in both.
    """
    _check(before, "A")
    _check(after, "B")
    if before["workload"] != after["workload"]:
        names = [name for name in before["workload"] if before["workload"][name] != after["workload"].get(name)]
        raise ConfigurationError(f"the runs have different workloads ({', '.join(names)}); compare equal ones")
    first, second = _by_name(before), _by_name(after)
    if not (names := [name for name in first if name in second]):
        raise ConfigurationError("the runs have no stage in common; use the same mode and loads")
    faults = [
        f"{label} is INVALID: {'; '.join(result['reasons']) or 'no reason is recorded'}"
        for label, result in (("A", before), ("B", after))
        if not result["valid"]
    ]
    notes = [f"{label}: {result['noisy']}" for label, result in (("A", before), ("B", after)) if result.get("noisy")]
    others, slo = _other_loads(first, second), Objectives(**before["slo"])
    faults += others.values()
    notes += [
        f"{name}: only in {'A' if name in first else 'B'}"
        for name, run in {**first, **second}.items()
        if not run.stage.is_open and (name in first) != (name in second)
    ]
    ratios = [ratio for name in names if name not in others for ratio in _ratios(name, first[name], second[name], slo)]
    old, new = _at_knee(before, first), _at_knee(after, second)
    if old is not None and new is not None:
        ratios += _ratio("knee", "reports per second", _rates(old), _rates(new), statistics.fmean, True)
    for ratio in ratios:
        if ratio.name == "output tokens" and abs(ratio.value - 1) > TOLERANCE:
            faults.append(f"{ratio.stage}: reports of B have {ratio.value - 1:+.0%} tokens: times are not comparable")
    return Comparison(tuple(ratio for ratio in ratios if ratio.name != "output tokens"), tuple(faults), tuple(notes))


def _check(result: Mapping[str, Any], label: str) -> None:
    wrong = [name for name, kind in _KEYS.items() if not isinstance(result.get(name, ...), kind)]
    known = {entry.name for entry in fields(Objectives)}
    if not wrong and not all(name in known and isinstance(limit, int | float) for name, limit in result["slo"].items()):
        wrong = ["slo"]
    if wrong:
        raise ConfigurationError(
            f"{label}: {', '.join(wrong)}: missing or damaged; give the JSON file of pedcxr bench -o"
        )


def _by_name(result: Mapping[str, Any]) -> dict[str, StageRun]:
    runs = results.stages(result)
    return dict(zip(numbered((run.stage.name for run in runs), "#"), runs, strict=True))


def _other_loads(first: Mapping[str, StageRun], second: Mapping[str, StageRun]) -> dict[str, str]:
    """Return the open loops that only one result has, or with another rate, each with the words of the fault."""
    faults = {}
    for name, run in {**first, **second}.items():
        old, new = (runs[name].stage.rate if name in runs else 0.0 for runs in (first, second))
        if run.stage.is_open and abs(old - new) > _SAME_RATE * max(old, new):
            faults[name] = (
                f"{name}: A offers {old:.3g} and B {new:.3g} requests per second; repeat B with the load of A: "
                "the same --from or --rate"
            )
    return faults


def _at_knee(result: Mapping[str, Any], runs: Mapping[str, StageRun]) -> StageRun | None:
    """Return the stage of the knee, or None if the result holds no search that reached one."""
    knee = result["knee"] or {}
    stages = (run for run in runs.values() if not run.stage.is_open and run.stage.in_flight == knee.get("in_flight"))
    return next(stages, None) if knee.get("is_reached", True) else None


def _ratios(name: str, before: StageRun, after: StageRun, slo: Objectives) -> list[Ratio]:
    def is_good(sample: Sample) -> float:
        return float(meets(sample, slo))

    def of_reports(field: str) -> tuple[Parts, Parts]:
        old, new = (_parts(run, lambda one: getattr(one, field) if one.is_ok else None) for run in (before, after))
        return old, new

    old, new = _parts(before, is_good), _parts(after, is_good)
    mean = statistics.fmean
    rows: list[tuple[str, Parts, Parts, Callable[[Sequence[float]], float], bool]] = [
        ("goodput per second", _per_second(before, old), _per_second(after, new), mean, True),
        ("share of good requests", old, new, mean, True),
    ]
    if not before.stage.is_open:  # an open loop's rate is the offered one
        rows.insert(0, ("reports per second", _rates(before), _rates(after), mean, True))
    for field, label in (("ttft_user", "TTFT"), ("tpot", "TPOT"), ("e2e_user", "E2E")):
        old, new = of_reports(field)
        rows.append((f"{label} p50", old, new, statistics.median, False))
        if min(sum(map(len, old)), sum(map(len, new))) >= 100:
            rows.append((f"{label} p95", old, new, lambda one: quantile(one, 0.95), False))
    rows.append(("output tokens", *of_reports("completion_tokens"), mean, True))
    return [ratio for row in rows for ratio in _ratio(name, *row, is_steady=before.stage.is_steady)]


def _parts(run: StageRun, of: Callable[[Sample], float | None]) -> Parts:
    """Return the values of the requests in each part of the window; None is left out."""
    parts = run.by_part(run.in_window(), lambda sample: sample.scheduled if run.stage.is_open else sample.done)
    return [[value for sample in part if (value := of(sample)) is not None] for part in parts]


def _per_second(run: StageRun, parts: Parts) -> Parts:
    """Return values whose mean is the sum of all values per second of the window."""
    low, high = run.window
    length = max(high - low, 1e-9)
    if run.stage.is_steady:
        return [[sum(part) * PARTS / length] for part in parts]
    count = sum(map(len, parts))
    return [[value * count / length for value in part] for part in parts]


def _rates(run: StageRun) -> Parts:
    return _per_second(run, _parts(run, lambda sample: float(sample.is_ok)))


def _ratio(
    stage: str,
    name: str,
    before: Parts,
    after: Parts,
    of: Callable[[Sequence[float]], float],
    better: bool,
    *,
    is_steady: bool = True,
) -> list[Ratio]:
    """Return the ratio; [] if one side has no value, or the first has 0."""
    old, new = (list(chain.from_iterable(parts)) for parts in (before, after))
    if not old or not new or of(old) <= 0:
        return []
    draw, ratios = random.Random(_SEED), []
    sides = [_thinned(parts) for parts in (before, after)]
    for _ in range(RESAMPLES):
        one, other = (_resampled(parts, draw, is_steady) for parts in sides)
        if one and other and (divisor := of(one)) > 0:
            ratios.append(of(other) / divisor)
    ratios.sort()
    low, high = (ratios[int(share * len(ratios))] for share in (0.025, 0.975)) if ratios else (0.0, float("inf"))
    return [Ratio(stage, name, of(old), of(new), of(new) / of(old), low, high, better)]


def _thinned(parts: Parts) -> Parts:
    """Leave values out by one step for all parts, so that each part keeps its weight and its quantiles."""
    step = 1 + max(map(len, parts), default=0) // _MOST
    return [sorted(part)[step // 2 :: step] for part in parts]


def _resampled(parts: Parts, draw: random.Random, is_steady: bool) -> list[float]:
    if is_steady:
        return list(chain.from_iterable(draw.choices(parts, k=len(parts))))
    return [value for part in parts if part for value in draw.choices(part, k=len(part))]


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
