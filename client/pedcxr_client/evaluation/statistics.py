"""Counts of agreement, rates with Wilson's interval, and McNemar's test with Holm's correction. Pure; needs scipy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from pedcxr_client.errors import ConfigurationError

INSTALL = 'pip install "pedcxr[eval]"'
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
        found = import_extra("scipy.stats").binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
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


@dataclass(frozen=True, slots=True)
class Difference:
    """One finding in two runs, over ``count`` films that both have a report of.

    Attributes:
        only_this, only_other: films that one run gets right and the other wrong.
        p: two-sided, of the exact binomial test; 1.0 where the runs never differ.
        p_holm: corrected for the number of findings compared (Holm 1979).
    """

    count: int
    only_this: int
    only_other: int
    p: float
    p_holm: float


def compare(pairs: Mapping[str, Sequence[tuple[bool, bool]]]) -> dict[str, Difference]:
    """For each finding: of each film, whether this run is right and whether the other is.

    Raises:
        ConfigurationError: if scipy is not installed.
    """
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
    """McNemar's exact p, two-sided: a binomial test of the films on which the runs differ."""
    differing = only_this + only_other
    return float(import_extra("scipy.stats").binomtest(only_this, differing).pvalue) if differing else 1.0


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction."""
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(values, key=values.__getitem__)):
        highest = max(highest, min(1.0, values[name] * (len(values) - rank)))
        corrected[name] = highest
    return corrected


def import_extra(module: str) -> ModuleType:
    """Import a module of the extra.

    Raises:
        ConfigurationError: if it is not installed; the message is the line to type.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(f"pedcxr eval needs {module.partition('.')[0]}: {INSTALL}") from error
