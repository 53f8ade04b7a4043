"""Rates with intervals by film or by patient, agreement, and McNemar's test with Holm's correction."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import sqrt
from statistics import NormalDist
from types import ModuleType
from typing import Any, TypeVar

from pedcxr_client.errors import ConfigurationError

INSTALL = 'pip install "pedcxr[eval]"'
CONFIDENCE = 0.95  # of the intervals
RESAMPLES = 1000  # of the bootstrap
_SEED = 20260101  # fixed, so that the same files give the same intervals
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_CHUNK = 100  # resamples in memory at once

K = TypeVar("K", bound=Hashable)  # names a finding, or a measure of a finding

Patients = Sequence[Hashable] | None
"""The patient of each film; None if every film is of another patient."""
Flags = Sequence[bool | None]
"""One value for each film: whether it is a hit; None if the film is not counted."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval. None stands for a value of no films."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Rate(Estimate):
    """``hits`` / ``count`` with its 95 % interval, all from 0 to 1."""

    hits: int
    count: int

    @classmethod
    def of(cls, hits: int, count: int, interval: tuple[float, float] | None = None) -> Rate:
        """Return the rate of ``hits`` among ``count``, with Wilson's score interval unless another is passed."""
        if count == 0:
            return cls(None, None, None, 0, 0)
        return cls(hits / count, *(interval or wilson(hits, count)), hits, count)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a proportion (Newcombe, Stat Med 1998; 17: 857, method 3)."""
    centre, half = (hits + _Z**2 / 2), _Z * sqrt(hits * (count - hits) / count + _Z**2 / 4)
    low, high = ((centre + sign * half) / (count + _Z**2) for sign in (-1, 1))
    return (0.0 if hits == 0 else low), (1.0 if hits == count else high)


def rates(flags: Mapping[K, Flags], patients: Patients) -> dict[K, Rate]:
    """Return the rate of each series of flags.

    With patients, the interval holds the middle 95 % of the rates of `RESAMPLES` resamples of patients (percentile
    bootstrap). If all films are hits or none is, resamples do not vary. The interval is then Wilson's, with the number
    of patients in place of the films.
    """
    tallies = {name: (sum(map(bool, films)), sum(flag is not None for flag in films)) for name, films in flags.items()}
    if not patients or not flags:
        return {name: Rate.of(*tally) for name, tally in tallies.items()}
    np = import_extra("numpy")
    columns = [
        column for films in flags.values() for column in (map(bool, films), (flag is not None for flag in films))
    ]
    sums = resampled_sums(np.array([list(column) for column in columns]).T, patients)
    return {
        name: Rate.of(
            *tally, _clustered_interval(*tally, sums[:, 2 * at : 2 * at + 2], _patients(flags[name], patients))
        )
        for at, (name, tally) in enumerate(tallies.items())
    }


def _patients(films: Sequence[object], patients: Sequence[Hashable]) -> int:
    return len({patient for patient, film in zip(patients, films, strict=True) if film is not None})


def _clustered_interval(hits: int, count: int, sums: Any, patients: int) -> tuple[float, float] | None:
    if hits in (0, count):
        return wilson(patients if hits else 0, patients) if patients else None
    return quotients(sums) if patients > 1 else (0.0, 1.0)


def resampled_sums(values: Any, patients: Sequence[Hashable]) -> Any:
    """Draw patients with replacement and return the sum of each column of ``values`` over their films.

    Args:
        values: one row of numbers for each film.
        patients: the patient of each film.

    Returns:
        A numpy array of `RESAMPLES` rows, with the columns of ``values``.
    """
    np = import_extra("numpy")
    numbers = {patient: at for at, patient in enumerate(dict.fromkeys(patients))}
    table = np.asarray(values, dtype=float)
    by_patient = np.zeros((len(numbers), table.shape[1]))
    np.add.at(by_patient, [numbers[patient] for patient in patients], table)
    draws = np.random.default_rng(_SEED)
    parts = []
    for _ in range(RESAMPLES // _CHUNK):
        picks = draws.integers(len(numbers), size=(_CHUNK, len(numbers)))
        weights = np.stack([np.bincount(row, minlength=len(numbers)) for row in picks]).astype(float)
        parts.append(weights @ by_patient)
    return np.concatenate(parts)


def quotients(sums: Any) -> tuple[float, float]:
    """Return the middle 95 % of the quotients of two columns. Resamples with a denominator of 0 are left out."""
    defined = sums[sums[:, 1] > 0]
    return middle(defined[:, 0] / defined[:, 1])


def middle(values: Any) -> tuple[float, float]:
    """Return the range of the middle 95 % of the values."""
    low, high = import_extra("numpy").quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


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


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement on one finding.

    Attributes:
        sensitivity, specificity: TP / (TP + FN), TN / (TN + FP).
        ppv, npv: the predictive values TP / (TP + FP), TN / (TN + FN).
        f1: 2 TP / (2 TP + FP + FN). Its interval is that of j = TP / (TP + FP + FN), because F1 is 2 j / (1 + j).
    """

    counts: Counts
    sensitivity: Rate
    specificity: Rate
    ppv: Rate
    npv: Rate
    f1: Estimate


# For a film with (reference, report): whether it is a hit; None if it is not counted.
_MEASURES: Mapping[str, Callable[[bool, bool], bool | None]] = {
    "sensitivity": lambda truth, report: report if truth else None,
    "specificity": lambda truth, report: None if truth else not report,
    "ppv": lambda truth, report: truth if report else None,
    "npv": lambda truth, report: None if report else not truth,
    "jaccard": lambda truth, report: truth and report if truth or report else None,
}


def agreements(pairs: Mapping[K, Sequence[tuple[bool | None, bool]]], patients: Patients = None) -> dict[K, Agreement]:
    """Compare pairs of (reference, report) for each finding, each True if it is present; None if it is unknown."""
    flags = {
        (name, measure): [None if truth is None else flag(truth, report) for truth, report in films]
        for name, films in pairs.items()
        for measure, flag in _MEASURES.items()
    }
    by_measure = rates(flags, patients)
    return {name: _agreement(*(by_measure[name, measure] for measure in _MEASURES)) for name in pairs}


def _agreement(sensitivity: Rate, specificity: Rate, ppv: Rate, npv: Rate, jaccard: Rate) -> Agreement:
    counts = Counts(
        sensitivity.hits, specificity.count - specificity.hits, sensitivity.count - sensitivity.hits, specificity.hits
    )
    shares = (jaccard.value, jaccard.low, jaccard.high)
    f1 = Estimate(*(None if share is None else 2 * share / (1 + share) for share in shares))
    return Agreement(counts, sensitivity, specificity, ppv, npv, f1)


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """Comparison of two runs on one finding, on films with it (sensitivity) or without it (specificity).

    Attributes:
        value, low, high: rate of this run minus rate of the other run, from -1 to 1.
        count: number of films.
        only_this, only_other: films on which only one of the runs agrees with the reference.
        p: two-sided p-value of McNemar's exact test, or of `sign_flip` if films are grouped by patient; 1.0 if the
            runs never differ.
        p_holm: p with Holm's correction for the number of tests (Holm 1979).
    """

    count: int
    only_this: int
    only_other: int
    p: float
    p_holm: float


def compare(pairs: Mapping[K, Sequence[tuple[bool, bool] | None]], patients: Patients = None) -> dict[K, Difference]:
    """Compare two runs by whether each agrees with the reference on a film; None for a film that is not counted."""
    tallies = {
        name: (
            sum(pair == (True, False) for pair in films),
            sum(pair == (False, True) for pair in films),
            sum(pair is not None for pair in films),
        )
        for name, films in pairs.items()
    }
    values = {
        name: mcnemar(*tallies[name][:2]) if patients is None else sign_flip(_by_patient(films, patients))
        for name, films in pairs.items()
    }
    corrected = holm(values)
    return {
        name: Difference(
            *_difference(films, *tallies[name], patients),
            count=tallies[name][2], only_this=tallies[name][0], only_other=tallies[name][1],
            p=values[name], p_holm=corrected[name],
        )
        for name, films in pairs.items()
    }  # fmt: skip


def _difference(
    films: Sequence[tuple[bool, bool] | None], only_this: int, only_other: int, count: int, patients: Patients
) -> tuple[float | None, float | None, float | None]:
    if not count:
        return None, None, None
    value = (only_this - only_other) / count
    if patients is not None and only_this + only_other:
        rows = [(0, 0) if pair is None else (pair[0] - pair[1], 1) for pair in films]
        return value, *(quotients(resampled_sums(rows, patients)) if _patients(films, patients) > 1 else (-1.0, 1.0))
    count = count if patients is None else _patients(films, patients)
    # Wald's interval after adding 1/2 to each cell of the table (Agresti and Min, Stat Med 2005; 24: 729).
    total, centre = count + 2, (only_this - only_other) / (count + 2)
    half = _Z * sqrt(only_this + only_other + 1 - total * centre**2) / total
    return value, max(-1.0, centre - half), min(1.0, centre + half)


def mcnemar(only_this: int, only_other: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, a binomial test of the films on which the runs differ."""
    differing = only_this + only_other
    term = tail = 1  # the number of outcomes as unequal as this one, on one side
    for at in range(min(only_this, only_other)):
        term = term * (differing - at) // (at + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << differing))


def sign_flip(differences: Sequence[int]) -> float:
    """Return the two-sided p-value of the exact sign-flip test of whether the runs differ.

    If the runs are equally good, exchanging them for any one patient is as likely as not. The test therefore gives each
    patient's difference both signs, and returns the share of all combinations whose sum is at least as far from zero as
    the observed sum (Fisher 1935, The Design of Experiments, section 21). With one film per patient it is McNemar's
    exact test.

    Args:
        differences: for each patient, films that only this run gets right minus films that only the other gets right.
    """
    np = import_extra("numpy")
    steps = [abs(difference) for difference in differences if difference]
    reach = sum(steps)
    sums = np.zeros(2 * reach + 1)  # the probability of each sum from -reach to reach
    sums[reach] = 1.0
    for step in steps:
        sums = (np.roll(sums, step) + np.roll(sums, -step)) / 2  # sums so far end before the edge: no wrap
    observed = abs(sum(differences))
    tail = sums[reach + observed :].sum()
    return min(1.0, float(2 * tail))


def _by_patient(films: Sequence[tuple[bool, bool] | None], patients: Sequence[Hashable]) -> list[int]:
    sums: dict[Hashable, int] = {}
    for pair, patient in zip(films, patients, strict=True):
        if pair is not None:
            sums[patient] = sums.get(patient, 0) + pair[0] - pair[1]
    return list(sums.values())


def holm(values: Mapping[K, float]) -> dict[K, float]:
    """Return p-values with Holm's step-down correction."""
    corrected: dict[K, float] = {}
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
