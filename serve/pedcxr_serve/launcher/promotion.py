"""Decide whether one run of reports may replace another, by stated thresholds. No I/O except reading the two runs.

A run is the output of ``pedcxr batch``. No text and no id of a film is part of the decision's record.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pedcxr_client.evaluation import lexicon, negation, runs, scoring
from pedcxr_client.evaluation.lexicon import Lexicon
from pedcxr_client.evaluation.negation import Assertion
from pedcxr_client.evaluation.references import Reference
from pedcxr_client.evaluation.runs import Run
from pedcxr_client.evaluation.scoring import ANY, Differences

_PRESENT = (Assertion.PRESENT, Assertion.UNCERTAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What a new run must reach.

    Attributes:
        min_films: films with a report in both runs.
        max_more_failures: films without a usable report, beyond those of the old run.
        min_exact: share of reports that equal those of the old run; applied to runs of the same weights, that is, to
            other flags or another vLLM.
        min_same_findings: share of films with the same findings as in the old run; applied without a reference.
        max_length_ratio: ratio of the mean lengths in words, in either direction.
        margin: with a reference, how much lower the sensitivity and the specificity for any abnormality may be, by the
            lower end of the 95 % interval of the difference.
        alpha: with a reference, level of McNemar's test (Holm's correction) for a finding that became worse.
    """

    min_films: int = 30
    max_more_failures: int = 0
    min_exact: float = 0.98
    min_same_findings: float = 0.95
    max_length_ratio: float = 1.5
    margin: float = 0.05
    alpha: float = 0.05


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two runs.

    Attributes:
        models: each model as ``NAME@REVISION``.
        outcomes: number of films by outcome: ``ok``, or a code such as ``empty``, ``looping`` or ``truncated``.
        words: mean length of a report in words.
    """

    models: tuple[str, ...]
    outcomes: Mapping[str, int]
    words: float

    @property
    def failures(self) -> int:
        """Number of films without a usable report."""
        return sum(count for code, count in self.outcomes.items() if code != "ok")


@dataclass(frozen=True, slots=True)
class Check:
    """One threshold: its name, the measured value, the condition in words, and whether the value meets it."""

    name: str
    value: str
    required: str
    passed: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """The comparison of two runs.

    Attributes:
        films: films with a report in both runs.
        exact: share of these with equal texts.
        same_findings: share of these with equal findings, read by the lexicon of ``pedcxr eval``.
        changed_findings: by finding, number of films where only the new run has it, and where only the old one has.
        against: with a reference, the comparison of `pedcxr_client.evaluation.scoring`, new minus old.
    """

    new: Side
    old: Side
    same_weights: bool
    films: int
    exact: float
    same_findings: float
    changed_findings: Mapping[str, tuple[int, int]]
    against: Differences | None
    thresholds: Thresholds
    checks: tuple[Check, ...]

    @property
    def promote(self) -> bool:
        """Whether every threshold is met."""
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, object]:
        """Return all values as `json.dumps` accepts them."""
        return {"promote": self.promote, **asdict(self)}


def decide(new: Path, old: Path, reference: Reference | None, thresholds: Thresholds) -> Decision:
    """Compare two runs of the same films.

    Raises:
        InputError: a file cannot be used; names the line, never its content.
        ConfigurationError: with a reference, if the extra ``pedcxr[eval]`` is not installed.
    """
    words = lexicon.load(lexicon.SHIPPED)
    new_run, old_run = runs.read(new), runs.read(old)
    names = [name for name in new_run.reports if name in old_run.reports]
    new_findings, old_findings = ([_findings(run, name, words) for name in names] for run in (new_run, old_run))
    pairs = list(zip(new_findings, old_findings, strict=True))
    added = Counter(finding for one, other in pairs for finding in one - other)
    removed = Counter(finding for one, other in pairs for finding in other - one)
    new_side, old_side = _side(new, new_run), _side(old, old_run)
    revisions = {model.partition("@")[2] for side in (new_side, old_side) for model in side.models}
    values: dict[str, Any] = {
        "new": new_side,
        "old": old_side,
        "same_weights": len(revisions) == 1 and "" not in revisions,
        "films": len(names),
        "exact": _share(new_run.reports[name].text == old_run.reports[name].text for name in names),
        "same_findings": _share(one == other for one, other in pairs),
        "changed_findings": {name: (added[name], removed[name]) for name in sorted({*added, *removed})},
        "against": None if reference is None else scoring.evaluate(new_run, reference, words, against=old_run).against,
        "thresholds": thresholds,
    }
    return Decision(**values, checks=tuple(_checks(**values)))


def table(decision: Decision) -> str:
    """Return the comparison and the decision as text."""
    sides = (("new", decision.new), ("old", decision.old))
    lines = [f"{name}: {', '.join(side.models) or 'no report'}: {_outcomes(side)}" for name, side in sides]
    width = max(len(check.name) for check in decision.checks)
    lines += [
        f"{'ok  ' if check.passed else 'FAIL'}  {check.name:<{width}}  {check.value}; required: {check.required}"
        for check in decision.checks
    ]
    lines += [
        f"finding {name}: {added} films only in the new reports, {removed} only in the old"
        for name, (added, removed) in decision.changed_findings.items()
    ]
    return "\n".join([*lines, f"promote: {'yes' if decision.promote else 'no'}"])


def _checks(
    *, new: Side, old: Side, same_weights: bool, films: int, exact: float, same_findings: float,
    changed_findings: Mapping[str, tuple[int, int]], against: Differences | None, thresholds: Thresholds,
) -> Iterator[Check]:  # fmt: skip
    yield Check("films", str(films), f"at least {thresholds.min_films}", films >= thresholds.min_films)
    more = new.failures - old.failures
    yield Check(
        "films without a usable report", f"{new.failures}, old {old.failures}",
        f"at most {thresholds.max_more_failures} more than old", more <= thresholds.max_more_failures,
    )  # fmt: skip
    if same_weights:
        yield _at_least("equal reports, of the same weights", exact, thresholds.min_exact)
    if against is None:
        yield _at_least("films with the same findings", same_findings, thresholds.min_same_findings)
    ratio, limit = (new.words / old.words if old.words else 0.0), thresholds.max_length_ratio
    yield Check(
        "mean words, new / old", f"{ratio:.2f}", f"between {1 / limit:.2f} and {limit:.2f}", 1 / limit <= ratio <= limit
    )
    for measure, difference in (against or {}).get(ANY, {}).items():
        low = difference.low
        yield Check(
            f"{measure} for {ANY}, new - old",
            "no film" if low is None else f"{difference.value:+.3f} (95 % from {low:+.3f}) of {difference.count} films",
            f"interval above {-thresholds.margin:+.3f}", low is not None and low >= -thresholds.margin,
        )  # fmt: skip
    if against is not None:
        worse = [
            f"{measure} for {finding} {difference.value:+.3f}, p {difference.p_holm:.3f}"
            for finding, measures in against.items()
            for measure, difference in measures.items()
            if difference.value is not None and difference.value < 0 and difference.p_holm < thresholds.alpha
        ]
        required = f"none with p < {thresholds.alpha:g} (McNemar, Holm)"
        yield Check("findings that became worse", "; ".join(worse) or "none", required, not worse)


def _at_least(name: str, value: float, limit: float) -> Check:
    return Check(name, f"{value:.3f}", f"at least {limit:.3f}", value >= limit)


def _findings(run: Run, name: str, words: Lexicon) -> frozenset[str]:
    statuses = negation.read(run.reports[name].text, words)
    return frozenset(finding for finding, status in statuses.items() if status in _PRESENT)


def _side(path: Path, run: Run) -> Side:
    lengths = [len(report.text.split()) for report in run.reports.values()]
    codes = _codes(path)
    outcomes = Counter({"ok": len(run.reports)}) + Counter(codes.get(name, "failed") for name in run.failed)
    return Side(run.models, dict(outcomes), sum(lengths) / len(lengths) if lengths else 0.0)


def _codes(path: Path) -> dict[str, str]:
    """Return the code of the last error of each film; `runs.read` has checked the file."""
    codes = {}
    with path.open(encoding="utf-8-sig") as file:
        for line in filter(str.strip, file):
            entry = json.loads(line)
            if isinstance(error := entry.get("error"), dict):
                codes[entry["id"].strip()] = str(error.get("code", "failed"))
    return codes


def _share(flags: Iterator[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else 0.0


def _outcomes(side: Side) -> str:
    counts = ", ".join(f"{count} {code}" for code, count in sorted(side.outcomes.items()))
    return f"{counts or 'no film'}; {side.words:.1f} words on average"
