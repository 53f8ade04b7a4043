"""Counts of agreement, and rates with Wilson's intervals. Pure; the statistics are scipy's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pedcxr_client.evaluation.extras import need

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Rate:
    """``hits`` of ``count``, and the 95 % interval of Wilson's score method; None where there is nothing to count."""

    hits: int
    count: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, hits: int, count: int) -> Rate:
        """The rate of ``hits`` among ``count``.

        Raises:
            ConfigurationError: if scipy is not installed.
        """
        if count == 0:
            return cls(0, 0, None, None, None)
        found = need("scipy.stats").binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
        return cls(hits, count, hits / count, float(found.low), float(found.high))


@dataclass(frozen=True, slots=True)
class Counts:
    """Films by what is right and what the report says."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def total(self) -> int:
        """All films counted."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    @property
    def positive(self) -> int:
        """Films that show it."""
        return self.true_positive + self.false_negative


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well reports find one finding: ``sensitivity`` TP / (TP + FN), ``specificity`` TN / (TN + FP)."""

    counts: Counts
    sensitivity: Rate
    specificity: Rate


def agreement(pairs: Iterable[tuple[bool, bool]]) -> Agreement:
    """From pairs of what is right and what the report says."""
    tally = {(right, said): 0 for right in (True, False) for said in (True, False)}
    for pair in pairs:
        tally[pair] += 1
    counts = Counts(tally[True, True], tally[False, True], tally[True, False], tally[False, False])
    return Agreement(
        counts,
        Rate.of(counts.true_positive, counts.positive),
        Rate.of(counts.true_negative, counts.true_negative + counts.false_positive),
    )
