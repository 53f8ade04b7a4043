"""The age of a child and its wording in the prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Literal, cast

from pedcxr_client.errors import InputError

Unit = Literal["D", "W", "M", "Y"]

_AGE = re.compile(r"\s*(\d{1,3})\s*([dwmy])\s*", re.IGNORECASE)
_QUOTABLE = re.compile(r"[\d\sdwmy.,+-]{1,20}", re.IGNORECASE)  # a cell of a manifest may hold a name by mistake
_DAYS_PER_MONTH = 365.25 / 12
_DAYS = {"D": 1, "W": 7, "M": _DAYS_PER_MONTH, "Y": 365.25}
_MAX_DIFFERENCE_DAYS = 366  # larger than any rounding to completed years
_MAX_DIFFERENCE_RATIO = 0.25
_ZERO_DAYS = 31  # an age of 0 days, weeks or months is below


@dataclass(frozen=True, slots=True)
class Age:
    """The age at the time of the film, in the unit in which it is known.

    Args:
        value: an integer between 0 and 999. Years start at 1, since "0 years" may mean one day or eleven months.
        unit: ``"D"`` days, ``"W"`` weeks, ``"M"`` months or ``"Y"`` years, the letters of DICOM's Age String
            (PS3.5 section 6.2, VR AS).

    Raises:
        InputError: if the value is out of range.
    """

    value: int
    unit: Unit

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 999 or (self.unit == "Y" and self.value == 0):
            raise InputError(
                f"age: {self.value}{self.unit.lower()} is out of range; below one year, give m, w or d, such as 7m"
            )

    @classmethod
    def parse(cls, text: str) -> Age:
        """Read ``"5y"``, ``"18m"``, ``"3w"``, ``"10d"`` or DICOM's ``"005Y"``.

        Raises:
            InputError: if the text has another form. A number without a unit, such as "62", is not assumed to be years.
        """
        match = _AGE.fullmatch(text)
        if match is None:
            quoted = repr(text) if _QUOTABLE.fullmatch(text) else "the text"
            raise InputError(f"age: {quoted} is not an age; write a number and one of d, w, m, y, such as 5y or 18m")
        return cls(int(match[1]), cast("Unit", match[2].upper()))

    @classmethod
    def between(cls, birth: date, study: date) -> Age:
        """Return the completed age at the date of the study.

        Days below 2 completed calendar months, months below 24 months, else years. A child born on 29 February
        completes a month or a year on 1 March if the month of the study has no such day.

        Raises:
            InputError: if the birth is after the study. The message contains no date.

        Example:
            >>> str(Age.between(date(2018, 5, 4), date(2024, 1, 2)))
            '5y'
        """
        days = study.toordinal() - birth.toordinal()
        if days < 0:
            raise InputError("age: the birth is after the study; check both dates")
        months = (study.year - birth.year) * 12 + study.month - birth.month - (study.day < birth.day)
        if months < 2:
            return cls(days, "D")
        return cls(months, "M") if months < 24 else cls(months // 12, "Y")

    def __str__(self) -> str:
        """Return a form that `parse` reads, such as ``"5y"``."""
        return f"{self.value}{self.unit.lower()}"

    @property
    def words(self) -> str:
        """The wording for the prompt, such as ``"10-day-old"``.

        Completed days below 28 days, weeks below 2 months (61 days), months below 24 months, else years. Weeks last
        until 2 months are completed, so that a later film of a child never has the words of a younger one: at 56 days
        one month is completed, and "1-month-old" after "7-week-old" would go back.
        """
        value, unit = self.value, self.unit
        if unit == "W":
            value, unit = value * 7, "D"
        if unit == "D":
            if value < 28:
                return f"{value}-day-old"
            if value < 2 * _DAYS_PER_MONTH:
                return f"{value // 7}-week-old"
            value, unit = int(value / _DAYS_PER_MONTH), "M"
        if unit == "M" and value >= 24:
            value, unit = value // 12, "Y"
        return f"{value}-{'month' if unit == 'M' else 'year'}-old"

    def contradicts(self, other: Age) -> bool:
        """Return whether two ages of one child differ by more than rounding explains.

        That is by more than one year and by more than 25 % of the larger age. An age of 0, which some devices write
        for an unknown age, contradicts one month or more.
        """
        return self.differs_from(other.value * _DAYS[other.unit])

    def differs_from(self, days: float) -> bool:
        """Compare as `contradicts` does with a number of days, which is negative for a birth after the study."""
        own = self.value * _DAYS[self.unit]
        if 0 in (own, days):
            return abs(own - days) >= _ZERO_DAYS
        difference = abs(own - days)
        return difference > _MAX_DIFFERENCE_DAYS and difference > _MAX_DIFFERENCE_RATIO * max(own, days)
