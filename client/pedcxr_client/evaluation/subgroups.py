"""Group films by age, sex and view. The age groups are those of the training code of the model."""

from __future__ import annotations

from pedcxr_client.errors import InputError
from pedcxr_client.films.age import Age
from pedcxr_client.request.prompts import GROUPS, group

UNKNOWN = "unknown"
ADULT = "adult"
AGE_GROUPS = (*(name for name, _ in GROUPS), ADULT, UNKNOWN)
"""The age groups, youngest first."""
SEXES = ("M", "F", UNKNOWN)
VIEWS = ("AP", "PA", "lateral", "other", UNKNOWN)
_VIEWS = {"AP": "AP", "PA": "PA"} | dict.fromkeys(("LL", "RL", "L", "LAT", "LATERAL"), "lateral")


def age_group(age: str | None) -> str:
    """Return the group of an age such as ``"5y"``, or ``"unknown"`` for an invalid age."""
    try:
        parsed = Age.parse(age or "")
    except InputError:
        return UNKNOWN
    try:
        return group(parsed)
    except InputError:
        return ADULT


def sex(sex: str | None) -> str:
    """Return ``"M"``, ``"F"`` or ``"unknown"``."""
    upper = (sex or "").strip().upper()
    return upper if upper in SEXES else UNKNOWN


def view(view: str | None) -> str:
    """Return the group of a ViewPosition (0018,5101) value: ``"other"`` for an unknown code, ``"unknown"`` for none.

    DICOM defines LL and RL for lateral views (PS3.3 C.8.1.1). The group also accepts L, LAT and LATERAL.
    """
    return _VIEWS.get(view.strip().upper(), "other") if view and view.strip() else UNKNOWN
