"""The request for one film, and the result of one film among many."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import TypedDict

from pedcxr_client.checks.rules import CallerFacts
from pedcxr_client.errors import ConfigurationError, PedcxrError
from pedcxr_client.films.age import Age
from pedcxr_client.films.film import FilmSource
from pedcxr_client.films.geometry import DISPLAY, Preparation
from pedcxr_client.reports.report import Report
from pedcxr_client.request.prompts import CARD, Profile
from pedcxr_client.request.settings import Timeouts, check_timeouts
from pedcxr_client.types import Sex, Views


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class FilmRequest:
    """One film and the options of `Client.report`.

    The ages, the sexes, ``views`` and ``allow`` are checked when the film is read. A wrong value is therefore an error
    of that film and does not end a run over many films.

    Args:
        film: DICOM or an image: a path, bytes, an open file, a pydicom Dataset, a Pillow image, an array, or an
            EncodedImage. An array has no header, so that the ``pixel_array`` of a MONOCHROME1 film is a negative.
        age: the age at the time of the film, as an Age or a text such as ``"5y"``. None uses the DICOM header. An age
            that contradicts the header blocks the film; see the check ``age``.
        sex: ``"M"`` or ``"F"``. None uses the DICOM header. A sex that contradicts the header blocks the film. The
            prompt omits an age or a sex that is unknown.
        default_age, default_sex: as ``age`` and ``sex``, but used only if the header states none. They suit a value
            that the caller states for many films at once.
        views: ``"frontal"`` blocks laterals and films whose view is not known to be frontal. ``"any"`` warns.
        max_tokens: maximum length of the report, 1 or more. A report that does not fit raises an error.
        assume_chest: treat the film as a chest film if its header does not name a body part.
        allow: names of checks that must not block; see `pedcxr_client.checks.rules`. The report records them.
        preparation: how the pixels are prepared. An EncodedImage is sent unchanged; another preparation is an error.
        prompt_profile: the form of the prompt; see `pedcxr_client.request.prompts`.
        indication: the reason for the examination, up to 200 characters on one line, appended to the prompt. The
            server receives it unchanged, so it must not contain names, dates or patient numbers. Reports store only
            its digest.
        timeouts: limits of this call, instead of the client's.
        key: any value of the caller's; it is not sent and comes back with the result.

    Raises:
        ConfigurationError: if ``max_tokens`` is not an integer of 1 or more, ``prompt_profile`` is not a Profile, or
            ``timeouts`` is not a Timeouts.
    """

    film: FilmSource
    _: KW_ONLY
    age: Age | str | None = None
    sex: Sex | None = None
    default_age: Age | str | None = None
    default_sex: Sex | None = None
    views: Views = "any"
    max_tokens: int = 500
    assume_chest: bool = False
    allow: Iterable[str] = ()
    preparation: Preparation = DISPLAY
    prompt_profile: Profile = CARD
    indication: str | None = None
    timeouts: Timeouts | None = None
    key: Hashable = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise ConfigurationError(f"max_tokens: {self.max_tokens!r} must be an integer, 1 or more")
        if self.timeouts is not None:
            check_timeouts(self.timeouts)
        if not isinstance(self.prompt_profile, Profile):
            raise ConfigurationError("prompt_profile: pass prompts.CARD or the result of prompts.read_training(path)")

    def caller_facts(self) -> CallerFacts:
        """Return the caller's statements about the film, validated as `CallerFacts` does."""
        ages = [Age.parse(age) if isinstance(age, str) else age for age in (self.age, self.default_age)]
        return CallerFacts(
            age=ages[0],
            sex=self.sex,
            default_age=ages[1],
            default_sex=self.default_sex,
            views=self.views,
            assume_chest=self.assume_chest,
            allow=self.allow,
        )


class FilmOptions(TypedDict, total=False):
    """The keyword arguments of `Client.report`: those of `FilmRequest` without ``key``."""

    age: Age | str | None
    sex: Sex | None
    default_age: Age | str | None
    default_sex: Sex | None
    views: Views
    max_tokens: int
    assume_chest: bool
    allow: Iterable[str]
    preparation: Preparation
    prompt_profile: Profile
    indication: str | None
    timeouts: Timeouts | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class Result:
    """The report of one film, or its error. Exactly one of the two is not None.

    Attributes:
        index: position of the request in the input, from 0.
        request: the request, ``key`` included.
        report: the report, or None.
        error: the error, or None.
    """

    index: int
    request: FilmRequest
    report: Report | None = None
    error: PedcxrError | None = None

    def __repr__(self) -> str:
        return f"<Result {self.index}: {type(self.error).__name__ if self.error is not None else 'a report'}>"
