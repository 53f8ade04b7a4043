"""Intervals and tests, compared with scipy."""

from __future__ import annotations

import math

import numpy
import pytest
from scipy import stats

from pedcxr_client.evaluation import statistics


@pytest.mark.parametrize(
    ("hits", "count"), [(0, 1), (1, 1), (0, 20), (20, 20), (8, 10), (3, 7), (997, 1000), (1, 5000)]
)
def test_wilson_interval_is_that_of_scipy(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert statistics.wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
    rate = statistics.Rate.of(hits, count)
    assert (rate.value, rate.hits, rate.count) == (hits / count, hits, count)


def test_rate_of_no_film_has_no_value():
    assert statistics.Rate.of(0, 0) == statistics.Rate(None, None, None, 0, 0)
    for patients in (None, [], ["p"]):
        flags = [None] * len(patients or [])
        assert statistics.rates({"a": flags}, patients) == {"a": statistics.Rate(None, None, None, 0, 0)}
    assert statistics.rates({}, ["p"]) == {}


@pytest.mark.parametrize(
    ("only_this", "only_other"), [(0, 0), (0, 1), (1, 9), (5, 5), (4, 5), (30, 12), (0, 40), (700, 600)]
)
def test_mcnemars_test_is_the_binomial_test_of_scipy(only_this, only_other):
    expected = stats.binomtest(only_this, only_this + only_other).pvalue if only_this + only_other else 1.0
    assert statistics.mcnemar(only_this, only_other) == pytest.approx(expected, rel=1e-9)
    assert statistics.mcnemar(only_other, only_this) == statistics.mcnemar(only_this, only_other)


def test_mcnemars_test_of_thousands_of_films():
    assert 0 < statistics.mcnemar(2300, 2700) < 1e-7
    assert statistics.mcnemar(0, 3000) == 0.0, "smaller than any float"


@pytest.mark.parametrize(("only_this", "only_other"), [(0, 0), (1, 0), (1, 9), (5, 5), (30, 12), (1000, 900)])
def test_sign_flip_test_of_single_films_is_mcnemars(only_this, only_other):
    differences = [1] * only_this + [-1] * only_other + [0] * 7
    assert statistics.sign_flip(differences) == pytest.approx(statistics.mcnemar(only_this, only_other), rel=1e-9)


@pytest.mark.parametrize("differences", [[3, 0], [-2, 1], [4, 1, -1, 2], [5, -3, 2, 2, -1, 1, 0, 4], [0, 0]])
def test_sign_flip_test_is_the_permutation_test_of_scipy(differences):
    values = numpy.array(differences)
    exact = stats.permutation_test((values,), numpy.sum, permutation_type="samples", n_resamples=numpy.inf)
    assert statistics.sign_flip(differences) == pytest.approx(exact.pvalue, rel=1e-9)


def test_films_of_one_patient_are_no_further_evidence():
    films = [(True, False)] * 6 + [(False, True)]
    patients = list(range(7))
    alone = statistics.compare({"a": films}, patients)["a"].p
    assert alone == pytest.approx(stats.binomtest(1, 7).pvalue)
    assert statistics.compare({"a": films * 3}, patients * 3)["a"].p == pytest.approx(alone)
    assert statistics.compare({"a": films * 3})["a"].p < alone / 10
    assert statistics.compare({"a": [*films, None]}, [*patients, 0])["a"].p == pytest.approx(alone)


def test_holms_correction():
    assert statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert statistics.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def clustered(seed: int) -> tuple[list[bool], list[int]]:
    """Return flags of 60 patients with 1 to 5 films, which agree within a patient, and the patient of each film."""
    draws = numpy.random.default_rng(seed)
    flags, patients = [], []
    for patient in range(60):
        films = int(draws.integers(1, 6))
        flags += [bool(draws.random() < 0.7)] * films
        patients += [patient] * films
    return flags, patients


def test_bootstrap_by_patient_is_that_of_scipy():
    flags, patients = clustered(1)
    hits = numpy.bincount(patients, weights=flags)
    films = numpy.bincount(patients)
    expected = stats.bootstrap(
        (hits, films),
        lambda h, n, axis: h.sum(axis=axis) / n.sum(axis=axis),
        paired=True, vectorized=True, method="percentile", n_resamples=20_000, random_state=numpy.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    rate = statistics.rates({"a": flags}, patients)["a"]
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    low, high = statistics.wilson(sum(flags), len(flags))
    assert rate.high - rate.low > 1.4 * (high - low), "films of one patient agree"
    assert statistics.rates({"a": flags}, patients)["a"] == rate, "the seed is fixed"


def test_bootstrap_of_a_rate_does_not_depend_on_the_other_rates():
    flags, patients = clustered(3)
    alone = statistics.rates({"a": flags}, patients)["a"]
    both = statistics.rates({"b": [not flag for flag in flags], "a": flags}, patients)
    assert both["a"] == alone
    assert (both["b"].low, both["b"].high) == pytest.approx((1 - alone.high, 1 - alone.low))


def test_rate_of_all_or_no_films_counts_patients():
    """Ten films of two patients, all hits: resamples do not vary, and ten independent films would be too certain."""
    patients = ["p"] * 5 + ["q"] * 5
    result = statistics.rates(
        {"all": [True] * 10, "none": [False] * 10, "one": [True] * 4 + [False] + [None] * 5}, patients
    )
    assert (result["all"].low, result["all"].high) == statistics.wilson(2, 2)
    assert (result["none"].low, result["none"].high) == statistics.wilson(0, 2)
    assert (result["one"].low, result["one"].high) == (0.0, 1.0), "one patient says nothing about others"


def pairs(tp: int, fp: int, fn: int, tn: int) -> list[tuple[bool | None, bool]]:
    return (
        [(True, True)] * tp + [(False, True)] * fp + [(True, False)] * fn + [(False, False)] * tn + [(None, True)] * 3
    )


def test_rates_of_a_confusion_matrix():
    """TP 8, FP 3, FN 2, TN 12; three films are unknown."""
    result = statistics.agreements({"a": pairs(8, 3, 2, 12)})["a"]
    assert result.counts == statistics.Counts(8, 3, 2, 12) and result.counts.total == 25
    expected = {"sensitivity": (8, 10), "specificity": (12, 15), "ppv": (8, 11), "npv": (12, 14)}
    for name, (hits, count) in expected.items():
        assert getattr(result, name) == statistics.Rate.of(hits, count), name
    assert result.f1.value == pytest.approx(2 * 8 / (2 * 8 + 3 + 2))
    low, high = statistics.wilson(8, 13)
    assert (result.f1.low, result.f1.high) == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))
    nothing = statistics.agreements({"a": []})["a"]
    assert nothing.f1 == statistics.Estimate(None, None, None) and nothing.counts.total == 0


def test_interval_of_f1_covers_the_true_value():
    """In 400 samples of 60 films with a true F1 of 0.75, about 95 % of the intervals contain it."""
    draws = numpy.random.default_rng(7)
    covered = 0
    for tp, fp, fn, tn in draws.multinomial(60, [0.3, 0.1, 0.1, 0.5], size=400):
        f1 = statistics.agreements({"a": pairs(tp, fp, fn, tn)})["a"].f1
        covered += f1.low <= 0.75 <= f1.high
    assert 0.92 <= covered / 400 <= 0.98


def test_difference_of_two_runs():
    """Agresti and Min: b = 6, c = 1 of 40 films gives (7 - 2) / 42 with the standard error of the adjusted table."""
    films = [(True, False)] * 6 + [(False, True)] * 1 + [(True, True)] * 30 + [(False, False)] * 3 + [None] * 9
    result = statistics.compare({"a": films})["a"]
    assert (result.count, result.only_this, result.only_other) == (40, 6, 1)
    b, c, n = 6.5, 1.5, 42
    half = 1.959964 * math.sqrt((b + c) - (b - c) ** 2 / n) / n
    assert result.value == 5 / 40
    assert (result.low, result.high) == pytest.approx(((b - c) / n - half, (b - c) / n + half), abs=1e-6)
    assert result.p == stats.binomtest(6, 7).pvalue == result.p_holm


def test_difference_by_patient():
    films: list[tuple[bool, bool] | None] = [(True, False)] * 8 + [(True, True)] * 12 + [None] * 4
    alone = statistics.compare({"a": films})["a"]
    result = statistics.compare({"a": films}, [at // 4 for at in range(24)])["a"]
    assert result.value == alone.value == 0.4
    assert result.high - result.low > alone.high - alone.low, "2 of 5 patients, not 8 of 20 films"
    same = statistics.compare({"a": [(True, True)] * 8}, [0] * 4 + [1] * 4)["a"]
    assert same.low < 0 < same.high and same.p == 1.0
    one = statistics.compare({"a": [(True, False), (True, True)]}, [0, 0])["a"]
    assert (one.low, one.high) == (-1.0, 1.0)
    assert statistics.compare({"a": [None]})["a"].value is None
