"""Two runs on the same films: McNemar's exact test for each finding, by scipy, and Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pedcxr_client.evaluation.extras import need


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
    return float(need("scipy.stats").binomtest(only_this, differing).pvalue) if differing else 1.0


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction."""
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(values, key=values.__getitem__)):
        highest = max(highest, min(1.0, values[name] * (len(values) - rank)))
        corrected[name] = highest
    return corrected
