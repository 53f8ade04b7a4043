"""Fictitious children: age, sex, and the findings on their films. Left and right are the patient's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from pedcxr_client.films.age import Age
from pedcxr_client.types import Sex

Side = Literal["right", "left"]
Zone = Literal["upper", "mid", "lower"]


class Kind(StrEnum):
    """The kinds of finding that can be drawn."""

    CONSOLIDATION = "consolidation"
    EFFUSION = "pleural effusion"
    PNEUMOTHORAX = "pneumothorax"
    CARDIOMEGALY = "cardiomegaly"
    HYPERINFLATION = "hyperinflation"
    WIDE_MEDIASTINUM = "wide upper mediastinum"
    TUBE = "endotracheal tube above the carina"
    TUBE_LOW = "endotracheal tube in the right main bronchus"
    LINE = "central venous line"


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One finding. ``side`` and ``zone`` are the patient's, or None for kinds without them."""

    kind: Kind
    side: Side | None = None
    zone: Zone | None = None


SIDES: tuple[Side, ...] = ("right", "left")
ZONES: tuple[Zone, ...] = ("upper", "mid", "lower")
FINDINGS: tuple[Finding, ...] = (
    *(Finding(Kind.CONSOLIDATION, side, zone) for side in SIDES for zone in ZONES),
    *(Finding(kind, side) for kind in (Kind.EFFUSION, Kind.PNEUMOTHORAX, Kind.LINE) for side in SIDES),
    *(Finding(kind) for kind in (Kind.CARDIOMEGALY, Kind.HYPERINFLATION, Kind.WIDE_MEDIASTINUM)),
    *(Finding(kind) for kind in (Kind.TUBE, Kind.TUBE_LOW)),
)
"""The 17 findings that can be drawn."""

_WEIGHTS = {Kind.CONSOLIDATION: 0.6, Kind.WIDE_MEDIASTINUM: 3.0}


@dataclass(frozen=True, slots=True)
class Case:
    """A fictitious child. No two of its findings hide each other (see `compatible`)."""

    age: Age | None
    sex: Sex | None
    findings: tuple[Finding, ...]


def compatible(one: Finding, other: Finding) -> bool:
    """Return whether one film can show both: at most one tube and one line, and one kind of finding per lung."""
    tubes = {Kind.TUBE, Kind.TUBE_LOW}
    if one.kind in tubes and other.kind in tubes:
        return False
    if one.kind == other.kind and one.kind is not Kind.CONSOLIDATION:
        return False
    in_lung = {Kind.CONSOLIDATION, Kind.EFFUSION, Kind.PNEUMOTHORAX}
    return not (one.kind in in_lung and other.kind in in_lung and one.side == other.side)


def sample_age(rng: np.random.Generator) -> Age | None:
    """Sample an age from birth to 17 years, in every unit; half are under 3 years, and 1 in 20 is unknown."""
    draw = int(rng.integers(20))
    if draw == 0:
        return None
    if draw < 3:
        return Age(int(rng.integers(0, 28)), "D")
    if draw < 4:
        return Age(int(rng.integers(4, 8)), "W")
    if draw < 7:
        return Age(int(rng.integers(1, 24)), "M")
    if draw < 12:
        return Age(int(rng.integers(1, 5)), "Y")
    return Age(int(rng.integers(3, 18)), "Y")


def sample(seed: int) -> Case:
    """Sample a case: 16 % have no finding, the others one to three."""
    rng = np.random.default_rng([seed, 1])
    count = int(rng.choice(4, p=(0.16, 0.36, 0.30, 0.18)))
    weights = np.array([_WEIGHTS.get(finding.kind, 1.0) for finding in FINDINGS])
    order = rng.choice(len(FINDINGS), len(FINDINGS), replace=False, p=weights / weights.sum())
    findings: list[Finding] = []
    for index in order:
        finding = FINDINGS[int(index)]
        if len(findings) < count and all(compatible(finding, other) for other in findings):
            findings.append(finding)
    sexes: tuple[Sex | None, ...] = ("M", "F", None)
    sex = sexes[int(rng.choice(3, p=(0.45, 0.45, 0.10)))]
    return Case(sample_age(rng), sex, tuple(sorted(findings, key=FINDINGS.index)))
