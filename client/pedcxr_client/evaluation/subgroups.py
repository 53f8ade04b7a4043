"""Groups of films: by age as the model's training code has them, by sex, by view. Pure."""

from __future__ import annotations

from pedcxr_client.errors import InputError
from pedcxr_client.films.age import Age
from pedcxr_client.request.prompts import GROUPS, group

UNKNOWN = "unknown"
ADULT = "adult"
AGE_GROUPS = (*(name for name, _ in GROUPS), ADULT, UNKNOWN)
"""The age groups, the youngest first."""
SEXES = ("M", "F", UNKNOWN)
VIEWS = ("AP", "PA", "lateral", "other", UNKNOWN)
_VIEWS = {"AP": "AP", "PA": "PA"} | dict.fromkeys(("LL", "RL", "L", "LAT", "LATERAL"), "lateral")


def age_group(age: str | None) -> str:
    """The group of an age such as ``"5y"``; what is no age is unknown."""
    try:
        parsed = Age.parse(age or "")
    except InputError:
        return UNKNOWN
    try:
        return group(parsed)
    except InputError:
        return ADULT


def sex(sex: str | None) -> str:
    """``"M"``, ``"F"`` or unknown."""
    upper = (sex or "").strip().upper()
    return upper if upper in SEXES else UNKNOWN


def view(view: str | None) -> str:
    """The view's group; a code that is not known counts as other."""
    return _VIEWS.get(view.strip().upper(), "other") if view and view.strip() else UNKNOWN
