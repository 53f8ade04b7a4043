"""What a caller wants of one film, as one value."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import KW_ONLY, dataclass

from pedcxr_client.checks.rules import CallerFacts
from pedcxr_client.errors import ConfigurationError
from pedcxr_client.films.age import Age
from pedcxr_client.films.film import FilmSource
from pedcxr_client.films.geometry import DISPLAY, Preparation
from pedcxr_client.request.prompts import CARD, Profile
from pedcxr_client.types import Sex


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class FilmRequest:
    """One film and what :meth:`Client.report` takes beside it.

    What concerns the film alone (age, sex, ``allow``) is checked when the film is taken in, so that a wrong one is
    that film's error and not the end of a whole run.

    Args:
        film: DICOM or an image: a path, bytes, an open file, a Pillow image, an array, or an EncodedImage.
        age: at the time of the film, as an Age or a text such as ``"5y"``; None takes that of a DICOM header.
        sex: ``"M"`` or ``"F"``; None takes that of a DICOM header. What neither says is left out of the prompt.
        max_tokens: 1 or more; a report that does not fit is an error.
        assume_chest: it shows a chest, should its header not say what it shows.
        allow: names of checks that must not block; see :mod:`pedcxr_client.checks.rules`. Recorded in the report.
        preparation: what is done to the pixels; an EncodedImage is sent as it is.
        prompt_profile: the form of the words; see :mod:`pedcxr_client.request.prompts`.
        indication: why the film was taken, up to 200 characters on a line, put behind the words. It leaves this machine
            as it is: no name, date or number of a person belongs in it. Reports keep its digest only.
        key: yours; it stays here and comes back with the result.

    Raises:
        ConfigurationError: if ``max_tokens`` is below 1, or ``prompt_profile`` is none.
    """

    film: FilmSource
    _: KW_ONLY
    age: Age | str | None = None
    sex: Sex | None = None
    max_tokens: int = 500
    assume_chest: bool = False
    allow: Iterable[str] = ()
    preparation: Preparation = DISPLAY
    prompt_profile: Profile = CARD
    indication: str | None = None
    key: Hashable = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigurationError(f"max_tokens: {self.max_tokens} must be 1 or more")
        if not isinstance(self.prompt_profile, Profile):
            raise ConfigurationError("prompt_profile: give prompt.CARD, or what prompt.read_training(path) returns")

    def caller_facts(self) -> CallerFacts:
        """What the caller says of the film, checked, for the gate.

        Raises:
            InputError: if the age or the sex cannot be used.
            ConfigurationError: if a name in ``allow`` is of no check.
        """
        age = Age.parse(self.age) if isinstance(self.age, str) else self.age
        return CallerFacts(age=age, sex=self.sex, assume_chest=self.assume_chest, allow=self.allow)
