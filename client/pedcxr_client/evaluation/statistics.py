"""Agreement counts, rates with Wilson intervals, and McNemar's test with Holm's correction. Requires scipy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from pedcxr_client.errors import ConfigurationError

INSTALL = 'pip install "pedcxr[eval]"'
CONFIDENCE = 0.95  # of the intervals


@dataclass(frozen=True, slots=True)
class Rate:
    """``hits`` / ``count`` with its 95 % Wilson score interval, all from 0 to 1. None if ``count`` is 0."""

    hits: int
    count: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, hits: int, count: int) -> Rate:
        """Return the rate of ``hits`` among ``count``."""
        if count == 0:
            return cls(0, 0, None, None, None)
        interval = import_extra("scipy.stats").binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
        return cls(hits, count, hits / count, float(interval.low), float(interval.high))


@dataclass(frozen=True, slots=True)
class Counts:
    """The confusion matrix of one finding: number of films by reference and report."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def total(self) -> int:
        """Number of films."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    @property
    def positive(self) -> int:
        """Number of films with the finding, according to the reference."""
        return self.true_positive + self.false_negative


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement on one finding: ``sensitivity`` is TP / (TP + FN), ``specificity`` is TN / (TN + FP)."""

    counts: Counts
    sensitivity: Rate
    specificity: Rate


def agreement(pairs: Iterable[tuple[bool, bool]]) -> Agreement:
    """Count pairs of (reference, report), each True if the finding is present."""
    tally = {(reference, report): 0 for reference in (True, False) for report in (True, False)}
    for pair in pairs:
        tally[pair] += 1
    counts = Counts(tally[True, True], tally[False, True], tally[True, False], tally[False, False])
    return Agreement(
        counts,
        Rate.of(counts.true_positive, counts.positive),
        Rate.of(counts.true_negative, counts.true_negative + counts.false_positive),
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """Comparison of two runs on one finding.

    Attributes:
        count: films for which both runs have a report.
        only_this, only_other: films on which only one of the runs agrees with the reference.
        p: two-sided p-value of McNemar's exact test; 1.0 if the runs never differ.
        p_holm: p with Holm's correction for the number of findings (Holm 1979).
    """

    count: int
    only_this: int
    only_other: int
    p: float
    p_holm: float


def compare(pairs: Mapping[str, Sequence[tuple[bool, bool]]]) -> dict[str, Difference]:
    """Compare two runs: for each finding and film, whether this run and the other run agree with the reference."""
    tallies = {
        name: (sum(this and not other for this, other in films), sum(other and not this for this, other in films))
        for name, films in pairs.items()
    }
    values = {name: mcnemar(*tally) for name, tally in tallies.items()}
    corrected = holm(values)
    return {
        name: Difference(len(films), *tallies[name], values[name], corrected[name]) for name, films in pairs.items()
    }


def mcnemar(only_this: int, only_other: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, a binomial test of the films on which the runs differ."""
    differing = only_this + only_other
    return float(import_extra("scipy.stats").binomtest(only_this, differing).pvalue) if differing else 1.0


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values with Holm's step-down correction."""
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(values, key=values.__getitem__)):
        highest = max(highest, min(1.0, values[name] * (len(values) - rank)))
        corrected[name] = highest
    return corrected


def import_extra(module: str) -> ModuleType:
    """Import a module of the extra ``pedcxr[eval]``. Raise ConfigurationError if it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(f"pedcxr eval requires {module.partition('.')[0]}: {INSTALL}") from error
