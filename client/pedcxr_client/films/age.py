"""The age of a child, as the prompt words it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from pedcxr_client.errors import InputError

Unit = Literal["D", "W", "M", "Y"]

_FORM = re.compile(r"\s*(\d{1,3})\s*([dwmy])\s*", re.IGNORECASE)
_DAYS_PER_MONTH = 365.25 / 12


@dataclass(frozen=True, slots=True)
class Age:
    """An age at the time of the film, at the precision it is known.

    Args:
        value: 0 to 999; at least 1 for years, since "0 years" hides whether a child is a day or eleven months old.
        unit: ``"D"`` days, ``"W"`` weeks, ``"M"`` months or ``"Y"`` years, the letters of DICOM's Age String
            (PS3.5 section 6.2, VR AS).

    Raises:
        InputError: if a value is out of range.
    """

    value: int
    unit: Unit

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 999 or (self.unit == "Y" and self.value == 0):
            raise InputError(
                f"age: {self.value}{self.unit.lower()} is not usable; under a year, give months, weeks or days (7m)"
            )

    @classmethod
    def parse(cls, text: str) -> Age:
        """Read ``"5y"``, ``"18m"``, ``"3w"``, ``"10d"`` or DICOM's ``"005Y"``.

        Raises:
            InputError: if a unit is missing ("62" is never guessed to be years) or the form is another.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise InputError(
                f"age: {text[:20]!r} is not an age; write a number and one of d, w, m, y, such as 5y or 18m"
            )
        return cls(int(match[1]), cast("Unit", match[2].upper()))

    def __str__(self) -> str:
        """Such as ``"5y"``, which :meth:`parse` reads."""
        return f"{self.value}{self.unit.lower()}"

    @property
    def words(self) -> str:
        """``"10-day-old"`` below 28 days, then weeks below 8 weeks, months below 24, and years."""
        value, unit = self.value, self.unit
        if unit == "W":
            value, unit = value * 7, "D"
        if unit == "D":
            if value < 28:
                return f"{value}-day-old"
            if value < 56:
                return f"{value // 7}-week-old"
            value, unit = int(value / _DAYS_PER_MONTH), "M"
        if unit == "M" and value >= 24:
            value, unit = value // 12, "Y"
        return f"{value}-{'month' if unit == 'M' else 'year'}-old"
